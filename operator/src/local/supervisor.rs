//! Processes of members, as a kubelet keeps containers: started from the record's template, started again when they end, stopped
//! with patience.
//!
//! Must not decide who runs: records say so. A process keeps the template it was made from until it is made anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::store::{RecordFile, Start, Store};
use crate::clock;

/// A member hands leadership over and flushes within this, or is killed.
const GRACE: Duration = Duration::from_secs(10);
/// A process that ran this long did not fail at its start.
const RAN_WELL: Duration = Duration::from_secs(10);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A log that grew beyond this makes way for a new one at the next start, in bytes.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// Of a log's end, to find its last line.
const LAST_WORD_BYTES: u64 = 4096;
const STRAY_LOOK: Duration = Duration::from_millis(100);

/// The process of a record, or the place for it while it is being started again.
#[derive(Debug)]
pub(super) struct Process {
    pub uid: String,
    pub template_hash: String,
    pub image: String,
    pub created_ms: u64,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
    /// Ends in a row soon after a start.
    failures: u32,
    restart_at: Instant,
    /// How it ended last.
    pub ended: Option<String>,
    /// Since when it was told to stop for good.
    stopping: Option<Instant>,
    was_killed: bool,
}

#[derive(Debug)]
pub(super) struct Supervisor {
    node_bin: PathBuf,
    processes: BTreeMap<String, Process>,
}

impl Supervisor {
    pub fn new(node_bin: PathBuf) -> Supervisor {
        Supervisor { node_bin, processes: BTreeMap::new() }
    }

    pub fn process(&self, record: &str) -> Option<&Process> {
        self.processes.get(record)
    }

    /// Makes processes follow the records.
    pub fn tend(&mut self, store: &Store) {
        for process in self.processes.values_mut() {
            process.reap();
        }
        self.processes.retain(|_, p| p.stopping.is_none() || p.child.is_some());
        for (name, process) in &mut self.processes {
            if store.records.get(name).is_none_or(|r| !r.is_running) {
                process.stop();
            }
            process.kill_if_late();
        }
        for record in store.records.values() {
            if let (true, Some(start)) = (record.is_running, record.start)
                && let Err(error) = self.run(store, record, start)
            {
                tracing::warn!(member = record.name, "cannot start: {error:#}");
            }
        }
    }

    fn run(&mut self, store: &Store, record: &RecordFile, start: Start) -> Result<()> {
        // No disk, no start: a member that lost its disk must not come back under its old id with an empty one.
        if store.volume(&record.name)?.is_none_or(|v| v.record_uid != record.uid) {
            return Ok(());
        }
        if !self.processes.contains_key(&record.name) {
            let process = Process {
                uid: clock::uuid()?,
                template_hash: record.template.hash.clone(),
                image: record.template.image.clone(),
                created_ms: clock::now_ms(),
                arguments: arguments(store, record, start),
                log: store.dir.join("logs").join(format!("{}.log", record.name)),
                child: None,
                started: Instant::now(),
                failures: 0,
                restart_at: Instant::now(),
                ended: None,
                stopping: None,
                was_killed: false,
            };
            self.processes.insert(record.name.clone(), process);
        }
        let process = self.processes.get_mut(&record.name).expect("just put there");
        if process.child.is_none() && process.stopping.is_none() && process.restart_at <= Instant::now() {
            process.spawn(&self.node_bin)?;
        }
        Ok(())
    }

    /// Makes the process of a record anew, if it still is the one that was seen.
    pub fn recreate(&mut self, record: &str, uid: &str) -> bool {
        let Some(process) = self.processes.get_mut(record).filter(|p| p.uid == uid) else { return false };
        process.stop();
        true
    }

    /// Tells the named ones to stop; all but them when `except` names one.
    pub fn stop_all(&mut self, except: Option<&str>) {
        for (name, process) in &mut self.processes {
            if Some(name.as_str()) != except {
                process.stop();
            }
        }
    }

    /// Says whether any process still runs that was told to stop.
    pub fn is_stopping(&mut self) -> bool {
        for process in self.processes.values_mut() {
            process.reap();
            process.kill_if_late();
        }
        self.processes.values().any(|p| p.stopping.is_some() && p.child.is_some())
    }

    pub fn kill_all(&mut self) {
        for process in self.processes.values_mut() {
            process.signal(Signal::KILL);
        }
    }
}

impl Process {
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Why it does not stay up, once it failed more than once in a row.
    pub fn waiting_reason(&self) -> Option<String> {
        let failing = self.failures > 1 && self.child.is_none();
        failing.then(|| {
            let ended = self.ended.as_deref().unwrap_or("unknown");
            format!("it ends again and again ({ended}); its log is {}; --fresh starts over", self.log.display())
        })
    }

    fn spawn(&mut self, node_bin: &Path) -> Result<()> {
        let log = open_log(&self.log)?;
        let mut command = Command::new(node_bin);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Not in our group, so that Ctrl-C reaches this command alone and members stop in order.
        command.process_group(0).kill_on_drop(true);
        let spawned = command.spawn().with_context(|| format!("cannot start {}", node_bin.display()));
        self.restart_at = Instant::now() + RESTART_PAUSE_MAX;
        self.child = Some(spawned?);
        self.started = Instant::now();
        Ok(())
    }

