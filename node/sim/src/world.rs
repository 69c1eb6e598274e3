//! One simulated cluster: members that run the shipped core, the network between them, clients, and the order of events.
//!
//! Obeys the contract of `quorate_raft::io` exactly as the driver of the node does: a message that waits for a write
//! leaves once that write is durable, one flush is in flight, a failed flush ends the process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;
use quorate_raft::io::{Change, Effect, Event as CoreEvent, Input, Outcome, ReadMode, Refusal};
use quorate_raft::types::{
    Config, ConfigAt, Entry, Index, MemberId, MemberInfo, Payload, Record, SnapMeta, Term, Time, Token, WriteSeq,
};
use quorate_raft::wire::Msg;
use quorate_raft::{Cfg, Node, Role};

use crate::machine::{self, Image, Machine, RequestId};
use crate::net::Net;
use crate::oracle::{Done, Durable, Operation, Oracle, Violation};
use crate::rng::Rng;
use crate::storage::Storage;

/// How long a client waits before an outcome is unknown to it.
const CLIENT_TIMEOUT_US: u64 = 1_500_000;
/// Keys the clients share: few, so that reads see other clients' writes.
const KEYS: u64 = 12;
/// A cluster that needs more events than this per run is in a loop.
const EVENTS_MAX: u64 = 20_000_000;

/// Sizes and limits of one run, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Shape {
    pub voters: u64,
    pub clients: u64,
    pub think_us: u64,
    pub keep_entries: u64,
    pub persist_every: u64,
    pub flush_us: (u64, u64),
}

#[derive(Debug)]
enum Event {
    Wake { member: MemberId, life: u64 },
    Deliver { from: MemberId, to: MemberId, msg: Msg },
    Flushed { member: MemberId, life: u64 },
    StallCheck { member: MemberId, life: u64, flush: u64 },
    Client { client: u64 },
    ClientTimeout { client: u64, operation: u64 },
    SnapshotArrives { from: MemberId, to: MemberId, term: Term, life: u64, image: Box<(SnapMeta, Image)> },
    Restart { member: MemberId },
    Resume { member: MemberId },
    Fault,
}

/// A member's own clock: runs at another rate than the world's.
#[derive(Clone, Copy, Debug)]
struct Clock {
    world: u64,
    local: u64,
    /// Parts per thousand; 1000 is true.
    rate: u64,
}

impl Clock {
    fn read(&self, now: u64) -> Time {
        Time(self.local + (now - self.world) * self.rate / 1000)
    }
    fn world_at(&self, local: Time, now: u64) -> u64 {
        let ahead = local.0.saturating_sub(self.read(now).0);
        now + (ahead * 1000).div_ceil(self.rate)
    }
    fn set_rate(&mut self, now: u64, rate: u64) {
        *self = Clock { world: now, local: self.read(now).0, rate };
    }
}

/// A running process. Gone at a crash.
struct Process {
    node: Node,
    machine: Machine,
    /// Configuration and term at the applied index, for snapshots.
    applied_term: Term,
    applied_config: (ConfigAt, Config),
    to_write: VecDeque<(WriteSeq, Record)>,
    flushing: Option<Vec<(WriteSeq, Record)>>,
    flush_number: u64,
    written: WriteSeq,
    held: VecDeque<(WriteSeq, MemberId, Msg)>,
    staged: Option<(SnapMeta, Image)>,
    next_wake: Option<u64>,
    puts: BTreeMap<u64, u64>,
    reads: BTreeMap<Token, u64>,
    reads_ready: Vec<(Index, u64)>,
    fsync_fails: bool,
}

pub struct Member {
    storage: Storage,
    durable: Durable,
    clock: Clock,
    life: u64,
    process: Option<Process>,
    paused: bool,
    /// Factor on flush times.
    pub disk_slowness: u64,
    backlog: Vec<Event>,
}

