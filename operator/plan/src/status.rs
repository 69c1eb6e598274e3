//! What is told to the user, from the very observation the plan was made on.
//!
//! Members are joined by id. What nobody could be asked is `Unknown`, never green; numbers that are not known keep their last
//! value only where they name a committed fact (the size of the configuration), never where they name health.

use quorate_api::status::MEMBERS_MAX;
use quorate_api::{
    Condition, ConditionStatus, ConsistentClusterStatus, FailoverStatus, FailureDomainKey, LeaderStatus, MemberStatus,
    MembershipStatus, OperationStatus, PlannedStepStatus, QuorumStatus, RaftStatus, SurvivesStatus, names, units,
};

use crate::intent::Intent;
use crate::observation::{ConfigMember, MemberRecord, MemberWord, Observation, Pod, Role, TlsWord};
use crate::repair::domain_of;
use crate::report::{Blocked, Decision, Operation, Plan, Waiting};
use crate::topology::{Place, majority_domain, survives};
use crate::view::{EVIDENCE_AGE_MS_MAX, Leader, View, quorum};

/// A linearizable round older than this proves nothing about now, in milliseconds.
const PROBE_AGE_MS_MAX: u64 = 10_000;

#[derive(Debug, Clone, Copy)]
pub struct StatusInput<'a> {
    pub intent: &'a Intent,
    pub observed: &'a Observation,
    pub plan: &'a Plan,
    pub previous: Option<&'a ConsistentClusterStatus>,
    pub now_ms: u64,
    /// What went wrong in carrying the plan out, if anything did.
    pub failure: Option<&'a str>,
}

/// Builds the whole status. Pure; whether it is worth a write is `quorate_api::status_differs`.
pub fn status(input: StatusInput<'_>) -> ConsistentClusterStatus {
    let identity = input.intent.identity();
    let view = View::new(input.observed, identity);
    let facts = Facts { input, leader: view.leader, told: view.configuration(), view };
    let previous = input.previous;
    ConsistentClusterStatus {
        observed_generation: Some(identity.generation),
        // Of a cluster that is asleep, its objects say all there is.
        last_observed_time: if input.observed.words.is_empty() && !facts.is_asleep() {
            previous.and_then(|p| p.last_observed_time.clone())
        } else {
            Some(units::rfc3339(input.now_ms))
        },
        replicas: if facts.is_asleep() {
            0
        } else {
            facts.told.map_or(previous.map_or(0, |p| p.replicas), |w| count(voters(w).count()))
        },
        ready_replicas: count(facts.ready_voters()),
        selector: Some(names::selector(&identity.uid)),
        cluster_id: cluster_id(&facts),
        incarnation: Some(number(identity.incarnation)),
        leader: facts.leader.map(|l| leader_status(&facts, l)),
        // Asleep, the configuration is what it was.
        membership: facts.told.map(membership).or_else(|| previous.filter(|_| facts.is_asleep())?.membership.clone()),
        raft: facts.leader.map(|l| raft(&facts, l)),
        quorum: facts.told.map(|w| quorum_status(&facts, w)),
        failover: failover(&facts),
        operation: operation(&facts),
        plan_hash: input.plan.report.plan_hash.clone(),
        plan: shown(&input.plan.upcoming),
        members: members(&facts),
        conditions: conditions(&facts),
    }
}

struct Facts<'a> {
    input: StatusInput<'a>,
    view: View<'a>,
    leader: Option<Leader<'a>>,
    /// The newest committed configuration anybody told of.
    told: Option<&'a MemberWord>,
}

