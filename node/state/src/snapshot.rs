//! The whole state as runs of checksummed chunks, and back.
//!
//! A *run* is either the whole state at one index, or the changes made between the end of another run and a later index.
//! A whole run and the runs of changes that follow it, each naming the end of the one before, are a state at the index
//! of the last one; so a new checkpoint costs what changed since the last, and an old one is never written again.
//!
//! A run is a sequence of chunks, each a head of [`HEAD_BYTES`] and a body. The head: magic, format version, flag
//! "last", sequence number, body length, CRC32C of the chunk before (0 for the first), CRC32C of head and body together.
//! So a flipped bit, a missing, doubled, swapped or foreign chunk is refused, not only a bad one, and the checksum of
//! the last chunk stands for the whole run. A body holds whole records, so chunks are decoded in any order, on any
//! thread. The first body begins with numbers of the state and `meta`; records are versions ascending by (key,
//! revision); the last body ends with their number. What is restored must have the hash that the last header promises.
//!
//! Merging follows from what compaction forgets: a version goes with the change that replaced it, a tombstone with its
//! own change. Both are decided by the place among all changes up to which compaction came, which the header holds.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cluster_version::ClusterVersion;
use crate::codec::{DecodeError, get_i64, get_u8, get_u16, get_u64, put_bytes, put_i64, put_u64};
use crate::hash;
use crate::machine::{ALARMS_MAX, Machine, State};
use crate::store::{ChangeAt, Loader, Store, TreeStore};
use crate::version::KeyValue;
use crate::view::View;

/// A chunk ends with the record that brings it here: large enough that a stream of them is as fast as the disk, small
/// enough to be sent again.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Largest chunk, head included: one record may be as large as an entry of the log (16 MiB) and come on top.
pub const CHUNK_BYTES_MAX: usize = 20 << 20;
/// magic 4, version 1, last 1, sequence 4, body length 4, CRC of the chunk before 4, CRC 4.
pub const HEAD_BYTES: usize = 22;
const VERSION_AT: usize = 4;
const BODY_BYTES_AT: usize = 10;
const MAGIC: u32 = 0x5153_4E50;
pub const FORMAT_VERSION: u8 = 3;
const RECORD: u8 = 1;
const END: u8 = 2;
/// Beyond every change: all of the changes kept are bare.
const AFTER_ALL: ChangeAt = (i64::MAX, u32::MAX);

/// Why chunks are not a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("chunk {sequence}: {found} (fetch the snapshot again)")]
    Chunk { sequence: u32, found: Damage },
    #[error("the run ends after {chunks} chunks, without its last one (fetch the rest)")]
    Truncated { chunks: u32 },
    #[error("the snapshot's records cannot be read (its writer and this program differ)")]
    Record(#[from] DecodeError),
    #[error("the snapshot's records are not in order of key and revision")]
    Order,
    #[error("a run does not follow the one before it")]
    Chain,
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

// ---- chunks ----------------------------------------------------------------------------------------------------

/// The head of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub is_last: bool,
    pub sequence: u32,
    pub body_bytes: usize,
    crc_before: u32,
    /// Of this chunk and so, by way of `crc_before`, of all before it.
    pub crc: u32,
}

impl Head {
    /// # Errors
    /// These are no bytes of a head, or promise a body that is too long.
    pub fn parse(mut bytes: &[u8]) -> Result<Head, Damage> {
        if bytes.len() < HEAD_BYTES {
            return Err(Damage::Length);
        }
        let (magic, version, last) = (bytes.get_u32_le(), bytes.get_u8(), bytes.get_u8());
        let (sequence, body) = (bytes.get_u32_le(), bytes.get_u32_le());
        let (crc_before, crc) = (bytes.get_u32_le(), bytes.get_u32_le());
        if magic != MAGIC || version != FORMAT_VERSION || last > 1 {
            return Err(Damage::Head);
        }
        let body_bytes = usize::try_from(body).unwrap_or(usize::MAX);
        if body_bytes > CHUNK_BYTES_MAX - HEAD_BYTES {
            return Err(Damage::Length);
        }
        Ok(Head { is_last: last == 1, sequence, body_bytes, crc_before, crc })
    }

    pub fn chunk_bytes(&self) -> usize {
        HEAD_BYTES + self.body_bytes
    }
}

