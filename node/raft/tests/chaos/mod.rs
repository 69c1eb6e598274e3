//! Random schedules: messages lost, doubled and reordered, crashes between any two writes, changes and transfers at any
//! moment, in half of them under leases with clocks that run apart. The bench checks safety at every step; each schedule
//! ends with a healed group that must serve again.

#![allow(dead_code, reason = "each test binary uses its own part of the bench")]

use bytes::Bytes;
use quorate_raft::Cfg;
use quorate_raft::cfg::LeaseCfg;
use quorate_raft::io::{Change, Input, Outcome, ReadMode};
use quorate_raft::types::{ConfigAt, MemberId, MemberInfo, SnapMeta, Time};
use quorate_raft::wire::Msg;

use crate::net::{Flight, Net, Packet, bootstrap, id};

/// Source: Steele, Lea, Flood (SplitMix64), OOPSLA 2014.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }
    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const MEMBERS: u64 = 5;
const STEPS: usize = 1_500;

fn cfg(number: u64, dice: &mut Dice) -> Cfg {
    Cfg {
        max_append_bytes: dice.pick(&[1, 100, 1 << 20]),
        inflight_bytes_max: dice.pick(&[1, 200, 1 << 20]),
        uncommitted_bytes_max: dice.pick(&[300, 1 << 20]),
        keep_entries: dice.pick(&[0, 3, 1_000]),
        hold_bytes_max: dice.pick(&[0, 1 << 20]),
        live_lag_max: 20,
        hint_on_disconnect: dice.one_in(2),
        leases: None,
        ..Cfg::lan(id(number))
    }
}

pub struct Chaos {
    pub net: Net,
    dice: Dice,
    /// Directed links that lose everything.
    cuts: Vec<(MemberId, MemberId)>,
    loss_one_in: usize,
    crash_one_in: usize,
    proposals: u64,
    /// Messages that come again much later.
    old: Vec<Flight>,
    /// What an operator saw the last time.
    view: Option<ConfigAt>,
}

impl Chaos {
    fn new(seed: u64, tune: impl Fn(&mut Cfg)) -> Chaos {
        let mut dice = Dice(seed);
        let mut net = Net::new(seed);
        let has_leases = dice.one_in(2);
        let voters: Vec<u64> = (1..=1 + dice.below(4) as u64).collect();
        for number in 1..=MEMBERS {
            let mut cfg = cfg(number, &mut dice);
            cfg.leases = has_leases.then_some(LeaseCfg::DEFAULT);
            tune(&mut cfg);
            // Who is not in the first configuration waits, empty, to be added.
            let snapshot = if voters.contains(&number) { bootstrap(&voters) } else { SnapMeta::default() };
            net.add(cfg, snapshot);
            if has_leases {
                // Any two rates differ by less than the lease allows for.
                let rate = i64::try_from(dice.below(48_000)).unwrap() - 24_000;
                net.members.get_mut(&id(number)).expect("just added").rate_ppm = rate;
            }
        }
        let loss_one_in = dice.pick(&[3, 10, 1_000]);
        let crash_one_in = dice.pick(&[60, 200, 2_000]);
        Chaos { net, dice, cuts: Vec::new(), loss_one_in, crash_one_in, proposals: 0, old: Vec::new(), view: None }
    }

    fn member(&mut self) -> MemberId {
        id(1 + self.dice.below(usize::try_from(MEMBERS).unwrap()) as u64)
    }

    fn step(&mut self) {
        match self.dice.below(20) {
            0..=7 => self.fly(),
            8..=9 => self.pass_time(),
            10..=11 => {
                let (member, count) = (self.member(), 1 + self.dice.below(3));
                self.net.flush(member, count);
            }
            12 => {
                let (member, count) = (self.member(), 1 + self.dice.below(4));
                self.net.apply(member, count);
                self.net.install(member);
            }
            13 => {
                let member = self.member();
                self.net.persist(member);
            }
            14 | 15 => self.ask(),
            16 => self.reconfigure(),
            17 => self.disturb(),
            18 => self.crash(),
            _ => {
                // A quick burst, so that something gets done between the faults.
                for _ in 0..6 {
                    self.fly();
                    let member = self.member();
                    self.net.flush(member, usize::MAX);
                    self.net.apply(member, usize::MAX);
                }
            }
        }
    }

