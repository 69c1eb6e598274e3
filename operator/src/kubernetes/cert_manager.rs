//! Certificates that cert-manager issues: what it is asked for, and what it says of it. Its definition of `cert-manager.io/v1`
//! is the contract; only the part of it that is used here is known. The keys stay in Secrets that are not read.

use kube::api::{ApiResource, Object, Patch, PatchParams, TypeMeta};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use quorate_api::{IssuerRef, names};
use quorate_plan::certificates::Holder;
use quorate_plan::{Identity, Source, TlsIntent};
use serde::{Deserialize, Serialize};

use super::objects;
use super::request::{MANAGER, timed};

/// What is asked for. Lifetime and renewal are left to cert-manager and its issuer.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    pub secret_name: String,
    pub issuer_ref: IssuerRef,
    pub common_name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    pub uris: Vec<String>,
    pub usages: Vec<String>,
    pub private_key: PrivateKey,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PrivateKey {
    pub algorithm: String,
    pub encoding: String,
    pub rotation_policy: String,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    #[serde(default)]
    pub message: String,
}

type Certificate = Object<CertificateSpec, CertificateStatus>;

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"), "certificates")
}

/// One certificate of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of the Certificate and of its Secret.
    pub name: String,
    /// The record whose member uses it; clients' own has none.
    pub record: Option<String>,
    pub spec: CertificateSpec,
}

/// Everything that cert-manager is to issue for a cluster. Pure.
pub fn wanted(identity: &Identity, tls: &TlsIntent, records: &[String]) -> Vec<Wanted> {
    let mut all = Vec::new();
    if let Source::CertManager(issuer) = &tls.peer.source {
        let usages = &["digital signature", "server auth", "client auth"];
        all.extend(records.iter().map(|record| {
            let holder = Holder::Member(record.clone());
            one(identity, issuer, names::peer_certificate(record), &holder, "peer", usages)
        }));
    }
    if let Source::CertManager(issuer) = &tls.client.source {
        all.extend(records.iter().map(|record| {
            let (name, holder) = (names::server_certificate(record), Holder::Member(record.clone()));
            one(identity, issuer, name, &holder, "server", &["digital signature", "server auth"])
        }));
        let name = names::client_secret(&identity.name);
        all.push(one(identity, issuer, name, &Holder::Client, "client", &["digital signature", "client auth"]));
    }
    all
}

fn one(identity: &Identity, issuer: &IssuerRef, name: String, holder: &Holder, role: &str, usages: &[&str]) -> Wanted {
    let record = match holder {
        Holder::Member(record) => Some(record.clone()),
        Holder::Admin | Holder::Client => None,
    };
    let hosts = record.as_ref().map_or_else(Vec::new, |record| objects::certificate_names(identity, record));
    let (addresses, hosts): (Vec<String>, Vec<String>) =
        hosts.into_iter().partition(|host| host.parse::<std::net::IpAddr>().is_ok());
    let spec = CertificateSpec {
        secret_name: name.clone(),
        issuer_ref: issuer.clone(),
        common_name: role.to_owned(),
        dns_names: hosts,
        ip_addresses: addresses,
        uris: vec![objects::role_uri(identity, role)],
        usages: usages.iter().map(|usage| (*usage).to_owned()).collect(),
        private_key: PrivateKey {
            algorithm: "ECDSA".to_owned(),
            encoding: "PKCS8".to_owned(),
            rotation_policy: "Always".to_owned(),
        },
    };
    Wanted { name, record, spec }
}

/// Asks for what is wanted; `owner_of` tells a record's UID. Says what is not there yet, if anything.
///
/// # Errors
/// Why it could not be asked for.
pub(super) async fn ask(
    client: &Client,
    identity: &Identity,
    wanted: &[Wanted],
    owner_of: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let api = Api::<Certificate>::namespaced_with(client.clone(), &identity.namespace, &resource());
    let mut waits = None;
    for one in wanted {
        let told = |error: &kube::Error| refusal(error, &one.name);
        let live = timed(api.get_opt(&one.name)).await.map_err(|error| told(&error))?;
        if let Some(live) = &live
            && live.labels().get(names::LABEL_CLUSTER_UID) != Some(&identity.uid)
        {
            return Err(format!("Certificate {} exists and is not of this cluster; delete it", one.name));
        }
        if live.as_ref().is_none_or(|live| live.spec != one.spec) {
            let owner = one.record.as_deref().and_then(&owner_of);
            let certificate = rendered(identity, one, owner.as_deref());
            let params = PatchParams::apply(MANAGER).force();
            timed(api.patch(&one.name, &params, &Patch::Apply(&certificate))).await.map_err(|error| told(&error))?;
        }
        waits = waits.or_else(|| not_ready(&one.name, live.as_ref().and_then(|live| live.status.as_ref())));
    }
    Ok(waits)
}

