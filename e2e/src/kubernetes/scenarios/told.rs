//! Whether the status tells the truth: while leadership moves, and while nobody can know.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::Value;

use super::edits::pods;
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::poll;

/// A status is correct within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
const SAMPLES: usize = 10_000;
const READERS: usize = 4;

/// Ten thousand readings of the status while leaders come and go: each agrees with itself, and terms never go back.
pub async fn samples(cluster: &Cluster) -> Result<String> {
    let reader = async || {
        let (mut last, mut leaders) = (0, std::collections::BTreeSet::new());
        for _ in 0..SAMPLES / READERS {
            let status = cluster.custom_resource().await?["status"].clone();
            if let Err(error) = consistent(&status) {
                bail!("{error}: {status}");
            }
            let term = status["leader"]["term"].as_u64().unwrap_or(last);
            ensure!(term >= last, "the leader's term went from {last} back to {term}");
            last = term;
            leaders.insert(text(&status, "/leader/name"));
        }
        Ok::<_, anyhow::Error>(leaders)
    };
    let moves = async {
        loop {
            let (leader, term) = cluster.leader().await?;
            cluster.mine(&["delete", "pod", &format!("{leader}-0"), "--wait=false", "--grace-period=1"]).await?;
            cluster.leader_after(term).await?;
            cluster.ready(3).await?;
        }
    };
    let seen = tokio::select! {
        seen = try_join_all((0..READERS).map(|_| reader())) => seen?,
        failed = moves => return failed,
    };
    let leaders = seen.into_iter().flatten().filter(|name| !name.is_empty()).collect::<std::collections::BTreeSet<_>>();
    ensure!(leaders.len() > 1, "one leader throughout: nothing is proven");
    cluster.ready(3).await?;
    Ok(format!("{SAMPLES} readings, {} leaders", leaders.len()))
}

/// What must hold of every status by itself.
fn consistent(status: &Value) -> Result<()> {
    let members = || status["members"].as_array().into_iter().flatten();
    let leads: Vec<String> = members().filter(|m| m["role"] == "Leader").map(|m| text(m, "/id")).collect();
    let named = text(status, "/leader/id");
    ensure!(leads.len() <= 1, "two leaders");
    ensure!(leads.iter().all(|id| *id == named), "member {leads:?} has the role of {named}");
    ensure!(status["leader"].is_null() || status["leader"]["term"] == status["raft"]["term"], "two terms");
    let serves = condition(status, "LeaderServing") == "True";
    ensure!(serves != status["leader"].is_null(), "LeaderServing and the leader disagree");
    ensure!(serves || condition(status, "Available") != "True", "available without a leader");
    let ready = members().filter(|m| m["ready"] == true).count() as u64;
    ensure!(status["readyReplicas"].as_u64().unwrap_or_default() <= ready, "more are ready than are shown");
    Ok(())
}

/// The operator is cut off from the members, who serve on: it says that it does not know, and does nothing.
pub async fn unreachable(cluster: &Cluster) -> Result<String> {
    let namespace = cluster.args.operator_namespace.as_str();
    let operator = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app.kubernetes.io/name=quorate-operator");
    let operators = cluster.api.items(&operator).await?;
    let running = operators.iter().find(|p| text(p, "/status/phase") == "Running");
    let Some(operator) = running else { bail!("no operator runs") };
    let (node, ip) = (text(operator, "/spec/nodeName"), text(operator, "/status/podIP"));
    let before = pods(cluster).await?;
    let rule = |action: &'static str| {
        [
            "exec",
            node.as_str(),
            "iptables",
            action,
            "FORWARD",
            "-s",
            ip.as_str(),
            "-p",
            "tcp",
            "--dport",
            "2381",
            "-j",
            "DROP",
        ]
        .map(str::to_owned)
    };
    let filter = async |action: &'static str| {
        let rule = rule(action);
        cluster.node(&rule.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    filter("-I").await?;
    let outcome = async {
        poll::until("the status to be unknown", TOLD_WITHIN, POLL, async || {
            let status = cluster.status().await?;
            let told = ["Ready", "Available", "LeaderServing"].map(|kind| condition(&status, kind).to_owned());
            ensure!(told.iter().all(|t| t == "Unknown"), "{}", conditions(&status));
            Ok(())
        })
        .await?;
        tokio::time::sleep(TOLD_WITHIN).await;
        ensure!(condition(&cluster.status().await?, "Available") == "Unknown", "green again without a word");
        ensure!(pods(cluster).await? == before, "members were changed by an operator that cannot reach them");
        cluster.nothing_lost().await
    };
    let outcome = outcome.await;
    filter("-D").await?;
    outcome?;
    poll::until(&format!("{NAME} to be known again"), LIMIT, POLL, async || cluster.ready(3).await).await?;
    Ok("Unknown while cut off".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_that_contradicts_itself_is_seen() {
        let good = json!({
            "leader": {"id": "a", "name": "x", "term": 3}, "raft": {"term": 3}, "readyReplicas": 1,
            "members": [{"id": "a", "role": "Leader", "ready": true}, {"id": "b", "role": "Follower", "ready": false}],
            "conditions": [{"type": "LeaderServing", "status": "True"}, {"type": "Available", "status": "True"}],
        });
        assert!(consistent(&good).is_ok());
        let spoil = |pointer: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).expect("the pointer is right") = value;
            bad
        };
        for bad in [
            spoil("/members/1/role", json!("Leader")),
            spoil("/leader/id", json!("b")),
            spoil("/raft/term", json!(4)),
            spoil("/leader", Value::Null),
            spoil("/conditions/0/status", json!("False")),
            spoil("/readyReplicas", json!(2)),
        ] {
            assert!(consistent(&bad).is_err(), "{bad}");
        }
    }
}
