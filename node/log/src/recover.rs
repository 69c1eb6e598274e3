//! Reading a log back: what is there, what was torn, what is rot.
//!
//! Must not change a promised byte. The only writes are zeros over the remains of a torn last batch, and the removal of
//! files that were never finished or were dropped before.

use bytes::Bytes;
use quorate_raft::types::{Entry, HardState, SnapMeta};

use crate::disk::{Disk, FileId};
use crate::error::{Identity, LogError};
use crate::format::{
    BLOCK_BYTES, BatchHeader, FORMAT_VERSION, HEADER_BYTES, Held, META_BYTES, MetaSlot, SegmentHeader, Stored,
    batch_len_bytes, decode_records,
};
use crate::log::{
    META_NAME, Options, RESERVE_NAME, Segments, Tail, UNFINISHED_SUFFIX, failed, segment_id_of, segment_name,
};

/// Everything `Log::open` needs to go on.
pub(crate) struct Found {
    pub(crate) hard: HardState,
    pub(crate) mark: SnapMeta,
    pub(crate) entries: Vec<Entry>,
    pub(crate) segments: Segments,
    pub(crate) tail: Tail,
    /// The newest slot.
    pub(crate) meta: MetaSlot,
    pub(crate) meta_file: FileId,
    /// The slot to write next: the unreadable or the older one.
    pub(crate) meta_slot: usize,
    pub(crate) next_generation: u64,
    /// A segment of zeros for a full volume is there.
    pub(crate) has_reserve: bool,
}

/// State of the replay.
#[derive(Default)]
struct Replay {
    hard: HardState,
    hard_seq: u64,
    mark: Option<SnapMeta>,
    /// Contiguous in itself. While segments that were dropped held its beginning it may start above the mark.
    entries: Vec<Entry>,
    segments: Segments,
    /// A planted bug; always false in a release build.
    keeps_one_more: bool,
}

/// The meta slots as read.
pub(crate) struct Meta {
    pub(crate) file: FileId,
    pub(crate) slots: [Option<MetaSlot>; 2],
}

pub(crate) fn recover<D: Disk>(
    disk: &mut D,
    options: &Options,
    expected: Option<&Identity>,
) -> Result<Found, LogError> {
    // A process crash leaves names that were never flushed; they must be durable before anything builds on them.
    disk.sync_dir().map_err(failed("flushing", "the directory"))?;
    let names = disk.list().map_err(failed("listing", "."))?;
    if !names.iter().any(|name| name == META_NAME) {
        return Err(LogError::Missing);
    }
    let meta = read_meta(disk)?;
    let (newest_slot, newest) = check_meta(&meta, expected)?;
    let ids = live_segments(&names)?;
    let mut replay = Replay { keeps_one_more: planted!(options, TruncateOffByOne), ..Replay::default() };
    let mut tail: Option<Tail> = None;
    let mut tail_was_cut = false;
    for (position, id) in ids.iter().enumerate() {
        let is_last = position + 1 == ids.len();
        let mut walk = Walk::read(disk, options, *id, &newest.identity, tail.as_ref())?;
        replay.segments.open(*id);
        walk.replay(&mut replay)?;
        let cut = walk.end(is_last, &newest, planted!(options, RotCutAsTorn))?;
        if let Some(dirty) = cut {
            tail_was_cut = true;
            let dirty = if planted!(options, TornTailNotCleared) { (dirty.0, dirty.0) } else { dirty };
            disk.zero_fill(walk.tail.file, dirty.0, dirty.1 - dirty.0)
                .map_err(failed("clearing the torn end", &segment_name(*id)))?;
            disk.datasync(walk.tail.file).map_err(failed("flushing", &segment_name(*id)))?;
        }
        if let Some(before) = tail.replace(walk.tail) {
            disk.close(before.file);
        }
    }
    let tail = tail.ok_or_else(|| corrupt(META_NAME, 0, "no segment file is left"))?;
    let (mark, entries, hard) = conclude(replay.mark, replay.entries, replay.hard, &tail)?;
    let unreadable = meta.slots.iter().position(Option::is_none);
    if let (true, Some(slot)) = (tail_was_cut && !planted!(options, LostVoteIgnored), unreadable) {
        return Err(LogError::LostVote { slot });
    }
    check_vote(&hard, replay.hard_seq, &newest)?;
    remove_leftovers(disk, &names, &ids)?;
    let has_reserve = keep_reserve(disk, options, &names)?;
    // An unreadable slot may have been the newest one, of a generation one above what the other one knows.
    let step = if unreadable.is_some() && !planted!(options, LostSlotGenerationReused) { 2 } else { 1 };
    let step = if planted!(options, GenerationNotRaised) { 0 } else { step };
    Ok(Found {
        hard,
        mark,
        entries,
        segments: replay.segments,
        tail,
        meta: newest,
        meta_file: meta.file,
        meta_slot: unreadable.unwrap_or(1 - newest_slot),
        next_generation: newest.generation.saturating_add(step),
        has_reserve,
    })
}

