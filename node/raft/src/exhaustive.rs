//! Searches every schedule of a small group: which message arrives next, which write is flushed, who campaigns, who
//! crashes. The searched code is the shipped core; only time is taken away: anybody may campaign at any moment and no
//! voter remembers whom it heard, so that every order of deadlines is covered.
//!
//! Depth first with a set of visited states, so memory holds hashes and one path. A message is delivered, or never;
//! what would exceed the bound of messages under way is lost. `EXHAUSTIVE_STATES=n` raises the limit of states;
//! `cargo test --release -p quorate-raft exhaustive -- --nocapture` prints the counts.
//!
//! Source of the invariants: Ongaro, thesis figure 3.2.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use bytes::Bytes;

use crate::Cfg;
use crate::io::{Change, Effect, Input};
use crate::membership::changed;
use crate::node::Node;
use crate::types::{
    Config, ConfigAt, Entry, Index, MemberId, MemberInfo, Record, Recovered, SnapMeta, Term, Time, Token, WriteSeq,
};
use crate::wire::Msg;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Member {
    node: Node,
    disk: Disk,
    writes: VecDeque<(WriteSeq, Record)>,
    waiting: Vec<(WriteSeq, MemberId, Msg)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Disk {
    term: Term,
    vote: Option<MemberId>,
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    members: Vec<Member>,
    net: Vec<(MemberId, MemberId, Msg)>,
    crashes: u32,
    doubled: u32,
    proposals: u64,
    changes: usize,
    // What has happened and may not be contradicted.
    leaders: BTreeMap<Term, MemberId>,
    /// With the term of the leader that committed it.
    committed: Vec<(Term, Entry)>,
}

#[derive(Clone, Debug)]
enum Move {
    Campaign(usize),
    Deliver(usize),
    DeliverTwice(usize),
    Drop(usize),
    Flush(usize),
    Crash(usize),
    Propose(usize),
    Heartbeat(usize),
    Change(usize),
}

/// Bounds of one search.
#[derive(Clone)]
struct Scope {
    name: &'static str,
    voters: &'static [u64],
    learners: &'static [u64],
    changes: Vec<Change>,
    term_max: Term,
    index_max: Index,
    proposals_max: u64,
    net_max: usize,
    crashes_max: u32,
    doubled_max: u32,
    rounds_max: u64,
    #[cfg(feature = "mutants")]
    mutant: Option<crate::mutant::Mutant>,
}

impl Scope {
    fn small(name: &'static str) -> Scope {
        Scope {
            name,
            voters: &[1, 2, 3],
            learners: &[],
            changes: Vec::new(),
            term_max: 2,
            index_max: 3,
            proposals_max: 1,
            net_max: 3,
            crashes_max: 1,
            doubled_max: 0,
            rounds_max: 0,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    fn mark(&self) -> SnapMeta {
        let set = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect::<BTreeSet<_>>();
        let (voters, learners) = (set(self.voters), set(self.learners));
        let members = voters.union(&learners).map(|id| (*id, MemberInfo::default())).collect();
        let config = Config { voters, learners, members, ..Config::default() };
        SnapMeta { config, config_at: ConfigAt::default(), index: 0, term: 0 }
    }

    fn start(&self, id: MemberId, disk: &Disk) -> Node {
        let cfg = Cfg {
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Cfg::lan(id)
        };
        let hard = crate::types::HardState { term: disk.term, vote: disk.vote };
        let recovered = Recovered { hard, snapshot: self.mark(), entries: disk.entries.clone(), incarnation: 0 };
        let mut node = Node::restart(cfg, recovered, Time(0), 0);
        node.forget_time();
        node
    }

    fn world(&self) -> World {
        let disk = Disk { term: 0, vote: None, entries: Vec::new() };
        let member = |id: &u64| Member {
            node: self.start(MemberId(*id), &disk),
            disk: disk.clone(),
            writes: VecDeque::new(),
            waiting: Vec::new(),
        };
        World {
            members: self.voters.iter().chain(self.learners).map(member).collect(),
            net: Vec::new(),
            crashes: 0,
            doubled: 0,
            proposals: 0,
            changes: 0,
            leaders: BTreeMap::new(),
            committed: Vec::new(),
        }
    }

    fn moves(&self, world: &World) -> Vec<Move> {
        let mut moves = Vec::new();
        for (at, member) in world.members.iter().enumerate() {
            let has_room = member.node.last_index() < self.index_max;
            if !member.node.is_leader() && member.node.term() < self.term_max && member.node.may_campaign() && has_room
            {
                moves.push(Move::Campaign(at));
            }
            if !member.writes.is_empty() {
                moves.push(Move::Flush(at));
            }
            let is_touched = !member.writes.is_empty() || member.node.term() > 0;
            if world.crashes < self.crashes_max && is_touched {
                moves.push(Move::Crash(at));
            }
            if member.node.is_leader() {
                if world.proposals < self.proposals_max && has_room {
                    moves.push(Move::Propose(at));
                }
                if member.node.rounds() <= self.rounds_max {
                    moves.push(Move::Heartbeat(at));
                }
                if world.changes < self.changes.len() && has_room && member.node.may_change() {
                    moves.push(Move::Change(at));
                }
            }
        }
        for at in 0..world.net.len() {
            moves.push(Move::Deliver(at));
            moves.push(Move::Drop(at));
            if world.doubled < self.doubled_max {
                moves.push(Move::DeliverTwice(at));
            }
        }
        moves
    }

    fn make(&self, world: &mut World, step: &Move) {
        match *step {
            Move::Campaign(at) => self.act(world, at, |node, out| node.campaign(false, out)),
            Move::Deliver(at) => self.deliver(world, at, true),
            Move::DeliverTwice(at) => {
                world.doubled += 1;
                self.deliver(world, at, false);
            }
            Move::Drop(at) => drop(world.net.remove(at)),
            Move::Flush(at) => self.flush(world, at),
            Move::Crash(at) => {
                world.crashes += 1;
                let member = &mut world.members[at];
                member.writes.clear();
                member.waiting.clear();
                member.node = self.start(member.node.id(), &member.disk);
            }
            Move::Propose(at) => {
                world.proposals += 1;
                let data = Bytes::from(vec![u8::try_from(world.proposals).expect("few proposals")]);
                let batch = vec![(Token(world.proposals), data)];
                self.act(world, at, |node, out| node.step(Time(0), Input::Propose { batch }, out));
            }
            Move::Heartbeat(at) => self.act(world, at, Node::heartbeat_round),
            Move::Change(at) => {
                let change = &self.changes[world.changes];
                world.changes += 1;
                let config = world.members[at].node.status().newest_config.config;
                // Who is live is a matter of time, which is not part of the search.
                if let Ok(next) = changed(&config, change) {
                    self.act(world, at, |node, out| node.append_config(next, out));
                }
            }
        }
        // The order of messages under way is no difference between two states.
        world.net.sort_by_cached_key(|flight| hash(0, flight));
    }

    fn deliver(&self, world: &mut World, at: usize, is_removed: bool) {
        let (from, to, msg) = if is_removed { world.net.remove(at) } else { world.net[at].clone() };
        if let Some(at) = world.members.iter().position(|member| member.node.id() == to) {
            self.act(world, at, |node, out| node.step(Time(0), Input::Msg { from, msg }, out));
        }
    }

    fn flush(&self, world: &mut World, at: usize) {
        let member = &mut world.members[at];
        let Some((seq, record)) = member.writes.pop_front() else { return };
        match record {
            Record::HardState(hard) => {
                assert!(hard.term >= member.disk.term, "the term on disk never goes back");
                (member.disk.term, member.disk.vote) = (hard.term, hard.vote);
            }
            Record::Append(entries) => member.disk.entries.extend(entries),
            Record::TruncateTo(index) => member.disk.entries.retain(|entry| entry.index <= index),
            Record::SnapshotMark(_) => unreachable!("the engine persists nothing in these scopes"),
        }
        let from = member.node.id();
        let (free, waiting) = std::mem::take(&mut member.waiting).into_iter().partition(|(after, ..)| *after <= seq);
        member.waiting = waiting;
        let free: Vec<(WriteSeq, MemberId, Msg)> = free;
        for (_, to, msg) in free {
            self.send(world, from, to, msg);
        }
        self.act(world, at, |node, out| node.step(Time(0), Input::Written { upto: seq }, out));
    }

    fn send(&self, world: &mut World, from: MemberId, to: MemberId, msg: Msg) {
        let is_heartbeat = matches!(msg, Msg::Heartbeat { .. } | Msg::HeartbeatReply { .. });
        if world.net.len() < self.net_max && !(is_heartbeat && self.rounds_max == 0) {
            world.net.push((from, to, msg));
        }
    }

    fn act(&self, world: &mut World, at: usize, act: impl FnOnce(&mut Node, &mut Vec<Effect>)) {
        let was_leader = world.members[at].node.is_leader();
        let mut out = Vec::new();
        act(&mut world.members[at].node, &mut out);
        self.take(world, at, was_leader, out);
        let node = &mut world.members[at].node;
        if node.applied() < node.commit() {
            // Applying is not searched: entries are applied at once.
            let (index, was_leader, mut out) = (node.commit(), node.is_leader(), Vec::new());
            node.step(Time(0), Input::Applied { index }, &mut out);
            self.take(world, at, was_leader, out);
        }
        let member = &mut world.members[at];
        let base = member.node.forget_time();
        for seq in member.writes.iter_mut().map(|(seq, _)| seq).chain(member.waiting.iter_mut().map(|(seq, ..)| seq)) {
            seq.0 -= base;
        }
    }

    fn take(&self, world: &mut World, at: usize, was_leader: bool, out: Vec<Effect>) {
        let id = world.members[at].node.id();
        for effect in out {
            match effect {
                Effect::Write { seq, record } => world.members[at].writes.push_back((seq, record)),
                Effect::Send { to, msg, after: None } => self.send(world, id, to, msg),
                Effect::Send { to, msg, after: Some(seq) } => world.members[at].waiting.push((seq, to, msg)),
                Effect::Commit { entries } => self.check_commit(world, at, was_leader, &entries),
                Effect::Event(_)
                | Effect::Resolve { .. }
                | Effect::ReadAt { .. }
                | Effect::Acked { .. }
                | Effect::SendSnapshot { .. }
                | Effect::Install { .. } => {}
            }
        }
        if !was_leader && world.members[at].node.is_leader() {
            check_leader(world, at);
        }
    }

    fn check_commit(&self, world: &mut World, at: usize, was_leader: bool, entries: &[Entry]) {
        for entry in entries {
            let known = world.committed.len() as u64;
            if entry.index <= known {
                let place = usize::try_from(entry.index - 1).expect("few entries");
                assert_eq!(world.committed[place].1, *entry, "state machine safety");
            } else {
                assert!(was_leader, "only a leader decides that an entry is committed");
                assert_eq!(entry.index, known + 1, "commits are contiguous");
                world.committed.push((world.members[at].node.term(), entry.clone()));
            }
        }
        if let Some(last) = entries.last().filter(|_| was_leader) {
            let config = world.members[at].node.status().newest_config.config;
            let holds = |id: &&MemberId| {
                world.members.iter().any(|member| member.node.id() == **id && member.disk.entries.contains(last))
            };
            for half in [&config.voters, &config.voters_outgoing] {
                let count = half.iter().filter(holds).count();
                assert!(half.is_empty() || 2 * count > half.len(), "committed means on the disks of a quorum");
            }
        }
    }

    /// Visits every state within the bounds, or as many as the limit allows.
    fn search(&self, states_max: usize) -> (usize, bool) {
        let mut seen = BTreeSet::new();
        let root = self.world();
        seen.insert(fingerprint(&root));
        let mut path: Vec<(World, VecDeque<Move>, Option<Move>)> = vec![(root.clone(), self.moves(&root).into(), None)];
        while let Some((world, moves, _)) = path.last_mut() {
            let Some(step) = moves.pop_front() else {
                path.pop();
                continue;
            };
            let mut next = world.clone();
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.make(&mut next, &step);
                check_log_matching(&next);
            }));
            if let Err(why) = made {
                let steps: Vec<String> =
                    path.iter().filter_map(|(_, _, step)| step.as_ref().map(|s| format!("{s:?}"))).collect();
                println!("{}: after {} then {step:?}", self.name, steps.join(" "));
                std::panic::resume_unwind(why);
            }
            if seen.insert(fingerprint(&next)) {
                if seen.len() >= states_max {
                    return (seen.len(), false);
                }
                let mut moves: VecDeque<Move> = self.moves(&next).into();
                // Another first move in each state, so that a search that meets its limit has been everywhere a bit.
                let turn = hash(3, &next) % moves.len().max(1) as u64;
                moves.rotate_left(usize::try_from(turn).expect("below a length"));
                path.push((next, moves, Some(step)));
            }
        }
        (seen.len(), true)
    }
}

