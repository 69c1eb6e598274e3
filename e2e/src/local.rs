//! The main job as local processes: one command, three members, a killed leader, five members and back, nothing lost.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::poll;
use crate::scenario::Report;
use crate::writer::{TlsArgs, Writer, WriterArgs};

const READY_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

#[derive(Args, Debug, Clone)]
pub struct LocalArgs {
    /// The built quorate-operator
    #[arg(long)]
    operator: PathBuf,
    /// The built quorate-node
    #[arg(long)]
    node: PathBuf,
    /// A real etcdctl
    #[arg(long)]
    etcdctl: PathBuf,
    /// The manifest to run; a copy is edited
    #[arg(long)]
    manifest: PathBuf,
    /// Keep the working directory for a look at logs and data
    #[arg(long)]
    pub(crate) keep: bool,
}

/// One run of `quorate-operator local` over a directory.
pub(crate) struct Local {
    args: LocalArgs,
    dir: PathBuf,
    /// Further flags of the operator.
    more: Vec<String>,
    child: Option<Child>,
}

pub async fn run(args: LocalArgs) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("quorate-e2e-{}", std::process::id()));
    let keep = args.keep;
    let mut local = Local::new(args, &dir, Vec::new())?;
    let mut report = Report::default();
    let outcome = suite(&mut local, &mut report).await;
    if outcome.is_err() {
        eprintln!("the last lines of {}:", dir.join("operator.log").display());
        eprintln!("{}", local.log_tail(60));
    }
    local.stop().await?;
    let printed = report.print();
    if !keep && outcome.is_ok() {
        std::fs::remove_dir_all(&dir)?;
    }
    outcome.and(printed)
}

async fn suite(local: &mut Local, report: &mut Report) -> Result<()> {
    report
        .scenario("up_brings_three_ready_members", async {
            local.start()?;
            local.ready(3).await
        })
        .await?;
    report.scenario("etcdctl_puts_gets_watches_txns_and_lists_on_every_member", etcdctl_tour(local)).await?;
    let writer = Writer::start(local.writer_args()?)?;
    writer.progress(100, READY_LIMIT).await?;
    report.scenario("leader_killed_writes_go_on", leader_killed(local, &writer)).await?;
    report.scenario("scale_to_five_by_editing_the_manifest", scaled(local, &writer, 5)).await?;
    report.scenario("scale_back_to_three", scaled(local, &writer, 3)).await?;
    report.scenario("an_invalid_edit_is_shown_and_changes_nothing", invalid_edit(local, &writer)).await?;
    report.scenario("nothing_acknowledged_is_lost", async { writer.stop_and_check().await?.check() }).await?;
    report.scenario("interrupt_stops_cleanly_and_keeps_data", restarted(local)).await?;
    Ok(())
}

async fn etcdctl_tour(local: &Local) -> Result<String> {
    let endpoints = local.endpoints()?;
    for (n, endpoint) in endpoints.iter().enumerate() {
        let key = format!("tour/{n}");
        let expect = |text: String, what: &str| -> Result<()> {
            ensure!(text.contains(what), "etcdctl against {endpoint}: expected {what:?} in {text:?}");
            Ok(())
        };
        expect(local.etcdctl(endpoint, &["put", &key, "one"], None).await?, "OK")?;
        expect(local.etcdctl(endpoint, &["get", &key], None).await?, "one")?;
        // Asked twice, the second finds what the first wrote: only one of them may take the first branch.
        let txn = format!("value(\"{key}\") = \"one\"\n\nput {key} two\n\nget {key}\n\n");
        local.etcdctl(endpoint, &["txn"], Some(&txn)).await?;
        expect(local.etcdctl(endpoint, &["get", &key, "--print-value-only"], None).await?, "two")?;
        expect(local.etcdctl(endpoint, &["txn"], Some(&txn)).await?, "FAILURE")?;
        let list = local.etcdctl(endpoint, &["member", "list"], None).await?;
        ensure!(list.lines().count() == 3, "etcdctl against {endpoint}: member list shows {list:?}, wanted 3 members");
        let limit = Duration::from_secs(30);
        let seen = poll::until("a watch to see its event", limit, POLL, async || watch(local, endpoint, &key).await);
        expect(seen.await?, "three")?;
    }
    local.etcdctl(&endpoints.join(","), &["endpoint", "health"], None).await?;
    Ok(format!("{} members", endpoints.len()))
}

