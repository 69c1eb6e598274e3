//! Who is in, who comes, who leaves.
//!
//! Add: record, volume -> learner -> start -> caught up -> voter. Remove: mark -> leadership away -> out of the configuration
//! (committed) -> stop -> pod gone -> volume -> record. Replace: the new one caught up as a learner, then one joint change. Each
//! arrow is a new observation. Counts never remove anybody: a durable mark on a record does, and it names the member's id.

use std::cmp::Reverse;

use quorate_api::{ChangePolicy, Keep, names};

use crate::mutants::{Mutant, is_planted};
use crate::observation::{Deletion, MemberId, MemberRecord, MemberWord, RetireReason, Running, StartAs, Termination};
use crate::planner::{Next, Pass, act, record_ref, volume_ref};
use crate::repair::{crowds_domain, is_coming_back, overdue};
use crate::report::{Blocked, Decision, Operation, Waiting};
use crate::roll::fix_template;
use crate::step::{RecordFor, Step};
use crate::view::{Disk, LAG_ENTRIES_MAX, Leader, View, quorum};

/// A running learner that did not catch up this long after its record was made is dropped, in milliseconds.
pub const LEARNER_DEADLINE_MS: u64 = 600_000;
/// A pod that is younger is a newcomer, to whom leadership goes only for want of another.
const SETTLED_MS: u64 = 10_000;

/// Members of ours that were stopped, by hand or all together, or whose record came back, run again. Their disk knows who they
/// are.
pub(crate) fn start_stopped(pass: &mut Pass<'_>) -> Next {
    for record in pass.view.records.values() {
        let stays = record.deletion == Deletion::No && (record.retirement.is_none() || is_needed_to_wake(pass, record));
        if record.start == Some(StartAs::Seed) && record.running == Running::Stopped && stays {
            // Not sealed, so never activated: it may found its cluster again, nobody was promised anything.
            if pass.view.disk(record) == Disk::Sound {
                return act(start_as(record, pass, StartAs::Seed));
            }
        }
        let (Some(StartAs::Member), Running::Stopped, true) = (record.start, record.running, stays) else { continue };
        let stray = pass.view.observed.volumes.iter().find(|v| v.record == record.name && v.deletion == Deletion::No);
        if let (None, Some(volume)) = (pass.view.volume(record), stray) {
            return act(Step::AdoptVolume { record: record_ref(record), volume: volume_ref(volume) });
        }
        let stays_stopped = pass.is_fenced(record) && !is_planted(Mutant::StartFenced);
        if record.member_id.is_some() && pass.view.disk(record) == Disk::Sound && !stays_stopped {
            return act(start(record, pass));
        }
    }
    None
}

/// A member that leaves votes until its removal is committed: asleep with the others, it may be what their quorum lacks.
fn is_needed_to_wake(pass: &Pass<'_>, record: &MemberRecord) -> bool {
    let votes_still = |word: &MemberWord| word.members.iter().any(|m| Some(m.id) == record.member_id && !m.is_learner);
    let votes = match pass.view.configuration() {
        Some(word) => votes_still(word),
        None => true,
    };
    record.member_id.is_some() && votes && pass.view.leader.is_none() && !is_planted(Mutant::WakeWithoutLeavers)
}

fn start(record: &MemberRecord, pass: &Pass<'_>) -> Step {
    start_as(record, pass, StartAs::Member)
}

fn start_as(record: &MemberRecord, pass: &Pass<'_>, start: StartAs) -> Step {
    Step::StartMember {
        record: record_ref(record),
        start,
        member_id: record.member_id,
        template_hash: pass.template_hash.clone(),
    }
}

/// Writes ids down as soon as the committed configuration gives them.
pub(crate) fn record_ids(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for record in pass.records().into_iter().filter(|r| r.member_id.is_none()) {
        let mut named = leader.word.members.iter().filter(|m| m.name == record.name && !m.is_outgoing);
        match (named.next(), named.next()) {
            (Some(_), Some(_)) => {
                return Some(Decision::Blocked(Blocked::AmbiguousMember { name: record.name.clone() }));
            }
            (Some(member), None) => {
                let seed = record.start == Some(StartAs::Seed);
                pass.operate(if seed { Operation::Bootstrap } else { Operation::ScaleOut }, Some(&record.name));
                return act(Step::RecordMemberId { record: record_ref(record), member_id: member.id });
            }
            (None, _) => {}
        }
    }
    None
}