fn check_leader(world: &mut World, at: usize) {
    let node = &world.members[at].node;
    let first = *world.leaders.entry(node.term()).or_insert(node.id());
    assert_eq!(first, node.id(), "election safety: two leaders in term {}", node.term());
    // A leader of an old term may come late; it cannot commit anything any more.
    for (_, entry) in world.committed.iter().filter(|(term, _)| *term < node.term()) {
        assert_eq!(node.entry_at(entry.index), Some(entry), "leader completeness");
    }
}

fn check_log_matching(world: &World) {
    for (at, one) in world.members.iter().enumerate() {
        for other in &world.members[at + 1..] {
            let last = one.node.last_index().min(other.node.last_index());
            let mut is_equal_from_here = false;
            for index in (1..=last).rev() {
                let (left, right) = (one.node.entry_at(index), other.node.entry_at(index));
                is_equal_from_here |= one.node.term_at(index) == other.node.term_at(index);
                assert!(!is_equal_from_here || left == right, "log matching");
            }
        }
    }
}

fn hash(salt: u8, value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, value).hash(&mut hasher);
    hasher.finish()
}

/// 128 bits: a collision would hide a state, and 64 are too few for a hundred million of them.
fn fingerprint(world: &World) -> (u64, u64) {
    (hash(1, world), hash(2, world))
}

