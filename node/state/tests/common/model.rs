//! What the machine must do, written as plainly as possible: all versions ever made in one list, whole copies for
//! atomicity, every read a full scan. Shares no code with the machine but the types.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_state::command::{Command, Compare, CompareResult, CompareTarget, DeleteRange, Put, Range, Txn, TxnOp};
use quorate_state::{
    ClusterVersion, DeleteRangeResult, KeyRange, KeyValue, PutResult, RangeResult, Response, SortOrder, SortTarget,
    StateError, TxnResult,
};

#[derive(Clone)]
pub struct Model {
    pub revision: i64,
    pub compact_revision: i64,
    pub versions: Vec<Arc<KeyValue>>,
    pub cluster_version: ClusterVersion,
    pub alarms: Vec<u64>,
}

impl Model {
    pub fn new() -> Model {
        let (cluster_version, alarms) = (ClusterVersion::default(), Vec::new());
        Model { revision: 1, compact_revision: -1, versions: Vec::new(), cluster_version, alarms }
    }

    /// Applies a command; gives the answer and the versions made.
    pub fn apply(&mut self, command: &Command) -> (Result<Response, StateError>, Vec<Arc<KeyValue>>) {
        let mut draft = self.clone();
        let outcome = draft.execute(command);
        let made = draft.versions[self.versions.len()..].to_vec();
        match outcome {
            Ok(response) => {
                draft.revision += i64::from(!made.is_empty());
                *self = draft;
                (Ok(response), made)
            }
            Err(error) => (Err(error), Vec::new()),
        }
    }

    fn execute(&mut self, command: &Command) -> Result<Response, StateError> {
        match command {
            Command::Put(put) => {
                check_put(put)?;
                self.check_alarms(command)?;
                self.check_put_against(put)?;
                Ok(Response::Put(self.put(put)))
            }
            Command::DeleteRange(delete) => {
                check_key(&delete.range)?;
                Ok(Response::DeleteRange(self.delete(delete)))
            }
            Command::Txn(txn) => {
                check_txn(txn, 65_536)?;
                check_duplicates(txn)?;
                self.check_alarms(command)?;
                let before = self.clone();
                before.check_branches(txn)?;
                Ok(Response::Txn(self.txn(txn, &before)))
            }
            Command::Compact { revision } if *revision <= self.compact_revision => Err(StateError::Compacted),
            Command::Compact { revision } if *revision > self.revision => Err(StateError::FutureRevision),
            Command::Compact { revision } => {
                self.compact_revision = *revision;
                Ok(Response::Compact { revision: self.revision })
            }
            Command::ClusterVersion(version) => {
                self.cluster_version = self.cluster_version.max(*version);
                Ok(Response::Nothing { revision: self.revision })
            }
            Command::Alarm { .. } if self.cluster_version < ClusterVersion::new(0, 1) => {
                Err(StateError::NotAllMembersCan)
            }
            Command::Alarm { member, is_raised } => {
                self.alarms.retain(|raised| raised != member);
                self.alarms.extend(is_raised.then_some(*member));
                self.alarms.sort_unstable();
                Ok(Response::Nothing { revision: self.revision })
            }
        }
    }

    fn check_alarms(&self, command: &Command) -> Result<(), StateError> {
        if command.grows() && !self.alarms.is_empty() { Err(StateError::NoSpace) } else { Ok(()) }
    }

    // ---- reads ----

    /// All living versions at a revision.
    fn living(&self, revision: i64) -> BTreeMap<Bytes, Arc<KeyValue>> {
        let mut living = BTreeMap::new();
        for version in self.versions.iter().filter(|v| v.mod_revision <= revision) {
            living.insert(version.key.clone(), version.clone());
        }
        living.retain(|_, v| v.version > 0);
        living
    }

    pub fn get_at(&self, key: &[u8], revision: i64) -> Option<Arc<KeyValue>> {
        self.living(revision).get(key).cloned()
    }

    fn check_revision(&self, revision: i64) -> Result<(), StateError> {
        match revision {
            r if r > self.revision => Err(StateError::FutureRevision),
            r if r > 0 && r < self.compact_revision => Err(StateError::Compacted),
            _ => Ok(()),
        }
    }

    pub fn range(&self, range: &Range) -> Result<RangeResult, StateError> {
        check_key(&range.range)?;
        self.check_revision(range.revision)?;
        Ok(self.read(range, self.revision))
    }

