//! `quorate-audit FILE` judges a recorded history; `quorate-audit --acks ACKS STORED` judges a writer's file against
//! the final keys (one JSON key a line). Exits with 0 if all promises hold, 1 if one is broken, 2 if it cannot judge.

use std::process::ExitCode;

use quorate_audit::history::Kv;
use quorate_audit::search::{self, Verdict};
use quorate_audit::{History, acks, strict, watch_rules};

const USAGE: &str = "usage: quorate-audit FILE\n       quorate-audit --acks ACKS STORED";

/// Why the program does not exit with 0.
enum Failed {
    Broken(String),
    CannotJudge(String),
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["--acks", acks, stored] => judge_acks(acks, stored),
        [file] if !file.starts_with('-') => judge_history(file),
        _ => Err(Failed::CannotJudge(USAGE.to_owned())),
    };
    match result {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(Failed::Broken(problem)) => {
            eprintln!("{problem}");
            ExitCode::from(1)
        }
        Err(Failed::CannotJudge(problem)) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn read(path: &str) -> Result<String, Failed> {
    std::fs::read_to_string(path).map_err(|e| Failed::CannotJudge(format!("{path}: {e}")))
}

fn judge_history(path: &str) -> Result<String, Failed> {
    let history = History::parse(&read(path)?).map_err(|e| Failed::CannotJudge(format!("{path}: {e}")))?;
    let covered = strict::check(&history).map_err(|violation| Failed::Broken(violation.to_string()))?;
    let events = watch_rules::check(&history).map_err(|broken| Failed::Broken(broken.to_string()))?;
    let second = match search::check(&history) {
        verdict @ Verdict::Linearizable => verdict.to_string(),
        verdict @ Verdict::TooLarge { .. } => format!("not searched: {verdict}"),
        verdict @ (Verdict::Impossible { .. } | Verdict::GaveUp) => return Err(Failed::Broken(verdict.to_string())),
    };
    Ok(format!("{covered:?}\n{events} watch events\nexhaustive search: {second}"))
}

fn judge_acks(acks_path: &str, stored_path: &str) -> Result<String, Failed> {
    let acked = acks::parse(&read(acks_path)?).map_err(|e| Failed::CannotJudge(format!("{acks_path}: {e}")))?;
    let stored: Result<Vec<Kv>, _> = read(stored_path)?.lines().map(serde_json::from_str).collect();
    let stored = stored.map_err(|e| Failed::CannotJudge(format!("{stored_path}: {e}")))?;
    match acks::check(&acked, &stored) {
        Ok(keys) => Ok(format!("{} acknowledged writes to {keys} keys are all there", acked.len())),
        Err(problems) => Err(Failed::Broken(problems.iter().map(|p| format!("{p}\n")).collect())),
    }
}
