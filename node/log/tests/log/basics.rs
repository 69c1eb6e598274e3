//! What `append` returned `Ok` for is there: after every crash point, torn length and flipped byte.

use std::ops::Range;

use bytes::Bytes;
use quorate_log::faulty::{Op, SECTOR_BYTES, SplitMix, Survival};
use quorate_log::format::{BLOCK_BYTES, BatchHeader, MetaSlot, SegmentHeader, decode_records, encode_record};
use quorate_log::{FaultyDisk, Identity, Log, LogError, RealDisk, Verdict};
use quorate_raft::types::{Entry, HardState, MemberId, Payload, Record, WriteSeq};

use crate::{ID, Model, entry, hard, mark, models, names_of, options, run_script, run_script_full, script};

#[test]
pub(crate) fn a_log_gives_back_what_was_appended_across_segments_and_restarts() {
    let disk = FaultyDisk::new(1);
    assert_eq!(run_script(&disk, &[2, 6, 13]), Ok(script().len()));
    let (log, recovered) = Log::open(disk, options(99), Some(&ID)).expect("opens");
    assert_eq!(Model::of(&recovered), *models().last().expect("not empty"));
    assert_eq!(recovered.incarnation, 3);
    assert_eq!(log.generation(), 5, "one more at each open");
    assert!(log.segment_count() <= 4, "segments behind the mark are dropped: {}", log.segment_count());
}

#[test]
pub(crate) fn a_crash_at_any_disk_operation_loses_nothing_that_was_acknowledged() {
    crash_everywhere(0..0, false);
}

#[test]
pub(crate) fn a_crash_at_any_operation_of_a_full_disk_loses_nothing_that_was_acknowledged() {
    for is_late in [false, true] {
        crash_everywhere(2..13, is_late);
    }
}

/// `full`: batches during which the disk is full, which it says when written to or, `is_late`, when flushed.
fn crash_everywhere(full: Range<usize>, is_late: bool) {
    let restarts = [4, 9, 15];
    let recorded = FaultyDisk::new(0);
    recorded.refuse_late(is_late);
    recorded.record_ops();
    let run = |disk: &FaultyDisk| run_script_full(disk, &restarts, full.clone());
    run(&recorded).expect("the recorded run ends");
    assert_eq!(recorded.refused_late_count() > 0, is_late, "flushes are refused for want of room, or none is");
    let ops = recorded.ops();
    assert!(ops.len() >= 100, "the run should have many crash points, not {}", ops.len());
    assert!(ops.iter().any(|op| matches!(op, Op::Remove { .. })), "a segment drop is among them");
    let models = models();
    let mut recoveries = 0;
    for at in 1..=ops.len() as u64 {
        for way in 0..6u64 {
            let disk = FaultyDisk::new(at * 100 + way);
            disk.refuse_late(is_late);
            disk.crash_at(at);
            let acked = run(&disk).expect_err("the machine died");
            disk.set_capacity(None);
            match way {
                0 => disk.process_crash(),
                1 => disk.power_loss(Survival::Nothing),
                2 => disk.power_loss(Survival::Everything),
                _ => disk.power_loss(Survival::Subset),
            }
            let op = &ops[at as usize - 1];
            let (mut log, recovered) = match Log::open(disk.clone(), options(77), Some(&ID)) {
                Ok(found) => found,
                Err(LogError::Missing) => {
                    assert_eq!(acked, 0, "an acknowledged log is missing after {op:?}");
                    Log::create(disk.clone(), options(5), ID, mark(0, 0)).expect("creation can be repeated");
                    continue;
                }
                Err(error) => panic!("crash {at} ({op:?}) way {way}: {error}"),
            };
            let found = Model::of(&recovered);
            let next = models.get(acked + 1);
            assert!(
                found == models[acked] || Some(&found) == next,
                "crash {at} ({op:?}) way {way}: {acked} batches were acknowledged, found {found:?}"
            );
            // And it goes on: what is appended now survives the next power loss.
            let last = log.last_index();
            log.append(&[(WriteSeq(1), Record::Append(vec![entry(9, last + 1, 5)]))]).expect("the log goes on");
            drop(log);
            disk.power_loss(Survival::Nothing);
            let (_, again) = Log::open(disk, options(78), Some(&ID)).expect("opens again");
            assert_eq!(again.entries.last().map(|e| (e.term, e.index)), Some((9, last + 1)));
            recoveries += 1;
        }
    }
    assert!(recoveries > 500, "only {recoveries} recoveries");
}

