//! `cargo xtask chaos` and `cargo xtask bench failover`: real processes under faults, and what they cost clients.
//!
//! Everything runs inside fresh namespaces for processes, network and mounts: ports collide with nobody's, and whatever a
//! broken run leaves behind (members, mounts, namespaces of members, filters) goes away with its last process.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::{cmd, tools};

/// Programs of the system that cause the faults, with Debian's packages.
const SYSTEM_TOOLS: [(&str, &str); 8] = [
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("perl", "perl-base"),
    ("bash", "bash"),
];

#[derive(Args, Debug)]
pub struct ChaosArgs {
    /// kill, stop, net, power, fsync, full, flip (all if none), and flags of `quorate-e2e chaos` such as --rounds N
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// Use this quorate-node instead of building one
    #[arg(long)]
    node: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct FailoverArgs {
    /// Flags of `quorate-e2e probe`, such as --events N or --kinds kill,move,term
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// Use this quorate-node instead of building one
    #[arg(long)]
    node: Option<PathBuf>,
    /// Leave etcd out
    #[arg(long)]
    alone: bool,
}

pub fn chaos(args: &ChaosArgs) -> Result<()> {
    let (e2e, node) = programs(args.node.as_ref())?;
    let mut command = isolated(&e2e)?;
    cmd::run(command.arg("chaos").arg("--node").arg(node).args(&args.args))
}

pub fn failover(args: &FailoverArgs) -> Result<()> {
    let (e2e, node) = programs(args.node.as_ref())?;
    let mut command = isolated(&e2e)?;
    command.arg("probe").arg("--node").arg(node);
    if !args.alone {
        command.arg("--etcd").arg(tools::etcd()?);
    }
    cmd::run(command.args(&args.args))
}

/// The driver and the member to run.
fn programs(node: Option<&PathBuf>) -> Result<(PathBuf, PathBuf)> {
    match node {
        Some(node) => Ok((cmd::build_programs(&["quorate-e2e"])?.e2e(), std::path::absolute(node)?)),
        None => {
            let programs = cmd::build_programs(&["quorate-node", "quorate-e2e"])?;
            Ok((programs.e2e(), programs.node()))
        }
    }
}

/// Starts a program in namespaces of its own, with a loopback that is up.
fn isolated(program: &std::path::Path) -> Result<Command> {
    tools::apt(&SYSTEM_TOOLS)?;
    if !tools::is_root() {
        bail!("faults on processes, disks and networks need root: run `sudo -E cargo xtask …`");
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
    // The shell stays first process there: the first one ignores the keyboard's interrupt, which is meant for the driver.
    command.args(["ip link set lo up && \"$0\" \"$@\"; exit $?"]).arg(program);
    Ok(command)
}
