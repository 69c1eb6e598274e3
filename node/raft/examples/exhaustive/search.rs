//! Searches every schedule of a small group: which message arrives next, which write is flushed, who campaigns, who
//! crashes. The searched code is the shipped core; only time is taken away: anybody may campaign at any moment and no
//! voter remembers whom it heard, so that every order of deadlines is covered.
//!
//! Breadth first. A world is a few numbers: members, messages and what must not be contradicted are stored once each, and
//! what an input makes of a member is computed once, however many worlds hold that member. Of a visited world only 64 bits
//! are kept. A message is delivered in any order, once or twice, or never: when more are under way than the bound, every
//! choice of the lost ones is searched, so losing one earlier would show nothing else.
//!
//! Source of the invariants: Ongaro, thesis figure 3.2.

#![allow(dead_code, reason = "the program and the test use different parts")]

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_raft::io::{Change, Effect, Input};
use quorate_raft::membership::changed;
use quorate_raft::types::{
    Config, ConfigAt, Entry, HardState, Index, MemberId, MemberInfo, Record, Recovered, SnapMeta, Term, Time, Token,
    WriteSeq,
};
use quorate_raft::wire::Msg;
use quorate_raft::{Cfg, Node};

const MEMBERS_MAX: usize = 4;
const NET_MAX: usize = 6;
/// No member or message here.
const NONE: u32 = u32::MAX;

/// Bounds of one search.
#[derive(Clone)]
pub struct Scope {
    pub name: &'static str,
    pub voters: &'static [u64],
    pub learners: &'static [u64],
    pub changes: Vec<Change>,
    pub term_max: Term,
    pub index_max: Index,
    pub proposals_max: u8,
    /// Messages under way at once.
    pub net_max: usize,
    pub crashes_max: u8,
    /// Messages that arrive twice.
    pub doubled_max: u8,
    /// Heartbeat rounds of a term, 0 for none.
    pub rounds_max: u64,
    /// The first so many voters are alike: of the worlds that differ only in who of them is who, one is searched.
    pub alike: usize,
    #[cfg(feature = "mutants")]
    pub mutant: Option<quorate_raft::mutant::Mutant>,
}

