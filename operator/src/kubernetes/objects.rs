//! The objects of a cluster, rendered. Pure: equal arguments give equal objects.
//!
//! A record is a StatefulSet of at most one pod; see `observe` for the way back.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, Lifecycle, LifecycleHandler,
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PodAffinityTerm,
    PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, Service, ServicePort, ServiceSpec, SleepAction, Toleration,
    TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements, WeightedPodAffinityTerm,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate_api::{FailureDomainKey, PodAntiAffinity as Apart, ResourceAmounts, TlsMode, names};
use quorate_plan::{Defaults, Identity, Source, Spoken, StartAs, ValidatedCluster};

use crate::world::MemberUrls;

pub const CLIENT_PORT: i32 = 2379;
pub const PEER_PORT: i32 = 2380;
pub const ADMIN_PORT: i32 = 2381;
/// Plain text, for probes and for what reads metrics, where clients speak TLS.
pub const METRICS_PORT: i32 = 2382;
/// The user of the image; not root.
const USER: i64 = 65532;
/// A member hands leadership over, flushes and ends well within this.
const GRACE_SECONDS: i64 = 30;
/// A member that is to go serves on for this long, and only then sends its clients away: by then no node sends new connections
/// to it, so whoever comes back by the Service finds another member at once.
const LAME_DUCK_SECONDS: i64 = 3;
/// Replaying a long log is no failure: ten minutes.
const STARTUP_TRIES: i32 = 200;
const PROBE_SECONDS: i32 = 3;
const CONTAINER: &str = "member";
const DATA: &str = "data";
/// Where certificates are mounted: those the operator issues, and those of a Secret that somebody else keeps.
const TLS: &str = "tls";
const TLS_CLIENT: &str = "tls-client";
const TLS_PEER: &str = "tls-peer";
const VOTER: &str = "true";

/// Labels of every owned object.
pub fn labels(identity: &Identity) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "quorate"),
        ("app.kubernetes.io/instance", identity.name.as_str()),
        (names::LABEL_MANAGED_BY, names::MANAGED_BY),
        (names::LABEL_CLUSTER, identity.name.as_str()),
        (names::LABEL_CLUSTER_UID, identity.uid.as_str()),
    ]
    .into_iter()
    .chain(std::iter::once((names::LABEL_INCARNATION, identity.incarnation.to_string().as_str())))
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

fn member_labels(identity: &Identity, record: &str, is_voter: bool) -> BTreeMap<String, String> {
    let mut labels = labels(identity);
    labels.insert(names::LABEL_MEMBER.to_owned(), record.to_owned());
    if is_voter {
        labels.insert(names::LABEL_VOTER.to_owned(), VOTER.to_owned());
    }
    labels
}

