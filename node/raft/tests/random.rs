//! No random schedule breaks a promise. `RAFT_SEED=n` replays one, `RAFT_SEEDS=n` runs that many.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod chaos;
mod net;

use std::collections::BTreeMap;

use quorate_raft::io::{Effect, Event, Outcome};
use quorate_raft::types::MemberId;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match number("RAFT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RAFT_SEEDS").unwrap_or(default),
    }
}

/// What must have happened somewhere, or the schedules are too tame.
const MUST_HAPPEN: &[&str] = &[
    "Write TruncateTo",
    "Write SnapshotMark",
    "Install",
    "SendSnapshot",
    "ReadAt",
    "Resolve Committed",
    "Resolve Transferred",
    "Resolve TransferAborted",
    "Resolve Unknown",
    "Refused ChangeInFlight",
    "Refused ConfigMismatch",
    "Refused LearnerBehind",
    "Refused QuorumAtRisk",
    "Refused Overloaded",
    "Event Removed",
    "SteppedDown QuorumLost",
    "SteppedDown DiskStalled",
    "SteppedDown HigherTerm",
    "joint ConfigActive",
    "joint ConfigCommitted",
];

fn kind(_: MemberId, effect: &Effect) -> String {
    let first =
        |value: &dyn std::fmt::Debug| format!("{value:?}").split(['(', '{', ' ']).next().unwrap_or_default().to_owned();
    match effect {
        Effect::Write { record, .. } => format!("Write {}", first(record)),
        Effect::Send { msg, .. } => format!("Send {}", first(msg)),
        Effect::Resolve { outcome: Outcome::Refused(refusal), .. } => format!("Refused {}", first(refusal)),
        Effect::Resolve { outcome, .. } => format!("Resolve {}", first(outcome)),
        Effect::Event(Event::SteppedDown { why, .. }) => format!("SteppedDown {why:?}"),
        Effect::Event(event @ (Event::ConfigActive { config, .. } | Event::ConfigCommitted { config, .. }))
            if config.is_joint() =>
        {
            format!("joint {}", first(event))
        }
        Effect::Event(event) => format!("Event {}", first(event)),
        other => first(other),
    }
}

#[test]
fn no_schedule_breaks_safety_and_every_healed_group_serves() {
    let (mut committed, mut reads, mut seen) = (0, 0, BTreeMap::new());
    for seed in seeds(150) {
        let result = std::panic::catch_unwind(|| {
            let chaos = chaos::run_schedule(seed, |_| {});
            let mut seen = BTreeMap::new();
            for (id, effect) in &chaos.net.trace {
                *seen.entry(kind(*id, effect)).or_insert(0_u64) += 1;
            }
            (chaos.net.truth.committed.len(), chaos.net.truth.reads_done, seen)
        });
        let Ok((entries, answered, kinds)) = result else { panic!("RAFT_SEED={seed} fails") };
        committed += entries;
        reads += answered;
        for (kind, count) in kinds {
            *seen.entry(kind).or_insert(0_u64) += count;
        }
    }
    println!("{committed} entries committed, {reads} reads answered");
    for (kind, count) in &seen {
        println!("{count:8} {kind}");
    }
    for rare in MUST_HAPPEN {
        assert!(seen.contains_key(*rare), "schedules in which no {rare:?} happens prove nothing about it");
    }
}

#[test]
fn no_schedule_of_leases_makes_a_read_stale() {
    let mut reads = 0;
    for seed in seeds(150) {
        let Ok(net) = std::panic::catch_unwind(|| chaos::run_lease_schedule(seed, |_| {})) else {
            panic!("RAFT_SEED={seed} fails")
        };
        reads += net.truth.reads_done;
    }
    println!("{reads} reads answered under leases");
    assert!(reads > 0, "schedules in which nothing is read prove nothing");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let one = chaos::run_schedule(3, |_| {});
    let other = chaos::run_schedule(3, |_| {});
    assert_eq!(one.net.summary(), other.net.summary());
    assert_eq!(one.net.truth.committed, other.net.truth.committed);
}
