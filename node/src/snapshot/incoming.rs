//! Snapshots on their way in.
//!
//! Chunks are checked before they are written and kept when the connection breaks, or the process ends: whoever sends
//! again is told how many whole chunks are here already. Runs that another snapshot shares are kept for it, the rest is
//! removed when it begins. Nothing here touches the state in use before [`Staged::adopt`].

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use quorate_raft::types::SnapMeta;
use quorate_state::snapshot::{self, Damage, Place};
use quorate_state::{ClusterVersion, Machine};

use super::{RUNS_MAX, RunFile, RunKind, Snapshots, beside, crash_point, decode_meta, load, remove_dir, sync_dir};

/// Who may write into `incoming`.
#[derive(Default, Debug)]
pub(super) struct Slot {
    /// Of the stream that writes; an older one has lost its right.
    ticket: u64,
    /// A whole snapshot waits for the core's word.
    is_staged: bool,
    /// What is known to be there. Unknown after a start.
    kept: Option<Progress>,
}

/// Runs that are complete, and how far the next one is.
#[derive(Clone, Default, Debug)]
struct Progress {
    complete: Vec<RunFile>,
    next: Option<(RunFile, Place, u64)>,
}

impl Progress {
    /// Reads what is on disk of these runs.
    fn on_disk(dir: &Path, runs: &[RunFile]) -> Result<Progress> {
        let mut progress = Progress::default();
        for run in runs {
            let path = dir.join(run.name());
            if !path.exists() {
                break;
            }
            let (place, bytes) = load::verify(&path)?;
            if is_complete(run, place, bytes) {
                progress.complete.push(run.clone());
            } else {
                progress.next = Some((run.clone(), place, bytes));
                break;
            }
        }
        Ok(progress)
    }

    /// What of it serves a snapshot of these runs.
    fn shared_with(mut self, runs: &[RunFile]) -> Progress {
        let shared = self.complete.iter().zip(runs).take_while(|(have, wanted)| have == wanted).count();
        let is_next = |(next, place, bytes): &(RunFile, Place, u64)| {
            shared == self.complete.len() && runs.get(shared) == Some(next) && !is_complete(next, *place, *bytes)
        };
        self.next = self.next.take().filter(is_next);
        self.complete.truncate(shared);
        self
    }
}

fn is_complete(run: &RunFile, place: Place, bytes: u64) -> bool {
    place.is_over && (place.sequence, place.crc, bytes) == (run.chunks, run.end.crc, run.bytes)
}