impl<'a> Facts<'a> {
    fn fresh_words(&self) -> impl Iterator<Item = &'a MemberWord> {
        self.input.observed.words.iter().filter(|w| w.age_ms <= EVIDENCE_AGE_MS_MAX)
    }

    fn word_of(&self, member: &ConfigMember) -> Option<&'a MemberWord> {
        self.fresh_words().find(|w| w.member_id == member.id)
    }

    /// Scaled to zero, and nothing runs any more.
    fn is_asleep(&self) -> bool {
        let zero = matches!(self.input.intent, Intent::Run(cluster) if cluster.replicas == 0);
        zero && self.input.plan.next == Decision::Steady
    }

    fn ready_voters(&self) -> usize {
        let ready = |m: &&ConfigMember| self.word_of(m).is_some_and(|w| w.ready);
        self.told.map_or(0, |w| voters(w).filter(ready).count())
    }
}

fn voters(word: &MemberWord) -> impl Iterator<Item = &ConfigMember> {
    word.members.iter().filter(|m| !m.is_learner && !m.is_outgoing)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn cluster_id(facts: &Facts<'_>) -> Option<String> {
    let marked = facts.input.observed.objects.bootstrapped;
    let told = marked.or_else(|| facts.leader.map(|l| l.word.cluster_id)).map(|id| id.to_string());
    told.or_else(|| facts.input.previous.and_then(|p| p.cluster_id.clone()))
}

fn leader_status(facts: &Facts<'_>, leader: Leader<'_>) -> LeaderStatus {
    let named = facts.view.records.values().find(|r| r.member_id == Some(leader.id()));
    LeaderStatus {
        name: named.map_or_else(|| leader.word.record.clone(), |r| r.name.clone()),
        id: leader.id().to_string(),
        term: number(leader.word.term),
        own_term_index: number(leader.word.own_term_index),
        committed: leader.word.own_term_committed,
        applied: leader.word.own_term_applied,
    }
}

fn membership(word: &MemberWord) -> MembershipStatus {
    MembershipStatus {
        config_index: number(word.config_at.index),
        voters: count(voters(word).count()),
        learners: count(word.members.iter().filter(|m| m.is_learner).count()),
    }
}

fn raft(facts: &Facts<'_>, leader: Leader<'_>) -> RaftStatus {
    let word = leader.word;
    let followers = facts.fresh_words().filter(|w| w.leader_id == Some(leader.id()) && w.member_id != leader.id());
    RaftStatus {
        term: number(word.term),
        commit_index: number(word.commit_index),
        last_applied: number(word.applied_index),
        pending_entries: number(word.pending_entries),
        leader_heartbeat_age_ms: number(followers.map(|w| w.leader_contact_age_ms).max().unwrap_or(0)),
        elections: number(facts.fresh_words().map(|w| w.elections).max().unwrap_or(0)),
    }
}

fn quorum_status(facts: &Facts<'_>, word: &MemberWord) -> QuorumStatus {
    let required = quorum(voters(word).count());
    let heard = |id| facts.leader.is_some_and(|l| l.is_reachable(id));
    let caught_up = facts.leader.map_or(0, |l| l.caught_up_count());
    QuorumStatus {
        required: count(required),
        reachable: count(voters(word).filter(|m| heard(m.id)).count()),
        caught_up: count(caught_up),
        tolerates: count(caught_up.saturating_sub(required)),
        survives: facts.leader.and_then(|leader| survival(facts, leader)),
    }
}

fn survival(facts: &Facts<'_>, leader: Leader<'_>) -> Option<SurvivesStatus> {
    let node = survives(&places(facts, leader, |pod| pod.node.as_deref()));
    let zone = survives(&places(facts, leader, |pod| pod.zone.as_deref()));
    (node.is_some() || zone.is_some()).then_some(SurvivesStatus { node, zone })
}

fn places<'a>(facts: &Facts<'a>, leader: Leader<'a>, of: impl Fn(&'a Pod) -> Option<&'a str>) -> Vec<Place<'a>> {
    let pod = |id| facts.view.records.values().find(|r| r.member_id == Some(id)).and_then(|r| r.pod.as_ref());
    let place = |v: &ConfigMember| Place { domain: pod(v.id).and_then(&of), is_caught_up: leader.is_caught_up(v.id) };
    leader.voters().map(place).collect()
}

