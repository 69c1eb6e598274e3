//! The Secrets of certificates: reads them, and makes what `quorate_plan::certificates` asks for. Must not decide, and must
//! not show a key to anybody: not in an error, an Event, the status or a log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use quorate_api::{TlsMode, names};
use quorate_plan::certificates::{self, Authorities, Certificate, Change, Held, Holder, InUse, Wallet};
use quorate_plan::{Deletion, Identity, Observation, Pod, PodPhase, Source, TlsWord, ValidatedCluster};
use quorate_proto::admin::v1::TlsPlane;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::request::{MANAGER, timed};
use super::{cert_manager, objects};
use crate::clock;
use crate::members::Access;
use crate::world::Seen;

/// Certificates are valid a little before they are made: clocks differ. In seconds.
const SKEW_SECONDS: i64 = 60;
/// Most that clients get to take a new authority, in seconds; a tenth of a certificate's life where that is less.
const GRACE_SECONDS_MAX: i64 = 3_600;
/// What is done in one pass follows from what was done before it; more rounds than phases make no sense.
const ROUNDS_MAX: usize = 3;

/// How long certificates live, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetimes {
    pub leaf: i64,
    pub authority: i64,
}

/// Keeps the certificates of all clusters.
#[derive(Debug)]
pub(super) struct Desk {
    lifetimes: Lifetimes,
    /// What members said last of what they use, by cluster UID and record.
    heard: Mutex<HashMap<String, BTreeMap<String, Vec<TlsPlane>>>>,
    /// What the operator shows, and how certificates stood, by cluster UID.
    kept: Mutex<HashMap<String, Kept>>,
    /// What the operator shows where certificates could not be kept since it began, by cluster UID.
    recalled: Mutex<HashMap<String, Arc<Access>>>,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub word: TlsWord,
    pub access: Option<Arc<Access>>,
    /// The Secrets that were read for it, and the resource version of each that was there.
    read: BTreeMap<String, Option<String>>,
}

/// Why certificates could not be kept; the words of errors hold nothing secret.
type Fault = String;

impl Desk {
    pub fn new(lifetimes: Lifetimes) -> Desk {
        Desk { lifetimes, heard: Mutex::default(), kept: Mutex::default(), recalled: Mutex::default() }
    }

    /// Sees to the certificates of a cluster, as it is wanted and as it was read in this pass.
    pub async fn keep(&self, client: &Client, cluster: &ValidatedCluster, observed: &Observation) {
        let uid = cluster.identity.uid.clone();
        // Nothing is decided from absences; what was known stays.
        if !observed.unread.is_empty() {
            return;
        }
        // A pod that is still to get the last mode speaks TLS as before, and asks for certificates.
        if cluster.tls.admin() == TlsMode::Disabled && !anybody_speaks(observed) {
            self.kept.lock().expect("no panic happens while this is written").remove(&uid);
            return;
        }
        let mut rotated = Vec::new();
        let maker = Maker { cluster, lifetimes: self.lifetimes };
        let secrets = Secrets { client, cluster, observed, maker, versions: Mutex::default() };
        let outcome = self.work(&secrets, &mut rotated).await;
        let asked = self.ask_cert_manager(&secrets).await;
        let mut word = TlsWord { fault: None, waits: None, rotated, not_after: None };
        let before = self.kept(&uid);
        let mut access = before.and_then(|kept| kept.access);
        match outcome {
            Ok(Done { wallet, access: shown, fault }) => {
                word.fault = fault;
                let issued = wallet.held.values().map(|held| held.leaf.not_after);
                word.not_after = issued.chain(self.ends_in_use(&uid)).min();
                let moving = wallet.authorities.as_ref().is_some_and(|a| a.next.is_some() || a.previous.is_some());
                word.waits = if moving {
                    Some("a new authority takes over: members and clients are given time to trust it".to_owned())
                } else if cluster.tls.is_moving() {
                    Some("a mode is on its way, member by member".to_owned())
                } else {
                    None
                };
                access = Some(newest(access, shown));
            }
            Err(fault) => word.fault = Some(fault),
        }
        word.fault = word.fault.or(asked).or_else(|| self.expired(&uid));
        let mut kept = self.kept.lock().expect("no panic happens while this is written");
        let read = secrets.versions.into_inner().expect("no panic happens while this is written");
        kept.insert(uid, Kept { word, access, read });
    }

