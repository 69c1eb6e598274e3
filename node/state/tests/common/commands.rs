//! Random commands over few keys, so that they meet; some are invalid on purpose.

use bytes::Bytes;
use quorate_state::{
    ClusterVersion, Command, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Range, SortOrder,
    SortTarget, Txn, TxnOp,
};

use super::rng::Rng;

pub const KEYS: [&str; 8] = ["a", "a/1", "a/2", "a/20", "b", "b/1", "c", "\u{10ffff}"];

pub fn key(rng: &mut Rng) -> Bytes {
    if rng.one_in(60) { Bytes::new() } else { Bytes::from_static(rng.pick(&KEYS).as_bytes()) }
}

pub fn key_range(rng: &mut Rng) -> KeyRange {
    match rng.below(6) {
        0 => KeyRange::all(),
        1 => KeyRange::prefix(key(rng)),
        2 => KeyRange::new(key(rng), key(rng)),
        3 => KeyRange::new(key(rng), "\0"),
        _ => KeyRange::one(key(rng)),
    }
}

/// A revision around `0..=current + 1`.
pub fn revision(rng: &mut Rng, current: i64) -> i64 {
    i64::try_from(rng.below(u64::try_from(current).unwrap() + 3)).unwrap() - 1
}

pub fn range(rng: &mut Rng, current: i64) -> Range {
    let mut range = Range { range: key_range(rng), ..Range::default() };
    if rng.one_in(2) {
        range.revision = revision(rng, current);
    }
    if rng.one_in(2) {
        range.limit = i64::try_from(rng.below(5)).unwrap() - 1;
    }
    if rng.one_in(3) {
        range.sort_order = *rng.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
        range.sort_target = *rng.pick(&[
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::CreateRevision,
            SortTarget::ModRevision,
            SortTarget::Value,
        ]);
    }
    range.keys_only = rng.one_in(5);
    range.count_only = rng.one_in(5);
    if rng.one_in(4) {
        range.min_mod_revision = revision(rng, current);
        range.max_create_revision = revision(rng, current);
    }
    if rng.one_in(4) {
        range.max_mod_revision = revision(rng, current);
        range.min_create_revision = revision(rng, current);
    }
    range
}

pub fn put(rng: &mut Rng) -> Put {
    let ignore_value = rng.one_in(8);
    Put {
        key: key(rng),
        value: if ignore_value && !rng.one_in(5) { Bytes::new() } else { value(rng) },
        lease: i64::from(rng.one_in(40)),
        prev_kv: rng.one_in(2),
        ignore_value,
        ignore_lease: rng.one_in(10),
    }
}

pub fn value(rng: &mut Rng) -> Bytes {
    Bytes::from(format!("v{}", rng.below(6)))
}

pub fn delete(rng: &mut Rng) -> DeleteRange {
    DeleteRange { range: key_range(rng), prev_kv: rng.one_in(2) }
}

pub fn compare(rng: &mut Rng, current: i64) -> Compare {
    let small = i64::try_from(rng.below(3)).unwrap();
    let target = match rng.below(5) {
        0 => CompareTarget::Version(small),
        1 => CompareTarget::CreateRevision(revision(rng, current)),
        2 => CompareTarget::ModRevision(if rng.one_in(2) { 0 } else { revision(rng, current) }),
        3 => CompareTarget::Value(value(rng)),
        _ => CompareTarget::Lease(small),
    };
    let result =
        *rng.pick(&[CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual]);
    Compare { range: key_range(rng), result, target }
}

pub fn txn(rng: &mut Rng, current: i64, depth: usize) -> Txn {
    let compares = (0..rng.below(3)).map(|_| compare(rng, current)).collect();
    let success = (0..rng.below(4)).map(|_| op(rng, current, depth)).collect();
    let failure = (0..rng.below(4)).map(|_| op(rng, current, depth)).collect();
    Txn { compares, success, failure }
}

fn op(rng: &mut Rng, current: i64, depth: usize) -> TxnOp {
    match rng.below(if depth > 0 { 8 } else { 6 }) {
        0 | 1 => {
            let mut range = range(rng, current);
            if rng.one_in(2) {
                range.revision = 0;
            }
            TxnOp::Range(range)
        }
        2..=4 => TxnOp::Put(put(rng)),
        5 => TxnOp::DeleteRange(delete(rng)),
        _ => TxnOp::Txn(txn(rng, current, depth - 1)),
    }
}

pub fn command(rng: &mut Rng, current: i64) -> Command {
    match rng.below(20) {
        0..=8 => put(rng).into(),
        9 | 10 => delete(rng).into(),
        11 => Command::Compact { revision: revision(rng, current) - 3 },
        12 if rng.one_in(3) => Command::Compact { revision: revision(rng, current) },
        13 if rng.one_in(4) => Command::ClusterVersion(ClusterVersion::new(0, u16::from(rng.one_in(2)))),
        // Lowered more often than raised, or hardly anything would be written.
        14 if rng.one_in(4) => Command::Alarm { member: rng.below(2), is_raised: rng.one_in(4) },
        _ => txn(rng, current, 2).into(),
    }
}
