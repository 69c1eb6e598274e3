//! Checkpoints of the machine on disk, which are also the snapshots sent to others.
//!
//! A directory `<index>` holds one chain: a run with the whole state, `<index>-<checksum>.whole`, and the runs of changes
//! that follow it, `<index>-<checksum>.changes` (see [`quorate_state::snapshot`]). A checkpoint adds a run of what
//! changed since the last one; when such runs weigh too much against the whole, it begins a new chain. A run gets its
//! name, and a directory its place, only when all of it is durable: each swap is one rename and a flush of the directory.
//! `incoming` holds what was received so far of another member's chain.
//!
//! Writing happens on the checkpoint thread, from a view: neither applying nor reading waits for it.

mod incoming;
mod load;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use quorate_raft::codec::{decode_snap_meta, encode_snap_meta};
use quorate_raft::types::{Index, SnapMeta};
use quorate_state::snapshot::{CHUNK_BYTES, Place};
use quorate_state::{KeyValue, Machine, RunEnd, SnapshotChunks, View};

use crate::apply::ApplyInput;
use crate::driver::{DriverInput, Inbox};
use crate::files;
use crate::handle::Shared;

pub(crate) use incoming::{Incoming, PushError, Staged};
pub(crate) use load::RunReader;

/// Runs of one chain; each is a file to open at start and when a snapshot is sent.
pub(crate) const RUNS_MAX: usize = 64;
/// Runs of changes may weigh this much whatever the whole weighs.
const CHANGE_BYTES_MIN: u64 = 64 << 20;
/// Beyond, runs of changes may weigh a quarter of the whole: a start reads a quarter more, and all checkpoints together
/// write about five times what commands did.
const WHOLE_PER_CHANGES: u64 = 4;
/// Written between two flushes. The log shares the disk: its flush must not wait behind gigabytes of ours.
const FLUSH_BYTES: usize = 8 << 20;
const INCOMING: &str = "incoming";

/// A view to make durable.
pub(crate) struct Checkpoint {
    pub meta: SnapMeta,
    pub view: View,
    /// Index of the checkpoint or snapshot before it.
    pub since: Index,
    /// All that changed since.
    pub changes: Vec<Arc<KeyValue>>,
}

/// A state and where it stands.
pub(crate) type Loaded = (SnapMeta, Machine);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RunKind {
    Whole,
    Changes,
}

/// A run on disk. Equal files are equal in all of this, on every member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunFile {
    pub kind: RunKind,
    pub end: RunEnd,
    pub chunks: u32,
    pub bytes: u64,
}

impl RunFile {
    pub(crate) fn name(&self) -> String {
        name_of(self.kind, self.end)
    }
}

fn name_of(kind: RunKind, end: RunEnd) -> String {
    let kind = match kind {
        RunKind::Whole => "whole",
        RunKind::Changes => "changes",
    };
    format!("{:020}-{:08x}.{kind}", end.index, end.crc)
}

/// What a file's name says.
fn parse_name(path: &Path) -> Option<(RunKind, RunEnd)> {
    let kind = match path.extension()?.to_str()? {
        "whole" => RunKind::Whole,
        "changes" => RunKind::Changes,
        _ => return None,
    };
    let (index, crc) = path.file_stem()?.to_str()?.split_once('-')?;
    Some((kind, RunEnd { index: index.parse().ok()?, crc: u32::from_str_radix(crc, 16).ok()? }))
}

/// A state on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    pub dir: PathBuf,
    pub meta: SnapMeta,
    /// The whole first.
    pub runs: Vec<RunFile>,
}

impl Chain {
    fn end(&self) -> RunEnd {
        self.runs.last().expect("a chain has a whole run").end
    }

    /// Whether another run of changes, roughly of these bytes, may follow.
    fn has_room(&self, bytes: u64) -> bool {
        let changes: u64 = self.runs[1..].iter().map(|run| run.bytes).sum();
        self.runs.len() < RUNS_MAX && changes + bytes <= CHANGE_BYTES_MIN.max(self.runs[0].bytes / WHOLE_PER_CHANGES)
    }
}

/// The directory of checkpoints.
#[derive(Debug)]
pub(crate) struct Snapshots {
    root: PathBuf,
    chunk_bytes: usize,
    current: Mutex<Option<Chain>>,
    /// Held while another chain takes the place of the current one.
    swap: Mutex<()>,
    incoming: Mutex<incoming::Slot>,
}

