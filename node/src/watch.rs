//! Who watches what: one place through which every batch of events passes once, in order of revision.
//!
//! Apply never waits for a watcher: batches arrive over a channel that drops what is not taken in time, and a watcher
//! that does not take its events keeps a cursor instead of a queue. Nothing is lost by either, because history is in
//! every view: whoever is behind reads it from there until it meets the live stream again.
//!
//! Must not know about gRPC; what a watcher is sent is decided in `api::watch`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_state::{Event, EventKind, KeyRange};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};

use crate::handle::{EventBatch, Handle};

/// Batches that wait in one stream; a stream that has more to take reads history instead.
const QUEUED_MAX: usize = 1024;
/// A snapshot from the leader moves the state without events: this often it is looked for while somebody watches.
const LOOK_FOR_JUMPS: Duration = Duration::from_millis(100);

/// Names one watcher of this process, never used again.
pub type WatcherKey = u64;

/// Which kinds of events a watcher wants.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Filters {
    pub no_puts: bool,
    pub no_deletes: bool,
}

impl Filters {
    pub fn pass(self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => !self.no_puts,
            EventKind::Delete => !self.no_deletes,
        }
    }
}

/// What a stream of watchers finds in its queue.
#[derive(Debug)]
pub enum Item {
    /// `picks` are positions in the batch.
    Events { watcher: WatcherKey, batch: Arc<EventBatch>, picks: Vec<u32> },
    /// The watcher gets nothing more until it has read history from here and was resumed.
    Behind { watcher: WatcherKey, from: i64 },
    /// Everything up to `revision` stands before this in the queue: of one watcher, or of all in the stream.
    Progress { watcher: Option<WatcherKey>, revision: i64 },
}

/// The queue of one stream. Bounded by [`QUEUED_MAX`] and one mark per watcher.
#[derive(Debug, Default)]
pub struct Sink {
    queue: Mutex<VecDeque<Item>>,
    wake: Notify,
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Item>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pop(&self) -> Option<Item> {
        self.lock().pop_front()
    }

    /// Ends when something was pushed since the last call. Only one task may wait.
    pub async fn pushed(&self) {
        self.wake.notified().await;
    }

    fn push(&self, item: Item) {
        self.lock().push_back(item);
        self.wake.notify_one();
    }

    /// Whether there was room.
    fn offer(&self, watcher: WatcherKey, batch: &Arc<EventBatch>, picks: Vec<u32>) -> bool {
        let mut queue = self.lock();
        let has_room = queue.len() < QUEUED_MAX;
        queue.push_back(if has_room {
            Item::Events { watcher, batch: batch.clone(), picks }
        } else {
            Item::Behind { watcher, from: batch.revision }
        });
        drop(queue);
        self.wake.notify_one();
        has_room
    }
}

/// # Invariants
/// - a live watcher has been offered every event of its range from `next` up to the revision dispatched;
/// - one that is not live has a [`Item::Behind`] in its queue, or its stream is reading history for it.
#[derive(Debug)]
struct Watcher {
    range: KeyRange,
    filters: Filters,
    /// Events below are not for it.
    next: i64,
    /// The start it asked for; 0 is "from now".
    asked: i64,
    is_live: bool,
    sink: Arc<Sink>,
}

/// How a watcher begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begun {
    pub key: WatcherKey,
    /// The store's revision at that moment; "from now" is above it.
    pub revision: i64,
    /// Where to read history from before it can be resumed; `None` when it is live already.
    pub behind_from: Option<i64>,
}

/// What came of a request for progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    Queued,
    /// Events up to the revision wanted are on their way: ask again when the hub has moved.
    NotYet,
    /// Some watcher is behind or not yet at its start: nothing can be said.
    Silent,
}

#[derive(Debug)]
struct State {
    /// Every event up to here was offered to the live watchers.
    dispatched: i64,
    keys: WatcherKey,
    /// Watchers of one key, by that key, and all others.
    singles: HashMap<Bytes, BTreeMap<WatcherKey, Watcher>>,
    ranges: BTreeMap<WatcherKey, Watcher>,
}

impl State {
    fn new(dispatched: i64) -> State {
        State { dispatched, keys: 0, singles: HashMap::new(), ranges: BTreeMap::new() }
    }

    fn all(&mut self) -> impl Iterator<Item = (&WatcherKey, &mut Watcher)> {
        self.singles.values_mut().flatten().chain(&mut self.ranges)
    }

