//! Each checker against histories made by hand: right ones pass, each classic anomaly is named.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use quorate_audit::history::{Compare, Relation, Target};
use quorate_audit::search::{self, Verdict};
use quorate_audit::strict::{self, Violation};
use quorate_audit::{Answer, Call, Change, History, Kv, Line};

/// Builds a history line by line. Times are given, so that the overlap can be read off the page.
#[derive(Default)]
struct Story(Vec<Line>);

impl Story {
    fn called(mut self, id: u64, order: u64, call: Call) -> Story {
        self.0.push(Line::Invoke { id, client: id, order, call });
        self
    }

    /// A call from `times.0` to `times.1`.
    fn call(self, id: u64, times: (u64, u64), call: Call, answer: Answer) -> Story {
        let mut story = self.called(id, times.0, call);
        story.0.push(Line::Return { id, order: times.1, answer });
        story
    }

    fn put(self, id: u64, times: (u64, u64), pair: (&str, &str), revision: i64) -> Story {
        self.call(id, times, put(pair), Answer::Put { revision })
    }

    fn read(self, id: u64, times: (u64, u64), revision: i64, kvs: Vec<Kv>) -> Story {
        let count = i64::try_from(kvs.len()).unwrap();
        self.call(id, times, all(false), Answer::Range { revision, kvs, count })
    }

    fn changes(mut self, changes: &[Kv]) -> Story {
        let change = |kv: &Kv| Change { revision: kv.mod_revision, key: kv.key.clone(), kv: Some(kv.clone()) };
        self.0.extend(changes.iter().map(change).map(Line::Change));
        self
    }

    fn end(mut self, revision: i64) -> History {
        self.0.push(Line::Final { revision });
        // Through the text, so that the format is exercised too.
        let text: String = self.0.iter().map(Line::to_json).collect();
        History::parse(&text).unwrap()
    }
}

fn put((key, value): (&str, &str)) -> Call {
    Call::Put { key: key.into(), value: value.into() }
}

fn all(serializable: bool) -> Call {
    Call::Range { key: "\0".into(), range_end: "\0".into(), revision: 0, limit: 0, serializable }
}

/// create, mod and version in one.
fn kv(key: &str, value: &str, (create_revision, mod_revision, version): (i64, i64, i64)) -> Kv {
    Kv { key: key.into(), value: value.into(), create_revision, mod_revision, version }
}

fn a1() -> Kv {
    kv("a", "1", (2, 2, 1))
}

fn a2() -> Kv {
    kv("a", "2", (2, 3, 2))
}

/// Create `key` if it is absent.
fn create(key: &str, value: &str) -> Call {
    let compare = Compare { key: key.into(), relation: Relation::Equal, target: Target::Mod(0) };
    Call::Txn { compares: vec![compare], success: vec![put((key, value))], failure: Vec::new() }
}

fn both_pass(history: &History) -> strict::Covered {
    assert_eq!(search::check(history), Verdict::Linearizable);
    strict::check(history).unwrap()
}

/// Both refuse; gives what the fast one names.
fn both_refuse(history: &History) -> Violation {
    let verdict = search::check(history);
    assert!(matches!(verdict, Verdict::Impossible { .. }), "{verdict}");
    strict::check(history).unwrap_err()
}

#[test]
fn a_plain_history_passes() {
    let story =
        Story::default().put(1, (1, 2), ("a", "1"), 2).put(2, (3, 4), ("a", "2"), 3).read(3, (5, 6), 3, vec![a2()]);
    let covered = both_pass(&story.changes(&[a1(), a2()]).end(3));
    assert_eq!((covered.writes, covered.reads), (2, 1));
}

#[test]
fn calls_that_overlap_may_take_either_order() {
    let early = Story::default().put(1, (1, 9), ("a", "1"), 2).read(2, (2, 3), 1, Vec::new());
    both_pass(&early.changes(&[a1()]).end(2));
    let late = Story::default().put(1, (1, 9), ("a", "1"), 2).read(2, (2, 3), 2, vec![a1()]);
    both_pass(&late.changes(&[a1()]).end(2));
}

#[test]
fn a_stale_read_is_refused_but_a_serializable_one_passes() {
    let writes = || Story::default().put(1, (1, 2), ("a", "1"), 2).put(2, (3, 4), ("a", "2"), 3);
    let stale = writes().read(3, (5, 6), 2, vec![a1()]).changes(&[a1(), a2()]).end(3);
    assert_eq!(both_refuse(&stale), Violation::RealTime { earlier: 2, later: 3 });

    let answer = Answer::Range { revision: 2, kvs: vec![a1()], count: 1 };
    both_pass(&writes().call(3, (5, 6), all(true), answer).changes(&[a1(), a2()]).end(3));
}

