//! The apply thread: committed entries into the machine, answers to those who wait, events to those who watch.
//!
//! Reads never wait for it: it publishes an immutable view after each batch.

use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use bytes::{Buf, Bytes};
use quorate_raft::types::{Config, ConfigAt, Entry, Index, MemberId, Payload, SnapMeta, Term};
use quorate_state::{Applied, ClusterVersion, Command, KeyValue, Machine, View};
use tokio::sync::oneshot;

use crate::driver::{DriverInput, Inbox};
use crate::handle::{CallError, EventBatch, Shared};
use crate::snapshot::{Checkpoint, Staged};
use crate::versions;

/// Bytes in front of each command: who asked, and that member's number for it.
pub(crate) const REQUEST_HEADER_BYTES: usize = 16;
/// Bytes applied after which a checkpoint is due whatever the count says: the log to replay at a start, and the log kept
/// in memory, stay within about twice this. A checkpoint writes what changed, so many small ones cost no more.
const CHECKPOINT_BYTES: u64 = 64 << 20;

pub(crate) enum ApplyInput {
    Entries(Vec<Entry>),
    ReadAt {
        index: Index,
        sender: oneshot::Sender<Result<Arc<View>, CallError>>,
    },
    Install(Box<Staged>),
    /// The last checkpoint is durable, or could not be written.
    CheckpointDone,
}

/// A read that waits for an index; the heap gives the lowest first.
struct ReadAt {
    index: Index,
    sender: oneshot::Sender<Result<Arc<View>, CallError>>,
}

impl PartialEq for ReadAt {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}
impl Eq for ReadAt {}
impl PartialOrd for ReadAt {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ReadAt {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.index.cmp(&self.index)
    }
}

pub(crate) struct Applier {
    machine: Machine,
    term: Term,
    config: Arc<Config>,
    config_at: ConfigAt,
    reads: BinaryHeap<ReadAt>,
    inbox: Inbox,
    shared: Arc<Shared>,
    checkpoints: Sender<Checkpoint>,
    checkpoint_every: u64,
    checkpointed: Index,
    /// What changed since.
    changes: Vec<Arc<KeyValue>>,
    applied_bytes: u64,
    is_checkpointing: bool,
    /// An entry came that this program must not apply: it applies nothing any more.
    is_too_old: bool,
    /// Where the version that was agreed on is kept.
    dir: PathBuf,
}

/// What an apply round owes after its view is published.
#[derive(Default)]
struct Owed {
    answers: Vec<(u64, Applied)>,
    batches: Vec<EventBatch>,
    later_term: Option<Term>,
}

impl Applier {
    pub(crate) fn new(
        machine: Machine,
        meta: &SnapMeta,
        inbox: Inbox,
        shared: Arc<Shared>,
        checkpoints: Sender<Checkpoint>,
        checkpoint_every: u64,
        dir: PathBuf,
    ) -> Applier {
        Applier {
            machine,
            term: meta.term,
            config: Arc::new(meta.config.clone()),
            config_at: meta.config_at,
            reads: BinaryHeap::new(),
            inbox,
            shared,
            checkpoints,
            checkpoint_every,
            checkpointed: meta.index,
            changes: Vec::new(),
            applied_bytes: 0,
            is_checkpointing: false,
            is_too_old: false,
            dir,
        }
    }

    /// Runs until the driver is gone. An entry that cannot be decoded is a broken invariant: the process ends.
    pub(crate) fn run(mut self, inputs: &Receiver<ApplyInput>) {
        while let Ok(first) = inputs.recv() {
            let mut owed = Owed::default();
            let before = self.machine.applied_index();
            self.take(first, &mut owed);
            while let Ok(more) = inputs.try_recv() {
                self.take(more, &mut owed);
            }
            self.settle(before, owed);
            self.maybe_checkpoint();
        }
    }

    fn take(&mut self, input: ApplyInput, owed: &mut Owed) {
        if self.is_too_old {
            return;
        }
        match input {
            ApplyInput::Entries(entries) => {
                for entry in entries {
                    // After a start the core commits again what the engine holds already.
                    if entry.index > self.machine.applied_index() && !self.is_too_old {
                        self.apply(entry, owed);
                    }
                }
            }
            ApplyInput::ReadAt { index, sender } => self.reads.push(ReadAt { index, sender }),
            ApplyInput::Install(staged) => self.install(*staged),
            ApplyInput::CheckpointDone => self.is_checkpointing = false,
        }
    }