    fn fly(&mut self) {
        if self.net.flights.is_empty() {
            return;
        }
        let at = self.dice.below(self.net.flights.len().min(8));
        let flight = self.net.flights.remove(at);
        let is_cut = self.cuts.contains(&(flight.from, flight.to));
        if is_cut || self.dice.one_in(self.loss_one_in) {
            return self.net.lose(flight);
        }
        if matches!(flight.packet, Packet::Msg(_)) && self.dice.one_in(100) {
            self.old.push(flight.clone());
        }
        if self.dice.one_in(20) {
            let again: Flight = flight.clone();
            let at = self.dice.below(self.net.flights.len() + 1);
            self.net.flights.insert(at, again);
        }
        self.net.deliver(flight);
        if !self.old.is_empty() && self.dice.one_in(50) {
            let at = self.dice.below(self.old.len());
            let flight = self.old.swap_remove(at);
            self.net.deliver(flight);
        }
    }

    fn pass_time(&mut self) {
        let micros = self.dice.roll() % self.dice.pick(&[1_000, 20_000, 100_000]);
        self.net.now = self.net.now.after(micros);
        for member in self.net.up() {
            if self.net.deadline(member) <= self.net.now && !self.dice.one_in(4) {
                self.net.tick(member);
            }
        }
    }

    fn ask(&mut self) {
        let member = self.target();
        if self.dice.one_in(3) {
            let mode = if self.dice.one_in(2) { ReadMode::Lease } else { ReadMode::Index };
            self.net.read(member, mode);
        } else {
            self.proposals += 1;
            let data = Bytes::from(self.proposals.to_be_bytes().to_vec());
            self.net.propose(member, data);
        }
    }

    /// Mostly the leader.
    fn target(&mut self) -> MemberId {
        let anybody = self.member();
        // Who was left behind may still think that it leads.
        let leads = |id: &MemberId| self.net.member(*id).node().is_leader();
        let leaders: Vec<MemberId> = self.net.up().into_iter().filter(leads).collect();
        match self.dice.below(8) {
            0 | 1 => anybody,
            2..=4 if !leaders.is_empty() => self.dice.pick(&leaders),
            _ => self.net.leader().unwrap_or(anybody),
        }
    }

    /// Mostly changes that could be right: the leader's own view names the candidates.
    fn reconfigure(&mut self) {
        let leader = self.target();
        let (mut other, mut third) = (self.member(), self.member());
        let lag_max = self.dice.roll() % 10;
        let status = self.net.member(leader).node.as_ref().map(quorate_raft::Node::status);
        let config = status.map(|status| (status.committed_config.at, status.newest_config.config));
        if let Some((_, config)) = &config
            && !self.dice.one_in(4)
        {
            let learners: Vec<MemberId> = config.learners.iter().copied().collect();
            let voters: Vec<MemberId> = config.voters.iter().copied().collect();
            if !learners.is_empty() && !voters.is_empty() {
                (other, third) = (self.dice.pick(&learners), self.dice.pick(&voters));
            }
        }
        let change = match self.dice.below(9) {
            0 | 1 => Change::AddLearner { id: other, info: MemberInfo::default() },
            2 | 3 => Change::Promote { id: other, lag_max },
            4 => Change::Demote { id: third },
            5 if self.dice.one_in(6) => Change::Remove { id: third },
            5 => Change::UpdateInfo { id: other, info: MemberInfo { name: "n".into(), ..MemberInfo::default() } },
            _ => Change::Swap { new: other, old: third, lag_max },
        };
        let fresh = config.map(|(at, _)| at);
        let expect = match self.dice.below(4) {
            0 => None,
            1 => self.view.or(fresh),
            _ => fresh,
        };
        self.view = fresh;
        self.net.change(leader, expect, change);
    }

