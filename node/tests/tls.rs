//! TLS between real processes: who is let in where, certificates that change under a writer, and modes that change live.

#[allow(dead_code, reason = "each file of tests uses some of what they share")]
mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{free_port, until};
use quorate_proto::admin::v1::admin_client::AdminClient;
use quorate_proto::admin::v1::{StatusRequest, StatusResponse};
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

const CLUSTER: &str = "u-1";
/// A request that no member answers within this has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

// ---- certificates ----------------------------------------------------------------------------------------------

struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone, Default)]
struct Pair {
    cert: String,
    key: String,
}

/// The year after which a certificate is no good.
const VALID: i32 = 2099;
const EXPIRED: i32 = 2020;

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, role: &str, last_year: i32) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, role);
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        if !role.is_empty() {
            let uri = format!("quorate://{CLUSTER}/{role}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

// ---- callers ---------------------------------------------------------------------------------------------------

/// Connects anew; without a pair it shows no certificate, without an authority it speaks plain text.
async fn channel(port: u16, ca: Option<&str>, pair: Option<&Pair>) -> Result<Channel, tonic::transport::Error> {
    let scheme = if ca.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{port}")).expect("a valid address");
    if let Some(ca) = ca {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some(pair) = pair {
            tls = tls.identity(Identity::from_pem(&pair.cert, &pair.key));
        }
        endpoint = endpoint.tls_config(tls)?;
    }
    endpoint.connect_timeout(REQUEST_LIMIT).connect().await
}

async fn put(port: u16, ca: Option<&str>, pair: Option<&Pair>) -> Result<(), String> {
    let channel = channel(port, ca, pair).await.map_err(|error| format!("{error:?}"))?;
    let request = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    let answer = tokio::time::timeout(REQUEST_LIMIT, KvClient::new(channel).put(request)).await;
    answer.map_err(|_| "no answer".to_owned())?.map(drop).map_err(|status| format!("{status:?}"))
}

async fn status(port: u16, ca: Option<&str>, pair: Option<&Pair>) -> Result<StatusResponse, String> {
    let channel = channel(port, ca, pair).await.map_err(|error| format!("{error:?}"))?;
    let answer = AdminClient::new(channel).status(StatusRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| format!("{status:?}"))
}

/// The real client, where the tools of the tests are there.
fn etcdctl(port: u16, scheme: &str, files: &[(&str, &PathBuf)], limit: &str) -> Option<bool> {
    let home = std::env::var_os("QUORATE_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/quorate")))?;
    let mut command = Command::new(home.join("bin/etcdctl"));
    command
        .arg(format!("--endpoints={scheme}://127.0.0.1:{port}"))
        .arg(format!("--dial-timeout={limit}"))
        .arg(format!("--command-timeout={limit}"));
    command.args(files.iter().map(|(flag, file)| format!("--{flag}={}", file.display())));
    let done = command.args(["put", "k", "v"]).stdin(Stdio::null()).output().ok()?;
    Some(done.status.success())
}

// ---- members ---------------------------------------------------------------------------------------------------

struct Member {
    dir: PathBuf,
    peer: u16,
    client: u16,
    admin: u16,
    metrics: u16,
    child: Option<Child>,
}

impl Member {
    fn give(&self, name: &str, pair: &Pair) {
        std::fs::write(self.dir.join(format!("{name}.crt")), &pair.cert).expect("writable");
        std::fs::write(self.dir.join(format!("{name}.key")), &pair.key).expect("writable");
    }

