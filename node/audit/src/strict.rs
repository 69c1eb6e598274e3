//! Strict serializability of puts, deletes, reads and transactions, in near-linear time.
//!
//! Revisions give the order: every write has one of its own, every other call sits between the write of its revision
//! and the next. So the checker replays the full history of changes against the model, revision by revision:
//!
//! 1. each revision has exactly one write that makes exactly these changes and got exactly this answer. A write whose
//!    outcome is unknown may take a revision that nobody else claims; a refused one may not;
//! 2. each read, and each transaction without a change, got exactly what the model has at its revision;
//! 3. no call comes before another in this order although it began after the other's end (real time).
//!
//! Serializable reads owe 2 but not 3. Source: the order by revision is the method of etcd's robustness tests;
//! Herlihy and Wing, "Linearizability", TOPLAS 1990.

use std::collections::BTreeMap;

use crate::history::{Answer, Call, Change, History, Operation, Outcome, in_range};
use crate::model::{Evaluated, Model};

/// How the history breaks the promise. Numbers named `id` are ids of calls.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    #[error("the history has no final revision, so unknown outcomes cannot be settled (record a `final` line)")]
    NoFinal,
    #[error("call {id} reads an old revision inside a transaction, which this checker cannot judge")]
    NotJudgeable { id: u64 },
    #[error("revision {revision} is missing from the full history, or has changes out of order")]
    Gap { revision: i64 },
    #[error("the full history has a change at {revision}, above the final revision {final_revision}")]
    BeyondFinal { revision: i64, final_revision: i64 },
    #[error("calls {first} and {second} both got revision {revision} for their write")]
    TwoWriters { revision: i64, first: u64, second: u64 },
    #[error("nobody made revision {revision}: {changes:?} (a write applied twice, refused but executed, or invented)")]
    NoWriter { revision: i64, changes: Vec<Change> },
    #[error(
        "call {id} was acknowledged at revision {revision}, but the history ends at {final_revision}: a lost write"
    )]
    LostWrite { id: u64, revision: i64, final_revision: i64 },
    #[error("call {id} was acknowledged at revision {revision}, which holds {found:?} instead of {wanted:?}")]
    OtherWrite { id: u64, revision: i64, wanted: Vec<Change>, found: Vec<Change> },
    #[error("call {id} got {got:?}, but right at revision {revision} is {wanted:?}")]
    WrongAnswer { id: u64, revision: i64, wanted: Answer, got: Answer },
    #[error("call {id} got revision {revision}, outside of the history from {first} to {last}")]
    OutsideHistory { id: u64, revision: i64, first: i64, last: i64 },
    #[error(
        "call {later} began after call {earlier} had ended, but comes before it in the order of revisions: stale, or \
         out of real-time order"
    )]
    RealTime { earlier: u64, later: u64 },
}

/// What a passed check covered. A check that covered little proves little.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Covered {
    pub writes: usize,
    pub reads: usize,
    /// Writes of unknown outcome that turned out to be executed.
    pub settled_executed: usize,
    /// Calls of unknown outcome that left no trace.
    pub settled_absent: usize,
    pub refused: usize,
}

/// # Errors
/// The first violation found.
pub fn check(history: &History) -> Result<Covered, Violation> {
    let final_revision = history.final_revision.ok_or(Violation::NoFinal)?;
    if let Some(id) = history.operations.iter().find(|o| reads_past_in_txn(&o.call)).map(|o| o.id) {
        return Err(Violation::NotJudgeable { id });
    }
    let mut sorted = Sorted::of(history, final_revision)?;
    let order = replay(history, final_revision, &mut sorted)?;
    check_real_time(&history.operations, &order)?;
    Ok(covered(history, &sorted))
}

/// Place in the order: a write at revision r is at 2r, what read at r at 2r + 1.
type Place = i64;

/// The calls by the revision that places them; numbers are places in `History::operations`.
struct Sorted {
    writer_of: BTreeMap<i64, usize>,
    /// By the revision whose content they show.
    readers_of: BTreeMap<i64, Vec<usize>>,
    /// Unknown outcomes not settled yet, by time of invocation.
    unsettled: Vec<usize>,
    settled_executed: usize,
}

