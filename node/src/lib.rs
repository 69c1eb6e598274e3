//! The shell of one member: threads, sockets, files. Decisions about consensus are the core's, about data the machine's.
//!
//! `driver` is the only loop over the core; see its header for who talks to whom.

pub mod api;
mod apply;
pub mod args;
mod bootstrap;
mod clock;
mod disk;
mod driver;
mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod handle;
mod log_thread;
pub mod program;
mod promise;
mod repair;
mod snapshot;
pub mod tls;
mod transport;
mod versions;
pub mod watch;

use std::io::Read;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use quorate_raft::Cfg;
use quorate_raft::cfg::LeaseCfg;
use quorate_raft::io::Change;
use quorate_raft::types::{Config, ConfigAt, MemberId, MemberInfo, SnapMeta};
use quorate_state::{ClusterVersion, Machine};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub use args::Args;
pub use bootstrap::hash;

use crate::driver::{Activation, Driver, DriverInput, Inbox, Outlets};
use crate::handle::{EVENT_BATCHES_BUFFERED, Flushes, Handle, Identity, NodeStatus, Shared, Waiters};
use crate::promise::Promise;
use crate::snapshot::Snapshots;
use crate::tls::{Mode, Tls};
use crate::transport::{Hello, Identities, Local, Peers, Purpose};

/// How often this member looks whether the configuration tells its own name and client URLs right.
const PUBLISH_EVERY: Duration = Duration::from_millis(500);
/// Answers given before the end leave within this.
const LAST_ANSWERS: Duration = Duration::from_millis(50);

impl Shared {
    /// The process is about to end: nobody waits for anything.
    fn is_ending(&self) -> bool {
        Arc::strong_count(&self.ending) == 1
    }
}

/// Runs a member until it is told to stop, or until it may not speak any more (an error).
pub fn run(args: Args) -> Result<()> {
    args.validate()?;
    let services = runtime("services", 2)?;
    // Peers have a thread of their own: heartbeats never queue behind clients.
    let peers = runtime("peers", 1)?;
    let result = services.block_on(member(args, peers.handle().clone()));
    // Whatever still runs has nobody left to work for.
    peers.shutdown_background();
    services.shutdown_background();
    result
}

