//! Clients that record what they asked and were told.
//!
//! A few writers, readers and transactions on few keys, so that they get in each other's way; and fresh keys that are
//! written once, for the account of acknowledgements. Every value is written once in a run, so that a change tells who made
//! it. An answer that is no plain refusal leaves the outcome open.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use quorate_audit::acks::Ack;
use quorate_audit::history::{Answer, Call, Compare, Line, Relation, Target};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{request_op, response_op};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::chaos::members::channel;
use crate::poll;
use crate::writer::plain;

/// Keys that clients fight over.
const REGISTERS: u64 = 8;
/// Keys written once begin with this, registers with `r/`.
pub const ONCE_PREFIX: &str = "once/";
/// After this an operation's outcome counts as unknown: above an election, below a person's patience.
const CALL_LIMIT: Duration = Duration::from_secs(2);
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Between two operations of a client: leaves the two cores of a small machine to the members.
const PAUSE: Duration = Duration::from_millis(4);
/// After a failed operation.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longer values are kept as their length and a hash, so that a recording stays small.
const VALUE_BYTES_KEPT: usize = 256;

/// A value as the recording has it. The same for what was sent and for what is read back.
pub fn kept(value: String) -> String {
    if value.len() <= VALUE_BYTES_KEPT {
        return value;
    }
    let hash = value.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes, hash {hash:016x}", value.len())
}

/// What all clients of a run share.
#[derive(Debug)]
pub struct Recorder {
    lines: Mutex<Vec<Line>>,
    /// One list for each client, in order.
    acks: Mutex<BTreeMap<u64, Vec<Ack>>>,
    order: AtomicU64,
    started: Instant,
    acknowledged: AtomicU64,
    reads: AtomicU64,
    refused: AtomicU64,
    last_ack_us: AtomicU64,
    gap_us: AtomicU64,
    /// Bytes by which values are made longer.
    padding: AtomicUsize,
    stop: AtomicBool,
}

/// How a call went, for who made it.
#[derive(Debug)]
pub enum Told {
    Answered(Answer),
    Refused(Status),
    Unknown(String),
}

impl Recorder {
    fn new() -> Recorder {
        Recorder {
            lines: Mutex::default(),
            acks: Mutex::default(),
            order: AtomicU64::new(1),
            started: Instant::now(),
            acknowledged: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_ack_us: AtomicU64::new(0),
            gap_us: AtomicU64::new(0),
            padding: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn line(&self, line: Line) {
        self.lines.lock().expect("no holder of this lock panics").push(line);
    }

    fn tick(&self) -> u64 {
        self.order.fetch_add(1, Ordering::SeqCst)
    }

    /// Makes one call and records it.
    pub async fn call(&self, kv: &mut KvClient<Channel>, client: u64, call: Call) -> Told {
        let id = self.tick();
        let recorded = match &call {
            Call::Put { key, value } => Call::Put { key: key.clone(), value: kept(value.clone()) },
            other => other.clone(),
        };
        self.line(Line::Invoke { id, client, order: id, call: recorded.clone() });
        let answered = tokio::time::timeout(CALL_LIMIT, send(kv, &call)).await;
        match answered {
            Ok(Ok(answer)) => {
                self.line(Line::Return { id, order: self.tick(), answer: answer.clone() });
                self.count(client, &recorded, &answer);
                Told::Answered(answer)
            }
            Ok(Err(status)) if is_refusal(&status) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                self.line(Line::Refused { id });
                Told::Refused(status)
            }
            Ok(Err(status)) => {
                self.line(Line::Unknown { id });
                Told::Unknown(status.message().to_owned())
            }
            Err(_) => {
                self.line(Line::Unknown { id });
                Told::Unknown(format!("no answer within {} ms", CALL_LIMIT.as_millis()))
            }
        }
    }

    fn count(&self, client: u64, call: &Call, answer: &Answer) {
        if !answer.wrote() {
            self.reads.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let last = self.last_ack_us.swap(now, Ordering::SeqCst);
        if last != 0 {
            self.gap_us.fetch_max(now.saturating_sub(last), Ordering::SeqCst);
        }
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        if let Call::Put { key, value } = call
            && key.starts_with(ONCE_PREFIX)
        {
            let ack = Ack { key: key.clone(), value: value.clone(), revision: answer.revision() };
            self.acks.lock().expect("no holder of this lock panics").entry(client).or_default().push(ack);
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }
    pub fn operations(&self) -> u64 {
        self.acknowledged() + self.reads.load(Ordering::Relaxed)
    }
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
    /// Worst time between two acknowledged writes since the last call, counting the one that lasts.
    pub fn take_gap(&self) -> Duration {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let open = now.saturating_sub(self.last_ack_us.load(Ordering::SeqCst));
        Duration::from_micros(self.gap_us.swap(0, Ordering::SeqCst).max(open))
    }
    /// The time until the next write counts from now: what lies before is no fault's doing.
    pub fn forget_gap(&self) {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_ack_us.store(now, Ordering::SeqCst);
        self.gap_us.store(0, Ordering::SeqCst);
    }
    pub fn pad_values(&self, bytes: usize) {
        self.padding.store(bytes, Ordering::Relaxed);
    }
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().expect("no holder of this lock panics").clone()
    }
    /// Acknowledged writes of keys written once, for each client.
    pub fn acks(&self) -> Vec<Vec<Ack>> {
        self.acks.lock().expect("no holder of this lock panics").values().cloned().collect()
    }
}

/// Codes that mean: surely not executed, here or by us.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::InvalidArgument)
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    pub recorder: Arc<Recorder>,
    endpoints: Vec<String>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    next_client: AtomicU64,
}

impl Load {
    pub fn start(endpoints: Vec<String>, clients: usize, seed: u64) -> Load {
        let recorder = Arc::new(Recorder::new());
        let run = |n: u64| {
            let rng = Rng::with_seed(seed ^ (n + 1).wrapping_mul(0xa076_1d64_78bd_642f));
            tokio::spawn(client(recorder.clone(), endpoints.clone(), n, rng))
        };
        let workers = (0..clients as u64).map(run).collect();
        Load { recorder, endpoints, clients: workers, next_client: AtomicU64::new(clients as u64) }
    }

