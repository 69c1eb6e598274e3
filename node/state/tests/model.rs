//! The machine against the model over random commands, with snapshots and restores between.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use bytes::{Bytes, BytesMut};
use common::commands;
use common::model::Model;
use common::rng::Rng;
use quorate_state::view::View;
use quorate_state::{Command, EventKind, KeyRange, Machine, StateError};

/// Reads of every kind give what the model gives.
fn assert_same_reads(rng: &mut Rng, view: &View, model: &Model) {
    assert_eq!(view.revision(), model.revision);
    assert_eq!(view.compact_revision(), model.compact_revision);
    assert_eq!(view.cluster_version(), model.cluster_version);
    assert_eq!(view.alarms().collect::<Vec<_>>(), model.alarms);
    for _ in 0..6 {
        let range = commands::range(rng, model.revision);
        assert_eq!(view.range(&range), model.range(&range), "{range:?}");
    }
    for _ in 0..3 {
        let key = commands::key(rng);
        assert_eq!(view.get(&key), model.get_at(&key, i64::MAX));
        let revision = commands::revision(rng, model.revision).max(1);
        let wanted = match revision {
            r if r > model.revision => Err(StateError::FutureRevision),
            r if r < model.compact_revision => Err(StateError::Compacted),
            _ => Ok(model.get_at(&key, revision)),
        };
        assert_eq!(view.get_at(&key, revision), wanted);
    }
    assert_same_history(rng, view, model);
}

fn assert_same_history(rng: &mut Rng, view: &View, model: &Model) {
    let range = commands::key_range(rng);
    let mut from = commands::revision(rng, model.revision);
    if from < model.compact_revision {
        assert_eq!(view.events(&range, from, 0), Err(StateError::Compacted));
        return;
    }
    let wanted: Vec<_> =
        model.versions.iter().filter(|v| v.mod_revision >= from && range.contains(&v.key)).cloned().collect();
    let limit = usize::try_from(rng.below(4)).unwrap();
    let mut got = Vec::new();
    while from <= view.revision() {
        let events = view.events(&range, from, limit).unwrap();
        assert!(events.next_revision > from, "the reading of history goes on");
        assert!(events.events.iter().all(|e| (from..events.next_revision).contains(&e.revision())));
        from = events.next_revision;
        got.extend(events.events);
    }
    for event in &got {
        let before = event.revision() - 1;
        let prev = if before < model.compact_revision { None } else { model.get_at(&event.kv.key, before) };
        assert_eq!(view.prev_kv(event), prev);
        assert_eq!(event.kind == EventKind::Delete, event.kv.version == 0);
    }
    assert_eq!(got.into_iter().map(|e| e.kv).collect::<Vec<_>>(), wanted);
}

fn recode(command: &Command) -> Command {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    let decoded = Command::decode(out.freeze()).unwrap();
    assert_eq!(&decoded, command);
    decoded
}

fn assert_same_snapshot(machine: &Machine, index: u64) -> Machine {
    let meta = Bytes::from(format!("meta {index}"));
    let chunks: Vec<_> = machine.view().snapshot_chunks(&meta).collect();
    let restored = Machine::restore(chunks.clone()).unwrap();
    assert_eq!(restored.meta, meta);
    let view = restored.machine.view();
    assert_eq!((view.applied_index(), view.revision()), (index, machine.revision()));
    assert_eq!(view.state_hash(), machine.state_hash());
    assert_eq!(view.size_bytes(), machine.size_bytes());
    assert_eq!(view.snapshot_chunks(&meta).collect::<Vec<_>>(), chunks, "a restored state gives the same bytes");
    restored.machine
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let (mut machine, mut model) = (Machine::new(), Model::new());
    let mut twin = Machine::new();
    let mut pictures = Vec::new();
    for index in 1..=250 {
        let command = commands::command(&mut rng, model.revision);
        let hash = machine.state_hash();
        let settled = !machine.view().compaction_pending();
        let applied = machine.apply(index, 1, Some(&command));
        let twin_applied = twin.apply(index, 1, Some(&recode(&command)));
        assert_eq!(applied, twin_applied, "a restored twin answers the same");
        let (outcome, made) = model.apply(&command);
        assert_eq!(applied.outcome, outcome, "seed {seed} index {index} {command:?}");
        assert_eq!(applied.events.iter().map(|e| e.kv.clone()).collect::<Vec<_>>(), made);
        assert_eq!(applied.revision, model.revision);
        if outcome.is_err() && settled {
            assert_eq!(machine.state_hash(), hash, "a refused command changes nothing");
        }
        if let Command::Txn(txn) = &command
            && txn.is_read_only()
            && txn.validate(quorate_state::Limits::default()).is_ok()
        {
            let wanted = applied.outcome.map(|r| match r {
                quorate_state::Response::Txn(txn) => txn,
                other => panic!("a txn answers as a txn, not {other:?}"),
            });
            assert_eq!(machine.view().txn(txn), wanted);
        }
        assert_same_reads(&mut rng, &machine.view(), &model);
        assert_eq!(machine.state_hash(), twin.state_hash());
        assert_eq!(machine.view().hash_kv(0), twin.view().hash_kv(0));
        if rng.one_in(40) {
            twin = assert_same_snapshot(&machine, index);
        }
        if rng.one_in(40) {
            pictures.push((machine.view(), model.clone()));
        }
    }
    for (view, model) in pictures {
        assert_same_reads(&mut rng, &view, &model);
    }
    assert_same_reads(&mut rng, &machine.view(), &model);
}

#[test]
fn the_machine_does_what_the_model_does() {
    for seed in 0..150 {
        run(seed);
    }
}

#[test]
fn hash_kv_does_not_depend_on_how_far_compaction_has_cleared_up() {
    let put = |n: i64| {
        Command::Put(quorate_state::Put {
            key: Bytes::from(format!("k{}", n % 700)),
            value: Bytes::from(format!("{n}")),
            ..Default::default()
        })
    };
    let mut machine = Machine::new();
    let mut index = 0;
    let mut apply = |machine: &mut Machine, command: Option<&Command>| {
        index += 1;
        machine.apply(index, 1, command).outcome.unwrap();
    };
    for n in 0..3_000 {
        apply(&mut machine, Some(&put(n)));
    }
    let all = KeyRange::all();
    apply(&mut machine, Some(&Command::DeleteRange(quorate_state::DeleteRange { range: all, prev_kv: false })));
    apply(&mut machine, Some(&put(1)));
    let before = machine.size_bytes();
    let compact = Command::Compact { revision: machine.revision() };
    apply(&mut machine, Some(&compact));
    assert!(machine.view().compaction_pending());
    let hash = machine.view().hash_kv(0).unwrap();
    while machine.view().compaction_pending() {
        assert_eq!(machine.view().hash_kv(0).unwrap(), hash);
        apply(&mut machine, None);
    }
    assert_eq!(machine.view().hash_kv(0).unwrap(), hash);
    assert_eq!(machine.view().change_count(), 1, "the change at the compact revision stays");
    assert!(machine.size_bytes() < 300 && before > 3_000 * 256);
}

#[test]
fn views_and_snapshots_may_go_to_other_threads() {
    fn may_go<T: Send + Sync + 'static>(_: &T) {}
    let machine = Machine::new();
    may_go(&machine.view());
    may_go(&machine.view().snapshot_chunks(b""));
    may_go(&machine);
}
