//! Calls the loop for each cluster: when something of it changed, and in any case every few seconds, so that the status is true.
//!
//! A hundred clusters that need nothing cost the API server next to nothing: they are looked at through what watches have told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use quorate_api::{ConsistentCluster, names};
use quorate_plan::{Decision, Intent, Step};

use super::KubernetesWorld;
use super::cache::Watches;
use super::lease::Lease;
use super::request::timed;
use super::tell::{Teller, is_told};
use crate::args::RunArgs;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::reconcile::{self, Acted, Pass};

/// Something moves: look again soon, whether or not an event comes.
const MOVING: Duration = Duration::from_secs(1);
/// Nothing moves: often enough that a status is never wrong for ten seconds.
const STEADY: Duration = Duration::from_secs(4);
/// A cluster that is only glanced at is read live this often all the same: watches may lag.
const LIVE_EVERY: Duration = Duration::from_secs(25);
/// After a step, a moment for what it set in motion.
const AFTER_STEP: Duration = Duration::from_millis(50);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Spread by a quarter, it is still less than the ten seconds in which a status is to be true again.
const BACKOFF_MAX: Duration = Duration::from_secs(6);
/// What is gone is looked for this often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

struct Context {
    world: KubernetesWorld,
    members: Members,
    teller: Teller,
    metrics: Arc<Metrics>,
    /// By cluster UID.
    known: Mutex<HashMap<String, Known>>,
    /// When clusters that are gone were last looked for.
    swept: Mutex<Instant>,
}

/// What is remembered of a cluster from one pass to the next.
#[derive(Debug, Default)]
struct Known {
    /// Refusals in a row.
    refusals: u32,
    /// The last live reading, if nothing was to be done then and everything could be read.
    calm: Option<Calm>,
}

#[derive(Debug)]
struct Calm {
    at: Instant,
    wish: Wish,
}

/// What a person asks of a cluster.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    generation: Option<i64>,
    annotations: BTreeMap<String, String>,
}

impl Wish {
    fn of(cluster: &ConsistentCluster) -> Wish {
        let annotations = cluster.annotations().clone();
        Wish { generation: cluster.metadata.generation, annotations }
    }
}

impl Known {
    /// Whether what watches have told may be enough: not when somebody wants something new.
    fn may_glance(&self, intent: &Intent, cluster: &ConsistentCluster, now: Instant) -> bool {
        let is_calm = |calm: &Calm| now.duration_since(calm.at) < LIVE_EVERY && calm.wish == Wish::of(cluster);
        !matches!(intent, Intent::Delete(_)) && self.calm.as_ref().is_some_and(is_calm)
    }
}

pub(super) async fn run(
    args: &RunArgs,
    world: KubernetesWorld,
    watches: Watches,
    metrics: Arc<Metrics>,
    lease: &Lease,
) {
    let client = world.client.clone();
    let teller = Teller::new(client.clone(), &lease.identity);
    let swept = Mutex::new(Instant::now());
    let known = Mutex::default();
    let context = Arc::new(Context { world, members: Members::default(), teller, metrics, known, swept });
    let Watches { clusters: (known, clusters), sets, pods, services, claims, budgets, policies, slices } = watches;
    Controller::for_stream(clusters, known)
        .with_config(Config::default().concurrency(args.concurrency))
        .owns_stream(sets)
        .owns_stream(services)
        .owns_stream(budgets)
        .owns_stream(policies)
        .owns_stream(slices)
        .watches_stream(pods, |pod| cluster_of(&pod))
        .watches_stream(claims, |claim| cluster_of(&claim))
        .run(reconcile, error_policy, context)
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        })
        .await;
}

fn cluster_of(object: &impl ResourceExt) -> Option<ObjectRef<ConsistentCluster>> {
    let name = object.labels().get(names::LABEL_CLUSTER)?;
    Some(ObjectRef::new(name).within(object.namespace().as_deref()?))
}

async fn reconcile(cached: Arc<ConsistentCluster>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let glance = context.glance(&cached).await;
    if let Glance::Enough(action) = glance {
        return Ok(action);
    }
    let started = Instant::now();
    let namespace = cached.namespace().unwrap_or_default();
    let name = cached.name_any();
    // What is wanted is read live too: an old wish must not be carried out.
    let api = Api::<ConsistentCluster>::namespaced(context.world.client.clone(), &namespace);
    let Some(cluster) = timed(api.get_opt(&name)).await? else {
        context.forget(&namespace, &name, cached.metadata.uid.as_deref().unwrap_or_default());
        return Ok(Action::await_change());
    };
    let intent = Intent::of(&cluster);
    let pass = reconcile::pass(&context.world, &context.members, &intent, cluster.status.as_ref()).await;
    let uid = &intent.identity().uid;
    context.world.certificates.hear(uid, &pass.seen);
    context.note(uid, |known| {
        // What watches told said something else. They may catch up soon, or not: somebody took a label away.
        let is_calm = is_calm(&pass) && !matches!(glance, Glance::NotEnough);
        known.calm = is_calm.then(|| Calm { at: started, wish: Wish::of(&cluster) });
    });
    let told = context.teller.tell(&cluster, &intent, &pass).await;
    context.metrics.observe(&intent, &pass, started.elapsed());
    if let Err(error) = told {
        context.metrics.error("StatusNotWritten");
        tracing::warn!(cluster = format!("{namespace}/{name}"), "the status was not written: {error}");
        return Ok(Action::requeue(context.backoff(uid)));
    }
    if matches!(pass.acted, Acted::Done(Step::Finish)) {
        context.forget(&namespace, &name, uid);
        return Ok(Action::await_change());
    }
    context.sweep();
    Ok(Action::requeue(context.pause(uid, &pass)))
}

