//! A persistent B+ tree from keys to their versions, which counts.
//!
//! A clone shares every node; a change copies the nodes on one path that are shared, and no others. Two things set it
//! apart from an ordered map off the shelf:
//!
//! - each branch knows how many living keys are below it, so that the number of keys in a range takes O(log n). Paged
//!   lists ask for it with every page;
//! - each node keeps, beside its keys, the eight bytes of each that follow what all of them share. A search then reads
//!   one line of numbers and touches one or two keys, where every touched key is a cache miss.
//!
//! Nodes that fall below a quarter are merged with a neighbour if both fit; there is no stricter balance, as depth only
//! grows by splits.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::Vector;

use crate::version::KeyValue;

/// Most entries of a leaf: what one change of a shared leaf copies.
const LEAF_MAX: usize = 32;
/// Most children of a branch.
const BRANCH_MAX: usize = 64;
/// Entries of a leaf built from sorted entries: nearly full, but not so that the first new key splits it.
const LEAF_BUILT: usize = 28;
/// Children of a branch built from below.
const BRANCH_BUILT: usize = 56;

/// A key with every version kept.
///
/// # Invariants
/// - `older` ascends by revision, below `newest`; it is `None` rather than empty.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub newest: Arc<KeyValue>,
    older: Option<Arc<Vector<Arc<KeyValue>>>>,
}

impl Entry {
    /// `older` ascends by revision, below `newest`.
    pub fn of(older: Vec<Arc<KeyValue>>, newest: Arc<KeyValue>) -> Entry {
        Entry { newest, older: (!older.is_empty()).then(|| Arc::new(Vector::from(older))) }
    }

    fn living(&self) -> usize {
        usize::from(!self.newest.is_tombstone())
    }

    /// The newest version at or before `revision`.
    pub fn at(&self, revision: i64) -> Option<&Arc<KeyValue>> {
        if self.newest.mod_revision <= revision {
            return Some(&self.newest);
        }
        let older = self.older.as_ref()?;
        let (mut low, mut high) = (0, older.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if older[middle].mod_revision <= revision { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1).map(|at| &older[at])
    }

    /// The oldest version kept, if it is not the only one.
    pub fn oldest_replaced(&self) -> Option<&Arc<KeyValue>> {
        self.older.as_ref()?.front()
    }

    /// Oldest first.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.older.iter().flat_map(|older| older.iter()).chain(std::iter::once(&self.newest))
    }

    fn push(&mut self, version: Arc<KeyValue>) {
        let replaced = std::mem::replace(&mut self.newest, version);
        Arc::make_mut(self.older.get_or_insert_default()).push_back(replaced);
    }

