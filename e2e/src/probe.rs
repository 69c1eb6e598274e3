//! The availability prober: how long nothing can be written when a leader goes away.
//!
//! Open loop: one write is due every 2 ms whatever became of those before. The gap is the longest time between two
//! answered writes around the event; beside it stands the longest one of as long a time before the event, which is what
//! this machine does to anybody. Three members of ours and three of etcd's stand side by side on loopback; events
//! alternate between them, so that both meet the same machine. A write that never left this process goes to the next
//! member, as client libraries do; one whose outcome is open has failed.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use fastrand::Rng;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use rustix::process::Signal;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::chaos::members::{Kind, Members, Program};

/// Shorter than what is measured: no gap can be seen that is smaller than a tick.
const TICK: Duration = Duration::from_millis(2);
/// A write without an answer after this has failed.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// A member that could not be reached is left out for this long.
const LEFT_OUT: Duration = Duration::from_millis(200);
/// Writes before those that count: connections are made.
const WARM: Duration = Duration::from_millis(200);
/// The event's moment is drawn, so that it meets every phase of heartbeats.
const PHASE_MS: u64 = 100;
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(15);
/// Tries to meet a leader that stays until its event.
const DISTURBED_MAX: usize = 20;
/// Pause of a background client between two writes.
const LOAD_PAUSE: Duration = Duration::from_millis(2);
/// Ports of etcd's members, beside ours.
const ETCD_PORTS: u16 = 1_000;

#[derive(Args, Debug, Clone)]
pub struct ProbeArgs {
    /// The built quorate-node
    #[arg(long)]
    node: PathBuf,
    /// A real etcd, to stand beside
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Events of each kind on each side
    #[arg(long, default_value_t = 20)]
    events: usize,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Event::Kill, Event::Move, Event::Term])]
    kinds: Vec<Event>,
    /// Clients that write in the background
    #[arg(long, default_value_t = 4)]
    load: usize,
    /// Also append the table to this file
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// SIGKILL of the leader
    Kill,
    /// A planned move of leadership
    Move,
    /// SIGTERM of the leader
    Term,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Event::Kill => "leader SIGKILL",
            Event::Move => "leader moved",
            Event::Term => "leader SIGTERM",
        }
    }

    /// Writes go on for this long after the event: beyond two elections, or a transfer's deadline.
    fn watched(self) -> Duration {
        Duration::from_millis(match self {
            Event::Kill => 1_500,
            Event::Move | Event::Term => 600,
        })
    }

    /// p50 and p99 of the gap in ms, and whether no request may fail.
    fn goal(self) -> (u64, u64, bool) {
        match self {
            Event::Kill => (200, 400, false),
            Event::Move | Event::Term => (10, 25, true),
        }
    }
}

/// One event's figures.
#[derive(Clone, Copy, Debug)]
struct Sample {
    gap: Duration,
    /// The longest gap in as long a time before the event.
    quiet: Duration,
    probe_failed: u64,
    load_failed: u64,
    written: u64,
}

/// One side of the comparison.
struct Side {
    name: &'static str,
    members: Members,
    samples: Vec<Sample>,
    disturbed: usize,
}

pub async fn run(args: ProbeArgs) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("quorate-probe-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut sides = vec![side("quorate", Kind::Quorate, &args.node, &dir, 0, &[])?];
    if let Some(etcd) = &args.etcd {
        let flags = ["--heartbeat-interval", "50", "--election-timeout", "250"];
        sides.push(side("etcd", Kind::Etcd, etcd, &dir, ETCD_PORTS, &flags)?);
    }
    for side in &mut sides {
        side.members.start_all()?;
        side.members.ready().await.with_context(|| format!("{} does not come up", side.name))?;
    }
    let result = all(&args, &mut sides).await;
    for side in &mut sides {
        side.members.end().await;
    }
    match result {
        Ok(table) => {
            if let Some(out) = &args.out {
                std::fs::write(out, table).with_context(|| format!("cannot write {}", out.display()))?;
            }
            Ok(std::fs::remove_dir_all(&dir)?)
        }
        Err(error) => Err(error.context(format!("logs are kept in {}", dir.display()))),
    }
}

fn side(name: &'static str, kind: Kind, path: &Path, dir: &Path, ports: u16, flags: &[&str]) -> Result<Side> {
    let flags = flags.iter().map(|f| (*f).to_owned()).collect();
    let program = Program { kind, path: path.to_owned(), prefix: Vec::new(), flags };
    Ok(Side {
        name,
        members: Members::on_loopback(program, &dir.join(name), ports)?,
        samples: Vec::new(),
        disturbed: 0,
    })
}

