//! A simulated disk: sectors that may or may not survive, names that are lost without a directory sync, errors on order.
//!
//! Deterministic: every choice comes from a seed. Single thread; clones share one disk, so that a test keeps a handle
//! while the log owns another. Models: process crash (page cache survives), power loss (unsynced sectors and names survive
//! in any subset, sectors may tear), failed flush (pages marked clean, content lost), a flush that lies, failing reads and
//! writes, full disk (told by the write or only by the flush), rot, misdirected writes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::rc::Rc;

use crate::disk::{Disk, FileId};

/// What a disk writes at once or not at all, usually.
pub const SECTOR_BYTES: usize = 512;

/// A small seeded generator (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `bound`, 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// One operation of the log on the disk, as recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Create { name: String },
    ZeroFill { name: String },
    Write { name: String, offset_bytes: u64, len_bytes: usize },
    Datasync { name: String },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncDir,
}

/// How much of the unsynced state a power loss keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// Nothing that was not synced.
    Nothing,
    /// Everything that was handed to the kernel.
    Everything,
    /// Each sector and name on its own; some sectors torn in the middle.
    Subset,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What readers see.
    cache: Vec<u8>,
    /// What the medium holds.
    medium: Vec<u8>,
    /// Sectors written and not synced.
    dirty: BTreeSet<usize>,
    /// Sectors the kernel believes clean and the medium never got.
    lying: BTreeSet<usize>,
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
    }

    fn sector(&self, sector: usize) -> std::ops::Range<usize> {
        sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(self.cache.len())
    }

    fn persist(&mut self, sector: usize) {
        let range = self.sector(sector);
        if self.medium.len() < self.cache.len() {
            self.medium.resize(self.cache.len(), 0);
        }
        self.medium[range.clone()].copy_from_slice(&self.cache[range]);
        self.lying.remove(&sector);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        if self.medium.len() < self.cache.len() {
            self.medium.resize(self.cache.len(), 0);
        }
    }

    /// A flush that failed: an arbitrary part reached the medium, and the kernel forgets the rest.
    fn fail_sync(&mut self, rng: &mut SplitMix) {
        for sector in std::mem::take(&mut self.dirty) {
            if rng.chance(500) {
                self.persist(sector);
            } else {
                self.lying.insert(sector);
            }
        }
    }

    fn forget(&mut self) {
        self.cache.clone_from(&self.medium);
        self.lying.clear();
    }

    /// Gives the number of sectors torn.
    fn lose_power(&mut self, survival: Survival, rng: &mut SplitMix) -> u64 {
        let (length, mut torn) = (self.cache.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            match survival {
                Survival::Nothing => {}
                Survival::Everything => self.persist(sector),
                Survival::Subset => match rng.below(8) {
                    0..=3 => {}
                    4..=6 => self.persist(sector),
                    _ => {
                        torn += 1;
                        self.tear(sector, rng);
                    }
                },
            }
        }
        // The length is metadata: it may have been written while the bytes were not.
        if self.medium.len() < length && survival != Survival::Nothing {
            self.medium.resize(length, 0);
        }
        self.forget();
        torn
    }

    /// A flush that reports success and keeps nothing.
    fn lie(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        self.lying.extend(dirty);
    }

    /// Only the first bytes of the sector are new.
    fn tear(&mut self, sector: usize, rng: &mut SplitMix) {
        let range = self.sector(sector);
        if self.medium.len() < self.cache.len() {
            self.medium.resize(self.cache.len(), 0);
        }
        let end = range.start + rng.below(range.len() as u64) as usize;
        self.medium[range.start..end].copy_from_slice(&self.cache[range.start..end]);
    }
}

