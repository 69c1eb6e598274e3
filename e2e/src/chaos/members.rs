//! Three members as processes: started, signalled, asked. Knows nothing of faults.
//!
//! The program is ours or etcd's: both take the same flags, so both can be measured by the same prober.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{MoveLeaderRequest, StatusRequest, StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::poll;

/// A member on this machine that does not answer within this is taken for stuck.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// From start to a leader that all three name, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A killed process is gone at once; it is only waited for.
const KILLED_LIMIT: Duration = Duration::from_secs(10);

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const ADMIN_PORT: u16 = 2381;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Quorate,
    Etcd,
}

/// What is run, and how.
#[derive(Clone, Debug)]
pub struct Program {
    pub kind: Kind,
    pub path: PathBuf,
    /// Words before the program's path: a tool that becomes the program under the same process id.
    pub prefix: Vec<String>,
    /// Beside the flags that name addresses and directories.
    pub flags: Vec<String>,
}

/// Where a member lives.
#[derive(Clone, Debug)]
pub struct Home {
    pub data_dir: PathBuf,
    pub host: String,
    /// Added to the usual ports, so that members can share an address.
    pub port_offset: u16,
    /// Network namespace to start in.
    pub namespace: Option<String>,
}

impl Home {
    /// The `n`th of a cluster whose members share one address.
    pub fn on_loopback(data_dir: PathBuf, n: u16, port_offset: u16) -> Home {
        Home { data_dir, host: "127.0.0.1".into(), port_offset: port_offset + 10 * n, namespace: None }
    }
}

#[derive(Debug)]
pub struct Member {
    pub name: String,
    pub home: Home,
    pub log: PathBuf,
    child: Option<Child>,
}

impl Member {
    pub fn client_url(&self) -> String {
        self.url(CLIENT_PORT)
    }

    fn url(&self, port: u16) -> String {
        format!("http://{}:{}", self.home.host, port + self.home.port_offset)
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.as_ref().and_then(Child::id).with_context(|| format!("{} is not running", self.name))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("a process id is a positive i32")?;
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// Kills and reaps.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.ended(KILLED_LIMIT).await
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} is not running", self.name))?;
        let status = tokio::time::timeout(limit, child.wait())
            .await
            .with_context(|| format!("{} did not end within {} ms", self.name, limit.as_millis()))??;
        self.child = None;
        Ok(status)
    }

    /// How the process ended, if it did.
    pub fn try_ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = self.child.as_mut() else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The state letter of the process in /proc: `T` is stopped.
    pub fn state(&self) -> Result<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).context("/proc/PID/stat has a state")
    }

    pub async fn status(&self) -> Result<StatusResponse> {
        status(&self.client_url()).await
    }

    /// The last lines of the member's own log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |m| m.len())
    }

    /// What the member logged from this length of its log on.
    pub fn log_since(&self, bytes: u64) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(bytes).unwrap_or(0).min(text.len());
        String::from_utf8_lossy(&text[from..]).into_owned()
    }
}

pub async fn channel(url: &str, limit: Duration) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(limit).timeout(limit).tcp_nodelay(true);
    Ok(tokio::time::timeout(limit, endpoint.connect()).await??)
}

pub async fn status(url: &str) -> Result<StatusResponse> {
    let mut client = MaintenanceClient::new(channel(url, ASK_LIMIT).await?);
    Ok(client.status(StatusRequest::default()).await?.into_inner())
}

#[derive(Debug)]
pub struct Members {
    pub list: Vec<Member>,
    program: Program,
}

impl Members {
    pub fn new(program: Program, homes: Vec<Home>, logs: &Path) -> Result<Members> {
        std::fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let list = homes.into_iter().enumerate().map(|(n, home)| {
            let name = format!("m{n}");
            Member { log: logs.join(format!("{name}.log")), name, home, child: None }
        });
        Ok(Members { list: list.collect(), program })
    }

    /// Members on one address, told apart by ports.
    pub fn on_loopback(program: Program, dir: &Path, port_offset: u16) -> Result<Members> {
        let homes = (0..3).map(|n| Home::on_loopback(dir.join(format!("m{n}")), n, port_offset));
        Members::new(program, homes.collect(), dir)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.list.iter().map(Member::client_url).collect()
    }

