//! `quorate_operator_*`: the operator's own metrics, set from what passes found. The same in every world.
//!
//! What is known of a cluster is kept as numbers and written out when it is asked for, so that ages are true at that moment and a
//! cluster that is gone leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};
use quorate_api::ConditionStatus;
use quorate_plan::{Decision, Intent, Role};

use crate::reconcile::{Acted, Pass};

const CLUSTER: [&str; 2] = ["namespace", "name"];
/// A pass is some API requests and a round to the members.
const PASS_SECONDS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0];
/// A step of an operation is a call, a pod's start, or a learner's long way.
const STEP_SECONDS: [f64; 9] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0];

/// What one pass told of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
struct Facts {
    tolerates: f64,
    required: f64,
    wanted: f64,
    voters: f64,
    ready_voters: f64,
    leader_serving: f64,
    failover_ready: f64,
    ready: f64,
    available: f64,
    config_index: f64,
    budget: f64,
    failovers: f64,
    /// Nothing before the first one.
    failover_seconds: Option<f64>,
    /// By member; who is not heard by the leader is not here.
    lags: Vec<(String, f64)>,
    waiting: Option<&'static str>,
    blocked: Option<&'static str>,
}

/// What is remembered of a cluster between passes.
#[derive(Debug)]
struct Known {
    /// A namesake made later starts anew.
    uid: String,
    facts: Facts,
    /// When a member last gave a word.
    heard: Instant,
    operation: Option<(String, String, Instant)>,
    promised: Promised,
}

/// What may only grow or stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promised {
    pub cluster_id: Option<u64>,
    pub incarnation: u64,
    pub config_index: u64,
    pub term: u64,
}

impl Known {
    fn new(uid: &str) -> Known {
        Known {
            uid: uid.to_owned(),
            facts: Facts::default(),
            heard: Instant::now(),
            operation: None,
            promised: Promised::default(),
        }
    }
}

type Reading = fn(&Facts) -> Option<f64>;

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    of_cluster: Vec<(GaugeVec, Reading)>,
    age: GaugeVec,
    lag: GaugeVec,
    waiting: GaugeVec,
    blocked: GaugeVec,
    errors: IntCounterVec,
    steps: IntCounterVec,
    violations: IntCounterVec,
    operations: HistogramVec,
    passes: HistogramVec,
    clusters: Mutex<BTreeMap<(String, String), Known>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Name, help and value of each number a cluster has one of.
