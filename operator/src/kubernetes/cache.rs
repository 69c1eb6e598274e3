//! What watches tell of the objects of all clusters: enough to say how a cluster is, never enough to change it.
//!
//! A watch may lag. What it told can confirm what is known of a cluster; a step or a word that follows from it is decided anew on a
//! live reading, and every cluster is read live now and then in any case.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use futures::stream::{BoxStream, Stream, StreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use quorate_api::{ConsistentCluster, names};
use quorate_plan::Identity;

use super::objects::{LABEL_SLICE_MANAGED_BY, LeaderEndpoint, SLICE_MANAGED_BY};
use super::observe::{Objects, leader_endpoint};
use crate::args::RunArgs;

/// A watch is begun anew this often, so that a connection that died without a word is noticed not much later.
const WATCH_SECONDS: u32 = 25;

/// Objects that were touched. Errors are told and left out: one kind that may not be watched does not end the other watches.
pub(super) type Touched<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// What watches have told so far.
pub(super) struct Cache {
    clusters: Store<ConsistentCluster>,
    sets: Store<StatefulSet>,
    pods: Store<Pod>,
    services: Store<Service>,
    claims: Store<PersistentVolumeClaim>,
    budgets: Store<PodDisruptionBudget>,
    policies: Store<NetworkPolicy>,
    slices: Store<EndpointSlice>,
}

/// The watches behind a cache; it is as new as these are polled.
pub(super) struct Watches {
    pub clusters: (Store<ConsistentCluster>, Touched<ConsistentCluster>),
    pub sets: Touched<StatefulSet>,
    pub pods: Touched<Pod>,
    pub services: Touched<Service>,
    pub claims: Touched<PersistentVolumeClaim>,
    pub budgets: Touched<PodDisruptionBudget>,
    pub policies: Touched<NetworkPolicy>,
    pub slices: Touched<EndpointSlice>,
}

/// A watch that failed is tried again this often.
struct Again;

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_secs(2))
    }
}

impl Backoff for Again {
    fn reset(&mut self) {}
}

pub(super) fn watch(client: &Client, args: &RunArgs) -> (Cache, Watches) {
    let ours = watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY));
    let guarded = watched(scoped::<DeserializeGuard<ConsistentCluster>>(client, args), watcher::Config::default());
    let (clusters, of_clusters) = kept(guarded.filter_map(readable), |_| ());
    let (sets, of_sets) = reflected(scoped(client, args), ours.clone(), slim_set);
    let (pods, of_pods) = reflected(scoped(client, args), ours.clone(), slim_pod);
    let (services, of_services) = reflected(scoped(client, args), ours.clone(), slim_service);
    let (claims, of_claims) =
        reflected(scoped(client, args), ours.clone(), |claim: &mut PersistentVolumeClaim| claim.status = None);
    let (budgets, of_budgets) =
        reflected(scoped(client, args), ours.clone(), |budget: &mut PodDisruptionBudget| budget.status = None);
    let (policies, of_policies) = reflected(scoped(client, args), ours, |_| ());
    // Kubernetes' own bear the labels of our Services.
    let of_leaders = format!("{LABEL_SLICE_MANAGED_BY}={SLICE_MANAGED_BY}");
    let (slices, of_slices) = reflected(scoped(client, args), watcher::Config::default().labels(&of_leaders), |_| ());
    let watches = Watches {
        clusters: (clusters.clone(), of_clusters),
        sets: of_sets,
        pods: of_pods,
        services: of_services,
        claims: of_claims,
        budgets: of_budgets,
        policies: of_policies,
        slices: of_slices,
    };
    (Cache { clusters, sets, pods, services, claims, budgets, policies, slices }, watches)
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

/// `slim` takes away what no reading asks for: a hundred clusters are a thousand objects.
fn reflected<K>(api: Api<K>, config: watcher::Config, slim: fn(&mut K)) -> (Store<K>, Touched<K>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    kept(watched(api, config), slim)
}

fn watched<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, config.timeout(WATCH_SECONDS)).backoff(Again)
}

