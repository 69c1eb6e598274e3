//! A model of everything around the planner: API objects with versions, pods that take time, disks, and a Raft cluster that
//! commits, elects and catches up. Steps are carried out as a shell would, preconditions first; what must never happen is
//! written down as a violation the moment it does.

#![allow(clippy::unwrap_used, reason = "a broken model or script is a failed test")]
#![allow(dead_code, reason = "each test binary uses its own part of the model")]

pub mod run;
pub mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use quorate_api::{ConsistentCluster, ConsistentClusterSpec};
use quorate_plan::view::LAG_ENTRIES_MAX;
use quorate_plan::{
    ClusterId, ConfigAt, ConfigMember, Defaults, Deletion, Eviction, Intent, MemberId, MemberRecord, MemberWord,
    Observation, Pod, PodPhase, Presence, Probe, Progress, Readiness, RecordFor, RecordRef, RetireReason, Retirement,
    Role, Running, SharedObjects, Spoken, StartAs, Step, Termination, ValidatedCluster, Volume, VolumeRef,
};

pub const TICK_MS: u64 = 1_000;
const START_MS: u64 = 1_760_000_000_000;
/// Entries that clients write each tick while the cluster serves.
const WRITES_PER_TICK: u64 = 400;
/// A member that just started needs this many ticks to catch up from nothing.
const CATCH_UP_TICKS: u64 = 4;

/// A step that was not carried out because a precondition failed.
#[derive(Debug)]
pub struct Refused(pub String);

#[derive(Debug, Clone)]
pub struct Disk {
    pub volume: Volume,
    pub data: Option<Data>,
}

/// What a member has on its disk.
#[derive(Debug, Clone, Copy)]
pub struct Data {
    pub member: MemberId,
    pub matched: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Raft {
    pub members: Vec<ConfigMember>,
    pub at: ConfigAt,
    pub pending: Option<Vec<ConfigMember>>,
    pub leader: Option<MemberId>,
    pub term: u64,
    pub commit: u64,
    pub activated: bool,
    led_since_ms: u64,
    /// When each member was last alive, as the leader of then heard it.
    heard_ms: BTreeMap<MemberId, u64>,
    next_id: u64,
    by_key: BTreeMap<String, MemberId>,
}

#[derive(Debug, Clone)]
pub struct World {
    pub spec: ConsistentClusterSpec,
    pub generation: i64,
    /// Requests of a person, as annotations.
    pub asked: BTreeMap<String, String>,
    /// Members that were fenced at some time: a late step may stop them still.
    pub was_fenced: BTreeSet<String>,
    /// All were to be stopped at some time: a late step may stop one still.
    pub was_zero: bool,
    pub now_ms: u64,
    pub deletion_since_ms: Option<u64>,
    pub objects: SharedObjects,
    /// The cluster's own object is gone: deletion ended.
    pub finished: bool,
    pub records: BTreeMap<String, MemberRecord>,
    pub disks: BTreeMap<String, Disk>,
    pub raft: Raft,
    /// Images that no node can pull.
    pub bad_images: BTreeSet<String>,
    /// Learners are sent nothing.
    pub learners_starve: bool,
    /// Nodes whose pods never start again, by member name.
    pub dead: BTreeSet<String>,
    /// Members that nobody can reach: what runs there runs on, and ends for nobody.
    pub cut_off: BTreeSet<String>,
    /// Zones with room; empty: nodes are in none. Pods go where the fewest are, and back to their volume.
    pub zones: BTreeSet<String>,
    pub placed: BTreeMap<String, String>,
    images: BTreeMap<String, String>,
    /// Which record UID had a name; a second one is a violation once the first had a member.
    name_owners: BTreeMap<String, (String, Option<MemberId>)>,
    /// Faults of the scenario excuse a lost quorum until this time.
    excused_until_ms: u64,
    serial: u64,
    pub violations: Vec<String>,
}

impl World {
    pub fn new(replicas: i32) -> World {
        World {
            spec: ConsistentClusterSpec { replicas, ..ConsistentClusterSpec::default() },
            generation: 1,
            asked: BTreeMap::new(),
            was_fenced: BTreeSet::new(),
            was_zero: false,
            now_ms: START_MS,
            deletion_since_ms: None,
            objects: SharedObjects { defaults: Some(Defaults::Open), ..SharedObjects::default() },
            finished: false,
            records: BTreeMap::new(),
            disks: BTreeMap::new(),
            raft: Raft { next_id: 0xa1, ..Raft::default() },
            bad_images: BTreeSet::new(),
            learners_starve: false,
            dead: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            zones: BTreeSet::new(),
            placed: BTreeMap::new(),
            images: BTreeMap::new(),
            name_owners: BTreeMap::new(),
            excused_until_ms: 0,
            serial: 0,
            violations: Vec::new(),
        }
    }

