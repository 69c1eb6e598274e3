//! What operations cost at a million keys: `cargo bench -p quorate-state` prints one line each, in microseconds of
//! processor time where the system tells it, so that a busy machine does not blur the figures much.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_state::{Command, KeyRange, Machine, Put, Range};

const KEYS: u64 = 1_000_000;
const ROUNDS: u64 = 200_000;

fn key(n: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/namespace-{:03}/pod-{:08}", n % 500, n))
}

fn scattered(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS
}

fn put(n: u64) -> Command {
    Command::Put(Put { key: key(n), value: Bytes::from(vec![b'v'; 256]), ..Put::default() })
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time this thread has run; the first number of Linux' schedstat. Elsewhere the time of the wall.
fn clock() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match stat.split(' ').next().and_then(|nanos| nanos.parse().ok()) {
        Some(nanos) => Duration::from_nanos(nanos),
        None => START.elapsed(),
    }
}

fn report(what: &str, rounds: u64, took: Duration) {
    println!("{what:<48} {:>10.3} µs", took.as_secs_f64() * 1e6 / rounds as f64);
}

fn timed(what: &str, rounds: u64, mut op: impl FnMut(u64)) {
    let start = clock();
    (0..rounds).for_each(&mut op);
    report(what, rounds, clock() - start);
}

fn main() {
    let mut machine = Machine::new();
    let apply = |machine: &mut Machine, command: &Command| {
        drop(machine.apply(machine.applied_index() + 1, 1, Some(command)));
    };
    timed("put, new keys up to 1 M", KEYS, |n| apply(&mut machine, &put(n)));
    let commands: Vec<_> = (0..ROUNDS).map(|n| put(scattered(n))).collect();
    timed("put, overwrite, no view held", ROUNDS, |n| apply(&mut machine, &commands[n as usize]));
    let mut view = machine.view();
    timed("put, overwrite, a fresh view after each", ROUNDS, |n| {
        apply(&mut machine, &commands[n as usize]);
        view = machine.view();
    });
    timed("put, overwrite, a fresh view after each 64", ROUNDS, |n| {
        apply(&mut machine, &commands[n as usize]);
        if n % 64 == 0 {
            view = machine.view();
        }
    });
    let keys: Vec<_> = (0..ROUNDS).map(|n| key(scattered(n * 7))).collect();
    timed("get, now", ROUNDS, |n| assert!(view.get(&keys[n as usize]).is_some()));
    let old = 1_100_000;
    timed("get, at an old revision", ROUNDS, |n| assert!(view.get_at(&keys[n as usize], old).is_ok()));
    let ranges: Vec<_> = keys.iter().map(|k| Range { range: KeyRange::one(k.clone()), ..Range::default() }).collect();
    timed("range of one key", ROUNDS, |n| assert_eq!(view.range(&ranges[n as usize]).unwrap().count, 1));
    let page = Range { range: KeyRange::prefix("/registry/pods/"), limit: 500, ..Range::default() };
    timed("range, 500 of 1 M keys with count", 20, |_| assert_eq!(view.range(&page).unwrap().kvs.len(), 500));
    let list = Range { range: KeyRange::prefix("/registry/pods/namespace-007/"), ..Range::default() };
    timed("range, 2,000 keys", 100, |_| assert_eq!(view.range(&list).unwrap().kvs.len(), 2_000));
    timed("hash_kv", 1, |_| assert!(view.hash_kv(0).is_ok()));
    let mut chunks = Vec::new();
    timed("snapshot", 1, |_| chunks = view.snapshot_chunks(b"").collect());
    timed("restore", 1, |_| drop(Machine::restore(chunks.clone()).unwrap()));
    drop(view);
    let compact = Command::Compact { revision: machine.revision() };
    timed("compact: the entry itself", 1, |_| apply(&mut machine, &compact));
    let mut longest = Duration::ZERO;
    let start = clock();
    let mut rounds = 0;
    while machine.view().compaction_pending() {
        let before = clock();
        machine.apply(machine.applied_index() + 1, 1, None);
        longest = longest.max(clock() - before);
        rounds += 1;
    }
    report("compaction, each following entry", rounds, clock() - start);
    report("compaction, the longest entry", 1, longest);
}
