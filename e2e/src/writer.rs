//! A writer that can prove what it was promised.
//!
//! Each worker puts fresh keys one after the other, moving to the next endpoint when one does not answer. An
//! acknowledged put is fsynced into the worker's own record before the next begins; anything else is an unknown outcome
//! and the key is never used again. At the end a linearizable range must show every acknowledged write unchanged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_audit::Kv;
use quorate_audit::acks::{Ack, check_written_once};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::acks::{self, AckFile};

/// How long one put may take before its outcome counts as unknown.
const PUT_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed put, so that a dead endpoint is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Keys read per page when everything is read back.
const PAGE_KEYS: i64 = 1000;

#[derive(Args, Debug, Clone)]
pub struct WriterArgs {
    /// Client URLs, comma separated
    #[arg(long, value_delimiter = ',', required = true)]
    pub endpoints: Vec<String>,
    /// Directory for the records of acknowledgements
    #[arg(long)]
    pub dir: PathBuf,
    /// The writer ends when this file appears
    #[arg(long)]
    pub stop_file: PathBuf,
    /// Ends by itself after this many seconds
    #[arg(long, default_value_t = 1800)]
    pub seconds_max: u64,
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Pause of each worker after an acknowledged write, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Each worker connects anew after this many writes; 0: only when it must
    #[arg(long, default_value_t = 0)]
    pub reconnect_every: u64,
    /// Keys start with this
    #[arg(long, default_value = "writer/")]
    pub prefix: String,
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// What a finished writer found.
#[derive(Debug, Clone)]
pub struct Summary {
    pub acknowledged: u64,
    pub unknown: u64,
    /// Connections that could not be made.
    pub unconnected: u64,
    /// The longest time between two acknowledgements of any worker.
    pub gap_ms: u64,
    pub lost: Vec<String>,
}

impl Summary {
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "acknowledged": self.acknowledged, "unknown": self.unknown, "unconnected": self.unconnected,
            "gapMs": self.gap_ms, "lost": self.lost,
        })
    }
    pub fn from_json(value: &serde_json::Value) -> Result<Summary> {
        let number = |name: &str| value[name].as_u64().with_context(|| format!("summary has no {name}: {value}"));
        let lost = value["lost"].as_array().context("summary has no list of lost writes")?;
        Ok(Summary {
            acknowledged: number("acknowledged")?,
            unknown: number("unknown")?,
            unconnected: number("unconnected")?,
            gap_ms: number("gapMs")?,
            lost: lost.iter().map(|l| l.as_str().unwrap_or_default().to_owned()).collect(),
        })
    }
    /// Fails unless something was written and nothing was lost.
    pub fn check(&self) -> Result<String> {
        if !self.lost.is_empty() {
            bail!("{} acknowledged write(s) lost, first: {}", self.lost.len(), self.lost[0]);
        }
        if self.acknowledged == 0 {
            bail!("the writer was never acknowledged anything");
        }
        Ok(format!(
            "{} writes acknowledged, 0 lost, {} unknown, worst gap {} ms",
            self.acknowledged, self.unknown, self.gap_ms
        ))
    }
}

/// Prints a line of progress this often, then the summary.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub async fn run(args: WriterArgs) -> Result<()> {
    let writer = Writer::start(args.clone())?;
    let (started, mut told, mut worst_ms) = (Instant::now(), Instant::now(), 0);
    while !args.stop_file.exists() && started.elapsed() < Duration::from_secs(args.seconds_max) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            let gap_ms = writer.take_gap_ms();
            worst_ms = worst_ms.max(gap_ms);
            println!("{}", writer.progress_line(gap_ms));
        }
    }
    let mut summary = writer.stop_and_check().await?;
    summary.gap_ms = summary.gap_ms.max(worst_ms);
    println!("{}", summary.to_json());
    summary.check().map(|text| eprintln!("{text}"))
}

/// Counters shared by the workers.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    unconnected: AtomicU64,
    /// Microseconds since `origin` of the last acknowledgement.
    last_ack_us: AtomicU64,
    gap_us: AtomicU64,
}

