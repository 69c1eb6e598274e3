//! Running other programs, and where things are.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The checkout this xtask was built from.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where everything that outlives a clone is kept: foreign tools, compiled dependencies, the state of kind.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("QUORATE_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("/root"));
        home.join(".cache").join("quorate")
    })
}

/// Compiled code is shared by all clones, so that a fresh clone builds in minutes on a machine that has built before.
/// `CARGO_TARGET_DIR` overrides.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| cache_dir().join("target"))
}

/// A cargo command in the workspace root with the shared target directory.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target_dir());
    command
}

/// Runs to the end, inheriting the terminal; an unsuccessful exit is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs to the end and returns what it printed on stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Directory with the two release programs (and the end-to-end driver), linked statically so that the very same files
/// run here and in an image made from nothing.
pub struct Programs {
    pub dir: PathBuf,
}

impl Programs {
    pub fn node(&self) -> PathBuf {
        self.dir.join("quorate-node")
    }
    pub fn operator(&self) -> PathBuf {
        self.dir.join("quorate-operator")
    }
    pub fn plugin(&self) -> PathBuf {
        self.dir.join("kubectl-quorate")
    }
    pub fn e2e(&self) -> PathBuf {
        self.dir.join("quorate-e2e")
    }
    pub fn sim(&self) -> PathBuf {
        self.dir.join("quorate-sim")
    }
}

/// Builds the named packages in release, statically linked.
///
/// `--target` is given although it is the host's: without it the static flag would reach procedural macros, which
/// must stay dynamic.
pub fn build_programs(packages: &[&str]) -> Result<Programs> {
    build(packages, &[], &packages.join(", "))
}

/// Builds `quorate-node-previous`: another version, and without what this release adds. `packages` are those of the build
/// beside it, so that what both depend on is compiled once.
pub fn build_previous_node(packages: &[&str]) -> Result<PathBuf> {
    let bin = "quorate-node-previous";
    let flags = ["--features", "quorate-node/previous", "--bin", bin];
    Ok(build(packages, &flags, bin)?.dir.join(bin))
}

fn build(packages: &[&str], flags: &[&str], what: &str) -> Result<Programs> {
    let triple = host_triple()?;
    let started = Instant::now();
    eprintln!("[build] {what} (release, static) …");
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--target", &triple]);
    for package in packages {
        command.args(["-p", package]);
    }
    command.args(flags).env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(&mut command)?;
    eprintln!("[build] done in {} s", started.elapsed().as_secs());
    Ok(Programs { dir: target_dir().join(triple).join("release") })
}

fn host_triple() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let line = version.lines().find_map(|l| l.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
    Ok(line.to_owned())
}