fn rendered(identity: &Identity, wanted: &Wanted, owner: Option<&str>) -> Certificate {
    let mut metadata = objects::owned_meta(identity, wanted.name.clone());
    if let (Some(record), Some(uid)) = (&wanted.record, owner) {
        metadata.owner_references = Some(vec![objects::record_owner(record, uid)]);
    }
    Object {
        types: Some(TypeMeta { api_version: resource().api_version, kind: resource().kind }),
        metadata,
        spec: wanted.spec.clone(),
        status: None,
    }
}

/// What cert-manager says of a certificate that cannot be used yet.
fn not_ready(name: &str, status: Option<&CertificateStatus>) -> Option<String> {
    let ready = status.and_then(|status| status.conditions.iter().find(|c| c.kind == "Ready"));
    match ready {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(format!("Certificate {name} is not ready: {}; look at its issuer", ready.message)),
        None => {
            Some(format!("Certificate {name} has no answer yet; is cert-manager running, and is there its issuer?"))
        }
    }
}

fn refusal(error: &kube::Error, name: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            "spec.tls asks for certManager, and the API server does not know \
             cert-manager.io/v1 Certificate; install cert-manager, or use operatorIssued or secretRef"
                .to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => format!(
            "Certificate {name}: {}; let the operator ask for Certificates: --set certManager=true of the chart",
            status.message
        ),
        other => format!("Certificate {name}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing::identity;

    fn issuer() -> IssuerRef {
        IssuerRef { name: "house".to_owned(), kind: "Issuer".to_owned(), group: "cert-manager.io".to_owned() }
    }

    #[test]
    fn each_plane_asks_for_its_own_and_for_one_role_each() {
        let records = ["orders-b7xk2".to_owned(), "orders-k4m2p".to_owned()];
        let mut tls = TlsIntent::default();
        assert_eq!(wanted(&identity(), &tls, &records), []);
        tls.peer.source = Source::CertManager(issuer());
        let names =
            |tls: &TlsIntent| wanted(&identity(), tls, &records).into_iter().map(|w| w.name).collect::<Vec<_>>();
        assert_eq!(names(&tls), ["orders-b7xk2-peer-tls", "orders-k4m2p-peer-tls"]);
        tls.client.source = Source::CertManager(issuer());
        for one in wanted(&identity(), &tls, &records) {
            let [uri] = one.spec.uris.as_slice() else { panic!("{one:?}") };
            let role = uri.strip_prefix("quorate://2f1c/").expect("it names the cluster");
            assert_eq!(role, one.spec.common_name);
            assert_eq!(one.record.is_none(), role == "client", "{one:?}");
            assert_eq!(one.spec.dns_names.is_empty(), role == "client", "clients have no address");
            assert_eq!(one.spec.usages.contains(&"server auth".to_owned()), role != "client");
            assert_eq!(one.spec.usages.contains(&"client auth".to_owned()), role != "server");
        }
    }

    /// Words of cert-manager's published definition, kept here: one that is off is pruned or refused by an API server.
    #[test]
    fn what_is_sent_is_what_the_definition_knows() {
        const FIELDS: [&str; 8] =
            ["secretName", "issuerRef", "commonName", "dnsNames", "ipAddresses", "uris", "usages", "privateKey"];
        const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];
        let mut tls = TlsIntent::default();
        tls.peer.source = Source::CertManager(issuer());
        let asked = &wanted(&identity(), &tls, &["orders-b7xk2".to_owned()])[0];
        let sent = serde_json::to_value(rendered(&identity(), asked, Some("uid-1"))).expect("plain data");
        assert_eq!((&sent["apiVersion"], &sent["kind"]), (&"cert-manager.io/v1".into(), &"Certificate".into()));
        let spec = sent["spec"].as_object().expect("it has a spec");
        let unknown: Vec<_> = spec.keys().filter(|key| !FIELDS.contains(&key.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(asked.spec.usages.iter().all(|usage| USAGES.contains(&usage.as_str())));
        assert_eq!(
            spec["privateKey"],
            serde_json::json!({"algorithm": "ECDSA", "encoding": "PKCS8", "rotationPolicy": "Always"})
        );
        assert_eq!(
            spec["issuerRef"],
            serde_json::json!({"name": "house", "kind": "Issuer", "group": "cert-manager.io"})
        );
        assert_eq!(sent["metadata"]["ownerReferences"][0]["uid"], "uid-1", "it goes with its record");
        assert!(asked.spec.common_name.len() <= 64);
    }

    #[test]
    fn what_is_missing_is_told_with_the_remedy() {
        let answer = |code| kube::Error::Api(Box::new(kube::core::Status { code, ..kube::core::Status::default() }));
        assert!(refusal(&answer(404), "a").contains("install cert-manager"));
        assert!(refusal(&answer(403), "a").contains("certManager=true"));
        let status = |status: &str| CertificateStatus {
            conditions: vec![Condition {
                kind: "Ready".to_owned(),
                status: status.to_owned(),
                message: "no CA".to_owned(),
            }],
        };
        assert_eq!(not_ready("a", Some(&status("True"))), None);
        assert!(not_ready("a", Some(&status("False"))).is_some_and(|text| text.contains("no CA")));
        assert!(not_ready("a", None).is_some_and(|text| text.contains("cert-manager running")));
    }
}
