//! What the planner may know: facts read by a shell, each with its identity and, where it matters, its age.
//!
//! Only facts live here. A shell fills these types and decides nothing: who leads, what is lost and what a margin is follow
//! in `view`. The same types describe StatefulSets and claims, or processes and directories.

use std::fmt;

use quorate_api::TlsMode;

use crate::secured::Defaults;

/// Identity of a member in the cluster's configuration. Never used twice, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    /// Hexadecimal without leading zeros, as etcd's tools print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Identity of a Raft cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Names one committed configuration. Every membership call is a compare-and-set on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ConfigAt {
    pub incarnation: u64,
    pub term: u64,
    pub index: u64,
}

impl fmt::Display for ConfigAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.term, self.index)
    }
}

/// One reading of everything, taken in one pass: objects first, members' words after them, so that a word is never older than
/// the record it is joined with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// What could not be read this time ("member records: timeout"). Not empty: nothing is decided from absences.
    pub unread: Vec<String>,
    pub objects: SharedObjects,
    /// Every record carrying this cluster's UID and incarnation, in any order; the planner sorts by name.
    pub records: Vec<MemberRecord>,
    /// Every volume carrying this cluster's UID and incarnation, whether or not its record exists.
    pub volumes: Vec<Volume>,
    /// At most one answer per record, of this pass. A member that did not answer is absent here.
    pub words: Vec<MemberWord>,
    /// A linearizable round made in this pass; absent when nobody could be asked.
    pub probe: Option<Probe>,
    /// How certificates stand; absent where nobody speaks TLS.
    pub tls: Option<TlsWord>,
}

/// How certificates stand. Says nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsWord {
    /// None is well.
    pub fault: Option<String>,
    /// An exchange of the authority is under way, or a mode is on its way: why it is not done.
    pub waits: Option<String>,
    /// What was exchanged in this pass.
    pub rotated: Vec<String>,
    /// When the first certificate in use ends, in seconds since the Unix epoch.
    pub not_after: Option<i64>,
}

/// Objects that belong to the cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedObjects {
    /// Hash stamped on the shared objects when all of them exist as last applied, see `Intent::objects_hash`.
    pub applied_hash: Option<String>,
    /// Hash stamped on the NetworkPolicy; absent when there is none of ours.
    pub policy_hash: Option<String>,
    /// What the cluster was founded under, as the peer Service or the NetworkPolicy says it; absent without both.
    pub defaults: Option<Defaults>,
    /// The namespace the operator runs in; empty where that means nothing.
    pub home: String,
    /// The durable *bootstrapped* marker on an owned object (never only in status): the cluster's id.
    pub bootstrapped: Option<ClusterId>,
    /// `minAvailable` of the existing PodDisruptionBudget; absent when there is none.
    pub budget_min_available: Option<u32>,
    /// The finalizer on the ConsistentCluster itself, which holds its deletion until `Finish`.
    pub finalizer: Presence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    #[default]
    Absent,
    Present,
}

/// One member record: a StatefulSet with `replicas` 0 or 1 (a directory in local mode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    pub name: String,
    pub uid: String,
    /// Opaque; sent back as a precondition.
    pub resource_version: String,
    /// Annotation; absent until the committed configuration holds this record's member.
    pub member_id: Option<MemberId>,
    /// How its pod starts; absent before `StartMember`, and then it never ran.
    pub start: Option<StartAs>,
    /// Hash of the template the *next* pod of this record gets.
    pub template_hash: String,
    pub running: Running,
    /// Durable mark: this member leaves. Written before anything is taken away.
    pub retirement: Option<Retirement>,
    /// A deletion timestamp is set: somebody deleted the record, which means "retire and replace this member".
    pub deletion: Deletion,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What the next pod of this record speaks.
    pub speaks: Spoken,
    pub pod: Option<Pod>,
}

/// What a process speaks on its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spoken {
    pub client: TlsMode,
    pub peer: TlsMode,
}

impl Spoken {
    /// The operator speaks with it as the stricter of both asks for.
    pub fn admin(self) -> TlsMode {
        self.client.max(self.peer)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// `replicas: 0`
    Stopped,
    /// `replicas: 1`
    Started,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    No,
    Requested,
}

/// How a member's process is told to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAs {
    /// May make a new cluster of one on an empty disk; refuses clients until it is activated.
    Seed,
    /// Joins or rejoins under a known id; an empty disk is refused unless it is a learner that never ran.
    Member,
}

/// The mark of a member that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// Absent when the record never had a member.
    pub member_id: Option<MemberId>,
    /// Configuration the decision was made on.
    pub config_at: ConfigAt,
    pub reason: RetireReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetireReason {
    /// The spec asks for fewer voters.
    ScaleIn,
    /// A learner is no longer wanted, or did not catch up before its deadline.
    Abandoned,
    /// Its volume or identity is gone for good.
    Lost,
    /// Somebody deleted its record.
    RecordDeleted,
    /// Somebody removed it from the configuration by hand.
    RemovedByHand,
    /// Somebody asked for another member in its place.
    Requested,
    /// Its volume is larger than wanted, or of another class.
    VolumeChange,
    /// Nobody heard it for longer than `spec.repair.replaceUnhealthyAfter`.
    Unreachable,
}

