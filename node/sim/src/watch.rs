//! Rules each member keeps by itself, checked on what it emits. They catch at once what would need luck to do harm.
//!
//! Everything here is known from outside: what was delivered, when, and what the disk surely holds. Instants are the
//! member's own clock. Source: the rules of `quorate_raft`'s modules, Ongaro's thesis §3.6, §4.2, §6.2.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::io::Input;
use quorate_raft::types::{Config, Index, MemberId, Term, Time};
use quorate_raft::wire::Msg;
use quorate_raft::{Cfg, Node};

use crate::oracle::{Durable, Violation, hold};

/// What an observer beside one process remembers.
#[derive(Debug)]
pub struct Watch {
    id: MemberId,
    started: Time,
    election_us: u64,
    start_refusal_us: u64,
    /// A broken connection lifts the refusal to vote.
    honours_hints: bool,
    /// Last word of a leader whose term was not over.
    contact: Option<Time>,
    /// Highest index an append or snapshot matched, and in which term.
    matched: (Term, Index),
    /// As a leader: last answer of each member in this term.
    heard: (Term, BTreeMap<MemberId, Time>),
    leading_since: Option<(Term, Time)>,
    stalled_since: Option<Time>,
    /// What the current input is, as far as the rules ask.
    forced_vote: bool,
    is_change: bool,
    is_tick: bool,
    /// (last term, last index) of whoever asks for a vote.
    asked_with: (Term, Index),
    commit_before: Index,
    voters_before: [BTreeSet<MemberId>; 2],
    /// Whoever sent an append or heartbeat of a lower term and must hear the own one.
    to_answer: Option<MemberId>,
    /// It led before the current input, and what its term was then.
    has_led: bool,
    term_before: Term,
}

impl Watch {
    pub fn new(id: MemberId, cfg: &Cfg, now: Time) -> Watch {
        Watch {
            id,
            started: now,
            election_us: cfg.election_us.0,
            start_refusal_us: cfg.start_refusal_us,
            honours_hints: cfg.hint_on_disconnect && cfg.leases.is_none(),
            contact: None,
            matched: (0, 0),
            heard: (0, BTreeMap::new()),
            leading_since: None,
            stalled_since: None,
            forced_vote: false,
            is_change: false,
            is_tick: false,
            asked_with: (0, 0),
            commit_before: 0,
            voters_before: Default::default(),
            to_answer: None,
            has_led: false,
            term_before: 0,
        }
    }

    /// Before the step: what this input tells.
    pub fn before(&mut self, now: Time, input: &Input, node: &Node) {
        self.forced_vote = false;
        self.is_change = matches!(input, Input::Change { .. });
        if self.is_change {
            let config = node.status().newest_config.config;
            self.voters_before = [config.voters.clone(), config.voters_outgoing.clone()];
        }
        self.is_tick = matches!(input, Input::Tick);
        self.commit_before = match input {
            // The engine speaks for itself.
            Input::Persisted { .. } | Input::Installed { .. } => Index::MAX,
            _ => node.commit(),
        };
        self.to_answer = match input {
            Input::Msg { from, msg: Msg::Append { term, .. } | Msg::Heartbeat { term, .. } } => {
                (*term < node.term() && !node.status().has_failed).then_some(*from)
            }
            _ => None,
        };
        self.has_led = node.is_leader();
        self.term_before = node.term();
        match input {
            Input::Msg { from, msg } => self.heard_message(now, *from, msg, node),
            Input::PeerGone { peer } if self.honours_hints && node.leader() == Some(*peer) => self.contact = None,
            Input::DiskStalled => self.stalled_since = self.stalled_since.or(Some(now)),
            Input::Written { .. } => self.stalled_since = None,
            _ => {}
        }
    }

    fn heard_message(&mut self, now: Time, from: MemberId, msg: &Msg, node: &Node) {
        match msg {
            Msg::Append { term, .. } | Msg::Heartbeat { term, .. } | Msg::Commit { term, .. }
                if *term >= node.term() =>
            {
                self.contact = Some(now);
            }
            Msg::Vote { forced, last_term, last_index, .. } => {
                self.forced_vote = *forced;
                self.asked_with = (*last_term, *last_index);
            }
            Msg::PreVote { last_term, last_index, .. } => self.asked_with = (*last_term, *last_index),
            Msg::AppendReply { term, .. }
            | Msg::AppendReject { term, .. }
            | Msg::HeartbeatReply { term, .. }
            | Msg::VoteReply { term, .. }
            | Msg::SnapshotReply { term, .. }
            | Msg::ReadIndex { term, .. }
                if *term == node.term() =>
            {
                if self.heard.0 != *term {
                    self.heard = (*term, BTreeMap::new());
                }
                self.heard.1.insert(from, now);
            }
            _ => {}
        }
    }

