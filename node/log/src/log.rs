//! The durable log: one writer, one flush in flight.
//!
//! `append` is one batch, one write, one flush; what it returned `Ok` for is there after any crash. After an error that
//! leaves doubt the log stops for good and never tries again. Must not read the clock, invent numbers, or repair damage.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use quorate_raft::types::{Entry, HardState, Index, Record, Recovered, SnapMeta, Term, WriteSeq};

use crate::disk::{Disk, FileId};
use crate::error::{Identity, LogError};
use crate::format::{
    BLOCK_BYTES, BatchHeader, HEADER_BYTES, Held, META_BYTES, MetaSlot, SegmentHeader, batch_len_bytes, encode_record,
};
use crate::identity::Lineage;
use crate::recover;

/// Name of the file with the two meta slots. It is created last: a directory without it never promised anything.
pub(crate) const META_NAME: &str = "meta";
/// Files under this suffix are unfinished and removed at open.
pub(crate) const UNFINISHED_SUFFIX: &str = ".new";
const META_NEW_NAME: &str = "meta.new";
const SPARE_NAME: &str = "spare.new";
/// A segment's worth of zeros, kept for the day the volume is full: votes, truncations, marks and the entries of a leader
/// go on in it while clients are refused.
pub(crate) const RESERVE_NAME: &str = "reserve";
/// Default length of a segment. Filling it ahead with zeros halves the latency of a flush.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Zeros written ahead by one call of [`Log::tend`]: small, so that an append never waits long behind it.
const TEND_CHUNK_BYTES: u64 = 1 << 20;
/// The same beside appends: a fraction of what one flush takes.
const PACE_CHUNK_BYTES: u64 = 256 << 10;
/// After a spare found no room, so many calls that would begin the next one leave it: half a minute of a log at rest.
const SPARE_PAUSE_CALLS: u32 = 64;
/// Dropped segments that may wait for [`Log::tend`] before `append` removes one itself.
const REMOVALS_WAITING_MAX: usize = 4;
/// A batch keeps its length in 32 bits. The core's budgets are far below.
const BODY_BYTES_MAX: usize = 1 << 30;
/// The buffer is given back after a batch larger than this, so that one large batch does not hold memory forever.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

pub(crate) fn segment_name(id: u64) -> String {
    format!("wal-{id:016x}.seg")
}

pub(crate) fn segment_id_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Sizes, and the number that names this process run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Length of a segment. A batch that is larger gets a segment of its own length.
    pub segment_bytes: u64,
    /// Random; drawn by the shell, new at each start.
    pub boot_nonce: u64,
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::mutant::Mutant>,
}

impl Options {
    /// The usual sizes.
    pub fn new(boot_nonce: u64) -> Options {
        Options {
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            boot_nonce,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// Names an operation and a file in an error.
pub(crate) fn failed(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Io { operation, file, source }
}

/// What the log holds, as far as appending needs it: positions and terms, not entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    mark: (Index, Term),
    last: Index,
    /// First index of each run of entries of one term, ascending.
    runs: Vec<(Index, Term)>,
}

impl Shape {
    pub(crate) fn new(mark: &SnapMeta, entries: &[Entry]) -> Shape {
        let mut shape = Shape { mark: (mark.index, mark.term), last: mark.index, runs: Vec::new() };
        for entry in entries {
            shape.push(entry.index, entry.term);
        }
        shape
    }

    fn push(&mut self, index: Index, term: Term) {
        if self.runs.last().is_none_or(|run| run.1 != term) {
            self.runs.push((index, term));
        }
        self.last = index;
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.mark.0 {
            return Some(self.mark.1);
        }
        if index < self.mark.0 || index > self.last {
            return None;
        }
        self.runs.iter().rev().find(|run| run.0 <= index).map(|run| run.1)
    }

    fn truncate(&mut self, to: Index) {
        self.last = self.last.min(to);
        while self.runs.last().is_some_and(|run| run.0 > to) {
            self.runs.pop();
        }
    }

    /// Whether the log holds the mark's (index, term), so that entries above it stay.
    fn holds(&self, mark: &SnapMeta) -> bool {
        self.term_at(mark.index) == Some(mark.term)
    }

    fn set_mark(&mut self, mark: &SnapMeta, keeps: bool) {
        if !keeps {
            self.runs.clear();
            self.last = mark.index;
        }
        self.mark = (mark.index, mark.term);
        let behind = self.runs.iter().rposition(|run| run.0 <= mark.index).unwrap_or(0);
        self.runs.drain(..behind);
    }

    /// Applies one record, or says which rule it breaks.
    fn take(&mut self, record: &Record) -> Result<bool, String> {
        match record {
            Record::HardState(_) => {}
            Record::Append(entries) => {
                for entry in entries {
                    if entry.index != self.last + 1 {
                        return Err(format!("entry {} does not follow {}", entry.index, self.last));
                    }
                    self.push(entry.index, entry.term);
                }
            }
            Record::TruncateTo(index) => {
                if *index < self.mark.0 {
                    return Err(format!("truncation to {index} cuts below the mark {}", self.mark.0));
                }
                self.truncate(*index);
            }
            Record::SnapshotMark(meta) => {
                if meta.index < self.mark.0 {
                    return Err(format!("mark {} is below the mark {}", meta.index, self.mark.0));
                }
                let keeps = self.holds(meta);
                self.set_mark(meta, keeps);
                return Ok(keeps);
            }
        }
        Ok(true)
    }
}

/// Which segments hold entries that still matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    /// Id and highest index of a live entry within, oldest first. The last one is being written.
    items: VecDeque<(u64, Index)>,
}

impl Segments {
    pub(crate) fn open(&mut self, id: u64) {
        self.items.push_back((id, 0));
    }
    pub(crate) fn appended(&mut self, last: Index) {
        if let Some(active) = self.items.back_mut() {
            active.1 = last;
        }
    }
    pub(crate) fn truncated(&mut self, to: Index) {
        for item in &mut self.items {
            item.1 = item.1.min(to);
        }
    }
    pub(crate) fn cleared(&mut self) {
        self.truncated(0);
    }
    fn active(&self) -> u64 {
        self.items.back().map_or(0, |item| item.0)
    }
    /// Takes out the segments before the active one with nothing above the mark.
    fn drop_behind(&mut self, mark: Index) -> Vec<u64> {
        let mut dropped = Vec::new();
        while self.items.len() > 1 && self.items[0].1 <= mark {
            dropped.extend(self.items.pop_front().map(|item| item.0));
        }
        dropped
    }
}

/// Where the next batch goes and what it must carry.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) file: FileId,
    pub(crate) header: SegmentHeader,
    pub(crate) len_bytes: u64,
    /// Offset of the next batch.
    pub(crate) offset_bytes: u64,
    /// Sequence of the last durable batch.
    pub(crate) seq: u64,
    /// CRC of the last batch's header.
    pub(crate) chain: u32,
    pub(crate) held: Held,
}