    fn disturb(&mut self) {
        let (one, other) = (self.member(), self.member());
        match self.dice.below(7) {
            0 => self.cuts.push((one, other)),
            1 => self.cuts.extend([(one, other), (other, one)]),
            2 | 3 => self.cuts.clear(),
            4 => self.net.step(one, Input::PeerGone { peer: other }),
            5 => {
                let leader = self.target();
                self.net.transfer(leader, other);
            }
            _ => self.net.step(one, Input::DiskStalled),
        }
    }

    fn crash(&mut self) {
        if !self.dice.one_in(self.crash_one_in / 20) {
            return;
        }
        let member = self.member();
        let kept = self.dice.below(4);
        self.net.crash(member, kept);
        if self.dice.one_in(2) {
            self.net.start(member);
        } else if let Some(down) = self.net.members.iter().find(|(_, member)| member.node.is_none()).map(|(id, _)| *id)
        {
            self.net.start(down);
        }
    }

    fn is_caught_up(&self) -> bool {
        let Some(leader) = self.net.leader() else { return false };
        let status = self.net.member(leader).node().status();
        let members = status.newest_config.config.members.keys();
        members.into_iter().all(|member| self.net.member(*member).node().status().applied == status.commit)
    }

    /// Everything works again: the group must elect, commit a fresh write and answer a read everywhere it counts.
    fn heal(&mut self) {
        self.cuts.clear();
        let down: Vec<MemberId> =
            self.net.members.iter().filter(|(_, member)| member.node.is_none()).map(|(id, _)| *id).collect();
        for member in down {
            self.net.start(member);
        }
        let mut token = None;
        for attempt in 0..40 {
            self.net.run(100_000, |_, _| false);
            if let Some(leader) = self.net.leader() {
                let done = token.and_then(|token| self.net.truth.outcomes.get(&token));
                if matches!(done, Some(Outcome::Committed { .. })) {
                    break;
                }
                if token.is_none() || done.is_some() {
                    token = Some(self.net.propose(leader, Bytes::from(format!("healed {attempt}"))));
                }
            }
        }
        let done = token.and_then(|token| self.net.truth.outcomes.get(&token));
        assert!(
            matches!(done, Some(Outcome::Committed { .. })),
            "a healed group commits: {done:?}\n{}",
            self.net.summary()
        );
        // A member whose limits are below those of its leader takes an entry per heartbeat.
        for _ in 0..STEPS / 100 {
            self.net.run(1_000_000, |_, _| false);
            if self.is_caught_up() {
                break;
            }
        }
        let leader = self.net.leader().expect("a healed group has a leader");
        let status = self.net.member(leader).node().status();
        assert!(!status.newest_config.config.is_joint(), "a joint configuration is left");
        for member in status.newest_config.config.members.keys() {
            let node = self.net.member(*member).node().status();
            assert_eq!(node.applied, status.commit, "{member} caught up\n{}", self.net.summary());
            self.net.read(*member, ReadMode::Index);
        }
        self.net.run(400_000, |_, _| false);
        assert_eq!(self.net.unanswered_since_boot(), 0, "every caller got an answer");
        self.net.check_refused();
    }
}

/// One schedule from its seed. Panics where a promise is broken.
pub fn run_schedule(seed: u64, tune: impl Fn(&mut Cfg)) -> Chaos {
    let mut chaos = Chaos::new(seed, tune);
    for _ in 0..STEPS {
        chaos.step();
    }
    chaos.heal();
    chaos
}

// ---- leases ----------------------------------------------------------------------------------------------------------

