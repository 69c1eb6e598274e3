//! A group of members under full control: every message, flush, apply and crash is a call. Checks the safety properties
//! of Raft after each of them, from what the members promised rather than from what they believe.

#![allow(dead_code, reason = "each test binary uses its own part of the bench")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use quorate_raft::io::{Change, Effect, Event, Input, Outcome, ReadMode};
use quorate_raft::membership::Placed;
use quorate_raft::types::{
    Config, ConfigAt, Entry, Index, MemberId, MemberInfo, Payload, Record, Recovered, SnapMeta, Term, Time, Token,
    WriteSeq,
};
use quorate_raft::wire::Msg;
use quorate_raft::{Cfg, Node, RoleName};

pub const INCARNATION: u64 = 1;

pub fn id(number: u64) -> MemberId {
    MemberId(number)
}

pub fn bootstrap(voters: &[u64]) -> SnapMeta {
    let voters: BTreeSet<MemberId> = voters.iter().map(|number| id(*number)).collect();
    let members = voters.iter().map(|id| (*id, MemberInfo::default())).collect();
    SnapMeta {
        config: Config { voters, members, ..Config::default() },
        config_at: ConfigAt { incarnation: INCARNATION, ..ConfigAt::default() },
        ..SnapMeta::default()
    }
}

/// The durable log, record by record.
#[derive(Clone, Debug)]
pub struct Disk {
    pub recovered: Recovered,
}

impl Disk {
    fn apply(&mut self, record: Record) {
        let disk = &mut self.recovered;
        match record {
            Record::HardState(hard) => {
                assert!(hard.term >= disk.hard.term, "the term on disk never goes back");
                let is_revote = hard.term == disk.hard.term && disk.hard.vote.is_some() && disk.hard.vote != hard.vote;
                assert!(!is_revote, "a vote on disk is never changed within its term");
                disk.hard = hard;
            }
            Record::Append(entries) => {
                for entry in entries {
                    assert_eq!(entry.index, disk.last() + 1, "appends to the disk are contiguous");
                    disk.entries.push(entry);
                }
            }
            Record::TruncateTo(index) => {
                assert!(index >= disk.snapshot.index, "nothing below the mark is truncated");
                disk.entries.retain(|entry| entry.index <= index);
            }
            Record::SnapshotMark(meta) => disk.mark(meta),
        }
    }
}

/// What the recovery of a log knows.
pub trait DiskView {
    fn last(&self) -> Index;
    fn holds(&self, index: Index, term: Term) -> bool;
    fn mark(&mut self, meta: SnapMeta);
}

impl DiskView for Recovered {
    fn last(&self) -> Index {
        self.entries.last().map_or(self.snapshot.index, |entry| entry.index)
    }

    fn holds(&self, index: Index, term: Term) -> bool {
        (self.snapshot.index == index && self.snapshot.term == term)
            || self.entries.iter().any(|entry| entry.index == index && entry.term == term)
    }

    fn mark(&mut self, meta: SnapMeta) {
        if self.holds(meta.index, meta.term) {
            self.entries.retain(|entry| entry.index > meta.index);
        } else {
            self.entries.clear();
        }
        self.snapshot = meta;
    }
}

/// The replicated machine: the list of what was applied.
#[derive(Clone, Debug)]
pub struct Engine {
    pub applied: Vec<Entry>,
    config: Placed,
}

impl Engine {
    fn new(meta: &SnapMeta) -> Engine {
        Engine { applied: Vec::new(), config: Placed { at: meta.config_at, config: Arc::new(meta.config.clone()) } }
    }

    fn apply(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.applied.len() as u64 + 1, "entries are applied in order, each once");
        if let Payload::Config(config) = &entry.payload {
            let at = ConfigAt { incarnation: INCARNATION, term: entry.term, index: entry.index };
            self.config = Placed { at, config: Arc::new(config.clone()) };
        }
        self.applied.push(entry);
    }

    pub fn meta(&self) -> SnapMeta {
        let (index, term) = self.applied.last().map_or((0, 0), |entry| (entry.index, entry.term));
        SnapMeta { index, term, config: (*self.config.config).clone(), config_at: self.config.at }
    }
}

