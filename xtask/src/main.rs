//! The one entry point for people and CI: `cargo xtask …`.
//!
//! Only decides what to run and says so; the work is done by cargo, by the programs of this workspace and by real tools.
//! Must stay quick to compile: no async runtime, no Kubernetes client.

mod bench;
mod chaos;
mod cmd;
mod fuzz;
mod kind;
mod mutants;
mod suite;
mod tools;
mod up;

use clap::{Args, CommandFactory, Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Build, run, test and measure Quorate",
    long_about = "Build, run, test and measure Quorate.\n\nThe two to know:\n  cargo xtask up     a live three-member cluster on this machine\n  cargo xtask test   everything a change must pass"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Builds both programs and runs examples/orders.yaml as a live cluster: local processes, or kind with --kubernetes
    Up(up::UpArgs),
    /// Removes what `up --kubernetes` brought up
    Down,
    /// Builds `kubectl-quorate`, the kubectl plugin, and prints where it is
    Plugin(suite::PluginArgs),
    /// Runs what a change must pass: format, lints, unit and script tests, simulated seeds, real processes, real kind
    Test(TestArgs),
    /// Runs the end-to-end suites alone
    E2e(suite::E2eArgs),
    /// Runs seeds of the whole-cluster simulation; further flags go to quorate-sim (`cargo xtask sim -- --help`)
    Sim(PassArgs),
    /// Plants each known bug and prints what kills it, how fast, and which rule it breaks
    Mutants,
    /// Feeds every decoder of bytes from peers and disks with inputs that coverage leads to
    Fuzz(fuzz::FuzzArgs),
    /// Causes faults on real processes (killed, paused, cut off, powerless, full, flipped) and judges what clients saw; needs root
    Chaos(chaos::ChaosArgs),
    /// Measures our three members beside etcd's on this machine and prints ratios
    Bench(bench::BenchArgs),
    /// Writes crds/ and the chart's copy from the API types
    Crds,
    /// Only reads: formatting and lints, as CI runs them
    Verify,
    /// Writes: formatting and machine-made fixes
    Fix,
    /// Builds and installs the foreign tools (etcdctl, kubectl, helm, kind …) into the cache and prints their paths
    Tools,
    /// Brings up the kind cluster alone, with nothing of ours in it
    #[command(hide = true)]
    Kind,
    /// Prints a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Args, Debug)]
struct TestArgs {
    /// Leave out what needs more than a few minutes: kind and most seeds
    #[arg(long)]
    fast: bool,
}

#[derive(Args, Debug)]
struct PassArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Up(args) => up::up(&args),
        Command::Down => kind::down(),
        Command::Plugin(args) => suite::plugin(&args),
        Command::Test(args) => suite::test(args.fast),
        Command::E2e(args) => suite::e2e(&args),
        Command::Sim(pass) => suite::sim(&pass.args),
        Command::Mutants => mutants::mutants(),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Chaos(args) => chaos::chaos(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Crds => suite::crds(),
        Command::Verify => suite::verify(),
        Command::Fix => suite::fix(),
        Command::Tools => suite::tools(),
        Command::Kind => kind::up().map(|cluster| println!("KUBECONFIG={}", cluster.kubeconfig.display())),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cargo-xtask", &mut std::io::stdout());
            Ok(())
        }
    }
}