impl Scope {
    fn three(name: &'static str) -> Scope {
        Scope {
            name,
            voters: &[1, 2, 3],
            learners: &[],
            changes: Vec::new(),
            term_max: 2,
            index_max: 3,
            proposals_max: 1,
            net_max: 2,
            crashes_max: 0,
            doubled_max: 0,
            rounds_max: 0,
            alike: 3,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// The bounds in words.
    pub fn bounds(&self) -> String {
        let mut text = format!(
            "{} voters, {} terms, {} entries, {} proposals, {} under way",
            self.voters.len(),
            self.term_max,
            self.index_max,
            self.proposals_max,
            self.net_max
        );
        for (what, count) in [
            ("learners", self.learners.len() as u64),
            ("changes", self.changes.len() as u64),
            ("crashes", u64::from(self.crashes_max)),
            ("doubled", u64::from(self.doubled_max)),
            ("heartbeat rounds", self.rounds_max),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
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
        let recovered =
            Recovered { hard: disk.hard, snapshot: self.mark(), entries: disk.entries.clone(), incarnation: 0 };
        let mut node = Node::restart(cfg, recovered, Time(0), 0);
        node.forget_time();
        node
    }
}

/// Small ones first; what they leave of the budget goes to the large ones.
pub fn scopes() -> Vec<Scope> {
    let promote = vec![Change::Promote { id: MemberId(3), lag_max: 0 }];
    let swap = vec![Change::Swap { new: MemberId(3), old: MemberId(2), lag_max: 0 }];
    let remove = vec![Change::Remove { id: MemberId(3) }];
    let swap_three = vec![Change::Swap { new: MemberId(4), old: MemberId(3), lag_max: 0 }];
    let none = Scope { proposals_max: 0, ..Scope::three("") };
    let grown = Scope { voters: &[1, 2], learners: &[3], alike: 2, ..none.clone() };
    vec![
        Scope { index_max: 2, crashes_max: 1, name: "elections, one crash", ..none.clone() },
        Scope { index_max: 2, doubled_max: 1, name: "elections, a message doubled", ..none.clone() },
        Scope {
            voters: &[1, 2],
            alike: 2,
            rounds_max: 1,
            crashes_max: 1,
            ..Scope::three("two voters, heartbeats, one crash")
        },
        Scope { ..Scope::three("one proposal") },
        Scope { changes: promote.clone(), name: "two voters become three", ..grown.clone() },
        Scope { changes: swap, index_max: 4, alike: 1, name: "one of two replaced", ..grown.clone() },
        Scope { changes: remove.clone(), alike: 2, name: "three voters become two", ..none.clone() },
        Scope { crashes_max: 1, ..Scope::three("one proposal, one crash") },
        Scope { doubled_max: 1, ..Scope::three("one proposal, a message doubled") },
        Scope { changes: promote, crashes_max: 1, name: "two voters become three, one crash", ..grown.clone() },
        Scope { changes: remove, crashes_max: 1, alike: 2, name: "three voters become two, one crash", ..none.clone() },
        Scope {
            learners: &[4],
            changes: swap_three,
            index_max: 4,
            alike: 2,
            name: "one of three replaced",
            ..none.clone()
        },
        Scope { term_max: 3, ..Scope::three("three terms") },
        Scope {
            net_max: 3,
            crashes_max: 1,
            doubled_max: 1,
            ..Scope::three("one proposal, crash, doubled, three under way")
        },
        Scope { term_max: 3, crashes_max: 1, ..Scope::three("three terms, one crash") },
        Scope {
            term_max: 3,
            crashes_max: 2,
            doubled_max: 1,
            net_max: 3,
            ..Scope::three("three terms, three entries, every fault")
        },
    ]
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Disk {
    hard: HardState,
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Member {
    node: Node,
    disk: Disk,
    writes: VecDeque<(WriteSeq, Record)>,
    waiting: Vec<(WriteSeq, Flight)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Flight {
    from: MemberId,
    to: MemberId,
    msg: Msg,
}

/// What has happened and may not be contradicted.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Truth {
    leaders: BTreeMap<Term, MemberId>,
    /// With the term of the leader that committed it.
    committed: Vec<(Term, Entry)>,
}

/// One state of the whole group, as numbers of what it consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct World {
    members: [u32; MEMBERS_MAX],
    /// Ascending: the order of messages under way is no difference between two states.
    net: [u32; NET_MAX],
    truth: u32,
    crashes: u8,
    doubled: u8,
    proposals: u8,
    changes: u8,
}

impl World {
    fn fingerprint(&self) -> u64 {
        let counts = u32::from_le_bytes([self.crashes, self.doubled, self.proposals, self.changes]);
        let words = self.members.iter().chain(&self.net).chain([&self.truth, &counts]);
        words.fold(0x9E37_79B9_7F4A_7C15, |hash, word| mix(hash ^ u64::from(*word)))
    }

    fn key(&self) -> ([u32; MEMBERS_MAX], [u32; NET_MAX], u32) {
        (self.members, self.net, self.truth)
    }

    fn flights(&self) -> usize {
        self.net.iter().take_while(|flight| **flight != NONE).count()
    }
}

/// A bijection that spreads every bit. Source: Steele, Lea, Flood (SplitMix64), OOPSLA 2014.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// What happens to one member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Act {
    Campaign,
    Flush,
    Crash,
    Heartbeat,
    Receive(u32),
    Propose(u8),
    Change(u8),
}

/// What became of it.
#[derive(Debug)]
struct Done {
    member: u32,
    sends: Vec<u32>,
    told: Vec<Told>,
}

#[derive(Debug)]
enum Told {
    Leads,
    Commits { was_leader: bool, entries: Vec<Entry> },
}

/// Each value once, under a number. Known by 128 bits of hash: a collision would hide a state.
struct Store<T> {
    numbers: HashMap<(u64, u64), u32>,
    values: Vec<T>,
}

impl<T: Hash> Store<T> {
    fn new() -> Store<T> {
        Store { numbers: HashMap::new(), values: Vec::new() }
    }

    fn number(&mut self, value: T) -> u32 {
        let key = (hash(1, &value), hash(2, &value));
        let next = u32::try_from(self.values.len()).expect("fewer parts than numbers");
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.values.push(value);
        }
        number
    }

    fn get(&self, number: u32) -> &T {
        &self.values[number as usize]
    }
}

fn hash(salt: u8, value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, value).hash(&mut hasher);
    hasher.finish()
}

/// Fingerprints of the worlds seen, in open addressing; never grows.
struct Seen {
    slots: Vec<u64>,
    count: usize,
}

impl Seen {
    fn with_room_for(states: usize) -> Seen {
        Seen { slots: vec![0; states + states / 3 + 64], count: 0 }
    }

