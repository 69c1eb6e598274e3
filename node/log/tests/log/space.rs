//! A full volume: growth is refused in time, and what must go on goes on.

use quorate_log::faulty::Survival;
use quorate_log::{FaultyDisk, Log, LogError, Verdict};
use quorate_raft::types::{HardState, MemberId, Record, WriteSeq};

use crate::{ID, entry, hard, mark, names_of, options};

/// A log with its reserve set aside.
fn with_reserve(disk: &FaultyDisk) -> Log<FaultyDisk> {
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    while !names_of(disk).iter().any(|name| name == "reserve") {
        log.tend().expect("tends");
    }
    log
}

#[test]
pub(crate) fn a_full_volume_is_low_and_votes_truncations_and_marks_go_on_in_the_reserve() {
    let disk = FaultyDisk::new(1);
    let mut log = with_reserve(&disk);
    assert!(!log.space().expect("measures").is_low, "there is room without limit");
    disk.set_capacity(Some(disk.used_bytes()));
    let space = log.space().expect("measures");
    assert!(space.is_low && space.free_bytes == 0 && space.reserved_bytes > 0, "{space:?}");
    let mut seq = 0;
    let mut append = |log: &mut Log<FaultyDisk>, record: Record| {
        seq += 1;
        log.append(&[(WriteSeq(seq), record)])
    };
    append(&mut log, hard(1, 1)).expect("a vote");
    // What a leader sends cannot be refused; it fills the segment and part of the reserve.
    for index in 1..=10 {
        append(&mut log, Record::Append(vec![entry(1, index, 3000)])).expect("the reserve takes it");
    }
    assert!(!names_of(&disk).iter().any(|name| name == "reserve"), "the reserve is in use");
    append(&mut log, hard(2, 3)).expect("votes go on");
    append(&mut log, Record::TruncateTo(9)).expect("truncations go on");
    append(&mut log, Record::SnapshotMark(mark(9, 1))).expect("compaction goes on");
    // The mark made room: the segment before is dropped, and a new reserve is set aside.
    for _ in 0..10 {
        log.tend().expect("tends");
    }
    drop(log);
    disk.power_loss(Survival::Nothing);
    let (mut log, found) = Log::open(disk.clone(), options(2), Some(&ID)).expect("opens on a full volume");
    assert_eq!(found.hard, HardState { term: 2, vote: Some(MemberId(3)) });
    assert_eq!((found.snapshot.index, found.entries.len()), (9, 0));
    for _ in 0..10 {
        log.tend().expect("tends");
    }
    assert!(names_of(&disk).iter().any(|name| name == "reserve"), "{:?}", names_of(&disk));
}

#[test]
pub(crate) fn a_reserve_outlives_a_restart_and_serves_then() {
    let disk = FaultyDisk::new(1);
    drop(with_reserve(&disk));
    disk.power_loss(Survival::Nothing);
    disk.set_capacity(Some(disk.used_bytes()));
    let (mut log, _) = Log::open(disk.clone(), options(2), Some(&ID)).expect("opens");
    let mut written = 0;
    let error = loop {
        match log.append(&[(WriteSeq(written + 1), Record::Append(vec![entry(1, written + 1, 3000)]))]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::NoSpace { .. }) && error.verdict() == Verdict::Retry, "{error}");
    assert!(written > 12, "a segment and the reserve were filled, not only {written} entries");
    drop(log);
    disk.power_loss(Survival::Nothing);
    let (_, found) = Log::open(disk, options(3), Some(&ID)).expect("opens");
    assert_eq!(found.entries.len() as u64, written);
}

#[test]
pub(crate) fn the_next_segment_is_ready_before_it_is_needed() {
    let disk = FaultyDisk::new(1);
    let mut log = with_reserve(&disk);
    disk.record_ops();
    for index in 1..=60 {
        log.append(&[(WriteSeq(index), Record::Append(vec![entry(1, index, 100)]))]).expect("appends");
        log.tend_in_pace().expect("tends");
    }
    let created = disk
        .ops()
        .iter()
        .filter(|op| matches!(op, quorate_log::faulty::Op::Create { name } if name.starts_with("wal-")))
        .count();
    assert!(log.segment_count() > 3 && created == 0, "{created} segments were filled while an append waited");
}