    /// A message that was just emitted, whether or not it may leave at once.
    pub fn emitted(&mut self, now: Time, to: MemberId, msg: &Msg, node: &Node) -> Result<(), Violation> {
        let id = self.id;
        if let Msg::AppendReject { term, .. } | Msg::HeartbeatReply { term, .. } = msg
            && *term == node.term()
        {
            self.to_answer.take_if(|asked| *asked == to);
        }
        match msg {
            Msg::VoteReply { granted: true, .. } | Msg::PreVoteReply { granted: true, .. } => {
                let status = node.status();
                let own = (status.last_term, status.last_index);
                hold!(
                    self.asked_with >= own,
                    "I5 {id} votes for {to}, whose log ends at {:?}, its own at {own:?}",
                    self.asked_with
                );
                if !self.forced_vote || matches!(msg, Msg::PreVoteReply { .. }) {
                    self.check_may_vote(now, to)?;
                }
            }
            Msg::PreVoteReply { granted: false, term } => {
                hold!(*term == node.term(), "I5 {id} refuses a pre-vote with term {term} and is in {}", node.term());
            }
            Msg::AppendReply { term, matched } | Msg::SnapshotReply { term, index: matched } => {
                let before = if self.matched.0 == *term { self.matched.1 } else { 0 };
                self.matched = (*term, before.max(*matched));
            }
            Msg::HeartbeatReply { term, durable, received, .. } => {
                let matched = if self.matched.0 == *term { self.matched.1 } else { 0 };
                hold!(
                    *durable <= matched && *received <= matched,
                    "I5 {id} reports received {received} and durable {durable} in term {term}, an append matched {matched}"
                );
            }
            Msg::Append { .. } | Msg::Heartbeat { .. } => {
                hold!(node.is_leader() || self.has_led, "I5 {id} sends {msg:?} and does not lead");
            }
            _ => {}
        }
        Ok(())
    }

    /// A voter that hears a leader, or that started just now, refuses.
    fn check_may_vote(&self, now: Time, to: MemberId) -> Result<(), Violation> {
        let (id, since_start) = (self.id, now.since(self.started));
        hold!(since_start >= self.start_refusal_us, "I5 {id} votes for {to} only {since_start} µs after its start");
        if let Some(contact) = self.contact {
            let since = now.since(contact);
            hold!(since >= self.election_us, "I5 {id} votes for {to} only {since} µs after leader contact");
        }
        Ok(())
    }

    /// It gives nobody its vote now.
    pub fn refuses_votes(&self, now: Time) -> bool {
        now.since(self.started) < self.start_refusal_us
            || self.contact.is_some_and(|contact| now.since(contact) < self.election_us)
    }

    /// It leads, or led before the current input made it step down.
    pub fn leads(&self, node: &Node) -> bool {
        self.has_led || node.is_leader()
    }

    /// Only own-term entries commit by counting.
    pub fn committed(&self, upto: (Index, Term), node: &Node) -> Result<(), Violation> {
        let (id, term) = (self.id, node.term());
        // One that learned of a later term and follows its leader now does not count.
        if node.is_leader() || (self.has_led && term == self.term_before) {
            hold!(upto.1 == term, "I6 {id} commits {upto:?} by counting in term {term}");
        }
        Ok(())
    }

    /// After the step.
    pub fn after(&mut self, now: Time, node: &Node) -> Result<(), Violation> {
        let id = self.id;
        if let Some(stale) = self.to_answer {
            let term = node.term();
            return Err(Violation(format!("I5 {id} lets {stale} lead a term that is over, its own is {term}")));
        }
        if !node.is_leader() {
            self.leading_since = None;
            let matched = if self.matched.0 == node.term() { self.matched.1 } else { 0 };
            let has_moved = !self.has_led && node.commit() > self.commit_before;
            hold!(
                !has_moved || node.commit() <= matched,
                "I5 {id} commits {} in term {}, an append matched {matched}",
                node.commit(),
                node.term()
            );
            return Ok(());
        }
        let since = match self.leading_since {
            Some((term, since)) if term == node.term() => since,
            _ => now,
        };
        self.leading_since = Some((node.term(), since));
        if !self.is_tick {
            // After a pause other inputs may come first; they do no harm before the tick that ends the leadership.
            return Ok(());
        }
        let config = node.status().newest_config.config.clone();
        let quiet_us = self.quorum_silence(now, since, &config, node.term());
        let limit_us = 2 * self.election_us;
        hold!(quiet_us <= limit_us, "I5 {id} leads though no majority was heard for {quiet_us} µs");
        if let Some(stalled) = self.stalled_since {
            let stalled_us = now.since(stalled.max(since));
            hold!(
                stalled_us <= limit_us,
                "I18 {id} leads with a disk that has hung for {stalled_us} µs more than the limit"
            );
        }
        Ok(())
    }

