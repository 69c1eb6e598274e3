//! What the user wants, parsed once. A `ValidatedCluster` is the proof that the spec makes sense; nothing later looks at the spec.
//!
//! Schema and CEL have refused most mistakes already, but objects outlive rules, and local mode has no API server: whatever is
//! wrong is refused here as a whole, with field, value and remedy, and without effect.

use std::fmt::Write as _;

use quorate_api::names;
use quorate_api::spec::{NAME_BYTES_MAX, REPLICAS_MAX, REPLICAS_MIN};
use quorate_api::{
    Approval, ChangePolicy, ConsistentCluster, ConsistentClusterSpec, FailureDomainKey, Keep, Options, PodAntiAffinity,
    PodDisruptionBudget, PodTemplate, Requests, ResourceAmounts, TaintEffect, TimingProfile, TlsMode, Toleration,
    TolerationOperator, Topology, units,
};

use crate::observation::Observation;
use crate::secured::{Defaults, NetworkIntent, PlaneIntent, TlsIntent};

/// What is to be done about one ConsistentCluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "there is one per pass, and it is passed by reference")]
pub enum Intent {
    Run(ValidatedCluster),
    /// A deletion timestamp is set. It ends without a quorum, while paused, and whatever the spec says.
    Delete(DeletionPolicy),
    /// The spec is refused as a whole.
    Refused(RefusedSpec),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletionPolicy {
    pub identity: Identity,
    pub volumes: Keep,
    /// When the deletion was asked for, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedSpec {
    pub identity: Identity,
    /// One sentence per field: name, value, remedy. Never empty.
    pub problems: Vec<String>,
}

/// Which ConsistentCluster this is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    pub incarnation: u64,
}

impl Identity {
    /// Shared by the members of this cluster and incarnation, checked at start, at joining and between peers.
    pub fn token(&self) -> String {
        names::token(&self.uid, self.incarnation)
    }
}

