//! Objects of a simulated API server around members that run the shipped core and log.
//!
//! Records, pods and volumes are plain data with versions; a kubelet starts and ends processes as records say. Everything about
//! membership is asked of the cores, and what a member says of itself is what its core says.

use std::collections::{BTreeMap, BTreeSet};

use quorate_api::{ConsistentCluster, ConsistentClusterSpec, names, units};
use quorate_plan::{
    ClusterId, ConfigAt, ConfigMember, Defaults, Deletion, Intent, MemberId, MemberRecord, MemberWord, Observation,
    Pod, PodPhase, Presence, Probe, Progress, Readiness, RecordFor, RecordRef, Retirement, Role, Running,
    SharedObjects, Spoken, StartAs, Step, Termination, Volume, VolumeRef,
};
use quorate_raft::io::Change;
use quorate_raft::types::{self as core, Time};
use quorate_raft::{RoleName, Status};
use quorate_sim::oracle::Violation;
use quorate_sim::rng::Rng;
use quorate_sim::world::{Shape, World};

/// Wall clock at the start of a run, in milliseconds.
const START_MS: u64 = 1_760_000_000_000;
/// How long a kubelet takes to start a process, in microseconds.
const START_US: (u64, u64) = (200_000, 3_000_000);
/// The founder's id: the simulated cluster begins with it.
const FOUNDER: core::MemberId = core::MemberId(1);

/// Not carried out: a precondition failed, or nobody was there to ask.
#[derive(Debug)]
pub struct Refused(pub String);

pub struct Cluster {
    pub world: World,
    pub spec: ConsistentClusterSpec,
    pub generation: i64,
    pub asked: BTreeMap<String, String>,
    pub objects: SharedObjects,
    pub records: BTreeMap<String, MemberRecord>,
    pub volumes: BTreeMap<String, Volume>,
    /// Records whose pods the operator cannot reach.
    pub unreachable: BTreeSet<String>,
    /// When a pod's process starts, by record.
    starts: BTreeMap<String, u64>,
    /// Ids that were given, by the record's UID.
    ids: BTreeMap<String, core::MemberId>,
    /// Whose data is on a volume, by the volume's UID.
    data: BTreeMap<String, core::MemberId>,
    names: BTreeMap<core::MemberId, String>,
    images: BTreeMap<String, String>,
    activated: bool,
    /// The term and leader that were last heard, and since when.
    led: Option<(u64, core::MemberId, u64)>,
    serial: u64,
    rng: Rng,
    pub violations: Vec<String>,
    pub steps: BTreeMap<&'static str, u64>,
}

fn shape() -> Shape {
    Shape {
        voters: 1,
        clients: 3,
        think_us: 40_000,
        keep_entries: 2_000,
        persist_every: 500,
        persist_us: (100, 5_000),
        flush_us: (100, 900),
        apply_us: (50, 500),
        segment_bytes: 65_536,
        max_append_bytes: 1 << 20,
        inflight_bytes_max: 1 << 20,
        eager_changes: false,
        leases: None,
        mixed_leases: false,
        mixed_timeouts: false,
        watchers: 1,
    }
}

fn id_of(id: core::MemberId) -> MemberId {
    MemberId(id.0)
}
fn core_id(id: MemberId) -> core::MemberId {
    core::MemberId(id.0)
}
fn config_at(at: core::ConfigAt) -> ConfigAt {
    ConfigAt { incarnation: at.incarnation, term: at.term, index: at.index }
}
fn core_at(at: ConfigAt) -> core::ConfigAt {
    core::ConfigAt { incarnation: at.incarnation, term: at.term, index: at.index }
}
fn age_ms(now: Time, at: Option<Time>) -> u64 {
    at.map_or(u64::MAX, |at| now.0.saturating_sub(at.0) / 1_000)
}

impl Cluster {
    pub fn new(seed: u64) -> Result<Cluster, Violation> {
        let mut rng = Rng::new(seed);
        let mut world = World::new(rng.next_u64(), shape());
        world.start()?;
        // The founder runs once its record says so.
        world.crash(FOUNDER, false)?;
        let mut spec = ConsistentClusterSpec::default();
        spec.repair.replace_unhealthy_after = "1m".to_owned();
        Ok(Cluster {
            world,
            spec,
            generation: 1,
            asked: BTreeMap::new(),
            objects: SharedObjects { defaults: Some(Defaults::Open), ..SharedObjects::default() },
            records: BTreeMap::new(),
            volumes: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            starts: BTreeMap::new(),
            ids: BTreeMap::new(),
            data: BTreeMap::new(),
            names: BTreeMap::new(),
            images: BTreeMap::new(),
            activated: false,
            led: None,
            serial: 0,
            rng,
            violations: Vec::new(),
            steps: BTreeMap::new(),
        })
    }

