//! Reads one cluster's objects: live, since what authorises a step must not come from a watch that lags, or out of what watches
//! have told, to say how the cluster is.
//!
//! Objects are joined by UID, never by name alone: a namesake of an earlier cluster is nobody's.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{self as core, Node, PersistentVolumeClaim, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use quorate_api::{ConsistentCluster, FailureDomainKey, TlsMode, names, units};
use quorate_plan::{
    ClusterId, ConfigAt, Defaults, Deletion, Identity, Intent, MemberId, MemberRecord, Pod, PodPhase, Presence,
    Readiness, RetireReason, Retirement, Running, Spoken, StartAs, Termination, Volume,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::network;
use super::objects::{self, ADMIN_PORT, LeaderEndpoint};
use super::request::timed;
use crate::world::{EndingPod, Seen};

/// The retirement mark as it stands in the annotation.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetirementMark {
    pub member_id: Option<String>,
    pub incarnation: u64,
    pub term: u64,
    pub index: u64,
    pub reason: String,
}

/// A node is asked for its zone again after this long: one of the same name may be made anew elsewhere.
const ZONE_KEPT: Duration = Duration::from_secs(60);

/// Zones of nodes.
#[derive(Debug, Default)]
pub struct Zones(Mutex<HashMap<String, (Instant, Option<String>)>>);

