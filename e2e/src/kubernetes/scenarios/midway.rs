//! Edits and requests that arrive while something else is under way, or that must wait for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::beside::{beside, claims, edit, object, up};
use super::edits::{back_to_three, pods, rolled};
use super::hands::{follower, names};
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, condition, conditions, text};
use crate::poll;

/// Long enough for the operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(12);
/// Orders of two kinds of steps show only to who looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

const HASH: &str = "/metadata/annotations/quorate.dev~1template-hash";

/// Edits during the bootstrap are taken; nothing is founded twice.
pub async fn bootstrap_edited(cluster: &Cluster) -> Result<String> {
    let name = "hasty";
    let cpu = |cpu: &str| json!({"requests": {"cpu": cpu}});
    cluster.apply(&beside(name, 3, json!({"size": "64Mi"}))).await?;
    edit(cluster, name, json!({"replicas": 2, "resources": cpu("12m")})).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    edit(cluster, name, json!({"replicas": 1, "resources": cpu("13m")})).await?;
    up(cluster, name).await?;
    let label = format!("quorate.dev/cluster={name}");
    let cpu_path = "jsonpath={.items[*].spec.containers[0].resources.requests.cpu}";
    let told = cluster.mine(&["get", "pods", "-l", &label, "-o", cpu_path]).await?;
    ensure!(told.trim() == "13m", "pods ask for {told:?}, one with 13m was asked for");
    let founded = format!("involvedObject.name={name},reason=Bootstrapped");
    let founded = cluster.mine(&["get", "events", "--field-selector", &founded, "-o", "name"]).await?;
    ensure!(founded.lines().count() == 1, "founded {} times", founded.lines().count());
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    Ok("two edits within a second".to_owned())
}

/// A cluster whose first member cannot start says so after its deadline, and can be deleted.
pub async fn bootstrap_failed(cluster: &Cluster) -> Result<String> {
    let name = "stillborn";
    let mut made = beside(name, 3, json!({"size": "64Mi"}));
    made["spec"]["image"] = json!("quorate:none-such");
    made["spec"]["progressDeadline"] = json!("5s");
    cluster.apply(&made).await?;
    cluster.mine(&["wait", "--for=condition=Stalled", &format!("cc/{name}"), "--timeout=90s"]).await?;
    let status = object(cluster, name).await?["status"].clone();
    ensure!(condition(&status, "Available") != "True", "{}", conditions(&status));
    cluster.mine(&["delete", "cc", name, "--timeout=90s"]).await?;
    super::hands::nothing_left(cluster, name).await?;
    Ok(String::new())
}

/// The member that is to go without a replacement leads: it hands over first.
pub async fn leader_scaled_in(cluster: &Cluster) -> Result<String> {
    cluster.scale(5).await?;
    cluster.ready(5).await?;
    let (leader, term) = cluster.leader().await?;
    cluster.mine(&["delete", "statefulset", &leader, "--wait=false"]).await?;
    cluster.scale(4).await?;
    let after = cluster.leader_after(term).await?;
    cluster.gone(&format!("statefulset/{leader}")).await?;
    cluster.ready(4).await?;
    back_to_three(cluster).await?;
    Ok(format!("{leader} left, {after} leads"))
}

