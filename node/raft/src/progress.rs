//! What a leader knows of one other member, and how it feeds it.
//!
//! Pure bookkeeping: decides what may be sent next, sends nothing. `matched` counts for commit, everything else is a
//! guess that a lost message or a restart may prove wrong.

use std::collections::VecDeque;

use crate::types::{Index, Time};

/// How entries are sent to this member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Feed {
    /// One append at a time until one matches. `sent`: last index and bytes of the one under way.
    Probe { sent: Option<(Index, usize)> },
    /// Appends follow each other within the window.
    Pipeline,
    /// It is behind the kept log; a snapshot travels. `floor`: entries above stay in the log for it.
    Snapshot { floor: Index },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Progress {
    /// Durable there and equal to this leader's log.
    pub(crate) matched: Index,
    /// The next entry to send.
    pub(crate) next: Index,
    pub(crate) feed: Feed,
    /// Appends not durable there yet: (last index, bytes).
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
    /// A heartbeat round sent behind entries up to this index: its answer must have received them, else they were lost.
    mark: Option<(u64, Index)>,
    /// A heartbeat round sent when its log held this much durably: its answer may not come from a shorter log.
    held: Option<(u64, Index)>,
    /// It answered from a log shorter than this, which it had held. Nothing of it counts in this term any more.
    pub(crate) reverted: Option<Index>,
    /// Equal to this leader's log there when it last said so, durable or not.
    received: Index,
    /// Highest heartbeat round answered, when that round was sent, and when the answer came.
    pub(crate) acked_round: u64,
    pub(crate) acked_sent: Option<Time>,
    /// How long from then it refuses votes.
    pub(crate) promise_us: u64,
    pub(crate) last_ack: Option<Time>,
    /// Commit index it has been told.
    pub(crate) commit_told: Index,
    /// Snapshots that ended since it last came further, and how far it came by then.
    fruitless: u32,
    furthest: Index,
    /// No snapshot before this.
    pub(crate) snapshot_due: Time,
}

/// The wait before another snapshot doubles with each that came to nothing, up to `1 << 6` heartbeats: a member without
/// room for it needs minutes, and reading its bytes again and again takes the disk from everybody else.
const FRUITLESS_DOUBLINGS_MAX: u32 = 6;

impl Progress {
    pub(crate) fn new(next: Index) -> Progress {
        Progress {
            matched: 0,
            next,
            feed: Feed::Probe { sent: None },
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            mark: None,
            held: None,
            reverted: None,
            received: 0,
            acked_round: 0,
            acked_sent: None,
            promise_us: 0,
            last_ack: None,
            commit_told: 0,
            fruitless: 0,
            furthest: 0,
            snapshot_due: Time(0),
        }
    }

    /// An append may be sent now.
    pub(crate) fn is_ready(&self, inflight_bytes_max: usize) -> bool {
        match self.feed {
            Feed::Probe { sent } => sent.is_none(),
            Feed::Pipeline => self.has_room(inflight_bytes_max),
            Feed::Snapshot { .. } => false,
        }
    }

    /// An append may carry entries. A probe without room goes without: it still tells where the logs are equal.
    pub(crate) fn has_room(&self, inflight_bytes_max: usize) -> bool {
        self.inflight_bytes < inflight_bytes_max
    }

