//! Following: appends, heartbeats, commit and snapshots from the leader of the term.
//!
//! An answer to an append leaves behind the write it promises; an answer to a heartbeat never waits, and therefore
//! speaks only of what an append of this term has matched.

use crate::io::{Effect, Event};
use crate::log::Log;
use crate::membership::History;
use crate::types::{Entry, Index, MemberId, Record, SnapMeta, Term};
use crate::wire::Msg;

use super::{INDEX_MAX, Node, Role};

impl Node {
    /// A word from `from`, who leads `term`. `false` if that term is over; the caller answers with the own one.
    fn hear_leader(&mut self, from: MemberId, term: Term, out: &mut Vec<Effect>) -> bool {
        if term < self.hard.term {
            return false;
        }
        if term > self.hard.term {
            self.enter_term(term, None, out);
        }
        assert!(!self.is_leader(), "two leaders in one term");
        assert!(self.leader.is_none_or(|leader| leader == from), "two leaders in one term");
        let is_new = self.leader.is_none() || !matches!(self.role, Role::Follower);
        self.role = Role::Follower;
        self.leader = Some(from);
        self.contact = Some(self.now);
        self.last_contact = self.now;
        self.schedule_election();
        if is_new {
            out.push(Effect::Event(Event::BecameFollower { term, leader: Some(from) }));
            self.settle_handing(from, out);
            self.requeue_forwarded();
            self.ask_leader(out);
        }
        true
    }

    // ---- appends -------------------------------------------------------------------------------------------------

    /// `prev`: (index, term) of the entry before the first one.
    pub(super) fn on_append(
        &mut self,
        from: MemberId,
        term: Term,
        prev: (Index, Term),
        mut entries: Vec<Entry>,
        commit: Index,
        out: &mut Vec<Effect>,
    ) {
        if !self.hear_leader(from, term, out) {
            if !planted!(self, LowerTermIgnored) {
                self.reject(from, prev.0, (0, 0), out);
            }
            return;
        }
        if self.installing.is_some() || !is_well_formed(term, prev, &entries) {
            return;
        }
        let last_sent = prev.0 + entries.len() as u64;
        let (prev_index, prev_term) = self.skip_committed(prev, &mut entries);
        if prev_index <= last_sent && !self.log.holds(prev_index, prev_term) {
            let hint = self.log.find_conflict(prev_index, prev_term).unwrap_or(self.log.base_index());
            let hint_term = self.log.term_at(hint).expect("a hint is in the log");
            return self.reject(from, prev_index, (hint, hint_term), out);
        }
        let left_out = self.merge(entries, out);
        let matched = last_sent.max(prev_index) - left_out;
        self.matched_in_term = self.matched_in_term.max(matched);
        self.follow_commit(commit.min(matched), out);
        let after = if planted!(self, AckBeforeFsync) { None } else { self.durable.promise(matched) };
        out.push(Effect::Send { to: from, msg: Msg::AppendReply { term, matched }, after });
    }

    fn reject(&self, to: MemberId, prev_index: Index, hint: (Index, Term), out: &mut Vec<Effect>) {
        let (hint_index, hint_term) = hint;
        self.send(to, Msg::AppendReject { term: self.hard.term, prev_index, hint_index, hint_term }, out);
    }

    /// Committed entries equal those of every later leader: starts behind them, whatever of them is still in memory.
    fn skip_committed(&self, prev: (Index, Term), entries: &mut Vec<Entry>) -> (Index, Term) {
        if prev.0 >= self.commit || planted!(self, TruncationBelowCommit) {
            return prev;
        }
        let known = usize::try_from(self.commit - prev.0).unwrap_or(usize::MAX).min(entries.len());
        for entry in entries.drain(..known) {
            let held = self.log.term_at(entry.index);
            assert!(held.is_none_or(|term| term == entry.term), "a leader holds every committed entry");
        }
        let term = self.log.term_at(self.commit).expect("the commit index is at or above the cut");
        (self.commit, term)
    }