/// A segment that is being filled with zeros ahead of its use.
#[derive(Debug)]
struct Spare {
    file: FileId,
    filled_bytes: u64,
    synced: bool,
}

/// How much room the volume has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Free on the volume.
    pub free_bytes: u64,
    /// Set aside in files of this log that hold nothing yet.
    pub reserved_bytes: u64,
    /// Nothing that grows may be accepted any more: what is left is for votes and for what makes room.
    pub is_low: bool,
}

/// A durable log on a disk.
///
/// # Invariants
/// - everything before `tail.offset_bytes` is durable, everything behind it in the segment is zero.
/// - the newest meta slot names no batch above `tail.seq`.
pub struct Log<D> {
    disk: D,
    options: Options,
    identity: Identity,
    generation: u64,
    /// The starts before this one.
    before: Lineage,
    meta_file: FileId,
    meta_write_no: u64,
    /// What each slot says was durable.
    meta_durable: [u64; 2],
    /// Slot that is written next.
    meta_slot: usize,
    hard: HardState,
    mark: SnapMeta,
    shape: Shape,
    segments: Segments,
    tail: Tail,
    spare: Option<Spare>,
    /// Calls that still leave the next spare alone.
    spare_pause: u32,
    has_reserve: bool,
    removals: VecDeque<u64>,
    last_write: WriteSeq,
    buffer: BytesMut,
    stopped: bool,
}

