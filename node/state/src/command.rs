//! What clients ask of the store, as own types: the wire's protobuf ends at the API layer.

use bytes::Bytes;

use crate::cluster_version::ClusterVersion;

/// `range_end` of "every key at or above `key`".
pub const FROM_KEY: &[u8] = b"\0";

/// A request that changes the store and therefore goes through the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// Forgets what only revisions below `revision` can see.
    Compact {
        revision: i64,
    },
    /// Every member understands this version. A lower one than agreed on before changes nothing.
    ClusterVersion(ClusterVersion),
    /// Raises or lowers, by a person's word, the alarm that `member` is out of space. While one is up nothing may grow.
    Alarm {
        member: u64,
        is_raised: bool,
    },
}

impl Command {
    /// Whether carrying it out can make the state larger. What frees room must stay possible on a full volume.
    pub fn grows(&self) -> bool {
        match self {
            Command::DeleteRange(_) | Command::Compact { .. } | Command::ClusterVersion(_) | Command::Alarm { .. } => {
                false
            }
            Command::Txn(txn) => txn.puts(),
            Command::Put(_) => true,
        }
    }
}

impl Txn {
    fn puts(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| match op {
            TxnOp::Put(_) => true,
            TxnOp::Txn(txn) => txn.puts(),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) => false,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    /// 0 is no lease.
    pub lease: i64,
    /// Answer with the version that is replaced.
    pub prev_kv: bool,
    /// Keep the value of the existing key, which must exist.
    pub ignore_value: bool,
    /// Keep the lease of the existing key, which must exist.
    pub ignore_lease: bool,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DeleteRange {
    pub range: KeyRange,
    /// Answer with the versions that are deleted.
    pub prev_kv: bool,
}

/// Compares, then one of two lists of operations, atomically.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

/// One operation of a transaction. A wire operation without a request has no form here: the API layer answers it with
/// [`crate::StateError::KeyNotFound`], as etcd does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TxnOp {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Holds if it holds for every key of `range` (of one key: for the key, absent counting as zeros).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    pub range: KeyRange,
    pub result: CompareResult,
    pub target: CompareTarget,
}

/// How what is stored must relate to what is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What is compared, with what is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    /// Never holds for a missing key.
    Value(Bytes),
    Lease(i64),
}

/// A set of keys in etcd's notation.
///
/// `range_end` empty: just `key`. `range_end` = [`FROM_KEY`]: every key at or above `key`. Else `[key, range_end)`,
/// empty when `range_end` ≤ `key`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KeyRange {
    pub key: Bytes,
    pub range_end: Bytes,
}

/// A read of a set of keys. The default of every option is etcd's default.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Range {
    pub range: KeyRange,
    /// 0 (or below) reads the current revision.
    pub revision: i64,
    /// Most keys to return; 0 is no limit.
    pub limit: i64,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    /// Filters on revisions, inclusive; 0 is no filter.
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum SortOrder {
    #[default]
    None,
    Ascend,
    Descend,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

impl KeyRange {
    /// Just `key`.
    pub fn one(key: impl Into<Bytes>) -> KeyRange {
        KeyRange { key: key.into(), range_end: Bytes::new() }
    }

    /// `[key, range_end)`, with the two special forms of `range_end`.
    pub fn new(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> KeyRange {
        KeyRange { key: key.into(), range_end: range_end.into() }
    }

    /// Every key that begins with `prefix`; every key at all for the empty one.
    pub fn prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let prefix = prefix.into();
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = FROM_KEY.to_vec(),
        }
        let key = if prefix.is_empty() { Bytes::from_static(FROM_KEY) } else { prefix };
        KeyRange { key, range_end: end.into() }
    }

    /// Every key.
    pub fn all() -> KeyRange {
        KeyRange { key: Bytes::from_static(FROM_KEY), range_end: Bytes::from_static(FROM_KEY) }
    }

    pub fn is_one(&self) -> bool {
        self.range_end.is_empty()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_one() {
            return key == self.key;
        }
        key >= &self.key[..] && (self.range_end == FROM_KEY || key < &self.range_end[..])
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        !self.is_one() && self.range_end != FROM_KEY && self.range_end <= self.key
    }
}

impl Txn {
    /// Whether it can be answered from a view without the log: both branches hold ranges only. A nested transaction
    /// makes it a write, as in etcd, even one of ranges only.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) => false,
        })
    }
}

impl From<Put> for Command {
    fn from(put: Put) -> Command {
        Command::Put(put)
    }
}

impl From<DeleteRange> for Command {
    fn from(delete: DeleteRange) -> Command {
        Command::DeleteRange(delete)
    }
}

impl From<Txn> for Command {
    fn from(txn: Txn) -> Command {
        Command::Txn(txn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_room_does_not_grow() {
        let put = Put { key: "k".into(), ..Put::default() };
        let delete = DeleteRange { range: KeyRange::one("k"), prev_kv: false };
        assert!(Command::Put(put.clone()).grows());
        assert!(!Command::DeleteRange(delete.clone()).grows());
        assert!(!Command::Compact { revision: 3 }.grows());
        let deleting = Txn { success: vec![TxnOp::DeleteRange(delete)], ..Txn::default() };
        assert!(!Command::Txn(deleting.clone()).grows());
        let nested =
            Txn { failure: vec![TxnOp::Txn(Txn { success: vec![TxnOp::Put(put)], ..deleting })], ..Txn::default() };
        assert!(Command::Txn(nested).grows());
    }
}