/// One that this program cannot read, such as one of a newer definition, is left alone and keeps nobody from the others.
async fn readable(
    event: watcher::Result<watcher::Event<DeserializeGuard<ConsistentCluster>>>,
) -> Option<watcher::Result<watcher::Event<ConsistentCluster>>> {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    let read = |guard: DeserializeGuard<ConsistentCluster>| {
        let of = (guard.namespace().unwrap_or_default(), guard.name_any());
        guard.0.inspect_err(|error| tracing::warn!("ConsistentCluster {}/{} cannot be read: {error}", of.0, of.1)).ok()
    };
    Some(match event {
        Ok(Init) => Ok(Init),
        Ok(InitDone) => Ok(InitDone),
        Ok(InitApply(guard)) => Ok(InitApply(read(guard)?)),
        Ok(Apply(guard)) => Ok(Apply(read(guard)?)),
        Ok(Delete(guard)) => Ok(Delete(read(guard)?)),
        Err(error) => Err(error),
    })
}

fn kept<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    slim: fn(&mut K),
) -> (Store<K>, Touched<K>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let events = events.modify(move |object: &mut K| {
        // Who wrote which field is half of many an object.
        object.meta_mut().managed_fields = None;
        slim(object);
    });
    let told = events.reflect(writer).touched_objects().filter_map(|touched| async {
        if let Err(error) = &touched {
            tracing::warn!("a watch of {} failed: {error}", K::plural(&()));
        }
        touched.is_ok().then_some(touched)
    });
    (reader, told.boxed())
}

fn slim_set(set: &mut StatefulSet) {
    set.status = None;
    if let Some(spec) = &mut set.spec {
        spec.template.spec = None;
        spec.volume_claim_templates = None;
    }
}

fn slim_pod(pod: &mut Pod) {
    let spec = pod.spec.take().unwrap_or_default();
    let image = |container: Container| Container { image: container.image, ..Container::default() };
    pod.spec = Some(PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(image).collect(),
        ..PodSpec::default()
    });
}

fn slim_service(service: &mut Service) {
    (service.spec, service.status) = (None, None);
}

impl Cache {
    /// The objects of a cluster; nothing until every watch has told all there is.
    pub fn objects(&self, identity: &Identity) -> Option<Objects> {
        let Cache { clusters, sets, pods, services, claims, budgets, policies, slices } = self;
        let is_known = is_ready(sets) && is_ready(pods) && is_ready(services) && is_ready(claims);
        if !(is_known && is_ready(clusters) && is_ready(budgets) && is_ready(policies) && is_ready(slices)) {
            return None;
        }
        Some(Objects {
            cluster: named(clusters, identity, &identity.name),
            services: all(services, identity),
            budget: named(budgets, identity, &names::budget(&identity.name)),
            policy: named(policies, identity, &names::network_policy(&identity.name)),
            sets: all(sets, identity),
            pods: all(pods, identity),
            claims: all(claims, identity),
        })
    }

    /// The addresses behind the leader Service.
    pub fn leader_slice(&self, identity: &Identity) -> Option<Arc<EndpointSlice>> {
        named(&self.slices, identity, &names::leader_service(&identity.name))
    }

    /// Where the pod of this record is reached.
    pub fn endpoint(&self, identity: &Identity, record: &str) -> Option<LeaderEndpoint> {
        leader_endpoint(&*named(&self.pods, identity, &names::pod(record))?)
    }

    /// UIDs of all clusters.
    pub fn uids(&self) -> HashSet<String> {
        self.clusters.state().iter().filter_map(|cluster| cluster.uid()).collect()
    }
}

fn is_ready<K: Resource<DynamicType = ()> + Clone + 'static>(store: &Store<K>) -> bool {
    store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok())
}

/// As a list with `names::selector` has them.
fn all<K: Resource<DynamicType = ()> + Clone + 'static>(store: &Store<K>, identity: &Identity) -> Vec<Arc<K>> {
    store.state_filter(|object| {
        object.namespace().as_ref() == Some(&identity.namespace)
            && object.labels().get(names::LABEL_CLUSTER_UID) == Some(&identity.uid)
    })
}

fn named<K: Resource<DynamicType = ()> + Clone + 'static>(
    store: &Store<K>,
    identity: &Identity,
    name: &str,
) -> Option<Arc<K>> {
    store.get(&ObjectRef::new(name).within(&identity.namespace))
}

