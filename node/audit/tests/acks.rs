//! A writer's file against the final keys.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use quorate_audit::Kv;
use quorate_audit::acks::{Ack, AckProblem, check, check_written_once, parse};

fn ack(key: &str, value: &str, revision: i64) -> Ack {
    Ack { key: key.into(), value: value.into(), revision }
}

fn kv(key: &str, value: &str, mod_revision: i64) -> Kv {
    Kv { key: key.into(), value: value.into(), create_revision: 2, mod_revision, version: 1 }
}

#[test]
fn the_file_comes_back_and_a_cut_last_line_is_no_promise() {
    let acks = [ack("k1", "say \"hi\"\n", 2), ack("k2", "v", 5)];
    let text: String = acks.iter().map(Ack::to_line).collect();
    assert_eq!(text.lines().count(), 2);
    assert_eq!(parse(&text).unwrap(), acks);
    let last_start = text.trim_end().rfind('\n').unwrap() + 1;
    for cut in last_start..text.len() {
        assert_eq!(parse(&text[..cut]).unwrap(), acks[..1]);
    }
    assert_eq!(parse("").unwrap(), []);
}

#[test]
fn a_damaged_line_inside_is_named() {
    let text = format!("{}garbage\n{}", ack("a", "1", 2).to_line(), ack("a", "2", 3).to_line());
    assert!(matches!(parse(&text), Err(AckProblem::Malformed { line: 2, .. })));
}

#[test]
fn acknowledged_writes_that_are_there_pass() {
    let acks = [ack("a", "1", 2), ack("b", "1", 3), ack("a", "2", 4)];
    assert_eq!(check(&acks, &[kv("a", "2", 4), kv("b", "1", 3), kv("other", "x", 9)]), Ok(2));
    assert_eq!(check(&acks, &[kv("a", "3", 7), kv("b", "1", 3)]), Ok(2), "a later put of unknown outcome");
    assert_eq!(check(&[], &[]), Ok(0));
}

#[test]
fn every_lost_or_changed_write_is_named() {
    let acks = [ack("a", "1", 2), ack("b", "1", 3), ack("c", "1", 4)];
    let problems = check(&acks, &[kv("a", "0", 2), kv("b", "0", 2)]).unwrap_err();
    let wanted = [
        AckProblem::OtherValue { ack: acks[0].clone(), value: "0".into() },
        AckProblem::RolledBack { ack: acks[1].clone(), mod_revision: 2 },
        AckProblem::Lost { ack: acks[2].clone() },
    ];
    assert_eq!(problems, wanted);
}

#[test]
fn revisions_that_go_back_are_named() {
    let acks = [ack("a", "1", 9), ack("b", "1", 3)];
    let problems = check(&acks, &[kv("a", "1", 9), kv("b", "1", 3)]).unwrap_err();
    assert_eq!(problems, [AckProblem::RevisionWentBack { ack: acks[1].clone(), before: 9 }]);
}

#[test]
fn a_key_written_once_must_stand_at_the_very_revision() {
    let acks = [ack("a", "1", 2), ack("b", "1", 3), ack("c", "1", 5)];
    assert_eq!(check_written_once(&acks, &[kv("a", "1", 2), kv("b", "1", 3), kv("c", "1", 5)]), Ok(3));
    let problems = check_written_once(&acks, &[kv("a", "1", 2), kv("b", "1", 4)]).unwrap_err();
    let lost = AckProblem::Lost { ack: acks[2].clone() };
    assert_eq!(problems, [lost, AckProblem::WrittenAgain { ack: acks[1].clone(), mod_revision: 4 }]);
}
