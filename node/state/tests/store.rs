//! The contract of [`Store`], run on every implementation, and on a list of versions that is obviously right.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_state::command::KeyRange;
use quorate_state::store::{ChangeAt, Forgotten, Store, TreeStore};
use quorate_state::version::KeyValue;

mod common;
use common::rng::Rng;

/// Every version in order of making. Slow and plain.
#[derive(Clone, Default)]
struct ListStore {
    versions: Vec<Arc<KeyValue>>,
    forgotten_before: usize,
    bare: usize,
    gone: Vec<bool>,
}

impl ListStore {
    fn kept(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.versions.iter().zip(&self.gone).filter(|(_, gone)| !**gone).map(|(version, _)| version)
    }

    fn strip(&mut self, at: usize) -> Option<Arc<KeyValue>> {
        let key = &self.versions[at].key;
        let before = (0..at).rev().find(|i| self.versions[*i].key == key && !self.gone[*i])?;
        self.gone[before] = true;
        Some(self.versions[before].clone())
    }
}

impl Store for ListStore {
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.at(key, i64::MAX)
    }

    fn at(&self, key: &[u8], revision: i64) -> Option<&Arc<KeyValue>> {
        self.kept().filter(|v| v.key == key && v.mod_revision <= revision).last()
    }

    fn scan<'a>(&'a self, range: &KeyRange, revision: i64) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let mut newest = BTreeMap::new();
        for version in self.kept().filter(|v| range.contains(&v.key) && v.mod_revision <= revision) {
            newest.insert(version.key.clone(), version);
        }
        newest.into_values().filter(|v| !v.is_tombstone())
    }

    fn versions<'a>(&'a self, after: Option<(&'a [u8], i64)>) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let is_after = |v: &Arc<KeyValue>| after.is_none_or(|after| (&v.key[..], v.mod_revision) > after);
        let mut all: Vec<_> = self.kept().filter(|v| is_after(v)).collect();
        all.sort_by_key(|v| (v.key.clone(), v.mod_revision));
        all.into_iter()
    }

    fn changes(&self, from: i64) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.versions[self.forgotten_before..].iter().filter(move |v| v.mod_revision >= from)
    }

    fn first_change(&self) -> Option<ChangeAt> {
        self.versions.get(self.forgotten_before).map(|v| (v.mod_revision, v.sub_revision))
    }

    fn change_count(&self) -> usize {
        self.versions.len() - self.forgotten_before
    }

    fn append(&mut self, version: Arc<KeyValue>) {
        self.versions.push(version);
        self.gone.push(false);
    }

    fn bare_changes(&self) -> usize {
        self.bare
    }

    fn forget_change(&mut self, revision: i64) -> Option<Forgotten> {
        let at = self.forgotten_before;
        let change = self.versions.get(at)?.clone();
        if change.mod_revision < revision {
            self.forgotten_before += 1;
            self.bare = self.bare.saturating_sub(1);
            let replaced = self.strip(at);
            self.gone[at] = change.is_tombstone();
            return Some(Forgotten { replaced, tombstone: change.is_tombstone().then_some(change) });
        }
        let at = at + self.bare;
        self.versions.get(at).filter(|v| v.mod_revision == revision)?;
        self.bare += 1;
        Some(Forgotten { replaced: self.strip(at), tombstone: None })
    }

    fn can_forget(&self, revision: i64) -> bool {
        self.clone().forget_change(revision).is_some()
    }

    fn load(versions: impl Iterator<Item = Arc<KeyValue>>, first_change: Option<ChangeAt>, bare: usize) -> ListStore {
        let mut versions: Vec<_> = versions.collect();
        versions.sort_by_key(|v| (v.mod_revision, v.sub_revision));
        let before = |v: &Arc<KeyValue>| first_change.is_none_or(|first| (v.mod_revision, v.sub_revision) < first);
        let forgotten_before = versions.iter().filter(|v| before(v)).count();
        ListStore { gone: vec![false; versions.len()], forgotten_before, bare, versions }
    }
}

fn key(number: u64) -> Bytes {
    // Of different lengths, so that order by bytes differs from order by number.
    Bytes::from(format!("{number}").repeat(usize::try_from(number % 3).unwrap() + 1))
}