fn scopes() -> Vec<Scope> {
    let promote = vec![Change::Promote { id: MemberId(3), lag_max: 0 }];
    let swap = vec![Change::Swap { new: MemberId(3), old: MemberId(2), lag_max: 0 }];
    let grown = Scope { voters: &[1, 2], learners: &[3], proposals_max: 0, net_max: 2, ..Scope::small("") };
    vec![
        Scope { proposals_max: 0, index_max: 2, net_max: 2, ..Scope::small("two elections, one crash") },
        Scope {
            proposals_max: 0,
            index_max: 2,
            net_max: 2,
            doubled_max: 1,
            crashes_max: 0,
            ..Scope::small("a message doubled")
        },
        Scope { voters: &[1, 2], rounds_max: 1, ..Scope::small("two voters, heartbeats") },
        Scope { net_max: 2, crashes_max: 0, ..Scope::small("two terms, one proposal") },
        Scope { net_max: 2, ..Scope::small("two terms, one proposal, one crash") },
        Scope { term_max: 3, net_max: 2, ..Scope::small("three terms") },
        Scope { changes: promote, crashes_max: 0, name: "two voters become three", ..grown.clone() },
        Scope { changes: swap, index_max: 4, crashes_max: 0, name: "a voter is replaced", ..grown },
        Scope {
            changes: vec![Change::Remove { id: MemberId(3) }],
            net_max: 2,
            proposals_max: 0,
            crashes_max: 0,
            ..Scope::small("three voters become two")
        },
    ]
}

