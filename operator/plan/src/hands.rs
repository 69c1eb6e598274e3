//! What a person asked for by hand: leadership elsewhere, a member stopped, a pod made anew.
//!
//! Nothing here is done that the planner would not do of its own accord: the same margin, one voter at a time, leadership moved
//! first. What has to wait is set aside, so that it never stands in the way of what would heal.

use crate::mutants::{Mutant, is_planted};
use crate::observation::{MemberRecord, Running};
use crate::planner::{Next, Pass, act, record_ref};
use crate::report::{Blocked, Decision, Waiting};
use crate::roll::{is_up, restart};
use crate::step::Step;
use crate::view::{Leader, quorum};

impl Pass<'_> {
    pub fn is_fenced(&self, record: &MemberRecord) -> bool {
        self.cluster.asked.fenced.contains(&record.name)
    }
}

/// Leadership goes to the member that was named, while the term is the one it was named in.
pub(crate) fn transfer_asked(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let asked = pass.cluster.asked.transfer.as_ref()?;
    if asked.term != leader.word.term && !is_planted(Mutant::ObeyOldTransfer) {
        return None;
    }
    let record = pass.keepers(leader).into_iter().find(|r| r.name == asked.to)?;
    let to = record.member_id.filter(|id| *id != leader.id())?;
    // Who is behind or silent is told by the last concern, and asked again when it is back.
    let able = pass.view.word(record).is_some() && leader.is_caught_up(to) && !pass.is_fenced(record);
    if !able {
        return None;
    }
    act(Step::TransferLeader { leader: leader.id(), to, expect_term: leader.word.term })
}

/// Stops a fenced voter, if the others do without it: unlike for an edit, no size is exempt, since this is no short pause.
pub(crate) fn fence_asked(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for record in pass.keepers(leader) {
        if !pass.is_fenced(record) || record.running == Running::Stopped {
            continue;
        }
        if let Some(waiting) = fence_must_wait(pass, leader, record) {
            pass.aside.push(waiting);
            continue;
        }
        if record.member_id == Some(leader.id()) && !is_planted(Mutant::NoTransferFirst) {
            return Some(pass.transfer_away(leader));
        }
        return act(Step::StopMember { record: record_ref(record) });
    }
    None
}

fn fence_must_wait(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> Option<Waiting> {
    let member = record.name.clone();
    if let Some(other) = other_down(pass, leader, record).filter(|_| !is_planted(Mutant::TwoAtOnce)) {
        return Some(Waiting::OneAtATime { member, other: other.name.clone() });
    }
    let counted = record.member_id.is_some_and(|id| leader.is_caught_up(id));
    let (caught_up, needed) = (leader.caught_up_count(), quorum(leader.voters().count()) + usize::from(counted));
    let short = caught_up < needed && !is_planted(Mutant::NoMarginBeforeFence);
    short.then_some(Waiting::NoMargin { member, caught_up, needed })
}

/// Makes pods anew that were asked for by UID: followers first, the leader last.
pub(crate) fn restart_asked(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let rank = |r: &&MemberRecord| (r.member_id == Some(leader.id()), is_up(pass, leader, r), r.name.clone());
    let record = pass.keepers(leader).into_iter().filter(|r| restart_is_asked(pass, r)).min_by_key(rank)?;
    let other = other_down(pass, leader, record).filter(|_| !is_planted(Mutant::TwoAtOnce));
    let decision = match other {
        Some(other) => Decision::Wait(Waiting::OneAtATime { member: record.name.clone(), other: other.name.clone() }),
        None => restart(pass, leader, record),
    };
    match decision {
        Decision::Wait(waiting) => {
            pass.aside.push(waiting);
            None
        }
        Decision::Steady | Decision::Act(_) | Decision::Blocked(_) => Some(decision),
    }
}

/// The very pod that was named still runs. A later one has fulfilled the request.
pub(crate) fn restart_is_asked(pass: &Pass<'_>, record: &MemberRecord) -> bool {
    let uid = pass.cluster.asked.restarts.get(&record.name);
    uid.is_some() && uid == record.pod.as_ref().map(|p| &p.uid) && !pass.is_fenced(record)
}

/// Another of our voters that is not up, for whatever reason. One is enough.
fn other_down<'a>(pass: &Pass<'a>, leader: Leader<'_>, record: &MemberRecord) -> Option<&'a MemberRecord> {
    pass.keepers(leader).into_iter().find(|r| r.name != record.name && !is_up(pass, leader, r))
}

/// What is left when everything else is done: requests that nobody understands, and members that stay stopped.
pub(crate) fn told_to_stay(pass: &mut Pass<'_>, _: Leader<'_>) -> Next {
    let requests = &pass.cluster.asked;
    if !requests.problems.is_empty() {
        return Some(Decision::Blocked(Blocked::RequestRefused { problems: requests.problems.clone() }));
    }
    let stays = |r: &&MemberRecord| pass.is_fenced(r) && r.running == Running::Stopped && r.retirement.is_none();
    let stopped: Vec<_> = pass.view.records.values().copied().filter(stays).map(|r| r.name.clone()).collect();
    (pass.aside.is_empty() && !stopped.is_empty())
        .then_some(Decision::Blocked(Blocked::MemberFenced { members: stopped }))
}