    /// Takes over what differs: drops a conflicting tail, appends what is new. Returns how many entries were left out
    /// because too much waits for the disk: to the leader they are lost, and it repeats them behind a heartbeat.
    fn merge(&mut self, mut entries: Vec<Entry>, out: &mut Vec<Effect>) -> u64 {
        let is_held =
            |entry: &&Entry| self.log.holds(entry.index, entry.term) && !planted!(self, TruncationBelowCommit);
        let held = entries.iter().take_while(is_held).count();
        entries.drain(..held);
        let fitting = self.fitting(&entries);
        let left_out = entries.len() - fitting;
        entries.truncate(fitting);
        if let Some(first) = entries.first() {
            if first.index <= self.log.last_index() {
                self.truncate_to(first.index - 1, out);
            }
            self.append(entries, out);
        }
        left_out as u64
    }

    /// How many of these may wait for the disk with what waits already. With nothing waiting one always may.
    fn fitting(&self, entries: &[Entry]) -> usize {
        if planted!(self, UnflushedUnbounded) {
            return entries.len();
        }
        let limit = self.cfg.unflushed_bytes_max();
        let mut bytes = self.durable.pending_bytes();
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            is_first || bytes <= limit
        };
        entries.iter().take_while(fits).count()
    }

    fn truncate_to(&mut self, index: Index, out: &mut Vec<Effect>) {
        assert!(index >= self.commit || planted!(self, TruncationBelowCommit), "nothing committed is ever truncated");
        self.log.truncate_to(index);
        #[cfg(feature = "mutants")]
        let seq = if planted!(self, AckFromBeforeTruncation) {
            self.durable.truncate_forgetting_nothing()
        } else if planted!(self, CompletionAba) {
            self.durable.truncate_keeping_completions(index)
        } else {
            self.durable.truncate(index)
        };
        #[cfg(not(feature = "mutants"))]
        let seq = self.durable.truncate(index);
        self.matched_in_term = self.matched_in_term.min(index);
        out.push(Effect::Write { seq, record: Record::TruncateTo(index) });
        if !planted!(self, ConfigNotRolledBack) && self.history.truncate_to(index) {
            let newest = self.history.newest();
            let (at, config) = (newest.at, (*newest.config).clone());
            out.push(Effect::Event(Event::ConfigActive { at, config }));
        }
    }

    fn follow_commit(&mut self, index: Index, out: &mut Vec<Effect>) {
        if index > self.commit {
            self.commit_to(index, out);
        }
    }

    // ---- heartbeats ----------------------------------------------------------------------------------------------

    pub(super) fn on_heartbeat(
        &mut self,
        from: MemberId,
        term: Term,
        commit: Index,
        round: u64,
        out: &mut Vec<Effect>,
    ) {
        if !self.hear_leader(from, term, out) {
            if !planted!(self, LowerTermIgnored) {
                self.answer_heartbeat(from, round, 0, 0, out);
            }
            return;
        }
        self.follow_matched_commit(commit, out);
        let received = self.matched_in_term;
        let is_term_safe = self.durable.is_hard_state_written();
        let mut durable = if is_term_safe { received.min(self.durable.index()) } else { 0 };
        if planted!(self, HeartbeatMatchesLog) {
            durable = self.durable.index();
        }
        self.answer_heartbeat(from, round, received, durable, out);
        self.ask_again(out);
    }

    fn answer_heartbeat(&self, to: MemberId, round: u64, received: Index, durable: Index, out: &mut Vec<Effect>) {
        let is_free = self.cfg.honours_hints() && !planted!(self, PromiseWhileHinting);
        let promise_us = if is_free { 0 } else { self.cfg.et_us() };
        let (term, last_index) = (self.hard.term, self.log.last_index());
        self.send(to, Msg::HeartbeatReply { term, round, received, durable, promise_us, last_index }, out);
    }

    pub(super) fn on_commit(&mut self, from: MemberId, term: Term, commit: Index, out: &mut Vec<Effect>) {
        if self.hear_leader(from, term, out) {
            self.follow_matched_commit(commit, out);
        }
    }

    /// A commit index that came without entries says nothing about what this log holds beyond its match.
    fn follow_matched_commit(&mut self, commit: Index, out: &mut Vec<Effect>) {
        let cap = if planted!(self, HeartbeatCommitAboveMatch) { self.log.last_index() } else { self.matched_in_term };
        self.follow_commit(commit.min(cap), out);
    }

    // ---- snapshots -----------------------------------------------------------------------------------------------

    /// A snapshot lies ready. At or below commit it is ignored; if the log holds its position only commit moves; else
    /// the engine swaps to it and the log begins anew behind it.
    pub(super) fn on_snapshot_ready(&mut self, from: MemberId, term: Term, meta: SnapMeta, out: &mut Vec<Effect>) {
        if !self.hear_leader(from, term, out) {
            return self.answer_snapshot(from, 0, out);
        }
        if self.installing.is_some() {
            return;
        }
        let is_old = meta.index <= self.commit && !planted!(self, SnapshotBelowCommit);
        if is_old {
            return self.answer_snapshot(from, self.commit, out);
        }
        let is_held = self.log.holds(meta.index, meta.term) && !planted!(self, SnapshotDropsTail);
        if is_held && !planted!(self, SnapshotBelowCommit) {
            self.matched_in_term = self.matched_in_term.max(meta.index);
            self.follow_commit(meta.index, out);
            return self.answer_snapshot(from, self.commit, out);
        }
        out.push(Effect::Install { meta: meta.clone() });
        self.installing = Some(meta);
    }

    fn answer_snapshot(&self, to: MemberId, index: Index, out: &mut Vec<Effect>) {
        self.send(to, Msg::SnapshotReply { term: self.hard.term, index }, out);
    }

    /// The engine holds the snapshot; now the log may forget what it held before. A crash in between finds an engine
    /// beyond the log, which counts as the mark.
    pub(super) fn on_installed(&mut self, index: Index, out: &mut Vec<Effect>) {
        let Some(meta) = self.installing.take_if(|meta| meta.index == index) else { return };
        if planted!(self, LogKeptUnderSnapshot) && self.log.last_index() >= meta.index {
            self.log.cut_to(meta.index);
        } else {
            self.log = Log::behind(meta.index, meta.term);
        }
        if !planted!(self, SnapshotKeepsConfig) {
            self.history = History::new(&meta);
        }
        let seq = self.durable.replace(meta.index);
        (self.commit, self.applied, self.persisted) = (meta.index, meta.index, meta.index);
        self.unapplied_bytes = 0;
        self.matched_in_term = self.leader.map_or(0, |_| meta.index);
        out.push(Effect::Write { seq, record: Record::SnapshotMark(meta.clone()) });
        let (at, config) = (meta.config_at, meta.config.clone());
        out.push(Effect::Event(Event::ConfigActive { at, config: config.clone() }));
        out.push(Effect::Event(Event::ConfigCommitted { at, config }));
        if meta.config.removed.contains(&self.cfg.id) {
            self.note_removed(meta.config_at, out);
        }
        if let Some(leader) = self.leader {
            let msg = Msg::SnapshotReply { term: self.hard.term, index: meta.index };
            out.push(Effect::Send { to: leader, msg, after: self.durable.promise(meta.index) });
        }
    }
}

/// Whether an append continues itself: a message that does not is dropped, not believed.
fn is_well_formed(term: Term, prev: (Index, Term), entries: &[Entry]) -> bool {
    let (mut index, mut last_term) = prev;
    index <= INDEX_MAX
        && last_term <= term
        && entries.iter().all(|entry| {
            index += 1;
            let is_next = entry.index == index && entry.term >= last_term && entry.term <= term;
            last_term = entry.term;
            is_next
        })
}
