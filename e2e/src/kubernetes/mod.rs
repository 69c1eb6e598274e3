//! The operator's promises on a real Kubernetes: a table of scenarios under one continuous linearizable writer.
//!
//! The writer runs as a pod, so any KUBECONFIG will do. Members' logs are kept from their first line; at the end they are
//! joined with the API server's audit log, where there is one, and tell whether a leader was ever disrupted unasked.

pub mod api;
mod audit;
pub mod cluster;
mod follow;
mod handover;
mod outages;
mod proofs;
mod rbac;
mod scenarios;
mod story;
mod truth;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use self::cluster::Cluster;
use self::follow::Follower;
use self::truth::{Delays, Truth};
use crate::scenario::Report;

/// The writer's log arrives this late at most.
const LOG_DELAY: Duration = Duration::from_millis(1_000);

/// What stands above the table that `--table` writes.
const TABLE_HEAD: &str = "# Scenarios on Kubernetes

Written by `cargo xtask e2e kubernetes --all`: the newest run on kind, two cores, three nodes. A linearizable writer runs under all
of them with about a hundred writes a second; after each, the members are healthy and every acknowledged write is read back.

- *Worst write gap*: the longest time between two acknowledgements of any of the writer's four workers, each of which gives up a
  request after 3 s and goes on with a new connection.
- *Status late by*: the longest time from an edit, a lost pod or a new leader's readiness until the status tells it.

";

/// What stands below it.
const PROMISES: &str = include_str!("promises.md");

#[derive(Args, Debug, Clone)]
pub struct KubernetesArgs {
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Image of this program with etcdctl, and with --all etcd's benchmark tool, beside it, known to the cluster's nodes
    #[arg(long)]
    image: String,
    /// The manifest to apply; it must name the cluster `orders` with three replicas
    #[arg(long)]
    manifest: PathBuf,
    /// Where the operator runs
    #[arg(long, default_value = "quorate-system")]
    operator_namespace: String,
    /// Namespace of the test's own, made and removed again
    #[arg(long, default_value = "quorate-e2e")]
    namespace: String,
    /// Every scenario instead of those a change must pass; a failure does not end the run
    #[arg(long)]
    all: bool,
    /// Only scenarios whose name contains one of these words, comma separated, besides those that begin and end a run
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The API server's audit log, on this machine. Without it the proofs that need it are left out, and said so
    #[arg(long)]
    audit_log: Option<PathBuf>,
    /// Where in the audit log the operator's life began
    #[arg(long, default_value_t = 0)]
    audit_from: u64,
    /// Where the members' logs are kept
    #[arg(long, default_value = "/tmp/quorate-e2e-logs")]
    logs: PathBuf,
    /// The built kubectl-quorate; scenarios that use it are left out without it
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// Image with an earlier build of the node; scenarios that upgrade from it are left out without it
    #[arg(long)]
    previous_image: Option<String>,
    /// The helm program; scenarios that install the chart are left out without it
    #[arg(long, requires = "chart")]
    helm: Option<PathBuf>,
    /// The directory of the chart
    #[arg(long)]
    chart: Option<PathBuf>,
    /// The nodes are containers that `docker` can reach; scenarios that stop them are left out without it
    #[arg(long)]
    docker: bool,
    /// Writes the table of scenarios to this file
    #[arg(long)]
    table: Option<PathBuf>,
}

/// What is kept while scenarios run.
pub struct Evidence {
    members: Follower,
    /// The longest time without an acknowledged write since it was last asked for, in milliseconds.
    gap_ms: Arc<AtomicU64>,
    truth: Truth,
    /// Size of the audit log when the run began.
    audit_start: u64,
}

pub async fn run(args: KubernetesArgs) -> Result<()> {
    let api = api::Api::connect().await?;
    let logs = args.logs.clone();
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    let audit_start = match &args.audit_log {
        Some(path) => std::fs::metadata(path)?.len(),
        None => 0,
    };
    let members = Follower::start(api.clone(), "app.kubernetes.io/managed-by=quorate", &logs)?;
    let evidence = Evidence {
        truth: Truth::start(api.clone(), &args, members.leaders.clone()),
        members,
        gap_ms: Arc::default(),
        audit_start,
    };
    let cluster = Cluster { args, api };
    let mut report = Report::default();
    let outcome = suite(&cluster, &evidence, &mut report).await;
    if outcome.is_err() {
        cluster.print_evidence().await;
    }
    if let Some(path) = &cluster.args.table {
        std::fs::write(path, format!("{TABLE_HEAD}{}{PROMISES}", report.markdown()))?;
    }
    let printed = report.print();
    outcome.and(printed)
}