fn failover(facts: &Facts<'_>) -> Option<FailoverStatus> {
    let previous = facts.input.previous.and_then(|p| p.failover.clone()).unwrap_or_default();
    // Each failover was measured by the one member that took over; a restarted member forgets, the status does not.
    let told: i64 = facts.fresh_words().map(|w| number(w.failover_count)).sum();
    let count = told.max(previous.count);
    if count == 0 {
        return None;
    }
    let measured = facts.leader.map(|l| l.word).filter(|w| w.failover_count > 0).map(|w| number(w.last_failover_ms));
    Some(FailoverStatus {
        count,
        last_duration_ms: measured.or(previous.last_duration_ms),
        last_reason: Some("LeaderUnreachable".to_owned()),
    })
}

fn operation(facts: &Facts<'_>) -> Option<OperationStatus> {
    let plan = facts.input.plan;
    let step = match &plan.next {
        Decision::Act(step) => Some(step.name().to_owned()),
        Decision::Wait(_) => plan.upcoming.first().map(|p| p.step.to_owned()),
        Decision::Steady | Decision::Blocked(_) => None,
    };
    let kind = plan.report.operation?.as_str().to_owned();
    if plan.next == Decision::Steady {
        return None;
    }
    let member = plan.report.member.clone();
    let before = facts.input.previous.and_then(|p| p.operation.as_ref());
    let same = before.filter(|b| (&b.kind, &b.step, &b.member) == (&kind, &step, &member));
    let since = same.and_then(|b| b.since.clone()).unwrap_or_else(|| units::rfc3339(facts.input.now_ms));
    Some(OperationStatus { kind, step, member, since: Some(since) })
}

/// Steps as `status.plan` shows them.
pub fn shown(steps: &[crate::report::PlannedStep]) -> Vec<PlannedStepStatus> {
    steps.iter().map(planned).collect()
}

fn planned(step: &crate::report::PlannedStep) -> PlannedStepStatus {
    let numbers = step.waits.as_ref().and_then(Waiting::have_need);
    PlannedStepStatus {
        step: step.step.to_owned(),
        member: step.member.clone(),
        waits: step.waits.as_ref().map(|w| w.reason().to_owned()),
        have: numbers.map(|(have, _)| number(have)),
        need: numbers.map(|(_, need)| number(need)),
    }
}

/// Members of the configuration first by id, then records that have no member yet; by name.
fn members(facts: &Facts<'_>) -> Vec<MemberStatus> {
    let inside = facts.told.map_or(&[][..], |w| w.members.as_slice()).iter().filter(|m| !m.is_outgoing);
    let mut all: Vec<MemberStatus> = inside.map(|m| member(facts, m)).collect();
    let alone = |r: &&&MemberRecord| !all.iter().any(|m| m.name == r.name);
    let outside: Vec<_> = facts.view.records.values().filter(alone).map(|r| lone_record(facts, r)).collect();
    all.extend(outside);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.dedup_by(|a, b| a.name == b.name);
    all.truncate(MEMBERS_MAX);
    all
}

fn member(facts: &Facts<'_>, member: &ConfigMember) -> MemberStatus {
    let record = facts.view.records.values().find(|r| r.member_id == Some(member.id));
    let word = facts.word_of(member);
    // One leader per status: another one's claim is of the past.
    let role =
        word.map(|w| w.role).filter(|role| *role != Role::Leader || facts.leader.is_some_and(|l| l.id() == member.id));
    MemberStatus {
        name: record.map_or_else(|| member.name.clone(), |r| r.name.clone()),
        id: Some(member.id.to_string()),
        role: role.map_or("Unknown", Role::as_str).to_owned(),
        ready: word.is_some_and(|w| w.ready),
        version: word.map(|w| w.version.clone()),
        match_lag: facts.leader.and_then(|l| l.lag(member.id)).map(number),
        zone: record.and_then(|r| r.pod.as_ref()?.zone.clone()),
        source: if word.is_some() { "Direct" } else { "Leader" }.to_owned(),
    }
}