#[derive(Debug)]
pub struct Writer {
    args: WriterArgs,
    shared: Arc<Shared>,
    workers: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Writer {
    pub fn start(args: WriterArgs) -> Result<Writer> {
        std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
        let shared = Arc::new(Shared::default());
        let origin = Instant::now();
        let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let workers = (0..args.workers)
            .map(|worker| {
                let (args, shared) = (args.clone(), shared.clone());
                let prefix = format!("{}{run}/{worker}/", args.prefix);
                let record = AckFile::create(&args.dir.join(format!("acks-{run}-{worker}")))?;
                Ok(tokio::spawn(work(args, shared, origin, worker, prefix, record)))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Writer { args, shared, workers })
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    fn progress_line(&self, gap_ms: u64) -> serde_json::Value {
        let of = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let (unknown, unconnected) = (of(&self.shared.unknown), of(&self.shared.unconnected));
        serde_json::json!({
            "progress": self.acknowledged(), "gapMs": gap_ms, "unknown": unknown, "unconnected": unconnected,
        })
    }

    /// Worst gap since the last call, in milliseconds.
    pub fn take_gap_ms(&self) -> u64 {
        self.shared.gap_us.swap(0, Ordering::SeqCst) / 1000
    }

    /// Waits until `count` further writes were acknowledged.
    pub async fn progress(&self, count: u64, limit: Duration) -> Result<()> {
        let goal = self.acknowledged() + count;
        crate::poll::until("the writer to be acknowledged", limit, Duration::from_millis(20), async || {
            let now = self.acknowledged();
            if now >= goal { Ok(()) } else { bail!("{now} of {goal} writes acknowledged") }
        })
        .await
    }

    pub async fn stop_and_check(self) -> Result<Summary> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers {
            worker.await.context("a writer's worker panicked")??;
        }
        let lost = check(&self.args.endpoints, &self.args.dir, &self.args.prefix, &self.args.tls).await?;
        Ok(Summary {
            acknowledged: self.shared.acknowledged.load(Ordering::SeqCst),
            unknown: self.shared.unknown.load(Ordering::SeqCst),
            unconnected: self.shared.unconnected.load(Ordering::SeqCst),
            gap_ms: self.shared.gap_us.load(Ordering::SeqCst) / 1000,
            lost,
        })
    }
}

async fn work(
    args: WriterArgs,
    shared: Arc<Shared>,
    origin: Instant,
    worker: usize,
    prefix: String,
    mut record: AckFile,
) -> Result<()> {
    let mut endpoint = worker;
    let mut client = None;
    let mut count = 0u64;
    while !shared.stop.load(Ordering::SeqCst) {
        if client.is_none() {
            endpoint += 1;
            client = args.tls.connect(&args.endpoints[endpoint % args.endpoints.len()]).await.ok();
        }
        let Some(kv) = &mut client else {
            shared.unconnected.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        count += 1;
        let (key, value) = (format!("{prefix}{count:08}"), format!("value-{worker}-{count}"));
        match put(kv, &key, &value).await {
            Ok(revision) => {
                record.record(&Ack { key, value, revision })?;
                acknowledge(&shared, origin);
                if args.reconnect_every > 0 && count.is_multiple_of(args.reconnect_every) {
                    client = None;
                }
                if args.pause_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(args.pause_ms)).await;
                }
            }
            Err(_) => {
                shared.unknown.fetch_add(1, Ordering::SeqCst);
                client = None;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
    Ok(())
}

fn acknowledge(shared: &Shared, origin: Instant) {
    let now = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let last = shared.last_ack_us.swap(now, Ordering::SeqCst);
    if last != 0 {
        shared.gap_us.fetch_max(now.saturating_sub(last), Ordering::SeqCst);
    }
    shared.acknowledged.fetch_add(1, Ordering::SeqCst);
}

pub async fn connect(endpoint: &str) -> Result<KvClient<Channel>> {
    TlsArgs::default().connect(endpoint).await
}

/// What to show at https endpoints, and whom to trust there; flags and variables as etcdctl has them.
#[derive(Args, Debug, Clone, Default)]
pub struct TlsArgs {
    #[arg(long, env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,
    #[arg(long, env = "ETCDCTL_CERT")]
    cert: Option<PathBuf>,
    #[arg(long, env = "ETCDCTL_KEY")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    /// Connects with what the files hold now.
    pub async fn connect(&self, endpoint: &str) -> Result<KvClient<Channel>> {
        let mut to = Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(PUT_TIMEOUT)
            .tcp_nodelay(true);
        if endpoint.starts_with("https://") {
            to = to.tls_config(self.config()?)?;
        }
        Ok(KvClient::new(to.connect().await?))
    }

    fn config(&self) -> Result<ClientTlsConfig> {
        let read = |path: &Option<PathBuf>, flag: &str| {
            let path = path.as_ref().with_context(|| format!("an https endpoint needs {flag}"))?;
            std::fs::read(path).with_context(|| format!("{flag} {}: cannot be read", path.display()))
        };
        let own = Identity::from_pem(read(&self.cert, "--cert")?, read(&self.key, "--key")?);
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&self.cacert, "--cacert")?)).identity(own))
    }
}