/// What selects the members' pods, and nothing else of this cluster.
pub(super) fn pod_selector(identity: &Identity) -> BTreeMap<String, String> {
    [(names::LABEL_CLUSTER_UID, identity.uid.as_str()), (names::LABEL_MANAGED_BY, names::MANAGED_BY)]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// Members that are to stay. One that is being replaced does not count any more.
fn voter_selector(identity: &Identity) -> LabelSelector {
    let mut labels = pod_selector(identity);
    labels.insert(names::LABEL_VOTER.to_owned(), VOTER.to_owned());
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}

pub fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: "quorate.dev/v1alpha1".to_owned(),
        kind: "ConsistentCluster".to_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// What goes with a member's record.
pub fn record_owner(record: &str, record_uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "StatefulSet".to_owned(),
        name: record.to_owned(),
        uid: record_uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// What a certificate is good for, as members read it.
pub fn role_uri(identity: &Identity, role: &str) -> String {
    format!("quorate://{}/{role}", identity.uid)
}

pub fn owned_meta(identity: &Identity, name: String) -> ObjectMeta {
    meta(identity, name)
}

fn meta(identity: &Identity, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(identity.namespace.clone()),
        labels: Some(labels(identity)),
        owner_references: Some(vec![owner(identity)]),
        ..ObjectMeta::default()
    }
}

/// A member's name in the cluster's DNS: its own Service, whose address is there before the pod is and does not change with it.
///
/// A pod's own name would not do: DNS servers remember for half a minute that it was not there, or where it was last.
pub fn host(identity: &Identity, record: &str) -> String {
    format!("{record}.{}.svc", identity.namespace)
}

/// Every name under which a client or another member may reach this one.
pub fn certificate_names(identity: &Identity, record: &str) -> Vec<String> {
    let cluster = &identity.name;
    let services = [names::client_service(cluster), names::leader_service(cluster), names::peer_service(cluster)];
    let all = services.into_iter().chain([record.to_owned()]).flat_map(|service| {
        let spaced = format!("{service}.{}", identity.namespace);
        [service, format!("{spaced}.svc"), format!("{spaced}.svc.cluster.local"), spaced]
    });
    all.chain(["localhost".to_owned(), "127.0.0.1".to_owned()]).collect()
}

/// The name that leads to every member there is, ready or not.
fn peers_host(identity: &Identity) -> String {
    format!("{}.{}.svc", names::peer_service(&identity.name), identity.namespace)
}

pub fn urls(cluster: &ValidatedCluster, record: &str) -> MemberUrls {
    let host = host(&cluster.identity, record);
    MemberUrls {
        peer: vec![format!("{}://{host}:{PEER_PORT}", scheme(cluster.tls.peer.mode))],
        client: vec![format!("{}://{host}:{CLIENT_PORT}", scheme(cluster.tls.client.mode))],
    }
}

/// As long as both are spoken, everybody is told of the one that everybody understands.
fn scheme(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Disabled | TlsMode::Preferred => "http",
        TlsMode::Required => "https",
    }
}

/// What a pod speaks, as its annotation says it.
pub fn tls_modes(cluster: &ValidatedCluster) -> String {
    format!("{:?}/{:?}", cluster.tls.client.mode, cluster.tls.peer.mode)
}

/// What a pod's annotation says it speaks; plain text where it has none.
pub fn read_spoken(text: Option<&str>) -> Spoken {
    let mode = |word: Option<&str>| match word {
        Some("Required") => TlsMode::Required,
        Some("Preferred") => TlsMode::Preferred,
        _ => TlsMode::Disabled,
    };
    let mut words = text.unwrap_or_default().split('/');
    Spoken { client: mode(words.next()), peer: mode(words.next()) }
}

/// What a record is rendered from besides the spec.
#[derive(Debug, Clone, Copy)]
pub struct RecordFacts<'a> {
    pub name: &'a str,
    pub start: Option<StartAs>,
    pub template_hash: &'a str,
    pub is_voter: bool,
    /// Other members that may be asked for the configuration.
    pub others: &'a [String],
}

