//! The only loop over the core: takes inputs, steps the core, carries out its effects.
//!
//! One thread. It never blocks on a disk, a socket or a lock that is held for long: the log thread flushes, the apply
//! thread applies, connections have their own tasks. `Effect::Send { after }` is obeyed here and nowhere else.
//!
//! A proposal whose leadership was lost is in limbo: it may still commit. When an entry of a later term is applied
//! here, everything of earlier terms that could commit has been applied before it, so what still waits then was
//! certainly not executed, and is proposed again. Planned moves of leadership thus fail no request.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use quorate_log::{Rooms, Wanted};
use quorate_raft::Node;
use quorate_raft::io::{Change, Effect, Event, Input, Outcome, ReadMode, Refusal};
use quorate_raft::types::{Config, ConfigAt, Entry, Index, MemberId, Record, SnapMeta, Term, Time, Token, WriteSeq};
use quorate_raft::wire::Msg;
use quorate_state::{Command, View};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::apply::{ApplyInput, REQUEST_HEADER_BYTES};
use crate::clock;
use crate::handle::{CallError, NodeStatus, Shared};
use crate::snapshot::Staged;
use crate::transport::{ANSWER_BYTES_MAX, ChangeAnswer, PeerInput, Peers};

/// Inputs handled before effects are submitted together: bounds latency under load.
const BATCH_INPUTS_MAX: usize = 4096;
/// The status is published this often while there is something to do, and while it is waited for the last clients to go.
const STATUS_EVERY_US: u64 = 20_000;
/// And this often while there is not: a member that rests wakes for nothing else.
const STATUS_AT_REST_US: u64 = 250_000;
/// Reads and proposals held while there is no leader are tried again this often.
const HELD_EVERY_US: u64 = 20_000;
/// Requests held while there is no leader; more are refused.
const HELD_MAX: usize = 50_000;
/// Forwarded proposals that were answered meanwhile are forgotten this often. Members tell of their volumes with every sweep.
const SWEEP_EVERY_US: u64 = quorate_log::ROOM_TOLD_EVERY_US;
/// A stopping member that leads no more gives its clients this long to get their answers and go. Watches do not end by
/// themselves, so this is how long it takes to stop under them.
const DRAIN_US: u64 = 500_000;
/// A transfer of leadership may take this long on top of an election timeout before a stopping member gives up on it.
const HAND_OVER_US: u64 = 500_000;

pub enum DriverInput {
    // From the services.
    Propose {
        number: u64,
    },
    Read {
        mode: ReadMode,
        sender: oneshot::Sender<Result<Arc<View>, CallError>>,
    },
    Change {
        expect: Option<ConfigAt>,
        change: Change,
        sender: oneshot::Sender<Result<ConfigAt, CallError>>,
    },
    Transfer {
        to: MemberId,
        sender: oneshot::Sender<Result<(), CallError>>,
    },
    Activate {
        sender: oneshot::Sender<Result<(), CallError>>,
    },
    // From peers.
    /// `room` is given back to the connection when the input has been handled.
    Peer {
        from: MemberId,
        input: PeerInput,
        room: OwnedSemaphorePermit,
    },
    PeerGone {
        peer: MemberId,
    },
    // From the other threads.
    Written {
        upto: WriteSeq,
    },
    WriteFailed {
        error: String,
    },
    DiskStalled,
    Applied {
        index: Index,
        later_term: Option<Term>,
    },
    Persisted {
        meta: SnapMeta,
    },
    SnapshotSent {
        to: MemberId,
        index: Index,
        ok: bool,
    },
    SnapshotReady {
        from: MemberId,
        term: Term,
        staged: Box<Staged>,
    },
    Installed {
        index: Index,
    },
    /// The entries of a range that are in memory here, for a member whose disk has lost them.
    Entries {
        range: Wanted,
        sender: oneshot::Sender<Vec<Entry>>,
    },
    /// A peer knows of a second data directory of this member: neither may speak any more.
    Halt {
        why: String,
    },
    /// The cluster has agreed on more than this program understands: it ends, and a newer one may go on.
    TooOld {
        why: String,
    },
    /// Hand leadership over if it is ours, send clients away, then end.
    Shutdown,
    /// The last client's connection is closed after clients were sent away.
    ClientsGone,
}

