//! The two checkers against each other: right histories of random clients pass both; after damage, whatever the fast
//! checker lets pass the search explains too, and most damage both refuse.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use quorate_audit::history::{Compare, Relation, Start, Target};
use quorate_audit::search::{self, Verdict};
use quorate_audit::{Answer, Call, History, Model, Operation, Outcome, strict};

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn call(rng: &mut Rng, id: u64) -> Call {
    let key = ["a", "b", "c"][rng.index(3)].to_owned();
    let range_end = if rng.one_in(2) { "\0".to_owned() } else { String::new() };
    match rng.below(8) {
        0..=2 => Call::Put { key, value: format!("v{id}") },
        3 => Call::DeleteRange { key, range_end },
        4 | 5 => {
            let target = if rng.one_in(2) { Target::Mod(0) } else { Target::Version(1) };
            let compares = vec![Compare { key: key.clone(), relation: Relation::Equal, target }];
            let read = Call::Range { key: key.clone(), range_end, revision: 0, limit: 0, serializable: false };
            Call::Txn { compares, success: vec![Call::Put { key, value: format!("t{id}") }], failure: vec![read] }
        }
        _ => Call::Range { key, range_end, revision: 0, limit: 0, serializable: false },
    }
}

/// Calls executed one after the other, each within its times; some never told how they ended.
fn right_history(seed: u64, len: u64) -> History {
    let mut rng = Rng(seed);
    let mut model = Model::new(&Start::default());
    let mut history = History::default();
    for id in 0..len {
        // Executed at (id + 1) * 100; times reach over up to four neighbours.
        let at = (id + 1) * 100;
        let (invoked, returned) = ((at - rng.below(350).min(at)) * 64 + id, (at + 1 + rng.below(350)) * 64 + id);
        let call = call(&mut rng, id);
        let evaluated = model.evaluate(&call);
        let (executed, told) = match rng.below(10) {
            0 => (true, false),
            1 => (false, false),
            _ => (true, true),
        };
        if executed {
            model.commit(&evaluated.changes);
            history.changes.extend(evaluated.changes);
        }
        let outcome = if told {
            Outcome::Returned { returned, answer: evaluated.answer }
        } else if !executed && rng.one_in(2) {
            Outcome::Refused
        } else {
            Outcome::Unknown
        };
        history.operations.push(Operation { id, client: id % 4, call, invoked, outcome });
    }
    history.operations.sort_by_key(|o| o.invoked);
    history.final_revision = Some(model.revision());
    history
}

#[test]
fn right_histories_pass_both() {
    let mut settled = 0;
    for seed in 0..400 {
        let history = right_history(seed, 24);
        let covered = strict::check(&history).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        settled += covered.settled_executed;
        assert_eq!(search::check(&history), Verdict::Linearizable, "seed {seed}");
    }
    assert!(settled > 100, "unknown outcomes were settled: {settled}");
}

fn answer_mut(operation: &mut Operation) -> Option<&mut Answer> {
    match &mut operation.outcome {
        Outcome::Returned { answer, .. } => Some(answer),
        Outcome::Refused | Outcome::Unknown => None,
    }
}

/// Damages a history the way a broken store would. Gives whether it did.
fn damage(rng: &mut Rng, history: &mut History) -> bool {
    let (one, other) = (rng.index(history.operations.len()), rng.index(history.operations.len()));
    match rng.below(4) {
        // Two calls change their times: one becomes stale.
        0 => {
            let (a, b) = (history.operations[one].clone(), history.operations[other].clone());
            let (Some(a_end), Some(b_end)) = (a.returned(), b.returned()) else { return false };
            for (at, invoked, end) in [(one, b.invoked, b_end), (other, a.invoked, a_end)] {
                history.operations[at].invoked = invoked;
                let Outcome::Returned { returned, .. } = &mut history.operations[at].outcome else { return false };
                *returned = end;
            }
            history.operations.sort_by_key(|o| o.invoked);
            one != other
        }
        // A read or a write gets another revision.
        1 => match answer_mut(&mut history.operations[one]) {
            Some(Answer::Put { revision } | Answer::Range { revision, .. }) => {
                *revision += 1;
                true
            }
            Some(Answer::DeleteRange { .. } | Answer::Txn { .. }) | None => false,
        },
        // A key is not read.
        2 => match answer_mut(&mut history.operations[one]) {
            Some(Answer::Range { kvs, .. }) => kvs.pop().is_some(),
            Some(Answer::Put { .. } | Answer::DeleteRange { .. } | Answer::Txn { .. }) | None => false,
        },
        // An executed call is called refused.
        _ => {
            let wrote = answer_mut(&mut history.operations[one]).is_some_and(|answer| answer.wrote());
            history.operations[one].outcome = Outcome::Refused;
            wrote
        }
    }
}

#[test]
fn damaged_histories_are_refused_by_both_and_the_fast_one_is_never_the_laxer() {
    let (mut damaged, mut fast, mut both) = (0, 0, 0);
    for seed in 0..1_500 {
        let mut history = right_history(seed, 14);
        if !damage(&mut Rng(seed ^ 0xDA_3A6E), &mut history) {
            continue;
        }
        damaged += 1;
        let explained = search::check(&history);
        match strict::check(&history) {
            Ok(_) => assert_eq!(explained, Verdict::Linearizable, "seed {seed}"),
            Err(_) => {
                fast += 1;
                both += u32::from(matches!(explained, Verdict::Impossible { .. }));
            }
        }
    }
    assert!(
        damaged > 500 && fast * 2 > damaged && both * 2 > fast,
        "{damaged} damaged, {fast} refused, {both} by both"
    );
}

#[test]
fn a_long_history_is_judged() {
    let covered = strict::check(&right_history(1, 20_000)).unwrap();
    assert!(covered.writes > 8_000 && covered.reads > 4_000, "{covered:?}");
}
