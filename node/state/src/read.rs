//! Evaluating a range on a store.

use std::sync::Arc;

use bytes::Bytes;

use crate::command::{Range, SortOrder, SortTarget};
use crate::error::StateError;
use crate::machine::State;
use crate::response::RangeResult;
use crate::store::Store;
use crate::version::KeyValue;

impl<S: Store> State<S> {
    /// Whether `revision` can be read, 0 and below meaning the current one.
    pub(crate) fn check_revision(&self, revision: i64) -> Result<(), StateError> {
        if revision > self.revision {
            return Err(StateError::FutureRevision);
        }
        if revision > 0 && revision < self.compact_revision {
            return Err(StateError::Compacted);
        }
        Ok(())
    }

    /// Reads a range whose revision was checked. `current` is what revision 0 stands for: inside a transaction that
    /// has written, one above the revision before it.
    ///
    /// Filters and any order but the natural one work on every key of the range, then the limit cuts. (etcd cuts
    /// before it sorts when a sort target comes without an order; that loses the keys sorted for.)
    pub(crate) fn read(&self, range: &Range, current: i64) -> RangeResult {
        let revision = if range.revision > 0 { range.revision } else { current };
        let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        if range.range.is_one() {
            let found = self.store.at(&range.range.key, revision).filter(|version| !version.is_tombstone());
            return answer(range, current, found.into_iter().cloned().collect(), limit);
        }
        if range.count_only {
            let count = self.store.count(&range.range, revision);
            return RangeResult { revision: current, kvs: Vec::new(), more: false, count: as_i64(count) };
        }
        let scan = self.store.scan(&range.range, revision);
        if is_shaped(range) {
            return answer(range, current, scan.cloned().collect(), limit);
        }
        let kvs: Vec<_> = scan.take(limit).map(|kv| project(range, kv)).collect();
        let count = if kvs.len() < limit { kvs.len() } else { self.store.count(&range.range, revision) };
        RangeResult { revision: current, more: count > kvs.len(), kvs, count: as_i64(count) }
    }
}

/// Whether the answer is more than the first keys in natural order.
fn is_shaped(range: &Range) -> bool {
    let filtered =
        [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision]
            .iter()
            .any(|bound| *bound != 0);
    filtered || range.sort_order == SortOrder::Descend || range.sort_target != SortTarget::Key
}

/// Filters, sorts and cuts `all`, every living version of the range.
fn answer(range: &Range, current: i64, all: Vec<Arc<KeyValue>>, limit: usize) -> RangeResult {
    let count = as_i64(all.len());
    if range.count_only {
        return RangeResult { revision: current, kvs: Vec::new(), more: false, count };
    }
    let mut kvs: Vec<_> = all.into_iter().filter(|kv| passes(range, kv)).collect();
    sort(range, &mut kvs);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    let kvs = if range.keys_only { kvs.iter().map(|kv| project(range, kv)).collect() } else { kvs };
    RangeResult { revision: current, kvs, more, count }
}

fn passes(range: &Range, kv: &KeyValue) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, range.min_mod_revision, range.max_mod_revision)
        && within(kv.create_revision, range.min_create_revision, range.max_create_revision)
}

/// Stable, so that ties stay in key order; no order stands for ascending.
fn sort(range: &Range, kvs: &mut [Arc<KeyValue>]) {
    let descend = range.sort_order == SortOrder::Descend;
    kvs.sort_by(|a, b| {
        let ordering = match range.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::CreateRevision => a.create_revision.cmp(&b.create_revision),
            SortTarget::ModRevision => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descend { ordering.reverse() } else { ordering }
    });
}

fn project(range: &Range, kv: &Arc<KeyValue>) -> Arc<KeyValue> {
    if range.keys_only { Arc::new(KeyValue { value: Bytes::new(), ..KeyValue::clone(kv) }) } else { kv.clone() }
}

pub(crate) fn as_i64(count: usize) -> i64 {
    i64::try_from(count).expect("a count of things in memory fits an i64")
}
