//! A full volume: growth is refused in time, and what must go on goes on.

use quorate_log::faulty::{Op, Survival};
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
    let created = disk.ops().iter().filter(|op| matches!(op, Op::Create { name } if name.starts_with("wal-"))).count();
    assert!(log.segment_count() > 3 && created == 0, "{created} segments were filled while an append waited");
}

#[test]
pub(crate) fn a_spare_without_room_is_dropped_and_tried_again_later_and_nothing_else_stops() {
    for is_late in [false, true] {
        let disk = FaultyDisk::new(1);
        let mut log = with_reserve(&disk);
        // The spare after the reserve is begun, then the volume is full.
        log.tend().expect("tends");
        disk.refuse_late(is_late);
        disk.set_capacity(Some(disk.used_bytes()));
        disk.record_ops();
        let tries = |disk: &FaultyDisk| {
            let is_try = |op: &&Op| matches!(op, Op::Create { name } if name == "spare.new");
            disk.ops().iter().filter(is_try).count()
        };
        let mut written = 0;
        let mut append = |log: &mut Log<FaultyDisk>| {
            let done = log.append(&[(WriteSeq(written + 1), Record::Append(vec![entry(1, written + 1, 3000)]))]);
            written += u64::from(done.is_ok());
            done
        };
        for _ in 0..5 {
            append(&mut log).expect("the segment in use has room");
            log.tend_in_pace().expect("a spare is not worth stopping for");
            log.tend().expect("a spare is not worth stopping for");
        }
        assert!(!names_of(&disk).iter().any(|name| name == "spare.new"), "late {is_late}: it gave back its room");
        let error = loop {
            match append(&mut log) {
                Ok(()) => log.tend_in_pace().expect("tends"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.verdict(), Verdict::Retry, "{error}");
        assert!(!names_of(&disk).iter().any(|name| name == "reserve"), "late {is_late}: the reserve was used first");
        for _ in 0..200 {
            log.tend().expect("tends");
        }
        assert!(tries(&disk) <= 5, "late {is_late}: {} spares were begun on a full disk", tries(&disk));
        disk.set_capacity(None);
        append(&mut log).expect("what was refused can be given again");
        for _ in 0..200 {
            log.tend().expect("tends");
        }
        assert!(names_of(&disk).iter().any(|name| name == "reserve"), "late {is_late}: a reserve is set aside again");
        drop(log);
        disk.power_loss(Survival::Nothing);
        let (_, found) = Log::open(disk, options(2), Some(&ID)).expect("opens");
        assert_eq!(found.entries.len() as u64, written);
    }
}

#[test]
pub(crate) fn a_spare_whose_flush_fails_otherwise_stops_the_log() {
    let disk = FaultyDisk::new(1);
    let mut log = with_reserve(&disk);
    log.tend().expect("begins the next spare");
    disk.fail_next_sync();
    let error = log.tend().expect_err("the disk is broken");
    assert!(matches!(error, LogError::Io { operation: "flushing", .. }), "{error}");
    let append = log.append(&[(WriteSeq(1), hard(1, 1))]);
    assert!(matches!(append, Err(LogError::Stopped)), "{append:?}");
}
