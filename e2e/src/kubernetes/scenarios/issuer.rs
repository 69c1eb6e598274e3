//! Stands in for cert-manager and an issuer: the part of its published definition that matters here, and an authority.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};

/// Fields as cert-manager.io/v1 has them; whatever else is sent is refused where the API server validates strictly.
pub static DEFINITION: LazyLock<Value> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text, "x-kubernetes-list-type": "atomic"});
    let spec = json!({
        "type": "object", "required": ["issuerRef", "secretName"],
        "properties": {
            "commonName": text, "dnsNames": texts, "ipAddresses": texts, "uris": texts, "secretName": text,
            "duration": text, "renewBefore": text,
            "issuerRef": {
                "type": "object", "required": ["name"], "properties": {"name": text, "kind": text, "group": text},
            },
            "privateKey": {"type": "object", "properties": {
                "algorithm": {"type": "string", "enum": ["RSA", "ECDSA", "Ed25519"]},
                "encoding": {"type": "string", "enum": ["PKCS1", "PKCS8"]},
                "rotationPolicy": {"type": "string", "enum": ["Never", "Always"]},
                "size": {"type": "integer"},
            }},
            "usages": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string", "enum": [
                "signing", "digital signature", "content commitment", "key encipherment", "key agreement",
                "data encipherment", "cert sign", "crl sign", "encipher only", "decipher only", "any", "server auth",
                "client auth", "code signing", "email protection", "s/mime", "ipsec end system", "ipsec tunnel",
                "ipsec user", "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc",
            ]}},
        },
    });
    let condition = json!({
        "type": "object", "required": ["status", "type"],
        "properties": {
            "type": text, "status": {"type": "string", "enum": ["True", "False", "Unknown"]}, "reason": text,
            "message": text, "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    });
    let status = json!({"type": "object", "properties": {"conditions": {
        "type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    }}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io", "scope": "Namespaced",
            "names": {"kind": "Certificate", "listKind": "CertificateList", "plural": "certificates", "singular": "certificate"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
            }],
        },
    })
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    Long,
    /// It ended before it was given.
    Over,
}

/// Signs whatever a Certificate asks for.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What is filled into a Secret, as PEM.
pub struct Made {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the suite's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// The certificate that the spec of a Certificate asks for.
    pub fn issue(&self, spec: &Value, lifetime: Lifetime) -> Result<Made> {
        let list = |field: &str| -> Vec<String> {
            spec[field].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let hosts: Vec<String> = list("dnsNames").into_iter().chain(list("ipAddresses")).collect();
        let mut params = CertificateParams::new(hosts)?;
        let name = spec["commonName"].as_str().context("the Certificate has no commonName")?;
        params.distinguished_name.push(DnType::CommonName, name);
        for uri in list("uris") {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = list("usages");
        let asked = [
            ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
            ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
        ];
        params.extended_key_usages =
            asked.into_iter().filter(|(word, _)| usages.iter().any(|u| u == word)).map(|(_, usage)| usage).collect();
        let now = time::OffsetDateTime::from(std::time::SystemTime::now());
        (params.not_before, params.not_after) = match lifetime {
            Lifetime::Long => (now - time::Duration::minutes(5), now + time::Duration::hours(2)),
            Lifetime::Over => (now - time::Duration::hours(2), now - time::Duration::minutes(1)),
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Made { authority: self.pem.clone(), certificate, key: key.serialize_pem() })
    }
}
