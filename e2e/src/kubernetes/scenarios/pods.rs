//! Pods that go, are evicted, drained or cut off, with and without an operator and an API server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::{Value, json};

use super::edits::{Pod, pods};
use crate::kubernetes::api::is_code;
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, text};
use crate::poll;

const OPERATOR: &str = "deployment/quorate-operator";

async fn delete_pods(cluster: &Cluster, count: usize) -> Result<()> {
    let names: Vec<String> = pods(cluster).await?.into_iter().map(|p| p.name).take(count).collect();
    let mut args = vec!["delete", "pod", "--wait=false", "--grace-period=1"];
    args.extend(names.iter().map(String::as_str));
    cluster.mine(&args).await?;
    // Until the readings are about what is left.
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(())
}

pub async fn two_of_three(cluster: &Cluster) -> Result<String> {
    delete_pods(cluster, 2).await?;
    cluster.ready(3).await
}

pub async fn all_pods(cluster: &Cluster) -> Result<String> {
    delete_pods(cluster, 3).await?;
    cluster.ready(3).await
}

/// The leader's pod again and again; each time somebody of a later term serves.
pub async fn leader_ten_times(cluster: &Cluster) -> Result<String> {
    for _ in 0..10 {
        let (leader, term) = cluster.leader().await?;
        cluster.mine(&["delete", "pod", &format!("{leader}-0"), "--wait=false", "--grace-period=0", "--force"]).await?;
        cluster.leader_after(term).await?;
        cluster.ready(3).await?;
    }
    Ok(String::new())
}

pub async fn operator_absent(cluster: &Cluster) -> Result<String> {
    operator_replicas(cluster, 0).await?;
    let (leader, _) = cluster.leader().await?;
    cluster.mine(&["delete", "pod", &format!("{leader}-0")]).await?;
    // The Services know the members without the operator.
    poll::until("a write without the operator", LIMIT, POLL, async || {
        cluster.etcdctl(&["put", "from", "nobody"]).await.map(drop)
    })
    .await?;
    operator_replicas(cluster, 1).await?;
    cluster.ready(3).await
}

async fn operator_replicas(cluster: &Cluster, count: u64) -> Result<()> {
    let namespace = cluster.args.operator_namespace.as_str();
    cluster.kubectl(&["-n", namespace, "scale", OPERATOR, &format!("--replicas={count}")], None).await?;
    cluster.kubectl(&["-n", namespace, "rollout", "status", OPERATOR, "--timeout=120s"], None).await.map(drop)
}

/// The operator is killed at odd moments while the cluster grows and shrinks.
pub async fn operator_killed(cluster: &Cluster) -> Result<String> {
    let mut kills = 0;
    for size in [5, 3] {
        cluster.scale(size).await?;
        for ms in [900, 2_300, 1_700, 3_100, 700, 4_100] {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            let namespace = cluster.args.operator_namespace.as_str();
            cluster.kubectl(&["-n", namespace, "delete", "pod", "--all", "--grace-period=0", "--force"], None).await?;
            kills += 1;
        }
        cluster.ready(size).await?;
    }
    Ok(format!("{kills} kills"))
}

/// A new build of the operator takes over and restarts nobody.
pub async fn operator_restarted(cluster: &Cluster) -> Result<String> {
    let before = pods(cluster).await?;
    let namespace = cluster.args.operator_namespace.as_str();
    cluster.kubectl(&["-n", namespace, "rollout", "restart", OPERATOR], None).await?;
    cluster.kubectl(&["-n", namespace, "rollout", "status", OPERATOR, "--timeout=120s"], None).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    ensure!(pods(cluster).await? == before, "members were restarted");
    Ok(String::new())
}