impl Snapshots {
    /// Opens the directory and loads the newest checkpoint that is whole.
    pub(crate) fn open(root: PathBuf) -> Result<(Arc<Snapshots>, Option<Loaded>)> {
        Snapshots::open_with(root, CHUNK_BYTES)
    }

    fn open_with(root: PathBuf, chunk_bytes: usize) -> Result<(Arc<Snapshots>, Option<Loaded>)> {
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let snapshots = Snapshots {
            root,
            chunk_bytes,
            current: Mutex::default(),
            swap: Mutex::default(),
            incoming: Mutex::default(),
        };
        let mut machine = None;
        for dir in snapshots.chains()?.into_iter().rev() {
            match load::newest(&dir) {
                Ok((chain, loaded)) => {
                    machine = Some((chain.meta.clone(), loaded));
                    *snapshots.current() = Some(chain);
                    break;
                }
                Err(error) if error.is::<load::OtherFormat>() => return Err(error),
                // An older one with a longer log does as well; if the log was cut already, the start is refused.
                Err(error) => tracing::error!("checkpoint {} is unreadable: {error:#}", dir.display()),
            }
        }
        snapshots.remove_others();
        Ok((Arc::new(snapshots), machine))
    }

    /// The newest checkpoint there is.
    pub(crate) fn newest(&self) -> Option<Chain> {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, Option<Chain>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self) -> MutexGuard<'_, ()> {
        self.swap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming_dir(&self) -> PathBuf {
        self.root.join(INCOMING)
    }

    fn chain_dir(&self, index: Index) -> PathBuf {
        self.root.join(format!("{index:020}"))
    }