/// A log whose last batch spans several blocks, with the file, the offset and the length of that batch.
pub(crate) fn with_last_batch(seal: bool) -> (FaultyDisk, String, usize, usize) {
    let disk = FaultyDisk::new(4);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    log.append(&[(WriteSeq(1), hard(1, 1)), (WriteSeq(2), Record::Append(vec![entry(1, 1, 9)]))]).expect("appends");
    disk.record_ops();
    log.append(&[(WriteSeq(3), Record::Append((2..=6).map(|i| entry(1, i, 1500)).collect()))]).expect("appends");
    let ops = disk.ops();
    let Some(Op::Write { name, offset_bytes, len_bytes }) = ops.first() else { panic!("no write in {ops:?}") };
    if seal {
        log.seal_tail().expect("seals");
    }
    (disk, name.clone(), *offset_bytes as usize, *len_bytes)
}

#[test]
pub(crate) fn a_last_batch_torn_at_any_byte_is_cut_and_nothing_before_it() {
    let (disk, name, offset, len) = with_last_batch(false);
    let mut cut = 0;
    for keep in 0..len {
        let torn = disk.fork(keep as u64);
        torn.overwrite(&name, offset + keep, &vec![0; len - keep]);
        let (mut log, recovered) = Log::open(torn.clone(), options(2), Some(&ID)).expect("a torn tail is no damage");
        let whole = recovered.entries.len() == 6;
        assert!(whole || recovered.entries.len() == 1, "{keep} bytes kept: {} entries", recovered.entries.len());
        if !whole {
            cut += 1;
            log.append(&[(WriteSeq(1), Record::Append(vec![entry(2, 2, 3)]))]).expect("goes on");
            drop(log);
            let (_, again) = Log::open(torn, options(3), Some(&ID)).expect("opens again");
            assert_eq!(again.entries.len(), 2);
        }
    }
    assert!(cut > 6000, "nearly every length is a cut, not {cut}");
}

#[test]
pub(crate) fn a_sealed_last_batch_is_never_cut() {
    let (disk, name, offset, _) = with_last_batch(true);
    disk.rot(&name, offset + 200, 0x10);
    let error = Log::open(disk, options(2), Some(&ID)).expect_err("it was promised");
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    assert_eq!(error.verdict(), Verdict::Halt);
}

#[test]
pub(crate) fn rot_in_the_middle_is_refused_whatever_byte_it_hits() {
    let disk = FaultyDisk::new(8);
    run_script(&disk, &[]).expect("runs");
    let names = [1u64, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].map(|id| format!("wal-{id:016x}.seg"));
    let mut rng = SplitMix::new(3);
    let mut refused = 0;
    let truth = models().last().expect("not empty").clone();
    for name in names.iter().filter(|name| disk.medium(name).is_some()) {
        let bytes = disk.medium(name).expect("just looked");
        let used = bytes.iter().rposition(|b| *b != 0).expect("a header is there");
        for _ in 0..400 {
            let at = rng.below(used as u64 + 1) as usize;
            let copy = disk.fork(1);
            copy.rot(name, at, 1 << rng.below(8));
            match Log::open(copy, options(2), Some(&ID)) {
                Ok((_, found)) => assert_eq!(Model::of(&found), truth, "{name} byte {at}"),
                Err(LogError::Corrupt { .. }) => refused += 1,
                Err(error) => panic!("{name} byte {at}: {error}"),
            }
        }
    }
    assert!(refused > 300, "most bytes matter, only {refused} were refused");
}