/// One cluster's objects, or what bears their names.
#[derive(Debug, Default)]
pub struct Objects {
    pub cluster: Option<Arc<ConsistentCluster>>,
    pub services: Vec<Arc<Service>>,
    pub budget: Option<Arc<PodDisruptionBudget>>,
    pub policy: Option<Arc<NetworkPolicy>>,
    pub sets: Vec<Arc<StatefulSet>>,
    pub pods: Vec<Arc<core::Pod>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// A live reading. `home` is the namespace the operator runs in; who does not know it takes what the NetworkPolicy says.
pub async fn observe(client: &Client, zones: &Zones, intent: &Intent, home: Option<&str>) -> Seen {
    let identity = intent.identity();
    let (mut unread, mut unread_shared) = (Vec::new(), Vec::new());
    let objects = live(client, identity, &mut unread, &mut unread_shared).await;
    // What goes with the cluster anyhow keeps nobody from deleting it.
    if !matches!(intent, Intent::Delete(_)) {
        unread.append(&mut unread_shared);
    }
    let zones = zones.of(client, &objects.pods).await;
    let mut seen = read(objects, &zones, identity, home);
    seen.observation.unread = unread;
    seen
}

/// A reading out of what watches have told; nothing until they have told everything.
pub(super) async fn glance(
    cache: &Cache,
    client: &Client,
    zones: &Zones,
    intent: &Intent,
    home: Option<&str>,
) -> Option<Seen> {
    let identity = intent.identity();
    let objects = cache.objects(identity)?;
    let zones = zones.of(client, &objects.pods).await;
    Some(read(objects, &zones, identity, home))
}

/// What could not be read is noted, apart where it is nothing of a member's.
async fn live(client: &Client, identity: &Identity, unread: &mut Vec<String>, shared: &mut Vec<String>) -> Objects {
    let (budget_name, policy_name) = (names::budget(&identity.name), names::network_policy(&identity.name));
    let (cluster, services, budget, policy, sets, pods, claims) = tokio::join!(
        object::<ConsistentCluster>(client, identity, &identity.name),
        list::<Service>(client, identity),
        object::<PodDisruptionBudget>(client, identity, &budget_name),
        object::<NetworkPolicy>(client, identity, &policy_name),
        list::<StatefulSet>(client, identity),
        list::<core::Pod>(client, identity),
        list::<PersistentVolumeClaim>(client, identity),
    );
    Objects {
        cluster: cluster.unwrap_or_else(|e| unreadable(unread, "the ConsistentCluster", &e)),
        sets: sets.unwrap_or_else(|e| unreadable(unread, "member records", &e)),
        pods: pods.unwrap_or_else(|e| unreadable(unread, "pods", &e)),
        claims: claims.unwrap_or_else(|e| unreadable(unread, "volumes", &e)),
        services: services.unwrap_or_else(|e| unreadable(shared, "Services", &e)),
        budget: budget.unwrap_or_else(|e| unreadable(shared, "the PodDisruptionBudget", &e)),
        policy: policy.unwrap_or_else(|e| unreadable(shared, "the NetworkPolicy", &e)),
    }
}

/// What the objects say, however they were come by. What is somebody else's is not there.
pub(super) fn read(
    objects: Objects,
    zones: &BTreeMap<String, String>,
    identity: &Identity,
    home: Option<&str>,
) -> Seen {
    let mut seen = Seen::default();
    let Objects { cluster, services, budget, policy, sets, pods, claims } = objects;
    let (budget, policy) = (own(budget, identity), own(policy, identity));
    let cluster = cluster.filter(|c| c.metadata.uid.as_deref() == Some(&identity.uid));
    let finalizers = cluster.iter().flat_map(|c| c.metadata.finalizers.iter().flatten());
    if finalizers.into_iter().any(|f| f == names::FINALIZER_CLUSTER) {
        seen.observation.objects.finalizer = Presence::Present;
    }
    for set in sets.iter().filter(|s| is_of_incarnation(&s.metadata, identity)) {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let pod = pods.iter().find(|p| is_controlled_by(&p.metadata, uid));
        let record = member_record(set, pod.map(|p| observed_pod(p, zones)));
        if let Some(ip) = pod.and_then(|p| pod_ip(p)) {
            let spoken = record.pod.as_ref().map_or(TlsMode::Disabled, |p| p.speaks.admin());
            let scheme = if spoken == TlsMode::Disabled { "http" } else { "https" };
            seen.admin_urls.insert(record.name.clone(), format!("{scheme}://{}:{ADMIN_PORT}", bracketed(ip)));
        }
        seen.observation.records.push(record);
        seen.ending.extend(pod.and_then(|p| ending(p)));
    }
    shared_objects(&services, budget.as_deref(), policy.as_deref(), identity, &mut seen);
    let objects = &mut seen.observation.objects;
    objects.home = home.map(str::to_owned).or_else(|| network::home(policy.as_deref()?)).unwrap_or_default();
    objects.policy_hash =
        policy.and_then(|p| annotation(&p.metadata, names::ANNOTATION_OBJECTS_HASH).map(str::to_owned));
    seen.observation.volumes =
        claims.iter().filter(|c| is_of_incarnation(&c.metadata, identity)).filter_map(|c| volume(c)).collect();
    seen
}

fn unreadable<T: Default>(unread: &mut Vec<String>, what: &str, error: &kube::Error) -> T {
    unread.push(format!("{what}: {error}"));
    T::default()
}

async fn list<K>(client: &Client, identity: &Identity) -> Result<Vec<Arc<K>>, kube::Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(client.clone(), &identity.namespace);
    let ours = ListParams::default().labels(&names::selector(&identity.uid));
    Ok(timed(api.list(&ours)).await?.items.into_iter().map(Arc::new).collect())
}

async fn object<K>(client: &Client, identity: &Identity, name: &str) -> Result<Option<Arc<K>>, kube::Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(client.clone(), &identity.namespace);
    Ok(timed(api.get_opt(name)).await?.map(Arc::new))
}

/// The object if the cluster owns it.
fn own<K: Resource>(object: Option<Arc<K>>, identity: &Identity) -> Option<Arc<K>> {
    object.filter(|object| is_controlled_by(object.meta(), &identity.uid))
}

