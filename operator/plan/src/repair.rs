//! Another member in the place of one that nobody hears.
//!
//! A proven loss needs no time to pass, see `membership::mark_leavers`. Silence is no proof: the new member is brought up as a
//! learner beside the silent one, and only when it has everything the silent one is marked and swapped out. Until then the
//! silent one may come back, or the spec may change, and the learner goes instead.

use quorate_api::FailureDomainKey;

use crate::mutants::{Mutant, is_planted};
use crate::observation::{MemberId, MemberRecord, Pod, Running};
use crate::planner::Pass;
use crate::report::Waiting;
use crate::roll::{is_up, runs};
use crate::topology::{Place, builds_majority};
use crate::view::{Disk, Leader, View, quorum};

/// The silence from which a member that is waited for is told to be silent and counts as down, not as restarting, in
/// milliseconds: longer than a pod is made anew.
const TOLD_MS_MIN: u64 = 30_000;
/// A pod older than this, in milliseconds, is no longer on its way back from a restart.
const RESTART_MS_MAX: u64 = 120_000;

/// The voter that is to be replaced because it was silent for too long; one at a time.
///
/// Time alone is not enough: a leader that a majority confirms has not heard it, the others are a caught-up quorum, and what
/// the new member would run is proven by a member that runs it.
pub(crate) fn overdue<'a>(pass: &Pass<'a>, leader: Leader<'_>) -> Option<&'a MemberRecord> {
    let after_ms = pass.cluster.replace_after_ms?;
    if pass.voter_records(leader).iter().any(|r| r.retirement.is_some()) {
        return None;
    }
    let keepers = pass.keepers(leader);
    let late = |r: &&MemberRecord| {
        let silent_ms = silence_ms(pass, leader, r);
        silent_ms >= after_ms || (silent_ms > 0 && is_planted(Mutant::ReplaceTooSoon))
    };
    // Who is surplus anyway is removed, not replaced.
    if keepers.len() > pass.cluster.replicas || leader.caught_up_count() < quorum(leader.voters().count()) {
        return None;
    }
    let proven = |r: &&MemberRecord| runs(r, &pass.template_hash) && is_up(pass, leader, r);
    let silent = keepers.iter().copied().filter(late).min_by_key(|r| r.name.as_str())?;
    (keepers.iter().any(proven) || is_planted(Mutant::ReplaceUnproven)).then_some(silent)
}

/// How long neither leader nor operator have heard a member that is to run and has its disk.
fn silence_ms(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> u64 {
    let awaited = record.running == Running::Started
        && !pass.is_fenced(record)
        && pass.view.disk(record) == Disk::Sound
        && pass.view.word(record).is_none();
    record.member_id.filter(|_| awaited).map_or(0, |id| leader.silence_ms(id))
}

/// A member that just got the newest template and is not back from the restart yet, with nothing that keeps it from coming.
///
/// By the leader's word: who answers the operator but not the leader is of no use. And for a while only: who is heard and never
/// catches up would hold up the rest for ever.
pub(crate) fn is_coming_back(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> bool {
    let is_young = |pod: &Pod| pass.now_ms.saturating_sub(pod.created_ms) < RESTART_MS_MAX;
    record.template_hash == pass.template_hash
        && record.pod.as_ref().is_none_or(is_young)
        && record.running == Running::Started
        && !pass.is_fenced(record)
        && pass.view.disk(record) == Disk::Sound
        && View::refusal(record).is_none()
        && record.member_id.is_some_and(|id| leader.silence_ms(id) < TOLD_MS_MIN)
        && !is_planted(Mutant::ShrinkBeforeRoll)
}

/// What a member that is not back is waited for, and for how long.
pub(crate) fn awaited(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> Waiting {
    let member = record.name.clone();
    let silent_ms = silence_ms(pass, leader, record);
    if let Some(replaced_after_ms) = pass.cluster.replace_after_ms
        && silent_ms >= TOLD_MS_MIN
    {
        return Waiting::MemberSilent { member, silent_ms, replaced_after_ms, reason: View::why_down(record) };
    }
    if View::is_ending(record) {
        return Waiting::PodStopping { member };
    }
    let told = pass.view.word(record).map(|w| w.not_ready_reason.clone()).filter(|reason| !reason.is_empty());
    Waiting::MemberStarting { member, reason: told.unwrap_or_else(|| View::why_down(record)) }
}

/// The domain that would get a majority of the voters if `new` took the place of `old`, or when all who leave are gone then: its
/// loss would be the cluster's.
pub(crate) fn crowds_domain(pass: &Pass<'_>, leader: Leader<'_>, new: MemberId, old: MemberId) -> Option<Waiting> {
    let voters = || leader.voters().map(|v| v.id);
    let swapped: Vec<MemberId> = voters().filter(|id| *id != old).chain([new]).collect();
    let leaves = |id: &MemberId| pass.record_of(*id).is_some_and(|r| r.retirement.is_some());
    let stay: Vec<MemberId> = voters().filter(|id| *id != old && !leaves(id)).chain([new]).collect();
    // While another newcomer is to follow, where that will be is not known.
    let keepers = pass.keepers(leader).into_iter().filter(|r| r.member_id != Some(old));
    let is_last = keepers.count() + 1 >= pass.cluster.replicas;
    crowded_after(pass, leader, new, &swapped)
        .or_else(|| is_last.then(|| crowded_after(pass, leader, new, &stay)).flatten())
}

fn crowded_after(pass: &Pass<'_>, leader: Leader<'_>, new: MemberId, after: &[MemberId]) -> Option<Waiting> {
    let before: Vec<MemberId> = leader.voters().map(|v| v.id).collect();
    let member = pass.record_of(new).map(|r| r.name.clone()).unwrap_or_default();
    pass.cluster.domains.iter().find_map(|key| {
        let place = |id: &MemberId| {
            let pod = pass.record_of(*id).and_then(|r| r.pod.as_ref());
            Place { domain: pod.and_then(|pod| domain_of(pod, *key)), is_caught_up: true }
        };
        let places = |ids: &[MemberId]| ids.iter().map(place).collect::<Vec<_>>();
        let (domain, inside) = builds_majority(&places(&before), &places(after))?;
        Some(Waiting::DomainMajority {
            member: member.clone(),
            domain: domain.to_owned(),
            inside,
            inside_max: after.len() - quorum(after.len()),
        })
    })
}

pub(crate) fn domain_of(pod: &Pod, key: FailureDomainKey) -> Option<&str> {
    match key {
        FailureDomainKey::Zone => pod.zone.as_deref(),
        FailureDomainKey::Hostname => pod.node.as_deref(),
    }
}