fn version(store: &impl Store, key: Bytes, main: i64, sub: u32, delete: bool) -> Option<Arc<KeyValue>> {
    let before = store.latest(&key).filter(|v| !v.is_tombstone());
    let tombstone = KeyValue { key: key.clone(), mod_revision: main, sub_revision: sub, ..KeyValue::default() };
    match (before, delete) {
        (None, true) => None,
        (Some(_), true) => Some(Arc::new(tombstone)),
        (before, false) => Some(Arc::new(KeyValue {
            value: Bytes::from(format!("{main}.{sub}")),
            create_revision: before.map_or(main, |v| v.create_revision),
            version: before.map_or(0, |v| v.version) + 1,
            ..tombstone
        })),
    }
}

fn owned<'a>(versions: impl Iterator<Item = &'a Arc<KeyValue>>) -> Vec<Arc<KeyValue>> {
    versions.cloned().collect()
}

/// Every question a store answers, at every revision, gives the same as the list.
fn assert_same(store: &impl Store, list: &ListStore, revision: i64) {
    assert_eq!(store.first_change(), list.first_change());
    assert_eq!(store.change_count(), list.change_count());
    assert_eq!(owned(store.versions(None)), owned(list.versions(None)));
    let after = key(4);
    for at in [0, revision / 2, i64::MAX] {
        let after = Some((&after[..], at));
        assert_eq!(owned(store.versions(after)), owned(list.versions(after)));
    }
    assert_eq!(store.bare_changes(), list.bare_changes());
    for at in [revision - 6, revision - 5, revision] {
        assert_eq!(store.can_forget(at), list.can_forget(at));
    }
    let ranges = [
        KeyRange::all(),
        KeyRange::prefix("1"),
        KeyRange::new("2", "5"),
        KeyRange::new("5", "2"),
        KeyRange::new("3", "\0"),
        KeyRange::one("4"),
    ];
    for at in 0..=revision + 1 {
        assert_eq!(owned(store.changes(at)), owned(list.changes(at)));
        for range in &ranges {
            let wanted = owned(list.scan(range, at));
            assert_eq!(store.count(range, at), wanted.len(), "{range:?} at {at}");
            assert_eq!(owned(store.scan(range, at)), wanted, "{range:?} at {at}");
        }
        for number in 0..10 {
            assert_eq!(store.at(&key(number), at), list.at(&key(number), at));
        }
    }
    for number in 0..10 {
        assert_eq!(store.latest(&key(number)), list.latest(&key(number)));
    }
}

fn contract<S: Store>(seed: u64) {
    let mut rng = Rng::new(seed);
    let (mut store, mut list) = (S::default(), ListStore::default());
    let mut pictures = Vec::new();
    for main in 2..60 {
        let mut sub = 0;
        for number in 0..10 {
            if !rng.one_in(4) {
                continue;
            }
            if let Some(version) = version(&list, key(number), main, sub, rng.one_in(3)) {
                store.append(version.clone());
                list.append(version);
                sub += 1;
            }
        }
        for _ in 0..rng.below(12) {
            // Compaction never goes beyond the newest change.
            let newest = list.versions.last().map_or(0, |newest| newest.mod_revision);
            let revision = newest.min(main - if main % 3 == 0 { 0 } else { 5 });
            assert_eq!(store.forget_change(revision), list.forget_change(revision));
        }
        if rng.one_in(10) {
            store = S::load(owned(store.versions(None)).into_iter(), store.first_change(), store.bare_changes());
        }
        if rng.one_in(10) {
            pictures.push((store.clone(), list.clone(), main));
        }
        if rng.one_in(8) {
            assert_same(&store, &list, main);
        }
    }
    for (store, list, main) in pictures {
        assert_same(&store, &list, main);
    }
}

#[test]
fn the_tree_store_keeps_the_contract() {
    for seed in 0..60 {
        contract::<TreeStore>(seed);
    }
}

#[test]
fn the_list_store_keeps_the_contract() {
    contract::<ListStore>(1);
}

/// Keys of many lengths and shared beginnings, zeros and high bytes included.
fn wide_key(rng: &mut Rng) -> Bytes {
    let parts: [&[u8]; 6] = [b"/registry/", b"a", b"\0", b"\xff\xff", b"pods/", b"0123456789"];
    let mut key = vec![b'k'];
    for _ in 0..rng.below(5) {
        let part: &&[u8] = rng.pick(&parts);
        key.extend_from_slice(part);
    }
    key.extend_from_slice(rng.below(400).to_string().as_bytes());
    key.into()
}