/// A member record as it is created: stopped.
pub fn stateful_set(cluster: &ValidatedCluster, facts: RecordFacts<'_>) -> StatefulSet {
    let identity = &cluster.identity;
    let mut metadata = meta(identity, facts.name.to_owned());
    metadata.labels = Some(member_labels(identity, facts.name, facts.is_voter));
    metadata.finalizers = Some(vec![names::FINALIZER_LEAVE.to_owned()]);
    metadata.annotations =
        Some(BTreeMap::from([(names::ANNOTATION_TEMPLATE_HASH.to_owned(), facts.template_hash.to_owned())]));
    let mut selector = pod_selector(identity);
    selector.insert(names::LABEL_MEMBER.to_owned(), facts.name.to_owned());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(0),
            // OrderedReady cannot take a bad template back.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            service_name: Some(names::peer_service(&identity.name)),
            revision_history_limit: Some(2),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            template: pod_template(cluster, facts),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

pub fn pod_template(cluster: &ValidatedCluster, facts: RecordFacts<'_>) -> PodTemplateSpec {
    let identity = &cluster.identity;
    let mut annotations =
        BTreeMap::from([(names::ANNOTATION_TEMPLATE_HASH.to_owned(), facts.template_hash.to_owned())]);
    if speaks_tls(cluster) {
        annotations.insert(names::ANNOTATION_TLS.to_owned(), tls_modes(cluster));
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(member_labels(identity, facts.name, facts.is_voter)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod_spec(cluster, facts)),
    }
}

fn pod_spec(cluster: &ValidatedCluster, facts: RecordFacts<'_>) -> PodSpec {
    let identity = &cluster.identity;
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        affinity: cluster.domains.contains(&FailureDomainKey::Hostname).then(|| apart(cluster)),
        topology_spread_constraints: cluster.domains.contains(&FailureDomainKey::Zone).then(|| {
            vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: FailureDomainKey::Zone.as_str().to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                // Whoever is to take the place of a member that still runs is drawn to the zone which that one leaves.
                label_selector: Some(voter_selector(identity)),
                ..TopologySpreadConstraint::default()
            }]
        }),
        node_selector: (!cluster.pods.node_selector.is_empty()).then(|| cluster.pods.node_selector.clone()),
        tolerations: (!cluster.pods.tolerations.is_empty())
            .then(|| cluster.pods.tolerations.iter().map(toleration).collect()),
        priority_class_name: cluster.pods.priority_class_name.clone(),
        containers: vec![container(cluster, facts)],
        volumes: Some(volumes(cluster, facts.name)),
        ..PodSpec::default()
    }
}

fn toleration(wanted: &quorate_api::Toleration) -> Toleration {
    let quorate_api::Toleration { key, operator, value, effect, toleration_seconds } = wanted;
    Toleration {
        key: key.clone(),
        operator: Some(operator.as_str().to_owned()),
        value: value.clone(),
        effect: effect.map(|effect| effect.as_str().to_owned()),
        toleration_seconds: *toleration_seconds,
    }
}

pub(super) fn speaks_tls(cluster: &ValidatedCluster) -> bool {
    cluster.tls.admin() != TlsMode::Disabled
}

/// The Secrets that hold certificates, by the name of their volume. The operator's own serve its port in any case.
fn secrets(cluster: &ValidatedCluster, record: &str) -> Vec<(&'static str, String)> {
    if !speaks_tls(cluster) {
        return Vec::new();
    }
    let tls = &cluster.tls;
    let given = [
        (TLS_CLIENT, given(&tls.client.source, || names::server_certificate(record))),
        (TLS_PEER, given(&tls.peer.source, || names::peer_certificate(record))),
    ];
    let given = given.into_iter().filter_map(|(volume, secret)| Some((volume, secret?)));
    std::iter::once((TLS, names::member_secret(record))).chain(given).collect()
}

/// The Secret that others fill; nothing when the operator issues.
fn given(source: &Source, certificate: impl FnOnce() -> String) -> Option<String> {
    match source {
        Source::Operator => None,
        Source::Secret(name) => Some(name.clone()),
        Source::CertManager(_) => Some(certificate()),
    }
}

fn volumes(cluster: &ValidatedCluster, record: &str) -> Vec<Volume> {
    let data = Volume {
        name: DATA.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: names::volume(record),
            read_only: None,
        }),
        ..Volume::default()
    };
    let secret = |(name, secret): (&str, String)| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            // The group of the pod reads them, and nobody else.
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    std::iter::once(data).chain(secrets(cluster, record).into_iter().map(secret)).collect()
}

