//! A real member, asked over its real sockets by the generated clients.

#[allow(dead_code, reason = "each file of tests uses some of what they share")]
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{Cluster, until};
use quorate_proto::admin::v1 as admin;
use quorate_proto::admin::v1::admin_client::AdminClient;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::request_op::Request as Op;
use quorate_proto::etcdserverpb::response_op::Response as Answer;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// A member starts in well under a second; a loaded machine is given this long.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Nothing more comes when this long nothing has come.
const QUIET: Duration = Duration::from_millis(300);

/// A cluster of one, killed at the end.
struct Member {
    cluster: Cluster,
    client: SocketAddr,
    admin: SocketAddr,
}

impl Member {
    fn start(flags: &[&str]) -> Member {
        let cluster = Cluster::start(1, flags);
        let (client, admin) = (cluster.members[0].client_address(), cluster.members[0].admin_address());
        let mut member = Member { cluster, client, admin };
        member.until("it lives", || http(client, "/livez").is_some_and(|(code, _)| code == 200));
        member
    }

    fn ready() -> Member {
        Member::ready_with(&[])
    }

    fn ready_with(flags: &[&str]) -> Member {
        let mut member = Member::start(flags);
        let client = member.client;
        member.until("it is ready", || http(client, "/readyz").is_some_and(|(code, _)| code == 200));
        member
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(self.cluster.members[0].is_running(), "it ended instead of: {what}");
            assert!(start.elapsed() < START_LIMIT, "waited for: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.client)).expect("a URL").connect().await.expect("connects")
    }

    async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::connect(format!("http://{}", self.admin)).await.expect("connects")
    }
}

/// Status code and body of a GET over HTTP/1.1.
fn http(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    let code = text.split(' ').nth(1)?.parse().ok()?;
    Some((code, text.split_once("\r\n\r\n")?.1.to_owned()))
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> (Code, String) {
    let status = answer.expect_err("must be refused");
    (status.code(), status.message().to_owned())
}

/// A watch stream.
struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn open(channel: Channel) -> Watching {
        let (requests, receiver) = mpsc::channel(16);
        let responses =
            WatchClient::new(channel).watch(ReceiverStream::new(receiver)).await.expect("opens").into_inner();
        Watching { requests, responses }
    }

    async fn ask(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.expect("the stream is open");
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.ask(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created, "{created:?}");
        created
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(START_LIMIT, self.responses.message()).await;
        next.expect("a response in time").expect("no error").expect("the stream goes on")
    }

    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(QUIET, self.responses.message()).await.is_err()
    }

    /// (kind, key, revision) of the next `count` events.
    async fn events(&mut self, count: usize) -> Vec<(EventType, String, i64)> {
        let mut all = Vec::new();
        while all.len() < count {
            for event in self.next().await.events {
                let kv = event.kv.clone().expect("an event has a key");
                all.push((event.r#type(), String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision));
            }
        }
        all
    }
}

fn watch(key: &str, end: &str, start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        start_revision,
        ..Default::default()
    }
}

#[tokio::test]
async fn reads_and_writes() {
    let member = Member::ready();
    let mut kv = KvClient::new(member.channel().await);

    let empty = kv.range(prefix("a", "z")).await.expect("reads").into_inner();
    let header = empty.header.expect("a header");
    assert_eq!((empty.count, header.revision), (0, 1), "an empty store is at revision 1");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);

    for (nth, key) in ["a", "b", "c"].into_iter().enumerate() {
        let answer = kv.put(put(key, "1")).await.expect("writes").into_inner();
        assert_eq!(answer.header.expect("a header").revision, 2 + i64::try_from(nth).expect("small"));
    }
    let previous = kv.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.expect("writes").into_inner();
    assert_eq!(previous.prev_kv.expect("there was one").value, "1");

    let cut = kv.range(pb::RangeRequest { limit: 2, ..prefix("a", "z") }).await.expect("reads").into_inner();
    assert_eq!((cut.kvs.len(), cut.more, cut.count), (2, true, 3));
    let old = kv.range(pb::RangeRequest { revision: 4, ..prefix("a", "") }).await.expect("reads").into_inner();
    assert_eq!((old.kvs[0].value.as_ref(), old.header.expect("a header").revision), (&b"1"[..], 5));

    let deleted = pb::DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: true };
    let deleted = kv.delete_range(deleted).await.expect("deletes").into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
    let nothing = kv.delete_range(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() });
    assert_eq!(nothing.await.expect("deletes").into_inner().header.expect("a header").revision, 6);
}

