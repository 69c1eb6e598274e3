//! Every scenario, and every scenario again with each fault around each of its steps.
//!
//! Three things hold in every run: nothing that must never happen happens, the end equals the clean run's, and then no step is
//! taken for ten minutes.

mod world;

use world::run::{enumerate, run};
use world::scenarios;

#[test]
fn every_scenario_ends_well() {
    let mut failures = Vec::new();
    for scenario in scenarios::all() {
        match run(&scenario, None) {
            Ok(outcome) => println!("{:<52} {:>3} steps  {}", scenario.name, outcome.steps, outcome.summary),
            Err(text) => failures.push(text),
        }
    }
    let shown: Vec<_> = failures.iter().take(3).cloned().collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), shown.join("\n\n"));
}

/// Enough to see what is wrong.
const FAILURES_MAX: usize = 30;

#[test]
fn every_fault_around_every_step_ends_as_the_clean_run() {
    let (mut runs, mut failures) = (0, Vec::new());
    for scenario in scenarios::all() {
        let (count, failed) = enumerate(&scenario);
        runs += count;
        println!("{:<52} {count:>4} runs, {} failed", scenario.name, failed.len());
        failures.extend(failed);
        if failures.len() > FAILURES_MAX {
            break;
        }
    }
    println!("{runs} runs");
    let shown: Vec<_> = failures.iter().take(5).cloned().collect();
    assert!(failures.is_empty(), "{} of {runs} runs failed:\n{}", failures.len(), shown.join("\n\n"));
}
