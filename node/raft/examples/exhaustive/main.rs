//! The long exhaustive search: `cargo run --release -p quorate-raft --example exhaustive -- --states 10000000`.
//!
//! `--states N` is the budget of distinct states for all scopes together, `--seconds N` one of time (600), `--scope WORDS`
//! searches only scopes whose name contains the words. Prints one line per scope; ends with an error at the first
//! schedule that breaks an invariant, and prints it.

mod search;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use search::{Report, Scope, scopes, search};

struct Args {
    states: usize,
    time: Duration,
    scope: String,
}

fn args() -> Result<Args, String> {
    let mut args = Args { states: 1_000_000, time: Duration::from_secs(600), scope: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || value.replace('_', "").parse::<u64>().map_err(|_| format!("{word} {value}: not a number"));
        match word.as_str() {
            "--states" => args.states = usize::try_from(number()?).map_err(|_| format!("{word} {value}: too many"))?,
            "--seconds" => args.time = Duration::from_secs(number()?),
            "--scope" => args.scope = value,
            other => return Err(format!("{other} is not known; use --states N, --seconds N or --scope WORDS")),
        }
    }
    Ok(args)
}

/// Scopes are searched side by side, each by one thread.
const THREADS: usize = 2;

struct Work {
    next: usize,
    /// States of the budget that no scope has used or taken yet.
    left: usize,
    total: usize,
    complete: usize,
    is_broken: bool,
}

/// Searches one scope after the other. A scope gets its equal share of what is left, and gives back what it does not need.
fn run(scopes: &[Scope], args: &Args, began: Instant, work: &Mutex<Work>) {
    let lock = || work.lock().expect("no search panics outside of a member");
    loop {
        let (scope, states, time) = {
            let mut work = lock();
            let Some(scope) = scopes.get(work.next).filter(|_| !work.is_broken) else { return };
            let shares = scopes.len() - work.next;
            let states = work.left / shares;
            work.next += 1;
            work.left -= states;
            let turns = u32::try_from(shares.div_ceil(THREADS)).expect("few scopes");
            (scope, states, args.time.saturating_sub(began.elapsed()) / turns)
        };
        let result = search(scope, states, time);
        let mut work = lock();
        match result {
            Ok(report) => {
                work.left += states.saturating_sub(report.states);
                work.total += report.states;
                work.complete += usize::from(report.is_complete);
                println!("{}: {} ({})", line(&report), scope.name, scope.bounds());
            }
            Err(broken) => {
                work.is_broken = true;
                println!("{}: {}", scope.name, broken.why);
                for (number, step) in broken.schedule.iter().enumerate() {
                    println!("{:3} {step}", number + 1);
                }
            }
        }
    }
}

fn line(report: &Report) -> String {
    format!(
        "{:10} states, depth {:2}, {:8}, {:6.1} s, {:7.0} states/s, {:7} members, {:8} acts",
        report.states,
        report.depth,
        if report.is_complete { "complete" } else { "limit" },
        report.took.as_secs_f64(),
        report.states as f64 / report.took.as_secs_f64().max(0.001),
        report.members,
        report.acts,
    )
}

/// Most memory this process had, as the kernel counts it.
fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1_024)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(wrong) => {
            println!("{wrong}");
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let chosen: Vec<_> = scopes().into_iter().filter(|scope| scope.name.contains(&args.scope)).collect();
    let work = Mutex::new(Work { next: 0, left: args.states, total: 0, complete: 0, is_broken: false });
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| run(&chosen, &args, began, &work));
        }
    });
    let Work { total, complete, is_broken, .. } = work.into_inner().expect("no search panics outside of a member");
    if is_broken {
        return ExitCode::FAILURE;
    }
    // Two of n states share 64 bits with a chance of n²/2^65.
    let chance = (total as f64).powi(2) / 2_f64.powi(65);
    println!(
        "{total} distinct states without a broken invariant, {complete} of {} scopes complete, {:.0} s, at most {} MiB; \
         chance that a state was taken for another: {chance:.1e}",
        chosen.len(),
        began.elapsed().as_secs_f64(),
        peak_memory_mib().map_or("unknown".to_owned(), |mib| mib.to_string()),
    );
    ExitCode::SUCCESS
}
