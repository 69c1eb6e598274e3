//! What is fuzzed and what must hold. Where a checksum would turn every mutation away, the target puts it right first, so
//! that the decoder behind it is reached.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_log::format::{BLOCK_BYTES, BatchHeader, MetaSlot, SegmentHeader, decode_records};
use quorate_log::{Identity, Log, LogError, Options, Progress, Repair, Scrub, Scrubbed};
use quorate_node::fuzzing as node;
use quorate_raft::types::{
    Config, Entry, HardState, MemberId, MemberInfo, Payload, Record, Recovered, SnapMeta, WriteSeq,
};
use quorate_raft::wire;
use quorate_state::{Command, Machine};

use crate::mem::MemDisk;

pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "log-records", run: log_records },
    Target { name: "log-blocks", run: log_blocks },
    Target { name: "log-directory", run: log_directory },
    Target { name: "log-directory-resealed", run: log_directory_resealed },
    Target { name: "log-repair", run: log_repair },
    Target { name: "raft-message", run: raft_message },
    Target { name: "raft-values", run: raft_values },
    Target { name: "frame", run: frame },
    Target { name: "frame-stream", run: frame_stream },
    Target { name: "peers-file", run: peers_file },
    Target { name: "command", run: command },
    Target { name: "snapshot-chunks", run: snapshot_chunks },
    Target { name: "snapshot-bodies", run: snapshot_bodies },
    Target { name: "checkpoint-file", run: checkpoint_file },
];

pub const ID: Identity = Identity { cluster_id: 0xC1, member_id: 0xA1, incarnation: 3 };

pub fn options(nonce: u64) -> Options {
    Options { segment_bytes: 16 << 10, ..Options::new(nonce) }
}

/// The body of a batch.
fn log_records(data: &[u8]) {
    let _ = decode_records(Bytes::copy_from_slice(data));
}

