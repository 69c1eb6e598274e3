//! Every planted bug is killed, and told by what:
//! `cargo test --release -p quorate-raft --features mutants --test mutants -- --nocapture`.
//!
//! One line for each: its name, what killed it and after how long. A script kills by a broken promise or by happening
//! otherwise than written, a schedule (its seed) and the exhaustive search (its scope) by a broken promise.
//! `RAFT_MUTANT=name` looks at one only, `RAFT_KILLERS=all` tries all three for each.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod chaos;
mod net;
mod script;
#[path = "../examples/exhaustive/search.rs"]
mod search;

use std::time::{Duration, Instant};

use quorate_raft::Cfg;
use quorate_raft::mutant::Mutant;

/// Schedules tried before a bug counts as not found by them.
const SEEDS: u64 = 300;
/// States searched per scope before a bug counts as not found by the search.
const STATES_MAX: usize = 30_000;
const TIME_MAX: Duration = Duration::from_secs(60);

/// The search itself is seen to work: it finds these within few states.
const FOUND_BY_SEARCH: &[Mutant] = &[
    Mutant::VoteNotPersisted,
    Mutant::VoteReplyBeforeFsync,
    Mutant::VoteWithoutLogCheck,
    Mutant::AckBeforeFsync,
    Mutant::LeaderCountsUnsynced,
    Mutant::UnsortedQuorum,
    Mutant::LearnerCounts,
];

fn text_of(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    let text = text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn by_script(mutant: Mutant) -> Option<String> {
    let mut otherwise = None;
    for (path, script) in script::scripts() {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let run = std::panic::catch_unwind(|| script::run(&script, &|cfg: &mut Cfg| cfg.mutant = Some(mutant)));
        match run {
            Err(why) => return Some(format!("script {name}: {}", text_of(why.as_ref()))),
            Ok(result) if result != script && otherwise.is_none() => {
                otherwise = Some(format!("script {name} happens otherwise"));
            }
            Ok(_) => {}
        }
    }
    otherwise
}

fn by_schedule(mutant: Mutant) -> Option<String> {
    (0..SEEDS).find_map(|seed| {
        let tune = |cfg: &mut Cfg| cfg.mutant = Some(mutant);
        let run = std::panic::catch_unwind(|| drop(chaos::run_schedule(seed, tune)));
        let why = match run.err() {
            Some(why) => why,
            None => std::panic::catch_unwind(|| drop(chaos::run_lease_schedule(seed, tune))).err()?,
        };
        Some(format!("schedule {seed}: {}", text_of(why.as_ref())))
    })
}

fn by_search(mutant: Mutant) -> Option<String> {
    search::scopes().into_iter().find_map(|scope| {
        let scope = search::Scope { mutant: Some(mutant), ..scope };
        let broken = search::search(&scope, STATES_MAX, TIME_MAX).err()?;
        let why = broken.why.lines().next().unwrap_or_default().to_owned();
        Some(format!("search \"{}\", {} steps: {why}", scope.name, broken.schedule.len()))
    })
}

fn tell(mutant: Mutant, began: Instant, killer: &str) {
    let (took, area) = (began.elapsed().as_millis(), format!("{:?}", mutant.area()));
    println!("{:32} {area:12} {took:6} ms  {killer}", mutant.name());
}

fn only() -> Option<Mutant> {
    std::env::var("RAFT_MUTANT").ok().map(|name| name.parse().unwrap())
}

#[test]
fn every_planted_bug_is_killed() {
    let wants_all = std::env::var("RAFT_KILLERS").is_ok_and(|which| which == "all");
    std::panic::set_hook(Box::new(|_| {}));
    let mut unfound = Vec::new();
    for mutant in FOUND_BY_SEARCH.iter().filter(|mutant| only().is_none_or(|only| only == **mutant)) {
        let began = Instant::now();
        match by_search(*mutant) {
            Some(killer) => tell(*mutant, began, &killer),
            None => unfound.push(mutant.name()),
        }
    }
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL.iter().copied().filter(|mutant| only().is_none_or(|only| only == *mutant)) {
        let mut is_killed = false;
        for kill in [by_script, by_schedule, by_search] {
            if is_killed && !wants_all {
                break;
            }
            let began = Instant::now();
            let killer = kill(mutant);
            if let Some(killer) = killer {
                tell(mutant, began, &killer);
                is_killed = true;
            }
        }
        if !is_killed {
            println!("{:32} {:12} SURVIVES: {}", mutant.name(), format!("{:?}", mutant.area()), mutant.rule());
            survivors.push(mutant.name());
        }
    }
    drop(std::panic::take_hook());
    assert!(survivors.is_empty(), "planted bugs nobody kills: {survivors:?}");
    assert!(unfound.is_empty(), "planted bugs the search no longer finds: {unfound:?}");
}
