//! TLS of every port: who may speak, with what, and that what lies on disk is what is used.
//!
//! A plane is a set of ports with one certificate and one rule whom they take: clients (and metrics), peers, admin. Its
//! files are looked at again all the time, so that certificates are exchanged without a restart; files that do not fit
//! together yet change nothing. Must not log or show the content of a key.

mod accept;
mod args;
mod files;
mod roles;
mod stream;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use arc_swap::ArcSwapOption;
use clap::ValueEnum;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) use accept::{Door, Incoming, incoming, is_silence};
pub use args::TlsArgs;
use files::{Content, Loaded, Paths};
pub use roles::{Facts, Role, Rule, Wrong};
pub(crate) use stream::Stream;

use crate::Args;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many complaints about callers are told in so long a time; the others are counted.
const COMPLAINTS_MAX: u32 = 20;
const COMPLAINTS_EVERY: Duration = Duration::from_secs(10);
/// A warning about a certificate that ends sooner than this, and one each time it is passed.
const ENDS_SOON_SECONDS: i64 = 24 * 3600;

/// Whether a port speaks TLS.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Disabled,
    /// Both, told apart by the first bytes: a step on the way, since whoever sits between can take TLS away.
    Preferred,
    Required,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Disabled => "disabled",
            Mode::Preferred => "preferred",
            Mode::Required => "required",
        }
    }

    /// What the scheme of a URL that is listened on says, where no flag says more.
    fn of_url(url: &str) -> Mode {
        if url.starts_with("https://") { Mode::Required } else { Mode::Disabled }
    }
}

/// One certificate and one rule.
pub struct Plane {
    pub role: Role,
    /// How other members are dialled, and the mode told to the operator.
    pub mode: Mode,
    source: Option<Source>,
    loaded: ArcSwapOption<Loaded>,
    /// Files taken since the start, and contents that could not be used.
    pub reloads: AtomicU64,
    pub reload_failures: AtomicU64,
    /// Connections refused before they could say anything.
    pub refused: AtomicU64,
    complaints: Mutex<(Option<Instant>, u32)>,
}

struct Source {
    paths: Paths,
    rule: Rule,
    alpn: &'static [&'static [u8]],
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Of what is used, and of what was found unusable: each is told once.
    used: Option<[u8; 32]>,
    unusable: Option<[u8; 32]>,
    is_unreadable: bool,
    warned_of_end: Option<i64>,
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("role", &self.role).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// What can be told of a plane's certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub not_after: i64,
    pub leaf_sha256: String,
    pub trust_sha256: String,
}

/// gRPC and HTTP; peers agree on nothing.
const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

impl Plane {
    /// A plane that speaks plain text only.
    pub fn plain(role: Role) -> Plane {
        Plane {
            role,
            mode: Mode::Disabled,
            source: None,
            loaded: ArcSwapOption::empty(),
            reloads: AtomicU64::new(0),
            reload_failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            complaints: Mutex::default(),
        }
    }

    /// Reads the files; at start they must be usable.
    fn open(rule: Rule, mode: Mode, paths: Paths) -> Result<Plane> {
        let alpn = if rule.role == Role::Peer { &[] } else { HTTP };
        let content = Content::read(&paths)?;
        let loaded = files::load(&content, &paths, &rule, alpn)?;
        let seen = Seen { used: Some(content.digest()), ..Seen::default() };
        let plane = Plane {
            mode,
            loaded: ArcSwapOption::from_pointee(loaded),
            source: Some(Source { paths, rule: rule.clone(), alpn, seen: Mutex::new(seen) }),
            ..Plane::plain(rule.role)
        };
        plane.warn_of_end();
        Ok(plane)
    }

    pub fn told(&self) -> Option<Told> {
        let loaded = self.loaded.load();
        let loaded = loaded.as_ref()?;
        Some(Told {
            not_after: loaded.facts.not_after,
            leaf_sha256: loaded.leaf_sha256.clone(),
            trust_sha256: loaded.trust_sha256.clone(),
        })
    }

