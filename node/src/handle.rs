//! What the services may ask of this member. Cheap to clone; knows no transport and no gRPC.
//!
//! Promise kept here and in [`crate::driver`]: an `Ok` of [`Handle::propose`] means committed by a majority, applied on
//! this member, and answered by the machine. [`CallError::Unknown`] means it may or may not take effect; every other
//! error means it certainly did not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use quorate_raft::io::{Change, ReadMode, Refusal};
use quorate_raft::types::{ConfigAt, MemberId};
use quorate_state::{Applied, Command, Event, StateError, View};
use tokio::sync::{broadcast, oneshot};

use crate::disk::DiskHealth;
use crate::driver::{DriverInput, Inbox};

/// Batches of watch events that a slow subscriber may lag behind before it must read history from a view.
pub const EVENT_BATCHES_BUFFERED: usize = 4096;
/// Requests that wait for an answer at one time; more are refused at once.
const REQUESTS_WAITING_MAX: usize = 100_000;

/// Why a call was not answered with a result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    #[error("no leader is known")]
    NoLeader,
    #[error("this member is not the leader")]
    NotLeader,
    #[error("the outcome is unknown: leadership changed before it was settled")]
    Unknown,
    #[error("no answer within the time limit; the outcome is unknown")]
    Timeout,
    #[error("this member is stopping")]
    Stopped,
    #[error("the request of {bytes} bytes is larger than the limit of {limit_bytes}")]
    TooLarge { bytes: usize, limit_bytes: usize },
    #[error("the volume is nearly full: delete keys and compact, or grow the volume")]
    NoSpace,
    #[error("too many requests are waiting")]
    TooManyRequests,
    #[error("this seed waits for the operator to activate it")]
    NotActivated,
    #[error("refused: {0:?}")]
    Refused(Refusal),
    #[error("the transfer of leadership did not finish in time; the old leader goes on")]
    TransferAborted,
    #[error("{0:?}")]
    State(StateError),
}

/// Events of one main revision, in order.
#[derive(Clone, Debug)]
pub struct EventBatch {
    pub revision: i64,
    pub events: Vec<Event>,
}

/// What a member says about itself. Instants are microseconds of the driver's clock.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub raft: quorate_raft::Status,
    /// When this was taken.
    pub at_us: u64,
    pub elections: u64,
    /// When this member last became leader; it may have stopped leading since.
    pub led_since_us: u64,
    pub failover_count: u64,
    pub last_failover_ms: u64,
    pub is_activated: bool,
    /// Inputs handled so far: moves while the driver lives.
    pub inputs: u64,
}

/// What never changes while a member runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: MemberId,
    pub incarnation: u64,
    pub generation: u64,
    pub name: String,
}

/// Requests that wait for their command to be applied here, by number.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<u64, Waiter>>);

#[derive(Debug)]
pub(crate) struct Waiter {
    pub sender: oneshot::Sender<Result<Applied, CallError>>,
    pub payload: Bytes,
    /// It was handed to a leader, here or elsewhere, and no refusal has come back: it may take effect.
    pub is_exposed: bool,
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn insert(&self, number: u64, waiter: Waiter) -> Result<(), CallError> {
        let mut waiting = self.lock();
        if waiting.len() >= REQUESTS_WAITING_MAX {
            return Err(CallError::TooManyRequests);
        }
        waiting.insert(number, waiter);
        Ok(())
    }
    pub(crate) fn take(&self, number: u64) -> Option<Waiter> {
        self.lock().remove(&number)
    }
    /// The command of a request that still waits, which from now on may take effect.
    pub(crate) fn expose(&self, number: u64) -> Option<Bytes> {
        let mut waiting = self.lock();
        let waiter = waiting.get_mut(&number)?;
        waiter.is_exposed = true;
        Some(waiter.payload.clone())
    }
    /// It was refused: it certainly has not taken effect.
    pub(crate) fn withdraw(&self, number: u64) {
        if let Some(waiter) = self.lock().get_mut(&number) {
            waiter.is_exposed = false;
        }
    }
    /// The driver is gone: everybody is told what is certain.
    pub(crate) fn end(&self) {
        for waiter in std::mem::take(&mut *self.lock()).into_values() {
            let error = if waiter.is_exposed { CallError::Unknown } else { CallError::Stopped };
            let _ = waiter.sender.send(Err(error));
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
    pub(crate) fn is_waiting(&self, number: u64) -> bool {
        self.lock().contains_key(&number)
    }
    pub(crate) fn fail(&self, number: u64, error: CallError) {
        if let Some(waiter) = self.take(number) {
            // The caller may have given up; nobody else waits for this answer.
            let _ = waiter.sender.send(Err(error));
        }
    }
}

/// Removes a waiter whose caller went away.
struct Forget<'a> {
    waiters: &'a Waiters,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiters.take(self.number);
    }
}

/// State that threads share for reading.
#[derive(Debug)]
pub(crate) struct Shared {
    pub identity: Identity,
    pub view: ArcSwap<View>,
    pub status: ArcSwap<NodeStatus>,
    pub events: broadcast::Sender<Arc<EventBatch>>,
    pub waiters: Waiters,
    pub numbers: AtomicU64,
    pub request_timeout: Duration,
    /// Durations of flushes since the start: count and sum in microseconds, and per bucket of [`FLUSH_BUCKETS_US`].
    pub flushes: Flushes,
    pub disk: DiskHealth,
    /// Held by the driver while it runs.
    pub ending: Arc<()>,
    /// True once this member stops and leads no more, or was removed: clients are sent to other members.
    pub leaving: tokio::sync::watch::Sender<bool>,
    /// Reads that wait for a view.
    pub reads: AtomicUsize,
}