impl Sorted {
    fn of(history: &History, final_revision: i64) -> Result<Sorted, Violation> {
        let mut sorted = Sorted {
            writer_of: BTreeMap::new(),
            readers_of: BTreeMap::new(),
            unsettled: Vec::new(),
            settled_executed: 0,
        };
        for (at, operation) in history.operations.iter().enumerate() {
            let answer = match &operation.outcome {
                Outcome::Returned { answer, .. } => answer,
                Outcome::Refused => continue,
                Outcome::Unknown => {
                    sorted.unsettled.push(at);
                    continue;
                }
            };
            let (id, revision) = (operation.id, answer.revision());
            let (first, last) = (history.start.revision, final_revision);
            if answer.wrote() {
                if revision > last {
                    return Err(Violation::LostWrite { id, revision, final_revision });
                }
                if let Some(other) = sorted.writer_of.insert(revision, at) {
                    let first = history.operations[other].id;
                    return Err(Violation::TwoWriters { revision, first, second: id });
                }
            }
            let shown = shown_revision(&operation.call, answer);
            for revision in [revision, shown] {
                let lowest = if answer.wrote() { first + 1 } else { first };
                if !(lowest..=last).contains(&revision) {
                    return Err(Violation::OutsideHistory { id, revision, first, last });
                }
            }
            if !answer.wrote() {
                sorted.readers_of.entry(shown).or_default().push(at);
            }
        }
        Ok(sorted)
    }
}

/// The revision whose content an answer shows.
fn shown_revision(call: &Call, answer: &Answer) -> i64 {
    match call {
        Call::Range { revision, .. } if *revision > 0 => *revision,
        Call::Range { .. } | Call::Put { .. } | Call::DeleteRange { .. } | Call::Txn { .. } => answer.revision(),
    }
}

/// Replays every revision; gives each call that has one its place.
fn replay(history: &History, final_revision: i64, sorted: &mut Sorted) -> Result<Vec<(Place, usize)>, Violation> {
    let mut order = Vec::new();
    let mut model = Model::new(&history.start);
    let mut changes = &history.changes[..];
    check_readers(history, sorted, &model, &mut order)?;
    for revision in history.start.revision + 1..=final_revision {
        let end = changes.iter().take_while(|change| change.revision == revision).count();
        let (found, rest) = changes.split_at(end);
        changes = rest;
        if found.is_empty() {
            return Err(Violation::Gap { revision });
        }
        let at = match sorted.writer_of.get(&revision) {
            Some(at) => *at,
            None => settle(history, sorted, &model, revision, found)?,
        };
        check_write(&history.operations[at], &model, revision, found)?;
        order.push((revision * 2, at));
        model.commit(found);
        check_readers(history, sorted, &model, &mut order)?;
    }
    match changes.first() {
        Some(change) if change.revision > final_revision => {
            Err(Violation::BeyondFinal { revision: change.revision, final_revision })
        }
        Some(change) => Err(Violation::Gap { revision: change.revision }),
        None => Ok(order),
    }
}

/// Finds the write of unknown outcome that made the changes of a revision which nobody claims. Among several that
/// fit equally, the one invoked first: it constrains real time least.
fn settle(
    history: &History,
    sorted: &mut Sorted,
    model: &Model,
    revision: i64,
    found: &[Change],
) -> Result<usize, Violation> {
    let fits = |at: &usize| {
        let call = &history.operations[*at].call;
        found.iter().all(|change| might_make(call, change)) && model.evaluate(call).changes == found
    };
    let place = sorted.unsettled.iter().position(fits);
    let place = place.ok_or_else(|| Violation::NoWriter { revision, changes: found.to_vec() })?;
    sorted.settled_executed += 1;
    Ok(sorted.unsettled.remove(place))
}

