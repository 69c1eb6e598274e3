//! `cargo xtask bench`: our three members and etcd's, on one machine, in the same minutes.
//!
//! Rounds alternate between the two (which goes first alternates too), because absolute times drift; what counts is the
//! median of the paired ratios. Server CPU is read from /proc around each round, so the load generator is not in it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::{chaos, cmd, tools};

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Paired rounds of each row
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Concurrent clients, one row each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256])]
    clients: Vec<usize>,
    /// Also append the table to this file
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// How long nothing can be written when a leader is killed, moved or stopped, beside etcd; needs root
    Failover(chaos::FailoverArgs),
}

/// Base of the ports of the two clusters on loopback.
const ETCD_PORT: u16 = 23_790;
const QUORATE_PORT: u16 = 24_790;

/// Three members of one program.
struct Cluster {
    members: Vec<Child>,
    endpoints: String,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Cluster {
    /// Both programs take the same flags.
    fn start(program: &Path, base: u16, dir: &Path, extra: &[String]) -> Result<Cluster> {
        let url = |n: u16, peer: bool| format!("http://127.0.0.1:{}", base + 10 * n + u16::from(peer));
        let initial: Vec<_> = (0..3).map(|n| format!("m{n}={}", url(n, true))).collect();
        let mut members = Vec::new();
        for n in 0..3 {
            let data = dir.join(format!("m{n}"));
            std::fs::create_dir_all(&data)?;
            let log = std::fs::File::create(dir.join(format!("m{n}.log")))?;
            let mut command = Command::new(program);
            command.args(["--name", &format!("m{n}"), "--data-dir"]).arg(&data);
            command.args(["--listen-client-urls", &url(n, false), "--advertise-client-urls", &url(n, false)]);
            command.args(["--listen-peer-urls", &url(n, true), "--initial-advertise-peer-urls", &url(n, true)]);
            command.args(["--initial-cluster", &initial.join(","), "--initial-cluster-state", "new"]);
            command.args(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
            command.args(extra.iter().map(|a| a.replace("{n}", &n.to_string())));
            members.push(command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start a member")?);
        }
        let endpoints: Vec<_> = (0..3).map(|n| url(n, false)).collect();
        Ok(Cluster { members, endpoints: endpoints.join(",") })
    }

    /// User and system time of all members so far, in microseconds.
    fn cpu_us(&self) -> Result<f64> {
        const TICKS_PER_SECOND: f64 = 100.0;
        let mut ticks = 0.0;
        for member in &self.members {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.id()))?;
            // Fields behind the command's closing parenthesis: utime and stime are the 12th and 13th.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        }
        Ok(ticks / TICKS_PER_SECOND * 1e6)
    }

    fn rss_mib(&self) -> Result<f64> {
        let mut kib = 0.0;
        for member in &self.members {
            let status = std::fs::read_to_string(format!("/proc/{}/status", member.id()))?;
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
            kib += line.trim().trim_end_matches(" kB").parse::<f64>()?;
        }
        Ok(kib / 1024.0)
    }
}

/// One round's figures.
#[derive(Clone, Copy, Debug)]
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    rss: f64,
}

pub fn bench(args: &BenchArgs) -> Result<()> {
    if let Some(What::Failover(args)) = &args.what {
        return chaos::failover(args);
    }
    let programs = cmd::build_programs(&["quorate-node", "quorate-e2e"])?;
    let etcd = tools::etcd()?;
    let dir = std::env::temp_dir().join(format!("quorate-bench-{}", std::process::id()));
    let none: [String; 0] = [];
    let theirs = Cluster::start(&etcd, ETCD_PORT, &dir.join("etcd"), &none)?;
    let admin = format!("--listen-admin-urls=http://127.0.0.1:{}{{n}}", QUORATE_PORT / 10 + 10);
    let ours = Cluster::start(&programs.node(), QUORATE_PORT, &dir.join("quorate"), &[admin])?;
    let load = programs.e2e();
    wait_for(&load, &theirs, "etcd")?;
    wait_for(&load, &ours, "quorate")?;
    let mut table = vec![format!(
        "{:<7} {:>7}  {:>9} {:>8} {:>8} {:>8} {:>7} | {:>6} {:>6} {:>6} {:>6} {:>6}",
        "op", "clients", "ops/s", "p50 µs", "p99 µs", "CPU µs", "MiB", "rate", "p50", "p99", "CPU", "RSS"
    )];
    println!(
        "ours (median)                                              | ours / etcd, median of {} paired rounds",
        args.rounds
    );
    println!("{}", table[0]);
    for operation in ["put", "range"] {
        for &clients in &args.clients {
            let row = row(&load, &ours, &theirs, operation, clients, args)?;
            println!("{row}");
            table.push(row);
        }
    }
    println!("rate: more is better; p50, p99, CPU per operation and RSS: less is better");
    if let Some(out) = &args.out {
        std::fs::write(out, table.join("\n") + "\n").with_context(|| format!("cannot write {}", out.display()))?;
    }
    drop((ours, theirs));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn wait_for(load: &Path, cluster: &Cluster, name: &str) -> Result<()> {
    for _ in 0..60 {
        if measure(load, cluster, "put", 1, 0.2).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    bail!("{name} did not answer within 30 s")
}

fn row(
    load: &Path,
    ours: &Cluster,
    theirs: &Cluster,
    operation: &str,
    clients: usize,
    args: &BenchArgs,
) -> Result<String> {
    let (mut mine, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let run = |cluster: &Cluster| measure(load, cluster, operation, clients, args.seconds);
        let (a, b) = if round % 2 == 0 {
            let a = run(ours)?;
            (a, run(theirs)?)
        } else {
            let b = run(theirs)?;
            (run(ours)?, b)
        };
        mine.push(a);
        ratios.push(Round {
            rate: a.rate / b.rate,
            p50: a.p50 / b.p50,
            p99: a.p99 / b.p99,
            cpu: a.cpu / b.cpu,
            rss: a.rss / b.rss,
        });
    }
    let of = |rounds: &[Round], field: fn(&Round) -> f64| median(rounds.iter().map(field).collect());
    Ok(format!(
        "{operation:<7} {clients:>7}  {:>9.0} {:>8.0} {:>8.0} {:>8.1} {:>7.0} | {:>6.2} {:>6.2} {:>6.2} {:>6.2} {:>6.2}",
        of(&mine, |r| r.rate),
        of(&mine, |r| r.p50),
        of(&mine, |r| r.p99),
        of(&mine, |r| r.cpu),
        of(&mine, |r| r.rss),
        of(&ratios, |r| r.rate),
        of(&ratios, |r| r.p50),
        of(&ratios, |r| r.p99),
        of(&ratios, |r| r.cpu),
        of(&ratios, |r| r.rss),
    ))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(load: &Path, cluster: &Cluster, operation: &str, clients: usize, seconds: f64) -> Result<Round> {
    let before = cluster.cpu_us()?;
    let mut child = Command::new(load)
        .args(["load", "--endpoints", &cluster.endpoints, "--operation", operation])
        .args(["--clients", &clients.to_string(), "--seconds", &seconds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the load generator")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the load generator has no stdout")?).read_line(&mut line)?;
    if !child.wait()?.success() {
        bail!("the load generator failed");
    }
    let after = cluster.cpu_us()?;
    let figures: serde_json::Value = serde_json::from_str(&line)?;
    let number = |name: &str| figures[name].as_f64().with_context(|| format!("no {name} in {line}"));
    if number("failed")? > 0.0 {
        bail!("{} of the requests failed: {line}", number("failed")?);
    }
    Ok(Round {
        rate: number("ratePerSecond")?,
        p50: number("p50Us")?,
        p99: number("p99Us")?,
        cpu: (after - before) / number("operations")?,
        rss: cluster.rss_mib()?,
    })
}
