//! The Docker engine that kind runs its nodes in: the one that answers, else one of our own.
//!
//! Our own has its data in the cache and its socket under `/run`, so it neither needs nor disturbs a system's engine.
//! Must not know anything about Kubernetes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cmd::{cache_dir, root};
use crate::tools::run::{Run, step, wait_for};
use crate::tools::{apt, as_root, is_root};

/// Socket and pid file of our own engine. Not in the cache: a socket's path may be 107 bytes long at most.
const RUNTIME_DIR: &str = "/run/quorate";
/// Which bit of a capability set CAP_SYS_RESOURCE is (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;
/// A daemon that is up answers at once, unless the machine is busy.
const ANSWER_LIMIT_SECONDS: u64 = 5;
/// Starting takes two seconds; with containers of a run that was cut off, longer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Ending waits for the containers, which get ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// With cgroup v1 all containers together weigh as much as one process beside them, 1024: a build would starve the cluster, and
/// members would hold elections for want of a processor. Does nothing where there is no such file.
const WEIGH_CONTAINERS: &str = "f=/sys/fs/cgroup/cpu/docker/cpu.shares; [ ! -e $f ] || echo 16384 >$f";

/// An engine turns forwarding on and drops by default what it does not know; both are put back when ours ends.
const NOTE_FORWARDING: &str = "{ cat /proc/sys/net/ipv4/ip_forward; iptables -S FORWARD | sed -n 's/^-P FORWARD //p'; } \
     >/run/quorate/forwarding";
/// Removes the engine's chains and the rules that jump to them, and nothing else.
const RESTORE_FORWARDING: &str = "set -eu
    [ -e /run/quorate/forwarding ] || exit 0
    { read -r forward; read -r policy; } </run/quorate/forwarding
    iptables-save | grep -v DOCKER | sed \"s/^:FORWARD [A-Z]*/:FORWARD $policy/\" | iptables-restore
    echo \"$forward\" >/proc/sys/net/ipv4/ip_forward
    rm /run/quorate/forwarding";

/// An engine that answers.
#[derive(Debug, Clone)]
pub struct Engine {
    /// None: the environment's (`DOCKER_HOST`, context or default socket).
    host: Option<String>,
}

impl Engine {
    /// Our own engine if it runs, else the system's if one answers.
    pub fn answering() -> Option<Engine> {
        let own = Engine { host: Some(format!("unix://{}", socket().display())) };
        let system = Engine { host: None };
        [socket().exists().then_some(own), Some(system)].into_iter().flatten().find(Engine::answers)
    }

    /// An engine that answers, started if there is none.
    pub fn ensure() -> Result<Engine> {
        if let Some(engine) = Engine::answering() {
            return Ok(engine);
        }
        if own_pid().is_some() {
            return wait_for("our own dockerd, which runs, to answer", START_LIMIT, || {
                Engine::answering().context("no answer to `docker version`")
            });
        }
        apt(&[("dockerd", "docker.io"), ("iptables", "iptables"), ("jq", "jq"), ("ip", "iproute2")])?;
        step("kind", "no Docker engine answers: starting one", start)
    }

    pub fn is_own(&self) -> bool {
        self.host.is_some()
    }

