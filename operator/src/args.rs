//! The command line.

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::local::LocalArgs;

#[derive(Parser, Debug)]
#[command(
    name = "quorate-operator",
    version,
    about = "Runs strongly consistent clusters that answer the etcd v3 API",
    after_help = "\
Try it here, without Kubernetes:
  quorate-operator local -f examples/orders.yaml --data-dir /tmp/orders
  etcdctl --endpoints=$(cat /tmp/orders/endpoints) put a b
  # edit replicas in the manifest while it runs; kill a member; Ctrl-C stops all and keeps the data

On Kubernetes (the chart does this):
  quorate-operator crd | kubectl apply -f -
  quorate-operator run

Every flag can be given as an environment variable as shown. A log filter is taken from QUORATE_LOG, such as
`info,quorate_operator=debug`."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Reconcile ConsistentCluster resources of a Kubernetes cluster
    Run(RunArgs),
    /// Run one manifest's cluster on this machine, members as processes
    Local(LocalArgs),
    /// Print the CustomResourceDefinition as YAML
    Crd,
    /// Print a completion script, such as `source <(quorate-operator completions bash)`
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    /// Watch this namespace only; all of them when absent
    #[arg(long, env = "QUORATE_NAMESPACE")]
    pub namespace: Option<String>,
    /// Namespace of the Lease that elects one of several operators
    #[arg(long, env = "QUORATE_LEASE_NAMESPACE", default_value = "quorate-system")]
    pub lease_namespace: String,
    #[arg(long, env = "QUORATE_LEASE_NAME", default_value = "quorate-operator")]
    pub lease_name: String,
    /// This operator's name in the Lease and in Events; the chart gives the pod's name
    #[arg(long, env = "QUORATE_IDENTITY")]
    pub identity: Option<String>,
    /// Serves /metrics, /livez and /readyz
    #[arg(long, env = "QUORATE_LISTEN_METRICS", default_value = "0.0.0.0:8080")]
    pub listen_metrics: std::net::SocketAddr,
    /// Clusters reconciled at the same time
    #[arg(long, env = "QUORATE_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Seconds a certificate that the operator issues is valid; it is renewed after two thirds
    #[arg(long, env = "QUORATE_CERTIFICATE_LIFETIME", default_value_t = 90 * 86_400, value_parser = clap::value_parser!(u32).range(60..))]
    pub certificate_lifetime: u32,
    /// Seconds an authority of a cluster is valid, at least as long as a certificate; another takes over after two thirds
    #[arg(long, env = "QUORATE_AUTHORITY_LIFETIME", default_value_t = 5 * 365 * 86_400, value_parser = clap::value_parser!(u32).range(180..))]
    pub authority_lifetime: u32,
    /// Log lines as JSON
    #[arg(long, env = "QUORATE_LOG_JSON")]
    pub log_json: bool,
}

impl RunArgs {
    /// What no flag can tell by itself.
    ///
    /// # Errors
    /// Two flags contradict each other.
    pub fn check(&self) -> Result<()> {
        // The last third of its life is the time in which everybody comes to trust the next one, which takes a fifth of a leaf's at most.
        ensure!(
            self.authority_lifetime >= self.certificate_lifetime,
            "--authority-lifetime is {} s, shorter than the {} s of --certificate-lifetime: an authority must last at least as long as \
             what it signs",
            self.authority_lifetime,
            self.certificate_lifetime,
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(flags: &[&str]) -> Result<()> {
        let command = ["quorate-operator", "run"].iter().chain(flags);
        let Command::Run(args) = Cli::try_parse_from(command)?.command else { unreachable!("the command is run") };
        args.check()
    }

    #[test]
    fn an_authority_lasts_as_long_as_what_it_signs() {
        checked(&[]).expect("the defaults");
        checked(&["--certificate-lifetime", "600", "--authority-lifetime", "600"]).expect("as long");
        let error = checked(&["--authority-lifetime", "3600"]).expect_err("shorter").to_string();
        assert!(error.contains("--authority-lifetime is 3600 s"), "{error}");
    }
}