    fn reap(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        self.child = None;
        let last_word = last_error(&self.log).map_or_else(String::new, |word| format!(": {word}"));
        self.ended = Some(format!("{status}{last_word}"));
        if self.started.elapsed() >= RAN_WELL {
            self.failures = 0;
        }
        let pause = if self.failures == 0 { Duration::ZERO } else { Duration::from_secs(1 << self.failures.min(4)) };
        self.restart_at = Instant::now() + pause.min(RESTART_PAUSE_MAX);
        self.failures += 1;
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(Instant::now());
            self.signal(Signal::TERM);
        }
    }

    fn kill_if_late(&mut self) {
        if self.stopping.is_some_and(|since| since.elapsed() > GRACE) && !self.was_killed {
            self.was_killed = true;
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }
}

pub(super) fn peer_url(record: &RecordFile) -> String {
    format!("http://127.0.0.1:{}", record.ports.peer)
}
pub(super) fn client_url(record: &RecordFile) -> String {
    format!("http://127.0.0.1:{}", record.ports.client)
}
pub(super) fn admin_url(record: &RecordFile) -> String {
    format!("http://127.0.0.1:{}", record.ports.admin)
}

/// The member program's flags. A seed founds a cluster of itself; everybody else asks the other members.
fn arguments(store: &Store, record: &RecordFile, start: Start) -> Vec<String> {
    let own = format!("{}={}", record.name, peer_url(record));
    let token = store
        .cluster
        .as_ref()
        .map_or(String::new(), |c| quorate_api::names::token(&c.uid, super::manifest::INCARNATION));
    let others = store.records.values().filter(|r| r.name != record.name && r.member_id.is_some());
    let all: Vec<String> =
        std::iter::once(own.clone()).chain(others.map(|r| format!("{}={}", r.name, peer_url(r)))).collect();
    let (state, cluster) = match start {
        Start::Seed => ("new", own),
        Start::Member => ("existing", all.join(",")),
    };
    let mut arguments = vec![
        format!("--name={}", record.name),
        format!("--data-dir={}", store.volume_dir(&record.name).join("data").display()),
        format!("--listen-peer-urls={}", peer_url(record)),
        format!("--initial-advertise-peer-urls={}", peer_url(record)),
        format!("--listen-client-urls={}", client_url(record)),
        format!("--advertise-client-urls={}", client_url(record)),
        format!("--listen-admin-urls={}", admin_url(record)),
        format!("--initial-cluster={cluster}"),
        format!("--initial-cluster-state={state}"),
        format!("--initial-cluster-token={token}"),
        format!("--heartbeat-interval={}", record.template.heartbeat_ms),
        format!("--election-timeout={}", record.template.election_ms),
    ];
    arguments.extend(record.template.quota_bytes.map(|bytes| format!("--quota-backend-bytes={bytes}")));
    if start == Start::Seed {
        arguments.push("--await-activation".to_owned());
    }
    arguments
}

fn open_log(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    File::options().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Why a member ended by its own word: the error at the end of its log. None if its last line is something else.
fn last_error(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let tail = file.metadata().ok()?.len().min(LAST_WORD_BYTES);
    file.seek(SeekFrom::End(-i64::try_from(tail).ok()?)).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORD_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, word) = text.lines().last()?.split_once(" ERROR ")?;
    Some(word.trim().to_owned())
}

/// Ends members that a killed command left behind in this directory: they hold its volumes.
pub(super) async fn end_strays(dir: &Path) -> Result<()> {
    let volumes = format!("--data-dir={}/", dir.join("volumes").display());
    let since = Instant::now();
    loop {
        let strays = with_argument(&volumes);
        if strays.is_empty() {
            return Ok(());
        }
        let patience = since.elapsed() < GRACE;
        for pid in strays {
            tracing::info!(pid = pid.as_raw_nonzero().get(), "ending a member that an earlier run left behind");
            // It may end between the look and the signal.
            let _ = kill_process(pid, if patience { Signal::TERM } else { Signal::KILL });
        }
        tokio::time::sleep(STRAY_LOOK).await;
        anyhow::ensure!(since.elapsed() < 2 * GRACE, "members of an earlier run do not end; end them by hand");
    }
}

/// Processes with an argument that starts so. None where there is no /proc.
fn with_argument(start: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let found = entries.flatten().filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.split(|b| *b == 0).any(|word| word.starts_with(start.as_bytes())).then_some(pid)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_log_is_its_error_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("a.log");
        let says = |text: &str| {
            fs::write(&log, text).expect("written");
            last_error(&log)
        };
        let end = "2026-01-01T00:00:00Z ERROR quorate_node: no log in the data directory\n";
        assert_eq!(
            says(&("x".repeat(9000) + "\n" + end)).as_deref(),
            Some("quorate_node: no log in the data directory")
        );
        assert_eq!(says(&format!("{end}2026-01-01T00:00:01Z  INFO quorate_node: listening\n")), None);
        assert_eq!(says(""), None);
    }
}
