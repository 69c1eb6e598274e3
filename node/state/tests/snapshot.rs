//! Snapshots: what is damaged is refused, whatever the damage; what is whole comes back.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::commands;
use common::rng::Rng;
use quorate_state::snapshot::{self, CHUNK_BYTES, CHUNK_BYTES_MAX, Damage, HEAD_BYTES};
use quorate_state::{Command, KeyRange, KeyValue, Machine, Put, RestoreError, Restorer, RunEnd, SnapshotChunks};

fn put(machine: &mut Machine, key: String, value: Vec<u8>) {
    let command = Command::Put(Put { key: key.into(), value: value.into(), ..Put::default() });
    let (index, term) = (machine.applied_index() + 1, machine.view().applied_term().max(1));
    machine.apply(index, term, Some(&command)).outcome.unwrap();
}

fn small() -> Machine {
    let mut machine = Machine::new();
    let mut rng = Rng::new(3);
    for index in 1..=60 {
        let command = commands::command(&mut rng, machine.revision());
        drop(machine.apply(index, 1, Some(&command)));
    }
    machine
}

/// Some chunks' worth, with a value larger than a chunk, many versions of one key, and deletions.
fn large() -> Machine {
    let mut machine = Machine::new();
    for n in 0..60_u32 {
        put(&mut machine, format!("big/{n:03}"), vec![n.to_le_bytes()[0]; 100_000]);
        put(&mut machine, "hot".into(), vec![7; 10_000]);
    }
    put(&mut machine, "huge".into(), vec![9; 3 << 20]);
    let range = KeyRange::prefix("big/01");
    let delete = Command::DeleteRange(quorate_state::DeleteRange { range, prev_kv: false });
    machine.apply(machine.applied_index() + 1, 2, Some(&delete)).outcome.unwrap();
    machine
}

fn count(chunk: &Bytes) -> usize {
    snapshot::decode(chunk, 0).unwrap().record_count()
}

fn chunks(machine: &Machine) -> Vec<Bytes> {
    machine.view().snapshot_chunks(b"meta").collect()
}

#[test]
fn a_large_state_comes_back_in_chunks_of_about_a_mebibyte() {
    let machine = large();
    let chunks = chunks(&machine);
    let most = CHUNK_BYTES + (3 << 20) + 100;
    assert!(chunks.len() > 6 && most < CHUNK_BYTES_MAX && chunks.iter().all(|c| c.len() <= most), "{}", chunks.len());
    let small: Vec<_> = machine.view().snapshot_chunks(b"meta").of_bytes(1).collect();
    assert_eq!(small.len(), 1 + machine.view().snapshot_chunks(b"").map(|c| count(&c)).sum::<usize>() + 1);
    assert_eq!(Machine::restore(small).unwrap().machine.state_hash(), machine.state_hash());
    let restored = Machine::restore(chunks).unwrap().machine;
    assert_eq!(restored.state_hash(), machine.state_hash());
    assert_eq!(restored.view().hash_kv(0), machine.view().hash_kv(0));
    assert_eq!(restored.view().get(b"huge").unwrap().value.len(), 3 << 20);
    assert_eq!(restored.view().applied_term(), 2);
    assert_eq!(restored.view().get_at(b"big/011", 60).unwrap(), machine.view().get_at(b"big/011", 60).unwrap());
}

#[test]
fn a_snapshot_is_of_its_moment_and_writes_go_on_beside_it() {
    let mut machine = large();
    let hash = machine.state_hash();
    let mut stream = machine.view().snapshot_chunks(b"");
    let mut chunks = vec![stream.next().unwrap()];
    for n in 0..100 {
        put(&mut machine, format!("big/{n:03}"), vec![1; 10]);
    }
    chunks.extend(stream);
    assert_eq!(Machine::restore(chunks).unwrap().machine.state_hash(), hash);
}

#[test]
fn an_empty_store_has_a_snapshot() {
    let chunks: Vec<_> = Machine::new().view().snapshot_chunks(b"x").collect();
    assert_eq!(chunks.len(), 1);
    let restored = Machine::restore(chunks).unwrap();
    assert_eq!((restored.machine.revision(), restored.meta), (1, Bytes::from_static(b"x")));
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused() {
    let chunks = chunks(&small());
    assert_eq!(chunks.len(), 1);
    for at in 0..chunks[0].len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = chunks[0].to_vec();
            bytes[at] ^= flip;
            assert!(Machine::restore([bytes.into()]).is_err(), "byte {at} flipped by {flip:#x}");
        }
        assert!(Machine::restore([chunks[0].slice(..at)]).is_err(), "cut to {at} bytes");
    }
}

