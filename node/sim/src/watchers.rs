//! Watchers: each follows a range of keys through crashes, reconnects and compactions, and writes down what it got.
//!
//! Served as the node's hub does it: events as they are applied while a watcher keeps up, history from a view when it does
//! not, nothing twice. What was written down is judged at the end of the run (I4).

use quorate_audit::history::{Batch, in_range};
use quorate_audit::{Change, history::WatchLog};
use quorate_raft::types::MemberId;

use crate::machine::Applied;
use crate::oracle::Violation;
use crate::rng::Rng;
use crate::world::{Event, World};

/// How often a watcher looks after itself.
const LOOK_US: (u64, u64) = (20_000, 400_000);
/// A queue that is full: one event in so many finds it so.
const BEHIND_EVERY: u64 = 24;

#[derive(Debug)]
pub(crate) struct Watcher {
    rng: Rng,
    log: WatchLog,
    /// Logs of watches that a compaction ended.
    ended: Vec<WatchLog>,
    /// The member and life it is connected to.
    at: Option<(MemberId, u64)>,
    /// It gets events as they are applied; else it reads history.
    is_live: bool,
    /// First revision it has not seen; 0 before it began.
    next: i64,
}

impl Watcher {
    fn new(id: u64, mut rng: Rng) -> Watcher {
        let (key, range_end) = match rng.below(3) {
            0 => (format!("k{}", rng.below(12)), String::new()),
            1 => ("k1".to_owned(), "k5".to_owned()),
            _ => ("k".to_owned(), "l".to_owned()),
        };
        let (no_put, no_delete) = (rng.chance(100), rng.chance(200));
        let log = WatchLog { id, key, range_end, no_put, no_delete, ..WatchLog::default() };
        Watcher { rng, log, ended: Vec::new(), at: None, is_live: false, next: 0 }
    }

    pub(crate) fn logs(&self) -> impl Iterator<Item = &WatchLog> {
        self.ended.iter().chain((self.next > 0).then_some(&self.log))
    }

    fn begin(&mut self, revision: i64) {
        self.next = revision;
        self.log.start_revision = revision;
    }

    fn wants(&self, change: &Change) -> bool {
        let filtered = if change.kv.is_some() { self.log.no_put } else { self.log.no_delete };
        !filtered && in_range(&self.log.key, &self.log.range_end, &change.key)
    }

    /// Changes of one or more whole revisions arrive.
    fn receive(&mut self, changes: impl IntoIterator<Item = Change>, next: i64) {
        let events: Vec<Change> = changes.into_iter().filter(|change| self.wants(change)).collect();
        if let Some(revision) = events.last().map(|event| event.revision) {
            self.log.batches.push(Batch { revision, events, fragment: false });
        }
        self.next = next;
    }

    /// A compaction took what it wanted: the watch ends, and a new one begins where history begins.
    fn compacted(&mut self, revision: i64) {
        let log = WatchLog { batches: Vec::new(), ..self.log.clone() };
        self.ended.push(std::mem::replace(&mut self.log, log));
        self.begin(revision);
    }
}

impl World {
    pub(crate) fn start_watchers(&mut self) {
        for at in 0..self.shape.watchers {
            let rng = self.rng.fork();
            self.watchers.push(Watcher::new(at as u64, rng));
            self.watcher_later(at);
        }
    }

    fn watcher_later(&mut self, at: usize) {
        let wait = self.watchers[at].rng.between(LOOK_US.0, LOOK_US.1);
        self.at(self.now + wait, Event::Watcher { watcher: at });
    }

    /// A watcher finds a member if it has none, reads what it missed, and is now and then told how far it is.
    pub(crate) fn watcher_looks(&mut self, at: usize) -> Result<(), Violation> {
        self.watcher_later(at);
        let mut watcher = std::mem::replace(&mut self.watchers[at], Watcher::new(0, Rng::new(0)));
        self.serve_watcher(&mut watcher);
        self.watchers[at] = watcher;
        Ok(())
    }

    fn serve_watcher(&mut self, watcher: &mut Watcher) {
        let is_there = watcher.at.is_some_and(|(id, life)| self.alive(id, life).is_some());
        if !is_there || watcher.rng.chance(20) {
            let up = self.up();
            let Some(id) = watcher.rng.pick(&up).copied() else { return };
            watcher.at = Some((id, self.members[&id].life));
            watcher.is_live = false;
        }
        let Some((id, life)) = watcher.at else { return };
        if self.members[&id].paused {
            return;
        }
        let Some(process) = self.alive(id, life) else { return };
        let machine = &process.machine;
        if watcher.next == 0 {
            watcher.begin(machine.revision() + 1);
        }
        if watcher.is_live {
            // Not before its start: this member may be behind what it has seen elsewhere.
            let is_past_start = watcher.next == machine.revision() + 1;
            if is_past_start && watcher.rng.chance(300) {
                let revision = machine.revision();
                watcher.log.batches.push(Batch { revision, events: Vec::new(), fragment: false });
            }
            return;
        }
        let limit = usize::try_from(watcher.rng.between(1, 40)).expect("a small number fits");
        match machine.events(&watcher.log.key, &watcher.log.range_end, watcher.next, limit) {
            Ok((changes, next)) => {
                let revision = machine.revision();
                watcher.receive(changes, next.max(watcher.next));
                watcher.is_live = watcher.next > revision;
                self.count("watch histories read");
            }
            Err(compact_revision) => {
                watcher.compacted(compact_revision);
                self.count("watches compacted");
            }
        }
    }

    /// A member has applied one revision.
    pub(crate) fn watch_events(&mut self, id: MemberId, life: u64, applied: &Applied) {
        if !self.watchers.iter().any(|watcher| watcher.is_live && watcher.at == Some((id, life))) {
            return;
        }
        let changes = applied.changes();
        let Some(revision) = changes.first().map(|change| change.revision) else { return };
        for watcher in &mut self.watchers {
            if watcher.at != Some((id, life)) || !watcher.is_live || watcher.next > revision {
                continue;
            }
            if watcher.rng.below(BEHIND_EVERY) == 0 {
                watcher.is_live = false;
                continue;
            }
            watcher.receive(changes.iter().cloned(), revision + 1);
        }
    }

    /// A snapshot moved a member's state without events: its watchers read history.
    pub(crate) fn watchers_jump(&mut self, id: MemberId) {
        if planted!(self, WatchSkipsGap) {
            return;
        }
        for watcher in self.watchers.iter_mut().filter(|watcher| watcher.at.is_some_and(|(at, _)| at == id)) {
            watcher.is_live = false;
        }
    }
}
