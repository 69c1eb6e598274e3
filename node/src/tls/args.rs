//! The flags of TLS: etcd's names where etcd has the flag.

use std::path::PathBuf;

use clap::Args;

use super::Mode;

/// Files are read again while this runs: a renewed certificate needs no restart.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "TLS (1.3 only; files are PEM and read again when they change)")]
pub struct TlsArgs {
    /// Certificate for clients and for metrics, with its intermediates
    #[arg(long, env = "QUORATE_CERT_FILE")]
    pub cert_file: Option<PathBuf>,
    /// Private key of --cert-file
    #[arg(long, env = "QUORATE_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Authorities of clients' certificates; clients must show one when this is given
    #[arg(long, env = "QUORATE_TRUSTED_CA_FILE")]
    pub trusted_ca_file: Option<PathBuf>,
    /// Clients must show a certificate: --trusted-ca-file asks for it already
    #[arg(long, env = "QUORATE_CLIENT_CERT_AUTH")]
    pub client_cert_auth: bool,
    /// Common names of clients' certificates that are taken; all when not given
    #[arg(long, env = "QUORATE_CLIENT_CERT_ALLOWED_CN", value_delimiter = ',')]
    pub client_cert_allowed_cn: Vec<String>,
    /// Certificate for other members, shown when they dial and when they are dialled
    #[arg(long, env = "QUORATE_PEER_CERT_FILE")]
    pub peer_cert_file: Option<PathBuf>,
    /// Private key of --peer-cert-file
    #[arg(long, env = "QUORATE_PEER_KEY_FILE")]
    pub peer_key_file: Option<PathBuf>,
    /// Authorities of other members' certificates
    #[arg(long, env = "QUORATE_PEER_TRUSTED_CA_FILE")]
    pub peer_trusted_ca_file: Option<PathBuf>,
    /// Members must show a certificate: they always must where peers speak TLS
    #[arg(long, env = "QUORATE_PEER_CLIENT_CERT_AUTH")]
    pub peer_client_cert_auth: bool,
    /// Common names of members' certificates that are taken; all when not given
    #[arg(long, env = "QUORATE_PEER_CERT_ALLOWED_CN", value_delimiter = ',')]
    pub peer_cert_allowed_cn: Vec<String>,
    /// Certificate for the operator
    #[arg(long, env = "QUORATE_ADMIN_CERT_FILE")]
    pub admin_cert_file: Option<PathBuf>,
    /// Private key of --admin-cert-file
    #[arg(long, env = "QUORATE_ADMIN_KEY_FILE")]
    pub admin_key_file: Option<PathBuf>,
    /// Authorities of the operator's certificate
    #[arg(long, env = "QUORATE_ADMIN_TRUSTED_CA_FILE")]
    pub admin_trusted_ca_file: Option<PathBuf>,
    /// Common names taken on the admin port instead of the role quorate://CLUSTER/admin
    #[arg(long, env = "QUORATE_ADMIN_CERT_ALLOWED_CN", value_delimiter = ',')]
    pub admin_cert_allowed_cn: Vec<String>,
    /// Takes only certificates with the URI quorate://NAME/client, …/peer or …/admin, each on its own port. Without this, a
    /// certificate that names a role opens that role's port alone, and one that names none opens all but the admin port
    #[arg(long, env = "QUORATE_TLS_CLUSTER", value_name = "NAME")]
    pub tls_cluster: Option<String>,
    /// Whether clients speak TLS; by default what the scheme of each URL says. `preferred` takes both on one port
    #[arg(long, env = "QUORATE_CLIENT_TLS_MODE", value_enum)]
    pub client_tls_mode: Option<Mode>,
    /// The same for other members; `preferred` dials with TLS and falls back where the other side knows none
    #[arg(long, env = "QUORATE_PEER_TLS_MODE", value_enum)]
    pub peer_tls_mode: Option<Mode>,
    /// The same for the operator
    #[arg(long, env = "QUORATE_ADMIN_TLS_MODE", value_enum)]
    pub admin_tls_mode: Option<Mode>,
}
