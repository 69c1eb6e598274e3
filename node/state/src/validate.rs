//! Checks that need no state. The API layer runs them before it proposes; apply runs them again, because a log may
//! hold commands of another version or of a buggy peer.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::command::{Command, DeleteRange, KeyRange, Put, Range, Txn, TxnOp};
use crate::error::StateError;

/// What a request may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most compares, and most operations of each branch. A nested transaction has what its parent left.
    pub txn_ops_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { txn_ops_max: 128 }
    }
}

impl Limits {
    /// What apply accepts: above every configurable limit, because a limit that differs between members must not
    /// make them apply different things.
    pub const APPLY: Limits = Limits { txn_ops_max: 65_536 };
}

impl Command {
    /// # Errors
    /// [`StateError`] with etcd's text; the command must not be proposed.
    pub fn validate(&self, limits: Limits) -> Result<(), StateError> {
        match self {
            Command::Put(put) => put.validate(),
            Command::DeleteRange(delete) => delete.validate(),
            Command::Txn(txn) => txn.validate(limits),
            Command::Compact { .. } | Command::ClusterVersion(_) | Command::Alarm { .. } => Ok(()),
        }
    }
}

impl Put {
    pub fn validate(&self) -> Result<(), StateError> {
        if self.key.is_empty() {
            return Err(StateError::EmptyKey);
        }
        if self.ignore_value && !self.value.is_empty() {
            return Err(StateError::ValueProvided);
        }
        if self.ignore_lease && self.lease != 0 {
            return Err(StateError::LeaseProvided);
        }
        Ok(())
    }
}

impl DeleteRange {
    pub fn validate(&self) -> Result<(), StateError> {
        if self.range.key.is_empty() { Err(StateError::EmptyKey) } else { Ok(()) }
    }
}

impl Range {
    pub fn validate(&self) -> Result<(), StateError> {
        if self.range.key.is_empty() { Err(StateError::EmptyKey) } else { Ok(()) }
    }
}

impl Txn {
    pub fn validate(&self, limits: Limits) -> Result<(), StateError> {
        self.validate_shape(limits.txn_ops_max)?;
        Changes::of(&self.success)?;
        Changes::of(&self.failure)?;
        Ok(())
    }

    fn validate_shape(&self, ops_max: usize) -> Result<(), StateError> {
        let ops = self.compares.len().max(self.success.len()).max(self.failure.len());
        if ops > ops_max {
            return Err(StateError::TooManyOps);
        }
        if self.compares.iter().any(|compare| compare.range.key.is_empty()) {
            return Err(StateError::EmptyKey);
        }
        for op in self.success.iter().chain(&self.failure) {
            match op {
                TxnOp::Range(range) => range.validate()?,
                TxnOp::Put(put) => put.validate()?,
                TxnOp::DeleteRange(delete) => delete.validate()?,
                TxnOp::Txn(txn) => txn.validate_shape(ops_max - ops)?,
            }
        }
        Ok(())
    }
}

/// What a list of operations may change.
///
/// Two operations of one list must not both put a key, nor one put what another deletes, whichever comes first and
/// however deep they are nested. The two branches of a nested transaction exclude each other, so they may. (etcd
/// overlooks a nested put followed by a nested delete; refusing it keeps "one version per key and main revision".)
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Changes<'a> {
    fn of(ops: &'a [TxnOp]) -> Result<Changes<'a>, StateError> {
        let mut all = Changes::default();
        for op in ops {
            match op {
                TxnOp::Range(_) => {}
                TxnOp::Put(put) => all.join(Changes { puts: BTreeSet::from([&put.key]), deletes: Vec::new() })?,
                TxnOp::DeleteRange(delete) => {
                    all.join(Changes { puts: BTreeSet::new(), deletes: vec![&delete.range] })?;
                }
                TxnOp::Txn(txn) => {
                    let mut either = Changes::of(&txn.success)?;
                    let failure = Changes::of(&txn.failure)?;
                    either.puts.extend(failure.puts);
                    either.deletes.extend(failure.deletes);
                    all.join(either)?;
                }
            }
        }
        Ok(all)
    }

    fn join(&mut self, other: Changes<'a>) -> Result<(), StateError> {
        let twice = other.puts.iter().any(|key| self.puts.contains(key));
        let deleted_before = other.puts.iter().any(|key| self.deletes.iter().any(|range| range.contains(key)));
        let deleted_after = other.deletes.iter().any(|range| self.puts.iter().any(|key| range.contains(key)));
        if twice || deleted_before || deleted_after {
            return Err(StateError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }
}
