//! Pods that go, are evicted, drained or cut off, with and without an operator and an API server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::{Value, json};

use super::edits::pods;
use crate::kubernetes::api::is_code;
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, condition, conditions, text};
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

/// A follower's pod goes and comes back; the leader does not notice.
pub async fn follower_deleted(cluster: &Cluster) -> Result<String> {
    let led = cluster.leader().await?;
    let victim = text(&super::hands::follower(cluster).await?, "/metadata/name");
    cluster.mine(&["delete", "pod", &format!("{victim}-0")]).await?;
    cluster.ready(3).await?;
    let leads = cluster.leader().await?;
    ensure!(leads == led, "{led:?} led, now {leads:?}");
    Ok(format!("{victim} deleted, {} leads on", leads.0))
}

/// Two of three have no node to run on for a while: it is told, nobody is made anew, and the same cluster goes on.
pub async fn quorum_away(cluster: &Cluster) -> Result<String> {
    let members = async || -> Result<(Vec<String>, [Value; 2])> {
        let status = cluster.status().await?;
        let id = [status["clusterID"].clone(), status["incarnation"].clone()];
        let list = cluster.owned("statefulsets").await?;
        Ok((list.iter().map(super::hands::member_id).collect(), id))
    };
    let before = members().await?;
    for node in cluster.nodes().await? {
        cluster.kubectl(&["cordon", &node], None).await?;
    }
    delete_pods(cluster, 2).await?;
    let told = poll::until("the loss to be told", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        ensure!(condition(&status, "Available") == "False", "{}", conditions(&status));
        Ok(conditions(&status))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    ensure!(members().await? == before, "members were changed without a quorum");
    for node in cluster.nodes().await? {
        cluster.kubectl(&["uncordon", &node], None).await?;
    }
    cluster.ready(3).await?;
    ensure!(members().await? == before, "it is another cluster now");
    Ok(told.split(", ").find(|c| c.starts_with("Available=")).unwrap_or_default().to_owned())
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

pub(super) async fn operator_replicas(cluster: &Cluster, count: u64) -> Result<()> {
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

/// A member that does not answer may be drained, since the others are all well; one of the others may not.
pub async fn evict_unhealthy(cluster: &Cluster) -> Result<String> {
    let sick = text(&super::hands::follower(cluster).await?, "/metadata/name");
    let pod = cluster.pod(&format!("{sick}-0")).await?.context("the follower has no pod")?;
    let node = text(&pod, "/spec/nodeName");
    let signal = async |signal: &str| {
        cluster.node(&["exec", &node, "pkill", signal, "-f", "--", &format!("--name={sick} ")]).await
    };
    signal("-STOP").await?;
    let outcome = async {
        poll::until("the member to be seen as not ready", Duration::from_secs(25), POLL, async || {
            let pod = cluster.pod(&format!("{sick}-0")).await?.context("it has no pod")?;
            ensure!(!super::nodes::is_ready(&pod), "it is ready");
            Ok(())
        })
        .await?;
        let (leader, _) = cluster.leader().await?;
        match evict(cluster, &format!("{leader}-0")).await {
            Err(error) if is_code(&error, 429) => {}
            other => anyhow::bail!("{leader} was evicted while {sick} is not ready: {other:?}"),
        }
        evict(cluster, &format!("{sick}-0")).await.map(drop)
    };
    let outcome = outcome.await;
    // So that it ends in time.
    signal("-CONT").await?;
    outcome?;
    cluster.ready(3).await?;
    Ok(format!("{sick} was evicted"))
}

async fn evict(cluster: &Cluster, pod: &str) -> Result<Value> {
    let namespace = &cluster.args.namespace;
    let body =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}});
    cluster.api.post(&format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction"), &body).await
}

/// Two evictions at once: the budget lets one through.
pub async fn evictions(cluster: &Cluster) -> Result<String> {
    let all = pods(cluster).await?;
    // One after the other would be another question: the first pod may be back before the second is asked for.
    let (mut evicted, mut refused) = (Vec::new(), 0);
    for (pod, answer) in all.iter().zip(join_all(all.iter().map(|pod| evict(cluster, &pod.name))).await) {
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
