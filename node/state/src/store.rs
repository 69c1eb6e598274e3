//! Where versions live: the seam between semantics and data structure.
//!
//! A store keeps every version that the machine appended and has not forgotten, findable by (key, revision), and the
//! changes in the order they were made. It knows nothing of commands. `tests/store.rs` holds the contract; every
//! implementation passes it.

use std::ops::Bound;
use std::sync::Arc;

use imbl::Vector;

use crate::command::{FROM_KEY, KeyRange};
use crate::tree::{Builder, Entry, KeyTree};
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

    /// Every version kept above `after`, ascending by (key, revision).
    fn versions<'a>(&'a self, after: Option<(&'a [u8], i64)>) -> impl Iterator<Item = &'a Arc<KeyValue>>;

    /// The changes kept that were made at or after `from`, in order.
    fn changes(&self, from: i64) -> impl Iterator<Item = &Arc<KeyValue>>;

    /// The oldest change kept.
    fn first_change(&self) -> Option<ChangeAt>;

    /// How many changes are kept.
    fn change_count(&self) -> usize;

    /// How many of the oldest changes kept are bare: what they replaced is forgotten already.
    fn bare_changes(&self) -> usize;

    /// Adds a version newer than everything there. A tombstone only follows a living version.
    fn append(&mut self, version: Arc<KeyValue>);

    /// One step of a compaction at `revision`: forgets the oldest change if it was made before, with what only it kept
    /// visible: the version it replaced, and itself if it is a tombstone. A change made at `revision` itself stays, as a
    /// watch may start there, but what it replaced goes: no read sees it any more. Gives `None` when nothing is left.
    fn forget_change(&mut self, revision: i64) -> Option<Forgotten>;

    /// Whether [`Store::forget_change`] has anything left to do.
    fn can_forget(&self, revision: i64) -> bool;

    /// Builds a store from what [`Store::versions`] gave, the [`Store::first_change`] and the [`Store::bare_changes`]
    /// it had.
    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>, bare: usize) -> Self;
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
/// - `log` holds every change from the first one not forgotten on, in order. The newest change is never forgotten, as
///   compaction stays at or below the current revision.
/// - The first `bare` changes of the log have nothing left that they replaced.
#[derive(Clone, Default, Debug)]
pub struct TreeStore {
    keys: KeyTree,
    log: Vector<Arc<KeyValue>>,
    bare: usize,
}

impl TreeStore {
    /// Whether `revision` is at or above every change, so that the newest versions are the ones it sees.
    fn is_current(&self, revision: i64) -> bool {
        self.log.back().is_none_or(|newest| newest.mod_revision <= revision)
    }

    /// Where the changes made at or after `from` begin.
    fn position(&self, from: i64) -> usize {
        let (mut low, mut high) = (0, self.log.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.log[middle].mod_revision < from { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The first change that is not bare.
    pub(crate) fn first_clothed(&self) -> Option<ChangeAt> {
        self.log.get(self.bare).map(|change| change.at())
    }

    /// Forgets the version that `change` replaced, if it is kept.
    fn strip(&mut self, change: &KeyValue) -> Option<Arc<KeyValue>> {
        let entry = self.keys.get(&change.key).expect("a change in the log is a version of its key");
        let replaced = entry.oldest_replaced().filter(|oldest| oldest.mod_revision < change.mod_revision).cloned();
        if replaced.is_some() {
            self.keys.forget_oldest(&change.key);
        }
        replaced
    }

    fn remove_tombstone(&mut self, tombstone: &KeyValue) {
        let entry = self.keys.get(&tombstone.key).expect("a change in the log is a version of its key");
        if entry.newest.mod_revision == tombstone.mod_revision {
            self.keys.remove(&tombstone.key);
        } else {
            self.keys.forget_oldest(&tombstone.key);
        }
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

    fn versions<'a>(&'a self, after: Option<(&'a [u8], i64)>) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let from = after.map_or(Bound::Unbounded, |(key, _)| Bound::Included(key));
        let versions = self.keys.range(from, Bound::Unbounded).flat_map(Entry::versions);
        versions.skip_while(move |version| after.is_some_and(|after| (&version.key[..], version.mod_revision) <= after))
    }

    fn changes(&self, from: i64) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.log.focus().narrow(self.position(from)..).into_iter()
    }

    fn first_change(&self) -> Option<ChangeAt> {
        self.log.front().map(|change| change.at())
    }

    fn change_count(&self) -> usize {
        self.log.len()
    }

    fn bare_changes(&self) -> usize {
        self.bare
    }

    fn append(&mut self, version: Arc<KeyValue>) {
        assert!(self.log.back().is_none_or(|last| last.at() < version.at()), "versions are appended in order");
        self.keys.insert(version.clone());
        self.log.push_back(version);
    }

    fn forget_change(&mut self, revision: i64) -> Option<Forgotten> {
        if self.log.front()?.mod_revision < revision {
            let change = self.log.pop_front().expect("there is a front");
            let is_bare = self.bare > 0;
            self.bare = self.bare.saturating_sub(1);
            let replaced = if is_bare { None } else { self.strip(&change) };
            if !change.is_tombstone() {
                return Some(Forgotten { replaced, tombstone: None });
            }
            self.remove_tombstone(&change);
            return Some(Forgotten { replaced, tombstone: Some(change) });
        }
        let change = self.log.get(self.bare).filter(|change| change.mod_revision <= revision)?.clone();
        self.bare += 1;
        Some(Forgotten { replaced: self.strip(&change), tombstone: None })
    }

    fn can_forget(&self, revision: i64) -> bool {
        self.log.front().is_some_and(|first| first.mod_revision < revision)
            || self.log.get(self.bare).is_some_and(|change| change.mod_revision <= revision)
    }

    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>, bare: usize) -> TreeStore {
        let mut loader = Loader::new(first_change);
        versions.for_each(|version| loader.push(version));
        loader.finish(bare)
    }
}

/// Builds a store from versions that ascend by (key, revision).
#[derive(Debug)]
pub(crate) struct Loader {
    first_change: Option<ChangeAt>,
    tree: Builder,
    changes: Vec<(ChangeAt, Arc<KeyValue>)>,
    newest: Option<Arc<KeyValue>>,
    older: Vec<Arc<KeyValue>>,
}

impl Loader {
    pub fn new(first_change: Option<ChangeAt>) -> Loader {
        Loader { first_change, tree: Builder::default(), changes: Vec::new(), newest: None, older: Vec::new() }
    }

    pub fn push(&mut self, version: Arc<KeyValue>) {
        if self.first_change.is_some_and(|first| first <= version.at()) {
            self.changes.push((version.at(), version.clone()));
        }
        match self.newest.replace(version) {
            None => {}
            Some(before) if self.newest.as_ref().is_some_and(|newest| newest.key == before.key) => {
                self.older.push(before);
            }
            Some(before) => self.tree.push(Entry::of(std::mem::take(&mut self.older), before)),
        }
    }

    pub fn finish(mut self, bare: usize) -> TreeStore {
        if let Some(newest) = self.newest {
            self.tree.push(Entry::of(self.older, newest));
        }
        self.changes.sort_unstable_by_key(|(at, _)| *at);
        let log = self.changes.into_iter().map(|(_, version)| version).collect();
        TreeStore { keys: self.tree.finish(), log, bare }
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