fn mounts(cluster: &ValidatedCluster, record: &str) -> Vec<VolumeMount> {
    let data = VolumeMount { name: DATA.to_owned(), mount_path: "/data".to_owned(), ..VolumeMount::default() };
    let secret = |(name, _): (&str, String)| VolumeMount {
        name: name.to_owned(),
        mount_path: format!("/{name}"),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    std::iter::once(data).chain(secrets(cluster, record).into_iter().map(secret)).collect()
}

/// The flags of TLS. A Secret that others fill has the names of kubernetes.io/tls.
fn tls_arguments(cluster: &ValidatedCluster) -> Vec<String> {
    if !speaks_tls(cluster) {
        return Vec::new();
    }
    let tls = &cluster.tls;
    let word = |mode: TlsMode| format!("{mode:?}").to_lowercase();
    let mut arguments = Vec::new();
    let files = |source: &Source, own: &str, volume: &str| match source {
        Source::Operator => format!("/{TLS}/{own}"),
        Source::CertManager(_) | Source::Secret(_) => format!("/{volume}/tls"),
    };
    let client = files(&tls.client.source, "server", TLS_CLIENT);
    let peer = files(&tls.peer.source, "peer", TLS_PEER);
    for (prefix, plane, files, mode) in [
        ("", "client", client, tls.client.mode),
        ("peer-", "peer", peer, tls.peer.mode),
        ("admin-", "admin", format!("/{TLS}/server"), tls.admin()),
    ] {
        arguments.push(format!("--{plane}-tls-mode={}", word(mode)));
        if mode != TlsMode::Disabled {
            let dir = files.rsplit_once('/').map_or("", |(dir, _)| dir);
            arguments.push(format!("--{prefix}cert-file={files}.crt"));
            arguments.push(format!("--{prefix}key-file={files}.key"));
            arguments.push(format!("--{prefix}trusted-ca-file={dir}/ca.crt"));
        }
    }
    if tls.has_roles() {
        arguments.push(format!("--tls-cluster={}", cluster.identity.uid));
    }
    arguments.push(format!("--listen-metrics-urls=http://0.0.0.0:{METRICS_PORT}"));
    arguments
}

/// Preferred by default, since a small cluster of machines is no reason not to run.
fn apart(cluster: &ValidatedCluster) -> Affinity {
    let identity = &cluster.identity;
    let term = PodAffinityTerm {
        topology_key: FailureDomainKey::Hostname.as_str().to_owned(),
        // With as many nodes as members, the node of the member that leaves is the only one for who replaces it.
        label_selector: Some(voter_selector(identity)),
        ..PodAffinityTerm::default()
    };
    let terms = match cluster.apart {
        Apart::Preferred => PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        },
        Apart::Required => PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        },
    };
    Affinity { pod_anti_affinity: Some(terms), ..Affinity::default() }
}

fn container(cluster: &ValidatedCluster, facts: RecordFacts<'_>) -> Container {
    let port = |name: &str, number| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    // The kubelet has no certificate to show.
    let probed = if speaks_tls(cluster) { METRICS_PORT } else { CLIENT_PORT };
    let metrics = speaks_tls(cluster).then(|| port("metrics", METRICS_PORT));
    let ports = [port("client", CLIENT_PORT), port("peer", PEER_PORT), port("admin", ADMIN_PORT)];
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["quorate-node".to_owned()]),
        args: Some(arguments(cluster, facts)),
        env: Some(vec![EnvVar { name: "RUST_BACKTRACE".to_owned(), value: Some("1".to_owned()), ..EnvVar::default() }]),
        ports: Some(ports.into_iter().chain(metrics).collect()),
        startup_probe: Some(probe(probed, "/livez", STARTUP_TRIES)),
        liveness_probe: Some(probe(probed, "/livez", 10)),
        readiness_probe: Some(probe(probed, "/readyz", 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: LAME_DUCK_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: resources(cluster),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts(cluster, facts.name)),
        ..Container::default()
    }
}