/// Reads the Services, the budget and what the cluster was founded under. What is missing or made by somebody else is not there,
/// and is applied again.
fn shared_objects(
    services: &[Arc<Service>],
    budget: Option<&PodDisruptionBudget>,
    policy: Option<&NetworkPolicy>,
    identity: &Identity,
    seen: &mut Seen,
) {
    let own = |name: &str, owner: &str| {
        services.iter().find(|s| s.metadata.name.as_deref() == Some(name) && is_controlled_by(&s.metadata, owner))
    };
    let cluster = &identity.name;
    let peer = own(&names::peer_service(cluster), &identity.uid);
    let shared = [
        peer,
        own(&names::client_service(cluster), &identity.uid),
        own(&names::leader_service(cluster), &identity.uid),
    ];
    let stamps = shared.map(|s| annotation(&s?.metadata, names::ANNOTATION_OBJECTS_HASH));
    let staying = || seen.observation.records.iter().filter(|r| r.deletion == Deletion::No);
    let complete = staying().all(|record| own(&record.name, &record.uid).is_some());
    let hash = stamps[0].filter(|first| complete && stamps.iter().all(|s| *s == Some(first))).map(str::to_owned);
    let objects = &mut seen.observation.objects;
    let founded = |meta: &ObjectMeta| Defaults::parse(annotation(meta, names::ANNOTATION_DEFAULTS));
    let (said, by_policy) = (peer.map(|s| founded(&s.metadata)), policy.map(|p| founded(&p.metadata)));
    // Should somebody delete the Service that says it, or its mark, the policy still knows: nobody loses TLS by that.
    objects.defaults = said.max(by_policy);
    objects.applied_hash = hash.filter(|_| said == objects.defaults);
    let mark = peer.and_then(|s| annotation(&s.metadata, names::ANNOTATION_BOOTSTRAPPED));
    objects.bootstrapped = mark.and_then(|text| u64::from_str_radix(text, 16).ok()).map(ClusterId);
    objects.budget_min_available = budget.and_then(|b| match b.spec.as_ref()?.min_available.as_ref()? {
        IntOrString::Int(value) => u32::try_from(*value).ok(),
        IntOrString::String(_) => None,
    });
}

fn is_of_incarnation(meta: &ObjectMeta, identity: &Identity) -> bool {
    let label = meta.labels.as_ref().and_then(|l| l.get(names::LABEL_INCARNATION));
    label.is_some_and(|text| *text == identity.incarnation.to_string())
}

fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|o| o.controller == Some(true) && o.uid == uid)
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn millis(time: Option<&Time>) -> u64 {
    time.map_or(0, |t| u64::try_from(t.0.as_millisecond()).unwrap_or_default())
}

fn deletion(meta: &ObjectMeta) -> Deletion {
    if meta.deletion_timestamp.is_some() { Deletion::Requested } else { Deletion::No }
}

/// Reads a record back from its StatefulSet.
pub fn member_record(set: &StatefulSet, pod: Option<Pod>) -> MemberRecord {
    let meta = &set.metadata;
    let text = |key| annotation(meta, key);
    let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let template = set.spec.as_ref().map(|s| &s.template);
    MemberRecord {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        member_id: text(names::ANNOTATION_MEMBER_ID).and_then(parse_id),
        start: match text(names::ANNOTATION_START) {
            Some("seed") => Some(StartAs::Seed),
            Some("member") => Some(StartAs::Member),
            _ => None,
        },
        template_hash: text(names::ANNOTATION_TEMPLATE_HASH).unwrap_or_default().to_owned(),
        running: if replicas == 0 { Running::Stopped } else { Running::Started },
        retirement: text(names::ANNOTATION_RETIRING).and_then(retirement),
        deletion: deletion(meta),
        created_ms: millis(meta.creation_timestamp.as_ref()),
        speaks: template.and_then(|t| t.metadata.as_ref()).map_or_else(Spoken::default, spoken),
        pod,
    }
}

fn parse_id(text: &str) -> Option<MemberId> {
    u64::from_str_radix(text, 16).ok().filter(|id| *id != 0).map(MemberId)
}

fn retirement(text: &str) -> Option<Retirement> {
    let RetirementMark { member_id, incarnation, term, index, reason } = serde_json::from_str(text).ok()?;
    Some(Retirement {
        member_id: member_id.as_deref().and_then(parse_id),
        config_at: ConfigAt { incarnation, term, index },
        reason: RetireReason::parse(&reason)?,
    })
}

