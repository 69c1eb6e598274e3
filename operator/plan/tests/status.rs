//! Conditions are dated when they change, and only then; each is seen both ways.

mod script;
mod world;

use quorate_api::{ConsistentClusterStatus, names, status_differs};
use quorate_plan::{Plan, StatusInput, TlsWord, plan, status};
use world::World;

fn tell(world: &World, previous: Option<&ConsistentClusterStatus>, failure: Option<&str>) -> ConsistentClusterStatus {
    let (intent, observed) = (world.intent(), world.observe());
    let made: Plan = plan(&intent, &observed, world.now_ms, names::seed("c1"));
    status(StatusInput { intent: &intent, observed: &observed, plan: &made, previous, now_ms: world.now_ms, failure })
}

/// A world of three members that has settled.
fn settled() -> World {
    let mut world = World::new(3);
    for _ in 0..200 {
        let next = plan(&world.intent(), &world.observe(), world.now_ms, names::seed("c1")).next;
        if let quorate_plan::Decision::Act(step) = &next {
            world.apply(step).expect("nothing disturbs");
        }
        world.tick();
    }
    world
}

fn reason(status: &ConsistentClusterStatus, kind: &str) -> String {
    let condition = status.condition(kind).expect("the condition is there");
    format!("{:?} {}", condition.status, condition.reason)
}

#[test]
fn an_idle_cluster_is_not_written_again_and_keeps_its_dates() {
    let mut world = settled();
    let first = tell(&world, None, None);
    assert_eq!(reason(&first, "Ready"), "True Reconciled");
    for _ in 0..30 {
        world.tick();
    }
    let later = tell(&world, Some(&first), None);
    assert_ne!(first, later, "the numbers moved");
    assert!(!status_differs(&first, &later), "and none of them is worth a write");
    for (before, after) in first.conditions.iter().zip(&later.conditions) {
        assert_eq!(before.last_transition_time, after.last_transition_time, "{}", before.kind);
    }
}

#[test]
fn a_change_is_dated_when_it_happens_and_undated_conditions_stay() {
    let mut world = settled();
    let before = tell(&world, None, None);
    let lost = world.followers()[0].clone();
    (0..5).for_each(|_| world.tick());
    world.lose_pod(&lost);
    let after = tell(&world, Some(&before), None);
    assert!(status_differs(&before, &after));
    assert_eq!(reason(&after, "Ready"), "False OperationInProgress");
    assert_eq!(reason(&after, "Degraded"), "True MemberUnhealthy");
    assert_eq!(reason(&after, "FailoverReady"), "False NoMargin");
    assert_eq!(reason(&after, "Available"), "True QuorumHealthy");
    let date = |s: &ConsistentClusterStatus, kind: &str| s.condition(kind).unwrap().last_transition_time.clone();
    assert_ne!(date(&before, "Ready"), date(&after, "Ready"));
    assert_eq!(date(&before, "Available"), date(&after, "Available"));
    let quorum = after.quorum.expect("a leader is known");
    assert_eq!((quorum.required, quorum.reachable, quorum.caught_up, quorum.tolerates), (2, 2, 2, 0));
}

#[test]
fn a_failed_reconcile_is_told_and_does_not_hide_the_members() {
    let world = settled();
    let told = tell(&world, None, Some("patch orders-bbbbb: 500"));
    assert_eq!(reason(&told, "Ready"), "False ReconcileFailed");
    assert_eq!(reason(&told, "Degraded"), "True ReconcileFailed");
    assert_eq!(reason(&told, "Available"), "True QuorumHealthy");
    assert_eq!((told.replicas, told.ready_replicas), (3, 3));
}

#[test]
fn what_nobody_can_be_asked_is_unknown_and_the_committed_size_is_kept() {
    let mut world = settled();
    let before = tell(&world, None, None);
    let names: Vec<_> = world.records.keys().cloned().collect();
    names.iter().for_each(|n| world.lose_pod(n));
    let after = tell(&world, Some(&before), None);
    assert_eq!((after.replicas, after.ready_replicas), (3, 0));
    assert!(after.leader.is_none() && after.raft.is_none());
    for kind in ["Ready", "Available", "LeaderServing", "FailoverReady", "MembershipStable", "Degraded"] {
        assert!(reason(&after, kind).starts_with("Unknown"), "{kind}: {}", reason(&after, kind));
    }
    assert_eq!(after.last_observed_time, before.last_observed_time, "nothing was read from a member");
}

#[test]
fn members_are_joined_by_id_and_at_most_one_leads() {
    let world = settled();
    let told = tell(&world, None, None);
    let leaders: Vec<_> = told.members.iter().filter(|m| m.role == "Leader").collect();
    assert_eq!(leaders.len(), 1);
    let leader = told.leader.expect("a leader");
    assert_eq!((leaders[0].name.as_str(), leaders[0].id.as_deref()), (leader.name.as_str(), Some(leader.id.as_str())));
}

#[test]
fn every_condition_is_seen_both_ways_in_the_scripts() {
    let text: String = script::all().into_iter().map(|s| s.text).collect();
    for kind in [
        "Ready",
        "Available",
        "Progressing",
        "Degraded",
        "LeaderServing",
        "FailoverReady",
        "MembershipStable",
        "Stalled",
    ] {
        for status in ["True", "False"] {
            assert!(text.contains(&format!("{kind}={status} ")), "no script shows {kind}={status}");
        }
    }
}

#[test]
fn a_cluster_that_sleeps_tells_of_its_certificates_too() {
    let mut world = settled();
    world.spec.replicas = 0;
    for _ in 0..100 {
        if let quorate_plan::Decision::Act(step) =
            plan(&world.intent(), &world.observe(), world.now_ms, names::seed("c1")).next
        {
            world.apply(&step).expect("nothing disturbs");
        }
        world.tick();
    }
    let (intent, mut observed) = (world.intent(), world.observe());
    let made = plan(&intent, &observed, world.now_ms, names::seed("c1"));
    let fault = Some("Secret orders-tls-ca: forbidden".to_owned());
    observed.tls = Some(TlsWord { fault, waits: None, rotated: Vec::new(), not_after: None });
    let input =
        StatusInput { intent: &intent, observed: &observed, plan: &made, previous: None, now_ms: 0, failure: None };
    let told = status(input);
    assert_eq!(reason(&told, "Ready"), "True ScaledToZero");
    assert_eq!(reason(&told, "TLSReady"), "False CertificateFault");
    assert!(told.last_observed_time.is_some(), "there is nobody to be heard, which does not make the status old");
}