    /// Takes what lies on disk when it is new and fits together; otherwise what is used stays.
    fn look(&self) {
        let Some(source) = &self.source else { return };
        let mut seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let content = match Content::read(&source.paths) {
            Ok(content) => content,
            Err(error) => {
                if !std::mem::replace(&mut seen.is_unreadable, true) {
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(plane = self.role.name(), "keeping the certificate in use: {error:#}");
                }
                return;
            }
        };
        seen.is_unreadable = false;
        let digest = Some(content.digest());
        if seen.used != digest && seen.unusable != digest {
            match files::load(&content, &source.paths, &source.rule, source.alpn) {
                Ok(loaded) => {
                    let not_after = loaded.facts.not_after;
                    tracing::info!(
                        plane = self.role.name(),
                        leaf = loaded.leaf_sha256,
                        trust = loaded.trust_sha256,
                        not_after,
                        "took a new certificate"
                    );
                    self.loaded.store(Some(Arc::new(loaded)));
                    (seen.used, seen.unusable) = (digest, None);
                    self.reloads.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::warn!(plane = self.role.name(), "keeping the certificate in use: {error:#}");
                    seen.unusable = digest;
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        drop(seen);
        self.warn_of_end();
    }

    /// Once for each certificate that ends soon, and once more when it has ended.
    fn warn_of_end(&self) {
        let (Some(source), Some(told)) = (&self.source, self.told()) else { return };
        let left = told.not_after - unix_seconds();
        let limit = match left {
            ..0 => told.not_after,
            0..ENDS_SOON_SECONDS => told.not_after - ENDS_SOON_SECONDS,
            _ => return,
        };
        let mut seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.warned_of_end.replace(limit) != Some(limit) {
            let path = source.paths.cert.display();
            match left {
                ..0 => tracing::error!(
                    plane = self.role.name(),
                    "the certificate in {path} has expired: renew it, no restart is needed"
                ),
                _ => tracing::warn!(
                    plane = self.role.name(),
                    "the certificate in {path} expires in {left} s: renew it, no restart is needed"
                ),
            }
        }
    }

    /// Counts a caller who was not let in, and says so where that does not fill the log.
    pub(crate) fn complain(&self, address: impl fmt::Display, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, told) = &mut *complaints;
        if since.is_none_or(|since| since.elapsed() >= COMPLAINTS_EVERY) {
            (*since, *told) = (Some(Instant::now()), 0);
        }
        *told = told.saturating_add(1);
        if *told <= COMPLAINTS_MAX {
            tracing::warn!(plane = self.role.name(), %address, "refused a connection: {why}");
        } else {
            tracing::debug!(plane = self.role.name(), %address, "refused a connection: {why}");
        }
    }

    fn loaded(&self) -> Result<Arc<Loaded>> {
        self.loaded.load_full().with_context(|| format!("the {} port has no certificate", self.role.name()))
    }

    /// Makes a connection to `host` secure. The inner error is the connection's own.
    pub(crate) async fn secured(&self, stream: TcpStream, host: &str) -> Result<io::Result<Stream>> {
        let client = self.loaded()?.client.clone().context("no authorities are known")?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .with_context(|| format!("{host:?} is no name a certificate could have"))?;
        let secured = TlsConnector::from(client).connect(name, stream).await;
        Ok(secured.map(|stream| Stream::Tls(Box::new(stream.into()))))
    }
}

pub(crate) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// All planes of a member.
#[derive(Clone, Debug)]
pub struct Tls {
    pub client: Arc<Plane>,
    pub peer: Arc<Plane>,
    pub admin: Arc<Plane>,
}

/// The flags of one plane.
struct Flags<'a> {
    role: Role,
    /// Before `cert-file` and so on.
    prefix: &'a str,
    cert: &'a Option<PathBuf>,
    key: &'a Option<PathBuf>,
    trusted: &'a Option<PathBuf>,
    asks_for_certificates: bool,
    common_names: &'a [String],
    mode: Option<Mode>,
    /// All URLs of the plane.
    urls: Vec<&'a String>,
}

impl Flags<'_> {
    fn open(&self, cluster: Option<&String>) -> Result<Plane> {
        let prefix = self.prefix;
        let speaks_tls = self.urls.iter().any(|url| mode_of(self.mode, url) != Mode::Disabled);
        let first = self.urls.first().map_or(Mode::Disabled, |url| mode_of(self.mode, url));
        if self.mode == Some(Mode::Disabled)
            && let Some(url) = self.urls.iter().find(|url| url.starts_with("https://"))
        {
            bail!("the {} URL {url:?} asks for TLS, --{prefix}tls-mode disables it: make them agree", self.role.name());
        }
        let (cert, key) = match (self.cert, self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if !speaks_tls => return Ok(Plane::plain(self.role)),
            (None, None) => {
                bail!("the {} port speaks TLS: give --{prefix}cert-file and --{prefix}key-file", self.role.name())
            }
            (Some(_), None) => bail!("--{prefix}cert-file is given without --{prefix}key-file: give both"),
            (None, Some(_)) => bail!("--{prefix}key-file is given without --{prefix}cert-file: give both"),
        };
        let must_check = self.asks_for_certificates || self.role != Role::Client || !self.common_names.is_empty();
        ensure!(
            self.trusted.is_some() || !must_check,
            "callers of the {} port show certificates: give the authorities by --{prefix}trusted-ca-file",
            self.role.name()
        );
        if !speaks_tls {
            tracing::warn!("--{prefix}cert-file has no effect: no {} URL begins with https://", self.role.name());
            return Ok(Plane::plain(self.role));
        }
        let rule = Rule { role: self.role, cluster: cluster.cloned(), common_names: self.common_names.to_vec() };
        let paths = Paths { cert: cert.clone(), key: key.clone(), trusted: self.trusted.clone() };
        Plane::open(rule, first, paths)
            .with_context(|| format!("--{prefix}cert-file, --{prefix}key-file, --{prefix}trusted-ca-file"))
    }
}