    fn trust(&self, authorities: &str) {
        std::fs::write(self.dir.join("ca.crt"), authorities).expect("writable");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Cluster {
    dir: TempDir,
    members: Vec<Member>,
}

impl Cluster {
    /// Members with certificates by `authority`, not started.
    fn new(count: usize, authority: &Authority) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let member = |n: usize| Member {
            dir: dir.path().join(format!("m{n}")),
            peer: free_port(),
            client: free_port(),
            admin: free_port(),
            metrics: free_port(),
            child: None,
        };
        let members: Vec<Member> = (0..count).map(member).collect();
        for member in &members {
            std::fs::create_dir_all(&member.dir).expect("a directory");
            member.trust(&authority.pem());
        }
        let cluster = Cluster { dir, members };
        cluster.give_leaves(authority);
        cluster
    }

    fn give_leaves(&self, authority: &Authority) {
        for member in &self.members {
            member.give("peer", &authority.issue("peer", VALID));
            member.give("server", &authority.issue("server", VALID));
        }
    }

    fn trust(&self, authorities: &str) {
        self.members.iter().for_each(|member| member.trust(authorities));
    }

    fn run(&mut self, at: usize, mode: &str) {
        let scheme = if mode == "required" { "https" } else { "http" };
        let url = |port: u16| format!("{scheme}://127.0.0.1:{port}");
        // What the cluster was founded with: later the scheme follows the mode by itself.
        let named = |(n, member): (usize, &Member)| format!("m{n}=http://127.0.0.1:{}", member.peer);
        let all: Vec<String> = self.members.iter().enumerate().map(named).collect();
        let member = &self.members[at];
        let file = |name: &str| member.dir.join(name).display().to_string();
        let mut flags = vec![
            format!("--name=m{at}"),
            format!("--data-dir={}", file("data")),
            format!("--initial-cluster={}", all.join(",")),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", member.peer),
            format!("--listen-peer-urls={}", url(member.peer)),
            format!("--listen-client-urls={}", url(member.client)),
            format!("--advertise-client-urls={}", url(member.client)),
            format!("--listen-admin-urls={}", url(member.admin)),
            format!("--listen-metrics-urls={}", url(member.metrics)),
            // Tests share few cores: an election must not begin because a thread waited for one.
            "--election-timeout=600".to_owned(),
            "--heartbeat-interval=100".to_owned(),
        ];
        if mode != "disabled" {
            for (prefix, pair) in [("", "server"), ("peer-", "peer"), ("admin-", "server")] {
                flags.push(format!("--{prefix}cert-file={}", file(&format!("{pair}.crt"))));
                flags.push(format!("--{prefix}key-file={}", file(&format!("{pair}.key"))));
                flags.push(format!("--{prefix}trusted-ca-file={}", file("ca.crt")));
            }
            flags.extend(["client", "peer", "admin"].map(|plane| format!("--{plane}-tls-mode={mode}")));
            flags.push(format!("--tls-cluster={CLUSTER}"));
        }
        let log = std::fs::File::options().create(true).append(true).open(self.log_path(at)).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_quorate-node"))
            .args(&flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the member starts");
        self.members[at].child = Some(child);
    }

    /// Told to stop in the ordinary way: it hands leadership over.
    async fn stop(&mut self, at: usize) {
        let mut child = self.members[at].child.take().expect("it runs");
        let told = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().expect("kill runs");
        assert!(told.success());
        let ended = tokio::task::spawn_blocking(move || child.wait()).await.expect("no panic");
        assert!(ended.expect("it ends").success(), "it ended well");
    }

    fn log_path(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("m{at}.log"))
    }

    fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.log_path(at)).expect("a log")
    }

    async fn await_ready(&self, at: usize, ca: Option<&str>, admin: &Pair) -> StatusResponse {
        let port = self.members[at].admin;
        until("a member is ready", || async {
            status(port, ca, ca.is_some().then_some(admin)).await.ok().filter(|status| status.ready)
        })
        .await
    }

    /// No key, and no line of one, is in any log.
    fn assert_no_key_was_told(&self) {
        for (at, member) in self.members.iter().enumerate() {
            let log = self.log(at);
            for name in ["peer.key", "server.key"] {
                let key = std::fs::read_to_string(member.dir.join(name)).expect("a key");
                let lines: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
                assert!(!lines.is_empty());
                assert!(lines.iter().all(|line| !log.contains(&line[..line.len().min(24)])), "m{at} told {name}");
            }
            assert!(!log.contains("PRIVATE KEY"), "m{at}");
        }
    }
}

/// What a writer connects with, exchanged while it writes.
#[derive(Clone, Default)]
struct Access {
    /// Client ports, each with the authority to use, or none for plain text.
    ports: Vec<(u16, Option<String>)>,
    pair: Pair,
}

