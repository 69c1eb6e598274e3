//! What goes wrong in a run: drawn from its seed, weighted by its profile.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use quorate_raft::cfg::LeaseCfg;
use quorate_raft::io::Change;
use quorate_raft::types::{ConfigAt, MemberId};

use crate::net::{CALM, Weather};
use crate::oracle::Violation;
use crate::rng::Rng;
use crate::world::{Shape, World};

/// How lagging a learner may be when it is promoted in a run.
const LAG_MAX: u64 = 500;
/// Rates of clocks that go by leases: the slowest runs 5 % behind the fastest and no more.
const LEASE_RATES: [u64; 2] = [975, 1026];
/// Members ever made in one run.
const MEMBERS_MAX: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Profile {
    Calm,
    Lossy,
    Partition,
    CrashStorm,
    SlowDisk,
    DiskFault,
    Clock,
    Churn,
    SnapshotHeavy,
    All,
}

impl Profile {
    pub const ALL: [Profile; 10] = [
        Profile::Calm,
        Profile::Lossy,
        Profile::Partition,
        Profile::CrashStorm,
        Profile::SlowDisk,
        Profile::DiskFault,
        Profile::Clock,
        Profile::Churn,
        Profile::SnapshotHeavy,
        Profile::All,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Profile::Calm => "calm",
            Profile::Lossy => "lossy",
            Profile::Partition => "partition",
            Profile::CrashStorm => "crash-storm",
            Profile::SlowDisk => "slow-disk",
            Profile::DiskFault => "disk-fault",
            Profile::Clock => "clock",
            Profile::Churn => "churn",
            Profile::SnapshotHeavy => "snapshot-heavy",
            Profile::All => "all",
        }
    }

    /// Half of all runs have everything at once.
    pub fn draw(rng: &mut Rng) -> Profile {
        if rng.chance(500) { Profile::All } else { *rng.pick(&Profile::ALL).expect("there are profiles") }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(text: &str) -> Result<Profile, String> {
        let names = || Profile::ALL.map(Profile::name).join(", ");
        Profile::ALL
            .into_iter()
            .find(|p| p.name() == text)
            .ok_or_else(|| format!("no profile {text:?}; there are {}", names()))
    }
}

/// One kind of fault. Each is counted by name when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Storm,
    Isolate,
    OneWay,
    Split,
    Bridge,
    Chain,
    Ring,
    Swizzle,
    Flap,
    Stuck,
    Replay,
    HealLinks,
    /// The store forgets old revisions; not a fault, but it must survive them.
    Compact,
    Crash,
    PowerLoss,
    PowerLossAll,
    CrashInWrite,
    CrashInRecovery,
    SlowDisk,
    DiskStall,
    FsyncError,
    WriteError,
    ReadError,
    DiskFull,
    /// So many volumes are full that no majority is left with room, for a while.
    DiskFullMost,
    Rot,
    Lie,
    CopyVolume,
    OldCopy,
    /// A log comes back without its end, and no peer can see it by the data directory.
    ForgetTail,
    LostVolume,
    Twin,
    Misplace,
    ClockRate,
    ClockJump,
    Pause,
    /// Many writes at a leader that goes on: commit runs ahead of what is applied and persisted.
    Burst,
    /// A change is asked of a leader that is cut off at once: its entry will be truncated.
    LostChange,
    /// A removed member was away and comes back with its old disk.
    RemovedReturns,
    AddLearner,
    Promote,
    Demote,
    Remove,
    Swap,
    /// A leader enters a joint configuration, and then hears nobody of its old half.
    JointCut,
    Transfer,
    /// Replaces a member whose disk is damaged, or removes whoever is dead.
    Replace,
    /// Asks for what must be refused, or for two changes at once.
    BadChange,
}

