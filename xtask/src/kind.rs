//! A real Kubernetes on this machine: kind with one control plane and two workers, and our images in it.
//!
//! Nothing has to be there but the Go toolchain and Debian's packages; where a Docker engine or a registry is to be had it
//! is used. `up` gives a cluster that has proved that it works, `down` leaves nothing behind but the cache.
//! Must not know what is tested on the cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmd::{cache_dir, root};
use crate::tools::run::{Run, step, wait_for};
use crate::tools::{self, content_hash, write};

mod engine;
mod node_image;

use engine::Engine;
pub use node_image::BUSYBOX;
use node_image::{NodeImage, copy, fresh_dir};

const NAME: &str = "quorate";
/// The nodes in kind's naming, in the order of their zones a, b and c.
pub const NODES: [&str; 3] = ["quorate-control-plane", "quorate-worker", "quorate-worker2"];
/// A minute on an idle machine with two cores; several times that on a busy one.
const CREATE_LIMIT_SECONDS: u64 = 8 * 60;
const DELETE_LIMIT_SECONDS: u64 = 120;
const READY_LIMIT: Duration = Duration::from_secs(180);
const LOAD_LIMIT_SECONDS: u64 = 180;
/// A healthy API server answers within this even on a busy machine.
const ANSWER_LIMIT_SECONDS: u64 = 15;

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    pub kubeconfig: PathBuf,
    /// The API server's audit log, on this machine; one JSON object a line.
    pub audit_log: PathBuf,
    engine: Engine,
    kubectl: PathBuf,
    kind: PathBuf,
}

/// Brings up the cluster, or reuses the one that is up.
pub fn up() -> Result<Cluster> {
    let started = Instant::now();
    let _lock = lock()?;
    let (kind, kubectl) = (tools::kind()?, tools::kubectl()?);
    let engine = Engine::ensure()?;
    let image = node_image::ensure(&engine)?;
    let cluster = Cluster { kubeconfig: kubeconfig(), audit_log: audit_dir().join("audit.log"), engine, kubectl, kind };
    let (config, identity) = configuration(&image)?;
    if fs::read_to_string(identity_file()).is_ok_and(|found| found == identity) && is_up() {
        eprintln!("[kind] reusing the cluster that is up ({:.1} s)", started.elapsed().as_secs_f64());
        return Ok(cluster);
    }
    cluster.delete()?;
    cluster.create(&image, &config).inspect_err(|_| cluster.show_logs())?;
    write(&identity_file(), identity)?;
    node_image::remove_others(&cluster.engine, &image)?;
    eprintln!("[kind] up after {:.1} s; KUBECONFIG={}", started.elapsed().as_secs_f64(), cluster.kubeconfig.display());
    if let Some(host) = cluster.engine.host() {
        eprintln!("[kind] the nodes are containers of DOCKER_HOST={host}");
    }
    Ok(cluster)
}

/// Removes the cluster and, if it was started here, the Docker engine. The cache stays.
pub fn down() -> Result<()> {
    let lock = lock()?;
    // Without a state directory nothing was ever brought up here: nothing to ask an engine for.
    if let Some(engine) = state_dir().exists().then(Engine::answering).flatten() {
        let own = engine.is_own();
        let cluster = Cluster {
            kubeconfig: kubeconfig(),
            audit_log: audit_dir().join("audit.log"),
            engine,
            kubectl: tools::kubectl()?,
            kind: tools::kind()?,
        };
        cluster.delete()?;
        if own {
            // kind leaves its network for the next cluster; with an engine of our own it is ours to remove. Not there if
            // no cluster was ever made.
            let network = cluster.engine.docker("removing kind's network").args(["network", "rm", "kind"]);
            network.end()?;
        }
    }
    engine::stop_own()?;
    drop(lock);
    if state_dir().exists() {
        fs::remove_dir_all(state_dir()).with_context(|| format!("cannot remove {}", state_dir().display()))?;
    }
    Ok(())
}

/// Removes the cluster if a suite that was cut off left this namespace in it: nobody knows what else it left.
pub fn down_if_left(namespace: &str) -> Result<()> {
    if !is_up() {
        return Ok(());
    }
    let found = Run::new(cache_dir().join("bin/kubectl"), "looking for what a run left")
        .env("KUBECONFIG", kubeconfig())
        .args(["get", "namespace", namespace, "--ignore-not-found", "-o=name", "--request-timeout=10s"])
        .limit(ANSWER_LIMIT_SECONDS)
        .output()?;
    if found.trim().is_empty() {
        return Ok(());
    }
    eprintln!("[kind] a run that was cut off left the namespace {namespace}: starting over");
    down()
}

