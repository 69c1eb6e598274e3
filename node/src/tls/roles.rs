//! What a certificate says about its owner, and whom a port takes.
//!
//! A role is a URI among the certificate's alternative names: `quorate://CLUSTER/peer`, `…/client`, `…/admin` or
//! `…/server`. The chain, the dates and the purpose of the key are checked before, by webpki; must not be used without.

use std::fmt::Debug;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the owner of a certificate may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Speaks as a member, on the peer port.
    Peer,
    /// Reads and writes, on the client port.
    Client,
    /// Changes the membership, on the admin port.
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Peer => "peer",
            Role::Client => "client",
            Role::Admin => "admin",
        }
    }
}

/// URIs of this scheme name roles; all others mean nothing here.
const SCHEME: &str = "quorate://";

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    #[error("the certificate is for {found:?}, not for {wanted}")]
    Role { found: Vec<String>, wanted: String },
    #[error("the certificate names no role: it needs the URI {wanted}")]
    NoRole { wanted: String },
    #[error("the common name {found:?} of the certificate is not among those allowed")]
    CommonName { found: String },
}

/// The part of a certificate that matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Names of the scheme above.
    pub roles: Vec<String>,
    pub common_name: String,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

impl Facts {
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Facts, Wrong> {
        let unreadable = |error: String| Wrong::Unreadable(error);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unreadable(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some((*uri).to_owned()),
            _ => None,
        });
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Facts {
            roles: uris.collect(),
            common_name: common_name.unwrap_or_default().to_owned(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

/// Whom one port takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub role: Role,
    /// The cluster a role must be of. Where it is given, a certificate without a role is refused.
    pub cluster: Option<String>,
    /// Common names allowed; empty allows all.
    pub common_names: Vec<String>,
}

impl Rule {
    fn wanted(&self) -> String {
        format!("{SCHEME}{}/{}", self.cluster.as_deref().unwrap_or("CLUSTER"), self.role.name())
    }

    pub fn check(&self, facts: &Facts) -> Result<(), Wrong> {
        if !self.common_names.is_empty() && !self.common_names.contains(&facts.common_name) {
            return Err(Wrong::CommonName { found: facts.common_name.clone() });
        }
        if facts.roles.is_empty() {
            // Who may change the membership is never a matter of the authority alone.
            let needs_role = self.cluster.is_some() || (self.role == Role::Admin && self.common_names.is_empty());
            return if needs_role { Err(Wrong::NoRole { wanted: self.wanted() }) } else { Ok(()) };
        }
        let is_wanted = |uri: &String| {
            let (cluster, role) = uri[SCHEME.len()..].rsplit_once('/').unwrap_or_default();
            role == self.role.name() && self.cluster.as_ref().is_none_or(|own| own == cluster)
        };
        if facts.roles.iter().any(is_wanted) {
            Ok(())
        } else {
            Err(Wrong::Role { found: facts.roles.clone(), wanted: self.wanted() })
        }
    }

    fn check_certificate(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        Facts::of(certificate)
            .and_then(|facts| self.check(&facts))
            .map_err(|wrong| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong)))))
    }
}

/// What both verifiers leave to the one of webpki.
macro_rules! signatures_by_the_chain {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.chain.verify_tls12_signature(message, cert, dss)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.chain.verify_tls13_signature(message, cert, dss)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.chain.supported_verify_schemes()
        }
    };
}

/// Those who connect: the chain by webpki, then the role.
#[derive(Debug)]
pub(super) struct Callers {
    pub chain: Arc<dyn ClientCertVerifier>,
    pub rule: Rule,
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.rule.check_certificate(end_entity)?;
        Ok(verified)
    }
    signatures_by_the_chain!();
}

/// Members that are dialled: the chain and the host name by webpki, then the role.
#[derive(Debug)]
pub(super) struct Called {
    pub chain: Arc<dyn ServerCertVerifier>,
    pub rule: Rule,
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.rule.check_certificate(end_entity)?;
        Ok(verified)
    }
    signatures_by_the_chain!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(roles: &[&str], common_name: &str) -> Facts {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Facts { roles, common_name: common_name.to_owned(), not_before: 0, not_after: 0 }
    }

    fn rule(role: Role, cluster: Option<&str>, common_names: &[&str]) -> Rule {
        let common_names = common_names.iter().map(|name| (*name).to_owned()).collect();
        Rule { role, cluster: cluster.map(str::to_owned), common_names }
    }

    #[test]
    fn a_role_opens_its_own_port_only() {
        let client = facts(&["quorate://u1/client"], "");
        assert_eq!(rule(Role::Client, Some("u1"), &[]).check(&client), Ok(()));
        for role in [Role::Peer, Role::Admin] {
            assert!(matches!(rule(role, Some("u1"), &[]).check(&client), Err(Wrong::Role { .. })));
            assert!(matches!(rule(role, None, &[]).check(&client), Err(Wrong::Role { .. })));
        }
        assert!(matches!(rule(Role::Client, Some("u2"), &[]).check(&client), Err(Wrong::Role { .. })));
        let odd = facts(&["quorate://client", "quorate://u1/client/x", "quorate://"], "");
        assert!(matches!(rule(Role::Client, Some("u1"), &[]).check(&odd), Err(Wrong::Role { .. })));
    }

    #[test]
    fn without_a_role_the_flags_decide() {
        let plain = facts(&[], "db-1");
        assert_eq!(rule(Role::Peer, None, &[]).check(&plain), Ok(()));
        assert!(matches!(rule(Role::Peer, Some("u1"), &[]).check(&plain), Err(Wrong::NoRole { .. })));
        assert!(matches!(rule(Role::Admin, None, &[]).check(&plain), Err(Wrong::NoRole { .. })));
        assert_eq!(rule(Role::Admin, None, &["db-1"]).check(&plain), Ok(()));
        assert!(matches!(rule(Role::Peer, None, &["db-2"]).check(&plain), Err(Wrong::CommonName { .. })));
    }
}
