//! Who may reach the members of a cluster, as a NetworkPolicy. Pure. Whatever is not named is denied; what members ask of others
//! (peers, names) is not restricted.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate_api::{Labels, NetworkPeer, TlsMode, names};
use quorate_plan::ValidatedCluster;

use super::objects::{self, ADMIN_PORT, CLIENT_PORT, METRICS_PORT, PEER_PORT};

/// Label that the API server puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
const APP_NAME: &str = "app.kubernetes.io/name";
/// As the chart labels its pods.
const OPERATOR: &str = "quorate-operator";
/// As the Prometheus operator and the charts of Prometheus label theirs.
const PROMETHEUS: &str = "prometheus";

/// The policy of a cluster. `home` is the namespace of the operator, `hash` what the policy is rendered from.
pub fn policy(cluster: &ValidatedCluster, home: &str, hash: &str) -> NetworkPolicy {
    let identity = &cluster.identity;
    let network = &cluster.network;
    let mut metadata = objects::owned_meta(identity, names::network_policy(&identity.name));
    let founded = cluster.defaults.number().map(|number| (names::ANNOTATION_DEFAULTS, number));
    let stamps = [(names::ANNOTATION_OBJECTS_HASH, hash)].into_iter().chain(founded);
    metadata.annotations = Some(stamps.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
    let members = pods(None, Some(objects::pod_selector(identity)));
    let operator = pods(Some(labels([(NAMESPACE_NAME, home)])), Some(labels([(APP_NAME, OPERATOR)])));
    let clients = given(&network.allow_from).unwrap_or_else(|| vec![pods(None, Some(BTreeMap::new()))]);
    let monitoring = given(&network.monitoring_from)
        .unwrap_or_else(|| vec![pods(Some(BTreeMap::new()), Some(labels([(APP_NAME, PROMETHEUS)])))]);
    // Metrics have a port of their own where clients speak TLS; on the way there, some members have it and some have not.
    let metrics: &[i32] = match cluster.tls.client.mode {
        TlsMode::Disabled if cluster.tls.admin() == TlsMode::Disabled => &[CLIENT_PORT],
        TlsMode::Disabled | TlsMode::Preferred => &[METRICS_PORT, CLIENT_PORT],
        TlsMode::Required => &[METRICS_PORT],
    };
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(objects::pod_selector(identity))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                rule(&[PEER_PORT], vec![members]),
                rule(&[CLIENT_PORT], clients),
                rule(&[ADMIN_PORT], vec![operator]),
                rule(metrics, monitoring),
            ]),
            egress: None,
        }),
    }
}

/// The operator's namespace that a policy was rendered with.
pub fn home(policy: &NetworkPolicy) -> Option<String> {
    let rules = policy.spec.as_ref()?.ingress.as_ref()?;
    let admin = rules
        .iter()
        .find(|rule| rule.ports.iter().flatten().any(|port| port.port == Some(IntOrString::Int(ADMIN_PORT))))?;
    admin.from.as_ref()?.first()?.namespace_selector.as_ref()?.match_labels.as_ref()?.get(NAMESPACE_NAME).cloned()
}

fn rule(ports: &[i32], from: Vec<NetworkPolicyPeer>) -> NetworkPolicyIngressRule {
    let port = |port: &i32| NetworkPolicyPort {
        port: Some(IntOrString::Int(*port)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from: Some(from), ports: Some(ports.iter().map(port).collect()) }
}

/// The peers of a spec; nothing when it names none: to a NetworkPolicy an empty list is everybody.
fn given(peers: &[NetworkPeer]) -> Option<Vec<NetworkPolicyPeer>> {
    let peer = |peer: &NetworkPeer| {
        let NetworkPeer { namespace_selector, pod_selector, cidr } = peer;
        let of = |labels: &Labels| labels.match_labels.clone();
        match cidr {
            Some(cidr) => NetworkPolicyPeer {
                ip_block: Some(IPBlock { cidr: cidr.clone(), ..IPBlock::default() }),
                ..NetworkPolicyPeer::default()
            },
            None => pods(namespace_selector.as_ref().map(of), pod_selector.as_ref().map(of)),
        }
    };
    (!peers.is_empty()).then(|| peers.iter().map(peer).collect())
}

fn pods(namespaces: Option<BTreeMap<String, String>>, pods: Option<BTreeMap<String, String>>) -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: namespaces.map(selector), pod_selector: pods.map(selector), ip_block: None }
}

fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: (!labels.is_empty()).then_some(labels), ..LabelSelector::default() }
}

fn labels<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<String, String> {
    of.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