#[tokio::test]
async fn refusals_have_the_code_and_text_of_etcd() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));

    assert_eq!(refused(kv.put(put("", "x")).await), invalid("key is not provided"));
    assert_eq!(refused(kv.range(prefix("", "z")).await), invalid("key is not provided"));
    let ignore = pb::PutRequest { ignore_value: true, ..put("k", "x") };
    assert_eq!(refused(kv.put(ignore).await), invalid("value is provided"));
    let ignore = pb::PutRequest { ignore_value: true, ..put("k", "") };
    assert_eq!(refused(kv.put(ignore).await), invalid("key not found"));
    assert_eq!(refused(kv.put(put("k", &"x".repeat(1_600_000))).await), invalid("request is too large"));
    let unsorted = pb::RangeRequest { sort_target: 9, ..prefix("a", "z") };
    assert_eq!(refused(kv.range(unsorted).await), invalid("invalid sort option"));
    let many = vec![op(Op::RequestRange(prefix("a", ""))); 129];
    let many = pb::TxnRequest { success: many, ..Default::default() };
    assert_eq!(refused(kv.txn(many).await), invalid("too many operations in txn request"));
    let twice = vec![op(Op::RequestPut(put("k", "1"))), op(Op::RequestPut(put("k", "2")))];
    let twice = pb::TxnRequest { failure: twice, ..Default::default() };
    assert_eq!(refused(kv.txn(twice).await), invalid("duplicate key given in txn request"));
    let future = pb::RangeRequest { revision: 99, ..prefix("a", "") };
    let text = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(refused(kv.range(future).await), (Code::OutOfRange, text));

    let mut lease = LeaseClient::new(channel.clone());
    let (code, text) = refused(lease.lease_grant(pb::LeaseGrantRequest { ttl: 5, id: 0 }).await);
    assert_eq!(code, Code::Unimplemented);
    assert!(text.contains("lease"), "{text}");

    let mut cluster = ClusterClient::new(channel);
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: false };
    let (code, text) = refused(cluster.member_add(add).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("--learner"), "the remedy is named: {text}");
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["nonsense".into()], is_learner: true };
    assert_eq!(refused(cluster.member_add(add).await), invalid("given member URLs are invalid"));
    let remove = pb::MemberRemoveRequest { id: 77 };
    let text = "etcdserver: member not found".to_owned();
    assert_eq!(refused(cluster.member_remove(remove).await), (Code::NotFound, text));
}

#[tokio::test]
async fn transactions() {
    let member = Member::ready();
    let mut kv = KvClient::new(member.channel().await);
    let if_mod = |key: &str, revision| pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let create = |value: &str| pb::TxnRequest {
        compare: vec![if_mod("k", 0)],
        success: vec![op(Op::RequestPut(put("k", value)))],
        failure: vec![op(Op::RequestRange(prefix("k", "")))],
    };
    let first = kv.txn(create("1")).await.expect("runs").into_inner();
    assert!(first.succeeded);
    assert_eq!(first.header.expect("a header").revision, 2);
    let second = kv.txn(create("2")).await.expect("runs").into_inner();
    assert!(!second.succeeded);
    assert_eq!(second.header.expect("a header").revision, 2, "a branch of reads makes no revision");
    let Some(Answer::ResponseRange(found)) = &second.responses[0].response else { panic!("{second:?}") };
    assert_eq!(found.kvs[0].value, "1");

    // Later operations see earlier ones, all in one revision; a nested branch sees the state before.
    let inner = pb::TxnRequest {
        compare: vec![if_mod("new", 0)],
        success: vec![op(Op::RequestPut(put("inner", "x")))],
        failure: vec![],
    };
    let outer = pb::TxnRequest {
        success: vec![
            op(Op::RequestPut(put("new", "n"))),
            op(Op::RequestRange(prefix("new", ""))),
            op(Op::RequestTxn(inner)),
        ],
        ..Default::default()
    };
    let answer = kv.txn(outer).await.expect("runs").into_inner();
    assert_eq!(answer.header.expect("a header").revision, 3);
    let Some(Answer::ResponseRange(seen)) = &answer.responses[1].response else { panic!("{answer:?}") };
    assert_eq!((seen.kvs[0].mod_revision, seen.header.expect("a header").revision), (3, 3));
    let Some(Answer::ResponseTxn(nested)) = &answer.responses[2].response else { panic!("{answer:?}") };
    assert!(nested.succeeded);

    let reads = pb::TxnRequest { success: vec![op(Op::RequestRange(prefix("a", "z")))], ..Default::default() };
    let reads = kv.txn(reads).await.expect("runs").into_inner();
    assert_eq!(reads.header.expect("a header").revision, 3);
}

