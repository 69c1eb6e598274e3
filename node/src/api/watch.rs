//! `etcdserverpb.Watch`: one stream, many watchers.
//!
//! The stream is driven by the connection that reads it: nothing is made before it can be sent, so a client that does
//! not read costs its queue and no more.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::mvccpb;
use quorate_state::command::FROM_KEY;
use quorate_state::{Event, KeyRange, StateError, View};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, ELECTIONS_WITHOUT_LEADER_MAX, ForLearner, convert, requires_leader, status};
use crate::watch::{Filters, Item, Progress, Sink, WatcherKey};

/// What answers of no watcher in particular carry.
const NO_WATCH_ID: i64 = -1;
/// Events read from history at a time, and events joined into one response.
const EVENTS_AT_ONCE: usize = 1_000;
/// A response is closed when it has grown to this; one revision is never split unless the client allows it.
const RESPONSE_BYTES: usize = 1 << 20;

const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

type Responses = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl pb::watch_server::Watch for Api {
    type WatchStream = Responses;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Responses>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let needs_leader = requires_leader(request.metadata());
        let session = Box::new(Session::new(self.clone(), request.into_inner(), needs_leader));
        let responses = futures::stream::unfold(session, |mut session| async move {
            let response = session.next().await?;
            Some((response, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One watcher as its stream sees it.
#[derive(Debug)]
struct Watcher {
    id: i64,
    range: KeyRange,
    filters: Filters,
    prev_kv: bool,
    fragment: bool,
    /// When it was last told something, if it wants to be told that nothing happens.
    told: Option<Instant>,
}

struct Session {
    api: Api,
    requests: Streaming<pb::WatchRequest>,
    has_requests: bool,
    needs_leader: bool,
    without_leader_since: Option<Instant>,
    sink: Arc<Sink>,
    watchers: BTreeMap<WatcherKey, Watcher>,
    keys: BTreeMap<i64, WatcherKey>,
    next_id: i64,
    outbox: VecDeque<pb::WatchResponse>,
    /// Watchers that read history, and from where.
    behind: VecDeque<(WatcherKey, i64)>,
    /// A popped item that could not be joined to the one before it.
    held: Option<Item>,
    /// The revision at which progress was asked for.
    progress_wanted: Option<i64>,
    moves: watch::Receiver<i64>,
    ticks: Interval,
    has_failed: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        for (key, watcher) in &self.watchers {
            self.api.hub().end(*key, &watcher.range);
        }
    }
}

/// What woke a session that had nothing to send.
enum Woken {
    Request(Option<pb::WatchRequest>),
    Pushed,
    Moved,
    Tick,
}

impl Session {
    fn new(api: Api, requests: Streaming<pb::WatchRequest>, needs_leader: bool) -> Session {
        let every = api.options().election_timeout.min(api.options().progress_notify_every);
        let mut ticks = interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let moves = api.hub().moves();
        Session {
            api,
            requests,
            has_requests: true,
            needs_leader,
            without_leader_since: None,
            sink: Arc::default(),
            watchers: BTreeMap::new(),
            keys: BTreeMap::new(),
            next_id: 0,
            outbox: VecDeque::new(),
            behind: VecDeque::new(),
            held: None,
            progress_wanted: None,
            moves,
            ticks,
            has_failed: false,
        }
    }

    /// The next response; `None` ends the stream.
    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        if self.has_failed {
            return None;
        }
        loop {
            if let Some(response) = self.outbox.pop_front() {
                return Some(Ok(response));
            }
            // Requests are answered before more events are made, so that a cancel is not stuck behind a flood.
            if self.has_requests
                && let Some(request) = self.requests.message().now_or_never()
            {
                self.take(request.ok()?);
                continue;
            }
            if let Some(item) = self.held.take().or_else(|| self.sink.pop()) {
                self.deliver(item);
                // Who reads history goes on between the batches of the others.
                self.catch_up();
                continue;
            }
            if !self.behind.is_empty() {
                self.catch_up();
                // History is long and the thread is shared.
                tokio::task::yield_now().await;
                continue;
            }
            match self.wait().await? {
                Woken::Request(request) => self.take(request),
                Woken::Pushed => {}
                Woken::Moved => self.progress(),
                Woken::Tick => {
                    if self.lacks_leader() {
                        self.has_failed = true;
                        return Some(Err(status::no_leader()));
                    }
                    self.notify_idle();
                }
            }
        }
    }

    async fn wait(&mut self) -> Option<Woken> {
        let needs_ticks = self.needs_leader || self.watchers.values().any(|watcher| watcher.told.is_some());
        tokio::select! {
            request = self.requests.message(), if self.has_requests => Some(Woken::Request(request.ok()?)),
            () = self.sink.pushed() => Some(Woken::Pushed),
            moved = self.moves.changed(), if self.progress_wanted.is_some() => {
                // The hub lives as long as the process.
                moved.ok()?;
                Some(Woken::Moved)
            }
            _ = self.ticks.tick(), if needs_ticks => Some(Woken::Tick),
        }
    }

    fn lacks_leader(&mut self) -> bool {
        if !self.needs_leader || self.api.handle().status().raft.leader.is_some() {
            self.without_leader_since = None;
            return false;
        }
        let since = *self.without_leader_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.api.options().election_timeout * ELECTIONS_WITHOUT_LEADER_MAX
    }

    // Requests.

    fn take(&mut self, request: Option<pb::WatchRequest>) {
        let Some(request) = request else {
            // The client has nothing more to ask; what it watches goes on.
            self.has_requests = false;
            return;
        };
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => {
                if let Some(key) = self.keys.get(&request.watch_id).copied() {
                    self.forget(key);
                    let revision = self.api.handle().view().revision();
                    let canceled = pb::WatchResponse { canceled: true, ..self.response(request.watch_id, revision) };
                    self.outbox.push_back(canceled);
                }
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_wanted = Some(self.api.handle().view().revision());
                self.progress();
            }
            // A request of a later version: nothing to answer.
            None => {}
        }
    }

    fn create(&mut self, request: pb::WatchCreateRequest) {
        let key = if request.key.is_empty() { bytes::Bytes::from_static(FROM_KEY) } else { request.key };
        let range = KeyRange::new(key, request.range_end);
        let reason = if range.is_empty() {
            Some(EMPTY_RANGE)
        } else if request.start_revision < 0 {
            Some(StateError::Compacted.message())
        } else if request.watch_id != 0 && self.keys.contains_key(&request.watch_id) {
            Some(DUPLICATE_ID)
        } else {
            None
        };
        if let Some(reason) = reason {
            return self.refuse(reason);
        }
        let id = if request.watch_id == 0 { self.free_id() } else { request.watch_id };
        let wants = |kind: FilterType| request.filters.contains(&i32::from(kind));
        let filters = Filters { no_puts: wants(FilterType::Noput), no_deletes: wants(FilterType::Nodelete) };
        let begun = self.api.hub().begin(range.clone(), filters, request.start_revision, self.sink.clone());
        self.keys.insert(id, begun.key);
        let watcher = Watcher {
            id,
            range,
            filters,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            told: request.progress_notify.then(Instant::now),
        };
        self.watchers.insert(begun.key, watcher);
        if let Some(from) = begun.behind_from {
            self.behind.push_back((begun.key, from));
        }
        let created = pb::WatchResponse { created: true, ..self.response(id, begun.revision) };
        self.outbox.push_back(created);
    }

    fn refuse(&mut self, reason: &str) {
        let revision = self.api.handle().view().revision();
        let refused = pb::WatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..self.response(NO_WATCH_ID, revision)
        };
        self.outbox.push_back(refused);
    }

    fn free_id(&mut self) -> i64 {
        while self.keys.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn forget(&mut self, key: WatcherKey) {
        if let Some(watcher) = self.watchers.remove(&key) {
            self.api.hub().end(key, &watcher.range);
            self.keys.remove(&watcher.id);
        }
        self.behind.retain(|(behind, _)| *behind != key);
    }

    // Progress.

    fn progress(&mut self) {
        let Some(wanted) = self.progress_wanted else { return };
        if self.watchers.is_empty() {
            // There is nobody to be in step.
            self.progress_wanted = None;
            return;
        }
        let watchers = self.watchers.iter().map(|(key, watcher)| (*key, &watcher.range));
        self.moves.mark_unchanged();
        match self.api.hub().progress(watchers, None, &self.sink, wanted) {
            Progress::Queued | Progress::Silent => self.progress_wanted = None,
            Progress::NotYet => {}
        }
    }

    fn notify_idle(&mut self) {
        let every = self.api.options().progress_notify_every;
        for (key, watcher) in &mut self.watchers {
            if watcher.told.is_some_and(|told| told.elapsed() >= every) {
                let one = std::iter::once((*key, &watcher.range));
                // Silence is right for one that is not in step.
                self.api.hub().progress(one, Some(*key), &self.sink, 0);
                watcher.told = Some(Instant::now());
            }
        }
    }

    // Events.

    fn response(&self, watch_id: i64, revision: i64) -> pb::WatchResponse {
        pb::WatchResponse { header: Some(self.api.header(revision)), watch_id, ..Default::default() }
    }

    fn deliver(&mut self, item: Item) {
        match item {
            Item::Events { watcher, batch, picks } => {
                let picked = |at: &u32| batch.events[*at as usize].clone();
                let mut events: Vec<Event> = picks.iter().map(picked).collect();
                self.join(watcher, &mut events);
                self.send(watcher, &events);
            }
            Item::Behind { watcher, from } => {
                if self.watchers.contains_key(&watcher) {
                    self.behind.push_back((watcher, from));
                }
            }
            Item::Progress { watcher: None, revision } => {
                let response = self.response(NO_WATCH_ID, revision);
                self.outbox.push_back(response);
            }
            Item::Progress { watcher: Some(key), revision } => {
                if let Some(watcher) = self.watchers.get(&key) {
                    let response = self.response(watcher.id, revision);
                    self.outbox.push_back(response);
                }
            }
        }
    }

    /// Adds what follows in the queue for the same watcher: fewer and larger responses when a client is slow.
    fn join(&mut self, watcher: WatcherKey, events: &mut Vec<Event>) {
        while events.len() < EVENTS_AT_ONCE {
            match self.sink.pop() {
                Some(Item::Events { watcher: same, batch, picks }) if same == watcher => {
                    events.extend(picks.iter().map(|at| batch.events[*at as usize].clone()));
                }
                other => {
                    self.held = other;
                    return;
                }
            }
        }
    }

    fn send(&mut self, key: WatcherKey, events: &[Event]) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        if let Some(told) = &mut watcher.told {
            *told = Instant::now();
        }
        let (id, fragment, prev_kv) = (watcher.id, watcher.fragment, watcher.prev_kv);
        let view = prev_kv.then(|| self.api.handle().view());
        let bytes_max = if fragment { self.api.options().max_request_bytes } else { usize::MAX };
        for part in parts(events, RESPONSE_BYTES.min(bytes_max), fragment) {
            let revision = part.events.last().map_or(0, Event::revision);
            let mut response = self.response(id, revision);
            response.fragment = part.is_fragment;
            response.events = part.events.iter().map(|event| to_wire(event, view.as_deref())).collect();
            self.outbox.push_back(response);
        }
    }

    /// Reads one stretch of history for the watcher that waits longest.
    fn catch_up(&mut self) {
        let Some((key, from)) = self.behind.pop_front() else { return };
        let Some(watcher) = self.watchers.get(&key) else { return };
        let (id, range, filters) = (watcher.id, watcher.range.clone(), watcher.filters);
        let view = self.api.handle().view();
        match view.events(&range, from, EVENTS_AT_ONCE) {
            Ok(mut read) => {
                read.events.retain(|event| filters.pass(event));
                self.send(key, &read.events);
                if !self.api.hub().resume(key, &range, read.next_revision) {
                    self.behind.push_back((key, read.next_revision));
                }
            }
            Err(_) => {
                // The only refusal: what it wants to read is gone.
                self.forget(key);
                let response = pb::WatchResponse {
                    canceled: true,
                    compact_revision: view.compact_revision(),
                    ..self.response(id, view.revision())
                };
                self.outbox.push_back(response);
            }
        }
    }
}

fn to_wire(event: &Event, view: Option<&View>) -> mvccpb::Event {
    convert::event(event, view.and_then(|view| view.prev_kv(event)))
}

#[derive(PartialEq, Debug)]
struct Part<'a> {
    events: &'a [Event],
    /// More of the same revision follows.
    is_fragment: bool,
}