    fn read(&self, range: &Range, current: i64) -> RangeResult {
        let revision = if range.revision > 0 { range.revision } else { current };
        let mut kvs: Vec<KeyValue> = Vec::new();
        for (key, version) in self.living(revision) {
            if contains(&range.range, &key) {
                kvs.push((*version).clone());
            }
        }
        let count = i64::try_from(kvs.len()).unwrap();
        if range.count_only {
            return RangeResult { revision: current, kvs: Vec::new(), more: false, count };
        }
        kvs.retain(|kv| range.min_mod_revision == 0 || kv.mod_revision >= range.min_mod_revision);
        kvs.retain(|kv| range.max_mod_revision == 0 || kv.mod_revision <= range.max_mod_revision);
        kvs.retain(|kv| range.min_create_revision == 0 || kv.create_revision >= range.min_create_revision);
        kvs.retain(|kv| range.max_create_revision == 0 || kv.create_revision <= range.max_create_revision);
        match range.sort_target {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if range.sort_order == SortOrder::Descend {
            // Equal elements stay in key order: reverse, sort stably by the reversed order.
            kvs.sort_by_key(|kv| kv.key.clone());
            match range.sort_target {
                SortTarget::Key => kvs.reverse(),
                SortTarget::Version => kvs.sort_by_key(|kv| -kv.version),
                SortTarget::CreateRevision => kvs.sort_by_key(|kv| -kv.create_revision),
                SortTarget::ModRevision => kvs.sort_by_key(|kv| -kv.mod_revision),
                SortTarget::Value => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.value.clone())),
            }
        }
        let mut more = false;
        if range.limit > 0 && count_of(&kvs) > range.limit {
            more = true;
            kvs.truncate(usize::try_from(range.limit).unwrap());
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResult { revision: current, kvs: kvs.into_iter().map(Arc::new).collect(), more, count }
    }

    // ---- writes ----

    fn current(&self) -> i64 {
        let wrote = self.versions.last().is_some_and(|v| v.mod_revision > self.revision);
        self.revision + i64::from(wrote)
    }

    fn push(&mut self, mut version: KeyValue) {
        version.mod_revision = self.revision + 1;
        let made = self.versions.iter().filter(|v| v.mod_revision == version.mod_revision).count();
        version.sub_revision = u32::try_from(made).unwrap();
        self.versions.push(Arc::new(version));
    }

    fn check_put_against(&self, put: &Put) -> Result<(), StateError> {
        if put.lease != 0 {
            return Err(StateError::LeaseNotFound);
        }
        let absent = self.get_at(&put.key, i64::MAX).is_none();
        if absent && (put.ignore_value || put.ignore_lease) { Err(StateError::KeyNotFound) } else { Ok(()) }
    }

    fn put(&mut self, put: &Put) -> PutResult {
        let prev = self.get_at(&put.key, i64::MAX);
        let mut new =
            KeyValue { key: put.key.clone(), value: put.value.clone(), lease: put.lease, ..KeyValue::default() };
        new.create_revision = self.revision + 1;
        new.version = 1;
        if let Some(prev) = &prev {
            new.create_revision = prev.create_revision;
            new.version = prev.version + 1;
            if put.ignore_value {
                new.value = prev.value.clone();
            }
            if put.ignore_lease {
                new.lease = prev.lease;
            }
        }
        self.push(new);
        PutResult { revision: self.revision + 1, prev_kv: if put.prev_kv { prev } else { None } }
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeResult {
        let mut prev_kvs = Vec::new();
        for (key, version) in self.living(i64::MAX) {
            if contains(&delete.range, &key) {
                self.push(KeyValue { key, ..KeyValue::default() });
                prev_kvs.push(version);
            }
        }
        let deleted = count_of(&prev_kvs);
        DeleteRangeResult {
            revision: self.current(),
            deleted,
            prev_kvs: if delete.prev_kv { prev_kvs } else { Vec::new() },
        }
    }

    fn txn(&mut self, txn: &Txn, before: &Model) -> TxnResult {
        let succeeded = before.succeeds(txn);
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            responses.push(match op {
                TxnOp::Range(range) => Response::Range(self.read(range, self.current())),
                TxnOp::Put(put) => Response::Put(self.put(put)),
                TxnOp::DeleteRange(delete) => Response::DeleteRange(self.delete(delete)),
                TxnOp::Txn(nested) => Response::Txn(self.txn(nested, before)),
            });
        }
        TxnResult { revision: self.current(), succeeded, responses }
    }