#[test]
fn a_serializable_read_may_be_old_but_not_wrong() {
    let answer = Answer::Range { revision: 2, kvs: vec![a2()], count: 1 };
    let story = Story::default().put(1, (1, 2), ("a", "1"), 2).put(2, (3, 4), ("a", "2"), 3);
    let wrong = story.call(3, (5, 6), all(true), answer).changes(&[a1(), a2()]).end(3);
    assert!(matches!(strict::check(&wrong), Err(Violation::WrongAnswer { id: 3, revision: 2, .. })));
}

#[test]
fn a_lost_write_is_refused() {
    let gone = Story::default().put(1, (1, 2), ("a", "1"), 2).read(2, (3, 4), 1, Vec::new()).end(1);
    assert_eq!(both_refuse(&gone), Violation::LostWrite { id: 1, revision: 2, final_revision: 1 });

    // Its revision went to another write: after a failover the number was given again.
    let b = kv("b", "1", (2, 2, 1));
    let story = Story::default().put(1, (1, 2), ("a", "1"), 2).called(2, 3, put(("b", "1")));
    let replaced = story.read(3, (5, 6), 2, vec![b.clone()]).changes(&[b]).end(2);
    assert!(matches!(both_refuse(&replaced), Violation::OtherWrite { id: 1, revision: 2, .. }));
}

#[test]
fn two_writes_with_one_revision_are_refused() {
    let twice = Story::default().put(1, (1, 4), ("a", "1"), 2).put(2, (2, 5), ("b", "1"), 2);
    let violation = both_refuse(&twice.changes(&[a1()]).end(2));
    assert_eq!(violation, Violation::TwoWriters { revision: 2, first: 1, second: 2 });
}

#[test]
fn a_dirty_read_is_refused() {
    // The read sees a value that never was in the history: its write was rolled back.
    let story = Story::default().called(1, 1, put(("a", "1"))).read(2, (2, 3), 2, vec![a1()]);
    let violation = strict::check(&story.read(3, (4, 5), 1, Vec::new()).end(1)).unwrap_err();
    assert_eq!(violation, Violation::OutsideHistory { id: 2, revision: 2, first: 1, last: 1 });

    let invented = Story::default().put(1, (1, 2), ("a", "1"), 2).read(2, (3, 4), 2, vec![kv("a", "x", (2, 2, 1))]);
    assert!(matches!(both_refuse(&invented.changes(&[a1()]).end(2)), Violation::WrongAnswer { id: 2, .. }));
}

#[test]
fn an_unknown_write_may_be_executed_late_or_never_but_not_twice() {
    let unknown = || Story::default().called(1, 1, put(("a", "1"))).put(2, (2, 3), ("b", "1"), 2);
    let b = kv("b", "1", (2, 2, 1));
    let covered = both_pass(&unknown().read(3, (4, 5), 2, vec![b.clone()]).changes(std::slice::from_ref(&b)).end(2));
    assert_eq!((covered.settled_executed, covered.settled_absent), (0, 1));

    let late = kv("a", "1", (3, 3, 1));
    let story = unknown().read(3, (4, 5), 3, vec![late.clone(), b.clone()]);
    let covered = both_pass(&story.changes(&[b.clone(), late.clone()]).end(3));
    assert_eq!((covered.settled_executed, covered.settled_absent), (1, 0));

    let again = kv("a", "1", (3, 4, 2));
    let story = unknown().read(3, (4, 5), 4, vec![again.clone(), b.clone()]);
    let violation = both_refuse(&story.changes(&[b, late, again]).end(4));
    assert!(matches!(violation, Violation::NoWriter { revision: 4, .. }), "{violation}");
}

#[test]
fn an_acknowledged_write_applied_twice_is_refused() {
    let story = Story::default().put(1, (1, 2), ("a", "1"), 2).read(2, (3, 4), 3, vec![kv("a", "1", (2, 3, 2))]);
    let violation = both_refuse(&story.changes(&[a1(), kv("a", "1", (2, 3, 2))]).end(3));
    assert!(matches!(violation, Violation::NoWriter { revision: 3, .. }), "{violation}");
}

#[test]
fn a_refused_write_that_was_executed_is_refused() {
    let mut story = Story::default().called(1, 1, put(("a", "1")));
    story.0.push(Line::Refused { id: 1 });
    let violation = both_refuse(&story.read(2, (3, 4), 2, vec![a1()]).changes(&[a1()]).end(2));
    assert!(matches!(violation, Violation::NoWriter { revision: 2, .. }), "{violation}");
}

