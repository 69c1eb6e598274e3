//! Carries out one step against the API server, with the preconditions it was decided on.
//!
//! Records are changed by reading them live, comparing UID and resource version with the step's, and writing the whole object
//! back under that version. Objects that only we write (Services, the budget) are applied server-side.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use quorate_api::{ConsistentCluster, names};
use quorate_plan::{
    ClusterId, ConfigAt, Deletion, Eviction, Identity, Intent, MemberId, RecordFor, RecordRef, RetireReason, StartAs,
    Step, ValidatedCluster, VolumeRef,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::KubernetesWorld;
use super::network;
use super::objects::{self, RecordFacts};
use super::observe::RetirementMark;
use super::request::{MANAGER, timed, verdict};
use crate::world::{ActError, Seen};

/// The mark of the bootstrap has a manager of its own: applying the Services anew must not take it away.
const MANAGER_BOOTSTRAP: &str = "quorate-operator-bootstrap";
/// The budget's controller may lag behind; a refusal that lasts is overruled, since every attempt was planned with margin.
const EVICTIONS_REFUSED_MAX: u32 = 10;

type Done = Result<(), ActError>;

impl KubernetesWorld {
    pub(super) async fn take(&self, intent: &Intent, step: &Step, seen: &Seen) -> Done {
        let act = Act { client: &self.client, intent, identity: intent.identity(), seen };
        match step {
            Step::AddFinalizer => act.edit_finalizer(|list| list.push(names::FINALIZER_CLUSTER.to_owned())).await,
            Step::Finish => act.edit_finalizer(|list| list.retain(|f| f != names::FINALIZER_CLUSTER)).await,
            Step::ApplyObjects { hash, policy } => act.apply_objects(hash, policy.as_deref()).await,
            Step::SetBudget { min_available } => act.set_budget(*min_available).await,
            Step::RecordBootstrap { cluster_id } => act.record_bootstrap(*cluster_id).await,
            Step::CreateMember { name, template_hash, purpose } => {
                act.create_member(name, template_hash, *purpose).await
            }
            Step::RecordMemberId { record, member_id } => {
                act.edit_record(record, |set| annotate_id(set, *member_id)).await
            }
            Step::StartMember { record, start, member_id: _, template_hash } => {
                act.start_member(record, *start, template_hash).await
            }
            Step::SealSeed { record, member_id, template_hash } => {
                act.seal_seed(record, *member_id, template_hash).await
            }
            Step::ApplyTemplate { record, template_hash } => act.apply_template(record, template_hash).await,
            Step::MarkRetiring { record, member_id, config_at, reason } => {
                act.mark_retiring(record, *member_id, *config_at, *reason).await
            }
            Step::StopMember { record } => act.edit_record(record, |set| set_replicas(set, 0)).await,
            Step::DropRecord { record } => act.drop_record(record).await,
            Step::RestartMember { record, pod_uid, evict } => {
                act.restart(record, pod_uid, *evict, |uid| self.eviction_refused(uid)).await
            }
            Step::DeletePod { record, pod_uid } => act.delete_pod(record, pod_uid).await,
            Step::CreateVolume { record } => act.create_volume(record).await,
            Step::AdoptVolume { record, volume } => {
                let stamp = json!({"metadata": {"annotations": {names::ANNOTATION_RECORD_UID: record.uid}}});
                act.patch_volume(volume, stamp).await
            }
            Step::GrowVolume { volume, size } => {
                let grown = json!({"spec": {"resources": {"requests": {"storage": size}}}});
                act.patch_volume(volume, grown).await.map_err(|error| match error {
                    // The API server speaks of the claim, which nobody edited.
                    ActError::Failed(why) => ActError::Failed(format!(
                        "spec.storage.size is {size}: {why}; if the storage class cannot grow its volumes, set \
                         spec.storage.changePolicy to Replace and the size back"
                    )),
                    news @ ActError::News(_) => news,
                })
            }
            Step::ReleaseVolume { volume } => {
                let labels = [names::LABEL_CLUSTER_UID, names::LABEL_MANAGED_BY].map(|l| (l.to_owned(), Value::Null));
                let labels: serde_json::Map<String, Value> = labels.into_iter().collect();
                act.patch_volume(volume, json!({"metadata": {"labels": labels, "ownerReferences": null}})).await
            }
            Step::DeleteVolume { volume } => act.delete_volume(volume).await,
            Step::AddLearner { .. }
            | Step::Promote { .. }
            | Step::RemoveMember { .. }
            | Step::SwapVoter { .. }
            | Step::TransferLeader { .. }
            | Step::Activate { .. } => Err(ActError::Failed(format!("{} is a member's to do", step.name()))),
        }
    }

    fn eviction_refused(&self, pod_uid: &str) -> u32 {
        let mut refused = self.refused.lock().expect("no panic happens while refusals are counted");
        // Pods come and go; what is old is of no use.
        if refused.len() > 1_000 {
            refused.clear();
        }
        let count = refused.entry(pod_uid.to_owned()).or_default();
        *count += 1;
        *count
    }
}

struct Act<'a> {
    client: &'a Client,
    intent: &'a Intent,
    identity: &'a Identity,
    seen: &'a Seen,
}