/// The classes a run over many seeds must have triggered.
pub const CLASSES: [&str; 71] = [
    "lost messages",
    "duplicated messages",
    "reordered messages",
    "late messages",
    "corrupted frame",
    "damaged snapshot refused",
    "replay",
    "replay of an old term",
    "isolated member",
    "one-way cut",
    "split",
    "bridge",
    "chain",
    "ring",
    "swizzled links",
    "flapping links",
    "stuck receiver",
    "stale connection refused",
    "compaction",
    "crash",
    "power loss",
    "power loss of all",
    "crash inside a write",
    "crash inside recovery",
    "torn sectors",
    "slow disk",
    "disk stall",
    "fsync error",
    "write error",
    "read error",
    "disk full",
    "disk full at a flush",
    "most disks full",
    "growth refused",
    "lying flush",
    "rot",
    "rot in the vote file",
    "misdirected write",
    "stale read",
    "rot refused",
    "rot repaired",
    "old copy",
    "old copy refused",
    "log without its end",
    "reverted member stopped",
    "lost volume",
    "twin refused",
    "swapped volume refused",
    "foreign volume refused",
    "clock rate",
    "clock rate under leases",
    "clock jump",
    "pause",
    "guest paused with its clock",
    "burst",
    "lost change",
    "add learner",
    "promote",
    "demote",
    "remove",
    "removed member returns",
    "swap",
    "joint and cut",
    "transfer",
    "replace",
    "bad change",
    "checkpoints",
    "snapshots installed",
    "watch histories read",
    "watches compacted",
    "calm looks",
];

fn weights(profile: Profile) -> Vec<(Fault, u64)> {
    use Fault::*;
    let network = vec![
        (Storm, 4),
        (Isolate, 3),
        (OneWay, 3),
        (Split, 3),
        (Bridge, 2),
        (Chain, 1),
        (Ring, 1),
        (Swizzle, 1),
        (Flap, 2),
        (Stuck, 2),
        (Replay, 3),
        (Compact, 1),
        (HealLinks, 10),
    ];
    let crashes = vec![(Crash, 5), (PowerLoss, 3), (PowerLossAll, 1), (CrashInWrite, 4), (CrashInRecovery, 1)];
    let disk = vec![(SlowDisk, 4), (DiskStall, 2)];
    let errors = vec![
        (FsyncError, 2),
        (WriteError, 1),
        (ReadError, 1),
        (DiskFull, 2),
        (DiskFullMost, 1),
        (Rot, 2),
        (Lie, 1),
        (CopyVolume, 2),
        (OldCopy, 1),
        (ForgetTail, 2),
        (LostVolume, 1),
        (Twin, 1),
        (Misplace, 1),
        (Replace, 4),
    ];
    let clock = vec![(ClockRate, 4), (ClockJump, 1), (Pause, 4)];
    let members = vec![
        (AddLearner, 4),
        (Promote, 8),
        (Demote, 1),
        (Remove, 4),
        (RemovedReturns, 2),
        (Swap, 4),
        (JointCut, 2),
        (Transfer, 4),
        (BadChange, 3),
        (LostChange, 2),
        (Burst, 2),
    ];
    match profile {
        Profile::Calm => vec![(Transfer, 1)],
        Profile::Lossy => vec![(Storm, 4), (Replay, 1), (Stuck, 1)],
        Profile::Partition => network,
        Profile::CrashStorm => crashes,
        Profile::SlowDisk => [disk, vec![(Transfer, 2)]].concat(),
        Profile::DiskFault => [errors, crashes].concat(),
        Profile::Clock => clock,
        Profile::Churn => [members, vec![(Crash, 2), (Isolate, 1), (HealLinks, 2)]].concat(),
        Profile::SnapshotHeavy => {
            vec![
                (Compact, 3),
                (Burst, 3),
                (Storm, 1),
                (Crash, 3),
                (Isolate, 4),
                (HealLinks, 4),
                (AddLearner, 2),
                (Promote, 2),
                (Remove, 2),
            ]
        }
        Profile::All => [network, crashes, disk, errors, clock, members].concat(),
    }
}

/// Draws sizes and often tiny limits.
pub fn shape(rng: &mut Rng, profile: Profile) -> Shape {
    let tiny = profile == Profile::SnapshotHeavy || rng.chance(500);
    Shape {
        voters: *rng.pick(&[1, 3, 3, 3, 3, 5]).expect("not empty"),
        clients: rng.between(2, 6),
        think_us: rng.between(5_000, 60_000),
        keep_entries: if tiny { rng.between(1, 40) } else { 2_000 },
        persist_every: if tiny { rng.between(1, 60) } else { 500 },
        persist_us: *rng.pick(&[(0, 0), (100, 5_000), (1_000, 400_000)]).expect("not empty"),
        flush_us: if rng.chance(500) { (100, 900) } else { (500, 8_000) },
        apply_us: *rng.pick(&[(0, 0), (50, 500), (1_000, 20_000)]).expect("not empty"),
        segment_bytes: 4096 * rng.between(4, 40),
        max_append_bytes: if tiny { 400 } else { 1 << 20 },
        inflight_bytes_max: if tiny { 2_000 } else { 1 << 20 },
        eager_changes: matches!(profile, Profile::Churn | Profile::All),
        leases: rng.chance(400).then(|| LeaseCfg {
            // The simulated clocks have no resolution of their own to guard against.
            guard_us: *rng.pick(&[0, 1_000, LeaseCfg::DEFAULT.guard_us]).expect("not empty"),
            ..LeaseCfg::DEFAULT
        }),
        mixed_leases: rng.chance(250),
        mixed_timeouts: rng.chance(300),
        watchers: usize::try_from(rng.below(4)).expect("a small number fits"),
    }
}

