//! What clients did and saw.
//!
//! A history is recorded as lines, one JSON value each, in any order except that a call's `invoke` comes before its
//! end and a `watch` before its `watched`. `order` numbers come from one counter shared by all clients of the
//! recording: a call that returned with 7 was over before a call invoked with 8 began.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something asked of the store. Also an operation inside a transaction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Put {
        key: String,
        value: String,
    },
    /// `range_end` as in etcd: empty is one key, `"\0"` everything from `key` on.
    DeleteRange {
        key: String,
        #[serde(default)]
        range_end: String,
    },
    Range {
        key: String,
        #[serde(default)]
        range_end: String,
        /// 0 reads the current revision.
        #[serde(default)]
        revision: i64,
        /// 0 is no limit.
        #[serde(default)]
        limit: usize,
        /// Answered from one member's state: right at its revision, but that may be old.
        #[serde(default)]
        serializable: bool,
    },
    Txn {
        compares: Vec<Compare>,
        success: Vec<Call>,
        failure: Vec<Call>,
    },
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Compare {
    pub key: String,
    pub relation: Relation,
    pub target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(String),
}

/// A key as clients see it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Kv {
    pub key: String,
    pub value: String,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
}

/// What the store answered. `revision` is that of the response header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Put { revision: i64 },
    DeleteRange { revision: i64, deleted: i64 },
    Range { revision: i64, kvs: Vec<Kv>, count: i64 },
    Txn { revision: i64, succeeded: bool, responses: Vec<Answer> },
}

impl Answer {
    pub fn revision(&self) -> i64 {
        match self {
            Answer::Put { revision }
            | Answer::DeleteRange { revision, .. }
            | Answer::Range { revision, .. }
            | Answer::Txn { revision, .. } => *revision,
        }
    }

    /// Whether it tells of a change.
    pub fn wrote(&self) -> bool {
        match self {
            Answer::Put { .. } => true,
            Answer::DeleteRange { deleted, .. } => *deleted > 0,
            Answer::Range { .. } => false,
            Answer::Txn { responses, .. } => responses.iter().any(Answer::wrote),
        }
    }
}

/// One change of one key: a put with what it made, or a delete.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Change {
    pub revision: i64,
    pub key: String,
    /// `None` is a delete.
    #[serde(default)]
    pub kv: Option<Kv>,
}

/// One call from start to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    pub id: u64,
    pub client: u64,
    pub call: Call,
    pub invoked: u64,
    pub outcome: Outcome,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Returned {
        returned: u64,
        answer: Answer,
    },
    /// Surely not executed.
    Refused,
    /// May have been executed, may still be; also a call whose end nobody recorded.
    Unknown,
}

impl Operation {
    /// When it was surely over.
    pub fn returned(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Returned { returned, .. } => Some(*returned),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }
}

/// What one watcher asked for and received.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct WatchLog {
    pub id: u64,
    pub key: String,
    #[serde(default)]
    pub range_end: String,
    /// First revision it must see. For "from now": the revision of the created answer plus one.
    pub start_revision: i64,
    #[serde(default)]
    pub no_put: bool,
    #[serde(default)]
    pub no_delete: bool,
    #[serde(default)]
    pub batches: Vec<Batch>,
}

/// One response of a watch. Without events it is a progress notification.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    pub revision: i64,
    #[serde(default)]
    pub events: Vec<Change>,
    /// More of the same revision follows in the next response.
    #[serde(default)]
    pub fragment: bool,
}

/// State before the first call; an empty store at revision 1 if nothing is said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Start {
    pub revision: i64,
    pub kvs: Vec<Kv>,
}

impl Default for Start {
    fn default() -> Start {
        Start { revision: 1, kvs: Vec::new() }
    }
}

/// One line of a recording.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Start(Start),
    Invoke {
        id: u64,
        client: u64,
        order: u64,
        call: Call,
    },
    Return {
        id: u64,
        order: u64,
        answer: Answer,
    },
    Refused {
        id: u64,
    },
    Unknown {
        id: u64,
    },
    Watch(WatchLog),
    Watched {
        id: u64,
        batch: Batch,
    },
    /// One change of the full history, from a watch of everything that began before the first call.
    Change(Change),
    /// The revision read after the last call; the full history reaches it.
    Final {
        revision: i64,
    },
}