impl Act<'_> {
    fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.identity.namespace)
    }

    /// Steps that render something are planned from a valid spec only.
    fn cluster(&self) -> Result<&ValidatedCluster, ActError> {
        match self.intent {
            Intent::Run(cluster) => Ok(cluster),
            Intent::Delete(_) | Intent::Refused(_) => {
                Err(ActError::Failed("there is no valid spec to render".to_owned()))
            }
        }
    }

    /// Members that may be asked for the configuration.
    fn others(&self) -> Vec<String> {
        let members = self.seen.observation.records.iter().filter(|r| r.member_id.is_some() && r.retirement.is_none());
        members.map(|r| r.name.clone()).collect()
    }

    async fn edit_finalizer(&self, edit: impl FnOnce(&mut Vec<String>)) -> Done {
        let api = self.api::<ConsistentCluster>();
        let what = "the ConsistentCluster";
        let live = timed(api.get(&self.identity.name)).await.map_err(|e| verdict(what, &e))?;
        if live.metadata.uid.as_deref() != Some(&self.identity.uid) {
            return Err(ActError::News(format!("{what} is another one of the same name")));
        }
        let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        edit(&mut finalizers);
        let edited = json!({"metadata": {
            "uid": self.identity.uid, "resourceVersion": live.metadata.resource_version, "finalizers": finalizers,
        }});
        patch(&api, &self.identity.name, by(MANAGER), Patch::Merge(&edited)).await.map_err(|e| verdict(what, &e))
    }

    async fn apply_objects(&self, hash: &str, policy: Option<&str>) -> Done {
        self.apply_policy(policy).await?;
        let api = self.api::<Service>();
        let records = self.seen.observation.records.iter().filter(|r| r.deletion == Deletion::No);
        let of_members = records.map(|r| (objects::member_service(self.identity, &r.name, &r.uid), r.uid.as_str()));
        let shared =
            objects::services(self.identity, hash, self.cluster()?.defaults).map(|s| (s, self.identity.uid.as_str()));
        for (service, owner) in of_members.chain(shared) {
            let name = service.name_any();
            self.refuse_foreign(&api, &name, owner).await?;
            let applied = patch(&api, &name, by(MANAGER).force(), Patch::Apply(&service)).await;
            applied.map_err(|e| verdict(&format!("Service {name}"), &e))?;
        }
        Ok(())
    }

    /// Before the Services: nobody finds a new member before it is known who may reach it.
    async fn apply_policy(&self, hash: Option<&str>) -> Done {
        let api = self.api::<NetworkPolicy>();
        let name = names::network_policy(&self.identity.name);
        let what = format!("NetworkPolicy {name}");
        let Some(hash) = hash else {
            let Some(live) = timed(api.get_opt(&name)).await.map_err(|e| verdict(&what, &e))? else { return Ok(()) };
            // One that somebody else made is theirs.
            if live.owner_references().iter().any(|o| o.uid == self.identity.uid) {
                return delete(&api, &name, live.uid().unwrap_or_default(), live.resource_version(), &what).await;
            }
            return Ok(());
        };
        self.refuse_foreign(&api, &name, &self.identity.uid).await?;
        let policy = network::policy(self.cluster()?, &self.seen.observation.objects.home, hash);
        patch(&api, &name, by(MANAGER).force(), Patch::Apply(&policy)).await.map_err(|e| verdict(&what, &e))
    }

    /// An object that somebody else made under our name is left alone, and said so.
    async fn refuse_foreign<K>(&self, api: &Api<K>, name: &str, owner: &str) -> Done
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let what = format!("{kind} {name}");
        let Some(live) = timed(api.get_opt(name)).await.map_err(|e| verdict(&what, &e))? else { return Ok(()) };
        let owned = live.meta().owner_references.iter().flatten().any(|o| o.uid == owner);
        // Its record may have been taken away from over it; the label says whose it is.
        let label = live.labels().get(names::LABEL_CLUSTER_UID);
        if owned || label == Some(&self.identity.uid) {
            return Ok(());
        }
        Err(ActError::Failed(format!(
            "{what} exists and is not of this cluster; delete it, or name the cluster otherwise"
        )))
    }

    async fn set_budget(&self, min_available: Option<u32>) -> Done {
        let api = self.api::<PodDisruptionBudget>();
        let name = names::budget(&self.identity.name);
        self.refuse_foreign(&api, &name, &self.identity.uid).await?;
        let what = format!("PodDisruptionBudget {name}");
        match min_available {
            Some(count) => {
                let budget = objects::budget(self.identity, count);
                patch(&api, &name, by(MANAGER).force(), Patch::Apply(&budget)).await.map_err(|e| verdict(&what, &e))
            }
            None => {
                let Some(live) = timed(api.get_opt(&name)).await.map_err(|e| verdict(&what, &e))? else {
                    return Ok(());
                };
                delete(&api, &name, live.uid().unwrap_or_default(), live.resource_version(), &what).await
            }
        }
    }

    async fn record_bootstrap(&self, cluster_id: ClusterId) -> Done {
        let api = self.api::<Service>();
        let name = names::peer_service(&self.identity.name);
        let what = format!("Service {name}");
        let live = timed(api.get(&name)).await.map_err(|e| verdict(&what, &e))?;
        if !live.metadata.owner_references.iter().flatten().any(|o| o.uid == self.identity.uid) {
            return Err(ActError::News(format!("{what} is not of this cluster")));
        }
        let marked = json!({"metadata": {
            "uid": live.metadata.uid, "resourceVersion": live.metadata.resource_version,
            "annotations": {names::ANNOTATION_BOOTSTRAPPED: cluster_id.to_string()},
        }});
        patch(&api, &name, by(MANAGER_BOOTSTRAP), Patch::Merge(&marked)).await.map_err(|e| verdict(&what, &e))
    }

    async fn create_member(&self, name: &str, template_hash: &str, purpose: RecordFor) -> Done {
        let (start, member_id) = match purpose {
            RecordFor::Seed | RecordFor::Joiner => (None, None),
            RecordFor::Returning(id) => (Some(StartAs::Member), Some(id)),
        };
        let others = self.others();
        let facts = RecordFacts { name, start, template_hash, is_voter: true, others: &others };
        let mut set = objects::stateful_set(self.cluster()?, facts);
        if let Some(id) = member_id {
            annotate_id(&mut set, id);
            annotate_start(&mut set, StartAs::Member);
        }
        create(&self.api(), &set).await.map_err(|e| verdict(&format!("StatefulSet {name}"), &e))
    }

    /// Changes a record if it still is the very one that was read.
    async fn edit_record(&self, expect: &RecordRef, edit: impl FnOnce(&mut StatefulSet)) -> Done {
        let api = self.api::<StatefulSet>();
        let what = format!("StatefulSet {}", expect.name);
        let mut set = self.live_record(&api, expect).await?;
        edit(&mut set);
        timed(api.replace(&expect.name, &posted(), &set)).await.map(drop).map_err(|e| verdict(&what, &e))
    }

    async fn live_record(&self, api: &Api<StatefulSet>, expect: &RecordRef) -> Result<StatefulSet, ActError> {
        let what = format!("StatefulSet {}", expect.name);
        let set = timed(api.get(&expect.name)).await.map_err(|e| verdict(&what, &e))?;
        let same = set.metadata.uid.as_deref() == Some(&expect.uid)
            && set.metadata.resource_version.as_deref() == Some(&expect.resource_version);
        if same { Ok(set) } else { Err(ActError::News(format!("{what} has changed since it was read"))) }
    }

    async fn start_member(&self, record: &RecordRef, start: StartAs, template_hash: &str) -> Done {
        let cluster = self.cluster()?;
        let others = self.others();
        self.edit_record(record, |set| {
            annotate_start(set, start);
            render(set, cluster, Some(start), template_hash, &others);
            set_replicas(set, 1);
        })
        .await
    }

    async fn seal_seed(&self, record: &RecordRef, member_id: MemberId, template_hash: &str) -> Done {
        let cluster = self.cluster()?;
        let others = self.others();
        self.edit_record(record, |set| {
            annotate_start(set, StartAs::Member);
            annotate_id(set, member_id);
            render(set, cluster, Some(StartAs::Member), template_hash, &others);
        })
        .await
    }

    async fn apply_template(&self, record: &RecordRef, template_hash: &str) -> Done {
        let cluster = self.cluster()?;
        let others = self.others();
        let known = self.seen.observation.records.iter().find(|r| r.uid == record.uid);
        let start = known.and_then(|r| r.start);
        self.edit_record(record, |set| render(set, cluster, start, template_hash, &others)).await
    }

    /// The pod's label first: a crash between the two leaves the budget too strict, never too lax.
    async fn mark_retiring(
        &self,
        record: &RecordRef,
        member_id: Option<MemberId>,
        config_at: ConfigAt,
        reason: RetireReason,
    ) -> Done {
        // Whoever has changed the record since would have the second writing refused, and the pod without its label.
        self.live_record(&self.api::<StatefulSet>(), record).await?;
        let pods = self.api::<Pod>();
        let known = self.seen.observation.records.iter().find(|r| r.uid == record.uid);
        if let Some(pod) = known.and_then(|r| r.pod.as_ref()) {
            let name = names::pod(&record.name);
            let unlabel = json!({"metadata": {"uid": pod.uid, "labels": {names::LABEL_VOTER: null}}});
            match patch(&pods, &name, by(MANAGER), Patch::Merge(&unlabel)).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(verdict(&format!("pod {name}"), &error)),
            }
        }
        let mark = RetirementMark {
            member_id: member_id.map(|id| id.to_string()),
            incarnation: config_at.incarnation,
            term: config_at.term,
            index: config_at.index,
            reason: reason.as_str().to_owned(),
        };
        let mark = serde_json::to_string(&mark).expect("plain data has a JSON form");
        self.edit_record(record, |set| {
            annotate(set, names::ANNOTATION_RETIRING, mark);
            set.metadata.labels.get_or_insert_default().remove(names::LABEL_VOTER);
            if let Some(meta) = set.spec.as_mut().and_then(|s| s.template.metadata.as_mut()) {
                meta.labels.get_or_insert_default().remove(names::LABEL_VOTER);
            }
        })
        .await
    }

    async fn drop_record(&self, record: &RecordRef) -> Done {
        let api = self.api::<StatefulSet>();
        let what = format!("StatefulSet {}", record.name);
        let mut set = self.live_record(&api, record).await?;
        set.metadata.finalizers.get_or_insert_default().retain(|f| f != names::FINALIZER_LEAVE);
        let was_deleted = set.metadata.deletion_timestamp.is_some();
        let freed = timed(api.replace(&record.name, &posted(), &set)).await.map_err(|e| verdict(&what, &e))?;
        if was_deleted {
            return Ok(());
        }
        delete(&api, &record.name, record.uid.clone(), freed.resource_version(), &what).await
    }

    async fn restart(
        &self,
        record: &RecordRef,
        pod_uid: &str,
        evict: Eviction,
        refused: impl FnOnce(&str) -> u32,
    ) -> Done {
        match evict {
            Eviction::Delete => self.delete_pod(record, pod_uid).await,
            Eviction::Evict => {
                let name = names::pod(&record.name);
                let delete_options = Some(DeleteParams { preconditions: uid_only(pod_uid), ..DeleteParams::default() });
                let params = EvictParams { delete_options, post_options: posted() };
                match timed(self.api::<Pod>().evict(&name, &params)).await {
                    Ok(_) => Ok(()),
                    Err(kube::Error::Api(status)) if status.code == 429 => {
                        if refused(pod_uid) > EVICTIONS_REFUSED_MAX {
                            return self.delete_pod(record, pod_uid).await;
                        }
                        Err(ActError::Failed(format!("eviction of pod {name} is refused: {}", status.message)))
                    }
                    Err(error) => Err(verdict(&format!("eviction of pod {name}"), &error)),
                }
            }
        }
    }

    async fn delete_pod(&self, record: &RecordRef, pod_uid: &str) -> Done {
        let name = names::pod(&record.name);
        let params = DeleteParams { preconditions: uid_only(pod_uid), ..DeleteParams::default() };
        timed(self.api::<Pod>().delete(&name, &params)).await.map(drop).map_err(|e| verdict(&format!("pod {name}"), &e))
    }

    async fn create_volume(&self, record: &RecordRef) -> Done {
        let claim = objects::claim(self.cluster()?, &record.name, &record.uid);
        create(&self.api(), &claim).await.map_err(|e| verdict(&format!("volume of {}", record.name), &e))
    }

    async fn patch_volume(&self, volume: &VolumeRef, mut change: Value) -> Done {
        change["metadata"]["uid"] = json!(volume.uid);
        change["metadata"]["resourceVersion"] = json!(volume.resource_version);
        let api = self.api::<PersistentVolumeClaim>();
        patch(&api, &volume.name, by(MANAGER), Patch::Merge(&change))
            .await
            .map_err(|e| verdict(&format!("volume {}", volume.name), &e))
    }

    async fn delete_volume(&self, volume: &VolumeRef) -> Done {
        let api = self.api::<PersistentVolumeClaim>();
        let what = format!("volume {}", volume.name);
        delete(&api, &volume.name, volume.uid.clone(), Some(volume.resource_version.clone()), &what).await
    }
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + Serialize + DeserializeOwned + Debug,
{
    timed(api.create(&posted(), object)).await.map(drop)
}

