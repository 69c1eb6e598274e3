//! Where versions live: the seam between semantics and data structure.
//!
//! A store keeps every version that the machine appended and has not forgotten, findable by (key, revision), and the
//! changes in the order they were made. It knows nothing of commands. `tests/store.rs` holds the contract; every
//! implementation passes it.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::command::{FROM_KEY, KeyRange};
use crate::tree::{Entry, KeyTree};
use crate::version::KeyValue;

/// Position of a change: main revision, sub-revision.
pub type ChangeAt = (i64, u32);

/// Versions by key and revision, and changes by revision. A clone is a picture in O(1), not moved by later changes.
pub trait Store: Clone + Default + Send + Sync {
    /// The newest version of `key`, a tombstone included.
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>>;

    /// The newest version of `key` made at or before `revision`, a tombstone included.
    fn at(&self, key: &[u8], revision: i64) -> Option<&Arc<KeyValue>>;

    /// The living versions of a range at a revision, ascending by key.
    fn scan<'a>(&'a self, range: &KeyRange, revision: i64) -> impl Iterator<Item = &'a Arc<KeyValue>>;

    /// How many versions [`Store::scan`] gives.
    fn count(&self, range: &KeyRange, revision: i64) -> usize {
        self.scan(range, revision).count()
    }

    /// Every version kept of every key above `after`, ascending by (key, revision).
    fn versions<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = &'a Arc<KeyValue>>;

    /// The changes kept that were made at or after `from`, in order.
    fn changes(&self, from: i64) -> impl Iterator<Item = &Arc<KeyValue>>;

    /// The oldest change kept.
    fn first_change(&self) -> Option<ChangeAt>;

    /// How many changes are kept.
    fn change_count(&self) -> usize;

    /// Adds a version newer than everything there. A tombstone only follows a living version.
    fn append(&mut self, version: Arc<KeyValue>);

    /// Forgets the oldest change if it was made before `below`, with what only it kept visible: the version it
    /// replaced, and itself if it is a tombstone. Gives `None` when no change is that old.
    fn forget_change(&mut self, below: i64) -> Option<Forgotten>;

    /// Builds a store from what [`Store::versions`] gave and the [`Store::first_change`] it had.
    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>) -> Self;
}

/// Versions that are gone.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Forgotten {
    pub replaced: Option<Arc<KeyValue>>,
    pub tombstone: Option<Arc<KeyValue>>,
}

impl Forgotten {
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.replaced.iter().chain(&self.tombstone)
    }
}

/// The store in use: a counting B+ tree of keys and a log of changes, both persistent.
///
/// # Invariants
/// - `keys` holds every version kept; a key goes with its last tombstone.
/// - `log` holds every change from the first one not forgotten on. The newest change is never forgotten, as compaction
///   stays at or below the current revision.
#[derive(Clone, Default, Debug)]
pub struct TreeStore {
    keys: KeyTree,
    log: OrdMap<ChangeAt, Arc<KeyValue>>,
}

impl TreeStore {
    /// Whether `revision` is at or above every change, so that the newest versions are the ones it sees.
    fn is_current(&self, revision: i64) -> bool {
        self.log.get_max().is_none_or(|((main, _), _)| *main <= revision)
    }
}

impl Store for TreeStore {
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key).map(|entry| &entry.newest)
    }

    fn at(&self, key: &[u8], revision: i64) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)?.at(revision)
    }

    fn scan<'a>(&'a self, range: &KeyRange, revision: i64) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let entries = (!range.is_empty()).then(|| self.keys.range(Bound::Included(&range.key), end_of(range)));
        let versions = entries.into_iter().flatten().filter_map(move |entry| entry.at(revision));
        versions.filter(|version| !version.is_tombstone())
    }

    fn count(&self, range: &KeyRange, revision: i64) -> usize {
        if range.is_empty() {
            0
        } else if self.is_current(revision) {
            self.keys.count_living(&range.key, end_of(range))
        } else {
            self.scan(range, revision).count()
        }
    }

    fn versions<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range(from, Bound::Unbounded).flat_map(Entry::versions)
    }

    fn changes(&self, from: i64) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.log.range((from, 0)..).map(|(_, version)| version)
    }

    fn first_change(&self) -> Option<ChangeAt> {
        self.log.get_min().map(|(at, _)| *at)
    }

    fn change_count(&self) -> usize {
        self.log.len()
    }

    fn append(&mut self, version: Arc<KeyValue>) {
        let at = (version.mod_revision, version.sub_revision);
        assert!(self.log.get_max().is_none_or(|(last, _)| *last < at), "versions are appended in order");
        self.keys.insert(version.clone());
        self.log.insert(at, version);
    }

    fn forget_change(&mut self, below: i64) -> Option<Forgotten> {
        let at = self.first_change().filter(|(main, _)| *main < below)?;
        let change = self.log.remove(&at).expect("the first change is in the log");
        let entry = self.keys.get(&change.key).expect("a change in the log is a version of its key");
        let is_newest = entry.newest.mod_revision == change.mod_revision;
        let replaced = entry.oldest_replaced().filter(|oldest| oldest.mod_revision < change.mod_revision).cloned();
        if replaced.is_some() {
            self.keys.forget_oldest(&change.key);
        }
        if !change.is_tombstone() {
            return Some(Forgotten { replaced, tombstone: None });
        }
        if is_newest {
            self.keys.remove(&change.key);
        } else {
            self.keys.forget_oldest(&change.key);
        }
        Some(Forgotten { replaced, tombstone: Some(change) })
    }

    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>) -> TreeStore {
        let mut store = TreeStore::default();
        let mut changes = Vec::new();
        for version in versions {
            let at = (version.mod_revision, version.sub_revision);
            if first_change.is_some_and(|first| first <= at) {
                changes.push((at, version.clone()));
            }
            store.keys.insert(version);
        }
        changes.sort_unstable_by_key(|(at, _)| *at);
        store.log.extend(changes);
        store
    }
}

fn end_of(range: &KeyRange) -> Bound<&[u8]> {
    if range.is_one() {
        Bound::Included(&range.key)
    } else if range.range_end == FROM_KEY {
        Bound::Unbounded
    } else {
        Bound::Excluded(&range.range_end)
    }
}