/// Puts one after another, each over a new connection; what one member does not take, the next one gets.
struct Writer {
    access: Arc<Mutex<Access>>,
    is_done: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Writer {
    fn start(access: Access) -> Writer {
        let access = Arc::new(Mutex::new(access));
        let (is_done, written): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let task = {
            let (access, is_done, written) = (access.clone(), is_done.clone(), written.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !is_done.load(Ordering::Relaxed) {
                    let Access { ports, pair } = access.lock().expect("no panic").clone();
                    let mut why = String::new();
                    let mut is_written = false;
                    for (port, ca) in &ports {
                        match put(*port, ca.as_deref(), ca.is_some().then_some(&pair)).await {
                            Ok(()) => is_written = true,
                            Err(error) => why = format!("{why} {port}: {error};"),
                        }
                        if is_written {
                            break;
                        }
                    }
                    if is_written {
                        written.fetch_add(1, Ordering::Relaxed);
                    } else {
                        failures.push(why);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failures
            })
        };
        Writer { access, is_done, written, task }
    }

    fn change(&self, change: impl FnOnce(&mut Access)) {
        change(&mut self.access.lock().expect("no panic"));
    }

    /// Some requests more are through.
    async fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        until("the writer writes", || async { (self.written.load(Ordering::Relaxed) >= before + 10).then_some(()) })
            .await;
    }

    async fn finish(self) -> u64 {
        self.is_done.store(true, Ordering::Relaxed);
        let failures = self.task.await.expect("no panic");
        assert!(failures.is_empty(), "requests failed: {failures:#?}");
        self.written.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn each_port_takes_its_own_role_and_nobody_else() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let mut cluster = Cluster::new(1, &authority);
    cluster.run(0, "required");
    let ca = authority.pem();
    let ca = Some(ca.as_str());
    let admin = authority.issue("admin", VALID);
    cluster.await_ready(0, ca, &admin).await;
    let (client_port, admin_port, peer_port) =
        (cluster.members[0].client, cluster.members[0].admin, cluster.members[0].peer);

    let client = authority.issue("client", VALID);
    put(client_port, ca, Some(&client)).await.expect("a client is served");
    for (what, pair) in [
        ("no certificate", None),
        ("another authority's", Some(other.issue("client", VALID))),
        ("an expired one", Some(authority.issue("client", EXPIRED))),
        ("a peer's", Some(authority.issue("peer", VALID))),
        ("an admin's", Some(admin.clone())),
        ("a server's", Some(authority.issue("server", VALID))),
        ("one without a role", Some(authority.issue("", VALID))),
    ] {
        let refused = put(client_port, ca, pair.as_ref()).await;
        assert!(refused.is_err(), "{what} opens the client port");
    }
    assert!(put(client_port, None, None).await.is_err(), "plain text opens the client port");
    assert!(put(client_port, Some(&other.pem()), Some(&client)).await.is_err(), "the server is not who it says");
    assert!(status(admin_port, ca, Some(&client)).await.is_err(), "a client opens the admin port");
    assert!(status(admin_port, ca, None).await.is_err(), "nobody opens the admin port");
    // TLS comes first on the peer port: the frames behind it do not matter here.
    for (what, pair) in [("a client's", &client), ("an admin's", &admin)] {
        assert!(put(peer_port, ca, Some(pair)).await.is_err(), "{what} opens the peer port");
        until("the peer port says why", || async {
            cluster.log(0).contains(&format!("quorate://{CLUSTER}/peer")).then_some(())
        })
        .await;
    }
    assert!(cluster.log(0).contains("plain text, and this port TLS only"), "{}", cluster.log(0));

    let dir = cluster.dir.path();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("writable");
        dir.join(name)
    };
    let (cert, key) = (file("c.crt", &client.cert), file("c.key", &client.key));
    let (ca_file, wrong) = (file("ca", &authority.pem()), file("wrong", &other.pem()));
    let mutual = [("cacert", &ca_file), ("cert", &cert), ("key", &key)];
    if let Some(is_served) = etcdctl(client_port, "https", &mutual, "30s") {
        assert!(is_served, "the real client is served");
        assert_eq!(etcdctl(client_port, "https", &mutual[..1], "3s"), Some(false), "no certificate");
        assert_eq!(etcdctl(client_port, "https", &[("cacert", &wrong), mutual[1], mutual[2]], "3s"), Some(false));
        assert_eq!(etcdctl(client_port, "http", &[], "3s"), Some(false), "plain text");
    }
    put(client_port, ca, Some(&client)).await.expect("still served");
    cluster.assert_no_key_was_told();
}

#[tokio::test]
async fn leaves_and_the_authority_are_exchanged_without_a_failed_request() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut cluster = Cluster::new(3, &old);
    (0..3).for_each(|at| cluster.run(at, "required"));
    let mut admin = old.issue("admin", VALID);
    let (old_ca, new_ca) = (old.pem(), new.pem());
    let both = format!("{old_ca}{new_ca}");
    for at in 0..3 {
        cluster.await_ready(at, Some(&old_ca), &admin).await;
    }
    let ports = |ca: &str| cluster.members.iter().map(|m| (m.client, Some(ca.to_owned()))).collect::<Vec<_>>();
    let writer = Writer::start(Access { ports: ports(&old_ca), pair: old.issue("client", VALID) });
    writer.goes_on().await;