impl<D: fmt::Debug> fmt::Debug for Log<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("identity", &self.identity)
            .field("generation", &self.generation)
            .field("hard", &self.hard)
            .field("mark", &(self.mark.index, self.mark.term))
            .field("last", &self.shape.last)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> Log<D> {
    /// Creates a log in a directory that holds none, standing at `bootstrap`.
    ///
    /// # Errors
    /// `Exists` when a finished log is there. Remains of an unfinished creation are removed: they promised nothing.
    ///
    /// # Durability
    /// On return the log, its identity and its first generation are durable.
    pub fn create(mut disk: D, options: Options, identity: Identity, bootstrap: SnapMeta) -> Result<Log<D>, LogError> {
        let names = disk.list().map_err(failed("listing", "."))?;
        if names.iter().any(|name| name == META_NAME) {
            return Err(LogError::Exists);
        }
        let is_remains =
            |n: &&String| n.ends_with(UNFINISHED_SUFFIX) || *n == RESERVE_NAME || segment_id_of(n).is_some();
        for name in names.iter().filter(is_remains) {
            disk.remove(name).map_err(failed("removing", name))?;
        }
        let hard = HardState::default();
        let place = Place { segment_id: 1, first_seq: 1, chain: 0, held: Held::default() };
        let tail =
            start_segment(&mut disk, &options, &identity, &place, &hard, &bootstrap, 0, (&mut None, &mut false))?;
        let meta_file = write_first_meta(&mut disk, &options, &identity, hard, tail.seq)?;
        let mut segments = Segments::default();
        segments.open(1);
        Ok(Log {
            disk,
            options,
            identity,
            generation: 1,
            before: Lineage::default(),
            meta_file,
            meta_write_no: 1,
            meta_durable: [tail.seq; 2],
            meta_slot: 1,
            hard,
            shape: Shape::new(&bootstrap, &[]),
            mark: bootstrap,
            segments,
            tail,
            spare: None,
            spare_pause: 0,
            has_reserve: false,
            removals: VecDeque::new(),
            last_write: WriteSeq(0),
            buffer: BytesMut::new(),
            stopped: false,
        })
    }

    /// Opens the log of a directory and gives back what it holds.
    ///
    /// Flushes first and reads from the medium, so that nothing is trusted that only a page cache knows.
    ///
    /// # Errors
    /// `Missing`, `ForeignIdentity`, `Corrupt`, `LostVote`, `Io`: this member must not speak; nothing was changed then.
    ///
    /// # Durability
    /// On return everything given back is durable, and so are the raised generation and the boot nonce.
    pub fn open(mut disk: D, options: Options, expected: Option<&Identity>) -> Result<(Log<D>, Recovered), LogError> {
        let found = recover::recover(&mut disk, &options, expected)?;
        let recovered = Recovered {
            hard: found.hard,
            snapshot: found.mark.clone(),
            entries: found.entries,
            incarnation: found.meta.identity.incarnation,
        };
        let mut log = Log {
            disk,
            options,
            identity: found.meta.identity,
            generation: found.next_generation,
            before: found.meta.lineage(),
            meta_file: found.meta_file,
            meta_write_no: found.meta.write_no,
            meta_durable: [0; 2],
            meta_slot: found.meta_slot,
            hard: found.hard,
            shape: Shape::new(&recovered.snapshot, &recovered.entries),
            mark: found.mark,
            segments: found.segments,
            tail: found.tail,
            spare: None,
            spare_pause: 0,
            has_reserve: found.has_reserve,
            removals: VecDeque::new(),
            last_write: WriteSeq(0),
            buffer: BytesMut::new(),
            stopped: false,
        };
        log.write_meta()?;
        log.removals.extend(log.segments.drop_behind(log.mark.index));
        Ok((log, recovered))
    }

    /// Makes the records durable, in order, as one batch.
    ///
    /// # Errors
    /// `NoSpace`: nothing was accepted, the same batch may be given again later. `OutOfOrder`: the caller is wrong.
    /// Any other: some of the batch may be on disk; the log has stopped.
    ///
    /// # Durability
    /// On `Ok` every record is durable, a `HardState` in both of its copies.
    pub fn append(&mut self, batch: &[(WriteSeq, Record)]) -> Result<(), LogError> {
        if self.stopped {
            return Err(LogError::Stopped);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.buffer.clear();
        self.buffer.resize(HEADER_BYTES, 0);
        let staged = self.stage(batch)?;
        let len_bytes = batch_len_bytes(self.buffer.len() - HEADER_BYTES);
        if self.tail.offset_bytes + len_bytes as u64 > self.tail.len_bytes {
            self.rotate(len_bytes as u64)?;
        }
        let result = self.write_staged(len_bytes, staged);
        // Whatever failed, bytes may be on disk or not: nobody may rely on a second try.
        self.stopped = result.is_err() && !planted!(self.options, ErrorDoesNotStop);
        result
    }

    /// Brings log and engine together at start: an engine beyond what the log holds counts as a snapshot mark (a crash
    /// came between its swap and the mark), and so does one that contradicts the log. `engine` is the engine's durable
    /// position. Changes `recovered` to what the core is then restarted with; `WriteSeq`s still begin at 1.
    ///
    /// # Errors
    /// `EngineBehind`: the log was cut on the strength of a state the engine no longer has.
    ///
    /// # Durability
    /// A mark this adds is durable on return.
    pub fn adopt_engine(&mut self, recovered: &mut Recovered, engine: &SnapMeta) -> Result<(), LogError> {
        if engine.index < self.mark.index && !planted!(self.options, EngineBehindAccepted) {
            return Err(LogError::EngineBehind { engine: engine.index, mark: self.mark.index });
        }
        if self.shape.holds(engine) || planted!(self.options, EngineBeyondLogIgnored) {
            return Ok(());
        }
        let mut batch = Vec::new();
        if engine.term > self.hard.term {
            // The engine swapped before the new term was on disk. No promise of that term can have left.
            batch.push((WriteSeq(1), Record::HardState(HardState { term: engine.term, vote: None })));
        }
        batch.push((WriteSeq(2), Record::SnapshotMark(engine.clone())));
        self.append(&batch)?;
        self.last_write = WriteSeq(0);
        *recovered = Recovered {
            hard: self.hard,
            snapshot: engine.clone(),
            entries: Vec::new(),
            incarnation: recovered.incarnation,
        };
        Ok(())
    }

    /// Checks the order of the records and encodes them behind the header's place. Changes nothing but the buffer.
    fn stage(&mut self, batch: &[(WriteSeq, Record)]) -> Result<Staged, LogError> {
        let mut staged = Staged {
            shape: self.shape.clone(),
            segment_steps: Vec::new(),
            held: Held::default(),
            hard: self.hard,
            mark: None,
            has_hard: false,
            last_write: self.last_write,
        };
        for (seq, record) in batch {
            if *seq <= staged.last_write {
                let what = format!("it follows write {}", staged.last_write.0);
                return Err(LogError::OutOfOrder { seq: seq.0, what });
            }
            staged.last_write = *seq;
            let keeps = planted!(self.options, MarkKeepsAlienLog)
                | staged.shape.take(record).map_err(|what| LogError::OutOfOrder { seq: seq.0, what })?;
            let entries_crc = encode_record(record, keeps, &mut self.buffer);
            staged.note(record, keeps, entries_crc);
        }
        if self.buffer.len() > BODY_BYTES_MAX {
            let what = format!("a batch of {} bytes is above {BODY_BYTES_MAX}", self.buffer.len());
            return Err(LogError::OutOfOrder { seq: staged.last_write.0, what });
        }
        Ok(staged)
    }

    fn write_staged(&mut self, len_bytes: usize, staged: Staged) -> Result<(), LogError> {
        if planted!(self.options, ClearedBeforeMark)
            && let Some(mark) = &staged.mark
        {
            self.removals.extend(self.segments.drop_behind(mark.index));
            while !self.removals.is_empty() {
                self.remove_one()?;
            }
        }
        let header = self.tail.next_header(&self.buffer[HEADER_BYTES..], staged.hard.term, staged.held);
        self.buffer.resize(len_bytes, 0);
        let crc = header.encode_into(&mut self.buffer, &self.tail.header);
        let name = segment_name(self.tail.header.segment_id);
        self.disk.write_at(self.tail.file, self.tail.offset_bytes, &self.buffer).map_err(failed("writing", &name))?;
        if !planted!(self.options, AppendWithoutFlush) {
            let mut flushed = self.disk.datasync(self.tail.file);
            if planted!(self.options, FlushErrorIgnored) && flushed.is_err() {
                flushed = self.disk.datasync(self.tail.file);
            }
            flushed.map_err(failed("flushing", &name))?;
        }
        self.tail.seq += 1;
        self.tail.chain = crc;
        self.tail.held = staged.held;
        self.tail.offset_bytes += len_bytes as u64;
        self.shape = staged.shape;
        self.hard = staged.hard;
        self.last_write = staged.last_write;
        for step in staged.segment_steps {
            step.apply(&mut self.segments);
        }
        if staged.has_hard && !planted!(self.options, VoteSentAfterOneCopy) {
            self.write_meta()?;
        }
        if let Some(mark) = staged.mark {
            self.mark = mark;
            let behind = self.mark.index + if planted!(self.options, SegmentDroppedEarly) { 3 } else { 0 };
            self.removals.extend(self.segments.drop_behind(behind));
            while self.removals.len() > REMOVALS_WAITING_MAX {
                self.remove_one()?;
            }
        }
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Goes on in a new segment that has room for a batch of this length.
    fn rotate(&mut self, batch_bytes: u64) -> Result<(), LogError> {
        let place = Place {
            segment_id: self.segments.active() + 1,
            first_seq: self.tail.seq + 1,
            chain: self.tail.chain,
            held: self.tail.held,
        };
        let tail = start_segment(
            &mut self.disk,
            &self.options,
            &self.identity,
            &place,
            &self.hard,
            &self.mark,
            batch_bytes,
            (&mut self.spare, &mut self.has_reserve),
        );
        match tail {
            Ok(tail) => {
                self.disk.close(self.tail.file);
                self.tail = tail;
                self.segments.open(place.segment_id);
                Ok(())
            }
            Err(error) => {
                self.stopped = !matches!(error, LogError::NoSpace { .. });
                Err(error)
            }
        }
    }

    /// Writes identity, generation, term and vote into the older slot.
    fn write_meta(&mut self) -> Result<(), LogError> {
        let slot = MetaSlot {
            identity: self.identity,
            generation: self.generation,
            boot_nonce: self.options.boot_nonce,
            write_no: self.meta_write_no + 1,
            hard: self.hard,
            durable_seq: self.tail.seq,
            before: self.before,
        };
        let offset_bytes = (self.meta_slot * BLOCK_BYTES) as u64;
        self.disk.write_at(self.meta_file, offset_bytes, &slot.encode()).map_err(failed("writing", META_NAME))?;
        self.disk.datasync(self.meta_file).map_err(failed("flushing", META_NAME))?;
        self.meta_write_no = slot.write_no;
        self.meta_durable[self.meta_slot] = slot.durable_seq;
        if !planted!(self.options, NewerSlotOverwritten) {
            self.meta_slot = 1 - self.meta_slot;
        }
        Ok(())
    }

    /// Notes durably that the last batch was durable, so that damage to it is later known as rot and never cut.
    /// Worth a call after a quiet while; costs two flushes, or nothing when already noted.
    pub fn seal_tail(&mut self) -> Result<(), LogError> {
        if self.stopped {
            return Err(LogError::Stopped);
        }
        if planted!(self.options, SealNotWritten) {
            return Ok(());
        }
        // In both slots, so that the loss of one does not take the knowledge with it.
        for _ in 0..self.meta_durable.len() {
            if self.meta_durable.iter().any(|durable| *durable < self.tail.seq) {
                let result = self.write_meta();
                self.stopped = result.is_err();
                result?;
            }
        }
        Ok(())
    }

    /// Does one small piece of work that is not urgent: removes a dropped segment, or fills the reserve and then the next
    /// segment with zeros. Returns whether more is waiting. The log thread calls it when it has nothing to append.
    pub fn tend(&mut self) -> Result<bool, LogError> {
        self.tend_a_little(TEND_CHUNK_BYTES)
    }

    /// The same under load, called after an append: does so much that the next segment is ready before it is needed.
    pub fn tend_in_pace(&mut self) -> Result<(), LogError> {
        let filled_bytes = self.spare.as_ref().map_or(0, |spare| spare.filled_bytes);
        let wanted_bytes = if self.has_reserve { 2 * self.tail.offset_bytes } else { self.options.segment_bytes };
        let is_due = filled_bytes < wanted_bytes.min(self.options.segment_bytes) || !self.removals.is_empty();
        if is_due || (self.spare.as_ref().is_some_and(|spare| spare.synced) && !self.has_reserve) {
            self.tend_a_little(PACE_CHUNK_BYTES)?;
        }
        Ok(())
    }

    fn tend_a_little(&mut self, chunk_bytes: u64) -> Result<bool, LogError> {
        if self.stopped {
            return Err(LogError::Stopped);
        }
        let is_spare_ready = self.spare.as_ref().is_some_and(|spare| spare.synced);
        let result = if !self.removals.is_empty() {
            self.remove_one()
        } else if is_spare_ready && !self.has_reserve {
            self.set_aside()
        } else {
            self.fill_spare(chunk_bytes)
        };
        self.stopped = result.is_err();
        result
    }

    /// The spare becomes the reserve. Its name is given only now that its zeros are durable, so a reserve found at open
    /// is whole.
    fn set_aside(&mut self) -> Result<bool, LogError> {
        let Some(spare) = self.spare.take() else { return Ok(true) };
        if let Err(error) = self.disk.rename(SPARE_NAME, RESERVE_NAME) {
            return self.forgo_spare(spare.file, "renaming", error);
        }
        self.disk.close(spare.file);
        self.disk.sync_dir().map_err(failed("flushing the directory after creating", RESERVE_NAME))?;
        self.has_reserve = true;
        Ok(true)
    }

    /// Room on the volume. Growth ends while the reserve and one more segment are still to be had: what is promised later
    /// (votes, truncations, marks, a leader's entries) needs them.
    pub fn space(&mut self) -> Result<Space, LogError> {
        let free_bytes = self.disk.free_bytes().map_err(failed("measuring the volume of", "."))?;
        let spare_bytes = self.spare.as_ref().map_or(0, |spare| spare.filled_bytes);
        let reserved_bytes = spare_bytes + if self.has_reserve { self.options.segment_bytes } else { 0 };
        let is_low = free_bytes.saturating_add(reserved_bytes) < 2 * self.options.segment_bytes;
        Ok(Space { free_bytes, reserved_bytes, is_low: is_low && !planted!(self.options, LowSpaceNotSeen) })
    }

    fn remove_one(&mut self) -> Result<bool, LogError> {
        if let Some(id) = self.removals.pop_front() {
            let name = segment_name(id);
            self.disk.remove(&name).map_err(failed("removing", &name))?;
        }
        Ok(true)
    }

    fn fill_spare(&mut self, chunk_bytes: u64) -> Result<bool, LogError> {
        let Some(mut spare) = self.spare.take() else { return self.begin_spare() };
        let left_bytes = self.options.segment_bytes.saturating_sub(spare.filled_bytes);
        let chunk_bytes = left_bytes.min(chunk_bytes);
        if chunk_bytes > 0 {
            if let Err(error) = self.disk.zero_fill(spare.file, spare.filled_bytes, chunk_bytes) {
                return self.forgo_spare(spare.file, "filling", error);
            }
            // Where room is given out late, or a quota counts, this is where it turns out to be missing.
            if let Err(error) = self.disk.datasync(spare.file) {
                return self.forgo_spare(spare.file, "flushing", error);
            }
            spare.filled_bytes += chunk_bytes;
        }
        spare.synced = spare.filled_bytes >= self.options.segment_bytes;
        let more = !spare.synced || !self.has_reserve;
        self.spare = Some(spare);
        Ok(more)
    }

    fn begin_spare(&mut self) -> Result<bool, LogError> {
        if self.spare_pause > 0 {
            self.spare_pause -= 1;
            return Ok(false);
        }
        // Begun only when it can be finished: a full volume must not be filled to its last byte by zeros.
        let free_bytes = self.disk.free_bytes().map_err(failed("measuring the volume of", "."))?;
        if free_bytes < self.options.segment_bytes {
            return Ok(false);
        }
        match self.disk.create(SPARE_NAME, 0) {
            Ok(file) => self.spare = Some(Spare { file, filled_bytes: 0, synced: false }),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.spare_pause = SPARE_PAUSE_CALLS;
                return Ok(false);
            }
            Err(error) => return Err(failed("creating", SPARE_NAME)(error)),
        }
        Ok(true)
    }

    /// A spare promised nothing to anybody: without room for it the log goes on as it is, and rotation reports a full disk
    /// when it really needs the room. Any other failure is one of the disk itself.
    fn forgo_spare(&mut self, file: FileId, operation: &'static str, error: io::Error) -> Result<bool, LogError> {
        let is_full = error.kind() == io::ErrorKind::StorageFull;
        let is_fatal = !is_full && !planted!(self.options, SpareErrorForgiven)
            || operation == "flushing" && planted!(self.options, SpareEndsLog);
        if is_fatal {
            return Err(failed(operation, SPARE_NAME)(error));
        }
        self.disk.close(file);
        self.disk.remove(SPARE_NAME).map_err(failed("removing", SPARE_NAME))?;
        self.spare_pause = SPARE_PAUSE_CALLS;
        Ok(false)
    }

    /// Who this log belongs to.
    pub fn identity(&self) -> Identity {
        self.identity
    }
    /// How many times this data directory was opened (it may skip numbers, it never goes back).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The starts of this directory before this one.
    pub fn lineage(&self) -> &Lineage {
        &self.before
    }
    /// Number of segment files that hold something of use.
    pub fn segment_count(&self) -> usize {
        self.segments.items.len()
    }
    /// Index of the last entry, or of the mark when there is none above it.
    pub fn last_index(&self) -> Index {
        self.shape.last
    }
    /// The newest term and vote that are durable.
    pub fn hard_state(&self) -> HardState {
        self.hard
    }
    /// The disk, for free space and the like.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }
    /// Gives the disk back; unflushed zeros of the next segment stay behind and are removed at open.
    pub fn into_disk(self) -> D {
        self.disk
    }
}

impl Tail {
    /// Encodes the next batch behind what is in the buffer.
    fn add_batch(&mut self, out: &mut BytesMut, term: Term, held: Held, write: impl FnOnce(&mut BytesMut)) {
        let mut batch = BytesMut::zeroed(HEADER_BYTES);
        write(&mut batch);
        let header = self.next_header(&batch[HEADER_BYTES..], term, held);
        let len_bytes = batch_len_bytes(batch.len() - HEADER_BYTES);
        batch.resize(len_bytes, 0);
        self.chain = header.encode_into(&mut batch, &self.header);
        self.seq += 1;
        self.held = held;
        out.extend_from_slice(&batch);
    }

    fn next_header(&self, body: &[u8], term: Term, held: Held) -> BatchHeader {
        BatchHeader {
            segment_id: self.header.segment_id,
            cluster_id: self.header.identity.cluster_id,
            member_id: self.header.identity.member_id,
            seq: self.seq + 1,
            durable_seq: self.seq,
            term,
            body_bytes: body.len() as u32,
            body_crc: crc32c::crc32c(body),
            chain: self.chain,
            held,
            held_before: self.held,
        }
    }
}

/// What a batch will have changed once it is durable.
struct Staged {
    shape: Shape,
    segment_steps: Vec<SegmentStep>,
    held: Held,
    hard: HardState,
    mark: Option<SnapMeta>,
    has_hard: bool,
    last_write: WriteSeq,
}

/// A change of the segments' index ranges.
enum SegmentStep {
    Appended(Index),
    Truncated(Index),
    Cleared,
}

impl SegmentStep {
    fn apply(&self, segments: &mut Segments) {
        match self {
            SegmentStep::Appended(last) => segments.appended(*last),
            SegmentStep::Truncated(to) => segments.truncated(*to),
            SegmentStep::Cleared => segments.cleared(),
        }
    }
}

impl Staged {
    fn note(&mut self, record: &Record, keeps: bool, entries_crc: u32) {
        match record {
            Record::HardState(hard) => {
                self.hard = *hard;
                self.has_hard = true;
            }
            Record::Append(entries) => {
                let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
                self.segment_steps.push(SegmentStep::Appended(last.index));
                self.held = self.held.with(first.index, last, entries_crc);
            }
            Record::TruncateTo(index) => self.segment_steps.push(SegmentStep::Truncated(*index)),
            Record::SnapshotMark(meta) => {
                if !keeps {
                    self.segment_steps.push(SegmentStep::Cleared);
                }
                self.mark = Some(meta.clone());
            }
        }
    }
}

/// Where a new segment stands in the chain.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) segment_id: u64,
    pub(crate) first_seq: u64,
    pub(crate) chain: u32,
    pub(crate) held: Held,
}

