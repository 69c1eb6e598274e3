//! Scenarios on clusters of their own beside the one under test, and what tools outside make of a status.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::edits::pods;
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, condition, conditions, text};
use crate::poll;

/// Long enough for the operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(15);

pub(super) fn beside(name: &str, replicas: u64, storage: Value) -> Value {
    let mut storage = storage;
    storage["onClusterDelete"] = json!("Delete");
    json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": name},
        "spec": {"replicas": replicas, "storage": storage},
    })
}

/// One that clients of any namespace write to with nothing in hand.
pub(super) fn open(name: &str, replicas: u64, storage: Value) -> Value {
    let mut made = beside(name, replicas, storage);
    made["spec"]["tls"] = json!({"client": {"mode": "Disabled"}});
    made["spec"]["network"] = json!({"allowFrom": [{"namespaceSelector": {}}]});
    made
}

pub(super) async fn object(cluster: &Cluster, name: &str) -> Result<Value> {
    let namespace = &cluster.args.namespace;
    cluster.api.get(&format!("/apis/quorate.dev/v1alpha1/namespaces/{namespace}/consistentclusters/{name}")).await
}

pub(super) async fn up(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.mine(&["wait", "--for=condition=Ready", &format!("cc/{name}"), "--timeout=140s"]).await.map(drop)
}

pub(super) async fn edit(cluster: &Cluster, name: &str, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    cluster.mine(&["patch", &format!("cc/{name}"), "--type=merge", "-p", &patch]).await.map(drop)
}

pub(super) async fn claims(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let namespace = &cluster.args.namespace;
    let path =
        format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims?labelSelector=quorate.dev/cluster={name}");
    cluster.api.items(&path).await
}

/// Waits until the cluster has as many claims as members, and all of them are as wanted.
pub(super) async fn all_claims(cluster: &Cluster, name: &str, count: usize, pointer: &str, wanted: &str) -> Result<()> {
    poll::until(&format!("{count} volumes with {wanted}"), LIMIT, POLL, async || {
        let found: Vec<String> = claims(cluster, name).await?.iter().map(|c| text(c, pointer)).collect();
        ensure!(found.len() == count && found.iter().all(|f| f == wanted), "{found:?}");
        Ok(())
    })
    .await
}

async fn class(cluster: &Cluster, name: &str) -> Result<()> {
    let mut classes = cluster.api.items("/apis/storage.k8s.io/v1/storageclasses").await?;
    classes.sort_by_key(|c| c["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] != "true");
    ensure!(!classes.is_empty(), "the cluster has no storage class");
    let made = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": classes[0]["provisioner"], "volumeBindingMode": classes[0]["volumeBindingMode"],
        "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
    });
    cluster.apply(&made).await.map(drop)
}

pub(super) const SIZE: &str = "/spec/resources/requests/storage";

/// Does what a storage driver's expander does once a claim asks for more: says that it is there.
pub(super) async fn expanded(cluster: &Cluster, name: &str, size: &str) -> Result<()> {
    for claim in claims(cluster, name).await? {
        let (claim, volume) = (text(&claim, "/metadata/name"), text(&claim, "/spec/volumeName"));
        let spec = json!({"spec": {"capacity": {"storage": size}}}).to_string();
        cluster.kubectl(&["patch", "pv", &volume, "--type=merge", "-p", &spec], None).await?;
        let status = json!({"status": {"capacity": {"storage": size}}}).to_string();
        cluster.mine(&["patch", "pvc", &claim, "--subresource=status", "--type=merge", "-p", &status]).await?;
    }
    Ok(())
}

/// Growing asks for more on every claim and restarts nobody; the storage itself is the expander's, which is this suite here.
pub async fn expand(cluster: &Cluster) -> Result<String> {
    let (name, grows) = ("grown", "quorate-e2e-grows");
    class(cluster, grows).await?;
    cluster.apply(&beside(name, 1, json!({"size": "64Mi", "storageClassName": grows}))).await?;
    up(cluster, name).await?;
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector=quorate.dev/cluster={name}", cluster.args.namespace);
    let uids = async || -> Result<Vec<String>> {
        Ok(cluster.api.items(&path).await?.iter().map(|p| text(p, "/metadata/uid")).collect())
    };
    let before = uids().await?;
    edit(cluster, name, json!({"storage": {"size": "96Mi"}})).await?;
    all_claims(cluster, name, 1, SIZE, "96Mi").await?;
    expanded(cluster, name, "96Mi").await?;
    up(cluster, name).await?;
    ensure!(uids().await? == before, "a member was restarted to grow its volume");
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    cluster.kubectl(&["delete", "storageclass", grows], None).await?;
    Ok(String::new())
}

