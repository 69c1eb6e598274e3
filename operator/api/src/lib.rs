//! What users of the operator write and read: the `ConsistentCluster` resource, its names, labels and units.
//!
//! Pure: no clock, no I/O, no client. A field that has no effect is not here. The CRD in `crds/` is generated from these
//! types, and a test keeps it in step.

pub mod names;
pub mod requests;
pub mod spec;
pub mod status;
pub mod units;

pub use requests::{Requests, Transfer};
pub use spec::{
    Approval, CertManager, ChangePolicy, ConsistentCluster, ConsistentClusterSpec, Disruption, FailureDomainKey,
    IssuerRef, Keep, Labels, Network, NetworkPeer, NetworkPolicyMode, OperatorIssued, Options, PodAntiAffinity,
    PodDisruptionBudget, PodTemplate, Repair, ResourceAmounts, Resources, SecretRef, Storage, TaintEffect, Timing,
    TimingProfile, Tls, TlsMode, TlsPlane, Toleration, TolerationOperator, Topology,
};
pub use status::{
    Condition, ConditionStatus, ConsistentClusterStatus, FailoverStatus, LeaderStatus, MemberStatus, MembershipStatus,
    OperationStatus, PlannedStepStatus, QuorumStatus, RaftStatus, SurvivesStatus, status_differs,
};

use kube::CustomResourceExt;
use serde_json::Value;

/// The CustomResourceDefinition as YAML, as it lies in `crds/`.
pub fn crd_yaml() -> String {
    let crd = serde_json::to_value(ConsistentCluster::crd()).expect("a generated definition is plain data");
    let body = serde_yaml_ng::to_string(&crd).expect("plain data has a YAML form");
    format!("# Generated from operator/api. `cargo xtask crds` writes it anew.\n{body}")
}

/// Paths of a manifest that no field of the schema takes, such as `spec.replica`.
///
/// An API server prunes them or warns; whoever reads manifests without one refuses them, since an ignored field is a lie.
pub fn unknown_fields(manifest: &Value) -> Vec<String> {
    let crd = serde_json::to_value(ConsistentCluster::crd()).expect("a generated definition is plain data");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut found = Vec::new();
    collect_unknown("spec", &manifest["spec"], schema, &mut found);
    let top = manifest.as_object().into_iter().flat_map(|o| o.keys());
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    found.extend(top.filter(|key| !known.contains(&key.as_str())).cloned());
    found
}

fn collect_unknown(path: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match schema["properties"].get(key) {
            Some(inner_schema) => collect_unknown(&path, inner, inner_schema, found),
            None => found.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_named_with_its_path() {
        let manifest = serde_json::json!({
            "kind": "ConsistentCluster", "metadata": {"name": "x", "labels": {"a": "b"}}, "extra": 1,
            "spec": {"replica": 3, "storage": {"size": "1Gi", "sise": 1}, "resources": {"limits": {"cpu": "1"}}},
        });
        assert_eq!(unknown_fields(&manifest), ["spec.replica", "spec.storage.sise", "extra"]);
    }
}