#[derive(Clone, Debug)]
enum NameOp {
    Link { name: String, inode: u64 },
    Rename { from: String, to: String, inode: u64 },
    Unlink { name: String },
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameOp::Link { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            NameOp::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            NameOp::Unlink { name } => {
                names.remove(name);
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_ops: Vec<NameOp>,
    open: BTreeMap<FileId, (String, u64)>,
    next_inode: u64,
    next_file: u32,
    capacity_bytes: Option<u64>,
    /// A full disk takes writes all the same and refuses at the flush.
    refuses_late: bool,
    /// Flushes refused for want of room.
    refused_late: u64,
    ops: Option<Vec<Op>>,
    op_count: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fail_next_sync: bool,
    fail_next_read: bool,
    fail_next_write: bool,
    /// Files whose flushes report success and keep nothing, by their prefix.
    lying: Option<String>,
    /// Sectors torn by losses of power.
    torn: u64,
    rng: Option<SplitMix>,
}

/// A simulated disk; see the module header.
#[derive(Clone)]
pub struct FaultyDisk(Rc<RefCell<State>>);

impl fmt::Debug for FaultyDisk {
    /// Names and lengths only: the bytes of a disk help nobody in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.borrow();
        let length = |id: &u64| state.inodes.get(id).map_or(0, |inode| inode.cache.len());
        f.debug_map().entries(state.names.iter().map(|(name, id)| (name, length(id)))).finish()
    }
}

fn crashed_error() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the simulated machine is down")
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl FaultyDisk {
    /// An empty disk whose choices come from `seed`.
    pub fn new(seed: u64) -> FaultyDisk {
        FaultyDisk(Rc::new(RefCell::new(State { rng: Some(SplitMix::new(seed)), ..State::default() })))
    }

    /// An independent copy of everything, as a copied volume.
    pub fn fork(&self, seed: u64) -> FaultyDisk {
        let state = self.0.borrow();
        FaultyDisk(Rc::new(RefCell::new(State {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            name_ops: state.name_ops.clone(),
            next_inode: state.next_inode,
            rng: Some(SplitMix::new(seed)),
            ..State::default()
        })))
    }

    /// Starts to record operations.
    pub fn record_ops(&self) {
        self.0.borrow_mut().ops = Some(Vec::new());
    }
    /// The operations recorded so far.
    pub fn ops(&self) -> Vec<Op> {
        self.0.borrow().ops.clone().unwrap_or_default()
    }
    /// Number of operations that changed or flushed something.
    pub fn op_count(&self) -> u64 {
        self.0.borrow().op_count
    }
    /// The machine dies in the middle of the operation with this number (counted from 1 over the life of the disk).
    pub fn crash_at(&self, op: u64) {
        self.0.borrow_mut().crash_at = Some(op);
    }
    /// The next `datasync` fails, once.
    pub fn fail_next_sync(&self) {
        self.0.borrow_mut().fail_next_sync = true;
    }
    /// The next read fails, once.
    pub fn fail_next_read(&self) {
        self.0.borrow_mut().fail_next_read = true;
    }
    /// The next write fails, once; nothing of it is there.
    pub fn fail_next_write(&self) {
        self.0.borrow_mut().fail_next_write = true;
    }
    /// From now on flushes of files whose name begins so report success and keep nothing, as a cache without a battery.
    pub fn lie_about(&self, prefix: Option<&str>) {
        self.0.borrow_mut().lying = prefix.map(str::to_owned);
    }
    /// What flushes lied about reaches the medium after all.
    pub fn own_up(&self) {
        let mut state = self.0.borrow_mut();
        for inode in state.inodes.values_mut() {
            for sector in std::mem::take(&mut inode.lying) {
                inode.persist(sector);
            }
        }
    }
    /// Whether flushes that lied have something to lose.
    pub fn has_lied(&self) -> bool {
        self.0.borrow().inodes.values().any(|inode| !inode.lying.is_empty())
    }
    /// Whether the machine died in the middle of an operation and was not started again.
    pub fn is_crashed(&self) -> bool {
        self.0.borrow().crashed
    }
    /// How many sectors losses of power tore so far.
    pub fn torn_count(&self) -> u64 {
        self.0.borrow().torn
    }
    /// Ends every fault that is on order: nothing fails or lies, no limit of room.
    pub fn heal(&self) {
        let mut state = self.0.borrow_mut();
        state.fail_next_sync = false;
        state.fail_next_read = false;
        state.fail_next_write = false;
        state.lying = None;
        state.capacity_bytes = None;
        state.refuses_late = false;
    }
    /// Limits the sum of file lengths.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.borrow_mut().capacity_bytes = bytes;
    }
    /// Whether a full disk shows at the flush only, and says until then that it has room: as where room is given out late,
    /// or by a quota.
    pub fn refuse_late(&self, is_late: bool) {
        self.0.borrow_mut().refuses_late = is_late;
    }
    /// Flushes that were refused for want of room.
    pub fn refused_late_count(&self) -> u64 {
        self.0.borrow().refused_late
    }
    /// Whether there is a limit of room.
    pub fn is_limited(&self) -> bool {
        self.0.borrow().capacity_bytes.is_some()
    }
    /// Sum of all file lengths.
    pub fn used_bytes(&self) -> u64 {
        self.0.borrow().used_bytes()
    }
    /// Whether anything is written and not synced.
    pub fn is_dirty(&self) -> bool {
        let state = self.0.borrow();
        !state.name_ops.is_empty() || state.inodes.values().any(|inode| !inode.dirty.is_empty())
    }

    /// The process died: its files are closed, the page cache survives.
    pub fn process_crash(&self) {
        let mut state = self.0.borrow_mut();
        state.restart();
    }

