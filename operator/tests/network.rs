//! The rendered NetworkPolicy against a table of connections, judged as Kubernetes defines it: what selects a pod denies whatever
//! none of its rules lets through.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate_api::{ConsistentCluster, ConsistentClusterSpec, Labels, NetworkPeer, NetworkPolicyMode, TlsMode};
use quorate_operator::kubernetes::network;
use quorate_plan::{Intent, Observation, ValidatedCluster};

const HOME: &str = "quorate-system";

fn cluster(change: impl FnOnce(&mut ConsistentClusterSpec)) -> ValidatedCluster {
    let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
    cluster.metadata.namespace = Some("shop".to_owned());
    cluster.metadata.uid = Some("2f1c".to_owned());
    change(&mut cluster.spec);
    match Intent::of(&cluster).settled(&Observation::default()) {
        Intent::Run(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

/// Who asks.
struct From {
    namespace: &'static str,
    labels: &'static [(&'static str, &'static str)],
    ip: &'static str,
}

const fn pod(namespace: &'static str, labels: &'static [(&'static str, &'static str)]) -> From {
    From { namespace, labels, ip: "10.244.1.7" }
}

const MEMBER: &[(&str, &str)] =
    &[("quorate.dev/cluster-uid", "2f1c"), ("app.kubernetes.io/managed-by", "quorate"), ("quorate.dev/voter", "true")];
const NAMESAKE: &[(&str, &str)] = &[("quorate.dev/cluster-uid", "9d3e"), ("app.kubernetes.io/managed-by", "quorate")];
const OPERATOR: &[(&str, &str)] = &[("app.kubernetes.io/name", "quorate-operator")];
const PROMETHEUS: &[(&str, &str)] = &[("app.kubernetes.io/name", "prometheus")];
const SHOP: &[(&str, &str)] = &[("app", "shop")];

fn pairs(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    assert!(selector.match_expressions.is_none(), "this judge knows labels only");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_within(ip: &str, cidr: &str) -> bool {
    let (network, bits) = cidr.split_once('/').expect("a network has a length");
    let bits: u32 = bits.parse().expect("a length is a number");
    match (ip.parse().expect("an address"), network.parse().expect("an address")) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(ip) & mask == u32::from(network) & mask
        }
        _ => false,
    }
}

fn is_peer(peer: &NetworkPolicyPeer, own: &str, from: &From) -> bool {
    if let Some(block) = &peer.ip_block {
        return is_within(from.ip, &block.cidr);
    }
    let namespace = pairs(&[("kubernetes.io/metadata.name", from.namespace)]);
    let in_namespace = match &peer.namespace_selector {
        Some(selector) => selects(selector, &namespace),
        None => own == from.namespace,
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pairs(from.labels)))
}

fn lets_through(rule: &NetworkPolicyIngressRule, own: &str, from: &From, port: i32) -> bool {
    let ports = rule.ports.iter().flatten().any(|p| p.port == Some(IntOrString::Int(port)) && p.end_port.is_none());
    let any_port = rule.ports.as_ref().is_none_or(Vec::is_empty);
    let anybody = rule.from.as_ref().is_none_or(Vec::is_empty);
    (ports || any_port) && (anybody || rule.from.iter().flatten().any(|peer| is_peer(peer, own, from)))
}

fn may(policy: &NetworkPolicy, from: &From, port: i32) -> bool {
    let spec = policy.spec.as_ref().expect("a policy has a spec");
    let own = policy.metadata.namespace.as_deref().expect("it has a namespace");
    let member = spec.pod_selector.as_ref().expect("it selects pods");
    assert!(selects(member, &pairs(MEMBER)), "it is about the members");
    assert!(!selects(member, &pairs(NAMESAKE)), "and not about those of another cluster");
    assert_eq!(spec.policy_types.as_deref(), Some(&["Ingress".to_owned()][..]));
    spec.ingress.iter().flatten().any(|rule| lets_through(rule, own, from, port))
}

/// Each row says for the ports of clients, peers, the operator, and metrics, whether they may be reached.
fn check(cluster: &ValidatedCluster, rows: &[(&str, From, [bool; 4])]) {
    let policy = network::policy(cluster, HOME, "h");
    for (who, from, wanted) in rows {
        let found = [2379, 2380, 2381, 2382].map(|port| may(&policy, from, port));
        assert_eq!(&found, wanted, "{who}: client, peer, admin, metrics");
        assert!(!may(&policy, from, 8080), "{who}: a port that nobody has");
    }
}

#[test]
fn by_default_the_namespace_may_write_members_may_talk_and_the_operator_may_ask() {
    let rows = [
        ("a pod of the namespace", pod("shop", SHOP), [true, false, false, false]),
        ("a member of the cluster", pod("shop", MEMBER), [true, true, false, false]),
        ("a member of another cluster in the namespace", pod("shop", NAMESAKE), [true, false, false, false]),
        ("one that bears our labels in another namespace", pod("other", MEMBER), [false, false, false, false]),
        ("a pod of another namespace", pod("other", SHOP), [false, false, false, false]),
        ("the operator", pod(HOME, OPERATOR), [false, false, true, false]),
        ("another pod beside the operator", pod(HOME, SHOP), [false, false, false, false]),
        ("one that calls itself the operator elsewhere", pod("other", OPERATOR), [false, false, false, false]),
        ("a Prometheus", pod("monitoring", PROMETHEUS), [false, false, false, true]),
        ("somebody outside", From { namespace: "", labels: &[], ip: "192.0.2.9" }, [false, false, false, false]),
    ];
    check(&cluster(|_| {}), &rows);
}

#[test]
fn metrics_are_read_where_they_are_served() {
    let plain = cluster(|spec| {
        (spec.tls.client.mode, spec.tls.peer.mode) = (Some(TlsMode::Disabled), Some(TlsMode::Disabled));
    });
    check(&plain, &[("a Prometheus", pod("monitoring", PROMETHEUS), [true, false, false, false])]);
    let between = cluster(|spec| spec.tls.client.mode = Some(TlsMode::Preferred));
    check(&between, &[("a Prometheus", pod("monitoring", PROMETHEUS), [true, false, false, true])]);
}

#[test]
fn a_list_takes_the_place_of_the_namespace() {
    let labels = |labels: &[(&str, &str)]| Some(Labels { match_labels: pairs(labels) });
    let listed = cluster(|spec| {
        spec.network.allow_from = vec![
            NetworkPeer { pod_selector: labels(SHOP), ..NetworkPeer::default() },
            NetworkPeer {
                namespace_selector: labels(&[("kubernetes.io/metadata.name", "billing")]),
                ..NetworkPeer::default()
            },
            NetworkPeer { cidr: Some("192.0.2.0/24".to_owned()), ..NetworkPeer::default() },
        ];
        spec.network.monitoring_from =
            vec![NetworkPeer { namespace_selector: labels(&[]), pod_selector: labels(&[("app", "vm")]), cidr: None }];
    });
    let rows = [
        ("a pod that is named", pod("shop", SHOP), [true, false, false, false]),
        ("another of the namespace", pod("shop", &[("app", "cart")]), [false, false, false, false]),
        ("one with that label elsewhere", pod("other", SHOP), [false, false, false, false]),
        ("any pod of a namespace that is named", pod("billing", &[("app", "x")]), [true, false, false, false]),
        ("a network that is named", From { namespace: "", labels: &[], ip: "192.0.2.9" }, [true, false, false, false]),
        ("the network beside it", From { namespace: "", labels: &[], ip: "192.0.3.9" }, [false, false, false, false]),
        ("a collector that is named", pod("any", &[("app", "vm")]), [false, false, false, true]),
        ("the default one", pod("monitoring", PROMETHEUS), [false, false, false, false]),
        ("the operator still", pod(HOME, OPERATOR), [false, false, true, false]),
    ];
    check(&listed, &rows);
}

#[test]
fn the_policy_tells_where_the_operator_is_and_is_made_when_it_is_wanted() {
    assert_eq!(network::home(&network::policy(&cluster(|_| {}), HOME, "h")).as_deref(), Some(HOME));
    assert!(cluster(|_| {}).policy_hash(HOME).is_some());
    let off = cluster(|spec| spec.network.policy = Some(NetworkPolicyMode::Disabled));
    assert_eq!(off.policy_hash(HOME), None);
}