    fn check_branches(&self, txn: &Txn) -> Result<(), StateError> {
        for op in if self.succeeds(txn) { &txn.success } else { &txn.failure } {
            match op {
                TxnOp::Range(range) => self.check_revision(range.revision)?,
                TxnOp::Put(put) => self.check_put_against(put)?,
                TxnOp::DeleteRange(_) => {}
                TxnOp::Txn(nested) => self.check_branches(nested)?,
            }
        }
        Ok(())
    }

    fn succeeds(&self, txn: &Txn) -> bool {
        txn.compares.iter().all(|compare| {
            let found: Vec<_> =
                self.living(i64::MAX).into_values().filter(|kv| contains(&compare.range, &kv.key)).collect();
            if found.is_empty() {
                return !matches!(compare.target, CompareTarget::Value(_)) && relates(compare, &KeyValue::default());
            }
            found.iter().all(|kv| relates(compare, kv))
        })
    }
}

fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    let (less, equal) = match &compare.target {
        CompareTarget::Version(n) => (kv.version < *n, kv.version == *n),
        CompareTarget::CreateRevision(n) => (kv.create_revision < *n, kv.create_revision == *n),
        CompareTarget::ModRevision(n) => (kv.mod_revision < *n, kv.mod_revision == *n),
        CompareTarget::Value(v) => (kv.value < *v, kv.value == *v),
        CompareTarget::Lease(n) => (kv.lease < *n, kv.lease == *n),
    };
    match compare.result {
        CompareResult::Equal => equal,
        CompareResult::NotEqual => !equal,
        CompareResult::Less => less,
        CompareResult::Greater => !less && !equal,
    }
}

fn count_of<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap()
}

fn contains(range: &KeyRange, key: &[u8]) -> bool {
    if range.range_end.is_empty() {
        key == range.key
    } else if range.range_end[..] == *b"\0" {
        key >= &range.key[..]
    } else {
        key >= &range.key[..] && key < &range.range_end[..]
    }
}

// ---- checks without state ----

fn check_key(range: &KeyRange) -> Result<(), StateError> {
    if range.key.is_empty() { Err(StateError::EmptyKey) } else { Ok(()) }
}

fn check_put(put: &Put) -> Result<(), StateError> {
    check_key(&KeyRange::one(put.key.clone()))?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(StateError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 { Err(StateError::LeaseProvided) } else { Ok(()) }
}

fn check_txn(txn: &Txn, left: usize) -> Result<(), StateError> {
    let most = *[txn.compares.len(), txn.success.len(), txn.failure.len()].iter().max().unwrap();
    if most > left {
        return Err(StateError::TooManyOps);
    }
    for compare in &txn.compares {
        check_key(&compare.range)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(range) => check_key(&range.range)?,
            TxnOp::Put(put) => check_put(put)?,
            TxnOp::DeleteRange(delete) => check_key(&delete.range)?,
            TxnOp::Txn(nested) => check_txn(nested, left - most)?,
        }
    }
    Ok(())
}

/// Walks every way through the branches and looks at the writes on it.
fn check_duplicates(txn: &Txn) -> Result<(), StateError> {
    for path in paths(txn) {
        for (at, first) in path.iter().enumerate() {
            for second in &path[at + 1..] {
                let clash = match (first, second) {
                    (TxnOp::Put(a), TxnOp::Put(b)) => a.key == b.key,
                    (TxnOp::Put(put), TxnOp::DeleteRange(delete)) | (TxnOp::DeleteRange(delete), TxnOp::Put(put)) => {
                        contains(&delete.range, &put.key)
                    }
                    _ => false,
                };
                if clash {
                    return Err(StateError::DuplicateKey);
                }
            }
        }
    }
    Ok(())
}

fn paths(txn: &Txn) -> Vec<Vec<TxnOp>> {
    let mut all = Vec::new();
    for branch in [&txn.success, &txn.failure] {
        let mut so_far: Vec<Vec<TxnOp>> = vec![Vec::new()];
        for op in branch {
            let ways = if let TxnOp::Txn(nested) = op { paths(nested) } else { vec![vec![op.clone()]] };
            so_far = so_far.iter().flat_map(|head| ways.iter().map(|way| [&head[..], way].concat())).collect();
        }
        all.extend(so_far);
    }
    all
}