    let mut told = Vec::new();
    for at in 0..3 {
        told.push(cluster.await_ready(at, Some(&old_ca), &admin).await.tls);
    }
    // Waits until every plane of every member differs from what it told before.
    async fn await_news(
        cluster: &Cluster,
        ca: &str,
        admin: &Pair,
        told: &mut [Vec<quorate_proto::admin::v1::TlsPlane>],
        is_new: impl Fn(&quorate_proto::admin::v1::TlsPlane, &quorate_proto::admin::v1::TlsPlane) -> bool,
    ) {
        for (member, told) in cluster.members.iter().zip(told) {
            *told = until("new files are in use", || async {
                let now = status(member.admin, Some(ca), Some(admin)).await.ok()?.tls;
                now.iter().zip(told.iter()).all(|(now, was)| is_new(now, was)).then_some(now)
            })
            .await;
        }
    }
    let leaf = |now: &quorate_proto::admin::v1::TlsPlane, was: &quorate_proto::admin::v1::TlsPlane| {
        now.leaf_sha256 != was.leaf_sha256
    };
    let trust = |now: &quorate_proto::admin::v1::TlsPlane, was: &quorate_proto::admin::v1::TlsPlane| {
        now.trust_sha256 != was.trust_sha256
    };

    cluster.give_leaves(&old);
    await_news(&cluster, &old_ca, &admin, &mut told, leaf).await;
    writer.goes_on().await;

    // A key that does not fit, and half a certificate: what is in use stays.
    let good = cluster.members[0].dir.join("server.key");
    let key = std::fs::read_to_string(&good).expect("a key");
    std::fs::write(&good, old.issue("server", VALID).key).expect("writable");
    until("it says so", || async { cluster.log(0).contains("keeping the certificate in use").then_some(()) }).await;
    writer.goes_on().await;
    std::fs::write(&good, key).expect("writable");

    cluster.trust(&both);
    await_news(&cluster, &old_ca, &admin, &mut told, trust).await;
    writer.change(|access| access.ports.iter_mut().for_each(|(_, ca)| *ca = Some(both.clone())));
    writer.goes_on().await;
    cluster.give_leaves(&new);
    await_news(&cluster, &both, &admin, &mut told, leaf).await;
    writer.change(|access| access.pair = new.issue("client", VALID));
    admin = new.issue("admin", VALID);
    writer.goes_on().await;
    cluster.trust(&new_ca);
    await_news(&cluster, &new_ca, &admin, &mut told, trust).await;
    writer.change(|access| access.ports.iter_mut().for_each(|(_, ca)| *ca = Some(new_ca.clone())));
    writer.goes_on().await;
    assert!(put(cluster.members[1].client, Some(&new_ca), Some(&old.issue("client", VALID))).await.is_err());

    // Every connection between members is made anew, by the new authority alone.
    for at in 0..3 {
        cluster.stop(at).await;
        cluster.run(at, "required");
        cluster.await_ready(at, Some(&new_ca), &admin).await;
        writer.goes_on().await;
    }
    assert!(writer.finish().await > 50);
    cluster.assert_no_key_was_told();
}

#[tokio::test]
async fn from_plain_text_to_tls_and_back_member_by_member_without_a_failed_request() {
    let authority = Authority::new("ours");
    let ca = authority.pem();
    let admin = authority.issue("admin", VALID);
    let mut cluster = Cluster::new(3, &authority);
    (0..3).for_each(|at| cluster.run(at, "disabled"));
    for at in 0..3 {
        cluster.await_ready(at, None, &admin).await;
    }
    let ports = cluster.members.iter().map(|member| (member.client, None)).collect();
    let writer = Writer::start(Access { ports, pair: authority.issue("client", VALID) });
    for mode in ["preferred", "required", "preferred", "disabled"] {
        for at in 0..3 {
            // Clients are told to use what the member speaks before and after.
            let by = (mode == "required" || cluster.log(at).contains("tls=\"required\"")).then_some(ca.as_str());
            let by = if mode == "disabled" { None } else { by };
            writer.change(|access| access.ports[at].1 = by.map(str::to_owned));
            cluster.stop(at).await;
            cluster.run(at, mode);
            cluster.await_ready(at, by, &admin).await;
            writer.goes_on().await;
        }
    }
    assert!(writer.finish().await > 100);
    for at in 0..3 {
        let log = cluster.log(at);
        assert!(log.contains("serving clients"), "{log}");
    }
}
