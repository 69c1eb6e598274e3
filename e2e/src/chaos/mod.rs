//! Faults on real processes: `cargo xtask chaos`.
//!
//! Each suite causes faults of one kind while clients work, in rounds. A class counts only if its self-test showed the
//! fault and every round triggered it; then the history of the clients is judged. What goes wrong keeps its directory.
//! Deciding what is right belongs to the auditor, causing faults to `rig`.

mod flip;
mod flush;
mod full;
mod judge;
mod load;
pub mod members;
mod network;
mod power;
mod processes;
mod rig;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use fastrand::Rng;

use load::{Load, Recorder};
use members::{Home, Kind, Members, Program};
use rig::Image;

/// From the end of a fault until every member answers a write.
const HEAL_LIMIT: Duration = Duration::from_secs(20);
/// Writes that must go through between two faults, so that each meets a working cluster.
const WRITES_BETWEEN: u64 = 20;

#[derive(Args, Debug, Clone)]
pub struct ChaosArgs {
    /// Which suites; all if none is named
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Rounds of each class; each suite has a number of its own otherwise
    #[arg(long)]
    rounds: Option<u32>,
    /// Only classes whose name contains this
    #[arg(long)]
    class: Option<String>,
    /// The built quorate-node
    #[arg(long)]
    node: PathBuf,
    /// Concurrent clients
    #[arg(long, default_value_t = 6)]
    clients: usize,
    /// Chooses victims, moments and operations; timing is the machine's. From the clock if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Where data, logs and histories are kept during the run
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the directory after a green run too
    #[arg(long)]
    keep: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// SIGKILL of the leader, a follower, all
    Kill,
    /// SIGSTOP and SIGCONT of the leader and a follower
    Stop,
    /// One-way cuts, partitions and loss between network namespaces
    Net,
    /// Power cuts of the whole cluster: what was not flushed is gone
    Power,
    /// Flushes that fail or hang
    Fsync,
    /// Full disks
    Full,
    /// Flipped bits in the files of a stopped member
    Flip,
}

impl Suite {
    const ALL: [Suite; 7] =
        [Suite::Kill, Suite::Stop, Suite::Net, Suite::Power, Suite::Fsync, Suite::Full, Suite::Flip];
}

/// What a suite needs to know.
#[derive(Debug, Clone)]
pub struct Setting {
    args: ChaosArgs,
    dir: PathBuf,
    seed: u64,
}

/// A line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    class: String,
    rounds: u32,
    /// Faults that were seen to happen.
    faults: u32,
    operations: u64,
    worst_gap: Duration,
    remark: String,
    problem: Option<String>,
}