    fn forget_oldest(&mut self) {
        let older = self.older.as_mut().expect("there is a version to forget");
        Arc::make_mut(older).pop_front();
        if older.is_empty() {
            self.older = None;
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct KeyTree {
    root: Arc<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Branch(Branch),
}

#[derive(Clone, Default, Debug)]
struct Leaf {
    heads: Heads,
    entries: Vec<Entry>,
}

/// # Invariants
/// - `lowest[i]` is at or below every key of child `i` and above every key of child `i - 1`.
/// - `living[i]` counts the living keys of child `i`.
#[derive(Clone, Debug)]
struct Branch {
    lowest: Arc<Lowest>,
    children: Vec<Arc<Node>>,
    living: Vec<usize>,
}

/// The lower bounds of a branch, shared between its copies: most changes below do not move them.
#[derive(Clone, Default, Debug)]
struct Lowest {
    heads: Heads,
    keys: Vec<Bytes>,
}

/// What makes a search in sorted keys cheap.
///
/// # Invariants
/// - All keys begin with the same `shared` bytes.
/// - `heads[i]` is [`head`] of key `i` after those.
#[derive(Clone, Default, Debug)]
struct Heads {
    shared: usize,
    heads: Vec<u64>,
}

/// The first eight bytes as a number that sorts like them. Shorter keys are filled up with zeros, so equal heads say
/// nothing.
fn head(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Heads {
    fn of<'a>(len: usize, key_at: impl Fn(usize) -> &'a [u8]) -> Heads {
        if len == 0 {
            return Heads::default();
        }
        let shared = shared_len(key_at(0), key_at(len - 1));
        Heads { shared, heads: (0..len).map(|at| head(&key_at(at)[shared..])).collect() }
    }

    /// Where `key` is, or where it belongs.
    fn search<'a>(&self, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> Result<usize, usize> {
        if self.heads.is_empty() {
            return Err(0);
        }
        let common = self.shared.min(key.len());
        match key[..common].cmp(&key_at(0)[..common]) {
            std::cmp::Ordering::Less => return Err(0),
            std::cmp::Ordering::Greater => return Err(self.heads.len()),
            std::cmp::Ordering::Equal if common < self.shared => return Err(0),
            std::cmp::Ordering::Equal => {}
        }
        self.search_heads(key, key_at)
    }

    /// Where `key` is. Need not compare what the keys share: a key without it is equal to none of them.
    fn find<'a>(&self, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        if key.len() < self.shared { None } else { self.search_heads(key, key_at).ok() }
    }

    /// [`Heads::search`] for a key that has what the others share.
    fn search_heads<'a>(&self, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> Result<usize, usize> {
        let wanted = head(&key[self.shared..]);
        let mut low = self.heads.partition_point(|head| *head < wanted);
        let mut high = low + self.heads[low..].partition_point(|head| *head == wanted);
        while low < high {
            let middle = usize::midpoint(low, high);
            match key_at(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// Adds a key at `at`, if it shares what the others do.
    fn insert(&mut self, at: usize, key: &[u8], other: &[u8]) -> bool {
        let fits = key.len() >= self.shared && key[..self.shared] == other[..self.shared];
        if fits {
            self.heads.insert(at, head(&key[self.shared..]));
        }
        fits
    }
}

impl Leaf {
    fn of(entries: Vec<Entry>) -> Leaf {
        Leaf { heads: Heads::of(entries.len(), |at| &entries[at].newest.key), entries }
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.heads.search(key, |at| &self.entries[at].newest.key)
    }

    fn insert(&mut self, at: usize, entry: Entry) {
        let fits = match self.entries.first() {
            Some(other) => self.heads.insert(at, &entry.newest.key, &other.newest.key),
            None => false,
        };
        self.entries.insert(at, entry);
        if !fits {
            self.heads = Heads::of(self.entries.len(), |at| &self.entries[at].newest.key);
        }
    }

    fn remove(&mut self, at: usize) -> Entry {
        self.heads.heads.remove(at);
        self.entries.remove(at)
    }
}

impl Branch {
    fn of(keys: Vec<Bytes>, children: Vec<Arc<Node>>, living: Vec<usize>) -> Branch {
        Branch { lowest: Arc::new(Lowest::of(keys)), children, living }
    }

    /// The child where `key` is or belongs.
    fn child_of(&self, key: &[u8]) -> usize {
        match self.lowest.heads.search(key, |at| &self.lowest.keys[at]) {
            Ok(at) => at,
            Err(at) => at.saturating_sub(1),
        }
    }

    /// Changes the lower bounds and nothing else.
    fn edit_lowest(&mut self, edit: impl FnOnce(&mut Vec<Bytes>)) {
        let mut keys = self.lowest.keys.clone();
        edit(&mut keys);
        self.lowest = Arc::new(Lowest::of(keys));
    }

    fn drop_child(&mut self, at: usize) {
        self.children.remove(at);
        self.living.remove(at);
        self.edit_lowest(|keys| drop(keys.remove(at)));
    }

    /// Merges child `at`, which lost an entry, with a neighbour if it is small and both fit.
    fn maybe_merge(&mut self, at: usize) {
        let small = self.children[at].len() * 4 < self.children[at].max();
        if !small || self.children.len() < 2 {
            return;
        }
        let left = if at + 1 < self.children.len() { at } else { at - 1 };
        let (a, b) = (&self.children[left], &self.children[left + 1]);
        if (a.len() + b.len()) * 4 > a.max() * 3 {
            return;
        }
        let merged = Node::merge(a, b);
        self.living[left] += self.living[left + 1];
        self.children[left] = Arc::new(merged);
        self.drop_child(left + 1);
    }
}

impl Lowest {
    fn of(keys: Vec<Bytes>) -> Lowest {
        Lowest { heads: Heads::of(keys.len(), |at| &keys[at]), keys }
    }
}

/// What inserting below a node did to it.
struct Inserted {
    replaced: bool,
    /// Living keys gained (or lost, when a tombstone came).
    living_before: usize,
    living_after: usize,
    /// The upper part, if the node had to split.
    split: Option<(Bytes, Arc<Node>)>,
}

impl Node {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.entries.len(),
            Node::Branch(branch) => branch.children.len(),
        }
    }

    fn max(&self) -> usize {
        match self {
            Node::Leaf(_) => LEAF_MAX,
            Node::Branch(_) => BRANCH_MAX,
        }
    }

    fn living(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.entries.iter().map(Entry::living).sum(),
            Node::Branch(branch) => branch.living.iter().sum(),
        }
    }

