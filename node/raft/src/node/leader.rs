//! Leading: proposals, feeding the others, counting for commit, heartbeats and check-quorum.
//!
//! The leader's own disk counts like a follower's: it may commit without itself. Only entries of its own term are
//! committed by counting; older ones follow with them. Source: Ongaro, thesis §3.5, §3.6.2, §6.2.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::io::{Effect, Event, Outcome, Refusal, StepDown};
use crate::progress::{Feed, Progress};
use crate::quorum::reached;
use crate::types::{Entry, Index, MemberId, Payload, Term, Time, Token};
use crate::wire::Msg;

use super::change::PendingChange;
use super::reads::Reader;
use super::transfer::Transfer;
use super::{NEVER, Node, Role};

/// Send times of this many heartbeat rounds are remembered; an answer to an older one confirms nothing.
const ROUNDS_REMEMBERED_MAX: usize = 1_024;

/// What only a leader has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Leader {
    pub(super) since: Time,
    /// First entry of the own term.
    pub(super) noop_index: Index,
    /// The no-op is committed and applied.
    pub(super) is_ready: bool,
    pub(super) peers: BTreeMap<MemberId, Progress>,
    /// Number of the last heartbeat round, and when the last ones were sent.
    pub(super) round: u64,
    pub(super) rounds_sent: VecDeque<Time>,
    pub(super) heartbeat_due: Time,
    pub(super) quorum_due: Time,
    /// Proposals whose caller waits, in log order.
    pending: VecDeque<(Index, Token)>,
    pub(super) uncommitted_bytes: usize,
    pub(super) reads_waiting: Vec<Reader>,
    pub(super) rounds_with_reads: VecDeque<Round>,
    pub(super) transfer: Option<Transfer>,
    /// A transfer was started in this term, whatever became of it.
    pub(super) has_transferred: bool,
    pub(super) change: Option<PendingChange>,
}

/// Reads that a heartbeat round will confirm.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Round {
    pub(super) round: u64,
    pub(super) index: Index,
    pub(super) readers: Vec<Reader>,
}

impl Leader {
    pub(super) fn deadline(&self) -> Time {
        let transfer = self.transfer.as_ref().map_or(NEVER, |transfer| transfer.deadline);
        self.heartbeat_due.min(self.quorum_due).min(transfer)
    }

    pub(super) fn transfer_target(&self) -> Option<MemberId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    fn sent_at(&self, round: u64) -> Option<Time> {
        let back = usize::try_from(self.round.checked_sub(round)?).ok()?;
        self.rounds_sent.len().checked_sub(back + 1).map(|at| self.rounds_sent[at])
    }
}

impl Node {
    pub(super) fn become_leader(&mut self, out: &mut Vec<Effect>) {
        assert!(self.leader.is_none(), "two leaders in one term");
        let last = self.log.last_index();
        let uncommitted_bytes = self.log.range(self.commit + 1, last).map(Entry::size_bytes).sum();
        self.role = Role::Leader(Box::new(Leader {
            since: self.now,
            noop_index: last + 1,
            is_ready: false,
            peers: BTreeMap::new(),
            round: 0,
            rounds_sent: VecDeque::new(),
            heartbeat_due: self.now,
            quorum_due: self.now.after(self.cfg.quorum_us()),
            pending: VecDeque::new(),
            uncommitted_bytes,
            reads_waiting: Vec::new(),
            rounds_with_reads: VecDeque::new(),
            transfer: None,
            has_transferred: false,
            change: None,
        }));
        self.leader = Some(self.cfg.id);
        self.contact = None;
        self.settle_handing(self.cfg.id, out);
        out.push(Effect::Event(Event::BecameLeader { term: self.hard.term }));
        self.align_peers();
        if planted!(self, NoOwnTermNoop) {
            if let Role::Leader(leader) = &mut self.role {
                leader.noop_index = last;
                leader.is_ready = true;
            }
        } else {
            self.append_payloads([Payload::Noop], out);
        }
        self.feed_all(out);
        self.heartbeat_round(out);
        self.adopt_forwarded(out);
        if planted!(self, JointLeftBeforeReady) {
            self.maybe_leave_joint(out);
        }
    }

