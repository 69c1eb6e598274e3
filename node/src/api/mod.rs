//! What clients and operators see: gRPC services and HTTP on the client port, the admin service on its own.
//!
//! Requests are checked here before anything is proposed; consensus and data are behind [`Handle`]. Must not know
//! about peers, logs or how the core works.

mod absent;
mod admin;
mod cluster;
mod convert;
mod fault;
mod health;
mod http;
mod kv;
mod maintenance;
mod metrics;
mod status;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::{select_all, try_join_all};
use quorate_proto::admin::v1::admin_server::AdminServer;
use quorate_proto::etcdserverpb::ResponseHeader;
use quorate_proto::etcdserverpb::auth_server::AuthServer;
use quorate_proto::etcdserverpb::cluster_server::ClusterServer;
use quorate_proto::etcdserverpb::kv_server::KvServer;
use quorate_proto::etcdserverpb::lease_server::LeaseServer;
use quorate_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use quorate_proto::etcdserverpb::watch_server::WatchServer;
use quorate_proto::health::v1::health_server::HealthServer;
use quorate_proto::v3electionpb::election_server::ElectionServer;
use quorate_proto::v3lockpb::lock_server::LockServer;
use quorate_state::Limits;
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::Args;
use crate::handle::{Handle, NodeStatus};
use crate::tls::{self, Door, Incoming, Mode, Tls};
use crate::watch::Hub;

use absent::Absent;
pub(crate) use fault::Faults;
use health::Readiness;

/// What we tell clients that we are: they switch features on and off by it.
pub const ETCD_VERSION: &str = "3.7.3";
/// The version all members of such a cluster agree on, and that of its storage.
pub const ETCD_CLUSTER_VERSION: &str = "3.7.0";
/// Ours.
pub const VERSION: &str = if cfg!(feature = "previous") { "0.0.9" } else { env!("CARGO_PKG_VERSION") };

/// Room for what surrounds a request on the wire, as in etcd.
const REQUEST_OVERHEAD_BYTES: usize = 512 << 10;
/// Largest response, as in etcd.
const RESPONSE_BYTES_MAX: usize = i32::MAX as usize;
/// Requests under way on one connection. Far above what clients open; without a cap memory stays after a burst.
const STREAMS_PER_CONNECTION_MAX: u32 = 100_000;
/// Bytes a client may send ahead on a stream and on a connection, so that large values do not wait for windows.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A client that is gone without a word holds its watchers no longer than this plus the timeout.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A stream that asks for a leader ends after this many election timeouts without one, as in etcd.
const ELECTIONS_WITHOUT_LEADER_MAX: u32 = 3;

/// A client that knows no other member waits this long for one that cannot serve, and is told why then.
const OPENS_WITHIN: Duration = Duration::from_secs(3);
const OPEN_POLL: Duration = Duration::from_millis(20);

/// Sockets, bound already.
#[derive(Debug)]
pub struct Listeners {
    pub client: Vec<(TcpListener, Mode)>,
    pub admin: Vec<(TcpListener, Mode)>,
    pub metrics: Vec<(TcpListener, Mode)>,
}

/// Limits and intervals of the services.
#[derive(Clone, Debug)]
pub struct Options {
    pub max_request_bytes: usize,
    pub limits: Limits,
    pub quota_bytes: u64,
    pub election_timeout: Duration,
    /// How often an idle watcher that asked for it is told the revision.
    pub progress_notify_every: Duration,
}

impl Options {
    pub fn from_args(args: &Args) -> Options {
        Options {
            max_request_bytes: args.max_request_bytes,
            limits: Limits { txn_ops_max: args.max_txn_ops },
            quota_bytes: args.quota_backend_bytes,
            election_timeout: Duration::from_millis(args.election_timeout),
            progress_notify_every: Duration::from_secs(600),
        }
    }
}

/// What all services share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    options: Options,
    tls: Tls,
    hub: Arc<Hub>,
    readiness: Readiness,
}

/// Whether a member that has no vote yet answers a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ForLearner {
    Allowed,
    Refused,
}

impl Api {
    fn new(handle: Handle, options: Options, tls: Tls) -> Api {
        let hub = Hub::start(handle.clone());
        Api(Arc::new(Inner { handle, options, tls, hub, readiness: Readiness::default() }))
    }

    fn handle(&self) -> &Handle {
        &self.0.handle
    }

    fn options(&self) -> &Options {
        &self.0.options
    }

    fn tls(&self) -> &Tls {
        &self.0.tls
    }

    fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// Whether a client's call may be answered at all.
    fn admit(&self, metadata: &MetadataMap, learner: ForLearner) -> Result<(), Status> {
        let status = self.handle().status();
        if !status.is_activated {
            return Err(status::not_activated());
        }
        if status.raft.is_removed {
            return Err(status::removed());
        }
        if learner == ForLearner::Refused && is_learner(&status) {
            return Err(status::not_for_learner());
        }
        if metadata.get("client-api-version").is_some_and(|v| std::str::from_utf8(v.as_encoded_bytes()).is_err()) {
            return Err(status::invalid_client_api_version());
        }
        if requires_leader(metadata) && status.raft.leader.is_none() {
            return Err(status::no_leader());
        }
        Ok(())
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        let identity = self.handle().identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id.0,
            revision,
            raft_term: self.handle().status().raft.term,
        }
    }
}

fn requires_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value.as_encoded_bytes() == b"true")
}

fn is_learner(status: &NodeStatus) -> bool {
    status.raft.committed_config.config.learners.contains(&status.raft.id)
}

/// Serves until one listener fails, or until clients were sent away and the last has gone.
pub async fn serve(handle: Handle, options: Options, tls: Tls, listeners: Listeners) -> Result<()> {
    let shared = handle.shared.clone();
    let api = Api::new(handle, options, tls.clone());
    let probing = tokio::spawn(health::probe(api.clone()));
    let (handle, door) = Door::closed();
    tokio::spawn(open(api.clone(), handle));
    let client = client_routes(&api);
    let admin = with_http(Routes::new(AdminServer::new(api.clone())), &api);
    let metrics = with_http(Routes::default(), &api);
    let (mut clients, mut others) = (Vec::new(), Vec::new());
    for (what, routes, plane, sockets) in [
        ("clients", client, &tls.client, listeners.client),
        ("admin", admin, &tls.admin, listeners.admin),
        ("metrics", metrics, &tls.client, listeners.metrics),
    ] {
        for (socket, mode) in sockets {
            tracing::info!(address = %socket.local_addr()?, tls = mode.name(), "serving {what}; {VERSION}, as etcd {ETCD_VERSION}");
            let (routes, shared) = (routes.clone(), shared.clone());
            let is_for_clients = what == "clients";
            let door = if is_for_clients { door.clone() } else { Door::open() };
            let incoming = tls::incoming(socket, plane.clone(), mode, tune, door);
            if is_for_clients {
                clients.push(tokio::spawn(serve_on(incoming, routes, async move { shared.left().await })));
            } else {
                others.push(tokio::spawn(serve_on(incoming, routes, std::future::pending())));
            }
        }
    }
    others.push(tokio::spawn(async move { Ok(probing.await?) }));
    tokio::select! {
        gone = try_join_all(clients.into_iter().map(|client| async { client.await? })) => gone.map(drop),
        (ended, _, _) = select_all(others) => ended?,
    }
}

/// Lets clients in as soon as this member can serve them: one that has just started and has not heard from its leader would let
/// them wait, and a client that knows other members asks those as long as no connection to this one stands. In the end they are
/// told why they are not served.
async fn open(api: Api, door: tokio::sync::watch::Sender<bool>) {
    let serves = async {
        loop {
            let is_no_voter = health::why_no_voter(&api.handle().status()).is_some();
            if is_no_voter || api.handle().linearizable_view().await.is_ok() {
                return;
            }
            tokio::time::sleep(OPEN_POLL).await;
        }
    };
    tokio::select! { () = serves => {}, () = tokio::time::sleep(OPENS_WITHIN) => {}, () = api.handle().shared.left() => {} }
    door.send_replace(true);
}

fn client_routes(api: &Api) -> Routes {
    let decode_max = api.options().max_request_bytes + REQUEST_OVERHEAD_BYTES;
    macro_rules! server {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(decode_max).max_encoding_message_size(RESPONSE_BYTES_MAX)
        };
    }
    let routes = Routes::new(server!(KvServer, api.clone()))
        .add_service(server!(WatchServer, api.clone()))
        .add_service(server!(ClusterServer, api.clone()))
        .add_service(server!(MaintenanceServer, api.clone()))
        .add_service(server!(AuthServer, api.clone()))
        .add_service(server!(LeaseServer, Absent))
        .add_service(server!(LockServer, Absent))
        .add_service(server!(ElectionServer, Absent))
        .add_service(HealthServer::new(api.clone()));
    with_http(routes, api)
}

fn with_http(routes: Routes, api: &Api) -> Routes {
    Routes::from(routes.into_axum_router().merge(http::router(api.clone()))).prepare()
}

/// Small answers leave at once; who vanished without a word is noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE_EVERY))
}

/// Serves until told to leave and the last connection is closed.
async fn serve_on(incoming: Incoming, routes: Routes, leave: impl Future<Output = ()>) -> Result<()> {
    Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .trace_fn(|request| tracing::debug_span!("request", path = request.uri().path()))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, leave)
        .await?;
    Ok(())
}
