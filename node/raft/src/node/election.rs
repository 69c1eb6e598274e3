//! Elections: pre-vote, vote, and when a voter refuses.
//!
//! A voter refuses while it hears a leader and right after its own start, because somebody may rely on that silence.
//! Its answer depends on the candidate's log, never on the voter's own view of the configuration: that view may be the
//! stale one. Source: Ongaro, thesis §4.2.3 (disruptive servers), §9.6 (pre-vote).

use std::collections::BTreeMap;

use crate::io::{Effect, Event};
use crate::quorum::{Tally, tally};
use crate::types::{HardState, Index, MemberId, Term, Time, WriteSeq};
use crate::wire::Msg;

use super::{Node, Role};

impl Node {
    pub(super) fn schedule_election(&mut self) {
        let (min, max) = self.cfg.election_us;
        // A vote for itself is a vote too: what it may have promised before its start binds it as well.
        let mut from = self.now.max(Time(self.refuse_until.0.saturating_sub(min)));
        if planted!(self, CampaignInsidePromise) {
            from = self.now;
        }
        self.election_due = from.after(self.rng.between(min, max));
    }

    /// A voter of the active configuration campaigns; so does one that an uncommitted entry removed, because nobody
    /// else may hold that entry (thesis §4.2.2). Nobody does while a term or vote is not on disk: what it would ask for
    /// waits behind that write anyway, and a disk that takes no write must not make a term of every election timeout.
    pub fn may_campaign(&self) -> bool {
        let is_voter = self.config().is_voter(self.cfg.id) || self.committed_config().config.is_voter(self.cfg.id);
        let is_able = !self.is_stalled && !self.is_removed && self.installing.is_none();
        is_voter && is_able && self.is_term_safe()
    }

    fn is_term_safe(&self) -> bool {
        self.durable.is_hard_state_written() || planted!(self, CampaignUnwritten)
    }

    /// Term and vote reached the disk. The requests or the answer that waited for them leave only now: they get the time
    /// they would have had.
    pub(super) fn wait_anew(&mut self) {
        let is_candidate = matches!(self.role, Role::Candidate { .. });
        if !self.is_leader() && (is_candidate || self.now >= self.election_due) {
            self.schedule_election();
        }
    }

    /// Asks whether it could win, before it disturbs anybody with a new term.
    pub(super) fn pre_campaign(&mut self, out: &mut Vec<Effect>) {
        self.schedule_election();
        self.leader = None;
        let votes = BTreeMap::from([(self.cfg.id, true)]);
        self.role = Role::PreCandidate { votes };
        out.push(Effect::Event(Event::BecamePreCandidate { term: self.hard.term }));
        let msg = Msg::PreVote {
            term: self.hard.term + 1,
            last_term: self.log.last_term(),
            last_index: self.log.last_index(),
        };
        self.ask_voters(&msg, None, out);
        self.count_pre_votes(out);
    }

