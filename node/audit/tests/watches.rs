//! Each promise of a watch, kept and broken.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use quorate_audit::history::{Batch, Change, Kv, WatchLog};
use quorate_audit::watch_rules::{Promise, check_one};

fn change(revision: i64, key: &str) -> Change {
    let kv = Kv {
        key: key.into(),
        value: format!("{revision}"),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
    };
    Change { revision, key: key.into(), kv: Some(kv) }
}

fn deletion(revision: i64, key: &str) -> Change {
    Change { revision, key: key.into(), kv: None }
}

/// Revision 4 changes two keys; 6 deletes one.
fn changes() -> Vec<Change> {
    vec![change(2, "a"), change(3, "b"), change(4, "a"), change(4, "c"), change(5, "z"), deletion(6, "a")]
}

fn events(events: &[Change]) -> Batch {
    Batch { revision: events.last().unwrap().revision, events: events.to_vec(), fragment: false }
}

fn progress(revision: i64) -> Batch {
    Batch { revision, events: Vec::new(), fragment: false }
}

/// A watch of `[a, d)`, which leaves out z.
fn watch(start_revision: i64, batches: Vec<Batch>) -> WatchLog {
    WatchLog { id: 1, key: "a".into(), range_end: "d".into(), start_revision, batches, ..WatchLog::default() }
}

fn passes(watch: &WatchLog) {
    check_one(watch, &changes()).unwrap();
}

fn breaks(watch: &WatchLog, promise: Promise) {
    assert_eq!(check_one(watch, &changes()).unwrap_err().promise, promise);
}

#[test]
fn a_watch_that_keeps_its_promises_passes_however_it_is_batched() {
    let c = changes();
    passes(&watch(2, Vec::new()));
    passes(&watch(2, vec![events(&c[..1]), events(&c[1..4]), progress(5), events(&c[5..])]));
    passes(&watch(2, vec![events(&c[..4]), progress(4)]));
    passes(&watch(4, vec![events(&c[2..4])]));
    passes(&watch(9, vec![]));
    let first_half = Batch { fragment: true, ..events(&c[2..3]) };
    passes(&watch(4, vec![first_half, events(&c[3..4])]));
    let no_delete = WatchLog { no_delete: true, ..watch(4, vec![events(&c[2..4]), progress(6)]) };
    passes(&no_delete);
    let no_put = WatchLog { no_put: true, ..watch(2, vec![events(&c[5..])]) };
    passes(&no_put);
}

#[test]
fn revisions_that_go_back_break_order() {
    let c = changes();
    breaks(&watch(2, vec![events(&c[1..2]), events(&c[..1])]), Promise::Ordered);
}

#[test]
fn an_event_that_comes_twice_breaks_uniqueness() {
    let c = changes();
    breaks(&watch(2, vec![events(&c[..2]), events(&c[1..2])]), Promise::Unique);
}

#[test]
fn a_revision_in_two_responses_breaks_atomicity() {
    let c = changes();
    breaks(&watch(4, vec![events(&c[2..3]), events(&c[3..4])]), Promise::Atomic);
}

#[test]
fn half_a_revision_is_unreliable() {
    let c = changes();
    breaks(&watch(4, vec![events(&c[2..3])]), Promise::Reliable);
}

#[test]
fn what_did_not_happen_or_was_not_asked_for_is_untruthful() {
    let c = changes();
    breaks(&watch(2, vec![events(&c[..1]), events(&[change(3, "c")])]), Promise::Truthful);
    breaks(&watch(2, vec![events(&c[..5])]), Promise::Truthful);
    breaks(&watch(3, vec![events(&c[..2])]), Promise::Truthful);
    let no_put = WatchLog { no_put: true, ..watch(2, vec![events(&c[..1])]) };
    breaks(&no_put, Promise::Truthful);
}

#[test]
fn skipped_events_at_the_start_break_resumption() {
    breaks(&watch(2, vec![events(&changes()[2..4])]), Promise::Resumable);
}

#[test]
fn a_hole_breaks_reliability() {
    let c = changes();
    breaks(&watch(2, vec![events(&c[..1]), events(&c[2..4])]), Promise::Reliable);
}

#[test]
fn progress_ahead_of_events_breaks_the_bookmark() {
    let c = changes();
    breaks(&watch(2, vec![events(&c[..1]), progress(4)]), Promise::Bookmarkable);
    breaks(&watch(2, vec![events(&c[..1]), progress(3), events(&c[1..4])]), Promise::Bookmarkable);
}