/// The cluster if it is up and its nodes are ready; starts and builds nothing.
pub fn is_up() -> bool {
    kubeconfig().exists() && Engine::answering().is_some() && ready_nodes(&cache_dir().join("bin/kubectl")).is_ok()
}

fn state_dir() -> PathBuf {
    cache_dir().join("kind")
}

fn kubeconfig() -> PathBuf {
    state_dir().join("kubeconfig")
}

fn audit_dir() -> PathBuf {
    state_dir().join("audit")
}

/// Says from what the running cluster was made.
fn identity_file() -> PathBuf {
    state_dir().join("identity")
}

/// One cluster, one change at a time: a second xtask waits here.
fn lock() -> Result<fs::File> {
    let path = cache_dir().join("kind.lock");
    write(&path, "")?;
    let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("[kind] waiting for another xtask that is changing the cluster …");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn rig_file(name: &str) -> Result<String> {
    let path = root().join("e2e/rig").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// kind's configuration for this machine and image, and what tells a cluster made from it from others.
fn configuration(image: &NodeImage) -> Result<(String, String)> {
    let policy = rig_file("audit-policy.yaml")?;
    // The nodes' mount: outside the clone, which may go while the cluster lives.
    let policy_path = state_dir().join("audit-policy.yaml");
    let cgroup_v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut kubelet = Vec::new();
    if cgroup_v1 {
        kubelet.push("failCgroupV1: false");
    }
    if image.local {
        kubelet.push("cgroupDriver: cgroupfs");
    }
    let config = rig_file("kind.yaml")?
        .replace("@KUBELET@", &kubelet.join("\n    "))
        .replace("@AUDIT_POLICY@", &policy_path.display().to_string())
        .replace("@AUDIT_DIR@", &audit_dir().display().to_string());
    let hash = content_hash([config.as_bytes(), policy.as_bytes()]);
    Ok((config, format!("{} {hash}\n", image.name)))
}

impl Cluster {
    /// Loads an image of the engine onto every node.
    pub fn load_image(&self, image: &str) -> Result<()> {
        step("kind", &format!("loading {image} onto the nodes"), || {
            self.kind("loading an image")
                .args(["load", "docker-image", "--name", NAME, image])
                .limit(LOAD_LIMIT_SECONDS)
                .run()
        })
    }

    /// A kubectl command for this cluster.
    pub fn kubectl(&self, purpose: impl Into<String>) -> Run {
        Run::new(&self.kubectl, purpose).env("KUBECONFIG", &self.kubeconfig)
    }

    /// A docker command for the engine the nodes run in: `pause` and `exec` of a node are how it is made to fail.
    pub fn docker(&self, purpose: impl Into<String>) -> Run {
        self.engine.docker(purpose)
    }

    /// What `DOCKER_HOST` must be to reach the nodes; None if it is the environment's own.
    pub fn docker_host(&self) -> Option<&str> {
        self.engine.host()
    }

    fn kind(&self, purpose: impl Into<String>) -> Run {
        // Never the user's own kubeconfig.
        self.engine.environment(Run::new(&self.kind, purpose)).env("KUBECONFIG", &self.kubeconfig)
    }

    fn create(&self, image: &NodeImage, config: &str) -> Result<()> {
        fresh_dir(&audit_dir())?;
        write(&state_dir().join("audit-policy.yaml"), rig_file("audit-policy.yaml")?)?;
        let config_path = state_dir().join("kind.yaml");
        write(&config_path, config)?;
        step("kind", &format!("creating a cluster of three nodes from {}", image.name), || {
            self.kind("kind create cluster")
                // Containers of a failed attempt are kept, so that their logs can be shown.
                .args(["create", "cluster", "--retain", "--image", &image.name, "--config"])
                .arg(&config_path)
                .limit(CREATE_LIMIT_SECONDS)
                .run()
        })?;
        self.engine.weigh_containers()?;
        if image.local {
            let apply =
                self.kubectl("configuring CoreDNS").args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
            apply.input(rig_file("coredns.yaml")?).run()?;
            self.keep_dns()?;
            // Removed rather than restarted one after the other: those that are there are about to end themselves.
            let remove = ["-n", "kube-system", "delete", "pods", "-l", "k8s-app=kube-dns", "--force"];
            self.kubectl("restarting CoreDNS").args(remove).run()?;
        } else {
            node_image::busybox(&self.engine)?;
            self.load_image(BUSYBOX)?;
            self.keep_dns()?;
        }
        step("kind", "waiting for the nodes to be ready", || {
            wait_for("three ready nodes", READY_LIMIT, || self.nodes_ready())
        })?;
        step("kind", "proving volumes, names, Services and traffic between nodes", || self.check())
    }

    fn delete(&self) -> Result<()> {
        let nodes = self.kind("listing clusters").args(["get", "clusters", "-q"]).output()?;
        if !nodes.lines().any(|line| line == NAME) {
            return Ok(());
        }
        step("kind", "deleting the cluster", || {
            // A node that a test paused would not let itself be removed.
            for node in NODES {
                self.docker("resuming a node").args(["unpause", node]).end()?;
            }
            self.kind("kind delete cluster")
                .args(["delete", "cluster", "--name", NAME])
                .limit(DELETE_LIMIT_SECONDS)
                .run()
        })?;
        if identity_file().exists() {
            fs::remove_file(identity_file()).context("cannot remove the cluster's identity file")?;
        }
        Ok(())
    }

    fn nodes_ready(&self) -> Result<()> {
        ready_nodes(&self.kubectl)
    }

    /// Names are answered on the node that is never drained or stopped: who loses a node in a test is to lose that alone.
    fn keep_dns(&self) -> Result<()> {
        let stay = r#"{"spec":{"template":{"spec":{"nodeSelector":{"node-role.kubernetes.io/control-plane":""}}}}}"#;
        let patch = ["-n", "kube-system", "patch", "deployment", "coredns", "--type=merge", "-p", stay];
        self.kubectl("keeping CoreDNS on the control plane").args(patch).run().map(drop)
    }

    /// Does once what tests will do all the time; see `e2e/rig/check.yaml`.
    fn check(&self) -> Result<()> {
        let dns = ["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"];
        self.kubectl("waiting for CoreDNS").args(dns).limit(130).run()?;
        // What an earlier, failed check left.
        self.clear_check(true)?;
        let manifest = rig_file("check.yaml")?.replace("@BUSYBOX@", BUSYBOX);
        self.kubectl("creating the check's pods").args(["apply", "-f", "-"]).input(manifest).run()?;
        let wait =
            ["-n", "quorate-check", "wait", "pod/client", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=150s"];
        self.kubectl("waiting for the check's client to reach its server").args(wait).limit(160).run().inspect_err(
            |_| {
                for what in [&["get", "pods,pvc,events", "-o", "wide"][..], &["describe", "pods"], &["logs", "client"]]
                {
                    let shown = self.kubectl("showing the check").args(["-n", "quorate-check"]).args(what).output();
                    eprintln!("--- kubectl {}\n{}", what.join(" "), shown.unwrap_or_else(|error| format!("{error:#}")));
                }
            },
        )?;
        let said =
            self.kubectl("reading the check's answer").args(["-n", "quorate-check", "logs", "client"]).output()?;
        if said.trim() != "written to the volume" {
            bail!("the check's client got {said:?} instead of what the server has on its volume");
        }
        if !fs::metadata(&self.audit_log).is_ok_and(|meta| meta.len() > 0) {
            bail!("the API server writes no audit log to {}", self.audit_log.display());
        }
        self.clear_check(false)
    }

    fn clear_check(&self, wait: bool) -> Result<()> {
        let delete = ["delete", "namespace", "quorate-check", "--ignore-not-found", "--timeout=90s"];
        let wait = format!("--wait={wait}");
        self.kubectl("removing the check's namespace").args(delete).arg(wait).limit(100).run()
    }

    /// What explains most failures to come up.
    fn show_logs(&self) {
        for node in NODES {
            let log = self.docker("log").args(["logs", "--tail", "15", node]).end();
            if let Ok(log) = log {
                eprintln!("--- log of {node}\n{}{}", log.stdout, log.stderr);
            }
            let units = ["journalctl", "--no-pager", "-n", "25", "-u", "kubelet"];
            if let Ok(log) = self.docker("journal").args(["exec", node]).args(units).end() {
                eprintln!("--- journal of {node}\n{}{}", log.stdout, log.stderr);
            }
        }
        if kubeconfig().exists() {
            let pods = self.kubectl("pods").args(["get", "pods", "-A", "-o", "wide", "--request-timeout=5s"]).end();
            if let Ok(pods) = pods {
                eprintln!("--- pods\n{}{}", pods.stdout, pods.stderr);
            }
        }
        eprintln!("--- the nodes are kept as they are; `cargo xtask down` removes them");
    }
}

fn ready_nodes(kubectl: &Path) -> Result<()> {
    let template = r#"{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
    let list = Run::new(kubectl, "asking for the nodes")
        .env("KUBECONFIG", kubeconfig())
        .args(["get", "nodes", &format!("-o=jsonpath={template}"), "--request-timeout=10s"])
        .limit(ANSWER_LIMIT_SECONDS)
        .output()?;
    let ready = list.lines().filter(|line| line.ends_with(" True")).count();
    if ready != NODES.len() {
        bail!("{ready} of {} nodes are ready:\n{list}", NODES.len());
    }
    Ok(())
}

/// Makes the image of both programs: the last stage of the Dockerfile alone, from programs compiled outside.
pub fn build_image(operator: &Path, node: &Path, image: &str) -> Result<()> {
    let engine = Engine::ensure()?;
    step("kind", &format!("building {image}"), || {
        let context = image_context(&[(operator, "quorate-operator"), (node, "quorate-node")])?;
        let path = root().join("Dockerfile");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        write(&context.join("Dockerfile"), without_compiling(&text)?)?;
        engine
            .docker(format!("building {image}"))
            .args(["build", "-q", "--build-arg", "PROGRAMS=prebuilt", "-t", image])
            .arg(&context)
            .limit(180)
            .run()?;
        if engine.is_own() {
            // The image that had the tag until now has no name left.
            engine.docker("removing nameless images").args(["image", "prune", "-f"]).run()?;
        }
        fs::remove_dir_all(&context).with_context(|| format!("cannot remove {}", context.display()))
    })
}

/// The Dockerfile without its stage `compiled`: Docker's older builder runs every stage, needed or not, and that one
/// needs a base image.
fn without_compiling(dockerfile: &str) -> Result<String> {
    let mut kept = String::new();
    let mut dropping = false;
    let mut dropped = false;
    for line in dockerfile.split_inclusive('\n') {
        if line.starts_with("FROM ") {
            dropping = line.trim_end().ends_with(" AS compiled");
            dropped |= dropping;
        }
        if !dropping {
            kept.push_str(line);
        }
    }
    if !dropped {
        bail!("the Dockerfile has no stage `compiled`, which was to be left out");
    }
    Ok(kept)
}

/// Makes the image of the end-to-end driver, which runs inside the cluster, with the tools it calls there.
pub fn build_driver_image(driver: &Path, tools: &[PathBuf], image: &str) -> Result<()> {
    let engine = Engine::ensure()?;
    step("kind", &format!("building {image}"), || {
        let tree = cache_dir().join("build/driver");
        fresh_dir(&tree)?;
        copy(driver, &tree.join("quorate-e2e"))?;
        for tool in tools {
            copy(tool, &tree.join(tool.file_name().context("a tool has a name")?))?;
        }
        let changes = ["ENV PATH=/", "USER 65532:65532", r#"ENTRYPOINT ["/quorate-e2e"]"#].map(str::to_owned);
        engine.import(image, &tree, &changes)?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    })
}

/// A directory with what the Dockerfile's `prebuilt` stage copies.
fn image_context(programs: &[(&Path, &str)]) -> Result<PathBuf> {
    let context = cache_dir().join("build/image");
    fresh_dir(&context)?;
    for (program, name) in programs {
        copy(program, &context.join(name))?;
    }
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    copy(certificates, &context.join("ca-certificates.crt")).context("is the package ca-certificates installed?")?;
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_from_programs_compiled_outside_needs_no_base_image() {
        let text = fs::read_to_string(root().join("Dockerfile")).unwrap();
        let kept = without_compiling(&text).unwrap();
        let bases: Vec<&str> = kept.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
        assert_eq!(bases, ["scratch AS prebuilt", "${PROGRAMS} AS programs", "scratch"]);
        assert!(kept.starts_with('#') && kept.contains("ARG PROGRAMS="));
        assert!(without_compiling("FROM scratch\n").is_err());
    }

    #[test]
    fn the_configuration_has_no_place_left_open() {
        for local in [true, false] {
            let image = NodeImage { name: "n".to_owned(), local };
            let (config, _) = configuration(&image).unwrap();
            let open = config.lines().find(|line| !line.trim_start().starts_with('#') && line.contains('@'));
            assert_eq!(open, None);
            assert_eq!(config.contains("cgroupDriver: cgroupfs"), local);
        }
    }
}