#[test]
fn exhaustive_search_finds_no_broken_invariant() {
    let limit = std::env::var("EXHAUSTIVE_STATES").ok().map(|text| text.parse().expect("a number of states"));
    let only = std::env::var("EXHAUSTIVE_SCOPE").unwrap_or_default();
    for scope in scopes().into_iter().filter(|scope| scope.name.contains(&only)) {
        let (states, is_complete) = scope.search(limit.unwrap_or(5_000));
        println!("{:10} states, {}: {}", states, if is_complete { "all" } else { "limit" }, scope.name);
    }
}

/// The search itself is seen to work: it finds these within few states.
#[cfg(feature = "mutants")]
#[test]
fn exhaustive_search_finds_planted_bugs() {
    use crate::mutant::Mutant;
    const STATES_MAX: usize = 10_000;
    let wanted = [
        Mutant::AckBeforeFsync,
        Mutant::VoteWithoutLogCheck,
        Mutant::LeaderCountsUnsynced,
        Mutant::UnsortedQuorum,
        Mutant::LearnerCounts,
    ];
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let survivors: Vec<Mutant> = wanted
        .into_iter()
        .filter(|mutant| {
            !scopes().into_iter().any(|scope| {
                let scope = Scope { mutant: Some(*mutant), ..scope };
                std::panic::catch_unwind(|| scope.search(STATES_MAX)).is_err()
            })
        })
        .collect();
    std::panic::set_hook(quiet);
    assert!(survivors.is_empty(), "planted bugs the search does not find: {survivors:?}");
}