pub(crate) fn corrupt(file: &str, offset_bytes: u64, what: impl Into<String>) -> LogError {
    LogError::Corrupt { file: file.to_owned(), offset_bytes, what: what.into() }
}

pub(crate) fn read_meta<D: Disk>(disk: &mut D) -> Result<Meta, LogError> {
    let file = disk.open(META_NAME).map_err(failed("opening", META_NAME))?;
    disk.sync_and_forget(file).map_err(failed("flushing", META_NAME))?;
    let len_bytes = disk.len_bytes(file).map_err(failed("measuring", META_NAME))?;
    if len_bytes != META_BYTES as u64 {
        return Err(corrupt(META_NAME, len_bytes, format!("its length should be {META_BYTES}")));
    }
    let mut bytes = vec![0u8; META_BYTES];
    disk.read_at(file, 0, &mut bytes).map_err(failed("reading", META_NAME))?;
    let other = bytes.chunks(BLOCK_BYTES).find_map(MetaSlot::other_version);
    if let Some(found) = other {
        return Err(LogError::Format { file: META_NAME.to_owned(), found, wanted: FORMAT_VERSION });
    }
    let slots = [MetaSlot::decode(&bytes[..BLOCK_BYTES]), MetaSlot::decode(&bytes[BLOCK_BYTES..])];
    Ok(Meta { file, slots })
}

/// The newest readable slot, after the identity was checked.
pub(crate) fn check_meta(meta: &Meta, expected: Option<&Identity>) -> Result<(usize, MetaSlot), LogError> {
    let readable = meta.slots.iter().enumerate().filter_map(|(at, slot)| slot.map(|slot| (at, slot)));
    let (at, newest) = readable
        .max_by_key(|(at, slot)| (slot.write_no, *at))
        .ok_or_else(|| corrupt(META_NAME, 0, "neither slot can be read"))?;
    if let Some(expected) = expected
        && newest.identity != *expected
    {
        return Err(LogError::ForeignIdentity { expected: *expected, found: newest.identity });
    }
    if meta.slots.iter().flatten().any(|slot| slot.identity != newest.identity) {
        return Err(corrupt(META_NAME, 0, "the slots name different members"));
    }
    Ok((at, newest))
}

/// Ids of the segments to read: the contiguous ones up to the newest. Removals are not flushed, so after a power loss
/// some dropped segments may be back; whether one is missing that is needed shows at the end of the replay.
pub(crate) fn live_segments(names: &[String]) -> Result<Vec<u64>, LogError> {
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment_id_of(name)).collect();
    ids.sort_unstable();
    let mut first = ids.len();
    while first > 0 && (first == ids.len() || ids[first - 1] + 1 == ids[first]) {
        first -= 1;
    }
    Ok(ids.split_off(first))
}

/// A reserve of another length than segments have now is of no use.
fn keep_reserve<D: Disk>(disk: &mut D, options: &Options, names: &[String]) -> Result<bool, LogError> {
    if !names.iter().any(|name| name == RESERVE_NAME) {
        return Ok(false);
    }
    let file = disk.open(RESERVE_NAME).map_err(failed("opening", RESERVE_NAME))?;
    let len_bytes = disk.len_bytes(file).map_err(failed("measuring", RESERVE_NAME))?;
    disk.close(file);
    if len_bytes == options.segment_bytes {
        return Ok(true);
    }
    disk.remove(RESERVE_NAME).map_err(failed("removing", RESERVE_NAME))?;
    Ok(false)
}

