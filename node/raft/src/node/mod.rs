//! The member: its state, the dispatch of inputs, and what it tells about itself.
//!
//! Submodules hold one concern each and share the fields below; none of them keeps state of its own.

mod change;
mod election;
mod follower;
mod leader;
mod reads;
mod transfer;
mod untimed;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cfg::Cfg;
use crate::durable::Durable;
use crate::io::{Effect, Event, Input, Outcome, ReadMode, Refusal, StepDown};
use crate::log::Log;
use crate::membership::{History, Placed};
use crate::progress::Feed;
use crate::rng::Rng;
use crate::types::{
    Config, ConfigAt, Entry, HardState, Index, MemberId, Payload, Record, Recovered, SnapMeta, Term, Time, Token,
    WriteSeq,
};
use crate::wire::Msg;

use leader::{Leader, Said};
use reads::Forwarded;
use transfer::Handing;

/// Terms and indexes above are not believed: they come from a broken sender, and arithmetic must not overflow.
/// A billion per second would take a century to get there.
const TERM_MAX: Term = 1 << 62;
const INDEX_MAX: Index = 1 << 62;
/// Far enough to mean "never".
const NEVER: Time = Time(u64::MAX);

/// One member of one Raft group.
///
/// # Invariants
/// - `applied ≤ commit ≤ last index`; `commit` and the term never decrease
/// - nothing at or below `commit` is ever truncated
/// - `matched_in_term` is 0 unless an append or snapshot of the current term matched
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    cfg: Cfg,
    rng: Rng,
    now: Time,
    incarnation: u64,
    hard: HardState,
    log: Log,
    durable: Durable,
    history: History,
    commit: Index,
    applied: Index,
    /// The engine holds everything up to here durably.
    persisted: Index,
    unapplied_bytes: usize,
    role: Role,
    leader: Option<MemberId>,
    /// Last word from a leader, of this term or an earlier one; `None` lifts the refusal to vote.
    contact: Option<Time>,
    /// The same, kept over elections: how long the group has been without a leader.
    last_contact: Time,
    /// No votes before this, because a restart forgets the contact.
    refuse_until: Time,
    election_due: Time,
    /// Highest index an append or snapshot of this term has matched.
    matched_in_term: Index,
    /// A snapshot the engine is swapping to.
    installing: Option<SnapMeta>,
    /// What each member held durably when it was committed: its log can never be shorter again.
    sealed: BTreeMap<MemberId, Index>,
    forwarded: Forwarded,
    handing: Option<Handing>,
    is_stalled: bool,
    has_failed: bool,
    is_removed: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Role {
    Follower,
    PreCandidate { votes: BTreeMap<MemberId, bool> },
    Candidate { votes: BTreeMap<MemberId, bool> },
    Leader(Box<Leader>),
}

/// What a member is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RoleName {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// What a leader knows of another member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    pub id: MemberId,
    /// Durable there.
    pub matched: Index,
    pub last_ack: Option<Time>,
    /// Answered within one election timeout.
    pub is_active: bool,
    pub is_snapshotting: bool,
    /// Its log is shorter than what it said was durable: it lost its disk, counts for nothing and must be replaced
    /// under another id.
    pub is_reverted: bool,
}

/// A member's view of itself and of its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub id: MemberId,
    pub role: RoleName,
    pub term: Term,
    pub vote: Option<MemberId>,
    pub leader: Option<MemberId>,
    pub commit: Index,
    pub applied: Index,
    pub last_index: Index,
    pub last_term: Term,
    /// The local log is on disk up to here.
    pub durable: Index,
    /// The log begins behind this index.
    pub compacted: Index,
    /// Of a leader: its own term's first entry, and whether that is committed and applied (LeaderReady).
    pub noop_index: Option<Index>,
    pub is_ready: bool,
    /// Last word from a leader (of a leader: the current time of the core).
    pub leader_contact: Option<Time>,
    /// Of a leader: a majority confirmed that it still led at this instant.
    pub quorum_confirmed: Option<Time>,
    /// Of a leader with lease reads: no majority votes before this instant.
    pub lease_until: Option<Time>,
    pub committed_config: Placed,
    pub newest_config: Placed,
    /// A change is appended and not committed, or the configuration is joint.
    pub is_change_in_flight: bool,
    pub progress: Vec<PeerStatus>,
    pub uncommitted_bytes: usize,
    pub transferring: Option<MemberId>,
    pub is_stalled: bool,
    /// A write failed, or the log lost what it held: this member promises nothing any more.
    pub has_failed: bool,
    pub is_removed: bool,
}

