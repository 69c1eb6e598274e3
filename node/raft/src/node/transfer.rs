//! Leadership transfer: hold new proposals, catch the target up, tell it to start; give up after one election timeout.
//!
//! Source: Ongaro, thesis §3.10.

use bytes::Bytes;

use crate::io::{Effect, Event, Outcome, Refusal, StepDown};
use crate::progress::Progress;
use crate::types::{Index, MemberId, Time, Token};
use crate::wire::Msg;

use super::{Node, Role};

/// A transfer this leader is making.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Transfer {
    pub(super) to: MemberId,
    /// `None` when the leader started it by itself.
    pub(super) token: Option<Token>,
    pub(super) deadline: Time,
    pub(super) is_told: bool,
    pub(super) held: Vec<(Token, Bytes)>,
    pub(super) held_bytes: usize,
}

/// A transfer of a former leader that waits to see who leads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Handing {
    to: MemberId,
    token: Token,
    pub(super) deadline: Time,
}

impl Node {
    pub(super) fn transfer(&mut self, token: Token, to: MemberId, out: &mut Vec<Effect>) {
        match self.check_transfer(to) {
            Ok(()) => self.start_transfer(Some(token), to, out),
            Err(refusal) => out.push(Effect::Resolve { token, outcome: Outcome::Refused(refusal) }),
        }
    }

    fn check_transfer(&self, to: MemberId) -> Result<(), Refusal> {
        let Role::Leader(leader) = &self.role else {
            return Err(Refusal::NotLeader { leader: self.leader });
        };
        if let Some(transfer) = &leader.transfer {
            return Err(Refusal::Transferring { to: transfer.to });
        }
        let is_able = self.config().is_voter(to)
            && leader.peers.get(&to).is_some_and(|peer| peer.is_active(self.now, self.cfg.et_us()));
        if is_able { Ok(()) } else { Err(Refusal::BadTransferee { to }) }
    }

    pub(super) fn start_transfer(&mut self, token: Option<Token>, to: MemberId, out: &mut Vec<Effect>) {
        let deadline = self.now.after(self.cfg.et_us());
        let Role::Leader(leader) = &mut self.role else { return };
        let transfer = Transfer { to, token, deadline, is_told: false, held: Vec::new(), held_bytes: 0 };
        leader.transfer = Some(transfer);
        // The target may be told late, and then nobody insists on leader contact: no lease holds in this term any more.
        leader.has_transferred = true;
        out.push(Effect::Event(Event::TransferStarted { to }));
        self.maybe_hand_over(to, out);
    }

    /// Tells the target to start once it holds everything this leader has.
    pub(super) fn maybe_hand_over(&mut self, peer: MemberId, out: &mut Vec<Effect>) {
        let last = self.log.last_index();
        let is_rash = planted!(self, TransferToLaggingTarget);
        let term = self.hard.term;
        let Role::Leader(leader) = &mut self.role else { return };
        let matched = leader.peers.get(&peer).map_or(0, |progress| progress.matched);
        if let Some(transfer) = &mut leader.transfer
            && transfer.to == peer
            && !transfer.is_told
            && (matched == last || is_rash)
        {
            transfer.is_told = true;
            self.send(peer, Msg::TimeoutNow { term }, out);
        }
    }

    /// The target did not take over in time: this leader goes on, or stops if its disk hangs.
    pub(super) fn expire_transfer(&mut self, out: &mut Vec<Effect>) {
        let now = self.now;
        let is_endless = planted!(self, TransferToLaggingTarget);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = leader.transfer.take_if(|transfer| now >= transfer.deadline && !is_endless) else {
            return;
        };
        if let Some(token) = transfer.token {
            out.push(Effect::Resolve { token, outcome: Outcome::TransferAborted });
        }
        self.propose(transfer.held, out);
        if self.is_stalled && !planted!(self, StalledLeaderStays) {
            self.step_down(StepDown::DiskStalled, out);
        } else {
            self.maybe_leave_joint(out);
        }
    }

    /// A leader whose disk hangs answers nobody: moves leadership, or gives it up when nobody could take it.
    pub(super) fn leave_stalled(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.transfer.is_some() {
            return;
        }
        match self.best_transferee(|_| true) {
            Some(to) => self.start_transfer(None, to, out),
            None => self.step_down(StepDown::DiskStalled, out),
        }
    }

    /// The voter that answers and holds the most; it must hold every committed entry.
    pub(super) fn best_transferee(&self, is_allowed: impl Fn(MemberId) -> bool) -> Option<MemberId> {
        let Role::Leader(leader) = &self.role else { return None };
        let is_able = |id: MemberId, peer: &Progress| {
            self.config().is_voter(id)
                && is_allowed(id)
                && peer.is_active(self.now, self.cfg.et_us())
                && peer.matched >= self.commit
        };
        let able = leader.peers.iter().filter(|(id, peer)| is_able(**id, peer));
        able.max_by_key(|(id, peer)| -> (Index, MemberId) { (peer.matched, **id) }).map(|(id, _)| *id)
    }

    /// Ends the transfer of a leader that no longer leads. Held proposals never got an index.
    pub(super) fn end_transfer(&mut self, transfer: Transfer, out: &mut Vec<Effect>) {
        for (token, _) in transfer.held {
            let outcome = Outcome::Refused(Refusal::NotLeader { leader: None });
            out.push(Effect::Resolve { token, outcome });
        }
        let Some(token) = transfer.token else { return };
        if transfer.is_told {
            let deadline = self.now.after(self.cfg.election_us.1);
            self.handing = Some(Handing { to: transfer.to, token, deadline });
        } else {
            out.push(Effect::Resolve { token, outcome: Outcome::TransferAborted });
        }
    }

    /// Somebody leads: the target, or another.
    pub(super) fn settle_handing(&mut self, leader: MemberId, out: &mut Vec<Effect>) {
        if let Some(handing) = self.handing.take() {
            let outcome = if handing.to == leader { Outcome::Transferred } else { Outcome::TransferAborted };
            out.push(Effect::Resolve { token: handing.token, outcome });
        }
    }

    pub(super) fn expire_handing(&mut self, out: &mut Vec<Effect>) {
        let now = self.now;
        if self.handing.as_ref().is_some_and(|handing| now >= handing.deadline) {
            self.abort_handing(out);
        }
    }

    pub(super) fn abort_handing(&mut self, out: &mut Vec<Effect>) {
        if let Some(handing) = self.handing.take() {
            out.push(Effect::Resolve { token: handing.token, outcome: Outcome::TransferAborted });
        }
    }
}
