//! Rebuilding what rotted, byte for byte: from what is left, from what the batches around it say, from other members.
//!
//! Nothing is guessed. A batch is rebuilt only if its header's own CRC (kept by the header itself, or by the chain of the
//! batch behind it) comes out the same, so what is accepted is what was once promised; anything else stays damaged and
//! the log refused. Raft is not concerned: neither votes nor marks nor truncations are ever made up. Pure but for the
//! disk: who asks other members for entries is the shell's business.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use quorate_raft::types::{Entry, HardState, Index, MemberId, Payload, Record, SnapMeta, Term};

use crate::disk::Disk;
use crate::error::{Identity, LogError};
use crate::format::{
    BLOCK_BYTES, BatchHeader, HEADER_BYTES, Held, MetaSlot, SegmentHeader, Stored, batch_len_bytes, decode_records,
    encode_record, first_batch_seed,
};
use crate::log::{Options, Place, UNFINISHED_SUFFIX, failed, fill_unnamed, replace_log, segment_name};
use crate::recover::{Meta, check_meta, corrupt, live_segments, read_meta};

/// A copy of each file as it was found is kept beside under this suffix.
pub const ASIDE_SUFFIX: &str = ".damaged";
/// Ways a body may once have looked that are tried before it counts as lost.
const TRIES_MAX: u32 = 20_000;
/// Records without entries that may be missing from one batch at once.
const INFERRED_MAX: u32 = 2;
/// A long body costs as many more tries as it has this many bytes.
const COST_BYTES: usize = 64 << 10;
/// Terms between two batches that are tried for a lost vote that later ones outdate.
const TERMS_MAX: u64 = 64;

/// Entries that only another member can give. Both ends are part of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Wanted {
    pub first: Index,
    pub last: Index,
}

/// One batch or header that was rebuilt, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mended {
    pub file: String,
    pub offset_bytes: u64,
    pub what: String,
}

/// How far a repair has come.
#[derive(Debug)]
pub enum Progress {
    /// Nothing is damaged, or nothing that was promised.
    Whole,
    /// Give these to [`Repair::offer`] and look again.
    Wants(Vec<Wanted>),
    /// Every damaged file can be written anew.
    Ready(Vec<Mended>),
}

/// A log whose damage is being looked at. Reads only, until [`Repair::write`].
#[derive(Debug)]
pub struct Repair {
    options: Options,
    /// Marks the log may begin with, as the shell knows them from elsewhere (first configuration, checkpoints).
    hints: Vec<SnapMeta>,
    offered: BTreeMap<Index, Vec<Entry>>,
    rebuilt: Vec<(String, Vec<u8>)>,
    rewrite: Option<Rewrite>,
    /// The log is in use: its last segment is left out.
    is_in_use: bool,
    identity: Option<Identity>,
}

impl Repair {
    pub fn new(options: Options, hints: Vec<SnapMeta>) -> Repair {
        Repair {
            options,
            hints,
            offered: BTreeMap::new(),
            rebuilt: Vec::new(),
            rewrite: None,
            is_in_use: false,
            identity: None,
        }
    }

    /// For a log that is in use: looks at finished segments only, which nobody writes to any more.
    pub fn of_finished_segments(options: Options, hints: Vec<SnapMeta>) -> Repair {
        Repair { is_in_use: true, ..Repair::new(options, hints) }
    }

    /// Whose log this is, once it was looked at.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Takes entries of another member. They are believed only where a checksum of this log names them.
    pub fn offer(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let known = self.offered.entry(entry.index).or_default();
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
    }