    /// Two neighbours as one.
    fn merge(left: &Node, right: &Node) -> Node {
        match (left, right) {
            (Node::Leaf(a), Node::Leaf(b)) => Node::Leaf(Leaf::of([&a.entries[..], &b.entries[..]].concat())),
            (Node::Branch(a), Node::Branch(b)) => {
                let keys = [&a.lowest.keys[..], &b.lowest.keys[..]].concat();
                let children = [&a.children[..], &b.children[..]].concat();
                Node::Branch(Branch::of(keys, children, [&a.living[..], &b.living[..]].concat()))
            }
            (Node::Leaf(_), Node::Branch(_)) | (Node::Branch(_), Node::Leaf(_)) => {
                unreachable!("neighbours are equally deep")
            }
        }
    }

    fn insert(self: &mut Arc<Node>, version: Arc<KeyValue>) -> Inserted {
        match Arc::make_mut(self) {
            Node::Leaf(leaf) => leaf.insert_version(version),
            Node::Branch(branch) => branch.insert_version(version),
        }
    }

    fn remove(self: &mut Arc<Node>, key: &[u8]) -> Option<Entry> {
        match Arc::make_mut(self) {
            Node::Leaf(leaf) => leaf.search(key).ok().map(|at| leaf.remove(at)),
            Node::Branch(branch) => {
                let at = branch.child_of(key);
                let removed = branch.children[at].remove(key)?;
                assert_eq!(removed.living(), 0, "a key is taken out with its last tombstone");
                if branch.children[at].len() == 0 {
                    branch.drop_child(at);
                } else {
                    branch.maybe_merge(at);
                }
                Some(removed)
            }
        }
    }

    fn forget_oldest(self: &mut Arc<Node>, key: &[u8]) {
        match Arc::make_mut(self) {
            Node::Leaf(leaf) => {
                let at = leaf.search(key).expect("the key has an entry");
                leaf.entries[at].forget_oldest();
            }
            Node::Branch(branch) => {
                let at = branch.child_of(key);
                branch.children[at].forget_oldest(key);
            }
        }
    }
}

impl Leaf {
    fn insert_version(&mut self, version: Arc<KeyValue>) -> Inserted {
        let living_after = usize::from(!version.is_tombstone());
        let at = match self.search(&version.key) {
            Ok(at) => {
                let living_before = self.entries[at].living();
                self.entries[at].push(version);
                return Inserted { replaced: true, living_before, living_after, split: None };
            }
            Err(at) => at,
        };
        self.insert(at, Entry { newest: version, older: None });
        let split = (self.entries.len() > LEAF_MAX).then(|| {
            let upper = self.entries.split_off(split_point(self.entries.len(), at));
            self.heads = Heads::of(self.entries.len(), |at| &self.entries[at].newest.key);
            (upper[0].newest.key.clone(), Arc::new(Node::Leaf(Leaf::of(upper))))
        });
        Inserted { replaced: false, living_before: 0, living_after, split }
    }
}

impl Branch {
    fn insert_version(&mut self, version: Arc<KeyValue>) -> Inserted {
        let at = self.child_of(&version.key);
        if version.key < self.lowest.keys[at] {
            let lowest = version.key.clone();
            self.edit_lowest(|keys| keys[at] = lowest);
        }
        let mut inserted = self.children[at].insert(version);
        self.living[at] = self.living[at] + inserted.living_after - inserted.living_before;
        if let Some((lowest, upper)) = inserted.split.take() {
            let moved = upper.living();
            self.living[at] -= moved;
            self.living.insert(at + 1, moved);
            self.children.insert(at + 1, upper);
            self.edit_lowest(|keys| keys.insert(at + 1, lowest));
            inserted.split = (self.children.len() > BRANCH_MAX).then(|| self.split(at + 1));
        }
        inserted
    }

    fn split(&mut self, grew_at: usize) -> (Bytes, Arc<Node>) {
        let point = split_point(self.children.len(), grew_at);
        let upper = self.children.split_off(point);
        let living = self.living.split_off(point);
        let mut upper_keys = Vec::new();
        self.edit_lowest(|keys| upper_keys = keys.split_off(point));
        (upper_keys[0].clone(), Arc::new(Node::Branch(Branch::of(upper_keys, upper, living))))
    }
}