    /// Sees to it that the operator can show something to members that speak TLS, whatever keeps it from keeping certificates:
    /// without, it would take all of them for gone.
    pub async fn recall(&self, client: &Client, identity: &Identity, observed: &Observation) {
        let recalled = || self.recalled.lock().expect("no panic happens while this is written");
        let has_access = self.kept(&identity.uid).is_some_and(|kept| kept.access.is_some());
        if has_access || !anybody_speaks(observed) {
            recalled().remove(&identity.uid);
        } else if let Ok(access) = admin_access(client, identity).await {
            let mut recalled = recalled();
            let access = newest(recalled.remove(&identity.uid), access);
            recalled.insert(identity.uid.clone(), access);
        }
    }

    /// What the operator shows to members of this cluster.
    pub fn access(&self, uid: &str) -> Option<Arc<Access>> {
        let recalled = || self.recalled.lock().expect("no panic happens while this is read").get(uid).cloned();
        self.kept(uid).and_then(|kept| kept.access).or_else(recalled)
    }

    /// What is wrong with, or still missing of, the certificates that cert-manager issues.
    async fn ask_cert_manager(&self, secrets: &Secrets<'_>) -> Option<Fault> {
        let Secrets { client, cluster, observed, .. } = secrets;
        let staying = observed.records.iter().filter(|record| record.deletion == Deletion::No);
        let records: Vec<String> = staying.map(|record| record.name.clone()).collect();
        let wanted = cert_manager::wanted(&cluster.identity, &cluster.tls, &records);
        if cluster.paused || wanted.is_empty() {
            return None;
        }
        let owner_of = |record: &str| secrets.record_uid(record).map(str::to_owned);
        match cert_manager::ask(client, &cluster.identity, &wanted, owner_of).await {
            Ok(waits) => waits,
            Err(fault) => Some(fault),
        }
    }

    fn kept(&self, uid: &str) -> Option<Kept> {
        self.kept.lock().expect("no panic happens while this is read").get(uid).cloned()
    }

    /// How certificates stand. What was rotated is told once.
    pub fn show(&self, uid: &str) -> Option<TlsWord> {
        let mut kept = self.kept.lock().expect("no panic happens while this is read");
        let kept = kept.get_mut(uid)?;
        let mut shown = kept.word.clone();
        kept.word.rotated.clear();
        shown.fault = shown.fault.or_else(|| self.expired(uid));
        Some(shown)
    }

    /// Whether every Secret is as it was when certificates were last kept. Nobody watches Secrets: who may watch them may read all
    /// of them at any time.
    pub async fn is_as_kept(&self, client: &Client, identity: &Identity) -> bool {
        let Some(Kept { read, .. }) = self.kept(&identity.uid) else { return true };
        let api = Api::<Secret>::namespaced(client.clone(), &identity.namespace);
        let same = read.iter().map(async |(name, version)| {
            let found = timed(api.get_metadata_opt(name)).await;
            found.is_ok_and(|found| found.and_then(|secret| secret.metadata.resource_version) == *version)
        });
        join_all(same).await.into_iter().all(|is_same| is_same)
    }

    /// The cluster is gone.
    pub fn forget(&self, uid: &str) {
        self.kept.lock().expect("no panic happens while this is written").remove(uid);
        self.heard.lock().expect("no panic happens while this is written").remove(uid);
        self.recalled.lock().expect("no panic happens while this is written").remove(uid);
    }

    /// Remembers what members said in a pass.
    pub fn hear(&self, uid: &str, seen: &Seen) {
        let mut heard = self.heard.lock().expect("no panic happens while this is written");
        heard.insert(uid.to_owned(), seen.tls.clone());
    }

    /// When the certificates end that members use, whoever issued them.
    fn ends_in_use(&self, uid: &str) -> Vec<i64> {
        let heard = self.heard.lock().expect("no panic happens while this is read");
        let planes = heard.get(uid).into_iter().flat_map(BTreeMap::values).flatten();
        planes.filter(|plane| !plane.leaf_sha256.is_empty()).map(|plane| plane.not_after).collect()
    }

    /// A certificate in use that has ended, whoever issued it.
    fn expired(&self, uid: &str) -> Option<Fault> {
        let heard = self.heard.lock().expect("no panic happens while this is read");
        let now = now_seconds();
        let of_all = heard.get(uid)?.iter().flat_map(|(record, planes)| planes.iter().map(move |p| (record, p)));
        let (record, plane) =
            of_all.filter(|(_, p)| !p.leaf_sha256.is_empty()).find(|(_, plane)| plane.not_after <= now)?;
        Some(format!(
            "the {} certificate that {record} uses has expired; see to it that its Secret is renewed",
            plane.role
        ))
    }

