//! Measures candidates for the state engine. See README.md for how and docs/storage-engine.md for what came of it.

#[cfg(test)]
mod contract;
mod engine;
mod fjall3;
mod layout;
mod own;
mod redb4;
#[cfg(feature = "rocks")]
mod rocks;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use engine::{Engine, View};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Entries between two checkpoints, as the node's default.
const PERSIST_EVERY: u64 = 100_000;
/// Versions kept behind the newest while compacting.
const KEPT_REVISIONS: u64 = 10_000;
const COMPACTION_STEP: usize = 256;

const USAGE: &str = "storage own|fjall|redb|rocksdb all|load|ready|scan|churn|held|kill \
    [--dir DIR] [--keys N] [--value BYTES] [--ops N]";

/// Few enough that a library for it would only weigh on the build.
struct Args {
    engine: String,
    phase: Phase,
    dir: PathBuf,
    keys: u64,
    value: usize,
    /// Operations of the phases after the load.
    ops: u64,
}

impl Args {
    fn parse() -> Result<Args> {
        let mut given = std::env::args().skip(1);
        let engine = given.next().context(USAGE)?;
        let phase = match given.next().as_deref() {
            Some("all") => Phase::All,
            Some("load") => Phase::Load,
            Some("ready") => Phase::Ready,
            Some("scan") => Phase::Scan,
            Some("churn") => Phase::Churn,
            Some("held") => Phase::Held,
            Some("kill") => Phase::Kill,
            _ => bail!(USAGE),
        };
        let dir = "/tmp/storage-spike".into();
        let mut args = Args { engine, phase, dir, keys: 1_000_000, value: 256, ops: 300_000 };
        while let Some(flag) = given.next() {
            let value = given.next().context(USAGE)?;
            match flag.as_str() {
                "--dir" => args.dir = value.into(),
                "--keys" => args.keys = value.parse()?,
                "--value" => args.value = value.parse()?,
                "--ops" => args.ops = value.parse()?,
                _ => bail!(USAGE),
            }
        }
        Ok(args)
    }
}

/// Each in a process of its own.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    /// All of them.
    All,
    /// Puts every key once, in random order, and persists.
    Load,
    /// Opens.
    Ready,
    /// Reads everything, in pages of 1000.
    Scan,
    /// Overwrites with compaction and checkpoints beside it.
    Churn,
    /// Overwrites under a view that is held.
    Held,
    /// Overwrites and dies by SIGKILL in the middle of a checkpoint.
    Kill,
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    if args.phase == Phase::All {
        return all(&args);
    }
    match args.engine.as_str() {
        "own" => phase::<own::Own>(&args),
        "fjall" => phase::<fjall3::Fjall>(&args),
        "redb" => phase::<redb4::Redb>(&args),
        #[cfg(feature = "rocks")]
        "rocksdb" => phase::<rocks::Rocks>(&args),
        other => bail!("engine {other:?} is not built in"),
    }
}

fn all(args: &Args) -> Result<()> {
    let _ = std::fs::remove_dir_all(&args.dir);
    for phase in ["load", "ready", "scan", "churn", "held", "kill", "ready"] {
        let status = Command::new(std::env::current_exe()?)
            .args([&args.engine, phase, "--dir"])
            .arg(&args.dir)
            .args(["--keys", &args.keys.to_string(), "--value", &args.value.to_string()])
            .args(["--ops", &args.ops.to_string()])
            .status()?;
        ensure!(status.success() || phase == "kill", "{phase} failed");
    }
    std::fs::remove_dir_all(&args.dir)?;
    Ok(())
}

