//! The replicated machine: a multi-version key-value store with etcd's revisions, transactions and compaction.
//!
//! [`Machine`] consumes committed log entries in order and is a pure function of them: no clock, no randomness, no
//! I/O, no hash order. Equal prefixes of the log give equal states, equal answers and equal hashes on every member.
//! A [`View`] is an immutable picture of everything, taken in O(1): readers, watchers and snapshots work on views
//! without a lock while the machine goes on.
//!
//! # Model
//! - An empty store is at revision 1; the first write makes 2. A command that changes nothing makes no revision.
//! - A transaction makes one main revision; its changes are numbered by sub-revisions from 0. No key changes twice
//!   in one main revision (validation refuses it), so (key, main revision) names a version.
//! - Each key has a chain of versions. Deleting adds a tombstone. Compaction at `C` keeps, per key, the newest
//!   version at or below `C` and everything above; a tombstone at exactly `C` stays, so that a watch may start at `C`,
//!   but not what it deleted.
//! - Compaction takes effect at once for readers; memory is given back over the following entries in bounded steps
//!   ([`machine::COMPACTION_STEP`]), which are part of the deterministic state.
//! - What an earlier release cannot carry out waits for the version that all members have agreed on; see
//!   [`cluster_version`].
//!
//! What is not here: leases (a non-zero lease is refused), users, quotas, watch delivery. This crate must not know
//! about Raft messages, protobuf, files or sockets.

pub mod cluster_version;
pub mod codec;
pub mod command;
pub mod error;
mod hash;
pub mod machine;
mod read;
pub mod response;
pub mod snapshot;
pub mod store;
mod tree;
mod txn;
mod validate;
pub mod version;
pub mod view;

pub use cluster_version::{ClusterVersion, Feature};
pub use codec::DecodeError;
pub use command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Range, SortOrder, SortTarget, Txn,
    TxnOp,
};
pub use error::StateError;
pub use machine::{Applied, Machine};
pub use response::{DeleteRangeResult, Event, EventKind, PutResult, RangeResult, Response, TxnResult};
pub use snapshot::{RestoreError, Restored, Restorer, RunEnd, SnapshotChunks};
pub use validate::Limits;
pub use version::KeyValue;
pub use view::{Events, HashKv, View};
