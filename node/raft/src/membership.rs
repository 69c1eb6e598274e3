//! Configurations: which one is active, which is committed, and what a change makes of one.
//!
//! A configuration is active as soon as it is appended; the history lets a truncation roll it back. Whether a change
//! may be made *now* (leader ready, voters alive) is the leader's decision, in [`crate::node`].
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice", chapter 4 (thesis §4.1 to §4.3).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::{CONFIG_MEMBERS_MAX, CONFIG_REMOVED_MAX, check_config, check_info};
use crate::io::{Change, Refusal};
use crate::types::{Config, ConfigAt, Index, MemberId, MemberInfo, SnapMeta};

/// A configuration and its place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Placed {
    pub at: ConfigAt,
    pub config: Arc<Config>,
}

/// Every configuration from the cut of the log on.
///
/// # Invariants
/// - never empty; places ascend
/// - the first one is active at the cut
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct History(VecDeque<Placed>);

impl History {
    pub(crate) fn new(meta: &SnapMeta) -> History {
        History(VecDeque::from([Placed { at: meta.config_at, config: Arc::new(meta.config.clone()) }]))
    }

    pub(crate) fn newest(&self) -> &Placed {
        self.0.back().expect("a history is never empty")
    }

    /// The one active at `index`.
    pub(crate) fn at(&self, index: Index) -> &Placed {
        self.0.iter().rev().find(|placed| placed.at.index <= index).unwrap_or(&self.0[0])
    }

    pub(crate) fn push(&mut self, placed: Placed) {
        assert!(placed.at.index > self.newest().at.index, "configurations are appended in order");
        self.0.push_back(placed);
    }

    /// Forgets configurations above `index`. Returns whether there were any.
    pub(crate) fn truncate_to(&mut self, index: Index) -> bool {
        let before = self.0.len();
        while self.0.len() > 1 && self.newest().at.index > index {
            self.0.pop_back();
        }
        self.0.len() < before
    }

    /// Forgets configurations that a later one at or below `index` replaced.
    pub(crate) fn cut_to(&mut self, index: Index) {
        while self.0.get(1).is_some_and(|second| second.at.index <= index) {
            self.0.pop_front();
        }
    }

    /// Every configuration under other names.
    pub(crate) fn rewrite(&mut self, rename: impl Fn(&Config) -> Config) {
        for placed in &mut self.0 {
            placed.config = Arc::new(rename(&placed.config));
        }
    }

    /// Those in (from, upto], in order.
    pub(crate) fn between(&self, from: Index, upto: Index) -> Vec<Placed> {
        self.0.iter().filter(|placed| placed.at.index > from && placed.at.index <= upto).cloned().collect()
    }
}

/// What a change makes of a configuration that is committed and not joint.
///
/// # Errors
/// The rule of membership that forbids it; the configuration stays as it is.
pub fn changed(config: &Config, change: &Change) -> Result<Config, Refusal> {
    let mut next = config.clone();
    match change {
        Change::AddLearner { id, info } => {
            check_new_id(config, *id)?;
            check_limits(info)?;
            next.learners.insert(*id);
            next.members.insert(*id, info.clone());
        }
        Change::Promote { id, .. } => {
            check_learner(config, *id)?;
            next.learners.remove(id);
            next.voters.insert(*id);
        }
        Change::Demote { id } => {
            check_voter(config, *id)?;
            next.voters.remove(id);
            next.learners.insert(*id);
        }
        Change::Remove { id } => {
            check_member(config, *id)?;
            next.voters.remove(id);
            next.learners.remove(id);
            forget(&mut next, *id);
        }
        Change::Swap { new, old, .. } => {
            check_learner(config, *new)?;
            check_voter(config, *old)?;
            next.voters_outgoing = config.voters.clone();
            next.learners.remove(new);
            next.voters.insert(*new);
            next.voters.remove(old);
        }
        Change::UpdateInfo { id, info } => {
            check_member(config, *id)?;
            check_limits(info)?;
            next.members.insert(*id, info.clone());
        }
    }
    check_whole(&next)?;
    Ok(next)
}

/// The configuration behind a joint one: only the new half votes, who was only in the old half is removed.
pub(crate) fn left_joint(config: &Config) -> Config {
    let mut next = config.clone();
    next.voters_outgoing.clear();
    for id in config.voters_outgoing.difference(&config.voters) {
        forget(&mut next, *id);
    }
    check_config(&next).expect("leaving a joint configuration keeps its invariants");
    next
}

fn forget(config: &mut Config, id: MemberId) {
    config.members.remove(&id);
    config.removed.insert(id);
}

fn check_new_id(config: &Config, id: MemberId) -> Result<(), Refusal> {
    if id.0 == 0 {
        return Err(Refusal::UnknownMember { id });
    }
    if config.contains(id) || config.removed.contains(&id) {
        return Err(Refusal::AlreadyMember { id });
    }
    Ok(())
}

fn check_member(config: &Config, id: MemberId) -> Result<(), Refusal> {
    if config.contains(id) { Ok(()) } else { Err(Refusal::UnknownMember { id }) }
}

