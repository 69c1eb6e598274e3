//! A node without a machine: pods that are sent to it run as processes of one host pod, and their status is told as a kubelet
//! would.
//!
//! Everything above that is real: the API server, controllers, Services, names, the operator and the members.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::host::{Order, Told};
use crate::kubernetes::api::{Api, is_code};
use crate::kubernetes::cluster::text;

pub const NODE: &str = "hosted";
/// The addresses of the members: local to the node that the host pod runs on, and routed to it by the others.
pub const RANGE: &str = "10.99.0.0/16";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Well below the time after which a node without a word counts as lost.
const RENEW_EVERY: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pods of members.
const SELECTOR: &str = "quorate.dev/cluster";

/// What is known of one pod, by UID.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    address: String,
    /// As a member's record is called.
    member: String,
    cluster: String,
    arguments: Vec<String>,
    image: String,
    is_running: bool,
    is_ready: bool,
    is_going: bool,
    /// The API server has taken the newest word about it.
    is_reported: bool,
    restarts: u32,
    started: String,
}

pub struct Kubelet {
    api: Api,
    namespace: String,
    pods: BTreeMap<String, Known>,
    /// Pods that could not be cared for, to be tried again.
    late: BTreeMap<String, Value>,
    addresses: u16,
    /// Held, so that the host lives as long as this does.
    _host: Child,
    orders: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

/// What others ask of it while it runs.
pub enum Ask {
    Freeze { cluster: String },
    Thaw { cluster: String },
}

impl Kubelet {
    /// `host` is the command that runs the host program.
    pub async fn start(api: Api, namespace: String, mut host: Command) -> Result<Kubelet> {
        let mut host = host.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let orders = host.stdin.take().context("it has an input")?;
        let told = BufReader::new(host.stdout.take().context("it has an output")?).lines();
        let kubelet = Kubelet {
            api,
            namespace,
            pods: BTreeMap::new(),
            late: BTreeMap::new(),
            addresses: 0,
            _host: host,
            orders,
            told,
        };
        kubelet.register().await?;
        Ok(kubelet)
    }