/// Creates a segment whose first batch repeats term, vote and mark, so that older segments can go away whole.
#[allow(clippy::too_many_arguments, reason = "shared by creation and rotation, which hold these apart")]
fn start_segment<D: Disk>(
    disk: &mut D,
    options: &Options,
    identity: &Identity,
    place: &Place,
    hard: &HardState,
    mark: &SnapMeta,
    room_bytes: u64,
    ahead: (&mut Option<Spare>, &mut bool),
) -> Result<Tail, LogError> {
    let salt = SegmentHeader::salt_of(options.boot_nonce, place.segment_id);
    let header = SegmentHeader {
        identity: *identity,
        segment_id: place.segment_id,
        salt,
        first_seq: place.first_seq,
        chain: place.chain,
    };
    let mut tail = Tail {
        file: FileId(0),
        header,
        len_bytes: 0,
        offset_bytes: BLOCK_BYTES as u64,
        seq: place.first_seq - 1,
        chain: place.chain,
        held: place.held,
    };
    let mut batch = BytesMut::zeroed(HEADER_BYTES);
    if !planted!(options, CheckpointForgetsVote) {
        encode_record(&Record::HardState(*hard), true, &mut batch);
    }
    if !planted!(options, CheckpointForgetsMark) {
        encode_record(&Record::SnapshotMark(mark.clone()), true, &mut batch);
    }
    let batch_header = tail.next_header(&batch[HEADER_BYTES..], hard.term, Held::default());
    let batch_bytes = batch_len_bytes(batch.len() - HEADER_BYTES);
    batch.resize(batch_bytes, 0);
    tail.chain = batch_header.encode_into(&mut batch, &tail.header);
    let needed_bytes = (BLOCK_BYTES + batch_bytes) as u64 + room_bytes;
    tail.len_bytes = needed_bytes.max(options.segment_bytes);
    let mut front = BytesMut::from(&tail.header.encode()[..]);
    front.extend_from_slice(&batch);
    let name = segment_name(place.segment_id);
    let unfinished;
    (tail.file, unfinished) = begin_file(disk, options, place.segment_id, tail.len_bytes, &front, ahead)?;
    disk.rename(&unfinished, &name).map_err(failed("renaming", &name))?;
    if !planted!(options, NoDirectorySync) {
        disk.sync_dir().map_err(failed("flushing the directory after creating", &name))?;
    }
    tail.offset_bytes += batch_bytes as u64;
    tail.seq = place.first_seq;
    tail.held = Held::default();
    Ok(tail)
}