    fn get(&mut self, key: WatcherKey, range: &KeyRange) -> Option<&mut Watcher> {
        if range.is_one() { self.singles.get_mut(&range.key)?.get_mut(&key) } else { self.ranges.get_mut(&key) }
    }

    fn begin(&mut self, range: KeyRange, filters: Filters, asked: i64, sink: Arc<Sink>, revision: i64) -> Begun {
        self.keys += 1;
        let key = self.keys;
        let revision = revision.max(self.dispatched);
        let next = if asked == 0 { revision + 1 } else { asked };
        let is_live = next > self.dispatched;
        let watcher = Watcher { range: range.clone(), filters, next, asked, is_live, sink };
        if range.is_one() {
            self.singles.entry(range.key).or_default().insert(key, watcher);
        } else {
            self.ranges.insert(key, watcher);
        }
        Begun { key, revision, behind_from: (!is_live).then_some(next) }
    }

    fn end(&mut self, key: WatcherKey, range: &KeyRange) {
        if !range.is_one() {
            self.ranges.remove(&key);
        } else if let Some(watchers) = self.singles.get_mut(&range.key) {
            watchers.remove(&key);
            if watchers.is_empty() {
                self.singles.remove(&range.key);
            }
        }
    }

    /// Whether a watcher that has read history below `next` is live again.
    fn resume(&mut self, key: WatcherKey, range: &KeyRange, next: i64) -> bool {
        let dispatched = self.dispatched;
        let Some(watcher) = self.get(key, range) else { return true };
        if next <= dispatched {
            return false;
        }
        watcher.next = next;
        watcher.is_live = true;
        true
    }

    fn dispatch(&mut self, batch: &Arc<EventBatch>) {
        if batch.revision <= self.dispatched {
            return;
        }
        self.skip_to(batch.revision - 1);
        self.dispatched = batch.revision;
        for (at, event) in batch.events.iter().enumerate() {
            // A key changes once in a revision: a watcher of one key has one event.
            for (key, watcher) in self.singles.get_mut(&event.kv.key).into_iter().flatten() {
                if watcher.wants(batch.revision) && watcher.filters.pass(event) {
                    watcher.offer(*key, batch, vec![u32::try_from(at).expect("a batch has few events")]);
                }
            }
        }
        for (key, watcher) in &mut self.ranges {
            if !watcher.wants(batch.revision) {
                continue;
            }
            let picks: Vec<u32> = (0..)
                .zip(&batch.events)
                .filter(|(_, event)| watcher.range.contains(&event.kv.key) && watcher.filters.pass(event))
                .map(|(at, _)| at)
                .collect();
            if !picks.is_empty() {
                watcher.offer(*key, batch, picks);
            }
        }
    }

    fn is_watched(&self) -> bool {
        !self.singles.is_empty() || !self.ranges.is_empty()
    }

    /// Batches up to `revision` will not come: who wanted them reads history.
    fn skip_to(&mut self, revision: i64) {
        let first = self.dispatched + 1;
        if revision < first {
            return;
        }
        for (key, watcher) in self.all() {
            if watcher.wants(revision) {
                watcher.is_live = false;
                watcher.sink.push(Item::Behind { watcher: *key, from: watcher.next.max(first) });
            }
        }
        self.dispatched = revision;
    }

    /// Queues progress for a stream's watchers, if all of them are live and past their starts.
    fn progress<'a>(
        &mut self,
        watchers: impl Iterator<Item = (WatcherKey, &'a KeyRange)>,
        of: Option<WatcherKey>,
        sink: &Sink,
        wanted: i64,
    ) -> Progress {
        if self.dispatched < wanted {
            return Progress::NotYet;
        }
        let revision = self.dispatched;
        for (key, range) in watchers {
            let is_in_step = self.get(key, range).is_some_and(|watcher| watcher.is_live && watcher.asked <= revision);
            if !is_in_step {
                return Progress::Silent;
            }
        }
        sink.push(Item::Progress { watcher: of, revision });
        Progress::Queued
    }
}

impl Watcher {
    fn wants(&self, revision: i64) -> bool {
        self.is_live && self.next <= revision
    }

    fn offer(&mut self, key: WatcherKey, batch: &Arc<EventBatch>, picks: Vec<u32>) {
        self.is_live = self.sink.offer(key, batch, picks);
    }
}

/// All watchers of this member.
#[derive(Debug)]
pub struct Hub {
    handle: Handle,
    state: Mutex<State>,
    /// The revision dispatched.
    moved: watch::Sender<i64>,
    /// Wakes who rests while nobody watches.
    begun: Notify,
}

