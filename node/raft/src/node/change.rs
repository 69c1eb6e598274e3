//! Membership changes on the leader: whether one may be made now, and leaving a joint configuration.
//!
//! One change at a time, under compare-and-set, never into a configuration that has no live majority. What a change
//! makes of a configuration is [`crate::membership`]. Source: Ongaro, thesis chapter 4; the rule that a leader waits
//! for its own term is from the raft-dev list, 2015 ("bug in single-server membership changes").

use crate::io::{Change, Effect, Outcome, Refusal, StepDown};
use crate::membership::{Placed, changed, left_joint};
use crate::quorum::worst_half;
use crate::types::{Config, ConfigAt, Index, MemberId, Payload, Token};
use crate::wire::Msg;

use super::leader::Leader;
use super::{Node, Role};

/// A change whose caller waits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PendingChange {
    token: Token,
    index: Index,
    /// A joint configuration: the caller waits for the one behind it.
    is_joint: bool,
}

impl Node {
    pub(super) fn change(&mut self, token: Token, expect: Option<ConfigAt>, change: &Change, out: &mut Vec<Effect>) {
        let next = match self.check_change(expect, change) {
            Ok(next) => next,
            Err(refusal) => return out.push(Effect::Resolve { token, outcome: Outcome::Refused(refusal) }),
        };
        if !next.voters.contains(&self.cfg.id) && self.config().is_voter(self.cfg.id) {
            // A leader that is to go moves leadership first, so that nobody waits for an election.
            if let Some(to) = self.best_transferee(|id| next.voters.contains(&id)) {
                self.start_transfer(None, to, out);
                let outcome = Outcome::Refused(Refusal::Transferring { to });
                return out.push(Effect::Resolve { token, outcome });
            }
        }
        let is_joint = next.is_joint();
        self.append_config(next, out);
        let index = self.log.last_index();
        if let Role::Leader(leader) = &mut self.role {
            leader.change = Some(PendingChange { token, index, is_joint });
        }
    }

    fn check_change(&self, expect: Option<ConfigAt>, change: &Change) -> Result<Config, Refusal> {
        let Role::Leader(leader) = &self.role else {
            return Err(Refusal::NotLeader { leader: self.leader });
        };
        if self.is_stalled {
            return Err(Refusal::DiskStalled);
        }
        if let Some(transfer) = &leader.transfer {
            return Err(Refusal::Transferring { to: transfer.to });
        }
        if !leader.is_ready && !planted!(self, ChangeBeforeReady) {
            return Err(Refusal::NotReady);
        }
        let newest = self.history.newest();
        let is_in_flight = newest.at.index > self.commit && !planted!(self, TwoChangesInFlight);
        if (is_in_flight || newest.config.is_joint()) && !planted!(self, ChangeWhileJoint) {
            return Err(Refusal::ChangeInFlight);
        }
        let current = self.committed_config().at;
        let differs = |expected: &ConfigAt| match () {
            () if planted!(self, NoCompare) => false,
            () if planted!(self, CompareIndexOnly) => expected.index != current.index,
            () => *expected != current,
        };
        if let Some(expected) = expect.filter(differs) {
            return Err(Refusal::ConfigMismatch { expected, current });
        }
        let mut base = (*newest.config).clone();
        if planted!(self, RemovedIdReused) {
            base.removed.clear();
        }
        let next = changed(&base, change)?;
        self.check_caught_up(leader, change)?;
        self.check_live(leader, &newest.config, &next)?;
        Ok(next)
    }

    /// Who becomes a voter must hold nearly everything durably and must have answered just now.
    fn check_caught_up(&self, leader: &Leader, change: &Change) -> Result<(), Refusal> {
        let (id, lag_max) = match change {
            Change::Promote { id, lag_max } => (*id, *lag_max),
            Change::Swap { new, lag_max, .. } => (*new, *lag_max),
            Change::AddLearner { .. } | Change::Demote { .. } | Change::Remove { .. } | Change::UpdateInfo { .. } => {
                return Ok(());
            }
        };
        let peer = leader.peers.get(&id).ok_or(Refusal::UnknownMember { id })?;
        if !peer.is_active(self.now, self.cfg.et_us()) {
            return Err(Refusal::MemberSilent { id });
        }
        let behind = self.log.last_index() - peer.matched;
        if behind > lag_max { Err(Refusal::LearnerBehind { id, behind, lag_max }) } else { Ok(()) }
    }