#[test]
fn writes_out_of_real_time_order_are_refused() {
    let story = Story::default().put(1, (1, 2), ("a", "1"), 3).put(2, (3, 4), ("b", "1"), 2);
    let changes = [kv("b", "1", (2, 2, 1)), kv("a", "1", (3, 3, 1))];
    let violation = both_refuse(&story.changes(&changes).end(3));
    assert_eq!(violation, Violation::RealTime { earlier: 1, later: 2 });
}

#[test]
fn an_unknown_write_cannot_be_executed_before_it_was_asked_for() {
    let a = kv("a", "1", (2, 2, 1));
    let story = Story::default().put(1, (1, 2), ("b", "1"), 3).called(2, 5, put(("a", "1")));
    let violation = both_refuse(&story.changes(&[a, kv("b", "1", (3, 3, 1))]).end(3));
    assert_eq!(violation, Violation::RealTime { earlier: 1, later: 2 });
}

#[test]
fn two_creations_of_one_key_are_refused() {
    let created = |revision| Answer::Txn { revision, succeeded: true, responses: vec![Answer::Put { revision }] };
    let story = Story::default().call(1, (1, 5), create("a", "1"), created(2));
    let both = story.call(2, (2, 6), create("a", "2"), created(3)).changes(&[a1(), a2()]).end(3);
    assert!(matches!(both_refuse(&both), Violation::OtherWrite { id: 2, revision: 3, .. }));

    let story = Story::default().call(1, (1, 5), create("a", "1"), created(2));
    let lost = Answer::Txn { revision: 2, succeeded: false, responses: Vec::new() };
    both_pass(&story.call(2, (2, 6), create("a", "2"), lost).changes(&[a1()]).end(2));
}

#[test]
fn a_transaction_seen_in_half_is_refused() {
    let call = Call::Txn { compares: Vec::new(), success: vec![put(("a", "1")), put(("b", "1"))], failure: Vec::new() };
    let responses = vec![Answer::Put { revision: 2 }, Answer::Put { revision: 2 }];
    let answer = Answer::Txn { revision: 2, succeeded: true, responses };
    let story = Story::default().call(1, (1, 9), call, answer).read(2, (2, 3), 2, vec![a1()]);
    let violation = both_refuse(&story.changes(&[a1(), kv("b", "1", (2, 2, 1))]).end(2));
    assert!(matches!(violation, Violation::WrongAnswer { id: 2, .. }), "{violation}");
}

#[test]
fn reads_of_old_revisions_are_compared_with_that_revision() {
    let past = Call::Range { key: "a".into(), range_end: String::new(), revision: 2, limit: 0, serializable: false };
    let writes = || Story::default().put(1, (1, 2), ("a", "1"), 2).put(2, (3, 4), ("a", "2"), 3);
    let answer = |kv| Answer::Range { revision: 3, kvs: vec![kv], count: 1 };
    let right = writes().call(3, (5, 6), past.clone(), answer(a1())).changes(&[a1(), a2()]).end(3);
    assert_eq!(strict::check(&right).unwrap().reads, 1);
    let wrong = writes().call(3, (5, 6), past, answer(a2())).changes(&[a1(), a2()]).end(3);
    assert!(matches!(strict::check(&wrong), Err(Violation::WrongAnswer { id: 3, revision: 2, .. })));
}

#[test]
fn an_incomplete_record_never_passes() {
    let story = || Story::default().put(1, (1, 2), ("a", "1"), 2).put(2, (3, 4), ("a", "2"), 3);
    let no_final = History { final_revision: None, ..story().changes(&[a1(), a2()]).end(3) };
    assert_eq!(strict::check(&no_final), Err(Violation::NoFinal));
    assert_eq!(strict::check(&story().changes(&[a2()]).end(3)), Err(Violation::Gap { revision: 2 }));
    let beyond = story().changes(&[a1(), a2(), kv("a", "3", (2, 4, 3))]).end(3);
    assert_eq!(strict::check(&beyond), Err(Violation::BeyondFinal { revision: 4, final_revision: 3 }));
}

#[test]
fn a_line_that_is_no_record_is_named() {
    let error = |text: &str| History::parse(text).unwrap_err().to_string();
    assert!(error("\n{\"invoke\":3}\n").starts_with("line 2: "));
    assert_eq!(error(r#"{"unknown":{"id":7}}"#), "line 1: no call has this id");
    let call = r#"{"invoke":{"id":1,"client":1,"order":5,"call":{"put":{"key":"a","value":"1"}}}}"#;
    let back = r#"{"return":{"id":1,"order":5,"answer":{"put":{"revision":2}}}}"#;
    assert_eq!(error(&format!("{call}\n{back}")), "line 2: a call returns after it is invoked");
}