    /// An append with entries up to `last` (or none, then `last` is `next - 1`) left.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize) {
        match &mut self.feed {
            Feed::Probe { sent } => *sent = Some((last, bytes)),
            Feed::Pipeline => {
                if last >= self.next {
                    self.hold(last, bytes);
                    self.next = last + 1;
                }
            }
            Feed::Snapshot { .. } => unreachable!("no append is sent while a snapshot travels"),
        }
    }

    fn hold(&mut self, last: Index, bytes: usize) {
        self.inflight.push_back((last, bytes));
        self.inflight_bytes += bytes;
    }

    /// A heartbeat of `round` left behind whatever was sent before. `sealed`: committed and durable there in whatever term.
    pub(crate) fn heartbeat_sent(&mut self, round: u64, sealed: Index) {
        if self.held.is_none() {
            self.held = Some((round, self.matched.max(sealed)));
        }
        if self.mark.is_none() {
            let last = match self.feed {
                Feed::Probe { sent } => sent.map(|(last, _)| last),
                Feed::Pipeline => Some(self.next - 1),
                Feed::Snapshot { .. } => None,
            };
            self.mark = last.map(|last| (round, last));
        }
    }

    /// An answer to `round` came from a log that ends at `last_index`. Returns what it held durably before the round was
    /// sent, if it lost some of that.
    pub(crate) fn lost(&mut self, round: u64, last_index: Index) -> Option<Index> {
        let (_, held) = self.held.take_if(|(sent, _)| round >= *sent)?;
        (last_index < held).then_some(held)
    }

    pub(crate) fn revert(&mut self, held: Index) {
        *self = Progress { reverted: Some(held), ..Progress::new(self.next) };
    }

    /// Where to send on after a loss: behind what it has received in this term, whatever of it is durable. Before the
    /// first match nothing is known, and the probe under way is repeated.
    pub(crate) fn resume_at(&self, received: Index) -> Index {
        match self.feed {
            Feed::Probe { .. } => self.next,
            Feed::Pipeline | Feed::Snapshot { .. } => received.max(self.received).max(self.matched) + 1,
        }
    }

    /// An answer to `round` said that entries up to `received` match. Returns whether something sent before that round
    /// was lost.
    pub(crate) fn is_lost(&mut self, round: u64, received: Index) -> bool {
        match self.mark {
            Some((marked, last)) if round >= marked => {
                self.mark = None;
                received < last
            }
            _ => false,
        }
    }

    /// The log up to `index` is durable there. Returns whether that was news.
    pub(crate) fn note_matched(&mut self, index: Index) -> bool {
        self.note_received(index);
        while let Some((_, bytes)) = self.inflight.front().copied().filter(|(last, _)| *last <= index) {
            self.inflight_bytes -= bytes;
            self.inflight.pop_front();
        }
        let is_news = index > self.matched;
        self.came_to(index);
        self.matched = self.matched.max(index);
        is_news
    }

    /// The log up to `index` equals this leader's there, durable or not: from here on appends may follow each other.
    pub(crate) fn note_received(&mut self, index: Index) {
        self.received = self.received.max(index);
        match self.feed {
            // A member that has no room takes nothing of a probe: then the next one follows a heartbeat later.
            Feed::Probe { sent } if index >= sent.map_or(self.next - 1, |(last, _)| last) => {
                // What the probe carried waits for that disk like everything before it.
                if let Some((last, bytes)) = sent.filter(|(last, _)| *last >= self.next) {
                    self.hold(last, bytes);
                }
                self.next = index + 1;
                self.pipeline();
            }
            Feed::Snapshot { floor } if index >= floor => {
                self.next = index + 1;
                self.pipeline();
            }
            Feed::Probe { .. } | Feed::Snapshot { .. } => {}
            Feed::Pipeline => self.next = self.next.max(index + 1),
        }
    }

    fn pipeline(&mut self) {
        self.feed = Feed::Pipeline;
        self.mark = None;
    }

    /// Starts over from `next`. What lies before it was received and keeps its place in the window until it is durable:
    /// a member whose disk hangs must not be sent one window more with each message that is lost.
    pub(crate) fn probe(&mut self, next: Index) {
        self.feed = Feed::Probe { sent: None };
        self.next = next;
        self.mark = None;
        while let Some((_, bytes)) = self.inflight.back().copied().filter(|(last, _)| *last >= next) {
            self.inflight_bytes -= bytes;
            self.inflight.pop_back();
        }
    }

    /// It lacks what a probe built on, so what it once received from `next` on is not there any more.
    pub(crate) fn rejected(&mut self, next: Index) {
        self.received = self.received.min(next - 1);
        self.probe(next);
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn probe_keeping_window(&mut self, next: Index) {
        self.next = next;
        self.mark = None;
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn probe_forgetting_window(&mut self, next: Index) {
        self.probe(next);
        self.forget_inflight();
    }

    pub(crate) fn snapshot(&mut self, floor: Index) {
        self.feed = Feed::Snapshot { floor };
        self.mark = None;
        self.forget_inflight();
    }

    /// A snapshot arrived or was given up. Whether it was of use shows later: till then the next one waits.
    pub(crate) fn snapshot_ended(&mut self, now: Time, heartbeat_us: u64) {
        let heartbeats = 1 << self.fruitless.min(FRUITLESS_DOUBLINGS_MAX);
        self.snapshot_due = now.after(heartbeat_us.saturating_mul(heartbeats));
        self.fruitless = self.fruitless.saturating_add(1);
    }

    /// It holds a snapshot or entries up to `index`. Further than before, and the next snapshot waits for nothing.
    pub(crate) fn came_to(&mut self, index: Index) {
        if index > self.furthest {
            (self.furthest, self.fruitless, self.snapshot_due) = (index, 0, Time(0));
        }
    }

    fn forget_inflight(&mut self) {
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// Heard from within `et_us` before `now`.
    pub(crate) fn is_active(&self, now: Time, et_us: u64) -> bool {
        self.last_ack.is_some_and(|ack| now.since(ack) <= et_us)
    }
}