/// A member of ours without a record gets it back; a foreign one is reported and left alone.
pub(crate) fn restore_records(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for member in leader.word.members.iter().filter(|m| !m.is_outgoing) {
        if pass.record_of(member.id).is_some() {
            continue;
        }
        let ours = names::is_member_of(&pass.cluster.identity.name, &member.name);
        if ours && !pass.view.records.contains_key(member.name.as_str()) {
            return act(Step::CreateMember {
                name: member.name.clone(),
                template_hash: pass.template_hash.clone(),
                purpose: RecordFor::Returning(member.id),
            });
        }
        pass.report.foreign.push(member.id);
    }
    None
}

/// Marks who must go whatever the spec says: lost, deleted by hand, removed by hand.
pub(crate) fn mark_leavers(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for record in pass.records().into_iter().filter(|r| r.retirement.is_none()) {
        let in_configuration = record.member_id.map(|id| leader.word.members.iter().any(|m| m.id == id));
        let reason = match in_configuration {
            Some(false) => RetireReason::RemovedByHand,
            _ if record.deletion == Deletion::Requested => RetireReason::RecordDeleted,
            Some(true) if pass.view.disk(record) == Disk::Lost => RetireReason::Lost,
            Some(true) | None => continue,
        };
        let replaced = reason != RetireReason::RemovedByHand;
        pass.operate(if replaced { Operation::ReplaceMember } else { Operation::ScaleIn }, Some(&record.name));
        return act(mark(record, leader, reason));
    }
    replace_asked(pass, leader)
}

/// A member that is to be replaced at a person's wish; one at a time, for each may cost a transfer of leadership.
fn replace_asked(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    if pass.view.records.values().any(|r| r.retirement.is_some()) {
        return None;
    }
    let asked = |r: &&MemberRecord| {
        let id = r.member_id.filter(|id| leader.member(*id).is_some()).map(|id| id.to_string());
        id.is_some() && id.as_ref() == pass.cluster.asked.replaced.get(&r.name)
    };
    let record = pass.records().into_iter().find(asked)?;
    pass.operate(Operation::ReplaceMember, Some(&record.name));
    act(mark(record, leader, RetireReason::Requested))
}

/// Volumes that are larger than wanted, or of another class, are left by replacing their members: one at a time, leader last.
pub(crate) fn move_volumes(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let storage = &pass.cluster.storage;
    if storage.change != ChangePolicy::Replace {
        return None;
    }
    if pass.view.records.values().any(|r| r.retirement.is_some()) && !is_planted(Mutant::MoveAllAtOnce) {
        return None;
    }
    let is_wrong = |r: &&MemberRecord| {
        let volume = pass.view.volume(r);
        volume
            .is_some_and(|v| v.size_bytes > storage.size_bytes || (storage.class.is_some() && v.class != storage.class))
    };
    let rank = |r: &&MemberRecord| (r.member_id == Some(leader.id()), r.name.clone());
    let record = pass.keepers(leader).into_iter().filter(is_wrong).min_by_key(rank)?;
    pass.operate(Operation::ReplaceMember, Some(&record.name));
    act(mark(record, leader, RetireReason::VolumeChange))
}

fn mark(record: &MemberRecord, leader: Leader<'_>, reason: RetireReason) -> Step {
    Step::MarkRetiring {
        record: record_ref(record),
        member_id: record.member_id,
        config_at: leader.config_at(),
        reason,
    }
}

/// Takes down what belongs to members that are committed to be out.
pub(crate) fn clean_up_removed(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for record in pass.records().into_iter().filter(|r| r.retirement.is_some()) {
        let inside = leader.word.members.iter().any(|m| record.member_id == Some(m.id) || record.name == m.name);
        if inside && !is_planted(Mutant::StopBeforeRemoval) {
            continue;
        }
        if let Some(decision) = clean_up(pass, record) {
            pass.operate(Operation::ScaleIn, Some(&record.name));
            return Some(decision);
        }
    }
    None
}

