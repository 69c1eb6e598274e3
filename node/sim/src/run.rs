//! One seed from start to end: faults, then a healed quorum that must serve again.

use std::collections::{BTreeMap, BTreeSet};

use crate::faults::{self, Faults, Profile};
use crate::oracle::Violation;
use crate::rng::Rng;
use crate::world::World;

/// Simulated length of the part with faults.
const FAULTY_US: (u64, u64) = (15_000_000, 45_000_000);
/// After healing, fresh writes must be acknowledged within ten election timeouts, drawn up to twice the lower bound.
const SERVE_US: u64 = 10 * 300_000;
const SERVE_MIXED_US: u64 = 10 * 600_000;
/// And all members that run must hold equal states this much later.
const CONVERGE_US: u64 = 20_000_000;

/// A request that a running process has not answered for this long is lost.
const ANSWER_US: u64 = 3_000_000;

/// Below this many calls per simulated second, or with rarer faults than this, simulated time proves too little to count.
const CALLS_PER_SECOND_MIN: u64 = 20;
const FAULT_EVERY_US: u64 = 10_000_000;

/// What one run did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub profile: &'static str,
    pub simulated_us: u64,
    pub operations: u64,
    /// Whether the time counts: enough calls and enough faults for it to prove something.
    pub counts_honestly: bool,
    pub counts: BTreeMap<&'static str, u64>,
    pub trace_hash: u64,
    /// Most terms that began within ten seconds.
    pub most_terms: u64,
    /// When it ended.
    pub lasted_us: u64,
    /// What was caused: number, instant, kind.
    pub faults: Vec<(u64, u64, String)>,
    pub violation: Option<String>,
}

/// What to run besides the seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub profile: Option<Profile>,
    pub trace: bool,
    /// Faults left out, by their number.
    pub skip: BTreeSet<u64>,
    /// Faults end at this instant at the latest.
    pub faults_until_us: Option<u64>,
    /// At most so many clients.
    pub clients_max: Option<u64>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Planted>,
}

/// A planted bug of the core, of the log or of the shell.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    Core(quorate_raft::mutant::Mutant),
    Log(quorate_log::mutant::Mutant),
    Shell(crate::mutant::Mutant),
}

#[cfg(feature = "mutants")]
impl Planted {
    pub fn all() -> Vec<Planted> {
        let core = quorate_raft::mutant::Mutant::ALL.iter().map(|mutant| Planted::Core(*mutant));
        let log = quorate_log::mutant::Mutant::ALL.iter().map(|mutant| Planted::Log(*mutant));
        let shell = crate::mutant::Mutant::ALL.iter().map(|mutant| Planted::Shell(*mutant));
        core.chain(log).chain(shell).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Planted::Core(mutant) => mutant.name(),
            Planted::Log(mutant) => mutant.name(),
            Planted::Shell(mutant) => mutant.name(),
        }
    }
}

#[cfg(feature = "mutants")]
impl std::str::FromStr for Planted {
    type Err = String;
    fn from_str(text: &str) -> Result<Planted, String> {
        let found = Planted::all().into_iter().find(|planted| planted.name() == text);
        found.ok_or_else(|| format!("no planted bug is called {text:?}"))
    }
}

