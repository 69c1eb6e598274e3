//! What requests become, what is refused at once, and when they count as done.

#![allow(clippy::unwrap_used, reason = "a file or an answer that is not there is a failed test")]

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use quorate_api::{ConsistentCluster, Requests};
use quorate_kubectl::ask::{Ask, Goal, Progress, Request, Seen, progress, request};

const B: &str = "orders-b7xk2";
const C: &str = "orders-c4mzq";
const D: &str = "orders-d9wpt";

/// A cluster as the situations show it, with its records and pods.
struct World {
    cluster: ConsistentCluster,
    records: Vec<StatefulSet>,
    pods: Vec<Pod>,
}

impl World {
    fn of(situation: &str) -> World {
        let path = format!("{}/tests/situations/{situation}.yaml", env!("CARGO_MANIFEST_DIR"));
        let cluster = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut world = World { cluster, records: Vec::new(), pods: Vec::new() };
        for name in [B, C, D] {
            world.record(name, 1);
            world.pod(name, &format!("pod-of-{name}"));
        }
        world
    }

    fn record(&mut self, name: &str, replicas: i32) {
        self.records.retain(|r| r.metadata.name.as_deref() != Some(name));
        let mut set = StatefulSet::default();
        set.metadata.name = Some(name.to_owned());
        set.spec = Some(StatefulSetSpec { replicas: Some(replicas), ..StatefulSetSpec::default() });
        self.records.push(set);
    }

    fn pod(&mut self, name: &str, uid: &str) {
        self.no_pod(name);
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("{name}-0"));
        pod.metadata.uid = Some(uid.to_owned());
        self.pods.push(pod);
    }

    fn no_pod(&mut self, name: &str) {
        self.pods.retain(|p| p.metadata.name.as_deref() != Some(&format!("{name}-0")));
    }

    fn seen(&self) -> Seen<'_> {
        Seen { cluster: &self.cluster, records: &self.records, pods: &self.pods }
    }

    fn ask(&self, ask: &Ask) -> Result<Request, String> {
        request(self.seen(), ask)
    }

    /// Takes the request as written, as the API server would.
    fn asked(&mut self, ask: &Ask) -> Goal {
        let Request { requests, goal } = self.ask(ask).unwrap();
        let written = requests.annotations().into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?)));
        self.cluster.metadata.annotations = Some(written.collect());
        goal
    }

    fn requests(&self) -> Requests {
        Requests::of(self.cluster.metadata.annotations.as_ref())
    }
}

fn fence(member: &str) -> Ask {
    Ask::Fence { member: member.to_owned() }
}

#[test]
fn leadership_goes_to_the_follower_that_is_furthest_in_the_term_of_now() {
    let mut world = World::of("healthy");
    let goal = world.asked(&Ask::Transfer { to: None });
    assert_eq!(goal, Goal::Leads { member: D.to_owned(), term: 4 });
    assert_eq!(world.requests().transfer.unwrap().term, 4);
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(_)));
    let leader = world.cluster.status.as_mut().unwrap().leader.as_mut().unwrap();
    (leader.name, leader.term) = (D.to_owned(), 5);
    assert!(matches!(progress(world.seen(), &goal), Progress::Done(_)));
    let leader = world.cluster.status.as_mut().unwrap().leader.as_mut().unwrap();
    leader.name = C.to_owned();
    assert!(matches!(progress(world.seen(), &goal), Progress::Missed(text) if text.contains(C)));
}

#[test]
fn what_cannot_be_is_refused_with_what_helps() {
    let refused = |situation: &str, ask: Ask| World::of(situation).ask(&ask).unwrap_err();
    let to = |name: &str| Ask::Transfer { to: Some(name.to_owned()) };
    for (situation, ask, word) in [
        ("healthy", to(B), "leads already"),
        ("healthy", to("orders-zzzzz"), "members are"),
        ("quorum_lost", Ask::Transfer { to: None }, "nobody leads"),
        ("scaling_with_a_learner", to("orders-f2hnv"), "no ready follower"),
        ("scaling_with_a_learner", fence("orders-f2hnv"), "learner"),
        ("one_member_down", fence(D), "no quorum"),
        ("fenced", Ask::Unfence { member: C.to_owned() }, D),
        ("fenced", to(D), "fenced"),
        ("fenced", Ask::Restart { member: Some(D.to_owned()) }, "fenced"),
        ("paused", fence(D), "spec.paused"),
        ("healthy", Ask::Replace { member: "orders".to_owned() }, B),
    ] {
        let text = refused(situation, ask.clone());
        assert!(text.contains(word), "{situation}, {ask:?}: {text}");
    }
}

#[test]
fn one_voter_is_fenced_at_a_time_and_unfenced_even_while_paused() {
    let mut world = World::of("fenced");
    world.record(D, 0);
    assert!(world.ask(&fence(C)).unwrap_err().contains("unfence it first"));
    world.cluster.spec.paused = true;
    let goal = world.asked(&Ask::Unfence { member: D.to_owned() });
    assert!(world.requests().fenced.is_empty());
    assert!(matches!(progress(world.seen(), &goal), Progress::Done(text) if text.contains("spec.paused")));
    world.cluster.spec.paused = false;
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(_)));
}

#[test]
fn a_member_is_fenced_when_it_is_stopped_and_its_pod_is_gone() {
    let mut world = World::of("healthy");
    let goal = world.asked(&fence(D));
    assert!(world.requests().fenced.contains(D));
    world.record(D, 0);
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(_)));
    world.no_pod(D);
    assert!(matches!(progress(world.seen(), &goal), Progress::Done(_)));
    // A member that is down already may always be.
    assert!(World::of("one_member_down").ask(&fence(C)).is_ok());
}

#[test]
fn restarts_name_pods_and_are_done_when_others_are_ready() {
    let mut world = World::of("healthy");
    let goal = world.asked(&Ask::Restart { member: None });
    assert_eq!(world.requests().restarts.len(), 3);
    world.pod(B, "new");
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(text) if text.starts_with("2 of 3")));
    world.pod(C, "new");
    world.pod(D, "new");
    assert_eq!(progress(world.seen(), &goal), Progress::Done("3 restarted".to_owned()));
    // The next request sweeps out what is moot.
    world.asked(&Ask::Restart { member: Some(B.to_owned()) });
    assert_eq!(world.requests().restarts.len(), 1);
}

#[test]
fn a_replacement_is_done_when_id_and_record_are_gone() {
    let mut world = World::of("healthy");
    let goal = world.asked(&Ask::Replace { member: C.to_owned() });
    assert_eq!(world.requests().replaced[C], "a2");
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(_)));
    world.cluster.status.as_mut().unwrap().members.retain(|m| m.name != C);
    assert!(matches!(progress(world.seen(), &goal), Progress::Waiting(_)), "its record is still there");
    world.records.retain(|r| r.metadata.name.as_deref() != Some(C));
    assert!(matches!(progress(world.seen(), &goal), Progress::Done(_)));
}
