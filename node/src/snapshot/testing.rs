//! What tests of checkpoints and of their streams share.

use std::cell::Cell;
use std::sync::Arc;

use anyhow::{Result, bail};
use quorate_raft::types::SnapMeta;
use quorate_state::{Command, KeyValue, Machine, Put};

use super::{Checkpoint, RunReader, Snapshots};

/// Chunks of this size make a small state a long stream.
pub(crate) const CHUNK_BYTES: usize = 150;

thread_local! {
    static CRASH_AFTER: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Lets this thread die at the crash point after `points` more. `None`: never.
pub(crate) fn crash_after(points: Option<u32>) {
    CRASH_AFTER.set(points);
}

pub(crate) fn crash_point() -> Result<()> {
    match CRASH_AFTER.get() {
        Some(0) => bail!("crashed"),
        Some(left) => CRASH_AFTER.set(Some(left - 1)),
        None => {}
    }
    Ok(())
}

/// A machine with its directory of checkpoints.
pub(crate) struct Member {
    pub dir: tempfile::TempDir,
    pub snapshots: Arc<Snapshots>,
    pub machine: Machine,
    since: u64,
    changes: Vec<Arc<KeyValue>>,
}

impl Member {
    pub fn new() -> Member {
        let dir = tempfile::tempdir().expect("a directory");
        let (snapshots, loaded) = open(&dir);
        assert!(loaded.is_none());
        Member { dir, snapshots, machine: Machine::new(), since: 0, changes: Vec::new() }
    }

    pub fn put(&mut self, key: &str, value: &str) {
        let put = Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() };
        self.apply(&Command::Put(put));
    }

    pub fn apply(&mut self, command: &Command) {
        let applied = self.machine.apply(self.machine.applied_index() + 1, 1, Some(command));
        self.changes.extend(applied.events.iter().map(|event| event.kv.clone()));
    }

    pub fn meta(&self) -> SnapMeta {
        SnapMeta { index: self.machine.applied_index(), term: 1, ..SnapMeta::default() }
    }

    pub fn checkpoint(&mut self) -> Result<bool> {
        let meta = self.meta();
        let since = std::mem::replace(&mut self.since, meta.index);
        let changes = std::mem::take(&mut self.changes);
        self.snapshots.write(Checkpoint { meta, view: self.machine.view(), since, changes })
    }

    /// The next checkpoint must be whole.
    pub fn forget_changes(&mut self) {
        (self.since, self.changes) = (u64::MAX, Vec::new());
    }

    /// What a new process finds. The old one is gone without a word.
    pub fn restart(&mut self) {
        let (snapshots, loaded) = open(&self.dir);
        std::mem::forget(std::mem::replace(&mut self.snapshots, snapshots));
        self.machine = loaded.map_or_else(Machine::new, |(_, machine)| machine);
        (self.since, self.changes) = (self.machine.applied_index(), Vec::new());
    }

    /// All chunks of the newest checkpoint, in the order they are sent.
    pub fn chunks(&self) -> Vec<Vec<u8>> {
        let chain = self.snapshots.newest().expect("a checkpoint");
        let mut chunks = Vec::new();
        for run in &chain.runs {
            let mut reader = RunReader::open(&chain.dir.join(run.name())).expect("opens");
            while let Some(chunk) = reader.next_chunk().expect("reads") {
                chunks.push(chunk);
            }
        }
        chunks
    }

    pub fn largest_chunk(&self) -> usize {
        self.chunks().iter().map(Vec::len).max().expect("a chunk")
    }
}

fn open(dir: &tempfile::TempDir) -> (Arc<Snapshots>, Option<super::Loaded>) {
    Snapshots::open_with(dir.path().join("snap"), CHUNK_BYTES).expect("opens")
}

/// A member with a chain of a whole run and two runs of changes. Each of them has `keys` keys' worth of chunks.
pub(crate) fn small_member(keys: usize) -> Member {
    let mut member = Member::new();
    for round in 0..if keys == 0 { 0 } else { 3 } {
        for n in 0..keys {
            member.put(&format!("key/{n:03}"), &format!("round {round}"));
        }
        assert!(member.checkpoint().expect("writes"));
    }
    member
}
