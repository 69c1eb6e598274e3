//! What is worth telling a person once: from the step that was taken and from what changed in the status.
//!
//! Pure. Kubernetes publishes these as Events, local mode prints them.

use quorate_api::{ConditionStatus, ConsistentClusterStatus};
use quorate_plan::{Blocked, Decision, Operation, RetireReason, Step, Waiting};

use crate::reconcile::{Acted, Pass};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub severity: Severity,
    /// A stable word.
    pub reason: &'static str,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

fn normal(reason: &'static str, text: impl Into<String>) -> Note {
    Note { severity: Severity::Normal, reason, text: text.into() }
}
fn warning(reason: &'static str, text: impl Into<String>) -> Note {
    Note { severity: Severity::Warning, reason, text: text.into() }
}

/// The news of one pass, oldest first.
pub fn notes(previous: Option<&ConsistentClusterStatus>, pass: &Pass) -> Vec<Note> {
    let step = match &pass.acted {
        Acted::Done(step) => step_note(step),
        Acted::Nothing | Acted::Refused(..) => None,
    };
    let before = previous.cloned().unwrap_or_default();
    let mut notes: Vec<Note> = step.into_iter().collect();
    notes.extend(leader_note(&before, &pass.status));
    if pass.plan.report.operation != Some(Operation::Delete) {
        notes.extend(quorum_note(&before, &pass.status));
    }
    let rotated = pass.seen.observation.tls.iter().flat_map(|tls| &tls.rotated);
    notes.extend(rotated.map(|text| normal("CertificateRotated", text.clone())));
    notes.extend(upgrade_note(&before, pass));
    notes.extend(blocked_note(&before, pass));
    notes.extend(failure_note(&before, pass));
    notes
}

fn step_note(step: &Step) -> Option<Note> {
    let member = step.member().unwrap_or_default();
    Some(match step {
        Step::RecordBootstrap { cluster_id } => {
            normal("Bootstrapped", format!("cluster {cluster_id} exists, its first member leads"))
        }
        Step::AddLearner { .. } => normal("MemberAdded", format!("{member} was added as a learner")),
        Step::Promote { .. } => normal("MemberPromoted", format!("{member} caught up and is a voter")),
        Step::SwapVoter { old, .. } => normal("MemberReplaced", format!("{member} took the place of voter {old}")),
        Step::MarkRetiring { reason: RetireReason::Abandoned, .. } => {
            warning("LearnerAbandoned", format!("learner {member} is dropped: not wanted any more, or too slow"))
        }
        Step::MarkRetiring { reason, .. } => {
            normal("MemberRetiring", format!("{member} will leave: {}", reason.as_str()))
        }
        Step::RemoveMember { member_id, .. } => {
            normal("MemberRemoved", format!("{member} ({member_id}) is out of the configuration"))
        }
        Step::TransferLeader { leader, to, .. } => {
            normal("LeaderTransferred", format!("leader {leader} was asked to hand over to {to}"))
        }
        Step::GrowVolume { size, .. } => normal("VolumeGrown", format!("{member} asks for {size}")),
        Step::DeleteVolume { .. } => normal("VolumeDeleted", format!("volume {member} is deleted")),
        Step::AddFinalizer
        | Step::ApplyObjects { .. }
        | Step::SetBudget { .. }
        | Step::CreateMember { .. }
        | Step::CreateVolume { .. }
        | Step::AdoptVolume { .. }
        | Step::RecordMemberId { .. }
        | Step::StartMember { .. }
        | Step::SealSeed { .. }
        | Step::Activate { .. }
        | Step::StopMember { .. }
        | Step::DeletePod { .. }
        | Step::ReleaseVolume { .. }
        | Step::DropRecord { .. }
        | Step::ApplyTemplate { .. }
        | Step::RestartMember { .. }
        | Step::Finish => return None,
    })
}

fn leader_note(before: &ConsistentClusterStatus, now: &ConsistentClusterStatus) -> Option<Note> {
    let new = now.leader.as_ref()?;
    let old = before.leader.as_ref();
    if old.is_some_and(|old| old.id == new.id && old.term == new.term) {
        return None;
    }
    let count = |s: &ConsistentClusterStatus| s.failover.as_ref().map_or(0, |f| f.count);
    let took = now.failover.as_ref().and_then(|f| f.last_duration_ms).filter(|_| count(now) > count(before));
    let took = took.map_or(String::new(), |ms| format!("; no leader for {ms} ms, measured by the new one"));
    let from = old.filter(|old| old.id != new.id).map_or(String::new(), |old| format!(" after {}", old.name));
    Some(normal("LeaderChanged", format!("{} leads term {}{from}{took}", new.name, new.term)))
}

/// An election among a majority is told as a change of leader; this is about what nobody can elect away.
fn quorum_note(before: &ConsistentClusterStatus, now: &ConsistentClusterStatus) -> Option<Note> {
    let message = now.condition("Available")?.message.clone();
    use ConditionStatus::{False, True, Unknown};
    let available = |s: &ConsistentClusterStatus| s.condition("Available").map(|c| c.status);
    match (available(before), available(now)) {
        // Whom nobody can ask is not known to be without one.
        (Some(True | Unknown), Some(False)) if lacks_quorum(now) => Some(warning("QuorumLost", message)),
        (Some(False), Some(True)) if lacks_quorum(before) => {
            Some(normal("QuorumRestored", "linearizable requests are answered again"))
        }
        _ => None,
    }
}