impl Hub {
    /// Takes every batch that is applied from now on, for as long as the process lives.
    pub fn start(handle: Handle) -> Arc<Hub> {
        let mut batches = handle.applied_events();
        // Subscribed first: what this view does not hold yet will come as a batch.
        let revision = handle.view().revision();
        let hub = Arc::new(Hub {
            handle,
            state: Mutex::new(State::new(revision)),
            moved: watch::Sender::new(revision),
            begun: Notify::new(),
        });
        let running = hub.clone();
        tokio::spawn(async move {
            let mut seen = revision;
            let mut look = tokio::time::interval(LOOK_FOR_JUMPS);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let is_watched = running.lock().is_watched();
                tokio::select! {
                    biased;
                    batch = batches.recv() => match batch {
                        Ok(batch) => running.act(|state| state.dispatch(&batch)),
                        // The batch that follows is beyond a gap, and says so itself.
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return,
                    },
                    () = running.begun.notified(), if !is_watched => {}
                    _ = look.tick(), if is_watched => {
                        // Nothing came for a whole interval: what this revision was made of will not come.
                        running.act(|state| state.skip_to(seen));
                        seen = running.handle.view().revision();
                    }
                }
            }
        });
        hub
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, act: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let before = state.dispatched;
        act(&mut state);
        let after = state.dispatched;
        drop(state);
        if after != before {
            self.moved.send_replace(after);
        }
    }

    pub(crate) fn begin(&self, range: KeyRange, filters: Filters, asked: i64, sink: Arc<Sink>) -> Begun {
        let mut state = self.lock();
        let revision = self.handle.view().revision();
        let begun = state.begin(range, filters, asked, sink, revision);
        self.begun.notify_one();
        begun
    }

    pub(crate) fn end(&self, key: WatcherKey, range: &KeyRange) {
        self.lock().end(key, range);
    }

    pub(crate) fn resume(&self, key: WatcherKey, range: &KeyRange, next: i64) -> bool {
        self.lock().resume(key, range, next)
    }

    pub(crate) fn progress<'a>(
        &self,
        watchers: impl Iterator<Item = (WatcherKey, &'a KeyRange)>,
        of: Option<WatcherKey>,
        sink: &Sink,
        wanted: i64,
    ) -> Progress {
        self.lock().progress(watchers, of, sink, wanted)
    }

    /// Tells the revision dispatched whenever it moves.
    pub(crate) fn moves(&self) -> watch::Receiver<i64> {
        self.moved.subscribe()
    }

    /// How many watchers there are, and how many of them read history.
    pub fn counts(&self) -> (usize, usize) {
        let mut state = self.lock();
        let mut counts = (0, 0);
        for (_, watcher) in state.all() {
            counts.0 += 1;
            counts.1 += usize::from(!watcher.is_live);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::KeyValue;

    use super::*;

    fn batch(revision: i64, keys: &[&str]) -> Arc<EventBatch> {
        let event = |key: &&str| Event {
            kind: EventKind::Put,
            kv: Arc::new(KeyValue {
                key: Bytes::from((*key).to_owned()),
                mod_revision: revision,
                version: 1,
                ..Default::default()
            }),
        };
        Arc::new(EventBatch { revision, events: keys.iter().map(event).collect() })
    }

    /// What is in the queue: (watcher, first number, second number).
    fn drain(sink: &Sink) -> Vec<String> {
        std::iter::from_fn(|| sink.pop())
            .map(|item| match item {
                Item::Events { watcher, batch, picks } => format!("{watcher}: events {} {picks:?}", batch.revision),
                Item::Behind { watcher, from } => format!("{watcher}: behind {from}"),
                Item::Progress { watcher, revision } => format!("progress {watcher:?} {revision}"),
            })
            .collect()
    }

    fn begin(state: &mut State, range: &KeyRange, asked: i64, sink: &Arc<Sink>) -> Begun {
        let revision = state.dispatched;
        state.begin(range.clone(), Filters::default(), asked, sink.clone(), revision)
    }

    #[test]
    fn a_watcher_gets_its_range_from_its_start() {
        let (mut state, sink) = (State::new(5), Arc::new(Sink::default()));
        let a = begin(&mut state, &KeyRange::one("a"), 0, &sink);
        let all = begin(&mut state, &KeyRange::all(), 7, &sink);
        assert_eq!((a.revision, a.behind_from, all.behind_from), (5, None, None));
        state.dispatch(&batch(6, &["a", "b"]));
        state.dispatch(&batch(7, &["b", "a"]));
        assert_eq!(drain(&sink), ["1: events 6 [0]", "1: events 7 [1]", "2: events 7 [0, 1]"]);
        state.dispatch(&batch(7, &["a"]));
        assert_eq!(drain(&sink), Vec::<String>::new(), "a batch is dispatched once");
    }

    #[test]
    fn a_start_in_the_past_reads_history_until_it_meets_the_present() {
        let (mut state, sink, range) = (State::new(5), Arc::new(Sink::default()), KeyRange::all());
        let begun = begin(&mut state, &range, 3, &sink);
        assert_eq!(begun.behind_from, Some(3));
        state.dispatch(&batch(6, &["a"]));
        assert_eq!(drain(&sink), Vec::<String>::new());
        assert!(!state.resume(begun.key, &range, 6), "6 went by meanwhile");
        assert!(state.resume(begun.key, &range, 8), "history may be ahead of the hub");
        state.dispatch(&batch(7, &["a"]));
        state.dispatch(&batch(8, &["a"]));
        assert_eq!(drain(&sink), ["1: events 8 [0]"]);
    }

    #[test]
    fn now_is_what_was_published_not_what_was_dispatched() {
        let (mut state, sink) = (State::new(5), Arc::new(Sink::default()));
        let begun = state.begin(KeyRange::all(), Filters::default(), 0, sink.clone(), 6);
        assert_eq!((begun.revision, begun.behind_from), (6, None));
        state.dispatch(&batch(6, &["a"]));
        state.dispatch(&batch(7, &["a"]));
        assert_eq!(drain(&sink), ["1: events 7 [0]"]);
    }

    #[test]
    fn who_does_not_take_its_events_loses_its_place_but_no_event() {
        let (mut state, sink, range) = (State::new(1), Arc::new(Sink::default()), KeyRange::all());
        begin(&mut state, &range, 0, &sink);
        let last = 1 + i64::try_from(QUEUED_MAX).expect("small");
        for revision in 2..=last + 3 {
            state.dispatch(&batch(revision, &["a"]));
        }
        let queued = drain(&sink);
        assert_eq!(queued.len(), QUEUED_MAX + 1);
        assert_eq!(queued.last().map(String::as_str), Some(format!("1: behind {}", last + 1).as_str()));
    }

    #[test]
    fn a_gap_sends_everybody_who_wanted_it_to_history() {
        let (mut state, sink) = (State::new(5), Arc::new(Sink::default()));
        begin(&mut state, &KeyRange::all(), 0, &sink);
        begin(&mut state, &KeyRange::all(), 9, &sink);
        state.dispatch(&batch(9, &["a"]));
        assert_eq!(drain(&sink), ["1: behind 6", "2: events 9 [0]"]);
    }

    #[test]
    fn progress_comes_after_events_and_only_when_all_are_in_step() {
        let (mut state, sink, range) = (State::new(5), Arc::new(Sink::default()), KeyRange::all());
        let now = begin(&mut state, &range, 0, &sink);
        state.dispatch(&batch(6, &["a"]));
        let asked = [(now.key, &range)];
        assert_eq!(state.progress(asked.into_iter(), None, &sink, 7), Progress::NotYet);
        assert_eq!(state.progress(asked.into_iter(), None, &sink, 6), Progress::Queued);
        assert_eq!(drain(&sink), ["1: events 6 [0]", "progress None 6"]);
        let future = begin(&mut state, &range, 8, &sink);
        let both = [(now.key, &range), (future.key, &range)];
        assert_eq!(state.progress(both.into_iter(), None, &sink, 6), Progress::Silent);
        let past = begin(&mut state, &range, 2, &sink);
        assert_eq!(state.progress([(past.key, &range)].into_iter(), None, &sink, 6), Progress::Silent);
    }

    #[test]
    fn filters_leave_kinds_out_and_the_end_of_a_watcher_is_its_end() {
        let (mut state, sink, range) = (State::new(1), Arc::new(Sink::default()), KeyRange::one("a"));
        let filters = Filters { no_puts: true, no_deletes: false };
        let deletes = state.begin(range.clone(), filters, 0, sink.clone(), 1);
        let ended = begin(&mut state, &range, 0, &sink);
        state.end(ended.key, &range);
        state.dispatch(&batch(2, &["a"]));
        assert_eq!(drain(&sink), Vec::<String>::new());
        state.end(deletes.key, &range);
        assert!(state.singles.is_empty());
    }
}