/// A second operator that does not know the first one's Lease works on the same cluster at the same time.
pub async fn two_operators(cluster: &Cluster) -> Result<String> {
    let namespace = cluster.args.operator_namespace.as_str();
    let text = cluster.kubectl(&["-n", namespace, "get", OPERATOR, "-o", "json"], None).await?;
    let mut second: Value = serde_json::from_str(&text)?;
    let name = "quorate-operator-second";
    second["metadata"] = json!({"name": name, "namespace": namespace});
    let labels = json!({"app": name});
    second["spec"]["selector"] = json!({"matchLabels": labels});
    second["spec"]["template"]["metadata"]["labels"] = labels;
    for var in second["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut().context("no environment")? {
        if var["name"] == "QUORATE_LEASE_NAME" {
            *var = json!({"name": "QUORATE_LEASE_NAME", "value": name});
        }
    }
    if let Some(object) = second.as_object_mut() {
        object.remove("status");
    }
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": namespace},
        "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [name], "verbs": ["get", "update"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "quorate-operator", "namespace": namespace}],
    });
    for object in [&role, &binding, &second] {
        cluster.kubectl(&["apply", "-f", "-"], Some(&object.to_string())).await?;
    }
    let race = async {
        cluster
            .kubectl(&["-n", namespace, "rollout", "status", &format!("deployment/{name}"), "--timeout=90s"], None)
            .await?;
        for size in [5, 3] {
            cluster.scale(size).await?;
            cluster.ready(size).await?;
        }
        cluster.kubectl(&["-n", namespace, "logs", &format!("deployment/{name}"), "--tail=-1"], None).await
    };
    let log = race.await;
    for what in ["deployment", "rolebinding", "role"] {
        cluster.kubectl(&["-n", namespace, "delete", what, name], None).await?;
    }
    let steps = log?.lines().filter(|l| l.contains("done step=")).count();
    ensure!(steps > 0, "the second operator took no step: there was no race");
    Ok(format!("the second took {steps} steps"))
}

/// Two evictions at once: the budget lets one through.
pub async fn evictions(cluster: &Cluster) -> Result<String> {
    let all = pods(cluster).await?;
    let evict = async |pod: &Pod| {
        let namespace = &cluster.args.namespace;
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.name, "namespace": namespace}});
        cluster.api.post(&format!("/api/v1/namespaces/{namespace}/pods/{}/eviction", pod.name), &body).await
    };
    // One after the other would be another question: the first pod may be back before the second is asked for.
    let (mut evicted, mut refused) = (Vec::new(), 0);
    for (pod, answer) in all.iter().zip(join_all(all.iter().map(evict)).await) {
        match answer {
            Ok(_) => evicted.push(pod.name.as_str()),
            Err(error) if is_code(&error, 429) => refused += 1,
            Err(error) => return Err(error),
        }
    }
    ensure!(evicted.len() == 1, "evicted at the same time: {evicted:?}; {refused} refused");
    Ok(format!("1 evicted, {refused} refused"))
}

/// Two nodes drained one right after the other; the second waits until the first is back.
pub async fn drain_two(cluster: &Cluster) -> Result<String> {
    let nodes = cluster.nodes().await?;
    let mut told = Vec::new();
    for node in nodes.iter().take(2) {
        let since = Instant::now();
        cluster
            .kubectl(
                &["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=150s"],
                None,
            )
            .await?;
        told.push(format!("{node} in {:.0} s", since.elapsed().as_secs_f64()));
        // A volume of this machine cannot move: its member waits for the node.
        cluster.kubectl(&["uncordon", node], None).await?;
    }
    cluster.ready(3).await?;
    Ok(told.join(", "))
}

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

async fn node_ready(cluster: &Cluster, node: &str) -> Result<()> {
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
        ensure!(cluster.api.get("/version").await.is_err(), "it answers");
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
    let pod = cluster.pod(&format!("{victim}-0")).await?.context("the follower has no pod")?;
    let node = text(&pod, "/spec/nodeName");
    let claims = cluster.owned("persistentvolumeclaims").await?;
    let claim = claims.iter().find(|c| text(c, "/metadata/name") == format!("{victim}-data"));
    let name = text(claim.context("the follower has no claim")?, "/spec/volumeName");
    let volume = cluster.api.get(&format!("/api/v1/persistentvolumes/{name}")).await?;
    let path = ["/spec/hostPath/path", "/spec/local/path"].map(|at| text(&volume, at)).concat();
    ensure!(!path.is_empty(), "volume {name} is no directory of its node");
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
