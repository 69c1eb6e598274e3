//! The local world: what the planner calls records, pods and volumes, read from files and processes and changed there.
//!
//! Preconditions hold here as on an API server: a record's UID and version, a volume's, a process's UID.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use quorate_api::names;
use quorate_plan::{
    ClusterId, Defaults, Deletion, Identity, Intent, MemberId, MemberRecord, Pod, PodPhase, Presence, Readiness,
    RecordFor, RecordRef, Role, SharedObjects, Spoken, Step, Termination, ValidatedCluster, Volume, VolumeRef,
};

use super::manifest::INCARNATION;
use super::ports::Ports;
use super::store::{ClusterFile, RecordFile, RetirementFile, Start, Store, Template, VolumeFile};
use super::supervisor::{Supervisor, admin_url, client_url, peer_url};
use crate::clock;
use crate::reconcile::Pass;
use crate::world::{ActError, MemberUrls, Observer, Performer, Seen};

const STOP_LOOK: Duration = Duration::from_millis(50);

pub(super) struct LocalWorld {
    inner: Mutex<Inner>,
}

struct Inner {
    store: Store,
    supervisor: Supervisor,
}

/// Where a member is reached by clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberEndpoint {
    pub record: String,
    /// `127.0.0.1:PORT`
    pub client: String,
    pub is_voter: bool,
}

