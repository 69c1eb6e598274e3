//! What users of the operator write and read: the `ConsistentCluster` resource, its names, labels and units.
//!
//! Pure: no clock, no I/O, no client. A field that has no effect is not here. The CRD in `crds/` is generated from these
//! types, and a test keeps it in step.

pub mod names;
pub mod spec;
pub mod status;
pub mod units;

pub use spec::{
    ConsistentCluster, ConsistentClusterSpec, Disruption, Keep, PodDisruptionBudget, ResourceAmounts, Resources,
    Storage, Timing, TimingProfile,
};
pub use status::{
    Condition, ConditionStatus, ConsistentClusterStatus, FailoverStatus, LeaderStatus, MemberStatus, MembershipStatus,
    OperationStatus, PlannedStepStatus, QuorumStatus, RaftStatus, status_differs,
};

use kube::CustomResourceExt;

/// The CustomResourceDefinition as YAML, as it lies in `crds/`.
pub fn crd_yaml() -> String {
    let crd = serde_json::to_value(ConsistentCluster::crd()).expect("a generated definition is plain data");
    let body = serde_yaml_ng::to_string(&crd).expect("plain data has a YAML form");
    format!("# Generated from operator/api. `cargo xtask crds` writes it anew.\n{body}")
}