fn probe(port: i32, path: &str, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(port),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(PROBE_SECONDS),
        timeout_seconds: Some(PROBE_SECONDS),
        success_threshold: Some(1),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn resources(cluster: &ValidatedCluster) -> Option<ResourceRequirements> {
    let of = |amounts: &ResourceAmounts| {
        let ResourceAmounts { cpu, memory } = amounts;
        let both = [("cpu", cpu), ("memory", memory)];
        let given: BTreeMap<String, Quantity> =
            both.into_iter().filter_map(|(k, v)| Some((k.to_owned(), Quantity(v.clone()?)))).collect();
        (!given.is_empty()).then_some(given)
    };
    let (requests, limits) = (of(&cluster.requests), of(&cluster.limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// The member program's flags. A seed founds a cluster of itself; everybody else asks the others for the configuration.
fn arguments(cluster: &ValidatedCluster, facts: RecordFacts<'_>) -> Vec<String> {
    let identity = &cluster.identity;
    let (spoken, speak) = (scheme(cluster.tls.peer.mode), scheme(cluster.tls.client.mode));
    let peer = format!("{spoken}://{}:{PEER_PORT}", host(identity, facts.name));
    let client = format!("{speak}://{}:{CLIENT_PORT}", host(identity, facts.name));
    let own = format!("{}={peer}", facts.name);
    let (state, first) = match facts.start {
        Some(StartAs::Seed) => ("new", own),
        Some(StartAs::Member) | None => {
            let others = facts.others.iter().filter(|other| *other != facts.name);
            let others = others.map(|other| format!("{other}={spoken}://{}:{PEER_PORT}", host(identity, other)));
            ("existing", std::iter::once(own).chain(others).collect::<Vec<_>>().join(","))
        }
    };
    let mut arguments = vec![
        format!("--name={}", facts.name),
        // Below the mount: the root of a file system may hold things of its own.
        "--data-dir=/data/member".to_owned(),
        format!("--listen-client-urls={speak}://0.0.0.0:{CLIENT_PORT}"),
        format!("--listen-peer-urls={spoken}://0.0.0.0:{PEER_PORT}"),
        format!("--listen-admin-urls=http://0.0.0.0:{ADMIN_PORT}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--advertise-client-urls={client}"),
        format!("--initial-cluster={first}"),
        format!("--initial-cluster-state={state}"),
        format!("--initial-cluster-token={}", identity.token()),
        format!("--heartbeat-interval={}", cluster.timing.heartbeat_ms),
        format!("--election-timeout={}", cluster.timing.election_ms),
    ];
    arguments.extend(cluster.quota_bytes.map(|bytes| format!("--quota-backend-bytes={bytes}")));
    if facts.start == Some(StartAs::Seed) {
        arguments.push("--await-activation".to_owned());
    } else {
        // Those named above may all be replaced by the time this pod starts once more; this name leads to whoever is there.
        arguments.push(format!("--join-urls={spoken}://{}:{PEER_PORT}", peers_host(identity)));
    }
    arguments.extend(tls_arguments(cluster));
    arguments
}

/// A record's volume, stamped with the record's UID. No owner: what happens to it is policy, not garbage collection.
pub fn claim(cluster: &ValidatedCluster, record: &str, record_uid: &str) -> PersistentVolumeClaim {
    let identity = &cluster.identity;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::volume(record)),
            namespace: Some(identity.namespace.clone()),
            labels: Some(member_labels(identity, record, false)),
            annotations: Some(BTreeMap::from([(names::ANNOTATION_RECORD_UID.to_owned(), record_uid.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage.class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(cluster.storage.size.clone()))])),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The shared objects, stamped with what they were rendered from.
pub fn services(identity: &Identity, hash: &str, defaults: Defaults) -> [Service; 3] {
    let stamped = |name: String| {
        let stamp = BTreeMap::from([(names::ANNOTATION_OBJECTS_HASH.to_owned(), hash.to_owned())]);
        ObjectMeta { annotations: Some(stamp), ..meta(identity, name) }
    };
    let mut peer = stamped(names::peer_service(&identity.name));
    let founded = defaults.number().map(|number| (names::ANNOTATION_DEFAULTS.to_owned(), number.to_owned()));
    peer.annotations.get_or_insert_default().extend(founded);
    let port = service_port;
    let service = |metadata, spec| Service { metadata, spec: Some(spec), ..Service::default() };
    [
        service(
            peer,
            ServiceSpec {
                cluster_ip: Some("None".to_owned()),
                // Members find each other before they are ready, or they would never be.
                publish_not_ready_addresses: Some(true),
                selector: Some(pod_selector(identity)),
                ports: Some(vec![port("client", CLIENT_PORT), port("peer", PEER_PORT), port("admin", ADMIN_PORT)]),
                ..ServiceSpec::default()
            },
        ),
        service(
            stamped(names::client_service(&identity.name)),
            ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                selector: Some(pod_selector(identity)),
                ports: Some(vec![port("client", CLIENT_PORT)]),
                ..ServiceSpec::default()
            },
        ),
        service(
            stamped(names::leader_service(&identity.name)),
            ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                ports: Some(vec![port("client", CLIENT_PORT)]),
                ..ServiceSpec::default()
            },
        ),
    ]
}

/// A member's own address; goes with its record.
pub fn member_service(identity: &Identity, record: &str, record_uid: &str) -> Service {
    let mut metadata = meta(identity, record.to_owned());
    metadata.labels = Some(member_labels(identity, record, false));
    metadata.owner_references = Some(vec![record_owner(record, record_uid)]);
    let mut selector = pod_selector(identity);
    selector.insert(names::LABEL_MEMBER.to_owned(), record.to_owned());
    // Not one of the StatefulSet's selector: taking it away does not take the pod from its record.
    selector.insert(names::LABEL_INCARNATION.to_owned(), identity.incarnation.to_string());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            // Members find each other before they are ready, or they would never be.
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ports: Some(vec![service_port("client", CLIENT_PORT), service_port("peer", PEER_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn service_port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::Int(port)),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// The leader that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderEndpoint {
    pub ip: String,
    pub pod: String,
    pub node: Option<String>,
}

/// Who keeps an EndpointSlice: not Kubernetes' own controller.
pub const LABEL_SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const SLICE_MANAGED_BY: &str = "quorate.dev";

/// The addresses behind the leader Service: the leader that serves, or nothing.
pub fn leader_slice(identity: &Identity, leader: Option<&LeaderEndpoint>) -> EndpointSlice {
    let name = names::leader_service(&identity.name);
    let mut metadata = meta(identity, name.clone());
    let own = [("kubernetes.io/service-name", name.as_str()), (LABEL_SLICE_MANAGED_BY, SLICE_MANAGED_BY)];
    metadata.labels.get_or_insert_default().extend(own.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let endpoint = |leader: &LeaderEndpoint| Endpoint {
        addresses: vec![leader.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        node_name: leader.node.clone(),
        target_ref: Some(k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(leader.pod.clone()),
            namespace: Some(identity.namespace.clone()),
            ..Default::default()
        }),
        ..Endpoint::default()
    };
    let is_v6 = leader.is_some_and(|l| l.ip.contains(':'));
    EndpointSlice {
        metadata,
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: leader.map(endpoint).into_iter().collect(),
        ports: Some(vec![EndpointPort {
            name: Some("client".to_owned()),
            port: Some(CLIENT_PORT),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

/// Says whether two slices lead to the same address, by the same port, under the same Service and owner.
pub fn points_alike(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let target = |slice: &EndpointSlice| {
        let ends = slice.endpoints.iter();
        ends.map(|e| (e.addresses.clone(), e.target_ref.as_ref().and_then(|t| t.name.clone()))).collect::<Vec<_>>()
    };
    let ports = |slice: &EndpointSlice| slice.ports.iter().flatten().map(|p| p.port).collect::<Vec<_>>();
    let service = |slice: &EndpointSlice| slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").cloned();
    let owner = |slice: &EndpointSlice| Some(slice.metadata.owner_references.as_ref()?.first()?.uid.clone());
    target(a) == target(b) && ports(a) == ports(b) && service(a) == service(b) && owner(a) == owner(b)
}

/// The floor that evictions by others leave: an integer, of voters only.
pub fn budget(identity: &Identity, min_available: u32) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(identity, names::budget(&identity.name)),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(min_available).unwrap_or(i32::MAX))),
            selector: Some(voter_selector(identity)),
            // Readiness depends on the quorum: AlwaysAllow would let a drain take everybody while it is lost.
            unhealthy_pod_eviction_policy: Some("IfHealthyBudget".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
