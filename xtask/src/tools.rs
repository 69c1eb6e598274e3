//! Foreign programs the rig needs: etcd and its tools, kubectl, helm, kind and the Kubernetes control plane.
//!
//! Each is built from its published Go module, pinned by a go.mod and go.sum of ours under `e2e/rig/go/`, so that a
//! machine with nothing but the Go toolchain and a module proxy has them all. Built once into the cache; a stamp beside
//! the program says from what, so that a changed go.mod builds anew and anything else is a matter of milliseconds.
//! Must not know what the programs are used for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{cache_dir, root};

pub mod run;

use run::{Run, step};

/// A cold build of all of Kubernetes on a small, busy machine; anything longer hangs.
const BUILD_LIMIT_SECONDS: u64 = 45 * 60;
/// Debian packages come from a near mirror; anything longer hangs.
const APT_LIMIT_SECONDS: u64 = 10 * 60;

/// A program, the folder of its go.mod under `e2e/rig/go/`, and the package and module it is.
#[derive(Debug)]
struct Program {
    name: &'static str,
    folder: &'static str,
    package: &'static str,
    module: &'static str,
}

const fn program(name: &'static str, folder: &'static str, package: &'static str, module: &'static str) -> Program {
    Program { name, folder, package, module }
}

const PROMETHEUS_MODULE: &str = "github.com/prometheus/prometheus";
/// The one place that pins Kubernetes is this module's go.mod.
const KUBERNETES_MODULE: &str = "k8s.io/kubernetes";

const ETCD: Program = program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3");
const ETCDCTL: Program = program("etcdctl", "etcd", "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdctl/v3");
const ETCDUTL: Program = program("etcdutl", "etcd", "go.etcd.io/etcd/etcdutl/v3", "go.etcd.io/etcd/etcdutl/v3");
const BENCHMARK: Program =
    program("etcd-benchmark", "benchmark", "go.etcd.io/etcd/v3/tools/benchmark", "go.etcd.io/etcd/v3");
const HELM: Program = program("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4");
/// Without the discovery of every cloud: targets are given in a file, and the build is a quarter of the size.
const PROMETHEUS: Program =
    program("prometheus", "prometheus", "github.com/prometheus/prometheus/cmd/prometheus", PROMETHEUS_MODULE);
const PROMTOOL: Program =
    program("promtool", "prometheus", "github.com/prometheus/prometheus/cmd/promtool", PROMETHEUS_MODULE);
const KIND: Program = program("kind", "kind", "sigs.k8s.io/kind", "sigs.k8s.io/kind");
const COREDNS: Program = program("coredns", "coredns", "github.com/coredns/coredns", "github.com/coredns/coredns");
const LOCAL_PATH: Program = program(
    "local-path-provisioner",
    "local-path",
    "github.com/rancher/local-path-provisioner",
    "github.com/rancher/local-path-provisioner",
);
const KUBECTL: Program = program("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", KUBERNETES_MODULE);
/// What a node image needs beside kubectl.
const KUBERNETES: [Program; 6] = [
    program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES_MODULE),
    program(
        "kube-controller-manager",
        "kubernetes",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        KUBERNETES_MODULE,
    ),
    program("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES_MODULE),
    program("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", KUBERNETES_MODULE),
    program("kubeadm", "kubernetes", "k8s.io/kubernetes/cmd/kubeadm", KUBERNETES_MODULE),
    program("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet", KUBERNETES_MODULE),
];

pub fn etcd() -> Result<PathBuf> {
    ETCD.installed()
}

pub fn etcdctl() -> Result<PathBuf> {
    ETCDCTL.installed()
}

pub fn etcdutl() -> Result<PathBuf> {
    ETCDUTL.installed()
}

/// etcd's own load generator.
pub fn etcd_benchmark() -> Result<PathBuf> {
    BENCHMARK.installed()
}

