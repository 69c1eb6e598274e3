//! Clusters of real processes on loopback, each test its own.

use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate_proto::admin::v1::admin_client::AdminClient;
use quorate_proto::admin::v1::{StatusRequest, StatusResponse};
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Far above what anything here takes; only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);
const PORTS: Range<u16> = 10_000..20_000;
/// Between the first ports of two processes with neighbouring ids.
const PORTS_APART: u32 = 61;
/// Of each member's log, when a test fails.
const LOG_LINES: usize = 15;

/// Asks again until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Never twice the same in this process, and below the range from which systems take ports for outgoing connections: a
/// member that is down finds its ports free again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let at = std::process::id().wrapping_mul(PORTS_APART).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(at % u32::from(PORTS.end - PORTS.start)).expect("below a u16");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub struct Member {
    pub name: String,
    peer: u16,
    client: u16,
    admin: u16,
    child: Option<Child>,
}

impl Member {
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    pub fn client_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.client).into()
    }

    pub fn admin_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin).into()
    }

    /// It was started and has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn channel(port: u16) -> Channel {
        Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a valid address").connect_lazy()
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(Member::channel(self.client))
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(Member::channel(self.client))
    }

    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(Member::channel(self.client))
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(Member::channel(self.admin))
    }

    pub async fn status(&self) -> Option<StatusResponse> {
        Some(self.admin().status(StatusRequest {}).await.ok()?.into_inner())
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        Ok(self.kv().put(request).await?.into_inner().header.map_or(0, |h| h.revision))
    }

    /// Puts until it is acknowledged. Putting one value twice changes nothing a test looks at.
    pub async fn put_surely(&self, key: &str, value: &str) {
        until("a put is acknowledged", || async { self.put(key, value).await.ok() }).await;
    }

    /// Nobody can so much as connect.
    pub fn refuses_clients(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.client)).is_err()
    }

    /// Keys with a prefix "k" this member holds, without asking anybody.
    pub async fn count_here(&self) -> Option<i64> {
        let request = RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            serializable: true,
            count_only: true,
            ..Default::default()
        };
        Some(self.kv().range(request).await.ok()?.into_inner().count)
    }

    pub async fn get(&self, key: &str) -> Result<Option<String>, Status> {
        let request = RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let found = self.kv().range(request).await?.into_inner().kvs;
        Ok(found.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text")))
    }

    /// As by a power cut of the process: nothing is flushed or handed over.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Told to stop in the ordinary way; gives whether it ended well.
    pub fn terminate(&mut self) -> bool {
        let mut child = self.child.take().expect("it runs");
        let told = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().expect("kill runs");
        assert!(told.success());
        child.wait().expect("it ends").success()
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

pub struct Cluster {
    dir: TempDir,
    flags: Vec<String>,
    pub members: Vec<Member>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for at in 0..self.members.len() {
            let name = &self.members[at].name;
            let log = std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{name} said last:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}

impl Cluster {
    /// Members that found a cluster, with more flags for each.
    pub fn start(count: usize, flags: &[&str]) -> Cluster {
        let mut cluster = Cluster {
            dir: tempfile::tempdir().expect("a temporary directory"),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            members: Vec::new(),
        };
        for _ in 0..count {
            cluster.add();
        }
        for at in 0..count {
            cluster.run(at, "new");
        }
        cluster
    }

    /// One more member, not started.
    pub fn add(&mut self) -> usize {
        let at = self.members.len();
        let (peer, client, admin) = (free_port(), free_port(), free_port());
        self.members.push(Member { name: format!("m{at}"), peer, client, admin, child: None });
        at
    }

    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.path().join(&self.members[at].name)
    }

    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{}.log", self.members[at].name))).expect("a log")
    }

    /// Of all members there ever were.
    pub fn logs(&self) -> String {
        let files =
            std::fs::read_dir(self.dir.path()).expect("a directory").map(|entry| entry.expect("an entry").path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| std::fs::read_to_string(path).expect("a log")).collect()
    }

    pub fn run(&mut self, at: usize, state: &str) {
        let all: Vec<String> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
        let member = &self.members[at];
        let log = self.dir.path().join(format!("{}.log", member.name));
        let log = File::options().create(true).append(true).open(log).expect("a log file");
        let (client, admin) =
            (format!("http://127.0.0.1:{}", member.client), format!("http://127.0.0.1:{}", member.admin));
        let child = Command::new(env!("CARGO_BIN_EXE_quorate-node"))
            .args(["--name", &member.name, "--initial-cluster", &all.join(","), "--initial-cluster-state", state])
            .args(["--listen-peer-urls", &member.peer_url(), "--initial-advertise-peer-urls", &member.peer_url()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-admin-urls", &admin])
            // Tests share few cores: an election must not begin because a thread waited for one.
            .args(["--election-timeout", "600", "--heartbeat-interval", "100"])
            .arg("--data-dir")
            .arg(self.data_dir(at))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the member starts");
        self.members[at].child = Some(child);
    }

    /// Where the leader is, once it says of itself that it can serve.
    pub async fn leader(&self) -> usize {
        until("there is a leader", || async {
            for (at, member) in self.members.iter().enumerate().filter(|(_, m)| m.child.is_some()) {
                if member.status().await.is_some_and(|s| s.role == "Leader" && s.own_term_applied) {
                    return Some(at);
                }
            }
            None
        })
        .await
    }

    pub async fn await_count(&self, at: usize, count: i64) {
        let member = &self.members[at];
        until("a member holds everything", || async { member.count_here().await.filter(|n| *n == count) }).await;
    }
}
