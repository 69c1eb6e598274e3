//! The steps a shell can take. A step names everything it was decided on; a shell has nothing left to choose.
//!
//! Each step is one mutating call. Its preconditions travel with it: a record's UID and resource version, a pod's or volume's
//! UID, a member's id, the committed configuration. A precondition that fails is news: the shell observes again.

use quorate_api::names;

use crate::observation::{ClusterId, ConfigAt, MemberId, RetireReason, StartAs};

/// A record as it was read. Writes are made against this UID and resource version, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRef {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

/// A volume as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRef {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

/// Why a record is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFor {
    /// The first member of a cluster that never was.
    Seed,
    /// A member to be added.
    Joiner,
    /// A member of the committed configuration whose record vanished: same name, same id, its own volume.
    Returning(MemberId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Puts the finalizer on the cluster, so that deletion can clean up.
    AddFinalizer,
    /// Creates or repairs services and other shared objects, and stamps them with `hash`.
    ApplyObjects { hash: String, policy: Option<String> },
    /// Creates or changes the PodDisruptionBudget; `None` deletes it.
    SetBudget { min_available: Option<u32> },
    /// Creates a record with `replicas: 0`, with `create`, so that a clash is a conflict. `start` and the retirement mark
    /// stay empty, except that a returning member is marked `StartAs::Member`.
    CreateMember { name: String, template_hash: String, purpose: RecordFor },
    /// Creates the record's volume, stamped with cluster UID, incarnation and the record's UID.
    CreateVolume { record: RecordRef },
    /// Stamps an existing volume with the UID of a record that came back. The volume carries the record's name, this cluster's
    /// UID and incarnation; the node checks the identity on it before it starts.
    AdoptVolume { record: RecordRef, volume: VolumeRef },
    /// Adds the record's member as a learner. The record's UID is the idempotency key. Sent to `leader`.
    AddLearner { record: RecordRef, leader: MemberId, expect: ConfigAt },
    /// Writes the id which the committed configuration gives to this record's member.
    RecordMemberId { record: RecordRef, member_id: MemberId },
    /// Renders the template with `start` and sets `replicas: 1`. For `Member` the id is known.
    StartMember { record: RecordRef, start: StartAs, member_id: Option<MemberId>, template_hash: String },
    /// Makes *bootstrapped* durable on an owned object.
    RecordBootstrap { cluster_id: ClusterId },
    /// Renders the seed's template as an ordinary member's, so that an empty disk is never a new cluster again. Restarts nothing.
    SealSeed { record: RecordRef, member_id: MemberId, template_hash: String },
    /// Tells the seed that *bootstrapped* is durable.
    Activate { record: String, member_id: MemberId, cluster_id: ClusterId },
    /// Makes a learner a voter. The leader refuses a lag above `lag_max`.
    Promote { record: String, member_id: MemberId, leader: MemberId, expect: ConfigAt, lag_max: u64 },
    /// Writes the durable retirement mark, and takes the voter label away.
    MarkRetiring { record: RecordRef, member_id: Option<MemberId>, config_at: ConfigAt, reason: RetireReason },
    /// Asks the leader to hand over. Refused by a leader of another term.
    TransferLeader { leader: MemberId, to: MemberId, expect_term: u64 },
    /// Takes a member out of the configuration.
    RemoveMember { name: String, member_id: MemberId, leader: MemberId, expect: ConfigAt },
    /// One joint change: the learner in, the old voter out.
    SwapVoter { record: String, new: MemberId, old: MemberId, leader: MemberId, expect: ConfigAt, lag_max: u64 },
    /// Sets `replicas: 0`.
    StopMember { record: RecordRef },
    /// Deletes a pod by UID whose controller no longer stops it.
    DeletePod { record: RecordRef, pod_uid: String },
    /// Deletes a volume by UID and resource version.
    DeleteVolume { volume: VolumeRef },
    /// Keeps a volume but takes it out of the cluster's care: labels and owner go, the data stays.
    ReleaseVolume { volume: VolumeRef },
    /// Takes the finalizer off the record and deletes it.
    DropRecord { record: RecordRef },
    /// Renders the record's template anew. Restarts nothing: pods change on delete only.
    ApplyTemplate { record: RecordRef, template_hash: String },
    /// Lets the pod be made again from the record's template: an eviction with UID while the member is up (a refusal for
    /// readiness is overruled, `plan` has proven the margin), a plain delete by UID while it is down.
    RestartMember { record: RecordRef, pod_uid: String, evict: Eviction },
    /// Raises the size a volume claim asks for.
    GrowVolume { volume: VolumeRef, size: String },
    /// Takes the finalizer off the cluster: deletion is done.
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// The member is up: the restart shares the budget with every drain.
    Evict,
    /// The member is down already, or the size has no margin and the change was asked for.
    Delete,
}