    pub fn now_ms(&self) -> u64 {
        START_MS + self.world.now / 1_000
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut ConsistentClusterSpec)) {
        change(&mut self.spec);
        self.generation += 1;
    }

    pub fn intent(&self) -> Intent {
        let mut cluster = ConsistentCluster::new("orders", self.spec.clone());
        cluster.metadata.uid = Some("c1".to_owned());
        cluster.metadata.generation = Some(self.generation);
        cluster.metadata.annotations = Some(self.asked.clone());
        Intent::of(&cluster)
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}{}", self.serial)
    }

    /// The member that runs, or ran, on a record's volume.
    pub fn member_of(&self, record: &str) -> Option<core::MemberId> {
        self.data.get(&self.volumes.get(record)?.uid).copied()
    }

    pub fn record_of(&self, id: core::MemberId) -> Option<&String> {
        self.records.keys().find(|name| self.member_of(name) == Some(id))
    }

    // Time.

    /// Lets time pass for processes and network, then lets the kubelets look.
    pub fn pass_time(&mut self, us: u64) -> Result<(), Violation> {
        self.world.run(self.world.now + us, &mut |_| Ok(()))?;
        let names: Vec<String> = self.records.keys().cloned().collect();
        names.iter().try_for_each(|name| self.kubelet(name))
    }

    fn kubelet(&mut self, name: &str) -> Result<(), Violation> {
        let (now, now_ms) = (self.world.now, self.now_ms());
        let id = self.member_of(name);
        let runs = id.is_some_and(|id| self.world.is_up(id));
        let (uid, wait_us) = (self.fresh("pod"), self.rng.between(START_US.0, START_US.1));
        let has_volume = self.volumes.contains_key(name);
        let Some(record) = self.records.get_mut(name) else { return Ok(()) };
        let wanted = record.running == Running::Started && record.deletion == Deletion::No;
        match &mut record.pod {
            None if wanted => {
                let image = self.images.get(&record.template_hash).cloned().unwrap_or_default();
                record.pod = Some(Pod {
                    uid,
                    phase: PodPhase::Pending,
                    readiness: Readiness::NotReady,
                    termination: Termination::No,
                    waiting_reason: None,
                    template_hash: record.template_hash.clone(),
                    image,
                    node: None,
                    zone: None,
                    created_ms: now_ms,
                    speaks: Spoken::default(),
                });
                self.starts.insert(name.to_owned(), now + wait_us);
            }
            None => {}
            Some(pod) if !wanted || pod.termination == Termination::Terminating => {
                record.pod = None;
                self.starts.remove(name);
                return id.map_or(Ok(()), |id| self.world.crash(id, false));
            }
            Some(pod) if !runs => {
                let due = *self.starts.entry(name.to_owned()).or_insert(now + wait_us);
                if due <= now && has_volume {
                    pod.phase = PodPhase::Running;
                    let (start, known) = (record.start, record.member_id);
                    self.starts.remove(name);
                    return self.start(name, start, known);
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// A process starts: on its own data, or on an empty disk as what it was told to be.
    fn start(&mut self, name: &str, start: Option<StartAs>, known: Option<MemberId>) -> Result<(), Violation> {
        let Some(volume) = self.volumes.get(name).map(|volume| volume.uid.clone()) else { return Ok(()) };
        let owner = self.data.get(&volume).copied();
        let id = match (owner, start, known) {
            (Some(id), _, _) => id,
            (None, Some(StartAs::Seed), _) if self.names.is_empty() => FOUNDER,
            (None, Some(StartAs::Member), Some(id)) if !self.data.values().any(|other| *other == core_id(id)) => {
                core_id(id)
            }
            // It refuses to begin with nothing where it, or somebody, has begun before.
            _ => return Ok(()),
        };
        self.data.insert(volume, id);
        self.names.insert(id, name.to_owned());
        self.world.provision(id);
        self.world.restart(id)
    }

    // Observing.

    pub fn observe(&mut self) -> Observation {
        let words: Vec<MemberWord> = self.records.values().filter_map(|record| self.word(record)).collect();
        let leader = words.iter().filter(|w| w.role == Role::Leader).max_by_key(|w| w.term);
        let heard = leader.map(|w| (w.term, core_id(w.member_id)));
        if heard != self.led.map(|(term, id, _)| (term, id)) {
            self.led = heard.map(|(term, id)| (term, id, self.world.now));
        }
        let led_ms = self.led.map_or(0, |(_, _, since)| (self.world.now - since) / 1_000);
        let mut records: Vec<MemberRecord> = self.records.values().cloned().collect();
        for record in &mut records {
            let ready = words.iter().any(|w| w.record == record.name && w.ready);
            if let Some(pod) = &mut record.pod {
                pod.readiness = if ready { Readiness::Ready } else { Readiness::NotReady };
            }
        }
        let probe = heard.map_or(Err("no leader".to_owned()), |(term, _)| Ok(term));
        let words =
            words.into_iter().map(|w| MemberWord { led_ms: if w.role == Role::Leader { led_ms } else { 0 }, ..w });
        Observation {
            unread: Vec::new(),
            objects: self.objects.clone(),
            records,
            volumes: self.volumes.values().cloned().collect(),
            words: words.collect(),
            probe: Some(Probe { age_ms: 0, outcome: probe }),
            tls: None,
        }
    }

    fn word(&self, record: &MemberRecord) -> Option<MemberWord> {
        let pod = record.pod.as_ref().filter(|p| p.phase == PodPhase::Running && p.termination == Termination::No)?;
        if self.unreachable.contains(&record.name) {
            return None;
        }
        let id = self.member_of(&record.name)?;
        let (status, now) = self.world.word(id)?;
        let leads = status.role == RoleName::Leader;
        let config = &status.committed_config.config;
        let role = match status.role {
            _ if status.is_removed => Role::Removed,
            RoleName::Leader => Role::Leader,
            RoleName::Candidate => Role::Candidate,
            RoleName::PreCandidate => Role::PreCandidate,
            RoleName::Follower if config.learners.contains(&id) => Role::Learner,
            RoleName::Follower => Role::Follower,
        };
        Some(MemberWord {
            record: record.name.clone(),
            pod_uid: pod.uid.clone(),
            age_ms: 5,
            cluster_id: ClusterId(0xc1),
            member_id: id_of(id),
            incarnation: names::FIRST_INCARNATION,
            version: pod.image.clone(),
            role,
            term: status.term,
            leader_id: status.leader.map(id_of),
            commit_index: status.commit,
            applied_index: status.applied,
            last_index: status.last_index,
            pending_entries: status.last_index - status.commit,
            leader_contact_age_ms: age_ms(now, status.leader_contact),
            elections: 0,
            own_term_index: status.noop_index.unwrap_or(0),
            own_term_committed: status.noop_index.is_some_and(|index| status.commit >= index),
            own_term_applied: status.noop_index.is_some_and(|index| status.applied >= index),
            led_ms: 0,
            quorum_confirmed_age_ms: age_ms(now, status.quorum_confirmed),
            config_at: config_at(status.committed_config.at),
            change_in_flight: status.is_change_in_flight,
            joint: status.newest_config.config.is_joint(),
            members: self.members(&status),
            progress: if leads { progress(&status, now) } else { Vec::new() },
            failover_count: 0,
            last_failover_ms: 0,
            activated: self.activated,
            ready: self.activated && status.leader.is_some() && config.voters.contains(&id) && !status.is_removed,
            not_ready_reason: String::new(),
            fault: String::new(),
            disk_low: false,
            rot_open: 0,
        })
    }

    fn members(&self, status: &Status) -> Vec<ConfigMember> {
        let config = &status.committed_config.config;
        let named = |id: &core::MemberId| {
            let given = self.ids.iter().find(|(_, given)| *given == id).map(|(uid, _)| uid);
            let record = given.and_then(|uid| self.records.values().find(|r| r.uid == *uid)).map(|r| r.name.clone());
            self.names.get(id).cloned().or(record).unwrap_or_else(|| format!("gone-{id}"))
        };
        let member = |id: &core::MemberId| ConfigMember {
            id: id_of(*id),
            name: named(id),
            is_learner: config.learners.contains(id),
            is_outgoing: config.voters_outgoing.contains(id) && !config.voters.contains(id),
        };
        config.members.keys().map(member).collect()
    }

    // Acting.

    /// Carries out one step as a shell does: preconditions, then one call.
    pub fn apply(&mut self, step: &Step) -> Result<Result<(), Refused>, Violation> {
        *self.steps.entry(step.name()).or_default() += 1;
        if let Intent::Run(cluster) = self.intent() {
            self.images.insert(cluster.template_hash(), cluster.image.clone());
        }
        match step {
            Step::AddLearner { .. }
            | Step::Promote { .. }
            | Step::SwapVoter { .. }
            | Step::RemoveMember { .. }
            | Step::TransferLeader { .. } => self.ask(step),
            step => Ok(self.write(step)),
        }
    }

    fn ask(&mut self, step: &Step) -> Result<Result<(), Refused>, Violation> {
        let (leader, expect, change) = match step {
            Step::AddLearner { record, leader, expect } => {
                let next = core::MemberId(2 + self.ids.len() as u64);
                let id = *self.ids.entry(record.uid.clone()).or_insert(next);
                if self.world.config().contains(id) {
                    return Ok(Ok(()));
                }
                (*leader, *expect, World::add_learner(id))
            }
            Step::Promote { member_id, leader, expect, lag_max, .. } => {
                (*leader, *expect, Change::Promote { id: core_id(*member_id), lag_max: *lag_max })
            }
            Step::SwapVoter { new, old, leader, expect, lag_max, .. } => {
                self.check_mark(*old);
                (*leader, *expect, Change::Swap { new: core_id(*new), old: core_id(*old), lag_max: *lag_max })
            }
            Step::RemoveMember { member_id, leader, expect, .. } => {
                self.check_mark(*member_id);
                (*leader, *expect, Change::Remove { id: core_id(*member_id) })
            }
            Step::TransferLeader { leader, to, expect_term } => {
                let led = self.world.word(core_id(*leader)).is_some_and(|(status, _)| status.term == *expect_term);
                if led {
                    self.world.transfer(core_id(*leader), core_id(*to))?;
                }
                return Ok(led.then_some(()).ok_or_else(|| Refused("another term".to_owned())));
            }
            _ => unreachable!("the others are written"),
        };
        if self.world.word(core_id(leader)).is_none() {
            return Ok(Err(Refused(format!("{leader} does not answer"))));
        }
        self.world.change_at(core_id(leader), core_at(expect), change).map(Ok)
    }

    fn write(&mut self, step: &Step) -> Result<(), Refused> {
        match step {
            Step::AddFinalizer => self.objects.finalizer = Presence::Present,
            Step::ApplyObjects { hash, policy } => {
                self.objects.applied_hash = Some(hash.clone());
                self.objects.policy_hash.clone_from(policy);
            }
            Step::SetBudget { min_available } => self.objects.budget_min_available = *min_available,
            Step::RecordBootstrap { cluster_id } => self.objects.bootstrapped = Some(*cluster_id),
            Step::Activate { .. } => self.activated = true,
            Step::CreateMember { name, template_hash, purpose } => self.create_record(name, template_hash, *purpose)?,
            Step::CreateVolume { record } => self.create_volume(record)?,
            Step::RecordMemberId { record, member_id } => self.record(record)?.member_id = Some(*member_id),
            Step::StartMember { record, start, template_hash, .. } => {
                let record = self.record(record)?;
                record.start = Some(*start);
                record.running = Running::Started;
                record.template_hash.clone_from(template_hash);
            }
            Step::SealSeed { record, template_hash, .. } => {
                let record = self.record(record)?;
                record.start = Some(StartAs::Member);
                record.template_hash.clone_from(template_hash);
            }
            Step::ApplyTemplate { record, template_hash } => {
                self.record(record)?.template_hash.clone_from(template_hash);
            }
            Step::MarkRetiring { record, member_id, config_at, reason } => {
                let mark = Retirement { member_id: *member_id, config_at: *config_at, reason: *reason };
                self.record(record)?.retirement = Some(mark);
            }
            Step::StopMember { record } => {
                self.check_out(&record.name, "stopped");
                self.record(record)?.running = Running::Stopped;
            }
            Step::RestartMember { record, pod_uid, .. } | Step::DeletePod { record, pod_uid } => {
                let pod = self.record(record)?.pod.as_mut().filter(|pod| pod.uid == *pod_uid);
                pod.ok_or_else(|| Refused("another pod".to_owned()))?.termination = Termination::Terminating;
            }
            Step::DeleteVolume { volume } | Step::ReleaseVolume { volume } => {
                let name = self.volume(volume)?.record.clone();
                self.check_out(&name, "parted from its volume");
                self.volumes.remove(&name);
            }
            Step::DropRecord { record } => {
                self.check_out(&record.name, "dropped");
                self.record(record)?;
                self.records.remove(&record.name);
            }
            Step::GrowVolume { volume, size } => {
                let size_bytes = units::size_bytes(size).ok_or_else(|| Refused("no size".to_owned()))?;
                let name = self.volume(volume)?.record.clone();
                self.volumes.entry(name).and_modify(|volume| volume.size_bytes = size_bytes);
            }
            Step::AdoptVolume { .. } | Step::Finish => {
                return Err(Refused(format!("no story asks for {}", step.name())));
            }
            Step::AddLearner { .. }
            | Step::Promote { .. }
            | Step::SwapVoter { .. }
            | Step::RemoveMember { .. }
            | Step::TransferLeader { .. } => unreachable!("a member is asked"),
        }
        Ok(())
    }

    fn check_mark(&mut self, id: MemberId) {
        let marked = |r: &MemberRecord| r.retirement.as_ref().is_some_and(|mark| mark.member_id == Some(id));
        if !self.records.values().any(marked) && self.world.config().voters.contains(&core_id(id)) {
            self.violations.push(format!("voter {id} is to be removed without a durable mark"));
        }
    }

    fn check_out(&mut self, name: &str, what: &str) {
        let id = self.records.get(name).and_then(|r| r.member_id).map(core_id);
        if id.is_some_and(|id| self.world.config().contains(id)) {
            self.violations.push(format!("{name} is {what} while it is in {:?}", self.world.config()));
        }
    }

    /// The record that was read; what is done with it gives it another version.
    fn record(&mut self, at: &RecordRef) -> Result<&mut MemberRecord, Refused> {
        let version = self.fresh("");
        let found = self.records.get_mut(&at.name);
        let record = found.filter(|r| r.uid == at.uid && r.resource_version == at.resource_version);
        let record = record.ok_or_else(|| Refused(format!("record {} changed", at.name)))?;
        record.resource_version = version;
        Ok(record)
    }

    fn volume(&self, at: &VolumeRef) -> Result<&Volume, Refused> {
        let found = self.volumes.values().find(|v| v.name == at.name && v.uid == at.uid);
        found.ok_or_else(|| Refused(format!("no volume {} of that UID", at.name)))
    }

    fn create_record(&mut self, name: &str, template_hash: &str, purpose: RecordFor) -> Result<(), Refused> {
        if self.records.contains_key(name) {
            return Err(Refused(format!("record {name} exists")));
        }
        if purpose == RecordFor::Seed && self.activated {
            self.violations.push("a second bootstrap".to_owned());
        }
        if self.names.values().any(|other| other == name) {
            self.violations.push(format!("the name {name} serves a second identity"));
        }
        let record = MemberRecord {
            name: name.to_owned(),
            uid: self.fresh("r"),
            resource_version: self.fresh(""),
            member_id: None,
            start: None,
            template_hash: template_hash.to_owned(),
            running: Running::Stopped,
            retirement: None,
            deletion: Deletion::No,
            created_ms: self.now_ms(),
            speaks: Spoken::default(),
            pod: None,
        };
        self.records.insert(name.to_owned(), record);
        Ok(())
    }

    fn create_volume(&mut self, at: &RecordRef) -> Result<(), Refused> {
        if self.volumes.contains_key(&at.name) {
            return Err(Refused(format!("volume of {} exists", at.name)));
        }
        self.record(at)?;
        let uid = self.fresh("v");
        let volume = Volume {
            record: at.name.clone(),
            name: names::volume(&at.name),
            uid: uid.clone(),
            resource_version: uid,
            record_uid: at.uid.clone(),
            size_bytes: units::size_bytes(&self.spec.storage.size).unwrap_or_default(),
            class: None,
            deletion: Deletion::No,
        };
        self.volumes.insert(at.name.clone(), volume);
        Ok(())
    }
}

fn progress(status: &Status, now: Time) -> Vec<Progress> {
    let peer = |peer: &quorate_raft::PeerStatus| Progress {
        member_id: id_of(peer.id),
        matched: peer.matched,
        last_ack_age_ms: age_ms(now, peer.last_ack),
        active: peer.is_active,
        snapshotting: peer.is_snapshotting,
    };
    status.progress.iter().map(peer).collect()
}
