//! `cargo xtask chaos` and `cargo xtask bench failover`: real processes under faults, and what they cost clients.
//!
//! Everything runs inside fresh namespaces for processes, network and mounts: ports collide with nobody's, and whatever a
//! broken run leaves behind (members, mounts, namespaces of members, filters) goes away with its last process.

use std::path::Path;
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
    /// kill, stop, net, power, fsync, full, flip (all if none), and flags of `quorate-e2e chaos`: --rounds N, --class TEXT,
    /// --seed N, --keep, --node PATH (instead of building one)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Args, Debug)]
pub struct FailoverArgs {
    /// Flags of `quorate-e2e probe`: --events N, --kinds kill,move,term, --load CLIENTS, --out FILE, --node PATH
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// Leave etcd out
    #[arg(long)]
    alone: bool,
}

pub fn chaos(args: &ChaosArgs) -> Result<()> {
    cmd::run(driver("chaos", &args.args)?.args(&args.args))
}

pub fn failover(args: &FailoverArgs) -> Result<()> {
    let mut command = driver("probe", &args.args)?;
    if !args.alone {
        command.arg("--etcd").arg(tools::etcd()?);
    }
    cmd::run(command.args(&args.args))
}

/// The driver with a member to run: the one that `--node` among its flags names, or one built now.
fn driver(what: &str, flags: &[String]) -> Result<Command> {
    if flags.iter().any(|flag| flag == "--node" || flag.starts_with("--node=")) {
        let mut command = isolated(&cmd::build_programs(&["quorate-e2e"])?.e2e())?;
        command.arg(what);
        return Ok(command);
    }
    let programs = cmd::build_programs(&["quorate-node", "quorate-e2e"])?;
    let mut command = isolated(&programs.e2e())?;
    command.arg(what).arg("--node").arg(programs.node());
    Ok(command)
}

/// Starts a program in namespaces of its own, with a loopback that is up.
fn isolated(program: &Path) -> Result<Command> {
    tools::apt(&SYSTEM_TOOLS)?;
    if !tools::is_root() {
        bail!("faults on processes, disks and networks need root: run `sudo -E cargo xtask …`");
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
    // The shell stays first process there: the first one ignores the keyboard's interrupt, which is meant for the driver.
    // Names of namespaces are files: these are this run's own, whatever an earlier one left.
    let prepare = "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up";
    command.arg(format!("{prepare} && \"$0\" \"$@\"; exit $?")).arg(program);
    Ok(command)
}
