//! Messages between members over TCP, plain or TLS.
//!
//! Each member dials each other one twice: a control connection for everything small, so that votes and answers never
//! queue behind entries, and a bulk connection for appends and forwarded proposals. Heartbeats follow the appends in
//! order, by which a leader learns what was lost; only when many bytes wait do they go ahead on the control connection. Snapshots dial a connection of their
//! own. What cannot be sent now is dropped: the core repeats what matters.
//!
//! Must not decide anything about consensus, and must not block the driver.

mod comings;
pub mod frame;
mod identities;
mod link;
mod listener;
mod repairs;
mod shared;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use quorate_raft::io::{Change, Refusal};
use quorate_raft::types::{Config, ConfigAt, Index, MemberId, Term, Time};
use quorate_raft::wire::Msg;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub(crate) use comings::Comings;
use frame::FRAME_HEADER_BYTES;
pub use frame::{Frame, Hello, Purpose};
pub use identities::Refused;
pub(crate) use identities::{Identities, reread_identities};
pub(crate) use link::{ask_members, authority, read_frame};
pub(crate) use listener::serve;
pub(crate) use repairs::{ANSWER_BYTES_MAX, ask_entries};

use crate::driver::{DriverInput, Inbox};
use crate::snapshot::Snapshots;
use crate::tls::Plane;
use crate::versions::Versions;

/// Bytes queued for one connection; beyond, messages are dropped as a network would.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// A heartbeat waits behind no more than this.
const SHORT_QUEUE_BYTES: usize = 256 << 10;
/// The driver writes frames up to this size itself; encoding and copying larger ones is the task's.
const DIRECT_BYTES_MAX: usize = 16 << 10;
/// Connections to somebody who is in no configuration are kept this long after the last message: long enough to tell a
/// member that it was removed.
const STRANGER_KEPT_US: u64 = 60_000_000;

/// What arrives from a peer for the driver.
#[derive(Debug)]
pub enum PeerInput {
    Msgs(Vec<Msg>),
    Forward { number: u64, term: Term, payload: Bytes },
    ForwardRefused { number: u64, term: Term, is_full: bool },
    Room { is_low: bool },
    Change { number: u64, expect: Option<ConfigAt>, change: Change },
    ChangeAnswer { number: u64, answer: ChangeAnswer },
}

/// How a forwarded change ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeAnswer {
    Done(ConfigAt),
    Refused(Refusal),
    Unknown,
}

/// What every connection needs to know.
#[derive(Debug)]
pub(crate) struct Local {
    pub hello: Hello,
    pub inbox: Inbox,
    pub snapshots: Arc<Snapshots>,
    /// Peer URLs by member: from configurations, and from hellos of members no configuration here names yet.
    pub addresses: Mutex<BTreeMap<MemberId, Vec<String>>>,
    /// The newest committed configuration, for those who ask to join.
    pub members: Mutex<(ConfigAt, Arc<Config>)>,
    pub identities: Identities,
    pub versions: Arc<Versions>,
    /// Which processes have introduced themselves.
    pub comings: Comings,
    /// How to dial, and whom to let in.
    pub plane: Arc<Plane>,
}

impl Local {
    pub(crate) fn urls_of(&self, id: MemberId) -> Vec<String> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().unwrap_or_default()
    }
    pub(crate) fn learn_urls(&self, id: MemberId, urls: &[String]) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if !urls.is_empty() {
            addresses.insert(id, urls.to_vec());
        }
    }
}

/// What waits for a connection's task.
#[derive(Debug)]
pub(crate) enum Queued {
    Frame(Frame),
    /// The end of a frame whose beginning the driver could write itself.
    Rest(Bytes),
}

impl Queued {
    fn size_bytes(&self) -> usize {
        match self {
            Queued::Frame(frame) => frame.size_bytes(),
            Queued::Rest(rest) => rest.len(),
        }
    }
}