    pub fn intent(&self) -> Intent {
        let mut cluster = ConsistentCluster::new("orders", self.spec.clone());
        cluster.metadata.uid = Some("c1".to_owned());
        cluster.metadata.namespace = Some("shop".to_owned());
        cluster.metadata.generation = Some(self.generation);
        cluster.metadata.annotations = Some(self.asked.clone());
        match Intent::of(&cluster) {
            Intent::Run(_) if self.deletion_since_ms.is_some() => Intent::Delete(quorate_plan::DeletionPolicy {
                identity: Intent::of(&cluster).identity().clone(),
                volumes: self.spec.storage.on_cluster_delete,
                since_ms: self.deletion_since_ms.unwrap_or_default(),
            }),
            other => other,
        }
    }

    fn validated(&self) -> Option<ValidatedCluster> {
        match self.intent() {
            Intent::Run(cluster) => Some(cluster),
            Intent::Delete(_) | Intent::Refused(_) => None,
        }
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut ConsistentClusterSpec)) {
        change(&mut self.spec);
        self.generation += 1;
        self.was_zero |= self.spec.replicas == 0;
    }

    /// What follows is the scenario's doing, not the planner's.
    pub fn excuse(&mut self, ticks: u64) {
        self.excused_until_ms = self.now_ms + ticks * TICK_MS;
    }

