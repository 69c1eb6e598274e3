//! Flags. etcd's names where etcd has the flag; the only place that reads the environment.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

pub use crate::tls::TlsArgs;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    New,
    Existing,
}

/// One member of a strongly consistent cluster: a Raft node that answers the etcd v3 API.
#[derive(Parser, Debug, Clone)]
#[command(
    name = "quorate-node",
    version = crate::api::VERSION,
    after_help = "A cluster of three by hand (names, URLs and directories of m1; m2 and m3 alike):\n  \
        quorate-node --name m1 --data-dir m1 --initial-cluster m1=http://127.0.0.1:2380,m2=http://127.0.0.1:3380,m3=http://127.0.0.1:4380 \\\n    \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \\\n    \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-admin-urls http://127.0.0.1:2381\n\n\
        A member that was added to a running cluster: the same with --initial-cluster-state existing.\n\
        With data in --data-dir nothing is founded or joined again. Keep the --initial-* flags all the same: who joins is compared by\n\
        token, and a damaged log is mended from the members they name. Every flag can be given as QUORATE_NAME_OF_FLAG."
)]
pub struct Args {
    /// Name of this member, as in --initial-cluster
    #[arg(long, env = "QUORATE_NAME", default_value = "default")]
    pub name: String,
    /// Directory that holds the log and the checkpoints of this member, and nothing else
    #[arg(long, env = "QUORATE_DATA_DIR", default_value = "default.quorate")]
    pub data_dir: PathBuf,
    /// Where other members reach this process
    #[arg(long, env = "QUORATE_LISTEN_PEER_URLS", value_delimiter = ',', default_value = "http://localhost:2380")]
    pub listen_peer_urls: Vec<String>,
    /// Where clients reach this process: gRPC, and HTTP for health and metrics
    #[arg(long, env = "QUORATE_LISTEN_CLIENT_URLS", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<String>,
    /// Where the operator reaches this process (quorate.admin.v1, health, metrics)
    #[arg(long, env = "QUORATE_LISTEN_ADMIN_URLS", value_delimiter = ',', default_value = "http://127.0.0.1:2381")]
    pub listen_admin_urls: Vec<String>,
    /// More addresses for health and metrics alone
    #[arg(long, env = "QUORATE_LISTEN_METRICS_URLS", value_delimiter = ',')]
    pub listen_metrics_urls: Vec<String>,
    /// The peer URLs told to other members
    #[arg(
        long,
        env = "QUORATE_INITIAL_ADVERTISE_PEER_URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    pub initial_advertise_peer_urls: Vec<String>,
    /// The client URLs told to other members and to clients
    #[arg(long, env = "QUORATE_ADVERTISE_CLIENT_URLS", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub advertise_client_urls: Vec<String>,
    /// NAME=PEER-URL of each first member, comma separated
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", default_value = "default=http://localhost:2380")]
    pub initial_cluster: String,
    /// More peer URLs to ask for the cluster when joining, such as a name that leads to all members: those of
    /// --initial-cluster may be gone by now
    #[arg(long, env = "QUORATE_JOIN_URLS", value_delimiter = ',')]
    pub join_urls: Vec<String>,
    /// `new` founds the cluster; `existing` joins one that has this member in its list already
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER_STATE", value_enum, default_value = "new")]
    pub initial_cluster_state: ClusterState,
    /// Tells clusters with equal addresses apart
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER_TOKEN", default_value = "quorate-cluster")]
    pub initial_cluster_token: String,
    /// Milliseconds between heartbeats of a leader
    #[arg(long, env = "QUORATE_HEARTBEAT_INTERVAL", default_value_t = 50)]
    pub heartbeat_interval: u64,
    /// Milliseconds without a leader before a follower stands for election: drawn from N to 2N
    #[arg(long, env = "QUORATE_ELECTION_TIMEOUT", default_value_t = 150)]
    pub election_timeout: u64,
    /// Answer reads that ask for it from the leader's lease, without a round to the others. The same on every member, and
    /// only where clocks run on while a machine is paused, at rates that differ by less than 5 %
    #[arg(long, env = "QUORATE_LEASE_READS")]
    pub lease_reads: bool,
    /// Entries applied between two checkpoints
    #[arg(long, env = "QUORATE_SNAPSHOT_COUNT", default_value_t = 100_000)]
    pub snapshot_count: u64,
    /// Entries kept behind a checkpoint for slow followers
    #[arg(long, env = "QUORATE_SNAPSHOT_CATCHUP_ENTRIES", default_value_t = 10_000)]
    pub snapshot_catchup_entries: u64,
    /// Largest state in bytes; writes that grow it are refused beyond
    #[arg(long, env = "QUORATE_QUOTA_BACKEND_BYTES", default_value_t = 2 << 30)]
    pub quota_backend_bytes: u64,
    /// Largest request in bytes
    #[arg(long, env = "QUORATE_MAX_REQUEST_BYTES", default_value_t = 1_572_864)]
    pub max_request_bytes: usize,
    /// Most operations of one transaction
    #[arg(long, env = "QUORATE_MAX_TXN_OPS", default_value_t = 128)]
    pub max_txn_ops: usize,
    /// Length of a file of the log. Each is written ahead in full, and up to three are kept beside what is needed
    #[arg(long, env = "QUORATE_LOG_SEGMENT_BYTES", default_value_t = quorate_log::SEGMENT_BYTES_DEFAULT)]
    pub log_segment_bytes: u64,
    /// Seconds between two passes over the finished parts of the log that look for rot; 0 is never
    #[arg(long, env = "QUORATE_SCRUB_INTERVAL", default_value_t = 3600)]
    pub scrub_interval: u64,
    /// Refuse clients until the operator has recorded the bootstrap and says so
    #[arg(long, env = "QUORATE_AWAIT_ACTIVATION")]
    pub await_activation: bool,
    /// trace, debug, info, warn, error, or a filter such as `info,quorate_node=debug`
    #[arg(long, env = "QUORATE_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    #[arg(long, env = "QUORATE_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Plants a known bug, to see that a test catches it
    #[cfg(feature = "mutants")]
    #[arg(long)]
    pub mutant: Option<quorate_raft::mutant::Mutant>,
}