impl std::fmt::Debug for DriverInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DriverInput")
    }
}

/// The way into the driver.
#[derive(Clone, Debug)]
pub struct Inbox(pub(crate) Sender<DriverInput>);

impl Inbox {
    pub(crate) fn send(&self, input: DriverInput) -> Result<(), CallError> {
        self.0.send(input).map_err(|_| CallError::Stopped)
    }
    /// For threads that end with the driver: an input after its end has nobody to care for it.
    pub(crate) fn tell(&self, input: DriverInput) {
        let _ = self.0.send(input);
    }
}

/// Where effects go.
pub(crate) struct Outlets {
    pub log: Sender<Vec<(WriteSeq, Record)>>,
    pub apply: Sender<ApplyInput>,
    pub peers: Peers,
    pub shared: Arc<Shared>,
    pub activation: Activation,
    /// Says durably why this member may never speak again.
    pub halted: PathBuf,
    pub election_us: u64,
}

/// The durable note that clients may be served.
pub(crate) struct Activation {
    pub file: PathBuf,
    pub is_activated: bool,
}

impl Activation {
    fn activate(&mut self) -> std::io::Result<()> {
        if !self.is_activated {
            crate::files::write_durably(&self.file, b"activated\n")?;
            self.is_activated = true;
        }
        Ok(())
    }
}

/// What waits for an answer of the core, by token.
enum Waiting {
    /// `term`: in which it was appended, if this member led.
    Proposal {
        term: Term,
    },
    /// A proposal that another member forwarded; it is told only of a refusal.
    Forwarded {
        origin: MemberId,
        number: u64,
        term: Term,
    },
    Read(oneshot::Sender<Result<Arc<View>, CallError>>),
    Change(oneshot::Sender<Result<ConfigAt, CallError>>),
    ForwardedChange {
        origin: MemberId,
        number: u64,
    },
    Transfer(oneshot::Sender<Result<(), CallError>>),
    Shutdown,
}

/// Where a proposal of this round comes from.
enum Proposal {
    Own { number: u64 },
    Forwarded { origin: MemberId, number: u64, term: Term, payload: Bytes },
}

/// Requests that found no leader.
#[derive(Default)]
struct Held {
    proposals: VecDeque<u64>,
    reads: VecDeque<oneshot::Sender<Result<Arc<View>, CallError>>>,
    due: Option<Time>,
}

pub(crate) struct Driver {
    node: Node,
    inbox: Receiver<DriverInput>,
    out: Outlets,
    to_write: Vec<(WriteSeq, Record)>,
    written: WriteSeq,
    sends: VecDeque<(WriteSeq, MemberId, Msg)>,
    waiting: BTreeMap<Token, Waiting>,
    /// Taken in this round; they go to the core, and so to log and peers, as one batch.
    proposals: Vec<Proposal>,
    tokens: u64,
    /// Proposals sent to another member, with the term they were sent in.
    limbo: BTreeMap<u64, Term>,
    swept: Time,
    rooms: Rooms,
    forwarded_changes: BTreeMap<u64, oneshot::Sender<Result<ConfigAt, CallError>>>,
    held: Held,
    published: Time,
    /// Inputs until then.
    published_inputs: u64,
    elections: u64,
    led_since: Time,
    failover_count: u64,
    last_failover_ms: u64,
    /// Whether a leader was known and then lost since this process started: only then is a new one a failover.
    had_leader: bool,
    inputs: u64,
    staged: Option<Box<Staged>>,
    config: Arc<Config>,
    stopping: Option<Time>,
    /// Clients were sent away, and the last has gone.
    no_clients: bool,
    /// This member may not speak any more: ends before anything else leaves.
    halted: Option<String>,
    incarnation: u64,
}