/// A spec that makes sense, in units the planner works with.
/// Only validation makes one: the type is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValidatedCluster {
    pub identity: Identity,
    /// Voters wanted, 0 to 9; with 0 all are stopped.
    pub replicas: usize,
    pub image: String,
    pub paused: bool,
    pub approval: Approval,
    /// The plan a person allowed, by its hash.
    pub approved: Option<String>,
    pub progress_deadline_ms: u64,
    /// What fails together, the widest first.
    pub domains: Vec<FailureDomainKey>,
    pub apart: PodAntiAffinity,
    /// How long a member may be silent before it is replaced; nothing for ever.
    pub replace_after_ms: Option<u64>,
    pub storage: StorageIntent,
    pub timing: TimingIntent,
    /// Largest state in bytes; the members' own default when absent.
    pub quota_bytes: Option<u64>,
    pub pods: PodTemplate,
    /// Once settled, with what the defaults ask for.
    pub requests: ResourceAmounts,
    pub limits: ResourceAmounts,
    pub budget: PodDisruptionBudget,
    /// What an open spec means for this cluster; known once it is settled.
    pub defaults: Defaults,
    pub tls: TlsIntent,
    pub network: NetworkIntent,
    /// What was asked for beside the spec. It changes no template.
    pub asked: Requests,
    /// The authority that a person wants exchanged, by its digest.
    pub rotate_authority: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageIntent {
    pub size_bytes: u64,
    /// As written, for the claim.
    pub size: String,
    pub class: Option<String>,
    pub change: ChangePolicy,
    pub on_cluster_delete: Keep,
    pub removed_member: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimingIntent {
    pub heartbeat_ms: u64,
    /// Shortest silence before an election; the longest is twice that.
    pub election_ms: u64,
}

const LAN: TimingIntent = TimingIntent { heartbeat_ms: 50, election_ms: 150 };
const WAN: TimingIntent = TimingIntent { heartbeat_ms: 100, election_ms: 1_000 };
/// Members take no more; slower is a mistake in the unit.
const ELECTION_MS_MAX: u64 = 50_000;
/// Less holds no more than a few requests of the largest size.
const QUOTA_BYTES_MIN: u64 = 16 << 20;
/// Entries of each list about where pods may be placed.
const PLACEMENTS_MAX: usize = 16;
/// A pod that is made anew is silent for a while, and a copy of everything is dear.
const REPLACE_AFTER_MS_MIN: u64 = 60_000;
/// Faster than this, scheduling noise alone starts elections.
const HEARTBEAT_MS_MIN: u64 = 5;

impl Intent {
    /// Parses the resource. Never fails: what is wrong is an intent of its own.
    pub fn of(cluster: &ConsistentCluster) -> Intent {
        let meta = &cluster.metadata;
        let identity = Identity {
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            incarnation: names::FIRST_INCARNATION,
        };
        if let Some(since) = &meta.deletion_timestamp {
            let since_ms = u64::try_from(since.0.as_millisecond()).unwrap_or_default();
            return Intent::Delete(DeletionPolicy {
                identity,
                volumes: cluster.spec.storage.on_cluster_delete,
                since_ms,
            });
        }
        let asked = Requests::of(meta.annotations.as_ref());
        let text = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
        let (approved, rotate_authority) = (text(names::ANNOTATION_APPROVE), text(names::ANNOTATION_ROTATE_AUTHORITY));
        validate(identity, &cluster.spec).map_or_else(Intent::Refused, |cluster| {
            Intent::Run(ValidatedCluster { asked, approved, rotate_authority, ..cluster })
        })
    }

    /// With what the spec leaves open, and modes that members can speak now. Settling twice is settling once.
    #[must_use]
    pub fn settled(&self, observed: &Observation) -> Intent {
        match self {
            Intent::Run(cluster) => Intent::Run(cluster.clone().settled(observed)),
            other @ (Intent::Delete(_) | Intent::Refused(_)) => other.clone(),
        }
    }

    pub fn identity(&self) -> &Identity {
        match self {
            Intent::Run(cluster) => &cluster.identity,
            Intent::Delete(policy) => &policy.identity,
            Intent::Refused(refused) => &refused.identity,
        }
    }
}

impl ValidatedCluster {
    #[must_use]
    pub fn settled(mut self, observed: &Observation) -> ValidatedCluster {
        self.defaults = Defaults::of(observed);
        self.tls.settle(self.defaults, observed);
        self.network.settle(self.defaults);
        self.defaults.reserve(&mut self.requests, &self.limits);
        self
    }

    /// Hash of everything that changes a member's pod: image, timing, resources. Labels, budgets and sizes restart nothing.
    pub fn template_hash(&self) -> String {
        let apart = match self.apart {
            // Spelt as before there was a choice: nobody is restarted for the sake of a default.
            PodAntiAffinity::Preferred => "template/1",
            PodAntiAffinity::Required => "template/1/apart",
        };
        let heartbeat_ms = self.timing.heartbeat_ms.to_string();
        let election_ms = self.timing.election_ms.to_string();
        let (requests, limits) = (amounts(&self.requests), amounts(&self.limits));
        let mut parts = vec![apart, &self.image, &heartbeat_ms, &election_ms, &requests, &limits];
        let tls = self.tls.shown();
        let quota = self.quota_bytes.map(|bytes| format!("quota/{bytes}"));
        // Members that never heard of TLS are not restarted for it.
        if self.tls.admin() != TlsMode::Disabled {
            parts.push(&tls);
        }
        if let Some(quota) = &quota {
            parts.push(quota);
        }
        let pods = format!("{:?}", self.pods);
        if self.pods != PodTemplate::default() {
            parts.push(&pods);
        }
        let domains = format!("{:?}", self.domains);
        if self.domains != FailureDomainKey::all() {
            parts.push(&domains);
        }
        hash(&parts)
    }

    /// Hash of what the shared objects (Services) are rendered from. The budget is not among them: see `SetBudget`.
    pub fn objects_hash(&self) -> String {
        let incarnation = self.identity.incarnation.to_string();
        let mut parts = vec!["objects/2", &self.identity.name, &self.identity.uid, &incarnation];
        parts.extend(self.defaults.number());
        hash(&parts)
    }

    /// Hash of what the NetworkPolicy is rendered from, where there is to be one. `home` is the operator's namespace.
    pub fn policy_hash(&self, home: &str) -> Option<String> {
        let (uid, shown, tls) = (&self.identity.uid, self.network.shown(), self.tls.shown());
        self.network.has_policy.then(|| hash(&["policy/1", &self.identity.name, uid, home, &shown, &tls]))
    }

    /// Names one intended change, so that a person can allow it: the edit, what is done about it, and to whom if it is a
    /// replacement, which comes without an edit.
    pub fn plan_hash(&self, operation: &str, member: &str) -> String {
        hash(&["plan/1", &self.identity.uid, &self.identity.generation.to_string(), operation, member])
    }

    pub fn quorum(&self) -> usize {
        self.replicas / 2 + 1
    }
}

fn amounts(amounts: &ResourceAmounts) -> String {
    format!("{:?}/{:?}", amounts.cpu, amounts.memory)
}

fn hash(parts: &[&str]) -> String {
    // Lengths keep ("ab", "c") apart from ("a", "bc").
    let text = parts.iter().fold(String::new(), |mut text, part| {
        write!(text, "{}:{part}", part.len()).expect("a String takes everything");
        text
    });
    format!("{:016x}", names::seed(&text))
}

/// Parses a spec.
///
/// # Errors
/// Every problem of the spec at once, each naming field, value and remedy.
pub fn validate(identity: Identity, spec: &ConsistentClusterSpec) -> Result<ValidatedCluster, RefusedSpec> {
    // Without `..`: a new field is validated or does not compile.
    let ConsistentClusterSpec {
        replicas,
        image,
        paused,
        approval,
        progress_deadline,
        storage,
        timing,
        resources,
        topology,
        repair,
        options,
        pod_template,
        disruption,
        tls,
        network,
    } = spec;
    let mut problems = Vec::new();
    check_name(&identity.name, &mut problems);
    let voters = usize::try_from(*replicas).unwrap_or_default();
    if !(REPLICAS_MIN..=REPLICAS_MAX).contains(replicas) {
        problems.push(format!("spec.replicas is {replicas}; set it to {REPLICAS_MIN} to {REPLICAS_MAX} voters"));
    }
    if image.is_empty() || image.len() > 255 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        problems.push(format!("spec.image is {image:?}; name one image, such as quorate:1.0"));
    }
    let size_bytes = units::size_bytes(&storage.size).filter(|bytes| *bytes > 0).unwrap_or_else(|| {
        problems.push(format!("spec.storage.size is {:?}; write a size such as 20Gi", storage.size));
        0
    });
    let progress_deadline_ms = units::period_ms(progress_deadline).filter(|ms| *ms > 0).unwrap_or_else(|| {
        problems.push(format!("spec.progressDeadline is {progress_deadline:?}; write a time such as 10m"));
        0
    });
    let domains = check_topology(topology, &mut problems);
    let replace_after_ms = check_replace_after(&repair.replace_unhealthy_after, &mut problems);
    let timing = check_timing(timing, &mut problems);
    let quota_bytes = check_quota(options, &mut problems);
    check_pods(pod_template, &mut problems);
    check_resources(&resources.requests, "requests", &mut problems);
    check_resources(&resources.limits, "limits", &mut problems);
    check_requests_within_limits(&resources.requests, &resources.limits, &mut problems);
    let tls = TlsIntent {
        client: PlaneIntent::of("client", &tls.client, &mut problems),
        peer: PlaneIntent::of("peer", &tls.peer, &mut problems),
    };
    let network = NetworkIntent::of(network, &mut problems);
    if !problems.is_empty() {
        return Err(RefusedSpec { identity, problems });
    }
    Ok(ValidatedCluster {
        identity,
        replicas: voters,
        image: image.clone(),
        paused: *paused,
        approval: *approval,
        approved: None,
        progress_deadline_ms,
        domains,
        apart: topology.pod_anti_affinity,
        replace_after_ms,
        storage: StorageIntent {
            size_bytes,
            size: storage.size.clone(),
            class: storage.storage_class_name.clone(),
            change: storage.change_policy,
            on_cluster_delete: storage.on_cluster_delete,
            removed_member: storage.removed_member,
        },
        timing,
        quota_bytes,
        pods: pod_template.clone(),
        requests: resources.requests.clone(),
        limits: resources.limits.clone(),
        budget: disruption.pod_disruption_budget,
        defaults: Defaults::default(),
        tls,
        network,
        asked: Requests::default(),
        rotate_authority: None,
    })
}