/// A watch started on one member sees a put made through another.
async fn watch(local: &Local, endpoint: &str, key: &str) -> Result<String> {
    let mut watcher = Command::new(&local.args.etcdctl);
    watcher.args(["--endpoints", endpoint, "watch", key, "--rev=1"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = watcher.spawn()?;
    let mut lines = tokio::io::BufReader::new(child.stdout.take().context("etcdctl has no stdout")?);
    let writer = local.endpoints()?.last().cloned().context("no endpoint")?;
    local.etcdctl(&writer, &["put", key, "three"], None).await?;
    let mut text = String::new();
    let read = async {
        while !text.contains("three") {
            ensure!(
                tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut text).await? > 0,
                "the watch ended: {text:?}"
            );
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.context("the watch saw no event within 10 s")??;
    Ok(text)
}

async fn leader_killed(local: &Local, writer: &Writer) -> Result<String> {
    let (leader, term) =
        poll::until("a leader", READY_LIMIT, POLL, async || Ok((local.leader()?, local.term()?))).await?;
    let pid = local.member_pid(&leader)?;
    writer.take_gap_ms();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    writer.progress(50, READY_LIMIT).await?;
    let gap = writer.take_gap_ms();
    // The status on disk may still be the one from before the kill.
    poll::until("a leader of a later term", READY_LIMIT, POLL, async || {
        let now = local.term()?;
        ensure!(now > term, "term {now}, was {term}");
        Ok(())
    })
    .await?;
    local.ready(3).await?;
    let now = poll::until("a leader", READY_LIMIT, POLL, async || local.leader()).await?;
    ensure!(now != leader || local.member_pid(&now)? != pid, "{leader} leads as the very process that was killed");
    Ok(format!("{leader} killed, {now} leads, write gap {gap} ms"))
}

async fn scaled(local: &Local, writer: &Writer, replicas: u64) -> Result<String> {
    writer.take_gap_ms();
    local.edit(&|line| line.trim_start().starts_with("replicas:").then(|| format!("  replicas: {replicas}")))?;
    local.ready(replicas).await?;
    writer.progress(20, READY_LIMIT).await?;
    Ok(format!("worst gap {} ms", writer.take_gap_ms()))
}

async fn invalid_edit(local: &Local, writer: &Writer) -> Result<String> {
    let good = std::fs::read_to_string(local.manifest())?;
    local.edit(&|line| line.trim_start().starts_with("replicas:").then(|| "  replicas: 4000".to_owned()))?;
    let message = poll::until("the invalid edit to be shown", READY_LIMIT, POLL, async || {
        let log = std::fs::read_to_string(local.dir.join("operator.log"))?;
        let line = log.lines().rev().find(|l| l.contains("replicas") && l.contains("4000"));
        line.map(str::to_owned).context("no line of the operator names the field and the value")
    })
    .await?;
    ensure!(local.status()?["replicas"] == 3, "the invalid edit had an effect: {}", local.status()?["replicas"]);
    writer.progress(20, READY_LIMIT).await?;
    std::fs::write(local.manifest(), good)?;
    local.ready(3).await?;
    Ok(message.chars().take(100).collect())
}

async fn restarted(local: &mut Local) -> Result<String> {
    let endpoint = local.endpoints()?.join(",");
    local.etcdctl(&endpoint, &["put", "kept", "over the restart"], None).await?;
    local.stop().await?;
    ensure!(local.members_running() == 0, "members still run after the operator ended");
    local.start()?;
    local.ready(3).await?;
    let endpoint = local.endpoints()?.join(",");
    let kept = local.etcdctl(&endpoint, &["get", "kept", "--print-value-only"], None).await?;
    ensure!(kept.trim() == "over the restart", "after the restart the key reads {kept:?}");
    Ok("data kept".to_owned())
}

impl Local {
    /// Makes the directory, with a copy of the manifest in it.
    pub(crate) fn new(args: LocalArgs, dir: &Path, more: Vec<String>) -> Result<Local> {
        std::fs::create_dir_all(dir)?;
        std::fs::copy(&args.manifest, dir.join("cluster.yaml")).context("cannot copy the manifest")?;
        Ok(Local { args, dir: dir.to_path_buf(), more, child: None })
    }

    fn manifest(&self) -> PathBuf {
        self.dir.join("cluster.yaml")
    }
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("operator.log"))?;
        let mut command = Command::new(&self.args.operator);
        command.arg("local").arg("-f").arg(self.manifest()).arg("--data-dir").arg(self.data());
        command.arg("--node-bin").arg(&self.args.node).args(&self.more).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().context("cannot start quorate-operator")?);
        Ok(())
    }

    /// As Ctrl-C does.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let raw = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(raw.context("the operator has no pid")?, rustix::process::Signal::INT)?;
        match tokio::time::timeout(STOP_LIMIT, child.wait()).await {
            Ok(status) => ensure!(status?.success(), "the operator did not end cleanly after an interrupt"),
            Err(_) => bail!("the operator still runs {} s after an interrupt", STOP_LIMIT.as_secs()),
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(self.dir.join("operator.log")).unwrap_or_default();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub(crate) fn status(&self) -> Result<Value> {
        let text = std::fs::read_to_string(self.data().join("status.json")).context("no status yet")?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn leader(&self) -> Result<String> {
        self.status()?["leader"]["name"].as_str().map(str::to_owned).context("the status names no leader")
    }

    pub(crate) fn term(&self) -> Result<u64> {
        self.status()?["leader"]["term"].as_u64().context("the status names no leader")
    }

    /// Waits until the status says Ready with this many voters, all of them ready.
    pub(crate) async fn ready(&self, replicas: u64) -> Result<String> {
        poll::until(&format!("{replicas} ready members"), READY_LIMIT, POLL, async || {
            let status = self.status()?;
            let ready = status["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            let counts = (status["replicas"].as_u64(), status["readyReplicas"].as_u64());
            ensure!(
                ready && counts == (Some(replicas), Some(replicas)),
                "Ready={ready}, voters and ready members: {counts:?}"
            );
            // Of the same reading: the next one may know of no leader.
            let leader = status["leader"]["name"].as_str().context("the status names no leader")?;
            Ok(format!("leader {leader}"))
        })
        .await
    }

    pub(crate) fn endpoints(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.data().join("endpoints")).context("no endpoints yet")?;
        Ok(text.trim().split(',').map(with_scheme).collect())
    }

    fn writer_args(&self) -> Result<WriterArgs> {
        Ok(WriterArgs {
            endpoints: self.endpoints()?,
            dir: self.dir.join("acks"),
            stop_file: self.dir.join("never"),
            seconds_max: 1800,
            workers: 4,
            pause_ms: 0,
            reconnect_every: 0,
            prefix: "writer/".to_owned(),
            tls: TlsArgs::default(),
        })
    }

    /// Rewrites lines of the manifest; a line for which `change` gives nothing stays.
    pub(crate) fn edit(&self, change: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let text = std::fs::read_to_string(self.manifest())?;
        let lines: Vec<String> = text.lines().map(|l| change(l).unwrap_or_else(|| l.to_owned())).collect();
        Ok(std::fs::write(self.manifest(), lines.join("\n") + "\n")?)
    }

    /// Repeats what fails for a while: an election may fall into any call, and no client may take one as final.
    pub(crate) async fn etcdctl(&self, endpoints: &str, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let limit = Duration::from_secs(20);
        poll::until("etcdctl", limit, POLL, async || self.etcdctl_once(endpoints, args, stdin).await).await
    }

    async fn etcdctl_once(&self, endpoints: &str, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let mut command = Command::new(&self.args.etcdctl);
        command.arg("--endpoints").arg(endpoints).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start etcdctl")?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), stdin) {
            tokio::io::AsyncWriteExt::write_all(&mut pipe, text.as_bytes()).await?;
        }
        let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
        let output = output.with_context(|| format!("etcdctl {args:?} did not end within 20 s"))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "etcdctl {args:?} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    pub(crate) fn member_pid(&self, name: &str) -> Result<rustix::process::Pid> {
        let found = self
            .member_processes()
            .into_iter()
            .find(|(_, line)| line.iter().any(|word| word == name || word == &format!("--name={name}")));
        let (pid, _) = found.with_context(|| format!("no process of member {name}"))?;
        rustix::process::Pid::from_raw(pid).context("pid 0")
    }

    fn members_running(&self) -> usize {
        self.member_processes().len()
    }

    /// Processes of the node program over our data directory.
    fn member_processes(&self) -> Vec<(i32, Vec<String>)> {
        let data = self.data().display().to_string();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let words: Vec<String> =
                    line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
                let node = Path::new(words.first()?).file_name() == self.args.node.file_name();
                (node && words.iter().any(|w| w.contains(&data))).then_some((pid, words))
            })
            .collect()
    }
}

fn with_scheme(endpoint: &str) -> String {
    if endpoint.starts_with("http") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}