    async fn register(&self) -> Result<()> {
        let amounts = json!({"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "1Ti"});
        let now = Timestamp::now().to_string();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, NODE: "yes"}},
            "spec": {"taints": [{"key": NODE, "effect": "NoSchedule"}]},
            "status": {
                "capacity": amounts, "allocatable": amounts,
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Hosted", "message": "processes of one pod",
                    "lastHeartbeatTime": now, "lastTransitionTime": now,
                }],
            },
        });
        self.api.post("/api/v1/nodes", &node).await?;
        self.api.merge(&format!("/api/v1/nodes/{NODE}/status"), &json!({"status": node["status"]})).await?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE},
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": micro_now()},
        });
        unless(self.api.post(LEASE, &lease).await, &[409])
    }

    /// Runs until it is dropped or the host is gone.
    pub async fn run(mut self, mut asked: tokio::sync::mpsc::UnboundedReceiver<Ask>) -> Result<()> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let api = self.api.clone();
        let _renewing = tokio::task::JoinSet::from_iter([async move {
            loop {
                let renewed = json!({"spec": {"renewTime": micro_now()}});
                if let Err(error) = api.merge(&format!("{LEASE}/{NODE}"), &renewed).await {
                    eprintln!("[hosted] the node's lease was not renewed: {error:#}");
                }
                tokio::time::sleep(RENEW_EVERY).await;
            }
        }]);
        let mut pods = std::pin::pin!(self.pods());
        loop {
            tokio::select! {
                line = self.told.next_line() => {
                    let line = line?.context("the host ended")?;
                    self.hear(serde_json::from_str(&line).context(line)?).await?;
                }
                event = pods.next() => match event.context("the watch of the pods ended")? {
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => self.try_care(serde_json::to_value(pod)?).await,
                    Ok(Event::Delete(pod)) => self.stop(pod.metadata.uid.unwrap_or_default()).await?,
                    Ok(Event::Init | Event::InitDone) => {}
                    // It begins anew by itself.
                    Err(error) => eprintln!("[hosted] the watch of the pods: {error}"),
                },
                _ = look.tick() => {
                    for (_, pod) in std::mem::take(&mut self.late) {
                        self.try_care(pod).await;
                    }
                    self.catch_up().await?;
                }
                Some(ask) = asked.recv() => self.obey(&ask).await?,
            }
        }
    }

    async fn obey(&mut self, ask: &Ask) -> Result<()> {
        let (Ask::Freeze { cluster } | Ask::Thaw { cluster }) = ask;
        let ids: Vec<String> =
            self.pods.iter().filter(|(_, pod)| pod.cluster == *cluster).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let order = match ask {
                Ask::Freeze { .. } => Order::Freeze { id },
                Ask::Thaw { .. } => Order::Thaw { id },
            };
            self.order(&order).await?;
        }
        Ok(())
    }

    async fn order(&mut self, order: &Order) -> Result<()> {
        self.orders.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        Ok(self.orders.flush().await?)
    }

    async fn hear(&mut self, told: Told) -> Result<()> {
        let (Told::Ready { id } | Told::NotReady { id } | Told::Ended { id }) = &told;
        let Some(pod) = self.pods.get_mut(id) else { return Ok(()) };
        pod.is_ready = matches!(told, Told::Ready { .. });
        if matches!(told, Told::Ended { .. }) {
            pod.is_running = false;
            if pod.is_going {
                return self.forget(id).await;
            }
            pod.restarts += 1;
        }
        self.report(id).await;
        Ok(())
    }

    /// The pod is over: nothing of it runs.
    async fn forget(&mut self, id: &str) -> Result<()> {
        let Some(pod) = self.pods.remove(id) else { return Ok(()) };
        self.delete(&pod.name, id).await
    }

    async fn delete(&self, name: &str, id: &str) -> Result<()> {
        let now = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": id}});
        let deleted = self.api.delete(&format!("/api/v1/namespaces/{}/pods/{name}", self.namespace), &now).await;
        unless(deleted, &[404, 409])
    }

    /// Every pod as it is and as it changes. Listing three hundred of them again and again would keep the API server busy.
    fn pods(&self) -> impl Stream<Item = watcher::Result<Event<Pod>>> + use<> {
        let pods = self.api.namespaced::<Pod>(&self.namespace);
        watcher(pods, watcher::Config::default().labels(SELECTOR)).default_backoff()
    }

    /// Starts what ended, as a kubelet does, and reports what could not be reported.
    async fn catch_up(&mut self) -> Result<()> {
        let ids: Vec<String> = self.pods.keys().cloned().collect();
        for id in ids {
            let Some(pod) = self.pods.get(&id) else { continue };
            if !pod.is_running && !pod.is_going {
                self.launch(&id).await?;
            } else if !pod.is_reported {
                self.report(&id).await;
            }
        }
        Ok(())
    }

    /// Somebody took the pod off the books.
    async fn stop(&mut self, id: String) -> Result<()> {
        self.late.remove(&id);
        match self.pods.get_mut(&id) {
            Some(pod) if pod.is_running && !pod.is_going => {
                pod.is_going = true;
                self.order(&Order::Stop { id }).await
            }
            _ => Ok(()),
        }
    }

    async fn try_care(&mut self, pod: Value) {
        let id = text(&pod, "/metadata/uid");
        match self.care(&pod).await {
            Ok(()) => drop(self.late.remove(&id)),
            Err(error) => {
                eprintln!("[hosted] {}: {error:#}", text(&pod, "/metadata/name"));
                self.late.insert(id, pod);
            }
        }
    }

    async fn care(&mut self, pod: &Value) -> Result<()> {
        if pod["spec"]["nodeSelector"][NODE] != "yes" {
            return Ok(());
        }
        let (id, name) = (text(pod, "/metadata/uid"), text(pod, "/metadata/name"));
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return match self.pods.get_mut(&id) {
                Some(known) if known.is_going => Ok(()),
                Some(known) if known.is_running => {
                    known.is_going = true;
                    self.order(&Order::Stop { id }).await
                }
                Some(_) => self.forget(&id).await,
                None => self.delete(&name, &id).await,
            };
        }
        if self.pods.contains_key(&id) {
            return Ok(());
        }
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        for claim in volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str()) {
            self.provision(claim).await?;
        }
        if pod["spec"]["nodeName"].is_null() {
            let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.namespace);
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": id},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
            });
            self.api.post(&path, &binding).await?;
        }
        let container = &pod["spec"]["containers"][0];
        let arguments = container["args"].as_array().into_iter().flatten();
        // The first and last of a block of 256 mean something to some.
        let address = format!("10.99.{}.{}", self.addresses / 250, self.addresses % 250 + 1);
        self.addresses += 1;
        let known = Known {
            name,
            address,
            member: text(pod, "/metadata/labels/quorate.dev~1member"),
            cluster: text(pod, "/metadata/labels/quorate.dev~1cluster"),
            arguments: arguments.filter_map(|argument| argument.as_str().map(str::to_owned)).collect(),
            image: text(container, "/image"),
            is_running: false,
            is_ready: false,
            is_going: false,
            is_reported: false,
            restarts: 0,
            started: Timestamp::now().to_string(),
        };
        self.pods.insert(id.clone(), known);
        self.launch(&id).await
    }

    /// The volume that a claim waits for: unbound ones would be looked at, and complained about, every few seconds.
    async fn provision(&self, claim: &str) -> Result<()> {
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("{NODE}-{claim}"), "labels": {NODE: "yes"}},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": NODE,
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/hosted"},
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": self.namespace, "name": claim,
                },
            },
        });
        unless(self.api.post("/api/v1/persistentvolumes", &volume).await, &[409])
    }

    async fn launch(&mut self, id: &str) -> Result<()> {
        let Some(pod) = self.pods.get_mut(id) else { return Ok(()) };
        pod.is_running = true;
        let pod = pod.clone();
        self.order(&Order::Start {
            id: id.to_owned(),
            data: pod.member.clone(),
            address: pod.address.clone(),
            arguments: pod.arguments.clone(),
        })
        .await?;
        self.report(id).await;
        Ok(())
    }

    /// What the API server does not take is told again with the next look.
    async fn report(&mut self, id: &str) {
        let Some(pod) = self.pods.get(id) else { return };
        let told = self.tell(pod).await;
        if let Err(error) = &told {
            eprintln!("[hosted] {}: {error:#}", pod.name);
        }
        self.pods.entry(id.to_owned()).and_modify(|pod| pod.is_reported = told.is_ok());
    }

    async fn tell(&self, pod: &Known) -> Result<()> {
        let now = Timestamp::now().to_string();
        let word = |is: bool| if is { "True" } else { "False" };
        let condition = |kind: &str, is: bool| json!({"type": kind, "status": word(is), "lastTransitionTime": now});
        let state = if pod.is_running {
            json!({"running": {"startedAt": pod.started}, "waiting": null})
        } else {
            json!({"waiting": {"reason": "CrashLoopBackOff"}, "running": null})
        };
        let status = json!({"status": {
            "phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}], "startTime": pod.started,
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", pod.is_ready), condition("Ready", pod.is_ready),
            ],
            "containerStatuses": [{
                "name": "member", "image": pod.image, "imageID": "", "ready": pod.is_ready, "started": pod.is_running,
                "restartCount": pod.restarts, "state": state,
            }],
        }});
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", self.namespace, pod.name);
        unless(self.api.merge(&path, &status).await, &[404])
    }
}

fn micro_now() -> String {
    format!("{:.6}", Timestamp::now())
}

/// An answer that says that all is as it is to be is no failure.
fn unless(answer: Result<Value>, codes: &[u16]) -> Result<()> {
    match answer {
        Err(error) if !codes.iter().any(|code| is_code(&error, *code)) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
