//! What is worth telling a person once: from the step that was taken and from what changed in the status.
//!
//! Pure. Kubernetes publishes these as Events, local mode prints them.

use quorate_api::{ConditionStatus, ConsistentClusterStatus, LeaderStatus};
use quorate_plan::{Blocked, Decision, Operation, RetireReason, Step, Waiting};

use crate::reconcile::{Acted, Pass};

const LEADER_CHANGED: &str = "LeaderChanged";
const UPGRADE_STARTED: &str = "UpgradeStarted";
const UPGRADE_FINISHED: &str = "UpgradeFinished";

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

/// Of what was published, so much is remembered until the status says it.
const AHEAD_MAX: usize = 32;

/// What a cluster was told so far, beyond what its status says: that forgets the leader and what goes on whenever nobody leads, and
/// cannot always be written.
#[derive(Debug, Default)]
pub struct Told {
    /// Published since the status was last written, newest first.
    ahead: Vec<Note>,
    told: Known,
    found: Known,
}

#[derive(Debug, Default, Clone)]
struct Known {
    /// The last there was.
    leader: Option<LeaderStatus>,
    /// Nothing before the first pass: the status says it then.
    upgrading: Option<bool>,
}

impl Told {
    /// The news of one pass, oldest first: what it did, and what it found differ from what the status says.
    pub fn hear(&mut self, status: Option<&ConsistentClusterStatus>, pass: &Pass) -> Vec<Note> {
        let mut before = status.cloned().unwrap_or_default();
        before.leader = self.told.leader.take().or(before.leader);
        let upgrading = self.told.upgrading.unwrap_or_else(|| upgrades(&before));
        self.told = Known { leader: before.leader.clone(), upgrading: Some(upgrading) };
        let leader = pass.status.leader.clone().or_else(|| before.leader.clone());
        self.found = Known { leader, upgrading: Some(still_upgrades(upgrading, pass)) };
        let mut news = changes(&before, pass);
        news.extend(upgrade_note(&self.told, &self.found, pass));
        news.retain(|note| !self.ahead.contains(note));
        let done = match &pass.acted {
            Acted::Done(step) => step_note(step),
            Acted::Nothing | Acted::Refused(..) => None,
        };
        done.into_iter().chain(news).collect()
    }

    /// It has arrived.
    pub fn is_published(&mut self, note: Note) {
        match note.reason {
            LEADER_CHANGED => self.told.leader.clone_from(&self.found.leader),
            UPGRADE_STARTED | UPGRADE_FINISHED => self.told.upgrading = self.found.upgrading,
            _ => {}
        }
        self.ahead.truncate(AHEAD_MAX - 1);
        self.ahead.insert(0, note);
    }

    /// The status says all that was found.
    pub fn is_in_status(&mut self) {
        self.told = self.found.clone();
        self.ahead.clear();
    }
}