#[test]
fn a_flip_in_a_later_chunk_names_it() {
    let mut chunks = chunks(&large());
    let mut bytes = chunks[3].to_vec();
    bytes[HEAD_BYTES + 1_000] ^= 1;
    chunks[3] = bytes.into();
    assert_eq!(Machine::restore(chunks).unwrap_err(), RestoreError::Chunk { sequence: 3, found: Damage::Checksum });
}

#[test]
fn missing_doubled_swapped_and_foreign_chunks_are_refused() {
    let machine = large();
    let whole = chunks(&machine);
    let place = |sequence| RestoreError::Chunk { sequence, found: Damage::Place };
    let refused = |chunks: Vec<Bytes>| Machine::restore(chunks).unwrap_err();

    assert_eq!(refused([&whole[..1], &whole[2..]].concat()), place(1));
    assert_eq!(refused([&whole[..2], &whole[1..]].concat()), place(2));
    let mut swapped = whole.clone();
    swapped.swap(2, 3);
    assert_eq!(refused(swapped), place(2));
    let last = u32::try_from(whole.len()).unwrap();
    assert_eq!(refused(whole[..whole.len() - 1].to_vec()), RestoreError::Truncated { chunks: last - 1 });
    assert_eq!(refused(Vec::new()), RestoreError::Truncated { chunks: 0 });
    let after = RestoreError::Chunk { sequence: last, found: Damage::AfterLast };
    assert_eq!(refused([&whole[..], &whole[..1]].concat()), after);

    // The same place in the snapshot of another moment: right sequence, right checksum, another predecessor.
    let other: Vec<_> = machine.view().snapshot_chunks(b"mete").collect();
    let mut mixed = whole.clone();
    mixed[1] = other[1].clone();
    assert_eq!(refused(mixed), place(1));
}

#[test]
fn chunks_may_be_fed_one_by_one() {
    let machine = large();
    let mut restorer = Restorer::default();
    for chunk in machine.view().snapshot_chunks(b"m") {
        restorer.push(snapshot::decode(&chunk, 0).unwrap()).unwrap();
    }
    assert_eq!(restorer.finish().unwrap().machine.state_hash(), machine.state_hash());
}

/// A chain of runs, as checkpoints make it.
struct Chain {
    whole: Vec<Bytes>,
    changes: Vec<Vec<Bytes>>,
    end: RunEnd,
}

impl Chain {
    fn begin(machine: &Machine) -> Chain {
        let whole = machine.view().snapshot_chunks(b"whole").of_bytes(200);
        let mut chain = Chain { whole: Vec::new(), changes: Vec::new(), end: RunEnd { index: 0, crc: 0 } };
        chain.whole = chain.run(machine, whole);
        chain
    }

    fn run(&mut self, machine: &Machine, mut chunks: SnapshotChunks) -> Vec<Bytes> {
        let run = chunks.by_ref().collect();
        self.end = RunEnd { index: machine.applied_index(), crc: chunks.place().crc };
        run
    }

    fn extend(&mut self, machine: &Machine, changes: Vec<Arc<KeyValue>>) {
        let chunks = machine.view().change_chunks(changes, self.end, b"changes").of_bytes(200);
        let run = self.run(machine, chunks);
        self.changes.push(run);
    }

    fn restore(&self) -> Result<Machine, RestoreError> {
        let mut restorer = Restorer::default();
        for chunk in self.changes.iter().flatten().chain(&self.whole) {
            restorer.push(snapshot::decode(chunk, 0)?)?;
        }
        Ok(restorer.finish()?.machine)
    }
}

