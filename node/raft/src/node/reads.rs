//! Linearizable reads: one heartbeat round confirms every read that was queued before it was sent.
//!
//! Under a lease no round is needed: a majority has promised to vote for nobody until an instant that has not come yet,
//! so nobody else can have committed anything. The index is fixed at the instant the lease was looked at.
//!
//! A follower asks its leader for an index and the shell waits until it applied that much. Reads change nothing, so a
//! read that ends without an index is certain not to have taken effect. Source: Ongaro, thesis §6.4.

use crate::io::{Effect, Outcome, ReadMode, Refusal};
use crate::quorum::reached;
use crate::types::{Index, MemberId, Term, Time, Token};
use crate::wire::Msg;

use super::leader::{Leader, Round};
use super::{NEVER, Node, Role};

/// Who wants to know.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Reader {
    Local(Token),
    Remote { member: MemberId, ctx: u64 },
}

/// Reads of a follower: one question is under way, the rest wait for the next.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Forwarded {
    /// Number of the last question. Starts at random, so that an answer to a question of an earlier process run is
    /// not taken for one of this run.
    ctx: u64,
    asked: Option<Asked>,
    waiting: Vec<Waiting>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Asked {
    ctx: u64,
    at: Time,
    /// Every read of it is content with a lease.
    lease: bool,
    reads: Vec<Waiting>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Waiting {
    token: Token,
    mode: ReadMode,
    deadline: Time,
}

impl Forwarded {
    pub(super) fn new(seed: u64) -> Forwarded {
        Forwarded { ctx: seed.rotate_left(32), asked: None, waiting: Vec::new() }
    }

    pub(super) fn deadline(&self) -> Time {
        let asked = self.asked.as_ref().and_then(|asked| asked.reads.first());
        // Deadlines ascend in each list: every read gets the same time to live.
        asked.into_iter().chain(self.waiting.first()).map(|read| read.deadline).min().unwrap_or(NEVER)
    }

    fn count(&self) -> usize {
        self.waiting.len() + self.asked.as_ref().map_or(0, |asked| asked.reads.len())
    }
}

impl Node {
    pub(super) fn read(&mut self, token: Token, mode: ReadMode, out: &mut Vec<Effect>) {
        if self.is_removed {
            return out.push(Effect::Resolve { token, outcome: Outcome::Refused(Refusal::Stopped) });
        }
        if self.is_leader() {
            return self.queue_read(Reader::Local(token), mode, out);
        }
        if self.forwarded.count() >= self.cfg.reads_waiting_max {
            let refusal = Refusal::TooManyReads { limit: self.cfg.reads_waiting_max };
            return out.push(Effect::Resolve { token, outcome: Outcome::Refused(refusal) });
        }
        let deadline = self.now.after(self.cfg.election_us.1);
        self.forwarded.waiting.push(Waiting { token, mode, deadline });
        self.ask_leader(out);
    }

    // ---- leader ------------------------------------------------------------------------------------------------

    fn queue_read(&mut self, reader: Reader, mode: ReadMode, out: &mut Vec<Effect>) {
        if mode == ReadMode::Lease && self.holds_lease() {
            return self.release(self.commit, vec![reader], out);
        }
        let limit = self.cfg.reads_waiting_max;
        let may_skip = planted!(self, ReadWithoutRound);
        let may_be_early = planted!(self, ReadBeforeReady);
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads_waiting.len() >= limit {
            return match reader {
                Reader::Local(token) => {
                    let outcome = Outcome::Refused(Refusal::TooManyReads { limit });
                    out.push(Effect::Resolve { token, outcome });
                }
                Reader::Remote { member, ctx } => self.answer_read(member, ctx, None, out),
            };
        }
        leader.reads_waiting.push(reader);
        let is_ready = leader.is_ready || may_be_early;
        if may_skip {
            let readers = std::mem::take(&mut leader.reads_waiting);
            return self.release(self.commit, readers, out);
        }
        if is_ready && leader.rounds_with_reads.is_empty() {
            self.heartbeat_round(out);
        }
    }

    /// Puts the waiting reads behind the round that is about to be sent. The index is fixed here: whatever was
    /// acknowledged before a read arrived is at or below it.
    pub(super) fn attach_reads(&mut self) {
        let commit = self.commit;
        let may_be_early = planted!(self, ReadBeforeReady);
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.reads_waiting.is_empty() && (leader.is_ready || may_be_early) {
            let readers = std::mem::take(&mut leader.reads_waiting);
            leader.rounds_with_reads.push_back(Round { round: leader.round, index: commit, readers });
        }
    }

    /// Answers what a majority confirmed, and starts the next round if reads came in meanwhile.
    pub(super) fn confirm_reads(&mut self, out: &mut Vec<Effect>) {
        let confirmed = {
            let Role::Leader(leader) = &self.role else { return };
            if leader.rounds_with_reads.is_empty() {
                return;
            }
            self.confirmed_round(leader)
        };
        loop {
            let Role::Leader(leader) = &mut self.role else { return };
            let Some(round) = leader.rounds_with_reads.pop_front_if(|front| front.round <= confirmed) else { break };
            self.release(round.index, round.readers, out);
        }
        let Role::Leader(leader) = &self.role else { return };
        if leader.is_ready && leader.rounds_with_reads.is_empty() && !leader.reads_waiting.is_empty() {
            self.heartbeat_round(out);
        }
    }

    /// The highest heartbeat round a majority answered. The leader answers its own at once.
    fn confirmed_round(&self, leader: &Leader) -> u64 {
        reached(self.config(), |id| {
            if id == self.cfg.id { leader.round } else { leader.peers.get(&id).map_or(0, |peer| peer.acked_round) }
        })
    }

    /// When the newest round a majority answered was sent.
    pub(super) fn quorum_confirmed(&self, leader: &Leader) -> Option<Time> {
        reached(self.config(), |id| {
            if id == self.cfg.id { Some(self.now) } else { leader.peers.get(&id).and_then(|peer| peer.acked_sent) }
        })
    }

    // ---- leases ------------------------------------------------------------------------------------------------

    /// This leader is ready and a majority has promised to vote for nobody now.
    fn holds_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let is_ready = leader.is_ready || planted!(self, LeaseBeforeReady);
        is_ready && self.lease_until(leader).is_some_and(|until| self.now < until)
    }

    /// Until when the majority's promises hold, measured from the send time of what they answered and by the slowest
    /// clock allowed. `None` while leases are off, and from the start of a transfer to the end of the term.
    pub(super) fn lease_until(&self, leader: &Leader) -> Option<Time> {
        #[cfg(feature = "mutants")]
        if let Some(until) = self.wrong_lease(leader) {
            return Some(until);
        }
        let leases = self.cfg.leases?;
        let is_handing = leader.transfer.is_some() && !planted!(self, LeaseKeptInTransfer);
        let has_handed =
            leader.has_transferred && leader.transfer.is_none() && !planted!(self, LeaseResumedAfterTransfer);
        if is_handing || has_handed {
            return None;
        }
        Some(reached(self.config(), |id| {
            if id == self.cfg.id {
                // It votes for nobody while it leads.
                return NEVER;
            }
            let promise = leader.peers.get(&id).and_then(|peer| Some((peer.acked_sent?, peer.promise_us)));
            promise.map_or(Time(0), |(sent, promise_us)| sent.after(leases.trusted_us(promise_us)))
        }))
    }

    fn release(&self, index: Index, readers: Vec<Reader>, out: &mut Vec<Effect>) {
        for reader in readers {
            match reader {
                Reader::Local(token) => out.push(Effect::ReadAt { token, index }),
                Reader::Remote { member, ctx } => self.answer_read(member, ctx, Some(index), out),
            }
        }
    }

    fn answer_read(&self, to: MemberId, ctx: u64, index: Option<Index>, out: &mut Vec<Effect>) {
        self.send(to, Msg::ReadIndexReply { term: self.hard.term, ctx, index }, out);
    }

    /// Leadership ended: none of the reads got an index.
    pub(super) fn fail_reads(&self, leader: &mut Leader, out: &mut Vec<Effect>) {
        if planted!(self, ReadsLostOnStepDown) {
            return;
        }
        let rounds = std::mem::take(&mut leader.rounds_with_reads);
        let waiting = std::mem::take(&mut leader.reads_waiting);
        for reader in rounds.into_iter().flat_map(|round| round.readers).chain(waiting) {
            match reader {
                Reader::Local(token) => {
                    let outcome = Outcome::Refused(Refusal::NotLeader { leader: None });
                    out.push(Effect::Resolve { token, outcome });
                }
                Reader::Remote { member, ctx } => self.answer_read(member, ctx, None, out),
            }
        }
    }

    pub(super) fn on_read_index(
        &mut self,
        from: MemberId,
        term: Term,
        ctx: u64,
        mode: ReadMode,
        out: &mut Vec<Effect>,
    ) {
        if self.is_leader() && term == self.hard.term {
            self.queue_read(Reader::Remote { member: from, ctx }, mode, out);
        } else {
            self.answer_read(from, ctx, None, out);
        }
    }

    // ---- follower ----------------------------------------------------------------------------------------------

    /// Sends the waiting reads as one question, unless one is under way or nobody leads.
    pub(super) fn ask_leader(&mut self, out: &mut Vec<Effect>) {
        let Some(leader) = self.leader.filter(|leader| *leader != self.cfg.id) else { return };
        if self.forwarded.asked.is_some() || self.forwarded.waiting.is_empty() {
            return;
        }
        self.forwarded.ctx = self.forwarded.ctx.wrapping_add(1);
        let ctx = self.forwarded.ctx;
        let reads = std::mem::take(&mut self.forwarded.waiting);
        let lease = reads.iter().all(|read| read.mode == ReadMode::Lease);
        self.forwarded.asked = Some(Asked { ctx, at: self.now, lease, reads });
        self.send(leader, Msg::ReadIndex { term: self.hard.term, ctx, lease }, out);
    }

    /// A question may have been lost: asks again, with the same number, after a heartbeat without an answer.
    pub(super) fn ask_again(&mut self, out: &mut Vec<Effect>) {
        let (now, patience) = (self.now, self.cfg.heartbeat_us);
        if let (Some(leader), Some(asked)) = (self.leader, &mut self.forwarded.asked)
            && now.since(asked.at) >= patience
        {
            asked.at = now;
            let msg = Msg::ReadIndex { term: self.hard.term, ctx: asked.ctx, lease: asked.lease };
            self.send(leader, msg, out);
        }
    }

    /// Another leader: the question under way is asked anew, under a new number.
    pub(super) fn requeue_forwarded(&mut self) {
        if let Some(asked) = self.forwarded.asked.take() {
            let later = std::mem::replace(&mut self.forwarded.waiting, asked.reads);
            self.forwarded.waiting.extend(later);
        }
    }

    /// This member leads now and answers its own reads.
    pub(super) fn adopt_forwarded(&mut self, out: &mut Vec<Effect>) {
        self.requeue_forwarded();
        for read in std::mem::take(&mut self.forwarded.waiting) {
            self.queue_read(Reader::Local(read.token), read.mode, out);
        }
    }

    pub(super) fn on_read_index_reply(
        &mut self,
        from: MemberId,
        term: Term,
        ctx: u64,
        index: Option<Index>,
        out: &mut Vec<Effect>,
    ) {
        let is_answer = term == self.hard.term && self.leader == Some(from);
        let Some(asked) = self.forwarded.asked.take_if(|asked| is_answer && asked.ctx == ctx) else { return };
        for read in asked.reads {
            out.push(match index {
                Some(index) => Effect::ReadAt { token: read.token, index },
                None => refused_read(read.token, self.leader),
            });
        }
        self.ask_leader(out);
    }

    pub(super) fn expire_forwarded(&mut self, out: &mut Vec<Effect>) {
        let (now, leader) = (self.now, self.leader);
        let asked = self.forwarded.asked.as_mut().map(|asked| &mut asked.reads);
        for reads in asked.into_iter().chain([&mut self.forwarded.waiting]) {
            for read in reads.extract_if(.., |read| read.deadline <= now) {
                out.push(refused_read(read.token, leader));
            }
        }
        self.forwarded.asked.take_if(|asked| asked.reads.is_empty());
        self.ask_leader(out);
    }

    pub(super) fn fail_forwarded(&mut self, out: &mut Vec<Effect>) {
        self.requeue_forwarded();
        for read in std::mem::take(&mut self.forwarded.waiting) {
            out.push(refused_read(read.token, None));
        }
    }
}

