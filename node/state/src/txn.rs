//! Writing: puts, deletes and transactions, each all or nothing.
//!
//! A transaction runs in two passes. The first takes every compare, nested ones too, and every check that needs the
//! state, all against the state before the transaction; it yields the branches to take or a refusal. The second
//! executes them and cannot fail.

use std::sync::Arc;

use bytes::Bytes;

use crate::command::{Compare, CompareResult, CompareTarget, DeleteRange, Put, Txn, TxnOp};
use crate::error::StateError;
use crate::machine::State;
use crate::read::as_i64;
use crate::response::{DeleteRangeResult, Event, PutResult, Response, TxnResult};
use crate::store::Store;
use crate::version::KeyValue;

/// Which branches are taken, the outer transaction first, then nested ones in the order of execution.
type Branches = Vec<bool>;

impl<S: Store> State<S> {
    /// First pass: decides the branches and checks what they will do.
    fn decide(&self, txn: &Txn, branches: &mut Branches) -> Result<(), StateError> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        branches.push(succeeded);
        for op in branch(txn, succeeded) {
            match op {
                TxnOp::Range(range) => self.check_revision(range.revision)?,
                TxnOp::Put(put) => self.check_put(put)?,
                TxnOp::DeleteRange(_) => {}
                TxnOp::Txn(nested) => self.decide(nested, branches)?,
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), StateError> {
        if put.lease != 0 {
            return Err(StateError::LeaseNotFound);
        }
        let needs_key = put.ignore_value || put.ignore_lease;
        if needs_key && self.living(&put.key).is_none() { Err(StateError::KeyNotFound) } else { Ok(()) }
    }

    fn living(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.store.latest(key).filter(|version| !version.is_tombstone())
    }

    fn holds(&self, compare: &Compare) -> bool {
        if !compare.range.is_one() {
            let mut found = self.store.scan(&compare.range, self.revision).peekable();
            if found.peek().is_some() {
                return found.all(|kv| holds_for(compare, kv));
            }
        } else if let Some(kv) = self.living(&compare.range.key) {
            return holds_for(compare, kv);
        }
        match compare.target {
            CompareTarget::Value(_) => false,
            CompareTarget::Version(_)
            | CompareTarget::CreateRevision(_)
            | CompareTarget::ModRevision(_)
            | CompareTarget::Lease(_) => holds_for(compare, &KeyValue::default()),
        }
    }

    /// Evaluates a transaction of ranges only.
    pub(crate) fn read_txn(&self, txn: &Txn) -> Result<TxnResult, StateError> {
        if !txn.is_read_only() {
            return Err(StateError::NotReadOnly);
        }
        let mut branches = Branches::new();
        self.decide(txn, &mut branches)?;
        let succeeded = branches[0];
        let responses = branch(txn, succeeded)
            .iter()
            .map(|op| match op {
                TxnOp::Range(range) => Response::Range(self.read(range, self.revision)),
                TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) => unreachable!("read-only was checked"),
            })
            .collect();
        Ok(TxnResult { revision: self.revision, succeeded, responses })
    }
}

fn branch(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(given) => kv.version.cmp(given),
        CompareTarget::CreateRevision(given) => kv.create_revision.cmp(given),
        CompareTarget::ModRevision(given) => kv.mod_revision.cmp(given),
        CompareTarget::Value(given) => kv.value.cmp(given),
        CompareTarget::Lease(given) => kv.lease.cmp(given),
    };
    match compare.result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
    }
}

/// Makes the changes of one main revision.
///
/// # Invariants
/// - Changes carry the main revision `state.revision + 1` until [`Writer::finish`] moves the state there, if there
///   are any.
pub(crate) struct Writer<'a, S> {
    state: &'a mut State<S>,
    main: i64,
    events: Vec<Event>,
}

impl<'a, S: Store> Writer<'a, S> {
    pub fn new(state: &'a mut State<S>) -> Writer<'a, S> {
        let main = state.revision.checked_add(1).expect("revisions do not run out");
        Writer { state, main, events: Vec::new() }
    }

    /// Ends the revision and gives its changes.
    pub fn finish(self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.state.revision = self.main;
        }
        self.events
    }

    pub fn put_alone(&mut self, put: &Put) -> Result<PutResult, StateError> {
        self.state.check_put(put)?;
        Ok(self.put(put))
    }

    pub fn txn(&mut self, txn: &Txn) -> Result<TxnResult, StateError> {
        let mut branches = Branches::new();
        self.state.decide(txn, &mut branches)?;
        let mut branches = branches.into_iter();
        let result = self.run(txn, &mut branches);
        assert!(branches.next().is_none(), "every decided branch is executed");
        Ok(result)
    }

    /// Second pass.
    fn run(&mut self, txn: &Txn, branches: &mut std::vec::IntoIter<bool>) -> TxnResult {
        let succeeded = branches.next().expect("a branch is decided for every transaction executed");
        let mut responses = Vec::with_capacity(branch(txn, succeeded).len());
        for op in branch(txn, succeeded) {
            responses.push(match op {
                TxnOp::Range(range) => Response::Range(self.state.read(range, self.current())),
                TxnOp::Put(put) => Response::Put(self.put(put)),
                TxnOp::DeleteRange(delete) => Response::DeleteRange(self.delete(delete)),
                TxnOp::Txn(nested) => Response::Txn(self.run(nested, branches)),
            });
        }
        TxnResult { revision: self.current(), succeeded, responses }
    }

    /// The revision that reads inside the transaction see.
    fn current(&self) -> i64 {
        if self.events.is_empty() { self.state.revision } else { self.main }
    }

    fn put(&mut self, put: &Put) -> PutResult {
        let newest = self.state.store.latest(&put.key).cloned();
        // The key in use is shared; new bytes are copied, as a slice would keep the whole log entry in memory.
        let key = newest.as_ref().map_or_else(|| Bytes::copy_from_slice(&put.key), |newest| newest.key.clone());
        let prev = newest.filter(|newest| !newest.is_tombstone());
        let value = match &prev {
            Some(prev) if put.ignore_value => prev.value.clone(),
            Some(_) | None => Bytes::copy_from_slice(&put.value),
        };
        let version = KeyValue {
            key,
            value,
            create_revision: prev.as_ref().map_or(self.main, |prev| prev.create_revision),
            mod_revision: self.main,
            sub_revision: self.next_sub_revision(),
            version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
            lease: prev.as_ref().filter(|_| put.ignore_lease).map_or(put.lease, |prev| prev.lease),
        };
        self.append(version);
        PutResult { revision: self.main, prev_kv: prev.filter(|_| put.prev_kv) }
    }

    pub fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeResult {
        let doomed: Vec<_> = self.state.store.scan(&delete.range, self.main).cloned().collect();
        for kv in &doomed {
            self.append(KeyValue {
                key: kv.key.clone(),
                mod_revision: self.main,
                sub_revision: self.next_sub_revision(),
                ..KeyValue::default()
            });
        }
        let deleted = as_i64(doomed.len());
        let prev_kvs = if delete.prev_kv { doomed } else { Vec::new() };
        DeleteRangeResult { revision: self.current(), deleted, prev_kvs }
    }

    fn next_sub_revision(&self) -> u32 {
        u32::try_from(self.events.len()).expect("a revision has fewer changes than memory has keys")
    }

    fn append(&mut self, version: KeyValue) {
        let version = Arc::new(version);
        self.events.push(Event::of(&version));
        self.state.append(version);
    }
}
