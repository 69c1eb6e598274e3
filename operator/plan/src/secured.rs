//! Who may speak with members, and how: TLS and the NetworkPolicy. What the spec leaves open is filled in from the defaults that
//! were in force when the cluster was founded, and modes are made what members can speak now.

use quorate_api::{IssuerRef, Network, NetworkPeer, NetworkPolicyMode, ResourceAmounts, TlsMode, TlsPlane};

use crate::certificates::mode_now;
use crate::observation::{Observation, Running, Spoken};

/// What an open spec means. Recorded with a cluster when it is founded, and kept: see `quorate_api::names::ANNOTATION_DEFAULTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Defaults {
    /// No TLS, no NetworkPolicy.
    #[default]
    Open,
    /// TLS is required, and a NetworkPolicy is made.
    Secured,
    /// The same, and members ask for a part of a processor. A pod that asks for none gets what all others on its node leave,
    /// and a leader whose heartbeats come late loses its leadership.
    Reserved,
}

/// As much as Kubernetes' own control plane asks for its etcd. It is a share when the node is busy, not a limit.
const CPU_REQUEST: &str = "100m";

impl Defaults {
    /// What clusters are founded under today.
    pub const NEWEST: Defaults = Defaults::Reserved;

    /// As the annotation has it; nothing for the oldest, which had none.
    pub fn number(self) -> Option<&'static str> {
        match self {
            Defaults::Open => None,
            Defaults::Secured => Some("2"),
            Defaults::Reserved => Some("3"),
        }
    }

    /// A number that is not known is of a newer operator: the newest that is known is nearest.
    pub fn parse(text: Option<&str>) -> Defaults {
        match text {
            None | Some("1") => Defaults::Open,
            Some("2") => Defaults::Secured,
            Some(_) => Defaults::Reserved,
        }
    }

    fn mode(self) -> TlsMode {
        match self {
            Defaults::Open => TlsMode::Disabled,
            Defaults::Secured | Defaults::Reserved => TlsMode::Required,
        }
    }

    /// What members ask for of a processor when the spec says nothing. A limit alone is a request of the same amount.
    pub(crate) fn reserve(self, requests: &mut ResourceAmounts, limits: &ResourceAmounts) {
        if self >= Defaults::Reserved && requests.cpu.is_none() && limits.cpu.is_none() {
            requests.cpu = Some(CPU_REQUEST.to_owned());
        }
    }

    /// What a cluster was founded under. When the Service that says it is gone, members tell how they were started.
    pub(crate) fn of(observed: &Observation) -> Defaults {
        if let Some(defaults) = observed.objects.defaults {
            return defaults;
        }
        let plain = observed.records.iter().all(|record| record.speaks == Spoken::default());
        if plain && !observed.records.is_empty() { Defaults::Open } else { Defaults::NEWEST }
    }
}

/// Who speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsIntent {
    pub client: PlaneIntent,
    pub peer: PlaneIntent,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlaneIntent {
    /// Of the spec; open when absent.
    pub asked: Option<TlsMode>,
    /// Where it goes.
    pub goal: TlsMode,
    /// What a member that is started now gets: a step on the way.
    pub mode: TlsMode,
    pub source: Source,
}

/// Who issues the certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    #[default]
    Operator,
    /// cert-manager, asked by Certificates that we make.
    CertManager(IssuerRef),
    /// Somebody keeps this Secret.
    Secret(String),
}

impl TlsIntent {
    /// How the operator speaks to members: as the stricter of the others.
    pub fn admin(&self) -> TlsMode {
        self.client.mode.max(self.peer.mode)
    }

    /// Some member does not speak yet what it is to speak in the end.
    pub fn is_moving(&self) -> bool {
        [&self.client, &self.peer].into_iter().any(|plane| plane.mode != plane.goal)
    }

    /// Certificates say what they are good for; those that somebody else keeps may not.
    pub fn has_roles(&self) -> bool {
        [&self.client, &self.peer].into_iter().all(|plane| !matches!(plane.source, Source::Secret(_)))
    }

