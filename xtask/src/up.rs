//! `cargo xtask up`: the main job.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{cmd, kind, suite, tools};

#[derive(Args, Debug)]
pub struct UpArgs {
    /// Bring up kind, install the chart and apply the manifest there; returns and leaves it running
    #[arg(long)]
    kubernetes: bool,
    /// With --kubernetes: use the cluster of the current KUBECONFIG instead of kind (the image must be reachable there)
    #[arg(long, requires = "kubernetes")]
    current_context: bool,
    /// Throw away the data of an earlier `up` and start over
    #[arg(long)]
    fresh: bool,
    /// The manifest to run
    #[arg(short, long, default_value = "examples/orders.yaml")]
    file: PathBuf,
}

pub fn up(args: &UpArgs) -> Result<()> {
    if args.kubernetes { kubernetes(args) } else { local(args) }
}

fn local(args: &UpArgs) -> Result<()> {
    let programs = cmd::build_programs(&["quorate-node", "quorate-operator"])?;
    match tools::etcdctl() {
        Ok(path) => eprintln!("[up] etcdctl is at {}", path.display()),
        Err(error) => eprintln!("[up] no etcdctl to try things with: {error:#}"),
    }
    let data = cmd::cache_dir().join("local");
    let mut command = Command::new(programs.operator());
    command.current_dir(cmd::root()).arg("local").arg("-f").arg(&args.file);
    command.arg("--data-dir").arg(&data).arg("--node-bin").arg(programs.node());
    if args.fresh {
        command.arg("--fresh");
    }
    // The operator takes over this process, so that Ctrl-C reaches it and nothing else.
    let error = command.exec();
    Err(error).context("cannot start quorate-operator")
}

fn kubernetes(args: &UpArgs) -> Result<()> {
    let programs = cmd::build_programs(&["quorate-node", "quorate-operator"])?;
    if args.fresh && !args.current_context {
        kind::down()?;
    }
    let target = suite::Target::bring_up(&programs, &[tools::etcdctl()?], args.current_context)?;
    target.install_chart(&[])?;
    let file = cmd::root().join(&args.file).display().to_string();
    target.kubectl(&["apply", "-f", &file])?;
    eprintln!("[up] waiting for the cluster to be Ready …");
    target.kubectl(&["wait", "--for=condition=Ready", "-f", &file, "--timeout=300s"])?;
    target.kubectl(&["get", "cc,pods,svc", "-o", "wide"])?;
    println!("\nKUBECONFIG={}", target.kubeconfig.display());
    println!("kubectl is at {}", target.kubectl.display());
    println!("\nTry:");
    println!("  export KUBECONFIG={}", target.kubeconfig.display());
    println!("  kubectl get cc orders -w");
    println!("  kubectl scale cc/orders --replicas=5");
    println!("  kubectl delete pod \"$(kubectl get cc orders -o jsonpath='{{.status.leader.name}}')-0\"");
    println!("  cargo xtask down");
    Ok(())
}