fn runtime(name: &str, threads: usize) -> Result<tokio::runtime::Runtime> {
    let built =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build();
    built.context("cannot start the threads that serve")
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A flush older than this is a hanging disk: slow is not dead.
fn stall_us(args: &Args) -> u64 {
    (args.election_timeout * 1_000).max(500_000)
}

fn cfg(args: &Args, id: MemberId, start_refusal_us: u64) -> Cfg {
    let et_us = args.election_timeout * 1_000;
    let mut cfg = Cfg {
        election_us: (et_us, 2 * et_us),
        start_refusal_us,
        heartbeat_us: args.heartbeat_interval * 1_000,
        stall_us: stall_us(args),
        entry_bytes_max: args.max_request_bytes + (64 << 10),
        keep_entries: args.snapshot_catchup_entries,
        leases: args.lease_reads.then_some(LeaseCfg::DEFAULT),
        ..Cfg::lan(id)
    };
    cfg.live_lag_max = cfg.live_lag_max.max(args.snapshot_catchup_entries);
    #[cfg(feature = "mutants")]
    {
        cfg.mutant = args.mutant;
    }
    cfg
}

/// Where a member notes that it may never speak again.
fn halted_file(args: &Args) -> std::path::PathBuf {
    args.data_dir.join("halted")
}

/// Why an earlier run found that this member may never speak again.
fn why_halted(args: &Args) -> Result<Option<String>> {
    match std::fs::read_to_string(halted_file(args)) {
        Ok(why) => Ok(Some(why.trim_end().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", halted_file(args).display())),
    }
}

/// Where the member begins: what its log and its engine agree on.
fn adopt(args: &Args, opened: &mut bootstrap::Opened, engine: Option<&SnapMeta>) -> Result<SnapMeta> {
    let mark = &opened.recovered.snapshot;
    match engine {
        Some(meta) => {
            opened.log.adopt_engine(&mut opened.recovered, meta).map_err(repair::for_good)?;
            Ok(meta.clone())
        }
        None if mark.index > 0 => {
            let dir = args.data_dir.join("snap");
            let what =
                format!("the log begins behind {}, but no checkpoint can be read in {}", mark.index, dir.display());
            Err(anyhow::Error::new(repair::LostForGood).context(format!("{what}: replace this member under a new id")))
        }
        None => Ok(mark.clone()),
    }
}

async fn member(args: Args, peers_runtime: tokio::runtime::Handle) -> Result<()> {
    let tls = Tls::from_args(&args)?;
    let listeners = Listeners::bind(&args).await?;
    tokio::spawn(tls.clone().keep_fresh());
    let mut interrupts = Interrupts::new()?;
    let boot_nonce = random()?;
    let too_old = |agreed: Option<ClusterVersion>| agreed.and_then(versions::why_too_old);
    if let Some(why) = too_old(versions::kept(&args.data_dir).context("cannot read what the cluster agreed on")?) {
        bail!(why);
    }
    let (snapshots, loaded) = Snapshots::open(args.data_dir.join("snap"))?;
    if let Some(why) = too_old(loaded.as_ref().map(|(_, machine)| machine.cluster_version())) {
        bail!(why);
    }
    let engine_meta = loaded.as_ref().map(|(meta, _)| meta);
    let (lost, told) = tokio::sync::watch::channel(String::new());
    let faults = api::Faults::serve(&args.name, &told, &listeners.api.admin, &tls.admin)?;
    let opened = tokio::select! {
        opened = bootstrap::open(&args, &tls.peer, boot_nonce, engine_meta, &lost) => opened,
        () = interrupts.next() => return Ok(()),
    };
    let adopted = opened.and_then(|mut opened| {
        let at_start = adopt(&args, &mut opened, engine_meta)?;
        Ok((opened, at_start))
    });
    let why = match &adopted {
        Ok(_) => why_halted(&args)?,
        Err(error) if error.is::<repair::LostForGood>() => Some(format!("{error:#}")),
        Err(_) => None,
    };
    if let Some(why) = why {
        tracing::error!("this member must not speak any more: {why}");
        lost.send_replace(why);
        interrupts.next().await;
        return Ok(());
    }
    let (opened, at_start) = adopted?;
    drop(faults);
    let (engine, machine) = match loaded {
        Some((meta, machine)) => (Some(meta), machine),
        None => (None, Machine::new()),
    };
    let id = MemberId(opened.identity.member_id);
    let (inbox, inputs) = mpsc::channel();
    let inbox = Inbox(inbox);
    let activation = Activation {
        file: args.data_dir.join("activated"),
        is_activated: !args.await_activation || args.data_dir.join("activated").exists(),
    };
    let promise = Promise::begin(args.data_dir.join("promise"), args.election_timeout * 1_000)?;
    let refusal_us = promise.refusal_us();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_micros(refusal_us)).await;
        if let Err(error) = promise.lower() {
            tracing::warn!(%error, "the next start refuses votes longer than it must");
        }
    });
    let node =
        quorate_raft::Node::restart(cfg(&args, id, refusal_us), opened.recovered.clone(), clock::now(), random()?);
    let ending = Arc::new(());
    let shared = Arc::new(Shared {
        identity: Identity {
            cluster_id: opened.identity.cluster_id,
            member_id: id,
            incarnation: opened.identity.incarnation,
            generation: opened.generation,
            name: args.name.clone(),
        },
        view: ArcSwap::from_pointee(machine.view()),
        status: ArcSwap::from_pointee(NodeStatus {
            raft: node.status(),
            at_us: clock::now().0,
            elections: 0,
            led_since_us: 0,
            failover_count: 0,
            last_failover_ms: 0,
            is_activated: activation.is_activated,
            inputs: 0,
        }),
        events: tokio::sync::broadcast::channel(EVENT_BATCHES_BUFFERED).0,
        waiters: Waiters::default(),
        // A number is never used by two runs of this member: an entry of an earlier run may still be applied.
        numbers: AtomicU64::new(boot_nonce >> 2),
        request_timeout: Duration::from_millis(5_000 + 2 * args.election_timeout),
        flushes: Flushes::default(),
        disk: disk::DiskHealth::default(),
        ending: ending.clone(),
        leaving: tokio::sync::watch::Sender::new(false),
        reads: AtomicUsize::new(0),
    });
    let hello = Hello {
        purpose: Purpose::Control,
        cluster_id: opened.identity.cluster_id,
        incarnation: opened.identity.incarnation,
        member: id,
        generation: opened.generation,
        boot_nonce,
        before: *opened.log.lineage(),
        to: MemberId(0),
        token_hash: bootstrap::token_hash(&args),
        version: ClusterVersion::SPOKEN,
        peer_urls: args.initial_advertise_peer_urls.clone(),
    };
    let newest = node.status().committed_config;
    let versions = Arc::new(versions::Versions::default());
    let local = Arc::new(Local {
        hello,
        inbox: inbox.clone(),
        snapshots: snapshots.clone(),
        addresses: Mutex::default(),
        members: Mutex::new((newest.at, newest.config.clone())),
        identities: Identities::open(args.data_dir.join("peers"))?,
        versions: versions.clone(),
        comings: transport::Comings::default(),
        plane: tls.peer.clone(),
    });
    let scrubber = repair::Scrubber {
        dir: repair::log_dir(&args.data_dir),
        interval: Duration::from_secs(args.scrub_interval),
        identity: opened.identity,
        options: args.log_options(boot_nonce),
        inbox: inbox.clone(),
        shared: shared.clone(),
        local: local.clone(),
        runtime: peers_runtime.clone(),
    };
    let mut peers = Peers::new(local.clone(), peers_runtime.clone());
    peers.set_members(&opened.known);
    let handle = Handle { shared: shared.clone(), inbox: inbox.clone() };
    // First of all inputs: the core must know where the engine stands before it hears from anybody.
    if engine.is_some() {
        inbox.send(DriverInput::Persisted { meta: at_start.clone() })?;
    }
    // The socket belongs to the runtime it is polled by.
    let peer_socket = listeners.peer.into_std()?;
    peers_runtime.spawn(async move {
        match TcpListener::from_std(peer_socket) {
            Ok(socket) => transport::serve(socket, local).await,
            Err(error) => local.inbox.tell(DriverInput::WriteFailed { error: format!("the peer socket: {error}") }),
        }
    });
    let threads = Threads { args: &args, inbox: inbox.clone(), shared, snapshots, ending };
    if args.scrub_interval > 0 {
        spawn("scrub", move || scrubber.run())?;
    }
    let driver = threads.start(node, inputs, peers, activation, opened.log, machine, &at_start)?;
    tokio::spawn(publish(handle.clone(), args.name.clone(), args.advertise_client_urls.clone(), tls.peer.mode));
    tokio::spawn(versions::agree(handle.clone(), versions));
    tracing::info!(member = %id, cluster_id = format!("{:x}", opened.identity.cluster_id), generation = opened.generation, "started");
    let options = api::Options::from_args(&args);
    let served = async {
        api::serve(handle, options, tls, listeners.api).await.context("serving ended")?;
        inbox.tell(DriverInput::ClientsGone);
        std::future::pending::<Result<()>>().await
    };
    let driver = tokio::task::spawn_blocking(move || driver.join());
    tokio::select! {
        ended = driver => {
            let result = ended?.map_err(|_| anyhow::anyhow!("the driver panicked: a broken invariant"))?;
            // What was answered last is still on its way out.
            tokio::time::sleep(LAST_ANSWERS).await;
            return result;
        }
        served = served => served?,
        () = async {
            interrupts.next().await;
            inbox.tell(DriverInput::Shutdown);
            // A person who asks twice means it.
            interrupts.next().await;
        } => {}
    }
    Ok(())
}

