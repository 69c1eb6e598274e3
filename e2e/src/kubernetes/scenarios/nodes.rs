//! Nodes that freeze, lose their kubelet, are rotated or are a zone of their own, and an API server that goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::beside::{beside, object, up};
use super::edits::{back_to_three, pods};
use super::hands::member_id;
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, condition, conditions, text};
use crate::poll;

/// The node of a follower freezes longer than Kubernetes waits, and comes back.
pub async fn node_frozen(cluster: &Cluster) -> Result<String> {
    let node = cluster.nodes().await?.into_iter().next().context("there are no nodes")?;
    cluster.node(&["pause", &node]).await?;
    let outcome = served_meanwhile(cluster, Duration::from_secs(75)).await;
    cluster.node(&["unpause", &node]).await?;
    outcome?;
    node_ready(cluster, &node).await?;
    cluster.ready(3).await?;
    Ok(format!("{node} for 75 s"))
}

/// The kubelet stops while its pods run on: nothing happens to the members.
pub async fn kubelet_stopped(cluster: &Cluster) -> Result<String> {
    let node = cluster.nodes().await?.into_iter().next().context("there are no nodes")?;
    cluster.node(&["exec", &node, "systemctl", "stop", "kubelet"]).await?;
    let outcome = served_meanwhile(cluster, Duration::from_secs(60)).await;
    cluster.node(&["exec", &node, "systemctl", "start", "kubelet"]).await?;
    outcome?;
    node_ready(cluster, &node).await?;
    cluster.ready(3).await?;
    Ok(format!("{node} for 60 s"))
}