/// Random commands, compactions among them, with a run of changes after every few.
fn chain_and_machine(seed: u64) -> (Chain, Machine) {
    let mut rng = Rng::new(seed);
    let (mut machine, mut changes) = (Machine::new(), Vec::new());
    let mut chain = Chain::begin(&machine);
    for index in 1..=200 {
        let command = if rng.one_in(8) {
            Command::Compact { revision: machine.revision() - i64::try_from(rng.below(3)).unwrap() }
        } else {
            commands::command(&mut rng, machine.revision())
        };
        let applied = machine.apply(index, 1, Some(&command));
        changes.extend(applied.events.iter().map(|event| event.kv.clone()));
        if rng.one_in(60) {
            (chain, changes) = (Chain::begin(&machine), Vec::new());
        } else if rng.one_in(6) {
            chain.extend(&machine, std::mem::take(&mut changes));
            let mut restored = chain.restore().unwrap();
            assert_eq!(restored.state_hash(), machine.state_hash(), "seed {seed} at {index}");
            assert_eq!(restored.view().hash_kv(0), machine.view().hash_kv(0));
            assert!(restored.view().snapshot_chunks(b"").eq(machine.view().snapshot_chunks(b"")));
            if rng.one_in(2) {
                // What was restored goes on like the one that was not.
                std::mem::swap(&mut machine, &mut restored);
            }
        }
    }
    chain.extend(&machine, changes);
    (chain, machine)
}

#[test]
fn a_whole_run_and_the_changes_since_make_the_state() {
    for seed in 0..150 {
        let (chain, machine) = chain_and_machine(seed);
        assert_eq!(chain.restore().unwrap().state_hash(), machine.state_hash());
    }
}

#[test]
fn a_chain_with_a_run_missing_swapped_or_foreign_is_refused() {
    let is_long = |(chain, _): &(Chain, Machine)| chain.changes.iter().any(|run| run.len() > 1);
    let (mut chain, mut machine) = (1..).map(chain_and_machine).find(is_long).unwrap();
    let mut changes = Vec::new();
    for n in 0..3_u8 {
        let command = Command::Put(Put { key: vec![n].into(), value: vec![n].into(), ..Put::default() });
        let applied = machine.apply(machine.applied_index() + 1, 1, Some(&command));
        changes.extend(applied.events.iter().map(|event| event.kv.clone()));
        chain.extend(&machine, std::mem::take(&mut changes));
    }
    assert!(chain.restore().is_ok());
    let whole = chain.changes.clone();
    for at in 0..whole.len() - 1 {
        chain.changes = [&whole[..at], &whole[at + 1..]].concat();
        assert_eq!(chain.restore().unwrap_err(), RestoreError::Chain, "without {at}");
    }
    chain.changes = whole.clone();
    chain.changes.swap(0, 1);
    assert_eq!(chain.restore().unwrap_err(), RestoreError::Chain);
    chain.changes = whole.clone();
    let long = whole.iter().position(|run| run.len() > 1).unwrap();
    chain.changes[long].pop();
    let error = chain.restore().unwrap_err();
    assert!(matches!(error, RestoreError::Chunk { found: Damage::Place, .. }), "{error}");
    // Without the last run it is an older state, and a right one.
    chain.changes = whole[..whole.len() - 1].to_vec();
    assert_eq!(chain.restore().unwrap().applied_index(), machine.applied_index() - 1);
}

#[test]
fn a_store_that_compacts_exactly_at_its_last_revision_gives_back_what_was_deleted_there() {
    let mut machine = Machine::new();
    for n in 0..1_000 {
        put(&mut machine, format!("k{n}"), vec![1; 100]);
    }
    let full = machine.size_bytes();
    let range = KeyRange::all();
    let delete = Command::DeleteRange(quorate_state::DeleteRange { range, prev_kv: false });
    machine.apply(machine.applied_index() + 1, 1, Some(&delete)).outcome.unwrap();
    let compact = Command::Compact { revision: machine.revision() };
    machine.apply(machine.applied_index() + 1, 1, Some(&compact)).outcome.unwrap();
    while machine.view().compaction_pending() {
        machine.apply(machine.applied_index() + 1, 1, None);
    }
    // The tombstones stay for a watch that starts at this very revision.
    assert_eq!(machine.view().events(&KeyRange::all(), machine.revision(), 0).unwrap().events.len(), 1_000);
    assert!(machine.size_bytes() < full, "{} of {full}", machine.size_bytes());
    let chunks = chunks(&machine);
    assert_eq!(Machine::restore(chunks).unwrap().machine.state_hash(), machine.state_hash());
    put(&mut machine, "last".into(), vec![1]);
    let compact = Command::Compact { revision: machine.revision() };
    machine.apply(machine.applied_index() + 1, 1, Some(&compact)).outcome.unwrap();
    while machine.view().compaction_pending() {
        machine.apply(machine.applied_index() + 1, 1, None);
    }
    assert_eq!(machine.view().change_count(), 1);
    assert!(machine.size_bytes() < 1_000, "{}", machine.size_bytes());
}
