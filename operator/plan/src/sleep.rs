//! Scaled to zero: every member is stopped, the leader last. Volumes, ids and the configuration stay as they are.
//!
//! Nothing is removed and nobody is asked about membership; waking is `start_stopped`, which starts all that were stopped.

use crate::bootstrap::seal_and_activate;
use crate::membership::record_ids;
use crate::mutants::{Mutant, is_planted};
use crate::observation::{Deletion, MemberRecord, Role, Running, Termination};
use crate::planner::{Next, Pass, act, record_ref};
use crate::report::{Decision, Operation, Waiting};
use crate::step::Step;

pub(crate) fn sleep(pass: &mut Pass<'_>) -> Next {
    if pass.cluster.replicas > 0 {
        return None;
    }
    pass.operate(Operation::ScaleToZero, None);
    // A change that was begun ends first, and so does a bootstrap: both take moments, and what is half done is harder to wake.
    if let Some(leader) = pass.view.leader {
        let first = record_ids(pass, leader).or_else(|| finish_bootstrap(pass));
        if first.is_some() {
            return first;
        }
        if leader.is_changing() {
            return Some(Decision::Wait(Waiting::ChangeInFlight));
        }
    }
    let next = pass.records().into_iter().filter(|r| is_to_stop(r)).min_by_key(|r| stop_rank(pass, r));
    if let Some(record) = next {
        pass.operate(Operation::ScaleToZero, Some(&record.name));
        return stop(record);
    }
    let ending = pass.view.records.values().find(|r| r.pod.is_some());
    Some(ending.map_or(Decision::Steady, |r| Decision::Wait(Waiting::PodStopping { member: r.name.clone() })))
}

fn finish_bootstrap(pass: &mut Pass<'_>) -> Next {
    let leader = pass.view.leader?;
    match pass.view.observed.objects.bootstrapped {
        Some(_) => seal_and_activate(pass, leader),
        None => act(Step::RecordBootstrap { cluster_id: leader.word.cluster_id }),
    }
}

fn is_to_stop(record: &MemberRecord) -> bool {
    let running = record.running == Running::Started && record.deletion == Deletion::No;
    // The controller of a record under deletion no longer heeds `replicas: 0`.
    let orphaned = record.deletion == Deletion::Requested
        && record.pod.as_ref().is_some_and(|pod| pod.termination == Termination::No);
    running || orphaned
}

fn stop(record: &MemberRecord) -> Next {
    match &record.pod {
        Some(pod) if record.deletion == Deletion::Requested => {
            act(Step::DeletePod { record: record_ref(record), pod_uid: pod.uid.clone() })
        }
        _ => act(Step::StopMember { record: record_ref(record) }),
    }
}

/// The leader last, or who led when the majority was stopped: clients are served as long as can be.
fn stop_rank(pass: &Pass<'_>, record: &MemberRecord) -> (bool, bool, u64, u64, String) {
    let leads = pass.view.leader.is_some_and(|leader| record.member_id == Some(leader.id()));
    let word = pass.view.word(record);
    let claims = word.is_some_and(|w| w.role == Role::Leader);
    let (term, last) = word.map_or((0, 0), |w| (w.term, w.last_index));
    let leads = leads != is_planted(Mutant::StopLeaderFirst);
    (leads, claims, term, last, record.name.clone())
}