#[tokio::test]
async fn a_watch_from_the_past_meets_the_present_without_a_gap() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    for n in 0..5 {
        kv.put(put(&format!("k{n}"), "1")).await.expect("writes");
    }
    let mut watching = Watching::open(channel).await;
    let created = watching.create(watch("k", "l", 3)).await;
    assert_eq!((created.watch_id, created.header.expect("a header").revision), (0, 6));
    let writing = tokio::spawn(async move {
        for n in 5..200 {
            kv.put(put(&format!("k{n}"), "1")).await.expect("writes");
        }
        kv.delete_range(pb::DeleteRangeRequest { key: "k7".into(), ..Default::default() }).await.expect("deletes");
    });
    let events = watching.events(200).await;
    writing.await.expect("written");
    let expected: Vec<i64> = (3..=202).collect();
    assert_eq!(events.iter().map(|event| event.2).collect::<Vec<_>>(), expected);
    assert_eq!(events[199], (EventType::Delete, "k7".to_owned(), 202));
}

#[tokio::test]
async fn watchers_share_a_stream() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    kv.put(put("a", "old")).await.expect("writes");
    let mut watching = Watching::open(channel).await;

    let with_previous = pb::WatchCreateRequest { prev_kv: true, ..watch("a", "", 0) };
    assert_eq!(watching.create(with_previous).await.watch_id, 0);
    let deletes = pb::WatchCreateRequest { filters: vec![0], watch_id: 7, ..watch("", "\0", 0) };
    assert_eq!(watching.create(deletes.clone()).await.watch_id, 7);

    let twice = watching.create(deletes).await;
    assert!(twice.canceled && twice.watch_id == -1);
    assert_eq!(twice.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = watching.create(watch("b", "a", 0)).await;
    assert!(empty.canceled && empty.watch_id == -1);
    assert_eq!(empty.cancel_reason, "mvcc: watcher range is empty");
    let before_time = watching.create(watch("b", "", -1)).await;
    assert_eq!(before_time.cancel_reason, "etcdserver: mvcc: required revision has been compacted");

    kv.put(put("a", "new")).await.expect("writes");
    let response = watching.next().await;
    assert_eq!((response.watch_id, response.events.len()), (0, 1), "puts are filtered out for 7");
    assert_eq!(response.events[0].prev_kv.as_ref().expect("there was one").value, "old");

    watching.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    let canceled = watching.next().await;
    assert!(canceled.canceled && canceled.watch_id == 0 && canceled.cancel_reason.is_empty());
    kv.delete_range(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.expect("deletes");
    let response = watching.next().await;
    assert_eq!((response.watch_id, response.events[0].r#type()), (7, EventType::Delete));
    watching.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 })).await;
    assert!(watching.is_quiet().await, "the cancel of an unknown watcher is answered by nothing");
}

#[tokio::test]
async fn progress_tells_no_revision_whose_events_are_still_to_come() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let mut watching = Watching::open(channel).await;
    let progress = || RequestUnion::ProgressRequest(pb::WatchProgressRequest {});

    watching.create(watch("a", "z", 0)).await;
    for n in 0..50 {
        let written = kv.put(put("k", "v")).await.expect("writes").into_inner().header.expect("a header").revision;
        watching.ask(progress()).await;
        assert_eq!(watching.events(1).await[0].2, written, "round {n}");
        let answer = watching.next().await;
        assert_eq!((answer.watch_id, answer.events.len()), (-1, 0));
        assert!(answer.header.expect("a header").revision >= written);
    }
    watching.create(watch("a", "z", 1_000)).await;
    watching.ask(progress()).await;
    assert!(watching.is_quiet().await, "one watcher waits for its start");
}

#[tokio::test]
async fn what_is_compacted_is_gone_for_reads_and_watches() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    for value in ["1", "2", "3", "4"] {
        kv.put(put("k", value)).await.expect("writes");
    }
    kv.compact(pb::CompactionRequest { revision: 4, physical: true }).await.expect("compacts");
    let gone = "etcdserver: mvcc: required revision has been compacted".to_owned();
    let again = kv.compact(pb::CompactionRequest { revision: 4, physical: false }).await;
    assert_eq!(refused(again), (Code::OutOfRange, gone.clone()));
    let old = pb::RangeRequest { revision: 3, serializable: true, ..prefix("k", "") };
    assert_eq!(refused(kv.range(old).await), (Code::OutOfRange, gone));
    let at = pb::RangeRequest { revision: 4, ..prefix("k", "") };
    assert_eq!(kv.range(at).await.expect("reads").into_inner().kvs[0].value, "3");

    let mut watching = Watching::open(channel).await;
    watching.create(watch("k", "", 4)).await;
    assert_eq!(watching.events(2).await.iter().map(|event| event.2).collect::<Vec<_>>(), [4, 5]);
    let created = watching.create(watch("k", "", 2)).await;
    let canceled = watching.next().await;
    assert!(canceled.canceled && canceled.watch_id == created.watch_id);
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (4, ""));
}