    /// Gives our own containers their share of a busy machine; to be called when there are some.
    pub fn weigh_containers(&self) -> Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        as_root("sh", "giving the containers their share of the processors").args(["-c", WEIGH_CONTAINERS]).run()
    }

    /// What `DOCKER_HOST` must be to talk to this engine; None if it is the environment's own.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    fn answers(&self) -> bool {
        let version = self.docker("asking for an engine").args(["version", "--format", "{{.Server.Version}}"]);
        version.limit(ANSWER_LIMIT_SECONDS).end().is_ok_and(|ended| ended.success())
    }

    /// A docker command for this engine.
    pub fn docker(&self, purpose: impl Into<String>) -> Run {
        self.environment(Run::new("docker", purpose))
    }

    /// Any program that talks to an engine by itself, made to talk to this one.
    pub fn environment(&self, run: Run) -> Run {
        match &self.host {
            Some(host) => run.env("DOCKER_HOST", host),
            None => run,
        }
    }

    pub fn has_image(&self, image: &str) -> bool {
        let inspect = self.docker("looking for an image").args(["image", "inspect", "--format", "{{.Id}}", image]);
        inspect.end().is_ok_and(|ended| ended.success())
    }

    /// Makes an image of the files below a directory.
    pub fn import(&self, image: &str, tree: &Path, changes: &[String]) -> Result<()> {
        // tar reads as root what only root may read; the engine takes the stream from whoever may use it.
        let sudo = if is_root() { "" } else { "sudo -n " };
        let flags: Vec<String> = changes.iter().map(|change| quoted(&format!("--change={change}"))).collect();
        let script = format!(
            "set -o pipefail; {sudo}tar --create --numeric-owner -C {} . | docker import {} - {}",
            quoted(&tree.display().to_string()),
            flags.join(" "),
            quoted(image)
        );
        self.environment(Run::new("bash", format!("making the image {image}"))).args(["-c", &script]).limit(300).run()
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn socket() -> PathBuf {
    Path::new(RUNTIME_DIR).join("docker.sock")
}

fn pid_file() -> PathBuf {
    Path::new(RUNTIME_DIR).join("docker.pid")
}

fn data_dir() -> PathBuf {
    cache_dir().join("docker")
}

fn log_file() -> PathBuf {
    cache_dir().join("kind").join("dockerd.log")
}

fn start() -> Result<Engine> {
    clear_runtime_dir()?;
    as_root("mkdir", format!("making {RUNTIME_DIR}")).args(["-p", RUNTIME_DIR]).run()?;
    as_root("sh", "noting how this machine forwards packets").args(["-c", NOTE_FORWARDING]).run()?;
    let group = Run::new("id", "asking for this user's group").arg("-gn").output()?;
    let mut arguments = vec![
        format!("--data-root={}", data_dir().display()),
        format!("--exec-root={RUNTIME_DIR}/exec"),
        format!("--pidfile={}", pid_file().display()),
        format!("--host=unix://{}", socket().display()),
        format!("--group={}", group.trim()),
        // kind makes a network of its own.
        "--bridge=none".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    if !has_resource_capability()? {
        // Kept in the cache: the engine outlives the clone it was started from.
        let detour = cache_dir().join("bin").join("runc-without-resource-cap");
        fs::create_dir_all(cache_dir().join("bin")).context("cannot make the cache's bin directory")?;
        fs::copy(root().join("e2e/rig/node/bin/runc-without-resource-cap"), &detour)
            .with_context(|| format!("cannot copy to {}", detour.display()))?;
        arguments.push(format!("--add-runtime=fewer={}", detour.display()));
        arguments.push("--default-runtime=fewer".to_owned());
    }
    let log_path = log_file();
    crate::tools::write(&log_path, "")?;
    let log = fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = if is_root() { Command::new("dockerd") } else { Command::new("sudo") };
    if !is_root() {
        command.args(["-n", "dockerd"]);
    }
    let mut child = command
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share a log file")?)
        .stderr(log)
        // Ctrl-C in the terminal is for xtask; the engine is ended by `down`.
        .process_group(0)
        .spawn()
        .context("cannot start dockerd")?;
    let engine = Engine { host: Some(format!("unix://{}", socket().display())) };
    wait_for("our own dockerd to answer", START_LIMIT, || {
        if let Some(status) = child.try_wait()? {
            bail!("dockerd ended with {status}");
        }
        if engine.answers() { Ok(()) } else { bail!("no answer at {}", socket().display()) }
    })
    .with_context(|| format!("log of dockerd:\n{}", tail(&log_path)))?;
    Ok(engine)
}

/// Ends our own engine, if there is one, and removes what it left in `/run` and among the network interfaces.
pub fn stop_own() -> Result<()> {
    let Some(pid) = own_pid() else {
        return clear_runtime_dir();
    };
    step("kind", "stopping our own Docker engine", || {
        as_root("kill", "ending dockerd").args(["-TERM", &pid]).run()?;
        wait_for("our own dockerd to end", STOP_LIMIT, || match own_pid() {
            None => Ok(()),
            Some(pid) => bail!("process {pid} still runs"),
        })
        .with_context(|| format!("log of dockerd:\n{}", tail(&log_file())))?;
        clear_runtime_dir()
    })
}

/// Process id of our own engine if it is alive and really dockerd.
fn own_pid() -> Option<String> {
    let pid = fs::read_to_string(pid_file()).ok()?.trim().to_owned();
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    // A zombie that nobody waits for yet is not alive.
    let alive = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    (comm.trim() == "dockerd" && alive).then_some(pid)
}

/// Removes what an engine that is gone left behind: its files, the mount it makes of its own data directory, and mounts
/// of containers that were killed with it.
fn clear_runtime_dir() -> Result<()> {
    if own_pid().is_some() || !Path::new(RUNTIME_DIR).exists() {
        return Ok(());
    }
    let data = data_dir();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|target| Path::new(target).starts_with(RUNTIME_DIR) || Path::new(target).starts_with(&data))
        .collect();
    for mount in below.into_iter().rev() {
        as_root("umount", format!("unmounting {mount}")).args(["-l", mount]).run()?;
    }
    as_root("sh", "putting back how this machine forwards packets").args(["-c", RESTORE_FORWARDING]).run()?;
    as_root("rm", format!("removing {RUNTIME_DIR}")).args(["-rf", RUNTIME_DIR]).run()
}

fn has_resource_capability() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    bounding_set(&status).map(|set| set >> CAP_SYS_RESOURCE & 1 == 1).context("/proc/self/status names no CapBnd")
}

fn bounding_set(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_seen_in_the_bounding_set() {
        let set = bounding_set("CapEff:\t0\nCapBnd:\t000001fffeffffff\n").unwrap();
        assert_eq!(set >> CAP_SYS_RESOURCE & 1, 0);
        assert_eq!(bounding_set("CapBnd:\t000001ffffffffff\n").unwrap() >> CAP_SYS_RESOURCE & 1, 1);
        assert_eq!(bounding_set("CapEff: 0\n"), None);
    }

    #[test]
    fn quoting_survives_a_quote() {
        assert_eq!(quoted("ENV A='b'"), r"'ENV A='\''b'\'''");
    }
}
