//! Local mode: the same manifest, planner and status, with members as child processes, and directories for records and volumes.
//!
//! This loop is the controller; `supervisor` stands in for the kubelet. Neither decides about members.

mod manifest;
mod ports;
mod screen;
mod store;
mod supervisor;
mod world;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_api::{ConsistentClusterStatus, status_differs};
use quorate_plan::{Decision, Intent};
use tokio::signal::unix::{SignalKind, signal};

use crate::events;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::reconcile::{self, Acted, Pass};
use crate::serve;
use manifest::Manifest;
use screen::Screen;
use world::LocalWorld;

/// Between two looks at a cluster that is as wanted.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After a step that failed, so that a world that refuses everything is not asked in a hot loop.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How often numbers that move all the time reach `status.json`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

#[derive(Args, Debug, Clone)]
pub struct LocalArgs {
    /// Manifest of one ConsistentCluster; edits are taken while it runs
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Keeps records, data and logs of the members; a later run goes on from there
    #[arg(long, default_value = "quorate-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The member program
    #[arg(long, default_value = "quorate-node", value_name = "PATH")]
    pub node_bin: PathBuf,
    /// Serves /metrics, /livez and /readyz, such as 127.0.0.1:8080; nothing when absent
    #[arg(long, value_name = "ADDRESS")]
    pub listen_metrics: Option<std::net::SocketAddr>,
    /// Throw away what an earlier run left in --data-dir
    #[arg(long)]
    pub fresh: bool,
}

/// Runs the manifest's cluster until it is interrupted.
///
/// # Errors
/// The manifest is refused, the directory is taken or cannot be written, or the member program is missing.
pub async fn run(args: LocalArgs) -> Result<()> {
    let mut interrupts = Interrupts::new()?;
    let node_bin = find_program(&args.node_bin)?;
    std::fs::create_dir_all(&args.data_dir)
        .with_context(|| format!("--data-dir {}: cannot make it", args.data_dir.display()))?;
    let data_dir = args.data_dir.canonicalize()?;
    // Before anything is ended or thrown away: nothing of this would come up.
    let mut manifest = Manifest::new(&args.file);
    manifest.check()?;
    let metrics = Arc::new(Metrics::new());
    if let Some(address) = args.listen_metrics {
        serve_metrics(address, metrics.clone()).await?;
    }
    let taken = store::take(&data_dir)?;
    supervisor::end_strays(&data_dir).await?;
    let world = LocalWorld::new(taken.open(args.fresh)?, node_bin);
    if let Intent::Refused(refused) = manifest.intent(&world)? {
        bail!("{} is refused: {}", args.file.display(), refused.problems.join("; "));
    }
    let mut session = Session {
        world,
        members: Members::default(),
        metrics,
        status: read_status(&data_dir),
        told: events::Told::default(),
        screen: Screen::new(std::io::stdout().is_terminal(), &args.file),
        data_dir,
        wrote: None,
    };
    let outcome = session.until_interrupted(&mut manifest, &mut interrupts).await;
    session.stop(&mut interrupts).await;
    outcome
}

struct Session {
    world: LocalWorld,
    members: Members,
    metrics: Arc<Metrics>,
    status: Option<ConsistentClusterStatus>,
    told: events::Told,
    screen: Screen,
    data_dir: PathBuf,
    /// When `status.json` was last written.
    wrote: Option<Instant>,
}

impl Session {
    async fn until_interrupted(&mut self, manifest: &mut Manifest, interrupts: &mut Interrupts) -> Result<()> {
        loop {
            let intent = manifest.intent(&self.world)?;
            let pause = tokio::select! {
                pause = self.pass(&intent) => pause?,
                () = interrupts.next() => return Ok(()),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = interrupts.next() => return Ok(()),
            }
        }
    }

    async fn pass(&mut self, intent: &Intent) -> Result<Duration> {
        self.world.tend();
        let started = Instant::now();
        let pass = reconcile::pass(&self.world, &self.members, intent, self.status.as_ref()).await;
        self.metrics.observe(intent, &pass, started.elapsed());
        self.world.tend();
        self.tell(&pass);
        Ok(match (&pass.acted, &pass.plan.next) {
            (Acted::Refused(..), _) => PAUSE_AFTER_FAILURE,
            (Acted::Done(_), _) => Duration::ZERO,
            (Acted::Nothing, Decision::Steady | Decision::Act(_) | Decision::Wait(_) | Decision::Blocked(_)) => {
                LOOK_EVERY
            }
        })
    }

    /// Files for people and scripts: that one cannot be written is no reason to stop anybody.
    fn tell(&mut self, pass: &Pass) {
        let news = self.told.hear(self.status.as_ref(), pass);
        self.told.is_in_status();
        let endpoints = self.world.endpoints(pass);
        let differs = self.status.as_ref().is_none_or(|old| status_differs(old, &pass.status));
        self.status = Some(pass.status.clone());
        if differs || self.wrote.is_none_or(|at| at.elapsed() >= STATUS_EVERY) {
            let json = serde_json::to_vec_pretty(&pass.status).expect("a status is JSON");
            if let Err(error) = store::write_whole(&self.data_dir.join("status.json"), &json) {
                tracing::warn!("status.json is old: {error:#}");
            }
            self.wrote = Some(Instant::now());
        }
        let of_voters: Vec<_> = endpoints.iter().filter(|e| e.is_voter).map(|e| e.client.as_str()).collect();
        // While no member answers, who votes is what it was.
        if (endpoints.is_empty() || !of_voters.is_empty())
            && let Err(error) = store::write_if_changed(&self.data_dir.join("endpoints"), &(of_voters.join(",") + "\n"))
        {
            tracing::warn!("the file of endpoints is old: {error:#}");
        }
        self.screen.show(pass, &endpoints, &news);
    }

    /// Followers first, the leader last, so that nobody stands for an election that helps nobody.
    async fn stop(&mut self, interrupts: &mut Interrupts) {
        self.screen.say("stopping the members, data is kept");
        let leader = self.status.as_ref().and_then(|s| s.leader.as_ref()).map(|l| l.name.clone());
        let ended = self.world.stop_all(leader.as_deref());
        tokio::select! {
            () = ended => self.screen.say("stopped"),
            () = interrupts.next() => {
                self.world.kill_all();
                self.screen.say("interrupted again: members were killed, data is kept");
            }
        }
        let _ = std::io::stdout().flush();
    }
}

async fn serve_metrics(address: std::net::SocketAddr, metrics: Arc<Metrics>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("--listen-metrics {address}: cannot listen"))?;
    let health = Arc::new(serve::Health::default());
    health.set_ready();
    tokio::spawn(serve::serve(listener, metrics, health));
    Ok(())
}

fn read_status(data_dir: &Path) -> Option<ConsistentClusterStatus> {
    let text = std::fs::read(data_dir.join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A path, or a name that is looked up beside this program and then in PATH.
fn find_program(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return program
            .canonicalize()
            .with_context(|| format!("--node-bin {}: there is no such program", program.display()));
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_path_buf()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = beside.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program));
    found
        .filter(|candidate| candidate.is_file())
        .find_map(|candidate| candidate.canonicalize().ok())
        .with_context(|| format!("--node-bin: no program {} beside this one or in PATH", program.display()))
}

/// Ctrl-C, and what service managers and closing terminals send.
struct Interrupts {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Interrupts> {
        Ok(Interrupts {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}