/// Headers and slots, as given and with their checksum put right.
fn log_blocks(data: &[u8]) {
    let mut block = vec![0u8; BLOCK_BYTES];
    let len = data.len().min(BLOCK_BYTES);
    block[..len].copy_from_slice(&data[..len]);
    let _ = SegmentHeader::decode(&block);
    let _ = MetaSlot::decode(&block);
    let crc = crc32c::crc32c(&block[..BLOCK_BYTES - 4]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    if let Some(slot) = MetaSlot::decode(&block) {
        assert_eq!(MetaSlot::decode(&slot.encode()), Some(slot));
    }
    if let Some(header) = SegmentHeader::decode(&block) {
        assert_eq!(SegmentHeader::decode(&header.encode()).as_ref(), Some(&header));
        let _ = BatchHeader::decode(data, &header);
    }
    let plain = SegmentHeader { identity: ID, segment_id: 1, salt: 0, first_seq: 1, chain: 0 };
    let _ = BatchHeader::decode(data, &plain);
    let mut head = block[..128].to_vec();
    let crc = crc32c::crc32c(&head[..124]);
    head[124..].copy_from_slice(&crc.to_le_bytes());
    let _ = BatchHeader::decode(&head, &plain);
}

/// A small log of several segments, and what it holds.
fn base() -> (MemDisk, Recovered) {
    let member = |id: u64| (MemberId(id), MemberInfo { name: format!("m{id}"), ..MemberInfo::default() });
    let config = Config { voters: [MemberId(1)].into(), members: [member(1)].into(), ..Config::default() };
    let mark = SnapMeta { config, ..SnapMeta::default() };
    let mut log = Log::create(MemDisk::default(), options(1), ID, mark.clone()).expect("creates");
    let entry =
        |term, index, size: usize| Entry { term, index, payload: Payload::Data(vec![index as u8; size].into()) };
    let run = |term, from: u64, to: u64, size| Record::Append((from..=to).map(|i| entry(term, i, size)).collect());
    let hard = |term, vote| Record::HardState(HardState { term, vote: Some(MemberId(vote)) });
    let records = [
        vec![hard(1, 1), run(1, 1, 3, 5)],
        vec![run(1, 4, 5, 300)],
        vec![hard(2, 2), Record::TruncateTo(4), run(2, 5, 9, 90)],
        vec![Record::SnapshotMark(SnapMeta { index: 3, term: 1, ..mark })],
        vec![run(2, 10, 12, 30)],
    ];
    let mut seq = 0;
    for batch in records {
        let numbered: Vec<_> = batch
            .into_iter()
            .map(|record| {
                seq += 1;
                (WriteSeq(seq), record)
            })
            .collect();
        log.append(&numbered).expect("appends");
    }
    log.seal_tail().expect("seals");
    let disk = MemDisk::of(log.into_disk().files);
    let (_, held) = Log::open(disk.clone(), options(2), Some(&ID)).expect("opens");
    (disk, held)
}

thread_local! {
    static BASE: (MemDisk, Recovered) = base();
}

/// Applies what the input says to a copy of the base: file, block, place, and either bits to flip or bytes to write.
fn damaged(disk: &MemDisk, data: &[u8]) -> MemDisk {
    let mut copy = disk.clone();
    let count = copy.files.len();
    for edit in data.chunks(5) {
        let &[file, block, low, high, value] = edit else { break };
        let content = copy.files.values_mut().nth(usize::from(file) % count).expect("there is one");
        let at = usize::from(block % 5) * BLOCK_BYTES + usize::from(u16::from_le_bytes([low, high]) % 4096);
        let range = match file / 64 {
            0 | 1 => at..at + 1,
            2 => at..at + 16,
            _ => at / 512 * 512..at / 512 * 512 + 512,
        };
        let end = range.end.min(content.len());
        for byte in &mut content[range.start.min(end)..end] {
            *byte = match file / 64 {
                0 | 1 => *byte ^ value,
                2 => value,
                _ => 0,
            };
        }
    }
    copy
}

/// Damage without knowledge of the checksums: what is opened is what was there, or nothing is.
fn log_directory(data: &[u8]) {
    BASE.with(|(disk, held)| {
        if let Ok((_, found)) = Log::open(damaged(disk, data), options(3), Some(&ID)) {
            assert_eq!(found, *held, "a damaged log was opened and holds something else");
        }
    });
}

/// The same for what is repaired, with another member that holds everything.
fn log_repair(data: &[u8]) {
    BASE.with(|(disk, held)| {
        let mut copy = damaged(disk, data);
        let mut repair = Repair::new(options(3), vec![]);
        for _ in 0..2 {
            match repair.look(&mut copy, Some(&ID)) {
                Ok(Progress::Wants(_)) => repair.offer(held.entries.clone()),
                Ok(Progress::Ready(_)) => {
                    repair.write(&mut copy).expect("memory takes everything");
                    if let Ok((_, found)) = Log::open(copy, options(3), Some(&ID)) {
                        assert_eq!(found, *held, "a repaired log holds something else");
                    }
                    return;
                }
                Ok(Progress::Whole) | Err(LogError::Corrupt { .. } | LogError::ForeignIdentity { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    });
}

/// Damage with every checksum put right: the readers behind them must not panic, whatever they are told.
fn log_directory_resealed(data: &[u8]) {
    BASE.with(|(disk, _)| {
        let mut copy = damaged(disk, data);
        for (name, bytes) in &mut copy.files {
            reseal(name, bytes);
        }
        let _ = Log::open(copy.clone(), options(3), None);
        let mut scrub = Scrub::new(options(3), ID);
        for _ in 0..200 {
            if let Ok(Scrubbed::Pass { .. }) = scrub.step(&mut copy) {
                break;
            }
        }
    });
}

fn reseal(name: &str, bytes: &mut [u8]) {
    let seal = |block: &mut [u8], seed: u32| {
        let end = block.len() - 4;
        let crc = crc32c::crc32c_append(seed, &block[..end]);
        block[end..].copy_from_slice(&crc.to_le_bytes());
    };
    let heads = if name == "meta" { 2 } else { 1 };
    for block in bytes.chunks_exact_mut(BLOCK_BYTES).take(heads) {
        seal(block, 0);
    }
    if name == "meta" || bytes.len() <= BLOCK_BYTES {
        return;
    }
    let salt = u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"));
    let seed = (salt >> 32) as u32 ^ salt as u32;
    let mut chain = u32::from_le_bytes(bytes[56..60].try_into().expect("four bytes"));
    for at in (BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES) {
        if &bytes[at..at + 4] != b"QBAT" {
            continue;
        }
        let len = u32::from_le_bytes(bytes[at + 56..at + 60].try_into().expect("four bytes")) as usize;
        if let Some(body) = bytes.get(at + 128..(at + 128).saturating_add(len)) {
            let crc = crc32c::crc32c(body);
            bytes[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
        }
        bytes[at + 88..at + 92].copy_from_slice(&chain.to_le_bytes());
        seal(&mut bytes[at..at + 128], seed);
        chain = u32::from_le_bytes(bytes[at + 124..at + 128].try_into().expect("four bytes"));
    }
}

/// A message that can be read is read the same again from its own encoding.
fn raft_message(data: &[u8]) {
    let mut bytes = Bytes::copy_from_slice(data);
    let Ok(msg) = wire::decode(&mut bytes) else { return };
    let mut encoded = BytesMut::new();
    wire::encode(&msg, &mut encoded);
    let again = wire::decode(&mut encoded.freeze()).expect("what was encoded can be decoded");
    assert_eq!(msg, again);
}

fn raft_values(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let mut bytes = Bytes::copy_from_slice(rest);
    let mut out = BytesMut::new();
    macro_rules! round_trip {
        ($decode:path, $encode:path) => {
            if let Ok(value) = $decode(&mut bytes) {
                $encode(&value, &mut out);
                assert_eq!($decode(&mut out.freeze()).expect("what was encoded can be decoded"), value);
            }
        };
    }
    match kind % 5 {
        0 => round_trip!(wire::decode_entry, wire::encode_entry),
        1 => round_trip!(wire::decode_config, wire::encode_config),
        2 => round_trip!(wire::decode_snap_meta, wire::encode_snap_meta),
        3 => round_trip!(wire::decode_hard_state, wire::encode_hard_state),
        _ => round_trip!(wire::decode_config_at, wire::encode_config_at),
    }
}

fn frame(data: &[u8]) {
    node::frame(data);
}

fn frame_stream(data: &[u8]) {
    node::frame_stream(data);
    // And with the header of an honest frame in front.
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(data.len() as u32);
    bytes.put_u32_le(crc32c::crc32c(data));
    bytes.put_slice(data);
    node::frame_stream(&bytes);
}

fn peers_file(data: &[u8]) {
    node::peers_file(data);
}

fn command(data: &[u8]) {
    let Ok(command) = Command::decode(Bytes::copy_from_slice(data)) else { return };
    let mut encoded = BytesMut::new();
    command.encode(&mut encoded);
    assert_eq!(Command::decode(encoded.freeze()).expect("what was encoded can be decoded"), command);
}

/// Chunks as they come: the input's first bytes say how long each is.
fn snapshot_chunks(data: &[u8]) {
    let _ = Machine::restore(split(data));
}

fn split(mut data: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while let [low, high, rest @ ..] = data {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (part, behind) = rest.split_at(len);
        parts.push(Bytes::copy_from_slice(part));
        data = behind;
    }
    parts
}

/// Bodies behind heads whose checksums are right.
fn snapshot_bodies(data: &[u8]) {
    static HEAD: OnceLock<Bytes> = OnceLock::new();
    // Magic, version and what else stands in front of the numbers are those of a real chunk.
    let head = HEAD.get_or_init(|| Machine::new().view().snapshot_chunks(&[]).next().expect("a chunk"));
    let bodies = split(data);
    let (mut chunks, mut before) = (Vec::new(), 0);
    for (number, body) in bodies.iter().enumerate() {
        let mut chunk = BytesMut::from(&head[..5]);
        chunk.put_u8(u8::from(number + 1 == bodies.len()));
        chunk.put_u32_le(number as u32);
        chunk.put_u32_le(body.len() as u32);
        chunk.put_u32_le(before);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&chunk), body);
        chunk.put_u32_le(crc);
        chunk.put_slice(body);
        before = crc;
        chunks.push(chunk.freeze());
    }
    let _ = Machine::restore(chunks);
}

/// A run of chunks on disk.
fn checkpoint_file(data: &[u8]) {
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        // In memory where there is such a directory.
        let memory = std::path::PathBuf::from("/dev/shm");
        let dir = if memory.is_dir() { memory } else { std::env::temp_dir() };
        dir.join(format!("quorate-fuzz-{}.run", std::process::id()))
    });
    node::run_file(path, data);
}
