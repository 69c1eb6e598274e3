//! Acknowledged writes, kept by the writer itself, against what is there at the end.
//!
//! A writer appends one line per acknowledged put and flushes it to disk before it goes on: its file is the promise it
//! was given. Each writer has a file and keys of its own, and writes one after the other. A last line without a line
//! break was cut by a crash of the writer and is skipped; it was not flushed, so nothing was promised on it. A writer that
//! starts again takes a new file, so that no line follows a cut one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::Kv;

/// One acknowledged put.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ack {
    pub key: String,
    pub value: String,
    pub revision: i64,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AckProblem {
    #[error("line {line} of the acknowledgements is none: {problem}")]
    Malformed { line: usize, problem: String },
    #[error("{ack:?} was acknowledged, but the key is gone: a lost write")]
    Lost { ack: Ack },
    #[error("{ack:?} was acknowledged, but the key stands at older revision {mod_revision}: a lost write")]
    RolledBack { ack: Ack, mod_revision: i64 },
    #[error("{ack:?} was acknowledged, but the key holds {value:?} at that revision")]
    OtherValue { ack: Ack, value: String },
    #[error("{ack:?} was acknowledged, but the key, written once, stands at revision {mod_revision}: written twice")]
    WrittenAgain { ack: Ack, mod_revision: i64 },
    #[error("{ack:?} was acknowledged after revision {before}: revisions went back")]
    RevisionWentBack { ack: Ack, before: i64 },
}

impl Ack {
    /// The line for the file, with its line break.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("an acknowledgement is plain text and a number");
        line.push('\n');
        line
    }
}

/// Parses a writer's file.
///
/// # Errors
/// [`AckProblem::Malformed`] for anything but a cut last line.
pub fn parse(text: &str) -> Result<Vec<Ack>, AckProblem> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let malformed = |at: usize, e: &serde_json::Error| AckProblem::Malformed { line: at + 1, problem: e.to_string() };
    whole.lines().enumerate().map(|(at, line)| serde_json::from_str(line).map_err(|e| malformed(at, &e))).collect()
}

/// Compares one writer's acknowledgements with everything that is stored at the end.
///
/// A key may stand at a higher revision than the last acknowledged one: a later put of the same writer whose outcome it
/// never learned.
///
/// # Errors
/// Every broken promise.
pub fn check(acks: &[Ack], stored: &[Kv]) -> Result<usize, Vec<AckProblem>> {
    let stored: BTreeMap<&str, &Kv> = stored.iter().map(|kv| (kv.key.as_str(), kv)).collect();
    let mut problems = Vec::new();
    for pair in acks.windows(2) {
        if pair[1].revision <= pair[0].revision {
            problems.push(AckProblem::RevisionWentBack { ack: pair[1].clone(), before: pair[0].revision });
        }
    }
    let newest: BTreeMap<&str, &Ack> = acks.iter().map(|ack| (ack.key.as_str(), ack)).collect();
    problems.extend(newest.values().filter_map(|ack| judge(ack, stored.get(ack.key.as_str()).copied())));
    if problems.is_empty() { Ok(newest.len()) } else { Err(problems) }
}

/// As [`check`], for a writer that never uses a key twice: each must stand exactly as acknowledged. Sharper, because a
/// write that was executed twice shows.
///
/// # Errors
/// Every broken promise.
pub fn check_written_once(acks: &[Ack], stored: &[Kv]) -> Result<usize, Vec<AckProblem>> {
    let mut problems = check(acks, stored).err().unwrap_or_default();
    let stored: BTreeMap<&str, &Kv> = stored.iter().map(|kv| (kv.key.as_str(), kv)).collect();
    problems.extend(acks.iter().filter_map(|ack| match stored.get(ack.key.as_str()) {
        Some(kv) if kv.mod_revision > ack.revision => {
            Some(AckProblem::WrittenAgain { ack: ack.clone(), mod_revision: kv.mod_revision })
        }
        Some(_) | None => None,
    }));
    if problems.is_empty() { Ok(acks.len()) } else { Err(problems) }
}

fn judge(ack: &Ack, stored: Option<&Kv>) -> Option<AckProblem> {
    let ack = ack.clone();
    let Some(kv) = stored else { return Some(AckProblem::Lost { ack }) };
    if kv.mod_revision < ack.revision {
        return Some(AckProblem::RolledBack { ack, mod_revision: kv.mod_revision });
    }
    if kv.mod_revision == ack.revision && kv.value != ack.value {
        return Some(AckProblem::OtherValue { ack, value: kv.value.clone() });
    }
    None
}