const OF_CLUSTER: [(&str, &str, Reading); 13] = [
    ("quorum_tolerates", "Voters that may fail now without losing service", |f| Some(f.tolerates)),
    ("quorum_required", "Voters it takes to decide anything", |f| Some(f.required)),
    ("voters_wanted", "Voters the spec asks for", |f| Some(f.wanted)),
    ("voters", "Voters of the committed configuration", |f| Some(f.voters)),
    ("voters_ready", "Voters that answer linearizable requests", |f| Some(f.ready_voters)),
    ("leader_serving", "1 while a leader serves, its own entry committed and applied", |f| Some(f.leader_serving)),
    ("failover_ready", "1 while somebody can take over from the leader", |f| Some(f.failover_ready)),
    ("ready", "1 while the spec is applied and the cluster serves", |f| Some(f.ready)),
    ("available", "1 while a linearizable read goes through", |f| Some(f.available)),
    ("membership_config_index", "Log index of the committed configuration", |f| Some(f.config_index)),
    ("pdb_min_available", "Voters that evictions by others must leave", |f| Some(f.budget)),
    ("failovers", "Failovers the members measured", |f| Some(f.failovers)),
    ("failover_duration_seconds", "Time without a leader in the last failover", |f| f.failover_seconds),
];

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, GaugeVec::new(opts(name, help), labels).expect("names and labels are well formed"))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(opts(name, help), labels).expect("names and labels are well formed");
            registered(&registry, made)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(opts, labels).expect("names and labels are well formed"))
        };
        let of_member = ["namespace", "name", "member"];
        let with_reason = ["namespace", "name", "reason"];
        let made = Metrics {
            of_cluster: OF_CLUSTER.map(|(name, help, reading)| (gauge(name, help, &CLUSTER), reading)).into(),
            age: gauge("status_observation_age_seconds", "Since a member of the cluster last gave a word", &CLUSTER),
            lag: gauge("member_match_lag", "Entries the leader has and the member has not", &of_member),
            waiting: gauge("step_waiting", "1 for the reason the next step waits for", &with_reason),
            blocked: gauge("blocked", "1 for the reason a person is needed for", &with_reason),
            errors: counter("reconcile_errors_total", "Passes that failed, by reason", &["reason"]),
            steps: counter("steps_total", "Steps taken", &["step"]),
            violations: counter(
                "invariant_violations_total",
                "Readings of members that must never be, such as two leaders of one term",
                &["invariant"],
            ),
            operations: histogram(
                "operation_duration_seconds",
                "Time an operation spent at one of its steps",
                &STEP_SECONDS,
                &["type", "step"],
            ),
            passes: histogram("reconcile_duration_seconds", "Time of one pass", &PASS_SECONDS, &[]),
            clusters: Mutex::default(),
            registry,
        };
        // Counters that may stay at nothing are there from the start, or nobody could watch them rise.
        made.errors.with_label_values(&["StatusNotWritten"]).inc_by(0);
        for invariant in Violation::ALL {
            made.violations.with_label_values(&[invariant.as_str()]).inc_by(0);
        }
        made
    }

    pub fn observe(&self, intent: &Intent, pass: &Pass, took: Duration) {
        let identity = intent.identity();
        match &pass.acted {
            Acted::Done(step) => self.steps.with_label_values(&[step.name()]).inc(),
            Acted::Refused(step, _) if pass.failure().is_some() => self.error(step.name()),
            Acted::Refused(..) | Acted::Nothing => {}
        }
        self.passes.with_label_values::<&str>(&[]).observe(took.as_secs_f64());
        let mut clusters = self.clusters.lock().expect("no panic happens while clusters are counted");
        let key = (identity.namespace.clone(), identity.name.clone());
        let known = clusters.entry(key).or_insert_with(|| Known::new(&identity.uid));
        if known.uid != identity.uid {
            *known = Known::new(&identity.uid);
        }
        known.facts = facts(wanted(intent), pass);
        if !pass.seen.observation.words.is_empty() {
            known.heard = Instant::now();
        }
        self.operation(known, pass);
        for violation in violations(&known.promised, pass) {
            tracing::error!(cluster = identity.name, "{}: must never be", violation.as_str());
            self.violations.with_label_values(&[violation.as_str()]).inc();
        }
        known.promised = promised(known.promised, pass);
    }

    /// The time a step took is known when another one follows.
    fn operation(&self, known: &mut Known, pass: &Pass) {
        let now = pass.status.operation.as_ref().map(|o| (o.kind.clone(), o.step.clone().unwrap_or_default()));
        let before = known.operation.as_ref().map(|(kind, step, _)| (kind.clone(), step.clone()));
        if now == before {
            return;
        }
        if let Some((kind, step, since)) = known.operation.take() {
            self.operations.with_label_values(&[&kind, &step]).observe(since.elapsed().as_secs_f64());
        }
        known.operation = now.map(|(kind, step)| (kind, step, Instant::now()));
    }

    pub fn error(&self, reason: &str) {
        self.errors.with_label_values(&[reason]).inc();
    }

    /// The cluster is gone, and so are its numbers.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().expect("no panic happens while clusters are counted");
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Forgets clusters that are there no more: their end may not have been seen.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut clusters = self.clusters.lock().expect("no panic happens while clusters are counted");
        clusters.retain(|_, known| is_there(&known.uid));
    }

    /// Everything, as Prometheus reads it.
    pub fn text(&self) -> String {
        // Held to the end: another scrape must not find half of it.
        let clusters = self.clusters.lock().expect("no panic happens while clusters are counted");
        let gauges = self.of_cluster.iter().map(|(gauge, _)| gauge);
        gauges.chain([&self.age, &self.lag, &self.waiting, &self.blocked]).for_each(GaugeVec::reset);
        for ((namespace, name), known) in &*clusters {
            let labels = [namespace.as_str(), name.as_str()];
            for (gauge, reading) in &self.of_cluster {
                if let Some(value) = reading(&known.facts) {
                    gauge.with_label_values(&labels).set(value);
                }
            }
            self.age.with_label_values(&labels).set(known.heard.elapsed().as_secs_f64());
            let more = |gauge: &GaugeVec, third: &str, value| {
                gauge.with_label_values(&[labels[0], labels[1], third]).set(value);
            };
            known.facts.lags.iter().for_each(|(member, lag)| more(&self.lag, member, *lag));
            known.facts.waiting.into_iter().for_each(|reason| more(&self.waiting, reason, 1.0));
            known.facts.blocked.into_iter().for_each(|reason| more(&self.blocked, reason, 1.0));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("quorate_operator_{name}"), help)
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a double, and these numbers stay far below 2^53")]
fn number(value: i64) -> f64 {
    value as f64
}

/// Voters the spec asks for; none when it is refused or on its way out.
fn wanted(intent: &Intent) -> f64 {
    match intent {
        Intent::Run(cluster) => f64::from(u32::try_from(cluster.replicas).unwrap_or(u32::MAX)),
        Intent::Delete(_) | Intent::Refused(_) => 0.0,
    }
}

fn facts(wanted: f64, pass: &Pass) -> Facts {
    let status = &pass.status;
    let holds = |kind: &str| {
        let is_true = status.condition(kind).is_some_and(|c| c.status == ConditionStatus::True);
        f64::from(u8::from(is_true))
    };
    let quorum = status.quorum.clone().unwrap_or_default();
    let failover = status.failover.clone().unwrap_or_default();
    Facts {
        tolerates: f64::from(quorum.tolerates),
        required: f64::from(quorum.required),
        wanted,
        voters: f64::from(status.replicas),
        ready_voters: f64::from(status.ready_replicas),
        leader_serving: holds("LeaderServing"),
        failover_ready: holds("FailoverReady"),
        ready: holds("Ready"),
        available: holds("Available"),
        config_index: status.membership.as_ref().map_or(0.0, |m| number(m.config_index)),
        budget: pass.seen.observation.objects.budget_min_available.map_or(0.0, f64::from),
        failovers: number(failover.count),
        failover_seconds: failover.last_duration_ms.map(|ms| number(ms) / 1_000.0),
        lags: status.members.iter().filter_map(|m| Some((m.name.clone(), number(m.match_lag?)))).collect(),
        waiting: match &pass.plan.next {
            Decision::Wait(waiting) => Some(waiting.reason()),
            Decision::Steady | Decision::Act(_) | Decision::Blocked(_) => None,
        },
        blocked: match &pass.plan.next {
            Decision::Blocked(blocked) => Some(blocked.reason()),
            Decision::Steady | Decision::Act(_) | Decision::Wait(_) => None,
        },
    }
}

/// What members must never say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    TwoLeadersOfOneTerm,
    ConfigurationWentBack,
    AnotherCluster,
}

