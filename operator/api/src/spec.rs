//! `quorate.dev/v1alpha1`, kind `ConsistentCluster`: what is wanted.
//!
//! Schema and CEL refuse at the door what they can see; the planner's validation refuses the rest, without effect.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::ConsistentClusterStatus;

/// Fewest and most voters. None means that all are stopped; nine is where more members only make writes slower.
pub const REPLICAS_MIN: i32 = 0;
pub const REPLICAS_MAX: i32 = 9;
/// Longest cluster name, in bytes: member, pod and volume names derived from it stay within 63.
pub const NAME_BYTES_MAX: usize = 40;
pub const DEFAULT_IMAGE: &str = "quorate:dev";
pub const DEFAULT_SIZE: &str = "1Gi";

/// A replicated key-value store that answers the etcd v3 API.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "quorate.dev",
    version = "v1alpha1",
    kind = "ConsistentCluster",
    plural = "consistentclusters",
    shortname = "cc",
    namespaced,
    doc = "A replicated key-value store that answers the etcd v3 API.",
    status = "ConsistentClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas", description = "Voters"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader.name"),
    printcolumn(
        name = "Tolerates",
        type_ = "integer",
        json_path = ".status.quorum.tolerates",
        description = "Voters that may fail now without losing service"
    ),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".status.raft.term", priority = 1),
    printcolumn(name = "ConfigIndex", type_ = "integer", json_path = ".status.membership.configIndex", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name: at most 40 characters, since member names are derived from it; choose a shorter name"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: lower-case letters, digits and '-', starting with a letter, since it names Services; choose another name")
)]
#[serde(rename_all = "camelCase")]
pub struct ConsistentClusterSpec {
    /// Voters wanted. 0 stops all members; volumes and identities stay, and any other number wakes them.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 9))]
    pub replicas: i32,
    /// Image of the members. A change is rolled out member by member, leader last. The default is there only where `cargo xtask` put it.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1, max = 255))]
    pub image: String,
    /// Blocks every change but deletion. Members keep running.
    #[serde(default)]
    pub paused: bool,
    /// Which steps wait for a person, who allows them with the annotation quorate.dev/approve=<status.planHash>.
    /// Disruptive: what stops a voter that is well, or takes it out; repairs go on. Manual: whatever begins something.
    #[serde(default)]
    pub approval: Approval,
    /// How long one step may take before the condition Stalled calls for a person, such as 10m.
    #[serde(default = "default_progress_deadline")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]{0,5}(s|m|h)$"))]
    pub progress_deadline: String,
    #[serde(default)]
    pub storage: Storage,
    #[serde(default)]
    pub timing: Timing,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub topology: Topology,
    #[serde(default)]
    pub repair: Repair,
    #[serde(default)]
    pub options: Options,
    #[serde(default)]
    pub pod_template: PodTemplate,
    #[serde(default)]
    pub disruption: Disruption,
    #[serde(default)]
    pub tls: Tls,
    #[serde(default)]
    pub network: Network,
}

impl Default for ConsistentClusterSpec {
    fn default() -> Self {
        ConsistentClusterSpec {
            replicas: default_replicas(),
            image: default_image(),
            paused: false,
            approval: Approval::default(),
            progress_deadline: default_progress_deadline(),
            storage: Storage::default(),
            timing: Timing::default(),
            resources: Resources::default(),
            topology: Topology::default(),
            repair: Repair::default(),
            options: Options::default(),
            pod_template: PodTemplate::default(),
            disruption: Disruption::default(),
            tls: Tls::default(),
            network: Network::default(),
        }
    }
}

fn default_replicas() -> i32 {
    3
}
fn default_image() -> String {
    DEFAULT_IMAGE.to_owned()
}
fn default_progress_deadline() -> String {
    "10m".to_owned()
}
fn default_replace_unhealthy_after() -> String {
    "10m".to_owned()
}
fn default_size() -> String {
    DEFAULT_SIZE.to_owned()
}

/// Which steps wait for a person.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Approval {
    #[default]
    Automatic,
    /// What stops a voter that is well, or takes it out: rolls, moves of leadership, scaling in. Repairs go on.
    Disruptive,
    /// Whatever begins something. What was begun is brought to its end.
    Manual,
}

/// Where members run.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.podAntiAffinity != 'Required' || self.failureDomainKeys.exists(key, key == 'kubernetes.io/hostname')")
        .message("spec.topology: podAntiAffinity Required keeps members on nodes of their own; add kubernetes.io/hostname to failureDomainKeys, or set Preferred")
)]
pub struct Topology {
    /// Labels of nodes that say what fails together. Members are spread over each of them, and no replacement gives one of
    /// them a majority of the voters.
    #[serde(default = "FailureDomainKey::all")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub failure_domain_keys: Vec<FailureDomainKey>,
    /// Whether two members may share a node: Preferred, where there is no room; Required, never. Zones are spread over as evenly as there is room.
    #[serde(default)]
    pub pod_anti_affinity: PodAntiAffinity,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { failure_domain_keys: FailureDomainKey::all(), pod_anti_affinity: PodAntiAffinity::default() }
    }
}

