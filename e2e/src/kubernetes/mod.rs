//! The main job on Kubernetes, through kubectl: applied, written to, scaled with the operator killed midway, leader
//! deleted, bad input refused, deleted. The writer runs as a pod, so any KUBECONFIG will do.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::poll;
use crate::scenario::Report;
use crate::writer::Summary;

const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_secs(1);
const WRITER: &str = "quorate-writer";

#[derive(Args, Debug, Clone)]
pub struct KubernetesArgs {
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Image of this program with etcdctl beside it, known to the cluster's nodes
    #[arg(long)]
    image: String,
    /// The manifest to apply; it must name the cluster `orders` with three replicas
    #[arg(long)]
    manifest: PathBuf,
    /// Where the operator runs
    #[arg(long, default_value = "quorate-system")]
    operator_namespace: String,
    /// Namespace of the test's own, made and removed again
    #[arg(long, default_value = "quorate-e2e")]
    namespace: String,
}

struct Cluster {
    args: KubernetesArgs,
}

pub async fn run(args: KubernetesArgs) -> Result<()> {
    let cluster = Cluster { args };
    let mut report = Report::default();
    let outcome = suite(&cluster, &mut report).await;
    if outcome.is_err() {
        cluster.print_evidence().await;
    }
    let printed = report.print();
    outcome.and(printed)
}

async fn suite(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let namespace = cluster.args.namespace.clone();
    let manifest = cluster.args.manifest.display().to_string();
    report
        .scenario("apply_brings_three_ready_members", async {
            cluster.kubectl(&["create", "namespace", &namespace], None).await?;
            cluster.mine(&["apply", "-f", &manifest]).await?;
            cluster.ready(3).await
        })
        .await?;
    report.scenario("etcdctl_from_a_pod_reaches_the_services", etcdctl(cluster)).await?;
    report.scenario("bad_input_is_refused_with_field_and_remedy", bad_input(cluster)).await?;
    report
        .scenario("scale_to_five_with_the_operator_killed_midway", async {
            cluster.mine(&["scale", "cc/orders", "--replicas=5"]).await?;
            cluster.voters_at_least(4).await?;
            let operator = cluster.args.operator_namespace.clone();
            cluster.kubectl(&["-n", &operator, "delete", "pod", "--all", "--grace-period=0", "--force"], None).await?;
            cluster.ready(5).await
        })
        .await?;
    report.scenario("leader_pod_deleted_a_new_leader_serves", leader_deleted(cluster)).await?;
    report
        .scenario("scale_back_to_three", async {
            cluster.mine(&["scale", "cc/orders", "--replicas=3"]).await?;
            cluster.ready(3).await?;
            let volumes = cluster.mine(&["get", "pvc", "-o", "name"]).await?;
            ensure!(volumes.lines().count() == 3, "wanted 3 volumes after scaling in, found {volumes}");
            Ok(String::new())
        })
        .await?;
    report.scenario("nothing_acknowledged_is_lost", writer_verdict(cluster)).await?;
    report.scenario("events_and_columns_tell_the_story", story(cluster)).await?;
    report
        .scenario("deletion_ends", async {
            cluster.mine(&["delete", "cc/orders", "--timeout=120s"]).await?;
            cluster.kubectl(&["delete", "namespace", &namespace, "--timeout=120s"], None).await?;
            Ok(String::new())
        })
        .await?;
    Ok(())
}

async fn etcdctl(cluster: &Cluster) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": WRITER, "labels": {"app": WRITER}},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532},
            "containers": [{
                "name": "writer", "image": cluster.args.image, "imagePullPolicy": "IfNotPresent",
                "command": ["/quorate-e2e", "writer", "--endpoints=http://orders:2379", "--dir=/data/acks", "--stop-file=/data/stop"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    cluster.apply(&pod).await?;
    cluster.mine(&["wait", "--for=condition=Ready", &format!("pod/{WRITER}"), "--timeout=120s"]).await?;
    let put = cluster.exec(&["/etcdctl", "--endpoints=http://orders:2379", "put", "from", "a pod"]).await?;
    ensure!(put.contains("OK"), "etcdctl put through the client Service: {put:?}");
    let get = cluster.exec(&["/etcdctl", "--endpoints=http://orders-leader:2379", "get", "from"]).await?;
    ensure!(get.contains("a pod"), "etcdctl get through the leader Service: {get:?}");
    Ok("client and leader Service".to_owned())
}

async fn bad_input(cluster: &Cluster) -> Result<String> {
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
        match cluster.apply(&bad).await {
            Ok(text) => bail!("{} was accepted: {text}", bad["spec"]),
            Err(error) => {
                ensure!(
                    format!("{error:#}").contains(field),
                    "{} was refused without naming {field}: {error:#}",
                    bad["spec"]
                );
            }
        }
    }
    Ok(format!("{count} refused"))
}

async fn leader_deleted(cluster: &Cluster) -> Result<String> {
    let before = cluster.status().await?;
    let leader = before["leader"]["name"].as_str().context("the status names no leader")?.to_owned();
    let term = before["leader"]["term"].as_u64().unwrap_or_default();
    cluster.mine(&["delete", "pod", &format!("{leader}-0")]).await?;
    let after = poll::until("a leader of a later term", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        let now = status["leader"]["term"].as_u64().unwrap_or_default();
        ensure!(now > term, "term {now}, was {term}");
        Ok(status["leader"]["name"].as_str().unwrap_or_default().to_owned())
    })
    .await?;
    cluster.ready(5).await?;
    Ok(format!("{leader} deleted, {after} leads"))
}

