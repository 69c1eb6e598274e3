//! What the chart gives to Prometheus and Grafana, tried on a real Prometheus that scrapes a cluster in local mode.
//!
//! Unit tests of the rules first; then a story that lets every metric show itself; then each dashboard query must return a series,
//! and each metric an alert rule names must exist. A query that finds nothing is a dashboard that lies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::local::{Local, LocalArgs};
use crate::poll;
use crate::scenario::Report;

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);
/// What Grafana would put in place of its own variables.
const VARIABLES: [(&str, &str); 4] =
    [("$namespace", ".*"), ("$cluster", ".*"), ("$instance", ".*"), ("$__range", "10m")];

#[derive(Args, Debug, Clone)]
pub struct MonitoringArgs {
    #[command(flatten)]
    local: LocalArgs,
    /// A real prometheus
    #[arg(long)]
    prometheus: PathBuf,
    /// A real promtool
    #[arg(long)]
    promtool: PathBuf,
    /// The chart with rules and dashboards
    #[arg(long)]
    chart: PathBuf,
}

/// A running Prometheus; killed when it goes out of scope.
struct Prometheus {
    port: u16,
    _child: Child,
}

pub async fn run(args: MonitoringArgs) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("quorate-monitoring-{}", std::process::id()));
    let operator_port = free_port()?;
    let more = vec!["--listen-metrics".to_owned(), format!("127.0.0.1:{operator_port}")];
    let mut local = Local::new(args.local.clone(), &dir, more)?;
    let mut report = Report::default();
    let outcome = suite(&args, &mut local, &dir, operator_port, &mut report).await;
    if outcome.is_err() {
        eprintln!("the last lines of the operator:\n{}", local.log_tail(40));
    }
    local.stop().await?;
    let printed = report.print();
    if !args.local.keep && outcome.is_ok() {
        std::fs::remove_dir_all(&dir)?;
    }
    outcome.and(printed)
}

async fn suite(
    args: &MonitoringArgs,
    local: &mut Local,
    dir: &Path,
    operator_port: u16,
    report: &mut Report,
) -> Result<()> {
    report.scenario("unit_tests_of_the_alert_rules", rules_tested(args)).await?;
    local.start()?;
    local.ready(3).await?;
    let prometheus = Prometheus::start(args, local, dir, operator_port)?;
    report.scenario("every_target_is_scraped", prometheus.scrapes_all(4)).await?;
    report.scenario("a_story_that_every_metric_is_part_of", story(local)).await?;
    report.scenario("every_dashboard_query_returns_a_series", dashboards(args, &prometheus)).await?;
    report.scenario("every_alert_rule_is_sound_and_its_metrics_exist", alerts(args, &prometheus)).await?;
    Ok(())
}

async fn rules_tested(args: &MonitoringArgs) -> Result<String> {
    let rules = args.chart.join("rules");
    for (verb, file) in [("check", "quorate.yaml"), ("test", "tests.yaml")] {
        let output = Command::new(&args.promtool).args([verb, "rules", file]).current_dir(&rules).output().await;
        let output = output.with_context(|| format!("cannot start {}", args.promtool.display()))?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "promtool {verb} rules {file}: {text}");
    }
    Ok(String::new())
}

/// A failover, a scale-out that waits for its learner, and a pause that blocks.
async fn story(local: &Local) -> Result<String> {
    let endpoints = local.endpoints()?.join(",");
    for n in 0..20 {
        local.etcdctl(&endpoints, &["put", &format!("key/{n}"), "value"], None).await?;
    }
    let term = local.term()?;
    kill_process(local.member_pid(&local.leader()?)?, Signal::KILL)?;
    poll::until("a leader of a later term", LIMIT, POLL, async || {
        ensure!(local.term()? > term, "still term {term}");
        Ok(())
    })
    .await?;
    local.ready(3).await?;
    replicas(local, 4)?;
    local.ready(4).await?;
    replicas(local, 3)?;
    local.ready(3).await?;
    local.edit(&|line| line.starts_with("spec:").then(|| "spec:\n  paused: true".to_owned()))?;
    replicas(local, 5)?;
    poll::until("the pause to block", LIMIT, POLL, async || {
        let conditions = local.status()?["conditions"].clone();
        let paused = conditions.as_array().into_iter().flatten().any(|c| c["reason"] == "Paused");
        ensure!(paused, "no condition says Paused: {conditions}");
        Ok(())
    })
    .await?;
    Ok(format!("{} leads", local.leader()?))
}

fn replicas(local: &Local, count: u32) -> Result<()> {
    local.edit(&|line| line.trim_start().starts_with("replicas:").then(|| format!("  replicas: {count}")))
}

