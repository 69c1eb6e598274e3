//! Brings a changed template to the members: unhealthy first, then followers, the leader last after it handed over.
//!
//! One at a time. The next one waits until the one before is caught up on the new template, so a bad template costs one member,
//! and going back heals it without hands.

use crate::mutants::{Mutant, is_planted};
use crate::observation::{MemberRecord, Running, Termination};
use crate::planner::{Next, Pass, act, record_ref};
use crate::report::{Blocked, Decision, Operation, Waiting};
use crate::step::{Eviction, Step};
use crate::view::{Leader, View, quorum};

/// Voters up to which no member can go down without a pause in service. The edit itself asks for that pause.
const SIZE_WITHOUT_MARGIN: usize = 2;

pub(crate) fn roll(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let members = pass.keepers(leader);
    let outdated: Vec<_> = members.iter().copied().filter(|r| r.template_hash != pass.template_hash).collect();
    for record in members.iter().copied().filter(|r| r.template_hash == pass.template_hash) {
        if !runs(record, &pass.template_hash)
            && record.pod.as_ref().is_some_and(|p| p.template_hash != pass.template_hash)
        {
            pass.operate(Operation::Upgrade, Some(&record.name));
            return Some(restart(pass, leader, record));
        }
        let proven = runs(record, &pass.template_hash) && is_up(pass, leader, record);
        if pass.is_fenced(record) && record.running == Running::Stopped {
            // It is down on a person's word, and one voter at a time is.
            if let Some(next) = outdated.first() {
                pass.operate(Operation::Upgrade, Some(&next.name));
                let (member, other) = (next.name.clone(), record.name.clone());
                return Some(Decision::Wait(Waiting::OneAtATime { member, other }));
            }
            continue;
        }
        if !proven && !outdated.is_empty() && !is_planted(Mutant::NoCanary) {
            pass.operate(Operation::Upgrade, Some(&record.name));
            return Some(canary(record));
        }
    }
    let rank = |r: &&MemberRecord| (r.member_id == Some(leader.id()), is_up(pass, leader, r), r.name.clone());
    let record = outdated.into_iter().min_by_key(rank)?;
    pass.operate(Operation::Upgrade, Some(&record.name));
    let clear = may_go_down(pass, leader, record);
    clear.or_else(|| act(Step::ApplyTemplate { record: record_ref(record), template_hash: pass.template_hash.clone() }))
}

pub(crate) fn runs(record: &MemberRecord, template_hash: &str) -> bool {
    record.pod.as_ref().is_some_and(|p| p.template_hash == template_hash && p.termination == Termination::No)
}

pub(crate) fn is_up(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> bool {
    record.member_id.is_some_and(|id| leader.is_caught_up(id)) && pass.view.word(record).is_some()
}

/// The first member on the new template is not caught up yet, or cannot start.
fn canary(record: &MemberRecord) -> Decision {
    let reason = View::why_down(record);
    let member = record.name.clone();
    if View::refusal(record).is_some() {
        Decision::Blocked(Blocked::CanaryFailed { member, reason })
    } else {
        Decision::Wait(Waiting::MemberStarting { member, reason })
    }
}

pub(crate) fn restart(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> Decision {
    if let Some(hold) = may_go_down(pass, leader, record) {
        return hold;
    }
    let Some(pod) = record.pod.as_ref().filter(|p| p.termination == Termination::No) else {
        return Decision::Wait(Waiting::PodStopping { member: record.name.clone() });
    };
    let small = leader.voters().count() <= SIZE_WITHOUT_MARGIN;
    let evict = if small || !is_up(pass, leader, record) { Eviction::Delete } else { Eviction::Evict };
    Decision::Act(Step::RestartMember { record: record_ref(record), pod_uid: pod.uid.clone(), evict })
}

/// What must come first before this member goes down; nothing when it may.
///
/// A member that is down already may be touched when the others hold a quorum, or when its pod proves that nothing runs.
fn may_go_down(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> Option<Decision> {
    let voters = leader.voters().count();
    let caught_up = leader.caught_up_count();
    let counted = record.member_id.is_some_and(|id| leader.is_caught_up(id));
    let needed = match counted {
        false if View::is_proven_down(record) => 0,
        false => quorum(voters),
        true if voters <= SIZE_WITHOUT_MARGIN => voters,
        true => quorum(voters) + 1,
    };
    if caught_up < needed && !is_planted(Mutant::NoMarginBeforeRestart) {
        return Some(Decision::Wait(Waiting::NoMargin { member: record.name.clone(), caught_up, needed }));
    }
    let leads = record.member_id == Some(leader.id());
    (leads && voters > 1 && !is_planted(Mutant::NoTransferFirst)).then(|| pass.transfer_away(leader))
}

/// Gives a member that nobody counts on (a seed before bootstrap, a learner) the template of the spec.
pub(crate) fn fix_template(pass: &Pass<'_>, record: &MemberRecord) -> Next {
    if record.template_hash != pass.template_hash {
        return act(Step::ApplyTemplate { record: record_ref(record), template_hash: pass.template_hash.clone() });
    }
    let pod =
        record.pod.as_ref().filter(|p| p.template_hash != pass.template_hash && p.termination == Termination::No)?;
    act(Step::RestartMember { record: record_ref(record), pod_uid: pod.uid.clone(), evict: Eviction::Delete })
}

/// Without a leader only members whose pods prove that nothing runs get the spec's template, one at a time.
pub(crate) fn heal_without_leader(pass: &mut Pass<'_>) -> Next {
    let members: Vec<_> = pass.records().into_iter().filter(|r| r.retirement.is_none()).collect();
    let tried = |r: &&MemberRecord| runs(r, &pass.template_hash) && pass.view.word(r).is_none();
    if members.iter().any(tried) {
        return None;
    }
    let down = members.into_iter().find(|r| View::is_proven_down(r) && !runs(r, &pass.template_hash))?;
    let decision = fix_template(pass, down);
    if decision.is_some() {
        pass.operate(Operation::Upgrade, Some(&down.name));
    }
    decision
}
