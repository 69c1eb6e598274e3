//! One running process: the core, its log, its machine, and how inputs and effects go between them.
//!
//! Obeys the contract of `quorate_raft::io` exactly as the driver of the node does: effects in order, a message that waits
//! for a write leaves once that write is durable, one flush in flight, a failed flush ends the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use quorate_log::{Boot, LogError, Rooms, Verdict};
use quorate_raft::Node;
use quorate_raft::io::{Effect, Event as CoreEvent, Input, Outcome};
use quorate_raft::types::{
    Config, ConfigAt, Entry, Index, MemberId, Payload, Record, SnapMeta, Term, Time, Token, WriteSeq,
};
use quorate_raft::wire::Msg;

use crate::clients::Ticket;
use crate::machine::Machine;
use crate::net::{self, Damaged};
use crate::oracle::{Durable, Oracle, Violation, hold};
use crate::storage::SimLog;
use crate::watch::{self, Watch};
use crate::world::{Event, Member, World};

/// A snapshot takes five times what a message takes, but one that waits for a stuck receiver waits once.
const SNAPSHOT_STEP_US_MAX: u64 = 100_000;

/// A flush older than this is reported as a stall.
const STALL_US: u64 = 500_000;
/// After a full disk refused a batch it is tried again this much later.
const NOSPACE_RETRY_US: u64 = 50_000;
/// Every so many flushes memory and disk are compared.
const COMPARE_EVERY: u64 = 16;
/// After one in so many flushes the log does some of its work that can wait.
const TEND_EVERY: u64 = 12;
/// Every so many messages the bytes on the wire are made and read back.
const CODEC_EVERY: u64 = 8;

/// What a token was given out for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Write(Ticket),
    /// With how much was committed, anywhere, when it was asked.
    Read(Ticket, Index),
    Compaction,
    Change,
    Transfer,
}

/// A running process. Gone at a crash.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) node: Node,
    /// Which start of the data directory this is.
    pub(crate) boot: Boot,
    /// The starts of others it listens to.
    pub(crate) admitted: BTreeMap<MemberId, Boot>,
    pub(crate) log: SimLog,
    pub(crate) machine: Machine,
    pub(crate) watch: Watch,
    /// Configuration and term at the applied index, for snapshots.
    pub(crate) applied_term: Term,
    pub(crate) applied_config: (ConfigAt, Config),
    pub(crate) to_apply: VecDeque<Entry>,
    pub(crate) is_applying: bool,
    pub(crate) to_write: VecDeque<(WriteSeq, Record)>,
    pub(crate) flushing: Option<Vec<(WriteSeq, Record)>>,
    pub(crate) flush_number: u64,
    pub(crate) written: WriteSeq,
    /// The last write it made as a leader.
    pub(crate) led_upto: WriteSeq,
    pub(crate) held: VecDeque<(WriteSeq, MemberId, Msg)>,
    pub(crate) staged: Option<(SnapMeta, Machine)>,
    /// What members told of their room, and since when this one leads.
    pub(crate) rooms: Rooms,
    pub(crate) led_since: Option<u64>,
    /// Since when its volume is nearly full, as looked at from outside.
    pub(crate) low_since: Option<u64>,
    /// The end of its lease is on the calendar.
    pub(crate) watches_lease: bool,
    pub(crate) installing: Option<(SnapMeta, Machine)>,
    /// The engine is making a state durable.
    pub(crate) persisting: bool,
    /// The latest instant of its clock: one that goes back stands still for it.
    pub(crate) latest: Time,
    /// What the engine held when more was first found in memory than the limits say.
    pub(crate) over_since: Option<Index>,
    /// It began to send a snapshot since that was last looked at.
    pub(crate) has_sent_snapshot: bool,
    pub(crate) next_wake: Option<u64>,
    /// Tokens without an outcome, with the instant they were given out.
    pub(crate) asked: BTreeMap<Token, (u64, Asked)>,
    /// Commands that have no answer of the machine yet.
    pub(crate) writes: BTreeSet<Ticket>,
    pub(crate) reads_ready: Vec<(Index, Ticket)>,
}

