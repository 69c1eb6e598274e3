//! Snapshots: what is damaged is refused, whatever the damage; what is whole comes back.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use bytes::Bytes;
use common::commands;
use common::rng::Rng;
use quorate_state::snapshot::{CHUNK_BYTES_MAX, Damage, HEAD_BYTES};
use quorate_state::{Command, KeyRange, Machine, Put, RestoreError, Restorer};

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

/// Some chunks' worth, with values that span chunks, many versions of one key, and deletions.
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

fn chunks(machine: &Machine) -> Vec<Bytes> {
    machine.view().snapshot_chunks(b"meta").collect()
}

#[test]
fn a_large_state_comes_back_in_chunks_of_at_most_a_mebibyte() {
    let machine = large();
    let chunks = chunks(&machine);
    assert!(chunks.len() > 8 && chunks.iter().all(|c| c.len() <= CHUNK_BYTES_MAX), "{} chunks", chunks.len());
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
        restorer.push(&chunk).unwrap();
    }
    assert_eq!(restorer.finish().unwrap().machine.state_hash(), machine.state_hash());
}