    /// Starts a real election. `is_forced`: the old leader asked for it, so leader contact does not count.
    pub(crate) fn campaign(&mut self, is_forced: bool, out: &mut Vec<Effect>) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.schedule_election();
        self.leader = None;
        self.hard = HardState { term: self.hard.term + 1, vote: Some(self.cfg.id) };
        self.matched_in_term = 0;
        self.role = Role::Candidate { votes: BTreeMap::new() };
        let seq = self.persist_hard(out);
        out.push(Effect::Event(Event::BecameCandidate { term: self.hard.term }));
        let msg = Msg::Vote {
            term: self.hard.term,
            last_term: self.log.last_term(),
            last_index: self.log.last_index(),
            forced: is_forced,
        };
        // Behind the own vote: a candidate that forgot this term in a crash could otherwise win it twice.
        let after = if planted!(self, VoteRequestBeforeFsync) { None } else { Some(seq) };
        self.ask_voters(&msg, after, out);
    }

    fn ask_voters(&self, msg: &Msg, after: Option<WriteSeq>, out: &mut Vec<Effect>) {
        let config = self.config();
        for to in config.voters.union(&config.voters_outgoing).filter(|id| **id != self.cfg.id) {
            out.push(Effect::Send { to: *to, msg: msg.clone(), after });
        }
        if planted!(self, RemovedVoteCounts) {
            out.extend(config.removed.iter().map(|to| Effect::Send { to: *to, msg: msg.clone(), after }));
        }
    }

    fn tally(&self, votes: &BTreeMap<MemberId, bool>) -> Tally {
        #[cfg(feature = "mutants")]
        if planted!(self, RemovedVoteCounts) {
            let yes = votes.values().filter(|is_granted| **is_granted).count();
            let needed = crate::quorum::majority(self.config().voters.len());
            return if yes >= needed { Tally::Won } else { Tally::Pending };
        }
        tally(self.config(), votes)
    }

    /// A planted bug: the voter's own view of the configuration decides.
    fn disowns(&self, candidate: MemberId) -> bool {
        planted!(self, VoteByOwnConfig) && !self.config().is_voter(candidate)
    }

    // ---- voter -------------------------------------------------------------------------------------------------

    pub(super) fn on_pre_vote(&mut self, from: MemberId, term: Term, last: (Term, Index), out: &mut Vec<Effect>) {
        // A voter whose term is not on disk yet could not answer the vote itself any sooner.
        let is_able = !self.refuses_votes() && self.is_term_safe() && !self.disowns(from);
        let is_granted = term > self.hard.term && self.is_up_to_date(last) && is_able;
        let is_planted = planted!(self, PreVoteRejectionWithoutTerm);
        let term = if is_granted || is_planted { term } else { self.hard.term };
        self.send(from, Msg::PreVoteReply { term, granted: is_granted }, out);
    }

    pub(super) fn on_vote(
        &mut self,
        from: MemberId,
        term: Term,
        last: (Term, Index),
        is_forced: bool,
        out: &mut Vec<Effect>,
    ) {
        let is_refused = self.refuses_votes() && !is_forced;
        if term < self.hard.term || is_refused {
            // The term stays as it is: a candidate must not be able to depose a leader that is heard.
            return self.answer_vote(from, false, out);
        }
        let is_up_to_date = self.is_up_to_date(last) && !self.disowns(from);
        if term > self.hard.term {
            let vote = is_up_to_date.then_some(from);
            self.enter_term_voting(term, vote, out);
        } else if self.hard.vote.is_none() && is_up_to_date && self.leader.is_none() {
            self.hard.vote = Some(from);
            self.persist_vote(out);
        }
        let is_granted = self.hard.vote == Some(from) && is_up_to_date;
        if is_granted {
            self.schedule_election();
        }
        self.answer_vote(from, is_granted, out);
    }

    fn enter_term_voting(&mut self, term: Term, vote: Option<MemberId>, out: &mut Vec<Effect>) {
        if planted!(self, VoteNotPersisted) {
            self.enter_term(term, None, out);
            self.hard.vote = vote;
        } else {
            self.enter_term(term, vote, out);
        }
    }

    fn persist_vote(&mut self, out: &mut Vec<Effect>) {
        if !planted!(self, VoteNotPersisted) {
            self.persist_hard(out);
        }
    }

    /// Leaves only behind the term and vote it speaks of.
    fn answer_vote(&self, to: MemberId, granted: bool, out: &mut Vec<Effect>) {
        let after = if planted!(self, VoteReplyBeforeFsync) { None } else { self.durable.promise(0) };
        out.push(Effect::Send { to, msg: Msg::VoteReply { term: self.hard.term, granted }, after });
    }

    fn is_up_to_date(&self, last: (Term, Index)) -> bool {
        last >= (self.log.last_term(), self.log.last_index()) || planted!(self, VoteWithoutLogCheck)
    }

    fn refuses_votes(&self) -> bool {
        if self.is_leader() {
            return true;
        }
        let hears_leader = self.contact.is_some_and(|contact| self.now < contact.after(self.cfg.et_us()));
        let is_fresh = self.now < self.refuse_until;
        (hears_leader && !planted!(self, VoteDespiteContact)) || (is_fresh && !planted!(self, VoteAfterRestart))
    }

    /// Tells a candidate that a committed configuration removed it. Its campaign is not looked at further.
    pub(super) fn tell_if_removed(&self, from: MemberId, msg: &Msg, out: &mut Vec<Effect>) -> bool {
        let asks = matches!(msg, Msg::PreVote { .. } | Msg::Vote { .. } | Msg::ReadIndex { .. });
        let committed =
            if planted!(self, RemovedToldUncommitted) { self.history.newest() } else { self.committed_config() };
        if !asks || !committed.config.removed.contains(&from) {
            return false;
        }
        let (config_term, config_index) = (committed.at.term, committed.at.index);
        self.send(from, Msg::YouAreRemoved { term: self.hard.term, config_term, config_index }, out);
        true
    }

    // ---- candidate ---------------------------------------------------------------------------------------------

    pub(super) fn on_pre_vote_reply(&mut self, from: MemberId, term: Term, granted: bool, out: &mut Vec<Effect>) {
        if !granted && term > self.hard.term {
            // A pre-candidate that is behind must learn the term, or it asks for an old one forever.
            return self.enter_term(term, None, out);
        }
        let is_mine = if granted { term == self.hard.term + 1 } else { true };
        if let Role::PreCandidate { votes } = &mut self.role
            && is_mine
        {
            votes.insert(from, granted);
            self.count_pre_votes(out);
        }
    }

    fn count_pre_votes(&mut self, out: &mut Vec<Effect>) {
        let Role::PreCandidate { votes } = &self.role else { return };
        // A vote given meanwhile may not be on disk yet; then the next timeout asks again.
        if self.tally(votes) == Tally::Won && self.is_term_safe() {
            self.campaign(false, out);
        }
    }

    pub(super) fn on_vote_reply(&mut self, from: MemberId, term: Term, granted: bool, out: &mut Vec<Effect>) {
        if term > self.hard.term {
            return self.enter_term(term, None, out);
        }
        if let Role::Candidate { votes } = &mut self.role
            && term == self.hard.term
        {
            votes.insert(from, granted);
            self.count_votes(out);
        }
    }

    /// The own vote counts once it is on disk, like any other.
    pub(super) fn count_own_vote(&mut self, out: &mut Vec<Effect>) {
        let is_written = self.durable.is_hard_state_written();
        if let Role::Candidate { votes } = &mut self.role
            && is_written
            && votes.insert(self.cfg.id, true).is_none()
        {
            self.count_votes(out);
        }
    }

    fn count_votes(&mut self, out: &mut Vec<Effect>) {
        let Role::Candidate { votes } = &self.role else { return };
        if self.tally(votes) == Tally::Won {
            self.become_leader(out);
        }
    }

    // ---- hints -------------------------------------------------------------------------------------------------

    /// The replication connection to the leader broke. If a majority lost it too, waiting longer helps nobody; if not,
    /// the others refuse. Ignored under leases: a reset link does not prove the holder dead. The random wait keeps two followers that saw it together from splitting the vote.
    pub(super) fn on_peer_gone(&mut self, peer: MemberId, out: &mut Vec<Effect>) {
        if self.is_leader() {
            return self.restart_feed(peer, out);
        }
        let is_follower = matches!(self.role, Role::Follower);
        let is_honoured = self.cfg.honours_hints() || (self.cfg.hint_on_disconnect && planted!(self, HintUnderLease));
        let is_leaders = self.leader == Some(peer) || planted!(self, HintFromAnyPeer);
        if is_honoured && is_follower && is_leaders {
            self.contact = None;
            let wait = if planted!(self, HintWithoutWait) { 0 } else { self.rng.between(0, self.cfg.heartbeat_us) };
            self.election_due = self.election_due.min(self.now.after(wait).max(self.refuse_until));
        }
    }

    /// A leader hands over: no pre-vote, and voters do not insist on their leader contact.
    pub(super) fn on_timeout_now(&mut self, from: MemberId, term: Term, out: &mut Vec<Effect>) {
        let is_from_leader = term == self.hard.term && self.leader == Some(from);
        if is_from_leader && matches!(self.role, Role::Follower) && self.may_campaign() {
            self.campaign(true, out);
        }
    }
}