/// Smaller volumes, then another class, by replacing member after member.
pub async fn surge(cluster: &Cluster) -> Result<String> {
    let (name, other) = ("moved", "quorate-e2e-other");
    class(cluster, other).await?;
    cluster.apply(&beside(name, 3, json!({"size": "96Mi"}))).await?;
    up(cluster, name).await?;
    let id = object(cluster, name).await?["status"]["clusterID"].clone();
    let refused = edit(cluster, name, json!({"storage": {"size": "64Mi"}})).await;
    ensure!(
        refused.is_err_and(|e| format!("{e:#}").contains("changePolicy")),
        "shrinking was accepted without a policy"
    );
    edit(cluster, name, json!({"storage": {"size": "64Mi", "changePolicy": "Replace"}})).await?;
    all_claims(cluster, name, 3, SIZE, "64Mi").await?;
    edit(cluster, name, json!({"storage": {"storageClassName": other}})).await?;
    all_claims(cluster, name, 3, "/spec/storageClassName", other).await?;
    up(cluster, name).await?;
    ensure!(object(cluster, name).await?["status"]["clusterID"] == id, "it is another cluster now");
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    cluster.kubectl(&["delete", "storageclass", other], None).await?;
    Ok("96Mi to 64Mi, then another class".to_owned())
}

/// A majority of the disks is lost: it is told, and nothing is made anew, whatever time goes by.
pub async fn majority_lost(cluster: &Cluster) -> Result<String> {
    let name = "bereft";
    cluster.apply(&beside(name, 3, json!({"size": "64Mi"}))).await?;
    up(cluster, name).await?;
    let before = object(cluster, name).await?["status"].clone();
    let label = format!("quorate.dev/cluster={name}");
    let records = async || cluster.mine(&["get", "statefulset", "-l", &label, "-o", "name"]).await;
    let first = records().await?;
    let lost: Vec<String> = claims(cluster, name).await?.iter().take(2).map(|c| text(c, "/metadata/name")).collect();
    let pods: Vec<String> = lost.iter().map(|c| format!("{}-0", c.trim_end_matches("-data"))).collect();
    let delete = |kind, names: &[String], how: &[&'static str]| {
        let words = ["delete", kind].into_iter().map(str::to_owned).chain(names.iter().cloned());
        words.chain(how.iter().map(|word| (*word).to_owned())).collect::<Vec<_>>()
    };
    for command in [delete("pvc", &lost, &["--wait=false"]), delete("pod", &pods, &["--grace-period=0", "--force"])] {
        cluster.mine(&command.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    }
    let stalled = ["wait", "--for=condition=Stalled", &format!("cc/{name}"), "--timeout=120s"];
    cluster.mine(&stalled).await?;
    // The first loss may be noticed while there still is a quorum to replace it with.
    let at_once = records().await?;
    tokio::time::sleep(TEMPTATION).await;
    let after = object(cluster, name).await?["status"].clone();
    ensure!(before["clusterID"] == after["clusterID"], "a new cluster was made");
    ensure!(condition(&after, "Available") == "False", "{}", conditions(&after));
    let now = records().await?;
    ensure!(at_once == now, "records were {at_once}, now {now}");
    ensure!(first.lines().all(|record| now.lines().any(|n| n == record)), "records were {first}, now {now}");
    cluster.mine(&["delete", "cc", name, "--timeout=150s"]).await?;
    Ok("QuorumLost is told, the records stay".to_owned())
}

/// What kstatus, and with it many a tool, takes a resource to be.
fn kstatus(object: &Value) -> &'static str {
    let status = &object["status"];
    if object["metadata"]["generation"] != status["observedGeneration"] || condition(status, "Reconciling") == "True" {
        return "InProgress";
    }
    match (condition(status, "Stalled"), condition(status, "Ready")) {
        ("True", _) => "Failed",
        (_, "True") => "Current",
        _ => "InProgress",
    }
}

