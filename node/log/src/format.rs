//! Bytes of segments, batches, records and meta slots. `FORMAT.md` draws them.
//!
//! Pure: bytes in, values out. Decoders trust nothing; whether damage means "torn" or "rot" is decided in `recover`.

use bytes::{Buf, Bytes, BytesMut};
use quorate_raft::types::{Entry, HardState, Index, Record, SnapMeta, Term};
use quorate_raft::wire::{
    decode_entry, decode_hard_state, decode_snap_meta, encode_entry, encode_hard_state, encode_snap_meta,
};

use crate::error::Identity;
use crate::identity::{Boot, LINEAGE_MAX, Lineage};

/// Alignment of batches and meta slots. A page of the usual disks: a torn write cannot reach a block that was promised.
pub const BLOCK_BYTES: usize = 4096;
/// Length of a batch header.
pub const HEADER_BYTES: usize = 128;
/// Length of the meta file: two slots of one block each.
pub const META_BYTES: usize = 2 * BLOCK_BYTES;
/// Version of everything here. A change that an older reader would misread raises it.
pub const FORMAT_VERSION: u16 = 2;

/// No log gets this far. Larger numbers are not ours, whatever their checksum says, and nothing computed from smaller ones
/// overflows.
const NUMBER_MAX: u64 = u64::MAX >> 1;

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"QSEG");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"QBAT");
const META_MAGIC: u32 = u32::from_le_bytes(*b"QMET");

const KIND_HARD_STATE: u8 = 1;
const KIND_APPEND: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_MARK: u8 = 4;

/// Little-endian fields written in order into a fixed block whose last four bytes are a CRC.
struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Fields<'_> {
    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn identity(&mut self, identity: &Identity) {
        self.u64(identity.cluster_id);
        self.u64(identity.member_id);
        self.u64(identity.incarnation);
    }
    fn put(&mut self, value: &[u8]) {
        self.bytes[self.at..self.at + value.len()].copy_from_slice(value);
        self.at += value.len();
    }
}

fn get_identity(bytes: &mut &[u8]) -> Identity {
    Identity { cluster_id: bytes.get_u64_le(), member_id: bytes.get_u64_le(), incarnation: bytes.get_u64_le() }
}

/// Seals a block: the CRC of everything before its last four bytes, begun with `seed`.
fn seal(block: &mut [u8], seed: u32) -> u32 {
    let (body, tail) = block.split_at_mut(block.len() - 4);
    let crc = crc32c::crc32c_append(seed, body);
    tail.copy_from_slice(&crc.to_le_bytes());
    crc
}

fn is_sealed(block: &[u8], seed: u32) -> bool {
    let (body, tail) = block.split_at(block.len() - 4);
    crc32c::crc32c_append(seed, body).to_le_bytes() == tail
}

/// Numbers that count something from 1.
fn is_number(number: u64) -> bool {
    (1..=NUMBER_MAX).contains(&number)
}

/// First block of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub identity: Identity,
    pub segment_id: u64,
    /// Seeds the CRCs of this segment's batch headers. Secret from clients, so that no value can pose as a batch.
    pub salt: u64,
    /// Sequence of the first batch.
    pub first_seq: u64,
    /// CRC of the header of the batch before the first one.
    pub chain: u32,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0u8; BLOCK_BYTES];
        let mut f = Fields { bytes: &mut block, at: 0 };
        f.u32(SEGMENT_MAGIC);
        f.u16(FORMAT_VERSION);
        f.u16(0);
        f.identity(&self.identity);
        f.u64(self.segment_id);
        f.u64(self.salt);
        f.u64(self.first_seq);
        f.u32(self.chain);
        seal(&mut block, 0);
        block
    }

    /// `None`: not a segment header of this version, or damaged.
    pub fn decode(block: &[u8]) -> Option<SegmentHeader> {
        if block.len() < BLOCK_BYTES || !is_sealed(&block[..BLOCK_BYTES], 0) {
            return None;
        }
        let mut b = block;
        if b.get_u32_le() != SEGMENT_MAGIC || b.get_u16_le() != FORMAT_VERSION {
            return None;
        }
        b.advance(2);
        let header = SegmentHeader {
            identity: get_identity(&mut b),
            segment_id: b.get_u64_le(),
            salt: b.get_u64_le(),
            first_seq: b.get_u64_le(),
            chain: b.get_u32_le(),
        };
        (is_number(header.segment_id) && is_number(header.first_seq)).then_some(header)
    }

    /// Unique per segment and boot, and never shown to a client; that is all the salt is for.
    pub fn salt_of(boot_nonce: u64, segment_id: u64) -> u64 {
        boot_nonce ^ segment_id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The fields as they stand in a block that is not sealed: a repair judges which of them to believe.
    ///
    /// # Panics
    /// When the block is shorter than a block.
    pub fn read_unsealed(block: &[u8]) -> SegmentHeader {
        let mut b = &block[8..BLOCK_BYTES];
        SegmentHeader {
            identity: get_identity(&mut b),
            segment_id: b.get_u64_le(),
            salt: b.get_u64_le(),
            first_seq: b.get_u64_le(),
            chain: b.get_u32_le(),
        }
    }

    fn seed(&self) -> u32 {
        (self.salt >> 32) as u32 ^ self.salt as u32
    }
}