async fn writer_verdict(cluster: &Cluster) -> Result<String> {
    cluster.exec(&["/quorate-e2e", "stop-writer", "/data/stop"]).await?;
    let line = poll::until("the writer to sum up", LIMIT, POLL, async || {
        let logs = cluster.mine(&["logs", WRITER]).await?;
        logs.lines().rev().find(|l| l.starts_with('{')).map(str::to_owned).context("no summary yet")
    })
    .await?;
    Summary::from_json(&serde_json::from_str(&line)?)?.check()
}

async fn story(cluster: &Cluster) -> Result<String> {
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

impl Cluster {
    async fn kubectl(&self, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let mut command = Command::new(&self.args.kubectl);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start kubectl")?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), stdin) {
            tokio::io::AsyncWriteExt::write_all(&mut pipe, text.as_bytes()).await?;
        }
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let output = output.with_context(|| format!("kubectl {args:?} did not end within {} s", LIMIT.as_secs()))??;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn mine(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.args.namespace.as_str()];
        all.extend(args);
        self.kubectl(&all, None).await
    }

    async fn apply(&self, object: &Value) -> Result<String> {
        self.kubectl(&["-n", &self.args.namespace, "apply", "-f", "-"], Some(&object.to_string())).await
    }

    async fn exec(&self, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", WRITER, "--"];
        args.extend(command);
        self.mine(&args).await
    }

    async fn status(&self) -> Result<Value> {
        let text = self.mine(&["get", "cc/orders", "-o", "json"]).await?;
        let object: Value = serde_json::from_str(&text)?;
        let (generation, observed) = (&object["metadata"]["generation"], &object["status"]["observedGeneration"]);
        ensure!(generation == observed, "generation {generation} is not yet observed (status: {observed})");
        Ok(object["status"].clone())
    }

    async fn voters_at_least(&self, count: u64) -> Result<()> {
        poll::until(&format!("{count} voters"), LIMIT, POLL, async || {
            let text = self.mine(&["get", "cc/orders", "-o", "jsonpath={.status.replicas}"]).await?;
            ensure!(text.trim().parse::<u64>().unwrap_or_default() >= count, "{text} voters");
            Ok(())
        })
        .await
    }

    async fn ready(&self, replicas: u64) -> Result<String> {
        poll::until(&format!("{replicas} ready members"), LIMIT, POLL, async || {
            let status = self.status().await?;
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let counts = (status["replicas"].as_u64(), status["readyReplicas"].as_u64());
            let shown = || {
                conditions
                    .iter()
                    .map(|c| format!("{}={} ({})", c["type"], c["status"], c["message"]))
                    .collect::<Vec<_>>()
            };
            ensure!(
                ready && counts == (Some(replicas), Some(replicas)),
                "voters, ready: {counts:?}; {}",
                shown().join(", ")
            );
            Ok(())
        })
        .await?;
        Ok(String::new())
    }

    /// What a person would look at first when something went wrong.
    async fn print_evidence(&self) {
        let operator = self.args.operator_namespace.as_str();
        let looks: [&[&str]; 5] = [
            &["-n", &self.args.namespace, "get", "cc,sts,pods,pvc,svc,endpointslices,pdb", "-o", "wide"],
            &["-n", &self.args.namespace, "get", "cc", "-o", "yaml"],
            &["-n", &self.args.namespace, "get", "events", "--sort-by=.lastTimestamp"],
            &["-n", operator, "logs", "--all-pods=true", "deployment/quorate-operator", "--tail=60"],
            &[
                "-n",
                &self.args.namespace,
                "logs",
                "-l",
                "app.kubernetes.io/managed-by=quorate",
                "--tail=25",
                "--prefix",
            ],
        ];
        for look in looks {
            match self.kubectl(look, None).await {
                Ok(text) => eprintln!("$ kubectl {}\n{text}", look.join(" ")),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }
}
