//! Many clusters under one operator: how much memory it takes, how long all of them take to be ready, and whether one cluster
//! whose members hang keeps it from the others.
//!
//! Three hundred pods are more than a small machine can start, so their members run as plain processes of one pod
//! ([`host`]), and this program plays the kubelet of the node they are bound to ([`kubelet`]). The figures are about the
//! operator, which cannot tell.

pub mod host;
mod kubelet;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::mpsc;

use self::kubelet::{Ask, Kubelet, NODE, RANGE};
use crate::kubernetes::api::Api;
use crate::kubernetes::cluster::{condition, conditions};
use crate::poll;

const HOST: &str = "host";
/// The cluster whose members hang.
const WEDGED: &str = "many-0";
/// Requests under way at one time.
const AT_ONCE: usize = 8;
const POLL: Duration = Duration::from_millis(200);

#[derive(Args, Debug, Clone)]
pub struct HostedArgs {
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Image of this program with the member program beside it, known to the cluster's nodes
    #[arg(long)]
    image: String,
    /// Where the operator runs
    #[arg(long, default_value = "quorate-system")]
    operator_namespace: String,
    /// Namespace of the test's own, made and removed again
    #[arg(long, default_value = "quorate-hosted")]
    namespace: String,
    #[arg(long, default_value_t = 100)]
    clusters: usize,
    /// The operator may take this much at its height
    #[arg(long, default_value_t = 64)]
    memory_mib_max: u64,
    /// All of them are ready within this
    #[arg(long, default_value_t = 1800)]
    ready_seconds_max: u64,
}

struct Suite {
    args: HostedArgs,
    api: Api,
    /// The node of the host pod.
    node: String,
}

pub async fn run(args: HostedArgs) -> Result<()> {
    let api = Api::connect().await?;
    let mut suite = Suite { args, api, node: String::new() };
    suite.prepare().await?;
    let outcome = suite.measure().await;
    if outcome.is_err() {
        suite.print_evidence().await;
    }
    match suite.clear().await {
        Err(error) if outcome.is_err() => eprintln!("and it cannot be cleared away: {error:#}"),
        cleared => cleared?,
    }
    outcome
}

impl Suite {
    async fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("cannot start {program}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", args.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(&self.args.kubectl.display().to_string(), args).await
    }

    fn path(&self) -> String {
        format!("/apis/quorate.dev/v1alpha1/namespaces/{}/consistentclusters", self.args.namespace)
    }

