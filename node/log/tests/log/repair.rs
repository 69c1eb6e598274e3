//! Rot is repaired to exactly what was there, or refused with file and reason. Never a wrong byte, never a shorter log.

use std::collections::{BTreeMap, BTreeSet};

use quorate_log::faulty::{Op, SplitMix, Survival};
use quorate_log::format::BLOCK_BYTES;
use quorate_log::{Disk, FaultyDisk, Log, LogError, Progress, Repair, Scrub, Scrubbed};
use quorate_raft::types::{Entry, Index, Record, Recovered, SnapMeta, WriteSeq};

use crate::{ID, Model, entry, hard, mark, models, names_of, options, run_script};

/// What another member would answer.
type Peer = BTreeMap<Index, Vec<Entry>>;

/// Opens; on damage repairs with what the peer gives and opens again. Says how many batches and headers were mended.
fn open_or_repair(disk: &FaultyDisk, hints: &[SnapMeta], peer: &Peer) -> Result<(Recovered, usize), LogError> {
    let error = match Log::open(disk.clone(), options(50), Some(&ID)) {
        Ok((_, found)) => return Ok((found, 0)),
        Err(error) => error,
    };
    let LogError::Corrupt { .. } = error else { return Err(error) };
    let mut repair = Repair::new(options(50), hints.to_vec());
    let mut asked = BTreeSet::new();
    loop {
        match repair.look(&mut disk.clone(), Some(&ID))? {
            Progress::Whole => return Err(error),
            Progress::Wants(wanted) => {
                for range in wanted {
                    if !asked.insert(range) {
                        return Err(error);
                    }
                    repair.offer((range.first..=range.last).filter_map(|i| peer.get(&i)).flatten().cloned().collect());
                }
            }
            Progress::Ready(mended) => {
                repair.write(&mut disk.clone())?;
                let (_, found) = Log::open(disk.clone(), options(51), Some(&ID))?;
                return Ok((found, mended.len()));
            }
        }
    }
}

/// Every entry that was ever appended by the script, also the ones truncated later: several per index.
fn peer_of_script() -> Peer {
    let mut peer = Peer::new();
    for batch in crate::script() {
        for (_, record) in batch {
            if let Record::Append(entries) = record {
                for entry in entries {
                    peer.entry(entry.index).or_default().push(entry);
                }
            }
        }
    }
    peer
}

/// A log over several segments with all kinds of records, nothing dropped, its tail sealed.
fn long_log() -> (FaultyDisk, Model, Peer) {
    let disk = FaultyDisk::new(3);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    let mut model = Model::new();
    let (mut peer, mut seq) = (Peer::new(), 0);
    let mut batch = |log: &mut Log<FaultyDisk>, records: Vec<Record>| {
        let numbered: Vec<(WriteSeq, Record)> = records
            .into_iter()
            .map(|record| {
                seq += 1;
                (WriteSeq(seq), record)
            })
            .collect();
        for (_, record) in &numbered {
            model.take(record);
            if let Record::Append(entries) = record {
                entries.iter().for_each(|entry| peer.entry(entry.index).or_default().push(entry.clone()));
            }
        }
        log.append(&numbered).expect("appends");
    };
    let run = |term, from, to, size| Record::Append((from..=to).map(|i| entry(term, i, size)).collect());
    batch(&mut log, vec![hard(1, 2)]);
    batch(&mut log, vec![run(1, 1, 3, 10)]);
    batch(&mut log, vec![run(1, 4, 5, 700), run(1, 6, 9, 40), run(1, 10, 10, 9000)]);
    batch(&mut log, vec![hard(2, 3), run(2, 11, 12, 3000)]);
    batch(&mut log, vec![run(2, 13, 16, 20), hard(3, 0)]);
    batch(&mut log, vec![Record::TruncateTo(14), run(3, 15, 18, 1500)]);
    batch(&mut log, vec![run(3, 19, 26, 2500)]);
    batch(&mut log, vec![hard(4, 1)]);
    batch(&mut log, vec![run(4, 27, 30, 4000)]);
    batch(&mut log, vec![hard(5, 0), run(5, 31, 33, 90)]);
    batch(&mut log, vec![run(5, 34, 45, 1000)]);
    batch(&mut log, vec![Record::TruncateTo(43), hard(6, 2), run(6, 44, 44, 5)]);
    batch(&mut log, vec![run(6, 45, 60, 900)]);
    batch(&mut log, vec![run(6, 61, 61, 12)]);
    log.seal_tail().expect("seals");
    log.append(&[(WriteSeq(1000), run(6, 62, 62, 12))]).expect("appends");
    model.take(&run(6, 62, 62, 12));
    peer.insert(62, vec![entry(6, 62, 12)]);
    log.seal_tail().expect("seals");
    drop(log);
    (disk, model, peer)
}