async fn dashboards(args: &MonitoringArgs, prometheus: &Prometheus) -> Result<String> {
    let mut queries = BTreeSet::new();
    for entry in std::fs::read_dir(args.chart.join("dashboards"))? {
        let path = entry?.path();
        let board: Value = serde_json::from_slice(&std::fs::read(&path)?)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        ensure!(board["uid"].is_string(), "{} has no uid, so links to it do not last", path.display());
        collect(&board, "expr", &mut queries);
        let variables = board["templating"]["list"].as_array().into_iter().flatten();
        // `label_values(metric, label)` asks for the metric.
        let asked = variables.filter_map(|v| v["definition"].as_str()?.strip_prefix("label_values("));
        queries.extend(asked.filter_map(|text| Some(text.rsplit_once(',')?.0.to_owned())));
    }
    ensure!(queries.len() > 20, "only {} queries were found", queries.len());
    for query in &queries {
        let asked = VARIABLES.iter().fold(query.clone(), |text, (name, value)| text.replace(name, value));
        ensure!(!asked.contains('$'), "a variable is not known in {query}");
        poll::until(&format!("a series for {query}"), LIMIT, POLL, async || {
            let found = prometheus.query(&asked).await?;
            ensure!(!found.is_empty(), "no series");
            Ok(())
        })
        .await?;
    }
    Ok(format!("{} queries", queries.len()))
}

fn collect(value: &Value, key: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|inner| collect(inner, key, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| collect(inner, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

async fn alerts(args: &MonitoringArgs, prometheus: &Prometheus) -> Result<String> {
    let (loaded, names) = poll::until("every rule to be evaluated", LIMIT, POLL, async || {
        let answer = prometheus.get("/api/v1/rules").await?;
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<Value> = groups.iter().filter_map(|g| g["rules"].as_array().cloned()).flatten().collect();
        ensure!(!rules.is_empty(), "no rule is loaded");
        let mut names = BTreeSet::new();
        for rule in &rules {
            ensure!(rule["health"] == "ok", "{} is {}: {}", rule["name"], rule["health"], rule["lastError"]);
            names.extend(metric_names(rule["query"].as_str().unwrap_or_default()));
        }
        Ok((rules.len(), names))
    })
    .await?;
    let written = std::fs::read_to_string(args.chart.join("rules/quorate.yaml"))?.matches("- alert:").count();
    ensure!(loaded == written, "{written} rules are written and {loaded} were loaded");
    for name in &names {
        // Some come and go with what they tell of.
        let seen = prometheus.query(&format!("last_over_time({name}[30m])")).await?;
        ensure!(!seen.is_empty(), "an alert rule names {name}, which nobody exports");
    }
    Ok(format!("{loaded} rules, {} metrics", names.len()))
}

/// Words of an expression that begin as our metrics do.
fn metric_names(expression: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_word(c));
    words.filter(|word| word.starts_with("quorate_")).map(str::to_owned).collect()
}

impl Prometheus {
    fn start(args: &MonitoringArgs, local: &Local, dir: &Path, operator_port: u16) -> Result<Prometheus> {
        let port = free_port()?;
        let strip = |url: String| url.trim_start_matches("http://").to_owned();
        let members: Vec<String> = local.endpoints()?.into_iter().map(strip).collect();
        let rules = args.chart.canonicalize()?.join("rules/quorate.yaml");
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [
                {"job_name": "operator", "honor_labels": true,
                 "static_configs": [{"targets": [format!("127.0.0.1:{operator_port}")]}]},
                {"job_name": "members", "static_configs": [{"targets": members}]},
            ],
        });
        // JSON is YAML.
        let file = dir.join("prometheus.yaml");
        std::fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let log = std::fs::File::create(dir.join("prometheus.log"))?;
        let mut command = Command::new(&args.prometheus);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {}", args.prometheus.display()))?;
        Ok(Prometheus { port, _child: child })
    }

    async fn scrapes_all(&self, targets: usize) -> Result<String> {
        poll::until("every target to be up", LIMIT, POLL, async || {
            let up = self.query("up == 1").await?;
            ensure!(up.len() == targets, "{} of {targets} targets are up", up.len());
            Ok(format!("{targets} targets"))
        })
        .await
    }

    async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression))).await?;
        ensure!(answer["status"] == "success", "{expression}: {}", answer["error"]);
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.context("prometheus does not listen")?;
        // HTTP/1.0: the answer ends with the connection, and comes in one piece.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer);
        let Some((_, body)) = text.split_once("\r\n\r\n") else { bail!("GET {path}: no answer") };
        serde_json::from_str(body).with_context(|| format!("GET {path}: {body}"))
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn encoded(text: &str) -> String {
    let byte = |b: u8| {
        if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_in_expressions() {
        let found = metric_names("max by (name) (quorate_a{x=~\"b|c\"}) > 0.9 * quorate_b_total and quorate_b_total");
        assert_eq!(found, ["quorate_a", "quorate_b_total", "quorate_b_total"]);
        assert_eq!(encoded("a{b=\"c\"}"), "a%7Bb%3D%22c%22%7D");
    }
}