#[derive(Debug)]
pub struct Member {
    pub cfg: Cfg,
    /// `None` while it is down.
    pub node: Option<Node>,
    pub disk: Disk,
    pub writes: VecDeque<(WriteSeq, Record)>,
    waiting: Vec<(WriteSeq, MemberId, Msg)>,
    pub to_apply: VecDeque<Entry>,
    pub engine: Engine,
    pub persisted: Engine,
    staged: Option<Engine>,
    pub installing: Option<SnapMeta>,
    boots: u64,
    /// It has no room for a snapshot.
    pub is_full: bool,
    /// How much faster its clock runs than the bench's, in parts per million.
    pub rate_ppm: i64,
}

impl Member {
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("the script asks only members that are up")
    }
}

/// Something under way between two members.
#[derive(Clone, Debug)]
pub enum Packet {
    Msg(Msg),
    Snapshot(Term, Box<Engine>),
}

#[derive(Clone, Debug)]
pub struct Flight {
    pub from: MemberId,
    pub to: MemberId,
    pub packet: Packet,
}

/// What the group must never contradict.
#[derive(Default, Debug)]
pub struct Truth {
    leaders: BTreeMap<Term, MemberId>,
    pub committed: Vec<Entry>,
    /// Terms of the leaders that committed them.
    committed_in: Vec<Term>,
    entries: BTreeMap<(Index, Term), (Entry, Option<Term>)>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// Highest index whose proposer was told that it is committed.
    acknowledged: Index,
    reads: BTreeMap<Token, Index>,
    proposals: BTreeMap<Token, Bytes>,
    pub outcomes: BTreeMap<Token, Outcome>,
    pub reads_done: u64,
}

#[derive(Debug)]
pub struct Net {
    pub now: Time,
    pub members: BTreeMap<MemberId, Member>,
    pub flights: Vec<Flight>,
    pub truth: Truth,
    /// Effects of the last call, for whoever prints them.
    pub trace: Vec<(MemberId, Effect)>,
    pub seed: u64,
    tokens: u64,
    /// Who was asked: a crash takes the question with it.
    asked: BTreeMap<Token, MemberId>,
}

