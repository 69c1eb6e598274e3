//! Reading chains: all of one into a machine, on every core there is, or chunk by chunk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use quorate_state::snapshot::{self, Decoded, HEAD_BYTES, Head, Place};
use quorate_state::{Machine, RestoreError, Restored, Restorer, RunEnd};

use super::{Chain, RunFile, RunKind, decode_meta, parse_name};

/// Threads that decode; more than the memory's bandwidth can feed are of no use.
const DECODERS_MAX: usize = 8;
/// Chunks read ahead of the decoders: a few megabytes.
const READ_AHEAD: usize = 16;

/// Reads chunks of one run file one after the other. Checks lengths, not checksums.
#[derive(Debug)]
pub(crate) struct RunReader {
    file: File,
    place: Place,
}

impl RunReader {
    pub(crate) fn open(path: &Path) -> Result<RunReader> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(RunReader { file, place: Place::default() })
    }

    /// Goes back to the first chunk.
    pub(crate) fn rewind(&mut self) -> Result<()> {
        self.place = Place::default();
        Ok(self.file.rewind()?)
    }

    /// Passes over the next `chunks`, looking at their heads only.
    pub(crate) fn skip(&mut self, chunks: u32) -> Result<()> {
        for _ in 0..chunks {
            let (head, _) = self.next_head()?.context("the run has fewer chunks")?;
            self.file.seek_relative(i64::try_from(head.body_bytes)?)?;
        }
        Ok(())
    }

    /// The next chunk, or none at the end of the file.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let Some((head, bytes)) = self.next_head()? else { return Ok(None) };
        let mut chunk = Vec::with_capacity(head.chunk_bytes());
        chunk.extend_from_slice(&bytes);
        let read = (&self.file).take(head.body_bytes as u64).read_to_end(&mut chunk)?;
        if read != head.body_bytes {
            bail!("the run ends within a chunk");
        }
        Ok(Some(chunk))
    }

    fn next_head(&mut self) -> Result<Option<(Head, [u8; HEAD_BYTES])>> {
        let mut bytes = [0; HEAD_BYTES];
        match self.file.read(&mut bytes)? {
            0 => return Ok(None),
            read => match self.file.read_exact(&mut bytes[read..]) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => bail!("the run ends within a chunk's head"),
                result => result?,
            },
        }
        let sequence = self.place.sequence;
        let damaged = |found| RestoreError::Chunk { sequence, found };
        let head = Head::parse(&bytes).map_err(damaged)?;
        self.place.take(&head).map_err(damaged)?;
        Ok(Some((head, bytes)))
    }
}

/// How far a run file is right: for each chunk its place, and the bytes up to there.
pub(super) fn verify(path: &Path) -> Result<(Place, u64)> {
    let mut reader = RunReader::open(path)?;
    let (mut place, mut bytes) = (Place::default(), 0);
    while let Ok(Some(chunk)) = reader.next_chunk() {
        if snapshot::check(&chunk).is_err() {
            break;
        }
        place = reader.place;
        bytes += chunk.len() as u64;
    }
    Ok((place, bytes))
}

/// A run in a format of another release. It stays as it is, for a program that can read it.
#[derive(Debug)]
pub(crate) struct OtherFormat {
    path: PathBuf,
    version: u8,
}

impl std::fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OtherFormat { path, version } = self;
        let own = snapshot::FORMAT_VERSION;
        write!(
            f,
            "{} has format version {version}, this program reads version {own}: run the release that wrote it; nothing was changed",
            path.display()
        )
    }
}

impl std::error::Error for OtherFormat {}

fn of_other_format(path: &Path) -> Option<OtherFormat> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(snapshot::CHUNK_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    let version = snapshot::other_format(&bytes)?;
    Some(OtherFormat { path: path.to_owned(), version })
}

