//! A ConsistentCluster as a person wants to see it. Pure: object and time in, text out.
//!
//! Says nothing the status does not say, and says how old it is.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use quorate_api::{
    Condition, ConditionStatus, ConsistentCluster, ConsistentClusterStatus, MemberStatus, PlannedStepStatus, Requests,
};

use crate::paint::{Paint, Tone};

/// The operator writes a status at least every half minute; an older one means that nobody looks, in milliseconds.
const STALE_MS: i64 = 75_000;
/// Width of the words on the left.
const LABEL: usize = 10;
const UNKNOWN: &str = "-";

/// One cluster on one screen.
pub fn screen(cluster: &ConsistentCluster, now_ms: i64, paint: Paint) -> String {
    let mut out = String::new();
    let meta = &cluster.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let Some(status) = &cluster.status else {
        line(&mut out, "CLUSTER", &format!("{name} in {namespace}"));
        line(&mut out, "STATUS", &paint.tone(Tone::Bad, "none yet: no operator has looked at this cluster"));
        line(
            &mut out,
            "",
            "see that the operator runs: kubectl get pods -A -l app.kubernetes.io/name=quorate-operator",
        );
        return out;
    };
    line(&mut out, "CLUSTER", &format!("{} in {namespace}", paint.tone(Tone::Strong, name)));
    for (label, text) in [
        ("STATE", state(status, paint)),
        ("LEADER", leader(status, paint)),
        ("MARGIN", margin(status, paint)),
        ("FAILOVER", failover(status, paint)),
        ("NEXT STEP", next_step(status, paint)),
        ("BLOCKER", blocker(status, paint)),
    ] {
        line(&mut out, label, &text);
    }
    for doubt in doubts(cluster, status, now_ms) {
        line(&mut out, "NOTE", &paint.tone(Tone::Warning, &doubt));
    }
    for request in requests(&Requests::of(meta.annotations.as_ref()), status) {
        line(&mut out, "ASKED", &request);
    }
    out.push('\n');
    out.push_str(&members(status, paint));
    if status.plan.len() > 1 {
        out.push_str("\nPLAN\n");
        out.push_str(&plan_lines(&status.plan));
    }
    out
}

fn line(out: &mut String, label: &str, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{label:<LABEL$} {text}");
}

fn is(status: &ConsistentClusterStatus, kind: &str) -> ConditionStatus {
    status.condition(kind).map_or(ConditionStatus::Unknown, |c| c.status)
}

/// Scaled to zero, and nothing is left to do.
fn is_asleep(status: &ConsistentClusterStatus) -> bool {
    status.replicas == 0 && is(status, "Ready") == ConditionStatus::True
}

fn message(condition: Option<&Condition>) -> &str {
    condition.map_or("", |c| c.message.as_str())
}

fn state(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let ready = status.condition("Ready");
    let available = status.condition("Available");
    match (is(status, "Ready"), is(status, "Available")) {
        (ConditionStatus::True, _) => format!("{}: {}", paint.tone(Tone::Good, "Ready"), message(ready)),
        (_, ConditionStatus::True) => {
            let reason = ready.map_or("", |c| c.reason.as_str());
            format!("{}, and serving", paint.tone(Tone::Warning, reason))
        }
        (_, ConditionStatus::False) => format!("{}: {}", paint.tone(Tone::Bad, "Not serving"), message(available)),
        (_, ConditionStatus::Unknown) => {
            format!("{}: {}", paint.tone(Tone::Bad, "Not known whether it serves"), message(available))
        }
    }
}

fn leader(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let why = status.condition("LeaderServing");
    match &status.leader {
        Some(leader) => format!("{}, term {}, index {}", leader.name, leader.term, index(status)),
        None if is_asleep(status) => "none, as it should be".to_owned(),
        None => format!("{}: {}", paint.tone(Tone::Bad, "none"), message(why)),
    }
}

fn index(status: &ConsistentClusterStatus) -> String {
    status.raft.as_ref().map_or_else(|| UNKNOWN.to_owned(), |r| r.commit_index.to_string())
}

