//! The planner that ships over members that run the core and log that ship, in one simulation, from a seed.
//!
//! Whatever a person edits and whatever fails, the cores keep what they promise (the simulator's own oracles watch every step of
//! every member), no step takes a member apart that is still counted on, and once the faults are over the cluster becomes what
//! was asked for last, serves without a break while it is worked on, and has lost and duplicated nothing.
//!
//! `SEEDS=1000 START=5000 cargo test -p quorate-plan --test cores` runs more of them.

#![allow(clippy::unwrap_used, reason = "a broken model is a failed test")]

mod cluster;

use cluster::Cluster;
use quorate_api::{names, requests};
use quorate_plan::{Decision, Step, Volume, plan};
use quorate_raft::types::MemberId;
use quorate_sim::oracle::Violation;
use quorate_sim::rng::Rng;

const SEEDS: u64 = 20;
/// Simulated length of the part with faults, in microseconds.
const FAULTY_US: u64 = 240_000_000;
/// Kubelets look this often.
const TICK_US: u64 = 250_000;
/// Passes of the operator within which a cluster without faults must be what was asked for.
const PASSES_MAX: u64 = 600;
/// Without faults a write is acknowledged at least this often, whatever the operator does: ten election timeouts, and a client
/// that waits in vain.
const OUTAGE_US: u64 = 5_000_000;
/// What was decided just before a disk is lost for good is the one thing that no planner can take back.
const HOLD_AFTER_LOSS_US: u64 = 2_000_000;
const CONVERGE_US: u64 = 20_000_000;

struct Story {
    cluster: Cluster,
    rng: Rng,
    /// Decided some passes ago, carried out only now.
    late: Option<(Step, u64)>,
    /// The operator is away until then.
    away_until: u64,
    /// What is cut off is let in again.
    cut: Vec<(MemberId, u64)>,
    trace: Vec<String>,
    faults: u64,
}

#[derive(Debug)]
struct Failure(String);

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Failure {
        Failure(violation.0)
    }
}

impl Story {
    fn new(seed: u64) -> Result<Story, Failure> {
        let mut rng = Rng::new(seed);
        let cluster = Cluster::new(rng.next_u64())?;
        Ok(Story { cluster, rng, late: None, away_until: 0, cut: Vec::new(), trace: Vec::new(), faults: 0 })
    }

    fn now(&self) -> u64 {
        self.cluster.world.now
    }

    fn say(&mut self, text: String) {
        self.trace.push(format!("{:>9.3} {text}", self.now() as f64 / 1e6));
    }

    fn pass_time(&mut self, us: u64) -> Result<(), Failure> {
        let until = self.now() + us;
        while self.now() < until {
            self.cluster.pass_time(TICK_US.min(until - self.now()))?;
        }
        Ok(())
    }

    /// Observe, plan, act; with faults, the step may be lost, or be carried out when others were decided meanwhile.
    fn pass(&mut self, with_faults: bool) -> Result<Decision, Failure> {
        let observed = self.cluster.observe();
        let next = plan(&self.cluster.intent(), &observed, self.cluster.now_ms(), names::seed("c1")).next;
        if let Decision::Act(step) = &next {
            match self.rng.below(if with_faults { 20 } else { 1 }) {
                1 => self.say(format!("lost: {step:?}")),
                2 if self.late.is_none() => {
                    self.say(format!("late: {step:?}"));
                    self.late = Some((step.clone(), self.now() + self.rng.between(500_000, 4_000_000)));
                }
                _ => self.apply(step, "")?,
            }
        }
        if let Some((step, _)) = self.late.take_if(|(_, due)| *due <= self.cluster.world.now) {
            self.apply(&step, "at last: ")?;
        }
        match self.cluster.violations.first() {
            Some(text) => Err(Failure(text.clone())),
            None => Ok(next),
        }
    }

    fn apply(&mut self, step: &Step, how: &str) -> Result<(), Failure> {
        let refused = self.cluster.apply(step)?.err().map_or(String::new(), |refused| format!(" -> {}", refused.0));
        self.say(format!("{how}{step:?}{refused}"));
        Ok(())
    }