    /// What is wrong with one holder's Secret keeps nobody else from being served, but the authority is not exchanged meanwhile.
    async fn work(&self, secrets: &Secrets<'_>, rotated: &mut Vec<String>) -> Result<Done, Fault> {
        // What goes with a record that is being deleted would be taken away at once.
        let staying = secrets.observed.records.iter().filter(|record| record.deletion == Deletion::No);
        let members = staying.map(|record| Holder::Member(record.name.clone()));
        // Clients are given a certificate by whoever issues those that members show them.
        let client = (secrets.cluster.tls.client.source == Source::Operator).then_some(Holder::Client);
        let holders: Vec<Holder> = members.chain([Holder::Admin]).chain(client).collect();
        let rotate = secrets.cluster.rotate_authority.as_deref();
        let Lifetimes { leaf, .. } = secrets.maker.lifetimes;
        // Certificates say that they are older than they are.
        let grace = (leaf / 10).min(GRACE_SECONDS_MAX) + SKEW_SECONDS.min(leaf / 10);
        let mut faults = BTreeMap::<Holder, Fault>::new();
        for _ in 0..ROUNDS_MAX {
            let (authority, wallet) = secrets.wallet(&holders, self.in_use(secrets), &mut faults).await?;
            let able: Vec<Holder> = holders.iter().filter(|holder| !faults.contains_key(holder)).cloned().collect();
            let mut changes = certificates::changes(&wallet, &able, now_seconds(), grace, rotate);
            changes.retain(|change| faults.is_empty() || !change.is_phase());
            if secrets.cluster.paused && !wallet.held.contains_key(&Holder::Admin) {
                return Err("no certificates are made while spec.paused is set".to_owned());
            }
            if changes.is_empty() || secrets.cluster.paused {
                let access = secrets.access().await?;
                return Ok(Done { wallet, access, fault: faults.into_values().next() });
            }
            for change in &changes {
                match (secrets.carry_out(change, authority.as_ref()).await, change.holder()) {
                    (Ok(()), _) => rotated.extend(told(change, &wallet)),
                    (Err(fault), Some(holder)) => drop(faults.insert(holder.clone(), fault)),
                    (Err(fault), None) => return Err(fault),
                }
            }
        }
        Err("certificates change again and again; look at the Secrets of this cluster".to_owned())
    }

    /// Of each pod that speaks TLS, what it said it uses of ours.
    fn in_use(&self, secrets: &Secrets<'_>) -> BTreeMap<String, Option<InUse>> {
        let Secrets { cluster, observed, .. } = secrets;
        let heard = self.heard.lock().expect("no panic happens while this is read");
        let said = heard.get(&cluster.identity.uid);
        let ours = |plane: &&TlsPlane| match plane.role.as_str() {
            "client" => cluster.tls.client.source == Source::Operator,
            "peer" => cluster.tls.peer.source == Source::Operator,
            _ => true,
        };
        let of = |record: &String| {
            let planes = said?.get(record)?.iter().filter(|p| !p.leaf_sha256.is_empty()).filter(ours);
            let (leaf_sha256s, trust_sha256s) = planes.map(|p| (p.leaf_sha256.clone(), p.trust_sha256.clone())).unzip();
            Some(InUse { leaf_sha256s, trust_sha256s })
        };
        let running = observed.records.iter().filter(|record| record.pod.as_ref().is_some_and(speaks));
        running.map(|record| (record.name.clone(), of(&record.name))).collect()
    }
}

/// The same while it is the same: connections that show it stay.
fn newest(known: Option<Arc<Access>>, shown: Access) -> Arc<Access> {
    known.filter(|known| known.sha256 == shown.sha256).unwrap_or_else(|| Arc::new(shown))
}

/// What became of a pass.
struct Done {
    wallet: Wallet,
    access: Access,
    /// What could not be done for somebody.
    fault: Option<Fault>,
}

fn speaks(pod: &Pod) -> bool {
    pod.phase == PodPhase::Running && pod.speaks.admin() != TlsMode::Disabled
}

fn anybody_speaks(observed: &Observation) -> bool {
    observed.records.iter().any(|record| record.pod.as_ref().is_some_and(speaks))
}