fn phase<E: Engine>(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut engine = E::open(&args.dir)?;
    let (opened, cpu_opened) = (start.elapsed(), cpu());
    let name = format!("{:8} {:6}", E::NAME, format!("{:?}", args.phase).to_lowercase());
    match args.phase {
        Phase::All => bail!("handled before"),
        Phase::Load => {
            let mut times = Times::new(args.keys);
            for n in 0..args.keys {
                times.apply(&mut engine, args, permute(n, args.keys), 0)?;
                if n % PERSIST_EVERY == PERSIST_EVERY - 1 {
                    times.persist(&mut engine)?;
                }
            }
            println!("{name} {}", times.report());
            let start = Instant::now();
            times.wait()?;
            engine.persist()?.join().expect("no panic")?;
            println!(
                "{name} last checkpoint {:.1} s, on disk {} MiB, RSS {} MiB",
                start.elapsed().as_secs_f64(),
                disk(&args.dir)? >> 20,
                rss()? >> 20
            );
        }
        Phase::Ready => {
            let view = engine.view()?;
            let found = view.get(&key(0))?.context("the first key is there")?;
            ensure!(found.len() == args.value);
            println!(
                "{name} ready after {:.2} s ({:.2} s CPU) at index {}, RSS {} MiB",
                opened.as_secs_f64(),
                cpu_opened.as_secs_f64(),
                engine.applied(),
                rss()? >> 20
            );
        }
        Phase::Scan => {
            let view = engine.view()?;
            let (start, mut from, mut seen, mut bytes) = (Instant::now(), Vec::new(), 0u64, 0);
            loop {
                let page = view.scan(&from, 1_000)?;
                let Some((last, _)) = page.last() else { break };
                from = [last, &b"\0"[..]].concat();
                seen += page.len() as u64;
                bytes += page.iter().map(|(_, value)| value.len()).sum::<usize>();
            }
            ensure!(seen == args.keys && bytes == args.value * usize::try_from(seen)?, "{seen} keys, {bytes} bytes");
            println!("{name} {:.0} keys/s", seen as f64 / start.elapsed().as_secs_f64());
        }
        Phase::Churn => {
            let before = disk(&args.dir)?;
            let mut times = Times::new(args.ops);
            for n in 0..args.ops {
                let revision = times.apply(&mut engine, args, scatter(n, args.keys), n + 1)?;
                engine.compact(revision.saturating_sub(KEPT_REVISIONS), COMPACTION_STEP.min(2))?;
                if n % PERSIST_EVERY == PERSIST_EVERY - 1 {
                    times.persist(&mut engine)?;
                }
            }
            times.wait()?;
            println!("{name} {}", times.report());
            engine.persist()?.join().expect("no panic")?;
            engine.settle()?;
            println!(
                "{name} on disk {} MiB before, {} MiB after, RSS {} MiB",
                before >> 20,
                disk(&args.dir)? >> 20,
                rss()? >> 20
            );
        }
        Phase::Held => {
            let view = engine.view()?;
            let sample: Vec<_> = (0..50).map(|n| Ok((key(n), view.get(&key(n))?))).collect::<Result<_>>()?;
            let mut times = Times::new(args.ops);
            for n in 0..args.ops {
                times.apply(&mut engine, args, scatter(n, args.keys), n + 7)?;
                if n % PERSIST_EVERY == PERSIST_EVERY - 1 {
                    times.persist(&mut engine)?;
                }
            }
            for (key, value) in sample {
                ensure!(view.get(&key)? == value, "a view does not move");
            }
            times.wait()?;
            println!("{name} {}", times.report());
        }
        Phase::Kill => {
            let mut times = Times::new(args.ops);
            for n in 0..args.ops {
                times.apply(&mut engine, args, scatter(n, args.keys), n + 13)?;
                if n == args.ops * 3 / 4 {
                    times.persist(&mut engine)?;
                }
                if n == args.ops - 1 {
                    engine.persist()?;
                    std::thread::sleep(Duration::from_millis(20));
                    println!("{name} SIGKILL at index {}", engine.applied());
                    // SAFETY: it ends this process.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                }
            }
        }
    }
    Ok(())
}

fn key(n: u64) -> Vec<u8> {
    format!("/registry/pods/namespace-{:03}/pod-{n:010}", n % 100).into_bytes()
}

/// The `n`th of all keys in an order that looks random: steps of a large odd number, coprime to any number of keys that
/// is a product of twos and fives.
fn permute(n: u64, keys: u64) -> u64 {
    u64::try_from(u128::from(n) * 0x9E37_79B9_7F4B % u128::from(keys)).expect("below the keys")
}

/// Any key, again and again.
fn scatter(n: u64, keys: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23) % keys
}

/// Bytes that do not compress.
fn value(n: u64, salt: u64, len: usize) -> Vec<u8> {
    let mut state = n.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ salt.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

struct Times {
    micros: Vec<u32>,
    start: Instant,
    cpu: Duration,
    making: Duration,
    persisting: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Times {
    fn new(ops: u64) -> Times {
        let micros = Vec::with_capacity(usize::try_from(ops).expect("fits"));
        Times { micros, start: Instant::now(), cpu: cpu(), making: Duration::ZERO, persisting: None }
    }

    fn apply<E: Engine>(&mut self, engine: &mut E, args: &Args, n: u64, salt: u64) -> Result<u64> {
        let before = Instant::now();
        let puts = [(key(n), value(n, salt, args.value))];
        let start = Instant::now();
        self.making += start - before;
        let revision = engine.apply(&puts)?;
        self.micros.push(u32::try_from(start.elapsed().as_nanos() / 100).unwrap_or(u32::MAX));
        Ok(revision)
    }

    /// As in the node, one at a time; what is still written is left alone.
    fn persist<E: Engine>(&mut self, engine: &mut E) -> Result<()> {
        if self.persisting.as_ref().is_some_and(|one| !one.is_finished()) {
            return Ok(());
        }
        self.wait()?;
        self.persisting = Some(engine.persist()?);
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        self.persisting.take().map_or(Ok(()), |one| one.join().expect("no panic"))
    }

    fn report(&mut self) -> String {
        let (wall, cpu) = (self.start.elapsed() - self.making, cpu() - self.cpu - self.making);
        let count = self.micros.len();
        self.micros.sort_unstable();
        let at = |per_mille: usize| f64::from(self.micros[(count - 1) * per_mille / 1000]) / 10.0;
        format!(
            "{:.0} ops/s, {:.2} us CPU/op, apply p50 {:.1} p99 {:.1} p99.9 {:.1} max {:.0} us",
            count as f64 / wall.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / count as f64,
            at(500),
            at(990),
            at(999),
            at(1000)
        )
    }
}

/// Of the whole process, with all that engines do in the background.
fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid, and all zeros is a valid value.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec.cast_unsigned(), t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn rss() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib << 10)
}

fn disk(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        use std::os::unix::fs::MetadataExt;
        bytes += if meta.is_dir() { disk(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}