/// Draws and causes faults for as long as `until`.
#[derive(Debug)]
pub struct Faults {
    rng: Rng,
    weights: Vec<(Fault, u64)>,
    profile: Profile,
    pub until: u64,
    /// Members whose disk was filled.
    full: Vec<MemberId>,
    /// Faults left out, by their number; the others stay as they were drawn.
    skip: BTreeSet<u64>,
    /// What was caused: number, instant, kind.
    pub caused: Vec<(u64, u64, String)>,
    number: u64,
}

impl Faults {
    pub fn new(rng: Rng, profile: Profile, until: u64, skip: BTreeSet<u64>) -> Faults {
        let weights = weights(profile);
        Faults { rng, weights, profile, until, full: Vec::new(), skip, caused: Vec::new(), number: 0 }
    }

    pub fn next(&mut self, world: &mut World) -> Result<(), Violation> {
        if world.now >= self.until {
            return Ok(());
        }
        let total: u64 = self.weights.iter().map(|w| w.1).sum();
        let mut draw = self.rng.below(total);
        let fault = self.weights.iter().find_map(|(fault, weight)| {
            if draw < *weight {
                return Some(*fault);
            }
            draw -= weight;
            None
        });
        let fault = fault.expect("the draw is below the total");
        let gap = if self.profile == Profile::Calm { 4_000_000 } else { 900_000 };
        world.schedule_fault(self.rng.between(20_000, gap));
        // Each has a generator of its own, so that leaving one out changes no other.
        let mut rng = self.rng.fork();
        self.number += 1;
        if self.skip.contains(&self.number) || world.has_forgetful() {
            return Ok(());
        }
        self.caused.push((self.number, world.now, format!("{fault:?}")));
        world.faults += 1;
        world.disturb();
        self.cause(world, fault, &mut rng)
    }