fn told(change: &Change, before: &Wallet) -> Option<String> {
    match change {
        Change::Issue(holder) if before.held.contains_key(holder) => {
            let whose = match holder {
                Holder::Member(name) => name.clone(),
                Holder::Admin => "the operator".to_owned(),
                Holder::Client => "clients".to_owned(),
            };
            Some(format!("{whose}: a new certificate"))
        }
        Change::TrustNext => Some("a new authority is trusted beside the old one".to_owned()),
        Change::IssueByNext => Some("the new authority issues certificates from now on".to_owned()),
        Change::DropPrevious => Some("the old authority is trusted no more".to_owned()),
        Change::CreateAuthority | Change::Issue(_) | Change::Trust(_) => None,
    }
}

fn now_seconds() -> i64 {
    i64::try_from(clock::now_ms() / 1_000).unwrap_or(i64::MAX)
}

/// One cluster's Secrets.
struct Secrets<'a> {
    client: &'a Client,
    cluster: &'a ValidatedCluster,
    observed: &'a Observation,
    maker: Maker<'a>,
    /// Of what was read last, by name.
    versions: Mutex<BTreeMap<String, Option<String>>>,
}

/// Names of the entries. A member's two certificates are for its peers, and for clients and the operator.
const CA: &str = "ca.crt";
const PEER: &str = "peer";
const SERVER: &str = "server";
/// As in Secrets of type kubernetes.io/tls.
const LEAF: &str = "tls";
const ISSUER: &str = "issuer";
const NEXT: &str = "next";
const PREVIOUS: &str = "previous";
/// Annotation: the digest of the authority that issued what the Secret holds.
const ANNOTATION_ISSUER: &str = "quorate.dev/issuer";

type Data = BTreeMap<String, ByteString>;