fn changes(before: &ConsistentClusterStatus, pass: &Pass) -> Vec<Note> {
    let mut notes: Vec<Note> = leader_note(before, &pass.status).into_iter().collect();
    if pass.plan.report.operation != Some(Operation::Delete) {
        notes.extend(quorum_note(before, &pass.status));
    }
    let rotated = pass.seen.observation.tls.iter().flat_map(|tls| &tls.rotated);
    notes.extend(rotated.map(|text| normal("CertificateRotated", text.clone())));
    notes.extend(blocked_note(before, pass));
    notes.extend(failure_note(before, pass));
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
    Some(normal(LEADER_CHANGED, format!("{} leads term {}{from}{took}", new.name, new.term)))
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

fn upgrades(status: &ConsistentClusterStatus) -> bool {
    status.operation.as_ref().is_some_and(|o| o.kind == "Upgrade")
}

/// Something else may come between, and while nobody leads nothing is known of it.
fn still_upgrades(upgrading: bool, pass: &Pass) -> bool {
    let is_over = pass.plan.report.operation.is_none() && last_member(pass).is_some();
    upgrades(&pass.status) || (upgrading && !is_over)
}

/// With every template as it should be: who is still on the way, if anybody.
fn last_member(pass: &Pass) -> Option<Option<&str>> {
    match &pass.plan.next {
        Decision::Steady => Some(None),
        Decision::Wait(Waiting::MemberStarting { member, .. } | Waiting::PodStopping { member }) => Some(Some(member)),
        Decision::Wait(_) | Decision::Act(_) | Decision::Blocked(_) => None,
    }
}

fn upgrade_note(told: &Known, found: &Known, pass: &Pass) -> Option<Note> {
    match (told.upgrading, found.upgrading) {
        (Some(false), Some(true)) => {
            Some(normal(UPGRADE_STARTED, "members get the changed template one by one, leader last"))
        }
        (Some(true), Some(false)) => Some(normal(
            UPGRADE_FINISHED,
            match last_member(pass)? {
                None => "every member runs the changed template".to_owned(),
                Some(member) => format!("every member has the changed template; {member}, the last, is on its way"),
            },
        )),
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
    use quorate_api::{Condition, FailoverStatus, OperationStatus};
    use quorate_plan::{Plan, Report};

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

    fn found(status: ConsistentClusterStatus, next: Decision) -> Pass {
        let plan = Plan { next, upcoming: Vec::new(), report: Report::default() };
        Pass { seen: crate::world::Seen::default(), plan, status, acted: Acted::Nothing }
    }

    fn reasons(news: &[Note]) -> Vec<&'static str> {
        news.iter().map(|note| note.reason).collect()
    }

    /// Tells all of it, and gives the reasons.
    fn published(told: &mut Told, status: &ConsistentClusterStatus, pass: &Pass) -> Vec<&'static str> {
        let news = told.hear(Some(status), pass);
        let reasons = reasons(&news);
        news.into_iter().for_each(|note| told.is_published(note));
        reasons
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn what_was_told_is_not_told_again_because_the_status_cannot_be_written() {
        let mut told = Told::default();
        let (old, new) = (led("a", 4), found(led("b", 5), Decision::Steady));
        told.hear(Some(&old), &new);
        assert_eq!(published(&mut told, &old, &new), ["LeaderChanged"], "nobody heard of it yet");
        assert_eq!(published(&mut told, &old, &new), NOTHING, "the status still says a");
        let news = told.hear(Some(&old), &found(led("c", 6), Decision::Steady));
        assert!(news[0].text.contains("c leads term 6 after b"), "{news:?}");
        told.hear(Some(&old), &new);
        told.is_in_status();
        assert_eq!(published(&mut told, &new.status, &found(led("a", 6), Decision::Steady)), ["LeaderChanged"]);
    }

    #[test]
    fn a_reading_without_a_leader_makes_no_leader_new() {
        let mut told = Told::default();
        let (led_by_a, nobody) = (led("a", 4), ConsistentClusterStatus::default());
        assert_eq!(published(&mut told, &led_by_a, &found(nobody.clone(), Decision::Steady)), NOTHING);
        told.is_in_status();
        assert_eq!(published(&mut told, &nobody, &found(led_by_a, Decision::Steady)), NOTHING);
        let led_by_b = found(led("b", 5), Decision::Steady);
        let lost = told.hear(Some(&nobody), &led_by_b);
        assert!(lost[0].text.contains("b leads term 5 after a"), "{lost:?}");
        assert_eq!(published(&mut told, &nobody, &led_by_b), ["LeaderChanged"], "neither Event nor status had arrived");
        assert_eq!(published(&mut told, &nobody, &led_by_b), NOTHING);
    }

    #[test]
    fn an_upgrade_is_told_once_when_it_begins_and_once_when_its_last_member_is_on_its_way() {
        let upgrading = ConsistentClusterStatus {
            operation: Some(OperationStatus { kind: "Upgrade".to_owned(), ..OperationStatus::default() }),
            ..ConsistentClusterStatus::default()
        };
        let calm = ConsistentClusterStatus::default();
        let starting =
            || Decision::Wait(Waiting::MemberStarting { member: "orders-c".to_owned(), reason: "starts".to_owned() });
        let nobody_leads = || Decision::Wait(Waiting::NoLeader { answering: 1, voters: 3 });
        let passes = [
            (&calm, found(upgrading.clone(), starting()), vec!["UpgradeStarted"]),
            (&upgrading, found(calm.clone(), nobody_leads()), vec![]),
            (&calm, found(upgrading.clone(), starting()), vec![]),
            (&upgrading, found(calm.clone(), nobody_leads()), vec![]),
            (&calm, found(calm.clone(), starting()), vec!["UpgradeFinished"]),
            (&calm, found(calm.clone(), Decision::Steady), vec![]),
        ];
        let mut told = Told::default();
        for (at, (before, pass, wanted)) in passes.iter().enumerate() {
            assert_eq!(published(&mut told, before, pass), *wanted, "pass {at}");
            told.is_in_status();
        }
        let mut after_a_restart = Told::default();
        assert_eq!(published(&mut after_a_restart, &upgrading, &found(calm.clone(), starting())), ["UpgradeFinished"]);
        let end = found(calm.clone(), Decision::Steady);
        assert_eq!(published(&mut after_a_restart, &upgrading, &end), NOTHING, "the status was not written in between");
        let mut asleep = found(calm, Decision::Steady);
        asleep.plan.report.operation = Some(Operation::ScaleToZero);
        assert_eq!(published(&mut Told::default(), &upgrading, &asleep), NOTHING, "nobody runs it");
    }

    #[test]
    fn what_was_done_is_told_each_time() {
        let mut told = Told::default();
        let calm = ConsistentClusterStatus::default();
        let mut pass = found(calm.clone(), Decision::Steady);
        pass.acted = Acted::Done(Step::RecordBootstrap { cluster_id: quorate_plan::ClusterId(7) });
        for _ in 0..2 {
            assert_eq!(published(&mut told, &calm, &pass), ["Bootstrapped"]);
        }
    }
}