/// The threads of a member.
struct Threads<'a> {
    args: &'a Args,
    inbox: Inbox,
    shared: Arc<Shared>,
    snapshots: Arc<Snapshots>,
    ending: Arc<()>,
}

impl Threads<'_> {
    #[allow(clippy::too_many_arguments, reason = "each part is handed over once, at start")]
    fn start(
        self,
        node: quorate_raft::Node,
        inputs: mpsc::Receiver<DriverInput>,
        peers: Peers,
        activation: Activation,
        log: quorate_log::Log<quorate_log::RealDisk>,
        machine: Machine,
        at_start: &SnapMeta,
    ) -> Result<std::thread::JoinHandle<Result<()>>> {
        let (log_sender, log_batches) = mpsc::channel();
        let (apply_sender, apply_inputs) = mpsc::channel();
        let (checkpoint_sender, checkpoints) = mpsc::channel();
        let began = Arc::new(log_thread::FlushBegan::default());
        let stall_us = stall_us(self.args);
        {
            let (inbox, began) = (self.inbox.clone(), began.clone());
            spawn("stall-watch", move || log_thread::watch(&began, stall_us, &inbox))?;
        }
        {
            let (inbox, shared) = (self.inbox.clone(), self.shared.clone());
            spawn("log", move || log_thread::run(log, &log_batches, &inbox, &began, &shared))?;
        }
        {
            let (inbox, shared, apply) = (self.inbox.clone(), self.shared.clone(), apply_sender.clone());
            let snapshots = self.snapshots.clone();
            spawn("checkpoint", move || snapshot::run(&snapshots, &checkpoints, &inbox, &apply, &shared))?;
        }
        let (every, dir) = (self.args.snapshot_count, self.args.data_dir.clone());
        let applier = apply::Applier::new(
            machine,
            at_start,
            self.inbox.clone(),
            self.shared.clone(),
            checkpoint_sender,
            every,
            dir,
        );
        spawn("apply", move || applier.run(&apply_inputs))?;
        let out = Outlets {
            log: log_sender,
            apply: apply_sender,
            peers,
            shared: self.shared,
            activation,
            halted: halted_file(self.args),
            election_us: self.args.election_timeout * 1_000,
        };
        let ending = self.ending;
        spawn("driver", move || {
            let result = Driver::new(node, inputs, out).run();
            drop(ending);
            result
        })
    }
}