fn margin(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let Some(quorum) = &status.quorum else {
        return match is_asleep(status) {
            true => "none: nothing runs that could fail".to_owned(),
            false => paint.tone(Tone::Bad, "not known: no member told of the voters"),
        };
    };
    let told = format!("{} of {} voters caught up, {} needed", quorum.caught_up, status.replicas, quorum.required);
    let missing = quorum.required - quorum.caught_up;
    match quorum.tolerates {
        _ if missing > 0 => format!("{}: {told}", paint.tone(Tone::Bad, &format!("short of {missing}"))),
        0 => format!("{}: {told}", paint.tone(Tone::Warning, "none may fail")),
        spare => format!("{}: {told}", paint.tone(Tone::Good, &format!("{spare} may fail"))),
    }
}

fn failover(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let ready = match is(status, "FailoverReady") {
        _ if is_asleep(status) => "not needed".to_owned(),
        ConditionStatus::True => paint.tone(Tone::Good, "ready"),
        ConditionStatus::False => paint.tone(Tone::Warning, "not ready"),
        ConditionStatus::Unknown => paint.tone(Tone::Warning, "not known"),
    };
    let last = status.failover.as_ref().and_then(|f| Some((f.count, f.last_duration_ms?)));
    let last = last.map_or(String::new(), |(count, ms)| format!("; {count} so far, the last took {ms} ms"));
    format!("{ready}: {}{last}", message(status.condition("FailoverReady")))
}

fn next_step(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let Some(first) = status.plan.first() else {
        let idle = is_asleep(status) || status.condition("Progressing").is_none_or(|c| c.reason == "Idle");
        return if idle { "nothing is to be done" } else { "none, until the blocker is gone" }.to_owned();
    };
    let operation = status.operation.as_ref().map_or(String::new(), |o| format!(" ({})", o.kind));
    let step = format!("{}{operation}", step_and_member(first));
    let waits = || paint.tone(Tone::Warning, &format!("waits: {}", message(status.condition("Progressing"))));
    match &first.waits {
        None => step,
        // Nothing is held up but the look at what comes back.
        Some(_) if first.step == "Observe" => waits(),
        Some(_) => format!("{step} {}", waits()),
    }
}

fn blocker(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let stalled = status.condition("Stalled");
    let held = stalled.filter(|c| c.status == ConditionStatus::True || c.reason != "NotStalled");
    let held = held.filter(|_| !is_asleep(status));
    match held {
        Some(condition) => {
            format!("{}: {}", paint.tone(Tone::Bad, &condition.reason), condition.message)
        }
        None => match status.condition("Degraded").filter(|c| c.status == ConditionStatus::True) {
            Some(condition) => {
                format!("none; but {}: {}", paint.tone(Tone::Warning, &condition.reason), condition.message)
            }
            None => "none".to_owned(),
        },
    }
}

/// Why what is shown may not be what is.
fn doubts(cluster: &ConsistentCluster, status: &ConsistentClusterStatus, now_ms: i64) -> Vec<String> {
    let mut doubts = Vec::new();
    let observed = status.last_observed_time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let age_ms = observed.map(|time| now_ms.saturating_sub(time.as_millisecond()));
    if let Some(age) = age_ms.filter(|age| *age > STALE_MS) {
        doubts.push(format!(
            "no member was heard for {}: is the operator up? kubectl get pods -A -l app.kubernetes.io/name=quorate-operator",
            ago(age)
        ));
    }
    let generation = cluster.metadata.generation.unwrap_or_default();
    let seen = status.observed_generation.unwrap_or_default();
    if seen < generation {
        doubts.push(format!("the spec is generation {generation}, this status is of {seen}"));
    }
    if cluster.metadata.deletion_timestamp.is_some() {
        doubts.push("the cluster is being deleted".to_owned());
    }
    doubts
}

fn ago(ms: i64) -> String {
    match ms / 1_000 {
        s if s < 120 => format!("{s} s"),
        s if s < 7_200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3_600),
    }
}

