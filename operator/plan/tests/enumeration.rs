//! Every scenario, and every scenario again with each fault around each of its steps.
//!
//! Three things hold in every run: nothing that must never happen happens, the end equals the clean run's, and then no step is
//! taken for ten minutes.

mod world;

use world::World;
use world::run::{Phase, Scenario, enumerate, run, run_with_two};
use world::scenarios;

/// All of them, or those whose names contain the word in SCENARIO.
fn chosen() -> Vec<Scenario> {
    let word = std::env::var("SCENARIO").unwrap_or_default();
    scenarios::all().into_iter().filter(|s| s.name.contains(&word)).collect()
}

#[test]
fn every_scenario_ends_well() {
    let mut failures = Vec::new();
    for scenario in chosen() {
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
    for scenario in chosen() {
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

/// A story in which the spec changes its mind after `steps` steps.
fn flip(replicas: i32, first: fn(&mut World), steps: usize, second: fn(&mut World)) -> Scenario {
    let phases = vec![Phase::Settle, Phase::Do(first), Phase::Steps(steps), Phase::Do(second), Phase::Settle];
    Scenario { name: "flip", replicas, phases }
}

#[test]
fn a_change_of_mind_after_any_step_ends_where_it_was_asked_to() {
    let three = |w: &mut World| w.edit(|s| s.replicas = 3);
    let five = |w: &mut World| w.edit(|s| s.replicas = 5);
    let new = |w: &mut World| w.edit(|s| s.image = "quorate:2".to_owned());
    let old = |w: &mut World| w.edit(|s| s.image = "quorate:dev".to_owned());
    for (replicas, first, second, longest) in [
        (3, three as fn(&mut World), five as fn(&mut World), 0),
        (3, five, three, 13),
        (5, three, five, 11),
        (3, new, old, 7),
        (5, new, three, 11),
    ] {
        let direct = run(&flip(replicas, second, 0, second), None).expect("the direct way ends well").summary;
        for steps in 0..=longest {
            let outcome = run(&flip(replicas, first, steps, second), None).unwrap_or_else(|text| panic!("{text}"));
            let image = if outcome.summary.contains("quorate:2") {
                direct.replace("quorate:dev", "quorate:2")
            } else {
                direct.clone()
            };
            assert_eq!(
                outcome.summary,
                image,
                "flip from {replicas} after {steps} steps\n{}",
                outcome.trace.join("\n")
            );
        }
    }
}

#[test]
fn two_operators_at_once_end_as_one_does() {
    let mut failures = Vec::new();
    // Stories told by counting steps are other stories with two narrators.
    for scenario in chosen().iter().filter(|s| !s.phases.iter().any(|p| matches!(p, Phase::Steps(_)))) {
        let alone = run(scenario, None).expect("it ends well alone").summary;
        match run_with_two(scenario) {
            Ok(outcome) if outcome.summary == alone => {}
            Ok(outcome) => failures.push(format!("{}: {alone}\n  {}", scenario.name, outcome.summary)),
            Err(text) => failures.push(text),
        }
    }
    let shown: Vec<_> = failures.iter().take(3).cloned().collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), shown.join("\n\n"));
}
