//! One contract, run on every candidate.

use super::*;
use engine::Pair;

fn pair(key: &str, value: &str) -> Pair {
    (key.as_bytes().to_vec(), value.as_bytes().to_vec())
}

fn text(found: Option<Vec<u8>>) -> Option<String> {
    found.map(|bytes| String::from_utf8(bytes).unwrap())
}

fn contract<E: Engine>() {
    let dir = std::env::temp_dir().join(format!("storage-contract-{}-{}", E::NAME, std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let mut engine = E::open(&dir).unwrap();
    assert_eq!(engine.applied(), 0);
    let first = engine.apply(&[pair("a", "1"), pair("b", "1")]).unwrap();
    let second = engine.apply(&[pair("a\0x", "1")]).unwrap();
    let third = engine.apply(&[pair("a", "2")]).unwrap();
    assert_eq!((first, second, third), (1, 2, 3));
    let held = engine.view().unwrap();
    let fourth = engine.apply(&[pair("a", "3")]).unwrap();
    let view = engine.view().unwrap();
    // A view does not move.
    assert_eq!(text(held.get(b"a").unwrap()).as_deref(), Some("2"));
    assert_eq!(text(view.get(b"a").unwrap()).as_deref(), Some("3"));
    assert_eq!(view.get(b"").unwrap(), None);
    // Every version is there.
    for (revision, wanted) in [(1, "1"), (2, "1"), (3, "2"), (4, "3")] {
        assert_eq!(text(view.get_at(b"a", revision).unwrap()).as_deref(), Some(wanted));
    }
    assert_eq!(view.get_at(b"a\0x", 1).unwrap(), None);
    // In order of keys, the newest of each.
    let all = vec![pair("a", "3"), pair("a\0x", "1"), pair("b", "1")];
    assert_eq!(view.scan(b"", 10).unwrap(), all);
    assert_eq!(view.scan(b"a\0", 1).unwrap(), all[1..2]);
    assert_eq!(view.changes(first, 10).unwrap(), [&b"a"[..], b"b", b"a\0x", b"a", b"a"]);
    assert_eq!(view.changes(third, 1).unwrap(), [b"a"]);
    drop((held, view));
    // What was persisted is there after a kill, at the index it says.
    engine.persist().unwrap().join().unwrap().unwrap();
    let applied = engine.applied();
    std::mem::forget(engine);
    let engine = copy_and_open::<E>(&dir);
    assert!(engine.applied() >= applied);
    assert_eq!(engine.view().unwrap().scan(b"", 10).unwrap(), all);
    drop(engine);
    let copy = dir.with_extension("copy");
    let mut engine = E::open(&copy).unwrap();
    // Compaction leaves the newest at or below the revision.
    for _ in 0..10 {
        engine.compact(fourth, 1).unwrap();
    }
    let view = engine.view().unwrap();
    assert_eq!(view.scan(b"", 10).unwrap(), all);
    assert_eq!(text(view.get_at(b"a", fourth).unwrap()).as_deref(), Some("3"));
    assert_eq!(view.changes(fourth, 10).unwrap(), [b"a"]);
    let next = engine.apply(&[pair("c", "1")]).unwrap();
    assert_eq!(next, fourth + 1);
    let _ = (std::fs::remove_dir_all(&dir), std::fs::remove_dir_all(&copy));
}

/// The directory as a kill would leave it, without the locks of this process.
fn copy_and_open<E: Engine>(dir: &Path) -> E {
    let copy = dir.with_extension("copy");
    let _ = std::fs::remove_dir_all(&copy);
    let status = Command::new("cp").arg("-a").arg(dir).arg(&copy).status().unwrap();
    assert!(status.success());
    E::open(&copy).unwrap()
}

#[test]
fn own() {
    contract::<own::Own>();
}

#[test]
fn fjall() {
    contract::<fjall3::Fjall>();
}

#[test]
fn redb() {
    contract::<redb4::Redb>();
}

#[cfg(feature = "rocks")]
#[test]
fn rocksdb() {
    contract::<rocks::Rocks>();
}