/// A label of nodes whose value names a failure domain.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureDomainKey {
    #[serde(rename = "topology.kubernetes.io/zone")]
    Zone,
    #[serde(rename = "kubernetes.io/hostname")]
    Hostname,
}

impl FailureDomainKey {
    /// The widest first.
    pub fn all() -> Vec<FailureDomainKey> {
        vec![FailureDomainKey::Zone, FailureDomainKey::Hostname]
    }

    /// The label as nodes carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureDomainKey::Zone => "topology.kubernetes.io/zone",
            FailureDomainKey::Hostname => "kubernetes.io/hostname",
        }
    }
}

/// What is done about members without being asked.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// How long neither the leader nor the operator may hear a member before another takes its place, such as 10m; at least
    /// 1m, or 0s for never. Only while the others are a quorum. A member whose volume is lost is replaced at once.
    #[serde(default = "default_replace_unhealthy_after")]
    #[schemars(length(max = 10), regex(pattern = r"^(0s|[1-9][0-9]{0,5}(s|m|h))$"))]
    pub replace_unhealthy_after: String,
}

impl Default for Repair {
    fn default() -> Self {
        Repair { replace_unhealthy_after: default_replace_unhealthy_after() }
    }
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodAntiAffinity {
    /// Apart where there is room.
    #[default]
    Preferred,
    /// Apart, or not at all.
    Required,
}

/// Where members keep their data.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.changePolicy) && self.changePolicy == 'Replace') || (has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName))")
        .message("spec.storage.storageClassName cannot change while changePolicy is Expand, volumes do not move; set it back, or set changePolicy to Replace"),
    validation = Rule::new("(has(self.changePolicy) && self.changePolicy == 'Replace') || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0")
        .message("spec.storage.size cannot shrink while changePolicy is Expand, volumes only grow; set it back to the old size or a larger one, or set changePolicy to Replace")
)]
pub struct Storage {
    /// Size of each member's volume. May grow, where the storage class lets volumes grow.
    #[serde(default = "default_size")]
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]{0,14}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub size: String,
    /// Storage class of the volumes; the cluster's default class when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What may be done to reach another size or class. Growing is always done in place. Replace: a
    /// smaller size or another class is reached by new members, one after the other.
    #[serde(default)]
    pub change_policy: ChangePolicy,
    /// What happens to the volumes when the ConsistentCluster is deleted. Retain keeps them for a person: no later cluster uses them.
    #[serde(default = "Keep::retain")]
    pub on_cluster_delete: Keep,
    /// What happens to the volume of a member that was removed.
    #[serde(default = "Keep::delete")]
    pub removed_member: Keep,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            size: default_size(),
            storage_class_name: None,
            change_policy: ChangePolicy::default(),
            on_cluster_delete: Keep::Retain,
            removed_member: Keep::Delete,
        }
    }
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangePolicy {
    /// Volumes grow.
    #[default]
    Expand,
    /// A smaller size or another class is reached member by member: a new one with a new volume, then one swap, leader last.
    Replace,
}

/// The fate of a volume nobody uses any more.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Retain,
    Delete,
}

impl Keep {
    fn retain() -> Keep {
        Keep::Retain
    }
    fn delete() -> Keep {
        Keep::Delete
    }
}

/// How fast a lost leader is noticed.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.profile == 'Custom') == has(self.heartbeat) && (self.profile == 'Custom') == has(self.election)")
        .message("spec.timing: heartbeat and election are set with profile Custom, both, and with no other profile"),
    validation = Rule::new("!has(self.heartbeat) || !has(self.election) || duration(self.election) >= duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat)")
        .message("spec.timing.election must be at least 3 heartbeats; raise election or lower heartbeat")
)]
pub struct Timing {
    /// LAN: heartbeats every 50 ms, elections after 150 to 300 ms. WAN: 100 ms, 1 to 2 s. Custom: as given below.
    #[serde(default)]
    pub profile: TimingProfile,
    /// Time between heartbeats, such as 50ms; at least 5ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]{0,5}(ms|s)$"))]
    pub heartbeat: Option<String>,
    /// Shortest silence after which a follower stands for election, such as 150ms; the longest is twice that. At most 50s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]{0,5}(ms|s)$"))]
    pub election: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimingProfile {
    #[default]
    #[serde(rename = "LAN")]
    Lan,
    #[serde(rename = "WAN")]
    Wan,
    Custom,
}

/// Compute resources of each member.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// A new cluster's members ask for 100m of CPU unless a request or a limit says otherwise.
    #[serde(default)]
    pub requests: ResourceAmounts,
    #[serde(default)]
    pub limits: ResourceAmounts,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// Cores, such as 500m or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,3})?m?$"))]
    pub cpu: Option<String>,
    /// Bytes, such as 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]{0,14}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub memory: Option<String>,
}