/// Requests that still stand; what is moot is not shown.
fn requests(asked: &Requests, status: &ConsistentClusterStatus) -> Vec<String> {
    let is_member = |name: &str| status.members.iter().any(|m| m.name == name);
    let term = status.leader.as_ref().map_or(0, |l| l.term);
    let leads = |name: &str| status.leader.as_ref().is_some_and(|l| l.name == name);
    let mut told = Vec::new();
    if let Some(transfer) = &asked.transfer
        && u64::try_from(term).is_ok_and(|term| term == transfer.term)
        && !leads(&transfer.to)
    {
        told.push(format!("leadership to {}", transfer.to));
    }
    told.extend(asked.fenced.iter().map(|name| match is_member(name) {
        true => format!("{name} fenced; `kubectl quorate unfence` lets it run"),
        false => format!("{name} fenced, but it is no member; `kubectl quorate unfence` takes the request away"),
    }));
    let stands =
        |name: &&String, id: &str| status.members.iter().any(|m| m.name == **name && m.id.as_deref() == Some(id));
    let replaced = asked.replaced.iter().filter(|(name, id)| stands(name, id));
    told.extend(replaced.map(|(name, _)| format!("a new member in place of {name}")));
    told.extend(asked.problems.iter().cloned());
    told
}

fn members(status: &ConsistentClusterStatus, paint: Paint) -> String {
    let rows: Vec<[String; 6]> = status.members.iter().map(row).collect();
    let head = ["MEMBER", "ROLE", "READY", "LAG", "VERSION", "TOLD BY"];
    let mut text = table(&head, &rows);
    let fault = |m: &&MemberStatus| m.source == "None" || m.role == "Unknown";
    if let Some(silent) = status.members.iter().find(fault).filter(|_| !is_asleep(status)) {
        let hint = format!("{} does not answer; look at: kubectl describe pod {}-0", silent.name, silent.name);
        text.push_str(&format!("{}\n", paint.tone(Tone::Faint, &hint)));
    }
    text
}

fn row(member: &MemberStatus) -> [String; 6] {
    [
        member.name.clone(),
        member.role.clone(),
        if member.ready { "yes" } else { "no" }.to_owned(),
        member.match_lag.map_or_else(|| UNKNOWN.to_owned(), |lag| lag.to_string()),
        member.version.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
        match member.source.as_str() {
            "Direct" => "itself",
            "Leader" => "others",
            _ => "nobody",
        }
        .to_owned(),
    ]
}

/// Columns as wide as what is in them, two spaces apart.
pub fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let padded = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = padded(head.to_vec());
    rows.iter().for_each(|row| text.push_str(&padded(row.iter().map(String::as_str).collect())));
    text
}

fn step_and_member(step: &PlannedStepStatus) -> String {
    step.member.as_ref().map_or_else(|| step.step.clone(), |member| format!("{} {member}", step.step))
}

/// The lines of `status.plan`, numbered.
pub fn plan_lines(plan: &[PlannedStepStatus]) -> String {
    let mut text = String::new();
    for (number, step) in plan.iter().enumerate() {
        let numbers =
            step.have.zip(step.need).map_or(String::new(), |(have, need)| format!(" (have {have}, need {need})"));
        let waits = step.waits.as_ref().map_or(String::new(), |reason| format!("  waits: {reason}{numbers}"));
        let _ = writeln!(text, "{:>4}  {}{waits}", number + 1, step_and_member(step));
    }
    text
}

/// Clusters of a namespace, a line each.
pub fn list(clusters: &[ConsistentCluster]) -> String {
    let row = |cluster: &ConsistentCluster| {
        let status = cluster.status.clone().unwrap_or_default();
        let ready = status.condition("Ready");
        [
            cluster.metadata.namespace.clone().unwrap_or_default(),
            cluster.metadata.name.clone().unwrap_or_default(),
            ready.map_or("Unknown".to_owned(), |c| format!("{:?}", c.status)),
            format!("{}/{}", status.ready_replicas, cluster.spec.replicas),
            status.leader.as_ref().map_or_else(|| UNKNOWN.to_owned(), |l| l.name.clone()),
            status.quorum.as_ref().map_or_else(|| UNKNOWN.to_owned(), |q| q.tolerates.to_string()),
            ready.map_or_else(|| "no operator has looked".to_owned(), |c| c.message.clone()),
        ]
    };
    let rows: Vec<_> = clusters.iter().map(row).collect();
    table(&["NAMESPACE", "CLUSTER", "READY", "MEMBERS", "LEADER", "MAY FAIL", "MESSAGE"], &rows)
}