    fn apply(&mut self, entry: Entry, owed: &mut Owed) {
        let Entry { term, index, payload } = entry;
        if term > self.term {
            owed.later_term = Some(term);
        }
        self.term = term;
        match payload {
            Payload::Noop => {
                self.machine.apply(index, term, None);
            }
            Payload::Config(config) => {
                self.config_at = ConfigAt { incarnation: self.shared.identity.incarnation, term, index };
                self.config = Arc::new(config);
                self.machine.apply(index, term, None);
            }
            Payload::Data(data) => {
                self.applied_bytes += data.len() as u64;
                let (origin, number, command) = decode(data);
                if let Command::ClusterVersion(agreed) = &command
                    && self.ends_as_too_old(*agreed)
                {
                    return;
                }
                let mut applied = self.machine.apply(index, term, Some(&command));
                if !applied.events.is_empty() {
                    let events = std::mem::take(&mut applied.events);
                    self.changes.extend(events.iter().map(|event| event.kv.clone()));
                    owed.batches.push(EventBatch { revision: applied.revision, events });
                }
                if origin == self.shared.identity.member_id {
                    owed.answers.push((number, applied));
                }
            }
        }
    }

    /// Publishes the view first: whoever is answered can read what was acknowledged from any view taken later.
    fn settle(&mut self, before: Index, owed: Owed) {
        let index = self.machine.applied_index();
        if index != before {
            self.shared.view.store(Arc::new(self.machine.view()));
        }
        for (number, applied) in owed.answers {
            if let Some(waiter) = self.shared.waiters.take(number) {
                let _ = waiter.sender.send(Ok(applied));
            }
        }
        for batch in owed.batches {
            // Nobody watches: nothing to do.
            let _ = self.shared.events.send(Arc::new(batch));
        }
        let view = self.shared.view.load_full();
        while self.reads.peek().is_some_and(|read| read.index <= index) {
            let read = self.reads.pop().expect("there is a top");
            let _ = read.sender.send(Ok(view.clone()));
        }
        if index != before {
            self.inbox.tell(DriverInput::Applied { index, later_term: owed.later_term });
        }
    }

    /// What follows in the log may mean nothing to this program, or something else.
    fn ends_as_too_old(&mut self, agreed: ClusterVersion) -> bool {
        if agreed > self.machine.cluster_version()
            && let Err(error) = versions::keep(&self.dir, agreed)
        {
            // The log says it as well, only later.
            tracing::warn!(%error, "the version that the cluster agreed on is not kept beside the log");
        }
        if let Some(why) = versions::why_too_old(agreed) {
            self.is_too_old = true;
            self.inbox.tell(DriverInput::TooOld { why });
        }
        self.is_too_old
    }

    fn install(&mut self, staged: Staged) {
        if self.ends_as_too_old(staged.cluster_version()) {
            return;
        }
        let meta = staged.meta.clone();
        if let Err(error) = staged.adopt(&mut self.machine) {
            self.inbox.tell(DriverInput::WriteFailed { error: format!("cannot adopt a snapshot: {error}") });
            return;
        }
        self.term = meta.term;
        self.config = Arc::new(meta.config.clone());
        self.config_at = meta.config_at;
        self.checkpointed = meta.index;
        self.changes = Vec::new();
        self.applied_bytes = 0;
        self.shared.view.store(Arc::new(self.machine.view()));
        self.inbox.tell(DriverInput::Installed { index: meta.index });
        self.inbox.tell(DriverInput::Persisted { meta });
    }

    fn maybe_checkpoint(&mut self) {
        let index = self.machine.applied_index();
        let is_due = index >= self.checkpointed + self.checkpoint_every || self.applied_bytes >= CHECKPOINT_BYTES;
        if self.is_checkpointing || !is_due {
            return;
        }
        self.is_checkpointing = true;
        self.applied_bytes = 0;
        let since = std::mem::replace(&mut self.checkpointed, index);
        let changes = std::mem::take(&mut self.changes);
        let meta = SnapMeta { index, term: self.term, config: (*self.config).clone(), config_at: self.config_at };
        // When the checkpoint thread is gone the process is ending.
        let _ = self.checkpoints.send(Checkpoint { meta, view: self.machine.view(), since, changes });
    }
}

/// A committed command was checked before it was proposed, so bytes that do not decode mean that this member or the
/// one that proposed is broken: it must not go on from a state others do not have.
fn decode(mut data: Bytes) -> (MemberId, u64, Command) {
    assert!(data.len() >= REQUEST_HEADER_BYTES, "a committed command carries who asked for it");
    let origin = MemberId(data.get_u64_le());
    let number = data.get_u64_le();
    let command = Command::decode(data).expect("a committed command decodes on every member alike");
    (origin, number, command)
}
