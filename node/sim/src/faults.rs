//! What goes wrong in a run: drawn from its seed, weighted by its profile.

use std::fmt;
use std::str::FromStr;

use quorate_raft::io::Change;
use quorate_raft::types::{ConfigAt, MemberId};

use crate::net::{CALM, Weather};
use crate::oracle::Violation;
use crate::rng::Rng;
use crate::world::{Shape, World};

/// How lagging a learner may be when it is promoted in a run.
const LAG_MAX: u64 = 500;
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
    Flap,
    HealLinks,
    /// The store forgets old revisions; not a fault, but it must survive them.
    Compact,
    Crash,
    PowerLoss,
    PowerLossAll,
    SlowDisk,
    DiskStall,
    FsyncError,
    DiskFull,
    Rot,
    ClockRate,
    Pause,
    AddLearner,
    Promote,
    Demote,
    Remove,
    Swap,
    Transfer,
    /// Replaces a member whose disk is damaged, or removes whoever is dead.
    Replace,
    /// Asks for what must be refused, or for two changes at once.
    BadChange,
}

/// The classes a run over many seeds must have triggered.
pub const CLASSES: [&str; 30] = [
    "lost messages",
    "duplicated messages",
    "reordered messages",
    "isolated member",
    "one-way cut",
    "split",
    "partial partition",
    "flapping links",
    "compaction",
    "crash",
    "power loss",
    "power loss of all",
    "slow disk",
    "disk stall",
    "fsync error",
    "disk full",
    "rot",
    "rot refused",
    "clock rate",
    "pause",
    "add learner",
    "promote",
    "demote",
    "remove",
    "swap",
    "transfer",
    "replace",
    "bad change",
    "checkpoints",
    "snapshots installed",
];

