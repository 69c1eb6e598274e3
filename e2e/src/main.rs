//! End-to-end suites: real processes, real clients, a real Kubernetes.
//!
//! Nothing here knows how a cluster came to be: the local suite gets paths of programs, the Kubernetes suite a
//! KUBECONFIG. A linearizable writer runs under every scenario and accounts for each acknowledged write.

mod acks;
mod alarm;
mod bench;
mod chaos;
mod hosted;
mod kubernetes;
mod local;
mod monitoring;
mod poll;
mod probe;
mod scenario;
mod writer;

use clap::{Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "quorate-e2e", about = "Runs end-to-end suites against built programs or a Kubernetes cluster")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs a cluster in local mode through its life: writes, leader killed, scaled, stopped, started again
    Local(local::LocalArgs),
    /// Scrapes a cluster in local mode with a real Prometheus: every query of the dashboards and every alert must find its series
    Monitoring(monitoring::MonitoringArgs),
    /// Runs the same on the Kubernetes cluster that KUBECONFIG names; the chart must be installed
    Kubernetes(kubernetes::KubernetesArgs),
    /// Writes until told to stop, recording each acknowledgement with fsync; then reads everything back
    Writer(writer::WriterArgs),
    /// Reads back what a running writer was acknowledged so far
    Check(writer::CheckArgs),
    /// Tells a running writer to stop
    StopWriter { stop_file: std::path::PathBuf },
    /// Runs a hundred clusters under one operator, on the Kubernetes cluster that KUBECONFIG names; their members share one pod
    Hosted(hosted::HostedArgs),
    /// Runs members as processes, as told line by line (used by `hosted`)
    Host(hosted::host::HostArgs),
    /// Raises, lowers or lists alarms
    Alarm(alarm::AlarmArgs),
    /// Puts load on an etcd-compatible cluster and prints rate and latency as JSON (used by `cargo xtask bench`)
    Load(bench::LoadArgs),
    /// Causes faults on real processes and judges what clients saw (used by `cargo xtask chaos`)
    Chaos(chaos::ChaosArgs),
    /// Measures how long nothing can be written when a leader goes away (used by `cargo xtask bench failover`)
    Probe(probe::ProbeArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Local(args) => local::run(args).await,
        Command::Monitoring(args) => monitoring::run(args).await,
        Command::Kubernetes(args) => kubernetes::run(args).await,
        Command::Writer(args) => writer::run(args).await,
        Command::Check(args) => writer::check_now(args).await,
        Command::StopWriter { stop_file } => Ok(std::fs::write(stop_file, b"stop")?),
        Command::Hosted(args) => hosted::run(args).await,
        Command::Host(args) => hosted::host::run(args).await,
        Command::Alarm(args) => alarm::run(args).await,
        Command::Load(args) => bench::run(args).await,
        Command::Chaos(args) => chaos::run(args).await,
        Command::Probe(args) => probe::run(args).await,
    }
}