/// Leaders cut off while the others go on, and lease reads asked of everybody who thinks that it leads: clocks run apart,
/// answers and orders to start come late, members restart with another election timeout, connections break. The guard is
/// off, so that nothing but the rules keeps reads right.
pub fn run_lease_schedule(seed: u64, tune: impl Fn(&mut Cfg)) -> Net {
    const TIMEOUTS_US: [u64; 3] = [150_000, 150_000, 450_000];
    let mut dice = Dice(seed);
    let mut net = Net::new(seed);
    let count = dice.pick(&[3, 3, 5]);
    let voters: Vec<u64> = (1..=count).collect();
    let timeout = |cfg: &mut Cfg, min: u64| {
        cfg.election_us = (min, min + 20_000);
        cfg.start_refusal_us = TIMEOUTS_US[2];
    };
    for number in &voters {
        let leases = Some(LeaseCfg { guard_us: 0, ..LeaseCfg::DEFAULT });
        let mut cfg = Cfg { leases, ..Cfg::lan(id(*number)) };
        timeout(&mut cfg, dice.pick(&TIMEOUTS_US));
        tune(&mut cfg);
        net.add(cfg, bootstrap(&voters));
        let rate = i64::try_from(dice.below(48_000)).unwrap() - 24_000;
        net.members.get_mut(&id(*number)).expect("just added").rate_ppm = rate;
    }
    let mut late: Vec<(Time, Flight)> = Vec::new();
    let mut cut_off: Option<MemberId> = None;
    let mut proposals = 0_u64;
    for _ in 0..400 {
        let one = id(1 + dice.below(voters.len()) as u64);
        let leader = net.leader().unwrap_or(one);
        match dice.below(40) {
            0..=2 => cut_off = Some(leader),
            3 | 4 => cut_off = None,
            5 => drop(net.transfer(leader, one)),
            6 => net.step(one, Input::PeerGone { peer: leader }),
            7 => {
                net.crash(one, 9);
                let cfg = &mut net.members.get_mut(&one).expect("a member").cfg;
                timeout(cfg, dice.pick(&TIMEOUTS_US));
                net.start(one);
            }
            _ => {}
        }
        net.now = net.now.after(1_000 + dice.roll() % 9_000);
        for number in &voters {
            if net.deadline(id(*number)) <= net.now && !dice.one_in(5) {
                net.tick(id(*number));
            }
        }
        pass_on(&mut net, &mut dice, cut_off, &mut late);
        let leads = |id: &MemberId| net.member(*id).node().is_leader();
        for leader in net.up().into_iter().filter(leads).collect::<Vec<_>>() {
            net.read(leader, ReadMode::Lease);
            if dice.one_in(3) {
                proposals += 1;
                net.propose(leader, Bytes::from(proposals.to_be_bytes().to_vec()));
            }
        }
        pass_on(&mut net, &mut dice, cut_off, &mut late);
    }
    net
}

/// Delivers, flushes and applies until all is done but what is cut off or late.
fn pass_on(net: &mut Net, dice: &mut Dice, cut_off: Option<MemberId>, late: &mut Vec<(Time, Flight)>) {
    let now = net.now;
    net.flights.extend(late.extract_if(.., |(due, _)| *due <= now).map(|(_, flight)| flight));
    while !net.flights.is_empty() || net.members.values().any(|member| !member.writes.is_empty()) {
        for flight in std::mem::take(&mut net.flights) {
            let may_be_late =
                matches!(&flight.packet, Packet::Msg(Msg::HeartbeatReply { .. } | Msg::TimeoutNow { .. }));
            if may_be_late && dice.one_in(5) {
                late.push((now.after(dice.roll() % 300_000), flight));
            } else if cut_off.is_some_and(|member| flight.from == member || flight.to == member) {
                net.lose(flight);
            } else {
                net.deliver(flight);
            }
        }
        for member in net.up() {
            net.flush(member, usize::MAX);
            net.apply(member, usize::MAX);
            net.install(member);
        }
    }
}