/// Fewer members answered than it takes to elect a leader.
fn lacks_quorum(status: &ConsistentClusterStatus) -> bool {
    let answered = status.members.iter().filter(|m| m.source == "Direct").count();
    let required = status.replicas / 2 + 1;
    status.replicas > 0 && i32::try_from(answered).is_ok_and(|answered| answered < required)
}

fn upgrade_note(before: &ConsistentClusterStatus, pass: &Pass) -> Option<Note> {
    let upgrades = |s: &ConsistentClusterStatus| s.operation.as_ref().is_some_and(|o| o.kind == "Upgrade");
    match (upgrades(before), upgrades(&pass.status), &pass.plan.next) {
        (false, true, _) => Some(normal("UpgradeStarted", "members get the changed template one by one, leader last")),
        (true, false, Decision::Steady) => Some(normal("UpgradeFinished", "every member runs the changed template")),
        (true, false, Decision::Wait(Waiting::MemberStarting { member, .. } | Waiting::PodStopping { member })) => {
            Some(normal(
                "UpgradeFinished",
                format!("every member has the changed template; {member}, the last, is on its way"),
            ))
        }
        _ => None,
    }
}

fn blocked_note(before: &ConsistentClusterStatus, pass: &Pass) -> Option<Note> {
    if let Some(id) = pass.plan.report.foreign.first()
        && before.condition("MembershipStable").is_none_or(|c| c.reason != "ConfigDrift")
    {
        return Some(warning("ForeignMember", format!("member {id} belongs to no record of this cluster")));
    }
    let Decision::Blocked(blocked) = &pass.plan.next else { return None };
    let text = blocked.to_string();
    if before.condition("Ready").is_some_and(|c| c.message == text) {
        return None;
    }
    let reason = match blocked {
        Blocked::InvalidSpec { .. } => "InvalidSpec",
        Blocked::CanaryFailed { .. } => "UpgradePaused",
        Blocked::ApprovalNeeded { .. } => "ApprovalNeeded",
        Blocked::Paused { .. }
        | Blocked::BootstrapRefused { .. }
        | Blocked::QuorumLost { .. }
        | Blocked::AmbiguousMember { .. }
        | Blocked::ForeignLearner { .. }
        | Blocked::MemberFenced { .. }
        | Blocked::RequestRefused { .. } => "StepBlocked",
    };
    Some(warning(reason, text))
}

fn failure_note(before: &ConsistentClusterStatus, pass: &Pass) -> Option<Note> {
    let failure = pass.failure()?;
    let known = before.condition("Degraded").is_some_and(|c| c.reason == "ReconcileFailed");
    (!known).then(|| warning("ReconcileFailed", failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::{Condition, FailoverStatus, LeaderStatus};

    fn led(name: &str, term: i64) -> ConsistentClusterStatus {
        let leader = LeaderStatus { name: name.into(), id: name.into(), term, ..LeaderStatus::default() };
        ConsistentClusterStatus { leader: Some(leader), replicas: 3, ..ConsistentClusterStatus::default() }
    }

    fn available(status: ConditionStatus) -> ConsistentClusterStatus {
        let condition = Condition {
            kind: "Available".into(),
            status,
            observed_generation: None,
            last_transition_time: String::new(),
            reason: "X".into(),
            message: "why".into(),
        };
        ConsistentClusterStatus { conditions: vec![condition], replicas: 3, ..ConsistentClusterStatus::default() }
    }

    #[test]
    fn a_new_leader_is_told_once_with_the_time_it_took() {
        let mut now = led("b", 5);
        assert_eq!(leader_note(&led("b", 5), &now), None);
        now.failover = Some(FailoverStatus { count: 1, last_duration_ms: Some(412), last_reason: None });
        let text = leader_note(&led("a", 4), &now).unwrap().text;
        assert!(text.contains("b leads term 5 after a") && text.contains("412 ms"), "{text}");
    }

    fn answering(count: usize, mut status: ConsistentClusterStatus) -> ConsistentClusterStatus {
        let direct = quorate_api::MemberStatus { source: "Direct".into(), ..Default::default() };
        status.members = vec![direct; count];
        status
    }

    #[test]
    fn a_lost_quorum_is_told_when_it_is_lost_and_when_it_is_back() {
        let up = answering(3, available(ConditionStatus::True));
        let down = answering(1, available(ConditionStatus::False));
        assert_eq!(quorum_note(&up, &down).unwrap().reason, "QuorumLost");
        assert_eq!(quorum_note(&down, &up).unwrap().reason, "QuorumRestored");
        assert_eq!(quorum_note(&up, &up), None);
        let never = ConsistentClusterStatus::default();
        assert_eq!(quorum_note(&never, &up), None, "a first reading is no restoration");
        let unread = answering(0, available(ConditionStatus::Unknown));
        assert_eq!(quorum_note(&up, &unread), None, "nobody could be asked");
        assert_eq!(quorum_note(&unread, &down).unwrap().reason, "QuorumLost");
        let electing = answering(2, available(ConditionStatus::False));
        assert_eq!(quorum_note(&up, &electing), None, "two of three elect a leader");
    }
}
