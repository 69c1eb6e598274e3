//! Where versions live: the seam between semantics and data structure.
//!
//! A store keeps every version that the machine appended and has not forgotten, findable by (key, revision), and the
//! changes in the order they were made. It knows nothing of commands. `tests/store.rs` holds the contract; every
//! implementation passes it.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::command::{FROM_KEY, KeyRange};
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

/// The store in use: persistent B-trees, so that a clone shares everything and a change copies one path.
///
/// # Invariants
/// - `newest` holds the newest version of each key, a tombstone until it is forgotten; `older` all versions below.
/// - `log` holds every change from the first one not forgotten on.
#[derive(Clone, Default, Debug)]
pub struct TreeStore {
    newest: OrdMap<Bytes, Arc<KeyValue>>,
    older: OrdMap<(Bytes, i64), Arc<KeyValue>>,
    log: OrdMap<ChangeAt, Arc<KeyValue>>,
}

impl TreeStore {
    /// The newest version of `key` in `older` at or below `revision`.
    fn older_at(&self, key: &Bytes, revision: i64) -> Option<&Arc<KeyValue>> {
        let ((found, _), version) = self.older.get_prev(&(key.clone(), revision))?;
        (found == key).then_some(version)
    }

    fn at_or_before<'a>(&'a self, newest: &'a Arc<KeyValue>, revision: i64) -> Option<&'a Arc<KeyValue>> {
        if newest.mod_revision <= revision { Some(newest) } else { self.older_at(&newest.key, revision) }
    }
}

impl Store for TreeStore {
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.newest.get(key)
    }

    fn at(&self, key: &[u8], revision: i64) -> Option<&Arc<KeyValue>> {
        self.at_or_before(self.newest.get(key)?, revision)
    }

    fn scan<'a>(&'a self, range: &KeyRange, revision: i64) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let all = (!range.is_empty()).then(|| self.newest.range::<_, [u8]>(bounds(range)));
        all.into_iter()
            .flatten()
            .filter_map(move |(_, newest)| self.at_or_before(newest, revision))
            .filter(|version| !version.is_tombstone())
    }

    fn versions<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let (newest_from, older_from) = match after {
            Some(key) => {
                let pair = (Bytes::copy_from_slice(key), i64::MAX);
                (Bound::Excluded(key), Bound::Excluded(pair))
            }
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let mut newest = self.newest.range::<_, [u8]>((newest_from, Bound::Unbounded)).peekable();
        let mut older = self.older.range::<_, (Bytes, i64)>((older_from, Bound::Unbounded)).peekable();
        std::iter::from_fn(move || {
            let older_first = match (older.peek(), newest.peek()) {
                (Some(((key, _), _)), Some((next, _))) => key <= next,
                (Some(_), None) => unreachable!("a key with older versions has a newest one"),
                (None, _) => false,
            };
            if older_first { older.next().map(|(_, v)| v) } else { newest.next().map(|(_, v)| v) }
        })
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
        let replaced = self.newest.insert(version.key.clone(), version.clone());
        self.log.insert(at, version);
        if let Some(replaced) = replaced {
            self.older.insert((replaced.key.clone(), replaced.mod_revision), replaced);
        }
    }

    fn forget_change(&mut self, below: i64) -> Option<Forgotten> {
        let at = self.first_change().filter(|(main, _)| *main < below)?;
        let change = self.log.remove(&at).expect("the first change is in the log");
        let replaced = self.older_at(&change.key, change.mod_revision - 1).cloned();
        if let Some(replaced) = &replaced {
            self.older.remove(&(replaced.key.clone(), replaced.mod_revision));
        }
        let tombstone = change.is_tombstone().then(|| {
            if self.newest.get(&change.key).is_some_and(|newest| newest.mod_revision == change.mod_revision) {
                self.newest.remove(&change.key);
            } else {
                self.older.remove(&(change.key.clone(), change.mod_revision));
            }
            change
        });
        Some(Forgotten { replaced, tombstone })
    }

    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>) -> TreeStore {
        let mut store = TreeStore::default();
        let mut changes = Vec::new();
        for version in versions {
            let at = (version.mod_revision, version.sub_revision);
            if first_change.is_some_and(|first| first <= at) {
                changes.push((at, version.clone()));
            }
            if let Some(replaced) = store.newest.insert(version.key.clone(), version) {
                store.older.insert((replaced.key.clone(), replaced.mod_revision), replaced);
            }
        }
        changes.sort_unstable_by_key(|(at, _)| *at);
        store.log.extend(changes);
        store
    }
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let from = Bound::Included(&range.key[..]);
    if range.is_one() {
        (from, from)
    } else if range.range_end == FROM_KEY {
        (from, Bound::Unbounded)
    } else {
        (from, Bound::Excluded(&range.range_end[..]))
    }
}
