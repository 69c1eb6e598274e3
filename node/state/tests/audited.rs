//! The machine under the auditor: what it answers to overlapping clients passes both checkers, what its history gives
//! to watchers keeps every promise. So an alarm of the auditor in a whole system is not about the machine.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use bytes::Bytes;
use common::rng::Rng;
use quorate_audit::history::{self, Batch, Call, Change, Kv, Line, Target, WatchLog};
use quorate_audit::{Answer, History, search, strict, watch_rules};
use quorate_state::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Event, KeyRange, KeyValue, Limits, Machine, Put,
    Range, Response, Txn, TxnOp,
};

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn kv(kv: &KeyValue) -> Kv {
    Kv {
        key: text(&kv.key),
        value: text(&kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn change(event: &Event) -> Change {
    let made = (!event.kv.is_tombstone()).then(|| kv(&event.kv));
    Change { revision: event.revision(), key: text(&event.kv.key), kv: made }
}

fn answer(response: &Response) -> Answer {
    let revision = response.revision();
    match response {
        Response::Put(_) => Answer::Put { revision },
        Response::DeleteRange(delete) => Answer::DeleteRange { revision, deleted: delete.deleted },
        Response::Range(range) => {
            Answer::Range { revision, kvs: range.kvs.iter().map(|v| kv(v)).collect(), count: range.count }
        }
        Response::Txn(txn) => {
            Answer::Txn { revision, succeeded: txn.succeeded, responses: txn.responses.iter().map(answer).collect() }
        }
        Response::Compact { .. } | Response::Nothing { .. } => panic!("not asked for here"),
    }
}

fn call(rng: &mut Rng, id: u64, depth: u64) -> Call {
    let key = (*rng.pick(&["a", "a/1", "b", "b/2", "c"])).to_owned();
    let range_end = if rng.one_in(3) { "\0".to_owned() } else { String::new() };
    match rng.below(7 + depth * 3) {
        0..=2 => Call::Put { key, value: format!("v{id}.{}", rng.below(1_000)) },
        3 => Call::DeleteRange { key, range_end },
        4..=6 => {
            let limit = usize::try_from(rng.below(3)).unwrap();
            Call::Range { key, range_end, revision: 0, limit, serializable: false }
        }
        _ => {
            let target = match rng.below(4) {
                0 => Target::Version(1),
                1 => Target::Create(0),
                2 => Target::Mod(i64::try_from(rng.below(5)).unwrap()),
                _ => Target::Value("v0.0".to_owned()),
            };
            let relation = *rng.pick(&[
                history::Relation::Equal,
                history::Relation::Greater,
                history::Relation::Less,
                history::Relation::NotEqual,
            ]);
            let ops = |rng: &mut Rng| (0..rng.below(4)).map(|_| call(rng, id, depth - 1)).collect();
            let compares = vec![history::Compare { key, relation, target }];
            Call::Txn { compares, success: ops(rng), failure: ops(rng) }
        }
    }
}

fn op(call: &Call) -> TxnOp {
    match call {
        Call::Put { key, value } => {
            TxnOp::Put(Put { key: key.clone().into(), value: value.clone().into(), ..Put::default() })
        }
        Call::DeleteRange { key, range_end } => {
            TxnOp::DeleteRange(DeleteRange { range: KeyRange::new(key.clone(), range_end.clone()), prev_kv: false })
        }
        Call::Range { key, range_end, limit, .. } => TxnOp::Range(Range {
            range: KeyRange::new(key.clone(), range_end.clone()),
            limit: i64::try_from(*limit).unwrap(),
            ..Range::default()
        }),
        Call::Txn { compares, success, failure } => TxnOp::Txn(Txn {
            compares: compares.iter().map(compare).collect(),
            success: success.iter().map(op).collect(),
            failure: failure.iter().map(op).collect(),
        }),
    }
}

fn compare(compare: &history::Compare) -> Compare {
    Compare {
        range: KeyRange::one(compare.key.clone()),
        result: match compare.relation {
            history::Relation::Equal => CompareResult::Equal,
            history::Relation::Greater => CompareResult::Greater,
            history::Relation::Less => CompareResult::Less,
            history::Relation::NotEqual => CompareResult::NotEqual,
        },
        target: match &compare.target {
            Target::Version(given) => CompareTarget::Version(*given),
            Target::Create(given) => CompareTarget::CreateRevision(*given),
            Target::Mod(given) => CompareTarget::ModRevision(*given),
            Target::Value(given) => CompareTarget::Value(given.clone().into()),
        },
    }
}

/// Executes a call; gives nothing if it is refused.
fn execute(machine: &mut Machine, call: &Call) -> Option<Answer> {
    let command: Command = match op(call) {
        TxnOp::Put(put) => put.into(),
        TxnOp::DeleteRange(delete) => delete.into(),
        TxnOp::Txn(txn) => txn.into(),
        TxnOp::Range(range) => return Some(answer(&Response::Range(machine.view().range(&range).unwrap()))),
    };
    command.validate(Limits::default()).ok()?;
    Some(answer(&machine.apply(machine.applied_index() + 1, 1, Some(&command)).outcome.unwrap()))
}

fn record(seed: u64, len: u64) -> History {
    let mut rng = Rng::new(seed);
    let mut machine = Machine::new();
    let mut lines = Vec::new();
    for id in 0..len {
        let at = (id + 1) * 1_000;
        let call = call(&mut rng, id, 2);
        lines.push(Line::Invoke { id, client: id % 5, order: at - rng.below(1_000), call: call.clone() });
        match execute(&mut machine, &call) {
            None => lines.push(Line::Refused { id }),
            Some(_) if rng.one_in(10) => lines.push(Line::Unknown { id }),
            Some(answer) => lines.push(Line::Return { id, order: at + 1 + rng.below(3_000), answer }),
        }
    }
    let view = machine.view();
    let all = view.events(&KeyRange::all(), 2, 0).unwrap();
    lines.extend(all.events.iter().map(change).map(Line::Change));
    lines.push(Line::Final { revision: view.revision() });
    let (key, range_end) = ("a/1".to_owned(), "c".to_owned());
    let mut start_revision = 2;
    let watch =
        WatchLog { id: 1, key: key.clone(), range_end: range_end.clone(), start_revision, ..WatchLog::default() };
    lines.push(Line::Watch(watch));
    while start_revision <= view.revision() {
        let events = view.events(&KeyRange::new(key.clone(), range_end.clone()), start_revision, 3).unwrap();
        start_revision = events.next_revision;
        let (revision, events) = (start_revision - 1, events.events.iter().map(change).collect());
        lines.push(Line::Watched { id: 1, batch: Batch { revision, events, fragment: false } });
        lines.push(Line::Watched { id: 1, batch: Batch { revision, events: Vec::new(), fragment: false } });
    }
    History::gather(lines).unwrap()
}

#[test]
fn what_the_machine_answers_is_strictly_serializable() {
    let (mut writes, mut events) = (0, 0);
    for seed in 0..150 {
        let history = record(seed, 60);
        let covered = strict::check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        writes += covered.writes;
        events += watch_rules::check(&history).unwrap();
        assert_eq!(search::check(&history), search::Verdict::Linearizable, "seed {seed}");
    }
    assert!(writes > 2_000 && events > 2_000, "{writes} writes, {events} events");
}
