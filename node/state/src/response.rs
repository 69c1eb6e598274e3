//! What the store answers, and what watchers see.

use std::sync::Arc;

use crate::version::KeyValue;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    Put(PutResult),
    DeleteRange(DeleteRangeResult),
    Range(RangeResult),
    Txn(TxnResult),
    Compact {
        revision: i64,
    },
    /// The entry held no command.
    Nothing {
        revision: i64,
    },
}

impl Response {
    /// Store revision for the response header.
    pub fn revision(&self) -> i64 {
        match self {
            Response::Put(put) => put.revision,
            Response::DeleteRange(delete) => delete.revision,
            Response::Range(range) => range.revision,
            Response::Txn(txn) => txn.revision,
            Response::Compact { revision } | Response::Nothing { revision } => *revision,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutResult {
    pub revision: i64,
    /// Only if asked for, and if the key existed.
    pub prev_kv: Option<Arc<KeyValue>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteRangeResult {
    pub revision: i64,
    pub deleted: i64,
    /// Only if asked for; ascending by key.
    pub prev_kvs: Vec<Arc<KeyValue>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeResult {
    /// Store revision for the header, not the revision read.
    pub revision: i64,
    pub kvs: Vec<Arc<KeyValue>>,
    /// Whether `limit` cut keys off.
    pub more: bool,
    /// Every key of the range at the revision read, whatever limit and filters say.
    pub count: i64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnResult {
    pub revision: i64,
    pub succeeded: bool,
    /// One per operation of the branch taken, in its order.
    pub responses: Vec<Response>,
}

/// One change as a watcher sees it. For a delete, `kv` holds the key and the revision of the deletion only.
///
/// The version before it: [`crate::View::prev_kv`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub kv: Arc<KeyValue>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    Put,
    Delete,
}

impl Event {
    pub(crate) fn of(version: &Arc<KeyValue>) -> Event {
        let kind = if version.is_tombstone() { EventKind::Delete } else { EventKind::Put };
        Event { kind, kv: version.clone() }
    }

    /// Whether this put brought the key into being.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    pub fn revision(&self) -> i64 {
        self.kv.mod_revision
    }
}