/// Stop -> pod gone -> volume -> record. What takes long is set aside.
pub(crate) fn clean_up(pass: &mut Pass<'_>, record: &MemberRecord) -> Next {
    let member = || record.name.clone();
    if record.running == Running::Started && record.deletion == Deletion::No {
        return act(Step::StopMember { record: record_ref(record) });
    }
    if let Some(pod) = &record.pod {
        // The controller of a record under deletion no longer heeds `replicas: 0`.
        if record.deletion == Deletion::Requested && pod.termination == Termination::No {
            return act(Step::DeletePod { record: record_ref(record), pod_uid: pod.uid.clone() });
        }
        if !is_planted(Mutant::VolumeBeforePod) {
            pass.aside.push(Waiting::PodStopping { member: member() });
            return None;
        }
    }
    match pass.view.volume(record) {
        Some(volume) if volume.deletion == Deletion::Requested => {
            pass.aside.push(Waiting::VolumeDeleting { member: member() });
            None
        }
        // A volume that never had a process holds nothing worth keeping.
        Some(volume) if record.start.is_none() || pass.cluster.storage.removed_member == Keep::Delete => {
            act(Step::DeleteVolume { volume: volume_ref(volume) })
        }
        Some(volume) => act(Step::ReleaseVolume { volume: volume_ref(volume) }),
        None => act(Step::DropRecord { record: record_ref(record) }),
    }
}

/// Takes marked members out of the configuration, unless a replacement is still to come for a voter.
pub(crate) fn remove_retiring(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let enough = pass.keepers(leader).len() >= pass.cluster.replicas || is_planted(Mutant::RemoveBeforeReplacement);
    for record in pass.records().into_iter().filter(|r| r.retirement.is_some()) {
        let Some(member) = record.member_id.and_then(|id| leader.member(id)) else { continue };
        if member.is_learner {
            pass.operate(Operation::ScaleIn, Some(&record.name));
            return act(removal(record, member.id, leader));
        }
        if enough {
            pass.operate(Operation::ScaleIn, Some(&record.name));
            return Some(remove_voter(pass, leader, record, member.id));
        }
    }
    None
}

fn removal(record: &MemberRecord, member_id: MemberId, leader: Leader<'_>) -> Step {
    Step::RemoveMember { name: record.name.clone(), member_id, leader: leader.id(), expect: leader.config_at() }
}

fn remove_voter(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord, id: MemberId) -> Decision {
    if leader.id() == id && !is_planted(Mutant::NoTransferFirst) {
        return pass.transfer_away(leader);
    }
    let left: Vec<_> = leader.voters().filter(|v| v.id != id).map(|v| v.id).collect();
    match at_risk(leader, &left, &record.name) {
        Some(waiting) if !is_planted(Mutant::NoMarginBeforeRemoval) => Decision::Wait(waiting),
        _ => Decision::Act(removal(record, id, leader)),
    }
}

/// A membership change needs a live, caught-up majority of both configurations: the old one commits it, the new one goes on.
fn at_risk(leader: Leader<'_>, after: &[MemberId], member: &str) -> Option<Waiting> {
    let caught_up_after = after.iter().filter(|id| leader.is_caught_up(**id)).count();
    let now = leader.caught_up_count() >= quorum(leader.voters().count());
    (!now || caught_up_after < quorum(after.len())).then(|| Waiting::QuorumAtRisk {
        member: member.to_owned(),
        caught_up_after,
        quorum_after: quorum(after.len()),
    })
}

/// Who leads next: caught up, staying; if there is a choice on the newest template, then no newcomer, then furthest.
pub(crate) fn successor(pass: &Pass<'_>, leader: Leader<'_>) -> Option<MemberId> {
    let staying = |r: &&MemberRecord| {
        let able = r.member_id.is_some_and(|id| id != leader.id() && leader.is_caught_up(id));
        able && pass.view.word(r).is_some() && !pass.is_fenced(r)
    };
    let rank = |r: &&MemberRecord| {
        let newest = r.pod.as_ref().is_some_and(|p| p.template_hash == pass.template_hash);
        // One that came a moment ago has cold caches and connections that are still being made.
        let settled = r.pod.as_ref().is_some_and(|p| pass.now_ms.saturating_sub(p.created_ms) >= SETTLED_MS);
        (newest, settled, r.member_id.map_or(0, |id| leader.matched(id)), Reverse(r.name.clone()))
    };
    pass.keepers(leader).into_iter().filter(staying).max_by_key(rank)?.member_id
}