    /// One recorded write through each endpoint: the service is whole again.
    pub async fn answers_everywhere(&self, limit: Duration) -> Result<()> {
        for endpoint in &self.endpoints {
            let what = format!("a write through {endpoint}");
            poll::until(&what, limit, Duration::from_millis(50), async || self.write_through(endpoint).await).await?;
        }
        Ok(())
    }

    async fn write_through(&self, endpoint: &str) -> Result<()> {
        let client = self.next_client.fetch_add(1, Ordering::Relaxed);
        let mut kv = KvClient::new(channel(endpoint, CONNECT_LIMIT).await?);
        let call = Call::Put { key: format!("{ONCE_PREFIX}probe/{client}"), value: format!("probe-{client}") };
        match self.recorder.call(&mut kv, client, call).await {
            Told::Answered(_) => Ok(()),
            Told::Refused(status) => bail!("refused: {}", status.message()),
            Told::Unknown(why) => bail!("{why}"),
        }
    }

    /// Waits for further acknowledged writes.
    pub async fn progress(&self, count: u64, limit: Duration) -> Result<()> {
        let goal = self.recorder.acknowledged() + count;
        poll::until("writes to be acknowledged", limit, Duration::from_millis(5), async || {
            let now = self.recorder.acknowledged();
            if now >= goal { Ok(()) } else { bail!("{now} of {goal}") }
        })
        .await
    }

    /// Lets every client finish its operation.
    pub async fn stop(self) -> Result<Arc<Recorder>> {
        self.recorder.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.context("a client panicked")?;
        }
        Ok(self.recorder)
    }
}