/// Names the entries a batch appended, so that a later repair knows exactly what a damaged batch held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// First and last entry index; 0 and 0 when the batch has none.
    pub first_index: Index,
    pub last_index: Index,
    pub last_term: Term,
    /// CRC over the CRCs of the entries.
    pub entries_crc: u32,
}

impl Held {
    /// What a batch holds that held this before and appends these.
    pub(crate) fn and(self, entries: &[Entry]) -> Held {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return self };
        let mut buffer = BytesMut::new();
        let crc = entries.iter().fold(0, |crc, entry| {
            buffer.clear();
            encode_stored_entry(entry, crc, &mut buffer)
        });
        self.with(first.index, last, crc)
    }

    /// The same with the CRC over the entries' CRCs at hand.
    pub(crate) fn with(self, first_index: Index, last: &Entry, crc: u32) -> Held {
        let follows = self.first_index != 0 && self.last_index + 1 == first_index;
        Held {
            first_index: if follows { self.first_index } else { first_index },
            last_index: last.index,
            last_term: last.term,
            entries_crc: crc32c::crc32c_append(if follows { self.entries_crc } else { 0 }, &crc.to_le_bytes()),
        }
    }
}

/// Header of one batch: one write and one flush.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub segment_id: u64,
    pub member_id: u64,
    pub cluster_id: u64,
    /// Number of this batch in the life of the log, without gaps.
    pub seq: u64,
    /// Every batch up to this one was durable when this one was written.
    pub durable_seq: u64,
    /// Current term after this batch.
    pub term: Term,
    pub body_bytes: u32,
    pub body_crc: u32,
    /// CRC of the header of the batch before.
    pub chain: u32,
    pub held: Held,
    /// What the batch before held.
    pub held_before: Held,
}

impl BatchHeader {
    /// Writes the header to the front of `block` and returns its CRC, which the next batch carries as its chain.
    pub fn encode_into(&self, block: &mut [u8], segment: &SegmentHeader) -> u32 {
        let block = &mut block[..HEADER_BYTES];
        let mut f = Fields { bytes: block, at: 0 };
        f.u32(BATCH_MAGIC);
        f.u16(FORMAT_VERSION);
        f.u16(0);
        f.u64(self.segment_id);
        f.u64(self.cluster_id);
        f.u64(self.member_id);
        f.u64(self.seq);
        f.u64(self.durable_seq);
        f.u64(self.term);
        f.u32(self.body_bytes);
        f.u32(self.body_crc);
        f.u64(self.held.first_index);
        f.u32((self.held.last_index - self.held.first_index) as u32);
        f.u32(self.held.entries_crc);
        f.u64(self.held.last_term);
        f.u32(self.chain);
        f.u64(self.held_before.first_index);
        f.u32((self.held_before.last_index - self.held_before.first_index) as u32);
        f.u32(self.held_before.entries_crc);
        f.u64(self.held_before.last_term);
        seal(block, segment.seed())
    }

    /// Reads a header of this very segment. `None`: anything else, above all zeros, other bytes, or damage.
    pub fn decode(block: &[u8], segment: &SegmentHeader) -> Option<(BatchHeader, u32)> {
        if block.len() < HEADER_BYTES || !is_sealed(&block[..HEADER_BYTES], segment.seed()) {
            return None;
        }
        let mut b = &block[..HEADER_BYTES];
        if b.get_u32_le() != BATCH_MAGIC || b.get_u16_le() != FORMAT_VERSION {
            return None;
        }
        b.advance(2);
        let mut header = BatchHeader {
            segment_id: b.get_u64_le(),
            cluster_id: b.get_u64_le(),
            member_id: b.get_u64_le(),
            seq: b.get_u64_le(),
            durable_seq: b.get_u64_le(),
            term: b.get_u64_le(),
            body_bytes: b.get_u32_le(),
            body_crc: b.get_u32_le(),
            chain: 0,
            held: Held::default(),
            held_before: Held::default(),
        };
        header.held = get_held(&mut b);
        header.chain = b.get_u32_le();
        header.held_before = get_held(&mut b);
        let crc = u32::from_le_bytes(block[HEADER_BYTES - 4..HEADER_BYTES].try_into().ok()?);
        let ours = header.segment_id == segment.segment_id
            && header.cluster_id == segment.identity.cluster_id
            && header.member_id == segment.identity.member_id
            && is_number(header.seq)
            && header.durable_seq < header.seq
            && [&header.held, &header.held_before].iter().all(|held| held.last_index <= NUMBER_MAX);
        ours.then_some((header, crc))
    }
}