fn check_topology(topology: &Topology, problems: &mut Vec<String>) -> Vec<FailureDomainKey> {
    let Topology { failure_domain_keys, pod_anti_affinity } = topology;
    let mut domains = failure_domain_keys.clone();
    domains.sort_unstable();
    domains.dedup();
    if domains.len() < failure_domain_keys.len() {
        problems.push("spec.topology.failureDomainKeys names a label twice; name each once".to_owned());
    }
    if *pod_anti_affinity == PodAntiAffinity::Required && !domains.contains(&FailureDomainKey::Hostname) {
        problems.push(
            "spec.topology.podAntiAffinity is Required without kubernetes.io/hostname in failureDomainKeys; add it, or set \
             Preferred"
                .to_owned(),
        );
    }
    domains
}

fn check_quota(options: &Options, problems: &mut Vec<String>) -> Option<u64> {
    let Options { quota_backend_bytes } = options;
    let text = quota_backend_bytes.as_ref()?;
    let bytes = units::size_bytes(text).filter(|bytes| *bytes >= QUOTA_BYTES_MIN);
    if bytes.is_none() {
        problems
            .push(format!("spec.options.quotaBackendBytes is {text:?}; write a size of at least 16Mi, such as 8Gi"));
    }
    bytes
}

/// What Kubernetes would refuse long after the edit.
fn check_pods(pods: &PodTemplate, problems: &mut Vec<String>) {
    let PodTemplate { node_selector, tolerations, priority_class_name } = pods;
    let plain = |text: &str| text.len() <= 316 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if node_selector.len() > PLACEMENTS_MAX || tolerations.len() > PLACEMENTS_MAX {
        problems.push(format!(
            "spec.podTemplate has {} entries in nodeSelector and {} in tolerations; use at most {PLACEMENTS_MAX} of each",
            node_selector.len(),
            tolerations.len()
        ));
    }
    for (key, value) in node_selector {
        if key.is_empty() || !plain(key) || !plain(value) {
            problems
                .push(format!("spec.podTemplate.nodeSelector has {key:?}: {value:?}; write a label as nodes carry it"));
        }
    }
    for toleration in tolerations {
        let Toleration { key, operator, value, effect, toleration_seconds } = toleration;
        let words = key.iter().chain(value).all(|text| plain(text)) && key.as_deref() != Some("");
        let exists = *operator == TolerationOperator::Exists;
        if !words || (exists && value.is_some()) || (!exists && key.is_none()) {
            problems.push(format!(
                "spec.podTemplate.tolerations has key {key:?}, operator {operator:?}, value {value:?}; Exists takes no value, \
                 Equal takes a key"
            ));
        }
        if toleration_seconds.is_some() && *effect != Some(TaintEffect::NoExecute) {
            problems.push(
                "spec.podTemplate.tolerations has tolerationSeconds without effect NoExecute; set both or neither"
                    .to_owned(),
            );
        }
    }
    if let Some(name) = priority_class_name.as_ref().filter(|name| name.is_empty() || !plain(name)) {
        problems.push(format!("spec.podTemplate.priorityClassName is {name:?}; name an existing PriorityClass"));
    }
}

