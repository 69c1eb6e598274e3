//! The command line, with examples to learn from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

#[derive(Parser, Debug)]
#[command(
    name = "kubectl-quorate",
    bin_name = "kubectl quorate",
    version,
    about = "Look at and steer clusters that Quorate runs",
    after_help = "\
Examples:
  kubectl quorate status                          every cluster of the namespace, one line each
  kubectl quorate status orders                   one screen: leader, margin, next step, what blocks it
  kubectl quorate plan orders -f orders.yaml      what the operator would do on this edit; changes nothing
  kubectl quorate transfer-leader orders          move leadership to the follower that is furthest
  kubectl quorate restart orders                  every member, one at a time, the leader last
  kubectl quorate fence orders orders-b7xk2       stop a member and keep it stopped; `unfence` lifts it
  kubectl quorate replace orders orders-b7xk2     a new member catches up, then takes its place
  kubectl quorate logs orders -f                  all members, in order of time
  kubectl quorate report orders                   a .tar.gz for those who help; no Secrets in it

Every request is an annotation that the operator obeys under the same guards as its own steps: never two voters down at
once, and with three voters or more never without a quorum that is caught up (one or two pause while one restarts). What has
to wait says what it waits for."
)]
pub struct Cli {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Colours: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub color: Color,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug, Clone)]
pub struct ConnectArgs {
    /// Namespace of the cluster; the context's when absent
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Path of the kubeconfig; KUBECONFIG or ~/.kube/config when absent
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
    Yaml,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show a cluster on one screen, or every cluster of the namespace in a line each
    #[command(after_help = "\
Examples:
  kubectl quorate status
  kubectl quorate status orders -n shop
  kubectl quorate status orders -o json | jq .quorum")]
    Status {
        /// The cluster; all of the namespace when absent
        cluster: Option<String>,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Show what the operator does next, or would do on an edit; changes nothing
    #[command(after_help = "\
Examples:
  kubectl quorate plan orders                     what it does now, and what each step waits for
  kubectl quorate plan -f orders.yaml             the same, as if the file had been applied
  cat orders.yaml | kubectl quorate plan -f -

The edit is sent to the API server as a dry run, so schema and rules speak first. Then the operator's own planner decides on
what the cluster and its members say now. To ask the members it opens a port-forward to each pod.")]
    Plan {
        /// The cluster; taken from the file when absent
        cluster: Option<String>,
        /// A manifest of one ConsistentCluster; `-` reads it from standard input
        #[arg(short = 'f', long = "filename", value_name = "FILE")]
        file: Option<PathBuf>,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Move leadership to another member
    #[command(after_help = "\
Examples:
  kubectl quorate transfer-leader orders                    to the ready follower that is furthest
  kubectl quorate transfer-leader orders orders-b7xk2")]
    TransferLeader {
        cluster: String,
        /// Who shall lead
        member: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stop a member and keep it stopped; its data and its vote stay
    #[command(after_help = "\
Example:
  kubectl quorate fence orders orders-b7xk2

It is stopped when the other voters hold a quorum without it. A leader hands over first. One member at a time.")]
    Fence {
        cluster: String,
        member: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a fenced member run again
    Unfence {
        cluster: String,
        member: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make a new member, and take this one out once the new one is caught up
    #[command(after_help = "\
Example:
  kubectl quorate replace orders orders-b7xk2

The new member copies everything before it takes the old one's place in one change of membership. The old one's volume is
treated as spec.storage.removedMember says.")]
    Replace {
        cluster: String,
        member: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make the pods of all members anew, or of one: one at a time, the leader last
    #[command(after_help = "\
Examples:
  kubectl quorate restart orders
  kubectl quorate restart orders orders-b7xk2")]
    Restart {
        cluster: String,
        /// All members when absent
        member: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Print logs of all members in order of time, each line with its member's name
    #[command(after_help = "\
Examples:
  kubectl quorate logs orders --since 10m
  kubectl quorate logs orders -f
  kubectl quorate logs orders orders-b7xk2 --previous")]
    Logs {
        cluster: String,
        /// All members when absent
        members: Vec<String>,
        /// Go on as lines come
        #[arg(short, long)]
        follow: bool,
        /// Not older than this, such as 30s, 10m or 2h
        #[arg(long, value_parser = duration)]
        since: Option<Duration>,
        /// The last lines of each member
        #[arg(long)]
        tail: Option<u32>,
        /// Of the containers that ran before
        #[arg(short, long, conflicts_with = "follow")]
        previous: bool,
        /// Print the times too
        #[arg(long)]
        timestamps: bool,
    },
    /// Write objects, events, logs and the members' own words into a .tar.gz for those who help
    #[command(after_help = "\
Examples:
  kubectl quorate report orders
  kubectl quorate report orders -f /tmp/orders.tar.gz

No Secret is in it; of a cluster with TLS the operator's certificate is read, to ask the members. Look at what is in it before
you give it away: logs and names are as they are.")]
    Report {
        cluster: String,
        /// Where to; CLUSTER-report.tar.gz when absent
        #[arg(short = 'f', long = "filename", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Last lines of each log
        #[arg(long, default_value_t = 5_000)]
        tail: u32,
    },
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  source <(kubectl quorate completion bash)       completes `kubectl-quorate …`
  kubectl quorate completion zsh > ~/.zfunc/_kubectl-quorate
  kubectl quorate completion fish | source
  kubectl quorate completion powershell | Out-String | Invoke-Expression")]
    Completion {
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Args, Debug, Clone)]
pub struct WaitArgs {
    /// Ask and return at once
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait until it is done, such as 90s or 10m
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Reads `90s`, `10m`, `2h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(format!("{text:?} is no duration; write 90s, 10m or 2h")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is no duration; write 90s, 10m or 2h"))?;
    Ok(Duration::from_secs(count.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_and_nonsense_is_named() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("10 parsecs").unwrap_err().contains("10 parsecs"));
        assert!(duration("m").is_err());
    }
}