    fn faulty_part(&mut self) -> Result<(), Failure> {
        let until = self.now() + FAULTY_US;
        while self.now() < until {
            let us = self.rng.between(200_000, 1_500_000);
            self.pass_time(us)?;
            self.let_in()?;
            if self.rng.chance(60) {
                self.fault()?;
            }
            if self.rng.chance(15) {
                self.edit();
            }
            if self.now() >= self.away_until {
                self.pass(true)?;
            }
        }
        Ok(())
    }

    fn let_in(&mut self) -> Result<(), Failure> {
        let now = self.now();
        let over: Vec<MemberId> = self.cut.iter().filter(|(_, until)| *until <= now).map(|(id, _)| *id).collect();
        self.cut.retain(|(_, until)| *until > now);
        for id in over {
            self.reach(id, true);
        }
        Ok(())
    }

    /// Network between a member and everybody, the operator too.
    fn reach(&mut self, id: MemberId, whole: bool) {
        let others: Vec<MemberId> = self.cluster.world.ids().into_iter().filter(|other| *other != id).collect();
        for other in others {
            self.cluster.world.schedule_link(id, other, !whole, 0);
            self.cluster.world.schedule_link(other, id, !whole, 0);
        }
        let Some(record) = self.cluster.record_of(id).cloned() else { return };
        if whole {
            self.cluster.unreachable.remove(&record);
        } else {
            self.cluster.unreachable.insert(record);
        }
    }

    fn fault(&mut self) -> Result<(), Failure> {
        let voters: Vec<MemberId> = self.cluster.world.config().voters.iter().copied().collect();
        let Some(id) = self.rng.pick(&voters).copied() else { return Ok(()) };
        self.faults += 1;
        let now = self.now();
        match self.rng.below(10) {
            0..=2 => {
                let power = self.rng.chance(500);
                self.say(format!("-- {id} crashes, power {power}"));
                self.cluster.world.crash(id, power)?;
            }
            3..=4 => {
                let us = self.rng.between(100_000, 5_000_000);
                self.say(format!("-- {id} stands still for {us} us"));
                self.cluster.world.pause(id, us);
            }
            5..=6 if self.cut.is_empty() => {
                let us = self.rng.between(3_000_000, 150_000_000);
                self.say(format!("-- {id} is cut off for {us} us"));
                self.reach(id, false);
                self.cut.push((id, now + us));
            }
            7..=8 if self.late.is_none() && self.cluster.world.may_lose(id) => {
                let Some(record) = self.cluster.record_of(id).cloned() else { return Ok(()) };
                self.say(format!("-- {id} of {record} loses its disk"));
                self.cluster.world.lose(id)?;
                self.cluster.volumes.remove(&record);
                self.away_until = now + HOLD_AFTER_LOSS_US;
            }
            9 => {
                let us = self.rng.between(2_000_000, 20_000_000);
                self.say(format!("-- the operator is away for {us} us"));
                self.away_until = now + us;
            }
            _ => {}
        }
        Ok(())
    }

    fn edit(&mut self) {
        match self.rng.below(6) {
            0..=2 => {
                let replicas = *self.rng.pick(&[1, 2, 3, 3, 3, 4, 5, 5]).unwrap();
                self.say(format!("-- replicas {replicas}"));
                self.cluster.edit(|spec| spec.replicas = replicas);
            }
            3..=4 => {
                let image = format!("quorate:{}", self.rng.below(3));
                self.say(format!("-- image {image}"));
                self.cluster.edit(|spec| spec.image = image);
            }
            _ => {
                let records: Vec<_> = self.cluster.records.values().filter(|r| r.member_id.is_some()).collect();
                let Some(record) = self.rng.pick(&records) else { return };
                let asked = format!("{}@{}", record.name, record.member_id.unwrap());
                self.say(format!("-- replace {asked}"));
                self.cluster.asked.insert(requests::ANNOTATION_REPLACE.to_owned(), asked);
            }
        }
    }

