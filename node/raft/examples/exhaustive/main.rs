//! The long exhaustive search: `cargo run --release -p quorate-raft --example exhaustive -- --states 10000000`.
//!
//! `--states N` is the budget of distinct states for all scopes together, `--seconds N` one of time (600), `--scope WORDS`
//! searches only scopes whose name contains the words. Prints one line per scope; ends with an error at the first
//! schedule that breaks an invariant, and prints it.

mod search;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use search::{scopes, search};

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
    let (mut left, mut total, mut complete) = (args.states, 0, 0);
    for (at, scope) in chosen.iter().enumerate() {
        let shares = chosen.len() - at;
        let time = args.time.saturating_sub(began.elapsed()) / u32::try_from(shares).expect("few scopes");
        let report = match search(scope, left / shares, time) {
            Ok(report) => report,
            Err(broken) => {
                println!("{}: {}", scope.name, broken.why);
                for (number, step) in broken.schedule.iter().enumerate() {
                    println!("{:3} {step}", number + 1);
                }
                return ExitCode::FAILURE;
            }
        };
        left = left.saturating_sub(report.states);
        total += report.states;
        complete += usize::from(report.is_complete);
        println!(
            "{:10} states, depth {:2}, {:8}, {:6.1} s, {:7.0} states/s, {:7} members, {:8} acts: {} ({})",
            report.states,
            report.depth,
            if report.is_complete { "complete" } else { "limit" },
            report.took.as_secs_f64(),
            report.states as f64 / report.took.as_secs_f64().max(0.001),
            report.members,
            report.acts,
            scope.name,
            scope.bounds(),
        );
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