impl Net {
    pub fn new(seed: u64) -> Net {
        Net {
            now: Time(0),
            members: BTreeMap::new(),
            flights: Vec::new(),
            truth: Truth::default(),
            trace: Vec::new(),
            seed,
            tokens: 0,
            asked: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, cfg: Cfg, snapshot: SnapMeta) {
        let id = cfg.id;
        let engine = Engine::new(&snapshot);
        let recovered = Recovered { snapshot, incarnation: INCARNATION, ..Recovered::default() };
        let member = Member {
            cfg,
            node: None,
            disk: Disk { recovered },
            writes: VecDeque::new(),
            waiting: Vec::new(),
            to_apply: VecDeque::new(),
            persisted: engine.clone(),
            engine,
            staged: None,
            installing: None,
            boots: 0,
            is_full: false,
            rate_ppm: 0,
        };
        self.members.insert(id, member);
        self.start(id);
    }

    fn token(&mut self, asked: MemberId) -> Token {
        self.tokens += 1;
        if self.members.get(&asked).is_some_and(|member| member.node.is_some()) {
            self.asked.insert(Token(self.tokens), asked);
        }
        Token(self.tokens)
    }

    /// The time on a member's own clock.
    fn local(&self, id: MemberId) -> Time {
        let rate = u64::try_from(1_000_000 + self.members[&id].rate_ppm).expect("a clock runs forwards");
        Time(u64::try_from(u128::from(self.now.0) * u128::from(rate) / 1_000_000).expect("a short test"))
    }

    /// When a member is due, on the clock of the bench.
    pub fn deadline(&self, id: MemberId) -> Time {
        let member = self.member(id);
        let Time(due) = member.node().deadline();
        if due == u64::MAX {
            return Time(due);
        }
        let rate = u128::try_from(1_000_000 + member.rate_ppm).expect("a clock runs forwards");
        Time(u64::try_from((u128::from(due) * 1_000_000).div_ceil(rate)).expect("a short test"))
    }

    pub fn member(&self, id: MemberId) -> &Member {
        &self.members[&id]
    }

    fn member_mut(&mut self, id: MemberId) -> &mut Member {
        self.members.get_mut(&id).expect("the script names members that exist")
    }

    pub fn up(&self) -> Vec<MemberId> {
        self.members.iter().filter(|(_, member)| member.node.is_some()).map(|(id, _)| *id).collect()
    }

    /// The leader with the highest term.
    pub fn leader(&self) -> Option<MemberId> {
        let leaders = self.up().into_iter().filter(|id| self.member(*id).node().is_leader());
        leaders.max_by_key(|id| self.member(*id).node().term())
    }

    // ---- process ---------------------------------------------------------------------------------------------------

    /// Power fails: the first `writes_kept` writes under way still reached the disk, the engine falls back to what it
    /// persisted, and nothing more is sent.
    pub fn crash(&mut self, id: MemberId, writes_kept: usize) {
        self.asked.retain(|_, asked| *asked != id);
        let member = self.member_mut(id);
        member.node = None;
        for _ in 0..writes_kept {
            let Some((_, record)) = member.writes.pop_front() else { break };
            member.disk.apply(record);
        }
        member.writes.clear();
        member.waiting.clear();
        member.to_apply.clear();
        member.installing = None;
        member.staged = None;
        member.engine = member.persisted.clone();
    }

    /// The disk of a member that is down is empty again, as on the first day.
    pub fn wipe(&mut self, id: MemberId) {
        let first = bootstrap(&[1, 2, 3]);
        let member = self.member_mut(id);
        assert!(member.node.is_none(), "only the disk of a member that is down can be exchanged");
        member.disk.recovered = Recovered { snapshot: first.clone(), incarnation: INCARNATION, ..Recovered::default() };
        member.engine = Engine::new(&first);
        member.persisted = member.engine.clone();
    }

    pub fn start(&mut self, id: MemberId) {
        let (now, seed) = (self.local(id), self.seed);
        let member = self.member_mut(id);
        member.boots += 1;
        let meta = member.persisted.meta();
        let disk = &mut member.disk.recovered;
        // An engine the log does not reach (a crash between an install and its mark) counts as the mark.
        let is_beyond = meta.index > disk.snapshot.index && !disk.holds(meta.index, meta.term);
        if is_beyond {
            disk.mark(meta.clone());
        }
        let seed = seed.wrapping_mul(31).wrapping_add(id.0 * 1_000_003 + member.boots * 7_919);
        member.node = Some(Node::restart(member.cfg.clone(), disk.clone(), now, seed));
        if meta.index > 0 {
            self.step(id, Input::Persisted { meta });
        }
    }

    // ---- inputs ----------------------------------------------------------------------------------------------------

    pub fn step(&mut self, id: MemberId, input: Input) {
        let now = self.local(id);
        let member = self.members.get_mut(&id).expect("the script names members that exist");
        let Some(node) = &mut member.node else { return };
        let was_leader = node.is_leader();
        let mut out = Vec::new();
        node.step(now, input, &mut out);
        for effect in out {
            self.trace.push((id, effect.clone()));
            self.take(id, was_leader, effect);
        }
    }

    pub fn tick(&mut self, id: MemberId) {
        self.step(id, Input::Tick);
    }

    pub fn propose(&mut self, id: MemberId, data: Bytes) -> Token {
        self.propose_batch(id, vec![data])[0]
    }

    pub fn propose_batch(&mut self, id: MemberId, batch: Vec<Bytes>) -> Vec<Token> {
        let batch: Vec<(Token, Bytes)> = batch.into_iter().map(|data| (self.token(id), data)).collect();
        self.truth.proposals.extend(batch.iter().cloned());
        let tokens = batch.iter().map(|(token, _)| *token).collect();
        self.step(id, Input::Propose { batch });
        tokens
    }

    pub fn read(&mut self, id: MemberId, mode: ReadMode) -> Token {
        let token = self.token(id);
        self.truth.reads.insert(token, self.truth.acknowledged);
        self.step(id, Input::Read { token, mode });
        token
    }

    pub fn change(&mut self, id: MemberId, expect: Option<ConfigAt>, change: Change) -> Token {
        let token = self.token(id);
        self.step(id, Input::Change { token, expect, change });
        token
    }

    pub fn transfer(&mut self, id: MemberId, to: MemberId) -> Token {
        let token = self.token(id);
        self.step(id, Input::Transfer { token, to });
        token
    }

    /// The next `count` writes become durable.
    pub fn flush(&mut self, id: MemberId, count: usize) {
        let member = self.member_mut(id);
        let mut upto = None;
        for _ in 0..count {
            let Some((seq, record)) = member.writes.pop_front() else { break };
            member.disk.apply(record);
            upto = Some(seq);
        }
        let Some(upto) = upto else { return };
        let waiting = std::mem::take(&mut member.waiting);
        let (free, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(seq, ..)| *seq <= upto);
        self.member_mut(id).waiting = waiting;
        for (_, to, msg) in free {
            self.send(id, to, msg);
        }
        self.step(id, Input::Written { upto });
    }

    /// The machine applies the next `count` committed entries.
    pub fn apply(&mut self, id: MemberId, count: usize) {
        let member = self.member_mut(id);
        if member.installing.is_some() {
            return;
        }
        let mut index = None;
        for _ in 0..count {
            let Some(entry) = member.to_apply.pop_front() else { break };
            index = Some(entry.index);
            member.engine.apply(entry);
        }
        if let Some(index) = index {
            self.step(id, Input::Applied { index });
        }
    }

    /// The engine persists what it applied, as far as the local log is durable.
    pub fn persist(&mut self, id: MemberId) {
        let member = self.member_mut(id);
        let Some(node) = &member.node else { return };
        let durable = node.durable_index();
        if member.installing.is_some() || member.engine.meta().index > durable {
            return;
        }
        member.persisted = member.engine.clone();
        let meta = member.persisted.meta();
        self.step(id, Input::Persisted { meta });
    }

    /// The engine finishes the swap to a snapshot.
    pub fn install(&mut self, id: MemberId) {
        let member = self.member_mut(id);
        let Some(meta) = member.installing.take() else { return };
        let staged = member.staged.take().expect("only a staged snapshot is installed");
        assert_eq!(staged.meta(), meta, "the staged snapshot is the one to install");
        member.engine = staged;
        member.persisted = member.engine.clone();
        member.to_apply.clear();
        // The report of the engine may overtake the one of the swap.
        self.step(id, Input::Persisted { meta: meta.clone() });
        self.step(id, Input::Installed { index: meta.index });
    }

    // ---- network ---------------------------------------------------------------------------------------------------

    fn send(&mut self, from: MemberId, to: MemberId, msg: Msg) {
        if let Msg::VoteReply { term, granted: true } = msg {
            let voted = *self.truth.votes.entry((from, term)).or_insert(to);
            assert_eq!(voted, to, "member {from} votes once in term {term}");
            let hard = self.member(from).disk.recovered.hard;
            assert!(hard.term > term || hard.vote == Some(to), "a vote leaves only when it is on disk");
        }
        self.flights.push(Flight { from, to, packet: Packet::Msg(msg) });
    }

    pub fn send_snapshot(&mut self, from: MemberId, to: MemberId) {
        let member = self.member(from);
        let packet = Packet::Snapshot(member.node().term(), Box::new(member.engine.clone()));
        self.flights.push(Flight { from, to, packet });
    }

    /// Hands one packet over. A packet to a member that is down or unknown is lost.
    pub fn deliver(&mut self, flight: Flight) {
        let Flight { from, to, packet } = flight;
        let is_up = self.members.get(&to).is_some_and(|member| member.node.is_some());
        match packet {
            Packet::Msg(msg) if is_up => self.step(to, Input::Msg { from, msg }),
            Packet::Msg(_) => {}
            Packet::Snapshot(term, engine) => {
                let meta = engine.meta();
                let is_taken = is_up && !self.member(to).is_full;
                if is_taken {
                    let member = self.member_mut(to);
                    if member.installing.is_none() {
                        member.staged = Some(*engine);
                    }
                    self.step(to, Input::SnapshotReady { from, term, meta: meta.clone() });
                }
                self.step(from, Input::SnapshotSent { to, index: meta.index, ok: is_taken });
            }
        }
    }

    /// A packet is lost.
    pub fn lose(&mut self, flight: Flight) {
        if let Packet::Snapshot(_, engine) = flight.packet {
            let index = engine.meta().index;
            self.step(flight.from, Input::SnapshotSent { to: flight.to, index, ok: false });
        }
    }

    // ---- effects ---------------------------------------------------------------------------------------------------

    fn take(&mut self, id: MemberId, was_leader: bool, effect: Effect) {
        match effect {
            Effect::Write { seq, record } => self.note_write(id, seq, record),
            Effect::Send { to, msg, after: None } => self.send(id, to, msg),
            Effect::Send { to, msg, after: Some(seq) } => {
                let member = self.member_mut(id);
                assert!(
                    member.writes.iter().any(|(waiting, _)| *waiting == seq),
                    "a message waits for a write under way"
                );
                member.waiting.push((seq, to, msg));
            }
            Effect::Commit { entries } => {
                for entry in &entries {
                    self.check_committed(id, was_leader, entry);
                }
                if was_leader && let Some(last) = entries.last() {
                    self.check_on_quorum(id, last);
                }
                self.member_mut(id).to_apply.extend(entries);
            }
            Effect::ReadAt { token, index } => {
                let needed = self.truth.reads.remove(&token).expect("a read is answered once");
                assert!(
                    index >= needed,
                    "read {token:?} at {index} misses entry {needed}, acknowledged before it began"
                );
                assert!(index <= self.truth.committed.len() as u64, "a read index is committed");
                self.truth.reads_done += 1;
                self.asked.remove(&token);
            }
            Effect::Resolve { token, outcome } => self.note_outcome(token, outcome),
            Effect::Acked { peer, durable } => self.check_acked(id, peer, durable),
            Effect::SendSnapshot { to, term } => {
                assert_eq!(term, self.member(id).node().term(), "a snapshot is sent in the leader's term");
                self.send_snapshot(id, to);
            }
            Effect::Install { meta } => self.member_mut(id).installing = Some(meta),
            Effect::Event(Event::BecameLeader { term }) => self.check_new_leader(id, term),
            Effect::Event(_) => {}
        }
    }

    fn note_write(&mut self, id: MemberId, seq: WriteSeq, record: Record) {
        if let Record::Append(entries) = &record {
            let node = self.members[&id].node();
            for entry in entries {
                let before = node.term_at(entry.index - 1);
                let known = self.truth.entries.entry((entry.index, entry.term)).or_insert((entry.clone(), before));
                assert_eq!(known.0, *entry, "log matching: one entry per index and term");
                if let (Some(one), Some(other)) = (known.1, before) {
                    assert_eq!(
                        one, other,
                        "log matching: equal entries have equal predecessors (index {})",
                        entry.index
                    );
                }
            }
        }
        self.member_mut(id).writes.push_back((seq, record));
    }

    fn check_committed(&mut self, id: MemberId, was_leader: bool, entry: &Entry) {
        let known = self.truth.committed.len() as u64;
        if entry.index <= known {
            let held = &self.truth.committed[usize::try_from(entry.index).unwrap() - 1];
            assert_eq!(held, entry, "member {id} commits another entry at {}", entry.index);
        } else {
            assert!(was_leader, "member {id} commits entry {} before any leader did", entry.index);
            assert_eq!(entry.index, known + 1, "commits are contiguous");
            self.truth.committed.push(entry.clone());
            self.truth.committed_in.push(self.member(id).node().term());
        }
    }

    /// Committed means: on the disks of a majority, of both halves while joint.
    fn check_on_quorum(&self, id: MemberId, entry: &Entry) {
        let config = self.member(id).node().status().newest_config.config;
        let holds = |id: &&MemberId| {
            self.members.get(id).is_some_and(|member| {
                let disk = &member.disk.recovered;
                disk.snapshot.index > entry.index || disk.holds(entry.index, entry.term)
            })
        };
        for half in [&config.voters, &config.voters_outgoing] {
            let count = half.iter().filter(holds).count();
            assert!(
                half.is_empty() || 2 * count > half.len(),
                "entry {} is committed on {count} disks of {half:?}",
                entry.index
            );
        }
    }

    /// What a leader counts is on the disk of who said so.
    fn check_acked(&self, id: MemberId, peer: MemberId, durable: Index) {
        let leader = self.member(id).node();
        let Some(disk) = self.members.get(&peer).map(|member| &member.disk.recovered) else { return };
        if disk.hard.term != leader.term() || disk.snapshot.index >= durable {
            return;
        }
        let Some(term) = leader.term_at(durable) else { return };
        assert!(disk.holds(durable, term), "leader {id} counts entry {durable} on {peer}, whose disk lacks it");
    }

    fn check_new_leader(&mut self, id: MemberId, term: Term) {
        let first = *self.truth.leaders.entry(term).or_insert(id);
        assert_eq!(first, id, "two leaders in term {term}");
        let node = self.members[&id].node();
        // A leader of an old term may come late; it cannot commit anything any more.
        let before = self.truth.committed_in.iter().take_while(|committed_in| **committed_in < term).count();
        for entry in &self.truth.committed[..before] {
            if entry.index > node.status().compacted {
                let held = node.term_at(entry.index);
                assert_eq!(held, Some(entry.term), "leader {id} of term {term} lacks committed entry {}", entry.index);
            }
        }
    }

    fn note_outcome(&mut self, token: Token, outcome: Outcome) {
        if let Outcome::Committed { term, index } = outcome {
            let entry = &self.truth.committed[usize::try_from(index).unwrap() - 1];
            assert_eq!(entry.term, term, "an outcome names the entry's term");
            if let Some(data) = self.truth.proposals.get(&token) {
                assert_eq!(entry.payload, Payload::Data(data.clone()), "an outcome names the proposal's entry");
            }
            self.truth.acknowledged = self.truth.acknowledged.max(index);
        }
        self.truth.reads.remove(&token);
        self.asked.remove(&token);
        let before = self.truth.outcomes.insert(token, outcome);
        assert_eq!(before, None, "{token:?} is resolved once");
    }

    /// Refused means: it never happens. Needs proposals of distinct bytes.
    pub fn check_refused(&self) {
        let committed: BTreeSet<&Bytes> = self
            .truth
            .committed
            .iter()
            .filter_map(|entry| match &entry.payload {
                Payload::Data(data) => Some(data),
                Payload::Noop | Payload::Config(_) => None,
            })
            .collect();
        for (token, outcome) in &self.truth.outcomes {
            if let (Outcome::Refused(_), Some(data)) = (outcome, self.truth.proposals.get(token)) {
                assert!(!committed.contains(data), "{token:?} of {data:?} was refused and committed: {outcome:?}");
            }
        }
    }

    /// Questions to members that did not crash since, without an answer.
    pub fn unanswered_since_boot(&self) -> usize {
        self.asked.len()
    }

    // ---- calm ------------------------------------------------------------------------------------------------------

    /// Delivers, flushes, applies and installs until nothing is under way at this instant.
    pub fn settle(&mut self, is_cut: impl Fn(MemberId, MemberId) -> bool) {
        const ROUNDS_MAX: usize = 10_000;
        for _ in 0..ROUNDS_MAX {
            let flights = std::mem::take(&mut self.flights);
            let mut is_quiet = flights.is_empty();
            for flight in flights {
                if is_cut(flight.from, flight.to) { self.lose(flight) } else { self.deliver(flight) }
            }
            for id in self.up() {
                let member = self.member(id);
                is_quiet &= member.writes.is_empty() && member.to_apply.is_empty() && member.installing.is_none();
                self.flush(id, usize::MAX);
                self.install(id);
                self.apply(id, usize::MAX);
            }
            if is_quiet {
                return;
            }
        }
        panic!("the group does not come to rest at {:?}", self.now);
    }

    /// Lets `micros` pass, one deadline after the other.
    pub fn run(&mut self, micros: u64, is_cut: impl Fn(MemberId, MemberId) -> bool) {
        const TICKS_PER_MS_MAX: u64 = 20;
        let end = self.now.after(micros);
        self.settle(&is_cut);
        for ticks in 0.. {
            assert!(ticks <= 100 + micros / 1_000 * TICKS_PER_MS_MAX, "deadlines advance");
            let next = self.up().into_iter().map(|id| self.deadline(id)).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            for id in self.up() {
                if self.deadline(id) <= self.now {
                    self.tick(id);
                }
            }
            self.settle(&is_cut);
        }
    }

    /// One line per member.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (id, member) in &self.members {
            let Some(node) = &member.node else {
                let _ = writeln!(text, "{id} down");
                continue;
            };
            let status = node.status();
            let role = match status.role {
                RoleName::Leader if status.is_ready => "leader",
                RoleName::Leader => "leader (not ready)",
                RoleName::Follower => "follower",
                RoleName::PreCandidate => "pre-candidate",
                RoleName::Candidate => "candidate",
            };
            let leader = status.leader.map_or("-".to_owned(), |leader| leader.to_string());
            let _ = writeln!(
                text,
                "{id} {role} term={} leader={leader} last={}@{} durable={} commit={} applied={}",
                status.term, status.last_index, status.last_term, status.durable, status.commit, status.applied
            );
        }
        text
    }
}