impl Node {
    /// Starts from what the disk gave back. The engine's own position follows as `Input::Persisted` before any other
    /// input, if it is beyond the snapshot mark.
    ///
    /// # Panics
    /// When `cfg` or `disk` breaks a rule the core relies on ([`Cfg::validate`], contiguous entries).
    pub fn restart(cfg: Cfg, disk: Recovered, now: Time, seed: u64) -> Node {
        if let Err(broken) = cfg.validate() {
            panic!("a member starts only with valid settings: {broken}");
        }
        let Recovered { mut hard, snapshot, entries, incarnation } = disk;
        if snapshot.term > hard.term {
            // A crash after an install and before the term was written: no vote of that term can have left.
            hard = HardState { term: snapshot.term, vote: None };
        }
        let mut log = Log::behind(snapshot.index, snapshot.term);
        let mut history = History::new(&snapshot);
        for entry in entries {
            if let Payload::Config(config) = &entry.payload {
                let at = ConfigAt { incarnation, term: entry.term, index: entry.index };
                history.push(Placed { at, config: Arc::new(config.clone()) });
            }
            log.push(entry);
        }
        assert!(log.last_term() <= hard.term, "the term is on disk before any entry of it");
        let mut node = Node {
            rng: Rng::new(seed),
            now,
            incarnation,
            hard,
            durable: Durable::recovered(log.last_index()),
            log,
            commit: snapshot.index,
            applied: snapshot.index,
            persisted: snapshot.index,
            unapplied_bytes: 0,
            role: Role::Follower,
            leader: None,
            contact: None,
            last_contact: now,
            refuse_until: now.after(cfg.start_refusal_us),
            election_due: NEVER,
            matched_in_term: 0,
            installing: None,
            sealed: BTreeMap::new(),
            forwarded: Forwarded::new(seed),
            handing: None,
            is_stalled: false,
            has_failed: false,
            is_removed: snapshot.config.removed.contains(&cfg.id),
            history,
            cfg,
        };
        if planted!(node, RestartForgetsOldTimeout) {
            node.refuse_until = now.after(node.cfg.et_us());
        }
        node.schedule_election();
        node.hurry_if_alone();
        node
    }

