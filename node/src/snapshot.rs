//! Checkpoints of the machine on disk, which are also the snapshots sent to others.
//!
//! A file holds its position first, then checksummed chunks; it gets its name only when all of it is durable, so a file
//! with a name is whole. The newest two are kept.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_raft::codec::{decode_snap_meta, encode_snap_meta};
use quorate_raft::types::{Index, SnapMeta};
use quorate_state::{Machine, View};

use crate::apply::ApplyInput;
use crate::driver::{DriverInput, Inbox};
use crate::files;
use crate::handle::Shared;

const MAGIC: u32 = u32::from_le_bytes(*b"QSNP");
/// Largest block of a file: a chunk of the machine or the position in front.
const BLOCK_BYTES_MAX: usize = 64 << 20;
const KEPT: usize = 2;

/// A view to make durable.
pub(crate) struct Checkpoint {
    pub meta: SnapMeta,
    pub view: View,
}

/// A state and where it stands.
pub(crate) type Loaded = (SnapMeta, Machine);

/// The directory of checkpoints.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    /// Tells files on their way in apart.
    received: AtomicU64,
    newest: Mutex<Option<(SnapMeta, PathBuf)>>,
}

impl Snapshots {
    /// Opens the directory and loads the newest checkpoint that is whole.
    pub(crate) fn open(dir: PathBuf) -> Result<(Arc<Snapshots>, Option<Loaded>)> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut found = list(&dir)?;
        found.reverse();
        let mut loaded = None;
        for (_, path) in &found {
            match load(path) {
                Ok(state) => {
                    loaded = Some((state, path.clone()));
                    break;
                }
                // An older one with a longer log does as well; if the log was cut already, the start is refused below.
                Err(error) => tracing::error!("checkpoint {} is unreadable: {error:#}", path.display()),
            }
        }
        let newest = loaded.as_ref().map(|((meta, _), path)| (meta.clone(), path.clone()));
        let snapshots = Arc::new(Snapshots { dir, received: AtomicU64::new(0), newest: Mutex::new(newest) });
        Ok((snapshots, loaded.map(|(state, _)| state)))
    }

    pub(crate) fn newest(&self) -> Option<(SnapMeta, PathBuf)> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn path(&self, index: Index) -> PathBuf {
        self.dir.join(format!("{index:020}.snap"))
    }

    /// Gives a finished temporary file its name and forgets the oldest ones.
    fn adopt(&self, temporary: &Path, meta: &SnapMeta) -> Result<()> {
        let path = self.path(meta.index);
        files::rename_durably(temporary, &path).with_context(|| format!("cannot name {}", path.display()))?;
        {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            // A checkpoint may end after a snapshot beyond it was installed.
            if newest.as_ref().is_none_or(|(known, _)| known.index < meta.index) {
                *newest = Some((meta.clone(), path));
            }
        }
        let found = list(&self.dir)?;
        for (_, old) in found.iter().rev().skip(KEPT) {
            std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        Ok(())
    }

    fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        let temporary = self.dir.join("checkpoint.tmp");
        let file = File::create(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write_header(&mut out, &checkpoint.meta)?;
        for chunk in checkpoint.view.snapshot_chunks(&[]) {
            write_block(&mut out, &chunk)?;
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.adopt(&temporary, &checkpoint.meta)
    }
}

/// Names by index, oldest first.
fn list(dir: &Path) -> Result<Vec<(Index, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        match (stem, path.extension().and_then(|e| e.to_str())) {
            (Some(index), Some("snap")) => found.push((index, path)),
            // Unfinished: it promised nothing.
            (_, Some("tmp")) => std::fs::remove_file(&path)?,
            _ => {}
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn write_header(out: &mut impl Write, meta: &SnapMeta) -> Result<()> {
    let mut header = BytesMut::new();
    header.put_u32_le(MAGIC);
    encode_snap_meta(meta, &mut header);
    let crc = crc32c::crc32c(&header);
    header.put_u32_le(crc);
    write_block(out, &header)
}

fn write_block(out: &mut impl Write, block: &[u8]) -> Result<()> {
    let len = u32::try_from(block.len()).context("a block is too large")?;
    out.write_all(&len.to_le_bytes())?;
    Ok(out.write_all(block)?)
}

/// The next block, or none at the end of the file.
fn read_block(from: &mut impl Read) -> Result<Option<Bytes>> {
    let mut len = [0; 4];
    match from.read(&mut len[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut len[1..])?,
    }
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > BLOCK_BYTES_MAX {
        bail!("a block of {len} bytes is above the limit of {BLOCK_BYTES_MAX}");
    }
    let mut block = BytesMut::zeroed(len);
    from.read_exact(&mut block)?;
    Ok(Some(block.freeze()))
}

fn load(path: &Path) -> Result<(SnapMeta, Machine)> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut header = read_block(&mut file)?.context("an empty file")?;
    let body = header.split_to(header.len().checked_sub(4).context("a short header")?);
    if crc32c::crc32c(&body) != header.get_u32_le() {
        bail!("the header's checksum is wrong");
    }
    let mut body = body;
    if body.try_get_u32_le().ok() != Some(MAGIC) {
        bail!("not a checkpoint");
    }
    let meta = decode_snap_meta(&mut body)?;
    let mut chunks = Vec::new();
    while let Some(chunk) = read_block(&mut file)? {
        chunks.push(chunk);
    }
    let restored = Machine::restore(chunks)?;
    if restored.machine.applied_index() != meta.index {
        bail!("the state is at {}, the header says {}", restored.machine.applied_index(), meta.index);
    }
    Ok((meta, restored.machine))
}

/// A snapshot on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    snapshots: Arc<Snapshots>,
    meta: SnapMeta,
    temporary: Temporary,
    file: File,
}

/// A file that is removed unless somebody gives it another name.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed, or left for the next start to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Incoming {
    pub(crate) fn begin(snapshots: &Arc<Snapshots>, meta: SnapMeta) -> Result<Incoming> {
        let number = snapshots.received.fetch_add(1, Ordering::Relaxed);
        let path = snapshots.dir.join(format!("incoming-{number}.tmp"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let temporary = Temporary(path);
        Ok(Incoming { snapshots: snapshots.clone(), meta, temporary, file })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all(bytes)?)
    }

    /// Flushes and reads everything back: a snapshot that cannot be loaded is refused here, while the old state serves.
    pub(crate) fn finish(self) -> Result<Staged> {
        self.file.sync_all()?;
        let (meta, machine) = load(&self.temporary.0).context("the snapshot received is damaged")?;
        if meta != self.meta {
            bail!("the snapshot received is not the one announced");
        }
        Ok(Staged { meta, machine, temporary: self.temporary, snapshots: self.snapshots })
    }
}

/// A verified snapshot that waits for the core to say whether it is wanted.
pub struct Staged {
    pub meta: SnapMeta,
    machine: Machine,
    temporary: Temporary,
    snapshots: Arc<Snapshots>,
}

impl Staged {
    /// Swaps the machine; durable on return.
    pub(crate) fn adopt(self, machine: &mut Machine) -> Result<()> {
        self.snapshots.adopt(&self.temporary.0, &self.meta)?;
        *machine = self.machine;
        Ok(())
    }
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
        match snapshots.write(&checkpoint) {
            Ok(()) => inbox.tell(DriverInput::Persisted { meta: checkpoint.meta }),
            Err(error) => inbox.tell(DriverInput::WriteFailed { error: format!("checkpoint: {error:#}") }),
        }
        let _ = apply.send(ApplyInput::CheckpointDone);
    }
}
