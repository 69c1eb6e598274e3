//! Reads, on a picture that never moves.

use std::sync::Arc;

use crate::cluster_version::{ClusterVersion, Feature};
use crate::command::{KeyRange, Range, Txn};
use crate::error::StateError;
use crate::hash;
use crate::machine::State;
use crate::response::{Event, RangeResult, TxnResult};
use crate::snapshot::{RunEnd, SnapshotChunks};
use crate::store::{Store, TreeStore};
use crate::version::KeyValue;

/// Most changes that one [`View::events`] looks at, matching or not. Bounds the time of a call to some milliseconds.
pub const EVENTS_EXAMINED_MAX: usize = 100_000;

/// Everything at one applied index, immutable. Clones are O(1); may be held for as long as memory allows.
#[derive(Clone, Debug)]
pub struct View<S = TreeStore> {
    state: State<S>,
}

/// A stretch of history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Events {
    /// Whole revisions, in order.
    pub events: Vec<Event>,
    /// Where to go on. Every event of the range below it was given. Above [`View::revision`]: nothing is left.
    pub next_revision: i64,
}

/// Hash of what clients can see, comparable between members at equal `hash_revision` and `compact_revision`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKv {
    pub hash: u32,
    /// -1 before the first compaction, as in etcd.
    pub compact_revision: i64,
    pub hash_revision: i64,
}

impl<S: Store> View<S> {
    pub(crate) fn of(state: State<S>) -> View<S> {
        View { state }
    }

    pub(crate) fn state(&self) -> &State<S> {
        &self.state
    }

    /// Index of the last log entry this view contains.
    pub fn applied_index(&self) -> u64 {
        self.state.applied_index
    }

    /// Term of the last log entry this view contains.
    pub fn applied_term(&self) -> u64 {
        self.state.applied_term
    }

