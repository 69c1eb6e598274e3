//! Deletion ends: without a quorum, while paused, with a spec that makes no sense, with a node that never answers.

use std::collections::BTreeMap;

use quorate_api::Keep;

use crate::intent::DeletionPolicy;
use crate::observation::{Deletion, MemberRecord, Observation, Presence, Running, Termination};
use crate::planner::{record_ref, volume_ref};
use crate::report::{Decision, Operation, Plan, PlannedStep, Report, Waiting};
use crate::step::Step;

/// How long deletion waits for processes to end by themselves, in milliseconds. Longer than a pod's grace period.
pub const STOP_WAIT_MS: u64 = 60_000;

pub(crate) fn plan_deletion(policy: &DeletionPolicy, observed: &Observation, now_ms: u64) -> Plan {
    let records: BTreeMap<&str, &MemberRecord> = observed.records.iter().map(|r| (r.name.as_str(), r)).collect();
    let next = decide(policy, observed, &records, now_ms);
    let upcoming = remaining(policy, observed, &records);
    let report = Report { operation: Some(Operation::Delete), ..Report::default() };
    Plan { next, upcoming, report }
}

fn decide(
    policy: &DeletionPolicy,
    observed: &Observation,
    records: &BTreeMap<&str, &MemberRecord>,
    now_ms: u64,
) -> Decision {
    if observed.objects.finalizer == Presence::Absent {
        return Decision::Steady;
    }
    if let Some(what) = observed.unread.first() {
        return Decision::Wait(Waiting::ObservationIncomplete { what: what.clone() });
    }
    if let Some(step) = records.values().find_map(|r| stop(r)) {
        return Decision::Act(step);
    }
    let patient = now_ms.saturating_sub(policy.since_ms) < STOP_WAIT_MS;
    if let Some(record) = records.values().find(|r| r.pod.is_some()).filter(|_| patient) {
        return Decision::Wait(Waiting::PodStopping { member: record.name.clone() });
    }
    // A volume whose pod hangs stays until the pod is gone; nobody has to wait for that.
    let doomed =
        |volume: &&crate::observation::Volume| policy.volumes == Keep::Delete && volume.deletion == Deletion::No;
    if let Some(volume) = observed.volumes.iter().filter(doomed).min_by_key(|v| v.name.as_str()) {
        return Decision::Act(Step::DeleteVolume { volume: volume_ref(volume) });
    }
    if let Some(record) = records.values().next() {
        return Decision::Act(Step::DropRecord { record: record_ref(record) });
    }
    Decision::Act(Step::Finish)
}

fn stop(record: &MemberRecord) -> Option<Step> {
    if record.deletion == Deletion::No {
        return (record.running == Running::Started).then(|| Step::StopMember { record: record_ref(record) });
    }
    let pod = record.pod.as_ref().filter(|p| p.termination == Termination::No)?;
    Some(Step::DeletePod { record: record_ref(record), pod_uid: pod.uid.clone() })
}

fn remaining(
    policy: &DeletionPolicy,
    observed: &Observation,
    records: &BTreeMap<&str, &MemberRecord>,
) -> Vec<PlannedStep> {
    let line = |step, member: Option<&str>| PlannedStep { step, member: member.map(str::to_owned), waits: None };
    let stops = records.values().filter_map(|r| stop(r)).map(|s| line(s.name(), s.member()));
    let volumes = observed.volumes.iter().filter(|v| policy.volumes == Keep::Delete && v.deletion == Deletion::No);
    let volumes = volumes.map(|v| line("DeleteVolume", Some(&v.record)));
    let drops = records.keys().map(|name| line("DropRecord", Some(name)));
    let all = stops.chain(volumes).chain(drops).chain([line("Finish", None)]);
    all.take(crate::report::UPCOMING_MAX).collect()
}