/// Nothing for never.
fn check_replace_after(text: &str, problems: &mut Vec<String>) -> Option<u64> {
    let after_ms = units::period_ms(text);
    if after_ms.is_none_or(|ms| ms > 0 && ms < REPLACE_AFTER_MS_MIN) {
        problems.push(format!(
            "spec.repair.replaceUnhealthyAfter is {text:?}; write a time of at least 1m such as 10m, or 0s for never"
        ));
    }
    after_ms.filter(|ms| *ms > 0)
}

fn check_name(name: &str, problems: &mut Vec<String>) {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        problems.push(format!("metadata.name {name:?} has {} characters; use 1 to {NAME_BYTES_MAX}", name.len()));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(plain) || name.ends_with('-') {
        problems
            .push(format!("metadata.name is {name:?}; use lower-case letters, digits and '-', starting with a letter"));
    }
}

fn check_timing(timing: &quorate_api::Timing, problems: &mut Vec<String>) -> TimingIntent {
    let given = (timing.heartbeat.as_deref(), timing.election.as_deref());
    match (timing.profile, given) {
        (TimingProfile::Lan, (None, None)) => LAN,
        (TimingProfile::Wan, (None, None)) => WAN,
        (TimingProfile::Lan | TimingProfile::Wan, _) => {
            let both = [("heartbeat", given.0), ("election", given.1)];
            let set: Vec<_> = both.iter().filter_map(|(name, value)| Some(format!("{name} {}", (*value)?))).collect();
            problems.push(format!(
                "spec.timing has {} beside a named profile; set profile to Custom or drop them",
                set.join(" and ")
            ));
            LAN
        }
        (TimingProfile::Custom, (Some(heartbeat), Some(election))) => {
            check_custom_timing(heartbeat, election, problems)
        }
        (TimingProfile::Custom, _) => {
            problems.push("spec.timing.profile is Custom without both heartbeat and election; set both".to_owned());
            LAN
        }
    }
}