    /// Returns whether it is new.
    fn insert(&mut self, fingerprint: u64) -> bool {
        let fingerprint = fingerprint.max(1);
        let len = self.slots.len();
        let start = (u128::from(fingerprint) * len as u128) >> 64;
        let mut at = usize::try_from(start).expect("below the length");
        loop {
            match self.slots[at] {
                0 => {
                    self.slots[at] = fingerprint;
                    self.count += 1;
                    return true;
                }
                held if held == fingerprint => return false,
                _ => at = if at + 1 == len { 0 } else { at + 1 },
            }
        }
    }
}

/// What a search did.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    /// Longest shortest schedule.
    pub depth: usize,
    /// Every state within the bounds was visited.
    pub is_complete: bool,
    /// Distinct members, and inputs to them that were computed.
    pub members: usize,
    pub acts: usize,
    pub took: Duration,
}

/// A schedule that breaks an invariant.
#[derive(Debug)]
pub struct Broken {
    pub why: String,
    pub schedule: Vec<String>,
}

/// How a state was first reached: from which one, and as its how-manieth successor.
#[derive(Clone, Copy)]
struct Origin {
    parent: u32,
    successor: u16,
}

/// A world one step away.
#[derive(Clone, Copy)]
struct Successor {
    /// The how-manieth act of the world before it.
    act: usize,
    /// How its members were renamed.
    order: u8,
    world: World,
}

/// What a value is called in each other order of the members, once that is known.
struct Renamed {
    orders: usize,
    numbers: Vec<u32>,
}

impl Renamed {
    fn new(orders: usize) -> Renamed {
        Renamed { orders, numbers: Vec::new() }
    }

    fn get(&self, number: u32, order: usize) -> Option<u32> {
        self.numbers.get(number as usize * self.orders + order).copied().filter(|known| *known != NONE)
    }

    fn set(&mut self, number: u32, order: usize, other: u32) {
        let at = number as usize * self.orders + order;
        if at >= self.numbers.len() {
            self.numbers.resize((at + 1).next_multiple_of(self.orders), NONE);
        }
        self.numbers[at] = other;
    }
}

struct Search<'a> {
    scope: &'a Scope,
    /// For each order of the members: the place each one goes to. The first one changes nothing.
    orders: Vec<[usize; MEMBERS_MAX]>,
    other_members: Renamed,
    other_flights: Renamed,
    other_truths: Renamed,
    members: Store<Member>,
    flights: Store<Flight>,
    truths: Store<Truth>,
    logs: Store<Vec<Entry>>,
    /// The log of each member.
    log_of: Vec<u32>,
    matching: HashSet<(u32, u32)>,
    done: HashMap<(u32, Act), Result<u32, String>>,
    dones: Vec<Done>,
}

/// Visits every state within the bounds, or as many as the limits allow.
pub fn search(scope: &Scope, states_max: usize, time_max: Duration) -> Result<Report, Broken> {
    let began = Instant::now();
    let mut search = Search::new(scope);
    let root = search.root();
    let mut seen = Seen::with_room_for(states_max);
    seen.insert(root.fingerprint());
    let mut origins = vec![Origin { parent: NONE, successor: 0 }];
    let mut level = vec![root];
    let (mut depth, mut first, mut is_complete) = (0, 0, true);
    let mut successors = Vec::new();
    'levels: while !level.is_empty() {
        let mut next_level = Vec::new();
        for (at, world) in level.iter().enumerate() {
            let parent = u32::try_from(first + at).expect("fewer states than numbers");
            successors.clear();
            if let Err(why) = search.successors(world, &mut successors) {
                let (mut schedule, names) = search.schedule(&origins, parent);
                schedule.push(search.last_words(&names, world));
                return Err(Broken { why, schedule });
            }
            for (ordinal, Successor { world: next, .. }) in successors.iter().enumerate() {
                if seen.insert(next.fingerprint()) {
                    let successor = u16::try_from(ordinal).expect("few successors");
                    origins.push(Origin { parent, successor });
                    next_level.push(*next);
                }
            }
            if seen.count + 1_000 > states_max || (at % 1_024 == 0 && began.elapsed() > time_max) {
                is_complete = false;
                depth += usize::from(!next_level.is_empty());
                break 'levels;
            }
        }
        first += level.len();
        depth += usize::from(!next_level.is_empty());
        level = next_level;
    }
    Ok(Report {
        states: seen.count,
        depth,
        is_complete,
        members: search.members.values.len(),
        acts: search.dones.len(),
        took: began.elapsed(),
    })
}

