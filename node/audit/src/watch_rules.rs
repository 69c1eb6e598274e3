//! What a watch promises, one function per promise, each against the full history of changes.
//!
//! Source: etcd's documented guarantees for watches (ordered, unique, reliable, atomic, resumable, bookmarkable).

use std::collections::BTreeSet;

use crate::history::{Change, History, WatchLog, in_range};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("watch {id} is not {promise}: {detail}")]
pub struct Broken {
    pub id: u64,
    pub promise: Promise,
    pub detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Promise {
    /// Revisions never go back.
    Ordered,
    /// No event comes twice.
    Unique,
    /// The events of a revision come in one response, or in fragments that follow each other.
    Atomic,
    /// What comes happened, in the range, as asked for.
    Truthful,
    /// From the start revision on, the first events are not skipped.
    Resumable,
    /// Between the first and the last seen, nothing is missing.
    Reliable,
    /// After a progress notification for R nothing at or below R comes, and nothing up to R is missing.
    Bookmarkable,
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Promise::Ordered => "ordered",
            Promise::Unique => "unique",
            Promise::Atomic => "atomic",
            Promise::Truthful => "truthful",
            Promise::Resumable => "resumable",
            Promise::Reliable => "reliable",
            Promise::Bookmarkable => "bookmarkable",
        })
    }
}

/// Checks every watch of a history.
///
/// # Errors
/// The first broken promise.
pub fn check(history: &History) -> Result<usize, Broken> {
    let mut seen = 0;
    for watch in &history.watches {
        seen += check_one(watch, &history.changes)?;
    }
    Ok(seen)
}

/// Checks one watch against every change there was, in order; gives the number of events it received.
pub fn check_one(watch: &WatchLog, changes: &[Change]) -> Result<usize, Broken> {
    let wanted: Vec<&Change> = changes.iter().filter(|change| is_asked_for(watch, change)).collect();
    ordered(watch)?;
    unique(watch)?;
    atomic(watch)?;
    truthful(watch, &wanted)?;
    resumable(watch, &wanted)?;
    reliable(watch, &wanted)?;
    bookmarkable(watch, &wanted)?;
    Ok(events(watch).count())
}

fn is_asked_for(watch: &WatchLog, change: &Change) -> bool {
    let filtered = if change.kv.is_some() { watch.no_put } else { watch.no_delete };
    change.revision >= watch.start_revision && !filtered && in_range(&watch.key, &watch.range_end, &change.key)
}

fn events(watch: &WatchLog) -> impl Iterator<Item = &Change> {
    watch.batches.iter().flat_map(|batch| &batch.events)
}

fn broken(watch: &WatchLog, promise: Promise, detail: String) -> Broken {
    Broken { id: watch.id, promise, detail }
}

fn ordered(watch: &WatchLog) -> Result<(), Broken> {
    let mut last = i64::MIN;
    for event in events(watch) {
        if event.revision < last {
            let detail = format!("revision {} comes after {last}", event.revision);
            return Err(broken(watch, Promise::Ordered, detail));
        }
        last = event.revision;
    }
    Ok(())
}

fn unique(watch: &WatchLog) -> Result<(), Broken> {
    let mut seen = BTreeSet::new();
    for event in events(watch) {
        if !seen.insert((event.revision, &event.key)) {
            let detail = format!("{:?} at {} comes twice", event.key, event.revision);
            return Err(broken(watch, Promise::Unique, detail));
        }
    }
    Ok(())
}

fn atomic(watch: &WatchLog) -> Result<(), Broken> {
    for pair in watch.batches.windows(2) {
        let (Some(last), Some(first)) = (pair[0].events.last(), pair[1].events.first()) else { continue };
        if last.revision == first.revision && !pair[0].fragment {
            let detail = format!("revision {} is spread over two responses", last.revision);
            return Err(broken(watch, Promise::Atomic, detail));
        }
    }
    Ok(())
}

fn truthful(watch: &WatchLog, wanted: &[&Change]) -> Result<(), Broken> {
    let known: BTreeSet<&Change> = wanted.iter().copied().collect();
    match events(watch).find(|event| !known.contains(event)) {
        Some(event) => Err(broken(watch, Promise::Truthful, format!("{event:?} did not happen or was not asked for"))),
        None => Ok(()),
    }
}

fn resumable(watch: &WatchLog, wanted: &[&Change]) -> Result<(), Broken> {
    match (events(watch).next(), wanted.first()) {
        (Some(got), Some(first)) if got.revision > first.revision => {
            let detail = format!("asked to start at {}, it skips {first:?}", watch.start_revision);
            Err(broken(watch, Promise::Resumable, detail))
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn reliable(watch: &WatchLog, wanted: &[&Change]) -> Result<(), Broken> {
    let Some(horizon) = events(watch).last().map(|event| event.revision) else { return Ok(()) };
    let got: BTreeSet<&Change> = events(watch).collect();
    match wanted.iter().find(|change| change.revision <= horizon && !got.contains(*change)) {
        Some(missing) => Err(broken(watch, Promise::Reliable, format!("{missing:?} is missing"))),
        None => Ok(()),
    }
}

fn bookmarkable(watch: &WatchLog, wanted: &[&Change]) -> Result<(), Broken> {
    let mut bookmark = i64::MIN;
    let mut received = 0;
    for batch in &watch.batches {
        if let Some(late) = batch.events.iter().find(|event| event.revision <= bookmark) {
            let detail = format!("{late:?} comes after progress to {bookmark}");
            return Err(broken(watch, Promise::Bookmarkable, detail));
        }
        received += batch.events.len();
        if batch.events.is_empty() {
            bookmark = bookmark.max(batch.revision);
            let due = wanted.iter().take_while(|change| change.revision <= bookmark).count();
            if received < due {
                let detail = format!("progress to {bookmark} after {received} of {due} events");
                return Err(broken(watch, Promise::Bookmarkable, detail));
            }
        }
    }
    Ok(())
}