async fn all(args: &ProbeArgs, sides: &mut [Side]) -> Result<String> {
    let mut table = format!(
        "{:<15} {:<8} {:>5}  {:>7} {:>7} {:>7}  {:>9} {:>9}  {:>12} {:>11}  goal\n",
        "event", "of", "n", "p50 ms", "p99 ms", "max ms", "quiet p50", "quiet p99", "probe failed", "load failed"
    );
    print!("{table}");
    let mut rng = Rng::with_seed(1);
    for &kind in &args.kinds {
        for n in 0..args.events {
            for k in 0..sides.len() {
                // Which goes first alternates, too.
                let at = (n + k) % sides.len();
                let phase = WARM + kind.watched() + Duration::from_millis(rng.u64(..PHASE_MS));
                let side = &mut sides[at];
                let sample = undisturbed(side, kind, phase, args.load).await;
                side.samples.push(sample.with_context(|| format!("{} of {}", kind.name(), side.name))?);
            }
        }
        for side in sides.iter_mut() {
            if side.disturbed > 0 {
                let times = std::mem::take(&mut side.disturbed);
                eprintln!(
                    "    {}: {times} events left out, because the leader changed by itself before them",
                    side.name
                );
            }
            let row = row(kind, side.name, &std::mem::take(&mut side.samples));
            print!("{row}");
            table += &row;
        }
    }
    Ok(table)
}

fn row(kind: Event, name: &str, samples: &[Sample]) -> String {
    let sorted = |gap: fn(&Sample) -> Duration| {
        let mut gaps: Vec<f64> = samples.iter().map(|s| gap(s).as_secs_f64() * 1e3).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    };
    let (gaps, quiet) = (sorted(|s| s.gap), sorted(|s| s.quiet));
    let rank = |percent: usize| (samples.len() - 1) * percent / 100;
    let at = |percent: usize| gaps[rank(percent)];
    let (probe_failed, load_failed) = samples.iter().fold((0, 0), |(p, l), s| (p + s.probe_failed, l + s.load_failed));
    let written: u64 = samples.iter().map(|s| s.written).sum();
    let (p50, p99, none_fails) = kind.goal();
    let is_met = at(50) <= p50 as f64 && at(99) <= p99 as f64 && (!none_fails || probe_failed + load_failed == 0);
    let failures = if none_fails { ", 0 failed" } else { "" };
    format!(
        "{:<15} {:<8} {:>5}  {:>7.1} {:>7.1} {:>7.1}  {:>9.1} {:>9.1}  {:>12} {:>11}  {} (p50 <= {p50}, p99 <= {p99}{failures}; {written} written)\n",
        kind.name(),
        name,
        gaps.len(),
        at(50),
        at(99),
        at(100),
        quiet[rank(50)],
        quiet[rank(99)],
        probe_failed,
        load_failed,
        if is_met { "met" } else { "missed" },
    )
}

/// Runs an event until its leader did not change by itself before it: a machine that is too busy is no event of ours.
async fn undisturbed(side: &mut Side, kind: Event, before: Duration, load: usize) -> Result<Sample> {
    for _ in 0..DISTURBED_MAX {
        match event(side.name, &mut side.members, kind, before, load).await? {
            Some(sample) => return Ok(sample),
            None => side.disturbed += 1,
        }
    }
    bail!("the leader changed by itself {DISTURBED_MAX} times: this machine is too busy to measure on")
}

/// Runs the prober around one event and puts the cluster back in order. None if the leader changed before it.
async fn event(
    name: &str,
    members: &mut Members,
    kind: Event,
    before: Duration,
    load: usize,
) -> Result<Option<Sample>> {
    let leader = members.settled(SETTLE_LIMIT).await?;
    let target = (leader + 1) % members.list.len();
    let prober = Prober::start(&members.endpoints(), load)?;
    tokio::time::sleep(before).await;
    if members.leader().await.ok() != Some(leader) {
        prober.stop().await?;
        return Ok(None);
    }
    let at = Instant::now();
    match kind {
        Event::Kill => drop(members.list[leader].kill().await?),
        Event::Move => members.move_leader(leader, target, WRITE_LIMIT).await?,
        Event::Term => members.list[leader].signal(Signal::TERM)?,
    }
    tokio::time::sleep(kind.watched()).await;
    let sample = sample(name, &*prober.stop().await?, at, kind.watched())?;
    if kind == Event::Term {
        members.list[leader].ended(END_LIMIT).await?;
    }
    members.start_missing()?;
    let now = members.settled(SETTLE_LIMIT).await?;
    if kind == Event::Move {
        ensure!(now == target, "leadership was moved to member {target}, but member {now} has it");
    }
    Ok(Some(sample))
}

/// What all writes of a prober share.
struct Shared {
    channels: Vec<Channel>,
    /// Milliseconds since `started` until which a member is left out.
    left_out: Vec<AtomicU64>,
    started: Instant,
    answered: Mutex<Vec<Instant>>,
    probe_failed: AtomicU64,
    load_failed: AtomicU64,
    stop: AtomicBool,
    reasons: Mutex<Vec<String>>,
}