impl<'a> Search<'a> {
    fn new(scope: &'a Scope) -> Search<'a> {
        assert!(scope.net_max <= NET_MAX, "{}: at most {NET_MAX} messages under way", scope.name);
        let orders = orders_of(scope.alike);
        Search {
            scope,
            other_members: Renamed::new(orders.len()),
            other_flights: Renamed::new(orders.len()),
            other_truths: Renamed::new(orders.len()),
            orders,
            members: Store::new(),
            flights: Store::new(),
            truths: Store::new(),
            logs: Store::new(),
            log_of: Vec::new(),
            matching: HashSet::new(),
            done: HashMap::new(),
            dones: Vec::new(),
        }
    }

    fn root(&mut self) -> World {
        let mut members = [NONE; MEMBERS_MAX];
        for (place, id) in members.iter_mut().zip(self.scope.voters.iter().chain(self.scope.learners)) {
            let disk = Disk::default();
            let node = self.scope.start(MemberId(*id), &disk);
            *place = self.store(Member { node, disk, writes: VecDeque::new(), waiting: Vec::new() });
        }
        let truth = self.truths.number(Truth::default());
        World { members, net: [NONE; NET_MAX], truth, crashes: 0, doubled: 0, proposals: 0, changes: 0 }
    }

    fn store(&mut self, member: Member) -> u32 {
        let entries: Vec<Entry> = member.node.entries().cloned().collect();
        let number = self.members.number(member);
        if number as usize == self.log_of.len() {
            let log = self.logs.number(entries);
            self.log_of.push(log);
        }
        number
    }

    // ---- what may happen -------------------------------------------------------------------------------------------

    /// What may happen next: to whom, what, and the world without the message that is consumed.
    fn acts(&self, world: &World) -> Vec<(usize, Act, World)> {
        let mut acts = Vec::new();
        for (at, number) in world.members.iter().enumerate().filter(|(_, number)| **number != NONE) {
            let member = self.members.get(*number);
            self.member_acts(world, at, member, &mut acts);
        }
        for place in 0..world.flights() {
            let number = world.net[place];
            if place > 0 && world.net[place - 1] == number {
                continue;
            }
            let to = self.flights.get(number).to;
            let Some(at) = world.members.iter().position(|m| *m != NONE && self.members.get(*m).node.id() == to) else {
                continue;
            };
            let mut rest = *world;
            rest.net.copy_within(place + 1.., place);
            rest.net[NET_MAX - 1] = NONE;
            acts.push((at, Act::Receive(number), rest));
            if world.doubled < self.scope.doubled_max {
                acts.push((at, Act::Receive(number), World { doubled: world.doubled + 1, ..*world }));
            }
        }
        acts
    }

    fn member_acts(&self, world: &World, at: usize, member: &Member, acts: &mut Vec<(usize, Act, World)>) {
        let (scope, node) = (self.scope, &member.node);
        let has_room = node.last_index() < scope.index_max;
        if !node.is_leader() && node.term() < scope.term_max && node.may_campaign() && has_room {
            acts.push((at, Act::Campaign, *world));
        }
        if !member.writes.is_empty() {
            acts.push((at, Act::Flush, *world));
        }
        let is_touched = !member.writes.is_empty() || node.term() > 0;
        if world.crashes < scope.crashes_max && is_touched {
            acts.push((at, Act::Crash, World { crashes: world.crashes + 1, ..*world }));
        }
        if !node.is_leader() {
            return;
        }
        if world.proposals < scope.proposals_max && has_room {
            let proposals = world.proposals + 1;
            acts.push((at, Act::Propose(proposals), World { proposals, ..*world }));
        }
        if node.rounds() <= scope.rounds_max && scope.rounds_max > 0 {
            acts.push((at, Act::Heartbeat, *world));
        }
        if usize::from(world.changes) < scope.changes.len() && has_room && node.may_change() {
            acts.push((at, Act::Change(world.changes), World { changes: world.changes + 1, ..*world }));
        }
    }

    /// Every world one step away: by which act, and how its members were renamed.
    fn successors(&mut self, world: &World, out: &mut Vec<Successor>) -> Result<(), String> {
        for (ordinal, (at, act, rest)) in self.acts(world).into_iter().enumerate() {
            let number = self.done(world.members[at], act)?;
            let mut next = rest;
            next.members[at] = self.dones[number as usize].member;
            next.truth = self.check(&next, at, number)?;
            let mut flights: Vec<u32> = rest.net[..rest.flights()].to_vec();
            flights.extend(&self.dones[number as usize].sends);
            let mut alive = Vec::with_capacity(flights.len());
            for flight in flights {
                if !self.is_dead(&next, flight)? {
                    alive.push(flight);
                }
            }
            let mut flights = alive;
            flights.sort_unstable();
            for net in choose(&flights, self.scope.net_max) {
                next.net = net;
                let (order, world) = self.canonical(&next);
                out.push(Successor { act: ordinal, order, world });
            }
        }
        Ok(())
    }

    /// A message of a term that its receiver's disk has left behind, and that changes nothing there, never will: it is
    /// as good as lost.
    fn is_dead(&mut self, world: &World, flight: u32) -> Result<bool, String> {
        let Flight { to, msg, .. } = self.flights.get(flight);
        let (to, term) = (*to, msg.term());
        let is_there = |number: &&u32| **number != NONE && self.members.get(**number).node.id() == to;
        let Some(number) = world.members.iter().find(is_there).copied() else { return Ok(true) };
        if self.members.get(number).disk.hard.term <= term {
            return Ok(false);
        }
        let done = self.done(number, Act::Receive(flight))?;
        let done = &self.dones[done as usize];
        Ok(done.member == number && done.sends.is_empty() && done.told.is_empty())
    }

    // ---- who is who ------------------------------------------------------------------------------------------------

    /// The least of the worlds that differ only in who is who, and the order that makes it.
    fn canonical(&mut self, world: &World) -> (u8, World) {
        let mut least = (0, *world);
        for order in 1..self.orders.len() {
            let renamed = self.renamed_world(world, order);
            if renamed.key() < least.1.key() {
                least = (u8::try_from(order).expect("few orders"), renamed);
            }
        }
        least
    }

    fn renamed_world(&mut self, world: &World, order: usize) -> World {
        let mut renamed = *world;
        for at in 0..MEMBERS_MAX {
            if world.members[at] != NONE {
                renamed.members[self.orders[order][at]] = self.renamed_member(world.members[at], order);
            }
        }
        for place in 0..world.flights() {
            renamed.net[place] = self.renamed_flight(world.net[place], order);
        }
        renamed.net[..world.flights()].sort_unstable();
        renamed.truth = self.renamed_truth(world.truth, order);
        renamed
    }

    /// The name of a member in another order of the first places.
    fn name(order: [usize; MEMBERS_MAX], id: MemberId) -> MemberId {
        let place = usize::try_from(id.0 - 1).expect("few members");
        MemberId(order[place] as u64 + 1)
    }

    fn renamed_member(&mut self, number: u32, order: usize) -> u32 {
        if let Some(known) = self.other_members.get(number, order) {
            return known;
        }
        let places = self.orders[order];
        let name = |id| Search::name(places, id);
        let member = self.members.get(number);
        let rename = |flight: &Flight| Flight { from: name(flight.from), to: name(flight.to), msg: flight.msg.clone() };
        let record = |record: &Record| match record {
            Record::HardState(hard) => Record::HardState(HardState { vote: hard.vote.map(name), ..*hard }),
            other => other.clone(),
        };
        let mut renamed = Member {
            node: member.node.renamed(&name),
            disk: Disk {
                hard: HardState { vote: member.disk.hard.vote.map(name), ..member.disk.hard },
                entries: member.disk.entries.clone(),
            },
            writes: member.writes.iter().map(|(seq, old)| (*seq, record(old))).collect(),
            waiting: member.waiting.iter().map(|(seq, flight)| (*seq, rename(flight))).collect(),
        };
        renamed.settle();
        let other = self.store(renamed);
        self.other_members.set(number, order, other);
        other
    }

    fn renamed_flight(&mut self, number: u32, order: usize) -> u32 {
        if let Some(known) = self.other_flights.get(number, order) {
            return known;
        }
        let places = self.orders[order];
        let Flight { from, to, msg } = self.flights.get(number).clone();
        let renamed = Flight { from: Search::name(places, from), to: Search::name(places, to), msg };
        let other = self.flights.number(renamed);
        self.other_flights.set(number, order, other);
        other
    }

    fn renamed_truth(&mut self, number: u32, order: usize) -> u32 {
        if let Some(known) = self.other_truths.get(number, order) {
            return known;
        }
        let places = self.orders[order];
        let mut renamed = self.truths.get(number).clone();
        for leader in renamed.leaders.values_mut() {
            *leader = Search::name(places, *leader);
        }
        let other = self.truths.number(renamed);
        self.other_truths.set(number, order, other);
        other
    }

    // ---- what a member does ----------------------------------------------------------------------------------------

    /// What becomes of a member; computed once.
    fn done(&mut self, number: u32, act: Act) -> Result<u32, String> {
        if let Some(known) = self.done.get(&(number, act)) {
            return known.clone();
        }
        let member = self.members.get(number).clone();
        let message = if let Act::Receive(flight) = act { Some(self.flights.get(flight).clone()) } else { None };
        let scope = self.scope;
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(scope, member, act, message)));
        let result = match made {
            Ok((member, sends, told)) => {
                let member = self.store(member);
                let sends = sends.into_iter().map(|flight| self.flights.number(flight)).collect();
                self.dones.push(Done { member, sends, told });
                Ok(u32::try_from(self.dones.len() - 1).expect("fewer acts than numbers"))
            }
            Err(why) => Err(panic_text(why.as_ref())),
        };
        self.done.insert((number, act), result.clone());
        result
    }

    // ---- what must hold --------------------------------------------------------------------------------------------

    fn check(&mut self, world: &World, at: usize, done: u32) -> Result<u32, String> {
        self.check_log_matching(world, at)?;
        let done = &self.dones[done as usize];
        if done.told.is_empty() {
            return Ok(world.truth);
        }
        let mut truth = self.truths.get(world.truth).clone();
        let node = &self.members.get(world.members[at]).node;
        for told in &done.told {
            match told {
                Told::Leads => check_leader(&mut truth, node)?,
                Told::Commits { was_leader, entries } => {
                    check_commit(&mut truth, node, *was_leader, entries)?;
                    if let Some(last) = entries.last().filter(|_| *was_leader) {
                        self.check_quorum(world, node, last)?;
                    }
                }
            }
        }
        Ok(self.truths.number(truth))
    }

    /// Committed means on the disks of a quorum, of both halves while joint.
    fn check_quorum(&self, world: &World, leader: &Node, entry: &Entry) -> Result<(), String> {
        let config = leader.status().newest_config.config;
        let members: Vec<&Member> =
            world.members.iter().filter(|number| **number != NONE).map(|number| self.members.get(*number)).collect();
        let holds = |id: &&MemberId| {
            members.iter().any(|member| member.node.id() == **id && member.disk.entries.contains(entry))
        };
        for half in [&config.voters, &config.voters_outgoing] {
            if !half.is_empty() && 2 * half.iter().filter(holds).count() <= half.len() {
                return Err(format!("entry {} is committed and not on the disks of a quorum", entry.index));
            }
        }
        Ok(())
    }

    fn check_log_matching(&mut self, world: &World, at: usize) -> Result<(), String> {
        let own = self.log_of[world.members[at] as usize];
        for number in world.members.iter().filter(|number| **number != NONE) {
            let other = self.log_of[*number as usize];
            if own != other && !self.matching.contains(&(own.min(other), own.max(other))) {
                if !do_match(self.logs.get(own), self.logs.get(other)) {
                    return Err("log matching: equal index and term, different entries before".to_owned());
                }
                self.matching.insert((own.min(other), own.max(other)));
            }
        }
        Ok(())
    }

    // ---- what happened ---------------------------------------------------------------------------------------------

    /// The steps to a state, and who is at which place in it.
    fn schedule(&mut self, origins: &[Origin], state: u32) -> (Vec<String>, [u64; MEMBERS_MAX]) {
        let mut path = Vec::new();
        let mut at = state;
        while at != 0 {
            let origin = origins[at as usize];
            path.push(origin.successor);
            at = origin.parent;
        }
        let mut world = self.root();
        let mut words = Vec::new();
        let mut names = std::array::from_fn(|at| at as u64 + 1);
        for successor in path.into_iter().rev() {
            let mut successors = Vec::new();
            self.successors(&world, &mut successors).expect("this path was walked before");
            let Successor { act: ordinal, order, world: next } = successors[usize::from(successor)];
            let (at, act, _) = self.acts(&world)[ordinal];
            words.push(self.words(&names, at, act));
            let places = self.orders[usize::from(order)];
            let old = names;
            for at in 0..MEMBERS_MAX {
                names[places[at]] = old[at];
            }
            world = next;
        }
        (words, names)
    }

    /// The first act of this world that does not end in a world.
    fn last_words(&mut self, names: &[u64; MEMBERS_MAX], world: &World) -> String {
        for (at, act, rest) in self.acts(world) {
            let mut is_made = false;
            if let Ok(number) = self.done(world.members[at], act) {
                let mut next = rest;
                next.members[at] = self.dones[number as usize].member;
                is_made = self.check(&next, at, number).is_ok();
            }
            if !is_made {
                return self.words(names, at, act);
            }
        }
        unreachable!("an act of this world broke an invariant")
    }

    fn words(&self, names: &[u64; MEMBERS_MAX], at: usize, act: Act) -> String {
        let member = names[at];
        match act {
            Act::Receive(flight) => {
                let flight = self.flights.get(flight);
                let from = names[usize::try_from(flight.from.0 - 1).expect("few members")];
                format!("{member} receives from {from} {:?}", flight.msg)
            }
            Act::Campaign => format!("{member} campaigns"),
            Act::Flush => format!("{member} flushes a write"),
            Act::Crash => format!("{member} crashes and starts"),
            Act::Heartbeat => format!("{member} sends heartbeats"),
            Act::Propose(number) => format!("{member} appends proposal {number}"),
            Act::Change(number) => format!("{member} makes change {}", number + 1),
        }
    }
}