/// Loads the newest state a chain's directory gives. Runs that cannot be read are given up, newest first.
pub(super) fn newest(dir: &Path) -> Result<(Chain, Machine)> {
    let (mut whole, mut changes) = (None, Vec::new());
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        match parse_name(&path) {
            Some((RunKind::Whole, end)) => whole = Some((end, path)),
            Some((RunKind::Changes, end)) => changes.push((end, path)),
            // Unfinished: it promised nothing.
            None => std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?,
        }
    }
    let whole = whole.context("it has no run with the whole state")?;
    changes.sort_unstable_by_key(|(end, _)| end.index);
    loop {
        match load(&whole, &changes) {
            Ok((restored, runs)) => {
                let meta = decode_meta(restored.meta)?;
                let index = restored.machine.applied_index();
                if index != meta.index {
                    bail!("the state is at {index}, its position says {}", meta.index);
                }
                return Ok((Chain { dir: dir.to_owned(), meta, runs }, restored.machine));
            }
            Err(error) => {
                if let Some(other) = changes.iter().chain([&whole]).find_map(|(_, path)| of_other_format(path)) {
                    return Err(other.into());
                }
                let Some((_, path)) = changes.pop() else { return Err(error) };
                tracing::error!("{} or a run before it is unreadable: {error:#}", path.display());
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
}

/// Loads the state in `dir` that these runs, which are all there, make.
pub(super) fn exactly(dir: &Path, runs: &[RunFile]) -> Result<Restored> {
    let named = |run: &RunFile| (run.end, dir.join(run.name()));
    let (whole, changes) = runs.split_first().context("a snapshot without runs")?;
    let changes: Vec<_> = changes.iter().map(named).collect();
    Ok(load(&named(whole), &changes)?.0)
}

type Named = (RunEnd, PathBuf);

/// One thread reads, some decode, this one builds.
fn load(whole: &Named, changes: &[Named]) -> Result<(Restored, Vec<RunFile>)> {
    let decoders = std::thread::available_parallelism().map_or(1, usize::from).min(DECODERS_MAX);
    let (chunks, to_decode) = sync_channel(READ_AHEAD);
    let to_decode = Mutex::new(to_decode);
    let (decoded, done) = sync_channel(READ_AHEAD);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(whole, changes, &chunks));
        let to_decode = &to_decode;
        for _ in 0..decoders {
            let decoded = decoded.clone();
            scope.spawn(move || decode(to_decode, &decoded));
        }
        drop(decoded);
        let restored = build(&done);
        // Whoever is still at work finds nobody to work for.
        drop(done);
        let runs = reader.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        let (restored, mut runs) = match (restored, runs) {
            (Ok(restored), Ok(runs)) => (restored, runs),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
            (Err(refused), Err(error)) => return Err(refused.context(error)),
        };
        // The whole was read last.
        runs.rotate_right(1);
        Ok((restored, runs))
    })
}

/// A chunk with its number among all.
type Numbered<T> = (u64, T);

fn read(whole: &Named, changes: &[Named], chunks: &SyncSender<Numbered<Vec<u8>>>) -> Result<Vec<RunFile>> {
    let mut runs = Vec::new();
    let mut number = 0;
    for (end, path) in changes.iter().chain([whole]) {
        let mut reader = RunReader::open(path)?;
        let mut bytes = 0;
        while let Some(chunk) = reader.next_chunk().with_context(|| format!("in {}", path.display()))? {
            bytes += chunk.len() as u64;
            if chunks.send((number, chunk)).is_err() {
                bail!("the chunks before were refused");
            }
            number += 1;
        }
        let Place { sequence, crc, is_over } = reader.place;
        if !is_over || crc != end.crc {
            bail!("{} is not the run that its name says", path.display());
        }
        let (kind, _) = parse_name(path).context("a run has a name")?;
        runs.push(RunFile { kind, end: *end, chunks: sequence, bytes });
    }
    Ok(runs)
}

fn decode(chunks: &Mutex<Receiver<Numbered<Vec<u8>>>>, decoded: &SyncSender<Numbered<Result<Decoded, RestoreError>>>) {
    loop {
        let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, chunk)) = next else { return };
        let result = snapshot::decode(&chunk, u32::try_from(number).unwrap_or(u32::MAX));
        if decoded.send((number, result)).is_err() {
            // Takes what the reader still has, so that it does not wait for ever.
            while chunks.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok() {}
            return;
        }
    }
}

fn build(decoded: &Receiver<Numbered<Result<Decoded, RestoreError>>>) -> Result<Restored> {
    let mut restorer = Restorer::default();
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok((number, result)) = decoded.recv() {
        early.insert(number, result?);
        while let Some(chunk) = early.remove(&next) {
            restorer.push(chunk)?;
            next += 1;
        }
    }
    Ok(restorer.finish()?)
}
