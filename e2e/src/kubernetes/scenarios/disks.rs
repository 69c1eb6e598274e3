//! Disks that are wiped, damaged, full, or come back when nobody wants them any more: directories of a node, changed there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::beside::{SIZE, all_claims, edit, expanded, object, open, up};
use super::hands::{follower, member_id};
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::kubernetes::story::ANNOTATION_FENCE;
use crate::poll;

/// Long enough for whoever should not to do something.
const TEMPTATION: Duration = Duration::from_secs(12);

/// A member whose disk is wiped under it is replaced, not bootstrapped; even when all whom it knew at its start were replaced.
pub async fn data_dir_lost(cluster: &Cluster) -> Result<String> {
    let victim = text(&super::hands::follower(cluster).await?, "/metadata/name");
    let pod = cluster.pod(&format!("{victim}-0")).await?.context("the follower has no pod")?;
    let known = pod["spec"]["containers"][0]["args"].as_array().cloned().unwrap_or_default();
    let known = known.iter().filter_map(Value::as_str).find_map(|a| a.strip_prefix("--initial-cluster="));
    let known = known.context("the pod names no members")?.to_owned();
    for other in super::hands::names(cluster).await?.iter().filter(|n| **n != victim && known.contains(n.as_str())) {
        cluster.mine(&["delete", "statefulset", other, "--wait=false"]).await?;
        cluster.gone(&format!("statefulset/{other}")).await?;
        cluster.ready(3).await?;
    }
    let before: Vec<String> = cluster.owned("statefulsets").await?.iter().map(|s| text(s, "/metadata/name")).collect();
    let (node, path) = directory(cluster, &victim).await?;
    let since = Instant::now();
    cluster.node(&["exec", &node, "rm", "-rf", &format!("{path}/member")]).await?;
    cluster.mine(&["delete", "pod", &format!("{victim}-0"), "--grace-period=0", "--force"]).await?;
    poll::until("a replacement", LIMIT, POLL, async || {
        let now: Vec<String> = cluster.owned("statefulsets").await?.iter().map(|s| text(s, "/metadata/name")).collect();
        ensure!(now.iter().any(|n| !before.contains(n)), "{victim} is not replaced");
        Ok(())
    })
    .await?;
    cluster.ready(3).await?;
    Ok(format!("{victim} replaced in {:.1} s", since.elapsed().as_secs_f64()))
}

/// Where a member's volume is: a node, and a directory there.
async fn directory(cluster: &Cluster, record: &str) -> Result<(String, String)> {
    let pod = cluster.pod(&format!("{record}-0")).await?.with_context(|| format!("{record} has no pod"))?;
    let claims = cluster.owned("persistentvolumeclaims").await?;
    let claim = claims.iter().find(|c| text(c, "/metadata/name") == format!("{record}-data"));
    let name = text(claim.with_context(|| format!("{record} has no claim"))?, "/spec/volumeName");
    let volume = cluster.api.get(&format!("/api/v1/persistentvolumes/{name}")).await?;
    let path = ["/spec/hostPath/path", "/spec/local/path"].map(|at| text(&volume, at)).concat();
    ensure!(!path.is_empty(), "volume {name} is no directory of its node");
    Ok((text(&pod, "/spec/nodeName"), path))
}

/// Stops a member and keeps it stopped until `unfence`.
async fn fence(cluster: &Cluster, record: &str) -> Result<()> {
    let asked = format!("{ANNOTATION_FENCE}={record}");
    cluster.mine(&["annotate", &format!("cc/{NAME}"), &asked, "--overwrite"]).await?;
    cluster.gone(&format!("pod/{record}-0")).await
}

async fn unfence(cluster: &Cluster) -> Result<()> {
    cluster.mine(&["annotate", &format!("cc/{NAME}"), &format!("{ANNOTATION_FENCE}-")]).await.map(drop)
}

/// Bytes of a log are not what was written: the member mends it with the others' help, and stays who it is.
pub async fn damaged(cluster: &Cluster) -> Result<String> {
    let set = follower(cluster).await?;
    let (name, id) = (text(&set, "/metadata/name"), member_id(&set));
    let (node, path) = directory(cluster, &name).await?;
    fence(cluster, &name).await?;
    // The header of a batch well inside what was written, so that what follows proves that it was there.
    let harm = format!(
        "set -e; cd {path}/member/log; \
         for file in $(ls -r wal-*.seg); do \
           at=$(grep -aobF QBAT $file | sed -n '40p' | cut -d: -f1); \
           [ -z \"$at\" ] || break; \
         done; \
         printf QQQQ | dd of=$file bs=1 seek=$((at + 70)) conv=notrunc status=none; echo $file"
    );
    let harmed = cluster.node(&["exec", &node, "sh", "-c", &harm]).await;
    unfence(cluster).await?;
    let harmed = harmed?;
    cluster.ready(3).await?;
    let sets = cluster.owned("statefulsets").await?;
    if sets.iter().any(|s| member_id(s) == id) {
        let kept = format!("ls {path}/member/log | grep -c damaged");
        let kept = cluster.node(&["exec", &node, "sh", "-c", &kept]).await.context("nothing was mended")?;
        return Ok(format!("{name} mended {} of {}", kept.trim(), harmed.trim()));
    }
    Ok(format!("{name} was replaced"))
}