/// Every order of the first `count` places, the unchanged one first.
fn orders_of(count: usize) -> Vec<[usize; MEMBERS_MAX]> {
    let mut orders: Vec<[usize; MEMBERS_MAX]> = vec![std::array::from_fn(|at| at)];
    for place in 1..count {
        for order in orders.clone() {
            for other in 0..place {
                let mut swapped = order;
                swapped.swap(place, other);
                orders.push(swapped);
            }
        }
    }
    orders
}

/// Every way to keep at most `room` of the flights, each once.
fn choose(flights: &[u32], room: usize) -> Vec<[u32; NET_MAX]> {
    let keep = |bits: u32| {
        let mut net = [NONE; NET_MAX];
        let kept = flights.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
        for (place, (_, flight)) in net.iter_mut().zip(kept) {
            *place = *flight;
        }
        net
    };
    assert!(flights.len() < 32, "few messages are sent at once");
    if flights.len() <= room {
        return vec![keep(u32::MAX)];
    }
    let mut made: Vec<[u32; NET_MAX]> = Vec::new();
    for bits in (0..1_u32 << flights.len()).filter(|bits| bits.count_ones() as usize == room) {
        let net = keep(bits);
        if !made.contains(&net) {
            made.push(net);
        }
    }
    made
}

fn panic_text(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn do_match(one: &[Entry], other: &[Entry]) -> bool {
    let mut is_equal_from_here = false;
    one.iter().zip(other).rev().all(|(left, right)| {
        is_equal_from_here |= left.term == right.term;
        !is_equal_from_here || left == right
    })
}

fn check_leader(truth: &mut Truth, node: &Node) -> Result<(), String> {
    let first = *truth.leaders.entry(node.term()).or_insert(node.id());
    if first != node.id() {
        return Err(format!("election safety: two leaders in term {}", node.term()));
    }
    // A leader of an old term may come late; it cannot commit anything any more.
    for (_, entry) in truth.committed.iter().filter(|(term, _)| *term < node.term()) {
        if node.entry_at(entry.index) != Some(entry) {
            return Err(format!("leader completeness: a leader lacks committed entry {}", entry.index));
        }
    }
    Ok(())
}

fn check_commit(truth: &mut Truth, node: &Node, was_leader: bool, entries: &[Entry]) -> Result<(), String> {
    for entry in entries {
        let known = truth.committed.len() as u64;
        if entry.index <= known {
            let place = usize::try_from(entry.index - 1).expect("few entries");
            if truth.committed[place].1 != *entry {
                return Err(format!("state machine safety: another entry is committed at {}", entry.index));
            }
        } else if !was_leader {
            return Err(format!("a follower commits entry {} before any leader", entry.index));
        } else if entry.index != known + 1 {
            return Err(format!("commits are contiguous: {} after {known}", entry.index));
        } else {
            truth.committed.push((node.term(), entry.clone()));
        }
    }
    Ok(())
}

// ---- one member ------------------------------------------------------------------------------------------------------

type Made = (Member, Vec<Flight>, Vec<Told>);

/// What an act makes of a member, what it sends and what it tells. Applying is not searched: it happens at once.
fn make(scope: &Scope, mut member: Member, act: Act, message: Option<Flight>) -> Made {
    let (mut sends, mut told) = (Vec::new(), Vec::new());
    let now = Time(0);
    let data = |number: u8| vec![(Token(u64::from(number)), Bytes::from(vec![number]))];
    match act {
        Act::Campaign => member.act(scope, &mut sends, &mut told, |node, out| node.start_election(out)),
        Act::Heartbeat => member.act(scope, &mut sends, &mut told, |node, out| node.send_heartbeats(out)),
        Act::Flush => {
            let Some((seq, record)) = member.writes.pop_front() else { return (member, sends, told) };
            member.disk.apply(record);
            let waiting = std::mem::take(&mut member.waiting);
            let (free, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(after, _)| *after <= seq);
            member.waiting = waiting;
            sends.extend(free.into_iter().map(|(_, flight)| flight).filter(|flight| scope.carries(&flight.msg)));
            member.act(scope, &mut sends, &mut told, |node, out| node.step(now, Input::Written { upto: seq }, out));
        }
        Act::Crash => {
            member.writes.clear();
            member.waiting.clear();
            member.node = scope.start(member.node.id(), &member.disk);
        }
        Act::Receive(_) => {
            let Flight { from, msg, .. } = message.expect("a message is received");
            member.act(scope, &mut sends, &mut told, |node, out| node.step(now, Input::Msg { from, msg }, out));
        }
        Act::Propose(number) => {
            let batch = data(number);
            member.act(scope, &mut sends, &mut told, |node, out| node.step(now, Input::Propose { batch }, out));
        }
        Act::Change(number) => {
            let config = member.node.status().newest_config.config;
            // Who is live is a matter of time, which is not part of the search.
            if let Ok(next) = changed(&config, &scope.changes[usize::from(number)]) {
                member.act(scope, &mut sends, &mut told, |node, out| node.append_change(next, out));
            }
        }
    }
    (member, sends, told)
}

impl Scope {
    fn carries(&self, msg: &Msg) -> bool {
        self.rounds_max > 0 || !matches!(msg, Msg::Heartbeat { .. } | Msg::HeartbeatReply { .. })
    }
}

impl Disk {
    fn apply(&mut self, record: Record) {
        match record {
            Record::HardState(hard) => {
                assert!(hard.term >= self.hard.term, "the term on disk never goes back");
                let is_revote = hard.term == self.hard.term && self.hard.vote.is_some() && self.hard.vote != hard.vote;
                assert!(!is_revote, "a vote on disk is never changed within its term");
                self.hard = hard;
            }
            Record::Append(entries) => self.entries.extend(entries),
            Record::TruncateTo(index) => self.entries.retain(|entry| entry.index <= index),
            Record::SnapshotMark(_) => unreachable!("the engine persists nothing in these scopes"),
        }
    }
}

impl Member {
    /// Messages that wait for one write leave together: their order is no difference.
    fn settle(&mut self) {
        self.waiting.sort_by_cached_key(|(seq, flight)| (*seq, hash(0, flight)));
    }

    fn act(
        &mut self,
        scope: &Scope,
        sends: &mut Vec<Flight>,
        told: &mut Vec<Told>,
        act: impl FnOnce(&mut Node, &mut Vec<Effect>),
    ) {
        let was_leader = self.node.is_leader();
        let mut out = Vec::new();
        act(&mut self.node, &mut out);
        self.take(scope, was_leader, out, sends, told);
        if self.node.applied() < self.node.commit() {
            let (index, was_leader, mut out) = (self.node.commit(), self.node.is_leader(), Vec::new());
            self.node.step(Time(0), Input::Applied { index }, &mut out);
            self.take(scope, was_leader, out, sends, told);
        }
        let base = self.node.forget_time();
        for seq in self.writes.iter_mut().map(|(seq, _)| seq).chain(self.waiting.iter_mut().map(|(seq, _)| seq)) {
            seq.0 -= base;
        }
        self.settle();
    }

    fn take(
        &mut self,
        scope: &Scope,
        was_leader: bool,
        out: Vec<Effect>,
        sends: &mut Vec<Flight>,
        told: &mut Vec<Told>,
    ) {
        let from = self.node.id();
        for effect in out {
            match effect {
                Effect::Write { seq, record } => self.writes.push_back((seq, record)),
                Effect::Send { to, msg, after } if scope.carries(&msg) => match after {
                    None => sends.push(Flight { from, to, msg }),
                    Some(seq) => self.waiting.push((seq, Flight { from, to, msg })),
                },
                Effect::Commit { entries } => told.push(Told::Commits { was_leader, entries }),
                Effect::Send { .. }
                | Effect::Event(_)
                | Effect::Resolve { .. }
                | Effect::ReadAt { .. }
                | Effect::Acked { .. }
                | Effect::SendSnapshot { .. }
                | Effect::Install { .. } => {}
            }
        }
        if !was_leader && self.node.is_leader() {
            told.push(Told::Leads);
        }
    }
}