    fn cause(&mut self, world: &mut World, fault: Fault, rng: &mut Rng) -> Result<(), Violation> {
        let ids = world.ids();
        let voters: Vec<MemberId> = world.config().voters.iter().copied().collect();
        let up = world.up();
        let Some(one) = rng.pick(&up).copied() else { return Ok(()) };
        // The leader is hit more often than chance would.
        let target = world.leader().filter(|_| rng.chance(400)).unwrap_or(one);
        // A member whose disk is damaged will not start again. A leader that has not noticed yet could take another one
        // out and make the lost one part of every quorum: nobody can then be elected, and rightly so.
        let shrinks = matches!(
            fault,
            Fault::Demote | Fault::Remove | Fault::Swap | Fault::JointCut | Fault::BadChange | Fault::LostChange
        );
        if shrinks && voters.iter().any(|id| world.is_rotten(*id)) {
            return Ok(());
        }
        match fault {
            Fault::Storm => {
                world.net.weather = weather(rng);
            }
            Fault::HealLinks => {
                world.net.heal_links();
                if rng.chance(300) {
                    world.net.weather = CALM;
                }
            }
            Fault::Compact => {
                world.count("compaction");
                world.compact(target)?;
            }
            Fault::Isolate => {
                world.count("isolated member");
                if rng.chance(400) {
                    // A long tail that nobody else will ever see.
                    let count = rng.between(10, 150);
                    world.burst(target, count)?;
                }
                for peer in &ids {
                    world.net.cut(target, *peer);
                    world.net.cut(*peer, target);
                }
            }
            Fault::OneWay => {
                if let Some(peer) = rng.pick(&ids) {
                    world.count("one-way cut");
                    world.net.cut(target, *peer);
                }
            }
            Fault::Split => {
                world.count("split");
                let side: Vec<bool> = ids.iter().map(|_| rng.chance(500)).collect();
                for (a, left) in ids.iter().zip(&side) {
                    for (b, right) in ids.iter().zip(&side) {
                        if left != right {
                            world.net.cut(*a, *b);
                        }
                    }
                }
            }
            Fault::Bridge => {
                // Everybody reaches one member, and nobody else.
                world.count("bridge");
                for a in &ids {
                    for b in &ids {
                        if *a != target && *b != target {
                            world.net.cut(*a, *b);
                        }
                    }
                }
            }
            Fault::Chain | Fault::Ring => {
                // Everybody reaches its neighbours only.
                let is_ring = fault == Fault::Ring;
                world.count(if is_ring { "ring" } else { "chain" });
                let last = ids.len().saturating_sub(1);
                for (i, a) in ids.iter().enumerate() {
                    for (j, b) in ids.iter().enumerate() {
                        let apart = i.abs_diff(j);
                        if apart > 1 && !(is_ring && apart == last) {
                            world.net.cut(*a, *b);
                        }
                    }
                }
            }
            Fault::Swizzle => {
                // Links of one member go one by one and come back in another order.
                world.count("swizzled links");
                let mut order: Vec<(MemberId, MemberId)> =
                    ids.iter().flat_map(|peer| [(target, *peer), (*peer, target)]).collect();
                for times in [0, 1] {
                    for at in (1..order.len()).rev() {
                        let other = usize::try_from(rng.below(at as u64 + 1)).expect("an index fits");
                        order.swap(at, other);
                    }
                    let mut when = times * 1_500_000;
                    for (from, to) in &order {
                        when += rng.between(1_000, 200_000);
                        world.schedule_link(*from, *to, times == 0, when);
                    }
                }
            }
            Fault::Stuck => {
                world.count("stuck receiver");
                let length = rng.between(50_000, 3_000_000);
                world.net.stick(target, world.now + length);
            }
            Fault::Replay => {
                let count = rng.between(1, 40);
                world.replay(count);
            }
            Fault::Flap => {
                world.count("flapping links");
                let period = rng.between(5_000, 400_000);
                for peer in &ids {
                    if rng.chance(500) {
                        continue;
                    }
                    world.net.flap(target, *peer, period);
                    if rng.chance(700) {
                        world.net.flap(*peer, target, period);
                    }
                }
            }
            Fault::Crash => {
                world.count("crash");
                down(world, target, false, rng)?;
            }
            Fault::PowerLoss => {
                world.count("power loss");
                down(world, target, true, rng)?;
            }
            Fault::PowerLossAll => {
                world.count("power loss of all");
                for id in up {
                    down(world, id, true, rng)?;
                }
            }
            Fault::CrashInWrite => world.crash_in_a_write(target),
            Fault::CrashInRecovery => {
                world.crash_in_recovery(target, rng.chance(500))?;
                let back = rng.between(1_000, 500_000);
                world.schedule_restart(target, back);
            }
            Fault::SlowDisk => {
                world.count("slow disk");
                let slowness = rng.between(1, 30);
                if let Some(member) = world.members.get_mut(&target) {
                    member.disk_slowness = slowness;
                }
            }
            Fault::DiskStall => {
                let slowness = rng.between(200, 2_000);
                match world.members.get_mut(&target) {
                    Some(member) if member.disk_slowness <= 100 => member.disk_slowness = slowness,
                    Some(_) | None => world.end_stall(target),
                }
            }
            Fault::FsyncError => {
                world.fail_next_fsync(target);
            }
            Fault::WriteError => world.fail_next_write(target),
            Fault::ReadError => {
                world.fail_read_at_start(target)?;
                let back = rng.between(1_000, 500_000);
                world.schedule_restart(target, back);
            }
            Fault::DiskFull => {
                world.fill_disk(target, rng.chance(400));
                self.full.push(target);
                if rng.chance(600) {
                    for id in std::mem::take(&mut self.full) {
                        world.empty_disk(id);
                    }
                }
            }
            Fault::DiskFullMost => {
                world.count("most disks full");
                for id in voters.iter().take(voters.len() / 2 + 1) {
                    world.fill_disk(*id, false);
                    self.full.push(*id);
                }
            }
            Fault::Rot => {
                if world.may_lose(target) {
                    world.rot(target)?;
                }
            }
            Fault::Lie => {
                if world.may_lose(target) {
                    world.lie(target);
                }
            }
            Fault::CopyVolume => world.copy_volume(target),
            Fault::OldCopy => {
                if world.may_lose(target) && world.restore_copy(target)? {
                    world.count("old copy");
                }
            }
            Fault::ForgetTail => {
                for id in voters {
                    if world.forget_tail(id)? {
                        world.count("log without its end");
                        break;
                    }
                    world.copy_volume(id);
                }
            }
            Fault::LostVolume => {
                if world.may_lose(target) && world.lose_volume(target)? {
                    world.count("lost volume");
                }
            }
            Fault::Twin => {
                // The copy is taken while the original is down, and the original starts first.
                if !world.start_twin(target)? {
                    world.copy_volume(target);
                    world.crash(target, false)?;
                    world.restart(target)?;
                }
            }
            Fault::Misplace => {
                if let Some(other) = rng.pick(&ids).copied().filter(|other| *other != target) {
                    world.misplace_volume(target, other)?;
                }
            }
            Fault::Replace => {
                let dead = world.config().members.keys().copied().find(|id| world.is_dead(*id));
                if let (Some(leader), Some(dead)) = (world.leader(), dead) {
                    world.count("replace");
                    world.change(leader, Change::Remove { id: dead })?;
                    if ids.len() < MEMBERS_MAX && !world.has_impostor() {
                        world.join(leader)?;
                    }
                }
            }
            Fault::BadChange => {
                if let Some(leader) = world.leader() {
                    world.count("bad change");
                    bad_change(world, leader, rng)?;
                }
            }
            Fault::ClockRate => {
                world.count("clock rate");
                // Leases allow two clocks to drift apart by 5 %.
                let is_bound = world.shape.leases.is_some();
                let rate = match (is_bound, rng.chance(500)) {
                    (true, true) => *rng.pick(&LEASE_RATES).expect("not empty"),
                    (true, false) => rng.between(LEASE_RATES[0], LEASE_RATES[1]),
                    (false, _) => rng.between(800, 1200),
                };
                if is_bound {
                    world.count("clock rate under leases");
                }
                world.set_clock_rate(target, rate);
            }
            // Leases are for clocks that do neither.
            Fault::ClockJump if world.shape.leases.is_some() => {}
            Fault::ClockJump => {
                world.count("clock jump");
                let by = i64::try_from(rng.between(1_000, 30_000_000)).expect("a small number fits");
                world.jump_clock(target, if rng.chance(300) { -by.min(400_000) } else { by });
            }
            Fault::Pause => {
                let length = rng.between(20_000, 2_500_000);
                if rng.chance(300) && world.shape.leases.is_none() {
                    world.count("guest paused with its clock");
                    world.freeze(target, length);
                } else {
                    world.count("pause");
                    world.pause(target, length);
                }
            }
            Fault::Burst => {
                if let Some(leader) = world.leader() {
                    world.count("burst");
                    let count = rng.between(20, 200);
                    world.burst(leader, count)?;
                }
            }
            Fault::LostChange => {
                if let Some(leader) = world.leader() {
                    world.count("lost change");
                    let change = match rng.pick(&voters) {
                        Some(voter) if rng.chance(500) => Change::Demote { id: *voter },
                        _ => World::add_learner(MemberId(2_000 + rng.below(1_000_000))),
                    };
                    world.change(leader, change)?;
                    for peer in &ids {
                        world.net.cut(leader, *peer);
                        world.net.cut(*peer, leader);
                    }
                }
            }
            Fault::RemovedReturns => {
                let removed: Vec<MemberId> = world.config().removed.iter().copied().collect();
                if let Some(id) = rng.pick(&removed).copied().filter(|id| ids.contains(id)) {
                    world.count("removed member returns");
                    world.crash(id, rng.chance(500))?;
                    let back = rng.between(1_000, 5_000_000);
                    world.schedule_restart(id, back);
                }
            }
            Fault::AddLearner => {
                if let Some(leader) = world.leader()
                    && ids.len() < MEMBERS_MAX
                    && !world.has_impostor()
                {
                    world.count("add learner");
                    world.join(leader)?;
                }
            }
            Fault::Promote => {
                let learners: Vec<MemberId> = world.config().learners.iter().copied().collect();
                if let (Some(leader), Some(id)) = (world.leader(), rng.pick(&learners))
                    && voters.len() < 5
                {
                    world.count("promote");
                    world.change(leader, Change::Promote { id: *id, lag_max: LAG_MAX })?;
                }
            }
            Fault::Demote => {
                if let (Some(leader), Some(id)) = (world.leader(), rng.pick(&voters)) {
                    world.count("demote");
                    world.change(leader, Change::Demote { id: *id })?;
                }
            }
            Fault::Remove => {
                let members: Vec<MemberId> = world.config().members.keys().copied().collect();
                if let (Some(leader), Some(id)) = (world.leader(), rng.pick(&members)) {
                    world.count("remove");
                    world.change(leader, Change::Remove { id: *id })?;
                }
            }
            Fault::Swap => {
                let learners: Vec<MemberId> = world.config().learners.iter().copied().collect();
                let pair = (rng.pick(&learners).copied(), rng.pick(&voters).copied());
                if let (Some(leader), (Some(new), Some(old))) = (world.leader(), pair) {
                    world.count("swap");
                    world.change(leader, Change::Swap { new, old, lag_max: LAG_MAX })?;
                }
            }
            Fault::JointCut => {
                let Some(leader) = world.leader() else { return Ok(()) };
                let others: Vec<MemberId> = voters.into_iter().filter(|voter| *voter != leader).collect();
                let learners: Vec<MemberId> =
                    up.into_iter().filter(|id| world.config().learners.contains(id)).collect();
                if let (Some(new), Some(old)) = (rng.pick(&learners).copied(), rng.pick(&others).copied()) {
                    world.count("joint and cut");
                    if world.shape.leases.is_some() {
                        // What the old half promised runs out as early as it may, by the leader's clock.
                        world.set_clock_rate(leader, LEASE_RATES[0]);
                    }
                    // Cut first: the entry itself would be a word of the leader's to the old half.
                    for peer in others {
                        world.net.cut(leader, peer);
                        world.net.cut(peer, leader);
                        if world.shape.leases.is_some() {
                            world.set_clock_rate(peer, LEASE_RATES[1]);
                        }
                    }
                    world.change(leader, Change::Swap { new, old, lag_max: LAG_MAX })?;
                }
            }
            Fault::Transfer => {
                if let (Some(leader), Some(to)) = (world.leader(), rng.pick(&voters)) {
                    world.count("transfer");
                    world.transfer(leader, *to)?;
                }
            }
        }
        Ok(())
    }
}