async fn put(kv: &mut KvClient<Channel>, key: &str, value: &str) -> Result<i64> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let answer = tokio::time::timeout(PUT_TIMEOUT, kv.put(request)).await??.into_inner();
    Ok(answer.header.context("a put was answered without a header")?.revision)
}

/// Where the records of a writer are, and whom to ask what became of the writes.
#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    /// Client URLs, comma separated
    #[arg(long, value_delimiter = ',', required = true)]
    pub endpoints: Vec<String>,
    /// Directory with the records of acknowledgements
    #[arg(long)]
    pub dir: PathBuf,
    /// Keys start with this
    #[arg(long, default_value = "writer/")]
    pub prefix: String,
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Compares what a running writer recorded so far with what the cluster holds.
pub async fn check_now(args: CheckArgs) -> Result<()> {
    let lost = check(&args.endpoints, &args.dir, &args.prefix, &args.tls).await?;
    match lost.first() {
        None => Ok(()),
        Some(first) => bail!("{} acknowledged write(s) lost, first: {first}", lost.len()),
    }
}

/// Reads everything below `prefix` and compares with every record in `dir`.
pub async fn check(endpoints: &[String], dir: &Path, prefix: &str, tls: &TlsArgs) -> Result<Vec<String>> {
    let mut acked = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("acks-")) {
            acked.push(acks::read(&path)?);
        }
    }
    let limit = Duration::from_secs(30);
    let found = crate::poll::until("everything to be read back", limit, Duration::from_millis(200), async || {
        let mut last = anyhow::anyhow!("no endpoint given");
        for endpoint in endpoints {
            let listed = match tls.connect(endpoint).await {
                Ok(kv) => pages(kv, prefix, None).await,
                Err(error) => Err(error),
            };
            match listed {
                Ok((_, found)) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    })
    .await?;
    let problems = acked.iter().filter_map(|acks| check_written_once(acks, &found).err()).flatten();
    Ok(problems.map(|problem| problem.to_string()).collect())
}

/// A listing in pages, all at one revision, which comes with it. Linearizable; or with `own_word` what this one member
/// holds at that revision (0: at its newest).
pub async fn read_all(endpoint: &str, prefix: &str, own_word: Option<i64>) -> Result<(i64, Vec<Kv>)> {
    pages(connect(endpoint).await?, prefix, own_word).await
}

async fn pages(kv: KvClient<Channel>, prefix: &str, own_word: Option<i64>) -> Result<(i64, Vec<Kv>)> {
    // Values of a quarter of a MiB are written where disks are filled.
    let mut kv = kv.max_decoding_message_size(1 << 30);
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().context("the prefix is empty")? += 1;
    let (mut start, mut revision, mut found) = (prefix.as_bytes().to_vec(), own_word.unwrap_or(0), Vec::new());
    loop {
        let request = RangeRequest {
            key: start.clone().into(),
            range_end: end.clone().into(),
            limit: PAGE_KEYS,
            revision,
            serializable: own_word.is_some(),
            ..RangeRequest::default()
        };
        let page = kv.range(request).await?.into_inner();
        if revision == 0 {
            revision = page.header.context("a range was answered without a header")?.revision;
        }
        found.extend(page.kvs.iter().map(plain));
        match page.kvs.last() {
            Some(last) if page.more => {
                start = last.key.to_vec();
                start.push(0);
            }
            _ => return Ok((revision, found)),
        }
    }
}

/// A pair in the auditor's form.
pub fn plain(pair: &quorate_proto::mvccpb::KeyValue) -> Kv {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Kv {
        key: text(&pair.key),
        value: text(&pair.value),
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
    }
}
