//! Operators that were away, have much to look after, or may do little; and the chart that brings them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::beside::{beside, claims, object, open, up};
use super::edits::pods;
use super::hands::{follower, nothing_left};
use super::pods::operator_replicas;
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, text};
use crate::poll;

/// Long enough for an operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(10);
/// A status is correct within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// What was deleted while no operator looked is dealt with once one is back: nothing depends on having seen it happen.
pub async fn missed_deletions(cluster: &Cluster) -> Result<String> {
    let other = "forgotten";
    cluster.apply(&beside(other, 1, json!({"size": "64Mi"}))).await?;
    up(cluster, other).await?;
    let victim = text(&follower(cluster).await?, "/metadata/name");
    let shared = ["service/orders-leader".to_owned(), format!("poddisruptionbudget/{NAME}")];
    operator_replicas(cluster, 0).await?;
    cluster.mine(&["delete", "statefulset", &victim, "--wait=false"]).await?;
    cluster.mine(&["delete", "pod", &format!("{victim}-0"), "--wait=false"]).await?;
    cluster.mine(&["delete", "cc", other, "--wait=false"]).await?;
    for what in &shared {
        cluster.mine(&["delete", what]).await?;
    }
    operator_replicas(cluster, 1).await?;
    cluster.gone(&format!("statefulset/{victim}")).await?;
    cluster.ready(3).await?;
    for what in &shared {
        poll::until(&format!("{what} to be back"), LIMIT, POLL, async || {
            cluster.mine(&["get", what, "-o", "name"]).await.map(drop)
        })
        .await?;
    }
    cluster.gone(&format!("cc/{other}")).await?;
    nothing_left(cluster, other).await?;
    Ok(format!("{victim} replaced, {other} gone"))
}

/// Clusters whose members hang do not keep the operator from fifty others. Those sleep, so that they cost nothing but looking after.
pub async fn crowd(cluster: &Cluster) -> Result<String> {
    const OTHERS: usize = 50;
    const WEDGED: usize = 3;
    let wedged: Vec<String> = (0..WEDGED).map(|n| format!("wedged-{n}")).collect();
    for name in &wedged {
        cluster.apply(&crowded(name, 1)).await?;
    }
    for name in &wedged {
        up(cluster, name).await?;
    }
    let path = format!("/apis/quorate.dev/v1alpha1/namespaces/{}/consistentclusters", cluster.args.namespace);
    let others: Vec<String> = (0..OTHERS).map(|n| format!("crowd-{n}")).collect();
    for name in &others {
        cluster.api.post(&path, &crowded(name, 0)).await?;
    }
    told(cluster, &path, LIMIT).await?;
    let frozen = try_join_all(wedged.iter().map(|name| hosts(cluster, name))).await?;
    for (node, process) in &frozen {
        cluster.node(&["exec", node, "pkill", "-STOP", "-f", "--", process]).await?;
    }
    let outcome = async {
        // Until every one of them was looked at in vain.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let since = Instant::now();
        let edit = json!({"spec": {"resources": {"requests": {"cpu": "11m"}}}});
        let paths: Vec<String> = others.iter().map(|name| format!("{path}/{name}")).collect();
        try_join_all(paths.iter().map(|path| cluster.api.merge(path, &edit))).await?;
        let edited = since.elapsed();
        told(cluster, &path, TOLD_WITHIN).await?;
        Ok::<_, anyhow::Error>((edited, since.elapsed()))
    };
    let outcome = outcome.await;
    for (node, process) in &frozen {
        cluster.node(&["exec", node, "pkill", "-CONT", "-f", "--", process]).await?;
    }
    cluster.mine(&["delete", "cc", "-l", "crowd=yes", "--timeout=140s"]).await?;
    let (edited, told) = outcome?;
    Ok(format!(
        "{OTHERS} edits within {} ms, all told {} ms after the first, beside {WEDGED} that hang",
        edited.as_millis(),
        told.as_millis()
    ))
}

