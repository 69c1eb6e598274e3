//! When a status is worth a write.

use quorate_api::{
    Condition, ConditionStatus, ConsistentClusterStatus, LeaderStatus, MemberStatus, PlannedStepStatus, RaftStatus,
    status_differs,
};

fn status() -> ConsistentClusterStatus {
    ConsistentClusterStatus {
        observed_generation: Some(3),
        last_observed_time: Some("2026-01-01T00:00:00Z".to_owned()),
        replicas: 3,
        ready_replicas: 3,
        leader: Some(LeaderStatus { name: "orders-b7xk2".to_owned(), term: 4, ..LeaderStatus::default() }),
        raft: Some(RaftStatus { term: 4, commit_index: 100, last_applied: 99, ..RaftStatus::default() }),
        plan: vec![PlannedStepStatus {
            step: "Promote".to_owned(),
            have: Some(10),
            need: Some(5),
            ..Default::default()
        }],
        members: vec![MemberStatus { name: "orders-b7xk2".to_owned(), match_lag: Some(1), ..MemberStatus::default() }],
        conditions: vec![Condition {
            kind: "Ready".to_owned(),
            status: ConditionStatus::True,
            observed_generation: Some(3),
            last_transition_time: "2026-01-01T00:00:00Z".to_owned(),
            reason: "Reconciled".to_owned(),
            message: "3 voters".to_owned(),
        }],
        ..ConsistentClusterStatus::default()
    }
}

#[test]
fn volatile_numbers_alone_are_no_reason_to_write() {
    let changes: [fn(&mut ConsistentClusterStatus); 6] = [
        |s| s.last_observed_time = None,
        |s| s.raft.as_mut().unwrap().commit_index += 1,
        |s| s.raft.as_mut().unwrap().leader_heartbeat_age_ms += 1,
        |s| s.members[0].match_lag = Some(7),
        |s| s.plan[0].have = Some(9),
        |s| s.conditions[0].message = "7 voters".to_owned(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = status();
        change(&mut changed);
        assert!(!status_differs(&status(), &changed), "change {number}");
    }
}

#[test]
fn every_real_change_is_a_reason_to_write() {
    let changes: [fn(&mut ConsistentClusterStatus); 8] = [
        |s| s.observed_generation = Some(4),
        |s| s.replicas = 5,
        |s| s.ready_replicas = 2,
        |s| s.leader.as_mut().unwrap().term += 1,
        |s| s.leader = None,
        |s| s.members[0].ready = true,
        |s| s.conditions[0].status = ConditionStatus::False,
        |s| s.conditions[0].reason = "Unavailable".to_owned(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = status();
        change(&mut changed);
        assert!(status_differs(&status(), &changed), "change {number}");
    }
}