    /// No configuration without a majority that is heard and holds nearly everything.
    fn check_live(&self, leader: &Leader, before: &Config, next: &Config) -> Result<(), Refusal> {
        let is_vote_kept = before.voters == next.voters && before.voters_outgoing == next.voters_outgoing;
        if is_vote_kept || planted!(self, NoLiveMajorityCheck) {
            return Ok(());
        }
        let (live_after, quorum_after) = worst_half(next, |id| self.is_live(leader, id));
        if live_after < quorum_after { Err(Refusal::QuorumAtRisk { live_after, quorum_after }) } else { Ok(()) }
    }

    fn is_live(&self, leader: &Leader, id: MemberId) -> bool {
        id == self.cfg.id
            || leader.peers.get(&id).is_some_and(|peer| {
                peer.is_active(self.now, self.cfg.et_us())
                    && self.log.last_index() - peer.matched <= self.cfg.live_lag_max
            })
    }

    /// Appends a configuration; it counts from here on.
    pub(crate) fn append_config(&mut self, config: Config, out: &mut Vec<Effect>) {
        self.append_payloads([Payload::Config(config)], out);
        self.align_peers();
        self.feed_all(out);
    }

    /// Whoever leads leaves a committed joint configuration, once its own term has committed and applied.
    pub(super) fn maybe_leave_joint(&mut self, out: &mut Vec<Effect>) {
        let newest = self.history.newest();
        let is_due = newest.config.is_joint() && newest.at.index <= self.commit;
        let Role::Leader(leader) = &self.role else { return };
        let is_mine = newest.at.term == self.hard.term || !planted!(self, JointNotLeftByNextLeader);
        let is_ready = leader.is_ready || planted!(self, JointLeftBeforeReady);
        if !is_due || !is_ready || leader.transfer.is_some() || !is_mine {
            return;
        }
        let next = left_joint(&newest.config);
        self.append_config(next, out);
        let index = self.log.last_index();
        if let Role::Leader(leader) = &mut self.role
            && let Some(pending) = &mut leader.change
        {
            pending.index = index;
            pending.is_joint = false;
        }
    }

    /// A leader saw configurations commit: answers the caller, tells the removed, leaves joint, and goes if it must.
    pub(super) fn on_configs_committed(&mut self, before: &Config, committed: &[Placed], out: &mut Vec<Effect>) {
        let mut removed_before = &before.removed;
        for placed in committed {
            self.resolve_change(placed.at, out);
            for id in placed.config.removed.difference(removed_before) {
                let (config_term, config_index) = (placed.at.term, placed.at.index);
                self.send(*id, Msg::YouAreRemoved { term: self.hard.term, config_term, config_index }, out);
            }
            removed_before = &placed.config.removed;
        }
        self.maybe_leave_joint(out);
        let newest = self.history.newest();
        if self.is_leader() && newest.at.index <= self.commit && !newest.config.is_voter(self.cfg.id) {
            self.leave_removed(out);
        }
    }

    fn resolve_change(&mut self, at: ConfigAt, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(done) = leader.change.take_if(|pending| pending.index == at.index && !pending.is_joint) {
            let outcome = Outcome::Committed { term: at.term, index: at.index };
            out.push(Effect::Resolve { token: done.token, outcome });
        }
    }

    /// The last act of a leader that voted itself out: the survivors learn that it is committed, and one of them is
    /// told to take over.
    fn leave_removed(&mut self, out: &mut Vec<Effect>) {
        self.tell_commit_to_all(out);
        if let Some(to) = self.best_transferee(|_| true) {
            self.send(to, Msg::TimeoutNow { term: self.hard.term }, out);
        }
        self.step_down(StepDown::Removed, out);
    }

    pub(super) fn fail_change(pending: Option<PendingChange>, out: &mut Vec<Effect>) {
        if let Some(pending) = pending {
            out.push(Effect::Resolve { token: pending.token, outcome: Outcome::Unknown });
        }
    }
}