async fn suite(cluster: &Cluster, evidence: &Evidence, report: &mut Report) -> Result<()> {
    report.scenario("apply_brings_three_ready_members", scenarios::apply(cluster)).await?;
    report.scenario("etcdctl_from_a_pod_reaches_the_services", scenarios::etcdctl(cluster)).await?;
    let gap = evidence.gap_ms.clone();
    let watcher = follow::each_line(
        cluster.api.clone(),
        cluster.args.namespace.clone(),
        cluster::WRITER.to_owned(),
        move |line| {
            let progress: Option<serde_json::Value> = serde_json::from_str(line).ok();
            let told = progress.and_then(|p| p["gapMs"].as_u64());
            gap.fetch_max(told.unwrap_or_default(), Ordering::SeqCst);
        },
    );
    let wanted =
        |name: &str| cluster.args.only.is_empty() || cluster.args.only.iter().any(|part| name.contains(part.as_str()));
    let (mut failed, mut delays) = (None, Delays::default());
    for row in scenarios::TABLE {
        if !(cluster.args.all || row.is_required) || !wanted(row.name) {
            continue;
        }
        if row.needs_plugin && cluster.args.plugin.is_none() {
            report.left_out(row.name, "needs --plugin");
            continue;
        }
        if row.needs_previous && cluster.args.previous_image.is_none() {
            report.left_out(row.name, "needs --previous-image");
            continue;
        }
        if row.needs_helm && cluster.args.helm.is_none() {
            report.left_out(row.name, "needs --helm");
            continue;
        }
        if row.needs_docker && !cluster.args.docker {
            report.left_out(row.name, "needs --docker");
            continue;
        }
        if let Err(error) = one(cluster, evidence, report, row, &mut delays).await {
            if !cluster.args.all {
                return Err(error);
            }
            cluster.print_evidence().await;
            failed = Some(error);
            scenarios::recover(cluster).await?;
        }
    }
    watcher.abort();
    // Each proof is worth its row, whatever the others showed.
    let mut keep = |shown: Result<()>| failed = failed.take().or(shown.err());
    keep(report.scenario("nothing_acknowledged_is_lost", scenarios::writer_verdict(cluster)).await);
    keep(report.scenario("status_tells_the_truth_within_ten_seconds", async { told_in_time(&delays) }).await);
    if cluster.args.only.is_empty() {
        keep(report.scenario("events_and_columns_tell_the_story", scenarios::story(cluster)).await);
    }
    keep(report.scenario("deletion_ends", scenarios::deletion(cluster)).await);
    keep(proofs::prove(cluster, evidence, report).await);
    failed.map_or(Ok(()), Err)
}

/// Runs a scenario, which ends with healthy members and everything that was acknowledged.
async fn one(
    cluster: &Cluster,
    evidence: &Evidence,
    report: &mut Report,
    row: &scenarios::Row,
    delays: &mut Delays,
) -> Result<()> {
    evidence.gap_ms.store(0, Ordering::SeqCst);
    evidence.truth.take();
    let outcome = report
        .scenario(row.name, async {
            let remark = (row.run)(cluster).await?;
            cluster.ready(cluster.wanted().await?).await?;
            cluster.nothing_lost().await?;
            Ok(remark)
        })
        .await;
    tokio::time::sleep(LOG_DELAY).await;
    let told = evidence.truth.take();
    report.measured(evidence.gap_ms.load(Ordering::SeqCst), told.worst());
    // Without an operator or an API server nobody can tell.
    if !row.is_blind {
        delays.merge(&told);
    }
    outcome
}

/// A status is correct within ten seconds.
fn told_in_time(delays: &Delays) -> Result<String> {
    const LIMIT_MS: u64 = 10_000;
    ensure!(delays.worst() <= LIMIT_MS, "worst delays: {}", delays.shown());
    Ok(format!("worst: {}", delays.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that every run has besides the table's.
    const FRAME: [&str; 9] = [
        "apply_brings_three_ready_members",
        "etcdctl_from_a_pod_reaches_the_services",
        "nothing_acknowledged_is_lost",
        "status_tells_the_truth_within_ten_seconds",
        "events_and_columns_tell_the_story",
        "deletion_ends",
        "no_leader_is_disrupted_before_it_handed_over",
        "no_two_members_are_taken_down_at_once",
        "every_granted_right_is_used",
    ];

    #[test]
    fn promises_name_scenarios_and_files_that_exist() {
        let names = || PROMISES.split('`').skip(1).step_by(2);
        let is_known = |name: &str| {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
            FRAME.contains(&name)
                || scenarios::TABLE.iter().any(|row| row.name == name)
                || (name.contains('/') && std::path::Path::new(file).join(name).exists())
        };
        let unknown: Vec<_> = names().filter(|name| !is_known(name)).collect();
        assert!(names().count() > 50 && unknown.is_empty(), "{unknown:?}");
    }
}