    /// The newest main revision. 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// Reads below it are refused; it can be read itself. -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.state.compact_revision
    }

    /// Whether memory of compacted revisions is still to be given back. It is, bit by bit, with further entries.
    pub fn compaction_pending(&self) -> bool {
        self.state.compaction_pending()
    }

    /// Bytes that the versions kept occupy, an estimate that is equal on all members.
    pub fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    /// What the cluster has agreed that every member understands, up to the last entry this view contains.
    pub fn cluster_version(&self) -> ClusterVersion {
        self.state.cluster_version
    }

    /// # Errors
    /// [`StateError::NotAllMembersCan`]; the command must not be proposed.
    pub fn require(&self, feature: Feature) -> Result<(), StateError> {
        self.state.require(feature)
    }

    /// Members that a person has declared to be out of space, ascending. While there are any, nothing may grow.
    pub fn alarms(&self) -> impl Iterator<Item = u64> + '_ {
        self.state.alarms.iter().copied()
    }

    /// How many changes are kept for watches: all from the compact revision on, and those not forgotten yet.
    pub fn change_count(&self) -> usize {
        self.state.store.change_count()
    }

    /// # Errors
    /// [`StateError::Compacted`], [`StateError::FutureRevision`], and what [`Range::validate`] refuses.
    pub fn range(&self, range: &Range) -> Result<RangeResult, StateError> {
        range.validate()?;
        self.state.check_revision(range.revision)?;
        Ok(self.state.read(range, self.state.revision))
    }

    /// The living version of a key now.
    pub fn get(&self, key: &[u8]) -> Option<Arc<KeyValue>> {
        self.state.store.latest(key).filter(|version| !version.is_tombstone()).cloned()
    }

    /// The living version of a key at a revision (0: now).
    ///
    /// # Errors
    /// [`StateError::Compacted`], [`StateError::FutureRevision`].
    pub fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<Arc<KeyValue>>, StateError> {
        self.state.check_revision(revision)?;
        let revision = if revision > 0 { revision } else { self.state.revision };
        Ok(self.state.store.at(key, revision).filter(|version| !version.is_tombstone()).cloned())
    }

    /// What the event replaced or deleted. `None` on a create, and when that version has been compacted.
    pub fn prev_kv(&self, event: &Event) -> Option<Arc<KeyValue>> {
        if event.is_create() || event.kv.mod_revision <= 1 {
            return None;
        }
        self.get_at(&event.kv.key, event.kv.mod_revision - 1).ok().flatten()
    }

    /// Evaluates a transaction of ranges only (see [`Txn::is_read_only`]). The caller has validated it.
    ///
    /// # Errors
    /// [`StateError::Compacted`], [`StateError::FutureRevision`]; [`StateError::NotReadOnly`] if it could write.
    pub fn txn(&self, txn: &Txn) -> Result<TxnResult, StateError> {
        self.state.read_txn(txn)
    }

    /// The events of `range` from `from_revision` on, in order, whole revisions only.
    ///
    /// Stops after the revision that brings the events to `limit` (0: no limit) or the changes examined to
    /// [`EVENTS_EXAMINED_MAX`]; go on at [`Events::next_revision`]. A start above the current revision gives nothing.
    ///
    /// # Errors
    /// [`StateError::Compacted`] if `from_revision` is below [`View::compact_revision`].
    pub fn events(&self, range: &KeyRange, from_revision: i64, limit: usize) -> Result<Events, StateError> {
        if from_revision < self.state.compact_revision {
            return Err(StateError::Compacted);
        }
        let mut events = Vec::new();
        let mut previous = from_revision;
        for (examined, change) in self.state.store.changes(from_revision).enumerate() {
            let full = (limit > 0 && events.len() >= limit) || examined >= EVENTS_EXAMINED_MAX;
            if full && change.mod_revision != previous {
                return Ok(Events { events, next_revision: change.mod_revision });
            }
            previous = change.mod_revision;
            if range.contains(&change.key) {
                events.push(Event::of(change));
            }
        }
        Ok(Events { events, next_revision: from_revision.max(self.state.revision + 1) })
    }

    /// Hash of everything that is visible from the compact revision up to `revision` (0: now). O(versions kept).
    ///
    /// # Errors
    /// [`StateError::Compacted`], [`StateError::FutureRevision`].
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, StateError> {
        self.state.check_revision(revision)?;
        let hash_revision = if revision > 0 { revision } else { self.state.revision };
        let compact_revision = self.state.compact_revision;
        let mut hash = 0;
        let mut versions = self.state.store.versions(None).filter(|v| v.mod_revision <= hash_revision).peekable();
        while let Some(version) = versions.next() {
            let replaced_early =
                versions.peek().is_some_and(|next| next.key == version.key && next.mod_revision <= compact_revision);
            let buried = version.is_tombstone() && version.mod_revision < compact_revision;
            if !replaced_early && !buried {
                hash = hash::crc_of_version(hash, version);
            }
        }
        Ok(HashKv { hash, compact_revision, hash_revision })
    }

    /// Hash of the whole state, O(1). Equal at equal applied index on all members, or one of them is corrupt.
    pub fn state_hash(&self) -> u64 {
        self.state.whole_hash()
    }
}

impl View {
    /// The whole state as a run of chunks in key order, each with a checksum and its place. `meta` travels along and
    /// comes back from [`crate::Machine::restore`].
    pub fn snapshot_chunks(&self, meta: &[u8]) -> SnapshotChunks {
        SnapshotChunks::whole(self.clone(), meta)
    }

    /// The run that leads from the run ending at `follows` to this view. `changes` are all changes that were made in
    /// between, in any order: what [`crate::Applied::events`] told.
    pub fn change_chunks(&self, changes: Vec<Arc<KeyValue>>, follows: RunEnd, meta: &[u8]) -> SnapshotChunks {
        SnapshotChunks::changes(self, changes, follows, meta)
    }
}
