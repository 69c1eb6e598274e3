//! Specs that slipped past schema and CEL, or never met them: refused as a whole, or harmless. Never a panic, never an effect.

use quorate_api::{ConsistentCluster, names};
use quorate_plan::{Decision, Intent, Observation, plan};
use serde_json::{Value, json};

const FIELDS: [&str; 31] = [
    "/metadata/name",
    "/spec/replicas",
    "/spec/image",
    "/spec/paused",
    "/spec/approval",
    "/spec/progressDeadline",
    "/spec/storage/changePolicy",
    "/spec/topology/podAntiAffinity",
    "/spec/topology/failureDomainKeys",
    "/spec/repair/replaceUnhealthyAfter",
    "/spec/options/quotaBackendBytes",
    "/spec/podTemplate/nodeSelector/disk",
    "/spec/podTemplate/tolerations/0/key",
    "/spec/podTemplate/priorityClassName",
    "/spec/storage/size",
    "/spec/storage/storageClassName",
    "/spec/storage/onClusterDelete",
    "/spec/timing/profile",
    "/spec/timing/heartbeat",
    "/spec/timing/election",
    "/spec/resources/requests/cpu",
    "/spec/resources/limits/cpu",
    "/spec/resources/limits/memory",
    "/spec/disruption/podDisruptionBudget",
    "/spec/tls/client/mode",
    "/spec/tls/client/secretRef/name",
    "/spec/tls/peer/certManager/issuerRef/name",
    "/spec/tls/peer/certManager/issuerRef/kind",
    "/spec/network/policy",
    "/spec/network/allowFrom/0/cidr",
    "/spec/network/monitoringFrom/0/podSelector/matchLabels",
];

fn values() -> Vec<Value> {
    let mut values = vec![Value::Null, json!(true), json!([]), json!({}), json!(1.5), json!("x".repeat(1 << 16))];
    let numbers = [0, 1, -1, 9, 10, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN];
    values.extend(numbers.iter().map(|n| json!(n)));
    let texts = [
        "",
        " ",
        "0",
        "-1",
        "1",
        "0ms",
        "1ms",
        "5ms",
        "999999s",
        "99999999999999999999Ti",
        "18446744073709551616",
        "0Gi",
        "1Gi",
        "1gi",
        "1.5",
        "1.5555",
        "ü",
        "名前",
        "\u{0}",
        "a\nb",
        "$(reboot)",
        "../../etc",
        "LAN",
        "Custom",
        "Retain",
        "Enabled",
    ];
    values.extend(texts.iter().map(|t| json!(t)));
    values
}

fn base() -> Value {
    json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster",
        "metadata": {"name": "orders", "uid": "c1", "generation": 1},
        "spec": {
            "replicas": 3, "image": "quorate:1", "paused": false, "approval": "Automatic", "progressDeadline": "10m",
            "topology": {"podAntiAffinity": "Preferred", "failureDomainKeys": ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]},
            "repair": {"replaceUnhealthyAfter": "10m"},
            "options": {"quotaBackendBytes": "8Gi"},
            "podTemplate": {
                "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "stateful", "value": "yes"}],
                "priorityClassName": "data",
            },
            "storage": {"size": "1Gi", "changePolicy": "Expand", "storageClassName": "fast", "onClusterDelete": "Retain"},
            "timing": {"profile": "Custom", "heartbeat": "50ms", "election": "150ms"},
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}},
            "disruption": {"podDisruptionBudget": "Enabled"},
            "tls": {
                "client": {"mode": "Required", "secretRef": {"name": "clients"}},
                "peer": {"mode": "Required", "certManager": {"issuerRef": {"name": "house", "kind": "Issuer"}}},
            },
            "network": {
                "policy": "Enabled", "allowFrom": [{"cidr": "192.0.2.0/24"}],
                "monitoringFrom": [{"podSelector": {"matchLabels": {"app": "vm"}}}],
            },
        },
    })
}

#[test]
fn hostile_specs_are_refused_or_harmless() {
    let (mut unread, mut refused, mut taken) = (0, 0, 0);
    for field in FIELDS {
        for value in values() {
            let mut object = base();
            *object.pointer_mut(field).expect("the base has every field") = value.clone();
            let Ok(cluster) = serde_json::from_value::<ConsistentCluster>(object) else {
                unread += 1;
                continue;
            };
            let intent = Intent::of(&cluster);
            let next = plan(&intent, &Observation::default(), 0, names::seed("c1")).next;
            match intent {
                Intent::Refused(spec) => {
                    refused += 1;
                    assert!(!spec.problems.is_empty());
                    assert!(matches!(next, Decision::Blocked(_)), "{field}={value} has an effect: {next:?}");
                }
                Intent::Run(run) => {
                    taken += 1;
                    assert!((0..=9).contains(&run.replicas) && run.storage.size_bytes > 0, "{field}={value}: {run:?}");
                    assert!(run.timing.election_ms >= 3 * run.timing.heartbeat_ms, "{field}={value}: {run:?}");
                    assert!(run.quota_bytes.is_none_or(|bytes| bytes >= 16 << 20), "{field}={value}: {run:?}");
                    assert!(run.replace_after_ms.is_none_or(|ms| ms >= 60_000), "{field}={value}: {run:?}");
                    assert!(run.timing.heartbeat_ms > 0 && run.identity.name.len() <= 40, "{field}={value}: {run:?}");
                }
                Intent::Delete(_) => panic!("{field}={value} deletes"),
            }
        }
    }
    println!("{unread} could not be read, {refused} refused, {taken} taken");
    assert!(unread + refused + taken >= 500 && refused > 100 && taken > 20);
}

#[test]
fn the_base_is_taken_and_each_field_alone_changes_the_template_or_nothing() {
    let read = |object: Value| match Intent::of(&serde_json::from_value(object).unwrap()) {
        Intent::Run(run) => run,
        other => panic!("{other:?}"),
    };
    let before = read(base()).template_hash();
    let changed = |field: &str, value: Value| {
        let mut object = base();
        *object.pointer_mut(field).unwrap() = value;
        read(object).template_hash() != before
    };
    for (field, value) in [
        ("/spec/image", json!("quorate:2")),
        ("/spec/timing/heartbeat", json!("40ms")),
        ("/spec/timing/election", json!("200ms")),
        ("/spec/resources/requests/cpu", json!("500m")),
        ("/spec/resources/limits/memory", json!("2Gi")),
        ("/spec/topology/failureDomainKeys", json!(["kubernetes.io/hostname"])),
        ("/spec/options/quotaBackendBytes", json!("1Gi")),
        ("/spec/podTemplate/nodeSelector/disk", json!("slow")),
        ("/spec/podTemplate/tolerations/0/value", json!("no")),
        ("/spec/podTemplate/priorityClassName", json!("other")),
        ("/spec/tls/client/secretRef/name", json!("others")),
        ("/spec/tls/peer/mode", json!("Preferred")),
    ] {
        assert!(changed(field, value), "{field} restarts members");
    }
    for (field, value) in [
        ("/spec/replicas", json!(5)),
        ("/spec/paused", json!(true)),
        ("/spec/storage/size", json!("2Gi")),
        ("/spec/disruption/podDisruptionBudget", json!("Disabled")),
        ("/spec/repair/replaceUnhealthyAfter", json!("0s")),
        ("/spec/network/policy", json!("Disabled")),
        ("/spec/network/allowFrom/0/cidr", json!("10.0.0.0/8")),
    ] {
        assert!(!changed(field, value), "{field} restarts nobody");
    }
}