pub async fn run(args: ChaosArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "chaos needs root: run it through `cargo xtask chaos`");
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(clock.subsec_nanos()) ^ clock.as_secs());
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = base.join(format!("quorate-chaos-{}-{}", clock.as_secs(), std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    eprintln!("seed {seed}, directory {}", dir.display());
    let suites = if args.suites.is_empty() { Suite::ALL.to_vec() } else { args.suites.clone() };
    let mut rows = Vec::new();
    for suite in suites {
        let name = suite.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        let context = Setting { args: args.clone(), dir: dir.join(&name), seed };
        std::fs::create_dir_all(&context.dir)?;
        eprintln!("--- {name}");
        let started = Instant::now();
        let result = match suite {
            Suite::Kill => processes::kill(&context).await,
            Suite::Stop => processes::stop(&context).await,
            Suite::Net => network::run_suite(&context).await,
            Suite::Power => power::run(&context).await,
            Suite::Fsync => flush::run(&context).await,
            Suite::Full => full::run(&context).await,
            Suite::Flip => flip::run(&context).await,
        };
        eprintln!("    {name} took {:.1} s", started.elapsed().as_secs_f64());
        rows.extend(result.unwrap_or_else(|error| vec![Row::broken(&name, &error)]));
    }
    finish(&rows, &dir, args.keep)
}

fn finish(rows: &[Row], dir: &Path, keep: bool) -> Result<()> {
    println!("\n{:<26} {:>6} {:>6} {:>8} {:>9}  result", "class", "rounds", "faults", "ops", "gap ms");
    for row in rows {
        let result = row.problem.as_ref().map_or_else(|| format!("ok  {}", row.remark), |p| format!("VIOLATION  {p}"));
        println!(
            "{:<26} {:>6} {:>6} {:>8} {:>9}  {result}",
            row.class,
            row.rounds,
            row.faults,
            row.operations,
            row.worst_gap.as_millis()
        );
    }
    let broken = rows.iter().filter(|row| row.problem.is_some()).count();
    if broken > 0 {
        bail!("{broken} violation(s); logs and histories are kept in {}", dir.display());
    }
    if keep {
        eprintln!("kept: {}", dir.display());
    } else {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

impl Row {
    fn broken(class: &str, error: &anyhow::Error) -> Row {
        Row {
            class: class.to_owned(),
            rounds: 0,
            faults: 0,
            operations: 0,
            worst_gap: Duration::ZERO,
            remark: String::new(),
            problem: Some(format!("{error:#}")),
        }
    }
}

impl Setting {
    /// Our node with the flags a suite wants beside its defaults.
    fn program(&self, flags: &[&str]) -> Program {
        Program {
            kind: Kind::Quorate,
            path: self.args.node.clone(),
            prefix: Vec::new(),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        }
    }

    fn rounds(&self, default: u32) -> u32 {
        self.args.rounds.unwrap_or(default)
    }

    /// A file system of its own for each member.
    async fn on_images(&self, size_mib: u64) -> Result<(Vec<Image>, Vec<Home>)> {
        let (mut images, mut homes) = (Vec::new(), Vec::new());
        for n in 0..3 {
            let image = Image::create(&self.dir, &format!("m{n}"), size_mib).await?;
            homes.push(Home::on_loopback(image.mount.join("data"), n, 0));
            images.push(image);
        }
        Ok((images, homes))
    }

    fn rng(&self, salt: u64) -> Rng {
        Rng::with_seed(self.seed ^ salt)
    }
}

/// A cluster under load, from start to judgement.
struct Campaign {
    context: Setting,
    members: Members,
    load: Load,
    rows: Vec<Row>,
}

impl Campaign {
    async fn start(context: &Setting, mut members: Members) -> Result<Campaign> {
        members.start_all()?;
        members.ready().await?;
        let load = Load::start(members.endpoints(), context.args.clients, context.seed);
        load.progress(WRITES_BETWEEN, HEAL_LIMIT).await?;
        Ok(Campaign { context: context.clone(), members, load, rows: Vec::new() })
    }

    /// On loopback, with the data where the campaign's logs are.
    async fn on_loopback(context: &Setting, flags: &[&str]) -> Result<Campaign> {
        let members = Members::on_loopback(context.program(flags), &context.dir, 0)?;
        Campaign::start(context, members).await
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.load.recorder
    }

    /// Runs the rounds of a class. A round causes its fault, ends it and returns how often it was seen to happen.
    async fn class(
        &mut self,
        name: &str,
        rounds: u32,
        mut round: impl AsyncFnMut(&mut Campaign, u32) -> Result<u32>,
    ) -> Result<()> {
        if self.context.args.class.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            return Ok(());
        }
        let operations = self.recorder().operations();
        let mut row = Row {
            class: name.to_owned(),
            rounds: 0,
            faults: 0,
            operations: 0,
            worst_gap: Duration::ZERO,
            remark: String::new(),
            problem: None,
        };
        for n in 0..rounds {
            row.rounds += 1;
            self.recorder().forget_gap();
            let result = match round(self, n).await {
                Ok(0) => Err(anyhow::anyhow!("the fault did not happen: nothing was tested")),
                Ok(faults) => {
                    row.faults += faults;
                    self.healed().await
                }
                Err(error) => Err(error),
            };
            row.worst_gap = row.worst_gap.max(self.recorder().take_gap());
            if let Err(error) = result {
                row.problem = Some(format!("round {n}: {error:#}"));
                break;
            }
        }
        row.operations = self.recorder().operations() - operations;
        eprintln!(
            "    {name}: {} rounds, {} faults, worst gap {} ms{}",
            row.rounds,
            row.faults,
            row.worst_gap.as_millis(),
            row.problem.as_ref().map_or_else(String::new, |p| format!(", VIOLATION: {p}"))
        );
        let is_broken = row.problem.is_some();
        self.rows.push(row);
        ensure!(!is_broken, "class {name} is broken");
        Ok(())
    }

    /// Everybody runs, answers writes, and the load goes on.
    async fn healed(&mut self) -> Result<()> {
        for member in &mut self.members.list {
            if let Some(status) = member.try_ended()? {
                bail!("{} ended by itself ({status}): {}", member.name, member.log_tail(3));
            }
        }
        self.load.answers_everywhere(HEAL_LIMIT).await.context("no recovery after the fault")?;
        self.load.progress(WRITES_BETWEEN, HEAL_LIMIT).await.context("no recovery after the fault")
    }

    /// Ends the load, judges, and tells all rows. `body` is how the classes went.
    async fn finish(mut self, suite: &str, body: Result<()>) -> Result<Vec<Row>> {
        if let Err(error) = &body
            && self.rows.iter().all(|row| row.problem.is_none())
        {
            self.rows.push(Row::broken(suite, error));
        }
        let (recorder, started) = (self.load.stop().await?, Instant::now());
        // What a failed class left behind shall not hide what the history says.
        let restarted = self.members.start_missing();
        let verdict = match restarted {
            Ok(()) => judge::judge(&recorder, &self.members, &self.context.dir).await,
            Err(error) => Err(error),
        };
        self.rows.push(Row {
            class: format!("{suite}: judged"),
            rounds: self.rows.iter().map(|r| r.rounds).sum(),
            faults: self.rows.iter().map(|r| r.faults).sum(),
            operations: recorder.operations(),
            worst_gap: self.rows.iter().map(|r| r.worst_gap).max().unwrap_or_default(),
            remark: verdict.as_ref().map_or_else(|_| String::new(), ToString::to_string),
            problem: verdict.err().map(|error| format!("{error:#}")),
        });
        eprintln!("    judged in {:.1} s", started.elapsed().as_secs_f64());
        self.members.end().await;
        Ok(self.rows)
    }
}
