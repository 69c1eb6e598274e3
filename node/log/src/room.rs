//! Who may let the log grow: the leader alone can stop it, so it must know of every volume that is nearly full.
//!
//! A follower cannot refuse what a leader sends. Members therefore tell now and then whether theirs is low
//! ([`crate::Space::is_low`]), and the leader takes nothing that grows while too few have room. What makes room, votes and
//! the leader's own entries go on.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::quorum::majority;
use quorate_raft::types::{Config, MemberId, Time};

/// What a member told is believed this long: ten times as long as until it tells again.
pub const ROOM_BELIEVED_US: u64 = 10 * ROOM_TOLD_EVERY_US;
/// How often a member tells.
pub const ROOM_TOLD_EVERY_US: u64 = 1_000_000;

/// Which members told when that their volume is nearly full, or is not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rooms {
    told: BTreeMap<MemberId, (Time, bool)>,
}

impl Rooms {
    /// A member, or this one, tells. What is too old is forgotten.
    pub fn note(&mut self, now: Time, who: MemberId, is_low: bool) {
        self.told.insert(who, (now, is_low));
        self.told.retain(|_, (told, _)| now.since(*told) < ROOM_BELIEVED_US);
    }

    /// Whether `leader` must refuse what grows: its own volume is nearly full, or those of so many voters that no majority
    /// is left without. Who told nothing counts as having room.
    pub fn must_not_grow(&self, leader: MemberId, config: &Config) -> bool {
        let is_low = |id: &MemberId| self.told.get(id).is_some_and(|(_, is_low)| *is_low);
        let lacks = |voters: &BTreeSet<MemberId>| {
            let with_room = voters.iter().filter(|id| !is_low(id)).count();
            !voters.is_empty() && with_room < majority(voters.len())
        };
        is_low(&leader) || lacks(&config.voters) || lacks(&config.voters_outgoing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(low: &[u64]) -> Rooms {
        let mut rooms = Rooms::default();
        for id in 1..=6 {
            rooms.note(Time(0), MemberId(id), low.contains(&id));
        }
        rooms
    }

    #[test]
    fn growth_ends_when_no_majority_has_room_or_the_leader_has_none() {
        let ids = |numbers: &[u64]| numbers.iter().map(|id| MemberId(*id)).collect();
        let config = Config { voters: ids(&[1, 2, 3]), ..Config::default() };
        assert!(!told(&[]).must_not_grow(MemberId(1), &config));
        assert!(!told(&[3]).must_not_grow(MemberId(1), &config), "one follower behind is none that commits");
        assert!(told(&[2, 3]).must_not_grow(MemberId(1), &config));
        assert!(told(&[1]).must_not_grow(MemberId(1), &config));
        let joint = Config { voters_outgoing: ids(&[4, 5, 6]), ..config };
        assert!(told(&[4, 5]).must_not_grow(MemberId(1), &joint), "both halves must have room");
        assert!(!told(&[3, 4]).must_not_grow(MemberId(1), &joint));
    }

    #[test]
    fn what_was_told_long_ago_is_forgotten() {
        let config = Config { voters: (1..=3).map(MemberId).collect(), ..Config::default() };
        let mut rooms = told(&[2, 3]);
        rooms.note(Time(ROOM_BELIEVED_US - 1), MemberId(1), false);
        assert!(rooms.must_not_grow(MemberId(1), &config));
        rooms.note(Time(ROOM_BELIEVED_US), MemberId(1), false);
        assert!(!rooms.must_not_grow(MemberId(1), &config));
    }
}