/// One read that waits.
struct Reading<'a>(&'a AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Waits until clients are to be sent away.
    pub(crate) async fn left(&self) {
        // The sender lives as long as `self`.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    fn reading(&self) -> Result<Reading<'_>, CallError> {
        let reading = Reading(&self.reads);
        if self.reads.fetch_add(1, Ordering::Relaxed) >= REQUESTS_WAITING_MAX {
            return Err(CallError::TooManyRequests);
        }
        Ok(reading)
    }
}

/// Upper bounds of the flush histogram, in microseconds.
pub const FLUSH_BUCKETS_US: [u64; 12] =
    [125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 64_000, 256_000, 1_000_000, 8_000_000];

#[derive(Debug, Default)]
pub struct Flushes {
    pub count: AtomicU64,
    pub sum_us: AtomicU64,
    pub buckets: [AtomicU64; 12],
}

impl Flushes {
    pub(crate) fn record(&self, took_us: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
        if let Some(at) = FLUSH_BUCKETS_US.iter().position(|bound| took_us <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The services' way in.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Inbox,
}

impl Handle {
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// How long a request is held before it is answered with [`CallError::Timeout`].
    pub fn request_timeout(&self) -> Duration {
        self.shared.request_timeout
    }

    pub fn flushes(&self) -> &Flushes {
        &self.shared.flushes
    }

    /// What the disk under the log says of itself.
    pub fn disk(&self) -> &DiskHealth {
        &self.shared.disk
    }

    /// The machine's answer to `command`, once it is committed and applied on this member. Any member takes it.
    pub async fn propose(&self, command: &Command) -> Result<Applied, CallError> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let mut payload = BytesMut::with_capacity(64);
        payload.put_u64_le(self.shared.identity.member_id.0);
        payload.put_u64_le(number);
        command.encode(&mut payload);
        let payload = payload.freeze();
        let (sender, receiver) = oneshot::channel();
        self.shared.waiters.insert(number, Waiter { sender, payload, is_exposed: false })?;
        let _forget = Forget { waiters: &self.shared.waiters, number };
        self.inbox.send(DriverInput::Propose { number })?;
        match tokio::time::timeout(self.shared.request_timeout, receiver).await {
            Ok(answer) => answer.unwrap_or(Err(CallError::Unknown)),
            Err(_) => match self.shared.waiters.take(number) {
                // Nobody took it, and without a waiter nobody will.
                Some(waiter) if !waiter.is_exposed => Err(CallError::NoLeader),
                Some(_) | None => Err(CallError::Timeout),
            },
        }
    }

    /// A view that contains everything acknowledged before this call, anywhere in the cluster.
    pub async fn linearizable_view(&self) -> Result<Arc<View>, CallError> {
        self.view_by(ReadMode::Index).await
    }

    /// The same under the leader's lease, if leases are on and it holds one.
    pub async fn leased_view(&self) -> Result<Arc<View>, CallError> {
        self.view_by(ReadMode::Lease).await
    }

    async fn view_by(&self, mode: ReadMode) -> Result<Arc<View>, CallError> {
        let _reading = self.shared.reading()?;
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(DriverInput::Read { mode, sender })?;
        self.answer(receiver).await
    }

    /// The newest applied state of this member; may be behind the cluster.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    pub fn status(&self) -> Arc<NodeStatus> {
        self.shared.status.load_full()
    }

    /// A membership change, compared with `expect`. Any member takes it and asks the leader.
    pub async fn change(&self, expect: Option<ConfigAt>, change: Change) -> Result<ConfigAt, CallError> {
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(DriverInput::Change { expect, change, sender })?;
        self.answer(receiver).await
    }

    /// Hands leadership to `to`. Only the leader takes it.
    pub async fn transfer(&self, to: MemberId) -> Result<(), CallError> {
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(DriverInput::Transfer { to, sender })?;
        self.answer(receiver).await
    }

    /// Durably notes that the operator has recorded this cluster as bootstrapped; clients are served from then on.
    pub async fn activate(&self) -> Result<(), CallError> {
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(DriverInput::Activate { sender })?;
        self.answer(receiver).await
    }

    /// Every batch of events applied from now on, in order. A subscriber that lags too far is told and reads history.
    pub fn applied_events(&self) -> broadcast::Receiver<Arc<EventBatch>> {
        self.shared.events.subscribe()
    }

    /// For calls whose outcome a caller looks up again.
    async fn answer<T>(&self, receiver: oneshot::Receiver<Result<T, CallError>>) -> Result<T, CallError> {
        match tokio::time::timeout(self.shared.request_timeout, receiver).await {
            Ok(Ok(answer)) => answer,
            // The driver dropped the sender: it is ending.
            Ok(Err(_)) => Err(CallError::Stopped),
            Err(_) if self.status().raft.leader.is_none() => Err(CallError::NoLeader),
            Err(_) => Err(CallError::Timeout),
        }
    }
}