/// Bytes of entries in one batch of a log that is written anew.
const REWRITE_BATCH_BYTES: usize = 16 << 20;

/// Writes a segment that replaces everything before it: term and vote, a mark behind which nothing older counts, and the
/// entries above it. Durable on return.
pub(crate) fn replace_log<D: Disk>(
    disk: &mut D,
    options: &Options,
    identity: &Identity,
    place: &Place,
    (hard, mark): (HardState, &SnapMeta),
    entries: Vec<Entry>,
) -> Result<(), LogError> {
    let header = SegmentHeader {
        identity: *identity,
        segment_id: place.segment_id,
        salt: SegmentHeader::salt_of(options.boot_nonce, place.segment_id),
        first_seq: place.first_seq,
        chain: place.chain,
    };
    let mut tail = Tail {
        file: FileId(0),
        len_bytes: 0,
        offset_bytes: 0,
        seq: place.first_seq - 1,
        chain: place.chain,
        held: place.held,
        header,
    };
    let mut segment = BytesMut::from(&tail.header.encode()[..]);
    tail.add_batch(&mut segment, hard.term, Held::default(), |body| {
        encode_record(&Record::HardState(hard), true, body);
        encode_record(&Record::SnapshotMark(mark.clone()), false, body);
    });
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.size_bytes();
            bytes <= REWRITE_BATCH_BYTES
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        tail.add_batch(&mut segment, hard.term, Held::default().and(now), |body| {
            encode_record(&Record::Append(now.to_vec()), true, body);
        });
        rest = later;
    }
    let len_bytes = (segment.len() as u64).max(options.segment_bytes);
    let name = segment_name(place.segment_id);
    let ahead = (&mut None, &mut false);
    let (file, unfinished) = begin_file(disk, options, place.segment_id, len_bytes, &segment, ahead)?;
    disk.close(file);
    disk.rename(&unfinished, &name).map_err(failed("renaming", &name))?;
    disk.sync_dir().map_err(failed("flushing the directory after creating", &name))
}