#[tokio::test]
async fn who_does_not_read_loses_nothing() {
    let member = Member::ready();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel);
    // A connection of its own: windows are per connection.
    let mut watching = Watching::open(member.channel().await).await;
    watching.create(watch("k", "l", 0)).await;
    let value = "x".repeat(20_000);
    for n in 0..1_500 {
        kv.put(put(&format!("k{}", n % 7), &value)).await.expect("writes");
    }
    let events = watching.events(1_500).await;
    assert_eq!(events.iter().map(|event| event.2).collect::<Vec<_>>(), (2..1_502).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_streamed_range_is_the_range_in_pieces() {
    let member = Member::ready();
    let mut kv = KvClient::new(member.channel().await);
    for n in 0..45 {
        kv.put(put(&format!("k{n:02}"), "v")).await.expect("writes");
    }
    let whole = kv.range(prefix("k", "l")).await.expect("reads").into_inner();
    let mut stream = kv.range_stream(prefix("k", "l")).await.expect("reads").into_inner();
    let (mut kvs, mut chunks) = (Vec::new(), Vec::new());
    while let Some(chunk) = stream.message().await.expect("no error") {
        let chunk = chunk.range_response.expect("a chunk");
        kvs.extend(chunk.kvs.clone());
        chunks.push(chunk);
    }
    assert_eq!(kvs, whole.kvs);
    assert!(chunks.len() > 1);
    let (last, earlier) = chunks.split_last().expect("chunks");
    assert_eq!((last.header, last.count), (whole.header, 45));
    assert!(earlier.iter().all(|chunk| chunk.header.is_none() && chunk.count == 0));
}

#[tokio::test]
async fn a_member_tells_about_itself() {
    let member = Member::ready();
    let channel = member.channel().await;
    let status =
        MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await.expect("answers").into_inner();
    let own = status.header.expect("a header").member_id;
    assert_eq!((status.version.as_str(), status.leader, status.is_learner), ("3.7.3", own, false));
    assert!(status.raft_applied_index > 0 && status.raft_index >= status.raft_applied_index);
    let list = pb::MemberListRequest { linearizable: true };
    let list = ClusterClient::new(channel.clone()).member_list(list).await.expect("answers").into_inner();
    assert_eq!(list.members.iter().map(|m| m.id).collect::<Vec<_>>(), [own]);
    assert_eq!(list.header.expect("a header").revision, 0);

    let told = member.admin().await.status(admin::StatusRequest {}).await.expect("answers").into_inner();
    assert_eq!((told.member_id, told.role.as_str(), told.leader_id), (own, "Leader", own));
    assert!(told.own_term_committed && told.own_term_applied && told.ready && told.activated, "{told:?}");
    assert_eq!(told.fault, "");
    let probe = member.admin().await.probe(admin::ProbeRequest {}).await.expect("answers").into_inner();
    assert_eq!(probe.revision, 1);

    let (code, version) = http(member.client, "/version").expect("answers");
    assert_eq!(code, 200);
    assert!(version.contains("\"etcdserver\":\"3.7.3\"") && version.contains("\"etcdcluster\":\"3.7.0\""), "{version}");
    let (code, health) = http(member.client, "/health").expect("answers");
    assert_eq!((code, health.as_str()), (200, "{\"health\":\"true\",\"reason\":\"\"}"));
    for address in [member.client, member.admin] {
        let (code, metrics) = http(address, "/metrics").expect("answers");
        assert_eq!(code, 200);
        for line in ["quorate_has_leader 1", "etcd_server_has_leader 1", "quorate_revision 1", "quorate_ready 1"] {
            assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
        }
        assert!(metrics.contains("process_resident_memory_bytes "), "{metrics}");
    }
}

#[tokio::test]
async fn learners_are_added_once_per_key_under_compare_and_set() {
    let member = Member::ready();
    let mut operator = member.admin().await;
    // It publishes its own name, which is a change of membership too: nobody else's is taken meanwhile.
    let status = until("it has told its name", || async {
        let status = member.cluster.members[0].status().await?;
        status.members.iter().all(|m| !m.client_urls.is_empty()).then_some(status)
    });
    let at = status.await.committed_config_at.expect("always told");
    let request = |expect| admin::AddLearnerRequest {
        expect: Some(expect),
        idempotency_key: "uid-1".into(),
        name: "m2".into(),
        peer_urls: vec!["http://127.0.0.1:1".into()],
        client_urls: vec![],
    };
    let stale = admin::ConfigAt { index: at.index + 1_000, ..at };
    assert_eq!(refused(operator.add_learner(request(stale)).await).0, Code::FailedPrecondition);
    let added = operator.add_learner(request(at)).await.expect("adds").into_inner();
    assert_ne!(added.member_id, 0);
    let again = operator.add_learner(request(at)).await.expect("the same again").into_inner();
    assert_eq!(again.member_id, added.member_id);
    let status = operator.status(admin::StatusRequest {}).await.expect("answers").into_inner();
    assert_eq!(status.members.iter().filter(|m| m.is_learner && m.id == added.member_id).count(), 1);
    let promote = admin::PromoteRequest { expect: status.committed_config_at, member_id: added.member_id, lag_max: 10 };
    let (code, text) = refused(operator.promote(promote).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("in sync with leader"), "{text}");
}

#[tokio::test]
async fn a_seed_serves_nobody_before_it_is_activated() {
    let member = Member::start(&["--await-activation"]);
    let mut kv = KvClient::new(member.channel().await);
    let (code, text) = refused(kv.put(put("k", "v")).await);
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("activate"), "{text}");
    assert_eq!(http(member.client, "/livez").expect("answers").0, 200);
    let (code, body) = http(member.client, "/readyz").expect("answers");
    assert_eq!(code, 503);
    assert!(body.contains("activate"), "{body}");

    let mut operator = member.admin().await;
    let status = operator.status(admin::StatusRequest {}).await.expect("answers").into_inner();
    assert!(!status.activated && !status.ready);
    let other = admin::ActivateRequest { cluster_id: status.cluster_id ^ 1 };
    assert_eq!(refused(operator.activate(other).await).0, Code::FailedPrecondition);
    operator.activate(admin::ActivateRequest { cluster_id: status.cluster_id }).await.expect("activates");
    kv.put(put("k", "v")).await.expect("serves");
}

