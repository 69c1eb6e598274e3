//! `quorate-sim`: runs seeds and sums them up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use quorate_sim::faults::{CLASSES, Profile};
use quorate_sim::ledger::{self, Row};
use quorate_sim::run::{Options, Outcome, run};
use quorate_sim::shrink::shrink;

/// A run stops after this many failing seeds.
const VIOLATIONS_MAX: usize = 10;
/// From this many seeds on a fault class that never happened makes the run red.
const SEEDS_FOR_ALL_CLASSES: u64 = 1_000;

/// Seeds from the first to before the second.
#[derive(Clone, Copy, Debug)]
enum Seeds {
    Count(u64),
    Range(u64, u64),
}

impl std::str::FromStr for Seeds {
    type Err = String;
    fn from_str(text: &str) -> Result<Seeds, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number of seeds"));
        match text.split_once("..") {
            None => number(text).map(Seeds::Count),
            Some((from, to)) => match (number(from)?, number(to)?) {
                (from, to) if from < to => Ok(Seeds::Range(from, to)),
                _ => Err(format!("{text:?} holds no seed: write FIRST..END with FIRST below END")),
            },
        }
    }
}

#[derive(Parser, Debug, Clone)]
#[command(
    name = "quorate-sim",
    about = "Runs whole simulated clusters from seeds and checks every promise at every step",
    after_help = "A failing seed prints the command that replays it:\n  cargo xtask sim --seed 42 --trace"
)]
struct Cli {
    /// How many seeds from --start on, or FIRST..END
    #[arg(long, default_value = "100")]
    seeds: Seeds,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Run this one seed only
    #[arg(long, conflicts_with_all = ["seeds", "start"])]
    seed: Option<u64>,
    /// Use this fault profile instead of the one the seed draws
    #[arg(long)]
    profile: Option<Profile>,
    /// Print what happens, message by message
    #[arg(long)]
    trace: bool,
    /// Run every seed twice and compare the traces
    #[arg(long)]
    twice: bool,
    /// Make the run of this failing seed smaller: fewer faults, less time, fewer clients
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "start", "seed"])]
    shrink: Option<u64>,
    /// Append a row about this run to a ledger
    #[arg(long, value_name = "FILE", conflicts_with_all = ["profile", "seed", "shrink"])]
    ledger: Option<PathBuf>,
    /// Threads
    #[arg(long)]
    jobs: Option<usize>,
    /// Leave out these faults, by the numbers a shrink prints
    #[arg(long, value_delimiter = ',', hide = true)]
    skip: Vec<u64>,
    /// End faults after so many microseconds
    #[arg(long, hide = true)]
    faults_until_us: Option<u64>,
    /// Use at most so many clients
    #[arg(long, hide = true)]
    clients_max: Option<u64>,
    /// Plant this bug
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<quorate_sim::run::Planted>,
    /// Plant every bug in turn, each for so many --seeds, and show what catches it
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Plant these bugs only
    #[cfg(feature = "mutants")]
    #[arg(long, value_delimiter = ',', requires = "mutants")]
    only: Vec<String>,
}

impl Cli {
    fn options(&self) -> Options {
        Options {
            profile: self.profile,
            trace: self.trace,
            skip: self.skip.iter().copied().collect(),
            faults_until_us: self.faults_until_us,
            clients_max: self.clients_max,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        }
    }