fn remove_leftovers<D: Disk>(disk: &mut D, names: &[String], live: &[u64]) -> Result<(), LogError> {
    for name in names {
        let dropped = segment_id_of(name).is_some_and(|id| !live.contains(&id));
        if dropped || name.ends_with(UNFINISHED_SUFFIX) {
            disk.remove(name).map_err(failed("removing", name))?;
        }
    }
    Ok(())
}

/// One segment being read.
struct Walk {
    name: String,
    bytes: Vec<u8>,
    tail: Tail,
    first: bool,
    /// A planted bug; always true in a release build.
    checks_chain: bool,
}

impl Walk {
    fn read<D: Disk>(
        disk: &mut D,
        options: &Options,
        id: u64,
        identity: &Identity,
        before: Option<&Tail>,
    ) -> Result<Walk, LogError> {
        let name = segment_name(id);
        let file = disk.open(&name).map_err(failed("opening", &name))?;
        if !planted!(options, TailTrustedUnflushed) {
            disk.sync_and_forget(file).map_err(failed("flushing", &name))?;
        }
        let len_bytes = disk.len_bytes(file).map_err(failed("measuring", &name))?;
        let mut bytes = vec![0u8; len_bytes as usize];
        disk.read_at(file, 0, &mut bytes).map_err(failed("reading", &name))?;
        let header =
            SegmentHeader::decode(&bytes).ok_or_else(|| corrupt(&name, 0, "the segment header cannot be read"))?;
        let is_ours = header.identity == *identity && header.segment_id == id;
        if !is_ours && !planted!(options, ForeignSegmentAccepted) {
            return Err(corrupt(&name, 0, format!("it belongs to {:?}", header.identity)));
        }
        if let Some(before) = before
            && (before.seq + 1 != header.first_seq || before.chain != header.chain)
        {
            let name = segment_name(before.header.segment_id);
            let what = format!("batch {} is expected, the next segment begins at {}", before.seq + 1, header.first_seq);
            return Err(corrupt(&name, before.offset_bytes, what));
        }
        let tail = Tail {
            file,
            len_bytes,
            offset_bytes: BLOCK_BYTES as u64,
            seq: header.first_seq - 1,
            chain: header.chain,
            held: Held::default(),
            header,
        };
        let checks_chain = !planted!(options, ChainNotChecked);
        Ok(Walk { name, bytes, tail, first: before.is_none(), checks_chain })
    }

    /// Replays every batch that is whole and in its place, and stops at the first that is not.
    fn replay(&mut self, replay: &mut Replay) -> Result<(), LogError> {
        while let Some((header, crc, body)) = self.next_batch() {
            let offset_bytes = self.tail.offset_bytes;
            let bad = |what: String| corrupt(&self.name, offset_bytes, what);
            let body_bytes = body.len();
            for record in decode_records(body).map_err(bad)? {
                replay.take(record, header.seq).map_err(bad)?;
            }
            self.tail.seq = header.seq;
            self.tail.chain = crc;
            self.tail.held = header.held;
            self.tail.offset_bytes += batch_len_bytes(body_bytes) as u64;
        }
        Ok(())
    }

    fn next_batch(&self) -> Option<(BatchHeader, u32, Bytes)> {
        let at = self.tail.offset_bytes as usize;
        let rest = self.bytes.get(at..)?;
        let (header, crc) = BatchHeader::decode(rest, &self.tail.header)?;
        let body = rest.get(HEADER_BYTES..HEADER_BYTES.checked_add(header.body_bytes as usize)?)?;
        let whole = header.seq == self.tail.seq + 1
            && (header.chain == self.tail.chain || !self.checks_chain)
            && crc32c::crc32c(body) == header.body_crc;
        // Copied, so that a small entry that lives on does not keep the whole segment in memory.
        whole.then(|| (header, crc, Bytes::copy_from_slice(body)))
    }