impl Violation {
    pub const ALL: [Violation; 3] =
        [Violation::TwoLeadersOfOneTerm, Violation::ConfigurationWentBack, Violation::AnotherCluster];

    pub fn as_str(self) -> &'static str {
        match self {
            Violation::TwoLeadersOfOneTerm => "TwoLeadersOfOneTerm",
            Violation::ConfigurationWentBack => "ConfigurationWentBack",
            Violation::AnotherCluster => "AnotherCluster",
        }
    }
}

/// Compares a pass with what was promised before. Only a confirmed leader's word counts for what must grow.
fn violations(before: &Promised, pass: &Pass) -> Vec<Violation> {
    let words = &pass.seen.observation.words;
    let leads = |term: u64| words.iter().filter(move |w| w.role == Role::Leader && w.term == term).count();
    let mut found = Vec::new();
    if words.iter().any(|w| w.role == Role::Leader && leads(w.term) > 1) {
        found.push(Violation::TwoLeadersOfOneTerm);
    }
    let now = promised(Promised::default(), pass);
    if now.term == 0 || now.incarnation != before.incarnation {
        return found;
    }
    // A leader of an earlier term may still be heard for a moment; what it knows is old, and no lie.
    if now.term >= before.term && now.config_index < before.config_index {
        found.push(Violation::ConfigurationWentBack);
    }
    if before.cluster_id.is_some() && now.cluster_id != before.cluster_id {
        found.push(Violation::AnotherCluster);
    }
    found
}