fn lone_record(facts: &Facts<'_>, record: &MemberRecord) -> MemberStatus {
    let word = facts.view.word(record);
    MemberStatus {
        name: record.name.clone(),
        id: record.member_id.map(|id| id.to_string()),
        role: word.map_or("Unknown", |w| w.role.as_str()).to_owned(),
        ready: false,
        version: word.map(|w| w.version.clone()),
        match_lag: None,
        zone: record.pod.as_ref().and_then(|p| p.zone.clone()),
        source: if word.is_some() { "Direct" } else { "None" }.to_owned(),
    }
}

/// Status, reason, message: what a condition says, before it is dated.
type Said = (ConditionStatus, &'static str, String);

fn yes(reason: &'static str, message: impl Into<String>) -> Said {
    (ConditionStatus::True, reason, message.into())
}
fn no(reason: &'static str, message: impl Into<String>) -> Said {
    (ConditionStatus::False, reason, message.into())
}
fn unknown(reason: &'static str, message: impl Into<String>) -> Said {
    (ConditionStatus::Unknown, reason, message.into())
}

/// Everything is as it was asked to be, and nothing serves.
fn asleep() -> [(&'static str, Said); 10] {
    const WHY: &str = "ScaledToZero";
    let none = "every member is stopped, as spec.replicas asks; volumes and identities are kept";
    [
        ("Ready", yes(WHY, none)),
        ("Available", no(WHY, none)),
        ("Progressing", no(WHY, none)),
        ("Degraded", no(WHY, none)),
        ("LeaderServing", no(WHY, none)),
        ("FailoverReady", no(WHY, none)),
        ("MembershipStable", unknown(WHY, "no member runs that could be asked")),
        ("TopologySatisfied", unknown(WHY, "no member runs anywhere")),
        ("StorageHealthy", unknown(WHY, "no member runs that could be asked")),
        ("Stalled", no(WHY, none)),
    ]
}

fn conditions(facts: &Facts<'_>) -> Vec<Condition> {
    let tls = facts.input.observed.tls.as_ref().map(|word| ("TLSReady", tls_ready(word)));
    if facts.is_asleep() && facts.input.failure.is_none() {
        return asleep().into_iter().chain(tls).map(|(kind, said)| dated(facts, kind, said)).collect();
    }
    let available = available(facts);
    let said = [
        ("Ready", ready(facts, &available)),
        ("Available", available),
        ("Progressing", progressing(facts)),
        ("Degraded", degraded(facts)),
        ("LeaderServing", leader_serving(facts)),
        ("FailoverReady", failover_ready(facts)),
        ("MembershipStable", membership_stable(facts)),
        ("TopologySatisfied", topology_satisfied(facts)),
        ("StorageHealthy", storage_healthy(facts)),
        ("Stalled", stalled(facts)),
    ];
    said.into_iter().chain(tls).map(|(kind, said)| dated(facts, kind, said)).collect()
}

fn tls_ready(word: &TlsWord) -> Said {
    let until = word.not_after.and_then(|at| u64::try_from(at).ok()).map(|at| units::rfc3339(at * 1_000));
    match (&word.fault, &word.waits) {
        (Some(fault), _) => no("CertificateFault", fault.clone()),
        (None, Some(waits)) => yes("Rotating", waits.clone()),
        (None, None) => {
            yes("CertificatesValid", until.map_or_else(String::new, |until| format!("the first ends at {until}")))
        }
    }
}

fn dated(facts: &Facts<'_>, kind: &str, (status, reason, message): Said) -> Condition {
    let before = facts.input.previous.and_then(|p| p.condition(kind)).filter(|c| c.status == status);
    Condition {
        kind: kind.to_owned(),
        status,
        observed_generation: Some(facts.input.intent.identity().generation),
        last_transition_time: before
            .map_or_else(|| units::rfc3339(facts.input.now_ms), |c| c.last_transition_time.clone()),
        reason: reason.to_owned(),
        message,
    }
}

fn ready(facts: &Facts<'_>, available: &Said) -> Said {
    let (status, _, why) = available;
    match (&facts.input.plan.next, status) {
        (_, _) if facts.input.failure.is_some() => no("ReconcileFailed", facts.input.failure.unwrap_or_default()),
        (Decision::Blocked(blocked), _) => no(blocked.reason(), blocked.to_string()),
        (_, ConditionStatus::Unknown) => unknown("Unreachable", why.clone()),
        (Decision::Steady, ConditionStatus::True) => {
            yes("Reconciled", format!("{} voters, all caught up", facts.told.map_or(0, |w| voters(w).count())))
        }
        (Decision::Steady, ConditionStatus::False) => no("Unavailable", why.clone()),
        (_, ConditionStatus::False) if facts.input.plan.report.operation.is_none() => no("Unavailable", why.clone()),
        (Decision::Act(step), _) => no("OperationInProgress", format!("next step: {}", step.name())),
        (Decision::Wait(waiting), _) => no("OperationInProgress", waiting.to_string()),
    }
}

fn available(facts: &Facts<'_>) -> Said {
    if let Decision::Blocked(blocked @ Blocked::QuorumLost { .. }) = &facts.input.plan.next {
        return no("QuorumLost", blocked.to_string());
    }
    if let Some((status, reason, message)) = not_led(facts) {
        return (status, if status == ConditionStatus::False { "NoLeader" } else { reason }, message);
    }
    match facts.input.observed.probe.as_ref().filter(|p| p.age_ms <= PROBE_AGE_MS_MAX).map(|p| &p.outcome) {
        Some(Ok(_)) => yes("QuorumHealthy", "a linearizable read went through"),
        Some(Err(error)) => no("ProbeFailed", format!("a linearizable read failed: {error}")),
        None => unknown("Unreachable", "no linearizable read could be tried"),
    }
}

/// Why no confirmed leader is known; nothing when one is.
fn not_led(facts: &Facts<'_>) -> Option<Said> {
    if facts.leader.is_some() {
        return None;
    }
    let answering = facts.fresh_words().count();
    let leads = facts.fresh_words().filter(|w| w.role == Role::Leader).max_by_key(|w| w.term);
    Some(match leads {
        _ if answering == 0 && !facts.input.observed.unread.is_empty() => {
            unknown("Unreachable", format!("could not be read: {}", facts.input.observed.unread.join("; ")))
        }
        _ if answering == 0 && facts.view.records.is_empty() => no("ElectionInProgress", "there is no member yet"),
        _ if answering == 0 => unknown("Unreachable", "no member answers the operator"),
        Some(w) if w.own_term_committed && !w.own_term_applied => {
            no("ReplayingLog", format!("the leader has applied {} of {}", w.applied_index, w.own_term_index))
        }
        Some(w) if w.own_term_committed => {
            no("ElectionInProgress", format!("no majority confirmed the leader for {} ms", w.quorum_confirmed_age_ms))
        }
        Some(_) | None => no("ElectionInProgress", format!("{answering} members answer and none leads")),
    })
}

fn leader_serving(facts: &Facts<'_>) -> Said {
    not_led(facts).unwrap_or_else(|| {
        let term = facts.leader.map_or(0, |l| l.word.term);
        yes("OwnTermApplied", format!("the leader's own entry of term {term} is committed and applied"))
    })
}

fn failover_ready(facts: &Facts<'_>) -> Said {
    let Some(leader) = facts.leader else {
        return unknown("NoLeader", "without a leader nobody knows who is caught up");
    };
    let voters: Vec<_> = leader.voters().collect();
    let others = || voters.iter().filter(|v| v.id != leader.id());
    let reachable = others().filter(|v| leader.is_reachable(v.id)).count();
    let caught_up = others().filter(|v| leader.is_caught_up(v.id)).count();
    let required = quorum(voters.len());
    let told = format!("without the leader {reachable} voters are reachable, {caught_up} caught up, {required} needed");
    match (voters.len(), reachable >= required, caught_up > 0) {
        (1, _, _) => no("SingleMember", "one voter has nobody to take over; set spec.replicas to 3"),
        (_, false, _) => no("NoMargin", told),
        (_, true, false) => no("NoCaughtUpFollower", told),
        (_, true, true) => yes("CaughtUpFollower", told),
    }
}

fn membership_stable(facts: &Facts<'_>) -> Said {
    let Some(leader) = facts.leader else {
        return unknown("NoLeader", "without a leader the configuration is not known to be current");
    };
    let leaving = facts.view.records.values().filter(|r| r.retirement.is_some()).count();
    let learners = leader.learners().count();
    let foreign = &facts.input.plan.report.foreign;
    if !foreign.is_empty() {
        let ids: Vec<_> = foreign.iter().map(ToString::to_string).collect();
        no(
            "ConfigDrift",
            format!("members without a record of ours: {}. Remove them, or leave them be", ids.join(", ")),
        )
    } else if learners > 0 {
        no("LearnerCatchingUp", format!("{learners} learner(s)"))
    } else if leader.is_changing() || leaving > 0 {
        no("RemovalPending", format!("{leaving} member(s) leave"))
    } else {
        yes("Stable", format!("configuration of index {}", leader.config_at().index))
    }
}

/// No failure domain holds a majority.
fn topology_satisfied(facts: &Facts<'_>) -> Said {
    let Some(leader) = facts.leader else {
        return unknown("NoLeader", "without a leader the voters are not known to be current");
    };
    let keys = match facts.input.intent {
        Intent::Run(cluster) => cluster.domains.clone(),
        // What is refused is not known; what is deleted is judged as by default.
        Intent::Delete(_) | Intent::Refused(_) => FailureDomainKey::all(),
    };
    let of = |key| places(facts, leader, move |pod| domain_of(pod, key));
    for key in &keys {
        let places = of(*key);
        if let Some((domain, inside)) = majority_domain(&places) {
            let reason = match key {
                FailureDomainKey::Zone => "ZoneMajority",
                FailureDomainKey::Hostname => "NodeMajority",
            };
            return no(reason, format!("{domain} holds {inside} of {} voters", places.len()));
        }
    }
    let word = |key: &FailureDomainKey| match key {
        FailureDomainKey::Zone => "zone",
        FailureDomainKey::Hostname => "node",
    };
    match keys.iter().find(|key| of(**key).iter().any(|p| p.domain.is_none())) {
        Some(key) => unknown("TopologyUnknown", format!("the {}s of some voters are not known", word(key))),
        None if keys.is_empty() => yes("Spread", "spec.topology names no failure domains"),
        None => {
            let words: Vec<_> = keys.iter().map(word).collect();
            yes("Spread", format!("any one {} may be lost", words.join(" or ")))
        }
    }
}

fn storage_healthy(facts: &Facts<'_>) -> Said {
    let told = |is: fn(&MemberWord) -> bool| {
        let mut names: Vec<_> = facts.fresh_words().filter(|w| is(w)).map(|w| w.record.as_str()).collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = told(|w| w.rot_open > 0) {
        return no(
            "CorruptionDetected",
            format!(
                "damaged parts of the log are not repaired yet on {names}; if it lasts, kubectl quorate replace makes a new member"
            ),
        );
    }
    if let Some(names) = told(|w| w.disk_low) {
        return no("SpaceAlarm", format!("the disk is nearly full on {names}; raise spec.storage.size"));
    }
    match told(|_| true) {
        Some(_) => yes("Healthy", "every member that answers has room and a sound log"),
        None => unknown("Unreachable", "no member answers the operator"),
    }
}

fn degraded(facts: &Facts<'_>) -> Said {
    if let Some(failure) = facts.input.failure {
        return yes("ReconcileFailed", failure);
    }
    if let Decision::Blocked(blocked @ (Blocked::CanaryFailed { .. } | Blocked::QuorumLost { .. })) =
        &facts.input.plan.next
    {
        return yes("MemberUnhealthy", blocked.to_string());
    }
    if let Some(record) = facts.view.records.values().find(|r| View::refusal(r).is_some()) {
        return yes("PodRejected", format!("{}: {}", record.name, View::why_down(record)));
    }
    let Some(leader) = facts.leader else {
        return match not_led(facts) {
            Some((ConditionStatus::Unknown, reason, message)) => unknown(reason, message),
            _ if facts.input.observed.objects.bootstrapped.is_none() => no("Bootstrapping", "not bootstrapped yet"),
            _ => yes("MemberUnhealthy", "no leader"),
        };
    };
    let behind: Vec<_> = leader.voters().filter(|v| !leader.is_caught_up(v.id)).map(|v| v.name.as_str()).collect();
    let (storage, reason, message) = storage_healthy(facts);
    if behind.is_empty() && storage == ConditionStatus::False {
        yes(reason, message)
    } else if behind.is_empty() {
        no("AllCaughtUp", "every voter is caught up")
    } else {
        yes("MemberUnhealthy", format!("not caught up: {}", behind.join(", ")))
    }
}

fn progressing(facts: &Facts<'_>) -> Said {
    let plan = facts.input.plan;
    let moving = match plan.report.operation {
        Some(Operation::Bootstrap) => "Bootstrapping",
        Some(Operation::ScaleOut | Operation::ScaleIn) => "Scaling",
        Some(Operation::Upgrade) => "Upgrading",
        Some(Operation::ReplaceMember) => "Replacing",
        Some(Operation::ScaleToZero) => "ScalingToZero",
        Some(Operation::Delete) => "Deleting",
        None => "Reconciling",
    };
    match &plan.next {
        Decision::Steady => no("Idle", "nothing is to be done"),
        Decision::Act(step) => yes(moving, format!("next step: {}", step.name())),
        Decision::Wait(waiting) => yes(moving, waiting.to_string()),
        Decision::Blocked(blocked) => no(blocked.reason(), blocked.to_string()),
    }
}

/// How long the step at hand has been the next one, if that is too long.
fn overdue_ms(facts: &Facts<'_>) -> Option<u64> {
    let Intent::Run(cluster) = facts.input.intent else { return None };
    let since = operation(facts)?.since.as_deref().and_then(units::unix_ms)?;
    let age = facts.input.now_ms.saturating_sub(since);
    (age > cluster.progress_deadline_ms).then_some(age)
}

fn stalled(facts: &Facts<'_>) -> Said {
    match &facts.input.plan.next {
        // What was asked for.
        Decision::Blocked(
            blocked @ (Blocked::Paused { .. } | Blocked::MemberFenced { .. } | Blocked::ApprovalNeeded { .. }),
        ) => no(blocked.reason(), blocked.to_string()),
        Decision::Blocked(blocked) => yes(blocked.reason(), blocked.to_string()),
        Decision::Act(_) | Decision::Wait(_) if overdue_ms(facts).is_some() => {
            let minutes = overdue_ms(facts).unwrap_or_default() / 60_000;
            yes("DeadlineExceeded", format!("the step at hand has not ended for {minutes} min; see Progressing"))
        }
        Decision::Steady | Decision::Act(_) | Decision::Wait(_) => no("NotStalled", "no person is needed"),
    }
}