struct Client {
    rng: Rng,
    /// The outstanding operation: number, start, what.
    busy: Option<(u64, u64, Wanted)>,
    operations: u64,
    leader_hint: Option<MemberId>,
}

#[derive(Clone, Debug)]
enum Wanted {
    Put { key: Bytes, value: Bytes },
    Get { key: Bytes },
}

pub struct World {
    pub now: u64,
    pub members: BTreeMap<MemberId, Member>,
    pub net: Net,
    pub oracle: Oracle,
    pub rng: Rng,
    pub shape: Shape,
    pub counts: BTreeMap<&'static str, u64>,
    pub trace: bool,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    clients: Vec<Client>,
    clients_stopped: bool,
    tokens: u64,
    values: u64,
    next_id: u64,
    hash: u64,
    pub outcomes: BTreeMap<Token, Outcome>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<quorate_raft::mutant::Mutant>,
}

fn info(id: MemberId) -> MemberInfo {
    MemberInfo { name: format!("m{}", id.0), peer_urls: vec![format!("sim://{}", id.0)], client_urls: Vec::new() }
}

impl World {
    pub fn new(seed: u64, shape: Shape) -> World {
        let mut rng = Rng::new(seed);
        let voters: BTreeSet<MemberId> = (1..=shape.voters).map(MemberId).collect();
        let config = Config {
            members: voters.iter().map(|id| (*id, info(*id))).collect(),
            voters: voters.clone(),
            ..Config::default()
        };
        let bootstrap = SnapMeta {
            config: config.clone(),
            config_at: ConfigAt { incarnation: 1, term: 0, index: 0 },
            ..SnapMeta::default()
        };
        let net = Net::new(rng.fork());
        let clients = (0..shape.clients)
            .map(|_| Client { rng: rng.fork(), busy: None, operations: 0, leader_hint: None })
            .collect();
        let mut world = World {
            now: 1_000_000,
            members: BTreeMap::new(),
            net,
            oracle: Oracle::new(config),
            next_id: shape.voters + 1,
            rng,
            shape,
            counts: BTreeMap::new(),
            trace: false,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            clients,
            clients_stopped: false,
            tokens: 0,
            values: 0,
            hash: 0,
            outcomes: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        for id in voters {
            world.add_member(id, bootstrap.clone());
        }
        world
    }

    fn add_member(&mut self, id: MemberId, bootstrap: SnapMeta) {
        let durable = Durable { snapshot: bootstrap.clone(), ..Durable::default() };
        let clock = Clock { world: self.now, local: self.rng.below(1 << 40), rate: 1000 };
        let member = Member {
            storage: Storage::create(bootstrap, id, &mut self.rng),
            durable,
            clock,
            life: 0,
            process: None,
            paused: false,
            disk_slowness: 1,
            backlog: Vec::new(),
        };
        self.members.insert(id, member);
    }

    /// Starts every member and every client.
    pub fn start(&mut self) -> Result<(), Violation> {
        for id in self.ids() {
            self.restart(id)?;
        }
        for client in 0..self.shape.clients {
            let wait = self.rng.below(self.shape.think_us);
            self.at(self.now + wait, Event::Client { client });
        }
        Ok(())
    }

    pub fn ids(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
    }

    pub fn is_up(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|m| m.process.is_some())
    }