    fn violate(&mut self, text: impl Into<String>) {
        self.violations.push(text.into());
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}{}", self.serial)
    }

    // ---- facts -----------------------------------------------------------------------------------------------------------

    pub fn voters(&self) -> Vec<&ConfigMember> {
        self.raft.members.iter().filter(|m| !m.is_learner).collect()
    }

    /// The record whose process runs as this member now. One whose pod ends serves on till the next tick: that is how the trap of a
    /// member that answers and is about to go is laid.
    pub fn alive(&self, id: MemberId) -> Option<&MemberRecord> {
        self.records.values().find(|r| {
            let runs = r.pod.as_ref().is_some_and(|p| p.phase == PodPhase::Running && p.waiting_reason.is_none());
            runs && !self.cut_off.contains(&r.name)
                && self.disks.get(&r.name).and_then(|d| d.data).is_some_and(|d| d.member == id)
        })
    }

    fn data(&self, id: MemberId) -> Option<Data> {
        self.disks.values().filter_map(|d| d.data).find(|d| d.member == id)
    }

    fn is_caught_up(&self, id: MemberId) -> bool {
        self.alive(id).is_some() && self.data(id).is_some_and(|d| d.matched + LAG_ENTRIES_MAX >= self.raft.commit)
    }

    fn quorum_of(members: &[ConfigMember]) -> usize {
        members.iter().filter(|m| !m.is_learner).count() / 2 + 1
    }

    fn live_caught_up(&self, members: &[ConfigMember]) -> usize {
        members.iter().filter(|m| !m.is_learner && self.is_caught_up(m.id)).count()
    }

    pub fn serves(&self) -> bool {
        !self.raft.members.is_empty()
            && self.raft.leader.is_some_and(|l| self.alive(l).is_some())
            && self.raft.members.iter().filter(|m| !m.is_learner && self.alive(m.id).is_some()).count()
                >= Self::quorum_of(&self.raft.members)
    }

    fn has_quorum_of_disks(&self) -> bool {
        self.live_caught_up(&self.raft.members) >= Self::quorum_of(&self.raft.members)
    }

    // ---- time ------------------------------------------------------------------------------------------------------------

    /// One second of everybody else's work.
    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        self.controllers();
        self.processes();
        self.elect();
        self.replicate();
        self.commit_change();
        self.check();
    }

    /// StatefulSet and kubelet: pods end, are made, start. Volumes under deletion go when no pod holds them.
    fn controllers(&mut self) {
        let names: Vec<String> = self.records.keys().cloned().collect();
        for name in names {
            let volume = self.disks.get(&name).map(|d| d.volume.deletion);
            let image = self.records[&name].template_hash.clone();
            let pullable = !self.images.get(&image).is_some_and(|i| self.bad_images.contains(i));
            if self.cut_off.contains(&name) {
                continue;
            }
            let dead = self.dead.contains(&name);
            let zone = self.place(&name);
            let (uid, now_ms) = (self.fresh("pod"), self.now_ms);
            let record = self.records.get_mut(&name).unwrap();
            match &mut record.pod {
                Some(pod) if pod.termination == Termination::Terminating => record.pod = None,
                Some(pod) if record.running == Running::Stopped && record.deletion == Deletion::No => {
                    pod.termination = Termination::Terminating;
                }
                Some(pod) if pod.phase == PodPhase::Pending => {
                    pod.waiting_reason = match (volume, dead) {
                        (_, true) => Some("Unschedulable".to_owned()),
                        (None, _) => Some("VolumeMissing".to_owned()),
                        _ if !pullable && pod.template_hash == record.template_hash => {
                            Some("ImagePullBackOff".to_owned())
                        }
                        (Some(_), false) => None,
                    };
                    if pod.waiting_reason.is_none() {
                        pod.phase = PodPhase::Running;
                    }
                }
                Some(_) => {}
                None if record.running == Running::Started && record.deletion == Deletion::No => {
                    record.pod = Some(Pod {
                        uid,
                        phase: PodPhase::Pending,
                        readiness: Readiness::NotReady,
                        termination: Termination::No,
                        waiting_reason: None,
                        template_hash: record.template_hash.clone(),
                        image: self.images.get(&image).cloned().unwrap_or_default(),
                        node: None,
                        zone,
                        created_ms: now_ms,
                        speaks: Spoken::default(),
                    });
                }
                None => {}
            }
        }
        let held = |name: &String| self.records.get(name).is_some_and(|r| r.pod.is_some());
        let gone: Vec<String> = self
            .disks
            .iter()
            .filter(|(n, d)| d.volume.deletion == Deletion::Requested && !held(n))
            .map(|(n, _)| n.clone())
            .collect();
        gone.iter().for_each(|n| {
            self.disks.remove(n);
        });
    }

    fn place(&mut self, name: &str) -> Option<String> {
        let runs = |n: &String| {
            self.records.get(n).and_then(|r| r.pod.as_ref()).is_some_and(|pod| pod.phase == PodPhase::Running)
        };
        let crowd = |zone: &&String| self.placed.iter().filter(|(n, z)| runs(n) && z == zone).count();
        let freest = self.zones.iter().min_by_key(crowd)?.clone();
        Some(self.placed.entry(name.to_owned()).or_insert(freest).clone())
    }

    /// A process that starts on an empty disk becomes what it was told to be, or refuses.
    fn processes(&mut self) {
        let starting: Vec<(String, Option<StartAs>, Option<MemberId>)> = self
            .records
            .values()
            .filter(|r| {
                let runs =
                    r.pod.as_ref().is_some_and(|p| p.phase == PodPhase::Running && p.termination == Termination::No);
                runs && !self.cut_off.contains(&r.name)
            })
            .map(|r| (r.name.clone(), r.start, r.member_id))
            .collect();
        for (name, start, id) in starting {
            if self.disks.get(&name).is_none_or(|d| d.data.is_some()) {
                continue;
            }
            match (start, id) {
                (Some(StartAs::Seed), _) => self.make_cluster(&name),
                (Some(StartAs::Member), Some(id)) if self.may_start_empty(id) => {
                    self.disks.get_mut(&name).unwrap().data = Some(Data { member: id, matched: 0 });
                }
                _ => {}
            }
        }
    }

    /// A learner that never had anything may begin with nothing.
    fn may_start_empty(&self, id: MemberId) -> bool {
        self.raft.members.iter().any(|m| m.id == id && m.is_learner) && self.data(id).is_none()
    }

    fn make_cluster(&mut self, name: &str) {
        if self.raft.activated {
            self.violate(format!("{name} makes a second cluster"));
        }
        let id = MemberId(self.raft.next_id);
        self.raft = Raft {
            members: vec![ConfigMember { id, name: name.to_owned(), is_learner: false, is_outgoing: false }],
            at: ConfigAt { incarnation: 1, term: 1, index: 1 },
            leader: None,
            term: 0,
            commit: 1,
            next_id: self.raft.next_id + 1,
            ..Raft::default()
        };
        self.disks.get_mut(name).unwrap().data = Some(Data { member: id, matched: 1 });
    }

    fn elect(&mut self) {
        if self.raft.members.is_empty() {
            return;
        }
        let quorum = Self::quorum_of(&self.raft.members);
        let living: Vec<MemberId> = self.voters().iter().map(|m| m.id).filter(|id| self.alive(*id).is_some()).collect();
        let leads = self.raft.leader.filter(|l| living.contains(l));
        if living.len() < quorum {
            self.raft.leader = None;
        } else if leads.is_none() {
            // Only a voter that holds everything committed can win.
            self.raft.leader =
                living.into_iter().max_by_key(|id| (self.data(*id).map(|d| d.matched), std::cmp::Reverse(*id)));
            self.raft.term += 1;
            self.raft.commit += 1;
            self.raft.led_since_ms = self.now_ms;
        }
        let heard: Vec<MemberId> =
            self.raft.members.iter().map(|m| m.id).filter(|id| self.alive(*id).is_some()).collect();
        self.raft.heard_ms.extend(heard.into_iter().map(|id| (id, self.now_ms)));
    }

    fn replicate(&mut self) {
        if !self.serves() {
            return;
        }
        if self.raft.activated {
            self.raft.commit += WRITES_PER_TICK;
        }
        let commit = self.raft.commit;
        let members: Vec<(MemberId, bool)> = self.raft.members.iter().map(|m| (m.id, m.is_learner)).collect();
        for (id, is_learner) in members {
            if self.alive(id).is_none() || (is_learner && self.learners_starve) {
                continue;
            }
            for disk in self.disks.values_mut() {
                if let Some(data) = disk.data.as_mut().filter(|d| d.member == id) {
                    let gap = commit - data.matched.min(commit);
                    let stride = (commit / CATCH_UP_TICKS).max(WRITES_PER_TICK * 2);
                    data.matched += gap.min(stride);
                }
            }
        }
    }

    fn commit_change(&mut self) {
        let Some(next) = self.raft.pending.clone() else { return };
        if !self.serves() || self.live_caught_up(&next) < Self::quorum_of(&next) {
            return;
        }
        self.raft.pending = None;
        self.raft.commit += 1;
        self.raft.at = ConfigAt { incarnation: 1, term: self.raft.term, index: self.raft.commit };
        if self.raft.leader.is_some_and(|l| !next.iter().any(|m| m.id == l)) {
            self.raft.leader = None;
        }
        self.raft.members = next;
    }

    fn check(&mut self) {
        let voters = self.voters().len();
        if self.raft.members.iter().filter(|m| m.is_learner).count() > 1 {
            self.violate("two learners at once");
        }
        if self.deletion_since_ms.is_none() && self.objects.bootstrapped.is_some() {
            let floor = (voters / 2 + 1).max(voters.saturating_sub(1));
            let budget = self.objects.budget_min_available.unwrap_or(0) as usize;
            if budget < floor {
                self.violate(format!("a budget of {budget} for {voters} voters"));
            }
        }
        let unproven = self
            .records
            .values()
            .filter(|r| r.pod.as_ref().is_some_and(|p| self.bad_images.contains(&p.image)))
            .count();
        if unproven > 1 {
            self.violate(format!("{unproven} members run a template that does not start"));
        }
        let serving_matters =
            self.raft.activated && voters > 2 && self.deletion_since_ms.is_none() && self.spec.replicas > 0;
        if serving_matters && self.now_ms >= self.excused_until_ms && !self.has_quorum_of_disks() {
            let live = self.live_caught_up(&self.raft.members);
            self.violate(format!("only {live} of {voters} voters are live and caught up"));
        }
    }

    // ---- observing -------------------------------------------------------------------------------------------------------

    pub fn observe(&self) -> Observation {
        let mut records: Vec<MemberRecord> = self.records.values().cloned().collect();
        for record in &mut records {
            let ready = self.word(record).is_some_and(|w| w.ready);
            if let Some(pod) = &mut record.pod {
                pod.readiness = if ready { Readiness::Ready } else { Readiness::NotReady };
            }
        }
        let words = records.iter().filter_map(|r| self.word(r)).collect();
        let serves = self.serves() && self.raft.activated;
        Observation {
            unread: Vec::new(),
            objects: self.objects.clone(),
            records,
            volumes: self.disks.values().map(|d| d.volume.clone()).collect(),
            words,
            probe: Some(Probe { age_ms: 0, outcome: serves.then_some(self.raft.commit).ok_or("no leader".to_owned()) }),
            tls: None,
        }
    }

    fn word(&self, record: &MemberRecord) -> Option<MemberWord> {
        let pod = record.pod.as_ref()?;
        let data = self.disks.get(&record.name)?.data;
        let running = pod.phase == PodPhase::Running && pod.waiting_reason.is_none();
        if !running || self.cut_off.contains(&record.name) {
            return None;
        }
        let id = data.map(|d| d.member).or(record.member_id)?;
        let inside = self.raft.members.iter().find(|m| m.id == id);
        let led = self.serves();
        let leads = led && self.raft.leader == Some(id);
        let role = match inside {
            None => Role::Removed,
            Some(m) if m.is_learner => Role::Learner,
            Some(_) if leads => Role::Leader,
            Some(_) => Role::Follower,
        };
        let progress = self.raft.members.iter().filter(|m| m.id != id).map(|m| {
            let live = self.alive(m.id).is_some();
            Progress {
                member_id: m.id,
                matched: self.data(m.id).map_or(0, |d| d.matched),
                last_ack_age_ms: match self.raft.heard_ms.get(&m.id) {
                    _ if live => 20,
                    Some(at) if *at >= self.raft.led_since_ms => self.now_ms - at,
                    _ => u64::MAX,
                },
                active: live,
                snapshotting: false,
            }
        });
        let matched = data.map_or(0, |d| d.matched);
        let fault = if data.is_none() { "identity missing: the data directory is empty" } else { "" };
        Some(MemberWord {
            record: record.name.clone(),
            pod_uid: pod.uid.clone(),
            age_ms: 10,
            cluster_id: ClusterId(0xc1),
            member_id: id,
            incarnation: 1,
            version: pod.image.clone(),
            role,
            term: self.raft.term,
            leader_id: self.raft.leader,
            commit_index: if leads { self.raft.commit } else { matched },
            applied_index: matched,
            last_index: matched,
            pending_entries: 0,
            leader_contact_age_ms: if led { 20 } else { 60_000 },
            elections: self.raft.term,
            own_term_index: if leads { self.raft.term } else { 0 },
            own_term_committed: leads,
            own_term_applied: leads,
            led_ms: if leads { self.now_ms - self.raft.led_since_ms } else { 0 },
            quorum_confirmed_age_ms: if leads { 30 } else { u64::MAX },
            config_at: self.raft.at,
            change_in_flight: self.raft.pending.is_some(),
            joint: false,
            members: self.raft.members.clone(),
            progress: if leads { progress.collect() } else { Vec::new() },
            failover_count: 0,
            last_failover_ms: 0,
            activated: self.raft.activated,
            ready: led
                && self.raft.activated
                && role != Role::Learner
                && role != Role::Removed
                && self.is_caught_up(id),
            not_ready_reason: String::new(),
            fault: fault.to_owned(),
            disk_low: false,
            rot_open: 0,
        })
    }

    // ---- acting ----------------------------------------------------------------------------------------------------------

    /// Carries out one step as a shell does: preconditions, then one call.
    pub fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        if self.finished {
            return Err(Refused("the cluster is gone".to_owned()));
        }
        if let Some(cluster) = self.validated() {
            self.images.insert(cluster.template_hash(), cluster.image.clone());
            if cluster.paused {
                self.violate(format!("{} while paused", step.name()));
            }
        }
        self.check_approval(step);
        match step {
            Step::AddFinalizer => self.objects.finalizer = Presence::Present,
            Step::ApplyObjects { hash, policy } => {
                self.objects.applied_hash = Some(hash.clone());
                self.objects.policy_hash.clone_from(policy);
            }
            Step::SetBudget { min_available } => self.objects.budget_min_available = *min_available,
            Step::RecordBootstrap { cluster_id } => self.objects.bootstrapped = Some(*cluster_id),
            Step::CreateMember { name, template_hash, purpose } => self.create_record(name, template_hash, *purpose)?,
            Step::CreateVolume { record } => self.create_volume(record)?,
            Step::AdoptVolume { record, volume } => {
                self.record(record)?;
                let uid = record.uid.clone();
                self.disk(volume)?.volume.record_uid = uid;
            }
            Step::AddLearner { record, expect, leader } => self.add_learner(record, *leader, *expect)?,
            Step::RecordMemberId { record, member_id } => {
                self.write(record)?.member_id = Some(*member_id);
                self.name_owners.insert(record.name.clone(), (record.uid.clone(), Some(*member_id)));
            }
            Step::StartMember { record, start, member_id: _, template_hash } => {
                let record = self.write(record)?;
                record.start = Some(*start);
                record.running = Running::Started;
                record.template_hash = template_hash.clone();
            }
            Step::SealSeed { record, member_id: _, template_hash } => {
                let record = self.write(record)?;
                record.start = Some(StartAs::Member);
                record.template_hash = template_hash.clone();
            }
            Step::Activate { .. } => {
                if self.objects.bootstrapped.is_none() {
                    self.violate("activated before the marker was durable");
                }
                if self.records.values().any(|r| r.start == Some(StartAs::Seed)) {
                    self.violate("activated a member whose next empty disk makes a cluster");
                }
                self.raft.activated = true;
            }
            Step::Promote { member_id, leader, expect, .. } => self.promote(*member_id, None, *leader, *expect)?,
            Step::SwapVoter { new, old, leader, expect, .. } => self.promote(*new, Some(*old), *leader, *expect)?,
            Step::MarkRetiring { record, member_id, config_at, reason } => {
                self.write(record)?.retirement =
                    Some(Retirement { member_id: *member_id, config_at: *config_at, reason: *reason });
                let leaves = |r: &&MemberRecord| r.retirement.as_ref().is_some_and(|m| m.reason == *reason);
                if *reason == RetireReason::Unreachable {
                    self.check_patience(*member_id);
                }
                if *reason == RetireReason::VolumeChange && self.records.values().filter(leaves).count() > 1 {
                    self.violate("two volumes left at once");
                }
            }
            Step::TransferLeader { leader, to, expect_term } => {
                if self.raft.leader != Some(*leader) || self.raft.term != *expect_term || !self.is_caught_up(*to) {
                    return Err(Refused("another leader, term or a target behind".to_owned()));
                }
                self.raft.leader = Some(*to);
                self.raft.led_since_ms = self.now_ms;
                self.raft.term += 1;
                self.raft.commit += 1;
            }
            Step::RemoveMember { member_id, leader, expect, .. } => self.remove(*member_id, *leader, *expect)?,
            Step::StopMember { record } => {
                self.check_stop(&record.name);
                self.write(record)?.running = Running::Stopped;
            }
            Step::DeletePod { record, pod_uid } => {
                self.check_stop(&record.name);
                self.end_pod(record, pod_uid)?;
            }
            Step::DeleteVolume { volume } => {
                let name = self.disk(volume)?.volume.record.clone();
                self.check_volume(&name, "deleted");
                self.disks.get_mut(&name).unwrap().volume.deletion = Deletion::Requested;
            }
            Step::ReleaseVolume { volume } => {
                let name = self.disk(volume)?.volume.record.clone();
                self.check_volume(&name, "released");
                self.disks.remove(&name);
            }
            Step::DropRecord { record } => {
                self.record(record)?;
                let id = self.records[&record.name].member_id;
                if self.raft.members.iter().any(|m| Some(m.id) == id) && self.deletion_since_ms.is_none() {
                    self.violate(format!("{}: record dropped while in the configuration", record.name));
                }
                self.records.remove(&record.name);
            }
            Step::ApplyTemplate { record, template_hash } => self.write(record)?.template_hash = template_hash.clone(),
            Step::RestartMember { record, pod_uid, evict } => self.restart(record, pod_uid, *evict)?,
            Step::GrowVolume { volume, size } => {
                self.disk(volume)?.volume.size_bytes = quorate_api::units::size_bytes(size).unwrap();
            }
            Step::Finish => {
                self.objects.finalizer = Presence::Absent;
                self.finished = true;
            }
        }
        Ok(())
    }

    fn record(&self, at: &RecordRef) -> Result<&MemberRecord, Refused> {
        let record = self.records.get(&at.name).ok_or(Refused(format!("no record {}", at.name)))?;
        if record.uid != at.uid || record.resource_version != at.resource_version {
            return Err(Refused(format!("record {} changed", at.name)));
        }
        Ok(record)
    }

    fn write(&mut self, at: &RecordRef) -> Result<&mut MemberRecord, Refused> {
        self.record(at)?;
        let version = self.fresh("");
        let record = self.records.get_mut(&at.name).unwrap();
        record.resource_version = version;
        Ok(record)
    }

    fn disk(&mut self, at: &VolumeRef) -> Result<&mut Disk, Refused> {
        let found = self.disks.values_mut().find(|d| d.volume.name == at.name);
        found.filter(|d| d.volume.uid == at.uid).ok_or(Refused(format!("no volume {} of that UID", at.name)))
    }

    fn create_record(&mut self, name: &str, template_hash: &str, purpose: RecordFor) -> Result<(), Refused> {
        if self.records.contains_key(name) {
            return Err(Refused(format!("record {name} exists")));
        }
        let uid = self.fresh("r");
        let returning = match purpose {
            RecordFor::Returning(id) => Some(id),
            RecordFor::Seed | RecordFor::Joiner => None,
        };
        if purpose == RecordFor::Seed && self.raft.activated {
            self.violate("a second bootstrap");
        }
        if let Some((_, Some(id))) = self.name_owners.get(name)
            && returning != Some(*id)
        {
            self.violate(format!("the name {name} serves a second identity"));
        }
        self.name_owners.insert(name.to_owned(), (uid.clone(), returning));
        let resource_version = self.fresh("");
        self.records.insert(
            name.to_owned(),
            MemberRecord {
                name: name.to_owned(),
                uid,
                resource_version,
                member_id: returning,
                start: returning.map(|_| StartAs::Member),
                template_hash: template_hash.to_owned(),
                running: Running::Stopped,
                retirement: None,
                deletion: Deletion::No,
                created_ms: self.now_ms,
                speaks: Spoken::default(),
                pod: None,
            },
        );
        Ok(())
    }

    fn create_volume(&mut self, at: &RecordRef) -> Result<(), Refused> {
        self.record(at)?;
        if self.disks.contains_key(&at.name) {
            return Err(Refused(format!("volume of {} exists", at.name)));
        }
        let uid = self.fresh("v");
        let size_bytes = quorate_api::units::size_bytes(&self.spec.storage.size).unwrap();
        let volume = Volume {
            record: at.name.clone(),
            name: format!("{}-data", at.name),
            uid: uid.clone(),
            resource_version: uid,
            record_uid: at.uid.clone(),
            size_bytes,
            class: self.spec.storage.storage_class_name.clone(),
            deletion: Deletion::No,
        };
        self.disks.insert(at.name.clone(), Disk { volume, data: None });
        Ok(())
    }

    fn changeable(&self, leader: MemberId, expect: ConfigAt) -> Result<(), Refused> {
        if !self.serves() || self.raft.leader != Some(leader) {
            return Err(Refused("not leader".to_owned()));
        }
        if self.raft.at != expect || self.raft.pending.is_some() {
            return Err(Refused(format!("configuration is {}, not {expect}", self.raft.at)));
        }
        Ok(())
    }

    fn propose(&mut self, next: Vec<ConfigMember>) {
        let enough = self.live_caught_up(&next) >= Self::quorum_of(&next);
        if !enough {
            let text =
                format!("a change to {} voters that nobody can commit", next.iter().filter(|m| !m.is_learner).count());
            self.violate(text);
        }
        self.raft.pending = Some(next);
    }

    fn add_learner(&mut self, record: &RecordRef, leader: MemberId, expect: ConfigAt) -> Result<(), Refused> {
        if self.raft.by_key.contains_key(&record.uid) {
            return Ok(());
        }
        self.changeable(leader, expect)?;
        let id = MemberId(self.raft.next_id);
        self.raft.next_id += 1;
        self.raft.by_key.insert(record.uid.clone(), id);
        let mut next = self.raft.members.clone();
        next.push(ConfigMember { id, name: record.name.clone(), is_learner: true, is_outgoing: false });
        self.propose(next);
        Ok(())
    }

    fn promote(
        &mut self,
        id: MemberId,
        old: Option<MemberId>,
        leader: MemberId,
        expect: ConfigAt,
    ) -> Result<(), Refused> {
        self.changeable(leader, expect)?;
        let mut next = self.raft.members.clone();
        let Some(member) = next.iter_mut().find(|m| m.id == id && m.is_learner) else {
            return Err(Refused(format!("{id} is no learner")));
        };
        member.is_learner = false;
        if !self.is_caught_up(id) {
            self.violate(format!("{id} was to be promoted while it is behind"));
        }
        if let Some(old) = old {
            self.check_removal(old);
            next.retain(|m| m.id != old);
            self.check_domains(&next);
        }
        self.propose(next);
        Ok(())
    }

    fn remove(&mut self, id: MemberId, leader: MemberId, expect: ConfigAt) -> Result<(), Refused> {
        self.changeable(leader, expect)?;
        self.check_removal(id);
        let next: Vec<_> = self.raft.members.iter().filter(|m| m.id != id).cloned().collect();
        if next.len() == self.raft.members.len() {
            return Err(Refused(format!("{id} is not in")));
        }
        let lost = self.data(id).is_none_or(|_| self.alive(id).is_none());
        let voters = next.iter().filter(|m| !m.is_learner).count();
        if lost && self.raft.members.iter().any(|m| m.id == id && !m.is_learner) && voters < self.spec.replicas as usize
        {
            self.violate(format!("lost voter {id} removed before its replacement: {voters} voters left"));
        }
        self.propose(next);
        Ok(())
    }

    fn check_removal(&mut self, id: MemberId) {
        let marked = self.records.values().any(|r| r.retirement.as_ref().is_some_and(|m| m.member_id == Some(id)));
        if !marked {
            self.violate(format!("{id} removed without a durable mark"));
        }
        if self.raft.leader == Some(id) && self.voters().len() > 1 {
            self.violate(format!("leader {id} removed without a transfer"));
        }
    }

    /// Who is given up was heard by nobody for as long as the spec says.
    fn check_patience(&mut self, id: Option<MemberId>) {
        let heard_ms = id.and_then(|id| self.raft.heard_ms.get(&id)).copied().unwrap_or_default();
        let silent_ms = self.now_ms - heard_ms;
        let after = self.validated().and_then(|cluster| cluster.replace_after_ms);
        if after.is_none_or(|after_ms| silent_ms < after_ms) {
            self.violate(format!("{id:?} given up after {silent_ms} ms of silence, where {after:?} is asked for"));
        }
    }

    /// No zone gets a majority of three or more voters that it had not before.
    fn check_domains(&mut self, next: &[ConfigMember]) {
        let inside = |members: &[ConfigMember], zone: &String| {
            members.iter().filter(|m| !m.is_learner && self.placed.get(&m.name) == Some(zone)).count()
        };
        let voters = next.iter().filter(|m| !m.is_learner).count();
        let built = self.placed.values().find(|zone| {
            let after = inside(next, zone);
            voters > 2 && voters - after < voters / 2 + 1 && after > inside(&self.raft.members, zone)
        });
        if let Some(zone) = built.cloned() {
            self.violate(format!("{zone} gets a majority of {voters} voters"));
        }
    }

    fn check_stop(&mut self, name: &str) {
        if self.was_fenced.contains(name) {
            return self.check_fence(name);
        }
        let inside =
            self.raft.members.iter().any(|m| self.records.get(name).is_some_and(|r| r.member_id == Some(m.id)));
        if inside && self.was_zero {
            return self.check_sleep(name);
        }
        if inside && self.deletion_since_ms.is_none() {
            self.violate(format!("{name} stopped while in the configuration"));
        }
    }

    fn check_fence(&mut self, name: &str) {
        let id = self.records.get(name).and_then(|r| r.member_id);
        if id.is_some() && self.raft.leader == id {
            self.violate(format!("leader {name} fenced without a transfer"));
        }
        let left: Vec<_> = self.raft.members.iter().filter(|m| Some(m.id) != id).cloned().collect();
        let counted = id.is_some_and(|id| self.is_caught_up(id));
        if counted && self.live_caught_up(&left) < Self::quorum_of(&self.raft.members) {
            self.violate(format!("{name} fenced without a margin"));
        }
        let other =
            |r: &&MemberRecord| r.name != name && r.running == Running::Stopped && self.was_fenced.contains(&r.name);
        if self.records.values().any(|r| other(&r)) {
            self.violate(format!("{name} fenced while another is"));
        }
    }

    /// A spec that asks a person first is not taken at its word by a step that disrupts.
    fn check_approval(&mut self, step: &Step) {
        let approved = self.asked.contains_key(quorate_api::names::ANNOTATION_APPROVE);
        let disrupts = matches!(step, Step::RestartMember { evict: Eviction::Evict, .. } | Step::RemoveMember { .. });
        if self.spec.approval != quorate_api::Approval::Automatic && !approved && disrupts {
            self.violate(format!("{} without approval", step.name()));
        }
    }

    fn check_sleep(&mut self, name: &str) {
        let leads = self.records.get(name).is_some_and(|r| r.member_id.is_some() && r.member_id == self.raft.leader);
        let stays =
            |id: MemberId| self.is_caught_up(id) && self.alive(id).is_some_and(|r| r.running == Running::Started);
        let others = self.voters().iter().filter(|m| Some(m.id) != self.raft.leader && stays(m.id)).count();
        if leads && self.spec.replicas == 0 && others > 0 {
            self.violate(format!("leader {name} stopped before those that follow it"));
        }
    }

    fn check_volume(&mut self, name: &str, what: &str) {
        let member = self.disks.get(name).and_then(|d| d.data).map(|d| d.member);
        if self.deletion_since_ms.is_some() {
            return;
        }
        if self.raft.members.iter().any(|m| Some(m.id) == member) {
            self.violate(format!("volume of {name} {what} while its member is in the configuration"));
        }
        if self.records.get(name).is_some_and(|r| r.pod.is_some()) {
            self.violate(format!("volume of {name} {what} while its pod exists"));
        }
    }

    fn end_pod(&mut self, at: &RecordRef, pod_uid: &str) -> Result<(), Refused> {
        let record =
            self.records.get_mut(&at.name).filter(|r| r.uid == at.uid).ok_or(Refused("no record".to_owned()))?;
        let pod = record.pod.as_mut().filter(|p| p.uid == pod_uid).ok_or(Refused("another pod".to_owned()))?;
        pod.termination = Termination::Terminating;
        Ok(())
    }

    fn restart(&mut self, at: &RecordRef, pod_uid: &str, evict: Eviction) -> Result<(), Refused> {
        let id = self.records.get(&at.name).and_then(|r| r.member_id);
        let voters = self.voters().len();
        let was_up = id.is_some_and(|id| self.is_caught_up(id) && self.voters().iter().any(|m| m.id == id));
        let led = id.is_some() && id == self.raft.leader;
        let before = self.has_quorum_of_disks();
        let ready = self.observe().words.iter().filter(|w| w.ready).count();
        if evict == Eviction::Evict && ready <= self.objects.budget_min_available.unwrap_or(0) as usize {
            return Err(Refused("the disruption budget allows no eviction".to_owned()));
        }
        self.end_pod(at, pod_uid)?;
        if led && voters > 1 {
            self.violate(format!("leader {} restarted without a transfer", at.name));
        }
        let excused = self.now_ms < self.excused_until_ms;
        if was_up && voters > 2 && before && !excused && !self.has_quorum_of_disks() {
            self.violate(format!("{} restarted without a margin", at.name));
        }
        Ok(())
    }

    // ---- what scenarios do -------------------------------------------------------------------------------------------------

    pub fn name_of_leader(&self) -> String {
        let leader = self.raft.leader.expect("the scenario has a leader");
        self.alive(leader).expect("a leader is alive").name.clone()
    }

    /// Voters that follow, by name.
    pub fn followers(&self) -> Vec<String> {
        let leader = self.raft.leader;
        self.voters().iter().filter(|m| Some(m.id) != leader).map(|m| m.name.clone()).collect()
    }

    pub fn lose_pod(&mut self, name: &str) {
        self.records.get_mut(name).unwrap().pod = None;
    }

    /// The claim is deleted and the pod with it, as a lost node with a local disk does.
    pub fn lose_volume(&mut self, name: &str) {
        self.disks.remove(name);
        self.lose_pod(name);
    }

    pub fn cut_off(&mut self, name: &str) {
        self.cut_off.insert(name.to_owned());
    }

    pub fn delete_record_by_hand(&mut self, name: &str) {
        let version = self.fresh("");
        let record = self.records.get_mut(name).unwrap();
        record.deletion = Deletion::Requested;
        record.resource_version = version;
    }

    /// Somebody took the finalizer off, too: record and pod are gone, the volume is not.
    pub fn vanish_record(&mut self, name: &str) {
        self.records.remove(name);
    }

    /// `etcdctl member remove`
    pub fn remove_by_hand(&mut self, name: &str) {
        self.raft.members.retain(|m| m.name != name);
        self.raft.commit += 1;
        self.raft.at = ConfigAt { incarnation: 1, term: self.raft.term, index: self.raft.commit };
    }

    pub fn delete_cluster(&mut self) {
        self.deletion_since_ms = Some(self.now_ms);
        self.generation += 1;
    }

    /// What two runs must agree on, whatever names and ids they gave.
    /// Requests that are not fulfilled.
    fn open_requests(&self) -> usize {
        let asked = quorate_api::Requests::of(Some(&self.asked));
        let pod = |name: &str| self.records.get(name)?.pod.as_ref().map(|p| p.uid.clone());
        let restarts = asked.restarts.iter().filter(|(name, uid)| pod(name).as_ref() == Some(*uid)).count();
        let inside = |id: &String| self.raft.members.iter().any(|m| m.id.to_string() == *id);
        let replaced = asked.replaced.values().filter(|id| inside(id)).count();
        let transfer = asked.transfer.is_some_and(|t| t.term == self.raft.term && self.name_of_leader() != t.to);
        restarts + replaced + usize::from(transfer)
    }

    pub fn summary(&self) -> String {
        if self.finished {
            return format!("deleted records={} volumes={}", self.records.len(), self.disks.len());
        }
        let mut images: Vec<_> =
            self.records.values().filter_map(|r| r.pod.as_ref()).map(|p| p.image.as_str()).collect();
        images.sort_unstable();
        let ready = self.observe().words.iter().filter(|w| w.ready).count();
        let sizes: BTreeSet<u64> = self.disks.values().map(|d| d.volume.size_bytes >> 20).collect();
        let sealed = self.records.values().filter(|r| r.start == Some(StartAs::Member)).count();
        format!(
            "voters={} learners={} records={} sealed={sealed} volumes={} pods={} ready={ready} sizes={sizes:?} images={images:?} budget={:?} bootstrapped={} asked={}",
            self.voters().len(),
            self.raft.members.len() - self.voters().len(),
            self.records.len(),
            self.disks.len(),
            self.records.values().filter(|r| r.pod.is_some()).count(),
            self.objects.budget_min_available,
            self.objects.bootstrapped.is_some(),
            self.open_requests(),
        )
    }
}