#[cfg(feature = "mutants")]
impl Node {
    /// What a planted bug takes for the end of the lease.
    fn wrong_lease(&self, leader: &Leader) -> Option<Time> {
        use crate::cfg::LeaseCfg;
        use crate::mutant::Mutant;
        let leases = self.cfg.leases;
        let own_et = self.cfg.et_us();
        let end_of = |id: MemberId, end: &dyn Fn(&crate::progress::Progress) -> Option<Time>| {
            if id == self.cfg.id { NEVER } else { leader.peers.get(&id).and_then(end).unwrap_or_default() }
        };
        let is_off = leader.has_transferred;
        match self.cfg.mutant? {
            Mutant::LeaseWithoutSetting if leases.is_none() => {
                let leases = LeaseCfg::DEFAULT;
                Some(reached(self.config(), |id| {
                    end_of(id, &|peer| Some(peer.acked_sent?.after(leases.trusted_us(own_et))))
                }))
            }
            Mutant::LeaseFromReceiveTime if !is_off => {
                let leases = leases?;
                Some(reached(self.config(), |id| {
                    end_of(id, &|peer| Some(peer.last_ack?.after(leases.trusted_us(peer.promise_us))))
                }))
            }
            Mutant::LeaseFromOwnTimeout if !is_off => {
                let leases = leases?;
                Some(reached(self.config(), |id| {
                    end_of(id, &|peer| Some(peer.acked_sent?.after(leases.trusted_us(own_et))))
                }))
            }
            Mutant::LeaseIgnoresDrift if !is_off => {
                let leases = LeaseCfg { drift_ppm: 0, ..leases? };
                Some(reached(self.config(), |id| {
                    end_of(id, &|peer| Some(peer.acked_sent?.after(leases.trusted_us(peer.promise_us))))
                }))
            }
            Mutant::LeaseCountsNewHalfOnly if !is_off => {
                let leases = leases?;
                let mut config = self.config().clone();
                config.voters_outgoing.clear();
                Some(reached(&config, |id| {
                    end_of(id, &|peer| Some(peer.acked_sent?.after(leases.trusted_us(peer.promise_us))))
                }))
            }
            _ => None,
        }
    }
}

fn refused_read(token: Token, leader: Option<MemberId>) -> Effect {
    Effect::Resolve { token, outcome: Outcome::Refused(Refusal::NotLeader { leader }) }
}