impl LocalWorld {
    pub fn new(store: Store, node_bin: PathBuf) -> LocalWorld {
        LocalWorld { inner: Mutex::new(Inner { store, supervisor: Supervisor::new(node_bin) }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic while the world is held ends the command")
    }

    /// Makes processes follow the records.
    pub fn tend(&self) {
        let Inner { store, supervisor } = &mut *self.lock();
        supervisor.tend(store);
    }

    /// Who this cluster is, with a generation that moves whenever the manifest does. The first name that is given stays.
    pub fn identity(&self, namespace: &str, name: Option<&str>, manifest: &str) -> Result<Identity> {
        let store = &mut self.lock().store;
        let fresh = || -> Result<ClusterFile> {
            Ok(ClusterFile {
                name: name.unwrap_or_default().to_owned(),
                uid: clock::uuid()?,
                generation: 0,
                manifest: String::new(),
                has_finalizer: false,
                objects_hash: None,
                policy_hash: None,
                budget_min_available: None,
                bootstrapped: None,
            })
        };
        let mut cluster = match &store.cluster {
            Some(known) => known.clone(),
            None => fresh()?,
        };
        if cluster.generation == 0 || cluster.manifest != manifest {
            cluster.generation += 1;
            manifest.clone_into(&mut cluster.manifest);
        }
        let identity = Identity {
            name: cluster.name.clone(),
            namespace: namespace.to_owned(),
            uid: cluster.uid.clone(),
            generation: cluster.generation,
            incarnation: INCARNATION,
        };
        // A manifest that makes no sense must not give a new directory its name.
        if store.cluster.as_ref() != Some(&cluster) && !cluster.name.is_empty() {
            store.cluster = Some(cluster);
            store.save_cluster()?;
        }
        Ok(identity)
    }

    /// Client endpoints of the members that run, by name.
    pub fn endpoints(&self, pass: &Pass) -> Vec<MemberEndpoint> {
        let observed = &pass.seen.observation;
        let leader = pass.status.leader.as_ref().map(|l| l.id.as_str());
        let told = observed.words.iter().find(|w| Some(w.member_id.to_string().as_str()) == leader);
        let voters = told.or(observed.words.first()).map_or(&[][..], |w| w.members.as_slice());
        let inner = self.lock();
        let running = inner.store.records.values().filter(|r| r.is_running && r.retirement.is_none());
        running
            .map(|record| MemberEndpoint {
                record: record.name.clone(),
                client: format!("127.0.0.1:{}", record.ports.client),
                is_voter: voters.iter().any(|m| Some(m.id.0) == record.member_id && !m.is_learner),
            })
            .collect()
    }

    pub async fn stop_all(&self, leader: Option<&str>) {
        for except in [leader, None] {
            self.lock().supervisor.stop_all(except);
            while self.lock().supervisor.is_stopping() {
                tokio::time::sleep(STOP_LOOK).await;
            }
        }
    }

    pub fn kill_all(&self) {
        self.lock().supervisor.kill_all();
    }
}

impl Observer for LocalWorld {
    fn observe(&self, intent: &Intent) -> impl Future<Output = Seen> + Send {
        let inner = self.lock();
        let mut seen = Seen::default();
        let class = match intent {
            Intent::Run(cluster) => cluster.storage.class.clone(),
            Intent::Delete(_) | Intent::Refused(_) => None,
        };
        seen.observation.objects = shared_objects(inner.store.cluster.as_ref());
        match inner.store.volumes() {
            Ok(volumes) => seen.observation.volumes = volumes.into_iter().map(|v| volume(v, class.clone())).collect(),
            Err(error) => seen.observation.unread.push(format!("volumes: {error:#}")),
        }
        for record in inner.store.records.values() {
            seen.admin_urls.insert(record.name.clone(), admin_url(record));
            seen.observation.records.push(member_record(record, &inner.supervisor));
        }
        drop(inner);
        std::future::ready(seen)
    }
}

fn shared_objects(cluster: Option<&ClusterFile>) -> SharedObjects {
    // Members listen on this machine alone: nothing that the manifest does not ask for.
    let defaults = Some(Defaults::Open);
    let Some(cluster) = cluster else { return SharedObjects { defaults, ..SharedObjects::default() } };
    SharedObjects {
        defaults,
        policy_hash: cluster.policy_hash.clone(),
        home: String::new(),
        applied_hash: cluster.objects_hash.clone(),
        bootstrapped: cluster.bootstrapped.map(ClusterId),
        budget_min_available: cluster.budget_min_available,
        finalizer: if cluster.has_finalizer { Presence::Present } else { Presence::Absent },
    }
}

/// A directory has no class: it is of the one that is wanted.
fn volume(file: VolumeFile, class: Option<String>) -> Volume {
    Volume {
        name: file.record.clone(),
        record: file.record,
        uid: file.uid,
        resource_version: file.version.to_string(),
        record_uid: file.record_uid,
        size_bytes: file.size_bytes,
        class,
        deletion: Deletion::No,
    }
}

fn member_record(file: &RecordFile, supervisor: &Supervisor) -> MemberRecord {
    MemberRecord {
        name: file.name.clone(),
        uid: file.uid.clone(),
        resource_version: file.version.to_string(),
        member_id: file.member_id.map(MemberId),
        start: file.start.map(Into::into),
        template_hash: file.template.hash.clone(),
        running: file.running(),
        retirement: file.retirement(),
        deletion: Deletion::No,
        created_ms: file.created_ms,
        speaks: Spoken::default(),
        pod: pod(&file.name, supervisor),
    }
}

fn pod(record: &str, supervisor: &Supervisor) -> Option<Pod> {
    let process = supervisor.process(record)?;
    let waiting_reason = process.waiting_reason();
    let phase = if process.is_running() || waiting_reason.is_some() { PodPhase::Running } else { PodPhase::Ended };
    Some(Pod {
        uid: process.uid.clone(),
        phase,
        // What the planner counts on is the member's own word; a process that runs is as much as can be seen from outside.
        readiness: if process.is_running() { Readiness::Ready } else { Readiness::NotReady },
        termination: if process.is_stopping() { Termination::Terminating } else { Termination::No },
        waiting_reason,
        template_hash: process.template_hash.clone(),
        image: process.image.clone(),
        node: None,
        zone: None,
        created_ms: process.created_ms,
        speaks: Spoken::default(),
    })
}

impl Performer for LocalWorld {
    fn act(&self, intent: &Intent, step: &Step, _seen: &Seen) -> impl Future<Output = Result<(), ActError>> + Send {
        let inner = &mut *self.lock();
        std::future::ready(inner.act(intent, step))
    }

    fn urls(&self, _intent: &Intent, record: &str) -> Result<MemberUrls, ActError> {
        let inner = self.lock();
        let record = inner.store.records.get(record).ok_or_else(|| news(format!("record {record} is gone")))?;
        Ok(MemberUrls { peer: vec![peer_url(record)], client: vec![client_url(record)] })
    }
}

fn news(text: impl Into<String>) -> ActError {
    ActError::News(text.into())
}

fn failed(error: &anyhow::Error) -> ActError {
    ActError::Failed(format!("{error:#}"))
}

impl Inner {
    fn act(&mut self, intent: &Intent, step: &Step) -> Result<(), ActError> {
        match step {
            Step::AddFinalizer => self.edit_cluster(|c| c.has_finalizer = true),
            Step::ApplyObjects { hash, policy } => self.edit_cluster(|c| {
                c.objects_hash = Some(hash.clone());
                c.policy_hash.clone_from(policy);
            }),
            Step::SetBudget { min_available } => self.edit_cluster(|c| c.budget_min_available = *min_available),
            Step::RecordBootstrap { cluster_id } => self.edit_cluster(|c| c.bootstrapped = Some(cluster_id.0)),
            Step::Finish => self.edit_cluster(|c| c.has_finalizer = false),
            Step::CreateMember { name, template_hash, purpose } => {
                self.create_member(intent, name, template_hash, *purpose)
            }
            Step::CreateVolume { record } => self.create_volume(intent, record),
            Step::AdoptVolume { record, volume } => {
                let uid = self.record(record)?.uid.clone();
                self.edit_volume(volume, |v| v.record_uid = uid)
            }
            Step::GrowVolume { volume, size } => {
                let bytes = quorate_api::units::size_bytes(size)
                    .ok_or_else(|| ActError::Failed(format!("{size:?} is not a size")))?;
                self.edit_volume(volume, |v| v.size_bytes = bytes)
            }
            Step::RecordMemberId { record, member_id } => self.edit_record(record, |r| r.member_id = Some(member_id.0)),
            Step::StartMember { record, start, member_id: _, template_hash } => {
                let template = template(validated(intent)?, template_hash);
                self.edit_record(record, |r| {
                    r.start = Some((*start).into());
                    r.template = template;
                    r.is_running = true;
                })
            }
            Step::SealSeed { record, member_id, template_hash } => {
                let template = template(validated(intent)?, template_hash);
                self.edit_record(record, |r| {
                    r.start = Some(Start::Member);
                    r.member_id = Some(member_id.0);
                    r.template = template;
                })
            }
            Step::ApplyTemplate { record, template_hash } => {
                let template = template(validated(intent)?, template_hash);
                self.edit_record(record, |r| r.template = template)
            }
            Step::MarkRetiring { record, member_id, config_at, reason } => {
                let mark = RetirementFile {
                    member_id: member_id.map(|id| id.0),
                    incarnation: config_at.incarnation,
                    term: config_at.term,
                    index: config_at.index,
                    reason: reason.as_str().to_owned(),
                };
                self.edit_record(record, |r| r.retirement = Some(mark))
            }
            Step::StopMember { record } => self.edit_record(record, |r| r.is_running = false),
            Step::RestartMember { record, pod_uid, evict: _ } | Step::DeletePod { record, pod_uid } => {
                self.record(record)?;
                let found = self.supervisor.recreate(&record.name, pod_uid);
                found.then_some(()).ok_or_else(|| news(format!("process {pod_uid} of {} is gone", record.name)))
            }
            Step::DeleteVolume { volume } => {
                self.volume(volume)?;
                self.store.delete_volume(&volume.name).map_err(|e| failed(&e))
            }
            Step::ReleaseVolume { volume } => {
                self.volume(volume)?;
                self.store.release_volume(&volume.name).map_err(|e| failed(&e))
            }
            Step::DropRecord { record } => {
                self.record(record)?;
                self.store.drop_record(&record.name).map_err(|e| failed(&e))
            }
            Step::AddLearner { .. }
            | Step::Promote { .. }
            | Step::RemoveMember { .. }
            | Step::SwapVoter { .. }
            | Step::TransferLeader { .. }
            | Step::Activate { .. } => Err(ActError::Failed(format!("{} is a member's to do", step.name()))),
        }
    }

    fn edit_cluster(&mut self, edit: impl FnOnce(&mut ClusterFile)) -> Result<(), ActError> {
        let cluster = self.store.cluster.as_mut().ok_or_else(|| news("the cluster has no file yet"))?;
        edit(cluster);
        self.store.save_cluster().map_err(|e| failed(&e))
    }

    /// The record, if it is the very one that was read.
    fn record(&self, expect: &RecordRef) -> Result<&RecordFile, ActError> {
        let known = self.store.records.get(&expect.name);
        known
            .filter(|r| r.uid == expect.uid && r.version.to_string() == expect.resource_version)
            .ok_or_else(|| news(format!("record {} has changed", expect.name)))
    }

    fn edit_record(&mut self, expect: &RecordRef, edit: impl FnOnce(&mut RecordFile)) -> Result<(), ActError> {
        let mut record = self.record(expect)?.clone();
        edit(&mut record);
        record.version += 1;
        self.store.save_record(record).map_err(|e| failed(&e))
    }

    fn volume(&self, expect: &VolumeRef) -> Result<VolumeFile, ActError> {
        let known = self.store.volume(&expect.name).map_err(|e| failed(&e))?;
        known
            .filter(|v| v.uid == expect.uid && v.version.to_string() == expect.resource_version)
            .ok_or_else(|| news(format!("volume {} has changed", expect.name)))
    }

    fn edit_volume(&mut self, expect: &VolumeRef, edit: impl FnOnce(&mut VolumeFile)) -> Result<(), ActError> {
        let mut volume = self.volume(expect)?;
        edit(&mut volume);
        volume.version += 1;
        self.store.save_volume(&volume).map_err(|e| failed(&e))
    }

    fn create_member(
        &mut self,
        intent: &Intent,
        name: &str,
        template_hash: &str,
        purpose: RecordFor,
    ) -> Result<(), ActError> {
        if self.store.records.contains_key(name) {
            return Err(news(format!("record {name} exists")));
        }
        let cluster = validated(intent)?;
        let taken: Vec<Ports> = self.store.records.values().map(|r| r.ports).collect();
        let seed = names::seed(&format!("{}/{}", self.store.dir.display(), name));
        let ports = Ports::free(seed, &taken).ok_or_else(|| {
            ActError::Failed("no three free ports in a row from 20000 to 30000; free some".to_owned())
        })?;
        let member_id = match purpose {
            RecordFor::Returning(id) => Some(id.0),
            RecordFor::Seed | RecordFor::Joiner => None,
        };
        let record = RecordFile {
            name: name.to_owned(),
            uid: clock::uuid().map_err(|e| ActError::Failed(e.to_string()))?,
            version: 1,
            member_id,
            start: member_id.map(|_| Start::Member),
            is_running: false,
            template: template(cluster, template_hash),
            retirement: None,
            created_ms: clock::now_ms(),
            ports,
        };
        self.store.save_record(record).map_err(|e| failed(&e))
    }

    fn create_volume(&mut self, intent: &Intent, record: &RecordRef) -> Result<(), ActError> {
        let size = validated(intent)?.storage.size_bytes;
        let record = self.record(record)?;
        if self.store.volume(&record.name).map_err(|e| failed(&e))?.is_some() {
            return Err(news(format!("volume {} exists", record.name)));
        }
        // What is left of a half-made or half-removed volume serves nobody.
        let dir = self.store.volume_dir(&record.name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|e| ActError::Failed(format!("{}: {e}", dir.display())))?;
        }
        self.store.create_volume(record, size).map_err(|e| failed(&e))
    }
}

fn template(cluster: &ValidatedCluster, hash: &str) -> Template {
    Template {
        hash: hash.to_owned(),
        image: cluster.image.clone(),
        heartbeat_ms: cluster.timing.heartbeat_ms,
        election_ms: cluster.timing.election_ms,
        quota_bytes: cluster.quota_bytes,
    }
}

/// Steps that render something are planned from a valid spec only.
fn validated(intent: &Intent) -> Result<&ValidatedCluster, ActError> {
    match intent {
        Intent::Run(cluster) => Ok(cluster),
        Intent::Delete(_) | Intent::Refused(_) => Err(ActError::Failed("there is no valid spec to render".to_owned())),
    }
}

/// Shown beside a member that does not answer.
pub(super) fn role_text(role: Option<Role>) -> &'static str {
    role.map_or("-", Role::as_str)
}