fn crowded(name: &str, replicas: u64) -> Value {
    let mut made = beside(name, replicas, json!({"size": "64Mi"}));
    made["metadata"]["labels"] = json!({"crowd": "yes"});
    made
}

/// Waits until the status of each of the crowd that sleeps is about its newest spec.
async fn told(cluster: &Cluster, path: &str, limit: Duration) -> Result<()> {
    poll::until("everybody to be looked after", limit, Duration::from_millis(200), async || {
        let all = cluster.api.items(&format!("{path}?labelSelector=crowd=yes")).await?;
        let is_late = |c: &&Value| c["metadata"]["generation"] != c["status"]["observedGeneration"];
        let late = all.iter().filter(|c| c["spec"]["replicas"] == 0).filter(is_late).count();
        ensure!(late == 0, "{late} of {} have a status of an older spec", all.len());
        Ok(())
    })
    .await
}

/// The node and the command line of a single member's process.
async fn hosts(cluster: &Cluster, name: &str) -> Result<(String, String)> {
    let label = format!("quorate.dev/cluster={name}");
    let told = "jsonpath={.items[0].spec.nodeName} {.items[0].metadata.labels.quorate\\.dev/member}";
    let told = cluster.mine(&["get", "pods", "-l", &label, "-o", told]).await?;
    let (node, member) = told.trim().split_once(' ').unwrap_or_default();
    ensure!(!member.is_empty(), "{name} has no pod that tells where it runs: {told:?}");
    Ok((node.to_owned(), format!("--name={member} ")))
}

/// An operator of one namespace, installed by the chart beside the one that looks after all, which rests meanwhile.
struct Scoped<'a> {
    cluster: &'a Cluster,
}

const SCOPED: &str = "quorate-e2e-scoped";

impl Scoped<'_> {
    async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut all = args.to_vec();
        all.extend(["--namespace", SCOPED]);
        self.cluster.helm(&all).await
    }

    /// Installs, or upgrades with other values.
    async fn install(&self, log: &str) -> Result<()> {
        let image = ["-n", &self.cluster.args.operator_namespace, "get", "deployment/quorate-operator", "-o"];
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        let image = self.cluster.kubectl(&[&image[..], &[path]].concat(), None).await?;
        let (repository, tag) = image.trim().rsplit_once(':').unwrap_or((image.trim(), "latest"));
        let chart = self.cluster.chart()?;
        let values = format!(
            "watchNamespace={SCOPED},installCRDs=false,log={log},image.repository={repository},image.tag={tag}"
        );
        let install = ["upgrade", "--install", "scoped", &chart, "--create-namespace", "--set", &values];
        self.helm(&[&install[..], &["--wait", "--timeout", "120s"]].concat()).await.map(drop)
    }

    async fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", "scoped", "--wait", "--timeout", "60s"]).await.map(drop)
    }

    async fn here(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", SCOPED], args].concat(), None).await
    }

    async fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.kubectl(&["-n", SCOPED, "apply", "-f", "-"], Some(&object.to_string())).await.map(drop)
    }

    async fn up(&self, name: &str) -> Result<()> {
        self.here(&["wait", "--for=condition=Ready", &format!("cc/{name}"), "--timeout=140s"]).await.map(drop)
    }

    /// Runs `body` while the operator of all namespaces rests, and leaves nothing behind.
    async fn alone<T>(&self, body: impl Future<Output = Result<T>>) -> Result<T> {
        operator_replicas(self.cluster, 0).await?;
        let outcome = body.await;
        operator_replicas(self.cluster, 1).await?;
        // Whoever is left is ended by the operator of all namespaces.
        self.here(&["delete", "cc", "--all", "--timeout=120s"]).await?;
        let _ = self.uninstall().await;
        self.cluster.kubectl(&["delete", "namespace", SCOPED, "--timeout=120s"], None).await?;
        outcome
    }
}

