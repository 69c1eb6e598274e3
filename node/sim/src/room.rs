//! Full volumes of many members at once: the leader takes nothing that grows while no majority has room.
//!
//! Who decides is shipped code (`quorate_log::Rooms`, `Command::grows`); the words between members travel the simulated
//! network, and the oracle looks at the disks themselves.

use quorate_log::{Boot, ROOM_TOLD_EVERY_US};
use quorate_raft::types::MemberId;

use crate::oracle::{Violation, hold};
use crate::world::{Event, World};

/// A leader that hears everybody knows within this time whose volume is nearly full: a member tells every second.
const KNOWN_US: u64 = 3 * ROOM_TOLD_EVERY_US;

impl World {
    pub(crate) fn tell_room(&mut self, id: MemberId, life: u64) -> Result<(), Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id).filter(|member| member.life == life) else { return Ok(()) };
        let time = member.clock.read(now);
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        // A machine that died in the middle of a write ends with that write.
        let Ok(space) = process.log.space() else { return Ok(()) };
        process.rooms.note(time, id, space.is_low);
        if !space.is_low {
            // Small segments come and go: a volume at the edge is nearly full now and not a moment later.
            process.low_since = None;
        }
        let (leader, boot) = (process.node.leader(), process.boot);
        self.say(|| format!("{id} measures {space:?}"));
        self.at(now + ROOM_TOLD_EVERY_US, Event::TellRoom { member: id, life });
        let Some(leader) = leader.filter(|leader| *leader != id) else { return Ok(()) };
        for delay in self.net.deliveries(id, leader, now) {
            self.at(now + delay, Event::Room { from: id, to: leader, boot, is_low: space.is_low });
        }
        Ok(())
    }

    pub(crate) fn hear_room(
        &mut self,
        from: MemberId,
        to: MemberId,
        boot: Boot,
        is_low: bool,
    ) -> Result<(), Violation> {
        if !self.admits(to, from, boot)? {
            return Ok(());
        }
        let now = self.now;
        let Some(member) = self.members.get_mut(&to) else { return Ok(()) };
        let time = member.clock.read(now);
        if let Some(process) = member.process.as_mut() {
            process.rooms.note(time, from, is_low);
        }
        Ok(())
    }

    /// Whether this member, if it leads, takes something that grows. It must not when it could have known that no majority
    /// has room for it, or that it has none itself.
    pub(crate) fn takes_growth(&mut self, id: MemberId) -> Result<bool, Violation> {
        let is_careless = planted!(self, GrowthNotRefused);
        let Some(process) = self.process(id).filter(|process| process.node.is_leader()) else { return Ok(true) };
        let config = process.node.status().newest_config.config;
        if process.rooms.must_not_grow(id, &config) && !is_careless {
            self.count("growth refused");
            return Ok(false);
        }
        let now = self.now;
        let is_known = |since: Option<u64>| since.is_some_and(|since| since + KNOWN_US <= now);
        if self.members.values().any(|member| member.process.as_ref().is_some_and(|p| is_known(p.low_since))) {
            // Somebody may have got room since the last look.
            self.look_at_rooms();
        }
        let low = |id: &MemberId| {
            let process = self.members.get(id).filter(|member| !member.paused).and_then(|m| m.process.as_ref());
            process.is_some_and(|process| is_known(process.low_since))
        };
        hold!(!low(&id), "I17 {id} takes what grows, and its own volume is nearly full for {KNOWN_US} µs and more");
        let leader = &self.members[&id];
        let led_since = leader.process.as_ref().filter(|_| !leader.paused).and_then(|process| process.led_since);
        if !is_known(led_since) || !is_known(self.net_calm_since) {
            return Ok(true);
        }
        for voters in [&config.voters, &config.voters_outgoing] {
            let without = voters.iter().filter(|id| low(id)).count();
            hold!(
                2 * without < voters.len() || voters.is_empty(),
                "I17 {id} takes what grows, and {without} of {voters:?} have had no room for {KNOWN_US} µs and more"
            );
        }
        Ok(true)
    }

    /// Looks at the volumes from outside.
    pub(crate) fn look_at_rooms(&mut self) {
        let now = self.now;
        self.net_calm_since = self.net.is_calm(now).then(|| self.net_calm_since.unwrap_or(now));
        for member in self.members.values_mut() {
            let is_paused = member.paused;
            let Some(process) = member.process.as_mut() else { continue };
            let is_low = !is_paused && process.log.space().is_ok_and(|space| space.is_low);
            process.low_since = is_low.then(|| process.low_since.unwrap_or(now));
        }
    }
}