fn observed_pod(pod: &core::Pod, zones: &BTreeMap<String, String>) -> Pod {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let node = spec.and_then(|s| s.node_name.clone());
    Pod {
        uid: meta.uid.clone().unwrap_or_default(),
        phase: match status.and_then(|s| s.phase.as_deref()) {
            Some("Running") => PodPhase::Running,
            Some("Succeeded" | "Failed") => PodPhase::Ended,
            Some("Pending") | None => PodPhase::Pending,
            Some(_) => PodPhase::Unknown,
        },
        readiness: if is_ready(pod) { Readiness::Ready } else { Readiness::NotReady },
        termination: match deletion(meta) {
            Deletion::Requested => Termination::Terminating,
            Deletion::No => Termination::No,
        },
        waiting_reason: waiting_reason(pod),
        template_hash: annotation(meta, names::ANNOTATION_TEMPLATE_HASH).unwrap_or_default().to_owned(),
        image: spec.and_then(|s| s.containers.first()?.image.clone()).unwrap_or_default(),
        zone: node.as_ref().and_then(|n| zones.get(n).cloned()),
        node,
        created_ms: millis(meta.creation_timestamp.as_ref()),
        speaks: spoken(meta),
    }
}

/// A pod that ends in order and that the Service of its member still selects. One that is not ready may be deleted because its node
/// does not answer, and go on there for long: other members must find it.
fn ending(pod: &core::Pod) -> Option<EndingPod> {
    let meta = &pod.metadata;
    let is_selected = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(names::LABEL_INCARNATION));
    if !is_selected || deletion(meta) == Deletion::No || !is_ready(pod) {
        return None;
    }
    Some(EndingPod { name: meta.name.clone()?, uid: meta.uid.clone()? })
}

fn spoken(meta: &ObjectMeta) -> Spoken {
    objects::read_spoken(annotation(meta, names::ANNOTATION_TLS))
}

fn is_ready(pod: &core::Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Reasons that pass by themselves; the pod is being made.
const PASSING: [&str; 3] = ["ContainerCreating", "PodInitializing", "Completed"];

fn waiting_reason(pod: &core::Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let container = status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.waiting.as_ref());
    let reason = container.and_then(|w| w.reason.clone()).filter(|r| !PASSING.contains(&r.as_str()));
    let unplaced = || {
        let placed = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        placed.reason.clone()
    };
    reason.or_else(unplaced)
}

pub(super) fn leader_endpoint(pod: &core::Pod) -> Option<LeaderEndpoint> {
    let (ip, name) = (pod_ip(pod)?.to_owned(), pod.metadata.name.clone()?);
    Some(LeaderEndpoint { ip, pod: name, node: pod.spec.as_ref().and_then(|s| s.node_name.clone()) })
}