    fn range(&self) -> (u64, u64) {
        match (self.seed, self.seeds) {
            (Some(seed), _) => (seed, 1),
            (None, Seeds::Count(count)) => (self.start, count),
            (None, Seeds::Range(from, to)) => (from, to - from),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "mutants")]
    if cli.mutants {
        return mutants(&cli);
    }
    if let Some(seed) = cli.shrink {
        return shrunk(&cli, seed);
    }
    let (first, count) = cli.range();
    let started = Instant::now();
    let sum = run_seeds(&cli, first, count, VIOLATIONS_MAX);
    let seconds = started.elapsed().as_secs_f64();
    sum.print(seconds);
    if let Some(file) = &cli.ledger
        && let Err(problem) = enter(file, &sum, first, count, seconds)
    {
        println!("RED: {problem}");
        return ExitCode::FAILURE;
    }
    if sum.is_red(count) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a range of seeds did.
#[derive(Default)]
struct Sum {
    seeds: u64,
    simulated_us: u64,
    counted_us: u64,
    operations: u64,
    faults: u64,
    most_terms: u64,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated_us += outcome.simulated_us;
        self.counted_us += if outcome.counts_honestly { outcome.simulated_us } else { 0 };
        self.operations += outcome.operations;
        self.faults += outcome.faults.len() as u64;
        self.most_terms = self.most_terms.max(outcome.most_terms);
        for (name, count) in &outcome.counts {
            *self.counts.entry(name).or_default() += count;
        }
        if outcome.violation.is_some() {
            self.violations.push(outcome);
        }
    }

    fn speed(&self, seconds: f64) -> f64 {
        self.simulated_us as f64 / 1e6 / seconds.max(0.001)
    }

    fn print(&self, seconds: f64) {
        let simulated = self.simulated_us as f64 / 1e6;
        println!(
            "{} seeds, {:.2} simulated hours ({:.2} count: at least 20 calls a second and a fault every 10 s), \
             {} client calls ({:.0}/s), {} faults, {:.0} s: {:.0}× real time",
            self.seeds,
            simulated / 3600.0,
            self.counted_us as f64 / 3.6e9,
            self.operations,
            self.operations as f64 / simulated.max(1.0),
            self.faults,
            seconds,
            self.speed(seconds)
        );
        let counts: Vec<String> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{}; at most {} terms in 10 s", counts.join(", "), self.most_terms);
        for outcome in &self.violations {
            let text = outcome.violation.as_deref().unwrap_or_default();
            println!("VIOLATION seed {} ({}): {text}", outcome.seed, outcome.profile);
            println!("  replay: cargo xtask sim --seed {} --trace", outcome.seed);
        }
        println!("{} passed, {} failed", self.seeds - self.violations.len() as u64, self.violations.len());
    }

    fn is_red(&self, asked: u64) -> bool {
        let missing: Vec<_> =
            CLASSES.iter().filter(|class| self.counts.get(*class).copied().unwrap_or_default() == 0).collect();
        if asked >= SEEDS_FOR_ALL_CLASSES && !missing.is_empty() {
            println!("RED: fault classes that never happened: {missing:?}");
            return true;
        }
        !self.violations.is_empty()
    }
}

/// Runs seeds on all cores; each run is single-threaded, so the order of finishing changes nothing.
fn run_seeds(cli: &Cli, first: u64, count: u64, violations_max: usize) -> Sum {
    let jobs = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= count {
                        return;
                    }
                    let outcome = one(cli, first + offset);
                    let mut sum = sum.lock().expect("no thread panics while it holds the sum");
                    sum.add(outcome);
                    if violations_max > 1 && sum.seeds.is_multiple_of(100) {
                        eprintln!("[sim] {} of {count} seeds, {} s", sum.seeds, started.elapsed().as_secs());
                    }
                    if sum.violations.len() >= violations_max {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    sum.into_inner().expect("no thread panicked")
}

fn one(cli: &Cli, seed: u64) -> Outcome {
    let mut outcome = run(seed, &cli.options());
    #[cfg(feature = "mutants")]
    if cli.mutants && outcome.violation.is_some() {
        // A seed that fails by itself proves nothing about a planted bug.
        let clean = run(seed, &Options { mutant: None, ..cli.options() });
        outcome.violation = outcome.violation.filter(|_| clean.violation.is_none());
    }
    if cli.twice && outcome.violation.is_none() {
        let again = run(seed, &cli.options());
        if again.trace_hash != outcome.trace_hash {
            outcome.violation = Some(format!("two runs differ: {:x} and {:x}", outcome.trace_hash, again.trace_hash));
        }
    }
    outcome
}

fn shrunk(cli: &Cli, seed: u64) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let Some(shrunk) = shrink(seed, &cli.options()) else {
        println!("seed {seed} breaks no promise");
        return ExitCode::SUCCESS;
    };
    println!("VIOLATION seed {seed} ({}): {}", shrunk.outcome.profile, shrunk.outcome.violation.unwrap_or_default());
    println!("{} faults are left after {} runs:", shrunk.outcome.faults.len(), shrunk.runs);
    for (number, at, kind) in &shrunk.outcome.faults {
        println!("  {:>10.6} s  {kind} ({number})", *at as f64 / 1e6);
    }
    let Options { skip, faults_until_us, clients_max, .. } = shrunk.options;
    let skip: Vec<String> = skip.iter().map(u64::to_string).collect();
    let option = |name: &str, value: Option<u64>| value.map(|v| format!(" --{name} {v}")).unwrap_or_default();
    println!(
        "  replay: cargo xtask sim --seed {seed} --trace{}{}{}",
        option("faults-until-us", faults_until_us),
        option("clients-max", clients_max),
        if skip.is_empty() { String::new() } else { format!(" --skip {}", skip.join(",")) }
    );
    ExitCode::FAILURE
}

