//! The shortest way through the interface: one voter, no network.

use bytes::Bytes;
use quorate_raft::io::{Effect, Event, Input, Outcome};
use quorate_raft::types::{
    Config, HardState, MemberId, MemberInfo, Record, Recovered, SnapMeta, Time, Token, WriteSeq,
};
use quorate_raft::{Cfg, Node};

fn alone() -> Node {
    let id = MemberId(1);
    let config = Config { voters: [id].into(), members: [(id, MemberInfo::default())].into(), ..Config::default() };
    let snapshot = SnapMeta { config, ..SnapMeta::default() };
    Node::restart(Cfg::lan(id), Recovered { snapshot, ..Recovered::default() }, Time(0), 7)
}

fn step(node: &mut Node, input: Input) -> Vec<Effect> {
    let mut out = Vec::new();
    let now = node.deadline().min(Time(1));
    node.step(now, input, &mut out);
    out
}

#[test]
fn a_single_voter_elects_itself_and_commits_only_what_its_disk_holds() {
    let mut node = alone();
    let out = step(&mut node, Input::Tick);
    let hard = HardState { term: 1, vote: Some(MemberId(1)) };
    assert!(out.contains(&Effect::Write { seq: WriteSeq(1), record: Record::HardState(hard) }), "{out:?}");
    assert!(!node.is_leader(), "its own vote is not on disk");

    let out = step(&mut node, Input::Written { upto: WriteSeq(1) });
    assert!(out.contains(&Effect::Event(Event::BecameLeader { term: 1 })), "{out:?}");
    let batch = vec![(Token(1), Bytes::from_static(b"a")), (Token(2), Bytes::from_static(b"b"))];
    let out = step(&mut node, Input::Propose { batch });
    assert_eq!(out.len(), 1, "one write for the whole batch: {out:?}");
    assert_eq!(node.commit(), 0);

    let out = step(&mut node, Input::Written { upto: WriteSeq(3) });
    assert_eq!(node.commit(), 3);
    for (token, index) in [(1, 2), (2, 3)] {
        let outcome = Outcome::Committed { term: 1, index };
        assert!(out.contains(&Effect::Resolve { token: Token(token), outcome }), "{out:?}");
    }
    let out = step(&mut node, Input::Applied { index: 3 });
    assert!(matches!(out[..], [Effect::Event(Event::LeaderReady { noop_index: 1, .. })]), "{out:?}");
}
