//! `quorate_operator_*`: the operator's own metrics, set from what passes found.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use quorate_api::ConditionStatus;
use quorate_plan::{Decision, Identity};

use crate::reconcile::{Acted, Pass};

const CLUSTER: [&str; 2] = ["namespace", "name"];
/// A pass is some API requests and a round to the members.
const PASS_SECONDS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0];

/// Reads one gauge off a pass.
type Reading = fn(&Pass) -> i64;

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    gauges: Vec<(IntGaugeVec, Reading)>,
    waiting: IntGaugeVec,
    errors: IntCounterVec,
    steps: IntCounterVec,
    passes: HistogramVec,
}

fn condition(pass: &Pass, kind: &str) -> i64 {
    i64::from(pass.status.condition(kind).is_some_and(|c| c.status == ConditionStatus::True))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let of_cluster: [(&str, &str, Reading); 7] = [
            ("quorum_tolerates", "Voters that may fail now without losing service", |p| {
                p.status.quorum.as_ref().map_or(0, |q| i64::from(q.tolerates))
            }),
            ("quorum_required", "Voters it takes to decide anything", |p| {
                p.status.quorum.as_ref().map_or(0, |q| i64::from(q.required))
            }),
            ("leader_serving", "1 while a leader serves, its own entry committed and applied", |p| {
                condition(p, "LeaderServing")
            }),
            ("failover_ready", "1 while somebody can take over from the leader", |p| condition(p, "FailoverReady")),
            ("ready", "1 while the spec is applied and the cluster serves", |p| condition(p, "Ready")),
            ("membership_config_index", "Log index of the committed configuration", |p| {
                p.status.membership.as_ref().map_or(0, |m| m.config_index)
            }),
            ("pdb_min_available", "Voters that evictions by others must leave", |p| {
                p.seen.observation.objects.budget_min_available.map_or(0, i64::from)
            }),
        ];
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let opts = Opts::new(format!("quorate_operator_{name}"), help);
            registered(&registry, IntGaugeVec::new(opts, labels).expect("names and labels are well formed"))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let opts = Opts::new(format!("quorate_operator_{name}"), help);
            registered(&registry, IntCounterVec::new(opts, labels).expect("names and labels are well formed"))
        };
        let gauges = of_cluster.map(|(name, help, value)| (gauge(name, help, &CLUSTER), value)).into();
        let waiting =
            gauge("step_waiting", "1 for the reason the next step waits for", &["namespace", "name", "reason"]);
        let errors = counter("reconcile_errors_total", "Passes that failed, by reason", &["reason"]);
        let steps = counter("steps_total", "Steps taken", &["step"]);
        let opts = HistogramOpts::new("quorate_operator_reconcile_duration_seconds", "Time of one pass")
            .buckets(PASS_SECONDS.to_vec());
        let passes = HistogramVec::new(opts, &[]).expect("names and labels are well formed");
        let passes = registered(&registry, passes);
        Metrics { gauges, waiting, errors, steps, passes, registry }
    }

    pub fn observe(&self, identity: &Identity, pass: &Pass, took: Duration) {
        let labels = [identity.namespace.as_str(), identity.name.as_str()];
        for (gauge, value) in &self.gauges {
            gauge.with_label_values(&labels).set(value(pass));
        }
        self.forget_waiting(&identity.namespace, &identity.name);
        if let Decision::Wait(waiting) = &pass.plan.next {
            self.waiting.with_label_values(&[labels[0], labels[1], waiting.reason()]).set(1);
        }
        match &pass.acted {
            Acted::Done(step) => self.steps.with_label_values(&[step.name()]).inc(),
            Acted::Refused(step, _) if pass.failure().is_some() => self.error(step.name()),
            Acted::Refused(..) | Acted::Nothing => {}
        }
        self.passes.with_label_values::<&str>(&[]).observe(took.as_secs_f64());
    }

    pub fn error(&self, reason: &str) {
        self.errors.with_label_values(&[reason]).inc();
    }

    /// The cluster is gone, and so are its numbers.
    pub fn forget(&self, namespace: &str, name: &str) {
        for (gauge, _) in &self.gauges {
            let _ = gauge.remove_label_values(&[namespace, name]);
        }
        self.forget_waiting(namespace, name);
    }

    fn forget_waiting(&self, namespace: &str, name: &str) {
        let families = self.waiting.collect();
        for metric in families.iter().flat_map(|f| f.get_metric()) {
            let label = |key: &str| metric.get_label().iter().find(|l| l.name() == key).map(|l| l.value().to_owned());
            if label("namespace").as_deref() == Some(namespace)
                && label("name").as_deref() == Some(name)
                && let Some(reason) = label("reason")
            {
                let _ = self.waiting.remove_label_values(&[namespace, name, &reason]);
            }
        }
    }

    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}