fn pod_ip(pod: &core::Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

fn volume(claim: &PersistentVolumeClaim) -> Option<Volume> {
    let meta = &claim.metadata;
    let size = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage");
    Some(Volume {
        record: meta.labels.as_ref()?.get(names::LABEL_MEMBER)?.clone(),
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        resource_version: meta.resource_version.clone()?,
        record_uid: annotation(meta, names::ANNOTATION_RECORD_UID).unwrap_or_default().to_owned(),
        size_bytes: size.and_then(|q| units::size_bytes(&q.0)).unwrap_or_default(),
        class: claim.spec.as_ref()?.storage_class_name.clone(),
        deletion: deletion(meta),
    })
}

impl Zones {
    /// Zones of the nodes these pods run on. A node that may not be read has none.
    async fn of(&self, client: &Client, pods: &[Arc<core::Pod>]) -> BTreeMap<String, String> {
        let nodes = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone());
        let mut found = BTreeMap::new();
        for node in nodes {
            if let Some(zone) = self.zone(client, &node).await {
                found.insert(node, zone);
            }
        }
        found
    }

    async fn zone(&self, client: &Client, node: &str) -> Option<String> {
        let known = self.0.lock().expect("no panic happens while zones are looked up").get(node).cloned();
        if let Some((_, zone)) = known.as_ref().filter(|(read, _)| read.elapsed() < ZONE_KEPT) {
            return zone.clone();
        }
        let zone = match timed(Api::<Node>::all(client.clone()).get_opt(node)).await {
            // Its label may still come.
            Ok(found) => Some(found.and_then(|n| n.metadata.labels?.remove(FailureDomainKey::Zone.as_str()))?),
            // Namespaced operators may not read nodes. Others ask again.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            Err(_) => return known.and_then(|(_, zone)| zone),
        };
        let mut zones = self.0.lock().expect("no panic happens while zones are looked up");
        zones.retain(|_, (read, _)| read.elapsed() < 2 * ZONE_KEPT);
        zones.insert(node.to_owned(), (Instant::now(), zone.clone()));
        zone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    /// What is read of the Services and the NetworkPolicy that were rendered under these defaults.
    fn read(services: Option<Defaults>, policy: Option<Defaults>) -> (Option<Defaults>, Option<String>) {
        let identity = testing::identity();
        let services =
            services.map(|of| objects::services(&identity, "h", of).map(Arc::new).to_vec()).unwrap_or_default();
        let policy = policy.map(|of| NetworkPolicy {
            metadata: ObjectMeta {
                annotations: of.number().map(|n| [(names::ANNOTATION_DEFAULTS.to_owned(), n.to_owned())].into()),
                ..objects::owned_meta(&identity, "orders".to_owned())
            },
            spec: None,
        });
        let mut seen = Seen::default();
        shared_objects(&services, None, policy.as_ref(), &identity, &mut seen);
        (seen.observation.objects.defaults, seen.observation.objects.applied_hash)
    }

    #[test]
    fn clients_are_kept_from_a_pod_that_ends_in_order() {
        let pod = |is_ready: bool, is_ending: bool, labels: &[&str]| core::Pod {
            metadata: ObjectMeta {
                name: Some("orders-x-0".to_owned()),
                uid: Some("p1".to_owned()),
                labels: Some(labels.iter().map(|label| ((*label).to_owned(), "1".to_owned())).collect()),
                deletion_timestamp: is_ending.then_some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            status: Some(core::PodStatus {
                conditions: Some(vec![core::PodCondition {
                    type_: "Ready".to_owned(),
                    status: if is_ready { "True" } else { "False" }.to_owned(),
                    ..core::PodCondition::default()
                }]),
                ..core::PodStatus::default()
            }),
            ..core::Pod::default()
        };
        let named = EndingPod { name: "orders-x-0".to_owned(), uid: "p1".to_owned() };
        assert_eq!(ending(&pod(true, true, &[names::LABEL_INCARNATION, names::LABEL_MEMBER])), Some(named));
        assert_eq!(ending(&pod(true, true, &[names::LABEL_MEMBER])), None, "it was done");
        assert_eq!(ending(&pod(true, false, &[names::LABEL_INCARNATION])), None, "it stays");
        assert_eq!(ending(&pod(false, true, &[names::LABEL_INCARNATION])), None, "its node may be cut off");
    }

    #[test]
    fn what_a_cluster_was_founded_under_is_read_and_not_lost_with_one_mark() {
        use Defaults::{Open, Reserved, Secured};
        let (there, again) = (Some("h".to_owned()), None);
        for (services, policy, founded, applied) in [
            (None, None, None, &again),
            // Of an operator that knew no marks: nothing is written, nobody is changed.
            (Some(Open), None, Some(Open), &there),
            // The same, and its spec asks for a policy.
            (Some(Open), Some(Open), Some(Open), &there),
            (Some(Secured), Some(Secured), Some(Secured), &there),
            (Some(Secured), None, Some(Secured), &there),
            (Some(Reserved), Some(Reserved), Some(Reserved), &there),
            // The Services, or the mark on one of them, were taken away by hand.
            (None, Some(Secured), Some(Secured), &again),
            (Some(Open), Some(Secured), Some(Secured), &again),
        ] {
            let found = read(services, policy);
            assert_eq!((found.0, &found.1), (founded, applied), "{services:?} {policy:?}");
        }
    }
}
