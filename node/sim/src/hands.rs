//! What somebody outside does with members and hears from them: tests drive an operator's planner against real cores with it.

use quorate_raft::Status;
use quorate_raft::io::Change;
use quorate_raft::types::{ConfigAt, MemberId, SnapMeta, Time};

use crate::oracle::Violation;
use crate::world::World;

impl World {
    /// An empty disk for a member that is to join. A member has one disk in its life.
    pub fn provision(&mut self, id: MemberId) {
        if !self.members.contains_key(&id) {
            self.add_member(id, SnapMeta::default());
        }
    }

    /// A member's own word, with what its clock says. One that is down or paused gives none.
    pub fn word(&self, id: MemberId) -> Option<(Status, Time)> {
        let member = self.members.get(&id).filter(|member| !member.paused)?;
        let process = member.process.as_ref()?;
        Some((process.node.status(), member.clock.read(self.now).max(process.latest)))
    }

    /// Asks for a change of the configuration that was seen.
    pub fn change_at(&mut self, leader: MemberId, expect: ConfigAt, change: Change) -> Result<(), Violation> {
        let token = self.token();
        self.ask_change(leader, token, Some(expect), change)
    }

    /// The disk is gone for good, and the machine with it.
    pub fn lose(&mut self, id: MemberId) -> Result<(), Violation> {
        self.crash(id, true)?;
        if let Some(member) = self.members.get_mut(&id) {
            member.is_dead = true;
        }
        Ok(())
    }
}
