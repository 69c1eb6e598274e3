//! The first corpus: one honest input of each kind.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use quorate_log::{Boot, Lineage};
use quorate_log::format::{MetaSlot, SegmentHeader, encode_record};
use quorate_raft::types::{Config, ConfigAt, Entry, HardState, MemberId, MemberInfo, Payload, Record, SnapMeta};
use quorate_raft::wire::{self, Msg};
use quorate_state::{Command, DeleteRange, KeyRange, Machine, Put, Txn, TxnOp};

use crate::targets::ID;

/// Writes every target's seeds below `dir`.
pub fn write(dir: &Path) {
    let save = |target: &str, seeds: Vec<Vec<u8>>| {
        let dir = dir.join(target);
        std::fs::create_dir_all(&dir).expect("the corpus can be written");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number:02}")), seed).expect("the corpus can be written");
        }
    };
    save("log-records", log_records());
    save("log-blocks", log_blocks());
    let edits =
        vec![vec![0, 0, 20, 0, 1], vec![1, 1, 60, 0, 8, 65, 1, 4, 0, 0], vec![200, 2, 0, 0, 0], vec![130, 3, 0, 1, 7]];
    save("log-directory", edits.clone());
    save("log-repair", edits.clone());
    save("log-directory-resealed", edits);
    save("raft-message", messages());
    save("raft-values", values());
    save("frame", quorate_node::fuzzing::frame_seeds());
    save("frame-stream", quorate_node::fuzzing::frame_seeds());
    save("peers-file", vec![b"00000000\n".to_vec(), b"7 3 33\n9 1 5 halted\n00000000\n".to_vec()]);
    save("command", commands().iter().map(encoded).collect());
    let (chunks, bodies, file) = snapshot();
    save("checkpoint-file", vec![file]);
    save("snapshot-chunks", vec![chunks]);
    save("snapshot-bodies", vec![bodies]);
}

fn config() -> Config {
    let info = |name: &str| MemberInfo { name: name.into(), peer_urls: vec!["http://a:1".into()], client_urls: vec![] };
    Config {
        voters: [MemberId(1), MemberId(2)].into(),
        learners: [MemberId(3)].into(),
        members: [(MemberId(1), info("a")), (MemberId(2), info("b")), (MemberId(3), info("c"))].into(),
        removed: [MemberId(9)].into(),
        ..Config::default()
    }
}

fn meta() -> SnapMeta {
    SnapMeta { index: 7, term: 2, config: config(), config_at: ConfigAt { incarnation: 1, term: 1, index: 3 } }
}

fn entries() -> Vec<Entry> {
    let entry = |index, payload| Entry { term: 2, index, payload };
    vec![
        entry(4, Payload::Noop),
        entry(5, Payload::Data(Bytes::from_static(b"data"))),
        entry(6, Payload::Config(config())),
    ]
}

fn log_records() -> Vec<Vec<u8>> {
    let records = [
        Record::HardState(HardState { term: 3, vote: Some(MemberId(1)) }),
        Record::Append(entries()),
        Record::TruncateTo(5),
        Record::SnapshotMark(meta()),
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut all = BytesMut::new();
    for record in &records {
        let mut one = BytesMut::new();
        encode_record(record, true, &mut one);
        encode_record(record, true, &mut all);
        seeds.push(one.to_vec());
    }
    seeds.push(all.to_vec());
    seeds
}

fn log_blocks() -> Vec<Vec<u8>> {
    let slot = MetaSlot {
        identity: ID,
        generation: 3,
        boot_nonce: 4,
        write_no: 5,
        hard: HardState { term: 6, vote: None },
        durable_seq: 7,
        before: Lineage::of([Boot { generation: 2, nonce: 8 }]),
    };
    let header = SegmentHeader { identity: ID, segment_id: 1, salt: 2, first_seq: 3, chain: 4 };
    vec![slot.encode()[..200].to_vec(), header.encode()[..200].to_vec()]
}

fn messages() -> Vec<Vec<u8>> {
    let all = [
        Msg::PreVote { term: 1, last_term: 1, last_index: 2 },
        Msg::Vote { term: 1, last_term: 1, last_index: 2, forced: true },
        Msg::VoteReply { term: 1, granted: true },
        Msg::Append { term: 2, prev_term: 1, prev_index: 3, entries: entries(), commit: 2 },
        Msg::AppendReject { term: 2, prev_index: 3, hint_index: 2, hint_term: 1 },
        Msg::Heartbeat { term: 2, commit: 3, round: 4 },
        Msg::HeartbeatReply { term: 2, round: 4, received: 5, durable: 5, promise_us: 0, last_index: 6 },
        Msg::ReadIndexReply { term: 2, ctx: 1, index: Some(4) },
        Msg::YouAreRemoved { term: 2, config_term: 1, config_index: 3 },
        Msg::YourLogReverted { term: 2, held: 9 },
    ];
    let encode = |msg: &Msg| {
        let mut out = BytesMut::new();
        wire::encode(msg, &mut out);
        out.to_vec()
    };
    all.iter().map(encode).collect()
}

fn values() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |kind: u8, encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::from(&[kind][..]);
        encode(&mut out);
        seeds.push(out.to_vec());
    };
    for entry in entries() {
        add(0, &|out| wire::encode_entry(&entry, out));
    }
    add(1, &|out| wire::encode_config(&config(), out));
    add(2, &|out| wire::encode_snap_meta(&meta(), out));
    add(3, &|out| wire::encode_hard_state(&HardState { term: 1, vote: Some(MemberId(2)) }, out));
    add(4, &|out| wire::encode_config_at(&ConfigAt { incarnation: 1, term: 2, index: 3 }, out));
    seeds
}

fn commands() -> Vec<Command> {
    let put = Put { key: Bytes::from_static(b"key"), value: Bytes::from_static(b"value"), ..Put::default() };
    let delete = DeleteRange { range: KeyRange::prefix(Bytes::from_static(b"k")), prev_kv: true };
    let txn = Txn {
        success: vec![TxnOp::Put(put.clone())],
        failure: vec![TxnOp::DeleteRange(delete.clone())],
        ..Txn::default()
    };
    vec![
        Command::Put(put),
        Command::DeleteRange(delete),
        Command::Txn(txn),
        Command::Compact { revision: 3 },
        Command::ClusterVersion(quorate_state::ClusterVersion::SPOKEN),
        Command::Alarm { member: 7, is_raised: true },
    ]
}

fn encoded(command: &Command) -> Vec<u8> {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    out.to_vec()
}

/// A small state as chunks and as the bodies of its chunks, each behind its length, and as a file.
fn snapshot() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut machine = Machine::new();
    for (at, command) in commands().iter().enumerate() {
        machine.apply(at as u64 + 1, 1, Some(command));
    }
    let (mut chunks, mut bodies, mut file) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in machine.view().snapshot_chunks(b"meta") {
        for (out, part) in [(&mut chunks, &chunk[..]), (&mut bodies, &chunk[22..])] {
            out.extend_from_slice(&(part.len() as u16).to_le_bytes());
            out.extend_from_slice(part);
        }
        file.extend_from_slice(&chunk);
    }
    (chunks, bodies, file)
}