/// Brings one more member in, or drops one that is no longer wanted before it became a voter.
pub(crate) fn grow(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let silent = overdue(pass, leader);
    let keepers = pass.keepers(leader).len() - usize::from(silent.is_some());
    let voter = |r: &MemberRecord| r.member_id.and_then(|id| leader.member(id)).is_some_and(|m| !m.is_learner);
    let mut coming: Vec<_> = pass.records().into_iter().filter(|r| r.retirement.is_none() && !voter(r)).collect();
    coming.sort_by_key(|r| (r.member_id.is_none(), r.created_ms, r.name.as_str()));
    let wanted = usize::from(keepers < pass.cluster.replicas);
    // More than one coming is what a stale reading made; the furthest goes on.
    if let Some(unwanted) = coming.get(wanted) {
        pass.operate(Operation::ScaleIn, Some(&unwanted.name));
        return act(mark(unwanted, leader, RetireReason::Abandoned));
    }
    if wanted == 0 {
        return None;
    }
    let replacing = silent.is_some() || pass.voter_records(leader).iter().any(|r| r.retirement.is_some());
    let operation = if replacing { Operation::ReplaceMember } else { Operation::ScaleOut };
    // Before there is a new member, the operation is about the one that is silent.
    let about = coming.first().copied().or(silent);
    pass.operate(operation, about.map(|r| r.name.as_str()));
    pass.silent = silent;
    if let Some(foreign) = leader.learners().find(|m| pass.record_of(m.id).is_none()) {
        return Some(Decision::Blocked(Blocked::ForeignLearner { id: foreign.id }));
    }
    match coming.first() {
        Some(record) => bring_in(pass, leader, record),
        None => act(Step::CreateMember {
            name: pass.fresh_name(),
            template_hash: pass.template_hash.clone(),
            purpose: RecordFor::Joiner,
        }),
    }
}

fn bring_in(pass: &mut Pass<'_>, leader: Leader<'_>, record: &MemberRecord) -> Next {
    match pass.view.volume(record) {
        None => return act(Step::CreateVolume { record: record_ref(record) }),
        Some(volume) if volume.deletion == Deletion::Requested => {
            return Some(Decision::Wait(Waiting::VolumeDeleting { member: record.name.clone() }));
        }
        Some(_) => {}
    }
    let Some(id) = record.member_id else {
        return act(Step::AddLearner { record: record_ref(record), leader: leader.id(), expect: leader.config_at() });
    };
    if record.start.is_none() || record.running == Running::Stopped {
        return act(start(record, pass));
    }
    let late = learner_is_late(pass, record).then(|| Decision::Act(mark(record, leader, RetireReason::Abandoned)));
    let behind = still_behind(pass, leader, record, id);
    match behind {
        Some(waiting) if !is_planted(Mutant::PromoteWithoutCatchUp) => {
            // A learner counts for nothing yet, so a spec that was corrected is taken at once.
            fix_template(pass, record).or(late).or(Some(Decision::Wait(waiting)))
        }
        _ => Some(match make_voter(pass, leader, record, id) {
            // The next one may be placed better.
            crowding @ Decision::Wait(Waiting::DomainMajority { .. }) => late.unwrap_or(crowding),
            decision => decision,
        }),
    }
}

/// Why this learner may not vote yet: it answers for itself, in this incarnation, and lacks no more than a few entries.
fn still_behind(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord, id: MemberId) -> Option<Waiting> {
    let member = record.name.clone();
    let incarnation = pass.cluster.identity.incarnation;
    let answers = pass.view.word(record).filter(|w| w.member_id == id && w.incarnation == incarnation);
    match (answers, leader.lag(id)) {
        (Some(_), Some(lag)) if lag <= LAG_ENTRIES_MAX => None,
        (None, _) => Some(Waiting::MemberStarting { member, reason: View::why_down(record) }),
        (Some(_), lag) => Some(Waiting::LearnerBehind {
            member,
            entries_behind: lag.unwrap_or(leader.word.commit_index),
            entries_max: LAG_ENTRIES_MAX,
        }),
    }
}

/// The deadline is for learners that run. A pod that cannot be placed or pulled would fare no better under another name.
fn learner_is_late(pass: &Pass<'_>, record: &MemberRecord) -> bool {
    let runs = record.pod.is_some() && !View::is_proven_down(record);
    runs && pass.now_ms.saturating_sub(record.created_ms) > LEARNER_DEADLINE_MS
}

/// The only voter leaves and nobody can take over: its replacement is promoted beside it, and is the one who can.
pub(crate) fn leads_alone_and_leaves(pass: &Pass<'_>, leader: Leader<'_>) -> bool {
    let leaving: Vec<_> = pass.voter_records(leader).into_iter().filter(|r| r.retirement.is_some()).collect();
    let wanted = pass.keepers(leader).len() < pass.cluster.replicas;
    wanted
        && !leaving.is_empty()
        && leaving.iter().all(|r| r.member_id == Some(leader.id()))
        && successor(pass, leader).is_none()
}

