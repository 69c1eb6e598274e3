//! Members as real processes: founding, failure, restart, joining, leaving, stopping. Nothing here is a matter of time.

#[allow(dead_code, reason = "each file of tests uses some of what they share")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Cluster, until};
use quorate_proto::admin::v1::ActivateRequest;
use quorate_proto::etcdserverpb::{MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest};
use tonic::Code;

#[tokio::test]
async fn acknowledged_writes_survive_the_leader_and_then_everybody() {
    let mut cluster = Cluster::start(3, &[]);
    for n in 0..20 {
        cluster.members[n % 3].put_surely(&format!("k{n}"), "before").await;
    }
    let killed = cluster.leader().await;
    cluster.members[killed].kill();
    let survivor = (killed + 1) % 3;
    for n in 20..40 {
        cluster.members[survivor].put_surely(&format!("k{n}"), "without the old leader").await;
    }
    cluster.run(killed, "new");
    cluster.await_count(killed, 40).await;

    for member in &mut cluster.members {
        member.kill();
    }
    for at in 0..3 {
        cluster.run(at, "new");
    }
    cluster.members[0].put_surely("k40", "after").await;
    for at in 0..3 {
        cluster.await_count(at, 41).await;
        let found = until("a read", || async { cluster.members[at].get("k25").await.ok() }).await;
        assert_eq!(found.as_deref(), Some("without the old leader"));
    }
}

#[tokio::test]
async fn a_late_joiner_catches_up_by_snapshot_votes_and_leaves() {
    let mut cluster = Cluster::start(3, &["--snapshot-count", "20", "--snapshot-catchup-entries", "5"]);
    for n in 0..200 {
        cluster.members[0].put_surely(&format!("k{n}"), "v").await;
    }
    let joiner = cluster.add();
    let peer_urls = vec![cluster.members[joiner].peer_url()];
    let added = until("a learner is added", || async {
        let request = MemberAddRequest { peer_ur_ls: peer_urls.clone(), is_learner: true };
        cluster.members[1].cluster().member_add(request).await.ok()
    })
    .await;
    let id = added.into_inner().member.expect("the new member").id;
    cluster.run(joiner, "existing");
    until("the learner is promoted", || async {
        cluster.members[0].cluster().member_promote(MemberPromoteRequest { id }).await.ok()
    })
    .await;
    cluster.await_count(joiner, 200).await;
    assert!(cluster.log(joiner).contains("receiving a snapshot"), "it began behind the logs kept by the others");
    cluster.members[joiner].put_surely("k200", "by the joiner").await;
    until("its name and addresses are known", || async {
        let list = cluster.members[0].cluster().member_list(MemberListRequest::default()).await.ok()?.into_inner();
        list.members.iter().find(|m| m.id == id && m.name == "m3" && !m.client_ur_ls.is_empty()).cloned()
    })
    .await;

    // A restart from its own checkpoint and log.
    cluster.members[joiner].kill();
    cluster.run(joiner, "existing");
    cluster.await_count(joiner, 201).await;

    until("it is removed", || async {
        cluster.members[0].cluster().member_remove(MemberRemoveRequest { id }).await.ok()
    })
    .await;
    until("it knows that it was removed, and stays up", || async {
        cluster.members[joiner].status().await.filter(|s| s.role == "Removed" && !s.ready)
    })
    .await;
    assert_eq!(cluster.members[joiner].count_here().await, None, "a removed member serves nothing");
    until("nobody can connect, so that clients look for others", || async {
        cluster.members[joiner].refuses_clients().then_some(())
    })
    .await;
    cluster.members[0].put_surely("k201", "by those who stay").await;
    assert!(cluster.members[joiner].status().await.is_some(), "it waits to be told to end");
    let mut removed = cluster.members.remove(joiner);
    let ended = tokio::task::spawn_blocking(move || removed.terminate());
    assert!(ended.await.expect("it ends"), "it ended well");
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_and_fails_no_request() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.members[0].put_surely("k", "v").await;
    let leader = cluster.leader().await;
    let term = cluster.members[leader].status().await.expect("it runs").term;
    let is_done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (mut kv, is_done) = (cluster.members[(leader + 1) % 3].kv(), is_done.clone());
        tokio::spawn(async move {
            let mut written = 0;
            while !is_done.load(Ordering::Relaxed) {
                let request = quorate_proto::etcdserverpb::PutRequest {
                    key: format!("k{written}").into(),
                    value: "v".into(),
                    ..Default::default()
                };
                kv.put(request).await?;
                written += 1;
            }
            Ok::<i64, tonic::Status>(written)
        })
    };
    let mut stopping = cluster.members.remove(leader);
    let stopped = tokio::task::spawn_blocking(move || stopping.terminate());
    assert!(stopped.await.expect("it ends"), "it ended well");
    let next = cluster.leader().await;
    is_done.store(true, Ordering::Relaxed);
    let written = writer.await.expect("no panic").expect("a planned move fails no request");
    assert!(written > 0);
    let status = cluster.members[next].status().await.expect("it runs");
    // A leader that stepped down because the machine stood still had nothing to hand over.
    let logs = cluster.logs();
    if !["QuorumLost", "DiskStalled"].iter().any(|why| logs.contains(why)) {
        assert_eq!(status.term, term + 1, "leadership was handed over, nobody had to wait for a timeout");
    }
}

#[tokio::test]
async fn a_member_that_lost_its_disk_does_not_count_under_its_old_id() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.members[0].put_surely("k0", "v").await;
    for at in 0..3 {
        cluster.await_count(at, 1).await;
    }
    let leader = cluster.leader().await;
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = cluster.members[lost].status().await.expect("it runs").member_id;
    cluster.members[lost].kill();
    // Whoever was told of it remembers it after a restart, too.
    cluster.members[other].kill();
    cluster.run(other, "new");
    std::fs::remove_dir_all(cluster.data_dir(lost)).expect("the disk is lost");
    cluster.run(lost, "new");
    until("both others refuse it", || async {
        let refuses = |at: usize| cluster.log(at).contains("replace it under a new id").then_some(());
        refuses(leader).and(refuses(other))
    })
    .await;
    cluster.members[other].put_surely("k1", "v").await;
    let leader = cluster.leader().await;
    assert_ne!(leader, lost);
    until("none of its words is heard", || async {
        let told = cluster.members[leader].status().await?;
        told.progress.iter().find(|p| p.member_id == id && !p.active).cloned()
    })
    .await;
}

#[tokio::test]
async fn a_seed_serves_nobody_until_it_is_activated_and_then_for_good() {
    let mut cluster = Cluster::start(1, &["--await-activation"]);
    let cluster_id = until("it leads", || async {
        cluster.members[0].status().await.filter(|s| s.own_term_applied).map(|s| s.cluster_id)
    })
    .await;
    let refused = cluster.members[0].put("k", "v").await.expect_err("not activated");
    assert_eq!(refused.code(), Code::Unavailable);
    cluster.members[0].admin().activate(ActivateRequest { cluster_id }).await.expect("activated");
    cluster.members[0].put("k", "v").await.expect("served");
    cluster.members[0].kill();
    cluster.run(0, "new");
    cluster.members[0].put_surely("k1", "v").await;
    cluster.await_count(0, 2).await;
}