struct Prober {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Prober {
    fn start(endpoints: &[String], load: usize) -> Result<Prober> {
        let channels = endpoints.iter().map(|url| {
            let endpoint = Endpoint::from_shared(url.clone())?;
            Ok(endpoint.connect_timeout(CONNECT_LIMIT).tcp_nodelay(true).connect_lazy())
        });
        let shared = Arc::new(Shared {
            channels: channels.collect::<Result<_>>()?,
            left_out: endpoints.iter().map(|_| AtomicU64::new(0)).collect(),
            started: Instant::now(),
            answered: Mutex::default(),
            probe_failed: AtomicU64::new(0),
            load_failed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            reasons: Mutex::default(),
        });
        let mut tasks = vec![tokio::spawn(tick(shared.clone()))];
        tasks.extend((0..load).map(|n| tokio::spawn(background(shared.clone(), n))));
        Ok(Prober { shared, tasks })
    }

    /// Waits for what is under way.
    async fn stop(self) -> Result<Arc<Shared>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.context("a client panicked")?;
        }
        Ok(self.shared)
    }
}

/// The longest gap that touches the time after `event`, and the longest one before it.
fn sample(name: &str, shared: &Shared, event: Instant, watched: Duration) -> Result<Sample> {
    let mut answered = shared.answered.lock().expect("no holder of this lock panics").clone();
    answered.sort_unstable();
    let longest = |is_meant: &dyn Fn(Instant) -> bool| {
        let pairs = answered.windows(2).filter(|two| is_meant(two[1]));
        pairs.map(|two| two[1] - two[0]).max()
    };
    let gap = longest(&|at| at >= event).context("no write was answered after the event")?;
    let quiet = longest(&|at| at < event && at + watched >= event).context("no write was answered before the event")?;
    for reason in shared.reasons.lock().expect("no holder of this lock panics").iter().take(3) {
        eprintln!("    {name}: {reason}");
    }
    Ok(Sample {
        gap,
        quiet,
        probe_failed: shared.probe_failed.load(Ordering::SeqCst),
        load_failed: shared.load_failed.load(Ordering::SeqCst),
        written: answered.len() as u64,
    })
}

/// One write every tick, whatever became of the others.
async fn tick(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut writes = tokio::task::JoinSet::new();
    let mut count = 0usize;
    while !shared.stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        count += 1;
        let shared = shared.clone();
        writes.spawn(async move {
            match write(&shared, count, format!("probe/{}", count % 100)).await {
                Ok(()) => shared.answered.lock().expect("no holder of this lock panics").push(Instant::now()),
                Err(status) => {
                    shared.probe_failed.fetch_add(1, Ordering::SeqCst);
                    shared.reasons.lock().expect("no holder of this lock panics").push(reason(&status));
                }
            }
        });
        while writes.try_join_next().is_some() {}
    }
    while writes.join_next().await.is_some() {}
}

async fn background(shared: Arc<Shared>, n: usize) {
    let mut count = n;
    while !shared.stop.load(Ordering::SeqCst) {
        count += 1;
        if write(&shared, count, format!("load/{n}/{}", count % 1000)).await.is_err() {
            shared.load_failed.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(LOAD_PAUSE).await;
    }
}

/// One write, tried on the next member as long as it did not leave this process.
async fn write(shared: &Shared, first: usize, key: String) -> Result<(), Status> {
    let deadline = Instant::now() + WRITE_LIMIT;
    let mut at = first;
    loop {
        let member = next_member(shared, at);
        let mut kv = KvClient::new(shared.channels[member].clone());
        let put = PutRequest { key: key.clone().into(), value: vec![b'x'; 64].into(), ..PutRequest::default() };
        let left = deadline.saturating_duration_since(Instant::now());
        let result = match tokio::time::timeout(left, kv.put(put)).await {
            Ok(result) => result.map(drop),
            Err(_) => return Err(Status::deadline_exceeded("no answer in time")),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(status) if was_not_sent(&status) && Instant::now() < deadline => {
                let until = shared.started.elapsed() + LEFT_OUT;
                shared.left_out[member].store(u64::try_from(until.as_millis()).unwrap_or(0), Ordering::SeqCst);
                at = member + 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// The first member from `at` on that is not left out; `at` itself if all are.
fn next_member(shared: &Shared, at: usize) -> usize {
    let now = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(0);
    let count = shared.channels.len();
    let order = (0..count).map(|k| (at + k) % count);
    order.clone().find(|m| shared.left_out[*m].load(Ordering::SeqCst) <= now).unwrap_or(at % count)
}

/// Whether the request certainly reached no server: no connection, or one that ended before the request was taken.
fn was_not_sent(status: &Status) -> bool {
    if status.code() != Code::Unavailable && status.code() != Code::Cancelled && status.code() != Code::Unknown {
        return false;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        // hyper's own words for a request that it gave back unsent; its type is not ours to name.
        if error.to_string() == "operation was canceled" {
            return true;
        }
        cause = error.source();
    }
    false
}

fn reason(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        text += &format!(" <- {error}");
        cause = error.source();
    }
    text
}
