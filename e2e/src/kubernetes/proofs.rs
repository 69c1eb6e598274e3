//! What is proven at the end of a run from the audit log and the members' logs.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cluster::{Cluster, text};
use super::{Evidence, audit, handover, outages, rbac, story};
use crate::scenario::Report;

const SERVICE_ACCOUNT: &str = "quorate-operator";

pub async fn prove(cluster: &Cluster, evidence: &Evidence, report: &mut Report) -> Result<()> {
    const PROOFS: [&str; 3] = [
        "no_leader_is_disrupted_before_it_handed_over",
        "no_two_members_are_taken_down_at_once",
        "every_granted_right_is_used",
    ];
    if cluster.args.audit_log.is_none() {
        PROOFS.into_iter().for_each(|name| report.left_out(name, "needs --audit-log"));
        return Ok(());
    }
    let handed_over = report.scenario(PROOFS[0], async { hand_overs(cluster, evidence) }).await;
    let one_by_one = report.scenario(PROOFS[1], async { one_by_one(cluster, evidence) }).await;
    let used = if cluster.args.only.is_empty() {
        report.scenario(PROOFS[2], rights(cluster)).await
    } else {
        report.left_out(PROOFS[2], "only a part of the scenarios was run");
        Ok(())
    };
    handed_over.and(one_by_one).and(used)
}

/// The operator's requests, what everybody asked of clusters, and what was told of members' pods.
struct Log {
    operators: Vec<audit::Request>,
    asked: Vec<story::Asked>,
    heard: Vec<outages::Heard>,
}

fn log(cluster: &Cluster, from: u64) -> Result<Log> {
    let path = cluster.args.audit_log.as_deref().context("there is no audit log")?;
    let user = format!("system:serviceaccount:{}:{SERVICE_ACCOUNT}", cluster.args.operator_namespace);
    let all = audit::read(path, from, &[&user, "consistentclusters", "-0/status"])?;
    let (asked, heard) = (story::asked(&all), outages::heard(&all));
    Ok(Log { asked, heard, operators: all.into_iter().filter(|r| r.user == user).collect() })
}

fn hand_overs(cluster: &Cluster, evidence: &Evidence) -> Result<String> {
    let Log { operators: requests, asked, .. } = log(cluster, evidence.audit_start)?;
    let bare = requests.iter().find(|r| r.resource == "statefulsets" && r.verb == "update" && r.body.is_null());
    ensure!(bare.is_none(), "the audit policy hides what StatefulSets are changed to: {bare:?}");
    let verdict = handover::check(&lines(evidence)?, &story::disruptions(&requests), &asked);
    if !verdict.violations.is_empty() {
        bail!("{} of {} disruptions: {}", verdict.violations.len(), verdict.checked, verdict.violations.join("; "));
    }
    for hand_over in &verdict.handed_over {
        let took = hand_over.took_ms.map_or("unasked".to_owned(), |ms| format!("in {ms} ms"));
        eprintln!(
            "    {} handed over to {} {took}, {:?} {} ms later",
            hand_over.member, hand_over.successor, hand_over.what, hand_over.before_ms
        );
    }
    let asked = verdict.handed_over.iter().filter(|h| h.took_ms.is_some()).count();
    ensure!(asked > 0, "{} disruptions, but none of a member that led: nothing is proven", verdict.checked);
    Ok(format!("{} disruptions, {asked} of a former leader, each after another one served", verdict.checked))
}

fn one_by_one(cluster: &Cluster, evidence: &Evidence) -> Result<String> {
    let Log { operators, asked, heard } = log(cluster, evidence.audit_start)?;
    ensure!(heard.iter().any(|heard| heard.is_ready), "the audit policy hides what kubelets tell of pods");
    let verdict = outages::check(&heard, &lines(evidence)?, &story::disruptions(&operators), &asked);
    if !verdict.violations.is_empty() {
        bail!("{} of {}: {}", verdict.violations.len(), verdict.taken_down, verdict.violations.join("; "));
    }
    ensure!(verdict.taken_down > 0, "no voter that was up was taken down: nothing is proven");
    Ok(format!(
        "{} voters taken down one by one, the longest for {} ms; {} disruptions of others",
        verdict.taken_down, verdict.longest_ms, verdict.others
    ))
}

fn lines(evidence: &Evidence) -> Result<Vec<story::Line>> {
    let all = evidence.members.lines()?;
    let read = |(pod, line): &(String, String)| story::line(pod.strip_suffix("-0").unwrap_or(pod), line);
    Ok(all.iter().filter_map(read).collect())
}

async fn rights(cluster: &Cluster) -> Result<String> {
    let requests = log(cluster, cluster.args.audit_from)?.operators;
    let (used, refused) = rbac::used(&requests);
    let roles = roles(cluster).await?;
    let granted = rbac::granted(&roles);
    ensure!(!granted.is_empty(), "no rules are bound to the ServiceAccount {SERVICE_ACCOUNT}");
    let faults = rbac::faults(&granted, &used, &rbac::EXCUSED);
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    if let Some(right) = refused.iter().find(|right| !granted.contains(*right)) {
        bail!("asked for without a right to it: {right:?}");
    }
    Ok(format!("{} rights granted, all used in {} requests, no wildcard", granted.len(), requests.len()))
}

/// The Roles and ClusterRoles bound to the operator's ServiceAccount.
async fn roles(cluster: &Cluster) -> Result<Vec<Value>> {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let is_ours = |binding: &Value| {
        binding["subjects"].as_array().into_iter().flatten().any(|s| {
            s["kind"] == "ServiceAccount"
                && s["name"] == SERVICE_ACCOUNT
                && s["namespace"] == cluster.args.operator_namespace.as_str()
        })
    };
    let mut roles = Vec::new();
    for plural in ["rolebindings", "clusterrolebindings"] {
        for binding in cluster.api.items(&format!("{RBAC}/{plural}")).await?.iter().filter(|b| is_ours(b)) {
            let name = text(binding, "/roleRef/name");
            let path = match binding["roleRef"]["kind"].as_str() {
                Some("ClusterRole") => format!("{RBAC}/clusterroles/{name}"),
                _ => format!("{RBAC}/namespaces/{}/roles/{name}", text(binding, "/metadata/namespace")),
            };
            roles.push(cluster.api.get(&path).await?);
        }
    }
    Ok(roles)
}