#[test]
pub(crate) fn misdirected_and_zeroed_sectors_are_refused_or_harmless() {
    let disk = FaultyDisk::new(8);
    run_script(&disk, &[]).expect("runs");
    let truth = models().last().expect("not empty").clone();
    let mut rng = SplitMix::new(5);
    for name in Log::open(disk.fork(0), options(2), None).map(|_| ()).map(|()| names_of(&disk)).expect("opens") {
        let sectors = disk.medium(&name).map_or(0, |bytes| bytes.len() / SECTOR_BYTES) as u64;
        for _ in 0..200 {
            let copy = disk.fork(1);
            let target = rng.below(sectors) as usize;
            if rng.chance(500) {
                copy.misdirect(&name, rng.below(sectors) as usize, target);
            } else {
                copy.overwrite(&name, target * SECTOR_BYTES, &[0; SECTOR_BYTES]);
            }
            match Log::open(copy, options(2), Some(&ID)) {
                Ok((_, found)) => assert_eq!(Model::of(&found), truth, "{name} sector {target}"),
                Err(LogError::Corrupt { .. } | LogError::LostVote { .. }) => {}
                Err(error) => panic!("{name} sector {target}: {error}"),
            }
        }
    }
}

#[test]
pub(crate) fn any_flipped_byte_of_a_meta_slot_still_gives_the_newest_vote() {
    let (disk, _, _, _) = with_last_batch(true);
    let generation = Log::open(disk.fork(0), options(2), None).expect("opens").0.generation();
    let mut checked = 0;
    for at in (0..2 * BLOCK_BYTES).filter(|at| at % BLOCK_BYTES < 160 || at % 61 == 0 || at % BLOCK_BYTES > 4090) {
        let copy = disk.fork(at as u64);
        copy.rot("meta", at, 0x40);
        let (log, found) = Log::open(copy, options(2), Some(&ID)).expect("the other slot and the log are whole");
        assert_eq!(found.hard, HardState { term: 1, vote: Some(MemberId(1)) }, "byte {at}");
        assert!(log.generation() >= generation, "byte {at}: the generation went back");
        checked += 1;
    }
    assert!(checked > 300);
}

#[test]
pub(crate) fn a_lost_slot_with_a_cut_tail_must_not_vote() {
    let (disk, name, offset, _) = with_last_batch(false);
    disk.rot(&name, offset + 200, 0x10);
    disk.rot("meta", 20, 1);
    let error = Log::open(disk, options(2), Some(&ID)).expect_err("the last vote may be lost");
    assert!(matches!(error, LogError::LostVote { .. }), "{error}");
}

#[test]
pub(crate) fn a_vote_is_durable_in_both_copies_before_it_is_acknowledged() {
    let disk = FaultyDisk::new(4);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    log.append(&[(WriteSeq(1), Record::Append(vec![entry(0, 1, 9)]))]).expect("appends");
    disk.record_ops();
    log.append(&[(WriteSeq(2), hard(7, 3))]).expect("votes");
    drop(log);
    let ops = disk.ops();
    let Some(Op::Write { name, offset_bytes, .. }) = ops.first() else { panic!("no write in {ops:?}") };
    disk.power_loss(Survival::Nothing);
    let vote = HardState { term: 7, vote: Some(MemberId(3)) };
    for slot in 0..2 {
        let copy = disk.fork(slot);
        copy.rot("meta", slot as usize * BLOCK_BYTES + 20, 1);
        let (_, found) = Log::open(copy, options(2), Some(&ID)).expect("the log has it");
        assert_eq!(found.hard, vote);
    }
    // The copy in the log rots: the slot knows that there was one, so the vote is not forgotten.
    let copy = disk.fork(9);
    copy.overwrite(name, *offset_bytes as usize, &[0; BLOCK_BYTES]);
    match Log::open(copy, options(2), Some(&ID)) {
        Ok((_, found)) => assert_eq!(found.hard, vote),
        Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "{error}"),
    }
}