fn get_held(b: &mut &[u8]) -> Held {
    let first_index = b.get_u64_le();
    let span = u64::from(b.get_u32_le());
    let entries_crc = b.get_u32_le();
    Held { first_index, last_index: first_index.saturating_add(span), last_term: b.get_u64_le(), entries_crc }
}

/// With which seed the CRC of the batch header at the front of these bytes was begun, if they are one: the CRC is run
/// backwards over the header. Whether they are one is the reader's to judge, by decoding under a salt of this seed.
pub(crate) fn first_batch_seed(bytes: &[u8]) -> Option<u32> {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let header = bytes.get(..HEADER_BYTES)?;
    let mut table = [0u32; 256];
    for (at, item) in table.iter_mut().enumerate() {
        *item = (0..8).fold(at as u32, |crc, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 });
    }
    let crc = u32::from_le_bytes(header[HEADER_BYTES - 4..].try_into().ok()?);
    let before = header[..HEADER_BYTES - 4].iter().rev().try_fold(!crc, |state, byte| {
        let at = table.iter().position(|item| item >> 24 == state >> 24)?;
        Some(((state ^ table[at]) << 8) | (at as u32 ^ u32::from(*byte)))
    })?;
    Some(!before)
}

/// Length on disk of a batch with a body of this many bytes.
pub fn batch_len_bytes(body_bytes: usize) -> usize {
    (HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES)
}

/// A record as read back, with what only the writer knew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    HardState(HardState),
    Append(Vec<Entry>),
    TruncateTo(Index),
    /// `keeps`: the log held (index, term) when the mark was written, so entries above it stay.
    Mark {
        meta: SnapMeta,
        keeps: bool,
    },
}

/// Appends one record: kind, length, payload.
pub fn encode_record(record: &Record, keeps: bool, buf: &mut BytesMut) -> u32 {
    let start = buf.len();
    buf.extend_from_slice(&[0; 5]);
    let mut entries_crc = 0;
    let kind = match record {
        Record::HardState(hard) => {
            encode_hard_state(hard, buf);
            KIND_HARD_STATE
        }
        Record::Append(entries) => {
            buf.extend_from_slice(&(entries.len() as u32).to_le_bytes());
            for entry in entries {
                entries_crc = encode_stored_entry(entry, entries_crc, buf);
            }
            KIND_APPEND
        }
        Record::TruncateTo(index) => {
            buf.extend_from_slice(&index.to_le_bytes());
            KIND_TRUNCATE
        }
        Record::SnapshotMark(meta) => {
            buf.extend_from_slice(&[u8::from(keeps)]);
            encode_snap_meta(meta, buf);
            KIND_MARK
        }
    };
    let len = (buf.len() - start - 5) as u32;
    buf[start] = kind;
    buf[start + 1..start + 5].copy_from_slice(&len.to_le_bytes());
    entries_crc
}

/// Length, CRC, bytes of one entry. Returns the running CRC over the entries' CRCs.
fn encode_stored_entry(entry: &Entry, running_crc: u32, buf: &mut BytesMut) -> u32 {
    let start = buf.len();
    buf.extend_from_slice(&[0; 8]);
    encode_entry(entry, buf);
    let len = (buf.len() - start - 8) as u32;
    let crc = crc32c::crc32c(&buf[start + 8..]);
    buf[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buf[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    crc32c::crc32c_append(running_crc, &crc.to_le_bytes())
}

/// Reads all records of a body whose CRC was right. An error is the sentence of what is wrong.
pub fn decode_records(mut body: Bytes) -> Result<Vec<Stored>, String> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let kind = take(&mut body, 1, "record kind")?[0];
        let len = take(&mut body, 4, "record length")?.get_u32_le() as usize;
        let mut payload = take(&mut body, len, "record")?;
        records.push(decode_record(kind, &mut payload)?);
        if !payload.is_empty() {
            return Err(format!("a record of kind {kind} has {} bytes too many", payload.len()));
        }
    }
    Ok(records)
}