    /// Reads the whole log and rebuilds what it can. Changes nothing on disk.
    ///
    /// # Errors
    /// `Corrupt`: something cannot be rebuilt whatever others give, with file, offset and reason.
    pub fn look<D: Disk>(&mut self, disk: &mut D, expected: Option<&Identity>) -> Result<Progress, LogError> {
        let options = self.options;
        self.rebuilt.clear();
        let names = disk.list().map_err(failed("listing", "."))?;
        let meta = read_meta(disk)?;
        disk.close(meta.file);
        let (_, newest) = check_meta(&meta, expected)?;
        self.identity = Some(newest.identity);
        let ids = live_segments(&names)?;
        let mut known = Known::new(&options, &meta, newest, self);
        let (mut mended, mut rebuilt, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        let mut before: Option<End> = None;
        let mut next = ids.first().map(|id| read_segment(disk, *id)).transpose()?;
        for (position, id) in ids.iter().enumerate() {
            let Some(mut bytes) = next.take() else { break };
            if self.is_in_use && position + 1 == ids.len() {
                break;
            }
            next = ids.get(position + 1).map(|id| read_segment(disk, *id)).transpose()?;
            let after = next.as_ref().map(|bytes| After::of(bytes, *id + 1, &known));
            let (name, lost_before) = (segment_name(*id), known.lost.len());
            let mut walk =
                Walk { name: name.clone(), id: *id, bytes: &mut bytes, known: &mut known, mended: Vec::new() };
            let end = walk.mend(before.as_ref(), after.as_ref())?;
            let found = std::mem::take(&mut walk.mended);
            if !found.is_empty() || known.lost.len() > lost_before {
                damaged.push(name.clone());
            }
            if !found.is_empty() {
                mended.extend(found);
                rebuilt.push((name, bytes));
            }
            before = Some(end);
        }
        let lost = std::mem::take(&mut known.lost);
        let is_dead = |forgotten: &Forgotten| !self.is_in_use && known.is_dead(forgotten);
        let alive: Vec<&Forgotten> = lost.iter().filter(|forgotten| !is_dead(forgotten)).collect();
        let mut wanted: Vec<Wanted> = alive.iter().filter_map(|forgotten| forgotten.wanted).collect();
        if let Some(hopeless) = alive.iter().find(|forgotten| forgotten.wanted.is_none()) {
            return Err(corrupt(&hopeless.file, hopeless.at as u64, hopeless.why.clone()));
        }
        if !wanted.is_empty() {
            wanted.sort_unstable();
            wanted.dedup();
            return Ok(Progress::Wants(wanted));
        }
        let rewrite = match before {
            Some(end) if !lost.is_empty() => Some(known.rewrite(&ids, &damaged, end)?),
            Some(_) | None => None,
        };
        for forgotten in &lost {
            let what = format!("batch {} is not needed any more: all of it is behind the snapshot mark", forgotten.seq);
            mended.push(Mended { file: forgotten.file.clone(), offset_bytes: forgotten.at as u64, what });
        }
        (self.rebuilt, self.rewrite) = (rebuilt, rewrite);
        Ok(if mended.is_empty() { Progress::Whole } else { Progress::Ready(mended) })
    }

    /// Writes every rebuilt file: the damaged one is kept aside, the whole one takes its name at once, so a crash finds
    /// the one or the other.
    ///
    /// # Durability
    /// Durable on return.
    pub fn write<D: Disk>(&mut self, disk: &mut D) -> Result<(), LogError> {
        if let Some(rewrite) = self.rewrite.take() {
            return rewrite.write(disk, &self.options);
        }
        for (name, bytes) in std::mem::take(&mut self.rebuilt) {
            let damaged = read_whole(disk, &name)?;
            put_aside(disk, &name, &damaged)?;
            if planted!(self.options, RepairInPlace) {
                let file = disk.open(&name).map_err(failed("opening", &name))?;
                disk.write_at(file, 0, &bytes).map_err(failed("writing", &name))?;
                disk.datasync(file).map_err(failed("flushing", &name))?;
                continue;
            }
            replace(disk, &name, &bytes)?;
        }
        Ok(())
    }
}

/// The copy is for people: a volume without room for it is repaired all the same.
fn put_aside<D: Disk>(disk: &mut D, name: &str, bytes: &[u8]) -> Result<(), LogError> {
    let aside = format!("{name}{ASIDE_SUFFIX}");
    let unfinished = format!("{aside}{UNFINISHED_SUFFIX}");
    match write_new(disk, &unfinished, bytes) {
        Ok(()) => disk.rename(&unfinished, &aside).map_err(failed("renaming", &aside)),
        Err(LogError::NoSpace { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn replace<D: Disk>(disk: &mut D, name: &str, bytes: &[u8]) -> Result<(), LogError> {
    let unfinished = format!("{name}{UNFINISHED_SUFFIX}");
    write_new(disk, &unfinished, bytes)?;
    disk.rename(&unfinished, name).map_err(failed("renaming", name))?;
    disk.sync_dir().map_err(failed("flushing the directory after repairing", name))
}

fn write_new<D: Disk>(disk: &mut D, name: &str, bytes: &[u8]) -> Result<(), LogError> {
    // Left by an attempt that a crash ended, or absent: creation tells.
    let _ = disk.remove(name);
    let len_bytes = bytes.len() as u64;
    let file = match disk.create(name, len_bytes) {
        Ok(file) => file,
        Err(source) if source.kind() == std::io::ErrorKind::StorageFull => {
            let _ = disk.remove(name);
            return Err(LogError::NoSpace { file: name.to_owned(), wanted_bytes: len_bytes, source });
        }
        Err(source) => return Err(failed("creating", name)(source)),
    };
    fill_unnamed(disk, file, name, len_bytes, bytes)??;
    disk.close(file);
    Ok(())
}

fn read_whole<D: Disk>(disk: &mut D, name: &str) -> Result<Vec<u8>, LogError> {
    let file = disk.open(name).map_err(failed("opening", name))?;
    disk.sync_and_forget(file).map_err(failed("flushing", name))?;
    let len_bytes = disk.len_bytes(file).map_err(failed("measuring", name))?;
    let mut bytes = vec![0u8; len_bytes as usize];
    let read = disk.read_at(file, 0, &mut bytes);
    if read.is_err() {
        // A block the medium does not give is a damaged block.
        for (at, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
            if disk.read_at(file, (at * BLOCK_BYTES) as u64, block).is_err() {
                block.fill(0);
            }
        }
    }
    disk.close(file);
    Ok(bytes)
}

fn read_segment<D: Disk>(disk: &mut D, id: u64) -> Result<Vec<u8>, LogError> {
    read_whole(disk, &segment_name(id))
}

/// What is known from outside a segment.
struct Known<'a> {
    identity: Identity,
    newest: MetaSlot,
    nonces: Vec<u64>,
    /// Both slots can be read.
    has_both_slots: bool,
    slot_hards: Vec<HardState>,
    hints: &'a [SnapMeta],
    offered: &'a BTreeMap<Index, Vec<Entry>>,
    /// Everybody a vote may have gone to.
    voters: BTreeSet<MemberId>,
    state: State,
    options: Options,
    /// What the log holds as far as it was read: entries above the mark, and where vote and mark were found.
    entries: Vec<Entry>,
    hard_seq: u64,
    mark_seq: u64,
    lost: Vec<Forgotten>,
}

/// A batch that could not be rebuilt. The log can do without it when all of it is behind a mark that came later.
struct Forgotten {
    file: String,
    at: usize,
    seq: u64,
    /// No entry above this was in the log then.
    last_index: Index,
    wanted: Option<Wanted>,
    why: String,
}

impl<'a> Known<'a> {
    fn new(options: &Options, meta: &Meta, newest: MetaSlot, repair: &'a Repair) -> Known<'a> {
        let slots: Vec<&MetaSlot> = meta.slots.iter().flatten().collect();
        let mut nonces: Vec<u64> = slots.iter().map(|slot| slot.boot_nonce).collect();
        nonces.push(options.boot_nonce);
        let mut voters: BTreeSet<MemberId> = slots.iter().filter_map(|slot| slot.hard.vote).collect();
        voters.insert(MemberId(newest.identity.member_id));
        voters.extend(repair.hints.iter().flat_map(|meta| meta.config.members.keys().copied()));
        Known {
            identity: newest.identity,
            newest,
            nonces,
            has_both_slots: slots.len() == meta.slots.len(),
            slot_hards: slots.iter().map(|slot| slot.hard).collect(),
            hints: &repair.hints,
            offered: &repair.offered,
            voters,
            state: State::default(),
            options: *options,
            entries: Vec::new(),
            hard_seq: 0,
            mark_seq: 0,
            lost: Vec::new(),
        }
    }

    fn take(&mut self, record: &Stored, seq: u64) {
        match record {
            Stored::HardState(hard) => {
                self.voters.extend(hard.vote);
                self.hard_seq = seq;
            }
            Stored::Append(entries) => {
                for entry in entries {
                    if let Payload::Config(config) = &entry.payload {
                        self.voters.extend(config.members.keys());
                    }
                }
                self.entries.extend(entries.iter().cloned());
            }
            Stored::Mark { meta, keeps } => {
                self.voters.extend(meta.config.members.keys());
                self.entries.retain(|entry| *keeps && entry.index > meta.index);
                self.mark_seq = seq;
            }
            Stored::TruncateTo(index) => self.entries.retain(|entry| entry.index <= *index),
        }
        self.state.take(record);
    }

    /// Goes on behind a batch that is lost, as if the log began there.
    fn forget(&mut self, forgotten: Forgotten) {
        self.lost.push(forgotten);
        self.entries.clear();
        self.state.next = None;
    }

    /// Nothing of the batch can matter: its entries and all before are behind a mark written later, and vote and term are
    /// known from as late as that.
    fn is_dead(&self, forgotten: &Forgotten) -> bool {
        let mark = self.state.mark.as_ref().map_or(0, |mark| mark.index);
        self.mark_seq > forgotten.seq
            && forgotten.last_index <= mark
            && self.has_both_slots
            && self.newest.durable_seq >= forgotten.seq
    }

    /// The log as one new segment.
    fn rewrite(&self, ids: &[u64], damaged: &[String], end: End) -> Result<Rewrite, LogError> {
        let file = damaged.first().cloned().unwrap_or_default();
        let mark = self.state.mark.clone().ok_or_else(|| corrupt(&file, 0, "no mark was found"))?;
        let follows = self.entries.windows(2).all(|pair| pair[0].index + 1 == pair[1].index)
            && self.entries.first().is_none_or(|first| first.index == mark.index + 1);
        if !follows {
            return Err(corrupt(&file, 0, format!("entries above the mark {} are missing", mark.index)));
        }
        let hard = match self.state.hard {
            Some(hard) if self.hard_seq > self.newest.durable_seq => hard,
            Some(_) | None => self.newest.hard,
        };
        let place = Place {
            segment_id: ids.last().map_or(1, |id| id + 1),
            first_seq: end.seq + 1,
            chain: end.chain,
            held: end.held,
        };
        Ok(Rewrite {
            identity: self.identity,
            hard,
            mark,
            entries: self.entries.clone(),
            place,
            old: ids.to_vec(),
            damaged: damaged.to_vec(),
        })
    }
}

/// A log that is written anew behind the damaged one: a segment that repeats vote and mark, says that nothing before
/// counts, and holds every entry above the mark.
#[derive(Debug)]
struct Rewrite {
    identity: Identity,
    hard: HardState,
    mark: SnapMeta,
    entries: Vec<Entry>,
    place: Place,
    old: Vec<u64>,
    damaged: Vec<String>,
}

impl Rewrite {
    /// Until the new segment has its name the old ones are the log; from then on they are needless, and a crash before
    /// the last of them is gone repeats the repair.
    fn write<D: Disk>(self, disk: &mut D, options: &Options) -> Result<(), LogError> {
        for name in &self.damaged {
            let bytes = read_whole(disk, name)?;
            put_aside(disk, name, &bytes)?;
        }
        // Left by an attempt that a crash ended, or absent: creation tells.
        let _ = disk.remove(&format!("{}{UNFINISHED_SUFFIX}", segment_name(self.place.segment_id)));
        replace_log(disk, options, &self.identity, &self.place, (self.hard, &self.mark), self.entries)?;
        for id in self.old {
            let name = segment_name(id);
            disk.remove(&name).map_err(failed("removing", &name))?;
        }
        disk.sync_dir().map_err(failed("flushing", "the directory"))
    }
}

/// Where the log stands behind a record. `None` is not known.
#[derive(Clone, Debug, Default)]
struct State {
    next: Option<Index>,
    hard: Option<HardState>,
    mark: Option<SnapMeta>,
}

impl State {
    fn take(&mut self, record: &Stored) {
        match record {
            Stored::HardState(hard) => self.hard = Some(*hard),
            Stored::Append(entries) => self.next = entries.last().map(|last| last.index + 1).or(self.next),
            Stored::TruncateTo(index) => self.next = Some(self.next.map_or(index + 1, |next| next.min(index + 1))),
            Stored::Mark { meta, keeps } => {
                if !keeps || self.next.is_none() && self.mark.is_none() {
                    self.next = (!keeps).then_some(meta.index + 1);
                }
                self.mark = Some(meta.clone());
            }
        }
    }
}

/// Where a segment ends.
struct End {
    seq: u64,
    chain: u32,
    held: Held,
}

/// What the segment behind says about the end of this one.
enum After {
    Says {
        first_seq: u64,
        chain: u32,
        held: Option<Held>,
    },
    /// It is there, and its front cannot be read either.
    Mute,
}

impl After {
    fn of(bytes: &[u8], id: u64, known: &Known<'_>) -> After {
        let Some(header) = find_header(bytes, id, known, None) else { return After::Mute };
        let held = bytes.get(BLOCK_BYTES..).and_then(|rest| BatchHeader::decode(rest, &header));
        let held = held.map(|(batch, _)| batch.held_before);
        After::Says { first_seq: header.first_seq, chain: header.chain, held }
    }
}

/// The segment's header, as it is or as it must have been. What its own CRC does not confirm, the first batch must.
fn find_header(bytes: &[u8], id: u64, known: &Known<'_>, before: Option<&End>) -> Option<SegmentHeader> {
    let block = bytes.get(..BLOCK_BYTES)?;
    let ours = |header: &SegmentHeader| header.identity == known.identity && header.segment_id == id;
    if let Some(header) = SegmentHeader::decode(block).filter(ours) {
        return Some(header);
    }
    let found = SegmentHeader::read_unsealed(block);
    let mut places = vec![(found.first_seq, found.chain)];
    places.extend(before.map(|end| (end.seq + 1, end.chain)));
    let mut salts = vec![found.salt];
    salts.extend(known.nonces.iter().map(|nonce| SegmentHeader::salt_of(*nonce, id)));
    let header = |salt: u64, first_seq: u64, chain: u32| SegmentHeader {
        identity: known.identity,
        segment_id: id,
        salt,
        first_seq,
        chain,
    };
    for salt in &salts {
        for (first_seq, chain) in &places {
            let candidate = header(*salt, *first_seq, *chain);
            if candidate.encode()[BLOCK_BYTES - 4..] == block[BLOCK_BYTES - 4..] {
                return Some(candidate);
            }
        }
    }
    // The header says nothing certain; the first batch may: its CRC is begun with the salt, so the salt follows from it.
    let first = bytes.get(BLOCK_BYTES..)?;
    salts.extend(first_batch_seed(first).map(u64::from));
    salts.into_iter().find_map(|salt| {
        let (batch, _) = BatchHeader::decode(first, &header(salt, 0, 0))?;
        let follows = before.is_none_or(|end| (end.seq + 1, end.chain) == (batch.seq, batch.chain));
        (follows && batch.durable_seq + 1 == batch.seq).then(|| header(salt, batch.seq, batch.chain))
    })
}

/// One segment being mended in memory.
struct Walk<'a, 'k> {
    name: String,
    id: u64,
    bytes: &'a mut Vec<u8>,
    known: &'a mut Known<'k>,
    mended: Vec<Mended>,
}

/// A batch that cannot be read, and all that is known of it.
struct Lost {
    at: usize,
    seq: u64,
    chain: u32,
    held_before: Held,
    kind: LostKind,
}

enum LostKind {
    /// The header is whole: it names length and CRC of its body.
    Body { header: BatchHeader, crc: u32 },
    /// The header is not: what follows names its CRC and the entries held. `end`: where what follows begins, if here.
    Header { end: Option<usize>, crc: u32, held: Held, term_max: Term },
}

impl Walk<'_, '_> {
    fn bad(&self, at: usize, what: impl Into<String>) -> LogError {
        corrupt(&self.name, at as u64, what)
    }

    fn note(&mut self, at: usize, what: String) {
        self.mended.push(Mended { file: self.name.clone(), offset_bytes: at as u64, what });
    }

    fn mend(&mut self, before: Option<&End>, after: Option<&After>) -> Result<End, LogError> {
        let header = find_header(self.bytes, self.id, self.known, before)
            .ok_or_else(|| self.bad(0, "the segment header cannot be read, and nothing else tells what it held"))?;
        let block = header.encode();
        if self.bytes[..BLOCK_BYTES] != block {
            self.bytes[..BLOCK_BYTES].copy_from_slice(&block);
            self.note(0, "the segment header".to_owned());
        }
        if before.is_some_and(|end| (end.seq + 1, end.chain) != (header.first_seq, header.chain)) {
            return Err(self.bad(0, "it does not follow the segment before it"));
        }
        let mut end = End {
            seq: header.first_seq - 1,
            chain: header.chain,
            held: before.map_or(Held::default(), |end| end.held),
        };
        let mut at = BLOCK_BYTES;
        loop {
            if let Some((batch, crc, records)) = whole_batch(self.bytes, at, &header, &end) {
                records.iter().for_each(|record| self.known.take(record, batch.seq));
                at += batch_len_bytes(batch.body_bytes as usize);
                end = End { seq: batch.seq, chain: crc, held: batch.held };
                continue;
            }
            let Some(lost) = self.judge(at, &header, &end, after)? else { break };
            let (next_at, next_end) = self.rebuild(&lost, &header)?;
            (at, end) = (next_at, next_end);
        }
        if after.is_some() && self.bytes[at.min(self.bytes.len())..].iter().any(|byte| *byte != 0) {
            // All that follows is known to be nothing.
            let from = at.min(self.bytes.len());
            self.bytes[from..].fill(0);
            self.note(at, "zeros behind the last batch".to_owned());
        }
        Ok(end)
    }

    /// What stands at `at` instead of a whole batch: `None` is the end of the segment, or a torn tail.
    fn judge(
        &self,
        at: usize,
        header: &SegmentHeader,
        end: &End,
        after: Option<&After>,
    ) -> Result<Option<Lost>, LogError> {
        let expected = end.seq + 1;
        let lost = |kind| Lost { at, seq: expected, chain: end.chain, held_before: end.held, kind };
        let rest = self.bytes.get(at..).unwrap_or_default();
        let own = BatchHeader::decode(rest, header).filter(|(own, _)| own.seq == expected && own.chain == end.chain);
        let later = (BLOCK_BYTES..rest.len()).step_by(BLOCK_BYTES).find_map(|offset| {
            let (later, _) = BatchHeader::decode(&rest[offset..], header)?;
            (later.seq > expected).then_some((at + offset, later))
        });
        let after_seq = match after {
            Some(After::Says { first_seq, .. }) => Some(*first_seq),
            Some(After::Mute) | None => None,
        };
        let is_promised = later.is_some()
            || after_seq.is_some_and(|first_seq| first_seq > expected)
            || matches!(after, Some(After::Mute)) && own.is_some()
            || after.is_none() && self.known.newest.durable_seq >= expected;
        if !is_promised {
            return Ok(None);
        }
        if let Some((own, crc)) = own {
            return Ok(Some(lost(LostKind::Body { header: own, crc })));
        }
        match (later, after) {
            (Some((offset, later)), _) if later.seq == expected + 1 => Ok(Some(lost(LostKind::Header {
                end: Some(offset),
                crc: later.chain,
                held: later.held_before,
                term_max: later.term,
            }))),
            (Some((_, later)), _) => Err(self.bad(
                at,
                format!("batches {expected} to {} were promised and their headers cannot be read", later.seq - 1),
            )),
            (None, Some(After::Says { first_seq, chain, held: Some(held) })) if *first_seq == expected + 1 => {
                Ok(Some(lost(LostKind::Header {
                    end: None,
                    crc: *chain,
                    held: *held,
                    term_max: self.known.newest.hard.term,
                })))
            }
            (None, _) => Err(self.bad(
                at,
                format!("batch {expected} was promised, its header cannot be read and no batch behind it names it"),
            )),
        }
    }

    /// Rebuilds one batch in place, or notes which entries that needs.
    fn rebuild(&mut self, lost: &Lost, segment: &SegmentHeader) -> Result<(usize, End), LogError> {
        let (held, crc, room_end) = match &lost.kind {
            LostKind::Body { header, crc } => {
                let len = batch_len_bytes(header.body_bytes as usize);
                (header.held, *crc, Some(lost.at + len))
            }
            LostKind::Header { end, crc, held, .. } => (*held, *crc, *end),
        };
        let after = End { seq: lost.seq, chain: crc, held };
        if let Some(end) = room_end.filter(|end| *end > self.bytes.len()) {
            return Err(self.bad(lost.at, format!("batch {} reached to byte {end}, the file ends before", lost.seq)));
        }
        if let Some((block, records)) = Search::run(self, lost, segment) {
            let end = room_end.unwrap_or(lost.at + block.len());
            if lost.at + block.len() > end.min(self.bytes.len()) {
                return Err(self.bad(lost.at, "the rebuilt batch does not fit its place"));
            }
            self.bytes[lost.at..end].fill(0);
            self.bytes[lost.at..lost.at + block.len()].copy_from_slice(&block);
            records.iter().for_each(|record| self.known.take(record, lost.seq));
            self.note(lost.at, format!("batch {}, entries {} to {}", lost.seq, held.first_index, held.last_index));
            return Ok((end, after));
        }
        let missing = (held.first_index..=held.last_index).any(|index| !self.known.offered.contains_key(&index));
        let why = if held.first_index == 0 {
            format!("batch {} was promised, holds no entries, and what it held cannot be rebuilt", lost.seq)
        } else {
            format!(
                "batch {} was promised (entries {} to {}), and what other members hold there is not what it held",
                lost.seq, held.first_index, held.last_index
            )
        };
        let wanted = Wanted { first: held.first_index, last: held.last_index };
        let last = self.known.state.next.map_or(0, |next| next - 1);
        self.known.forget(Forgotten {
            file: self.name.clone(),
            at: lost.at,
            seq: lost.seq,
            last_index: last.max(held.last_index),
            wanted: (held.first_index != 0 && missing).then_some(wanted),
            why,
        });
        let end = match room_end {
            Some(end) => end,
            // The last batch of a finished segment: nothing to read behind it.
            None => self.bytes.len(),
        };
        Ok((end, after))
    }
}

/// A batch that is whole and in its place.
fn whole_batch(bytes: &[u8], at: usize, segment: &SegmentHeader, end: &End) -> Option<(BatchHeader, u32, Vec<Stored>)> {
    let rest = bytes.get(at..)?;
    let (header, crc) = BatchHeader::decode(rest, segment)?;
    let body = rest.get(HEADER_BYTES..HEADER_BYTES.checked_add(header.body_bytes as usize)?)?;
    let is_whole = header.seq == end.seq + 1 && header.chain == end.chain && crc32c::crc32c(body) == header.body_crc;
    let records = is_whole.then(|| decode_records(Bytes::copy_from_slice(body)))?;
    records.ok().map(|records| (header, crc, records))
}

/// Looks for the one body whose checksums come out right: records as found where they can be read, and what they must
/// have been where they cannot.
struct Search<'a> {
    found: Bytes,
    lost: &'a Lost,
    segment: &'a SegmentHeader,
    held: Held,
    /// Length of the body when its header tells.
    body_bytes: Option<usize>,
    offered: &'a BTreeMap<Index, Vec<Entry>>,
    hards: Vec<HardState>,
    marks: Vec<SnapMeta>,
    tries_left: u32,
    options: Options,
    /// The batch as it was.
    answer: Option<Vec<u8>>,
}

/// A body as far as it is rebuilt.
#[derive(Clone, Default)]
struct Draft {
    body: BytesMut,
    held: Held,
    state: State,
    term: Term,
    /// Records put in that are neither found nor entries.
    inferred: u32,
}

impl Search<'_> {
    fn run(walk: &Walk<'_, '_>, lost: &Lost, segment: &SegmentHeader) -> Option<(Vec<u8>, Vec<Stored>)> {
        let known = &*walk.known;
        let start = lost.at + HEADER_BYTES;
        let (held, body_bytes, end, terms) = match &lost.kind {
            LostKind::Body { header, .. } => {
                let body_bytes = header.body_bytes as usize;
                (header.held, Some(body_bytes), start + body_bytes, (header.term, header.term))
            }
            LostKind::Header { end, held, term_max, .. } => {
                let lowest = known.state.hard.map_or(0, |hard| hard.term);
                (*held, None, end.unwrap_or(walk.bytes.len()), (lowest, (*term_max).min(lowest + TERMS_MAX)))
            }
        };
        let mut search = Search {
            found: Bytes::copy_from_slice(walk.bytes.get(start..end)?),
            lost,
            segment,
            held,
            body_bytes,
            offered: known.offered,
            hards: hards(known, lost.seq, terms),
            marks: known.state.mark.iter().chain(known.hints).cloned().collect(),
            tries_left: TRIES_MAX,
            options: known.options,
            answer: None,
        };
        let state = known.state.clone();
        let term = state.hard.map_or(0, |hard| hard.term);
        search.go(&Draft { state, term, ..Draft::default() });
        let block = search.answer?;
        let (header, _) = BatchHeader::decode(&block, segment)?;
        let body = Bytes::copy_from_slice(&block[HEADER_BYTES..HEADER_BYTES + header.body_bytes as usize]);
        let records = decode_records(body).ok()?;
        Some((block, records))
    }

    /// Whether the draft is what was once written, by checksum.
    fn accept(&mut self, draft: &Draft) -> bool {
        let header = match &self.lost.kind {
            LostKind::Body { header, .. } => header.clone(),
            LostKind::Header { .. } => BatchHeader {
                segment_id: self.segment.segment_id,
                member_id: self.segment.identity.member_id,
                cluster_id: self.segment.identity.cluster_id,
                seq: self.lost.seq,
                durable_seq: self.lost.seq - 1,
                term: draft.term,
                body_bytes: draft.body.len() as u32,
                body_crc: crc32c::crc32c(&draft.body),
                chain: self.lost.chain,
                held: draft.held,
                held_before: self.lost.held_before,
            },
        };
        let mut block = vec![0u8; batch_len_bytes(draft.body.len())];
        block[HEADER_BYTES..HEADER_BYTES + draft.body.len()].copy_from_slice(&draft.body);
        let crc = header.encode_into(&mut block, self.segment);
        let is_same = match &self.lost.kind {
            LostKind::Body { header, .. } => {
                header.body_bytes as usize == draft.body.len() && header.body_crc == crc32c::crc32c(&draft.body)
            }
            LostKind::Header { crc: named, .. } => crc == *named,
        };
        let is_same = is_same || planted!(self.options, RepairUnchecked);
        if is_same {
            self.answer = Some(block);
        }
        is_same
    }

    fn go(&mut self, draft: &Draft) -> bool {
        if self.tries_left == 0 {
            return false;
        }
        let at = draft.body.len();
        self.tries_left = self.tries_left.saturating_sub(1 + (at / COST_BYTES) as u32);
        let may_end = self.body_bytes.map_or(at > 0, |len| len == at);
        if may_end && draft.held == self.held && self.accept(draft) {
            return true;
        }
        if at + 5 > self.body_bytes.unwrap_or(self.found.len()) {
            return false;
        }
        if let Some((record, bytes)) = self.as_found(at) {
            let is_certain = matches!(&record, Stored::Append(entries) if !entries.is_empty());
            // Entries have checksums of their own: what can be read is what was there. Other records have none.
            if self.with(draft, &record, &bytes) || is_certain {
                return self.answer.is_some();
            }
        }
        self.with_entries(draft) || self.with_what_is_known(draft)
    }

    /// The record at this place, if it can be read whole.
    fn as_found(&self, at: usize) -> Option<(Stored, Bytes)> {
        let head = self.found.get(at..at + 5)?;
        let len = u32::from_le_bytes(head[1..5].try_into().ok()?) as usize;
        if head[0] == 0 || at.checked_add(5)?.checked_add(len)? > self.found.len() {
            return None;
        }
        let bytes = self.found.slice(at..at + 5 + len);
        let record = decode_records(bytes.clone()).ok()?.pop()?;
        Some((record, bytes))
    }

    fn with(&mut self, draft: &Draft, record: &Stored, bytes: &[u8]) -> bool {
        if let Stored::Append(entries) = record
            && (entries.windows(2).any(|pair| pair[0].index + 1 != pair[1].index)
                || draft.state.next.is_some_and(|next| entries.first().is_some_and(|first| first.index != next)))
        {
            return false;
        }
        let mut next = draft.clone();
        next.body.extend_from_slice(bytes);
        next.state.take(record);
        if let Stored::HardState(hard) = record {
            next.term = hard.term;
        }
        if let Stored::Append(entries) = record {
            next.held = next.held.and(entries);
        }
        self.go(&next)
    }

    fn with_record(&mut self, draft: &Draft, record: &Record, keeps: bool) -> bool {
        let mut bytes = BytesMut::new();
        encode_record(record, keeps, &mut bytes);
        let stored = match record {
            Record::HardState(hard) => Stored::HardState(*hard),
            Record::Append(entries) => Stored::Append(entries.clone()),
            Record::TruncateTo(index) => Stored::TruncateTo(*index),
            Record::SnapshotMark(meta) => Stored::Mark { meta: meta.clone(), keeps },
        };
        self.with(draft, &stored, &bytes)
    }

    /// An append whose entries are those found where they can be read, else those others gave.
    fn with_entries(&mut self, draft: &Draft) -> bool {
        let head = draft.body.len();
        let Some(first) = draft.state.next.or(Some(self.held.first_index).filter(|index| *index != 0)) else {
            return false;
        };
        let limit = self.body_bytes.unwrap_or(self.found.len());
        let (mut entries, mut at, mut ends) = (Vec::new(), head + 9, Vec::new());
        // Others may hold several entries of one index: only one can have been here, and the checksums tell which.
        while let Some((entry, len)) = self.entry_at(at, first + entries.len() as u64, draft) {
            at += len;
            if at > limit {
                break;
            }
            entries.push(entry);
            ends.push(at);
            if first + entries.len() as u64 > self.held.last_index.max(first) && self.as_found(at).is_none() {
                break;
            }
        }
        let told = self.found.get(head + 5..head + 9).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
        let mut counts: Vec<usize> = (1..=entries.len()).rev().collect();
        counts.sort_by_key(|count| {
            let is_told = told == u32::try_from(*count).ok();
            let goes_on = self.as_found(ends[count - 1]).is_some();
            (!is_told, !goes_on)
        });
        for count in counts {
            if self.with_record(draft, &Record::Append(entries[..count].to_vec()), true) {
                return true;
            }
            if self.tries_left == 0 {
                return false;
            }
        }
        false
    }

    /// The entry of this index at this place, with its length there.
    fn entry_at(&self, at: usize, index: Index, draft: &Draft) -> Option<(Entry, usize)> {
        let as_found = || {
            let head = self.found.get(at..at + 8)?;
            let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
            let crc = u32::from_le_bytes(head[4..].try_into().ok()?);
            let end = at.checked_add(8)?.checked_add(len)?;
            let bytes = self.found.get(at + 8..end)?;
            if crc32c::crc32c(bytes) != crc {
                return None;
            }
            let mut bytes = Bytes::copy_from_slice(bytes);
            let entry = quorate_raft::wire::decode_entry(&mut bytes).ok()?;
            (entry.index == index && bytes.is_empty()).then_some((entry, 8 + len))
        };
        as_found().or_else(|| {
            let given = self.offered.get(&index)?;
            // A CRC that can still be read beside damaged bytes names the entry; else the newest term that fits.
            let crc = self.found.get(at + 4..at + 8).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
            let encoded = |entry: &Entry| {
                let mut bytes = BytesMut::new();
                quorate_raft::wire::encode_entry(entry, &mut bytes);
                (crc32c::crc32c(&bytes), bytes.len())
            };
            let term_max = draft.term.max(self.held.last_term);
            let named = given.iter().find(|entry| Some(encoded(entry).0) == crc);
            let entry = named.or_else(|| given.iter().rfind(|entry| entry.term <= term_max))?;
            Some((entry.clone(), 8 + encoded(entry).1))
        })
    }

    /// Records that hold no entries, where they follow from elsewhere.
    fn with_what_is_known(&mut self, draft: &Draft) -> bool {
        let mut draft = draft.clone();
        draft.inferred += 1;
        if draft.inferred > INFERRED_MAX {
            return false;
        }
        let draft = &draft;
        if let Some(to) = self.held.first_index.checked_sub(1)
            && draft.state.next.is_some_and(|next| next > to + 1)
            && self.with_record(draft, &Record::TruncateTo(to), true)
        {
            return true;
        }
        for hard in self.hards.clone() {
            if self.with_record(draft, &Record::HardState(hard), true) {
                return true;
            }
        }
        for mark in self.marks.clone() {
            for keeps in [true, false] {
                if self.with_record(draft, &Record::SnapshotMark(mark.clone()), keeps) {
                    return true;
                }
            }
        }
        false
    }
}

/// Terms and votes a lost record may have held. Only where both slots can be read and know a state as new: then what is
/// rebuilt decides no vote.
fn hards(known: &Known<'_>, seq: u64, (term_min, term_max): (Term, Term)) -> Vec<HardState> {
    let mut hards: Vec<HardState> = known.state.hard.into_iter().collect();
    if !known.has_both_slots || known.newest.durable_seq < seq {
        return hards;
    }
    hards.extend(&known.slot_hards);
    for term in term_min..=term_max {
        hards.push(HardState { term, vote: None });
        hards.extend(known.voters.iter().map(|vote| HardState { term, vote: Some(*vote) }));
    }
    hards.retain(|hard| hard.term >= term_min.min(term_max) && hard.term <= term_max);
    let mut seen = BTreeSet::new();
    hards.retain(|hard| seen.insert((hard.term, hard.vote)));
    hards
}
