//! Rendered objects, against texts that are looked at when they change. `UPDATE=1` writes them anew.

use std::path::Path;

use quorate_api::{
    CertManager, ConsistentCluster, ConsistentClusterSpec, FailureDomainKey, IssuerRef, PodTemplate, TaintEffect,
    Toleration, TolerationOperator,
};
use quorate_operator::kubernetes::objects::{self, LeaderEndpoint, RecordFacts};
use quorate_operator::kubernetes::{cert_manager, network, observe};
use quorate_plan::{Defaults, Intent, Observation, RetireReason, Running, StartAs, ValidatedCluster};
use serde::Serialize;

const RECORD: &str = "orders-b7xk2";

fn cluster() -> ValidatedCluster {
    let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
    cluster.metadata.namespace = Some("shop".into());
    cluster.metadata.uid = Some("2f1c".into());
    cluster.spec.resources.requests.cpu = Some("500m".into());
    match Intent::of(&cluster) {
        Intent::Run(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

fn facts(start: Option<StartAs>, others: &[String]) -> RecordFacts<'_> {
    RecordFacts { name: RECORD, start, template_hash: "abc", is_voter: true, others }
}

fn golden(name: &str, object: &impl Serialize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.yaml"));
    let text = serde_yaml_ng::to_string(&serde_json::to_value(object).expect("plain data"))
        .expect("plain data has a YAML form");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file in golden/")).expect("the checkout can be written");
        std::fs::write(&path, &text).expect("the checkout can be written");
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == text, "{} is old; look at the new text, then UPDATE=1:\n{text}", path.display());
}

#[test]
fn a_record() {
    golden("stateful_set", &objects::stateful_set(&cluster(), facts(None, &[])));
}

#[test]
fn a_pod_is_placed_as_the_spec_says() {
    let with = |change: fn(&mut ConsistentClusterSpec)| {
        let mut wanted = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        change(&mut wanted.spec);
        let Intent::Run(cluster) = Intent::of(&wanted) else { panic!("the spec is refused") };
        objects::pod_template(&cluster, facts(None, &[])).spec.unwrap()
    };
    let zones = with(|spec| spec.topology.failure_domain_keys = vec![FailureDomainKey::Zone]);
    assert!(zones.affinity.is_none() && zones.topology_spread_constraints.is_some());
    let nodes = with(|spec| spec.topology.failure_domain_keys = vec![FailureDomainKey::Hostname]);
    assert!(nodes.affinity.is_some() && nodes.topology_spread_constraints.is_none());
    let placed = with(|spec| {
        spec.options.quota_backend_bytes = Some("1Gi".into());
        spec.pod_template = PodTemplate {
            node_selector: [("disk".to_owned(), "fast".to_owned())].into(),
            tolerations: vec![Toleration {
                key: Some("stateful".into()),
                operator: TolerationOperator::Exists,
                effect: Some(TaintEffect::NoExecute),
                toleration_seconds: Some(30),
                ..Toleration::default()
            }],
            priority_class_name: Some("data".into()),
        };
    });
    let args = placed.containers[0].args.clone().unwrap();
    assert!(args.contains(&"--quota-backend-bytes=1073741824".to_owned()), "{args:?}");
    let shown = serde_json::to_value(&placed).unwrap();
    assert_eq!(shown["nodeSelector"], serde_json::json!({"disk": "fast"}));
    let toleration = serde_json::json!([
        {"key": "stateful", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    ]);
    assert_eq!(shown["tolerations"], toleration);
    assert_eq!(shown["priorityClassName"], "data");
}

#[test]
fn a_seed_may_found_and_a_member_may_not() {
    let args = |start, others: &[String]| {
        let template = objects::pod_template(&cluster(), facts(start, others));
        template.spec.unwrap().containers[0].args.clone().unwrap()
    };
    let seed = args(Some(StartAs::Seed), &[]);
    assert!(seed.contains(&"--initial-cluster-state=new".to_owned()), "{seed:?}");
    assert!(seed.contains(&"--await-activation".to_owned()), "{seed:?}");
    let others = [RECORD.to_owned(), "orders-k4m2p".to_owned()];
    let member = args(Some(StartAs::Member), &others);
    let first = format!(
        "--initial-cluster={RECORD}=http://{RECORD}.shop.svc:2380,orders-k4m2p=http://orders-k4m2p.shop.svc:2380"
    );
    assert!(member.contains(&first), "{member:?}");
    assert!(member.contains(&"--initial-cluster-state=existing".to_owned()), "{member:?}");
    assert!(member.contains(&"--initial-cluster-token=2f1c-1".to_owned()), "{member:?}");
    assert!(!member.contains(&"--await-activation".to_owned()), "{member:?}");
}

#[test]
fn a_volume_bears_its_records_uid_and_has_no_owner() {
    let claim = objects::claim(&cluster(), RECORD, "uid-1");
    assert_eq!(claim.metadata.owner_references, None, "garbage collection must not take data");
    golden("claim", &claim);
}

#[test]
fn services() {
    let [peer, client, leader] = objects::services(&cluster().identity, "h", Defaults::Secured);
    assert_eq!(leader.spec.as_ref().unwrap().selector, None, "the leader's address is ours to give");
    golden("service_member", &objects::member_service(&cluster().identity, RECORD, "uid-1"));
    golden("service_peer", &peer);
    golden("service_client", &client);
    golden("service_leader", &leader);
}

#[test]
fn who_may_reach_members() {
    let cluster = cluster().settled(&Observation::default());
    golden("network_policy", &network::policy(&cluster, "quorate-system", "h"));
}

#[test]
fn a_member_by_tls_and_what_cert_manager_is_asked_for() {
    let mut wanted = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
    wanted.metadata.namespace = Some("shop".into());
    wanted.metadata.uid = Some("2f1c".into());
    let issuer = IssuerRef { name: "house".into(), kind: "Issuer".into(), group: "cert-manager.io".into() };
    wanted.spec.tls.peer.cert_manager = Some(CertManager { issuer_ref: issuer });
    let Intent::Run(cluster) = Intent::of(&wanted).settled(&Observation::default()) else { panic!("it is valid") };
    golden("pod_template_tls", &objects::pod_template(&cluster, facts(Some(StartAs::Member), &[])));
    let asked = cert_manager::wanted(&cluster.identity, &cluster.tls, &[RECORD.to_owned()]);
    golden("certificate", &asked.iter().map(|one| &one.spec).collect::<Vec<_>>());
}

#[test]
fn the_leader_service_has_one_address_or_none() {
    let identity = cluster().identity;
    let leader = LeaderEndpoint { ip: "10.0.0.7".into(), pod: format!("{RECORD}-0"), node: Some("n1".into()) };
    golden("endpoint_slice", &objects::leader_slice(&identity, Some(&leader)));
    assert!(objects::leader_slice(&identity, None).endpoints.is_empty());
}

#[test]
fn the_budget_is_an_integer_of_voters() {
    golden("budget", &objects::budget(&cluster().identity, 2));
}

#[test]
fn a_record_is_read_back_as_it_was_written() {
    let mut set = objects::stateful_set(&cluster(), facts(None, &[]));
    let fresh = observe::member_record(&set, None);
    assert_eq!((fresh.running, fresh.start, fresh.member_id), (Running::Stopped, None, None));
    assert_eq!(fresh.template_hash, "abc");
    let mark = r#"{"memberId":"8e9e","incarnation":1,"term":4,"index":9,"reason":"ScaleIn"}"#;
    let annotations = set.metadata.annotations.as_mut().unwrap();
    annotations.insert("quorate.dev/retiring".into(), mark.into());
    annotations.insert("quorate.dev/member-id".into(), "8e9e".into());
    annotations.insert("quorate.dev/start".into(), "member".into());
    let read = observe::member_record(&set, None);
    let retirement = read.retirement.unwrap();
    assert_eq!((retirement.reason, retirement.config_at.index), (RetireReason::ScaleIn, 9));
    assert_eq!(retirement.member_id, read.member_id);
    assert_eq!(read.start, Some(StartAs::Member));
}

#[test]
fn a_slice_is_written_anew_only_when_it_leads_elsewhere() {
    let identity = cluster().identity;
    let to = |ip: &str, pod: &str| {
        let leader = LeaderEndpoint { ip: ip.to_owned(), pod: pod.to_owned(), node: None };
        objects::leader_slice(&identity, Some(&leader))
    };
    let known = to("10.0.0.1", "orders-b7xk2-0");
    assert!(objects::points_alike(&known, &to("10.0.0.1", "orders-b7xk2-0")));
    assert!(!objects::points_alike(&known, &to("10.0.0.2", "orders-b7xk2-0")));
    assert!(!objects::points_alike(&known, &to("10.0.0.1", "orders-k4m2p-0")));
    assert!(!objects::points_alike(&known, &objects::leader_slice(&identity, None)));
    let mut elsewhere = known.clone();
    elsewhere.metadata.labels.get_or_insert_default().clear();
    assert!(!objects::points_alike(&known, &elsewhere), "it belongs to no Service");
}
