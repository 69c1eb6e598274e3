//! `quorate-sim`: runs seeds and sums them up.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use quorate_sim::faults::{CLASSES, Profile};
use quorate_sim::run::{Options, Outcome, run};

/// A run stops after this many failing seeds.
const VIOLATIONS_MAX: usize = 10;
/// From this many seeds on a fault class that never happened makes the run red.
const SEEDS_FOR_ALL_CLASSES: u64 = 200;

#[derive(Parser, Debug, Clone)]
#[command(
    name = "quorate-sim",
    about = "Runs whole simulated clusters from seeds and checks every promise at every step",
    after_help = "A failing seed prints the command that replays it:\n  cargo xtask sim --seed 42 --trace"
)]
struct Cli {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
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
    /// Run every seed twice and compare
    #[arg(long)]
    check_determinism: bool,
    /// Threads
    #[arg(long)]
    jobs: Option<usize>,
    /// Plant this bug
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<quorate_sim::run::Planted>,
    /// Plant every bug in turn and show what catches it
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
}

impl Cli {
    fn options(&self) -> Options {
        Options {
            profile: self.profile,
            trace: self.trace,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "mutants")]
    if cli.mutants {
        return mutants(&cli);
    }
    let (first, count) = cli.seed.map_or((cli.start, cli.seeds), |seed| (seed, 1));
    let started = Instant::now();
    let sum = run_seeds(&cli, first, count, VIOLATIONS_MAX);
    sum.print(started.elapsed().as_secs_f64());
    if sum.is_red(count) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a range of seeds did.
#[derive(Default)]
struct Sum {
    seeds: u64,
    simulated_us: u64,
    counted_us: u64,
    operations: u64,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated_us += outcome.simulated_us;
        self.counted_us += if outcome.counts_honestly { outcome.simulated_us } else { 0 };
        self.operations += outcome.operations;
        for (name, count) in &outcome.counts {
            *self.counts.entry(name).or_default() += count;
        }
        if outcome.violation.is_some() {
            self.violations.push(outcome);
        }
    }

    fn print(&self, seconds: f64) {
        let simulated = self.simulated_us as f64 / 1e6;
        println!(
            "{} seeds, {:.2} simulated hours ({:.2} count: at least 20 calls a second and a fault every 10 s), \
             {} client calls ({:.0}/s), {:.0} s: {:.0}× real time",
            self.seeds,
            simulated / 3600.0,
            self.counted_us as f64 / 3.6e9,
            self.operations,
            self.operations as f64 / simulated.max(1.0),
            seconds,
            simulated / seconds.max(0.001)
        );
        let counts: Vec<String> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{}", counts.join(", "));
        for outcome in &self.violations {
            println!(
                "VIOLATION seed {} ({}): {}",
                outcome.seed,
                outcome.profile,
                outcome.violation.as_deref().unwrap_or_default()
            );
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

/// A panic of the core is a broken invariant that it saw itself: a violation like any other.
fn one(cli: &Cli, seed: u64) -> Outcome {
    let attempt = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, cli.options())));
    let mut outcome = attempt().unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome { seed, violation: Some(format!("panic: {}", text.unwrap_or_default())), ..Outcome::default() }
    });
    if cli.check_determinism && outcome.violation.is_none() {
        let again = run(seed, cli.options());
        if again.trace_hash != outcome.trace_hash {
            outcome.violation = Some(format!("two runs differ: {:x} and {:x}", outcome.trace_hash, again.trace_hash));
        }
    }
    outcome
}

/// Seeds a planted bug may survive before it counts as not caught.
#[cfg(feature = "mutants")]
const SEEDS_PER_MUTANT: u64 = 1_000;

#[cfg(feature = "mutants")]
fn mutants(cli: &Cli) -> ExitCode {
    use quorate_sim::run::Planted;
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    let all = Planted::all();
    for mutant in &all {
        let started = Instant::now();
        let cli = Cli { mutant: Some(*mutant), ..cli.clone() };
        let sum = run_seeds(&cli, cli.start, SEEDS_PER_MUTANT, 1);
        let (killed, seeds) = (sum.violations.into_iter().next(), sum.seeds);
        let seconds = started.elapsed().as_secs_f64();
        match killed {
            Some(outcome) => {
                let text: String = outcome.violation.unwrap_or_default().chars().take(90).collect();
                println!("{:<34} killed in {seconds:>6.1} s, seed {:>4}: {text}", mutant.name(), outcome.seed);
            }
            None => {
                println!("{:<34} SURVIVED {seeds} seeds, {seconds:.1} s", mutant.name());
                survivors.push(mutant.name());
            }
        }
    }
    println!("{} passed, {} failed", all.len() - survivors.len(), survivors.len());
    if survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