/// The checksum that belongs into the head of a whole chunk.
fn crc_of(chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chunk[..HEAD_BYTES - 4]), &chunk[HEAD_BYTES..])
}

/// The format of the sound chunk that these bytes begin with, if it is not this program's: no damage, and not to be taken for
/// any.
pub fn other_format(bytes: &[u8]) -> Option<u8> {
    let version = *bytes.get(VERSION_AT)?;
    let body_bytes = bytes.get(BODY_BYTES_AT..)?.first_chunk().map(|length| u32::from_le_bytes(*length))?;
    let chunk = bytes.get(..HEAD_BYTES.checked_add(usize::try_from(body_bytes).ok()?)?)?;
    let is_sound = chunk[HEAD_BYTES - 4..HEAD_BYTES] == crc_of(chunk).to_le_bytes();
    (bytes.starts_with(&MAGIC.to_le_bytes()) && version != FORMAT_VERSION && is_sound).then_some(version)
}

/// Checks a chunk for itself: length and checksum. Its place is another matter.
///
/// # Errors
/// Any byte differs from what was sealed.
pub fn check(chunk: &[u8]) -> Result<Head, Damage> {
    let head = Head::parse(chunk)?;
    if chunk.len() != head.chunk_bytes() {
        return Err(Damage::Length);
    }
    if crc_of(chunk) != head.crc {
        return Err(Damage::Checksum);
    }
    Ok(head)
}

/// Where the next chunk of a run belongs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// How many chunks are before it.
    pub sequence: u32,
    /// The checksum of the chunk before it.
    pub crc: u32,
    /// The last chunk was taken.
    pub is_over: bool,
}

impl Place {
    /// Moves on if `head` is that of the next chunk.
    ///
    /// # Errors
    /// It is not.
    pub fn take(&mut self, head: &Head) -> Result<(), Damage> {
        if self.is_over {
            return Err(Damage::AfterLast);
        }
        if (head.sequence, head.crc_before) != (self.sequence, self.crc) {
            return Err(Damage::Place);
        }
        *self = Place { sequence: self.sequence + 1, crc: head.crc, is_over: head.is_last };
        Ok(())
    }
}

fn seal(body: &[u8], place: &mut Place, last: bool) -> Bytes {
    assert!(body.len() <= CHUNK_BYTES_MAX - HEAD_BYTES, "a record is no longer than an entry of the log");
    let mut chunk = BytesMut::with_capacity(HEAD_BYTES + body.len());
    chunk.put_u32_le(MAGIC);
    chunk.put_u8(FORMAT_VERSION);
    chunk.put_u8(u8::from(last));
    chunk.put_u32_le(place.sequence);
    chunk.put_u32_le(u32::try_from(body.len()).expect("a body is below 20 MiB"));
    chunk.put_u32_le(place.crc);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&chunk), body);
    chunk.put_u32_le(crc);
    chunk.put_slice(body);
    *place = Place { sequence: place.sequence + 1, crc, is_over: last };
    chunk.freeze()
}

// ---- writing ---------------------------------------------------------------------------------------------------

/// The end of a run: the index of the state there, and the checksum of the last chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunEnd {
    pub index: u64,
    pub crc: u32,
}

/// Iterator over the chunks of one run. Owns what it writes, so it may run for as long as it takes, on any thread.
#[derive(Clone, Debug)]
pub struct SnapshotChunks {
    source: Source,
    chunk_bytes: usize,
    pending: BytesMut,
    records: u64,
    place: Place,
}

#[derive(Clone, Debug)]
enum Source {
    /// Everything of a view; the last version written.
    Whole { view: View, after: Option<(Bytes, i64)> },
    /// Versions ascending by (key, revision), and the first change that is not bare.
    Changes { versions: Peekable<IntoIter<Arc<KeyValue>>>, clothed: ChangeAt },
}

impl SnapshotChunks {
    pub(crate) fn whole(view: View, meta: &[u8]) -> SnapshotChunks {
        let mut pending = BytesMut::new();
        Header::of(view.state(), None, Bytes::copy_from_slice(meta)).put(&mut pending);
        SnapshotChunks::new(Source::Whole { view, after: None }, pending)
    }