impl Secrets<'_> {
    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.cluster.identity.namespace)
    }

    fn name_of(&self, holder: &Holder) -> String {
        match holder {
            Holder::Member(record) => names::member_secret(record),
            Holder::Admin => names::admin_secret(&self.cluster.identity.name),
            Holder::Client => names::client_secret(&self.cluster.identity.name),
        }
    }

    fn record_uid(&self, record: &str) -> Option<&str> {
        self.observed.records.iter().find(|known| known.name == record).map(|known| known.uid.as_str())
    }

    /// A member's keys go with its record; all others with the cluster.
    fn owner_of(&self, holder: &Holder) -> Option<OwnerReference> {
        let Holder::Member(record) = holder else { return None };
        self.record_uid(record).map(|uid| objects::record_owner(record, uid))
    }

    /// A Secret of this cluster; one that somebody else made under its name is a fault.
    async fn read(&self, name: &str) -> Result<Option<Secret>, Fault> {
        let found = timed(self.api().get_opt(name)).await.map_err(|error| refusal(&error, name))?;
        let version = found.as_ref().and_then(ResourceExt::resource_version);
        self.versions.lock().expect("no panic happens while this is written").insert(name.to_owned(), version);
        let Some(secret) = found else { return Ok(None) };
        // Its record may have been taken away from over it; the label says whose it is.
        if secret.labels().get(names::LABEL_CLUSTER_UID) == Some(&self.cluster.identity.uid) {
            Ok(Some(secret))
        } else {
            Err(format!("Secret {name} exists and is not of this cluster; delete it"))
        }
    }

    async fn write(
        &self,
        holder: Option<&Holder>,
        name: &str,
        before: Option<&Secret>,
        data: Data,
        issuer: Option<&str>,
    ) -> Result<(), Fault> {
        let mut metadata = objects::owned_meta(&self.cluster.identity, name.to_owned());
        if let Some(owner) = holder.and_then(|holder| self.owner_of(holder)) {
            metadata.owner_references = Some(vec![owner]);
        }
        if let Some(issuer) = issuer {
            metadata.annotations = Some(BTreeMap::from([(ANNOTATION_ISSUER.to_owned(), issuer.to_owned())]));
        }
        let posted = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let secret = Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() };
        let written = match before {
            None => timed(self.api().create(&posted, &secret)).await,
            Some(old) => {
                let mut secret = secret;
                secret.metadata.resource_version = old.metadata.resource_version.clone();
                timed(self.api().replace(name, &posted, &secret)).await
            }
        };
        written.map(drop).map_err(|error| refusal(&error, name))
    }

    /// Everything there is, and the Secret with the authority as it was read for this: what is decided by it is written over
    /// this version only. What cannot be read of a holder is among the faults.
    async fn wallet(
        &self,
        holders: &[Holder],
        running: BTreeMap<String, Option<InUse>>,
        faults: &mut BTreeMap<Holder, Fault>,
    ) -> Result<(Option<Secret>, Wallet), Fault> {
        let name = names::authority_secret(&self.cluster.identity.name);
        let secret = self.read(&name).await?;
        let none = Data::new();
        let data = secret.as_ref().map(|secret| secret.data.as_ref().unwrap_or(&none));
        let authorities = match data {
            None => None,
            Some(data) => Some(authorities(data).ok_or_else(|| {
                format!(
                    "Secret {name} holds no authority that can be read; restore it, or delete it for a new authority"
                )
            })?),
        };
        let mut held = BTreeMap::new();
        for holder in holders {
            if faults.contains_key(holder) {
                continue;
            }
            let secret = match self.read(&self.name_of(holder)).await {
                Ok(secret) => secret,
                Err(fault) => {
                    faults.insert(holder.clone(), fault);
                    continue;
                }
            };
            let owner = self.owner_of(holder);
            if let Some(what) = secret.filter(|s| goes_with(s, owner.as_ref())).and_then(|s| held_in(&s, data)) {
                held.insert(holder.clone(), what);
            }
        }
        Ok((secret, Wallet { authorities, held, running }))
    }

    async fn access(&self) -> Result<Access, Fault> {
        let name = self.name_of(&Holder::Admin);
        let secret = self.read(&name).await?.ok_or_else(|| format!("Secret {name} is gone"))?;
        access_in(&name, secret)
    }

    async fn carry_out(&self, change: &Change, before: Option<&Secret>) -> Result<(), Fault> {
        let authority = names::authority_secret(&self.cluster.identity.name);
        let mut data = before.and_then(|secret| secret.data.clone()).unwrap_or_default();
        match change {
            Change::CreateAuthority => self.maker.put_authority(&mut data, ISSUER)?,
            Change::TrustNext => self.maker.put_authority(&mut data, NEXT)?,
            Change::IssueByNext => {
                let old = data.remove(&crt(ISSUER)).ok_or("there is no authority to follow")?;
                data.insert(crt(PREVIOUS), old);
                for part in [crt, key] {
                    let next = data.remove(&part(NEXT)).ok_or("there is no next authority")?;
                    data.insert(part(ISSUER), next);
                }
            }
            Change::DropPrevious => drop(data.remove(&crt(PREVIOUS))),
            Change::Issue(holder) => return self.issue(holder, &data).await,
            Change::Trust(holder) => {
                let name = self.name_of(holder);
                let old = self.read(&name).await?.ok_or_else(|| format!("Secret {name} is gone"))?;
                let issuer = old.annotations().get(ANNOTATION_ISSUER).cloned();
                let mut given = old.data.clone().unwrap_or_default();
                given.insert(CA.to_owned(), ByteString(bundle(&data)));
                return self.write(Some(holder), &name, Some(&old), given, issuer.as_deref()).await;
            }
        }
        self.write(None, &authority, before, data, None).await
    }

    async fn issue(&self, holder: &Holder, authority: &Data) -> Result<(), Fault> {
        let (data, by) = self.maker.made(holder, authority)?;
        let name = self.name_of(holder);
        let before = self.read(&name).await?;
        self.write(Some(holder), &name, before.as_ref(), data, Some(&by)).await
    }
}

fn access_in(name: &str, secret: Secret) -> Result<Access, Fault> {
    let data = secret.data.unwrap_or_default();
    let entry =
        |key: &str| data.get(key).map(|bytes| bytes.0.clone()).ok_or_else(|| format!("Secret {name} has no {key}"));
    Ok(Access::new(entry(CA)?, entry(&crt(LEAF))?, entry(&key(LEAF))?))
}

/// What the operator shows to members, for others who act for a person with the right to read it.
///
/// # Errors
/// It is not there, may not be read, or is not whole; says nothing secret.
pub async fn admin_access(client: &Client, identity: &Identity) -> Result<Access, String> {
    let name = names::admin_secret(&identity.name);
    let api = Api::<Secret>::namespaced(client.clone(), &identity.namespace);
    match timed(api.get(&name)).await {
        Ok(secret) => access_in(&name, secret),
        Err(kube::Error::Api(status)) => Err(format!("Secret {name}: {}", status.message)),
        Err(error) => Err(format!("Secret {name}: {error}")),
    }
}

fn refusal(error: &kube::Error, name: &str) -> Fault {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "Secret {name}: {}; give the operator the right, see tlsSecrets among the chart's values, or set spec.tls to Disabled",
            status.message
        ),
        other => format!("Secret {name}: {other}"),
    }
}