/// Appends a row to the ledger and says what the rows of this commit add up to.
fn enter(file: &Path, sum: &Sum, first: u64, count: u64, seconds: f64) -> Result<(), String> {
    let commit = core_and_log_commit()?;
    let row = Row {
        seeds: (first, first + count),
        commit: commit.clone(),
        failed: sum.violations.len() as u64 + (count - sum.seeds),
        simulated_hours: sum.simulated_us as f64 / 3.6e9,
        counted_hours: sum.counted_us as f64 / 3.6e9,
        operations: sum.operations,
        faults: sum.faults,
        speed: sum.speed(seconds),
    };
    let shown = file.display();
    let old = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("cannot read the ledger {shown}: {error}")),
    };
    let new = ledger::append(&old, &row);
    std::fs::write(file, &new).map_err(|error| format!("cannot write the ledger {shown}: {error}"))?;
    let total = ledger::total(&new, &commit);
    println!(
        "ledger {shown}: {} seeds on core and log {commit}, {} failed, {:.1} hours that count",
        total.seeds, total.failed, total.counted_hours
    );
    Ok(())
}

/// The last commit that touched the core or the log; changes that are not committed are told, because nobody can
/// repeat such a run.
fn core_and_log_commit() -> Result<String, String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).args(["--", "node/raft", "node/log"]).output();
        let output =
            output.map_err(|error| format!("a ledger names the commit, but git cannot be started: {error}"))?;
        if !output.status.success() {
            return Err(format!("git: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["log", "-1", "--format=%h"])?;
    let changed = git(&["status", "--porcelain"])?;
    Ok(if changed.is_empty() { commit } else { format!("{commit}+changes") })
}

/// One line per planted bug, columns divided by tabs: name, what killed it or nothing, seconds.
#[cfg(feature = "mutants")]
fn mutants(cli: &Cli) -> ExitCode {
    use quorate_sim::run::Planted;
    std::panic::set_hook(Box::new(|_| {}));
    let is_wanted = |one: &Planted| cli.only.is_empty() || cli.only.iter().any(|name| name == one.name());
    let all: Vec<Planted> = Planted::all().into_iter().filter(is_wanted).collect();
    let (first, count) = cli.range();
    let mut survivors = 0;
    for mutant in &all {
        let started = Instant::now();
        let cli = Cli { mutant: Some(*mutant), ..cli.clone() };
        let sum = run_seeds(&cli, first, count, 1);
        let seconds = started.elapsed().as_secs_f64();
        let killed = sum.violations.into_iter().next().map(|outcome| {
            let text: String = outcome.violation.unwrap_or_default().chars().take(100).collect();
            format!("simulator, seed {}: {}", outcome.seed, text.replace(['\t', '\n'], " "))
        });
        survivors += u32::from(killed.is_none());
        println!("MUTANT\t{}\t{}\t{seconds:.1}", mutant.name(), killed.unwrap_or_default());
    }
    println!("{} passed, {survivors} failed", all.len() - survivors as usize);
    if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