/// A spec that makes no sense is told as failed and changes nobody; the old one heals it.
pub async fn invalid(cluster: &Cluster) -> Result<String> {
    let before = pods(cluster).await?;
    let now = async || -> Result<&'static str> { Ok(kstatus(&cluster.custom_resource().await?)) };
    let becomes = async |wanted: &str| {
        poll::until(&format!("{wanted} for kstatus"), LIMIT, POLL, async || {
            let told = now().await?;
            ensure!(told == wanted, "{told}");
            Ok(())
        })
        .await
    };
    becomes("Current").await?;
    let cpu = cluster.custom_resource().await?["spec"]["resources"].clone();
    let bad = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    cluster.edit(json!({"resources": bad})).await?;
    becomes("Failed").await?;
    tokio::time::sleep(TEMPTATION).await;
    ensure!(pods(cluster).await? == before, "members were changed by a spec that makes no sense");
    let put = |kind: &str| cpu[kind]["cpu"].clone();
    cluster
        .edit(json!({"resources": {"requests": {"cpu": put("requests")}, "limits": {"cpu": put("limits")}}}))
        .await?;
    becomes("Current").await?;
    ensure!(pods(cluster).await? == before, "members were changed by going back");
    Ok("Current, Failed, Current".to_owned())
}

/// A cluster of the same name made while volumes of the old one are still held keeps its own.
pub async fn namesake(cluster: &Cluster) -> Result<String> {
    let name = "again";
    let made = beside(name, 1, json!({"size": "64Mi"}));
    cluster.apply(&made).await?;
    up(cluster, name).await?;
    let old = claims(cluster, name).await?.iter().map(|c| text(c, "/metadata/name")).next().unwrap_or_default();
    let hold = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/hold"}]"#;
    cluster.mine(&["patch", "pvc", &old, "--type=json", "-p", hold]).await?;
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    cluster.apply(&made).await?;
    up(cluster, name).await?;
    cluster.mine(&["patch", "pvc", &old, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await?;
    cluster.gone(&format!("pvc/{old}")).await?;
    tokio::time::sleep(TEMPTATION).await;
    up(cluster, name).await?;
    let left: Vec<String> = claims(cluster, name).await?.iter().map(|c| text(c, "/metadata/name")).collect();
    ensure!(left.len() == 1 && left[0] != old, "{left:?} after {old} was let go");
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    Ok(format!("{old} went, {} stays", left[0]))
}

/// Rolls wait for a person who set `spec.approval`, and go on once they allow the very plan that is shown.
pub async fn approval(cluster: &Cluster) -> Result<String> {
    let before = pods(cluster).await?;
    let cpu = cluster.custom_resource().await?["spec"]["resources"]["requests"]["cpu"].clone();
    cluster.edit(json!({"approval": "Disruptive", "resources": {"requests": {"cpu": "15m"}}})).await?;
    let hash = poll::until("a plan to allow", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        let hash = text(&status, "/planHash");
        ensure!(!hash.is_empty() && condition(&status, "Ready") == "False", "{}", conditions(&status));
        Ok(hash)
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    ensure!(pods(cluster).await? == before, "members were restarted before anybody allowed it");
    let allow = format!("quorate.dev/approve={hash}");
    cluster.mine(&["annotate", "cc/orders", &allow, "--overwrite"]).await?;
    cluster.ready(3).await?;
    let stayed = pods(cluster).await?.iter().filter(|p| before.iter().any(|b| b.uid == p.uid)).count();
    ensure!(stayed == 0, "{stayed} members were not rolled");
    cluster.edit(json!({"approval": "Automatic", "resources": {"requests": {"cpu": cpu}}})).await?;
    cluster.ready(3).await?;
    Ok(format!("waited for {hash}"))
}

/// Three zones, three nodes: any one may go, and the status says so.
pub async fn topology(cluster: &Cluster) -> Result<String> {
    let status = cluster.status().await?;
    let zones: std::collections::BTreeSet<String> =
        status["members"].as_array().into_iter().flatten().map(|m| text(m, "/zone")).collect();
    let told = (condition(&status, "TopologySatisfied").to_owned(), status["quorum"]["survives"]["zone"].clone());
    let spread = zones.len() >= 3 && !zones.contains("");
    let wanted = if spread { ("True".to_owned(), json!(true)) } else { ("False".to_owned(), json!(false)) };
    ensure!(told == wanted, "zones {zones:?}, and yet TopologySatisfied, survives.zone: {told:?}");
    Ok(format!("{zones:?}"))
}
