//! The main job, and what begins and ends every run.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, WRITER};
use crate::poll;

pub async fn apply(cluster: &Cluster) -> Result<String> {
    let manifest = cluster.args.manifest.display().to_string();
    cluster.kubectl(&["create", "namespace", &cluster.args.namespace], None).await?;
    cluster.mine(&["apply", "-f", &manifest]).await?;
    cluster.ready(3).await
}

pub async fn etcdctl(cluster: &Cluster) -> Result<String> {
    cluster.start_writer().await?;
    // A node learns of a Service a moment later, and etcdctl tries for five seconds only.
    poll::until("both Services to lead somewhere", LIMIT, POLL, async || {
        let put = cluster.etcdctl(&["put", "from", "a pod"]).await?;
        ensure!(put.contains("OK"), "etcdctl put through the client Service: {put:?}");
        let get = cluster.exec(&["/etcdctl", "--endpoints=https://orders-leader:2379", "get", "from"]).await?;
        ensure!(get.contains("a pod"), "etcdctl get through the leader Service: {get:?}");
        Ok(())
    })
    .await?;
    Ok("client and leader Service".to_owned())
}

pub async fn bad_input(cluster: &Cluster) -> Result<String> {
    let spec = |spec: Value| json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": "bad"}, "spec": spec});
    let cases = [
        (spec(json!({"replicas": 4000})), "replicas"),
        (spec(json!({"replicas": "three"})), "replicas"),
        (spec(json!({"replicas": -1})), "replicas"),
        (spec(json!({"replicas": 3, "storage": {"size": "a lot"}})), "size"),
        (spec(json!({"replicas": 3, "timing": {"profile": "MARS"}})), "profile"),
    ];
    let count = cases.len();
    for (bad, field) in cases {
        refused(cluster, &bad, field).await?;
    }
    Ok(format!("{count} refused"))
}

/// Applies an object that must be refused with the name of the field that is wrong.
pub async fn refused(cluster: &Cluster, bad: &Value, field: &str) -> Result<()> {
    match cluster.apply(bad).await {
        Ok(text) => bail!("{} was accepted: {text}", bad["spec"]),
        Err(error) => {
            let told = format!("{error:#}");
            ensure!(told.contains(field), "{} was refused without naming {field}: {told}", bad["spec"]);
            Ok(())
        }
    }
}

/// The operator's pod is killed and its Lease is taken away while it is at work.
pub async fn scale_out(cluster: &Cluster) -> Result<String> {
    cluster.scale(5).await?;
    cluster.voters_at_least(4).await?;
    let operator = cluster.args.operator_namespace.as_str();
    cluster.kubectl(&["-n", operator, "delete", "pod", "--all", "--grace-period=0", "--force"], None).await?;
    cluster.kubectl(&["-n", operator, "delete", "lease", "--all"], None).await?;
    cluster.ready(5).await
}

pub async fn leader_deleted(cluster: &Cluster) -> Result<String> {
    let (leader, term) = cluster.leader().await?;
    cluster.mine(&["delete", "pod", &format!("{leader}-0"), "--wait=false"]).await?;
    let after = cluster.leader_after(term).await?;
    Ok(format!("{leader} deleted, {after} leads"))
}

pub async fn scale_in(cluster: &Cluster) -> Result<String> {
    cluster.scale(3).await?;
    cluster.ready(3).await?;
    volumes(cluster, 3).await?;
    Ok(String::new())
}

/// Volumes of members that left are gone a moment after the members.
pub async fn volumes(cluster: &Cluster, count: usize) -> Result<()> {
    poll::until(&format!("{count} volumes"), LIMIT, POLL, async || {
        let found = cluster.owned("persistentvolumeclaims").await?.len();
        ensure!(found == count, "{found} volumes");
        Ok(())
    })
    .await
}

pub async fn writer_verdict(cluster: &Cluster) -> Result<String> {
    cluster.stop_writer(WRITER).await?.check()
}

pub async fn story(cluster: &Cluster) -> Result<String> {
    let events = cluster.mine(&["get", "events", "-o", "jsonpath={range .items[*]}{.reason}{'\\n'}{end}"]).await?;
    for reason in ["Bootstrapped", "MemberAdded", "MemberPromoted", "MemberRemoved"] {
        ensure!(events.lines().any(|l| l == reason), "no Event with reason {reason}");
    }
    let table = cluster.mine(&["get", "cc"]).await?;
    for column in ["READY", "REPLICAS", "LEADER", "AGE"] {
        ensure!(table.contains(column), "`kubectl get cc` has no column {column}: {table}");
    }
    Ok(table.lines().last().unwrap_or_default().to_owned())
}

pub async fn deletion(cluster: &Cluster) -> Result<String> {
    cluster.mine(&["delete", &format!("cc/{NAME}"), "--timeout=120s"]).await?;
    cluster.kubectl(&["delete", "namespace", &cluster.args.namespace, "--timeout=120s"], None).await?;
    Ok(String::new())
}

/// After a scenario that failed: everything back to where the next one starts.
pub async fn recover(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes().await? {
        cluster.kubectl(&["uncordon", &node], None).await?;
    }
    super::pods::operator_replicas(cluster, 1).await?;
    cluster.mine(&["delete", "resourcequota", "--all"]).await?;
    let clusters = cluster.mine(&["get", "cc", "-o", "name"]).await?;
    for beside in clusters.lines().filter(|name| !name.ends_with(&format!("/{NAME}"))) {
        cluster.mine(&["delete", beside, "--timeout=120s"]).await?;
    }
    let manifest = cluster.args.manifest.display().to_string();
    cluster.mine(&["replace", "-f", &manifest]).await?;
    cluster.ready(3).await?;
    cluster.nothing_lost().await
}