    /// Ends every fault; then the last edit must come true, while clients are served.
    fn calm_part(&mut self) -> Result<(), Failure> {
        let cut: Vec<MemberId> = self.cut.drain(..).map(|(id, _)| id).collect();
        cut.into_iter().for_each(|id| self.reach(id, true));
        self.cluster.world.net.heal();
        for id in self.cluster.world.ids() {
            self.cluster.world.heal_member(id);
        }
        // Pauses end by themselves, and kubelets start what crashed.
        self.pass_time(10_000_000)?;
        let (mut served, mut since) = (self.cluster.world.acknowledged(), self.now());
        for _ in 0..PASSES_MAX {
            let next = self.pass(false)?;
            if next == Decision::Steady && self.late.is_none() {
                return self.ended();
            }
            self.pass_time(500_000)?;
            let (now, acknowledged) = (self.now(), self.cluster.world.acknowledged());
            if acknowledged > served {
                (served, since) = (acknowledged, now);
            }
            // One or two voters have no margin: their restarts are pauses that were asked for.
            if self.cluster.world.config().voters.len() <= 2 {
                since = now;
            }
            if now - since > OUTAGE_US {
                return Err(Failure(format!("no write acknowledged since {since}; {}", self.cluster.world.describe())));
            }
        }
        Err(Failure(format!("not settled after {PASSES_MAX} passes; {}", self.cluster.world.describe())))
    }

    fn ended(&mut self) -> Result<(), Failure> {
        let Cluster { world, records, volumes, spec, .. } = &self.cluster;
        let wanted = usize::try_from(spec.replicas).unwrap();
        let runs = records.values().filter(|r| r.pod.as_ref().is_some_and(|p| p.image == spec.image)).count();
        let config = world.config();
        let counts = [config.voters.len(), records.len(), volumes.len(), runs];
        let owned = config.voters.iter().all(|id| self.cluster.record_of(*id).is_some());
        let stamped = |volume: &Volume| records.get(&volume.record).is_some_and(|r| r.uid == volume.record_uid);
        if counts != [wanted; 4] || !config.learners.is_empty() || !owned || !volumes.values().all(stamped) {
            return Err(Failure(format!("{wanted} wanted; voters, records, volumes, pods: {counts:?}; {config:?}")));
        }
        self.cluster.world.stop_clients();
        let limit = self.now() + CONVERGE_US;
        while self.now() < limit {
            self.pass_time(500_000)?;
            let states = self.cluster.world.states();
            if states.len() == wanted && states.windows(2).all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2))
            {
                return Ok(self.cluster.world.check_history()?);
            }
        }
        Err(Failure(format!("members did not converge: {:?}", self.cluster.world.states())))
    }

    fn run(&mut self) -> Result<(), Failure> {
        self.faulty_part()?;
        self.calm_part()
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn the_planner_over_real_cores_ends_every_story_well() {
    let (start, seeds) = (number("START", 1), number("SEEDS", SEEDS));
    let (mut steps, mut faults) = (std::collections::BTreeMap::new(), 0);
    for seed in start..start + seeds {
        let mut story = Story::new(seed).unwrap();
        if let Err(Failure(text)) = story.run() {
            let from = story.trace.len().saturating_sub(number("TRACE", 60) as usize);
            panic!("seed {seed}: {text}\n{}\nagain: START={seed} SEEDS=1", story.trace[from..].join("\n"));
        }
        faults += story.faults;
        story.cluster.steps.iter().for_each(|(step, count)| *steps.entry(*step).or_default() += *count);
    }
    println!("{seeds} seeds, {faults} faults, steps {steps:?}");
    // A story in which nothing is replaced proves nothing about replacements.
    let told = ["SwapVoter", "RemoveMember", "Promote", "TransferLeader", "RestartMember", "DeleteVolume"];
    let missing: Vec<_> = told.iter().filter(|step| steps.get(**step).copied().unwrap_or(0u64) < seeds / 4).collect();
    assert!(missing.is_empty() || seeds < SEEDS, "hardly ever taken: {missing:?} of {steps:?}");
}

/// Guards whose loss real cores show.
#[cfg(feature = "mutants")]
#[test]
fn missing_guards_are_noticed_over_real_cores() {
    use quorate_plan::mutants::{Mutant, plant};
    for mutant in [Mutant::StopBeforeRemoval, Mutant::RemoveWithoutMark, Mutant::SwapUnmarked] {
        plant(Some(mutant));
        let noticed = (1..=SEEDS).find_map(|seed| Some((seed, Story::new(seed).ok()?.run().err()?)));
        plant(None);
        let (seed, Failure(text)) = noticed.unwrap_or_else(|| panic!("nobody notices {mutant:?}"));
        println!("{mutant:?} caught by seed {seed}: {text}");
    }
}