impl Args {
    pub(crate) fn log_options(&self, boot_nonce: u64) -> quorate_log::Options {
        quorate_log::Options { segment_bytes: self.log_segment_bytes, ..quorate_log::Options::new(boot_nonce) }
    }
}

/// Below, most batches would need a segment of their own.
const LOG_SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Far above what is of use: a segment is written ahead in full.
const LOG_SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Args {
    /// Checks what clap cannot see. Each error names the flag, the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        if self.heartbeat_interval == 0 {
            bail!("--heartbeat-interval is 0: give at least 1 ms");
        }
        if self.election_timeout < 3 * self.heartbeat_interval {
            bail!(
                "--election-timeout of {} ms is below 3 heartbeats of {} ms: raise it or lower --heartbeat-interval",
                self.election_timeout,
                self.heartbeat_interval
            );
        }
        if self.election_timeout > 50_000 {
            bail!("--election-timeout of {} ms is above 50000 ms: lower it", self.election_timeout);
        }
        if self.max_request_bytes > quorate_raft::codec::ENTRY_DATA_BYTES_MAX / 2 {
            bail!(
                "--max-request-bytes of {} is above {}: lower it",
                self.max_request_bytes,
                quorate_raft::codec::ENTRY_DATA_BYTES_MAX / 2
            );
        }
        if !(LOG_SEGMENT_BYTES_MIN..=LOG_SEGMENT_BYTES_MAX).contains(&self.log_segment_bytes) {
            bail!(
                "--log-segment-bytes of {} is not between {LOG_SEGMENT_BYTES_MIN} and {LOG_SEGMENT_BYTES_MAX}: choose a size within",
                self.log_segment_bytes
            );
        }
        if self.snapshot_count == 0 {
            bail!("--snapshot-count is 0: give at least 1");
        }
        if self.max_txn_ops == 0 {
            bail!("--max-txn-ops is 0: give at least 1");
        }
        let flags = [
            ("--listen-peer-urls", &self.listen_peer_urls),
            ("--listen-client-urls", &self.listen_client_urls),
            ("--listen-admin-urls", &self.listen_admin_urls),
            ("--listen-metrics-urls", &self.listen_metrics_urls),
            ("--initial-advertise-peer-urls", &self.initial_advertise_peer_urls),
            ("--advertise-client-urls", &self.advertise_client_urls),
            ("--join-urls", &self.join_urls),
        ];
        for (flag, urls) in flags {
            for url in urls {
                if let Err(error) = crate::transport::authority(url) {
                    bail!("{flag}: {error:#}");
                }
            }
        }
        Ok(())
    }
}
