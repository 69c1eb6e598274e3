//! What `cargo xtask test` and its parts run, in order, with progress.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cmd::{self, Programs};
use crate::{kind, tools};

/// The image tag the suite builds and loads; the chart is told to use it.
const IMAGE: &str = "quorate:dev";
/// The same with the node of the release before, from which members are upgraded.
const PREVIOUS_IMAGE: &str = "quorate:previous";
/// The image of the end-to-end driver, with etcdctl beside it.
const DRIVER_IMAGE: &str = "quorate-e2e:dev";
/// Where the chart is installed.
const NAMESPACE: &str = "quorate-system";
/// Where the end-to-end suite works; it makes and removes it.
const TEST_NAMESPACE: &str = "quorate-e2e";
/// Seeds of the simulation that a change must pass.
const SEEDS_PER_CHANGE: u32 = 1_000;
const SEEDS_FAST: u32 = 100;

/// What the end-to-end suites run.
const PROGRAMS: [&str; 3] = ["quorate-node", "quorate-operator", "quorate-e2e"];

#[derive(Args, Debug)]
pub struct E2eArgs {
    /// Which suite
    #[arg(value_enum, default_value = "both")]
    which: Which,
    /// Use the cluster of the current KUBECONFIG instead of bringing up kind
    #[arg(long)]
    current_context: bool,
    /// Leave kind running afterwards
    #[arg(long)]
    keep: bool,
    /// Every scenario on Kubernetes instead of those a change must pass; without --only writes docs/scenarios.md
    #[arg(long)]
    all: bool,
    /// On Kubernetes only scenarios whose name contains one of these words, comma separated
    #[arg(long)]
    only: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    Local,
    Kubernetes,
    Both,
    /// A real Prometheus scrapes a cluster in local mode: rules, dashboards and metrics fit together
    Monitoring,
    /// A hundred clusters under one operator on Kubernetes, their members in one pod: its memory, and one that hangs
    Hosted,
}

impl E2eArgs {
    /// Scenarios that call `kubectl quorate` are among those that may run.
    fn needs_plugin(&self) -> bool {
        let kubernetes = matches!(self.which, Which::Kubernetes | Which::Both);
        kubernetes && self.only.as_ref().map_or(self.all, |words| words.contains("kubectl"))
    }

    /// Scenarios that upgrade from another build are among those that may run.
    fn needs_previous(&self) -> bool {
        let kubernetes = matches!(self.which, Which::Kubernetes | Which::Both) && !self.current_context;
        kubernetes && self.only.as_ref().map_or(self.all, |words| self.all && words.contains("builds"))
    }

    /// The part that `cargo xtask test` runs.
    fn on_kind() -> E2eArgs {
        E2eArgs { which: Which::Kubernetes, current_context: false, keep: false, all: false, only: None }
    }
}

/// One numbered part of a run: prints its name, its result and its time, and remembers failures.
struct Parts {
    passed: u32,
    failed: Vec<String>,
    started: Instant,
}

impl Parts {
    fn new() -> Self {
        Parts { passed: 0, failed: Vec::new(), started: Instant::now() }
    }

    fn part(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        let started = Instant::now();
        eprintln!("\n=== {name} (at {} s)", self.started.elapsed().as_secs());
        match body() {
            Ok(()) => {
                self.passed += 1;
                eprintln!("=== {name}: ok in {} s", started.elapsed().as_secs());
            }
            Err(error) => {
                eprintln!("=== {name}: FAILED after {} s: {error:#}", started.elapsed().as_secs());
                self.failed.push(name.to_owned());
            }
        }
    }