impl Driver {
    pub(crate) fn new(node: Node, inbox: Receiver<DriverInput>, out: Outlets) -> Driver {
        let incarnation = out.shared.identity.incarnation;
        let config = node.status().newest_config.config.clone();
        Driver {
            node,
            inbox,
            out,
            to_write: Vec::new(),
            written: WriteSeq(0),
            sends: VecDeque::new(),
            waiting: BTreeMap::new(),
            proposals: Vec::new(),
            tokens: 1 << 62,
            limbo: BTreeMap::new(),
            swept: Time(0),
            rooms: Rooms::default(),
            forwarded_changes: BTreeMap::new(),
            held: Held::default(),
            published: Time(0),
            published_inputs: 0,
            elections: 0,
            led_since: Time(0),
            failover_count: 0,
            last_failover_ms: 0,
            had_leader: false,
            inputs: 0,
            staged: None,
            config,
            stopping: None,
            no_clients: false,
            halted: None,
            incarnation,
        }
    }

    /// Runs until told to stop. An error means that this member may not speak any more.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let result = self.serve();
        self.out.shared.waiters.end();
        result
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        self.out.peers.set_members(&self.config);
        let mut effects = Vec::new();
        loop {
            let first = self.wait();
            let now = clock::now();
            if let Some(input) = first {
                if self.take(now, input, &mut effects)? {
                    return Ok(());
                }
                for _ in 0..BATCH_INPUTS_MAX {
                    let Ok(input) = self.inbox.try_recv() else { break };
                    if self.take(now, input, &mut effects)? {
                        return Ok(());
                    }
                }
            }
            if self.node.deadline() <= now {
                self.step(now, Input::Tick, &mut effects);
            }
            self.retry_held(now, &mut effects);
            self.propose_batch(now, &mut effects);
            self.submit();
            if now.since(self.published) >= self.status_every_us() {
                self.publish(now);
            }
            if now.since(self.swept) >= SWEEP_EVERY_US {
                self.swept = now;
                let waiters = &self.out.shared.waiters;
                self.limbo.retain(|number, _| waiters.is_waiting(*number));
                self.out.peers.forget_strangers(now, &self.config);
                self.tell_room(now);
            }
            let is_drained = self.is_draining() && self.out.shared.waiters.is_empty();
            if is_drained || self.stopping.is_some_and(|due| now >= due) {
                return Ok(());
            }
        }
    }

    fn status_every_us(&self) -> u64 {
        let is_at_rest = self.inputs == self.published_inputs && self.stopping.is_none();
        if is_at_rest { STATUS_AT_REST_US } else { STATUS_EVERY_US }
    }

    fn wait(&self) -> Option<DriverInput> {
        let now = clock::now();
        let mut due = self.node.deadline().min(self.published.after(self.status_every_us()));
        due = due.min(self.held.due.unwrap_or(due)).min(self.stopping.unwrap_or(due));
        self.inbox.recv_timeout(Duration::from_micros(due.since(now))).ok()
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// True when the driver shall end.
    fn take(&mut self, now: Time, input: DriverInput, effects: &mut Vec<Effect>) -> anyhow::Result<bool> {
        self.inputs += 1;
        match input {
            DriverInput::Propose { number } if self.is_draining() => {
                self.out.shared.waiters.fail(number, CallError::Stopped);
            }
            DriverInput::Propose { number } => self.proposals.push(Proposal::Own { number }),
            DriverInput::Read { mode, sender } => self.read(now, mode, sender, effects),
            DriverInput::Change { expect, change, sender } => self.change(now, expect, change, sender, effects),
            DriverInput::Transfer { to, sender } => {
                let token = self.token();
                self.waiting.insert(token, Waiting::Transfer(sender));
                self.step(now, Input::Transfer { token, to }, effects);
            }
            DriverInput::Activate { sender } => {
                let done = self.out.activation.activate();
                if let Err(error) = &done {
                    anyhow::bail!("cannot note the activation in {}: {error}", self.out.activation.file.display());
                }
                self.publish(now);
                let _ = sender.send(Ok(()));
            }
            DriverInput::Peer { from, input, room } => {
                self.peer(now, from, input, effects);
                drop(room);
            }
            DriverInput::PeerGone { peer } => self.step(now, Input::PeerGone { peer }, effects),
            DriverInput::Written { upto } => {
                self.written = upto;
                while self.sends.front().is_some_and(|(seq, _, _)| *seq <= upto) {
                    let (_, to, msg) = self.sends.pop_front().expect("there is a front");
                    self.out.peers.send(to, msg);
                }
                self.step(now, Input::Written { upto }, effects);
            }
            DriverInput::WriteFailed { error } => {
                self.step(now, Input::WriteFailed, effects);
                anyhow::bail!("the log failed, so this member may promise nothing any more: {error}");
            }
            DriverInput::DiskStalled => self.step(now, Input::DiskStalled, effects),
            DriverInput::Applied { index, later_term } => {
                self.step(now, Input::Applied { index }, effects);
                if let Some(term) = later_term {
                    self.leave_limbo(term);
                }
            }
            DriverInput::Persisted { meta } => self.step(now, Input::Persisted { meta }, effects),
            DriverInput::SnapshotSent { to, index, ok } => {
                self.step(now, Input::SnapshotSent { to, index, ok }, effects);
            }
            DriverInput::SnapshotReady { from, term, staged } => {
                let meta = staged.meta.clone();
                self.staged = Some(staged);
                self.step(now, Input::SnapshotReady { from, term, meta }, effects);
                // The core took it just now or does not want it: then it is removed.
                self.staged = None;
            }
            DriverInput::Installed { index } => {
                // What was in limbo may be within the snapshot: nobody can tell any more.
                for number in std::mem::take(&mut self.limbo).into_keys() {
                    self.out.shared.waiters.fail(number, CallError::Unknown);
                }
                self.step(now, Input::Installed { index }, effects);
                self.step(now, Input::Applied { index }, effects);
            }
            DriverInput::Entries { range, sender } => {
                // Who asked may have given up.
                let _ = sender.send(self.entries(range));
            }
            DriverInput::Halt { why } => {
                self.step(now, Input::WriteFailed, effects);
                anyhow::bail!("this member must not speak any more: {why}");
            }
            DriverInput::TooOld { why } => {
                self.step(now, Input::WriteFailed, effects);
                anyhow::bail!(why);
            }
            DriverInput::Shutdown => return Ok(self.shutdown(now, effects)),
            DriverInput::ClientsGone => self.no_clients = true,
        }
        match self.halted.take() {
            Some(why) => Err(self.halt(&why)),
            None => Ok(false),
        }
    }

    /// It must not speak after a restart either.
    fn halt(&self, why: &str) -> anyhow::Error {
        let file = &self.out.halted;
        match crate::files::write_durably(file, format!("{why}\n").as_bytes()) {
            Ok(()) => anyhow::anyhow!("this member must not speak any more: {why}"),
            Err(error) => anyhow::anyhow!(
                "this member must not speak any more: {why}; and that cannot be noted in {}: {error}",
                file.display()
            ),
        }
    }

    fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        self.node.step(now, input, effects);
        for effect in effects.drain(..) {
            self.carry_out(now, effect);
        }
    }

    fn carry_out(&mut self, now: Time, effect: Effect) {
        match effect {
            Effect::Write { seq, record } => self.to_write.push((seq, record)),
            Effect::Send { to, msg, after } => match after {
                Some(seq) if seq > self.written => self.sends.push_back((seq, to, msg)),
                Some(_) | None => self.out.peers.send(to, msg),
            },
            Effect::Commit { entries } => self.apply(ApplyInput::Entries(entries)),
            Effect::ReadAt { token, index } => self.read_at(token, index),
            Effect::Resolve { token, outcome } => self.resolve(now, token, outcome),
            Effect::Acked { .. } => {}
            Effect::SendSnapshot { to, term } => self.out.peers.send_snapshot(to, term),
            Effect::Install { meta } => {
                let staged = self.staged.take().expect("only a staged snapshot is installed");
                assert_eq!(staged.meta, meta, "the staged snapshot is the one to install");
                self.apply(ApplyInput::Install(staged));
            }
            Effect::Event(event) => self.event(now, event),
        }
    }

    /// From the first one asked for, without gaps, as many as fit an answer.
    fn entries(&self, range: Wanted) -> Vec<Entry> {
        let mut bytes = 0;
        let held = (range.first..=range.last).map_while(|index| self.node.entry_at(index));
        let fitting = held.take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            is_first || bytes <= ANSWER_BYTES_MAX
        });
        fitting.cloned().collect()
    }

    fn apply(&self, input: ApplyInput) {
        self.out.apply.send(input).expect("the apply thread lives as long as the driver");
    }

    /// One submission to the log for everything this round wrote.
    fn submit(&mut self) {
        if !self.to_write.is_empty() {
            let batch = std::mem::take(&mut self.to_write);
            // A log thread that is gone has reported why; that report is next in the inbox.
            let _ = self.out.log.send(batch);
        }
        self.out.peers.flush();
    }

    // Requests.

    /// Everything proposed in this round, as one input.
    fn propose_batch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.proposals.is_empty() {
            return;
        }
        let (is_leader, now_term) = (self.node.is_leader(), self.node.term());
        let mut batch = Vec::with_capacity(self.proposals.len());
        for proposal in std::mem::take(&mut self.proposals) {
            match proposal {
                Proposal::Own { number } => {
                    // The caller may have given up meanwhile.
                    let Some(payload) = self.out.shared.waiters.expose(number) else { continue };
                    if is_leader && self.has_no_room_for(&payload) {
                        self.out.shared.waiters.fail(number, CallError::NoSpace);
                        continue;
                    }
                    self.waiting.insert(Token(number), Waiting::Proposal { term: now_term });
                    batch.push((Token(number), payload));
                }
                // Only in the very term the origin meant: it counts on that to know when the outcome is settled.
                Proposal::Forwarded { origin, number, term, .. } if !is_leader || term != now_term => {
                    self.out.peers.forward_refused(origin, number, term, false);
                }
                Proposal::Forwarded { origin, number, term, payload } if self.has_no_room_for(&payload) => {
                    self.out.peers.forward_refused(origin, number, term, true);
                }
                Proposal::Forwarded { origin, number, term, payload } => {
                    let token = self.token();
                    self.waiting.insert(token, Waiting::Forwarded { origin, number, term });
                    batch.push((token, payload));
                }
            }
        }
        self.step(now, Input::Propose { batch }, effects);
    }

    /// The leader must know of every volume that is nearly full: it alone can stop what grows.
    fn tell_room(&mut self, now: Time) {
        let own = self.out.shared.identity.member_id;
        let is_low = self.out.shared.disk.is_low();
        self.rooms.note(now, own, is_low);
        if let Some(leader) = self.node.leader().filter(|leader| *leader != own) {
            self.out.peers.tell_room(leader, is_low);
        }
        self.judge_room();
    }

    fn judge_room(&self) {
        let own = self.out.shared.identity.member_id;
        let refused = self.node.is_leader() && self.rooms.must_not_grow(own, &self.config);
        self.out.shared.disk.refuse_growth(refused);
    }

    /// Decided before an index is assigned: such a command has certainly not been executed.
    fn has_no_room_for(&self, payload: &Bytes) -> bool {
        self.out.shared.disk.is_growth_refused()
            && payload.len() > REQUEST_HEADER_BYTES
            && Command::decode(payload.slice(REQUEST_HEADER_BYTES..)).is_ok_and(|command| command.grows())
    }

    fn read(
        &mut self,
        now: Time,
        mode: ReadMode,
        sender: oneshot::Sender<Result<Arc<View>, CallError>>,
        effects: &mut Vec<Effect>,
    ) {
        let token = self.token();
        self.waiting.insert(token, Waiting::Read(sender));
        self.step(now, Input::Read { token, mode }, effects);
    }

    fn read_at(&mut self, token: Token, index: Index) {
        let Some(Waiting::Read(sender)) = self.waiting.remove(&token) else { return };
        let view = self.out.shared.view.load();
        if view.applied_index() >= index {
            let _ = sender.send(Ok(Arc::clone(&view)));
        } else {
            self.apply(ApplyInput::ReadAt { index, sender });
        }
    }

    fn change(
        &mut self,
        now: Time,
        expect: Option<ConfigAt>,
        change: Change,
        sender: oneshot::Sender<Result<ConfigAt, CallError>>,
        effects: &mut Vec<Effect>,
    ) {
        let status = self.node.status();
        match status.leader.filter(|leader| *leader != status.id) {
            Some(leader) => {
                let number = self.token().0;
                self.forwarded_changes.insert(number, sender);
                self.out.peers.forward_change(leader, number, expect, &change);
            }
            None => {
                let token = self.token();
                self.waiting.insert(token, Waiting::Change(sender));
                self.step(now, Input::Change { token, expect, change }, effects);
            }
        }
        self.forwarded_changes.retain(|_, sender| !sender.is_closed());
    }

    fn peer(&mut self, now: Time, from: MemberId, input: PeerInput, effects: &mut Vec<Effect>) {
        match input {
            PeerInput::Msgs(msgs) => {
                for msg in msgs {
                    self.step(now, Input::Msg { from, msg }, effects);
                }
            }
            PeerInput::Forward { number, term, payload } => {
                self.proposals.push(Proposal::Forwarded { origin: from, number, term, payload });
            }
            PeerInput::Room { is_low } => {
                self.rooms.note(now, from, is_low);
                self.judge_room();
            }
            PeerInput::ForwardRefused { number, term, is_full } => {
                // Certainly not executed there: find another leader. A refusal of an earlier attempt says nothing
                // about the present one.
                if self.limbo.get(&number) == Some(&term) {
                    self.limbo.remove(&number);
                    if is_full {
                        self.out.shared.waiters.fail(number, CallError::NoSpace);
                    } else {
                        self.hold_proposal(now, number);
                    }
                }
            }
            PeerInput::Change { number, expect, change } => {
                let token = self.token();
                self.waiting.insert(token, Waiting::ForwardedChange { origin: from, number });
                self.step(now, Input::Change { token, expect, change }, effects);
            }
            PeerInput::ChangeAnswer { number, answer } => {
                if let Some(sender) = self.forwarded_changes.remove(&number) {
                    let _ = sender.send(match answer {
                        ChangeAnswer::Done(at) => Ok(at),
                        ChangeAnswer::Refused(refusal) => Err(CallError::Refused(refusal)),
                        ChangeAnswer::Unknown => Err(CallError::Unknown),
                    });
                }
            }
        }
    }

    fn resolve(&mut self, now: Time, token: Token, outcome: Outcome) {
        let Some(waiting) = self.waiting.remove(&token) else { return };
        match waiting {
            Waiting::Proposal { term } => self.resolve_proposal(now, token.0, term, outcome),
            Waiting::Forwarded { origin, number, term } => match outcome {
                Outcome::Refused(_) => self.out.peers.forward_refused(origin, number, term, false),
                // The origin sees it applied, or settles it when a later term begins.
                Outcome::Committed { .. } | Outcome::Unknown | Outcome::Transferred | Outcome::TransferAborted => {}
            },
            Waiting::Read(sender) => match outcome {
                // A read changes nothing: it is simply asked again.
                Outcome::Refused(Refusal::NotLeader { .. } | Refusal::NotReady | Refusal::Transferring { .. })
                | Outcome::Unknown => self.hold_read(now, sender),
                Outcome::Refused(refusal) => drop(sender.send(Err(refused(refusal)))),
                Outcome::Committed { .. } | Outcome::Transferred | Outcome::TransferAborted => {}
            },
            Waiting::Change(sender) => drop(sender.send(match self.change_answer(outcome) {
                ChangeAnswer::Done(at) => Ok(at),
                ChangeAnswer::Refused(refusal) => Err(refused(refusal)),
                ChangeAnswer::Unknown => Err(CallError::Unknown),
            })),
            Waiting::ForwardedChange { origin, number } => {
                let answer = self.change_answer(outcome);
                self.out.peers.change_answer(origin, number, &answer);
            }
            Waiting::Transfer(sender) => drop(sender.send(match outcome {
                Outcome::Transferred | Outcome::Committed { .. } => Ok(()),
                Outcome::TransferAborted => Err(CallError::TransferAborted),
                Outcome::Refused(refusal) => Err(refused(refusal)),
                Outcome::Unknown => Err(CallError::Unknown),
            })),
            Waiting::Shutdown => self.drain(now),
        }
    }

    fn change_answer(&self, outcome: Outcome) -> ChangeAnswer {
        match outcome {
            Outcome::Committed { term, index } => {
                ChangeAnswer::Done(ConfigAt { incarnation: self.incarnation, term, index })
            }
            Outcome::Refused(refusal) => ChangeAnswer::Refused(refusal),
            Outcome::Unknown | Outcome::Transferred | Outcome::TransferAborted => ChangeAnswer::Unknown,
        }
    }

    fn resolve_proposal(&mut self, now: Time, number: u64, term: Term, outcome: Outcome) {
        match outcome {
            // Answered when it is applied here.
            Outcome::Committed { .. } | Outcome::Transferred | Outcome::TransferAborted => {}
            Outcome::Unknown => drop(self.limbo.insert(number, term)),
            Outcome::Refused(Refusal::NotLeader { leader: Some(leader) }) => self.forward(now, number, leader),
            Outcome::Refused(Refusal::NotLeader { leader: None } | Refusal::NotReady) => {
                self.hold_proposal(now, number)
            }
            Outcome::Refused(refusal) => self.out.shared.waiters.fail(number, refused(refusal)),
        }
    }

    fn forward(&mut self, now: Time, number: u64, leader: MemberId) {
        let Some(payload) = self.out.shared.waiters.expose(number) else { return };
        let term = self.node.term();
        if self.out.peers.forward(leader, number, term, payload) {
            self.limbo.insert(number, term);
        } else {
            // It did not leave this process.
            self.hold_proposal(now, number);
        }
    }

    /// An entry of `term` is applied here: nothing older can commit any more.
    fn leave_limbo(&mut self, term: Term) {
        let settled: Vec<u64> = self.limbo.iter().filter(|(_, sent)| **sent < term).map(|(n, _)| *n).collect();
        for number in settled {
            self.limbo.remove(&number);
            self.out.shared.waiters.withdraw(number);
            self.proposals.push(Proposal::Own { number });
        }
    }

    fn hold_proposal(&mut self, now: Time, number: u64) {
        self.out.shared.waiters.withdraw(number);
        if self.held.proposals.len() >= HELD_MAX {
            return self.out.shared.waiters.fail(number, CallError::TooManyRequests);
        }
        self.held.proposals.push_back(number);
        self.held.due.get_or_insert(now.after(HELD_EVERY_US));
    }

    fn hold_read(&mut self, now: Time, sender: oneshot::Sender<Result<Arc<View>, CallError>>) {
        if sender.is_closed() {
            return;
        }
        if self.held.reads.len() >= HELD_MAX {
            let _ = sender.send(Err(CallError::TooManyRequests));
            return;
        }
        self.held.reads.push_back(sender);
        self.held.due.get_or_insert(now.after(HELD_EVERY_US));
    }

    fn retry_held(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.held.due.is_none_or(|due| now < due) {
            return;
        }
        let held = std::mem::take(&mut self.held);
        self.proposals.extend(held.proposals.into_iter().map(|number| Proposal::Own { number }));
        for sender in held.reads {
            if !sender.is_closed() {
                self.read(now, ReadMode::Index, sender, effects);
            }
        }
    }

    // Telling.

    fn event(&mut self, now: Time, event: Event) {
        match &event {
            Event::BecameLeader { term } => {
                self.elections += 1;
                self.led_since = now;
                self.tell_room(now);
                tracing::info!(term, "became leader");
            }
            Event::BecameFollower { term, leader } => {
                self.out.peers.stop_snapshots();
                if leader.is_some() {
                    self.elections += 1;
                    self.had_leader = true;
                }
                tracing::info!(term, leader = ?leader, "became follower");
            }
            Event::LeaderReady { term, noop_index, since_last_leader_contact_us } => {
                let ms = since_last_leader_contact_us / 1_000;
                if self.had_leader {
                    self.failover_count += 1;
                    self.last_failover_ms = ms;
                }
                self.had_leader = true;
                tracing::info!(
                    term,
                    noop_index,
                    failover_ms = ms,
                    "leader ready: own term's no-op committed and applied"
                );
            }
            Event::ConfigActive { at, config } => {
                tracing::info!(?at, voters = ?config.voters, learners = ?config.learners, "configuration active");
                self.config = Arc::new(config.clone());
                self.out.peers.set_members(config);
            }
            Event::ConfigCommitted { at, config } => {
                tracing::info!(?at, voters = ?config.voters, joint = config.is_joint(), "configuration committed");
                self.out.peers.set_committed(*at, Arc::new(config.clone()));
            }
            Event::Removed { at } => {
                tracing::warn!(?at, "this member was removed; it serves nothing and waits to be stopped");
                // They find the others at once. Left alone they would wait here until somebody ends this process.
                self.out.shared.leaving.send_replace(true);
            }
            Event::TransferStarted { to } => tracing::info!(%to, "handing leadership over"),
            Event::SteppedDown { term, why } => tracing::warn!(term, ?why, "stepped down"),
            Event::Reverted { held, last_index } => {
                self.halted = Some(format!(
                    "its log ends at {last_index}, and it had told the leader that it holds {held} durably: its disk was \
                     lost, exchanged or set back; replace it under a new id"
                ));
            }
            Event::LogReverted { peer, held, last_index } => tracing::error!(
                %peer, held, last_index,
                "a member's log is shorter than what it said was durable: it lost its disk and counts for nothing; \
                 replace it under another id"
            ),
            Event::BecamePreCandidate { term } => tracing::info!(term, "asking for pre-votes"),
            Event::BecameCandidate { term } => tracing::info!(term, "asking for votes"),
        }
        self.held.due = self.held.due.map(|_| now);
        self.publish(now);
    }

    fn publish(&mut self, now: Time) {
        (self.published, self.published_inputs) = (now, self.inputs);
        self.out.shared.status.store(Arc::new(NodeStatus {
            raft: self.node.status(),
            at_us: now.0,
            elections: self.elections,
            led_since_us: self.led_since.0,
            failover_count: self.failover_count,
            last_failover_ms: self.last_failover_ms,
            is_activated: self.out.activation.is_activated,
            inputs: self.inputs,
        }));
    }

    /// It ends as soon as what is under way is answered. Who was removed has no clients, and ends only when told to.
    fn is_draining(&self) -> bool {
        self.no_clients && self.stopping.is_some()
    }

    /// Clients are told to go elsewhere. What they send until they have heard it is served as ever: a client does not
    /// repeat a write that was refused by a member that ends.
    fn drain(&mut self, now: Time) {
        self.out.shared.leaving.send_replace(true);
        self.stopping = Some(now.after(DRAIN_US));
    }

    /// Hands leadership to the best follower, lets requests under way be answered, then ends. True when to end at once.
    fn shutdown(&mut self, now: Time, effects: &mut Vec<Effect>) -> bool {
        let status = self.node.status();
        let is_leader = status.role == quorate_raft::RoleName::Leader;
        let voters = &status.newest_config.config.voters;
        let best =
            status.progress.iter().filter(|p| p.is_active && voters.contains(&p.id)).max_by_key(|p| (p.matched, p.id));
        if self.stopping.is_some() {
            return true;
        }
        let (true, Some(best)) = (is_leader, best) else {
            self.drain(now);
            return false;
        };
        let to = best.id;
        let token = self.token();
        self.waiting.insert(token, Waiting::Shutdown);
        self.stopping = Some(now.after(self.out.election_us + HAND_OVER_US + DRAIN_US));
        self.step(now, Input::Transfer { token, to }, effects);
        false
    }
}

fn refused(refusal: Refusal) -> CallError {
    match refusal {
        Refusal::NotLeader { .. } => CallError::NotLeader,
        Refusal::TooLarge { bytes, limit_bytes } => CallError::TooLarge { bytes, limit_bytes },
        Refusal::Overloaded { .. } => CallError::TooManyRequests,
        Refusal::Stopped => CallError::Stopped,
        other => CallError::Refused(other),
    }
}
