//! `ConsistentCluster.status`: what is. Written from one observation, joined by member id.
//!
//! 64-bit ids are strings, since JSON readers lose digits of such numbers. Times are RFC 3339.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most members a status lists.
pub const MEMBERS_MAX: usize = 15;

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ConsistentClusterStatus {
    /// The generation of the spec that the conditions describe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the members were last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_observed_time: Option<String>,
    /// Voters in the committed configuration.
    #[serde(default)]
    pub replicas: i32,
    /// Voters that answer linearizable requests now.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the members' pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Raised only by a reviewed recovery or a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<MembershipStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft: Option<RaftStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverStatus>,
    /// What the operator is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Names the plan that waits for approval, or that was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// What it will do, in order, and what each step waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub plan: Vec<PlannedStepStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 15), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct LeaderStatus {
    pub name: String,
    pub id: String,
    pub term: i64,
    /// Log index of the leader's own first entry in this term.
    pub own_term_index: i64,
    /// That entry is committed.
    pub committed: bool,
    /// That entry is applied: only now does the leader serve.
    pub applied: bool,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MembershipStatus {
    /// Log index of the committed configuration.
    pub config_index: i64,
    pub voters: i32,
    pub learners: i32,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RaftStatus {
    pub term: i64,
    pub commit_index: i64,
    pub last_applied: i64,
    /// Entries that are in the leader's log but not committed.
    pub pending_entries: i64,
    /// The oldest last word of the leader among the followers that answered.
    pub leader_heartbeat_age_ms: i64,
    /// Leader changes.
    pub elections: i64,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct QuorumStatus {
    pub required: i32,
    /// Voters that the leader hears.
    pub reachable: i32,
    /// Voters that the leader hears and that hold everything but the last few entries.
    pub caught_up: i32,
    /// Voters that may fail now without losing service.
    pub tolerates: i32,
    /// Whole domains that may fail now, any one of them, without losing service; absent where places are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survives: Option<SurvivesStatus>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SurvivesStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<bool>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FailoverStatus {
    pub count: i64,
    /// From the old leader's last heartbeat to the new one's own entry applied, measured by the new leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_duration_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Bootstrap, ScaleOut, ScaleIn, Upgrade, ReplaceMember, ScaleToZero or Delete.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When this step became the next one; spec.progressDeadline counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStepStatus {
    pub step: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub need: Option<i64>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Leader, Follower, Candidate, PreCandidate, Learner, Removed or Unknown.
    pub role: String,
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Entries the leader has and this member has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_lag: Option<i64>,
    /// Zone of the node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Who said so. Direct: the member itself; Leader: only the leader knows of it; None: nobody.
    pub source: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    pub status: ConditionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    #[schemars(length(max = 32768))]
    pub message: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConsistentClusterStatus {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }
}

/// Says whether a status is worth a write: volatile numbers alone are not, they ride with a real change.
pub fn status_differs(old: &ConsistentClusterStatus, new: &ConsistentClusterStatus) -> bool {
    steady(old) != steady(new)
}

/// The status without what moves on a healthy, idle cluster: observation time, commit, applied, lags, heartbeat age, and the
/// numbers that messages and plan lines repeat.
fn steady(status: &ConsistentClusterStatus) -> ConsistentClusterStatus {
    let mut status = status.clone();
    status.last_observed_time = None;
    if let Some(raft) = &mut status.raft {
        raft.commit_index = 0;
        raft.last_applied = 0;
        raft.pending_entries = 0;
        raft.leader_heartbeat_age_ms = 0;
    }
    for member in &mut status.members {
        member.match_lag = None;
    }
    for step in &mut status.plan {
        step.have = None;
    }
    for condition in &mut status.conditions {
        condition.message = without_digits(&condition.message);
    }
    status
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}