/// Nobody can tell what a member voted for: it says so instead of starting again and again, and is replaced at once.
pub async fn beyond_repair(cluster: &Cluster) -> Result<String> {
    let set = follower(cluster).await?;
    let (name, id) = (text(&set, "/metadata/name"), member_id(&set));
    let (node, path) = directory(cluster, &name).await?;
    fence(cluster, &name).await?;
    let harm = format!("printf QQQQQQQQ | tee {path}/member/log/meta");
    let harmed = cluster.node(&["exec", &node, "sh", "-c", &harm]).await;
    unfence(cluster).await?;
    harmed?;
    let since = Instant::now();
    cluster.gone(&format!("statefulset/{name}")).await?;
    cluster.ready(3).await?;
    let sets = cluster.owned("statefulsets").await?;
    ensure!(sets.iter().all(|s| member_id(s) != id), "{name} is member {id} still");
    Ok(format!("{name} replaced in {:.1} s", since.elapsed().as_secs_f64()))
}

/// The disk of a member that was replaced comes back with a process on it, under the old name and address: it gets nowhere.
pub async fn returned(cluster: &Cluster) -> Result<String> {
    let set = follower(cluster).await?;
    let (name, id) = (text(&set, "/metadata/name"), member_id(&set));
    let pod = cluster.pod(&format!("{name}-0")).await?.context("the follower has no pod")?;
    let (node, path) = directory(cluster, &name).await?;
    let copy = format!("{path}.returned");
    // Its keys go with its record; who brings a disk back may well have kept them, too.
    let secret = format!("/api/v1/namespaces/{}/secrets/{name}-tls", cluster.args.namespace);
    let keys = cluster.api.get(&secret).await?["data"].clone();
    fence(cluster, &name).await?;
    let copied = cluster.node(&["exec", &node, "cp", "-a", &path, &copy]).await;
    cluster.mine(&["delete", "statefulset", &name, "--wait=false"]).await?;
    cluster.gone(&format!("statefulset/{name}")).await?;
    unfence(cluster).await?;
    copied?;
    cluster.ready(3).await?;
    // It is to be stopped by the members, not by who may reach them.
    cluster.edit(json!({"network": {"policy": "Disabled"}})).await?;
    cluster.gone(&format!("networkpolicy/{NAME}")).await?;
    let outcome = haunted(cluster, &name, &id, &ghost(&pod, &name, &node, &copy, &keys)).await;
    cluster.edit(json!({"network": {"policy": null}})).await?;
    cluster.mine(&["delete", "pod,service,secret", "-l", "app=ghost", "--grace-period=1"]).await?;
    cluster.node(&["exec", &node, "rm", "-rf", &copy]).await?;
    outcome
}

/// The pod of a former member, as somebody would start it by hand, with its keys, and the Service that has its address.
fn ghost(pod: &Value, name: &str, node: &str, directory: &str, keys: &Value) -> [Value; 3] {
    let labels = json!({"app": "ghost"});
    let mut spec = pod["spec"].clone();
    spec["nodeName"] = json!(node);
    spec["affinity"] = Value::Null;
    spec["topologySpreadConstraints"] = Value::Null;
    spec["hostname"] = Value::Null;
    spec["subdomain"] = Value::Null;
    spec["volumes"] = json!([
        {"name": "data", "hostPath": {"path": directory}},
        {"name": "tls", "secret": {"secretName": "ghost", "defaultMode": 0o440}},
    ]);
    let port = |port: u16| json!({"name": format!("p{port}"), "port": port});
    [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ghost", "labels": labels}, "data": keys}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ghost", "labels": labels}, "spec": spec}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"selector": labels, "publishNotReadyAddresses": true, "ports": [port(2379), port(2380)]},
        }),
    ]
}