pub fn prometheus() -> Result<PathBuf> {
    PROMETHEUS.installed()
}

pub fn promtool() -> Result<PathBuf> {
    PROMTOOL.installed()
}

pub fn helm() -> Result<PathBuf> {
    HELM.installed()
}

pub fn kubectl() -> Result<PathBuf> {
    KUBECTL.installed()
}

pub fn kind() -> Result<PathBuf> {
    KIND.installed()
}

pub fn coredns() -> Result<PathBuf> {
    COREDNS.installed()
}

pub fn local_path_provisioner() -> Result<PathBuf> {
    LOCAL_PATH.installed()
}

/// Control plane, kubeadm, kubelet and kube-proxy, each in a file of its name in the returned directory.
pub fn kubernetes() -> Result<PathBuf> {
    for program in &KUBERNETES {
        program.installed()?;
    }
    Ok(bin_dir())
}

/// The pinned version of Kubernetes, with its `v`.
pub fn kubernetes_version() -> Result<String> {
    KUBECTL.version()
}

fn bin_dir() -> PathBuf {
    cache_dir().join("bin")
}

impl Program {
    /// Path of the program, built first if it is not there as its go.mod pins it.
    fn installed(&self) -> Result<PathBuf> {
        let path = bin_dir().join(self.name);
        let stamp_path = cache_dir().join("stamps").join(self.name);
        let stamp = self.stamp()?;
        if path.exists() && fs::read_to_string(&stamp_path).is_ok_and(|found| found == stamp) {
            return Ok(path);
        }
        require_go()?;
        let version = self.version()?;
        step("tools", &format!("building {} {}", self.name, version.trim_start_matches('v')), || self.build(&path))?;
        write(&stamp_path, &stamp)?;
        Ok(path)
    }

    fn go_dir(&self) -> PathBuf {
        root().join("e2e/rig/go").join(self.folder)
    }

    /// Everything the built program depends on, apart from the toolchain: any Go that can build it will do.
    fn stamp(&self) -> Result<String> {
        let read = |file: &str| {
            let path = self.go_dir().join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let sources = content_hash([read("go.mod")?.as_bytes(), read("go.sum")?.as_bytes()]);
        Ok(format!(
            "{} {} {sources} {}{}\n",
            self.package,
            self.version()?,
            self.linker_flags()?,
            self.tags().join(" ")
        ))
    }

    /// The version that go.mod pins.
    fn version(&self) -> Result<String> {
        let path = self.go_dir().join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        pinned_version(&text, self.module)
            .map(str::to_owned)
            .with_context(|| format!("{} requires no {}", path.display(), self.module))
    }

    /// Build tags, as arguments.
    fn tags(&self) -> &'static [&'static str] {
        if self.module == PROMETHEUS_MODULE { &["-tags", "remove_all_sd"] } else { &[] }
    }

    /// Programs that report a version take it from the linker.
    fn linker_flags(&self) -> Result<String> {
        let version = self.version()?;
        let mut flags = "-s -w".to_owned();
        if self.module == KUBERNETES_MODULE {
            // Without them kubeadm and the API report v0.0.0, and kubeadm refuses its own configuration.
            let (major, minor) = major_minor(&version)?;
            let package = "k8s.io/component-base/version";
            flags += &format!(
                " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
            );
        }
        if self.name == HELM.name {
            flags += &format!(" -X helm.sh/helm/v4/internal/version.version={version}");
        }
        Ok(flags)
    }

    /// Builds beside the place and moves it there, so that a program in the cache is always whole.
    fn build(&self, path: &Path) -> Result<()> {
        let part = bin_dir().join(format!(".{}.{}", self.name, std::process::id()));
        fs::create_dir_all(bin_dir()).with_context(|| format!("cannot make {}", bin_dir().display()))?;
        Run::new("go", format!("go build {}", self.package))
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &self.linker_flags()?])
            .args(self.tags())
            .arg("-o")
            .arg(&part)
            .arg(self.package)
            .dir(self.go_dir())
            // Static, so that the same file runs here, on a node and in an image made from nothing.
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .limit(BUILD_LIMIT_SECONDS)
            .run()?;
        fs::rename(&part, path).with_context(|| format!("cannot move {} into place", path.display()))
    }
}