async fn patch<K, P>(api: &Api<K>, name: &str, params: PatchParams, patch: Patch<P>) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
    P: Serialize + Debug,
{
    timed(api.patch(name, &params, &patch)).await.map(drop)
}

/// Deletes this object and no namesake.
async fn delete<K>(api: &Api<K>, name: &str, uid: String, resource_version: Option<String>, what: &str) -> Done
where
    K: Clone + DeserializeOwned + Debug,
{
    let preconditions = Some(Preconditions { uid: Some(uid), resource_version });
    let params = DeleteParams { preconditions, ..DeleteParams::background() };
    timed(api.delete(name, &params)).await.map(drop).map_err(|e| verdict(what, &e))
}

fn uid_only(uid: &str) -> Option<Preconditions> {
    Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

pub(super) fn by(manager: &str) -> PatchParams {
    PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() }
}

fn posted() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn annotate(set: &mut StatefulSet, key: &str, value: String) {
    set.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value);
}

fn annotate_id(set: &mut StatefulSet, id: MemberId) {
    annotate(set, names::ANNOTATION_MEMBER_ID, id.to_string());
}

fn annotate_start(set: &mut StatefulSet, start: StartAs) {
    let word = match start {
        StartAs::Seed => "seed",
        StartAs::Member => "member",
    };
    annotate(set, names::ANNOTATION_START, word.to_owned());
}

fn set_replicas(set: &mut StatefulSet, replicas: i32) {
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(replicas);
    }
}

/// Renders the template of a record anew; a record that retires keeps its pods out of the budget.
fn render(
    set: &mut StatefulSet,
    cluster: &ValidatedCluster,
    start: Option<StartAs>,
    template_hash: &str,
    others: &[String],
) {
    let name = set.name_any();
    let is_voter = !set.annotations().contains_key(names::ANNOTATION_RETIRING);
    let facts = RecordFacts { name: &name, start, template_hash, is_voter, others };
    let template = objects::pod_template(cluster, facts);
    annotate(set, names::ANNOTATION_TEMPLATE_HASH, template_hash.to_owned());
    if let Some(spec) = &mut set.spec {
        spec.template = template;
    }
}
