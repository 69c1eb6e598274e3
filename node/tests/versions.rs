//! What waits for all members: refused while one has not said that it can, done once all have.

#[allow(dead_code, reason = "each file of tests uses some of what they share")]
mod common;

use common::{Cluster, until};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use tonic::{Code, Status};

async fn alarm(cluster: &Cluster, at: usize, action: AlarmAction, member: u64) -> Result<Vec<u64>, Status> {
    let kind = if action == AlarmAction::Get { pb::AlarmType::None } else { pb::AlarmType::Nospace };
    let request = pb::AlarmRequest { action: action.into(), member_id: member, alarm: kind.into() };
    let answer = cluster.members[at].maintenance().alarm(request).await?.into_inner();
    Ok(answer.alarms.iter().map(|alarm| alarm.member_id).collect())
}

#[tokio::test]
async fn an_alarm_waits_for_all_members_and_then_stops_growth_on_each() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.members[2].kill();
    cluster.members[0].put_surely("k0", "v").await;
    let leader = cluster.leader().await;
    let agreed = cluster.members[leader].status().await.expect("it runs").cluster_version;
    // The third may have told its version before it was killed.
    if agreed == "0.0" {
        let refused = alarm(&cluster, 0, AlarmAction::Activate, 0).await.expect_err("one member is unknown");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("has agreed on 0.0"), "{}", refused.message());
    }
    cluster.run(2, "new");
    until("all members agree", || async {
        let told = [cluster.members[0].status().await?, cluster.members[2].status().await?];
        told.iter().all(|status| status.cluster_version == "0.1").then_some(())
    })
    .await;

    let second = cluster.members[1].status().await.expect("it runs").member_id;
    let raised = alarm(&cluster, 0, AlarmAction::Activate, second).await.expect("raised");
    assert_eq!(raised, [second]);
    assert_eq!(alarm(&cluster, 0, AlarmAction::Activate, 12).await.expect_err("nobody").code(), Code::NotFound);
    for member in &cluster.members {
        let refused = member.put("k1", "v").await.expect_err("an alarm is up");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    }
    // It outlives everybody.
    for at in 0..3 {
        cluster.members[at].kill();
        cluster.run(at, "new");
    }
    cluster.leader().await;
    until("it is told", || async { alarm(&cluster, 2, AlarmAction::Get, 0).await.ok().filter(|a| *a == [second]) })
        .await;
    let lowered = alarm(&cluster, 2, AlarmAction::Deactivate, second).await.expect("lowered");
    assert_eq!(lowered, [second]);
    assert!(alarm(&cluster, 2, AlarmAction::Get, 0).await.expect("told").is_empty());
    cluster.members[0].put_surely("k1", "v").await;

    // What was agreed on stands beside the log, so that an older program stops before it answers anybody.
    let kept = cluster.data_dir(2).join("cluster-version");
    assert!(std::fs::read_to_string(&kept).expect("it is kept").starts_with("0.1 "));
    cluster.members[2].kill();
    let starts = cluster.log(2).matches("started member").count();
    std::fs::write(&kept, format!("9.0 {:08x}\n", crc32c::crc32c(b"9.0"))).expect("writable");
    cluster.run(2, "new");
    until("it says why it stops", || async {
        cluster.log(2).contains("the cluster has agreed on version 9.0").then_some(())
    })
    .await;
    assert_eq!(cluster.log(2).matches("started member").count(), starts);
}