    /// Keeps one record per other member of the active configuration.
    pub(super) fn align_peers(&mut self) {
        let newest = self.history.newest().config.clone();
        let (own, next) = (self.cfg.id, self.log.last_index() + 1);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.peers.retain(|id, _| newest.contains(*id));
        for id in newest.members.keys().filter(|id| **id != own) {
            leader.peers.entry(*id).or_insert_with(|| Progress::new(next));
        }
        self.sealed.retain(|id, _| newest.contains(*id));
    }

    /// Stops leading; every caller who waits is answered. A new leader may still commit what was appended.
    pub(super) fn step_down(&mut self, why: StepDown, out: &mut Vec<Effect>) {
        let Role::Leader(mut leader) = std::mem::replace(&mut self.role, Role::Follower) else { return };
        self.leader = None;
        self.last_contact = self.now;
        self.schedule_election();
        for (_, token) in std::mem::take(&mut leader.pending) {
            out.push(Effect::Resolve { token, outcome: Outcome::Unknown });
        }
        Self::fail_change(leader.change.take(), out);
        self.fail_reads(&mut leader, out);
        if let Some(transfer) = leader.transfer.take() {
            self.end_transfer(transfer, out);
        }
        out.push(Effect::Event(Event::SteppedDown { term: self.hard.term, why }));
    }

    // ---- proposals -------------------------------------------------------------------------------------------------

    /// Appends a batch: one write, one append per member.
    pub(super) fn propose(&mut self, batch: Vec<(Token, Bytes)>, out: &mut Vec<Effect>) {
        let mut accepted = Vec::with_capacity(batch.len());
        for (token, data) in batch {
            match self.admit(token, &data) {
                Ok(Admission::Append) => accepted.push((token, data)),
                Ok(Admission::Held) => self.hold(token, data),
                Err(refusal) => out.push(Effect::Resolve { token, outcome: Outcome::Refused(refusal) }),
            }
        }
        if accepted.is_empty() {
            return;
        }
        let mut index = self.log.last_index();
        if let Role::Leader(leader) = &mut self.role {
            for (token, _) in &accepted {
                index += 1;
                leader.pending.push_back((index, *token));
            }
        }
        self.append_admitted(accepted.into_iter().map(|(_, data)| Payload::Data(data)), out);
        self.feed_all(out);
    }

    /// Decides before an index is given, so that "refused" is certain. Counts an admitted command at once.
    fn admit(&mut self, _token: Token, data: &Bytes) -> Result<Admission, Refusal> {
        let (is_stalled, unapplied_bytes) =
            (self.is_stalled && !planted!(self, StalledLeaderStays), self.unapplied_bytes);
        let Role::Leader(leader) = &mut self.role else {
            return Err(Refusal::NotLeader { leader: self.leader });
        };
        if is_stalled {
            return Err(Refusal::DiskStalled);
        }
        if data.len() > self.cfg.entry_bytes_max {
            return Err(Refusal::TooLarge { bytes: data.len(), limit_bytes: self.cfg.entry_bytes_max });
        }
        if let Some(transfer) = &leader.transfer {
            let fits = transfer.held_bytes + Entry::data_size_bytes(data) <= self.cfg.held_bytes_max;
            return if fits { Ok(Admission::Held) } else { Err(Refusal::Transferring { to: transfer.to }) };
        }
        let bytes = Entry::data_size_bytes(data);
        let budgets = [
            (leader.uncommitted_bytes, self.cfg.uncommitted_bytes_max),
            (unapplied_bytes, self.cfg.unapplied_bytes_max),
        ];
        for (used, limit_bytes) in budgets {
            // An empty budget takes one command of any admissible size.
            if used > 0 && used + bytes > limit_bytes {
                return Err(Refusal::Overloaded { uncommitted_bytes: used, limit_bytes });
            }
        }
        leader.uncommitted_bytes += bytes;
        Ok(Admission::Append)
    }