/// What came of looking at a cluster through what watches have told.
enum Glance {
    /// All is as it was told before, and nothing is to be done.
    Enough(Action),
    NotEnough,
    /// It was not the time for one.
    NotTried,
}

/// Nothing was to be done, everything could be read, and no certificate is on its way.
fn is_calm(pass: &Pass) -> bool {
    let seen = &pass.seen.observation;
    let certificates = seen.tls.as_ref().is_none_or(|word| word.fault.is_none() && word.waits.is_none());
    matches!(pass.acted, Acted::Nothing) && seen.unread.is_empty() && certificates
}

fn error_policy(cluster: Arc<ConsistentCluster>, error: &kube::Error, context: Arc<Context>) -> Action {
    context.metrics.error("ClusterUnreadable");
    tracing::warn!(cluster = cluster.name_any(), "cannot be read: {error}");
    Action::requeue(context.backoff(cluster.metadata.uid.as_deref().unwrap_or_default()))
}

impl Context {
    /// Changes nothing and tells nothing: what a watch told may be old.
    async fn glance(&self, cached: &ConsistentCluster) -> Glance {
        let started = Instant::now();
        let intent = Intent::of(cached);
        let identity = intent.identity();
        if !self.note(&identity.uid, |known| known.may_glance(&intent, cached, started)) {
            return Glance::NotTried;
        }
        let pass = reconcile::glance(&self.world, &self.members, &intent, cached.status.as_ref()).await;
        let Some(pass) = pass.filter(|pass| is_told(&self.world.cache, cached, &intent, pass)) else {
            return Glance::NotEnough;
        };
        self.world.certificates.hear(&identity.uid, &pass.seen);
        self.metrics.observe(&intent, &pass, started.elapsed());
        Glance::Enough(Action::requeue(self.pause(&identity.uid, &pass)))
    }

    fn note<T>(&self, uid: &str, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.known.lock().expect("no panic happens while this is noted").entry(uid.to_owned()).or_default())
    }

    /// The cluster is gone.
    fn forget(&self, namespace: &str, name: &str, uid: &str) {
        self.metrics.forget(namespace, name);
        self.forget_uid(uid);
    }

    fn forget_uid(&self, uid: &str) {
        self.known.lock().expect("no panic happens while this is noted").remove(uid);
        self.teller.forget(uid);
        self.world.certificates.forget(uid);
    }

    /// Forgets clusters whose end nobody saw here, now and then: somebody took their finalizer away, or the answer that it is gone
    /// was lost.
    fn sweep(&self) {
        {
            let mut swept = self.swept.lock().expect("no panic happens while this is noted");
            if swept.elapsed() < SWEEP_EVERY {
                return;
            }
            *swept = Instant::now();
        }
        let there = self.world.cache.uids();
        let known: Vec<String> = {
            let known = self.known.lock().expect("no panic happens while this is noted");
            known.keys().filter(|uid| !there.contains(*uid)).cloned().collect()
        };
        known.iter().for_each(|uid| self.forget_uid(uid));
        self.metrics.keep(|uid| there.contains(uid));
    }

    fn pause(&self, uid: &str, pass: &Pass) -> Duration {
        if let Acted::Refused(..) = pass.acted {
            return self.backoff(uid);
        }
        self.note(uid, |known| known.refusals = 0);
        match (&pass.acted, &pass.plan.next) {
            (Acted::Done(_), _) => AFTER_STEP,
            (_, Decision::Steady | Decision::Blocked(_)) => STEADY,
            (_, Decision::Wait(_) | Decision::Act(_)) => MOVING,
        }
    }

    /// Doubles up to the most, and is spread, so that an API server that comes back is not met by everybody at once.
    fn backoff(&self, uid: &str) -> Duration {
        let count = self.note(uid, |known| {
            // What failed is looked at live.
            known.calm = None;
            known.refusals = known.refusals.saturating_add(1);
            known.refusals
        });
        let full = BACKOFF_FIRST.saturating_mul(1 << (count - 1).min(8)).min(BACKOFF_MAX);
        let spread = names::seed(&format!("{uid}/{count}")) % 500;
        full.mul_f64(0.75 + f64::from(u32::try_from(spread).unwrap_or(0)) / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::ConsistentClusterSpec;

    use super::*;

    #[test]
    fn a_glance_is_enough_for_a_while_and_for_nobody_who_wants_something_else() {
        let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        cluster.metadata.generation = Some(7);
        let now = Instant::now();
        let known = |calm| Known { refusals: 0, calm };
        let after = |known: &Known, cluster: &ConsistentCluster, pause: Duration| {
            known.may_glance(&Intent::of(cluster), cluster, now + pause)
        };
        assert!(!after(&known(None), &cluster, Duration::ZERO), "never read live");
        let calm = known(Some(Calm { at: now, wish: Wish::of(&cluster) }));
        assert!(after(&calm, &cluster, LIVE_EVERY / 2));
        assert!(!after(&calm, &cluster, LIVE_EVERY));
        let mut newer = cluster.clone();
        newer.metadata.generation = Some(8);
        assert!(!after(&calm, &newer, Duration::ZERO), "the spec was edited");
        let mut asked = cluster.clone();
        asked.annotations_mut().insert("quorate.dev/restart".to_owned(), "all".to_owned());
        assert!(!after(&calm, &asked, Duration::ZERO), "an annotation asks for something");
        let since = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        cluster.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(since));
        assert!(!after(&calm, &cluster, Duration::ZERO), "it is being deleted");
    }
}