fn segments_of(disk: &FaultyDisk) -> Vec<String> {
    names_of(disk).into_iter().filter(|name| name.ends_with(".seg")).collect()
}

#[derive(Default, Debug)]
struct Tally {
    harmless: usize,
    repaired: usize,
    refused: usize,
}

impl Tally {
    /// Judges one damaged copy: right, or refused with a reason.
    fn judge(&mut self, original: &FaultyDisk, damaged: &FaultyDisk, model: &Model, peer: &Peer, what: &str) {
        match open_or_repair(damaged, &[mark(0, 0)], peer) {
            Ok((found, mended)) => {
                assert!(Model::of(&found) == *model, "{what}: {}", difference(&Model::of(&found), model));
                if mended == 0 {
                    self.harmless += 1;
                    return;
                }
                self.repaired += 1;
                for name in segments_of(original) {
                    let (mut was, is) =
                        (original.medium(&name).expect("is there"), damaged.medium(&name).expect("is there"));
                    if was[..BLOCK_BYTES] != is[..BLOCK_BYTES] {
                        // A salt that nobody knows any more is replaced by one that gives the same checksums.
                        was[40..48].copy_from_slice(&is[40..48]);
                        was[BLOCK_BYTES - 4..BLOCK_BYTES].copy_from_slice(&is[BLOCK_BYTES - 4..BLOCK_BYTES]);
                    }
                    let first = was.iter().zip(&is).position(|(a, b)| a != b);
                    assert!(first.is_none_or(|at| is_padding(&was, at)), "{what}: {name} differs at {first:?}");
                }
            }
            Err(LogError::Corrupt { file, what: reason, .. }) => {
                assert!(!file.is_empty() && !reason.is_empty(), "{what}");
                self.refused += 1;
            }
            Err(LogError::LostVote { .. }) => self.refused += 1,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

/// Where two logs differ, in few words.
fn difference(found: &Model, wanted: &Model) -> String {
    let first = found.entries.iter().zip(&wanted.entries).find(|(a, b)| a != b).map(|(a, b)| (a.term, a.index, b.term));
    format!(
        "{:?} {:?}; marks {} {}; {} and {} entries, first difference {first:?}",
        found.hard,
        wanted.hard,
        found.mark.index,
        wanted.mark.index,
        found.entries.len(),
        wanted.entries.len()
    )
}

/// Bytes between a body and the next block belong to nobody.
fn is_padding(was: &[u8], at: usize) -> bool {
    let end = (at + 1).next_multiple_of(BLOCK_BYTES).min(was.len());
    was[at..end].iter().all(|byte| *byte == 0)
}

#[test]
pub(crate) fn every_flipped_byte_is_harmless_repaired_exactly_or_refused() {
    let (disk, model, peer) = long_log();
    let mut tally = Tally::default();
    let mut rng = SplitMix::new(7);
    for name in names_of(&disk) {
        let bytes = disk.medium(&name).expect("is there");
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for (at, byte) in bytes[..used].iter().enumerate() {
            // Runs of padding matter little: a sample of them is enough.
            if *byte == 0 && !rng.chance(60) {
                continue;
            }
            if !rng.chance(if at % BLOCK_BYTES > 180 { 60 } else { 500 }) {
                continue;
            }
            let copy = disk.fork(at as u64);
            copy.rot(&name, at, 1 << rng.below(8));
            tally.judge(&disk, &copy, &model, &peer, &format!("{name} byte {at}"));
        }
    }
    println!("single flips: {tally:?}");
    assert!(tally.repaired > 20 * tally.refused, "{tally:?}");
}

#[test]
pub(crate) fn lost_sectors_and_blocks_are_repaired_exactly_or_refused() {
    let (disk, model, peer) = long_log();
    let mut tally = Tally::default();
    for name in segments_of(&disk) {
        let bytes = disk.medium(&name).expect("is there");
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for (len, step) in [(512, 512), (4096, 4096), (8192, 4096)] {
            for at in (0..used).step_by(step) {
                let copy = disk.fork(at as u64);
                copy.overwrite(&name, at, &vec![0; len.min(bytes.len() - at)]);
                tally.judge(&disk, &copy, &model, &peer, &format!("{name} {len} bytes at {at}"));
            }
        }
    }
    println!("lost sectors and blocks: {tally:?}");
    assert!(tally.repaired > 3 * tally.refused, "{tally:?}");
}

#[test]
pub(crate) fn random_damage_in_several_places_is_repaired_exactly_or_refused() {
    let (disk, model, peer) = long_log();
    let (mut tally, mut rng) = (Tally::default(), SplitMix::new(11));
    let names = names_of(&disk);
    for round in 0..600 {
        let copy = disk.fork(round);
        for _ in 0..=rng.below(4) {
            let name = &names[rng.below(names.len() as u64) as usize];
            let len = disk.medium(name).expect("is there").len() as u64;
            let at = if rng.chance(500) { rng.below(len) } else { rng.below(len / 4096) * 4096 + rng.below(400) };
            match rng.below(3) {
                0 => copy.rot(name, at as usize, 1 << rng.below(8)),
                1 => copy.overwrite(name, at as usize / 512 * 512, &[0; 512]),
                _ => copy.misdirect(name, rng.below(len / 512) as usize, at as usize / 512),
            }
        }
        tally.judge(&disk, &copy, &model, &peer, &format!("round {round}"));
    }
    println!("random damage: {tally:?}");
    assert!(tally.repaired > 100, "{tally:?}");
}

#[test]
pub(crate) fn without_a_peer_or_with_a_liar_nothing_is_made_up() {
    let (disk, model, peer) = long_log();
    let liar: Peer = peer
        .iter()
        .map(|(index, entries)| (*index, entries.iter().map(|e| entry(e.term, *index, 33)).collect()))
        .collect();
    let name = &segments_of(&disk)[0];
    let used = disk.medium(name).expect("is there").iter().rposition(|byte| *byte != 0).expect("not empty");
    let (mut refused, mut local) = (0, 0);
    for at in (0..used).step_by(97) {
        for peer in [&Peer::new(), &liar] {
            let copy = disk.fork(1);
            copy.overwrite(name, at / 512 * 512, &[0; 512]);
            let before: Vec<_> = names_of(&copy).iter().map(|name| (name.clone(), copy.medium(name))).collect();
            match open_or_repair(&copy, &[], peer) {
                Ok((found, _)) => {
                    assert!(Model::of(&found) == model, "byte {at}");
                    local += 1;
                }
                Err(LogError::Corrupt { .. }) => {
                    let after: Vec<_> = names_of(&copy).iter().map(|name| (name.clone(), copy.medium(name))).collect();
                    assert!(before == after, "a refused log was changed");
                    refused += 1;
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
    }
    assert!(refused > 20 && local > 0, "{refused} refused, {local} local");
}

#[test]
pub(crate) fn a_crash_at_any_step_of_a_repair_leaves_it_repeatable() {
    let (disk, model, peer) = long_log();
    let damaged = disk.fork(1);
    let names = segments_of(&damaged);
    damaged.overwrite(&names[0], 2 * BLOCK_BYTES, &[0; 512]);
    damaged.overwrite(&names[1], 3 * BLOCK_BYTES + 512, &[0; 512]);
    let recorded = damaged.fork(2);
    recorded.record_ops();
    let (_, mended) = open_or_repair(&recorded, &[mark(0, 0)], &peer).expect("repairs");
    assert!(mended >= 2);
    assert!(names_of(&recorded).iter().filter(|name| name.ends_with(".damaged")).count() == 2);
    let ops = recorded.ops();
    let (mut covered, mut recoveries) = (BTreeSet::new(), 0);
    for at in 1..=ops.len() as u64 {
        for way in 0..5 {
            let copy = damaged.fork(at * 10 + way);
            copy.crash_at(at);
            // The crash may hit the very last step, whose error nobody sees.
            let _ = open_or_repair(&copy, &[mark(0, 0)], &peer);
            match way {
                0 => copy.process_crash(),
                1 => copy.power_loss(Survival::Nothing),
                2 => copy.power_loss(Survival::Everything),
                _ => copy.power_loss(Survival::Subset),
            }
            let (found, _) = open_or_repair(&copy, &[mark(0, 0)], &peer)
                .unwrap_or_else(|error| panic!("crash {at} ({:?}) way {way}: {error}", ops[at as usize - 1]));
            assert!(Model::of(&found) == model, "crash {at} ({:?}) way {way}", ops[at as usize - 1]);
            covered.insert(at);
            recoveries += 1;
        }
    }
    println!("crash points of a repair: {}/{} covered, {recoveries} recoveries", covered.len(), ops.len());
    assert_eq!(covered.len(), ops.len());
    assert!(ops.iter().any(|op| matches!(op, Op::Rename { to, .. } if to == &names[0])));
}

#[test]
pub(crate) fn the_script_with_marks_is_repaired_too() {
    let disk = FaultyDisk::new(8);
    run_script(&disk, &[]).expect("runs");
    let truth = models().last().expect("not empty").clone();
    let (peer, mut tally) = (peer_of_script(), Tally::default());
    let hints = |disk: &FaultyDisk| {
        let mut tally_hints = vec![mark(0, 0)];
        tally_hints.extend(models().into_iter().map(|model| model.mark));
        let _ = disk;
        tally_hints
    };
    for name in segments_of(&disk) {
        let bytes = disk.medium(&name).expect("is there");
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for at in (0..used).step_by(41) {
            let copy = disk.fork(at as u64);
            copy.rot(&name, at, 0x20);
            match open_or_repair(&copy, &hints(&disk), &peer) {
                Ok((found, mended)) => {
                    assert!(Model::of(&found) == truth, "{name} byte {at}");
                    if mended > 0 { tally.repaired += 1 } else { tally.harmless += 1 }
                }
                Err(LogError::Corrupt { .. } | LogError::LostVote { .. }) => tally.refused += 1,
                Err(error) => panic!("{name} byte {at}: {error}"),
            }
        }
    }
    println!("script: {tally:?}");
    assert!(tally.repaired > tally.refused, "{tally:?}");
}

/// A log whose first segments are mostly behind the mark, with a vote in each part.
fn compacted_log() -> (FaultyDisk, Model) {
    let disk = FaultyDisk::new(3);
    let mut log = Log::create(disk.clone(), options(1), ID, mark(0, 0)).expect("creates");
    let mut model = Model::new();
    let run = |term, from, to, size| Record::Append((from..=to).map(|i| entry(term, i, size)).collect());
    let records = [
        hard(1, 2),
        run(1, 1, 5, 900),
        run(1, 6, 9, 300),
        Record::TruncateTo(7),
        hard(2, 1),
        run(2, 8, 12, 50),
        run(2, 13, 40, 900),
        Record::SnapshotMark(mark(14, 2)),
        run(2, 41, 44, 200),
    ];
    for (seq, record) in records.into_iter().enumerate() {
        model.take(&record);
        log.append(&[(WriteSeq(seq as u64 + 1), record)]).expect("appends");
    }
    log.seal_tail().expect("seals");
    (disk, model)
}

#[test]
pub(crate) fn what_is_behind_the_mark_is_not_needed_from_anybody() {
    let (disk, model) = compacted_log();
    assert!(segments_of(&disk).len() > 1);
    let (mut renewed, mut refused) = (0, 0);
    for name in segments_of(&disk) {
        let used = disk.medium(&name).expect("is there").iter().rposition(|byte| *byte != 0).expect("not empty");
        for at in (0..=used).step_by(512) {
            let copy = disk.fork(at as u64);
            copy.overwrite(&name, at, &[0; 512]);
            match open_or_repair(&copy, &[mark(0, 0)], &Peer::new()) {
                Ok((found, mended)) => {
                    assert!(Model::of(&found) == model, "{name} {at}: {}", difference(&Model::of(&found), &model));
                    renewed += usize::from(mended > 0);
                    let (_, again) = Log::open(copy, options(60), Some(&ID)).expect("it stays whole");
                    assert!(Model::of(&again) == model);
                }
                Err(LogError::Corrupt { .. }) => refused += 1,
                Err(error) => panic!("{name} {at}: {error}"),
            }
        }
    }
    println!("behind the mark: {renewed} repaired without others, {refused} refused");
    assert!(renewed > 12, "{renewed} repaired, {refused} refused");
}

#[test]
pub(crate) fn a_crash_at_any_step_of_a_rewrite_leaves_it_repeatable() {
    let (disk, model) = compacted_log();
    let damaged = disk.fork(1);
    let name = &segments_of(&damaged)[0];
    damaged.overwrite(name, 3 * BLOCK_BYTES, &[0; 512]);
    let recorded = damaged.fork(2);
    recorded.record_ops();
    open_or_repair(&recorded, &[mark(0, 0)], &Peer::new()).expect("repairs");
    let ops = recorded.ops();
    assert!(ops.iter().any(|op| matches!(op, Op::Remove { name: removed } if removed == name)), "it is written anew");
    let mut recoveries = 0;
    for at in 1..=ops.len() as u64 {
        for way in 0..6 {
            let copy = damaged.fork(at * 10 + way);
            copy.crash_at(at);
            // The crash may hit the very last step, whose error nobody sees.
            let _ = open_or_repair(&copy, &[mark(0, 0)], &Peer::new());
            match way {
                0 => copy.process_crash(),
                1 => copy.power_loss(Survival::Nothing),
                2 => copy.power_loss(Survival::Everything),
                _ => copy.power_loss(Survival::Subset),
            }
            let (found, _) = open_or_repair(&copy, &[mark(0, 0)], &Peer::new())
                .unwrap_or_else(|error| panic!("crash {at} ({:?}) way {way}: {error}", ops[at as usize - 1]));
            assert!(Model::of(&found) == model, "crash {at} ({:?}) way {way}", ops[at as usize - 1]);
            recoveries += 1;
        }
    }
    println!("crash points of a rewrite: {0}/{0} covered, {recoveries} recoveries", ops.len());
}

/// Reads every finished segment; gives the files found damaged.
fn scrub(disk: &FaultyDisk) -> Vec<String> {
    let mut scrub = Scrub::new(options(9), ID);
    let mut damaged = Vec::new();
    for _ in 0..100_000 {
        match scrub.step(&mut disk.clone()) {
            Ok(Scrubbed::Bytes(_)) => {}
            Ok(Scrubbed::Pass { .. }) => return damaged,
            Err(LogError::Corrupt { file, .. }) => damaged.push(file),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the scrub never ends");
}

#[test]
pub(crate) fn a_scrub_finds_rot_in_finished_segments_and_mends_it_while_the_log_is_in_use() {
    let (disk, model, peer) = long_log();
    let (log, _) = Log::open(disk.clone(), options(9), Some(&ID)).expect("opens");
    assert_eq!(scrub(&disk), Vec::<String>::new());
    let names = segments_of(&disk);
    let mut rng = SplitMix::new(2);
    let mut found = 0;
    for name in &names[..names.len() - 1] {
        for _ in 0..40 {
            let whole = disk.medium(name).expect("is there");
            let used = whole.iter().rposition(|byte| *byte != 0).expect("not empty") as u64;
            let at = rng.below(used) as usize;
            disk.rot(name, at, 1 << rng.below(8));
            let damaged = scrub(&disk);
            if damaged.is_empty() {
                assert!(is_padding(&whole, at), "{name} byte {at} was not seen");
                disk.overwrite(name, 0, &whole);
                continue;
            }
            assert_eq!(&damaged, std::slice::from_ref(name));
            found += 1;
            let mut repair = Repair::of_finished_segments(options(9), vec![mark(0, 0)]);
            let mut progress = repair.look(&mut disk.clone(), Some(&ID));
            if let Ok(Progress::Wants(wanted)) = &progress {
                for range in wanted {
                    repair.offer((range.first..=range.last).flat_map(|i| peer[&i].clone()).collect());
                }
                progress = repair.look(&mut disk.clone(), Some(&ID));
            }
            match progress {
                Ok(Progress::Ready(_)) => repair.write(&mut disk.clone()).expect("writes"),
                Ok(other) => panic!("{name} byte {at}: {other:?}"),
                Err(_) => disk.overwrite(name, 0, &whole),
            }
            assert_eq!(scrub(&disk), Vec::<String>::new(), "{name} byte {at}");
        }
    }
    assert!(found > 40, "{found}");
    drop(log);
    let mut disk = disk;
    assert!(disk.list().is_ok());
    let (_, found) = Log::open(disk, options(10), Some(&ID)).expect("opens");
    assert!(Model::of(&found) == model);
}