/// Where to split `len` things of which the one at `grew_at` is new: in the middle, but after everything else when
/// things come in ascending order, so that nodes of keys that ascend are full.
fn split_point(len: usize, grew_at: usize) -> usize {
    if grew_at + 1 == len { len - 1 } else { len / 2 }
}

/// Builds a tree from entries that ascend by key, leaves first: a load costs no search and no split.
#[derive(Default, Debug)]
pub(crate) struct Builder {
    entries: Vec<Entry>,
    leaves: Level,
}

/// Nodes of one depth: lowest key, node, living keys below it.
type Level = Vec<(Bytes, Arc<Node>, usize)>;

impl Builder {
    /// Adds an entry whose key is above all before it.
    pub fn push(&mut self, entry: Entry) {
        if self.entries.capacity() == 0 {
            self.entries.reserve_exact(LEAF_BUILT);
        }
        self.entries.push(entry);
        if self.entries.len() == LEAF_BUILT {
            self.end_leaf();
        }
    }

    fn end_leaf(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        let (lowest, living) = (entries[0].newest.key.clone(), entries.iter().map(Entry::living).sum());
        self.leaves.push((lowest, Arc::new(Node::Leaf(Leaf::of(entries))), living));
    }

    pub fn finish(mut self) -> KeyTree {
        if !self.entries.is_empty() {
            self.end_leaf();
        }
        let mut level = self.leaves;
        while level.len() > 1 {
            let branches = level.len().div_ceil(BRANCH_BUILT);
            let each = level.len().div_ceil(branches);
            let mut nodes = level.into_iter();
            let mut above = Level::with_capacity(branches);
            while nodes.len() > 0 {
                let (mut keys, mut children, mut living) = (Vec::new(), Vec::new(), Vec::new());
                for (key, node, count) in nodes.by_ref().take(each) {
                    keys.push(key);
                    children.push(node);
                    living.push(count);
                }
                let (lowest, count) = (keys[0].clone(), living.iter().sum());
                above.push((lowest, Arc::new(Node::Branch(Branch::of(keys, children, living))), count));
            }
            level = above;
        }
        level.pop().map_or_else(KeyTree::default, |(_, root, _)| KeyTree { root })
    }
}

impl Default for KeyTree {
    fn default() -> KeyTree {
        KeyTree { root: Arc::new(Node::Leaf(Leaf::default())) }
    }
}

impl KeyTree {
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(leaf) => {
                    let found = leaf.heads.find(key, |at| &leaf.entries[at].newest.key);
                    return found.map(|at| &leaf.entries[at]);
                }
                Node::Branch(branch) => node = &branch.children[branch.child_of(key)],
            }
        }
    }

    /// Makes `version` the newest of its key. Gives whether the key had one.
    pub fn insert(&mut self, version: Arc<KeyValue>) -> bool {
        let inserted = self.root.insert(version);
        if let Some((lowest, upper)) = inserted.split {
            let keys = vec![Bytes::new(), lowest];
            let living = vec![self.root.living(), upper.living()];
            self.root = Arc::new(Node::Branch(Branch::of(keys, vec![self.root.clone(), upper], living)));
        }
        inserted.replaced
    }

    /// Takes a key out whose last version is a tombstone.
    pub fn remove(&mut self, key: &[u8]) {
        drop(self.root.remove(key));
        while let Node::Branch(branch) = &*self.root {
            match &branch.children[..] {
                [] => self.root = Arc::new(Node::Leaf(Leaf::default())),
                [only] => self.root = only.clone(),
                [_, _, ..] => return,
            }
        }
    }

    /// Takes the oldest version out of a key that has more than one.
    pub fn forget_oldest(&mut self, key: &[u8]) {
        self.root.forget_oldest(key);
    }

    /// How many living keys are in `[from, end)`.
    pub fn count_living(&self, from: &[u8], end: Bound<&[u8]>) -> usize {
        let before_end = match end {
            Bound::Unbounded => self.root.living(),
            Bound::Excluded(end) => self.living_below(end),
            Bound::Included(end) => {
                self.living_below(end) + self.get(end).map_or(0, |entry| usize::from(!entry.newest.is_tombstone()))
            }
        };
        before_end.saturating_sub(self.living_below(from))
    }

    fn living_below(&self, key: &[u8]) -> usize {
        let (mut node, mut below) = (&self.root, 0);
        loop {
            match &**node {
                Node::Leaf(leaf) => {
                    let at = leaf.search(key).unwrap_or_else(|at| at);
                    return below + leaf.entries[..at].iter().map(Entry::living).sum::<usize>();
                }
                Node::Branch(branch) => {
                    let at = branch.child_of(key);
                    below += branch.living[..at].iter().sum::<usize>();
                    node = &branch.children[at];
                }
            }
        }
    }

    /// The entries between two bounds, ascending.
    pub fn range<'a>(&'a self, from: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries<'a> {
        let mut entries = Entries { branches: Vec::new(), leaf: [].iter(), end: end.map(Bytes::copy_from_slice) };
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(leaf) => {
                    let start = match from {
                        Bound::Unbounded => 0,
                        Bound::Included(key) => leaf.search(key).unwrap_or_else(|at| at),
                        Bound::Excluded(key) => leaf.search(key).map_or_else(|at| at, |at| at + 1),
                    };
                    entries.leaf = leaf.entries[start..].iter();
                    return entries;
                }
                Node::Branch(branch) => {
                    let at = match from {
                        Bound::Unbounded => 0,
                        Bound::Included(key) | Bound::Excluded(key) => branch.child_of(key),
                    };
                    entries.branches.push(branch.children[at + 1..].iter());
                    node = &branch.children[at];
                }
            }
        }
    }
}

