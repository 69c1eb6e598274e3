//! The Kubernetes cluster a suite runs on: kubectl for what a person would do, plain requests for what is asked often.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::KubernetesArgs;
use super::api::Api;
use crate::poll;
use crate::writer::Summary;

pub const LIMIT: Duration = Duration::from_secs(150);
pub const POLL: Duration = Duration::from_millis(500);
pub const WRITER: &str = "quorate-writer";
/// The cluster under test.
pub const NAME: &str = "orders";
/// Each of the writer's four workers rests this long after an acknowledged write: a hundred writes a second show every gap,
/// and can be read back after each scenario.
const WRITER_PAUSE_MS: u32 = 30;

pub struct Cluster {
    pub args: KubernetesArgs,
    pub api: Api,
}

impl Cluster {
    pub async fn kubectl(&self, args: &[&str], stdin: Option<&str>) -> Result<String> {
        self.run(&self.args.kubectl, args, stdin).await
    }

    /// A command on the machine that is a node: how it is made to fail.
    pub async fn node(&self, args: &[&str]) -> Result<String> {
        ensure!(self.args.docker, "nodes can only be touched with --docker");
        self.run(&PathBuf::from("docker"), args, None).await
    }

    async fn run(&self, program: &PathBuf, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let shown = || format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), args.join(" "));
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut pipe = child.stdin.take();
        if let (Some(pipe), Some(text)) = (&mut pipe, stdin) {
            tokio::io::AsyncWriteExt::write_all(pipe, text.as_bytes()).await?;
        }
        drop(pipe);
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let output = output.with_context(|| format!("{} did not end within {} s", shown(), LIMIT.as_secs()))??;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", shown(), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl quorate`, in the namespace of the test.
    pub async fn plugin(&self, args: &[&str]) -> Result<String> {
        let program = self.args.plugin.clone().context("needs --plugin")?;
        let mut all = vec!["-n", self.args.namespace.as_str()];
        all.extend(args);
        self.run(&program, &all, None).await
    }

    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let program = self.args.helm.clone().context("needs --helm")?;
        self.run(&program, args, None).await
    }

    /// The chart's directory.
    pub fn chart(&self) -> Result<String> {
        Ok(self.args.chart.as_ref().context("needs --chart")?.display().to_string())
    }

    pub async fn mine(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.args.namespace.as_str()];
        all.extend(args);
        self.kubectl(&all, None).await
    }

    pub async fn apply(&self, object: &Value) -> Result<String> {
        self.kubectl(&["-n", &self.args.namespace, "apply", "-f", "-"], Some(&object.to_string())).await
    }

    /// Merges a change into the cluster's spec.
    pub async fn edit(&self, spec: Value) -> Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        self.mine(&["patch", &format!("cc/{NAME}"), "--type=merge", "-p", &patch]).await.map(drop)
    }

    pub async fn scale(&self, replicas: u64) -> Result<()> {
        self.mine(&["scale", &format!("cc/{NAME}"), &format!("--replicas={replicas}")]).await.map(drop)
    }

    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", WRITER, "--"];
        args.extend(command);
        self.mine(&args).await
    }

    pub async fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let mut command = vec!["/etcdctl", "--endpoints=https://orders:2379"];
        command.extend(args);
        self.exec(&command).await
    }

    fn path(&self, group: &str, resource: &str) -> String {
        format!("{group}/namespaces/{}/{resource}", self.args.namespace)
    }

    pub async fn custom_resource(&self) -> Result<Value> {
        self.api.get(&self.path("/apis/quorate.dev/v1alpha1", &format!("consistentclusters/{NAME}"))).await
    }

    /// Voters the spec asks for.
    pub async fn wanted(&self) -> Result<u64> {
        self.custom_resource().await?["spec"]["replicas"].as_u64().context("the spec names no replicas")
    }

    /// Objects of the cluster under test, by plural: `statefulsets`, `pods`, `persistentvolumeclaims`, `services`.
    pub async fn owned(&self, plural: &str) -> Result<Vec<Value>> {
        let group = if plural == "statefulsets" { "/apis/apps/v1" } else { "/api/v1" };
        self.api.items(&self.path(group, &format!("{plural}?labelSelector=quorate.dev/cluster={NAME}"))).await
    }

    pub async fn pod(&self, name: &str) -> Result<Option<Value>> {
        self.api.get_opt(&self.path("/api/v1", &format!("pods/{name}"))).await
    }

    /// The status if it is about the newest spec.
    pub async fn status(&self) -> Result<Value> {
        let object = self.custom_resource().await?;
        let (generation, observed) = (&object["metadata"]["generation"], &object["status"]["observedGeneration"]);
        ensure!(generation == observed, "generation {generation} is not yet observed (status: {observed})");
        Ok(object["status"].clone())
    }

    /// The leader's record and term, as the status tells.
    pub async fn leader(&self) -> Result<(String, u64)> {
        poll::until("a leader", LIMIT, POLL, async || {
            let status = self.status().await?;
            let name = status["leader"]["name"].as_str().context("the status names no leader")?;
            Ok((name.to_owned(), status["leader"]["term"].as_u64().unwrap_or_default()))
        })
        .await
    }

    /// Waits until a member leads in a later term.
    pub async fn leader_after(&self, term: u64) -> Result<String> {
        poll::until("a leader of a later term", LIMIT, POLL, async || {
            let (name, now) = self.leader().await?;
            ensure!(now > term, "term {now}, was {term}");
            Ok(name)
        })
        .await
    }

    pub async fn voters_at_least(&self, count: u64) -> Result<()> {
        poll::until(&format!("{count} voters"), LIMIT, POLL, async || {
            let voters = self.custom_resource().await?["status"]["replicas"].as_u64().unwrap_or_default();
            ensure!(voters >= count, "{voters} voters");
            Ok(())
        })
        .await
    }

    pub async fn ready(&self, replicas: u64) -> Result<String> {
        poll::until(&format!("{replicas} ready members"), LIMIT, POLL, async || {
            let status = self.status().await?;
            let counts = (status["replicas"].as_u64(), status["readyReplicas"].as_u64());
            ensure!(
                condition(&status, "Ready") == "True" && counts == (Some(replicas), Some(replicas)),
                "voters, ready: {counts:?}; {}",
                conditions(&status)
            );
            Ok(())
        })
        .await?;
        Ok(String::new())
    }

    /// Starts the writer on a node that no scenario touches.
    pub async fn start_writer(&self) -> Result<()> {
        let secret = format!("{NAME}-client-tls");
        let pause = format!("--pause-ms={WRITER_PAUSE_MS}");
        self.writer_pod(WRITER, "https://orders:2379", Some(&secret), &[&pause, "--seconds-max=14400"]).await
    }

    /// A pod that writes, with etcdctl beside it. Both show the certificate of `secret`, as the environment tells them.
    pub async fn writer_pod(&self, name: &str, endpoint: &str, secret: Option<&str>, more: &[&str]) -> Result<()> {
        let mut command = vec!["/quorate-e2e", "writer", "--dir=/data/acks", "--stop-file=/data/stop"];
        let endpoints = format!("--endpoints={endpoint}");
        command.push(&endpoints);
        command.extend(more);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "restartPolicy": "Never",
                "nodeName": self.quiet_node().await?,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532},
                "containers": [{
                    "name": "writer", "image": self.args.image, "imagePullPolicy": "IfNotPresent", "command": command,
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        });
        if let Some(secret) = secret {
            let file = |name: &str, file: &str| json!({"name": name, "value": format!("/tls/{file}")});
            let spec = &mut pod["spec"];
            spec["containers"][0]["env"] = json!([
                file("ETCDCTL_CACERT", "ca.crt"),
                file("ETCDCTL_CERT", "tls.crt"),
                file("ETCDCTL_KEY", "tls.key")
            ]);
            let add = |list: &mut Value, item: Value| list.as_array_mut().expect("it is a list").push(item);
            let mount = json!({"name": "tls", "mountPath": "/tls", "readOnly": true});
            add(&mut spec["containers"][0]["volumeMounts"], mount);
            add(&mut spec["volumes"], json!({"name": "tls", "secret": {"secretName": secret}}));
        }
        self.apply(&pod).await?;
        self.mine(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]).await?;
        // A Service leads to a member that became ready just now a moment later.
        poll::until("the writer's first acknowledged write", LIMIT, POLL, async || {
            let logs = self.mine(&["logs", name, "--tail=5"]).await?;
            let newest = logs.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
            ensure!(newest.is_some_and(|line| line["progress"].as_u64() > Some(0)), "{logs}");
            Ok(())
        })
        .await
    }

    /// Tells a writer to stop and returns what it says it found.
    pub async fn stop_writer(&self, name: &str) -> Result<Summary> {
        self.mine(&["exec", name, "--", "/quorate-e2e", "stop-writer", "/data/stop"]).await?;
        let line = poll::until("the writer to sum up", LIMIT, POLL, async || {
            let logs = self.mine(&["logs", name, "--tail=5"]).await?;
            logs.lines().rev().find(|l| l.contains("\"acknowledged\"")).map(str::to_owned).context("no summary yet")
        })
        .await?;
        Summary::from_json(&serde_json::from_str(&line)?)
    }

    /// Fails when anything the writer was promised is not there.
    pub async fn nothing_lost(&self) -> Result<()> {
        self.exec(&["/quorate-e2e", "check", "--endpoints=https://orders:2379", "--dir=/data/acks"]).await.map(drop)
    }

    /// Names of the nodes, the one no scenario touches last: the control plane's, or else the last by name.
    pub async fn nodes(&self) -> Result<Vec<String>> {
        let mut nodes = self.api.items("/api/v1/nodes").await?;
        let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let is_plane = |node: &Value| node["metadata"]["labels"].get("node-role.kubernetes.io/control-plane").is_some();
        nodes.sort_by_key(|node| (is_plane(node), name(node)));
        Ok(nodes.iter().map(name).collect())
    }

    pub async fn quiet_node(&self) -> Result<String> {
        self.nodes().await?.pop().context("the cluster has no nodes")
    }

    /// What a person would look at first when something went wrong.
    pub async fn print_evidence(&self) {
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

    /// Waits until the API server refuses or misses an object.
    pub async fn gone(&self, what: &str) -> Result<()> {
        poll::until(&format!("{what} to be gone"), LIMIT, POLL, async || {
            let found = self.mine(&["get", what, "--ignore-not-found", "-o", "name"]).await?;
            if found.trim().is_empty() { Ok(()) } else { bail!("{} is still there", found.trim()) }
        })
        .await
    }
}

/// `True`, `False`, `Unknown`, or nothing.
pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let found = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

pub fn conditions(status: &Value) -> String {
    let all = status["conditions"].as_array().into_iter().flatten();
    let shown = |c: &Value| {
        let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        format!("{}={} ({})", text("type"), text("status"), text("message"))
    };
    all.map(shown).collect::<Vec<_>>().join(", ")
}

/// A field at the end of a path of keys, as text.
pub fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