fn check_learner(config: &Config, id: MemberId) -> Result<(), Refusal> {
    check_member(config, id)?;
    if config.learners.contains(&id) { Ok(()) } else { Err(Refusal::NotLearner { id }) }
}

fn check_voter(config: &Config, id: MemberId) -> Result<(), Refusal> {
    check_member(config, id)?;
    if config.voters.contains(&id) { Ok(()) } else { Err(Refusal::NotVoter { id }) }
}

fn check_limits(info: &MemberInfo) -> Result<(), Refusal> {
    check_info(info).map_err(|(bytes, limit_bytes)| Refusal::TooLarge { bytes, limit_bytes })
}

fn check_whole(next: &Config) -> Result<(), Refusal> {
    if next.voters.is_empty() {
        return Err(Refusal::QuorumAtRisk { live_after: 0, quorum_after: 1 });
    }
    for (bytes, limit_bytes) in
        [(next.members.len(), CONFIG_MEMBERS_MAX), (next.removed.len() + next.members.len(), CONFIG_REMOVED_MAX)]
    {
        if bytes > limit_bytes {
            return Err(Refusal::TooLarge { bytes, limit_bytes });
        }
    }
    check_config(next).expect("a change keeps the invariants of a configuration");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().map(|id| MemberId(*id)).collect()
    }

    fn config(voters: &[u64], learners: &[u64], removed: &[u64]) -> Config {
        let members: BTreeMap<_, _> =
            ids(voters).union(&ids(learners)).map(|id| (*id, MemberInfo::default())).collect();
        Config {
            voters: ids(voters),
            voters_outgoing: BTreeSet::new(),
            learners: ids(learners),
            members,
            removed: ids(removed),
        }
    }

    #[test]
    fn each_change_does_what_it_says_and_nothing_else() {
        let start = config(&[1, 2, 3], &[4], &[9]);
        let info = MemberInfo { name: "m5".into(), ..MemberInfo::default() };
        let added = changed(&start, &Change::AddLearner { id: MemberId(5), info: info.clone() }).unwrap();
        assert_eq!(added.learners, ids(&[4, 5]));
        assert_eq!(added.members[&MemberId(5)], info);
        assert_eq!(
            changed(&start, &Change::Promote { id: MemberId(4), lag_max: 0 }),
            Ok(config(&[1, 2, 3, 4], &[], &[9]))
        );
        assert_eq!(changed(&start, &Change::Demote { id: MemberId(3) }), Ok(config(&[1, 2], &[3, 4], &[9])));
        assert_eq!(changed(&start, &Change::Remove { id: MemberId(3) }), Ok(config(&[1, 2], &[4], &[3, 9])));
        assert_eq!(changed(&start, &Change::Remove { id: MemberId(4) }), Ok(config(&[1, 2, 3], &[], &[4, 9])));
    }

    #[test]
    fn a_swap_keeps_the_old_voter_until_the_joint_configuration_is_left() {
        let start = config(&[1, 2, 3], &[4], &[]);
        let joint = changed(&start, &Change::Swap { new: MemberId(4), old: MemberId(3), lag_max: 0 }).unwrap();
        assert_eq!((&joint.voters, &joint.voters_outgoing), (&ids(&[1, 2, 4]), &ids(&[1, 2, 3])));
        assert!(joint.contains(MemberId(3)));
        assert_eq!(left_joint(&joint), config(&[1, 2, 4], &[], &[3]));
    }

    #[test]
    fn changes_that_break_a_rule_are_refused_with_the_rule() {
        let start = config(&[1, 2], &[4], &[9]);
        let add = |id| Change::AddLearner { id: MemberId(id), info: MemberInfo::default() };
        for (change, refusal) in [
            (add(9), Refusal::AlreadyMember { id: MemberId(9) }),
            (add(1), Refusal::AlreadyMember { id: MemberId(1) }),
            (add(0), Refusal::UnknownMember { id: MemberId(0) }),
            (Change::Promote { id: MemberId(1), lag_max: 0 }, Refusal::NotLearner { id: MemberId(1) }),
            (Change::Promote { id: MemberId(7), lag_max: 0 }, Refusal::UnknownMember { id: MemberId(7) }),
            (Change::Demote { id: MemberId(4) }, Refusal::NotVoter { id: MemberId(4) }),
            (Change::Remove { id: MemberId(9) }, Refusal::UnknownMember { id: MemberId(9) }),
        ] {
            assert_eq!(changed(&start, &change), Err(refusal), "{change:?}");
        }
        let alone = config(&[1], &[], &[]);
        let refused = changed(&alone, &Change::Remove { id: MemberId(1) });
        assert_eq!(refused, Err(Refusal::QuorumAtRisk { live_after: 0, quorum_after: 1 }));
    }

    #[test]
    fn a_name_the_wire_cannot_carry_is_refused_before_it_is_appended() {
        let info = MemberInfo { name: "n".repeat(257), ..MemberInfo::default() };
        let change = Change::UpdateInfo { id: MemberId(1), info };
        assert_eq!(changed(&config(&[1], &[], &[]), &change), Err(Refusal::TooLarge { bytes: 257, limit_bytes: 256 }));
    }
}
