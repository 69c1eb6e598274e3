//! The CRD's rules refuse what they should, with a message that names the field and the remedy, and nothing else.

use kube::core::cel::{validate_cel, validate_cel_update};
use quorate_api::{
    CertManager, ChangePolicy, ConsistentCluster, ConsistentClusterSpec, IssuerRef, Labels, NetworkPeer, SecretRef,
    Timing, TimingProfile, TlsMode,
};

fn cluster(name: &str, change: impl FnOnce(&mut ConsistentClusterSpec)) -> ConsistentCluster {
    let mut spec = ConsistentClusterSpec::default();
    change(&mut spec);
    ConsistentCluster::new(name, spec)
}

fn custom(heartbeat: Option<&str>, election: Option<&str>) -> impl FnOnce(&mut ConsistentClusterSpec) {
    let timing = Timing {
        profile: TimingProfile::Custom,
        heartbeat: heartbeat.map(str::to_owned),
        election: election.map(str::to_owned),
    };
    |spec| spec.timing = timing
}

fn refused(cluster: &ConsistentCluster, words: &[&str]) {
    let text = validate_cel(cluster).expect_err("it is refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

fn update_refused(old: &ConsistentCluster, new: &ConsistentCluster, words: &[&str]) {
    let text = validate_cel_update(new, old).expect_err("it is refused").to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

fn accepted(cluster: &ConsistentCluster) {
    validate_cel(cluster).expect("it is accepted");
}

#[test]
fn defaults_are_accepted_and_names_are_bounded() {
    accepted(&cluster("orders", |_| {}));
    accepted(&cluster(&"o".repeat(40), |_| {}));
    refused(&cluster(&"o".repeat(41), |_| {}), &["metadata.name", "40", "shorter"]);
    for bad in ["or.ders", "4orders", "-orders", "orders-", "Orders"] {
        refused(&cluster(bad, |_| {}), &["metadata.name", "choose another"]);
    }
}

#[test]
fn members_apart_need_nodes_among_the_failure_domains() {
    use quorate_api::{FailureDomainKey, PodAntiAffinity};
    let with = |keys: Vec<FailureDomainKey>, apart| {
        cluster("orders", move |spec| {
            spec.topology.failure_domain_keys = keys;
            spec.topology.pod_anti_affinity = apart;
        })
    };
    accepted(&with(FailureDomainKey::all(), PodAntiAffinity::Required));
    accepted(&with(vec![FailureDomainKey::Zone], PodAntiAffinity::Preferred));
    accepted(&with(Vec::new(), PodAntiAffinity::Preferred));
    let words = ["podAntiAffinity", "kubernetes.io/hostname", "Preferred"];
    refused(&with(vec![FailureDomainKey::Zone], PodAntiAffinity::Required), &words);
}

#[test]
fn timing_is_whole_and_leaves_three_heartbeats() {
    accepted(&cluster("orders", custom(Some("50ms"), Some("150ms"))));
    accepted(&cluster("orders", custom(Some("500ms"), Some("2s"))));
    refused(&cluster("orders", custom(Some("50ms"), Some("149ms"))), &["election", "3 heartbeats", "raise"]);
    refused(&cluster("orders", custom(Some("1s"), Some("150ms"))), &["election", "3 heartbeats"]);
    refused(&cluster("orders", custom(Some("50ms"), None)), &["heartbeat and election", "both"]);
    refused(&cluster("orders", custom(None, None)), &["heartbeat and election", "Custom"]);
    let named_with_values = cluster("orders", |spec| spec.timing.heartbeat = Some("50ms".to_owned()));
    refused(&named_with_values, &["heartbeat and election", "Custom"]);
}

#[test]
fn volumes_grow_and_never_shrink_or_move() {
    let sized = |size: &str| cluster("orders", |spec| spec.storage.size = size.to_owned());
    validate_cel_update(&sized("2Gi"), &sized("1Gi")).expect("growing is accepted");
    validate_cel_update(&sized("1024Mi"), &sized("1Gi")).expect("the same size in other words is accepted");
    update_refused(&sized("2Gi"), &sized("1Gi"), &["spec.storage.size", "shrink", "set it back"]);
    let classed =
        |class: Option<&str>| cluster("orders", |spec| spec.storage.storage_class_name = class.map(str::to_owned));
    validate_cel_update(&classed(Some("fast")), &classed(Some("fast"))).expect("unchanged is accepted");
    for (old, new) in [(Some("fast"), Some("slow")), (None, Some("fast")), (Some("fast"), None)] {
        update_refused(&classed(old), &classed(new), &["storageClassName", "cannot change"]);
    }
    let replace = |mut cluster: ConsistentCluster| {
        cluster.spec.storage.change_policy = ChangePolicy::Replace;
        cluster
    };
    validate_cel_update(&replace(sized("1Gi")), &sized("2Gi")).expect("shrinking by replacement is accepted");
    validate_cel_update(&replace(classed(Some("fast"))), &classed(Some("slow"))).expect("and so is another class");
}

#[test]
fn pausing_and_scaling_are_always_editable() {
    let old = cluster("orders", |_| {});
    let new = cluster("orders", |spec| {
        spec.paused = true;
        spec.replicas = 5;
        spec.image = "quorate:2".to_owned();
    });
    validate_cel_update(&new, &old).expect("accepted");
}

#[test]
fn tls_has_one_source_and_moves_one_step() {
    let issuer = IssuerRef { name: "house".into(), kind: "Issuer".into(), group: "cert-manager.io".into() };
    let by = |issuer: &IssuerRef| Some(CertManager { issuer_ref: issuer.clone() });
    accepted(&cluster("orders", |spec| spec.tls.peer.cert_manager = by(&issuer)));
    let two = cluster("orders", |spec| {
        spec.tls.peer.cert_manager = by(&issuer);
        spec.tls.peer.secret_ref = Some(SecretRef { name: "peers".into() });
    });
    refused(&two, &["certManager", "secretRef", "keep one"]);
    let moded = |mode: Option<TlsMode>| cluster("orders", |spec| spec.tls.client.mode = mode);
    let (off, on, both) = (Some(TlsMode::Disabled), Some(TlsMode::Required), Some(TlsMode::Preferred));
    for (old, new) in [(off, both), (both, on), (on, both), (None, off), (None, on), (off, None), (on, None)] {
        validate_cel_update(&moded(new), &moded(old)).unwrap_or_else(|e| panic!("{old:?} to {new:?}: {e}"));
    }
    update_refused(&moded(on), &moded(off), &["one step", "Preferred first"]);
    update_refused(&moded(off), &moded(on), &["one step"]);
}

#[test]
fn a_source_of_certificates_changes_only_while_nobody_uses_one() {
    let from = |mode: TlsMode, secret: Option<&str>| {
        cluster("orders", |spec| {
            spec.tls.peer.mode = Some(mode);
            spec.tls.peer.secret_ref = secret.map(|name| SecretRef { name: name.into() });
        })
    };
    for mode in [TlsMode::Preferred, TlsMode::Required] {
        update_refused(&from(mode, Some("peers")), &from(mode, None), &["source", "Disabled"]);
        update_refused(&from(mode, None), &from(mode, Some("peers")), &["source", "Disabled"]);
        validate_cel_update(&from(mode, Some("others")), &from(mode, Some("peers"))).expect("a name is no source");
    }
    validate_cel_update(&from(TlsMode::Disabled, Some("peers")), &from(TlsMode::Disabled, None))
        .expect("nobody uses one");
}

#[test]
fn who_may_reach_members_is_named_by_pods_or_by_addresses() {
    let from = |peer: NetworkPeer| cluster("orders", |spec| spec.network.allow_from = vec![peer]);
    let pods = || NetworkPeer { pod_selector: Some(Labels::default()), ..NetworkPeer::default() };
    let cidr = Some("10.0.0.0/8".to_owned());
    accepted(&from(pods()));
    accepted(&from(NetworkPeer { cidr: cidr.clone(), ..NetworkPeer::default() }));
    refused(&from(NetworkPeer { cidr, ..pods() }), &["spec.network", "split"]);
    refused(&from(NetworkPeer::default()), &["spec.network", "fill"]);
}