    pub(crate) fn changes(
        view: &View,
        mut versions: Vec<Arc<KeyValue>>,
        follows: RunEnd,
        meta: &[u8],
    ) -> SnapshotChunks {
        let mut pending = BytesMut::new();
        let header = Header::of(view.state(), Some(follows), Bytes::copy_from_slice(meta));
        header.put(&mut pending);
        versions.sort_unstable_by(|a, b| (&a.key, a.mod_revision).cmp(&(&b.key, b.mod_revision)));
        let versions = versions.into_iter().peekable();
        SnapshotChunks::new(Source::Changes { versions, clothed: header.clothed }, pending)
    }

    fn new(source: Source, pending: BytesMut) -> SnapshotChunks {
        SnapshotChunks { source, chunk_bytes: CHUNK_BYTES, pending, records: 0, place: Place::default() }
    }

    /// Ends chunks at another size.
    #[must_use]
    pub fn of_bytes(self, chunk_bytes: usize) -> SnapshotChunks {
        SnapshotChunks { chunk_bytes, ..self }
    }

    /// Where the chunks given so far end.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Writes records until a body is full; true when nothing is left.
    fn fill(&mut self) -> bool {
        let full = self.chunk_bytes.saturating_sub(HEAD_BYTES).max(1);
        match &mut self.source {
            Source::Whole { view, after } => {
                let from = after.take();
                let from = from.as_ref().map(|(key, revision)| (&key[..], *revision));
                let mut versions = view.state().store.versions(from);
                while self.pending.len() < full {
                    let Some(version) = versions.next() else { return true };
                    put_record(&mut self.pending, version);
                    self.records += 1;
                    if self.pending.len() >= full {
                        *after = Some((version.key.clone(), version.mod_revision));
                    }
                }
            }
            Source::Changes { versions, clothed } => {
                while self.pending.len() < full {
                    let Some(version) = versions.next() else { return true };
                    // Compaction came by already: whoever merges would forget it.
                    let is_gone = versions.peek().is_some_and(|next| next.key == version.key && next.at() < *clothed);
                    if !is_gone {
                        put_record(&mut self.pending, &version);
                        self.records += 1;
                    }
                }
            }
        }
        false
    }
}

impl Iterator for SnapshotChunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.place.is_over {
            return None;
        }
        let is_last = self.fill();
        if is_last {
            self.pending.put_u8(END);
            put_u64(&mut self.pending, self.records);
        }
        let chunk = seal(&self.pending, &mut self.place, is_last);
        self.pending.clear();
        Some(chunk)
    }
}

/// What a run says of the state at its end.
#[derive(Clone, Debug)]
pub struct Header {
    pub applied_index: u64,
    /// None: the run is the whole state.
    pub follows: Option<RunEnd>,
    pub meta: Bytes,
    applied_term: u64,
    revision: i64,
    compact_revision: i64,
    first_change: Option<ChangeAt>,
    /// The first change that is not bare.
    clothed: ChangeAt,
    size_bytes: u64,
    hash: u64,
    cluster_version: ClusterVersion,
    alarms: BTreeSet<u64>,
}

impl Header {
    fn of(state: &State<TreeStore>, follows: Option<RunEnd>, meta: Bytes) -> Header {
        Header {
            applied_index: state.applied_index,
            follows,
            meta,
            applied_term: state.applied_term,
            revision: state.revision,
            compact_revision: state.compact_revision,
            first_change: state.store.first_change(),
            clothed: state.store.first_clothed().unwrap_or(AFTER_ALL),
            size_bytes: state.size_bytes,
            hash: state.whole_hash(),
            cluster_version: state.cluster_version,
            alarms: state.alarms.clone(),
        }
    }

    fn put(&self, out: &mut BytesMut) {
        put_u64(out, self.applied_index);
        out.put_u8(u8::from(self.follows.is_some()));
        let follows = self.follows.unwrap_or(RunEnd { index: 0, crc: 0 });
        put_u64(out, follows.index);
        put_u64(out, u64::from(follows.crc));
        put_u64(out, self.applied_term);
        put_i64(out, self.revision);
        put_i64(out, self.compact_revision);
        out.put_u8(u8::from(self.first_change.is_some()));
        put_at(out, self.first_change.unwrap_or_default());
        put_at(out, self.clothed);
        put_u64(out, self.size_bytes);
        put_u64(out, self.hash);
        put_u64(out, u64::from(self.cluster_version.major));
        put_u64(out, u64::from(self.cluster_version.minor));
        put_u64(out, self.alarms.len() as u64);
        self.alarms.iter().for_each(|member| put_u64(out, *member));
        put_bytes(out, &self.meta);
    }

