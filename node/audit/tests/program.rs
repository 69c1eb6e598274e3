//! The program: exit code 0 for kept promises, 1 for broken ones, 2 when it cannot judge.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_audit::acks::Ack;
use quorate_audit::{Answer, Call, Change, Kv, Line};

fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn exit_code(args: &[&Path]) -> Option<i32> {
    Command::new(env!("CARGO_BIN_EXE_quorate-audit")).args(args).output().unwrap().status.code()
}

fn stored() -> Kv {
    Kv { key: "a".into(), value: "1".into(), create_revision: 2, mod_revision: 2, version: 1 }
}

fn history(final_revision: i64) -> String {
    let call = Call::Put { key: "a".into(), value: "1".into() };
    let mut lines = vec![
        Line::Invoke { id: 1, client: 1, order: 1, call },
        Line::Return { id: 1, order: 2, answer: Answer::Put { revision: 2 } },
        Line::Final { revision: final_revision },
    ];
    if final_revision == 2 {
        lines.push(Line::Change(Change { revision: 2, key: "a".into(), kv: Some(stored()) }));
    }
    lines.iter().map(Line::to_json).collect()
}

#[test]
fn a_history_is_judged() {
    assert_eq!(exit_code(&[&file("kept.jsonl", &history(2))]), Some(0));
    assert_eq!(exit_code(&[&file("lost.jsonl", &history(1))]), Some(1));
    assert_eq!(exit_code(&[&file("garbage.jsonl", "garbage\n")]), Some(2));
    assert_eq!(exit_code(&[Path::new("/nowhere/history.jsonl")]), Some(2));
    assert_eq!(exit_code(&[]), Some(2));
}

#[test]
fn acknowledgements_are_judged() {
    let option = Path::new("--acks");
    let acks = file("acks.jsonl", &Ack { key: "a".into(), value: "1".into(), revision: 2 }.to_line());
    let kept = file("stored.jsonl", &(serde_json::to_string(&stored()).unwrap() + "\n"));
    let empty = file("empty.jsonl", "");
    assert_eq!(exit_code(&[option, &acks, &kept]), Some(0));
    assert_eq!(exit_code(&[option, &acks, &empty]), Some(1));
    assert_eq!(exit_code(&[option, &kept, &kept]), Some(2));
}