#[tokio::test]
async fn a_client_that_asks_for_a_leader_is_served_while_there_is_one() {
    let member = Member::ready();
    let mut kv = KvClient::new(member.channel().await);
    let mut request = Request::new(put("k", "v"));
    request.metadata_mut().insert("hasleader", "true".parse().expect("ascii"));
    kv.put(request).await.expect("there is a leader");
}

#[tokio::test]
async fn a_full_store_takes_no_more_but_lets_itself_be_emptied() {
    let member = Member::ready_with(&["--quota-backend-bytes", "50000"]);
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let value = "x".repeat(10_000);
    let mut written = 0;
    let (code, text) = loop {
        match kv.put(put(&format!("k{written}"), &value)).await {
            Ok(_) => written += 1,
            Err(status) => break (status.code(), status.message().to_owned()),
        }
        assert!(written < 10, "the limit is 50000 bytes");
    };
    assert_eq!((code, text.as_str()), (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    assert_eq!(written, 5);
    let nested = pb::TxnRequest { failure: vec![op(Op::RequestPut(put("k", "v")))], ..Default::default() };
    let nested = pb::TxnRequest { success: vec![op(Op::RequestTxn(nested))], ..Default::default() };
    assert_eq!(refused(kv.txn(nested).await).0, Code::ResourceExhausted);
    let list = pb::AlarmRequest::default();
    let mut maintenance = MaintenanceClient::new(channel);
    let alarms = maintenance.alarm(list).await.expect("answers").into_inner().alarms;
    assert_eq!(alarms.iter().map(pb::AlarmMember::alarm).collect::<Vec<_>>(), [pb::AlarmType::Nospace]);

    // Exactly at the last revision: what the deletion replaced goes at once.
    let all = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: false };
    let deleted = kv.delete_range(all).await.expect("deletes go on").into_inner();
    assert_eq!(deleted.deleted, 5);
    let revision = deleted.header.expect("a header").revision;
    kv.compact(pb::CompactionRequest { revision, physical: true }).await.expect("compacts");
    kv.put(put("k", "v")).await.expect("there is room again");
    assert!(maintenance.alarm(list).await.expect("answers").into_inner().alarms.is_empty());
}