    /// The machine lost power.
    pub fn power_loss(&self, survival: Survival) {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        let rng = state.rng.as_mut().expect("a disk always has its generator");
        for inode in state.inodes.values_mut() {
            state.torn += inode.lose_power(survival, rng);
        }
        let mut names = std::mem::take(&mut state.durable_names);
        for op in state.name_ops.drain(..) {
            let kept = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Subset => rng.chance(500),
            };
            if kept {
                op.apply(&mut names);
            }
        }
        state.names = names.clone();
        state.durable_names = names;
        state.restart();
    }

    /// The bytes of a file as the medium holds them.
    pub fn medium(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        let inode = state.names.get(name)?;
        state.inodes.get(inode).map(|inode| inode.medium.clone())
    }

    /// Replaces bytes on the medium and in the cache behind everybody's back.
    pub fn overwrite(&self, name: &str, offset: usize, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        let Some(id) = state.names.get(name).copied() else { return };
        let Some(inode) = state.inodes.get_mut(&id) else { return };
        for content in [&mut inode.medium, &mut inode.cache] {
            let end = (offset + bytes.len()).min(content.len());
            if offset < end {
                content[offset..end].copy_from_slice(&bytes[..end - offset]);
            }
        }
    }

    /// Flips bits of one byte.
    pub fn rot(&self, name: &str, offset: usize, mask: u8) {
        if let Some(byte) = self.medium(name).and_then(|bytes| bytes.get(offset).copied()) {
            self.overwrite(name, offset, &[byte ^ mask]);
        }
    }

    /// Copies one sector over another, as a misdirected write would.
    pub fn misdirect(&self, name: &str, from_sector: usize, to_sector: usize) {
        if let Some(bytes) = self.medium(name)
            && let Some(sector) = bytes.get(from_sector * SECTOR_BYTES..(from_sector + 1) * SECTOR_BYTES)
        {
            self.overwrite(name, to_sector * SECTOR_BYTES, sector);
        }
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names.values().filter_map(|id| self.inodes.get(id)).map(|inode| inode.cache.len() as u64).sum()
    }

    fn restart(&mut self) {
        self.open.clear();
        self.crashed = false;
        self.crash_at = None;
        self.fail_next_sync = false;
        self.fail_next_read = false;
        self.fail_next_write = false;
        let used: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .chain(self.name_ops.iter().filter_map(|op| match op {
                NameOp::Link { inode, .. } | NameOp::Rename { inode, .. } => Some(*inode),
                NameOp::Unlink { .. } => None,
            }))
            .collect();
        self.inodes.retain(|id, _| used.contains(id));
    }

    /// Counts and records an operation. `Err`: the machine is down. `Ok(true)`: it dies in the middle of this one.
    fn begin(&mut self, op: impl FnOnce() -> Op) -> io::Result<bool> {
        if self.crashed {
            return Err(crashed_error());
        }
        self.op_count += 1;
        if let Some(ops) = &mut self.ops {
            ops.push(op());
        }
        self.crashed = self.crash_at == Some(self.op_count);
        Ok(self.crashed)
    }

    fn end(dies: bool) -> io::Result<()> {
        if dies { Err(crashed_error()) } else { Ok(()) }
    }

    fn file(&self, file: FileId) -> io::Result<(String, u64)> {
        if self.crashed {
            return Err(crashed_error());
        }
        let (name, inode) = self.open.get(&file).cloned().ok_or_else(|| not_found("with this handle"))?;
        // The file may have been renamed since it was opened.
        let now = self.names.iter().find(|(_, id)| **id == inode).map(|(name, _)| name.clone());
        Ok((now.unwrap_or(name), inode))
    }

    fn inode(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(|| not_found("of this inode"))
    }

    fn keep_open(&mut self, name: &str, inode: u64) -> FileId {
        self.next_file += 1;
        self.open.insert(FileId(self.next_file), (name.to_owned(), inode));
        FileId(self.next_file)
    }

    fn grow(&mut self, inode: u64, end: u64) -> io::Result<()> {
        let len = self.inode(inode)?.cache.len() as u64;
        if let Some(capacity) = self.capacity_bytes
            && !self.refuses_late
            && end > len
            && self.used_bytes() + (end - len) > capacity
        {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        Ok(())
    }

    /// A flush that needs room for what a file grew by, and finds none.
    fn lacks_room(&mut self, inode: u64) -> io::Result<bool> {
        let file = self.inode(inode)?;
        let has_grown = file.cache.len() > file.medium.len();
        let is_full = self.capacity_bytes.is_some_and(|capacity| self.used_bytes() > capacity);
        Ok(has_grown && is_full && self.refuses_late)
    }

    /// A part of what was to be flushed is lost, and the kernel takes it for clean.
    fn fail_sync(&mut self, inode: u64) -> io::Result<()> {
        let mut rng = self.rng.take().expect("a disk always has its generator");
        let failed = self.inode(inode).map(|inode| inode.fail_sync(&mut rng));
        self.rng = Some(rng);
        failed
    }

    fn write(&mut self, inode: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.grow(inode, offset + bytes.len() as u64)?;
        self.inode(inode)?.write(offset as usize, bytes);
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let state = self.0.borrow();
        if state.crashed {
            return Err(crashed_error());
        }
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let mut state = self.0.borrow_mut();
        if state.crashed {
            return Err(crashed_error());
        }
        let inode = *state.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(state.keep_open(name, inode))
    }

    fn create(&mut self, name: &str, len_bytes: u64) -> io::Result<FileId> {
        let mut state = self.0.borrow_mut();
        let dies = state.begin(|| Op::Create { name: name.to_owned() })?;
        if state.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        state.next_inode += 1;
        let inode = state.next_inode;
        state.inodes.insert(inode, Inode::default());
        state.names.insert(name.to_owned(), inode);
        state.name_ops.push(NameOp::Link { name: name.to_owned(), inode });
        if !dies {
            state.write(inode, 0, &vec![0u8; len_bytes as usize])?;
        }
        State::end(dies)?;
        Ok(state.keep_open(name, inode))
    }

    fn zero_fill(&mut self, file: FileId, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let (name, inode) = state.file(file)?;
        let dies = state.begin(|| Op::ZeroFill { name })?;
        state.write(inode, offset_bytes, &vec![0u8; len_bytes as usize])?;
        State::end(dies)
    }

    fn len_bytes(&mut self, file: FileId) -> io::Result<u64> {
        let mut state = self.0.borrow_mut();
        let (_, inode) = state.file(file)?;
        Ok(state.inode(inode)?.cache.len() as u64)
    }

    fn read_at(&mut self, file: FileId, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let (name, inode) = state.file(file)?;
        if std::mem::take(&mut state.fail_next_read) {
            return Err(io::Error::other("simulated EIO"));
        }
        let start = offset_bytes as usize;
        let cache = &state.inode(inode)?.cache;
        let bytes = cache
            .get(start..start + buf.len())
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} is shorter")))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&mut self, file: FileId, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let (name, inode) = state.file(file)?;
        let len_bytes = bytes.len();
        let dies = state.begin(|| Op::Write { name, offset_bytes, len_bytes })?;
        if std::mem::take(&mut state.fail_next_write) {
            return Err(io::Error::other("simulated EIO"));
        }
        // A process that dies in the middle of a write has handed over a part of it.
        let handed = if dies {
            let rng = state.rng.as_mut().expect("a disk always has its generator");
            rng.below(len_bytes as u64 + 1) as usize
        } else {
            len_bytes
        };
        state.write(inode, offset_bytes, &bytes[..handed])?;
        State::end(dies)
    }

    fn datasync(&mut self, file: FileId) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let (name, inode) = state.file(file)?;
        let lies = state.lying.as_ref().is_some_and(|prefix| name.starts_with(prefix.as_str()));
        let dies = state.begin(|| Op::Datasync { name })?;
        if std::mem::take(&mut state.fail_next_sync) {
            state.fail_sync(inode)?;
            return Err(io::Error::other("simulated EIO"));
        }
        if !dies && state.lacks_room(inode)? {
            state.refused_late += 1;
            state.fail_sync(inode)?;
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        if lies && !dies {
            state.inode(inode)?.lie();
        } else if !dies {
            state.inode(inode)?.sync();
        }
        State::end(dies)
    }

    fn sync_and_forget(&mut self, file: FileId) -> io::Result<()> {
        self.datasync(file)?;
        let mut state = self.0.borrow_mut();
        let (_, inode) = state.file(file)?;
        state.inode(inode)?.forget();
        Ok(())
    }

    fn close(&mut self, file: FileId) {
        self.0.borrow_mut().open.remove(&file);
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let dies = state.begin(|| Op::Rename { from: from.to_owned(), to: to.to_owned() })?;
        let inode = *state.names.get(from).ok_or_else(|| not_found(from))?;
        if !dies {
            let op = NameOp::Rename { from: from.to_owned(), to: to.to_owned(), inode };
            op.apply(&mut state.names);
            state.name_ops.push(op);
        }
        State::end(dies)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let dies = state.begin(|| Op::Remove { name: name.to_owned() })?;
        if state.names.remove(name).is_none() {
            return Err(not_found(name));
        }
        state.name_ops.push(NameOp::Unlink { name: name.to_owned() });
        State::end(dies)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let state = self.0.borrow();
        if state.crashed {
            return Err(crashed_error());
        }
        let capacity = state.capacity_bytes.filter(|_| !state.refuses_late);
        Ok(capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let dies = state.begin(|| Op::SyncDir)?;
        if !dies {
            state.durable_names = state.names.clone();
            state.name_ops.clear();
        }
        State::end(dies)
    }
}
