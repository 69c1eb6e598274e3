//! A few seeds of every profile, in every `cargo test`: no promise is broken, and equal seeds give equal runs.

use quorate_sim::faults::Profile;
use quorate_sim::run::{Options, run};

fn options(profile: Option<Profile>) -> Options {
    Options { profile, ..Options::default() }
}

#[test]
fn no_profile_breaks_a_promise() {
    for profile in Profile::ALL {
        for seed in 1..=3 {
            let outcome = run(seed, &options(Some(profile)));
            assert_eq!(outcome.violation, None, "profile {profile}, seed {seed}");
            assert!(outcome.operations > 50, "profile {profile}, seed {seed}: only {} calls", outcome.operations);
        }
    }
}

#[test]
fn equal_seeds_give_equal_runs_and_others_do_not() {
    let first = run(7, &options(None));
    assert_eq!(first.trace_hash, run(7, &options(None)).trace_hash);
    assert_ne!(first.trace_hash, run(8, &options(None)).trace_hash);
}

/// Seeds that found something once.
#[test]
fn seeds_that_found_something_stay_green() {
    let lines = include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in lines {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [seed, profile, finding, guard] = cells.as_slice() else { panic!("four columns: {line:?}") };
        assert!(!finding.is_empty() && !guard.is_empty(), "a finding and its guard: {line:?}");
        let profile = (*profile != "-").then(|| profile.parse().unwrap());
        let outcome = run(seed.parse().unwrap(), &options(profile));
        assert_eq!(outcome.violation, None, "{line}");
    }
}

/// The harness must be able to fail: bugs that are planted are seen.
#[cfg(feature = "mutants")]
#[test]
fn planted_bugs_are_seen() {
    use quorate_raft::mutant::Mutant;
    use quorate_sim::run::Planted;
    for mutant in [Mutant::AckBeforeFsync, Mutant::UnsortedQuorum, Mutant::ReadWithoutRound] {
        let is_seen = (1..=20).any(|seed| {
            run(seed, &Options { mutant: Some(Planted::Core(mutant)), ..Options::default() }).violation.is_some()
        });
        assert!(is_seen, "{mutant} survived 20 seeds");
    }
}