async fn client(recorder: Arc<Recorder>, endpoints: Vec<String>, n: u64, mut rng: Rng) {
    let mut at = rng.usize(..endpoints.len());
    let mut kv = None;
    let mut count = 0;
    // The newest modification of each register this client knows of: what its transactions compare with.
    let mut seen = BTreeMap::new();
    while !recorder.stop.load(Ordering::SeqCst) {
        if kv.is_none() {
            at = (at + 1) % endpoints.len();
            kv = channel(&endpoints[at], CONNECT_LIMIT).await.ok().map(KvClient::new);
        }
        let Some(connected) = &mut kv else {
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        count += 1;
        let call = draw(&mut rng, n, count, &seen, recorder.padding.load(Ordering::Relaxed));
        match recorder.call(connected, n, call).await {
            Told::Answered(Answer::Range { kvs, .. }) => {
                seen.extend(kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)));
            }
            Told::Answered(_) => {}
            Told::Refused(_) => tokio::time::sleep(RETRY_PAUSE).await,
            Told::Unknown(_) => {
                kv = None;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The next call of a client.
fn draw(rng: &mut Rng, client: u64, count: u64, seen: &BTreeMap<String, i64>, padding: usize) -> Call {
    let register = format!("r/{}", rng.u64(..REGISTERS));
    let mut value = format!("v{client}-{count}");
    if padding > 0 {
        value.push('-');
        value.extend(std::iter::repeat_n('x', padding));
    }
    let get = |key: &str, serializable| Call::Range {
        key: key.to_owned(),
        range_end: String::new(),
        revision: 0,
        limit: 0,
        serializable,
    };
    match rng.u64(..100) {
        0..30 => Call::Put { key: format!("{ONCE_PREFIX}{client}/{count:08}"), value },
        30..50 => Call::Put { key: register, value },
        50..70 => get(&register, false),
        70..77 => get(&register, true),
        77..83 => Call::Range { key: "r/".into(), range_end: "r0".into(), revision: 0, limit: 0, serializable: false },
        83..88 => Call::DeleteRange { key: register, range_end: String::new() },
        _ => Call::Txn {
            compares: vec![Compare {
                target: Target::Mod(seen.get(&register).copied().unwrap_or(0)),
                key: register.clone(),
                relation: Relation::Equal,
            }],
            // Short values here: the recording keeps what is inside a transaction as it is.
            success: vec![Call::Put { key: register.clone(), value: format!("t{client}-{count}") }],
            failure: vec![get(&register, false)],
        },
    }
}

async fn send(kv: &mut KvClient<Channel>, call: &Call) -> Result<Answer, Status> {
    Ok(match call {
        Call::Put { .. } => put_answer(kv.put(to_put(call)).await?.into_inner().header),
        Call::DeleteRange { .. } => delete_answer(&kv.delete_range(to_delete(call)).await?.into_inner()),
        Call::Range { .. } => range_answer(&kv.range(to_range(call)).await?.into_inner()),
        Call::Txn { compares, success, failure } => {
            let request = pb::TxnRequest {
                compare: compares.iter().map(to_compare).collect(),
                success: success.iter().map(to_operation).collect(),
                failure: failure.iter().map(to_operation).collect(),
            };
            let answer = kv.txn(request).await?.into_inner();
            Answer::Txn {
                revision: revision(answer.header.as_ref()),
                succeeded: answer.succeeded,
                responses: answer.responses.iter().map(response).collect(),
            }
        }
    })
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |h| h.revision)
}

fn put_answer(header: Option<pb::ResponseHeader>) -> Answer {
    Answer::Put { revision: revision(header.as_ref()) }
}

fn delete_answer(answer: &pb::DeleteRangeResponse) -> Answer {
    Answer::DeleteRange { revision: revision(answer.header.as_ref()), deleted: answer.deleted }
}

fn range_answer(answer: &pb::RangeResponse) -> Answer {
    let kvs = answer.kvs.iter().map(plain).map(|kv| quorate_audit::Kv { value: kept(kv.value.clone()), ..kv });
    Answer::Range { revision: revision(answer.header.as_ref()), kvs: kvs.collect(), count: answer.count }
}

fn response(operation: &pb::ResponseOp) -> Answer {
    match &operation.response {
        Some(response_op::Response::ResponsePut(put)) => put_answer(put.header),
        Some(response_op::Response::ResponseDeleteRange(deleted)) => delete_answer(deleted),
        Some(response_op::Response::ResponseRange(range)) => range_answer(range),
        // Nothing here asks for one: an answer that fits no call is a violation when it is judged.
        Some(response_op::Response::ResponseTxn(_)) | None => {
            Answer::Txn { revision: 0, succeeded: false, responses: Vec::new() }
        }
    }
}

fn to_put(call: &Call) -> pb::PutRequest {
    let Call::Put { key, value } = call else { unreachable!("a put is asked for") };
    pb::PutRequest { key: key.clone().into(), value: value.clone().into(), ..pb::PutRequest::default() }
}

fn to_delete(call: &Call) -> pb::DeleteRangeRequest {
    let Call::DeleteRange { key, range_end } = call else { unreachable!("a delete is asked for") };
    pb::DeleteRangeRequest { key: key.clone().into(), range_end: range_end.clone().into(), prev_kv: false }
}

fn to_range(call: &Call) -> pb::RangeRequest {
    let Call::Range { key, range_end, revision, limit, serializable } = call else {
        unreachable!("a range is asked for")
    };
    pb::RangeRequest {
        key: key.clone().into(),
        range_end: range_end.clone().into(),
        revision: *revision,
        limit: i64::try_from(*limit).unwrap_or(0),
        serializable: *serializable,
        ..pb::RangeRequest::default()
    }
}

fn to_operation(call: &Call) -> pb::RequestOp {
    let request = match call {
        Call::Put { .. } => request_op::Request::RequestPut(to_put(call)),
        Call::DeleteRange { .. } => request_op::Request::RequestDeleteRange(to_delete(call)),
        Call::Range { .. } => request_op::Request::RequestRange(to_range(call)),
        Call::Txn { .. } => unreachable!("no client draws a transaction in a transaction"),
    };
    pb::RequestOp { request: Some(request) }
}

fn to_compare(compare: &Compare) -> pb::Compare {
    let (target, union) = match &compare.target {
        Target::Version(v) => (CompareTarget::Version, TargetUnion::Version(*v)),
        Target::Create(v) => (CompareTarget::Create, TargetUnion::CreateRevision(*v)),
        Target::Mod(v) => (CompareTarget::Mod, TargetUnion::ModRevision(*v)),
        Target::Value(v) => (CompareTarget::Value, TargetUnion::Value(v.clone().into())),
    };
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
        Relation::NotEqual => CompareResult::NotEqual,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.key.clone().into(),
        range_end: bytes::Bytes::new(),
        target_union: Some(union),
    }
}