/// What the driver and a connection's task both look at.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Zero: the task writes nothing and has nothing to write.
    pub queued_bytes: AtomicUsize,
    /// None while there is no connection.
    pub stream: ArcSwapOption<Direct>,
}

/// The driver's end of one connection. The task has the other, and ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: mpsc::UnboundedSender<Queued>,
    line: Arc<Line>,
}

/// Who writes small frames to a connection.
#[derive(Debug)]
pub(crate) enum Direct {
    Driver(Arc<TcpStream>),
    /// TLS has a state of its own between two writes, which is the task's.
    Task,
}

impl Queue {
    /// What is queued now leaves within a fraction of a heartbeat.
    fn is_short(&self) -> bool {
        self.line.queued_bytes.load(Ordering::Relaxed) < SHORT_QUEUE_BYTES && self.line.stream.load().is_some()
    }

    /// False when the frame was dropped. Only the driver pushes, so between its look at `queued_bytes` and its write
    /// nothing else gets in.
    fn push(&self, frame: Frame) -> bool {
        let bytes = frame.size_bytes();
        let queued = self.line.queued_bytes.load(Ordering::Acquire);
        let stream = self.line.stream.load();
        let Some(stream) = &*stream else { return false };
        if queued + bytes > QUEUED_BYTES_MAX {
            return false;
        }
        match &**stream {
            Direct::Driver(stream) if queued == 0 && bytes <= DIRECT_BYTES_MAX => self.write(stream, frame),
            Direct::Driver(_) | Direct::Task => self.enqueue(Queued::Frame(frame)),
        }
    }

    /// Writes a small frame from the driver's own thread: waking the task would cost more than the write, and a read
    /// waits for one such message to each follower and back.
    fn write(&self, stream: &TcpStream, frame: Frame) -> bool {
        let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + frame.size_bytes());
        frame.encode(&mut out);
        match stream.try_write(&out) {
            Ok(written) if written == out.len() => true,
            Ok(written) => self.enqueue(Queued::Rest(out.split_off(written).freeze())),
            // The task finds out what is wrong with the stream, or waits until it has room.
            Err(_) => self.enqueue(Queued::Rest(out.freeze())),
        }
    }

    fn enqueue(&self, queued: Queued) -> bool {
        self.line.queued_bytes.fetch_add(queued.size_bytes(), Ordering::Relaxed);
        self.sender.send(queued).is_ok()
    }
}

/// One other member.
#[derive(Debug)]
struct Peer {
    control: Queue,
    bulk: Queue,
    control_msgs: Vec<Msg>,
    bulk_msgs: Vec<Msg>,
    used: Time,
    /// The newest snapshot that was begun for it.
    snapshot: Option<AbortHandle>,
}

/// Every other member, as the driver sees them.
#[derive(Debug)]
pub(crate) struct Peers {
    local: Arc<Local>,
    runtime: tokio::runtime::Handle,
    peers: BTreeMap<MemberId, Peer>,
}

impl Peers {
    pub(crate) fn new(local: Arc<Local>, runtime: tokio::runtime::Handle) -> Peers {
        Peers { local, runtime, peers: BTreeMap::new() }
    }

    /// Takes note of where members are, and connects to each: an election must not begin with dialling, and members
    /// that never talk must still know each other's identities.
    pub(crate) fn set_members(&mut self, config: &Config) {
        for (id, info) in &config.members {
            self.local.learn_urls(*id, &info.peer_urls);
            if *id != self.local.hello.member {
                self.peer(*id);
            }
        }
    }

    /// Tells those who ask which configuration is committed.
    pub(crate) fn set_committed(&self, at: ConfigAt, config: Arc<Config>) {
        *self.local.members.lock().unwrap_or_else(PoisonError::into_inner) = (at, config);
    }

    fn peer(&mut self, id: MemberId) -> &mut Peer {
        let (local, runtime) = (&self.local, &self.runtime);
        self.peers.entry(id).or_insert_with(|| Peer {
            control: dial(local, runtime, id, Purpose::Control),
            bulk: dial(local, runtime, id, Purpose::Bulk),
            control_msgs: Vec::new(),
            bulk_msgs: Vec::new(),
            used: crate::clock::now(),
            snapshot: None,
        })
    }