/// A file of this length that begins with `front`, durable but for its name. A volume may turn out to be full only when
/// the file is flushed: nothing is promised by it yet, so it goes away, and the reserve takes its place.
fn begin_file<D: Disk>(
    disk: &mut D,
    options: &Options,
    segment_id: u64,
    len_bytes: u64,
    front: &[u8],
    (spare, has_reserve): (&mut Option<Spare>, &mut bool),
) -> Result<(FileId, String), LogError> {
    let (file, name) = take_file(disk, options, segment_id, len_bytes, (spare, has_reserve))?;
    let Err(no_space) = fill_unnamed(disk, file, &name, len_bytes, front)? else { return Ok((file, name)) };
    match take_reserve(disk, options, len_bytes, has_reserve)? {
        Some((file, name)) => fill_unnamed(disk, file, &name, len_bytes, front)?.map(|()| (file, name)),
        None => Err(no_space),
    }
}

/// Writes and flushes what a file that nobody relies on yet begins with. `Ok(Err(..))`: there is no room, the file is gone.
pub(crate) fn fill_unnamed<D: Disk>(
    disk: &mut D,
    file: FileId,
    name: &str,
    len_bytes: u64,
    front: &[u8],
) -> Result<Result<(), LogError>, LogError> {
    let written = disk.write_at(file, 0, front).map_err(|source| ("writing", source));
    match written.and_then(|()| disk.datasync(file).map_err(|source| ("flushing", source))) {
        Ok(()) => Ok(Ok(())),
        Err((_, source)) if source.kind() == io::ErrorKind::StorageFull => {
            disk.close(file);
            disk.remove(name).map_err(failed("removing", name))?;
            Ok(Err(LogError::NoSpace { file: name.to_owned(), wanted_bytes: len_bytes, source }))
        }
        Err((operation, source)) => Err(failed(operation, name)(source)),
    }
}

