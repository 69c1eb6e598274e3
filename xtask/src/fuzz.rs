//! `cargo xtask fuzz`: builds `fuzz/` with coverage instrumentation and runs its targets, one after the other.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cmd;

/// Longest input tried. Longer ones reach nothing new in these decoders.
const INPUT_BYTES_MAX: u32 = 4096;
/// What is kept of a grown corpus in the repository.
const KEPT_FILES_MAX: usize = 300;
const KEPT_BYTES_MAX: u64 = 200_000;
/// One input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
const MEMORY_MIB_MAX: u32 = 2048;

#[derive(Args, Debug)]
pub struct FuzzArgs {
    /// Targets to run; all when none is named
    targets: Vec<String>,
    /// Executions of each target
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Stop each target after so many seconds all the same
    #[arg(long)]
    seconds: Option<u64>,
    /// Afterwards keep the smallest corpus with the same coverage in fuzz/corpus
    #[arg(long)]
    minimise: bool,
    /// Write the first corpus anew and stop
    #[arg(long)]
    seeds: bool,
    /// Run this one input and stop
    #[arg(long)]
    input: Option<PathBuf>,
}

/// How one target went.
struct Outcome {
    executions: u64,
    per_second: u64,
    corpus: usize,
    failure: Option<String>,
}

pub fn fuzz(args: &FuzzArgs) -> Result<()> {
    let dir = cmd::root().join("fuzz");
    let program = build(&dir)?;
    if args.seeds {
        return cmd::run(Command::new(&program).env("QUORATE_FUZZ_SEEDS", dir.join("corpus")));
    }
    let listed = Command::new(&program).env("QUORATE_FUZZ_TARGET", "list").output()?;
    let known: Vec<String> = String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect();
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("no fuzz target is called {unknown:?}; there are {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    if let Some(input) = &args.input {
        let [target] = &args.targets[..] else { bail!("--input needs exactly one target") };
        return cmd::run(Command::new(&program).env("QUORATE_FUZZ_TARGET", target).arg(input));
    }
    println!("{:<24} {:>12} {:>9} {:>7}  result", "target", "executions", "exec/s", "corpus");
    let mut failed = Vec::new();
    for target in chosen {
        let outcome = run(&program, &dir, target, args)?;
        let result = outcome.failure.as_deref().unwrap_or("ok");
        println!("{target:<24} {:>12} {:>9} {:>7}  {result}", outcome.executions, outcome.per_second, outcome.corpus);
        if outcome.failure.is_some() {
            failed.push(target.clone());
        } else if args.minimise {
            minimise(&program, &dir, target)?;
        }
    }
    if !failed.is_empty() {
        bail!("failed: {} (inputs in fuzz/artifacts)", failed.join(", "));
    }
    Ok(())
}

/// The flags that instrument are in `fuzz/.cargo/config.toml`; naming the target keeps build scripts free of them.
fn build(dir: &Path) -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target_dir = cmd::target_dir().join("fuzz");
    let mut command = cmd::cargo();
    command.current_dir(dir).args(["build", "--release", "--locked", "--target", host]);
    command.env("CARGO_TARGET_DIR", &target_dir);
    cmd::run(&mut command)?;
    Ok(target_dir.join(host).join("release/quorate-fuzz"))
}

fn work_dir(dir: &Path, target: &str) -> PathBuf {
    dir.join("work").join(target)
}

fn run(program: &Path, dir: &Path, target: &str, args: &FuzzArgs) -> Result<Outcome> {
    let grown = work_dir(dir, target);
    let artifacts = dir.join("artifacts").join(target);
    std::fs::create_dir_all(&grown)?;
    std::fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(program);
    command.env("QUORATE_FUZZ_TARGET", target).arg(&grown).arg(dir.join("corpus").join(target));
    command.arg(format!("-runs={}", args.runs)).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg("-print_final_stats=1").arg("-verbosity=0");
    if let Some(seconds) = args.seconds {
        command.arg(format!("-max_total_time={seconds}"));
    }
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let executions = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let executions: u64 = executions.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
    let failure = (!output.status.success()).then(|| {
        let interesting =
            |line: &&str| line.contains("panicked") || line.contains("ERROR") || line.contains("written to");
        let lines: Vec<&str> = text.lines().filter(interesting).collect();
        format!("FAILED: {}", lines.join("; "))
    });
    Ok(Outcome {
        executions,
        per_second: executions * 1_000 / (started.elapsed().as_millis() as u64).max(1),
        corpus: std::fs::read_dir(&grown)?.count(),
        failure,
    })
}

/// Merges what was found into the smallest set with the same coverage, and keeps the smaller inputs of it.
fn minimise(program: &Path, dir: &Path, target: &str) -> Result<()> {
    let kept = dir.join("corpus").join(target);
    let merged = work_dir(dir, &format!("{target}.merged"));
    if merged.exists() {
        std::fs::remove_dir_all(&merged)?;
    }
    std::fs::create_dir_all(&merged)?;
    std::fs::create_dir_all(&kept)?;
    let mut command = Command::new(program);
    command.env("QUORATE_FUZZ_TARGET", target).args(["-merge=1", "-verbosity=0"]);
    command.arg(&merged).arg(&kept).arg(work_dir(dir, target));
    let output = command.output()?;
    if !output.status.success() {
        bail!("the corpus of {target} could not be merged: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&merged)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    for entry in std::fs::read_dir(&kept)? {
        std::fs::remove_file(entry?.path())?;
    }
    let mut bytes = 0;
    for (len, path) in files.into_iter().take(KEPT_FILES_MAX) {
        bytes += len;
        if bytes > KEPT_BYTES_MAX {
            break;
        }
        std::fs::copy(&path, kept.join(path.file_name().context("a file has a name")?))?;
    }
    Ok(std::fs::remove_dir_all(&merged)?)
}