async fn served_meanwhile(cluster: &Cluster, time: Duration) -> Result<()> {
    let since = Instant::now();
    while since.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(5)).await;
        poll::until("a write meanwhile", Duration::from_secs(15), POLL, async || {
            cluster.etcdctl(&["put", "from", "meanwhile"]).await.map(drop)
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn node_ready(cluster: &Cluster, node: &str) -> Result<()> {
    poll::until(&format!("{node} to be ready"), LIMIT, POLL, async || {
        let found = cluster.api.get(&format!("/api/v1/nodes/{node}")).await?;
        let ready = found["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        ensure!(ready, "not ready");
        Ok(())
    })
    .await
}

/// No API server for a minute: members and clients do not notice, and the status is true again after it.
pub async fn no_api_server(cluster: &Cluster) -> Result<String> {
    let plane = cluster.quiet_node().await?;
    let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    let (leader, term) = cluster.leader().await?;
    cluster.node(&["exec", &plane, "mv", manifest, "/root/kube-apiserver.yaml"]).await?;
    let away = poll::until("the API server to be gone", LIMIT, POLL, async || {
        ensure!(cluster.api.get_once("/version").await.is_err(), "it answers");
        Ok(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    cluster.node(&["exec", &plane, "mv", "/root/kube-apiserver.yaml", manifest]).await?;
    away?;
    let since = Instant::now();
    poll::until("the API server to be back", LIMIT, POLL, async || cluster.api.get("/version").await.map(drop)).await?;
    let back = since.elapsed().as_secs_f64();
    cluster.ready(3).await?;
    let (now, later) = cluster.leader().await?;
    let told = if later == term { format!("{leader} led throughout") } else { format!("{now} leads since") };
    Ok(format!("back after {back:.0} s more; {told}"))
}

/// The API server ends itself while the cluster grows and while it shrinks: nobody is made or removed twice.
pub async fn api_server_restarted(cluster: &Cluster) -> Result<String> {
    let plane = cluster.quiet_node().await?;
    for size in [5, 3] {
        let from = if size == 5 { 3 } else { 5 };
        cluster.scale(size).await?;
        poll::until("the number of voters to change", LIMIT, Duration::from_millis(200), async || {
            let voters = cluster.custom_resource().await?["status"]["replicas"].clone();
            ensure!(voters != from, "{voters} voters");
            Ok(())
        })
        .await?;
        cluster.node(&["exec", &plane, "pkill", "-KILL", "-x", "kube-apiserver"]).await?;
        cluster.ready(size).await?;
    }
    back_to_three(cluster).await?;
    Ok("killed at 4 voters, twice".to_owned())
}

/// Node after node is tainted, drained, deleted and made anew, as autoscalers do: never more than one voter is down for it.
pub async fn rotation(cluster: &Cluster) -> Result<String> {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let nodes = cluster.nodes().await?;
    let workers = &nodes[..nodes.len() - 1];
    let floor = tokio::sync::Mutex::new(u64::MAX);
    let sample = async {
        loop {
            if let Ok(pods) = cluster.owned("pods").await {
                let ready = u64::try_from(pods.iter().filter(|p| is_ready(p)).count()).unwrap_or_default();
                let mut floor = floor.lock().await;
                *floor = ready.min(*floor);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let rotate = async {
        for node in workers {
            let found = cluster.api.get(&format!("/api/v1/nodes/{node}")).await?;
            let zone = found["metadata"]["labels"][ZONE].as_str().map(str::to_owned);
            cluster.kubectl(&["taint", "nodes", node, "example.com/rotated=:NoSchedule"], None).await?;
            let drain = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=140s"];
            cluster.kubectl(&drain, None).await?;
            cluster.kubectl(&["delete", "node", node], None).await?;
            // The machine that takes its place has the same name and disks: volumes here are its directories.
            cluster.node(&["exec", node, "systemctl", "restart", "kubelet"]).await?;
            node_ready(cluster, node).await?;
            if let Some(zone) = zone {
                cluster.kubectl(&["label", "node", node, "--overwrite", &format!("{ZONE}={zone}")], None).await?;
            }
            cluster.ready(3).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        done = rotate => done?,
        () = sample => bail!("the sampler ended"),
    }
    let least = *floor.lock().await;
    ensure!(least >= 2, "only {least} members were ready at a time");
    Ok(format!("{} nodes, never fewer than {least} ready", workers.len()))
}

pub(super) fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A zone goes, and what happens is what the status said would: three in three zones serve on, two in two do not.
pub async fn zone_lost(cluster: &Cluster) -> Result<String> {
    let name = "pair";
    cluster.apply(&beside(name, 2, json!({"size": "64Mi"}))).await?;
    up(cluster, name).await?;
    let survives = |status: &Value| status["quorum"]["survives"]["zone"].clone();
    let (three, two) = (survives(&cluster.status().await?), survives(&object(cluster, name).await?["status"]));
    let zones = |status: &Value| -> std::collections::BTreeSet<String> {
        status["members"].as_array().into_iter().flatten().map(|m| text(m, "/zone")).collect()
    };
    let spread = zones(&cluster.status().await?).len();
    ensure!(three == (spread == 3) && two == false, "predicted: three in {spread} zones {three}, two {two}");
    let quiet = cluster.quiet_node().await?;
    let label = format!("quorate.dev/cluster={name}");
    let hosts = cluster.mine(&["get", "pods", "-l", &label, "-o", "jsonpath={.items[*].spec.nodeName}"]).await?;
    let node = hosts.split_whitespace().find(|host| *host != quiet).context("both of the pair are on one node")?;
    operator_elsewhere(cluster, node).await?;
    cluster.node(&["pause", node]).await?;
    let outcome = async {
        poll::until("the pair to be unavailable", Duration::from_secs(20), POLL, async || {
            let status = object(cluster, name).await?["status"].clone();
            ensure!(condition(&status, "Available") != "True", "{}", conditions(&status));
            Ok(())
        })
        .await?;
        if three == true {
            poll::until("a write of the three", Duration::from_secs(10), POLL, async || {
                cluster.etcdctl(&["put", "from", "two zones"]).await.map(drop)
            })
            .await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let outcome = outcome.await;
    cluster.node(&["unpause", node]).await?;
    outcome?;
    node_ready(cluster, node).await?;
    up(cluster, name).await?;
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    cluster.ready(3).await?;
    Ok(format!("three in {spread} zones: {three}, two in two: {two}"))
}

/// Who is to tell of a lost node may not be lost with it.
async fn operator_elsewhere(cluster: &Cluster, node: &str) -> Result<()> {
    let namespace = &cluster.args.operator_namespace;
    cluster.kubectl(&["cordon", node], None).await?;
    let there = format!("--field-selector=spec.nodeName={node}");
    let moved = async {
        cluster.kubectl(&["-n", namespace, "delete", "pods", &there, "--timeout=60s"], None).await?;
        let wait = ["-n", namespace, "rollout", "status", "deployment/quorate-operator", "--timeout=120s"];
        cluster.kubectl(&wait, None).await
    };
    let moved = moved.await;
    cluster.kubectl(&["uncordon", node], None).await?;
    moved.map(drop)
}

/// The kubelet is cut off and its member's pod is taken off the books while the process runs on: at no time do two processes
/// have one identity, and the member is the same afterwards.
pub async fn forced_off_the_books(cluster: &Cluster) -> Result<String> {
    let quiet = cluster.quiet_node().await?;
    let set = follower_elsewhere(cluster, &quiet).await?;
    let (name, id) = (text(&set, "/metadata/name"), member_id(&set));
    let pod = cluster.pod(&format!("{name}-0")).await?.context("the follower has no pod")?;
    let (node, uid) = (text(&pod, "/spec/nodeName"), text(&pod, "/metadata/uid"));
    let process = format!("--name={name} ");
    let count = async || cluster.node(&["exec", &node, "pgrep", "-c", "-f", "--", &process]).await;
    cluster.node(&["exec", &node, "systemctl", "stop", "kubelet"]).await?;
    let outcome = async {
        cluster.mine(&["delete", "pod", &format!("{name}-0"), "--grace-period=0", "--force"]).await?;
        poll::until("another pod of the same name", LIMIT, POLL, async || {
            let now = cluster.pod(&format!("{name}-0")).await?.context("there is none")?;
            ensure!(text(&now, "/metadata/uid") != uid, "it is the old one");
            Ok(())
        })
        .await?;
        for _ in 0..10 {
            let running = count().await?;
            ensure!(running.trim() == "1", "{} processes of {name}", running.trim());
            tokio::time::sleep(POLL).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let outcome = outcome.await;
    cluster.node(&["exec", &node, "systemctl", "start", "kubelet"]).await?;
    outcome?;
    node_ready(cluster, &node).await?;
    cluster.ready(3).await?;
    let running = count().await?;
    ensure!(running.trim() == "1", "{} processes of {name} in the end", running.trim());
    let sets = cluster.owned("statefulsets").await?;
    ensure!(sets.iter().any(|s| member_id(s) == id), "member {id} of {name} is another one now");
    Ok(format!("{name} is member {id} still"))
}

/// A follower whose node may be touched.
pub(super) async fn follower_elsewhere(cluster: &Cluster, quiet: &str) -> Result<Value> {
    let (leader, _) = cluster.leader().await?;
    let pods = pods(cluster).await?;
    let sets = cluster.owned("statefulsets").await?;
    let fits = |name: &str| name != leader && pods.iter().any(|p| p.name == format!("{name}-0") && p.node != quiet);
    sets.into_iter().find(|s| fits(&text(s, "/metadata/name"))).context("no follower runs on another node")
}