    fn hold(&mut self, token: Token, data: Bytes) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(transfer) = &mut leader.transfer
        {
            transfer.held_bytes += Entry::data_size_bytes(&data);
            transfer.held.push((token, data));
        }
    }

    /// Appends payloads of the core's own making, which no budget refuses.
    pub(super) fn append_payloads(&mut self, payloads: impl IntoIterator<Item = Payload>, out: &mut Vec<Effect>) {
        let before = self.log.bytes();
        self.append_admitted(payloads, out);
        let added = self.log.bytes() - before;
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += added;
        }
    }

    fn append_admitted(&mut self, payloads: impl IntoIterator<Item = Payload>, out: &mut Vec<Effect>) {
        assert!(self.is_leader(), "only a leader gives indexes");
        let (term, first) = (self.hard.term, self.log.last_index() + 1);
        let entries = (first..).zip(payloads).map(|(index, payload)| Entry { term, index, payload }).collect();
        self.append(entries, out);
        if planted!(self, LeaderCountsUnsynced) {
            self.maybe_commit(out);
        }
    }

    // ---- commit ----------------------------------------------------------------------------------------------------

    pub(super) fn maybe_commit(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &self.role else { return };
        let own = if planted!(self, LeaderCountsUnsynced) { self.log.last_index() } else { self.durable.index() };
        let matched = |id: MemberId| {
            if id == self.cfg.id { own } else { leader.peers.get(&id).map_or(0, |peer| peer.matched) }
        };
        let index = self.counted(matched);
        if index <= self.commit {
            return;
        }
        let is_own_term = self.log.term_at(index) == Some(self.hard.term);
        if !is_own_term && !planted!(self, CommitOlderTermByCounting) {
            return;
        }
        let before = self.commit;
        let config_before = self.committed_config().config.clone();
        self.commit_to(index, out);
        self.tell_commit_to_all(out);
        let configs = self.history.between(before, index);
        if !configs.is_empty() {
            self.on_configs_committed(&config_before, &configs, out);
        }
    }

    /// The index a quorum holds durably.
    #[cfg(not(feature = "mutants"))]
    fn counted(&self, matched: impl Fn(MemberId) -> Index) -> Index {
        reached(self.config(), matched)
    }

    #[cfg(feature = "mutants")]
    fn counted(&self, matched: impl Fn(MemberId) -> Index) -> Index {
        let mut config = self.config().clone();
        if planted!(self, UnsortedQuorum) {
            return crate::quorum::reached_unsorted(&config, matched);
        }
        if planted!(self, JointCountsNewHalfOnly) {
            config.voters_outgoing.clear();
        }
        if planted!(self, LearnerCounts) || (planted!(self, LearnerCountsWhileJoint) && config.is_joint()) {
            let learners = std::mem::take(&mut config.learners);
            if config.is_joint() {
                config.voters_outgoing.extend(&learners);
            }
            config.voters.extend(learners);
        }
        reached(&config, matched)
    }

    /// Answers callers whose entries committed, and frees their budget.
    pub(super) fn resolve_committed(&mut self, bytes: usize, out: &mut Vec<Effect>) {
        let (commit, log) = (self.commit, &self.log);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.uncommitted_bytes = leader.uncommitted_bytes.saturating_sub(bytes);
        while let Some((index, token)) = leader.pending.pop_front_if(|(index, _)| *index <= commit) {
            let term = log.term_at(index).expect("an entry that just committed is in memory");
            out.push(Effect::Resolve { token, outcome: Outcome::Committed { term, index } });
        }
    }

    /// The leader serves once the first entry of its own term is committed and applied.
    pub(super) fn maybe_ready(&mut self, out: &mut Vec<Effect>) {
        let (applied, term) = (self.applied, self.hard.term);
        let since_last_leader_contact_us = self.now.since(self.last_contact);
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.is_ready || applied < leader.noop_index {
            return;
        }
        leader.is_ready = true;
        let noop_index = leader.noop_index;
        let has_reads = !leader.reads_waiting.is_empty();
        out.push(Effect::Event(Event::LeaderReady { term, noop_index, since_last_leader_contact_us }));
        if has_reads {
            self.heartbeat_round(out);
        }
        self.maybe_leave_joint(out);
    }

    // ---- heartbeats ------------------------------------------------------------------------------------------------

    pub(super) fn tick_leader(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &self.role else { return };
        let heard = self.quorum_heard(leader);
        if self.now.since(heard) > self.cfg.quorum_us() && !planted!(self, NoCheckQuorum) {
            return self.step_down(StepDown::QuorumLost, out);
        }
        self.expire_transfer(out);
        let (now, quorum_due) = (self.now, heard.after(self.cfg.quorum_us() + 1));
        let Role::Leader(leader) = &mut self.role else { return };
        leader.quorum_due = quorum_due.max(now.after(1));
        if now >= leader.heartbeat_due {
            self.heartbeat_round(out);
        }
    }

    /// The instant up to which a majority has been heard.
    fn quorum_heard(&self, leader: &Leader) -> Time {
        reached(self.config(), |id| {
            if id == self.cfg.id {
                return self.now;
            }
            let heard = leader.peers.get(&id).and_then(|peer| peer.last_ack).unwrap_or_default();
            heard.max(leader.since)
        })
    }

    /// Sends one round to everybody. Never waits for a disk; carries the reads that wait.
    pub(crate) fn heartbeat_round(&mut self, out: &mut Vec<Effect>) {
        let (now, term, commit) = (self.now, self.hard.term, self.commit);
        let is_uncapped = planted!(self, HeartbeatCommitAboveMatch);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.round += 1;
        leader.heartbeat_due = now.after(self.cfg.heartbeat_us);
        leader.rounds_sent.push_back(now);
        if leader.rounds_sent.len() > ROUNDS_REMEMBERED_MAX {
            leader.rounds_sent.pop_front();
        }
        for (id, peer) in &mut leader.peers {
            let commit = if is_uncapped { commit } else { commit.min(peer.matched) };
            peer.commit_told = peer.commit_told.max(commit);
            peer.heartbeat_sent(leader.round, self.sealed.get(id).copied().unwrap_or(0));
            let msg = Msg::Heartbeat { term, commit, round: leader.round };
            out.push(Effect::Send { to: *id, msg, after: None });
        }
        self.attach_reads();
        self.confirm_alone(out);
    }

    /// A leader that is its own majority needs no answer.
    fn confirm_alone(&mut self, out: &mut Vec<Effect>) {
        if self.config().voters.iter().eq([&self.cfg.id]) && !self.config().is_joint() {
            self.confirm_reads(out);
        }
    }

    /// An idle member learns a new commit index at once, capped at what it is known to hold.
    pub(super) fn tell_commit_to_all(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &self.role else { return };
        let ids: Vec<MemberId> = leader.peers.keys().copied().collect();
        for id in ids {
            self.feed(id, out);
            self.tell_commit(id, out);
        }
    }

    fn tell_commit(&mut self, id: MemberId, out: &mut Vec<Effect>) {
        let (term, commit) = (self.hard.term, self.commit);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&id) else { return };
        let commit = commit.min(peer.matched);
        if commit > peer.commit_told {
            peer.commit_told = commit;
            self.send(id, Msg::Commit { term, commit }, out);
        }
    }

    // ---- feeding ---------------------------------------------------------------------------------------------------

    pub(super) fn feed_all(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &self.role else { return };
        let ids: Vec<MemberId> = leader.peers.keys().copied().collect();
        for id in ids {
            self.feed(id, out);
        }
    }

    /// Sends this member what it lacks, as far as its window allows.
    pub(super) fn feed(&mut self, to: MemberId, out: &mut Vec<Effect>) {
        let (term, commit, window) = (self.hard.term, self.commit, self.cfg.inflight_bytes_max);
        let (now, et_us) = (self.now, self.cfg.et_us());
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&to).filter(|peer| peer.reverted.is_none()) else { return };
        while peer.is_ready(window) {
            let prev_index = peer.next - 1;
            let Some(prev_term) = self.log.term_at(prev_index) else {
                // Behind the kept log. A silent member would only waste the stream. One that waits for its next snapshot
                // gets it at a heartbeat answer after that.
                let is_due = now >= peer.snapshot_due && peer.is_active(now, et_us);
                if is_due && !planted!(self, NoSnapshotBehindLog) {
                    peer.snapshot(self.log.base_index());
                    out.push(Effect::SendSnapshot { to, term });
                }
                return;
            };
            let last = if peer.has_room(window) { self.log.last_index() } else { prev_index };
            let entries = self.log.slice(peer.next, last, self.cfg.max_append_bytes);
            let is_probe = matches!(peer.feed, Feed::Probe { .. });
            if entries.is_empty() && !is_probe {
                return;
            }
            let last = prev_index + entries.len() as u64;
            let bytes = entries.iter().map(Entry::size_bytes).sum();
            peer.sent(last, bytes);
            peer.commit_told = peer.commit_told.max(commit.min(last));
            let msg = Msg::Append { term, prev_term, prev_index, entries, commit };
            out.push(Effect::Send { to, msg, after: None });
        }
    }

    /// An answer of a member to its leader: enters a higher term; `true` if it is for this leadership.
    fn is_for_me(&mut self, from: MemberId, term: Term, out: &mut Vec<Effect>) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        if !leader.peers.contains_key(&from) || term < self.hard.term {
            return false;
        }
        if term > self.hard.term {
            self.enter_term(term, None, out);
            return false;
        }
        true
    }

    fn peer_mut(&mut self, id: MemberId) -> Option<&mut Progress> {
        match &mut self.role {
            Role::Leader(leader) => leader.peers.get_mut(&id),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    /// The answer of a member that holds the log up to `matched` durably. Counts in the term it was given in only: later
    /// ones may have truncated it.
    pub(super) fn on_append_reply(&mut self, from: MemberId, term: Term, matched: Index, out: &mut Vec<Effect>) {
        let is_late = planted!(self, AckOfOlderTermCounts) && self.is_leader() && term < self.hard.term;
        if (is_late || self.is_for_me(from, term, out)) && matched <= self.log.last_index() {
            self.note_matched(from, matched, out);
            self.feed(from, out);
            self.tell_commit(from, out);
        }
    }

    fn note_matched(&mut self, from: MemberId, matched: Index, out: &mut Vec<Effect>) {
        let Some(peer) = self.peer_mut(from).filter(|peer| peer.reverted.is_none()) else { return };
        if peer.note_matched(matched) {
            out.push(Effect::Acked { peer: from, durable: matched });
            if planted!(self, PolicyCountsAsCommit) && matched > self.commit {
                self.commit_to(matched, out);
            }
            self.maybe_commit(out);
            self.maybe_hand_over(from, out);
        }
        self.seal(from);
    }

    /// What is durable there and committed stays there in every later term; an uncommitted tail may be truncated.
    fn seal(&mut self, id: MemberId) {
        let cap = if planted!(self, TruncationTakenForReversion) { Index::MAX } else { self.commit };
        let Some(matched) = self.peer_mut(id).map(|peer| peer.matched) else { return };
        let sealed = self.sealed.entry(id).or_default();
        *sealed = (*sealed).max(matched.min(cap));
    }

    pub(super) fn on_append_reject(
        &mut self,
        from: MemberId,
        term: Term,
        prev_index: Index,
        hint: (Index, Term),
        out: &mut Vec<Effect>,
    ) {
        if !self.is_for_me(from, term, out) {
            return;
        }
        let common = self.log.find_conflict(hint.0, hint.1);
        let base = self.log.base_index();
        let Some(peer) = self.peer_mut(from) else { return };
        let is_stale = match peer.feed {
            // What it holds durably it cannot lack; if it does, its next heartbeat answer tells.
            Feed::Probe { .. } => prev_index != peer.next - 1 || (prev_index > 0 && prev_index == peer.matched),
            Feed::Pipeline => prev_index <= peer.matched,
            Feed::Snapshot { .. } => true,
        };
        if is_stale {
            return;
        }
        // Without a common entry in memory the next one to send lies before the cut, and `feed` asks for a snapshot.
        let next = common.map_or(base, |common| common + 1);
        peer.rejected(next.max(peer.matched + 1));
        self.feed(from, out);
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: MemberId, term: Term, said: Said, out: &mut Vec<Effect>) {
        if !self.is_for_me(from, term, out) {
            return;
        }
        let Said { round, received, durable, promise_us, last_index } = said;
        let is_trusting = planted!(self, LogReversionAccepted);
        let is_forgetful = planted!(self, ProbeFromTheStart);
        let (now, last) = (self.now, self.log.last_index());
        #[cfg(feature = "mutants")]
        let (is_leaky, forgets_window) = (planted!(self, WindowLeakedOnDrop), planted!(self, ProbeForgetsWindow));
        let Role::Leader(leader) = &mut self.role else { return };
        let sent_at = leader.sent_at(round);
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        if round > leader.round || received.max(durable) > last {
            return;
        }
        if let Some(held) = peer.reverted {
            return self.tell_reverted(from, held, out);
        }
        if let Some(held) = peer.lost(round, last_index) {
            // It forgot what it promised: nothing it says counts any more.
            if is_trusting {
                *peer = Progress::new(last_index + 1);
            } else {
                peer.revert(held);
                out.push(Effect::Event(Event::LogReverted { peer: from, held, last_index }));
                self.tell_reverted(from, held, out);
            }
            return;
        }
        if round > peer.acked_round {
            peer.acked_round = round;
            if let Some(sent_at) = sent_at {
                peer.acked_sent = Some(sent_at);
                peer.promise_us = promise_us;
            }
            peer.last_ack = Some(now);
        }
        if peer.is_lost(round, received) {
            let next = if is_forgetful { received.max(peer.matched) + 1 } else { peer.resume_at(received) };
            #[cfg(feature = "mutants")]
            match (is_leaky, forgets_window) {
                (true, _) => peer.probe_keeping_window(next),
                (false, true) => peer.probe_forgetting_window(next),
                (false, false) => peer.probe(next),
            }
            #[cfg(not(feature = "mutants"))]
            peer.probe(next);
        } else {
            peer.note_received(received);
        }
        self.note_matched(from, durable, out);
        self.feed(from, out);
        self.tell_commit(from, out);
        self.confirm_reads(out);
    }

    /// A member that forgot what it promised may not vote either. Told with every answer, for the word may be lost.
    fn tell_reverted(&self, to: MemberId, held: Index, out: &mut Vec<Effect>) {
        self.send(to, Msg::YourLogReverted { term: self.hard.term, held }, out);
    }

    /// Whatever was under way to this member may be lost.
    pub(super) fn restart_feed(&mut self, id: MemberId, out: &mut Vec<Effect>) {
        if let Some(peer) = self.peer_mut(id)
            && !matches!(peer.feed, Feed::Snapshot { .. })
        {
            peer.probe(peer.resume_at(0));
            self.feed(id, out);
        }
    }

    // ---- snapshots -------------------------------------------------------------------------------------------------

    /// Entries above this stay in the log while a snapshot travels.
    pub(super) fn snapshot_floor(&self) -> Option<Index> {
        let Role::Leader(leader) = &self.role else { return None };
        let floors = leader.peers.values().filter_map(|peer| match peer.feed {
            Feed::Snapshot { floor } => Some(floor),
            Feed::Probe { .. } | Feed::Pipeline => None,
        });
        floors.min()
    }

    pub(super) fn on_snapshot_sent(&mut self, to: MemberId, index: Index, ok: bool, out: &mut Vec<Effect>) {
        let (now, heartbeat_us) = (self.now, self.cfg.heartbeat_us);
        let is_hasty = planted!(self, SnapshotWithoutPause);
        let Some(peer) = self.peer_mut(to).filter(|peer| matches!(peer.feed, Feed::Snapshot { .. })) else { return };
        let next = if ok { index.max(peer.matched) + 1 } else { peer.next };
        peer.probe(next);
        if is_hasty && !ok {
            return peer.sent(next - 1, 0);
        }
        if !is_hasty {
            peer.snapshot_ended(now, heartbeat_us);
        }
        self.feed(to, out);
    }

    /// A member ignored or installed a snapshot: its log is at or above `index`, durable or not.
    pub(super) fn on_snapshot_reply(&mut self, from: MemberId, term: Term, index: Index, out: &mut Vec<Effect>) {
        if !self.is_for_me(from, term, out) || index > self.log.last_index() {
            return;
        }
        let (now, heartbeat_us) = (self.now, self.cfg.heartbeat_us);
        let Some(peer) = self.peer_mut(from) else { return };
        if matches!(peer.feed, Feed::Snapshot { .. }) {
            peer.snapshot_ended(now, heartbeat_us);
        }
        peer.came_to(index);
        if !matches!(peer.feed, Feed::Pipeline) {
            peer.probe(index.max(peer.matched) + 1);
            self.feed(from, out);
        }
    }
}

/// A heartbeat answer. `received` and `durable` only as far as an append of this term has matched.
pub(super) struct Said {
    pub(super) round: u64,
    pub(super) received: Index,
    pub(super) durable: Index,
    pub(super) promise_us: u64,
    pub(super) last_index: Index,
}

/// What becomes of a proposal.
enum Admission {
    Append,
    Held,
}