/// Ascending walk: the rest of a leaf, and of each branch above it.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    branches: Vec<std::slice::Iter<'a, Arc<Node>>>,
    leaf: std::slice::Iter<'a, Entry>,
    end: Bound<Bytes>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        loop {
            if let Some(entry) = self.leaf.next() {
                let inside = match &self.end {
                    Bound::Unbounded => true,
                    Bound::Included(end) => entry.newest.key <= *end,
                    Bound::Excluded(end) => entry.newest.key < *end,
                };
                return inside.then_some(entry);
            }
            let mut node = loop {
                match self.branches.last_mut()?.next() {
                    Some(node) => break node,
                    None => drop(self.branches.pop()),
                }
            };
            while let Node::Branch(branch) = &**node {
                let mut children = branch.children.iter();
                node = children.next().expect("a branch has children");
                self.branches.push(children);
            }
            if let Node::Leaf(leaf) = &**node {
                self.leaf = leaf.entries.iter();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the invariants of every node; gives how many keys live below it.
    fn check(node: &Node, from: &[u8], end: Option<&[u8]>) -> usize {
        match node {
            Node::Leaf(leaf) => {
                let keys: Vec<&[u8]> = leaf.entries.iter().map(|entry| &entry.newest.key[..]).collect();
                assert!(keys.is_sorted() && keys.iter().all(|k| *k >= from && end.is_none_or(|end| *k < end)));
                assert!(keys.iter().zip(&leaf.heads.heads).all(|(k, h)| head(&k[leaf.heads.shared..]) == *h));
            }
            Node::Branch(branch) => {
                let keys = &branch.lowest.keys;
                assert!(keys.is_sorted(), "lower bounds ascend: {keys:?}");
                assert_eq!((keys.len(), branch.living.len()), (branch.children.len(), branch.children.len()));
                for (at, child) in branch.children.iter().enumerate() {
                    let from = if at == 0 { from } else { &keys[at] };
                    let end = keys.get(at + 1).map_or(end, |key| Some(&key[..]));
                    assert_eq!(check(child, from, end), branch.living[at]);
                }
            }
        }
        node.living()
    }

    fn version(n: u64, main: i64, version: i64) -> Arc<KeyValue> {
        let key = Bytes::from(format!("{n:08}"));
        Arc::new(KeyValue { key, mod_revision: main, version, ..KeyValue::default() })
    }

    #[test]
    fn invariants_hold_while_stretches_go_and_come_back_lower() {
        let mut tree = KeyTree::default();
        for n in 0..6_000 {
            tree.insert(version(n * 1_000, 1, 1));
        }
        for round in 1..40_u64 {
            let (start, len) = (round * 1_103 % 5_700, 40 + round * 7);
            let stretch: Vec<u64> = (start..start + len).collect();
            for n in &stretch {
                for old in std::iter::once(0).chain(1..round) {
                    let key = version(n * 1_000 + old, 0, 0).key.clone();
                    if tree.get(&key).is_some() {
                        tree.insert(version(n * 1_000 + old, 2, 0));
                        tree.remove(&key);
                    }
                }
            }
            check(&tree.root, b"", None);
            for n in stretch.iter().rev() {
                tree.insert(version(n * 1_000 + 1_000 - round, 3, 1));
            }
            check(&tree.root, b"", None);
        }
    }
}