fn weights(profile: Profile) -> Vec<(Fault, u64)> {
    use Fault::*;
    let network =
        vec![(Storm, 4), (Isolate, 3), (OneWay, 3), (Split, 3), (Bridge, 2), (Flap, 2), (Compact, 1), (HealLinks, 9)];
    let crashes = vec![(Crash, 6), (PowerLoss, 4), (PowerLossAll, 1)];
    let disk = vec![(SlowDisk, 4), (DiskStall, 2)];
    let errors = vec![(FsyncError, 3), (DiskFull, 2), (Rot, 2), (Replace, 4)];
    let clock = vec![(ClockRate, 4), (Pause, 4)];
    let members =
        vec![(AddLearner, 4), (Promote, 8), (Demote, 1), (Remove, 4), (Swap, 4), (Transfer, 4), (BadChange, 3)];
    match profile {
        Profile::Calm => vec![(Transfer, 1)],
        Profile::Lossy => vec![(Storm, 1)],
        Profile::Partition => network,
        Profile::CrashStorm => crashes,
        Profile::SlowDisk => [disk, vec![(Transfer, 2)]].concat(),
        Profile::DiskFault => [errors, crashes].concat(),
        Profile::Clock => clock,
        Profile::Churn => [members, vec![(Crash, 2), (Isolate, 1), (HealLinks, 2)]].concat(),
        Profile::SnapshotHeavy => {
            vec![(Compact, 3), (Crash, 3), (Isolate, 4), (HealLinks, 4), (AddLearner, 2), (Promote, 2), (Remove, 2)]
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
        flush_us: if rng.chance(500) { (100, 900) } else { (500, 8_000) },
        apply_us: *rng.pick(&[(0, 0), (50, 500), (1_000, 20_000)]).expect("not empty"),
        segment_bytes: 4096 * rng.between(4, 40),
        max_append_bytes: if tiny { 400 } else { 1 << 20 },
        inflight_bytes_max: if tiny { 2_000 } else { 1 << 20 },
        eager_changes: matches!(profile, Profile::Churn | Profile::All),
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
}

impl Faults {
    pub fn new(rng: Rng, profile: Profile, until: u64) -> Faults {
        Faults { rng, weights: weights(profile), profile, until, full: Vec::new() }
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
        let gap = if self.profile == Profile::Calm { 4_000_000 } else { 900_000 };
        world.schedule_fault(self.rng.between(20_000, gap));
        world.faults += 1;
        self.cause(world, fault.expect("the draw is below the total"))
    }

    fn cause(&mut self, world: &mut World, fault: Fault) -> Result<(), Violation> {
        let ids = world.ids();
        let voters: Vec<MemberId> = world.config().voters.iter().copied().collect();
        let up = world.up();
        let Some(one) = self.rng.pick(&up).copied() else { return Ok(()) };
        // The leader is hit more often than chance would.
        let target = world.leader().filter(|_| self.rng.chance(400)).unwrap_or(one);
        // A member whose disk is damaged will not start again. A leader that has not noticed yet could take another one
        // out and make the lost one part of every quorum: nobody can then be elected, and rightly so.
        let shrinks = matches!(fault, Fault::Demote | Fault::Remove | Fault::Swap | Fault::BadChange);
        if shrinks && voters.iter().any(|id| world.is_rotten(*id)) {
            return Ok(());
        }
        match fault {
            Fault::Storm => {
                world.net.weather = self.weather();
            }
            Fault::HealLinks => {
                world.net.heal_links();
                if self.rng.chance(300) {
                    world.net.weather = CALM;
                }
            }
            Fault::Compact => {
                world.count("compaction");
                world.compact(target)?;
            }
            Fault::Isolate => {
                world.count("isolated member");
                if self.rng.chance(400) {
                    // A long tail that nobody else will ever see.
                    let count = self.rng.between(10, 150);
                    world.burst(target, count)?;
                }
                for peer in &ids {
                    world.net.cut(target, *peer);
                    world.net.cut(*peer, target);
                }
            }
            Fault::OneWay => {
                if let Some(peer) = self.rng.pick(&ids) {
                    world.count("one-way cut");
                    world.net.cut(target, *peer);
                }
            }
            Fault::Split => {
                world.count("split");
                let side: Vec<bool> = ids.iter().map(|_| self.rng.chance(500)).collect();
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
                world.count("partial partition");
                for a in &ids {
                    for b in &ids {
                        if *a != target && *b != target {
                            world.net.cut(*a, *b);
                        }
                    }
                }
            }
            Fault::Flap => {
                world.count("flapping links");
                let period = self.rng.between(5_000, 400_000);
                for peer in &ids {
                    if self.rng.chance(500) {
                        continue;
                    }
                    world.net.flap(target, *peer, period);
                    if self.rng.chance(700) {
                        world.net.flap(*peer, target, period);
                    }
                }
            }
            Fault::Crash => {
                world.count("crash");
                self.down(world, target, false)?;
            }
            Fault::PowerLoss => {
                world.count("power loss");
                self.down(world, target, true)?;
            }
            Fault::PowerLossAll => {
                world.count("power loss of all");
                for id in up {
                    self.down(world, id, true)?;
                }
            }
            Fault::SlowDisk => {
                world.count("slow disk");
                let slowness = self.rng.between(1, 30);
                if let Some(member) = world.members.get_mut(&target) {
                    member.disk_slowness = slowness;
                }
            }
            Fault::DiskStall => {
                let slowness = self.rng.between(200, 2_000);
                match world.members.get_mut(&target) {
                    Some(member) if member.disk_slowness <= 100 => member.disk_slowness = slowness,
                    Some(_) | None => world.end_stall(target),
                }
            }
            Fault::FsyncError => {
                world.fail_next_fsync(target);
            }
            Fault::DiskFull => {
                world.fill_disk(target, true);
                self.full.push(target);
                if self.rng.chance(600) {
                    for id in std::mem::take(&mut self.full) {
                        world.fill_disk(id, false);
                    }
                }
            }
            Fault::Rot => {
                let dead = voters.iter().filter(|id| world.is_dead(**id)).count();
                // A majority must keep intact copies; without one the right answer is to refuse.
                let may = voters.contains(&target) && dead < voters.len().saturating_sub(1) / 2;
                if may && world.is_config_settled() && world.rot(target)? {
                    world.count("rot");
                }
            }
            Fault::Replace => {
                let dead = world.config().members.keys().copied().find(|id| world.is_dead(*id));
                if let (Some(leader), Some(dead)) = (world.leader(), dead) {
                    world.count("replace");
                    world.change(leader, Change::Remove { id: dead })?;
                    if ids.len() < MEMBERS_MAX {
                        world.join(leader)?;
                    }
                }
            }
            Fault::BadChange => {
                if let Some(leader) = world.leader() {
                    world.count("bad change");
                    self.bad_change(world, leader)?;
                }
            }
            Fault::ClockRate => {
                world.count("clock rate");
                let rate = self.rng.between(800, 1200);
                world.set_clock_rate(target, rate);
            }
            Fault::Pause => {
                world.count("pause");
                let length = self.rng.between(20_000, 2_500_000);
                world.pause(target, length);
            }
            Fault::AddLearner => {
                if let Some(leader) = world.leader()
                    && ids.len() < MEMBERS_MAX
                {
                    world.count("add learner");
                    world.join(leader)?;
                }
            }
            Fault::Promote => {
                let learners: Vec<MemberId> = world.config().learners.iter().copied().collect();
                if let (Some(leader), Some(id)) = (world.leader(), self.rng.pick(&learners))
                    && voters.len() < 5
                {
                    world.count("promote");
                    world.change(leader, Change::Promote { id: *id, lag_max: LAG_MAX })?;
                }
            }
            Fault::Demote => {
                if let (Some(leader), Some(id)) = (world.leader(), self.rng.pick(&voters)) {
                    world.count("demote");
                    world.change(leader, Change::Demote { id: *id })?;
                }
            }
            Fault::Remove => {
                let members: Vec<MemberId> = world.config().members.keys().copied().collect();
                if let (Some(leader), Some(id)) = (world.leader(), self.rng.pick(&members)) {
                    world.count("remove");
                    world.change(leader, Change::Remove { id: *id })?;
                }
            }
            Fault::Swap => {
                let learners: Vec<MemberId> = world.config().learners.iter().copied().collect();
                let pair = (self.rng.pick(&learners).copied(), self.rng.pick(&voters).copied());
                if let (Some(leader), (Some(new), Some(old))) = (world.leader(), pair) {
                    world.count("swap");
                    world.change(leader, Change::Swap { new, old, lag_max: LAG_MAX })?;
                }
            }
            Fault::Transfer => {
                if let (Some(leader), Some(to)) = (world.leader(), self.rng.pick(&voters)) {
                    world.count("transfer");
                    world.transfer(leader, *to)?;
                }
            }
        }
        Ok(())
    }

    fn bad_change(&mut self, world: &mut World, leader: MemberId) -> Result<(), Violation> {
        let config = world.config().clone();
        let new = World::add_learner(MemberId(1_000 + self.rng.below(9)));
        match self.rng.below(4) {
            0 => {
                let far = ConfigAt { incarnation: 1, term: 1 + self.rng.below(3), index: 1 << 40 };
                world.change_wrongly(leader, Some(far), new)
            }
            1 => {
                let gone: Vec<MemberId> = config.removed.iter().copied().collect();
                let Some(id) = self.rng.pick(&gone) else { return Ok(()) };
                world.change_wrongly(leader, None, World::add_learner(*id))
            }
            2 => {
                let members: Vec<MemberId> = config.members.keys().copied().collect();
                let Some(id) = self.rng.pick(&members) else { return Ok(()) };
                // An id that an uncommitted entry removes may not be a member at this leader any more; it is still used up.
                world.change_wrongly(leader, None, World::add_learner(*id))
            }
            _ => {
                // The second of two at once finds the first in flight.
                let ids: Vec<MemberId> = config.learners.iter().copied().collect();
                let Some(id) = self.rng.pick(&ids).copied() else { return Ok(()) };
                world.change(leader, Change::Promote { id, lag_max: LAG_MAX })?;
                world.change(leader, Change::Remove { id })
            }
        }
    }

    fn down(&mut self, world: &mut World, id: MemberId, power: bool) -> Result<(), Violation> {
        world.crash(id, power)?;
        let back = self.rng.between(1_000, 3_000_000);
        world.schedule_restart(id, back);
        Ok(())
    }

    fn weather(&mut self) -> Weather {
        let slow = self.rng.between(500, 80_000);
        Weather {
            loss_per_mille: self.rng.below(300),
            duplicate_per_mille: self.rng.below(150),
            delay_min_us: 100,
            delay_max_us: slow,
            straggler_per_mille: self.rng.below(20),
            straggler_us: 5_000_000,
        }
    }
}