/// A voter that the quorum needs stays, whatever is asked for, until another one is back.
pub async fn removal_waits_for_quorum(cluster: &Cluster) -> Result<String> {
    let (leader, _) = cluster.leader().await?;
    let others: Vec<String> = names(cluster).await?.into_iter().filter(|n| *n != leader).collect();
    let [down, wanted_gone] = others.as_slice() else { anyhow::bail!("followers: {others:?}") };
    let pod = cluster.pod(&format!("{down}-0")).await?.context("the follower has no pod")?;
    let node = text(&pod, "/spec/nodeName");
    // All at once, so that nothing is decided on a part of it.
    cluster.edit(json!({"paused": true})).await?;
    cluster.kubectl(&["cordon", &node], None).await?;
    cluster.mine(&["delete", "pod", &format!("{down}-0")]).await?;
    cluster.mine(&["delete", "statefulset", wanted_gone, "--wait=false"]).await?;
    cluster.edit(json!({"paused": false, "replicas": 2})).await?;
    poll::until("the removal to wait", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        let waits = status["plan"].as_array().into_iter().flatten().any(|step| step["waits"] == "QuorumAtRisk");
        ensure!(waits, "plan: {}; {}", status["plan"], conditions(&status));
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    let status = cluster.status().await?;
    ensure!(status["replicas"] == 3, "{} voters while one is down", status["replicas"]);
    ensure!(cluster.pod(&format!("{wanted_gone}-0")).await?.is_some(), "{wanted_gone} was stopped");
    cluster.nothing_lost().await?;
    cluster.kubectl(&["uncordon", &node], None).await?;
    cluster.gone(&format!("statefulset/{wanted_gone}")).await?;
    cluster.ready(2).await?;
    back_to_three(cluster).await?;
    Ok(format!("{wanted_gone} left when {down} was back"))
}

/// Two wishes in one edit have an order: first more members, then the new template, then fewer members.
pub async fn roll_and_scale(cluster: &Cluster) -> Result<String> {
    let grown = json!({"replicas": 5, "resources": {"requests": {"cpu": "22m"}}});
    let old = pods(cluster).await?;
    cluster.edit(grown).await?;
    let at_first = poll::until("the first member to be rolled", LIMIT, LOOK_EVERY, async || {
        let now = pods(cluster).await?;
        ensure!(old.iter().any(|o| !now.iter().any(|n| n.uid == o.uid)), "none yet");
        Ok(cluster.custom_resource().await?["status"]["replicas"].clone())
    })
    .await?;
    ensure!(at_first == 5, "members were rolled at {at_first} voters, before the new ones were there");
    cluster.ready(5).await?;
    let old = pods(cluster).await?;
    cluster.edit(json!({"replicas": 3, "resources": {"requests": {"cpu": "23m"}}})).await?;
    let left = poll::until("the first member to leave", LIMIT, LOOK_EVERY, async || {
        let voters = cluster.custom_resource().await?["status"]["replicas"].clone();
        ensure!(voters.as_u64().is_some_and(|count| count < 5), "{voters} voters");
        let now = pods(cluster).await?;
        Ok(old.iter().filter(|o| now.iter().any(|n| n.uid == o.uid)).count())
    })
    .await?;
    ensure!(left == 0, "members left before {left} others were rolled");
    back_to_three(cluster).await?;
    Ok("5 voters, then the roll; the roll, then 3 voters".to_owned())
}

/// The member that is down gets the new template first, and nobody else before it is back.
pub async fn unhealthy_first(cluster: &Cluster) -> Result<String> {
    let (leader, _) = cluster.leader().await?;
    let down = text(&follower(cluster).await?, "/metadata/name");
    let pod = cluster.pod(&format!("{down}-0")).await?.context("the follower has no pod")?;
    let node = text(&pod, "/spec/nodeName");
    let old = text(&follower(cluster).await?, HASH);
    cluster.kubectl(&["cordon", &node], None).await?;
    cluster.mine(&["delete", "pod", &format!("{down}-0")]).await?;
    let before = pods(cluster).await?;
    cluster.edit(json!({"resources": {"requests": {"cpu": "24m"}}})).await?;
    poll::until("the member that is down to get the new template", LIMIT, POLL, async || {
        let new = with_other_hash(cluster, &old).await?;
        ensure!(new.contains(&down), "on the new template: {new:?}");
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    let new = with_other_hash(cluster, &old).await?;
    ensure!(new == [down.clone()], "on the new template while {down} is down: {new:?}");
    cluster.kubectl(&["uncordon", &node], None).await?;
    rolled(cluster, &before).await?;
    let last = pods(cluster).await?.into_iter().max_by_key(|pod| pod.created.clone()).map(|pod| pod.name);
    ensure!(last.as_deref() == Some(&format!("{leader}-0")), "{leader} led but {last:?} was rolled last");
    Ok(format!("{down} first, {leader} last"))
}

async fn with_other_hash(cluster: &Cluster, old: &str) -> Result<Vec<String>> {
    let sets = cluster.owned("statefulsets").await?;
    Ok(sets.iter().filter(|s| text(s, HASH) != old).map(|s| text(s, "/metadata/name")).collect())
}

/// Volumes that are kept when their members leave are nobody's afterwards: who comes later starts on one of its own.
pub async fn kept_volumes(cluster: &Cluster) -> Result<String> {
    let name = "thrifty";
    cluster.apply(&beside(name, 3, json!({"size": "64Mi", "removedMember": "Retain"}))).await?;
    up(cluster, name).await?;
    let of = |claims: Vec<Value>| claims.iter().map(|c| text(c, "/metadata/name")).collect::<Vec<_>>();
    let first = of(claims(cluster, name).await?);
    edit(cluster, name, json!({"replicas": 1})).await?;
    up(cluster, name).await?;
    edit(cluster, name, json!({"replicas": 3})).await?;
    up(cluster, name).await?;
    let label = format!("quorate.dev/cluster={name}");
    let used = "jsonpath={.items[*].spec.volumes[*].persistentVolumeClaim.claimName}";
    let used = cluster.mine(&["get", "pods", "-l", &label, "-o", used]).await?;
    let again = used.split_whitespace().filter(|claim| first.iter().any(|f| f == claim)).count();
    ensure!(again == 1, "{again} members run on volumes of the first three: {first:?}, now {used}");
    for claim in &first {
        cluster.mine(&["get", "pvc", claim, "-o", "name"]).await.with_context(|| format!("{claim} was to be kept"))?;
    }
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    let mut kept = vec!["delete", "pvc", "--ignore-not-found", "--timeout=60s"];
    kept.extend(first.iter().map(String::as_str));
    cluster.mine(&kept).await?;
    Ok(format!("2 of {} kept and not used again", first.len()))
}