fn check_custom_timing(heartbeat: &str, election: &str, problems: &mut Vec<String>) -> TimingIntent {
    let (Some(heartbeat_ms), Some(election_ms)) = (units::duration_ms(heartbeat), units::duration_ms(election)) else {
        problems.push(format!(
            "spec.timing has heartbeat {heartbeat:?}, election {election:?}; write durations such as 150ms"
        ));
        return LAN;
    };
    if heartbeat_ms < HEARTBEAT_MS_MIN {
        problems.push(format!("spec.timing.heartbeat is {heartbeat}; use at least {HEARTBEAT_MS_MIN}ms"));
    }
    if election_ms > ELECTION_MS_MAX {
        problems.push(format!("spec.timing.election is {election}; use at most {}s", ELECTION_MS_MAX / 1_000));
    }
    if election_ms < heartbeat_ms.saturating_mul(3) {
        problems.push(format!("spec.timing.election is {election}, less than 3 heartbeats of {heartbeat}; raise it"));
    }
    TimingIntent { heartbeat_ms, election_ms }
}

fn check_resources(amounts: &ResourceAmounts, kind: &str, problems: &mut Vec<String>) {
    let ResourceAmounts { cpu, memory } = amounts;
    if let Some(cpu) = cpu.as_deref().filter(|text| units::cpu_millis(text).is_none_or(|millis| millis == 0)) {
        problems.push(format!("spec.resources.{kind}.cpu is {cpu:?}; write cores such as 500m or 2"));
    }
    if let Some(memory) = memory.as_deref().filter(|text| units::size_bytes(text).is_none_or(|bytes| bytes == 0)) {
        problems.push(format!("spec.resources.{kind}.memory is {memory:?}; write a size such as 512Mi"));
    }
}

/// Kubernetes would refuse the pod, long after the edit.
fn check_requests_within_limits(requests: &ResourceAmounts, limits: &ResourceAmounts, problems: &mut Vec<String>) {
    let parse: fn(&str) -> Option<u64> = units::cpu_millis;
    let pairs =
        [("cpu", &requests.cpu, &limits.cpu, parse), ("memory", &requests.memory, &limits.memory, units::size_bytes)];
    for (what, request, limit, parse) in pairs {
        let Some((request, limit)) = request.as_deref().zip(limit.as_deref()) else { continue };
        if parse(request).zip(parse(limit)).is_some_and(|(request, limit)| request > limit) {
            problems.push(format!(
                "spec.resources.requests.{what} is {request}, above limits.{what} of {limit}; lower the request or raise the limit"
            ));
        }
    }
}