/// Why a chunk was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    /// It may be asked for again.
    #[error("{0}")]
    Damaged(#[from] Damage),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// A snapshot on its way in. Dropped, it leaves what it has for the next one.
#[derive(Debug)]
pub(crate) struct Incoming {
    snapshots: Arc<Snapshots>,
    ticket: u64,
    meta: SnapMeta,
    runs: Vec<RunFile>,
    progress: Progress,
    file: Option<File>,
}

impl Incoming {
    /// Takes over from any other stream.
    pub(crate) fn begin(snapshots: &Arc<Snapshots>, meta: SnapMeta, runs: Vec<RunFile>) -> Result<Incoming> {
        check_runs(&meta, &runs)?;
        let dir = snapshots.incoming_dir();
        let mut slot = snapshots.slot();
        ensure!(!slot.is_staged, "another snapshot waits to be installed");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let progress = match slot.kept.take() {
            Some(kept) => kept,
            None => Progress::on_disk(&dir, &runs)?,
        };
        let progress = progress.shared_with(&runs);
        remove_all_but(&dir, &progress)?;
        slot.ticket += 1;
        slot.kept = Some(progress.clone());
        let (snapshots, ticket) = (snapshots.clone(), slot.ticket);
        drop(slot);
        let mut incoming = Incoming { snapshots, ticket, meta, runs, progress, file: None };
        incoming.open_next()?;
        Ok(incoming)
    }

    /// How many whole chunks, counted over all runs, are here: the number of the one to come.
    pub(crate) fn have(&self) -> u64 {
        let complete: u64 = self.progress.complete.iter().map(|run| u64::from(run.chunks)).sum();
        complete + self.progress.next.as_ref().map_or(0, |(_, place, _)| u64::from(place.sequence))
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.progress.complete.len() == self.runs.len()
    }

    /// Takes the next chunk, if it is the next and right.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<(), PushError> {
        let head = snapshot::check(chunk)?;
        let snapshots = self.snapshots.clone();
        let mut slot = snapshots.slot();
        if slot.ticket != self.ticket {
            return Err(anyhow::anyhow!("another stream took over").into());
        }
        let Some((run, place, bytes)) = &mut self.progress.next else { return Err(Damage::AfterLast.into()) };
        let mut after = *place;
        after.take(&head)?;
        let size = *bytes + chunk.len() as u64;
        // Of another run, though it fits so far: nothing more can be made of it.
        let is_wrong = after.is_over != is_complete(run, after, size) || size > run.bytes;
        if is_wrong {
            slot.kept = None;
            remove_dir(&self.snapshots.incoming_dir())?;
            return Err(anyhow::anyhow!("the chunks are not of the run announced").into());
        }
        crash_point()?;
        let file = self.file.as_mut().expect("a run that is not complete has a file");
        // A part of a chunk may be written if this fails: then what is there is looked at again.
        slot.kept = None;
        file.write_all(chunk).context("cannot write a snapshot")?;
        (*place, *bytes) = (after, size);
        if after.is_over {
            crash_point()?;
            file.sync_all().context("cannot flush a snapshot")?;
            self.progress.complete.push(run.clone());
            self.progress.next = None;
        }
        slot.kept = Some(self.progress.clone());
        drop(slot);
        Ok(self.open_next()?)
    }

    /// Removes what is here of it: the sender cannot go on from there.
    pub(crate) fn discard(self) -> Result<()> {
        let mut slot = self.snapshots.slot();
        if slot.ticket == self.ticket && !slot.is_staged {
            slot.kept = None;
            remove_dir(&self.snapshots.incoming_dir())?;
        }
        Ok(())
    }

    /// Opens the file of the run that is not complete, behind what is right of it.
    fn open_next(&mut self) -> Result<()> {
        let Some(run) = self.runs.get(self.progress.complete.len()) else {
            self.file = None;
            return Ok(());
        };
        let (_, _, bytes) = self.progress.next.get_or_insert_with(|| (run.clone(), Place::default(), 0));
        if self.file.is_none() || *bytes == 0 {
            let path = self.snapshots.incoming_dir().join(run.name());
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            file.set_len(*bytes)?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Reads everything back: a snapshot that cannot be loaded is refused and removed here, while the old state serves.
    pub(crate) fn finish(self) -> Result<Staged> {
        ensure!(self.is_complete(), "the snapshot is not complete");
        {
            let mut slot = self.snapshots.slot();
            ensure!(slot.ticket == self.ticket, "another stream took over");
            (slot.is_staged, slot.kept) = (true, None);
        }
        match self.read_back() {
            Ok(machine) => {
                let Incoming { meta, runs, snapshots, .. } = self;
                Ok(Staged { meta, machine: Some(machine), runs, snapshots })
            }
            Err(error) => {
                let removed = remove_dir(&self.snapshots.incoming_dir());
                self.snapshots.free_slot();
                removed.and(Err(error))
            }
        }
    }

    fn read_back(&self) -> Result<Machine> {
        let dir = self.snapshots.incoming_dir();
        crash_point()?;
        sync_dir(&dir)?;
        let restored = load::exactly(&dir, &self.runs).context("the snapshot received is damaged")?;
        if decode_meta(restored.meta)? != self.meta || restored.machine.applied_index() != self.meta.index {
            bail!("the snapshot received is not the one announced");
        }
        Ok(restored.machine)
    }
}

/// A whole first, then changes, each ending beyond the one before; the last where the snapshot is.
fn check_runs(meta: &SnapMeta, runs: &[RunFile]) -> Result<()> {
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else { bail!("a snapshot without runs") };
    ensure!(runs.len() <= RUNS_MAX, "a snapshot of {} runs is above the limit of {RUNS_MAX}", runs.len());
    let is_chain = first.kind == RunKind::Whole
        && runs[1..].iter().all(|run| run.kind == RunKind::Changes)
        && runs.is_sorted_by(|a, b| a.end.index < b.end.index)
        && last.end.index == meta.index;
    ensure!(is_chain, "the runs announced do not make a snapshot at {}", meta.index);
    Ok(())
}

/// Removes what is not of use, and cuts off what was not verified.
fn remove_all_but(dir: &Path, progress: &Progress) -> Result<()> {
    let mut kept: Vec<String> = progress.complete.iter().map(RunFile::name).collect();
    kept.extend(progress.next.iter().map(|(run, _, _)| run.name()));
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !kept.iter().any(|kept| kept == name) {
            crash_point()?;
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

impl Snapshots {
    pub(super) fn slot(&self) -> MutexGuard<'_, Slot> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_slot(&self) {
        let mut slot = self.slot();
        (slot.is_staged, slot.kept) = (false, None);
    }
}

/// A verified snapshot that waits for the core to say whether it is wanted. Dropped without that, it is removed.
pub struct Staged {
    pub meta: SnapMeta,
    machine: Option<Machine>,
    runs: Vec<RunFile>,
    snapshots: Arc<Snapshots>,
}

impl Staged {
    #[cfg(test)]
    pub(crate) fn hash(&self) -> u64 {
        self.machine.as_ref().map_or(0, Machine::state_hash)
    }

    /// What its cluster had agreed on.
    pub(crate) fn cluster_version(&self) -> ClusterVersion {
        self.machine.as_ref().map_or_else(ClusterVersion::default, Machine::cluster_version)
    }

    /// Swaps the machine; durable on return.
    pub(crate) fn adopt(mut self, machine: &mut Machine) -> Result<()> {
        let incoming: PathBuf = self.snapshots.incoming_dir();
        let runs = std::mem::take(&mut self.runs);
        if !self.snapshots.put_in_place(&incoming, self.meta.clone(), runs)? {
            bail!("a checkpoint beyond the snapshot at {} is there already", self.meta.index);
        }
        let new = self.machine.take().expect("a staged snapshot has a machine");
        let old = std::mem::replace(machine, new);
        // Giving gigabytes back takes long.
        beside(move || drop(old));
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let adopted = self.runs.is_empty();
        let (machine, snapshots) = (self.machine.take(), self.snapshots.clone());
        if adopted {
            return snapshots.free_slot();
        }
        // The driver drops it, and must not wait for a disk.
        beside(move || {
            if let Err(error) = remove_dir(&snapshots.incoming_dir()) {
                tracing::warn!("cannot remove a snapshot that is not wanted: {error:#}");
            }
            snapshots.free_slot();
            drop(machine);
        });
    }
}