/// Promotes, or swaps with a voter that leaves, so that no size between is ever passed through.
fn make_voter(pass: &Pass<'_>, leader: Leader<'_>, record: &MemberRecord, id: MemberId) -> Decision {
    let mut leaving: Vec<_> = pass.voter_records(leader).into_iter().filter(|r| r.retirement.is_some()).collect();
    leaving.sort_by_key(|r| (r.member_id == Some(leader.id()), r.member_id.is_some_and(|id| leader.is_caught_up(id))));
    let silent = pass.silent.filter(|_| leaving.is_empty());
    // Two operators may have marked one each: the new member was drawn to the place of either. The leader goes only for want of
    // another, since it must hand over first, which can fail.
    let fits = |r: &&&MemberRecord| {
        r.member_id.is_some_and(|old| old != leader.id() && crowds_domain(pass, leader, id, old).is_none())
    };
    let old = leaving.iter().find(fits).or(leaving.first()).copied().or(silent).and_then(|r| r.member_id);
    if old == Some(leader.id()) && successor(pass, leader).is_some() && !is_planted(Mutant::NoTransferFirst) {
        return pass.transfer_away(leader);
    }
    let old = old.filter(|_| !leads_alone_and_leaves(pass, leader));
    let mut after: Vec<_> = leader.voters().map(|v| v.id).filter(|v| Some(*v) != old).collect();
    after.push(id);
    if let Some(waiting) = at_risk(leader, &after, &record.name)
        && !is_planted(Mutant::PromoteWithoutCatchUp)
    {
        return Decision::Wait(waiting);
    }
    if let Some(waiting) = old.and_then(|old| crowds_domain(pass, leader, id, old))
        && !is_planted(Mutant::BuildDomainMajority)
    {
        return Decision::Wait(waiting);
    }
    // From here on it is decided, whoever comes back: the mark says so before anything is taken away.
    if let Some(silent) = silent.filter(|_| !is_planted(Mutant::SwapUnmarked)) {
        return Decision::Act(mark(silent, leader, RetireReason::Unreachable));
    }
    let (name, leader_id, expect, lag_max) = (record.name.clone(), leader.id(), leader.config_at(), LAG_ENTRIES_MAX);
    Decision::Act(match old {
        Some(old) => Step::SwapVoter { record: name, new: id, old, leader: leader_id, expect, lag_max },
        None => Step::Promote { record: name, member_id: id, leader: leader_id, expect, lag_max },
    })
}

/// A voter that is down already goes before anything else is rolled: it may be why nothing else can. One that the roll itself
/// took down comes back, and is no reason to change the order.
pub(crate) fn shrink_down(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let victim = victim(pass, leader, |r| is_down(leader, r) && !is_coming_back(pass, leader, r))?;
    take_out(pass, leader, victim)
}

/// Marks one voter to leave when there are more than wanted.
pub(crate) fn shrink(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let victim = victim(pass, leader, |_| true)?;
    take_out(pass, leader, victim)
}

fn take_out(pass: &mut Pass<'_>, leader: Leader<'_>, victim: &MemberRecord) -> Next {
    pass.operate(Operation::ScaleIn, Some(&victim.name));
    if is_planted(Mutant::RemoveWithoutMark) {
        return victim.member_id.map(|id| remove_voter(pass, leader, victim, id));
    }
    act(mark(victim, leader, RetireReason::ScaleIn))
}

fn is_down(leader: Leader<'_>, record: &MemberRecord) -> bool {
    record.member_id.is_some_and(|id| !leader.is_caught_up(id))
}

/// Down first, then from the most crowded zone, then the newest; the leader last.
fn victim<'a>(pass: &Pass<'a>, leader: Leader<'_>, may_go: impl Fn(&MemberRecord) -> bool) -> Option<&'a MemberRecord> {
    let keepers = pass.keepers(leader);
    let zone = |r: &MemberRecord| r.pod.as_ref().and_then(|p| p.zone.clone());
    let crowd =
        |r: &MemberRecord| zone(r).map_or(0, |z| keepers.iter().filter(|k| zone(k).as_ref() == Some(&z)).count());
    let rank = |r: &&MemberRecord| {
        (r.member_id != Some(leader.id()), is_down(leader, r), crowd(r), r.created_ms, r.name.clone())
    };
    let too_many = keepers.len() > pass.cluster.replicas;
    too_many.then(|| keepers.iter().copied().filter(|r| may_go(r)).max_by_key(rank))?
}
