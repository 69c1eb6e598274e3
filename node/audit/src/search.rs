//! Linearizability of small histories by exhaustive search: is there any order that explains every answer?
//!
//! Knows nothing of what revisions mean for the order, so it shares no reasoning with [`crate::strict`]. Exponential;
//! states already tried are remembered. Source: Wing and Gong, "Testing and Verifying Concurrent Objects", JPDC 1993;
//! Lowe, "Testing for Linearizability", 2017.

use std::collections::BTreeSet;

use crate::history::{Call, History, Operation, Outcome};
use crate::model::Model;

/// Most calls of a history: done ones are bits of a word.
pub const CALLS_MAX: usize = 64;
/// Most states remembered before the search gives up; some hundred megabytes.
pub const STATES_MAX: usize = 500_000;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Verdict {
    #[error("an order of calls explains every answer")]
    Linearizable,
    #[error("no order of the calls explains every answer; at best {explained} of {returned} are explained")]
    Impossible { explained: usize, returned: usize },
    #[error("{calls} calls are more than the {CALLS_MAX} that can be searched")]
    TooLarge { calls: usize },
    #[error("gave up after {STATES_MAX} states")]
    GaveUp,
}

/// Searches for an order. Serializable reads and reads of old revisions are left out: they owe nothing to real time.
pub fn check(history: &History) -> Verdict {
    let calls: Vec<_> = history.operations.iter().filter(|o| counts(o)).collect();
    if calls.len() > CALLS_MAX {
        return Verdict::TooLarge { calls: calls.len() };
    }
    let returned = bits(&calls, |o| o.returned().is_some());
    let mut search = Search { calls, returned, seen: BTreeSet::new(), explained: 0 };
    let found = search.run(0, &Model::new(&history.start));
    if found {
        Verdict::Linearizable
    } else if search.seen.len() >= STATES_MAX {
        Verdict::GaveUp
    } else {
        Verdict::Impossible { explained: search.explained, returned: count(returned) }
    }
}

fn counts(operation: &Operation) -> bool {
    let past_or_local = match &operation.call {
        Call::Range { revision, serializable, .. } => *revision > 0 || *serializable,
        Call::Put { .. } | Call::DeleteRange { .. } | Call::Txn { .. } => false,
    };
    operation.outcome != Outcome::Refused && !past_or_local
}

fn bits(calls: &[&Operation], is: impl Fn(&Operation) -> bool) -> u64 {
    calls.iter().enumerate().filter(|(_, o)| is(o)).fold(0, |bits, (at, _)| bits | 1 << at)
}

fn count(bits: u64) -> usize {
    usize::try_from(bits.count_ones()).expect("at most 64")
}

struct Search<'a> {
    calls: Vec<&'a Operation>,
    /// Calls that returned: all of them must find a place.
    returned: u64,
    seen: BTreeSet<(u64, Model)>,
    explained: usize,
}

impl Search<'_> {
    /// Whether the calls not in `done` can follow.
    fn run(&mut self, done: u64, model: &Model) -> bool {
        let left = self.returned & !done;
        self.explained = self.explained.max(count(self.returned & done));
        if left == 0 {
            return true;
        }
        if self.seen.len() >= STATES_MAX || !self.seen.insert((done, model.clone())) {
            return false;
        }
        let is_left = |at: usize| left & 1 << at != 0;
        let ends = self.calls.iter().enumerate().filter(|(at, _)| is_left(*at)).filter_map(|(_, o)| o.returned());
        let earliest_end = ends.min().expect("a call that returned is left");
        for at in 0..self.calls.len() {
            let operation = self.calls[at];
            // What began after the end of a call without a place must wait for it.
            if done & 1 << at != 0 || operation.invoked > earliest_end {
                continue;
            }
            let evaluated = model.evaluate(&operation.call);
            let explains = match &operation.outcome {
                Outcome::Returned { answer, .. } => *answer == evaluated.answer,
                Outcome::Unknown => true,
                Outcome::Refused => false,
            };
            if !explains {
                continue;
            }
            let mut next = model.clone();
            next.commit(&evaluated.changes);
            if self.run(done | 1 << at, &next) {
                return true;
            }
        }
        false
    }
}