    pub(crate) fn shown(&self) -> String {
        let of = |plane: &PlaneIntent| format!("{:?}/{:?}", plane.mode, plane.source);
        format!("{} {}", of(&self.client), of(&self.peer))
    }

    pub(crate) fn settle(&mut self, defaults: Defaults, observed: &Observation) {
        let records = observed.records.iter();
        // What never ran speaks nothing.
        let started = records.clone().filter(|r| r.running == Running::Started).map(|r| r.speaks);
        let spoken: Vec<Spoken> = started.chain(records.filter_map(|r| Some(r.pod.as_ref()?.speaks))).collect();
        self.client.settle(defaults, spoken.iter().map(|s| s.client));
        self.peer.settle(defaults, spoken.iter().map(|s| s.peer));
    }
}

impl PlaneIntent {
    fn settle(&mut self, defaults: Defaults, spoken: impl Iterator<Item = TlsMode>) {
        self.goal = self.asked.unwrap_or(defaults.mode());
        self.mode = mode_now(self.goal, spoken);
    }

    pub(crate) fn of(which: &str, plane: &TlsPlane, problems: &mut Vec<String>) -> PlaneIntent {
        let TlsPlane { mode, operator_issued, cert_manager, secret_ref } = plane;
        let given = [operator_issued.is_some(), cert_manager.is_some(), secret_ref.is_some()];
        if given.into_iter().filter(|given| *given).count() > 1 {
            problems.push(format!(
                "spec.tls.{which} has more than one of operatorIssued, certManager and secretRef; keep one source of certificates"
            ));
        }
        let name_is_off = |name: &str| name.is_empty() || name.len() > 253;
        let source = match (cert_manager, secret_ref) {
            (Some(cert_manager), _) => {
                let IssuerRef { name, kind, group } = &cert_manager.issuer_ref;
                if let Some(off) = [name, kind, group].into_iter().find(|text| name_is_off(text)) {
                    problems.push(format!(
                        "spec.tls.{which}.certManager.issuerRef has {off:?}; name an issuer, its kind and its group"
                    ));
                }
                Source::CertManager(cert_manager.issuer_ref.clone())
            }
            (None, Some(secret)) => {
                let name = &secret.name;
                if name_is_off(name) {
                    problems
                        .push(format!("spec.tls.{which}.secretRef.name is {name:?}; name a Secret of this namespace"));
                }
                Source::Secret(name.clone())
            }
            (None, None) => Source::Operator,
        };
        let asked = *mode;
        // Until it is settled, only what is asked for is known.
        let known = asked.unwrap_or_default();
        PlaneIntent { asked, goal: known, mode: known, source }
    }
}

/// Who may reach members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkIntent {
    pub asked: Option<NetworkPolicyMode>,
    /// A NetworkPolicy is to be there.
    pub has_policy: bool,
    pub allow_from: Vec<NetworkPeer>,
    pub monitoring_from: Vec<NetworkPeer>,
}

impl NetworkIntent {
    pub(crate) fn settle(&mut self, defaults: Defaults) {
        let open = match defaults {
            Defaults::Open => NetworkPolicyMode::Disabled,
            Defaults::Secured | Defaults::Reserved => NetworkPolicyMode::Enabled,
        };
        self.has_policy = self.asked.unwrap_or(open) == NetworkPolicyMode::Enabled;
    }

    pub(crate) fn shown(&self) -> String {
        format!("{:?} {:?}", self.allow_from, self.monitoring_from)
    }

    pub(crate) fn of(network: &Network, problems: &mut Vec<String>) -> NetworkIntent {
        let Network { policy, allow_from, monitoring_from } = network;
        for (field, peers) in [("allowFrom", allow_from), ("monitoringFrom", monitoring_from)] {
            for peer in peers {
                check_peer(field, peer, problems);
            }
        }
        NetworkIntent {
            asked: *policy,
            has_policy: *policy == Some(NetworkPolicyMode::Enabled),
            allow_from: allow_from.clone(),
            monitoring_from: monitoring_from.clone(),
        }
    }
}

