//! What members do when a disk loses or doubles what it was given. Nothing here is a matter of time.

#[allow(dead_code, reason = "each file of tests uses some of what they share")]
mod common;

use std::path::{Path, PathBuf};

use common::{Cluster, until};

fn segment(data_dir: &Path) -> PathBuf {
    data_dir.join("log/wal-0000000000000001.seg")
}

/// Overwrites 512 bytes in the middle of what the log holds.
fn damage(data_dir: &Path) -> Vec<u8> {
    let path = segment(data_dir);
    let mut bytes = std::fs::read(&path).expect("the log is there");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it holds something");
    let whole = bytes.clone();
    let middle = used / 2 / 4096 * 4096 + 512;
    assert!(bytes[middle..middle + 512].iter().any(|byte| *byte != 0), "something is there to damage");
    bytes[middle..middle + 512].fill(0xA5);
    std::fs::write(&path, bytes).expect("the log can be damaged");
    whole
}

#[tokio::test]
async fn a_member_whose_log_rotted_mends_it_from_the_others_at_its_start() {
    let mut cluster = Cluster::start(3, &[]);
    let value = "v".repeat(3000);
    for n in 0..60 {
        cluster.members[n % 3].put_surely(&format!("k{n}"), &value).await;
    }
    for at in 0..3 {
        cluster.await_count(at, 60).await;
    }
    cluster.members[1].kill();
    let whole = damage(&cluster.data_dir(1));
    cluster.run(1, "new");
    cluster.members[0].put_surely("k60", "after").await;
    cluster.await_count(1, 61).await;
    assert!(cluster.log(1).contains("repaired wal-0000000000000001.seg"), "{}", cluster.log(1));
    let mended = std::fs::read(segment(&cluster.data_dir(1))).expect("the log is there");
    let used = whole.iter().rposition(|byte| *byte != 0).expect("it held something");
    assert!(mended[..used] == whole[..used], "the log is byte for byte what it was");
    assert!(cluster.data_dir(1).join("log/wal-0000000000000001.seg.damaged").exists());
}

#[tokio::test]
async fn a_member_alone_with_its_rot_says_why_and_stops() {
    let mut cluster = Cluster::start(1, &[]);
    let value = "v".repeat(3000);
    for n in 0..40 {
        cluster.members[0].put_surely(&format!("k{n}"), &value).await;
    }
    cluster.members[0].kill();
    damage(&cluster.data_dir(0));
    let damaged = std::fs::read(segment(&cluster.data_dir(0))).expect("the log is there");
    cluster.run(0, "new");
    until("the member gives up", || async { cluster.log(0).contains("no other member could give").then_some(()) })
        .await;
    let log = cluster.log(0);
    assert!(log.contains("wal-0000000000000001.seg is damaged at byte") && log.contains("under a new id"), "{log}");
    let after = std::fs::read(segment(&cluster.data_dir(0))).expect("the log is there");
    assert!(after == damaged, "a log that cannot be mended is left as it is");
}

#[tokio::test]
async fn a_member_that_nobody_can_mend_tells_who_asks_and_changes_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.members[0].put_surely("k", "v").await;
    cluster.await_count(2, 1).await;
    cluster.members[2].kill();
    // Who it is and whom it voted for: no other member can know.
    let path = cluster.data_dir(2).join("log/meta");
    let damaged = vec![0xA5; std::fs::read(&path).expect("it is there").len()];
    std::fs::write(&path, &damaged).expect("it can be damaged");
    cluster.run(2, "new");
    let asked = || async { cluster.members[2].status().await.filter(|status| !status.fault.is_empty()) };
    let told = until("it tells why it can not go on", asked).await;
    assert!(told.fault.contains("meta") && told.fault.contains("under a new id"), "{}", told.fault);
    assert!(std::fs::read(&path).expect("it is there") == damaged);
    cluster.members[0].put_surely("k2", "the others go on").await;
    assert!(cluster.members[2].terminate(), "it waits to be stopped");
}

#[tokio::test]
async fn a_copy_of_a_data_directory_halts_with_its_original() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.members[0].put_surely("k", "v").await;
    cluster.await_count(2, 1).await;
    cluster.members[2].kill();
    let (original, copy) = (cluster.data_dir(2), cluster.data_dir(2).with_extension("copy"));
    copy_dir(&original, &copy);
    // Both are started once: equal generations, different nonces.
    cluster.run(2, "new");
    cluster.await_count(2, 1).await;
    cluster.members[2].kill();
    std::fs::remove_dir_all(&original).expect("removable");
    std::fs::rename(&copy, &original).expect("renamable");
    cluster.run(2, "new");
    until("the second one is told", || async { cluster.log(2).contains("must not speak any more").then_some(()) })
        .await;
    // And for ever: whichever starts is halted.
    cluster.members[2].kill();
    cluster.run(2, "new");
    until("it is told again", || async {
        (cluster.log(2).matches("must not speak any more").count() > 1).then_some(())
    })
    .await;
    cluster.members[0].put_surely("k2", "the others go on").await;
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("listable") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}