    pub fn up(&self) -> Vec<MemberId> {
        self.ids().into_iter().filter(|id| self.is_up(*id)).collect()
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.now as f64 / 1e6, text());
        }
    }

    fn at(&mut self, when: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((when, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    pub fn schedule_fault(&mut self, after_us: u64) {
        self.at(self.now + after_us, Event::Fault);
    }

    pub fn schedule_restart(&mut self, member: MemberId, after_us: u64) {
        self.at(self.now + after_us, Event::Restart { member });
    }

    /// Runs until `until`; a due fault is handed to `faults`.
    pub fn run(
        &mut self,
        until: u64,
        faults: &mut dyn FnMut(&mut World) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut budget = EVENTS_MAX;
        while let Some(Reverse((when, number))) = self.queue.peek().copied() {
            if when > until {
                break;
            }
            budget -= 1;
            if budget == 0 {
                return Err(Violation(format!("I17 more than {EVENTS_MAX} events before {until} µs: a loop")));
            }
            self.queue.pop();
            self.now = when;
            let event = self.events.remove(&number).expect("every queued number has its event");
            self.mix(when);
            match event {
                Event::Fault => faults(self)?,
                event => self.handle(event)?,
            }
        }
        self.now = until;
        Ok(())
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        let to = match &event {
            Event::Wake { member, .. } | Event::Flushed { member, .. } | Event::StallCheck { member, .. } => {
                Some(*member)
            }
            Event::Deliver { to, .. } | Event::SnapshotArrives { to, .. } => Some(*to),
            Event::Client { .. }
            | Event::ClientTimeout { .. }
            | Event::Restart { .. }
            | Event::Resume { .. }
            | Event::Fault => None,
        };
        // A paused process sees everything later, in order.
        if let Some(member) = to.and_then(|id| self.members.get_mut(&id))
            && member.paused
        {
            member.backlog.push(event);
            return Ok(());
        }
        match event {
            Event::Wake { member, life } => self.wake(member, life),
            Event::Deliver { from, to, msg } => {
                self.mix(to.0 << 8 | from.0);
                self.say(|| format!("{from} -> {to}: {msg:?}"));
                self.input(to, Input::Msg { from, msg })
            }
            Event::Flushed { member, life } => self.flushed(member, life),
            Event::StallCheck { member, life, flush } => {
                let stalled = self.alive(member, life).is_some_and(|p| p.flushing.is_some() && p.flush_number == flush);
                if stalled {
                    self.count("disk stall");
                    self.input(member, Input::DiskStalled)?;
                }
                Ok(())
            }
            Event::Client { client } => self.client(client),
            Event::ClientTimeout { client, operation } => {
                self.client_unknown(client, operation);
                Ok(())
            }
            Event::SnapshotArrives { from, to, term, life, image } => {
                self.snapshot_arrives(from, to, term, life, *image)
            }
            Event::Restart { member } => self.restart(member),
            Event::Resume { member } => self.resume(member),
            Event::Fault => unreachable!("faults are handled by the caller"),
        }
    }

    fn alive(&mut self, id: MemberId, life: u64) -> Option<&mut Process> {
        self.members.get_mut(&id).filter(|m| m.life == life)?.process.as_mut()
    }

    fn wake(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let clock = member.clock;
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        process.next_wake = None;
        if process.node.deadline() <= clock.read(now) {
            self.input(id, Input::Tick)
        } else {
            self.plan_wake(id);
            Ok(())
        }
    }

    fn plan_wake(&mut self, id: MemberId) {
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
            process.node.step(time, input, &mut effects);
            for effect in effects {
                self.effect(id, effect, &mut inputs)?;
            }
        }
        self.maybe_persist(id)?;
        self.start_flush(id);
        self.plan_wake(id);
        Ok(())
    }

    fn effect(&mut self, id: MemberId, effect: Effect, inputs: &mut VecDeque<Input>) -> Result<(), Violation> {
        let Some(process) = self.members.get_mut(&id).and_then(|m| m.process.as_mut()) else { return Ok(()) };
        match effect {
            Effect::Write { seq, record } => process.to_write.push_back((seq, record)),
            Effect::Send { to, msg, after } => match after {
                Some(seq) if seq > process.written => process.held.push_back((seq, to, msg)),
                Some(_) | None => self.send(id, to, msg),
            },
            Effect::Commit { entries } => self.commit(id, entries, inputs)?,
            Effect::ReadAt { token, index } => self.read_at(id, token, index),
            Effect::Resolve { token, outcome } => self.resolve(id, token, outcome),
            Effect::Acked { .. } => {}
            Effect::SendSnapshot { to, term } => self.send_snapshot(id, to, term, inputs),
            Effect::Install { meta } => self.install(id, meta, inputs),
            Effect::Event(event) => self.core_event(id, event)?,
        }
        Ok(())
    }

    fn core_event(&mut self, id: MemberId, event: CoreEvent) -> Result<(), Violation> {
        self.say(|| format!("{id} {event:?}"));
        match event {
            CoreEvent::BecameLeader { term } => {
                self.mix(term);
                self.count("elections");
                self.oracle.leader(term, id)
            }
            _ => Ok(()),
        }
    }

    fn send(&mut self, from: MemberId, to: MemberId, msg: Msg) {
        for delay in self.net.deliveries(from, to) {
            self.at(self.now + delay, Event::Deliver { from, to, msg: msg.clone() });
        }
    }

    fn commit(&mut self, id: MemberId, entries: Vec<Entry>, inputs: &mut VecDeque<Input>) -> Result<(), Violation> {
        for entry in entries {
            if self.oracle.commit(id, &entry)? {
                self.check_quorum(id, &entry)?;
            }
            self.mix(entry.index ^ entry.term << 32);
            let Some(process) = self.members.get_mut(&id).and_then(|m| m.process.as_mut()) else { return Ok(()) };
            if entry.index <= process.machine.applied() {
                continue;
            }
            let answered = process.machine.apply(&entry);
            process.applied_term = entry.term;
            if let Payload::Config(config) = &entry.payload {
                let at = ConfigAt { incarnation: 1, term: entry.term, index: entry.index };
                process.applied_config = (at, config.clone());
            }
            let hash = process.machine.hash();
            inputs.push_back(Input::Applied { index: entry.index });
            self.oracle.applied(id, entry.index, hash)?;
            if let Some((request, revision)) = answered
                && request.origin == id
            {
                self.answer_put(id, request.number, revision);
            }
            self.answer_reads(id);
        }
        Ok(())
    }

    /// Checked at the first leader that reports an entry committed.
    fn check_quorum(&mut self, id: MemberId, entry: &Entry) -> Result<(), Violation> {
        let process = self.members[&id].process.as_ref().expect("this member has just committed");
        let status = process.node.status();
        if status.role != Role::Leader {
            return Ok(());
        }
        let config = status.newest_config.clone();
        let holds = |durable: &Durable| {
            durable.snapshot.index >= entry.index || durable.term_at(entry.index) == Some(entry.term)
        };
        let holders = self.members.iter().filter(|(_, m)| holds(&m.durable)).map(|(id, _)| *id).collect();
        Oracle::on_a_quorum(entry, &config, &holders)
    }

    // The disk.

    fn start_flush(&mut self, id: MemberId) {
        let (low, high) = self.shape.flush_us;
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let (slowness, life) = (member.disk_slowness, member.life);
        let Some(process) = member.process.as_mut() else { return };
        if process.flushing.is_some() || process.to_write.is_empty() {
            return;
        }
        process.flushing = Some(process.to_write.drain(..).collect());
        process.flush_number += 1;
        let flush = process.flush_number;
        let took = self.rng.between(low, high) * slowness;
        let stall = 500_000;
        self.at(now + took, Event::Flushed { member: id, life });
        if took > stall {
            self.at(now + stall, Event::StallCheck { member: id, life, flush });
        }
    }

    fn flushed(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.life == life) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let batch = process.flushing.take().expect("a flush was in flight");
        if process.fsync_fails {
            self.count("fsync error");
            self.input(id, Input::WriteFailed)?;
            return self.crash(id, false);
        }
        member.storage.append(&batch).map_err(|text| Violation(format!("the log of {id} failed: {text}")))?;
        for (_, record) in &batch {
            member.durable.follow(id, record)?;
        }
        let upto = batch.last().expect("a batch is not empty").0;
        process.written = upto;
        let ready = process.held.iter().take_while(|(seq, _, _)| *seq <= upto).count();
        let released: Vec<_> = process.held.drain(..ready).collect();
        for (_, to, msg) in released {
            self.send(id, to, msg);
        }
        self.input(id, Input::Written { upto })
    }

    /// The engine makes its state durable now and then, never beyond the local durable index.
    fn maybe_persist(&mut self, id: MemberId) -> Result<(), Violation> {
        let every = self.shape.persist_every;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let applied = process.machine.applied();
        let last = member.storage.engine.as_ref().map_or(0, |(meta, _)| meta.index);
        if applied < last + every || applied > member.durable.last_index() {
            return Ok(());
        }
        let meta = SnapMeta {
            index: applied,
            term: process.applied_term,
            config: process.applied_config.1.clone(),
            config_at: process.applied_config.0,
        };
        member.storage.engine = Some((meta.clone(), process.machine.clone()));
        self.count("checkpoints");
        self.input(id, Input::Persisted { meta })
    }

    // Snapshots.

    fn send_snapshot(&mut self, id: MemberId, to: MemberId, term: Term, inputs: &mut VecDeque<Input>) {
        let member = &self.members[&id];
        let process = member.process.as_ref().expect("the sender runs");
        let meta = SnapMeta {
            index: process.machine.applied(),
            term: process.applied_term,
            config: process.applied_config.1.clone(),
            config_at: process.applied_config.0,
        };
        let (image, life) = (process.machine.clone(), member.life);
        let copies = self.net.deliveries(id, to);
        match copies.first() {
            None => inputs.push_back(Input::SnapshotSent { to, index: meta.index, ok: false }),
            Some(_) => {
                self.count("snapshots sent");
                for delay in copies {
                    let image = Box::new((meta.clone(), image.clone()));
                    self.at(self.now + delay * 5, Event::SnapshotArrives { from: id, to, term, life, image });
                }
            }
        }
    }

    fn snapshot_arrives(
        &mut self,
        from: MemberId,
        to: MemberId,
        term: Term,
        life: u64,
        image: (SnapMeta, Image),
    ) -> Result<(), Violation> {
        let meta = image.0.clone();
        let arrived = match self.members.get_mut(&to).and_then(|m| m.process.as_mut()) {
            Some(process) => {
                process.staged = Some(image);
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

    /// The engine swaps to the staged state, durably.
    fn install(&mut self, id: MemberId, meta: SnapMeta, inputs: &mut VecDeque<Input>) {
        let member = self.members.get_mut(&id).expect("the member runs");
        let process = member.process.as_mut().expect("the member runs");
        let staged = process.staged.take().expect("only a staged snapshot is installed");
        assert_eq!(staged.0, meta, "the staged snapshot is installed");
        process.machine = staged.1.clone();
        process.applied_term = meta.term;
        process.applied_config = (meta.config_at, meta.config.clone());
        member.storage.engine = Some(staged);
        inputs.push_back(Input::Installed { index: meta.index });
        inputs.push_back(Input::Applied { index: meta.index });
        self.count("snapshots installed");
        self.answer_reads(id);
    }

    // Crashes.

    /// Ends a process. With `power`, what was not flushed is gone as the disk decides; else the page cache lives on.
    pub fn crash(&mut self, id: MemberId, power: bool) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.take() else { return Ok(()) };
        member.life += 1;
        member.paused = false;
        member.backlog.clear();
        member.storage.crash(process.flushing.as_deref(), power, &mut self.rng);
        self.say(|| format!("{id} {}", if power { "loses power" } else { "crashes" }));
        // The other ends see their connections reset.
        for peer in self.up() {
            self.input(peer, Input::PeerGone { peer: id })?;
        }
        Ok(())
    }

    pub fn restart(&mut self, id: MemberId) -> Result<(), Violation> {
        if self.is_up(id) {
            return Ok(());
        }
        let now = self.now;
        let seed = self.rng.next();
        let nonce = self.rng.next();
        let cfg = self.cfg(id);
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let mut recovered =
            member.storage.open(nonce).map_err(|text| Violation(format!("I1 {id} cannot start again: {text}")))?;
        member.durable.check_recovered(id, &recovered)?;
        // What was found counts as durable from now on: recovery flushed it.
        member.durable =
            Durable { hard: recovered.hard, snapshot: recovered.snapshot.clone(), entries: recovered.entries.clone() };
        let (meta, machine) = match &member.storage.engine {
            Some((meta, image)) => (meta.clone(), image.clone()),
            None => (member.storage.bootstrap().clone(), Machine::new()),
        };
        if meta.index > member.durable.last_index()
            || member.durable.term_at(meta.index).is_some_and(|t| t != meta.term)
        {
            recovered.snapshot = meta.clone();
            recovered.entries.clear();
        }
        let node = Node::restart(cfg, recovered, member.clock.read(now), seed);
        member.process = Some(Process {
            node,
            machine,
            applied_term: meta.term,
            applied_config: (meta.config_at, meta.config),
            to_write: VecDeque::new(),
            flushing: None,
            flush_number: 0,
            written: WriteSeq(0),
            held: VecDeque::new(),
            staged: None,
            next_wake: None,
            puts: BTreeMap::new(),
            reads: BTreeMap::new(),
            reads_ready: Vec::new(),
            fsync_fails: false,
        });
        self.say(|| format!("{id} starts"));
        let applied = self.members[&id].process.as_ref().expect("just started").machine.applied();
        if applied > 0 {
            self.input(id, Input::Applied { index: applied })?;
        }
        self.input(id, Input::Tick)
    }

    fn cfg(&self, id: MemberId) -> Cfg {
        Cfg {
            keep_entries: self.shape.keep_entries,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Cfg::lan(id)
        }
    }

    pub fn pause(&mut self, id: MemberId, for_us: u64) {
        if let Some(member) = self.members.get_mut(&id) {
            member.paused = true;
            self.at(self.now + for_us, Event::Resume { member: id });
        }
    }

    fn resume(&mut self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if !member.paused {
            return Ok(());
        }
        member.paused = false;
        for event in std::mem::take(&mut member.backlog) {
            self.handle(event)?;
        }
        Ok(())
    }

    pub fn set_clock_rate(&mut self, id: MemberId, rate: u64) {
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id) {
            member.clock.set_rate(now, rate);
        }
    }

    pub fn fail_next_fsync(&mut self, id: MemberId) {
        if let Some(process) = self.members.get_mut(&id).and_then(|m| m.process.as_mut()) {
            process.fsync_fails = true;
        }
    }

    // Membership.

    /// The leader of the highest term, as the members say.
    pub fn leader(&self) -> Option<MemberId> {
        let leading = |(id, member): (&MemberId, &Member)| {
            let status = member.process.as_ref()?.node.status();
            (status.role == Role::Leader).then_some((status.term, *id))
        };
        self.members.iter().filter_map(leading).max().map(|(_, id)| id)
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Asks `id` for a change, compared with the configuration it has committed.
    pub fn change(&mut self, id: MemberId, change: Change) -> Result<(), Violation> {
        let Some(process) = self.members.get(&id).and_then(|m| m.process.as_ref()) else { return Ok(()) };
        let expect = Some(process.node.status().committed_config_at);
        let token = self.token();
        self.say(|| format!("change at {id}: {change:?}"));
        self.input(id, Input::Change { token, expect, change })
    }

    pub fn transfer(&mut self, id: MemberId, to: MemberId) -> Result<(), Violation> {
        let token = self.token();
        self.input(id, Input::Transfer { token, to })
    }

    /// A new member with an empty disk that waits to be told; the change that adds it goes to `leader`.
    pub fn join(&mut self, leader: MemberId) -> Result<(), Violation> {
        let id = MemberId(self.next_id);
        self.next_id += 1;
        self.add_member(id, SnapMeta::default());
        self.restart(id)?;
        self.change(leader, Change::AddLearner { id, info: info(id) })
    }

    pub fn config(&self) -> &Config {
        &self.oracle.config
    }

    // Clients.

    fn client(&mut self, client: u64) -> Result<(), Violation> {
        if self.clients_stopped {
            return Ok(());
        }
        let up = self.up();
        let at = usize::try_from(client).expect("few clients");
        let state = &mut self.clients[at];
        if state.busy.is_some() {
            return Ok(());
        }
        state.operations += 1;
        let number = state.operations;
        let key = Bytes::from(format!("k{}", state.rng.below(KEYS)));
        let hint = state.leader_hint.filter(|id| up.contains(id)).filter(|_| !state.rng.chance(100));
        let target = hint.or_else(|| state.rng.pick(&up).copied());
        let read = state.rng.chance(400);
        let Some(target) = target else {
            self.next_operation(client);
            return Ok(());
        };
        let wanted = if read {
            Wanted::Get { key }
        } else {
            self.values += 1;
            Wanted::Put { key, value: Bytes::from(format!("v{}", self.values)) }
        };
        self.clients[at].busy = Some((number, self.now, wanted.clone()));
        self.at(self.now + CLIENT_TIMEOUT_US, Event::ClientTimeout { client, operation: number });
        let ticket = client << 32 | number;
        let token = self.token();
        let process = self.members.get_mut(&target).and_then(|m| m.process.as_mut()).expect("the target is up");
        match wanted {
            Wanted::Get { .. } => {
                process.reads.insert(token, ticket);
                self.input(target, Input::Read { token, mode: ReadMode::Index })
            }
            Wanted::Put { key, value } => {
                process.puts.insert(token.0, ticket);
                let request = RequestId { origin: target, number: token.0 };
                let payload = machine::encode_put(request, &key, &value);
                self.input(target, Input::Propose { batch: vec![(token, payload)] })
            }
        }
    }

    fn next_operation(&mut self, client: u64) {
        let at = usize::try_from(client).expect("few clients");
        let wait = self.clients[at].rng.between(1, self.shape.think_us * 2);
        self.at(self.now + wait, Event::Client { client });
    }

    /// Takes the outstanding operation if the ticket still names it.
    fn take_busy(&mut self, ticket: u64) -> Option<(u64, u64, Wanted)> {
        let (client, number) = (ticket >> 32, ticket & 0xffff_ffff);
        let state = &mut self.clients[usize::try_from(client).expect("few clients")];
        let (found, started, wanted) = state.busy.take_if(|(n, _, _)| *n == number)?;
        debug_assert_eq!(found, number);
        self.next_operation(client);
        Some((client, started, wanted))
    }

    fn finish(&mut self, started: u64, operation: Operation) {
        let ended = self.now;
        self.oracle.done(Done { started, ended, operation });
    }

    fn answer_put(&mut self, id: MemberId, number: u64, revision: i64) {
        let process = self.members.get_mut(&id).and_then(|m| m.process.as_mut()).expect("it has just applied");
        let Some(ticket) = process.puts.remove(&number) else { return };
        let Some((client, started, wanted)) = self.take_busy(ticket) else { return };
        self.clients[usize::try_from(client).expect("few clients")].leader_hint = Some(id);
        if let Wanted::Put { key, value } = wanted {
            self.count("puts acknowledged");
            self.finish(started, Operation::Put { key, value, revision: Some(revision), certain_failure: false });
        }
    }

    fn read_at(&mut self, id: MemberId, token: Token, index: Index) {
        let process = self.members.get_mut(&id).and_then(|m| m.process.as_mut()).expect("it runs");
        if let Some(ticket) = process.reads.remove(&token) {
            process.reads_ready.push((index, ticket));
        }
        self.answer_reads(id);
    }

    fn answer_reads(&mut self, id: MemberId) {
        loop {
            let process = self.members.get_mut(&id).and_then(|m| m.process.as_mut()).expect("it runs");
            let applied = process.machine.applied();
            let Some(at) = process.reads_ready.iter().position(|(index, _)| *index <= applied) else { return };
            let (_, ticket) = process.reads_ready.remove(at);
            let store_revision = process.machine.revision();
            let machine = &process.machine;
            let client = usize::try_from(ticket >> 32).expect("few clients");
            let key = match &self.clients[client].busy {
                Some((_, _, Wanted::Get { key })) => Some(key.clone()),
                Some((_, _, Wanted::Put { .. })) | None => None,
            };
            let found = key.as_ref().map(|key| machine.get(key));
            if let (Some((_, started, Wanted::Get { key })), Some(found)) = (self.take_busy(ticket), found) {
                self.count("reads answered");
                self.finish(started, Operation::Get { key, found, store_revision });
            }
        }
    }

    fn resolve(&mut self, id: MemberId, token: Token, outcome: Outcome) {
        self.say(|| format!("{id} resolves {token:?}: {outcome:?}"));
        self.outcomes.insert(token, outcome.clone());
        let process = self.members.get_mut(&id).and_then(|m| m.process.as_mut()).expect("it runs");
        match outcome {
            Outcome::Committed { .. } | Outcome::Transferred | Outcome::TransferAborted => {}
            Outcome::Unknown => {
                process.reads.remove(&token);
                if let Some(ticket) = process.puts.remove(&token.0) {
                    self.client_unknown(ticket >> 32, ticket & 0xffff_ffff);
                }
            }
            Outcome::Refused(refusal) => {
                let ticket = process.reads.remove(&token).or_else(|| process.puts.remove(&token.0));
                let hint = match refusal {
                    Refusal::NotLeader { leader } => leader,
                    _ => None,
                };
                if let Some((client, started, wanted)) = ticket.and_then(|t| self.take_busy(t)) {
                    self.clients[usize::try_from(client).expect("few clients")].leader_hint = hint;
                    if let Wanted::Put { key, value } = wanted {
                        self.finish(started, Operation::Put { key, value, revision: None, certain_failure: true });
                    }
                }
            }
        }
    }

    fn client_unknown(&mut self, client: u64, number: u64) {
        if let Some((client, started, wanted)) = self.take_busy(client << 32 | number) {
            self.clients[usize::try_from(client).expect("few clients")].leader_hint = None;
            if let Wanted::Put { key, value } = wanted {
                self.count("unknown outcomes");
                self.finish(started, Operation::Put { key, value, revision: None, certain_failure: false });
            }
        }
    }

    pub fn stop_clients(&mut self) {
        self.clients_stopped = true;
    }

    // The end of a run.

    /// Highest number of acknowledged puts so far.
    pub fn acknowledged(&self) -> u64 {
        self.counts.get("puts acknowledged").copied().unwrap_or_default()
    }

    /// Members of the committed configuration that run, with applied index and state hash.
    pub fn states(&self) -> Vec<(MemberId, Index, u64)> {
        let state = |(id, member): (&MemberId, &Member)| {
            let machine = &member.process.as_ref()?.machine;
            self.oracle.config.contains(*id).then(|| (*id, machine.applied(), machine.hash()))
        };
        self.members.iter().filter_map(state).collect()
    }

    /// Every committed put with its revision, from the committed entries alone.
    pub fn truth(&self) -> Vec<(i64, Bytes, Bytes)> {
        let mut revision = 1;
        let mut truth = Vec::new();
        for entry in &self.oracle.committed {
            if let Payload::Data(data) = &entry.payload {
                let (_, key, value) = machine::decode(data.clone());
                revision += 1;
                truth.push((revision, key, value));
            }
        }
        truth
    }
}
