//! Who may speak for a member: data directories that are old, copied, empty or another's (I14).
//!
//! The rule itself is the shipped one (`quorate_log::judge`). A copy is only put in place when every other member can know
//! better; one that nobody can tell from the original is beyond what any member promises.

use quorate_log::{Boot, Imposture, judge};
use quorate_raft::types::{Index, MemberId};

use crate::oracle::{Violation, hold};
use crate::world::{VolumeCopy, World};

/// Copies kept of one member's volume.
const COPIES_MAX: usize = 3;

impl World {
    /// Whether `to` listens to what comes from this start of `from`.
    pub(crate) fn admits(&mut self, to: MemberId, from: MemberId, boot: Boot) -> Result<bool, Violation> {
        let (takes_old, takes_twins) = (planted!(self, OldCopyAdmitted), planted!(self, TwinAdmitted));
        // A connection of an earlier start is refused by its generation alone.
        let before = self.members.get(&from).and_then(|member| member.process.as_ref());
        let before = before.filter(|process| process.boot == boot).map(|process| *process.log.lineage());
        let before = before.unwrap_or_default();
        let Some(member) = self.members.get_mut(&to) else { return Ok(false) };
        let seen = member.seen.get(&from).copied();
        let Some(process) = member.process.as_mut() else { return Ok(true) };
        if process.admitted.get(&from) == Some(&boot) {
            return Ok(true);
        }
        let verdict = match judge(seen, boot, &before) {
            Err(Imposture::OldCopy { .. }) if takes_old => Ok(()),
            Err(Imposture::Twin { .. }) if takes_twins => Ok(()),
            verdict => verdict,
        };
        let Some(sender) = self.members.get(&from) else { return Ok(false) };
        let is_current = sender.process.as_ref().is_some_and(|process| process.boot == boot);
        let is_impostor = is_current && sender.lost.is_some();
        let Err(why) = verdict else {
            hold!(!is_impostor, "I14 {to} listens to {from}, which runs on a copy of its past: {boot:?}");
            let member = self.members.get_mut(&to).expect("it was there");
            member.seen.insert(from, boot);
            if let Some(process) = member.process.as_mut() {
                process.admitted.insert(from, boot);
            }
            return Ok(true);
        };
        if !is_current {
            self.count("stale connection refused");
            return Ok(false);
        }
        hold!(is_impostor, "I14 {to} refuses {from}, which is itself: {why}");
        self.count("old copy refused");
        self.say(|| format!("{to} refuses {from}: {why}"));
        // It cannot speak to anybody; a person or the operator replaces it.
        self.crash(from, false)?;
        if let Some(member) = self.members.get_mut(&from) {
            member.is_dead = true;
        }
        Ok(false)
    }

    pub(crate) fn snapshot_failed(
        &mut self,
        from: MemberId,
        life: u64,
        to: MemberId,
        index: Index,
    ) -> Result<(), Violation> {
        if self.alive(from, life).is_none() {
            return Ok(());
        }
        self.input(from, quorate_raft::io::Input::SnapshotSent { to, index, ok: false })
    }

    /// Somebody copies a running member's volume.
    pub fn copy_volume(&mut self, id: MemberId) {
        let seed = self.rng.next_u64();
        let Some(member) = self.members.get_mut(&id).filter(|member| member.lost.is_none()) else { return };
        let Some(process) = member.process.as_ref() else { return };
        // What is being written may be in it.
        let status = process.node.status();
        let last_index = member.durable.last_index().max(status.last_index);
        let needs_others = status.committed_config.config.voters.iter().any(|voter| *voter != id)
            && status.committed_config.at.index <= member.durable.last_index();
        let generation = process.boot.generation;
        let copy = VolumeCopy { storage: member.storage.fork(seed), generation, last_index, needs_others };
        member.copies.push(copy);
        if member.copies.len() > COPIES_MAX {
            member.copies.remove(0);
        }
    }

    /// Whether every other member has seen a start of `id` that rules out one of this generation.
    fn all_know_better(&self, id: MemberId, generation: u64) -> bool {
        let knows = |seen: Option<&Boot>| seen.is_some_and(|seen| seen.generation >= generation);
        let others = self.members.iter().filter(|(other, member)| **other != id && !member.is_dead);
        others.map(|(_, member)| member.seen.get(&id)).all(knows)
    }