impl Line {
    /// The line for a file, with its line break.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string(self).expect("a line has no map with other keys than strings");
        json.push('\n');
        json
    }
}

/// A whole recording.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    pub start: Start,
    /// By time of invocation.
    pub operations: Vec<Operation>,
    /// Every change after `start`, in order of revision.
    pub changes: Vec<Change>,
    /// Without it, unknown outcomes cannot be settled and nothing passes.
    pub final_revision: Option<i64>,
    pub watches: Vec<WatchLog>,
}

/// A recording that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct HistoryError {
    pub line: usize,
    pub problem: String,
}

impl History {
    /// Parses a recording. Empty lines are skipped.
    ///
    /// # Errors
    /// The first line that is not JSON of the right form, or speaks of a call or watch that was not begun.
    pub fn parse(text: &str) -> Result<History, HistoryError> {
        let mut history = History::default();
        let mut calls = BTreeMap::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let error = |problem: String| HistoryError { line: at + 1, problem };
            let line = serde_json::from_str(line).map_err(|e| error(e.to_string()))?;
            history.add(line, &mut calls).map_err(|problem| error(problem.to_owned()))?;
        }
        history.settle_order();
        Ok(history)
    }

    /// Gathers recorded lines. See [`History::parse`].
    pub fn gather(lines: impl IntoIterator<Item = Line>) -> Result<History, HistoryError> {
        let mut history = History::default();
        let mut calls = BTreeMap::new();
        for (at, line) in lines.into_iter().enumerate() {
            let error = |problem: &str| HistoryError { line: at + 1, problem: problem.to_owned() };
            history.add(line, &mut calls).map_err(error)?;
        }
        history.settle_order();
        Ok(history)
    }

    fn settle_order(&mut self) {
        self.operations.sort_by_key(|operation| operation.invoked);
        self.changes.sort_by_key(|change| change.revision);
    }

    /// `calls` maps ids to places in `operations`.
    fn add(&mut self, line: Line, calls: &mut BTreeMap<u64, usize>) -> Result<(), &'static str> {
        match line {
            Line::Start(start) => self.start = start,
            Line::Invoke { id, client, order, call } => {
                if calls.insert(id, self.operations.len()).is_some() {
                    return Err("this id was invoked before");
                }
                let outcome = Outcome::Unknown;
                self.operations.push(Operation { id, client, call, invoked: order, outcome });
            }
            Line::Return { id, order, answer } => {
                let operation = self.invoked(calls, id)?;
                if order <= operation.invoked {
                    return Err("a call returns after it is invoked");
                }
                operation.outcome = Outcome::Returned { returned: order, answer };
            }
            Line::Refused { id } => self.invoked(calls, id)?.outcome = Outcome::Refused,
            Line::Unknown { id } => self.invoked(calls, id)?.outcome = Outcome::Unknown,
            Line::Watch(watch) => self.watches.push(watch),
            Line::Watched { id, batch } => {
                let watch = self.watches.iter_mut().find(|w| w.id == id).ok_or("no watch has this id")?;
                watch.batches.push(batch);
            }
            Line::Change(change) => self.changes.push(change),
            Line::Final { revision } => self.final_revision = Some(revision),
        }
        Ok(())
    }

    fn invoked(&mut self, calls: &BTreeMap<u64, usize>, id: u64) -> Result<&mut Operation, &'static str> {
        let operation = calls.get(&id).and_then(|at| self.operations.get_mut(*at)).ok_or("no call has this id")?;
        if matches!(operation.outcome, Outcome::Returned { .. }) {
            return Err("this call returned before");
        }
        Ok(operation)
    }
}

/// Whether `key` is in the range `[key_from, range_end)` in etcd's notation.
pub fn in_range(key_from: &str, range_end: &str, key: &str) -> bool {
    match range_end {
        "" => key == key_from,
        "\0" => key >= key_from,
        end => key >= key_from && key < end,
    }
}