    /// Feeds one input at `now` and collects what to do, in order. A clock that went back is taken as standing still.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        let is_planted = planted!(self, StaleClock) && !matches!(input, Input::Tick);
        if !is_planted {
            self.now = self.now.max(now);
        }
        if self.has_failed {
            return refuse_stopped(input, out);
        }
        match input {
            Input::Tick => self.tick(out),
            Input::Msg { from, msg } => self.on_msg(from, msg, out),
            Input::Propose { batch } => self.propose(batch, out),
            Input::Read { token, mode } => self.read(token, mode, out),
            Input::Change { token, expect, change } => self.change(token, expect, &change, out),
            Input::Transfer { token, to } => self.transfer(token, to, out),
            Input::Written { upto } => self.on_written(upto, out),
            Input::WriteFailed => self.on_write_failed(out),
            Input::DiskStalled => self.on_disk_stalled(out),
            Input::PeerGone { peer } => self.on_peer_gone(peer, out),
            Input::Applied { index } => self.on_applied(index, out),
            Input::Persisted { meta } => self.on_persisted(&meta, out),
            Input::SnapshotSent { to, index, ok } => self.on_snapshot_sent(to, index, ok, out),
            Input::SnapshotReady { from, term, meta } => self.on_snapshot_ready(from, term, meta, out),
            Input::Installed { index } => self.on_installed(index, out),
        }
        assert!(self.applied <= self.commit, "only committed entries are applied");
        assert!(self.commit <= self.log.last_index(), "only entries in the log are committed");
    }

    /// When the next `Input::Tick` is due. Feed messages that arrived before it first.
    pub fn deadline(&self) -> Time {
        if self.has_failed {
            return NEVER;
        }
        let role = match &self.role {
            Role::Leader(leader) => leader.deadline(),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } if self.may_campaign() => {
                self.election_due
            }
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => NEVER,
        };
        let handing = self.handing.as_ref().map_or(NEVER, |handing| handing.deadline);
        role.min(self.forwarded.deadline()).min(handing)
    }

    fn tick(&mut self, out: &mut Vec<Effect>) {
        self.expire_forwarded(out);
        self.expire_handing(out);
        match &self.role {
            Role::Leader(_) => self.tick_leader(out),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => {
                if self.now >= self.election_due && self.may_campaign() {
                    self.pre_campaign(out);
                }
            }
        }
    }

    fn on_msg(&mut self, from: MemberId, msg: Msg, out: &mut Vec<Effect>) {
        if msg.term() > TERM_MAX || self.tell_if_removed(from, &msg, out) {
            return;
        }
        match msg {
            Msg::PreVote { term, last_term, last_index } => self.on_pre_vote(from, term, (last_term, last_index), out),
            Msg::PreVoteReply { term, granted } => self.on_pre_vote_reply(from, term, granted, out),
            Msg::Vote { term, last_term, last_index, forced } => {
                self.on_vote(from, term, (last_term, last_index), forced, out);
            }
            Msg::VoteReply { term, granted } => self.on_vote_reply(from, term, granted, out),
            Msg::Append { term, prev_term, prev_index, entries, commit } => {
                self.on_append(from, term, (prev_index, prev_term), entries, commit, out);
            }
            Msg::AppendReply { term, matched } => self.on_append_reply(from, term, matched, out),
            Msg::AppendReject { term, prev_index, hint_index, hint_term } => {
                self.on_append_reject(from, term, prev_index, (hint_index, hint_term), out);
            }
            Msg::Heartbeat { term, commit, round } => self.on_heartbeat(from, term, commit, round, out),
            Msg::HeartbeatReply { term, round, received, durable, promise_us, last_index } => {
                let said = Said { round, received, durable, promise_us, last_index };
                self.on_heartbeat_reply(from, term, said, out);
            }
            Msg::Commit { term, commit } => self.on_commit(from, term, commit, out),
            Msg::TimeoutNow { term } => self.on_timeout_now(from, term, out),
            Msg::ReadIndex { term, ctx, lease } => {
                let mode = if lease { ReadMode::Lease } else { ReadMode::Index };
                self.on_read_index(from, term, ctx, mode, out);
            }
            Msg::ReadIndexReply { term, ctx, index } => self.on_read_index_reply(from, term, ctx, index, out),
            Msg::SnapshotReply { term, index } => self.on_snapshot_reply(from, term, index, out),
            Msg::YouAreRemoved { term: _, config_term, config_index } => {
                let at = ConfigAt { incarnation: self.incarnation, term: config_term, index: config_index };
                self.note_removed(at, out);
            }
            Msg::YourLogReverted { term: _, held } => self.on_log_reverted(held, out),
        }
    }

    // ---- what the shell reports ------------------------------------------------------------------------------------

    fn on_written(&mut self, upto: WriteSeq, out: &mut Vec<Effect>) {
        let was_term_safe = self.durable.is_hard_state_written();
        if !self.durable.written(upto) {
            return;
        }
        self.is_stalled = false;
        if !was_term_safe && self.durable.is_hard_state_written() {
            self.wait_anew();
        }
        self.count_own_vote(out);
        self.maybe_commit(out);
    }

    fn on_write_failed(&mut self, out: &mut Vec<Effect>) {
        self.stop(StepDown::DiskFailed, out);
    }

    /// A leader knows better what was durable here. One whose word is late says nothing of a log that holds it.
    fn on_log_reverted(&mut self, held: Index, out: &mut Vec<Effect>) {
        let last_index = self.log.last_index();
        if last_index < held && !planted!(self, ReversionIgnored) {
            self.stop(StepDown::LogReverted, out);
            out.push(Effect::Event(Event::Reverted { held, last_index }));
        }
    }

    /// Whatever was promised is promised; nothing is promised from here on, and nothing is sent.
    fn stop(&mut self, why: StepDown, out: &mut Vec<Effect>) {
        let mut silent = Vec::new();
        if self.is_leader() {
            self.step_down(why, &mut silent);
        }
        self.fail_forwarded(&mut silent);
        self.abort_handing(&mut silent);
        self.has_failed = true;
        self.leader = None;
        out.extend(silent.into_iter().filter(|effect| !matches!(effect, Effect::Send { .. } | Effect::Write { .. })));
    }

    fn on_disk_stalled(&mut self, out: &mut Vec<Effect>) {
        if self.durable.is_quiet() {
            return;
        }
        self.is_stalled = true;
        if self.is_leader() && !planted!(self, StalledLeaderStays) {
            self.leave_stalled(out);
        }
    }

    fn on_applied(&mut self, index: Index, out: &mut Vec<Effect>) {
        assert!(index <= self.commit, "only committed entries are applied");
        if index <= self.applied {
            return;
        }
        let bytes: usize = self.log.range(self.applied + 1, index).map(Entry::size_bytes).sum();
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(bytes);
        self.applied = index;
        self.maybe_ready(out);
    }

    /// The engine holds a prefix. Only committed entries reach an engine, so right after a start this also says what
    /// is committed.
    fn on_persisted(&mut self, meta: &SnapMeta, out: &mut Vec<Effect>) {
        if self.installing.as_ref().is_some_and(|installing| installing.index <= meta.index) {
            // The report overtook `Installed`, which says the same.
            return;
        }
        if meta.index > self.commit {
            assert!(
                self.log.holds(meta.index, meta.term),
                "an engine beyond the log is a snapshot mark before a start"
            );
            let before = std::mem::replace(&mut self.commit, meta.index);
            self.applied = meta.index;
            self.unapplied_bytes = 0;
            self.note_committed_configs(before, out);
            self.hurry_if_alone();
        }
        self.persisted = self.persisted.max(meta.index);
        self.maybe_cut(out);
    }

    /// The only member, by a committed configuration, waits for nobody: no leader contact can be hurt.
    fn hurry_if_alone(&mut self) {
        let newest = self.history.newest();
        let is_alone = newest.at.index <= self.commit && newest.config.members.keys().eq([&self.cfg.id]);
        if is_alone && matches!(self.role, Role::Follower) {
            self.election_due = self.now;
        }
    }

    /// Cuts the log behind the engine, but keeps a tail for slow followers.
    fn maybe_cut(&mut self, out: &mut Vec<Effect>) {
        let (mut upto, last) = (self.log.base_index(), self.log.last_index());
        let mut bytes = self.log.bytes();
        let floor = self.snapshot_floor().filter(|_| bytes <= self.cfg.hold_bytes_max).unwrap_or(last);
        let mut limit = self.persisted.min(self.durable.index()).min(floor);
        if planted!(self, CutPastPersisted) {
            limit = self.commit;
        }
        let keep_from = last.saturating_sub(self.cfg.keep_entries);
        for entry in self.log.range(upto + 1, limit) {
            if entry.index > keep_from && bytes <= self.cfg.keep_bytes {
                break;
            }
            bytes -= entry.size_bytes();
            upto = entry.index;
        }
        let is_worth_a_write = upto - self.log.base_index() > self.cfg.keep_entries / 8
            || self.log.bytes() - bytes > self.cfg.keep_bytes / 8;
        if !is_worth_a_write {
            return;
        }
        let placed = self.history.at(upto).clone();
        let meta = SnapMeta {
            index: upto,
            term: self.log.term_at(upto).expect("the cut is in the log"),
            config: (*placed.config).clone(),
            config_at: placed.at,
        };
        self.log.cut_to(upto);
        self.history.cut_to(upto);
        out.push(Effect::Write { seq: self.durable.next(), record: Record::SnapshotMark(meta) });
    }

    // ---- shared steps ----------------------------------------------------------------------------------------------

    /// Writes term and vote.
    fn persist_hard(&mut self, out: &mut Vec<Effect>) -> WriteSeq {
        let seq = self.durable.hard_state();
        out.push(Effect::Write { seq, record: Record::HardState(self.hard) });
        seq
    }

    /// Enters a higher term, with a vote in it or none.
    fn enter_term(&mut self, term: Term, vote: Option<MemberId>, out: &mut Vec<Effect>) {
        assert!(term > self.hard.term, "the term never goes back");
        if self.is_leader() {
            self.step_down(StepDown::HigherTerm, out);
        }
        self.hard = HardState { term, vote };
        self.matched_in_term = 0;
        self.role = Role::Follower;
        self.leader = None;
        self.persist_hard(out);
        out.push(Effect::Event(Event::BecameFollower { term, leader: None }));
    }

    /// Moves the commit index and hands out what became committed.
    fn commit_to(&mut self, index: Index, out: &mut Vec<Effect>) {
        assert!(index > self.commit, "the commit index only grows");
        assert!(index <= self.log.last_index(), "only entries in the log are committed");
        let before = std::mem::replace(&mut self.commit, index);
        let entries: Vec<Entry> = self.log.range(before + 1, index).cloned().collect();
        let bytes: usize = entries.iter().map(Entry::size_bytes).sum();
        self.unapplied_bytes += bytes;
        out.push(Effect::Commit { entries });
        self.resolve_committed(bytes, out);
        self.note_committed_configs(before, out);
    }

    fn note_committed_configs(&mut self, before: Index, out: &mut Vec<Effect>) {
        for placed in self.history.between(before, self.commit) {
            let config = (*placed.config).clone();
            if config.removed.contains(&self.cfg.id) {
                self.note_removed(placed.at, out);
            }
            out.push(Effect::Event(Event::ConfigCommitted { at: placed.at, config }));
        }
    }

    fn note_removed(&mut self, at: ConfigAt, out: &mut Vec<Effect>) {
        if !self.is_removed {
            self.is_removed = true;
            out.push(Effect::Event(Event::Removed { at }));
        }
    }

    /// Appends to this member's log: one write for the whole batch.
    fn append(&mut self, entries: Vec<Entry>, out: &mut Vec<Effect>) {
        for entry in &entries {
            self.log.push(entry.clone());
        }
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        let seq = self.durable.append(self.log.last_index(), bytes);
        let configs: Vec<Placed> = entries.iter().filter_map(|entry| self.placed(entry)).collect();
        out.push(Effect::Write { seq, record: Record::Append(entries) });
        for placed in configs {
            let (at, config) = (placed.at, (*placed.config).clone());
            self.history.push(placed);
            out.push(Effect::Event(Event::ConfigActive { at, config }));
        }
    }

    fn placed(&self, entry: &Entry) -> Option<Placed> {
        match &entry.payload {
            Payload::Config(config) => Some(Placed {
                at: ConfigAt { incarnation: self.incarnation, term: entry.term, index: entry.index },
                config: Arc::new(config.clone()),
            }),
            Payload::Noop | Payload::Data(_) => None,
        }
    }

    fn send(&self, to: MemberId, msg: Msg, out: &mut Vec<Effect>) {
        out.push(Effect::Send { to, msg, after: None });
    }

    /// The configuration that counts: the newest in the log.
    fn config(&self) -> &Config {
        if planted!(self, ConfigActiveOnCommit) {
            return &self.history.at(self.commit).config;
        }
        &self.history.newest().config
    }

    fn committed_config(&self) -> &Placed {
        self.history.at(self.commit)
    }

    // ---- what it tells about itself --------------------------------------------------------------------------------

    pub fn id(&self) -> MemberId {
        self.cfg.id
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub fn leader(&self) -> Option<MemberId> {
        self.leader
    }

    pub fn term(&self) -> Term {
        self.hard.term
    }

    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The local log is on disk up to here: the engine may persist no further.
    pub fn durable_index(&self) -> Index {
        self.durable.index()
    }

    /// The term of an entry that is in memory, or of the cut.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// An entry that is in memory.
    pub fn entry_at(&self, index: Index) -> Option<&Entry> {
        self.log.get(index)
    }

    /// Entries in memory, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.log.iter()
    }

    pub fn role(&self) -> RoleName {
        match self.role {
            Role::Follower => RoleName::Follower,
            Role::PreCandidate { .. } => RoleName::PreCandidate,
            Role::Candidate { .. } => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    pub fn status(&self) -> Status {
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        };
        let newest = self.history.newest();
        Status {
            id: self.cfg.id,
            role: self.role(),
            term: self.hard.term,
            vote: self.hard.vote,
            leader: self.leader,
            commit: self.commit,
            applied: self.applied,
            last_index: self.log.last_index(),
            last_term: self.log.last_term(),
            durable: self.durable.index(),
            compacted: self.log.base_index(),
            noop_index: leader.map(|leader| leader.noop_index),
            is_ready: leader.is_some_and(|leader| leader.is_ready),
            leader_contact: if leader.is_some() { Some(self.now) } else { self.contact },
            quorum_confirmed: leader.and_then(|leader| self.quorum_confirmed(leader)),
            lease_until: leader.and_then(|leader| self.lease_until(leader)),
            committed_config: self.committed_config().clone(),
            newest_config: newest.clone(),
            is_change_in_flight: newest.at.index > self.commit || newest.config.is_joint(),
            progress: leader.map(|leader| self.peer_statuses(leader)).unwrap_or_default(),
            uncommitted_bytes: leader.map_or(0, |leader| leader.uncommitted_bytes),
            transferring: leader.and_then(|leader| leader.transfer_target()),
            is_stalled: self.is_stalled,
            has_failed: self.has_failed,
            is_removed: self.is_removed,
        }
    }

    fn peer_statuses(&self, leader: &Leader) -> Vec<PeerStatus> {
        let status = |(id, peer): (&MemberId, &crate::progress::Progress)| PeerStatus {
            id: *id,
            matched: peer.matched,
            last_ack: peer.last_ack,
            is_active: peer.is_active(self.now, self.cfg.et_us()),
            is_snapshotting: matches!(peer.feed, Feed::Snapshot { .. }),
            is_reverted: peer.reverted.is_some(),
        };
        leader.peers.iter().map(status).collect()
    }
}

/// A member whose disk failed answers requests and nothing else.
fn refuse_stopped(input: Input, out: &mut Vec<Effect>) {
    let mut refuse = |token: Token| {
        out.push(Effect::Resolve { token, outcome: Outcome::Refused(Refusal::Stopped) });
    };
    match input {
        Input::Propose { batch } => batch.into_iter().for_each(|(token, _): (Token, Bytes)| refuse(token)),
        Input::Read { token, .. } | Input::Change { token, .. } | Input::Transfer { token, .. } => refuse(token),
        Input::Tick
        | Input::Msg { .. }
        | Input::Written { .. }
        | Input::WriteFailed
        | Input::DiskStalled
        | Input::PeerGone { .. }
        | Input::Applied { .. }
        | Input::Persisted { .. }
        | Input::SnapshotSent { .. }
        | Input::SnapshotReady { .. }
        | Input::Installed { .. } => {}
    }
}