    /// A member comes back on an old copy of its volume. True when that was done. Not on one from when it was the only
    /// voter: that elects itself and asks nobody, so nobody can tell it.
    pub fn restore_copy(&mut self, id: MemberId) -> Result<bool, Violation> {
        let Some(copy) = self.members.get(&id).and_then(|member| member.copies.first()) else { return Ok(false) };
        // The next start raises it by one.
        if !copy.needs_others || !self.all_know_better(id, copy.generation + 1) {
            return Ok(false);
        }
        self.crash(id, true)?;
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        let copy = member.copies.remove(0);
        self.replace_volume(id, copy.storage);
        Ok(true)
    }

    /// A member loses its disk and begins anew under its old id.
    pub fn lose_volume(&mut self, id: MemberId) -> Result<bool, Violation> {
        // Created at 1, opened at 2. Who founded the cluster alone would found one anew, and needs nobody to listen to it:
        // that it serves no client until it is told that this is the first time is the shell's (`--await-activation`).
        let founded = self.members.get(&id).is_some_and(|member| member.storage.founded_alone());
        if founded || !self.all_know_better(id, 2) {
            return Ok(false);
        }
        self.crash(id, true)?;
        let seed = self.rng.next_u64();
        let Some(member) = self.members.get(&id) else { return Ok(false) };
        let empty = member.storage.empty(seed);
        self.replace_volume(id, empty);
        Ok(true)
    }

    fn replace_volume(&mut self, id: MemberId, storage: crate::storage::Storage) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.storage = storage;
        member.lost = Some(std::mem::take(&mut member.durable));
        member.copies.clear();
        member.under_way.clear();
        member.is_rotten = true;
        let back = self.rng.between(1_000, 500_000);
        self.schedule_restart(id, back);
    }

    /// A second process starts on a copy taken one start ago: nobody may listen to it.
    pub fn start_twin(&mut self, id: MemberId) -> Result<bool, Violation> {
        let (takes_twins, nonce) = (planted!(self, TwinAdmitted), self.rng.next_u64());
        let Some(member) = self.members.get_mut(&id).filter(|member| member.lost.is_none()) else { return Ok(false) };
        let Some(boot) = member.process.as_ref().map(|process| process.boot) else { return Ok(false) };
        let Some(at) = member.copies.iter().position(|copy| copy.generation + 1 == boot.generation) else {
            return Ok(false);
        };
        let mut copy = member.copies.remove(at);
        let Ok((log, _)) = copy.storage.open(nonce) else { return Ok(false) };
        let twin = Boot { generation: log.generation(), nonce };
        let others: Vec<MemberId> = self.ids().into_iter().filter(|other| *other != id).collect();
        for other in others {
            let seen = self.members[&other].seen.get(&id).copied();
            if seen != Some(boot) {
                continue;
            }
            let is_refused = judge(seen, twin, log.lineage()).is_err() && !takes_twins;
            hold!(is_refused, "I14 {other} would listen to a twin of {id}: {twin:?} beside {boot:?}");
            self.count("twin refused");
        }
        Ok(true)
    }

    /// A member is started on another member's volume, then on one of another cluster: both are refused, untouched.
    pub fn misplace_volume(&mut self, id: MemberId, other: MemberId) -> Result<(), Violation> {
        let is_trusting = planted!(self, ForeignDiskOpened);
        let seeds = (self.rng.next_u64(), self.rng.next_u64());
        let (Some(own), Some(others)) = (self.members.get(&id), self.members.get(&other)) else { return Ok(()) };
        let swapped = others.storage.fork(seeds.0).is_refused_as(own.storage.identity(), is_trusting);
        hold!(swapped, "I14 {id} starts on the volume of {other}");
        let foreign = own.storage.fork(seeds.1).is_refused_as(own.storage.foreign_identity(), is_trusting);
        hold!(foreign, "I14 {id} starts on a volume of another cluster");
        self.count("swapped volume refused");
        self.count("foreign volume refused");
        Ok(())
    }
}