/// Version after `module` in a go.mod, in a `require` block or line.
fn pinned_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|word| word.starts_with('v'))
    })
}

fn major_minor(version: &str) -> Result<(&str, &str)> {
    let mut parts = version.trim_start_matches('v').split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => bail!("{version:?} is no version of the form v1.2.3"),
    }
}

fn require_go() -> Result<()> {
    if found("go").is_some() {
        return Ok(());
    }
    bail!("no Go toolchain: `go` is not in PATH (Go 1.26 or newer; https://go.dev/dl)")
}

/// FNV-1a over all parts: tells changed content from unchanged, nothing more.
pub fn content_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut byte = |b: u8| hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    for part in parts {
        part.iter().copied().for_each(&mut byte);
        // Marks the end, so that moving bytes between two parts is a change.
        byte(0xff);
    }
    format!("{hash:016x}")
}

/// Writes a file and the directories above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Where a program of this name is, in PATH or where Debian puts what only root runs.
pub fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// A run with root's rights: as it is for root, through sudo (which must not ask) for others.
pub fn as_root(program: &str, purpose: impl Into<String>) -> Run {
    if is_root() { Run::new(program, purpose) } else { Run::new("sudo", purpose).arg("-n").arg(program) }
}

/// Installs the Debian packages of those programs that are missing.
pub fn apt(wanted: &[(&str, &str)]) -> Result<()> {
    let packages: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| found(program).is_none())
        .flat_map(|(_, packages)| packages.split(" "))
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if found("apt-get").is_none() {
        bail!("missing on this machine: {list} (the names Debian gives them); no apt-get to install them with");
    }
    if !is_root() && found("sudo").is_none() {
        bail!("missing on this machine: {list}; neither root nor sudo: run `apt-get install {list}` as root");
    }
    step("tools", &format!("apt-get install {list}"), || {
        // A list of packages that is a day old points at files that are gone; one update costs seconds.
        as_root("apt-get", "apt-get update").args(["update", "-q"]).limit(APT_LIMIT_SECONDS).run()?;
        as_root("env", format!("apt-get install {list}"))
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"])
            .args(&packages)
            .limit(APT_LIMIT_SECONDS)
            .run()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_found_in_lines_and_blocks() {
        let text = "module x\ntool a.b/c\nrequire a.b/c v1.2.3\nrequire (\n\ta.b/d v0.1.0 // indirect\n)\nreplace a.b/e => a.b/e v9.9.9\n";
        assert_eq!(pinned_version(text, "a.b/c"), Some("v1.2.3"));
        assert_eq!(pinned_version(text, "a.b/d"), Some("v0.1.0"));
        assert_eq!(pinned_version(text, "a.b/e"), None);
    }

    #[test]
    fn every_program_is_pinned_by_its_go_mod() {
        let all = [
            &ETCD,
            &ETCDCTL,
            &ETCDUTL,
            &BENCHMARK,
            &HELM,
            &KIND,
            &COREDNS,
            &LOCAL_PATH,
            &KUBECTL,
            &PROMETHEUS,
            &PROMTOOL,
        ];
        for program in all.into_iter().chain(&KUBERNETES) {
            assert!(program.stamp().unwrap().contains(&program.version().unwrap()), "{}", program.name);
        }
    }

    #[test]
    fn the_hash_sees_content_and_borders() {
        assert_ne!(content_hash([b"ab".as_slice(), b"c"]), content_hash([b"a".as_slice(), b"bc"]));
        assert_eq!(content_hash([b"a".as_slice()]), content_hash([b"a".as_slice()]));
    }
}