impl RetireReason {
    pub const ALL: [RetireReason; 8] = [
        RetireReason::ScaleIn,
        RetireReason::Abandoned,
        RetireReason::Lost,
        RetireReason::RecordDeleted,
        RetireReason::RemovedByHand,
        RetireReason::Requested,
        RetireReason::VolumeChange,
        RetireReason::Unreachable,
    ];

    /// As written in the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            RetireReason::ScaleIn => "ScaleIn",
            RetireReason::Abandoned => "Abandoned",
            RetireReason::Lost => "Lost",
            RetireReason::RecordDeleted => "RecordDeleted",
            RetireReason::RemovedByHand => "RemovedByHand",
            RetireReason::Requested => "Requested",
            RetireReason::VolumeChange => "VolumeChange",
            RetireReason::Unreachable => "Unreachable",
        }
    }

    pub fn parse(text: &str) -> Option<RetireReason> {
        RetireReason::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// The pod (or process) of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    pub phase: PodPhase,
    pub readiness: Readiness,
    pub termination: Termination,
    /// Why it does not run, as the container or the scheduler says ("ImagePullBackOff", "Unschedulable", "CrashLoopBackOff").
    pub waiting_reason: Option<String>,
    /// Hash of the template this pod was made from.
    pub template_hash: String,
    pub image: String,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    pub speaks: Spoken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    Pending,
    Running,
    /// Ended, with or without success.
    Ended,
    /// The node does not answer.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    NotReady,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    No,
    /// A deletion timestamp is set; the process may still run.
    Terminating,
}

/// One volume (a PersistentVolumeClaim, or a data directory).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Also the record's name: a volume serves one record.
    pub record: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// Stamp: UID of the record it was made for. A volume with another stamp is not this record's.
    pub record_uid: String,
    /// What the claim asks for, not what it got: growing is asked for once. A world without sizes says what is wanted.
    pub size_bytes: u64,
    /// Storage class of the claim; absent where there is none.
    pub class: Option<String>,
    pub deletion: Deletion,
}

/// A member's own word about itself, of this pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberWord {
    /// The record whose pod answered.
    pub record: String,
    /// UID of that pod.
    pub pod_uid: String,
    /// Time since the answer was given, when the observation ended.
    pub age_ms: u64,
    pub cluster_id: ClusterId,
    pub member_id: MemberId,
    pub incarnation: u64,
    pub version: String,
    pub role: Role,
    pub term: u64,
    pub leader_id: Option<MemberId>,
    pub commit_index: u64,
    pub applied_index: u64,
    pub last_index: u64,
    pub pending_entries: u64,
    /// Follower: since the leader's last word.
    pub leader_contact_age_ms: u64,
    pub elections: u64,
    /// Leader: index of its own no-op.
    pub own_term_index: u64,
    pub own_term_committed: bool,
    pub own_term_applied: bool,
    /// Leader: since it became leader of this term; 0 where it does not tell.
    pub led_ms: u64,
    /// Leader: since a majority last confirmed it.
    pub quorum_confirmed_age_ms: u64,
    pub config_at: ConfigAt,
    pub change_in_flight: bool,
    pub joint: bool,
    /// Of the committed configuration.
    pub members: Vec<ConfigMember>,
    /// Leader only.
    pub progress: Vec<Progress>,
    pub failover_count: u64,
    pub last_failover_ms: u64,
    pub activated: bool,
    /// What its readiness endpoint says.
    pub ready: bool,
    pub not_ready_reason: String,
    /// Why it may not speak (rot, identity); empty when sound.
    pub fault: String,
    /// Its disk is nearly full: as a leader it refuses what grows.
    pub disk_low: bool,
    /// Damaged parts of its log that are not repaired.
    pub rot_open: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    PreCandidate,
    Learner,
    Removed,
}

impl Role {
    pub const ALL: [Role; 6] =
        [Role::Leader, Role::Follower, Role::Candidate, Role::PreCandidate, Role::Learner, Role::Removed];

    /// As the admin service and the status spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "Leader",
            Role::Follower => "Follower",
            Role::Candidate => "Candidate",
            Role::PreCandidate => "PreCandidate",
            Role::Learner => "Learner",
            Role::Removed => "Removed",
        }
    }

    pub fn parse(text: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// One member of a committed configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMember {
    pub id: MemberId,
    pub name: String,
    pub is_learner: bool,
    /// Old half of a joint configuration only.
    pub is_outgoing: bool,
}

/// What the leader knows of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub member_id: MemberId,
    /// Durable at that member, verified in the leader's term.
    pub matched: u64,
    /// Since its last answer; `u64::MAX`: never in this term.
    pub last_ack_age_ms: u64,
    /// Heard within the election timeout.
    pub active: bool,
    pub snapshotting: bool,
}

/// Outcome of a linearizable round through the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub age_ms: u64,
    /// The read index, or what went wrong.
    pub outcome: Result<u64, String>,
}