    /// Queues a message; it leaves with the next [`Peers::flush`].
    pub(crate) fn send(&mut self, to: MemberId, msg: Msg) {
        let peer = self.peer(to);
        match msg {
            Msg::Append { .. } => peer.bulk_msgs.push(msg),
            Msg::Heartbeat { .. } if peer.bulk.is_short() => peer.bulk_msgs.push(msg),
            msg => peer.control_msgs.push(msg),
        }
    }

    /// One frame for each connection that has something to say.
    pub(crate) fn flush(&mut self) {
        for peer in self.peers.values_mut() {
            if peer.bulk_msgs.is_empty() && peer.control_msgs.is_empty() {
                continue;
            }
            peer.used = crate::clock::now();
            if !peer.bulk_msgs.is_empty() {
                peer.bulk.push(Frame::Msgs(std::mem::take(&mut peer.bulk_msgs)));
            }
            if !peer.control_msgs.is_empty() {
                peer.control.push(Frame::Msgs(std::mem::take(&mut peer.control_msgs)));
            }
        }
    }

    /// Ends connections to those who left. Dropping the queues ends their tasks.
    pub(crate) fn forget_strangers(&mut self, now: Time, config: &Config) {
        self.peers.retain(|id, peer| config.contains(*id) || now.since(peer.used) < STRANGER_KEPT_US);
    }

    /// False when it certainly did not leave this process.
    pub(crate) fn forward(&mut self, to: MemberId, number: u64, term: Term, payload: Bytes) -> bool {
        self.peer(to).bulk.push(Frame::Forward { number, term, payload })
    }
    pub(crate) fn forward_refused(&mut self, to: MemberId, number: u64, term: Term, is_full: bool) {
        self.peer(to).control.push(Frame::ForwardRefused { number, term, is_full });
    }
    pub(crate) fn tell_room(&mut self, to: MemberId, is_low: bool) {
        self.peer(to).control.push(Frame::Room { is_low });
    }
    pub(crate) fn forward_change(&mut self, to: MemberId, number: u64, expect: Option<ConfigAt>, change: &Change) {
        self.peer(to).control.push(Frame::Change { number, expect, change: change.clone() });
    }
    pub(crate) fn change_answer(&mut self, to: MemberId, number: u64, answer: &ChangeAnswer) {
        self.peer(to).control.push(Frame::ChangeAnswer { number, answer: answer.clone() });
    }

    /// Streams the newest checkpoint to a peer in a task of its own. One at a time: a receiver takes the newest connection
    /// and gives up the one before, and two that dial again and again would keep each other from getting anywhere.
    pub(crate) fn send_snapshot(&mut self, to: MemberId, term: Term) {
        let local = self.local.clone();
        let sending = self.runtime.spawn(async move {
            let (index, result) = snapshots::send(&local, to, term).await;
            if let Err(error) = &result {
                tracing::warn!(%to, index, "snapshot not delivered: {error:#}");
            }
            local.inbox.tell(DriverInput::SnapshotSent { to, index, ok: result.is_ok() });
        });
        let before = self.peer(to).snapshot.replace(sending.abort_handle());
        before.iter().for_each(AbortHandle::abort);
    }

    /// Snapshots are the leader's to send: those of a former one would only be in the way of its successor's.
    pub(crate) fn stop_snapshots(&mut self) {
        self.peers.values_mut().filter_map(|peer| peer.snapshot.take()).for_each(|sending| sending.abort());
    }
}

fn dial(local: &Arc<Local>, runtime: &tokio::runtime::Handle, to: MemberId, purpose: Purpose) -> Queue {
    let (sender, receiver) = mpsc::unbounded_channel();
    let line = Arc::<Line>::default();
    runtime.spawn(link::keep(local.clone(), to, purpose, line.clone(), receiver));
    Queue { sender, line }
}

