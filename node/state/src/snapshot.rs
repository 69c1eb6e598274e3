//! The whole state as a sequence of checksummed chunks, and back.
//!
//! A chunk is a head of [`HEAD_BYTES`] and a body. The head: magic, format version, flag "last", sequence number, body
//! length, CRC32C of the chunk before (0 for the first), CRC32C of head and body together. So a flipped bit, a missing,
//! doubled, swapped or foreign chunk is refused, not only a bad one. The bodies joined are one stream: numbers of the
//! state and `meta`, then every version in order of (key, revision), a record each, then the end mark with the number
//! of records. What is restored is hashed again and must give the hash that the header promises.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, get_bytes, get_i64, get_u8, get_u64, put_bytes, put_i64, put_u64};
use crate::machine::{Machine, State};
use crate::store::{ChangeAt, Store, TreeStore};
use crate::version::KeyValue;
use crate::view::View;

/// Largest chunk, head included.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// magic 4, version 1, last 1, sequence 4, body length 4, CRC of the chunk before 4, CRC 4.
pub const HEAD_BYTES: usize = 22;
const BODY_BYTES_MAX: usize = CHUNK_BYTES_MAX - HEAD_BYTES;
const MAGIC: u32 = 0x5153_4E50;
const FORMAT_VERSION: u8 = 1;
const RECORD: u8 = 1;
const END: u8 = 2;

/// Why chunks are not a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("chunk {sequence}: {found} (fetch the snapshot again)")]
    Chunk { sequence: u32, found: Damage },
    #[error("the snapshot ends after {chunks} chunks, without its last one (fetch the rest)")]
    Truncated { chunks: u32 },
    #[error("the snapshot's records cannot be read (its writer and this program differ)")]
    Record(#[from] DecodeError),
    #[error("the snapshot's records are not in order of key and revision")]
    Order,
    #[error("the snapshot's {field} is {got}, but its header promised {wanted}")]
    Promise { field: &'static str, wanted: u64, got: u64 },
}

/// What is wrong with one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    #[error("its length does not fit its head")]
    Length,
    #[error("its head is not that of a chunk of format {FORMAT_VERSION}")]
    Head,
    #[error("its checksum does not match")]
    Checksum,
    #[error("it does not follow the chunk before it")]
    Place,
    #[error("it follows the last one")]
    AfterLast,
}

/// A restored machine and what travelled with it.
#[derive(Debug)]
pub struct Restored {
    pub machine: Machine,
    pub meta: Bytes,
}

/// Iterator over the chunks of one view. Owns the view, so it may run for as long as it takes, on any thread.
#[derive(Clone, Debug)]
pub struct SnapshotChunks {
    view: View,
    /// Last key written; `None` before the first.
    after: Option<Bytes>,
    records: u64,
    pending: BytesMut,
    sequence: u32,
    crc_before: u32,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Records,
    Tail,
    Done,
}

impl SnapshotChunks {
    pub(crate) fn new(view: View, meta: &[u8]) -> SnapshotChunks {
        let mut pending = BytesMut::new();
        put_header(&mut pending, view.state(), meta);
        SnapshotChunks { view, after: None, records: 0, pending, sequence: 0, crc_before: 0, stage: Stage::Records }
    }

    /// Serializes keys until a body is full, then the end mark. Keys are whole: a resumed scan starts after one.
    fn fill(&mut self) {
        let after = self.after.clone();
        let mut versions = self.view.state().store.versions(after.as_deref()).peekable();
        while let Some(version) = versions.next() {
            put_record(&mut self.pending, version);
            self.records += 1;
            let key_ends = versions.peek().is_none_or(|next| next.key != version.key);
            if key_ends && self.pending.len() >= BODY_BYTES_MAX {
                self.after = Some(version.key.clone());
                return;
            }
        }
        self.pending.put_u8(END);
        put_u64(&mut self.pending, self.records);
        self.stage = Stage::Tail;
    }
}

impl Iterator for SnapshotChunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.stage == Stage::Done {
            return None;
        }
        if self.stage == Stage::Records && self.pending.len() < BODY_BYTES_MAX {
            self.fill();
        }
        let body = self.pending.split_to(self.pending.len().min(BODY_BYTES_MAX));
        if self.stage == Stage::Tail && self.pending.is_empty() {
            self.stage = Stage::Done;
        }
        let chunk = seal(&body, self.sequence, self.crc_before, self.stage == Stage::Done);
        self.crc_before = crc_in(&chunk);
        self.sequence += 1;
        Some(chunk)
    }
}