#[cfg(test)]
mod tests {
    use quorate_api::ConsistentClusterSpec;
    use quorate_plan::Intent;

    use super::super::objects;
    use super::super::observe::{Objects, member_record, read};
    use super::*;

    /// Whatever a reading asks for is still there afterwards.
    #[tokio::test]
    async fn one_that_cannot_be_read_keeps_nobody_from_the_others() {
        let object = |name: &str, mode: &str| {
            let object = serde_json::json!({
                "apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"tls": {"client": {"mode": mode}}},
            });
            serde_json::from_value::<DeserializeGuard<ConsistentCluster>>(object).expect("its name can be read")
        };
        let events = [watcher::Event::Init, watcher::Event::InitApply(object("odd", "OfTomorrow"))];
        let later = [watcher::Event::InitApply(object("orders", "Required")), watcher::Event::InitDone];
        let events = futures::stream::iter(events.into_iter().chain(later).map(Ok));
        let (store, touched) = kept(events.filter_map(readable), |_| ());
        let touched: Vec<_> = touched.map(|cluster| cluster.expect("a cluster").name_any()).collect().await;
        assert_eq!(touched, ["orders"]);
        assert_eq!(store.state().len(), 1);
    }

    #[test]
    fn a_slim_object_says_what_the_whole_one_says() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "orders-x-0", "uid": "p1", "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders-x", "uid": "s1", "controller": true},
                ],
                "annotations": {names::ANNOTATION_TEMPLATE_HASH: "abc", names::ANNOTATION_TLS: "Required/Required"},
            },
            "spec": {
                "nodeName": "n1", "containers": [{"name": "member", "image": "quorate:1", "args": ["--name=x"]}],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "member", "image": "quorate:1", "imageID": "", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                }],
            },
        }))
        .expect("a pod");
        let set: StatefulSet = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "orders-x", "uid": "s1", "resourceVersion": "7", "labels": {names::LABEL_INCARNATION: "1"},
                "annotations": {names::ANNOTATION_MEMBER_ID: "a1", names::ANNOTATION_START: "member"},
            },
            "spec": {
                "replicas": 1, "selector": {}, "serviceName": "x", "template": {
                    "metadata": {"annotations": {names::ANNOTATION_TLS: "Required/Preferred"}},
                    "spec": {"containers": [{"name": "member"}]},
                },
            },
        }))
        .expect("a set");
        let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        (cluster.metadata.namespace, cluster.metadata.uid) = (Some("shop".to_owned()), Some("2f1c".to_owned()));
        let Intent::Run(wanted) = Intent::of(&cluster) else { panic!("the default spec is valid") };
        let claim = objects::claim(&wanted, "orders-x", "s1");
        let reading = |set: &StatefulSet, pod: &Pod, service: &dyn Fn(&mut Service)| {
            let services = objects::services(&wanted.identity, "h", quorate_plan::Defaults::NEWEST).map(|mut one| {
                service(&mut one);
                Arc::new(one)
            });
            let objects = Objects {
                services: services.to_vec(),
                sets: vec![Arc::new(set.clone())],
                pods: vec![Arc::new(pod.clone())],
                claims: vec![Arc::new(claim.clone())],
                ..Objects::default()
            };
            let seen = read(objects, &[("n1".to_owned(), "z1".to_owned())].into(), &wanted.identity, None);
            (seen.observation, seen.admin_urls)
        };
        let whole = reading(&set, &pod, &|_| ());
        let (mut slim_of_set, mut slim_of_pod) = (set.clone(), pod.clone());
        slim_set(&mut slim_of_set);
        slim_pod(&mut slim_of_pod);
        assert_eq!(reading(&slim_of_set, &slim_of_pod, &slim_service), whole);
        let record = member_record(&slim_of_set, None);
        assert_eq!(whole.0.records[0].pod.as_ref().expect("its pod").image, "quorate:1");
        assert_eq!(whole.1["orders-x"], "https://10.0.0.7:2381");
        assert_eq!(record.speaks, member_record(&set, None).speaks);
        let whole = leader_endpoint(&pod).expect("it has an address");
        let slim = leader_endpoint(&slim_of_pod).expect("it has an address");
        assert_eq!((whole.ip, whole.pod, whole.node), (slim.ip, slim.pod, slim.node));
    }
}