    fn get(input: &mut &[u8]) -> Result<Header, DecodeError> {
        let applied_index = get_u64(input, "applied index")?;
        let has_before = get_u8(input, "has a run before")? != 0;
        let follows = RunEnd { index: get_u64(input, "index before")?, crc: get_u32(input, "checksum before")? };
        let applied_term = get_u64(input, "applied term")?;
        let revision = get_i64(input, "revision")?;
        let compact_revision = get_i64(input, "compact revision")?;
        let has_change = get_u8(input, "has change")? != 0;
        let first = get_at(input, "first change")?;
        Ok(Header {
            applied_index,
            follows: has_before.then_some(follows),
            applied_term,
            revision,
            compact_revision,
            first_change: has_change.then_some(first),
            clothed: get_at(input, "first change that is not bare")?,
            size_bytes: get_u64(input, "size")?,
            hash: get_u64(input, "hash")?,
            cluster_version: ClusterVersion::new(get_u16(input, "major")?, get_u16(input, "minor")?),
            alarms: get_alarms(input)?,
            meta: get_copy(input, "meta")?,
        })
    }
}

fn get_alarms(input: &mut &[u8]) -> Result<BTreeSet<u64>, DecodeError> {
    let got = get_u64(input, "alarm count")?;
    if got > ALARMS_MAX as u64 {
        return Err(DecodeError::TooLarge { field: "alarm count", got, limit: ALARMS_MAX });
    }
    (0..got).map(|_| get_u64(input, "alarm member")).collect()
}

fn put_at(out: &mut BytesMut, (main, sub): ChangeAt) {
    put_i64(out, main);
    put_u64(out, u64::from(sub));
}

