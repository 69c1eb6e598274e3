//! Calls the loop for each cluster: when something of it changed, and in any case every few seconds, so that the status is true.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use quorate_api::{ConsistentCluster, names};
use quorate_plan::{Decision, Intent};

use super::KubernetesWorld;
use super::lease::Lease;
use super::request::timed;
use super::tell::Teller;
use crate::args::RunArgs;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::reconcile::{self, Acted, Pass};

/// Something moves: look again soon, whether or not an event comes.
const MOVING: Duration = Duration::from_secs(1);
/// Nothing moves: often enough that a status is never wrong for ten seconds.
const STEADY: Duration = Duration::from_secs(4);
/// After a step, a moment for what it set in motion.
const AFTER_STEP: Duration = Duration::from_millis(50);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

struct Context {
    world: KubernetesWorld,
    members: Members,
    teller: Teller,
    metrics: Arc<Metrics>,
    /// Refusals in a row, by cluster UID.
    refusals: Mutex<HashMap<String, u32>>,
}

pub(super) async fn run(args: &RunArgs, world: KubernetesWorld, metrics: Arc<Metrics>, lease: &Lease) {
    let client = world.client.clone();
    let teller = Teller::new(client.clone(), &lease.identity);
    let context = Arc::new(Context { world, members: Members::default(), teller, metrics, refusals: Mutex::default() });
    let ours = watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY));
    let clusters = scoped::<ConsistentCluster>(&client, args);
    Controller::new(clusters, watcher::Config::default())
        .with_config(Config::default().concurrency(args.concurrency))
        .owns(scoped::<StatefulSet>(&client, args), ours.clone())
        .watches(scoped::<Pod>(&client, args), ours, |pod| cluster_of(&pod))
        .run(reconcile, error_policy, context)
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        })
        .await;
}

fn scoped<K>(client: &Client, args: &RunArgs) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match &args.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn cluster_of(pod: &Pod) -> Option<ObjectRef<ConsistentCluster>> {
    let name = pod.labels().get(names::LABEL_CLUSTER)?;
    Some(ObjectRef::new(name).within(pod.metadata.namespace.as_deref()?))
}

async fn reconcile(cached: Arc<ConsistentCluster>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let started = Instant::now();
    let namespace = cached.namespace().unwrap_or_default();
    let name = cached.name_any();
    // What is wanted is read live too: an old wish must not be carried out.
    let api = Api::<ConsistentCluster>::namespaced(context.world.client.clone(), &namespace);
    let Some(cluster) = timed(api.get_opt(&name)).await? else {
        context.metrics.forget(&namespace, &name);
        return Ok(Action::await_change());
    };
    let intent = Intent::of(&cluster);
    let pass = reconcile::pass(&context.world, &context.members, &intent, cluster.status.as_ref()).await;
    context.world.certificates.hear(&intent.identity().uid, &pass.seen);
    let told = context.teller.tell(&cluster, &intent, &pass).await;
    context.metrics.observe(&intent, &pass, started.elapsed());
    if let Err(error) = told {
        context.metrics.error("StatusNotWritten");
        tracing::warn!(cluster = format!("{namespace}/{name}"), "the status was not written: {error}");
        return Ok(Action::requeue(context.backoff(&intent.identity().uid)));
    }
    Ok(Action::requeue(context.pause(&intent.identity().uid, &pass)))
}

fn error_policy(cluster: Arc<ConsistentCluster>, error: &kube::Error, context: Arc<Context>) -> Action {
    context.metrics.error("ClusterUnreadable");
    tracing::warn!(cluster = cluster.name_any(), "cannot be read: {error}");
    Action::requeue(context.backoff(cluster.metadata.uid.as_deref().unwrap_or_default()))
}

impl Context {
    fn pause(&self, uid: &str, pass: &Pass) -> Duration {
        if let Acted::Refused(..) = pass.acted {
            return self.backoff(uid);
        }
        self.refusals.lock().expect("no panic happens while refusals are counted").remove(uid);
        match (&pass.acted, &pass.plan.next) {
            (Acted::Done(_), _) => AFTER_STEP,
            (_, Decision::Steady | Decision::Blocked(_)) => STEADY,
            (_, Decision::Wait(_) | Decision::Act(_)) => MOVING,
        }
    }

    /// Doubles up to the most, and is spread, so that an API server that comes back is not met by everybody at once.
    fn backoff(&self, uid: &str) -> Duration {
        let mut refusals = self.refusals.lock().expect("no panic happens while refusals are counted");
        let count = refusals.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        let full = BACKOFF_FIRST.saturating_mul(1 << (*count - 1).min(8)).min(BACKOFF_MAX);
        let spread = names::seed(&format!("{uid}/{count}")) % 500;
        full.mul_f64(0.75 + f64::from(u32::try_from(spread).unwrap_or(0)) / 1_000.0)
    }
}