/// The spare when it is ready and long enough, else a new file, else, on a full volume, the reserve.
fn take_file<D: Disk>(
    disk: &mut D,
    options: &Options,
    segment_id: u64,
    len_bytes: u64,
    (spare, has_reserve): (&mut Option<Spare>, &mut bool),
) -> Result<(FileId, String), LogError> {
    if spare.as_ref().is_some_and(|s| s.synced && s.filled_bytes >= len_bytes)
        && let Some(ready) = spare.take()
    {
        return Ok((ready.file, SPARE_NAME.to_owned()));
    }
    let name = format!("{}{UNFINISHED_SUFFIX}", segment_name(segment_id));
    match disk.create(&name, len_bytes) {
        Ok(file) => Ok((file, name)),
        Err(source) if source.kind() == io::ErrorKind::StorageFull => {
            // A later try must find the name free. If even this fails, the next creation says so.
            let _ = disk.remove(&name);
            let reserve = take_reserve(disk, options, len_bytes, has_reserve)?;
            reserve.ok_or(LogError::NoSpace { file: name, wanted_bytes: len_bytes, source })
        }
        Err(source) => Err(failed("creating", &name)(source)),
    }
}

fn take_reserve<D: Disk>(
    disk: &mut D,
    options: &Options,
    len_bytes: u64,
    has_reserve: &mut bool,
) -> Result<Option<(FileId, String)>, LogError> {
    if !*has_reserve || len_bytes > options.segment_bytes || planted!(options, ReserveNotUsed) {
        return Ok(None);
    }
    let file = disk.open(RESERVE_NAME).map_err(failed("opening", RESERVE_NAME))?;
    *has_reserve = false;
    Ok(Some((file, RESERVE_NAME.to_owned())))
}

fn write_first_meta<D: Disk>(
    disk: &mut D,
    options: &Options,
    identity: &Identity,
    hard: HardState,
    durable_seq: u64,
) -> Result<FileId, LogError> {
    let slot = MetaSlot {
        identity: *identity,
        generation: 1,
        boot_nonce: options.boot_nonce,
        write_no: 1,
        hard,
        durable_seq,
        before: Lineage::default(),
    };
    let file = disk.create(META_NEW_NAME, META_BYTES as u64).map_err(failed("creating", META_NEW_NAME))?;
    // Both slots are valid from the start, so that an unreadable one always means damage.
    let both = Bytes::from([slot.encode(), slot.encode()].concat());
    disk.write_at(file, 0, &both).map_err(failed("writing", META_NEW_NAME))?;
    disk.datasync(file).map_err(failed("flushing", META_NEW_NAME))?;
    disk.rename(META_NEW_NAME, META_NAME).map_err(failed("renaming", META_NAME))?;
    disk.sync_dir().map_err(failed("flushing the directory after creating", META_NAME))?;
    Ok(file)
}