/// Whether a call could make a change in some state. Spares evaluating most of the calls that could not.
fn might_make(call: &Call, change: &Change) -> bool {
    match (call, &change.kv) {
        (Call::Put { key, value }, Some(kv)) => *key == kv.key && *value == kv.value,
        (Call::DeleteRange { key, range_end }, None) => in_range(key, range_end, &change.key),
        (Call::Txn { success, failure, .. }, _) => success.iter().chain(failure).any(|op| might_make(op, change)),
        (Call::Put { .. } | Call::DeleteRange { .. } | Call::Range { .. }, _) => false,
    }
}

fn check_write(operation: &Operation, model: &Model, revision: i64, found: &[Change]) -> Result<(), Violation> {
    let Evaluated { answer: wanted, changes } = model.evaluate(&operation.call);
    let id = operation.id;
    if changes != found {
        return Err(Violation::OtherWrite { id, revision, wanted: changes, found: found.to_vec() });
    }
    match &operation.outcome {
        Outcome::Returned { answer: got, .. } if *got != wanted => {
            Err(Violation::WrongAnswer { id, revision, wanted, got: got.clone() })
        }
        Outcome::Returned { .. } | Outcome::Refused | Outcome::Unknown => Ok(()),
    }
}

/// Checks every answer that shows the model's revision.
fn check_readers(
    history: &History,
    sorted: &Sorted,
    model: &Model,
    order: &mut Vec<(Place, usize)>,
) -> Result<(), Violation> {
    let revision = model.revision();
    for at in sorted.readers_of.get(&revision).into_iter().flatten() {
        let operation = &history.operations[*at];
        let Outcome::Returned { answer: got, .. } = &operation.outcome else {
            unreachable!("only calls that returned are sorted by revision");
        };
        let Evaluated { answer, changes } = model.evaluate(&operation.call);
        let wanted = with_header(answer, got.revision());
        if wanted != *got || !changes.is_empty() {
            return Err(Violation::WrongAnswer { id: operation.id, revision, wanted, got: got.clone() });
        }
        if !is_serializable(&operation.call) {
            order.push((got.revision() * 2 + 1, *at));
        }
    }
    Ok(())
}

/// A read of an old revision carries the header of the current one.
fn with_header(answer: Answer, header: i64) -> Answer {
    match answer {
        Answer::Range { kvs, count, .. } => Answer::Range { revision: header, kvs, count },
        other @ (Answer::Put { .. } | Answer::DeleteRange { .. } | Answer::Txn { .. }) => other,
    }
}

/// Walks the order backwards with the earliest end seen: a call that began after it should have come later.
fn check_real_time(operations: &[Operation], order: &[(Place, usize)]) -> Result<(), Violation> {
    let mut order = order.to_vec();
    order.sort_unstable();
    let mut earliest_end: Option<(u64, u64)> = None;
    for same_place in order.chunk_by(|a, b| a.0 == b.0).rev() {
        for (_, at) in same_place {
            let operation = &operations[*at];
            if let Some((end, earlier)) = earliest_end
                && end < operation.invoked
            {
                return Err(Violation::RealTime { earlier, later: operation.id });
            }
        }
        let ends = same_place.iter().filter_map(|(_, at)| Some((operations[*at].returned()?, operations[*at].id)));
        earliest_end = ends.chain(earliest_end).min();
    }
    Ok(())
}

fn is_serializable(call: &Call) -> bool {
    matches!(call, Call::Range { serializable: true, .. })
}

fn reads_past_in_txn(call: &Call) -> bool {
    let Call::Txn { success, failure, .. } = call else { return false };
    success.iter().chain(failure).any(|op| match op {
        Call::Range { revision, .. } => *revision > 0,
        Call::Txn { .. } => reads_past_in_txn(op),
        Call::Put { .. } | Call::DeleteRange { .. } => false,
    })
}

fn covered(history: &History, sorted: &Sorted) -> Covered {
    Covered {
        writes: sorted.writer_of.len(),
        reads: sorted.readers_of.values().map(Vec::len).sum(),
        settled_executed: sorted.settled_executed,
        settled_absent: sorted.unsettled.len(),
        refused: history.operations.iter().filter(|o| o.outcome == Outcome::Refused).count(),
    }
}