/// The mode of a port: the flag's, or what the URL says.
pub(crate) fn mode_of(flag: Option<Mode>, url: &str) -> Mode {
    flag.unwrap_or_else(|| Mode::of_url(url))
}

impl Tls {
    pub fn from_args(args: &Args) -> Result<Tls> {
        let tls = &args.tls;
        let cluster = tls.tls_cluster.as_ref();
        let client = Flags {
            role: Role::Client,
            prefix: "",
            cert: &tls.cert_file,
            key: &tls.key_file,
            trusted: &tls.trusted_ca_file,
            asks_for_certificates: tls.client_cert_auth,
            common_names: &tls.client_cert_allowed_cn,
            mode: tls.client_tls_mode,
            urls: args.listen_client_urls.iter().chain(&args.listen_metrics_urls).collect(),
        };
        let peer = Flags {
            role: Role::Peer,
            prefix: "peer-",
            cert: &tls.peer_cert_file,
            key: &tls.peer_key_file,
            trusted: &tls.peer_trusted_ca_file,
            asks_for_certificates: tls.peer_client_cert_auth,
            common_names: &tls.peer_cert_allowed_cn,
            mode: tls.peer_tls_mode,
            urls: args.listen_peer_urls.iter().collect(),
        };
        let admin = Flags {
            role: Role::Admin,
            prefix: "admin-",
            cert: &tls.admin_cert_file,
            key: &tls.admin_key_file,
            trusted: &tls.admin_trusted_ca_file,
            asks_for_certificates: true,
            common_names: &tls.admin_cert_allowed_cn,
            mode: tls.admin_tls_mode,
            urls: args.listen_admin_urls.iter().collect(),
        };
        Ok(Tls {
            client: Arc::new(client.open(cluster)?),
            peer: Arc::new(peer.open(cluster)?),
            admin: Arc::new(admin.open(cluster)?),
        })
    }

    pub fn planes(&self) -> [&Arc<Plane>; 3] {
        [&self.client, &self.peer, &self.admin]
    }

    /// Looks at the files again and again, for as long as the process lives.
    pub(crate) async fn keep_fresh(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let tls = self.clone();
            let looked = tokio::task::spawn_blocking(move || tls.planes().into_iter().for_each(|plane| plane.look()));
            if looked.await.is_err() {
                tracing::error!("a panic while looking at certificates; what is in use stays");
            }
        }
    }
}