fn check_peer(field: &str, peer: &NetworkPeer, problems: &mut Vec<String>) {
    let NetworkPeer { namespace_selector, pod_selector, cidr } = peer;
    let by_pods = namespace_selector.is_some() || pod_selector.is_some();
    if by_pods == cidr.is_some() {
        problems.push(format!(
            "spec.network.{field} has an entry with {}; name pods by selectors or addresses by cidr",
            if by_pods { "both selectors and a cidr" } else { "neither selectors nor a cidr" }
        ));
    }
    if let Some(cidr) = cidr.as_ref().filter(|cidr| !is_network(cidr)) {
        problems.push(format!("spec.network.{field} has the cidr {cidr:?}; write one such as 10.1.0.0/16"));
    }
}

fn is_network(cidr: &str) -> bool {
    let Some((address, bits)) = cidr.split_once('/') else { return false };
    let Ok(bits) = bits.parse::<u32>() else { return false };
    match address.parse::<core::net::IpAddr>() {
        Ok(core::net::IpAddr::V4(_)) => bits <= 32,
        Ok(core::net::IpAddr::V6(_)) => bits <= 128,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::{ConsistentCluster, ConsistentClusterSpec};

    use super::*;
    use crate::intent::{Intent, ValidatedCluster};
    use crate::observation::{Deletion, MemberRecord, SharedObjects};

    const PLAIN: Spoken = Spoken { client: TlsMode::Disabled, peer: TlsMode::Disabled };
    const BOTH: Spoken = Spoken { client: TlsMode::Preferred, peer: TlsMode::Preferred };
    const TLS: Spoken = Spoken { client: TlsMode::Required, peer: TlsMode::Required };

    fn record(speaks: Spoken) -> MemberRecord {
        MemberRecord {
            name: "a".to_owned(),
            uid: "u".to_owned(),
            resource_version: "1".to_owned(),
            member_id: None,
            start: None,
            template_hash: String::new(),
            running: Running::Started,
            retirement: None,
            deletion: Deletion::No,
            created_ms: 0,
            speaks,
            pod: None,
        }
    }

    fn settled(asked: Option<TlsMode>, defaults: Option<Defaults>, spoken: &[Spoken]) -> ValidatedCluster {
        let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        cluster.metadata.uid = Some("2f1c".to_owned());
        (cluster.spec.tls.client.mode, cluster.spec.tls.peer.mode) = (asked, asked);
        let observed = Observation {
            objects: SharedObjects { defaults, ..SharedObjects::default() },
            records: spoken.iter().map(|speaks| record(*speaks)).collect(),
            ..Observation::default()
        };
        match Intent::of(&cluster).settled(&observed) {
            Intent::Run(cluster) => cluster,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_open_spec_means_what_it_meant_when_the_cluster_was_founded() {
        for (defaults, spoken, mode, has_policy) in [
            // A new cluster, before anything of it is there, and after.
            (None, &[][..], TlsMode::Required, true),
            (Some(Defaults::Reserved), &[TLS], TlsMode::Required, true),
            (Some(Defaults::Secured), &[TLS], TlsMode::Required, true),
            // One of an operator that knew nothing of this, before and after this one came.
            (Some(Defaults::Open), &[PLAIN], TlsMode::Disabled, false),
            (Some(Defaults::Open), &[], TlsMode::Disabled, false),
            // Somebody deleted the Service that says it: nobody is changed.
            (None, &[PLAIN], TlsMode::Disabled, false),
            (None, &[TLS], TlsMode::Required, true),
        ] {
            let cluster = settled(None, defaults, spoken);
            let found = (cluster.tls.client.mode, cluster.tls.peer.mode, cluster.network.has_policy);
            assert_eq!(found, (mode, mode, has_policy), "{defaults:?} {spoken:?}");
            let again = cluster.clone().settled(&Observation {
                objects: SharedObjects { defaults: Some(cluster.defaults), ..SharedObjects::default() },
                records: spoken.iter().map(|speaks| record(*speaks)).collect(),
                ..Observation::default()
            });
            assert_eq!(again, cluster, "recording it changes nothing");
        }
    }

    #[test]
    fn what_the_spec_says_goes_before_any_default() {
        let cluster = settled(Some(TlsMode::Disabled), None, &[]);
        assert_eq!((cluster.tls.admin(), cluster.defaults), (TlsMode::Disabled, Defaults::NEWEST));
        assert_eq!(settled(Some(TlsMode::Required), Some(Defaults::Open), &[]).tls.admin(), TlsMode::Required);
    }

    #[test]
    fn new_clusters_ask_for_a_part_of_a_processor_and_older_ones_are_not_restarted_for_it() {
        let asked = |defaults: Option<Defaults>, spoken: &[Spoken]| settled(None, defaults, spoken).requests.cpu;
        assert_eq!(asked(None, &[]).as_deref(), Some(CPU_REQUEST));
        assert_eq!(asked(Some(Defaults::Reserved), &[TLS]).as_deref(), Some(CPU_REQUEST));
        assert_eq!(asked(Some(Defaults::Secured), &[TLS]), None);
        assert_eq!(asked(Some(Defaults::Open), &[PLAIN]), None);
        let with = |requests: Option<&str>, limits: Option<&str>| {
            let amounts = |cpu: Option<&str>| ResourceAmounts { cpu: cpu.map(str::to_owned), memory: None };
            let mut requests = amounts(requests);
            Defaults::Reserved.reserve(&mut requests, &amounts(limits));
            requests.cpu
        };
        assert_eq!(with(Some("1m"), None).as_deref(), Some("1m"), "what the spec says goes before");
        assert_eq!(with(None, Some("50m")), None, "Kubernetes makes a limit the request");
    }

    #[test]
    fn a_mode_moves_over_preferred_and_says_that_it_moves() {
        let now = |spoken: &[Spoken]| {
            let tls = settled(Some(TlsMode::Required), Some(Defaults::Open), spoken).tls;
            (tls.client.mode, tls.is_moving())
        };
        assert_eq!(now(&[PLAIN, PLAIN]), (TlsMode::Preferred, true));
        assert_eq!(now(&[BOTH, PLAIN]), (TlsMode::Preferred, true));
        assert_eq!(now(&[BOTH, BOTH]), (TlsMode::Required, false));
        assert_eq!(now(&[TLS, BOTH]), (TlsMode::Required, false));
    }

    #[test]
    fn the_hashes_of_clusters_that_were_there_before_stay() {
        let old = settled(None, Some(Defaults::Open), &[PLAIN]);
        let old = ValidatedCluster { image: "registry.example/node:1".to_owned(), ..old };
        // As the operator of that time computed them: another value restarts members, or writes objects anew.
        assert_eq!(old.template_hash(), "c3fb928ec21eb37a");
        assert_eq!(old.objects_hash(), "79b0edd67d2d4e4a");
        assert_eq!(old.policy_hash("quorate-system"), None);
        let new = settled(None, None, &[]);
        assert_ne!(new.objects_hash(), old.objects_hash(), "the mark of the defaults is part of what is applied");
        assert_ne!(new.policy_hash("quorate-system"), new.policy_hash("elsewhere"));
    }

    #[test]
    fn peers_that_name_nobody_or_too_much_are_refused() {
        let problems = |peer: NetworkPeer| {
            let mut problems = Vec::new();
            NetworkIntent::of(&Network { allow_from: vec![peer], ..Network::default() }, &mut problems);
            problems.join("; ")
        };
        let cidr = |text: &str| NetworkPeer { cidr: Some(text.to_owned()), ..NetworkPeer::default() };
        assert_eq!(problems(cidr("10.0.0.0/8")), "");
        assert_eq!(problems(cidr("2001:db8::/32")), "");
        for bad in ["10.0.0.0/33", "10.0.0/8", "ten/8", "10.0.0.0", "::/129"] {
            assert!(problems(cidr(bad)).contains("spec.network.allowFrom"), "{bad}");
        }
        assert!(problems(NetworkPeer::default()).contains("neither"));
        let both = NetworkPeer { pod_selector: Some(quorate_api::Labels::default()), ..cidr("10.0.0.0/8") };
        assert!(problems(both).contains("both"));
    }
}
