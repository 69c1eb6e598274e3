//! `kubectl quorate` as a person uses it, on a real cluster: what it shows, and what it asks for.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::edits::pods;
use super::hands::{follower, member_id};
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, text};
use crate::poll;

/// Status, plan, transfer, fence and unfence, restart, logs and a report: each does what it says it did.
pub async fn tour(cluster: &Cluster) -> Result<String> {
    shows(cluster).await?;
    let moved = transfers(cluster).await?;
    let fenced = fences(cluster).await?;
    restarts(cluster).await?;
    reports(cluster).await?;
    Ok(format!("{moved} leads, {fenced} was fenced"))
}

/// A new member under a new id takes the place of the one that was named.
pub async fn replace(cluster: &Cluster) -> Result<String> {
    let set = follower(cluster).await?;
    let (name, id) = (text(&set, "/metadata/name"), member_id(&set));
    cluster.plugin(&["replace", NAME, &name]).await?;
    cluster.ready(3).await?;
    let list = cluster.etcdctl(&["member", "list"]).await?;
    ensure!(!list.contains(&id), "member {id} is still there: {list}");
    Ok(format!("{name} replaced"))
}

async fn shows(cluster: &Cluster) -> Result<()> {
    let (leader, _) = cluster.leader().await?;
    let screen = cluster.plugin(&["status", NAME]).await?;
    for word in [leader.as_str(), "Ready", "1 may fail", "nothing is to be done"] {
        ensure!(screen.contains(word), "no {word:?} on the screen:\n{screen}");
    }
    let json: Value = serde_json::from_str(&cluster.plugin(&["status", NAME, "-o", "json"]).await?)?;
    ensure!(json["leader"]["name"] == leader.as_str(), "status -o json names {}", json["leader"]["name"]);
    // The edit is planned with the members' own words, and not made.
    let manifest = std::fs::read_to_string(&cluster.args.manifest)?.replace("replicas: 3", "replicas: 5");
    let file = std::env::temp_dir().join(format!("quorate-plan-{}.yaml", std::process::id()));
    std::fs::write(&file, manifest)?;
    let plan = cluster.plugin(&["plan", "-f", &file.to_string_lossy()]).await;
    std::fs::remove_file(&file)?;
    let plan = plan?;
    for word in ["spec.replicas: 3 -> 5", "SetBudget", "CreateMember"] {
        ensure!(plan.contains(word), "no {word:?} in the plan:\n{plan}");
    }
    ensure!(!plan.contains("gave no word"), "the members were not reached:\n{plan}");
    ensure!(cluster.wanted().await? == 3, "the plan was carried out");
    Ok(())
}

async fn transfers(cluster: &Cluster) -> Result<String> {
    let (before, _) = cluster.leader().await?;
    let to = text(&follower(cluster).await?, "/metadata/name");
    cluster.plugin(&["transfer-leader", NAME, &to]).await?;
    let (leader, _) = cluster.leader().await?;
    ensure!(leader == to, "{leader} leads, {to} was asked for, {before} led");
    cluster.ready(3).await?;
    Ok(leader)
}

async fn fences(cluster: &Cluster) -> Result<String> {
    let victim = text(&follower(cluster).await?, "/metadata/name");
    cluster.plugin(&["fence", NAME, &victim]).await?;
    ensure!(cluster.pod(&format!("{victim}-0")).await?.is_none(), "{victim} has a pod although it is fenced");
    let (leader, _) = cluster.leader().await?;
    let second = cluster.plugin(&["fence", NAME, &leader]).await;
    let refused = second.err().map(|error| error.to_string()).context("a second member was fenced")?;
    ensure!(refused.contains("unfence it first"), "refused for another reason: {refused}");
    let screen = cluster.plugin(&["status", NAME]).await?;
    ensure!(screen.contains("MemberFenced") && screen.contains(&victim), "the screen does not tell:\n{screen}");
    cluster.nothing_lost().await?;
    cluster.plugin(&["unfence", NAME, &victim]).await?;
    cluster.ready(3).await?;
    Ok(victim)
}

async fn restarts(cluster: &Cluster) -> Result<()> {
    let before = pods(cluster).await?;
    let (leader, _) = cluster.leader().await?;
    cluster.plugin(&["restart", NAME]).await?;
    let after = pods(cluster).await?;
    let old = after.iter().filter(|pod| before.iter().any(|b| b.uid == pod.uid)).count();
    ensure!(old == 0, "{old} pods are the old ones");
    let last = after.iter().max_by_key(|pod| pod.created.clone()).map(|pod| pod.name.clone());
    ensure!(last.as_deref() == Some(&format!("{leader}-0")), "{leader} led but {last:?} was restarted last");
    cluster.ready(3).await?;
    // The request is moot: nothing is restarted twice.
    tokio::time::sleep(POLL * 10).await;
    ensure!(pods(cluster).await? == after, "pods were made anew once more");
    Ok(())
}

async fn reports(cluster: &Cluster) -> Result<()> {
    let members = cluster.owned("statefulsets").await?;
    let logs = cluster.plugin(&["logs", NAME, "--tail", "5"]).await?;
    for set in &members {
        let name = text(set, "/metadata/name");
        ensure!(logs.contains(&name), "no line of {name} among the logs");
    }
    let file = std::env::temp_dir().join(format!("quorate-report-{}.tar.gz", std::process::id()));
    let told = poll::until("a report", LIMIT, POLL, async || {
        cluster.plugin(&["report", NAME, "-f", &file.to_string_lossy()]).await
    })
    .await?;
    let bytes = std::fs::metadata(&file)?.len();
    std::fs::remove_file(&file)?;
    ensure!(bytes > 5_000, "a report of {bytes} bytes: {told}");
    Ok(())
}