/// The index of a snapshot that never was.
pub(crate) const NO_SNAPSHOT: Index = 0;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::snapshot::testing::{Member, small_member};
    use crate::tls::Role;

    /// What became of a connection of some purpose, by its number.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Seen {
        Began(usize),
        Ended(usize),
    }

    /// A peer that welcomes whoever comes, takes what it is sent, and never says that it has a snapshot.
    async fn slow_peer(listener: TcpListener, purpose: Purpose, seen: mpsc::UnboundedSender<Seen>) {
        let count = Arc::new(AtomicUsize::new(0));
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, count) = (seen.clone(), count.clone());
            tokio::spawn(async move {
                let Ok(Frame::Hello(hello)) = read_frame(&mut stream).await else { return };
                link::write_frame(&mut stream, &Frame::Welcome { refusal: None })
                    .await
                    .expect("it waits for a welcome");
                let number = (hello.purpose == purpose).then(|| count.fetch_add(1, Ordering::Relaxed));
                number.map(|number| seen.send(Seen::Began(number)));
                while read_frame(&mut stream).await.is_ok() {}
                number.map(|number| seen.send(Seen::Ended(number)));
            });
        }
    }

    async fn next(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
        let within = tokio::time::timeout(Duration::from_secs(30), seen.recv()).await;
        within.expect("connections begin and end as they should").expect("the peer goes on")
    }

    const TO: MemberId = MemberId(2);

    /// A member that knows of a slow peer, and what that one sees of connections of this purpose.
    async fn beside_slow_peer(member: &Member, purpose: Purpose) -> (Arc<Local>, mpsc::UnboundedReceiver<Seen>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (seen, told) = mpsc::unbounded_channel();
        tokio::spawn(slow_peer(listener, purpose, seen));
        let (inbox, _inputs) = std::sync::mpsc::channel();
        let local = Arc::new(Local {
            hello: Hello { member: MemberId(1), ..Hello::of_nobody(Purpose::Control, 0) },
            inbox: Inbox(inbox),
            snapshots: member.snapshots.clone(),
            addresses: Mutex::new(BTreeMap::from([(TO, vec![url])])),
            members: Mutex::default(),
            identities: Identities::open(member.dir.path().join("peers")).expect("nothing there yet"),
            versions: Arc::default(),
            comings: Comings::default(),
            plane: Arc::new(Plane::plain(Role::Peer)),
        });
        (local, told)
    }

    #[tokio::test]
    async fn one_snapshot_at_a_time_goes_to_a_member_and_none_when_this_one_stops_leading() {
        let member = small_member(20);
        let (local, mut told) = beside_slow_peer(&member, Purpose::Snapshot).await;
        let mut peers = Peers::new(local, tokio::runtime::Handle::current());
        peers.send_snapshot(TO, 1);
        assert_eq!(next(&mut told).await, Seen::Began(0));
        peers.send_snapshot(TO, 1);
        let mut both = [next(&mut told).await, next(&mut told).await];
        both.sort_by_key(|seen| *seen == Seen::Began(1));
        assert_eq!(both, [Seen::Ended(0), Seen::Began(1)]);
        peers.stop_snapshots();
        assert_eq!(next(&mut told).await, Seen::Ended(1));
    }

    #[tokio::test]
    async fn nobody_dials_a_member_that_left_for_long() {
        let member = small_member(20);
        let (local, mut told) = beside_slow_peer(&member, Purpose::Control).await;
        let mut peers = Peers::new(local.clone(), tokio::runtime::Handle::current());
        peers.tell_room(TO, false);
        assert_eq!(next(&mut told).await, Seen::Began(0));
        peers.forget_strangers(crate::clock::now().after(STRANGER_KEPT_US), &Config::default());
        assert_eq!(next(&mut told).await, Seen::Ended(0));
        drop(peers);
        let ended = async {
            while Arc::strong_count(&local) > 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.expect("whoever dialled has ended");
    }
}
