//! Certificates and keys as they lie on disk, and what is made of them. Must not log or show the content of a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::roles::{Called, Callers, Facts, Rule};

/// Where the files of one plane are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Authorities. Without them callers show no certificate, and nobody can be dialled.
    pub trusted: Option<PathBuf>,
}

/// The bytes of the files at one time. No `Debug`: one of them is a secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Content {
    cert: Vec<u8>,
    key: Vec<u8>,
    trusted: Option<Vec<u8>>,
}

impl Content {
    pub(super) fn read(paths: &Paths) -> Result<Content> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Content {
            cert: read(&paths.cert)?,
            key: read(&paths.key)?,
            trusted: paths.trusted.as_deref().map(read).transpose()?,
        })
    }

    /// Tells contents apart without keeping them.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for part in [Some(&self.cert), Some(&self.key), self.trusted.as_ref()].into_iter().flatten() {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes")
    }
}

/// Ready to serve and to dial.
pub(super) struct Loaded {
    pub server: Arc<ServerConfig>,
    /// Where there are authorities to check the other side by.
    pub client: Option<Arc<ClientConfig>>,
    pub facts: Facts,
    /// SHA-256 of the leaf, and of all authorities, in hexadecimal.
    pub leaf_sha256: String,
    pub trust_sha256: String,
}

fn sha256(parts: &[CertificateDer<'static>]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.with_context(|| format!("{} is not PEM", path.display()))?;
    ensure!(!all.is_empty(), "{} holds no certificate: write PEM", path.display());
    Ok(all)
}

/// Certificates that belong together, or why these do not.
pub(super) fn load(content: &Content, paths: &Paths, rule: &Rule, alpn: &[&[u8]]) -> Result<Loaded> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&content.cert, &paths.cert)?;
    // What is wrong with a key is not told further than where it is.
    let Ok(key) = PrivateKeyDer::from_pem_slice(&content.key) else {
        bail!("{} holds no private key: write PEM of PKCS#8, PKCS#1 or SEC1", paths.key.display());
    };
    let facts = Facts::of(&chain[0]).with_context(|| format!("{}", paths.cert.display()))?;
    let pair = || format!("{} and {} do not belong together", paths.cert.display(), paths.key.display());
    let mut roots = RootCertStore::empty();
    let mut trusted = Vec::new();
    if let (Some(pem), Some(path)) = (&content.trusted, &paths.trusted) {
        trusted = certificates(pem, path)?;
        for authority in &trusted {
            roots.add(authority.clone()).with_context(|| format!("{}: not an authority", path.display()))?;
        }
    }
    let roots = Arc::new(roots);
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut server = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        builder.with_client_cert_verifier(Arc::new(Callers { chain, rule: rule.clone() }))
    }
    .with_single_cert(chain.clone(), key.clone_key())
    .with_context(pair)?;
    // A resumed session would outlive the authority that vouched for it.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let client = match roots.is_empty() {
        true => None,
        false => Some(Arc::new(dialling(provider, roots, rule, chain.clone(), key).with_context(pair)?)),
    };
    Ok(Loaded {
        server: Arc::new(server),
        client,
        facts,
        leaf_sha256: sha256(&chain[..1]),
        trust_sha256: sha256(&trusted),
    })
}

fn dialling(
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    rule: &Rule,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig> {
    let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Called { chain: servers, rule: rule.clone() }))
        .with_client_auth_cert(chain, key)?;
    client.resumption = Resumption::disabled();
    Ok(client)
}