/// Cuts events into responses of about `bytes_max`: between revisions, and within one only if the client allows it.
fn parts(events: &[Event], bytes_max: usize, may_split: bool) -> Vec<Part<'_>> {
    let mut all = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let weight = event.kv.key.len() + event.kv.value.len();
        let is_new = at == 0 || events[at - 1].revision() != event.revision();
        if at > start && bytes + weight > bytes_max && (is_new || may_split) {
            all.push(Part { events: &events[start..at], is_fragment: !is_new });
            (start, bytes) = (at, 0);
        }
        bytes += weight;
    }
    if start < events.len() {
        all.push(Part { events: &events[start..], is_fragment: false });
    }
    all
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_state::{EventKind, KeyValue};

    use super::*;

    fn events(revisions: &[i64]) -> Vec<Event> {
        let event = |revision: &i64| Event {
            kind: EventKind::Put,
            kv: Arc::new(KeyValue {
                key: Bytes::from_static(b"key"),
                value: Bytes::from(vec![0; 97]),
                mod_revision: *revision,
                version: 1,
                ..Default::default()
            }),
        };
        revisions.iter().map(event).collect()
    }

    fn cut(revisions: &[i64], bytes_max: usize, may_split: bool) -> Vec<(usize, bool)> {
        let events = events(revisions);
        parts(&events, bytes_max, may_split).iter().map(|part| (part.events.len(), part.is_fragment)).collect()
    }

    #[test]
    fn responses_end_between_revisions() {
        assert_eq!(cut(&[2, 2, 2, 3, 4], 250, false), [(3, false), (2, false)]);
        assert_eq!(cut(&[2, 3, 4], 1000, false), [(3, false)]);
        assert_eq!(cut(&[], 1000, false), []);
    }

    #[test]
    fn a_large_revision_is_split_only_for_who_allows_it() {
        assert_eq!(cut(&[2, 2, 2, 2, 2], 250, false), [(5, false)]);
        assert_eq!(cut(&[2, 2, 2, 2, 2], 250, true), [(2, true), (2, true), (1, false)]);
    }

    #[test]
    fn one_event_above_the_limit_is_sent_all_the_same() {
        assert_eq!(cut(&[2, 3], 10, true), [(1, false), (1, false)]);
    }
}