impl Step {
    /// The record (or leader's id) the step is about, as shown in `status.plan`.
    pub fn member(&self) -> Option<&str> {
        match self {
            Step::CreateMember { name, .. } | Step::RemoveMember { name, .. } => Some(name),
            Step::CreateVolume { record }
            | Step::AdoptVolume { record, .. }
            | Step::AddLearner { record, .. }
            | Step::RecordMemberId { record, .. }
            | Step::StartMember { record, .. }
            | Step::SealSeed { record, .. }
            | Step::MarkRetiring { record, .. }
            | Step::StopMember { record }
            | Step::DeletePod { record, .. }
            | Step::DropRecord { record }
            | Step::ApplyTemplate { record, .. }
            | Step::RestartMember { record, .. } => Some(&record.name),
            Step::Activate { record, .. } | Step::Promote { record, .. } | Step::SwapVoter { record, .. } => {
                Some(record)
            }
            Step::DeleteVolume { volume } | Step::ReleaseVolume { volume } | Step::GrowVolume { volume, .. } => {
                Some(names::record_of_volume(&volume.name))
            }
            Step::AddFinalizer
            | Step::ApplyObjects { .. }
            | Step::SetBudget { .. }
            | Step::RecordBootstrap { .. }
            | Step::TransferLeader { .. }
            | Step::Finish => None,
        }
    }

    /// The step's name as shown in `status.plan`.
    pub fn name(&self) -> &'static str {
        match self {
            Step::AddFinalizer => "AddFinalizer",
            Step::ApplyObjects { .. } => "ApplyObjects",
            Step::SetBudget { .. } => "SetBudget",
            Step::CreateMember { .. } => "CreateMember",
            Step::CreateVolume { .. } => "CreateVolume",
            Step::AdoptVolume { .. } => "AdoptVolume",
            Step::AddLearner { .. } => "AddLearner",
            Step::RecordMemberId { .. } => "RecordMemberId",
            Step::StartMember { .. } => "StartMember",
            Step::RecordBootstrap { .. } => "RecordBootstrap",
            Step::SealSeed { .. } => "SealSeed",
            Step::Activate { .. } => "Activate",
            Step::Promote { .. } => "Promote",
            Step::MarkRetiring { .. } => "MarkRetiring",
            Step::TransferLeader { .. } => "TransferLeader",
            Step::RemoveMember { .. } => "RemoveMember",
            Step::SwapVoter { .. } => "SwapVoter",
            Step::StopMember { .. } => "StopMember",
            Step::DeletePod { .. } => "DeletePod",
            Step::DeleteVolume { .. } => "DeleteVolume",
            Step::ReleaseVolume { .. } => "ReleaseVolume",
            Step::DropRecord { .. } => "DropRecord",
            Step::ApplyTemplate { .. } => "ApplyTemplate",
            Step::RestartMember { .. } => "RestartMember",
            Step::GrowVolume { .. } => "GrowVolume",
            Step::Finish => "Finish",
        }
    }
}
