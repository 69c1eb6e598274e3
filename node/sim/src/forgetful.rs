//! A log that lost what it had promised, which its peers cannot tell by the data directory: the leader knows better.
//!
//! The volume goes back to a copy of the present start. Whoever leads sees the answers of a log that is too short and says
//! so; the member stops for good before it votes. What no member promises is left out: while such a member has not been
//! told yet, nothing else goes wrong, and when somebody stands for election all the same, it has been replaced.

use quorate_raft::types::{Index, MemberId};

use crate::oracle::{Violation, hold};
use crate::world::{Event, Forgot, World};

/// A leader that hears a member tells it within this time, start and all.
const TOLD_US: u64 = 3_000_000;

impl World {
    /// A member comes back with an older end of its log, under a leader that knows better and with nothing else wrong.
    /// True when that was done.
    pub fn forget_tail(&mut self, id: MemberId) -> Result<bool, Violation> {
        let Some(leader) = self.leader().filter(|leader| *leader != id) else { return Ok(false) };
        let is_awake = self.members.values().all(|member| !member.paused);
        let is_whole = self.net.is_calm(self.now) && is_awake && !self.config().is_joint();
        if !is_whole || self.has_forgetful() || !self.may_lose(id) {
            return Ok(false);
        }
        let status = self.members[&leader].process.as_ref().map(|process| process.node.status());
        let Some(status) = status.filter(|status| status.is_ready && status.transferring.is_none()) else {
            return Ok(false);
        };
        let matched = status.progress.iter().find(|peer| peer.id == id && !peer.is_reverted).map(|peer| peer.matched);
        let Some(matched) = matched else { return Ok(false) };
        let Some(member) = self.members.get(&id) else { return Ok(false) };
        let generation = member.process.as_ref().map(|process| process.boot.generation);
        let is_of_use = |copy: &crate::world::VolumeCopy| {
            copy.needs_others
                && Some(copy.generation) == generation
                && copy.last_index < matched
                && copy.last_index < status.commit
        };
        let Some(at) = member.copies.iter().rposition(is_of_use) else { return Ok(false) };
        self.forget_links();
        for other in self.members.values() {
            other.storage.disk.heal();
        }
        self.crash(id, true)?;
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        let copy = member.copies.remove(at);
        member.storage = copy.storage;
        member.forgot = Some(Forgot { durable: std::mem::take(&mut member.durable), since: now });
        member.copies.clear();
        member.under_way.clear();
        self.restart(id)?;
        Ok(true)
    }

    /// A member has forgotten what it promised and was not told yet: nothing else goes wrong meanwhile.
    pub fn has_forgetful(&self) -> bool {
        self.members.values().any(|member| member.forgot.is_some() && !member.is_dead)
    }

    /// Somebody stands for election: the leader that knew may be gone, and then nobody tells.
    pub(crate) fn give_up_forgetful(&mut self) {
        let forgetful = self.members.iter().find(|(_, member)| member.forgot.is_some() && !member.is_dead);
        if let Some(id) = forgetful.map(|(id, _)| *id) {
            self.count("forgetful member replaced untold");
            self.at(self.now, Event::Halt { member: id });
        }
    }

    /// I14: a member that was told that its log lost what it promised is silent from then on.
    pub(crate) fn must_have_stopped(&self, id: MemberId, held: Index) -> Result<(), Violation> {
        let Some(process) = self.members.get(&id).and_then(|member| member.process.as_ref()) else { return Ok(()) };
        let status = process.node.status();
        hold!(
            status.has_failed || status.last_index >= held,
            "I14 {id} was told that it held {held}, its log ends at {}, and it goes on",
            status.last_index
        );
        Ok(())
    }

    /// I14: whoever leads notices and says so.
    pub(crate) fn forgetful_are_told(&self) -> Result<(), Violation> {
        for (id, member) in self.members.iter().filter(|(_, member)| !member.is_dead) {
            let since = member.forgot.as_ref().map_or(self.now, |forgot| forgot.since);
            hold!(
                self.now - since <= TOLD_US,
                "I14 {id} lost what it had promised, and nobody told it for {TOLD_US} µs; {}",
                self.describe()
            );
        }
        Ok(())
    }
}