fn seal(body: &[u8], sequence: u32, crc_before: u32, last: bool) -> Bytes {
    let mut chunk = BytesMut::with_capacity(HEAD_BYTES + body.len());
    chunk.put_u32_le(MAGIC);
    chunk.put_u8(FORMAT_VERSION);
    chunk.put_u8(u8::from(last));
    chunk.put_u32_le(sequence);
    chunk.put_u32_le(u32::try_from(body.len()).expect("a body is below 1 MiB"));
    chunk.put_u32_le(crc_before);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&chunk), body);
    chunk.put_u32_le(crc);
    chunk.put_slice(body);
    chunk.freeze()
}

fn crc_in(chunk: &[u8]) -> u32 {
    u32::from_le_bytes(chunk[HEAD_BYTES - 4..HEAD_BYTES].try_into().expect("4 bytes"))
}

/// Checks one chunk in its place; gives its body and whether it is the last.
fn open(chunk: &Bytes, sequence: u32, crc_before: u32) -> Result<(Bytes, bool), Damage> {
    if chunk.len() < HEAD_BYTES || chunk.len() > CHUNK_BYTES_MAX {
        return Err(Damage::Length);
    }
    let body = chunk.slice(HEAD_BYTES..);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&chunk[..HEAD_BYTES - 4]), &body);
    let mut head = chunk.slice(..HEAD_BYTES);
    if head.get_u32_le() != MAGIC || head.get_u8() != FORMAT_VERSION {
        return Err(Damage::Head);
    }
    let last = head.get_u8();
    let place = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
    if head.get_u32_le() != crc {
        return Err(Damage::Checksum);
    }
    if last > 1 || usize::try_from(place.1) != Ok(body.len()) {
        return Err(Damage::Length);
    }
    if (place.0, place.2) != (sequence, crc_before) {
        return Err(Damage::Place);
    }
    Ok((body, last == 1))
}

// ---- the stream ------------------------------------------------------------------------------------------------

/// What the header says of the state.
#[derive(Debug)]
struct Header {
    applied_index: u64,
    applied_term: u64,
    revision: i64,
    compact_revision: i64,
    first_change: Option<ChangeAt>,
    size_bytes: u64,
    hash: u64,
    meta: Bytes,
}

fn put_header(out: &mut BytesMut, state: &State<TreeStore>, meta: &[u8]) {
    put_u64(out, state.applied_index);
    put_u64(out, state.applied_term);
    put_i64(out, state.revision);
    put_i64(out, state.compact_revision);
    let first = state.store.first_change();
    out.put_u8(u8::from(first.is_some()));
    let (main, sub) = first.unwrap_or_default();
    put_i64(out, main);
    put_u64(out, u64::from(sub));
    put_u64(out, state.size_bytes);
    put_u64(out, state.whole_hash());
    put_bytes(out, meta);
}

fn get_header(input: &mut Bytes) -> Result<Header, DecodeError> {
    let applied_index = get_u64(input, "applied index")?;
    let applied_term = get_u64(input, "applied term")?;
    let revision = get_i64(input, "revision")?;
    let compact_revision = get_i64(input, "compact revision")?;
    let has_change = get_u8(input, "has change")? != 0;
    let first = (get_i64(input, "first change")?, get_u32(input, "first change")?);
    Ok(Header {
        applied_index,
        applied_term,
        revision,
        compact_revision,
        first_change: has_change.then_some(first),
        size_bytes: get_u64(input, "size")?,
        hash: get_u64(input, "hash")?,
        meta: get_bytes(input, "meta")?,
    })
}

fn put_record(out: &mut BytesMut, version: &KeyValue) {
    let KeyValue { key, value, create_revision, mod_revision, sub_revision, version, lease } = version;
    out.put_u8(RECORD);
    put_bytes(out, key);
    put_bytes(out, value);
    put_i64(out, *create_revision);
    put_i64(out, *mod_revision);
    put_u64(out, u64::from(*sub_revision));
    put_i64(out, *version);
    put_i64(out, *lease);
}