/// Makes keys and certificates; reads and writes nothing.
#[derive(Clone, Copy)]
struct Maker<'a> {
    cluster: &'a ValidatedCluster,
    lifetimes: Lifetimes,
}

impl Maker<'_> {
    fn put_authority(&self, data: &mut Data, name: &str) -> Result<(), Fault> {
        let mut params = CertificateParams::default();
        let now = now_seconds();
        params.distinguished_name.push(DnType::CommonName, format!("quorate {} {now}", self.cluster.identity.name));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = validity(now, self.lifetimes.authority, i64::MAX)?;
        let pair = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
        let made = params.self_signed(&pair).map_err(|error| format!("no authority could be made: {error}"))?;
        data.insert(crt(name), ByteString(made.pem().into_bytes()));
        data.insert(key(name), ByteString(pair.serialize_pem().into_bytes()));
        Ok(())
    }

    /// What a holder's Secret is to have, and the digest of who issued it.
    fn made(&self, holder: &Holder, authority: &Data) -> Result<(Data, String), Fault> {
        let by = certificate(authority.get(&crt(ISSUER)).ok_or("there is no authority")?)
            .ok_or("the authority cannot be read")?;
        let text = |entry: String| {
            let bytes = authority.get(&entry).ok_or_else(|| format!("the authority has no {entry}"))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| format!("the authority's {entry} is not PEM"))
        };
        let pair = KeyPair::from_pem(&text(key(ISSUER))?).map_err(|_| "the authority's key cannot be read")?;
        let issuer = Issuer::from_ca_cert_pem(&text(crt(ISSUER))?, pair).map_err(|_| "the authority cannot be read")?;
        let mut data = Data::from([(CA.to_owned(), ByteString(bundle(authority)))]);
        let leaves: Vec<(&str, &str)> = match holder {
            Holder::Member(_) => vec![(PEER, "peer"), (SERVER, "server")],
            Holder::Admin => vec![(LEAF, "admin")],
            Holder::Client => vec![(LEAF, "client")],
        };
        for (entry, role) in leaves {
            let params = self.leaf(holder, role, by.not_after)?;
            let pair = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
            let made =
                params.signed_by(&pair, &issuer).map_err(|error| format!("no certificate could be made: {error}"))?;
            data.insert(crt(entry), ByteString(made.pem().into_bytes()));
            data.insert(key(entry), ByteString(pair.serialize_pem().into_bytes()));
        }
        Ok((data, by.sha256))
    }

    fn leaf(&self, holder: &Holder, role: &str, end: i64) -> Result<CertificateParams, Fault> {
        let identity = &self.cluster.identity;
        let names = match holder {
            Holder::Member(record) => objects::certificate_names(identity, record),
            Holder::Admin | Holder::Client => Vec::new(),
        };
        let invalid = |error| format!("a name that no certificate can have: {error}");
        let mut params = CertificateParams::new(names).map_err(invalid)?;
        params.distinguished_name.push(DnType::CommonName, role);
        let uri = objects::role_uri(identity, role);
        params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(invalid)?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            "peer" => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            "server" => vec![ExtendedKeyUsagePurpose::ServerAuth],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        (params.not_before, params.not_after) = validity(now_seconds(), self.lifetimes.leaf, end)?;
        Ok(params)
    }
}

fn validity(now: i64, lifetime: i64, end: i64) -> Result<(time::OffsetDateTime, time::OffsetDateTime), Fault> {
    let at = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| "a lifetime beyond all dates");
    Ok((at(now - SKEW_SECONDS.min(lifetime / 10))?, at(now.saturating_add(lifetime).min(end))?))
}

fn crt(name: &str) -> String {
    format!("{name}.crt")
}

fn key(name: &str) -> String {
    format!("{name}.key")
}

/// All authorities that are trusted, in the order that `Authorities` has.
fn bundle(authority: &Data) -> Vec<u8> {
    [ISSUER, NEXT, PREVIOUS].iter().filter_map(|name| authority.get(&crt(name))).flat_map(|pem| pem.0.clone()).collect()
}

fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    parts.into_iter().for_each(|part| context.update(part));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The certificates of a PEM text, as DER.
fn ders(pem: &[u8]) -> Vec<Vec<u8>> {
    let all = x509_parser::pem::Pem::iter_from_buffer(pem).filter_map(Result::ok);
    all.filter(|one| one.label == "CERTIFICATE").map(|one| one.contents).collect()
}

/// As members tell it: see `trust_sha256` of `TlsPlane`.
fn trust_sha256(pem: &[u8]) -> String {
    let all = ders(pem);
    sha256(all.iter().map(Vec::as_slice))
}