/// Settings of the members' program.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Largest state of a member, which it holds in memory; writes that grow it are refused beyond. At least 16Mi; 2Gi when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]{0,14}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub quota_backend_bytes: Option<String>,
}

/// Where pods may be placed, beside what `topology` says. A change is rolled out member by member.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// An existing PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// As in a pod.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key; every taint when absent, with operator Exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub key: Option<String>,
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value, with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Every effect when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long a pod stays on a node that got the taint; for ever when absent. With effect NoExecute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub toleration_seconds: Option<i64>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TolerationOperator {
    #[default]
    Equal,
    Exists,
}

impl TolerationOperator {
    /// As a pod's spec writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            TolerationOperator::Equal => "Equal",
            TolerationOperator::Exists => "Exists",
        }
    }
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl TaintEffect {
    /// As a pod's spec writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
    }
}

/// How voluntary disruptions of pods by others are limited.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// Enabled: a drain takes at most one voter, and none that the quorum needs.
    #[serde(default)]
    pub pod_disruption_budget: PodDisruptionBudget,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodDisruptionBudget {
    #[default]
    Enabled,
    Disabled,
}

/// Who speaks TLS. Modes change live, member by member; what the operator does with members follows the stricter of the two.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Clients, on the client port.
    #[serde(default)]
    pub client: TlsPlane,
    /// Members among themselves.
    #[serde(default)]
    pub peer: TlsPlane,
}

#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.operatorIssued) ? 1 : 0) + (has(self.certManager) ? 1 : 0) + (has(self.secretRef) ? 1 : 0) <= 1")
        .message("spec.tls: operatorIssued, certManager and secretRef are sources of certificates; keep one for each of client and peer"),
    validation = Rule::new("!has(self.mode) || !has(oldSelf.mode) || self.mode == oldSelf.mode || self.mode == 'Preferred' || oldSelf.mode == 'Preferred'")
        .message("spec.tls: mode moves one step at a time, Disabled - Preferred - Required; set it to Preferred first"),
    validation = Rule::new("(has(self.certManager) == has(oldSelf.certManager) && has(self.secretRef) == has(oldSelf.secretRef)) || (has(oldSelf.mode) && oldSelf.mode == 'Disabled')")
        .message("spec.tls: the source of certificates changes only while mode is Disabled, since members with certificates of the new one and of the old do not trust each other; set mode to Preferred, then Disabled, change the source, and come back")
)]
pub struct TlsPlane {
    /// Absent, it is Required; Disabled for a cluster that was founded by an operator whose default that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// The operator runs an authority for this cluster alone and renews everything by itself. The default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_issued: Option<OperatorIssued>,
    /// cert-manager issues: the operator makes Certificates, and members use the Secrets that these are filled into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManager>,
    /// A Secret of the same namespace with tls.crt, tls.key and ca.crt, whose certificate is good for every member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// What is spoken on a port: Disabled is plain text, Preferred both, as a step on the way, Required only TLS 1.3 with certificates on both
/// sides. Absent, it is Required; Disabled for a cluster that was founded by an operator whose default that was.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsMode {
    /// Plain text only.
    #[default]
    Disabled,
    /// Both: a step on the way.
    Preferred,
    /// TLS 1.3 with certificates on both sides, only.
    Required,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
pub struct OperatorIssued {}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CertManager {
    pub issuer_ref: IssuerRef,
}

/// Who issues, as cert-manager's own issuerRef. It must keep URIs: they say what a certificate is good for.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Issuer (of this namespace), ClusterIssuer, or a kind of another group.
    #[serde(default = "default_issuer_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    #[serde(default = "default_issuer_group")]
    #[schemars(length(min = 1, max = 253))]
    pub group: String,
}

fn default_issuer_kind() -> String {
    "Issuer".to_owned()
}
fn default_issuer_group() -> String {
    "cert-manager.io".to_owned()
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Who may reach the members, as a NetworkPolicy says it: what is not named here is denied.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Absent, it is Enabled; Disabled for a cluster that was founded by an operator that made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicyMode>,
    /// Who may reach the client port; every pod of the namespace when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub allow_from: Vec<NetworkPeer>,
    /// Who may read metrics besides the operator; pods labelled app.kubernetes.io/name=prometheus of any namespace when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub monitoring_from: Vec<NetworkPeer>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkPolicyMode {
    Enabled,
    Disabled,
}

/// Pods, or addresses.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.cidr) != (has(self.namespaceSelector) || has(self.podSelector))")
        .message("spec.network: an entry names pods by selectors, or addresses by cidr; split it, or fill it")
)]
pub struct NetworkPeer {
    /// Namespaces the pods are in; the cluster's own when absent, all of them when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<Labels>,
    /// The pods; all of those namespaces when absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Labels>,
    /// Addresses, such as 10.1.0.0/16 or 2001:db8::/32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 49), regex(pattern = r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"))]
    pub cidr: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Labels {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub match_labels: BTreeMap<String, String>,
}