    pub fn start(&mut self, at: usize) -> Result<()> {
        let initial: Vec<_> = self.list.iter().map(|m| format!("{}={}", m.name, m.url(PEER_PORT))).collect();
        let member = &mut self.list[at];
        ensure!(member.child.is_none(), "{} runs already", member.name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&member.log)?;
        let mut words: Vec<OsString> = self.program.prefix.iter().map(OsString::from).collect();
        if let Some(namespace) = &member.home.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(OsString::from));
        }
        words.push(self.program.path.clone().into_os_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let (client, peer) = (member.url(CLIENT_PORT), member.url(PEER_PORT));
        command.args(["--name", &member.name, "--data-dir"]).arg(&member.home.data_dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &initial.join(","), "--initial-cluster-state", "new"]);
        if self.program.kind == Kind::Quorate {
            command.args(["--listen-admin-urls", &member.url(ADMIN_PORT)]);
        }
        command.args(&self.program.flags).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        member.child = Some(command.spawn().with_context(|| format!("cannot start {}", self.program.path.display()))?);
        Ok(())
    }

    pub fn start_all(&mut self) -> Result<()> {
        (0..self.list.len()).try_for_each(|at| self.start(at))
    }

    /// Starts those that do not run.
    pub fn start_missing(&mut self) -> Result<()> {
        for at in 0..self.list.len() {
            // A process that ended by itself counts as running until it is reaped.
            self.list[at].try_ended()?;
            if !self.list[at].is_running() {
                self.start(at)?;
            }
        }
        Ok(())
    }

    /// Place of the member that says it leads, in the highest term anybody knows.
    pub async fn leader(&self) -> Result<usize> {
        let mut found: Option<(u64, usize)> = None;
        let mut asked = Vec::new();
        for member in &self.list {
            let url = member.client_url();
            asked.push(tokio::spawn(async move { status(&url).await }));
        }
        for (at, answer) in asked.into_iter().enumerate() {
            let Ok(status) = answer.await? else { continue };
            let id = status.header.as_ref().map_or(0, |h| h.member_id);
            if id != 0 && status.leader == id && found.is_none_or(|(term, _)| term < status.raft_term) {
                found = Some((status.raft_term, at));
            }
        }
        found.map(|(_, at)| at).context("no member says that it leads")
    }

    /// Waits for a leader.
    pub async fn led(&self) -> Result<usize> {
        poll::until("a leader", READY_LIMIT, Duration::from_millis(20), async || self.leader().await).await
    }

    /// Waits until all members name the same leader and have applied the same; returns its place.
    pub async fn settled(&self, limit: Duration) -> Result<usize> {
        poll::until("all members to agree", limit, Duration::from_millis(50), async || {
            let leader = self.leader().await?;
            let mut seen = Vec::new();
            for member in &self.list {
                let status = member.status().await.with_context(|| member.name.clone())?;
                seen.push((status.leader, status.raft_term));
            }
            if seen.iter().any(|other| *other != seen[leader]) {
                bail!("leader and term differ: {seen:?}");
            }
            Ok(leader)
        })
        .await
    }

    pub async fn ready(&self) -> Result<usize> {
        self.settled(READY_LIMIT).await
    }

    /// A planned move of leadership.
    pub async fn move_leader(&self, leader: usize, to: usize, limit: Duration) -> Result<()> {
        let target = self.list[to].status().await?.header.context("a status has a header")?.member_id;
        let mut client = MaintenanceClient::new(channel(&self.list[leader].client_url(), limit).await?);
        client.move_leader(MoveLeaderRequest { target_id: target }).await?;
        Ok(())
    }

    /// Kills what runs; for the end of a suite.
    pub async fn end(&mut self) {
        for member in &mut self.list {
            if member.is_running() {
                // A stopped process dies of SIGKILL too; whoever is gone already needs nothing.
                let _ = member.kill().await;
            }
        }
    }
}