/// With rights in one namespace only, an operator does its work there, and leaves others alone.
pub async fn scoped(cluster: &Cluster) -> Result<String> {
    let scoped = Scoped { cluster };
    let (inside, outside) = ("inside", "outside");
    let told = scoped.alone(async {
        scoped.install("info").await?;
        scoped.apply(&beside(inside, 1, json!({"size": "64Mi"}))).await?;
        cluster.apply(&beside(outside, 1, json!({"size": "64Mi"}))).await?;
        scoped.up(inside).await?;
        let grown = json!({"spec": {"replicas": 3}}).to_string();
        scoped.here(&["patch", &format!("cc/{inside}"), "--type=merge", "-p", &grown]).await?;
        scoped.up(inside).await?;
        tokio::time::sleep(TEMPTATION).await;
        ensure!(object(cluster, outside).await?["status"].is_null(), "{outside} in another namespace has a status");
        ensure!(claims(cluster, outside).await?.is_empty(), "{outside} in another namespace has volumes");
        let log = scoped.here(&["logs", "deployment/quorate-operator", "--tail=-1"]).await?;
        let refused: Vec<&str> = log.lines().filter(|l| l.contains("forbidden")).collect();
        ensure!(refused.is_empty(), "asked for without a right to it: {refused:?}");
        scoped.here(&["delete", &format!("cc/{inside}"), "--timeout=120s"]).await?;
        Ok("1 to 3 members and deleted, with a Role".to_owned())
    });
    let told = told.await?;
    up(cluster, outside).await?;
    cluster.mine(&["delete", "cc", outside, "--timeout=120s"]).await?;
    cluster.ready(3).await?;
    Ok(told)
}

/// The chart is upgraded, taken away and installed again: members run on, and data, definition and cluster stay.
pub async fn chart_comes_and_goes(cluster: &Cluster) -> Result<String> {
    let scoped = Scoped { cluster };
    let name = "kept";
    let told = scoped.alone(async {
        scoped.install("info").await?;
        scoped.apply(&open(name, 1, json!({"size": "64Mi"}))).await?;
        scoped.up(name).await?;
        let endpoint = format!("--endpoints=http://{name}.{SCOPED}:2379");
        cluster.exec(&["/etcdctl", &endpoint, "put", "is", "kept"]).await?;
        let uids = async || {
            scoped
                .here(&[
                    "get",
                    "pods,pvc,cc",
                    "-l",
                    "app.kubernetes.io/name!=quorate-operator",
                    "-o",
                    "jsonpath={.items[*].metadata.uid}",
                ])
                .await
        };
        let id = async || scoped.here(&["get", &format!("cc/{name}"), "-o", "jsonpath={.status.clusterID}"]).await;
        let (before, cluster_id) = (uids().await?, id().await?);
        scoped.install("debug").await?;
        scoped.up(name).await?;
        ensure!(uids().await? == before, "an upgrade of the chart changed members");
        scoped.uninstall().await?;
        ensure!(uids().await? == before, "taking the chart away changed members");
        cluster.exec(&["/etcdctl", &endpoint, "put", "is", "kept without an operator"]).await?;
        cluster.kubectl(&["get", "crd", "consistentclusters.quorate.dev", "-o", "name"], None).await?;
        scoped.install("info").await?;
        let grown = json!({"spec": {"replicas": 2}}).to_string();
        scoped.here(&["patch", &format!("cc/{name}"), "--type=merge", "-p", &grown]).await?;
        scoped.up(name).await?;
        ensure!(id().await? == cluster_id, "it is another cluster now");
        let read = cluster.exec(&["/etcdctl", &endpoint, "get", "is"]).await?;
        ensure!(read.contains("kept without an operator"), "read {read:?}");
        Ok("upgraded, taken away, installed again".to_owned())
    });
    let told = told.await?;
    cluster.ready(3).await?;
    ensure!(pods(cluster).await?.len() == 3, "members of {NAME} are missing");
    Ok(told)
}