fn get_at(input: &mut &[u8], field: &'static str) -> Result<ChangeAt, DecodeError> {
    Ok((get_i64(input, field)?, get_u32(input, field)?))
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

// ---- reading ---------------------------------------------------------------------------------------------------

fn get_record(input: &mut &[u8]) -> Result<KeyValue, DecodeError> {
    Ok(KeyValue {
        // Copies: a slice would keep its whole chunk in memory for as long as the version lives.
        key: get_copy(input, "key")?,
        value: get_copy(input, "value")?,
        create_revision: get_i64(input, "create revision")?,
        mod_revision: get_i64(input, "mod revision")?,
        sub_revision: get_u32(input, "sub-revision")?,
        version: get_i64(input, "version")?,
        lease: get_i64(input, "lease")?,
    })
}

fn get_copy(input: &mut &[u8], field: &'static str) -> Result<Bytes, DecodeError> {
    let len = usize::try_from(get_u64(input, field)?).unwrap_or(usize::MAX);
    let (bytes, rest) = input.split_at_checked(len).ok_or(DecodeError::Short { field })?;
    *input = rest;
    Ok(Bytes::copy_from_slice(bytes))
}

fn get_u32(input: &mut &[u8], field: &'static str) -> Result<u32, DecodeError> {
    let got = get_u64(input, field)?;
    u32::try_from(got).map_err(|_| DecodeError::TooLarge { field, got, limit: u32::MAX as usize })
}

/// The header that a first chunk begins with. The chunk has been [`check`]ed.
///
/// # Errors
/// It is no first chunk.
pub fn header_of(chunk: &[u8]) -> Result<Header, RestoreError> {
    Ok(Header::get(&mut chunk.get(HEAD_BYTES..).unwrap_or_default())?)
}

/// A chunk that is right in itself.
#[derive(Debug)]
pub struct Decoded {
    head: Head,
    header: Option<Header>,
    versions: Vec<Arc<KeyValue>>,
    hash: u64,
    size_bytes: u64,
    /// The number of records in the end mark.
    promised: Option<u64>,
}

/// Checks and decodes one chunk. Pure and by far the most of a load, so chunks may be decoded side by side; `at` is for
/// the error.
///
/// # Errors
/// Any byte that differs from what was sealed.
pub fn decode(chunk: &[u8], at: u32) -> Result<Decoded, RestoreError> {
    let head = check(chunk).map_err(|found| RestoreError::Chunk { sequence: at, found })?;
    let input = &mut &chunk[HEAD_BYTES..];
    let header = if head.sequence == 0 { Some(Header::get(input)?) } else { None };
    let mut decoded = Decoded { head, header, versions: Vec::new(), hash: 0, size_bytes: 0, promised: None };
    while !input.is_empty() && decoded.promised.is_none() {
        match get_u8(input, "record")? {
            RECORD => decoded.take(get_record(input)?)?,
            END if head.is_last => decoded.promised = Some(get_u64(input, "record count")?),
            got => return Err(DecodeError::Tag { field: "record", got }.into()),
        }
    }
    if input.is_empty() { Ok(decoded) } else { Err(DecodeError::Trailing { left: input.len() }.into()) }
}

impl Decoded {
    /// How many records it has.
    pub fn record_count(&self) -> usize {
        self.versions.len()
    }

    fn take(&mut self, version: KeyValue) -> Result<(), RestoreError> {
        if self.versions.last().is_some_and(|before| !is_after(before, &version)) {
            return Err(RestoreError::Order);
        }
        self.hash = self.hash.wrapping_add(hash::of_version(&version));
        self.size_bytes += version.size_bytes();
        self.versions.push(Arc::new(version));
        Ok(())
    }
}

fn is_after(before: &KeyValue, version: &KeyValue) -> bool {
    (&before.key, before.mod_revision) < (&version.key, version.mod_revision)
}

/// A run as far as it was taken.
#[derive(Default, Debug)]
struct Run {
    place: Place,
    header: Option<Header>,
    last: Option<Arc<KeyValue>>,
    records: u64,
}

impl Run {
    fn take(&mut self, decoded: &mut Decoded) -> Result<(), RestoreError> {
        let sequence = self.place.sequence;
        self.place.take(&decoded.head).map_err(|found| RestoreError::Chunk { sequence, found })?;
        if let Some(header) = decoded.header.take() {
            self.header = Some(header);
        }
        if let (Some(before), Some(first)) = (&self.last, decoded.versions.first())
            && !is_after(before, first)
        {
            return Err(RestoreError::Order);
        }
        self.records += decoded.versions.len() as u64;
        self.last = decoded.versions.last().cloned().or(self.last.take());
        match decoded.promised {
            Some(wanted) if wanted != self.records => {
                Err(RestoreError::Promise { field: "record count", wanted, got: self.records })
            }
            None if decoded.head.is_last => Err(DecodeError::Short { field: "end mark" }.into()),
            Some(_) | None => Ok(()),
        }
    }
}

/// Builds a machine from decoded chunks: first those of the runs of changes, if there are any, oldest run first; then
/// those of the whole run that they follow. The whole run streams through.
///
/// # Errors
/// After an error it gives nothing more; start again with a new one.
#[derive(Default, Debug)]
pub struct Restorer {
    run: Run,
    /// Runs of changes that are complete: headers and ends.
    ended: Vec<(Header, RunEnd)>,
    changes: Vec<Arc<KeyValue>>,
    hash: u64,
    size_bytes: u64,
    merge: Option<Merge>,
}

impl Restorer {
    /// Takes the next chunk.
    pub fn push(&mut self, mut decoded: Decoded) -> Result<(), RestoreError> {
        if self.run.place.is_over {
            if self.merge.is_some() {
                let sequence = self.run.place.sequence;
                return Err(RestoreError::Chunk { sequence, found: Damage::AfterLast });
            }
            self.end_run();
        }
        self.run.take(&mut decoded)?;
        self.hash = self.hash.wrapping_add(decoded.hash);
        self.size_bytes += decoded.size_bytes;
        let header = self.run.header.as_ref().expect("a first chunk has a header");
        if header.follows.is_some() {
            self.changes.append(&mut decoded.versions);
            return Ok(());
        }
        if self.merge.is_none() {
            let newest = self.ended.last().map_or(header, |(newest, _)| newest);
            let mut changes = std::mem::take(&mut self.changes);
            // Stable, as it is quick where sorted runs follow each other.
            changes.sort_by(|a, b| (&a.key, a.mod_revision).cmp(&(&b.key, b.mod_revision)));
            self.merge = Some(Merge::new(newest.clone(), changes));
        }
        let merge = self.merge.as_mut().expect("made just now");
        decoded.versions.into_iter().try_for_each(|version| merge.push(version))
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        let header = run.header.expect("a run that is over has a header");
        let end = RunEnd { index: header.applied_index, crc: run.place.crc };
        self.ended.push((header, end));
    }

    /// Builds the machine, if the last chunk was seen, and compares it with what the newest header promised.
    pub fn finish(mut self) -> Result<Restored, RestoreError> {
        let chunks = self.run.place.sequence;
        let (true, Some(merge)) = (self.run.place.is_over, self.merge.take()) else {
            return Err(RestoreError::Truncated { chunks });
        };
        self.end_run();
        let ((_, whole), changes) = self.ended.split_last().expect("ended just now");
        let mut end = *whole;
        for (header, next) in changes {
            if header.follows != Some(end) {
                return Err(RestoreError::Chain);
            }
            end = *next;
        }
        merge.finish(self.hash, self.size_bytes)
    }
}

/// The whole run with the changes worked in, key by key.
#[derive(Debug)]
struct Merge {
    header: Header,
    changes: Peekable<IntoIter<Arc<KeyValue>>>,
    /// The versions of one key.
    group: Vec<Arc<KeyValue>>,
    loader: Loader,
    /// Of what was left out.
    hash: u64,
    size_bytes: u64,
    bare: usize,
}

impl Merge {
    fn new(header: Header, changes: Vec<Arc<KeyValue>>) -> Merge {
        let loader = Loader::new(header.first_change);
        let changes = changes.into_iter().peekable();
        Merge { header, changes, group: Vec::new(), loader, hash: 0, size_bytes: 0, bare: 0 }
    }

    fn push(&mut self, version: Arc<KeyValue>) -> Result<(), RestoreError> {
        while let Some(change) = self.changes.next_if(|change| change.key < version.key) {
            self.add(change)?;
        }
        self.add(version)
    }

    fn add(&mut self, version: Arc<KeyValue>) -> Result<(), RestoreError> {
        match self.group.last() {
            Some(last) if last.key != version.key => self.end_key(),
            Some(last) if last.mod_revision >= version.mod_revision => return Err(RestoreError::Order),
            Some(_) | None => {}
        }
        self.group.push(version);
        Ok(())
    }

    /// Leaves out what compaction has forgotten.
    fn end_key(&mut self) {
        let first = self.header.first_change.unwrap_or(AFTER_ALL);
        let mut versions = self.group.drain(..).peekable();
        while let Some(version) = versions.next() {
            let at = version.at();
            let is_replaced = versions.peek().is_some_and(|next| next.at() < self.header.clothed);
            if is_replaced || (version.is_tombstone() && at < first) {
                self.hash = self.hash.wrapping_add(hash::of_version(&version));
                self.size_bytes += version.size_bytes();
                continue;
            }
            self.bare += usize::from(first <= at && at < self.header.clothed);
            self.loader.push(version);
        }
    }

    fn finish(mut self, hash: u64, size_bytes: u64) -> Result<Restored, RestoreError> {
        while let Some(change) = self.changes.next() {
            self.add(change)?;
        }
        self.end_key();
        let header = self.header;
        let state = State {
            store: self.loader.finish(self.bare),
            applied_index: header.applied_index,
            applied_term: header.applied_term,
            revision: header.revision,
            compact_revision: header.compact_revision,
            hash: hash.wrapping_sub(self.hash),
            size_bytes: size_bytes - self.size_bytes,
            cluster_version: header.cluster_version,
            alarms: header.alarms,
        };
        let promises = [("size", header.size_bytes, state.size_bytes), ("state hash", header.hash, state.whole_hash())];
        for (field, wanted, got) in promises {
            if wanted != got {
                return Err(RestoreError::Promise { field, wanted, got });
            }
        }
        Ok(Restored { machine: Machine::of(state), meta: header.meta })
    }
}

pub(crate) fn restore(chunks: impl IntoIterator<Item = Bytes>) -> Result<Restored, RestoreError> {
    let mut restorer = Restorer::default();
    for (at, chunk) in (0..).zip(chunks) {
        restorer.push(decode(&chunk, at)?)?;
    }
    restorer.finish()
}