#[test]
pub(crate) fn every_open_raises_the_generation_whatever_slot_is_lost() {
    let disk = FaultyDisk::new(4);
    drop(Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates"));
    let mut highest = 1;
    for round in 2..9 {
        for slot in 0..2 {
            let copy = disk.fork(slot);
            copy.rot("meta", slot as usize * BLOCK_BYTES + 20, 1);
            let (log, _) = Log::open(copy, options(round), Some(&ID)).expect("one slot is enough");
            assert!(log.generation() > highest, "slot {slot} lost after {highest}: {}", log.generation());
        }
        let (mut log, _) = Log::open(disk.clone(), options(round), Some(&ID)).expect("opens");
        assert!(log.generation() > highest, "{} after {highest}", log.generation());
        highest = log.generation();
        // This start is known from one slot alone; it may be the one that is lost.
        for slot in 0..2 {
            let copy = disk.fork(slot);
            copy.rot("meta", slot as usize * BLOCK_BYTES + 20, 1);
            let (again, _) = Log::open(copy, options(round + 100), Some(&ID)).expect("one slot is enough");
            assert!(again.generation() > highest, "slot {slot} lost in {highest}: {}", again.generation());
        }
        log.append(&[(WriteSeq(1), hard(round, 1))]).expect("appends");
        log.seal_tail().expect("seals");
    }
}

#[test]
pub(crate) fn each_record_changes_what_the_log_holds_as_it_says_and_no_more() {
    let run = |term, from, to| Record::Append((from..=to).map(|i| entry(term, i, 900)).collect());
    let histories = [
        // A mark the log does not hold replaces it, also where entries stand behind it.
        vec![run(1, 1, 9), Record::SnapshotMark(mark(5, 3)), run(3, 6, 7)],
        // A mark in the middle keeps exactly what is above it, over several segments.
        vec![run(1, 1, 40), run(1, 41, 80), Record::SnapshotMark(mark(38, 1)), run(1, 81, 82)],
        vec![run(1, 1, 40), run(1, 41, 80), Record::SnapshotMark(mark(40, 1)), run(1, 81, 120), run(1, 121, 160)],
        vec![run(1, 1, 30), Record::TruncateTo(12), run(2, 13, 14), Record::SnapshotMark(mark(12, 1))],
    ];
    for (number, history) in histories.into_iter().enumerate() {
        let disk = FaultyDisk::new(1);
        let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
        let mut model = Model::new();
        // The vote is early: only new segments that repeat it keep it.
        let history = std::iter::once(hard(7, 2)).chain(history);
        for (seq, record) in history.enumerate() {
            model.take(&record);
            log.append(&[(WriteSeq(seq as u64 + 1), record)]).expect("appends");
            while log.segment_count() > 1
                && log.tend().expect("tends")
                && !names_of(&disk).contains(&"reserve".to_owned())
            {}
        }
        drop(log);
        disk.power_loss(Survival::Nothing);
        let (_, found) = Log::open(disk, options(2), Some(&ID)).expect("opens");
        assert!(Model::of(&found) == model, "history {number}: {:?} and {} entries", found.hard, found.entries.len());
    }
}

#[test]
pub(crate) fn a_segment_stays_while_one_entry_in_it_is_above_the_mark() {
    for above in 0..4 {
        let disk = FaultyDisk::new(1);
        let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
        let mut last = 0;
        while log.segment_count() == 1 {
            last += 1;
            log.append(&[(WriteSeq(last), Record::Append(vec![entry(1, last, 3000)]))]).expect("appends");
        }
        // The last entry went into the second segment already.
        let first_segment_ends = last - 1;
        let marked = first_segment_ends - above;
        log.append(&[(WriteSeq(last + 1), Record::SnapshotMark(mark(marked, 1)))]).expect("marks");
        for _ in 0..3 {
            log.tend().expect("tends");
        }
        drop(log);
        let is_there = names_of(&disk).contains(&"wal-0000000000000001.seg".to_owned());
        assert_eq!(is_there, above > 0, "{above} entries of the first segment are above the mark");
        let (_, found) = Log::open(disk, options(2), Some(&ID)).expect("opens");
        assert_eq!(found.entries.first().map(|entry| entry.index), Some(marked + 1));
    }
}

#[test]
pub(crate) fn a_torn_tail_is_gone_for_good() {
    for keep_blocks in 0..2 {
        let (disk, name, offset, len) = with_last_batch(false);
        disk.overwrite(&name, offset, &[0; 64]);
        disk.overwrite(
            &name,
            offset + keep_blocks * BLOCK_BYTES + 600,
            &vec![0x55; len - keep_blocks * BLOCK_BYTES - 600],
        );
        // A batch too large for what is left ends the segment at once, with the torn place behind its last batch.
        let copy = disk.fork(9);
        let (mut log, _) = Log::open(copy.clone(), options(2), Some(&ID)).expect("torn");
        log.append(&[(WriteSeq(1), Record::Append(vec![entry(2, 2, 60_000)]))]).expect("appends");
        drop(log);
        let (_, found) = Log::open(copy, options(3), Some(&ID)).expect("what was torn is no rot later");
        assert_eq!(found.entries.len(), 2);
        let (mut log, found) = Log::open(disk.clone(), options(2), Some(&ID)).expect("torn");
        assert_eq!(found.entries.len(), 1);
        for index in 2..=30 {
            log.append(&[(WriteSeq(index), Record::Append(vec![entry(2, index, 1500)]))]).expect("appends");
            let copy = disk.fork(index);
            let (_, found) = Log::open(copy, options(3), Some(&ID)).expect("what was torn is no rot later");
            assert_eq!(found.entries.len() as u64, index);
        }
        assert!(log.segment_count() > 1, "a segment was finished over the torn place");
    }
}

#[test]
pub(crate) fn slots_are_written_in_turn() {
    let disk = FaultyDisk::new(4);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    for round in 1..8 {
        let before = disk.medium("meta").expect("is there");
        log.append(&[(WriteSeq(round), hard(round, 1))]).expect("votes");
        let after = disk.medium("meta").expect("is there");
        let slot = |bytes: &[u8], at: usize| MetaSlot::decode(&bytes[at * BLOCK_BYTES..]).expect("whole");
        let newest = usize::from(slot(&before, 1).write_no > slot(&before, 0).write_no);
        assert_eq!(slot(&before, newest), slot(&after, newest), "the newest copy of the vote before was overwritten");
    }
}

#[test]
pub(crate) fn a_batch_of_another_history_is_refused() {
    let disk = FaultyDisk::new(4);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    log.append(&[(WriteSeq(1), Record::Append(vec![entry(1, 1, 9)]))]).expect("appends");
    drop(log);
    let history = |seed: u64, size: usize| {
        let copy = disk.fork(seed);
        let (mut log, _) = Log::open(copy.clone(), options(2), Some(&ID)).expect("opens");
        copy.record_ops();
        log.append(&[(WriteSeq(1), Record::Append(vec![entry(1, 2, size)]))]).expect("appends");
        log.append(&[(WriteSeq(2), Record::Append(vec![entry(1, 3, size)]))]).expect("appends");
        log.seal_tail().expect("seals");
        copy
    };
    let (ours, theirs) = (history(1, 10), history(2, 20));
    let Some(Op::Write { name, offset_bytes, .. }) = ours.ops().into_iter().nth(2) else { panic!("{:?}", ours.ops()) };
    let at = offset_bytes as usize;
    let alien = theirs.medium(&name).expect("is there")[at..at + BLOCK_BYTES].to_vec();
    ours.overwrite(&name, at, &alien);
    let error = Log::open(ours, options(3), Some(&ID)).expect_err("it does not follow");
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
}

#[test]
pub(crate) fn both_slots_lost_is_refused() {
    let (disk, _, _, _) = with_last_batch(true);
    disk.rot("meta", 20, 1);
    disk.rot("meta", BLOCK_BYTES + 20, 1);
    let error = Log::open(disk, options(2), None).expect_err("identity and generation are unknown");
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
}

#[test]
pub(crate) fn a_directory_of_another_format_is_refused_by_its_version() {
    let disk = FaultyDisk::new(1);
    drop(Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates"));
    let mut block = disk.medium("meta").expect("is there")[..BLOCK_BYTES].to_vec();
    block[4..6].copy_from_slice(&1u16.to_le_bytes());
    let crc = crc32c::crc32c(&block[..BLOCK_BYTES - 4]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite("meta", 0, &block);
    let error = Log::open(disk, options(2), None).expect_err("its bytes mean something else");
    assert!(matches!(error, LogError::Format { found: 1, wanted: 2, .. }), "{error}");
    assert!(error.to_string().contains("format version 1"), "{error}");
}

#[test]
pub(crate) fn a_directory_remembers_its_starts() {
    let disk = FaultyDisk::new(1);
    drop(Log::create(disk.clone(), options(10), ID, mark(0, 0)).expect("creates"));
    drop(Log::open(disk.clone(), options(20), None).expect("opens"));
    let (log, _) = Log::open(disk, options(30), None).expect("opens");
    let before: Vec<(u64, u64)> = log.lineage().boots().map(|boot| (boot.generation, boot.nonce)).collect();
    let nonce = |seed| options(seed).boot_nonce;
    assert_eq!(before, [(2, nonce(20)), (1, nonce(10))]);
}

#[test]
pub(crate) fn a_foreign_directory_is_refused_and_an_existing_one_not_created_again() {
    let disk = FaultyDisk::new(1);
    drop(Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates"));
    let other = Identity { member_id: 0xB1, ..ID };
    let error = Log::open(disk.clone(), options(2), Some(&other)).expect_err("another member's");
    assert!(matches!(error, LogError::ForeignIdentity { .. }), "{error}");
    let error = Log::create(disk, options(3), ID, mark(0, 0)).expect_err("it is there");
    assert!(matches!(error, LogError::Exists), "{error}");
    let error = Log::open(FaultyDisk::new(2), options(1), None).expect_err("nothing is there");
    assert!(matches!(error, LogError::Missing), "{error}");
}

#[test]
pub(crate) fn a_segment_of_another_member_among_ours_is_refused() {
    let (ours, theirs) = (FaultyDisk::new(1), FaultyDisk::new(2));
    drop(Log::create(ours.clone(), options(1), ID, mark(0, 0)).expect("creates"));
    let other = Identity { member_id: 0xB1, ..ID };
    drop(Log::create(theirs.clone(), options(1), other, mark(0, 0)).expect("creates"));
    let name = "wal-0000000000000001.seg";
    ours.overwrite(name, 0, &theirs.medium(name).expect("is there"));
    let error = Log::open(ours, options(2), Some(&ID)).expect_err("swapped");
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
}

#[test]
pub(crate) fn a_failed_flush_stops_the_log_and_the_restart_trusts_only_the_medium() {
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed);
        let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
        log.append(&[(WriteSeq(1), Record::Append(vec![entry(1, 1, 20)]))]).expect("appends");
        disk.fail_next_sync();
        let batch = [(WriteSeq(2), Record::Append((2..=4).map(|i| entry(1, i, 3000)).collect()))];
        let error = log.append(&batch).expect_err("the flush failed");
        assert_eq!(error.verdict(), Verdict::Halt);
        assert!(matches!(log.append(&batch), Err(LogError::Stopped)), "a second try must not be made");
        drop(log);
        disk.process_crash();
        let (_, before) = Log::open(disk.clone(), options(2), Some(&ID)).expect("opens");
        disk.power_loss(Survival::Nothing);
        let (_, after) = Log::open(disk, options(3), Some(&ID)).expect("opens");
        assert_eq!(before, after, "seed {seed}: the first open believed the page cache");
    }
}

#[test]
pub(crate) fn a_full_disk_refuses_the_batch_and_keeps_all_it_promised() {
    let disk = FaultyDisk::new(1);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    disk.set_capacity(Some(disk.used_bytes() + 100));
    let mut written = 0;
    let error = loop {
        let record = Record::Append(vec![entry(1, written + 1, 3000)]);
        match log.append(&[(WriteSeq(written + 1), record)]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk never got full");
    };
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    assert_eq!(error.verdict(), Verdict::Retry);
    disk.set_capacity(None);
    log.append(&[(WriteSeq(written + 1), Record::Append(vec![entry(1, written + 1, 3000)]))]).expect("there is room");
    drop(log);
    disk.power_loss(Survival::Nothing);
    let (_, recovered) = Log::open(disk, options(2), Some(&ID)).expect("opens");
    assert_eq!(recovered.entries.len() as u64, written + 1);
}

#[test]
pub(crate) fn writes_out_of_order_are_refused_and_change_nothing() {
    let disk = FaultyDisk::new(1);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    log.append(&[(WriteSeq(1), Record::Append(vec![entry(1, 1, 2)]))]).expect("appends");
    for (seq, record) in [
        (1, Record::Append(vec![entry(1, 2, 2)])),
        (2, Record::Append(vec![entry(1, 3, 2)])),
        (2, Record::Append(vec![entry(1, 1, 2)])),
    ] {
        let error = log.append(&[(WriteSeq(seq), record)]).expect_err("out of order");
        assert!(matches!(error, LogError::OutOfOrder { .. }), "{error}");
    }
    log.append(&[(WriteSeq(2), Record::Append(vec![entry(1, 2, 2)]))]).expect("still goes on");
}

#[test]
pub(crate) fn an_engine_beyond_the_log_counts_as_a_mark_and_one_behind_it_is_refused() {
    let disk = FaultyDisk::new(1);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    log.append(&[(WriteSeq(1), hard(2, 1)), (WriteSeq(2), Record::Append(vec![entry(1, 1, 2), entry(2, 2, 2)]))])
        .expect("appends");
    drop(log);
    let (mut log, mut found) = Log::open(disk.clone(), options(2), Some(&ID)).expect("opens");
    let whole = found.clone();
    log.adopt_engine(&mut found, &mark(1, 1)).expect("held by the log");
    assert_eq!(found, whole, "an engine within the log changes nothing");
    log.adopt_engine(&mut found, &mark(9, 4)).expect("beyond the log");
    assert_eq!((found.snapshot.index, found.entries.len(), found.hard.term), (9, 0, 4));
    log.append(&[(WriteSeq(1), Record::Append(vec![entry(4, 10, 2)]))]).expect("goes on behind the engine");
    drop(log);
    disk.power_loss(Survival::Nothing);
    let (mut log, mut again) = Log::open(disk, options(3), Some(&ID)).expect("opens");
    assert_eq!((again.snapshot.index, again.entries.len(), again.hard.term), (9, 1, 4));
    let error = log.adopt_engine(&mut again, &mark(5, 2)).expect_err("the engine lost 6 to 9");
    assert!(matches!(error, LogError::EngineBehind { engine: 5, mark: 9 }), "{error}");
}

#[test]
pub(crate) fn garbage_never_panics_a_decoder() {
    let mut rng = SplitMix::new(11);
    let header = SegmentHeader { identity: ID, segment_id: 1, salt: 2, first_seq: 1, chain: 0 };
    for _ in 0..20_000 {
        let len = rng.below(300) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        if let Some(kind) = bytes.first_mut() {
            *kind = rng.below(6) as u8;
        }
        if len > 4 && rng.chance(700) {
            let honest = (len as u32 - 5).to_le_bytes();
            bytes[1..5].copy_from_slice(&honest);
        }
        let _ = decode_records(Bytes::from(bytes.clone()));
        assert!(BatchHeader::decode(&bytes, &header).is_none());
        assert!(MetaSlot::decode(&bytes).is_none());
        assert!(SegmentHeader::decode(&bytes).is_none());
    }
}

#[test]
pub(crate) fn numbers_no_log_ever_reaches_are_refused_and_overflow_nothing() {
    let header = |segment_id, first_seq| SegmentHeader { identity: ID, segment_id, salt: 2, first_seq, chain: 0 };
    for (segment_id, first_seq) in [(1, 0), (0, 1), (1, u64::MAX), (u64::MAX, 1)] {
        assert_eq!(SegmentHeader::decode(&header(segment_id, first_seq).encode()), None);
        let disk = FaultyDisk::new(1);
        drop(Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates"));
        disk.overwrite("wal-0000000000000001.seg", 0, &header(segment_id, first_seq).encode());
        assert!(Log::open(disk.clone(), options(2), Some(&ID)).is_err());
    }
    for index in [0, u64::MAX] {
        let mut body = bytes::BytesMut::new();
        let entry = Entry { term: 1, index, payload: Payload::Noop };
        encode_record(&Record::Append(vec![entry]), true, &mut body);
        assert!(decode_records(body.freeze()).is_err(), "an entry of index {index}");
    }
}

#[test]
pub(crate) fn a_real_directory_works_and_is_locked() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let path = dir.path().join("data");
    let mut log = Log::create(RealDisk::open_dir(&path).expect("opens"), options(1), ID, mark(0, 0)).expect("creates");
    let error = RealDisk::open_dir(&path).expect_err("locked");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    for batch in script() {
        log.append(&batch).expect("appends");
        while log.tend().expect("tends") {}
    }
    drop(log);
    let (_, recovered) = Log::open(RealDisk::open_dir(&path).expect("opens"), options(2), Some(&ID)).expect("opens");
    assert_eq!(Model::of(&recovered), *models().last().expect("not empty"));
}