    /// How long ago a majority of each half was last heard.
    fn quorum_silence(&self, now: Time, since: Time, config: &Config, term: Term) -> u64 {
        let half = |voters: &BTreeSet<MemberId>| {
            let mut silences: Vec<u64> = voters.iter().map(|voter| self.silence(now, since, *voter, term)).collect();
            silences.sort_unstable();
            silences.get(voters.len() / 2).copied().unwrap_or(0)
        };
        half(&config.voters).max(half(&config.voters_outgoing))
    }

    fn silence(&self, now: Time, since: Time, voter: MemberId, term: Term) -> u64 {
        if voter == self.id {
            return 0;
        }
        let heard = self.heard.1.get(&voter).filter(|_| self.heard.0 == term).copied().unwrap_or_default();
        now.since(heard.max(since))
    }

    /// A configuration goes with the entry that held it.
    pub fn truncated(&self, node: &Node) -> Result<(), Violation> {
        let (id, status) = (self.id, node.status());
        let at = status.newest_config.at;
        hold!(
            at.index <= status.compacted || node.term_at(at.index) == Some(at.term),
            "I6 {id} goes by the configuration of entry {} of term {}, which it has truncated",
            at.index,
            at.term
        );
        Ok(())
    }

    /// A leader appended a configuration.
    pub fn config_appended(&self, now: Time, config: &Config, node: &Node) -> Result<(), Violation> {
        let id = self.id;
        let uncommitted = node
            .entries()
            .rev()
            .take_while(|entry| entry.index > node.commit())
            .filter(|entry| matches!(entry.payload, quorate_raft::types::Payload::Config(_)))
            .count();
        hold!(uncommitted <= 1, "I6 {id} has {uncommitted} configurations that are not committed");
        let is_same = self.voters_before[0] == config.voters && self.voters_before[1] == config.voters_outgoing;
        if !self.is_change || is_same {
            return Ok(());
        }
        let term = node.term();
        let live = |voter: &&MemberId| {
            // A new leader has heard nobody yet; before its no-op committed it takes no change anyway.
            self.silence(now, Time(0), **voter, term) <= 2 * self.election_us
        };
        for voters in [&config.voters, &config.voters_outgoing] {
            let alive = voters.iter().filter(live).count();
            hold!(
                voters.is_empty() || alive > voters.len() / 2,
                "I6 {id} takes a change to {voters:?} of whom it hears only {alive}"
            );
        }
        Ok(())
    }
}

/// A message that leaves now: what it promises must be on disk.
pub fn leaves(id: MemberId, to: MemberId, msg: &Msg, node: &Node, durable: &Durable) -> Result<(), Violation> {
    match msg {
        Msg::VoteReply { term, granted: true } => {
            let kept = durable.hard.term > *term || (durable.hard.term == *term && durable.hard.vote == Some(to));
            hold!(kept, "I5 {id} votes for {to} in term {term}, its disk holds {:?}", durable.hard);
        }
        Msg::Vote { term, .. } => {
            hold!(
                durable.hard.term >= *term,
                "I5 {id} asks for votes in term {term}, its disk holds {:?}",
                durable.hard
            );
        }
        Msg::AppendReply { term, matched: index } | Msg::HeartbeatReply { term, durable: index, .. }
            if *term == node.term() && !node.is_leader() =>
        {
            let last = durable.last_index();
            hold!(*index <= last, "I1 {id} acknowledges {index} in term {term}, its disk ends at {last}");
            if *index > 0 && matches!(msg, Msg::AppendReply { .. }) {
                let hard = durable.hard.term;
                hold!(hard >= *term, "I5 {id} acknowledges in term {term}, its disk holds term {hard}");
            }
            // The promise is about the leader's entry, so the disk must hold the very one memory holds.
            if let (Some(disk), Some(memory)) = (durable.term_at(*index), node.term_at(*index)) {
                hold!(
                    disk == memory,
                    "I1 {id} acknowledges {index} of term {memory}, its disk holds term {disk} there"
                );
            }
        }
        _ => {}
    }
    Ok(())
}