/// A panic in any thread ends the whole process: half a member is worse than none.
fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>> {
    let guarded = move || {
        let bomb = Bomb;
        let value = body();
        std::mem::forget(bomb);
        value
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(guarded)
        .with_context(|| format!("cannot start thread {name}"))
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        // The panic itself was printed already.
        std::process::abort();
    }
}

/// Sockets are bound before the log is opened, so that a port that is taken is the first thing a person hears of.
struct Listeners {
    peer: TcpListener,
    api: api::Listeners,
}

impl Listeners {
    async fn bind(args: &Args) -> Result<Listeners> {
        if args.listen_peer_urls.len() != 1 {
            bail!("--listen-peer-urls: give exactly one URL, not {:?}", args.listen_peer_urls);
        }
        let (peer, _) = bind("--listen-peer-urls", &args.listen_peer_urls, args.tls.peer_tls_mode).await?.remove(0);
        Ok(Listeners {
            peer,
            api: api::Listeners {
                client: bind("--listen-client-urls", &args.listen_client_urls, args.tls.client_tls_mode).await?,
                admin: bind("--listen-admin-urls", &args.listen_admin_urls, args.tls.admin_tls_mode).await?,
                metrics: bind("--listen-metrics-urls", &args.listen_metrics_urls, None).await?,
            },
        })
    }
}

async fn bind(flag: &str, urls: &[String], mode: Option<Mode>) -> Result<Vec<(TcpListener, Mode)>> {
    let mut listeners = Vec::new();
    for url in urls {
        let listener = TcpListener::bind(transport::authority(url)?).await;
        let listener =
            listener.with_context(|| format!("{flag}: cannot listen on {url}; is another process there?"))?;
        listeners.push((listener, tls::mode_of(mode, url)));
    }
    Ok(listeners)
}

struct Interrupts {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    count: AtomicU64,
}

impl Interrupts {
    fn new() -> Result<Interrupts> {
        Ok(Interrupts {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            count: AtomicU64::new(0),
        })
    }
    async fn next(&mut self) {
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
        let nth = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::info!(nth, "told to stop");
    }
}

/// A peer URL with the scheme that its member speaks now. Between the two, either is true.
fn with_scheme_of(mode: Mode, url: &str) -> String {
    match (mode, url.split_once("://")) {
        (Mode::Disabled, Some((_, rest))) => format!("http://{rest}"),
        (Mode::Required, Some((_, rest))) => format!("https://{rest}"),
        _ => url.to_owned(),
    }
}

/// Sees to it that the configuration tells this member's name, its client URLs and the scheme of its peer URLs right.
async fn publish(handle: Handle, name: String, client_urls: Vec<String>, peers: Mode) {
    loop {
        tokio::time::sleep(PUBLISH_EVERY).await;
        let status = handle.status();
        let (at, config): (ConfigAt, Arc<Config>) =
            (status.raft.committed_config.at, status.raft.committed_config.config.clone());
        let own = handle.identity().member_id;
        let Some(info) = config.members.get(&own) else { continue };
        let peer_urls = info.peer_urls.iter().map(|url| with_scheme_of(peers, url)).collect();
        let wanted = MemberInfo { name: name.clone(), peer_urls, client_urls: client_urls.clone() };
        if *info == wanted || status.raft.leader.is_none() {
            continue;
        }
        // Members that start together compete; the loser of a compare-and-set looks again.
        if let Err(error) = handle.change(Some(at), Change::UpdateInfo { id: own, info: wanted }).await {
            tracing::debug!("own name and client URLs not published yet: {error}");
        }
    }
}