fn get_record(input: &mut Bytes) -> Result<KeyValue, DecodeError> {
    Ok(KeyValue {
        // Copies: a slice would keep its whole chunk in memory for as long as the version lives.
        key: Bytes::copy_from_slice(&get_bytes(input, "key")?),
        value: Bytes::copy_from_slice(&get_bytes(input, "value")?),
        create_revision: get_i64(input, "create revision")?,
        mod_revision: get_i64(input, "mod revision")?,
        sub_revision: get_u32(input, "sub-revision")?,
        version: get_i64(input, "version")?,
        lease: get_i64(input, "lease")?,
    })
}

fn get_u32(input: &mut Bytes, field: &'static str) -> Result<u32, DecodeError> {
    let got = get_u64(input, field)?;
    u32::try_from(got).map_err(|_| DecodeError::TooLarge { field, got, limit: u32::MAX as usize })
}

/// Takes chunks one by one, as they arrive.
///
/// # Errors
/// After an error it gives nothing more; start again with a new one.
#[derive(Default, Debug)]
pub struct Restorer {
    sequence: u32,
    crc_before: u32,
    last_seen: bool,
    /// Bytes of the stream not parsed yet: less than a record.
    rest: Bytes,
    header: Option<Header>,
    versions: Vec<Arc<KeyValue>>,
    /// The number of records in the end mark.
    promised: Option<u64>,
}

impl Restorer {
    /// Takes the next chunk.
    pub fn push(&mut self, chunk: &Bytes) -> Result<(), RestoreError> {
        let sequence = self.sequence;
        let damaged = |found| RestoreError::Chunk { sequence, found };
        if self.last_seen {
            return Err(damaged(Damage::AfterLast));
        }
        let (body, last) = open(chunk, sequence, self.crc_before).map_err(damaged)?;
        self.sequence += 1;
        self.crc_before = crc_in(chunk);
        self.last_seen = last;
        self.rest = if self.rest.is_empty() { body } else { [&self.rest[..], &body[..]].concat().into() };
        self.parse()
    }

    /// Parses what is whole; a record that ends early waits for the next chunk, if there is one.
    fn parse(&mut self) -> Result<(), RestoreError> {
        loop {
            let mut input = self.rest.clone();
            match self.parse_one(&mut input) {
                Ok(()) if input.len() == self.rest.len() => return Ok(()),
                Ok(()) => self.rest = input,
                Err(RestoreError::Record(DecodeError::Short { .. })) if !self.last_seen => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn parse_one(&mut self, input: &mut Bytes) -> Result<(), RestoreError> {
        if self.header.is_none() {
            self.header = Some(get_header(input)?);
            return Ok(());
        }
        if self.promised.is_some() {
            let left = input.len();
            return if left == 0 { Ok(()) } else { Err(DecodeError::Trailing { left }.into()) };
        }
        match get_u8(input, "record")? {
            RECORD => {
                let version = get_record(input)?;
                let place = (&version.key, version.mod_revision);
                if self.versions.last().is_some_and(|before| (&before.key, before.mod_revision) >= place) {
                    return Err(RestoreError::Order);
                }
                self.versions.push(Arc::new(version));
            }
            END => self.promised = Some(get_u64(input, "record count")?),
            got => return Err(DecodeError::Tag { field: "record", got }.into()),
        }
        Ok(())
    }

    /// Builds the machine, if the last chunk was seen, and compares it with what the header promised.
    pub fn finish(self) -> Result<Restored, RestoreError> {
        let (true, Some(header), Some(promised)) = (self.last_seen, self.header, self.promised) else {
            return Err(RestoreError::Truncated { chunks: self.sequence });
        };
        let count = self.versions.len() as u64;
        let mut state: State<TreeStore> = State::new();
        for version in &self.versions {
            state.account(version);
        }
        state.store = TreeStore::load(self.versions.into_iter(), header.first_change);
        state.applied_index = header.applied_index;
        state.applied_term = header.applied_term;
        state.revision = header.revision;
        state.compact_revision = header.compact_revision;
        for (field, wanted, got) in [
            ("record count", promised, count),
            ("size", header.size_bytes, state.size_bytes),
            ("state hash", header.hash, state.whole_hash()),
        ] {
            if wanted != got {
                return Err(RestoreError::Promise { field, wanted, got });
            }
        }
        Ok(Restored { machine: Machine::of(state), meta: header.meta })
    }
}

pub(crate) fn restore(chunks: impl IntoIterator<Item = Bytes>) -> Result<Restored, RestoreError> {
    let mut restorer = Restorer::default();
    for chunk in chunks {
        restorer.push(&chunk)?;
    }
    restorer.finish()
}