    /// The host pod, and routes to the addresses of its members.
    async fn prepare(&mut self) -> Result<()> {
        let nodes = self.api.items("/api/v1/nodes").await?;
        let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let plane = "node-role.kubernetes.io/control-plane";
        let worker = nodes.iter().find(|node| node["metadata"]["labels"].get(plane).is_none());
        let worker = worker.context("the cluster has no node but the control plane's")?;
        self.node = name(worker);
        let addresses = worker["status"]["addresses"].as_array().into_iter().flatten();
        let address = addresses.filter(|a| a["type"] == "InternalIP").find_map(|a| a["address"].as_str());
        let address = address.context("the node has no address")?;
        self.run("docker", &["exec", &self.node, "ip", "route", "replace", "local", RANGE, "dev", "lo"]).await?;
        for other in nodes.iter().map(name).filter(|other| *other != self.node) {
            self.run("docker", &["exec", &other, "ip", "route", "replace", RANGE, "via", address]).await?;
        }
        self.kubectl(&["create", "namespace", &self.args.namespace]).await?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": HOST, "namespace": self.args.namespace},
            "spec": {
                "nodeName": self.node, "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet", "restartPolicy": "Never",
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532},
                "containers": [{
                    "name": HOST, "image": self.args.image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/quorate-e2e", "host"], "stdin": true, "stdinOnce": true,
                    "volumeMounts": [{"name": "data", "mountPath": "/hosted"}],
                }],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        });
        self.api.post(&format!("/api/v1/namespaces/{}/pods", self.args.namespace), &pod).await?;
        let ready = ["wait", "-n", &self.args.namespace, "--for=condition=Ready", "pod/host", "--timeout=120s"];
        self.kubectl(&ready).await.map(drop)
    }

    async fn measure(&self) -> Result<()> {
        let mut host = Command::new(&self.args.kubectl);
        host.args(["attach", "-q", "-i", "-n", &self.args.namespace, HOST]);
        let kubelet = Kubelet::start(self.api.clone(), self.args.namespace.clone(), host).await?;
        let (ask, asked) = mpsc::unbounded_channel();
        tokio::select! {
            ended = kubelet.run(asked) => ended.context("the node that hosts the members ended"),
            measured = self.figures(ask) => measured,
        }
    }

    async fn figures(&self, ask: mpsc::UnboundedSender<Ask>) -> Result<()> {
        let count = self.args.clusters;
        let (idle, _) = self.memory_kib().await?;
        let since = Instant::now();
        let made = futures::stream::iter(0..count).map(|n| async move { self.api.post(&self.path(), &many(n)).await });
        made.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        self.all_ready(count, Duration::from_secs(self.args.ready_seconds_max)).await?;
        let ready = since.elapsed();
        let (now, peak) = self.memory_kib().await?;
        println!("{count} clusters of three members ready after {} s", ready.as_secs());
        println!("operator: {idle} KiB before, {now} KiB with them, {peak} KiB at its height");

        let before = self.edits(count, "11m").await?;
        ask.send(Ask::Freeze { cluster: WEDGED.to_owned() }).ok().context("the node that hosts the members ended")?;
        self.wedge_is_told().await?;
        let beside = self.edits(count, "12m").await?;
        ask.send(Ask::Thaw { cluster: WEDGED.to_owned() }).ok().context("the node that hosts the members ended")?;
        println!(
            "an edit of each of the {} others is told by all after {} ms; beside one cluster whose members hang after {} ms",
            count - 1,
            before.as_millis(),
            beside.as_millis()
        );
        self.all_ready(count, Duration::from_secs(120)).await?;
        let (_, peak) = self.memory_kib().await?;
        println!("operator: {peak} KiB at its height");
        let limit = self.args.memory_mib_max * 1024;
        ensure!(peak <= limit, "the operator took {peak} KiB at its height, more than {limit} KiB");
        Ok(())
    }

    async fn all_ready(&self, count: usize, limit: Duration) -> Result<()> {
        let since = Instant::now();
        let mut told = 0;
        poll::until("all clusters to be ready", limit, Duration::from_secs(5), async || {
            let all = self.api.items(&self.path()).await?;
            let is_ready = |c: &&Value| {
                condition(&c["status"], "Ready") == "True"
                    && c["status"]["readyReplicas"] == 3
                    && c["metadata"]["generation"] == c["status"]["observedGeneration"]
            };
            let ready = all.iter().filter(is_ready).count();
            if ready >= told + count.div_ceil(10) {
                told = ready;
                eprintln!("[hosted] {ready} of {count} ready after {} s", since.elapsed().as_secs());
            }
            ensure!(ready == count, "{ready} of {count} are ready");
            Ok(())
        })
        .await
    }

    /// Changes something of every cluster but the one that may be wedged, and waits until all of them tell it.
    async fn edits(&self, count: usize, deadline: &str) -> Result<Duration> {
        let edit = &json!({"spec": {"progressDeadline": deadline}});
        let since = Instant::now();
        let edited = futures::stream::iter(1..count)
            .map(|n| async move { self.api.merge(&format!("{}/many-{n}", self.path()), edit).await });
        edited.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        poll::until("every edit to be told", Duration::from_secs(120), POLL, async || {
            let all = self.api.items(&self.path()).await?;
            let others = all.iter().filter(|c| c["metadata"]["name"] != WEDGED);
            let late = others.filter(|c| c["metadata"]["generation"] != c["status"]["observedGeneration"]).count();
            ensure!(late == 0, "{late} of {} tell of an older spec", all.len());
            Ok(())
        })
        .await?;
        Ok(since.elapsed())
    }

    async fn wedge_is_told(&self) -> Result<()> {
        poll::until("the wedge to be told", Duration::from_secs(60), POLL, async || {
            let status = self.api.get(&format!("{}/{WEDGED}", self.path())).await?["status"].clone();
            ensure!(condition(&status, "Available") != "True", "{}", conditions(&status));
            Ok(())
        })
        .await
    }

    /// Of the operator's process: resident now, and at its height.
    async fn memory_kib(&self) -> Result<(u64, u64)> {
        let namespace = &self.args.operator_namespace;
        let pods = self.api.items(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
        let operator = pods.iter().find(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            name.starts_with("quorate-operator") && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let node = operator.and_then(|pod| pod["spec"]["nodeName"].as_str()).context("no operator runs")?;
        let script = "cat /proc/$(pgrep -o -x quorate-operato)/status";
        let status = self.run("docker", &["exec", node, "sh", "-c", script]).await?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("{name} is not told: {status}"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    async fn clear(&self) -> Result<()> {
        let namespace = &self.args.namespace;
        // Nobody ends what is bound to a node without a machine.
        for what in ["cc", "statefulsets", "pods"] {
            let all = ["delete", what, "--all", "-n", namespace, "--wait=false", "--force", "--grace-period=0"];
            self.kubectl(&all).await?;
        }
        self.kubectl(&["delete", "pv", "-l", NODE, "--wait=false"]).await?;
        for what in [["node", NODE], ["namespace", namespace]] {
            self.kubectl(&["delete", what[0], what[1], "--ignore-not-found", "--timeout=300s"]).await?;
        }
        Ok(())
    }

    async fn print_evidence(&self) {
        let namespace = &self.args.namespace;
        let operator = &self.args.operator_namespace;
        let looks: [&[&str]; 3] = [
            &["-n", namespace, "get", "cc,pods", "-o", "wide"],
            &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"],
            &["-n", operator, "logs", "deployment/quorate-operator", "--tail=40"],
        ];
        for look in looks {
            match self.kubectl(look).await {
                Ok(text) => eprintln!("$ kubectl {}\n{}", look.join(" "), tail(&text, 60)),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A cluster whose members are bound to the node without a machine. Slow timing: three hundred members share few cores.
fn many(number: usize) -> Value {
    json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": format!("many-{number}")},
        "spec": {
            "replicas": 3,
            "storage": {"size": "1Gi", "storageClassName": NODE, "onClusterDelete": "Delete"},
            "timing": {"profile": "Custom", "heartbeat": "1s", "election": "5s"},
            "tls": {"client": {"mode": "Disabled"}, "peer": {"mode": "Disabled"}},
            "podTemplate": {"nodeSelector": {NODE: "yes"}},
        },
    })
}