fn decode_record(kind: u8, payload: &mut Bytes) -> Result<Stored, String> {
    let bad = |e: quorate_raft::wire::WireError| e.to_string();
    match kind {
        KIND_HARD_STATE => Ok(Stored::HardState(decode_hard_state(payload).map_err(bad)?)),
        KIND_APPEND => {
            let count = take(payload, 4, "entry count")?.get_u32_le() as usize;
            // An entry takes at least 8 bytes, so a count cannot make us reserve more than the body's own size.
            let mut entries = Vec::with_capacity(count.min(payload.len() / 8));
            for _ in 0..count {
                let len = take(payload, 4, "entry length")?.get_u32_le() as usize;
                let crc = take(payload, 4, "entry crc")?.get_u32_le();
                let mut bytes = take(payload, len, "entry")?;
                if crc32c::crc32c(&bytes) != crc {
                    return Err("an entry does not match its crc".to_owned());
                }
                let entry = decode_entry(&mut bytes).map_err(bad)?;
                if !is_number(entry.index) {
                    return Err(format!("no entry has index {}", entry.index));
                }
                entries.push(entry);
                if !bytes.is_empty() {
                    return Err("an entry has bytes too many".to_owned());
                }
            }
            Ok(Stored::Append(entries))
        }
        KIND_TRUNCATE => match take(payload, 8, "truncation index")?.get_u64_le() {
            index if index <= NUMBER_MAX => Ok(Stored::TruncateTo(index)),
            index => Err(format!("no log is truncated to {index}")),
        },
        KIND_MARK => {
            let keeps = take(payload, 1, "mark flag")?[0] == 1;
            let meta = decode_snap_meta(payload).map_err(bad)?;
            if meta.index > NUMBER_MAX {
                return Err(format!("no mark stands at {}", meta.index));
            }
            Ok(Stored::Mark { meta, keeps })
        }
        other => Err(format!("unknown record kind {other}")),
    }
}

fn take(buf: &mut Bytes, len: usize, field: &str) -> Result<Bytes, String> {
    if buf.len() < len {
        return Err(format!("{field} needs {len} bytes, {} are left", buf.len()));
    }
    Ok(buf.split_to(len))
}

/// One of the two alternating copies of identity, generation, term and vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaSlot {
    pub identity: Identity,
    /// Raised and flushed at every open.
    pub generation: u64,
    /// Random number of the process run that wrote this slot.
    pub boot_nonce: u64,
    /// Number of this write among all slot writes; the higher one is the newer.
    pub write_no: u64,
    pub hard: HardState,
    /// Every batch up to this one was durable when the slot was written.
    pub durable_seq: u64,
    /// The starts of this directory before the one that wrote this slot.
    pub before: Lineage,
}

impl MetaSlot {
    /// The version of a whole slot that another program wrote.
    pub fn other_version(block: &[u8]) -> Option<u16> {
        if block.len() < BLOCK_BYTES || !is_sealed(&block[..BLOCK_BYTES], 0) {
            return None;
        }
        let mut b = block;
        let (magic, version) = (b.get_u32_le(), b.get_u16_le());
        (magic == META_MAGIC && version != FORMAT_VERSION).then_some(version)
    }

    /// The start that wrote this slot, and those before it.
    pub fn lineage(&self) -> Lineage {
        self.before.after(Boot { generation: self.generation, nonce: self.boot_nonce })
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0u8; BLOCK_BYTES];
        let mut f = Fields { bytes: &mut block, at: 0 };
        f.u32(META_MAGIC);
        f.u16(FORMAT_VERSION);
        f.u16(0);
        f.identity(&self.identity);
        f.u64(self.generation);
        f.u64(self.boot_nonce);
        f.u64(self.write_no);
        f.u64(self.hard.term);
        f.u64(self.hard.vote.map_or(0, |id| id.0));
        f.u64(self.durable_seq);
        for boot in self.before.boots() {
            f.u64(boot.generation);
            f.u64(boot.nonce);
        }
        seal(&mut block, 0);
        block
    }

    /// `None`: never written, torn or damaged.
    pub fn decode(block: &[u8]) -> Option<MetaSlot> {
        if block.len() < BLOCK_BYTES || !is_sealed(&block[..BLOCK_BYTES], 0) {
            return None;
        }
        let mut b = block;
        if b.get_u32_le() != META_MAGIC || b.get_u16_le() != FORMAT_VERSION {
            return None;
        }
        b.advance(2);
        let identity = get_identity(&mut b);
        let (generation, boot_nonce, write_no) = (b.get_u64_le(), b.get_u64_le(), b.get_u64_le());
        let (term, vote) = (b.get_u64_le(), b.get_u64_le());
        let durable_seq = b.get_u64_le();
        let before: [Boot; LINEAGE_MAX] =
            std::array::from_fn(|_| Boot { generation: b.get_u64_le(), nonce: b.get_u64_le() });
        let before = Lineage::of(before.into_iter().take_while(|boot| is_number(boot.generation)));
        let are_ours = [generation, write_no, durable_seq].iter().all(|number| *number <= NUMBER_MAX);
        are_ours.then_some(MetaSlot {
            identity,
            generation,
            boot_nonce,
            write_no,
            hard: HardState { term, vote: (vote != 0).then_some(quorate_raft::types::MemberId(vote)) },
            durable_seq,
            before,
        })
    }
}