    /// Directories of chains, oldest first.
    fn chains(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.root).with_context(|| format!("cannot list {}", self.root.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.parse::<Index>().is_ok() {
                found.push(path);
            } else if path.extension().is_some_and(|extension| extension == "tmp") {
                // Unfinished: it promised nothing.
                std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes every chain but the current one, beside everything else: gigabytes take a while. What is left is removed
    /// at the next start.
    fn remove_others(&self) {
        let Some(dir) = self.current().as_ref().map(|chain| chain.dir.clone()) else { return };
        let others: Vec<PathBuf> = self.chains().unwrap_or_default().into_iter().filter(|other| *other < dir).collect();
        if !others.is_empty() {
            beside(move || {
                for other in &others {
                    if let Err(error) = std::fs::remove_dir_all(other) {
                        tracing::warn!("cannot remove the old checkpoint {}: {error}", other.display());
                    }
                }
            });
        }
    }

    /// Makes a checkpoint durable. False: a snapshot beyond it was installed meanwhile, so it is of no use.
    fn write(&self, checkpoint: Checkpoint) -> Result<bool> {
        let index = checkpoint.meta.index;
        let is_late = || self.current().as_ref().is_some_and(|chain| chain.meta.index >= index);
        if is_late() {
            return Ok(false);
        }
        let bytes = checkpoint.changes.iter().map(|change| (change.key.len() + change.value.len()) as u64).sum();
        let before = self.newest().filter(|chain| chain.meta.index == checkpoint.since && chain.has_room(bytes));
        let written = match before {
            Some(chain) => self.extend(&chain, checkpoint),
            None => self.begin(checkpoint),
        };
        // The directory it went into may be gone.
        if is_late() && written.is_err() { Ok(false) } else { written }
    }

    fn extend(&self, chain: &Chain, checkpoint: Checkpoint) -> Result<bool> {
        let Checkpoint { meta, view, changes, .. } = checkpoint;
        let temporary = chain.dir.join("checkpoint.tmp");
        let chunks = view.change_chunks(changes, chain.end(), &encode_meta(&meta));
        let run = self.write_run(&temporary, RunKind::Changes, meta.index, chunks).inspect_err(|_| {
            // Its bytes may be all the room there is. What stays is removed at the next start.
            let _ = std::fs::remove_file(&temporary);
        })?;
        crash_point()?;
        let _swap = self.swap();
        files::rename_durably(&temporary, &chain.dir.join(run.name())).context("cannot name a checkpoint")?;
        let mut current = self.current();
        match current.as_mut().filter(|current| current.end() == chain.end()) {
            Some(current) => {
                current.meta = meta;
                current.runs.push(run);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn begin(&self, checkpoint: Checkpoint) -> Result<bool> {
        let Checkpoint { meta, view, .. } = checkpoint;
        let temporary = self.root.join("checkpoint.tmp");
        remove_dir(&temporary)?;
        std::fs::create_dir(&temporary).with_context(|| format!("cannot make {}", temporary.display()))?;
        let chunks = view.snapshot_chunks(&encode_meta(&meta));
        let part = temporary.join("whole.tmp");
        let run = self.write_run(&part, RunKind::Whole, meta.index, chunks).inspect_err(|_| {
            let _ = remove_dir(&temporary);
        })?;
        crash_point()?;
        files::rename_durably(&part, &temporary.join(run.name())).context("cannot name a checkpoint")?;
        self.put_in_place(&temporary, meta, vec![run])
    }

    /// Swaps the current chain for the one in `from`, which is durable there. False if the current one is newer.
    fn put_in_place(&self, from: &Path, meta: SnapMeta, runs: Vec<RunFile>) -> Result<bool> {
        {
            let _swap = self.swap();
            if self.current().as_ref().is_some_and(|chain| chain.meta.index >= meta.index) {
                return Ok(false);
            }
            let dir = self.chain_dir(meta.index);
            // One that could not be read at the start, or it would be the current one.
            remove_dir(&dir)?;
            crash_point()?;
            files::rename_durably(from, &dir).with_context(|| format!("cannot name {}", dir.display()))?;
            crash_point()?;
            *self.current() = Some(Chain { dir, meta, runs });
        }
        self.remove_others();
        Ok(true)
    }

    fn write_run(&self, path: &Path, kind: RunKind, index: Index, chunks: SnapshotChunks) -> Result<RunFile> {
        let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut chunks = chunks.of_bytes(self.chunk_bytes);
        let (mut bytes, mut unflushed) = (0, 0);
        for chunk in &mut chunks {
            crash_point()?;
            file.write_all(&chunk)?;
            bytes += chunk.len() as u64;
            unflushed += chunk.len();
            if unflushed >= FLUSH_BYTES {
                file.sync_data()?;
                unflushed = 0;
            }
        }
        file.sync_all()?;
        let Place { sequence, crc, .. } = chunks.place();
        Ok(RunFile { kind, end: RunEnd { index, crc }, chunks: sequence, bytes })
    }
}

fn encode_meta(meta: &SnapMeta) -> Bytes {
    let mut bytes = BytesMut::new();
    encode_snap_meta(meta, &mut bytes);
    bytes.freeze()
}

fn decode_meta(mut bytes: Bytes) -> Result<SnapMeta> {
    let meta = decode_snap_meta(&mut bytes)?;
    if !bytes.is_empty() {
        bail!("{} bytes follow the position of a snapshot", bytes.len());
    }
    Ok(meta)
}

fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot flush {}", path.display()))
}

fn is_no_room(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

/// Does what takes long and nobody waits for.
fn beside(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("tidy".to_owned()).spawn(work) {
        tracing::warn!("cannot start a thread that tidies up: {error}");
    }
}

/// Where a process may die. Tests let it.
fn crash_point() -> Result<()> {
    #[cfg(test)]
    testing::crash_point()?;
    Ok(())
}

/// Writes checkpoints in the background. A checkpoint beyond the local durable index waits: the leader may commit
/// without its own disk, and an engine must not be ahead of its log.
pub(crate) fn run(
    snapshots: &Snapshots,
    inputs: &Receiver<Checkpoint>,
    inbox: &Inbox,
    apply: &Sender<ApplyInput>,
    shared: &Shared,
) {
    while let Ok(checkpoint) = inputs.recv() {
        while shared.status.load().raft.durable < checkpoint.meta.index {
            std::thread::sleep(std::time::Duration::from_millis(20));
            if shared.is_ending() {
                return;
            }
        }
        let meta = checkpoint.meta.clone();
        match snapshots.write(checkpoint) {
            Ok(true) => inbox.tell(DriverInput::Persisted { meta }),
            Ok(false) => {}
            // Nothing was promised about a checkpoint: the log is only kept longer, and the next one is made when due.
            Err(error) if is_no_room(&error) => tracing::error!(
                index = meta.index,
                "no room for a checkpoint, so the log grows until one fits: free or grow the volume: {error:#}"
            ),
            Err(error) => inbox.tell(DriverInput::WriteFailed { error: format!("checkpoint: {error:#}") }),
        }
        let _ = apply.send(ApplyInput::CheckpointDone);
    }
}