fn bad_change(world: &mut World, leader: MemberId, rng: &mut Rng) -> Result<(), Violation> {
    let config = world.config().clone();
    let new = World::add_learner(MemberId(1_000 + rng.below(9)));
    match rng.below(4) {
        0 => {
            let far = ConfigAt { incarnation: 1, term: 1 + rng.below(3), index: 1 << 40 };
            world.change_wrongly(leader, Some(far), new)
        }
        1 => {
            let gone: Vec<MemberId> = config.removed.iter().copied().collect();
            let Some(id) = rng.pick(&gone) else { return Ok(()) };
            world.change_wrongly(leader, None, World::add_learner(*id))
        }
        2 => {
            let members: Vec<MemberId> = config.members.keys().copied().collect();
            let Some(id) = rng.pick(&members) else { return Ok(()) };
            // An id that an uncommitted entry removes may not be a member at this leader any more; it is still used up.
            world.change_wrongly(leader, None, World::add_learner(*id))
        }
        _ => {
            // The second of two at once finds the first in flight.
            let ids: Vec<MemberId> = config.learners.iter().copied().collect();
            let Some(id) = rng.pick(&ids).copied() else { return Ok(()) };
            world.change(leader, Change::Promote { id, lag_max: LAG_MAX })?;
            world.change(leader, Change::Remove { id })
        }
    }
}

fn down(world: &mut World, id: MemberId, power: bool, rng: &mut Rng) -> Result<(), Violation> {
    world.crash(id, power)?;
    let back = rng.between(1_000, 3_000_000);
    world.schedule_restart(id, back);
    Ok(())
}

fn weather(rng: &mut Rng) -> Weather {
    let slow = rng.between(500, 80_000);
    Weather {
        loss_per_mille: rng.below(300),
        duplicate_per_mille: rng.below(150),
        corrupt_per_mille: if rng.chance(500) { rng.below(60) } else { 0 },
        delay_min_us: 100,
        delay_max_us: slow,
        straggler_per_mille: rng.below(20),
        straggler_us: 5_000_000,
    }
}