    /// Judges what stands behind the last good batch. `Some(range)`: remains of a torn batch, to be cleared.
    fn end(&self, is_last: bool, newest: &MetaSlot, believes_torn: bool) -> Result<Option<(u64, u64)>, LogError> {
        let at = self.tail.offset_bytes as usize;
        if self.tail.seq < self.tail.header.first_seq {
            let what = if self.first { "its first batch cannot be read" } else { "its checkpoint cannot be read" };
            return Err(corrupt(&self.name, at as u64, what));
        }
        let expected_seq = self.tail.seq + 1;
        for offset in (at..self.bytes.len()).step_by(BLOCK_BYTES) {
            if let Some((later, _)) = BatchHeader::decode(&self.bytes[offset..], &self.tail.header)
                && later.seq > expected_seq
                && !believes_torn
            {
                let what =
                    format!("batch {expected_seq} was promised (batch {} follows) and cannot be read", later.seq);
                return Err(corrupt(&self.name, at as u64, what));
            }
        }
        if is_last && newest.durable_seq >= expected_seq && !believes_torn {
            let what = format!("batch {expected_seq} was promised (up to {}) and cannot be read", newest.durable_seq);
            return Err(corrupt(&self.name, at as u64, what));
        }
        let rest = &self.bytes[at.min(self.bytes.len())..];
        let Some(dirty_end) = rest.iter().rposition(|byte| *byte != 0) else { return Ok(None) };
        if !is_last {
            // Rotation happens only after the last batch was durable, so nothing torn can stand here.
            return Err(corrupt(&self.name, at as u64, "bytes stand behind the last batch of a finished segment"));
        }
        let end = (at + dirty_end + 1).next_multiple_of(BLOCK_BYTES).min(self.bytes.len());
        Ok(Some((at as u64, end as u64)))
    }
}

impl Replay {
    fn take(&mut self, record: Stored, seq: u64) -> Result<(), String> {
        match record {
            Stored::HardState(hard) => {
                self.hard = hard;
                self.hard_seq = seq;
            }
            Stored::Append(entries) => {
                if let (Some(last), Some(first)) = (self.entries.last(), entries.first())
                    && last.index + 1 != first.index
                {
                    return Err(format!("entry {} does not follow {}", first.index, last.index));
                }
                if entries.windows(2).any(|pair| pair[0].index + 1 != pair[1].index) {
                    return Err("entries of a batch are not contiguous".to_owned());
                }
                if let Some(last) = entries.last() {
                    self.segments.appended(last.index);
                }
                self.entries.extend(entries);
            }
            Stored::TruncateTo(index) => {
                let keep = self.entries.partition_point(|entry| entry.index <= index + u64::from(self.keeps_one_more));
                self.entries.truncate(keep);
                self.segments.truncated(index);
            }
            Stored::Mark { meta, keeps } => {
                if keeps {
                    let behind = self.entries.partition_point(|entry| entry.index <= meta.index);
                    self.entries.drain(..behind);
                } else {
                    self.entries.clear();
                    self.segments.cleared();
                }
                self.mark = Some(meta);
            }
        }
        Ok(())
    }
}

/// Checks that nothing between mark and entries is missing.
fn conclude(
    mark: Option<SnapMeta>,
    entries: Vec<Entry>,
    hard: HardState,
    tail: &Tail,
) -> Result<(SnapMeta, Vec<Entry>, HardState), LogError> {
    let name = segment_name(tail.header.segment_id);
    let mark = mark.ok_or_else(|| corrupt(&name, 0, "no mark was found"))?;
    if let Some(first) = entries.first()
        && first.index != mark.index + 1
    {
        let what = format!("entries {} to {} are missing", mark.index + 1, first.index - 1);
        return Err(corrupt(&name, 0, what));
    }
    Ok((mark, entries, hard))
}

/// A slot is written only after the log's own record is durable, so it can never know more than the log.
fn check_vote(hard: &HardState, hard_seq: u64, newest: &MetaSlot) -> Result<(), LogError> {
    if newest.hard.term > hard.term
        || (newest.hard.term == hard.term && newest.durable_seq >= hard_seq && newest.hard != *hard)
    {
        let what = format!("the slot holds {:?}, the log {hard:?}", newest.hard);
        return Err(corrupt(META_NAME, 0, what));
    }
    Ok(())
}
