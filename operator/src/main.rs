//! `quorate-operator`: the command line around the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use quorate_operator::args::{Cli, Command, RunArgs};
use quorate_operator::local::LocalArgs;
use quorate_operator::{kubernetes, local};
use tracing_subscriber::EnvFilter;

/// Gives back what a burst of work took: the standard one keeps as much for each of its threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run(args),
        Command::Local(args) => run_local(args),
        Command::Crd => {
            print!("{}", quorate_api::crd_yaml());
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "quorate-operator", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn run(args: RunArgs) -> Result<()> {
    let is_terminal = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter("info")?).with_writer(std::io::stderr);
    let subscriber = subscriber.with_ansi(is_terminal);
    if args.log_json {
        subscriber.json().init()
    } else {
        subscriber.init()
    }
    runtime()?.block_on(kubernetes::run(args))
}

fn run_local(args: LocalArgs) -> Result<()> {
    if std::io::stdout().is_terminal() {
        // The table has the terminal for itself.
        std::fs::create_dir_all(&args.data_dir)
            .with_context(|| format!("--data-dir {}: cannot make it", args.data_dir.display()))?;
        let log = std::fs::File::options().create(true).append(true).open(args.data_dir.join("operator.log"))?;
        tracing_subscriber::fmt().with_env_filter(filter("info")?).with_ansi(false).with_writer(log).init();
    } else {
        tracing_subscriber::fmt().with_env_filter(filter("warn")?).with_writer(std::io::stderr).init();
    }
    runtime()?.block_on(local::run(args))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")
}

fn filter(default: &str) -> Result<EnvFilter> {
    match std::env::var("QUORATE_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("QUORATE_LOG is {text:?}")),
        Err(_) => Ok(EnvFilter::new(default)),
    }
}