fn certificate(pem: &ByteString) -> Option<Certificate> {
    let der = ders(&pem.0).into_iter().next()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = parsed.validity();
    Some(Certificate {
        sha256: sha256([der.as_slice()]),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

fn authorities(data: &Data) -> Option<Authorities> {
    let one = |name: &str| data.get(&crt(name)).map(certificate);
    data.get(&key(ISSUER))?;
    Some(Authorities {
        issuer: one(ISSUER)??,
        next: match one(NEXT) {
            Some(next) => Some(next?),
            None => None,
        },
        previous: match one(PREVIOUS) {
            Some(previous) => Some(previous?),
            None => None,
        },
        trust_sha256: trust_sha256(&bundle(data)),
    })
}

/// Whether this certificate was signed by the key of this authority.
fn is_by(leaf: &ByteString, authority: &ByteString) -> bool {
    let (leaves, authorities) = (ders(&leaf.0), ders(&authority.0));
    let (Some(leaf), Some(authority)) = (leaves.first(), authorities.first()) else { return false };
    let parsed = (x509_parser::parse_x509_certificate(leaf), x509_parser::parse_x509_certificate(authority));
    let (Ok((_, leaf)), Ok((_, authority))) = parsed else { return false };
    leaf.issuer().as_raw() == authority.subject().as_raw()
        && leaf.verify_signature(Some(authority.public_key())).is_ok()
}

/// Keys whose record was made anew under its name would stay for ever, or be taken away with the old one: new ones are made.
fn goes_with(secret: &Secret, owner: Option<&OwnerReference>) -> bool {
    owner.is_none_or(|owner| secret.owner_references().iter().any(|known| known.uid == owner.uid))
}

/// What a Secret of a holder has; nothing when it is not whole.
fn held_in(secret: &Secret, authority: Option<&Data>) -> Option<Held> {
    let data = secret.data.as_ref()?;
    let entries: &[&str] = if data.contains_key(&crt(LEAF)) { &[LEAF] } else { &[PEER, SERVER] };
    let leaves: Option<Vec<Certificate>> =
        entries.iter().map(|entry| data.get(&key(entry)).and_then(|_| certificate(data.get(&crt(entry))?))).collect();
    let leaves = leaves?;
    let claimed = secret.annotations().get(ANNOTATION_ISSUER).cloned();
    // Somebody else may have filled the Secret since: the annotation stays when the rest is overwritten.
    let issuer = authority.and_then(|authority| authority.get(&crt(ISSUER)));
    let is_own = issuer.is_some_and(|by| entries.iter().all(|e| data.get(&crt(e)).is_some_and(|leaf| is_by(leaf, by))));
    Some(Held {
        leaf_sha256s: leaves.iter().map(|leaf| leaf.sha256.clone()).collect::<BTreeSet<_>>(),
        leaf: leaves.into_iter().min_by_key(|leaf| leaf.not_after)?,
        issuer_sha256: claimed.filter(|_| is_own).unwrap_or_default(),
        trust_sha256: trust_sha256(&data.get(CA)?.0),
    })
}

#[cfg(test)]
mod tests {
    use quorate_api::{ConsistentCluster, ConsistentClusterSpec};
    use quorate_plan::Intent;
    use x509_parser::extensions::GeneralName;

    use super::*;

    fn cluster() -> ValidatedCluster {
        let mut cluster = ConsistentCluster::new("orders", ConsistentClusterSpec::default());
        (cluster.metadata.namespace, cluster.metadata.uid) = (Some("shop".to_owned()), Some("2f1c".to_owned()));
        match Intent::of(&cluster) {
            Intent::Run(cluster) => cluster,
            other => panic!("{other:?}"),
        }
    }

    fn secret(data: Data, issuer: &str) -> Secret {
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.annotations = Some(BTreeMap::from([(ANNOTATION_ISSUER.to_owned(), issuer.to_owned())]));
        secret
    }

    #[test]
    fn what_was_rotated_is_told_once_and_the_rest_again() {
        let desk = Desk::new(Lifetimes { leaf: 3_000, authority: 9_000 });
        let rotated = vec!["orders-x: a new certificate".to_owned()];
        let word =
            TlsWord { fault: None, waits: Some("a mode".to_owned()), rotated: rotated.clone(), not_after: Some(7) };
        desk.kept.lock().unwrap().insert("2f1c".to_owned(), Kept { word, access: None, read: BTreeMap::new() });
        let shown = || desk.show("2f1c").map(|word| (word.rotated, word.waits, word.not_after));
        assert_eq!(shown(), Some((rotated, Some("a mode".to_owned()), Some(7))));
        assert_eq!(shown(), Some((Vec::new(), Some("a mode".to_owned()), Some(7))));
        desk.forget("2f1c");
        assert_eq!(shown(), None);
    }

    #[test]
    fn what_is_made_is_by_the_authority_and_has_one_role() {
        let cluster = cluster();
        let maker = Maker { cluster: &cluster, lifetimes: Lifetimes { leaf: 3_000, authority: 9_000 } };
        let mut authority = Data::new();
        maker.put_authority(&mut authority, ISSUER).expect("an authority");
        let mut other = Data::new();
        maker.put_authority(&mut other, ISSUER).expect("another authority, of the same name");
        let root = ders(&authority[&crt(ISSUER)].0).remove(0);
        let (_, root) = x509_parser::parse_x509_certificate(&root).expect("a certificate");
        for (holder, entry, role, hosts) in [
            (Holder::Member("orders-b7xk2".to_owned()), PEER, "peer", 18),
            (Holder::Member("orders-b7xk2".to_owned()), SERVER, "server", 18),
            (Holder::Admin, LEAF, "admin", 0),
            (Holder::Client, LEAF, "client", 0),
        ] {
            let (data, by) = maker.made(&holder, &authority).expect("certificates");
            let leaf = ders(&data[&crt(entry)].0).remove(0);
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).expect("a certificate");
            assert_eq!(leaf.issuer(), root.subject(), "{holder:?}");
            let names = leaf.subject_alternative_name().expect("readable").expect("there are names").value;
            let uri = format!("quorate://2f1c/{role}");
            let uris: Vec<_> = names.general_names.iter().filter(|n| matches!(n, GeneralName::URI(_))).collect();
            assert_eq!(uris, [&GeneralName::URI(uri.as_str())], "{holder:?}");
            assert_eq!(names.general_names.len() - 1, hosts, "{holder:?}: {:?}", names.general_names);
            let held = held_in(&secret(data, &by), Some(&authority)).expect("it is whole");
            let known = authorities(&authority).expect("it is whole");
            assert_eq!((held.issuer_sha256, held.trust_sha256), (known.issuer.sha256, known.trust_sha256));
            assert_eq!(held.leaf.not_after - held.leaf.not_before, 3_000 + SKEW_SECONDS);
            // Whatever an annotation says.
            let foreign = held_in(&secret(maker.made(&holder, &other).expect("certificates").0, &by), Some(&authority));
            assert_eq!(foreign.expect("it is whole").issuer_sha256, "");
        }
    }

    #[test]
    fn a_secret_that_is_not_whole_is_nothing() {
        let cluster = cluster();
        let maker = Maker { cluster: &cluster, lifetimes: Lifetimes { leaf: 3_000, authority: 9_000 } };
        let mut authority = Data::new();
        assert!(authorities(&authority).is_none());
        maker.put_authority(&mut authority, ISSUER).expect("an authority");
        let (data, by) = maker.made(&Holder::Member("a".to_owned()), &authority).expect("certificates");
        for entry in data.keys() {
            let mut less = data.clone();
            less.remove(entry);
            assert!(held_in(&secret(less, &by), Some(&authority)).is_none(), "without {entry}");
        }
        let mut broken = data;
        broken.insert(crt(PEER), ByteString(b"-----BEGIN".to_vec()));
        assert!(held_in(&secret(broken, &by), Some(&authority)).is_none());
        authority.insert(crt(NEXT), ByteString(Vec::new()));
        assert!(authorities(&authority).is_none(), "an authority is not guessed at");
    }

    #[test]
    fn the_keys_of_a_record_that_was_made_anew_are_made_anew() {
        let (old, new) = (objects::record_owner("a", "uid-1"), objects::record_owner("a", "uid-2"));
        let mut secret = Secret::default();
        secret.metadata.owner_references = Some(vec![old.clone()]);
        assert!(goes_with(&secret, Some(&old)) && goes_with(&secret, None));
        assert!(!goes_with(&secret, Some(&new)), "it goes with the old one");
        assert!(!goes_with(&Secret::default(), Some(&new)), "it goes with nobody");
    }

    #[test]
    fn a_key_is_not_shown() {
        let access = Access::new(b"ca".to_vec(), b"cert".to_vec(), b"the-key".to_vec());
        assert!(!format!("{access:?}").contains("the-key"));
    }
}