async fn haunted(cluster: &Cluster, name: &str, id: &str, ghost: &[Value]) -> Result<String> {
    let (leader, term) = cluster.leader().await?;
    for object in ghost {
        cluster.apply(object).await?;
    }
    poll::until("the old member's process to run", LIMIT, POLL, async || {
        let pod = cluster.pod("ghost").await?.context("there is no pod")?;
        ensure!(text(&pod, "/status/phase") == "Running", "{}", pod["status"]["phase"]);
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    let own = format!("--endpoints=https://{name}:2379");
    let put = cluster.exec(&["/etcdctl", &own, "--command-timeout=3s", "put", "from", "the dead"]).await;
    ensure!(put.is_err(), "a member that was replaced took a write: {put:?}");
    ensure!(cluster.leader().await? == (leader.clone(), term), "it disturbed {leader}, which led term {term}");
    ensure!(!cluster.etcdctl(&["member", "list"]).await?.contains(id), "member {id} is back");
    let pod = cluster.pod("ghost").await?.context("the pod is gone")?;
    ensure!(!super::nodes::is_ready(&pod), "a member that was replaced is ready");
    let log = cluster.mine(&["logs", "ghost", "--tail=3"]).await?;
    let told = log.lines().last().unwrap_or_default();
    Ok(format!("{name} came back in vain: {}", told.split_once("  ").map_or(told, |(_, rest)| rest)))
}

/// A volume runs full, which is told and refuses growth; a larger size in the spec heals it without a restart. The volume is a file
/// system in memory on a node, and this function is its expander.
pub async fn full(cluster: &Cluster) -> Result<String> {
    const CLASS: &str = "quorate-e2e-memory";
    let (name, node) = ("full", cluster.quiet_node().await?);
    let path = "/var/quorate-e2e-full";
    let mount = format!("mkdir -p {path} && mount -t tmpfs -o size=480m,mode=0777 quorate-e2e {path}");
    cluster.node(&["exec", &node, "sh", "-c", &mount]).await?;
    let outcome = filled(cluster, name, CLASS, &node, path).await;
    cluster.mine(&["delete", "cc", name, "--ignore-not-found", "--timeout=120s"]).await?;
    cluster.kubectl(&["delete", "pv,storageclass", CLASS, "--ignore-not-found", "--timeout=60s"], None).await?;
    let unmount = format!("umount {path} && rmdir {path}");
    cluster.node(&["exec", &node, "sh", "-c", &unmount]).await?;
    outcome
}

async fn filled(cluster: &Cluster, name: &str, class: &str, node: &str, path: &str) -> Result<String> {
    let made = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    let is_node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": class},
        "spec": {
            "capacity": {"storage": "480Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [is_node]}]}},
        },
    });
    for object in [&made, &volume] {
        cluster.kubectl(&["apply", "-f", "-"], Some(&object.to_string())).await?;
    }
    cluster.apply(&open(name, 1, json!({"size": "480Mi", "storageClassName": class}))).await?;
    up(cluster, name).await?;
    let endpoint = format!("--endpoints=http://{name}:2379");
    let put = async || cluster.exec(&["/etcdctl", &endpoint, "--command-timeout=5s", "put", "a", "b"]).await;
    put().await?;
    let pod = async || {
        let label = format!("quorate.dev/cluster={name}");
        cluster.mine(&["get", "pods", "-l", &label, "-o", "jsonpath={.items[*].metadata.uid}"]).await
    };
    let before = pod().await?;
    // All but a few MiB, whatever the member has taken so far.
    let fill =
        format!("free=$(df -B1 --output=avail {path} | tail -n 1); fallocate -l $((free - 4194304)) {path}/ballast");
    cluster.node(&["exec", node, "sh", "-c", &fill]).await?;
    let storage = async |wanted: &str| {
        poll::until(&format!("StorageHealthy={wanted}"), LIMIT, POLL, async || {
            let status = object(cluster, name).await?["status"].clone();
            ensure!(condition(&status, "StorageHealthy") == wanted, "{}", conditions(&status));
            Ok(())
        })
        .await
    };
    storage("False").await?;
    let refused = put().await.err().map(|error| format!("{error:#}")).context("a put was taken by a full volume")?;
    ensure!(refused.contains("space"), "refused for another reason: {refused}");
    edit(cluster, name, json!({"storage": {"size": "1Gi"}})).await?;
    all_claims(cluster, name, 1, SIZE, "1Gi").await?;
    cluster.node(&["exec", node, "mount", "-o", "remount,size=1g", path]).await?;
    expanded(cluster, name, "1Gi").await?;
    storage("True").await?;
    up(cluster, name).await?;
    put().await?;
    ensure!(pod().await? == before, "the member was restarted");
    Ok("480Mi were full, 1Gi took writes again".to_owned())
}