    fn finish(self) -> Result<()> {
        eprintln!("\ntotal time: {} s", self.started.elapsed().as_secs());
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

pub fn test(fast: bool) -> Result<()> {
    let mut parts = Parts::new();
    parts.part("format", || cmd::run(cmd::cargo().args(["fmt", "--all", "--check"])));
    parts.part("lints", lints);
    parts.part("unit, script and property tests", || {
        cmd::run(cmd::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast"]))
    });
    let mut programs = None;
    parts.part("release build", || {
        programs = Some(cmd::build_programs(&["quorate-node", "quorate-operator", "quorate-e2e", "quorate-sim"])?);
        Ok(())
    });
    if let Some(programs) = programs {
        let seeds = if fast { SEEDS_FAST } else { SEEDS_PER_CHANGE };
        parts.part("simulated seeds", || cmd::run(Command::new(programs.sim()).args(["--seeds", &seeds.to_string()])));
        parts.part("end to end, local processes", || local_suite(&programs));
        if !fast {
            parts.part("end to end, kind", || kubernetes_suite(&programs, &E2eArgs::on_kind()));
        }
    }
    parts.finish()
}

pub fn e2e(args: &E2eArgs) -> Result<()> {
    let programs = cmd::build_programs(&PROGRAMS)?;
    if args.needs_plugin() {
        // By itself: beside the others it would have them built with what only it needs.
        cmd::build_programs(&["quorate-kubectl"])?;
    }
    let mut parts = Parts::new();
    if args.which == Which::Monitoring {
        parts.part("end to end, monitoring", || monitoring_suite(&programs));
        return parts.finish();
    }
    if args.which == Which::Hosted {
        parts.part("end to end, a hundred clusters", || hosted_suite(&programs, args));
        return parts.finish();
    }
    if args.which != Which::Kubernetes {
        parts.part("end to end, local processes", || local_suite(&programs));
    }
    if args.which != Which::Local {
        parts.part("end to end, Kubernetes", || kubernetes_suite(&programs, args));
    }
    parts.finish()
}

#[derive(Args, Debug)]
pub struct PluginArgs {
    /// Copies it into this directory, which should be in PATH
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub fn plugin(args: &PluginArgs) -> Result<()> {
    let built = cmd::build_programs(&["quorate-kubectl"])?.plugin();
    let Some(dir) = &args.to else {
        println!("{}", built.display());
        return Ok(());
    };
    let path = dir.join("kubectl-quorate");
    std::fs::create_dir_all(dir).with_context(|| format!("--to {}: cannot make it", dir.display()))?;
    std::fs::copy(&built, &path).with_context(|| format!("--to {}: cannot write there", dir.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn local_suite(programs: &Programs) -> Result<()> {
    let mut command = Command::new(programs.e2e());
    command.current_dir(cmd::root()).arg("local");
    command.arg("--operator").arg(programs.operator()).arg("--node").arg(programs.node());
    command.arg("--etcdctl").arg(tools::etcdctl()?);
    command.args(["--manifest", "examples/orders.yaml"]);
    cmd::run(&mut command)
}

fn monitoring_suite(programs: &Programs) -> Result<()> {
    let mut command = Command::new(programs.e2e());
    command.current_dir(cmd::root()).arg("monitoring");
    command.arg("--operator").arg(programs.operator()).arg("--node").arg(programs.node());
    command.arg("--etcdctl").arg(tools::etcdctl()?);
    command.arg("--prometheus").arg(tools::prometheus()?).arg("--promtool").arg(tools::promtool()?);
    command.args(["--manifest", "examples/orders.yaml", "--chart", "charts/quorate"]);
    cmd::run(&mut command)
}

fn kubernetes_suite(programs: &Programs, args: &E2eArgs) -> Result<()> {
    let mut tools = vec![tools::etcdctl()?];
    if args.all {
        tools.push(tools::etcd_benchmark()?);
    }
    if !args.current_context {
        kind::down_if_left(TEST_NAMESPACE)?;
    }
    let previous = if args.needs_previous() { Some(cmd::build_previous_node(&PROGRAMS)?) } else { None };
    let target = Target::bring_up(programs, &tools, args.current_context)?;
    if let (Some(node), Some(cluster)) = (previous, &target.kind) {
        kind::build_image(&programs.operator(), &node, PREVIOUS_IMAGE)?;
        cluster.load_image(PREVIOUS_IMAGE)?;
    }
    let audit_from = target.audit_log_bytes();
    // Installed, then upgraded, as a person's second install would be.
    let install = || target.install_chart(&["certManager=true"]);
    let installed = install().and_then(|()| install());
    let result = installed.and_then(|()| target.run_suite(programs, args, audit_from));
    take_down(args);
    result
}

/// What was found counts, whether or not the engine is quick to tidy up.
fn take_down(args: &E2eArgs) {
    if args.keep || args.current_context {
        return;
    }
    if let Err(error) = kind::down() {
        eprintln!("[kind] not taken down (`cargo xtask down` tries again): {error:#}");
    }
}

fn hosted_suite(programs: &Programs, args: &E2eArgs) -> Result<()> {
    let target = Target::bring_up(programs, &[programs.node()], args.current_context)?;
    let mut command = Command::new(programs.e2e());
    command.current_dir(cmd::root()).arg("hosted").env("KUBECONFIG", &target.kubeconfig);
    command.arg("--kubectl").arg(&target.kubectl).args(["--image", DRIVER_IMAGE, "--operator-namespace", NAMESPACE]);
    if let Some(host) = target.kind.as_ref().and_then(kind::Cluster::docker_host) {
        command.env("DOCKER_HOST", host);
    }
    let result = target.install_chart(&[]).and_then(|()| cmd::run(&mut command));
    take_down(args);
    result
}

/// A Kubernetes cluster that has our images and can be reached by kubectl and helm.
#[derive(Debug)]
pub struct Target {
    pub kubeconfig: PathBuf,
    pub kubectl: PathBuf,
    helm: PathBuf,
    /// The kind cluster, when it is ours.
    kind: Option<kind::Cluster>,
}

impl Target {
    /// `tools` go into the image of the end-to-end driver, if that was built.
    pub fn bring_up(programs: &Programs, tools: &[PathBuf], current_context: bool) -> Result<Target> {
        let kubectl = crate::tools::kubectl()?;
        let helm = crate::tools::helm()?;
        if current_context {
            let kubeconfig = std::env::var_os("KUBECONFIG")
                .map(PathBuf::from)
                .context("--current-context needs KUBECONFIG to name the cluster's file")?;
            return Ok(Target { kubeconfig, kubectl, helm, kind: None });
        }
        let cluster = kind::up()?;
        kind::build_image(&programs.operator(), &programs.node(), IMAGE)?;
        cluster.load_image(IMAGE)?;
        if programs.e2e().exists() {
            kind::build_driver_image(&programs.e2e(), tools, DRIVER_IMAGE)?;
            cluster.load_image(DRIVER_IMAGE)?;
        }
        Ok(Target { kubeconfig: cluster.kubeconfig.clone(), kubectl, helm, kind: Some(cluster) })
    }

    /// With these values besides the image.
    pub fn install_chart(&self, values: &[&str]) -> Result<()> {
        eprintln!("[helm] installing charts/quorate …");
        let (repository, tag) = IMAGE.split_once(':').expect("the image constant has a tag");
        let mut command = Command::new(&self.helm);
        command.env("KUBECONFIG", &self.kubeconfig).current_dir(cmd::root());
        command.args([
            "upgrade",
            "--install",
            "quorate",
            "charts/quorate",
            "--namespace",
            NAMESPACE,
            "--create-namespace",
        ]);
        command.args(["--set", &format!("image.repository={repository}"), "--set", &format!("image.tag={tag}")]);
        command.args(values.iter().flat_map(|value| ["--set", *value]));
        command.args(["--wait", "--timeout", "180s"]);
        cmd::run(&mut command)
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<()> {
        cmd::run(Command::new(&self.kubectl).env("KUBECONFIG", &self.kubeconfig).args(args))
    }

    fn audit_log_bytes(&self) -> u64 {
        let audit_log = self.kind.as_ref().map(|cluster| &cluster.audit_log);
        audit_log.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |meta| meta.len())
    }

    fn run_suite(&self, programs: &Programs, args: &E2eArgs, audit_from: u64) -> Result<()> {
        let mut command = Command::new(programs.e2e());
        command.current_dir(cmd::root()).arg("kubernetes").env("KUBECONFIG", &self.kubeconfig);
        command.arg("--kubectl").arg(&self.kubectl).args(["--image", DRIVER_IMAGE, "--namespace", TEST_NAMESPACE]);
        command.args(["--manifest", "examples/orders.yaml", "--operator-namespace", NAMESPACE]);
        command.arg("--logs").arg(cmd::cache_dir().join("e2e-logs"));
        if let Some(cluster) = &self.kind {
            command.arg("--audit-log").arg(&cluster.audit_log).args(["--audit-from", &audit_from.to_string()]);
            command.arg("--docker");
            if let Some(host) = cluster.docker_host() {
                command.env("DOCKER_HOST", host);
            }
        }
        if args.needs_previous() {
            command.args(["--previous-image", PREVIOUS_IMAGE]);
        }
        if args.needs_plugin() {
            command.arg("--plugin").arg(programs.plugin());
        }
        command.arg("--helm").arg(&self.helm).args(["--chart", "charts/quorate"]);
        if args.all {
            command.arg("--all");
            // A part is no record of the whole.
            if args.only.is_none() {
                command.args(["--table", "docs/scenarios.md"]);
            }
        }
        if let Some(only) = &args.only {
            command.args(["--only", only]);
        }
        cmd::run(&mut command)
    }
}

pub fn sim(args: &[String]) -> Result<()> {
    let programs = cmd::build_programs(&["quorate-sim"])?;
    cmd::run(Command::new(programs.sim()).args(args))
}

pub fn crds() -> Result<()> {
    cmd::run(cmd::cargo().args(["test", "--locked", "-p", "quorate-api", "-p", "quorate-operator"]).env("UPDATE", "1"))
}

fn lints() -> Result<()> {
    cmd::run(cmd::cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

pub fn verify() -> Result<()> {
    cmd::run(cmd::cargo().args(["fmt", "--all", "--check"]))?;
    lints()
}

pub fn fix() -> Result<()> {
    cmd::run(cmd::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]))?;
    cmd::run(cmd::cargo().args(["fmt", "--all"]))
}

pub fn tools() -> Result<()> {
    // One after the other, so that each can be used as soon as it is there.
    let all =
        [tools::etcdctl, tools::etcd, tools::etcdutl, tools::etcd_benchmark, tools::kubectl, tools::helm, tools::kind];
    for tool in all {
        println!("{}", tool()?.display());
    }
    Ok(())
}