/// Runs a seed from start to end.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut rng = Rng::new(seed);
    let profile = Profile::draw(&mut rng);
    let profile = options.profile.unwrap_or(profile);
    let mut shape = faults::shape(&mut rng, profile);
    shape.clients = shape.clients.min(options.clients_max.unwrap_or(u64::MAX));
    let mut world = World::new(rng.next_u64(), shape);
    world.trace = options.trace;
    #[cfg(feature = "mutants")]
    {
        match options.mutant {
            Some(Planted::Core(mutant)) => world.mutant = Some(mutant),
            Some(Planted::Log(mutant)) => world.log_mutant = Some(mutant),
            Some(Planted::Shell(mutant)) => world.shell_mutant = Some(mutant),
            None => {}
        }
    }
    let started = world.now;
    let until = started + rng.between(FAULTY_US.0, FAULTY_US.1);
    let until = until.min(options.faults_until_us.map_or(u64::MAX, |us| started + us));
    let mut faults = Faults::new(rng.fork(), profile, until, options.skip.clone());
    let violation = guarded(|| life(&mut world, &mut faults, &mut rng, until)).err().map(|v| v.0);
    let simulated_us = world.now - started;
    let operations = world.calls.count() as u64;
    let enough_calls = operations * 1_000_000 >= CALLS_PER_SECOND_MIN * simulated_us;
    let enough_faults = world.faults * FAULT_EVERY_US >= until - started;
    let mut counts = world.counts.clone();
    counts.insert("lost messages", world.net.lost);
    counts.insert("duplicated messages", world.net.duplicated);
    counts.insert("reordered messages", world.net.overtaken);
    counts.insert("late messages", world.net.stragglers);
    counts.insert("messages to a stuck receiver", world.net.waited);
    let refused = world.members.values().map(|member| member.storage.disk.refused_late_count());
    counts.insert("disk full at a flush", refused.sum());
    counts.insert("torn sectors", world.members.values().map(|member| member.storage.disk.torn_count()).sum());
    Outcome {
        seed,
        profile: profile.name(),
        simulated_us,
        operations,
        counts_honestly: enough_calls && enough_faults,
        counts,
        trace_hash: world.trace_hash(),
        most_terms: world.most_terms,
        lasted_us: world.now - started,
        faults: faults.caused.into_iter().map(|(number, at, kind)| (number, at - started, kind)).collect(),
        violation,
    }
}

/// A panic of the core is a broken invariant that it saw itself: a violation like any other.
fn guarded(body: impl FnOnce() -> Result<(), Violation>) -> Result<(), Violation> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    })
}

fn life(world: &mut World, faults: &mut Faults, rng: &mut Rng, until: u64) -> Result<(), Violation> {
    world.start()?;
    world.schedule_fault(1_000_000);
    world.run(until, &mut |world| faults.next(world))?;
    heal(world, rng)?;
    serve(world)?;
    converge(world)?;
    world.check_answered(ANSWER_US)?;
    world.check_history()
}

/// Ends every fault. A random minority may stay down for good.
fn heal(world: &mut World, rng: &mut Rng) -> Result<(), Violation> {
    world.net.heal();
    world.forget_links();
    for id in world.ids() {
        world.heal_member(id);
        world.restart(id)?;
    }
    // Pauses and restarts that were planned before end by themselves within this time; whoever comes back takes part.
    let settle = world.now + 3_000_000;
    world.run(settle, &mut |_| Ok(()))?;
    // Only now: a change that was still on its way may make the very member that is spared one of a quorum (a leader
    // that removes one of three while another dies can be elected by nobody, and rightly so).
    let config = world.config().clone();
    let dead = config.voters.iter().filter(|id| world.is_dead(**id)).count();
    let may_spare = config.voters.len() >= 3 && !config.is_joint() && dead == 0 && world.is_config_settled();
    let spare = config.voters.iter().copied().find(|_| may_spare && rng.chance(200));
    spare.map_or(Ok(()), |id| world.crash(id, true))
}

fn serve(world: &mut World) -> Result<(), Violation> {
    let before = world.acknowledged();
    let serve_us = if world.shape.mixed_timeouts { SERVE_MIXED_US } else { SERVE_US };
    let limit = world.now + serve_us;
    while world.now < limit {
        let next = world.now + 100_000;
        world.run(next, &mut |_| Ok(()))?;
        if world.acknowledged() > before + 5 {
            return Ok(());
        }
    }
    Err(Violation(format!(
        "I18 healed, but only {} writes acknowledged within {serve_us} µs; {}",
        world.acknowledged() - before,
        world.describe()
    )))
}

fn converge(world: &mut World) -> Result<(), Violation> {
    world.stop_clients();
    let limit = world.now + CONVERGE_US;
    while world.now < limit {
        let next = world.now + 200_000;
        world.run(next, &mut |_| Ok(()))?;
        let states = world.states();
        let equal = states.windows(2).all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2));
        if equal && !states.is_empty() && !world.config().is_joint() {
            return Ok(());
        }
    }
    Err(Violation(format!("I3 healed, but members did not converge: {:?}; {}", world.states(), world.describe())))
}