/// Trees of several levels that grow, shrink and split everywhere, against a map of what lives.
#[test]
fn scans_and_counts_are_right_in_deep_trees() {
    let mut rng = Rng::new(11);
    let (mut store, mut living) = (TreeStore::default(), BTreeMap::new());
    let mut pictures = Vec::new();
    for main in 2..40_000 {
        // Phases of growth and of decline, so that nodes merge and the tree becomes shallow again.
        let delete = rng.one_in(if main / 8_000 % 2 == 0 { 5 } else { 1 });
        let key = match living.range(wide_key(&mut rng)..).next() {
            Some((key, _)) if delete => Bytes::clone(key),
            _ => wide_key(&mut rng),
        };
        if let Some(version) = version(&store, key.clone(), main, 0, delete && living.contains_key(&key)) {
            store.append(version.clone());
            if version.is_tombstone() {
                living.remove(&key)
            } else {
                living.insert(key, version)
            };
        }
        if rng.one_in(3) {
            for _ in 0..5 {
                store.forget_change(main - 50);
            }
        }
        if rng.one_in(50) {
            assert_same_range(&mut rng, &store, &living, main);
        }
        if rng.one_in(4_000) {
            pictures.push((store.clone(), living.clone(), main));
            let versions = owned(store.versions(None)).into_iter();
            store = TreeStore::load(versions, store.first_change(), store.bare_changes());
        }
    }
    for (store, living, main) in &pictures {
        assert_eq!(owned(store.scan(&KeyRange::all(), *main)), living.values().cloned().collect::<Vec<_>>());
        for _ in 0..50 {
            assert_same_range(&mut rng, store, living, *main);
        }
    }
    let most = pictures.iter().map(|(_, living, _)| living.len()).max();
    assert!(most > Some(2_000), "some trees have two levels of branches: {most:?} keys");
}

/// Whole stretches go and others come in their place, downwards: lower bounds of branches must follow.
#[test]
fn stretches_of_keys_that_go_and_come_back_lower_keep_the_order() {
    let key = |n: u64| Bytes::from(format!("{n:08}"));
    let (mut store, mut living, mut main) = (TreeStore::default(), BTreeMap::new(), 1);
    let mut change = |store: &mut TreeStore, living: &mut BTreeMap<Bytes, Arc<KeyValue>>, n: u64, delete: bool| {
        main += 1;
        let version = version(store, key(n), main, 0, delete).unwrap();
        store.append(version.clone());
        if delete {
            living.remove(&key(n))
        } else {
            living.insert(key(n), version)
        };
        while store.forget_change(main).is_some() {}
    };
    for n in 0..6_000 {
        change(&mut store, &mut living, n * 1_000, false);
    }
    let mut rng = Rng::new(12);
    for round in 1..60 {
        let (start, len) = (rng.below(5_500), 20 + rng.below(200));
        let stretch = key(start * 1_000)..key((start + len) * 1_000);
        let doomed: Vec<u64> =
            living.range(stretch).map(|(k, _)| str::from_utf8(k).unwrap().parse().unwrap()).collect();
        for n in doomed {
            change(&mut store, &mut living, n, true);
        }
        for n in (0..len).rev() {
            change(&mut store, &mut living, (start + n) * 1_000 + round, false);
        }
        let now = i64::MAX;
        assert!(store.scan(&KeyRange::all(), now).eq(living.values()), "round {round}");
        assert!(living.keys().all(|k| store.latest(k) == living.get(k)), "round {round}");
        assert_eq!(store.count(&KeyRange::all(), now), living.len());
    }
}

fn assert_same_range(rng: &mut Rng, store: &TreeStore, living: &BTreeMap<Bytes, Arc<KeyValue>>, main: i64) {
    let range = match rng.below(3) {
        0 => KeyRange::new(wide_key(rng), wide_key(rng)),
        1 => KeyRange::new(wide_key(rng), "\0"),
        _ => KeyRange::one(wide_key(rng)),
    };
    let wanted: Vec<_> = living.range(range.key.clone()..).filter(|(key, _)| range.contains(key)).collect();
    assert_eq!(store.count(&range, main), wanted.len(), "{range:?}");
    let mut got = store.scan(&range, main);
    assert!(wanted.iter().all(|(_, version)| got.next() == Some(version)) && got.next().is_none(), "{range:?}");
    let key = wide_key(rng);
    assert_eq!(store.at(&key, main).filter(|v| !v.is_tombstone()), living.get(&key));
    let after: Vec<_> = store.versions(Some((&key, i64::MAX))).take(20).collect();
    assert!(after.iter().all(|v| v.key > key) && after.is_sorted_by_key(|v| (&v.key, v.mod_revision)));
}