fn promised(before: Promised, pass: &Pass) -> Promised {
    let leader = pass.status.leader.as_ref();
    let word = leader.and_then(|l| pass.seen.observation.words.iter().find(|w| w.member_id.to_string() == l.id));
    let newest = word.filter(|w| w.incarnation > before.incarnation || w.term >= before.term);
    newest.map_or(before, |w| Promised {
        cluster_id: Some(w.cluster_id.0),
        incarnation: w.incarnation,
        config_index: w.config_at.index,
        term: w.term,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::{
        ConsistentCluster, ConsistentClusterSpec, ConsistentClusterStatus, LeaderStatus, MemberStatus, OperationStatus,
    };
    use quorate_plan::{Blocked, ClusterId, ConfigAt, MemberId, MemberWord, Observation, Plan, Report, Waiting};

    use crate::world::Seen;

    fn intent() -> Intent {
        let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        cluster.metadata.namespace = Some("shop".into());
        Intent::of(&cluster)
    }

    fn word(id: u64, role: Role, term: u64, index: u64) -> MemberWord {
        MemberWord {
            record: format!("m{id}"),
            pod_uid: String::new(),
            age_ms: 0,
            cluster_id: ClusterId(1),
            member_id: MemberId(id),
            incarnation: 1,
            version: String::new(),
            role,
            term,
            leader_id: None,
            commit_index: 0,
            applied_index: 0,
            last_index: 0,
            pending_entries: 0,
            leader_contact_age_ms: 0,
            elections: 0,
            own_term_index: 0,
            own_term_committed: true,
            own_term_applied: true,
            led_ms: 0,
            quorum_confirmed_age_ms: 0,
            config_at: ConfigAt { incarnation: 1, term, index },
            change_in_flight: false,
            joint: false,
            members: Vec::new(),
            progress: Vec::new(),
            failover_count: 0,
            last_failover_ms: 0,
            activated: true,
            ready: true,
            not_ready_reason: String::new(),
            fault: String::new(),
            disk_low: false,
            rot_open: 0,
        }
    }

    fn pass(next: Decision, words: Vec<MemberWord>) -> Pass {
        let leader = words.iter().find(|w| w.role == Role::Leader).map(|w| LeaderStatus {
            name: w.record.clone(),
            id: w.member_id.to_string(),
            ..LeaderStatus::default()
        });
        let observation = Observation { words, ..Observation::default() };
        let lagging = MemberStatus { name: "m2".into(), match_lag: Some(7), ..MemberStatus::default() };
        Pass {
            seen: Seen { observation, ..Seen::default() },
            plan: Plan { next, upcoming: Vec::new(), report: Report::default() },
            status: ConsistentClusterStatus { leader, members: vec![lagging], ..ConsistentClusterStatus::default() },
            acted: Acted::Nothing,
        }
    }

    #[test]
    fn a_cluster_has_its_numbers_until_it_is_forgotten() {
        let metrics = Metrics::new();
        let waits = pass(Decision::Wait(Waiting::ChangeInFlight), vec![word(1, Role::Leader, 4, 9)]);
        metrics.observe(&intent(), &waits, Duration::from_millis(5));
        let text = metrics.text();
        let labels = "{name=\"orders\",namespace=\"shop\"";
        for line in [
            format!("quorate_operator_voters_wanted{labels}}} 3"),
            format!("quorate_operator_step_waiting{labels},reason=\"ChangeInFlight\"}} 1"),
            "quorate_operator_member_match_lag{member=\"m2\",name=\"orders\",namespace=\"shop\"} 7".to_owned(),
            "quorate_operator_invariant_violations_total{invariant=\"TwoLeadersOfOneTerm\"} 0".to_owned(),
        ] {
            assert!(text.contains(&line), "no {line} in\n{text}");
        }
        assert!(!text.contains("quorate_operator_failover_duration_seconds{"), "there was no failover yet");
        let blocked = pass(Decision::Blocked(Blocked::Paused { step: "Promote" }), Vec::new());
        metrics.observe(&intent(), &blocked, Duration::from_millis(5));
        let text = metrics.text();
        assert!(text.contains("reason=\"Paused\"") && !text.contains("ChangeInFlight"), "{text}");
        metrics.forget("shop", "orders");
        assert!(!metrics.text().contains("orders"), "{}", metrics.text());
    }

    #[test]
    fn a_step_is_timed_when_the_next_one_follows() {
        let metrics = Metrics::new();
        for step in [Some("CreateMember"), Some("CreateMember"), Some("Promote"), None] {
            let mut pass = pass(Decision::Steady, Vec::new());
            let step = step.map(|s| OperationStatus {
                kind: "ScaleOut".into(),
                step: Some(s.into()),
                member: None,
                since: None,
            });
            pass.status.operation = step;
            metrics.observe(&intent(), &pass, Duration::ZERO);
        }
        let text = metrics.text();
        for step in ["CreateMember", "Promote"] {
            let line = format!("operation_duration_seconds_count{{step=\"{step}\",type=\"ScaleOut\"}} 1");
            assert!(text.contains(&line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn what_must_never_be_is_counted() {
        let led = |term, index| pass(Decision::Steady, vec![word(1, Role::Leader, term, index)]);
        let before = promised(Promised::default(), &led(4, 9));
        assert_eq!(violations(&before, &led(5, 9)), []);
        assert_eq!(violations(&before, &led(3, 8)), [], "an old leader's word is old");
        assert_eq!(promised(before, &led(3, 8)), before);
        assert_eq!(violations(&before, &led(4, 8)), [Violation::ConfigurationWentBack]);
        let two = pass(Decision::Steady, vec![word(1, Role::Leader, 4, 9), word(2, Role::Leader, 4, 9)]);
        assert_eq!(violations(&before, &two), [Violation::TwoLeadersOfOneTerm]);
        let mut other = led(4, 9);
        other.seen.observation.words[0].cluster_id = ClusterId(2);
        assert_eq!(violations(&before, &other), [Violation::AnotherCluster]);
        assert_eq!(violations(&before, &pass(Decision::Steady, Vec::new())), [], "silence breaks nothing");
    }
}