impl Process {
    /// The state at the applied index, with what a snapshot of it must say.
    fn image(&self) -> (SnapMeta, Machine) {
        let meta = SnapMeta {
            index: self.machine.applied(),
            term: self.applied_term,
            config: self.applied_config.1.clone(),
            config_at: self.applied_config.0,
        };
        (meta, self.machine.clone())
    }
}

impl World {
    /// Notes that a token waits for its outcome.
    pub(crate) fn ask(&mut self, id: MemberId, token: Token, asked: Asked) {
        let now = self.now;
        if let Some(process) = self.process(id) {
            process.asked.insert(token, (now, asked));
            if let Asked::Write(ticket) = asked {
                process.writes.insert(ticket);
            }
        }
    }

    pub(crate) fn wake(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let clock = member.clock;
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        // A wake that an earlier one replaced would plan another, and so on without end.
        if process.next_wake.is_some_and(|planned| planned > now) {
            return Ok(());
        }
        process.next_wake = None;
        if process.node.deadline() <= clock.read(now) {
            self.input(id, Input::Tick)
        } else {
            self.plan_wake(id);
            Ok(())
        }
    }

    pub(crate) fn plan_wake(&mut self, id: MemberId) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let (clock, life) = (member.clock, member.life);
        let Some(process) = member.process.as_mut() else { return };
        let due = clock.world_at(process.node.deadline(), now).max(now + 1);
        if process.next_wake.is_none_or(|planned| planned > due) {
            process.next_wake = Some(due);
            self.at(due, Event::Wake { member: id, life });
        }
    }

    /// Feeds one input and carries out what follows from it.
    pub fn input(&mut self, id: MemberId, input: Input) -> Result<(), Violation> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
            let time = member.clock.read(now);
            let Some(process) = member.process.as_mut() else { return Ok(()) };
            let mut effects = Vec::new();
            process.latest = process.latest.max(time);
            let latest = process.latest;
            process.watch.before(latest, &input, &process.node);
            let is_tick = matches!(input, Input::Tick);
            if is_tick {
                // A read that arrived at this instant comes before the tick.
                self.check_lease(id)?;
            }
            let Some(process) = self.process(id) else { return Ok(()) };
            process.node.step(time, input, &mut effects);
            let deadline = process.node.deadline();
            hold!(
                !is_tick || deadline > time,
                "I17 {id} wants a tick at {deadline:?} after the one at {time:?}: a loop; {:?}",
                process.node.status()
            );
            for effect in effects {
                self.effect(id, effect, &mut inputs)?;
            }
            if let Some(process) = self.process(id) {
                process.watch.after(latest, &process.node)?;
            }
        }
        self.maybe_persist(id)?;
        self.start_flush(id);
        self.watch_lease(id);
        self.plan_wake(id);
        Ok(())
    }

    fn effect(&mut self, id: MemberId, effect: Effect, inputs: &mut VecDeque<Input>) -> Result<(), Violation> {
        let leaves_early = planted!(self, PromiseNotHeld);
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let persisted = member.storage.engine.0.index;
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        match effect {
            Effect::Write { seq, record } => {
                if let Record::SnapshotMark(meta) = &record {
                    hold!(
                        meta.index <= persisted,
                        "I1 {id} cuts its log at {}, its engine holds {persisted}",
                        meta.index
                    );
                }
                if matches!(record, Record::TruncateTo(_)) {
                    process.watch.truncated(&process.node)?;
                }
                if process.node.is_leader() {
                    process.led_upto = seq;
                }
                process.to_write.push_back((seq, record));
            }
            Effect::Send { to, msg, after } => {
                process.watch.emitted(process.latest, to, &msg, &process.node)?;
                match after {
                    Some(seq) if seq > process.written && !leaves_early => process.held.push_back((seq, to, msg)),
                    Some(_) | None => self.send(id, to, msg)?,
                }
            }
            Effect::Commit { entries } => self.commit(id, entries)?,
            Effect::ReadAt { token, index } => self.read_at(id, token, index)?,
            Effect::Resolve { token, outcome } => self.resolve(id, token, outcome)?,
            Effect::Acked { .. } => {}
            Effect::SendSnapshot { to, term } => {
                if let Some(process) = self.members.get_mut(&id).and_then(|member| member.process.as_mut()) {
                    process.has_sent_snapshot = true;
                }
                self.send_snapshot(id, to, term, inputs)?;
            }
            Effect::Install { meta } => self.install(id, meta)?,
            Effect::Event(event) => self.core_event(id, event)?,
        }
        Ok(())
    }

    fn core_event(&mut self, id: MemberId, event: CoreEvent) -> Result<(), Violation> {
        self.say(|| format!("{id} {event:?}"));
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let Some(process) = member.process.as_ref() else { return Ok(()) };
        let time = process.latest;
        match event {
            CoreEvent::BecameLeader { term } => {
                self.oracle.elected(&process.node)?;
                self.oracle.leader(term, id)?;
                self.mix(term);
                self.count("elections");
                let now = self.now;
                if let Some(process) = self.process(id) {
                    process.led_since = Some(now);
                }
                if self.shape.eager_changes && self.rng.chance(200) {
                    self.at(self.now + 50, Event::Eager { member: id });
                }
            }
            CoreEvent::LeaderReady { term, noop_index, .. } => {
                let committed = usize::try_from(noop_index).ok().and_then(|at| self.oracle.committed.get(at - 1));
                hold!(
                    committed.is_some_and(|entry| entry.term == term),
                    "I6 {id} is ready in term {term}, of which nothing is committed"
                );
            }
            CoreEvent::ConfigActive { at, config } => {
                if process.node.is_leader() && at.term == process.node.term() {
                    hold!(
                        self.oracle.has_committed_in(at.term),
                        "I6 {id} changes the configuration before its own term {} committed",
                        at.term
                    );
                    process.watch.config_appended(time, &config, &process.node)?;
                }
                if at.index > 0 {
                    self.oracle.config_placed((at.index, at.term), &config);
                }
            }
            CoreEvent::Reverted { held, last_index } => {
                let is_true = member.lost.is_some() || member.is_rotten || member.is_lying || member.forgot.is_some();
                hold!(
                    is_true,
                    "I1 {id} is told that it ends at {last_index} and held {held}, and nothing happened to it"
                );
                self.count("reverted member stopped");
                self.at(self.now, Event::Halt { member: id });
            }
            CoreEvent::BecamePreCandidate { .. } | CoreEvent::BecameCandidate { .. } => self.give_up_forgetful(),
            CoreEvent::Removed { .. } => self.count("members told they are removed"),
            _ => {}
        }
        Ok(())
    }

    fn send(&mut self, from: MemberId, to: MemberId, msg: Msg) -> Result<(), Violation> {
        let member = &self.members[&from];
        if let Some(process) = &member.process {
            watch::leaves(from, to, &msg, &process.node, &member.durable)?;
        }
        let Some(boot) = member.process.as_ref().map(|process| process.boot) else { return Ok(()) };
        if self.rng.below(CODEC_EVERY) == 0 {
            let read = net::unframe(&net::framed(&msg));
            hold!(read.as_ref() == Some(&msg), "I13 {msg:?} is read back as {read:?}");
        }
        if self.net.is_damaging() && !self.net.is_cut(from, to, self.now) {
            return self.damaged(from, to, &msg);
        }
        self.net.remember(from, to, &msg);
        for delay in self.net.deliveries(from, to, self.now) {
            self.at(self.now + delay, Event::Deliver { from, to, boot, msg: msg.clone() });
        }
        Ok(())
    }

    /// Bytes are damaged on the way: the receiver refuses the frame and resets the connection.
    fn damaged(&mut self, from: MemberId, to: MemberId, msg: &Msg) -> Result<(), Violation> {
        let is_trusting = planted!(self, FrameUnchecked);
        let (damaged, read) = self.net.damage(msg, is_trusting);
        hold!(damaged != Damaged::Accepted, "I13 {to} takes damaged bytes of {msg:?} for {read:?}");
        self.count("corrupted frame");
        // Without the checksum the decoder makes of it what it may, but never panics.
        let _ = self.net.damage(msg, true);
        let delay = self.rng.between(100, 1_000);
        self.at(self.now + delay, Event::PeerGone { member: to, peer: from });
        Ok(())
    }

    /// Messages that were on the wire before come again.
    pub fn replay(&mut self, count: u64) {
        for old in self.net.replay(count) {
            let Some(sender) = self.members.get(&old.from).and_then(|m| m.process.as_ref()) else { continue };
            let Some(receiver) = self.members.get(&old.to).and_then(|m| m.process.as_ref()) else { continue };
            let (boot, is_old_term) = (sender.boot, old.msg.term() < receiver.node.term());
            self.count(if is_old_term { "replay of an old term" } else { "replay" });
            let delay = self.rng.between(100, 5_000);
            self.at(self.now + delay, Event::Deliver { from: old.from, to: old.to, boot, msg: old.msg });
        }
    }

    // Commit and apply.

    fn commit(&mut self, id: MemberId, entries: Vec<Entry>) -> Result<(), Violation> {
        let term = self.process(id).map_or(0, |process| process.node.term());
        for entry in &entries {
            if self.oracle.commit(id, term, entry)? {
                self.check_quorum(id, entry)?;
            }
            self.mix(entry.index ^ entry.term << 32);
        }
        let (low, high) = self.shape.apply_us;
        let wait = if high == 0 { 0 } else { self.rng.between(low, high) };
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let life = member.life;
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        if let Some(last) = entries.last() {
            process.watch.committed((last.index, last.term), &process.node)?;
        }
        process.to_apply.extend(entries);
        if !process.is_applying {
            process.is_applying = true;
            self.at(now + wait, Event::Apply { member: id, life });
        }
        Ok(())
    }

    /// The apply thread takes all that is waiting.
    pub(crate) fn apply(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let Some(process) = self.alive(id, life) else { return Ok(()) };
        process.is_applying = false;
        let entries: Vec<Entry> = process.to_apply.drain(..).collect();
        let mut applied = None;
        for entry in entries {
            let process = self.alive(id, life).expect("it runs");
            if entry.index <= process.machine.applied() {
                continue;
            }
            let done = process.machine.apply(&entry);
            process.applied_term = entry.term;
            if let Payload::Config(config) = &entry.payload {
                let at = ConfigAt { incarnation: 1, term: entry.term, index: entry.index };
                process.applied_config = (at, config.clone());
            }
            applied = Some(entry.index);
            let hash = process.machine.hash();
            self.oracle.applied(id, entry.index, hash)?;
            self.mix(hash);
            if let Some(done) = done {
                self.watch_events(id, life, &done);
                if done.request.origin == id {
                    self.answer_write(id, done)?;
                }
            }
        }
        self.answer_reads(id)?;
        match applied {
            Some(index) => self.input(id, Input::Applied { index }),
            None => Ok(()),
        }
    }

    /// Checked at the first member that reports an entry committed.
    fn check_quorum(&mut self, id: MemberId, entry: &Entry) -> Result<(), Violation> {
        let Some(process) = self.members.get(&id).and_then(|m| m.process.as_ref()) else { return Ok(()) };
        hold!(
            process.watch.leads(&process.node),
            "I5 {id} follows and is the first to report {} of term {} committed",
            entry.index,
            entry.term
        );
        let config = self.oracle.newest_config(&process.node);
        let holds = |durable: &Durable| {
            durable.snapshot.index >= entry.index || durable.term_at(entry.index) == Some(entry.term)
        };
        let promised = |m: &Member| {
            let forgotten = m.forgot.as_ref().map(|forgot| &forgot.durable);
            holds(m.lost.as_ref().or(forgotten).unwrap_or(&m.durable))
        };
        let holders = self.members.iter().filter(|(_, m)| promised(m)).map(|(id, _)| *id).collect();
        Oracle::on_a_quorum(entry, config, &holders)
    }

    // The disk.

    pub(crate) fn start_flush(&mut self, id: MemberId) {
        let (low, high) = self.shape.flush_us;
        let Some(member) = self.members.get_mut(&id) else { return };
        let slowness = member.disk_slowness;
        let Some(process) = member.process.as_mut() else { return };
        if process.flushing.is_some() || process.to_write.is_empty() {
            return;
        }
        process.flushing = Some(process.to_write.drain(..).collect());
        process.flush_number += 1;
        let took = self.rng.between(low, high) * slowness;
        self.plan_flush_end(id, took);
    }

    /// A disk that hung works again.
    pub fn end_stall(&mut self, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.disk_slowness = 1;
            if member.process.as_ref().is_some_and(|process| process.flushing.is_some()) {
                self.plan_flush_end(id, 1_000);
            }
        }
    }

    fn plan_flush_end(&mut self, id: MemberId, took: u64) {
        let now = self.now;
        let member = &self.members[&id];
        let life = member.life;
        let Some(process) = member.process.as_ref() else { return };
        let flush = process.flush_number;
        self.at(now + took, Event::Flushed { member: id, life, flush });
        if took > STALL_US {
            self.at(now + STALL_US, Event::StallCheck { member: id, life, flush });
        }
    }

    pub(crate) fn check_stall(&mut self, id: MemberId, life: u64, flush: u64) -> Result<(), Violation> {
        let stalled = self.alive(id, life).is_some_and(|p| p.flushing.is_some() && p.flush_number == flush);
        if stalled {
            self.count("disk stall");
            self.say(|| format!("{id} disk stalled"));
            self.input(id, Input::DiskStalled)?;
        }
        Ok(())
    }

    pub(crate) fn flushed(&mut self, id: MemberId, life: u64, flush: u64) -> Result<(), Violation> {
        let ignores_errors = planted!(self, WriteErrorIgnored);
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let Some(process) = member.process.as_mut().filter(|p| p.flush_number == flush) else { return Ok(()) };
        let Some(batch) = process.flushing.take() else { return Ok(()) };
        if let Err(error) = process.log.append(&batch)
            && !ignores_errors
        {
            process.flushing = Some(batch);
            return match error.verdict() {
                Verdict::Retry => {
                    self.count("disk full");
                    self.plan_flush_end(id, NOSPACE_RETRY_US);
                    Ok(())
                }
                Verdict::Reject | Verdict::Halt => self.log_failed(id, &error),
            };
        }
        let upto = batch.last().expect("a batch is not empty").0;
        process.written = upto;
        for (_, record) in &batch {
            let before = member.durable.term_at(member.durable.last_index());
            member.durable.follow(id, record)?;
            match record {
                Record::Append(entries) => {
                    let mut before = before;
                    for entry in entries {
                        self.oracle.stored(id, entry, before)?;
                        before = Some(entry.term);
                    }
                }
                Record::HardState(hard) if member.lost.is_none() => self.oracle.voted(id, hard),
                Record::HardState(_) => {}
                Record::TruncateTo(_) | Record::SnapshotMark(_) => {}
            }
        }
        if process.flush_number % COMPARE_EVERY == 0 && process.to_write.is_empty() {
            member.durable.check_memory(id, &process.node)?;
        }
        let ready = process.held.iter().take_while(|(seq, _, _)| *seq <= upto).count();
        let released: Vec<_> = process.held.drain(..ready).collect();
        for (_, to, msg) in released {
            self.send(id, to, msg)?;
        }
        if self.members.get(&id).is_some_and(|m| m.is_lying && m.storage.disk.has_lied()) {
            return self.lie_shows(id);
        }
        self.tend_log(id)?;
        self.input(id, Input::Written { upto })
    }

    /// The log thread has time for what is not urgent.
    fn tend_log(&mut self, id: MemberId) -> Result<(), Violation> {
        let draw = self.rng.below(TEND_EVERY);
        let Some(process) = self.process(id) else { return Ok(()) };
        let done = match draw {
            0 => process.log.tend().map(|_| ()),
            1 => process.log.seal_tail(),
            _ => Ok(()),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => self.log_failed(id, &error),
        }
    }

    /// A failed flush ends the process; the machine lives on.
    pub(crate) fn log_failed(&mut self, id: MemberId, error: &LogError) -> Result<(), Violation> {
        let back = self.rng.between(1_000, 2_000_000);
        self.schedule_restart(id, back);
        if self.members.get(&id).is_some_and(|member| member.storage.disk.is_crashed()) {
            self.count("crash inside a write");
            let power = self.rng.chance(500);
            return self.crash(id, power);
        }
        let LogError::Io { operation, source, .. } = error else {
            return Err(Violation(format!("I1 the log of {id} refuses what the core writes: {error}")));
        };
        // What promised something has its room already; the rest waits for some.
        let is_full = source.kind() == std::io::ErrorKind::StorageFull;
        hold!(!is_full, "I18 {id} ends because its disk is full: {error}");
        self.count(if *operation == "writing" { "write error" } else { "fsync error" });
        self.input(id, Input::WriteFailed)?;
        self.crash(id, false)
    }

    /// The engine makes its state durable now and then, never beyond the local durable index. That takes a while, and
    /// the member goes on meanwhile.
    fn maybe_persist(&mut self, id: MemberId) -> Result<(), Violation> {
        let every = self.shape.persist_every;
        let (is_careless, is_apart) = (planted!(self, PersistPastDurable), planted!(self, AppliedApartFromData));
        let (low, high) = self.shape.persist_us;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let applied = process.machine.applied();
        let due = applied >= member.storage.engine.0.index + every
            && (applied <= process.node.durable_index() || is_careless);
        if !due || process.persisting || process.installing.is_some() {
            return Ok(());
        }
        let (image, life) = (process.image(), member.life);
        if is_apart {
            member.storage.engine.0 = image.0.clone();
        }
        if high == 0 {
            return self.persisted(id, life, image);
        }
        process.persisting = true;
        let wait = self.rng.between(low, high);
        self.at(self.now + wait, Event::Persisted { member: id, life, image: Box::new(image) });
        Ok(())
    }

    /// The engine has made a state durable.
    pub(crate) fn persisted(&mut self, id: MemberId, life: u64, image: (SnapMeta, Machine)) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        process.persisting = false;
        let meta = image.0.clone();
        if process.installing.is_some() || meta.index < member.storage.engine.0.index {
            // A snapshot replaces what this state was.
            return Ok(());
        }
        let disk_term = member.durable.term_at(meta.index);
        hold!(
            disk_term == Some(meta.term) || meta.index < member.durable.snapshot.index,
            "I1 the engine of {id} would persist {} of term {}, its disk holds {disk_term:?}",
            meta.index,
            meta.term
        );
        member.storage.engine = image;
        self.count("checkpoints");
        self.input(id, Input::Persisted { meta })
    }

    // Snapshots.

    fn send_snapshot(
        &mut self,
        id: MemberId,
        to: MemberId,
        term: Term,
        inputs: &mut VecDeque<Input>,
    ) -> Result<(), Violation> {
        let member = &self.members[&id];
        let Some(process) = member.process.as_ref() else { return Ok(()) };
        let (meta, machine) = process.image();
        let (mut image, life, boot) = ((meta, machine.chunks()), member.life, process.boot);
        let copies = self.net.deliveries(id, to, self.now);
        if copies.is_empty() {
            inputs.push_back(Input::SnapshotSent { to, index: image.0.index, ok: false });
            return Ok(());
        }
        self.count("snapshots sent");
        let is_whole = !self.net.is_damaging();
        if !is_whole {
            self.damage_chunks(&mut image.1)?;
        }
        for delay in copies {
            let image = Box::new(image.clone());
            let travel = delay + 4 * delay.min(SNAPSHOT_STEP_US_MAX);
            self.at(self.now + travel, Event::SnapshotArrives { from: id, to, term, life, boot, is_whole, image });
        }
        Ok(())
    }

    /// One chunk is damaged or lost on the way.
    fn damage_chunks(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), Violation> {
        let at = usize::try_from(self.rng.below(chunks.len() as u64)).expect("an index fits");
        if chunks.len() > 1 && self.rng.chance(300) {
            chunks.remove(at);
        } else {
            let mut bytes = chunks[at].to_vec();
            let place = usize::try_from(self.rng.below(bytes.len().max(1) as u64)).expect("a length fits");
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << self.rng.below(8);
            }
            chunks[at] = Bytes::from(bytes);
        }
        hold!(Machine::restore(chunks.clone()).is_err(), "I13 a damaged snapshot is taken for a whole one");
        Ok(())
    }

    pub(crate) fn snapshot_arrives(
        &mut self,
        from: MemberId,
        to: MemberId,
        term: Term,
        life: u64,
        is_whole: bool,
        image: (SnapMeta, Vec<Bytes>),
    ) -> Result<(), Violation> {
        let (meta, chunks) = image;
        // Chunks are damaged or missing: the receiver keeps what it has.
        let machine = match Machine::restore(chunks) {
            Ok(machine) => machine,
            Err(error) => {
                hold!(!is_whole, "I13 a snapshot from {from}: {error}");
                self.count("damaged snapshot refused");
                return self.snapshot_failed(from, life, to, meta.index);
            }
        };
        hold!(machine.applied() == meta.index, "I3 a snapshot at {} holds {}", meta.index, machine.applied());
        let arrived = match self.process(to) {
            // A swap under way keeps its image; the core ignores the newcomer.
            Some(process) => {
                process.staged = Some((meta.clone(), machine));
                true
            }
            None => false,
        };
        if arrived {
            self.input(to, Input::SnapshotReady { from, term, meta: meta.clone() })?;
        }
        if self.alive(from, life).is_some() {
            self.input(from, Input::SnapshotSent { to, index: meta.index, ok: arrived })?;
        }
        Ok(())
    }

    /// The engine begins to swap to the staged state.
    fn install(&mut self, id: MemberId, meta: SnapMeta) -> Result<(), Violation> {
        let wait = self.rng.between(100, 30_000);
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let life = member.life;
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let commit = process.node.commit();
        hold!(meta.index > commit, "I1 {id} installs a snapshot at {}, it has committed {commit}", meta.index);
        let staged = process.staged.take();
        hold!(
            staged.as_ref().is_some_and(|(staged, _)| *staged == meta),
            "I13 {id} installs {meta:?}, staged is another"
        );
        process.installing = staged;
        self.at(now + wait, Event::Installed { member: id, life, index: meta.index });
        Ok(())
    }

    /// The engine has swapped, durably.
    pub(crate) fn installed(&mut self, id: MemberId, life: u64, index: Index) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let Some((meta, image)) = process.installing.take() else { return Ok(()) };
        process.to_apply.retain(|entry| entry.index > index);
        process.machine = image.clone();
        process.applied_term = meta.term;
        process.applied_config = (meta.config_at, meta.config.clone());
        let hash = image.hash();
        member.storage.engine = (meta, image);
        self.oracle.applied(id, index, hash)?;
        self.count("snapshots installed");
        self.watchers_jump(id);
        self.answer_reads(id)?;
        self.input(id, Input::Installed { index })
    }

    // Outcomes.

    fn read_at(&mut self, id: MemberId, token: Token, index: Index) -> Result<(), Violation> {
        let Some(process) = self.process(id) else { return Ok(()) };
        let term = process.node.term();
        let is_leader = process.node.is_leader();
        if let Some((_, Asked::Read(ticket, committed))) = process.asked.remove(&token) {
            process.reads_ready.push((index, ticket));
            hold!(
                index >= committed,
                "I2 {id} reads at {index} in term {term}, when it was asked {committed} was committed"
            );
        }
        if is_leader {
            self.check_lease(id)?;
        }
        hold!(
            !is_leader || self.oracle.has_committed_in(term),
            "I2 {id} answers a read in term {term} before anything of it committed"
        );
        self.answer_reads(id)
    }

    /// Looks at a lease again just before it ends: if something is wrong with it, then there.
    fn watch_lease(&mut self, id: MemberId) {
        let now = self.now;
        if self.shape.leases.is_none() {
            return;
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        let (clock, life) = (member.clock, member.life);
        let Some(process) = member.process.as_mut().filter(|p| p.node.is_leader() && !p.watches_lease) else { return };
        let until = process.node.status().lease_until.filter(|until| *until > process.latest);
        if let Some(until) = until.filter(|until| until.0 < u64::MAX) {
            process.watches_lease = true;
            self.at(clock.world_before(until, now).max(now + 1), Event::LeaseEnds { member: id, life });
        }
    }

    pub(crate) fn lease_ends(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id).filter(|member| member.life == life) else { return Ok(()) };
        let time = member.clock.read(now);
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        process.watches_lease = false;
        process.latest = process.latest.max(time);
        self.check_lease(id)?;
        self.watch_lease(id);
        Ok(())
    }

    /// I7: while a lease holds, a majority of each half gives nobody its vote. Source: Ongaro's thesis §6.4.1.
    fn check_lease(&self, id: MemberId) -> Result<(), Violation> {
        let Some(process) = self.members.get(&id).and_then(|m| m.process.as_ref()) else { return Ok(()) };
        if self.shape.leases.is_none() || !process.node.is_leader() {
            return Ok(());
        }
        let status = process.node.status();
        if status.lease_until.is_none_or(|until| until <= process.latest) {
            return Ok(());
        }
        let refuses = |voter: &&MemberId| {
            let Some(member) = self.members.get(voter) else { return false };
            let now = member.clock.read(self.now);
            **voter == id || member.process.as_ref().is_none_or(|p| p.watch.refuses_votes(now.max(p.latest)))
        };
        let config = &status.newest_config.config;
        for voters in [&config.voters, &config.voters_outgoing] {
            let count = voters.iter().filter(refuses).count();
            hold!(
                voters.is_empty() || count > voters.len() / 2,
                "I7 {id} holds a lease in term {}, though only {count} of {voters:?} refuse to vote",
                status.term
            );
        }
        Ok(())
    }

    fn resolve(&mut self, id: MemberId, token: Token, outcome: Outcome) -> Result<(), Violation> {
        self.say(|| format!("{id} resolves {token:?}: {outcome:?}"));
        let is_forbidden = self.must_refuse.contains(&token);
        let is_refused = matches!(outcome, Outcome::Refused(_));
        hold!(!is_forbidden || is_refused, "I6 {id} grants a change that must be refused: {outcome:?}");
        let Some(process) = self.process(id) else { return Ok(()) };
        let asked = process.asked.remove(&token).map(|(_, asked)| asked);
        match (asked, &outcome) {
            (None, _) => return Err(Violation(format!("I2 {id} answers {token:?} twice: {outcome:?}"))),
            // The machine's answer follows when it is applied.
            (Some(Asked::Write(_)), Outcome::Committed { .. }) | (Some(Asked::Compaction), _) => {}
            (Some(Asked::Write(ticket) | Asked::Read(ticket, _)), Outcome::Refused(refusal)) => {
                process.writes.remove(&ticket);
                self.client_refused(ticket, refusal);
            }
            (Some(Asked::Write(ticket) | Asked::Read(ticket, _)), _) => {
                process.writes.remove(&ticket);
                self.client_unknown(ticket);
            }
            (Some(Asked::Change), Outcome::Committed { .. }) => self.count("changes committed"),
            (Some(Asked::Transfer), Outcome::Transferred) => self.count("transfers done"),
            (Some(Asked::Change | Asked::Transfer), _) => {}
        }
        Ok(())
    }

    /// Every request to a process that still runs has an outcome by now.
    pub fn check_answered(&self, age_us: u64) -> Result<(), Violation> {
        for (id, member) in &self.members {
            let Some(process) = member.process.as_ref() else { continue };
            if let Some((token, (since, asked))) = process.asked.iter().find(|(_, (at, _))| at + age_us < self.now) {
                return Err(Violation(format!(
                    "I18 {id} has not answered {token:?} ({asked:?}) for {} µs; {}",
                    self.now - since,
                    self.describe()
                )));
            }
        }
        Ok(())
    }
}
