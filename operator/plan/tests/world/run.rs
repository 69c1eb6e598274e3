//! Runs a scenario: observe, plan, act, tick; and once more for every step with something going wrong around it.

use quorate_plan::{Decision, Observation, Plan, Step, plan};

use super::World;

/// Passes until a phase must have settled: more than any clean run takes, less than patience.
const PASSES_MAX: usize = 900;
/// After the end nothing may be done for ten minutes, in ticks of one second.
const QUIET_TICKS: usize = 600;

pub enum Phase {
    /// The scenario's own deed.
    Do(fn(&mut World)),
    /// Goes on until this many steps were taken.
    Steps(usize),
    /// Goes on until nothing is to be done.
    Settle,
    /// Goes on until a person is needed, for this reason.
    Blocked(&'static str),
    /// Time passes; the operator looks on.
    Ticks(usize),
}

pub struct Scenario {
    pub name: &'static str,
    pub replicas: i32,
    pub phases: Vec<Phase>,
}

/// What goes wrong around one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    CrashBefore,
    CrashAfter,
    /// Applied, and the shell was told it failed.
    ReplyLost,
    /// Not applied: another writer was first.
    Conflict,
    /// Not applied, and time went by.
    Timeout,
    /// Applied, after the planner decided anew without it.
    AppliedLate,
    /// Applied, and the next readings of objects are from before it.
    StaleObjects,
    /// Applied, and the next readings of everything are from before it.
    StaleEverything,
}

impl Fault {
    pub const ALL: [Fault; 8] = [
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::ReplyLost,
        Fault::Conflict,
        Fault::Timeout,
        Fault::AppliedLate,
        Fault::StaleObjects,
        Fault::StaleEverything,
    ];
}

const STALE_PASSES: usize = 3;
const CRASH_TICKS: usize = 7;

pub struct Outcome {
    pub summary: String,
    pub steps: usize,
    pub trace: Vec<String>,
}

struct Runner {
    world: World,
    /// Steps asked for.
    taken: usize,
    /// Steps that were carried out.
    applied: usize,
    fault: Option<(usize, Fault)>,
    stale: Option<(Observation, usize, Fault)>,
    /// The last plan was made on an old reading.
    was_stale: bool,
    late: Option<Step>,
    /// A second operator believes it leads, and acts on the reading of the pass before.
    second: Option<Observation>,
    trace: Vec<String>,
}

/// Runs a scenario, with a fault around its n-th mutating step if one is given.
///
/// # Errors
/// The first violation, or what did not settle, with the trace.
pub fn run(scenario: &Scenario, fault: Option<(usize, Fault)>) -> Result<Outcome, String> {
    run_with(scenario, fault, None)
}

/// Runs a scenario with two operators, the second always one reading behind.
///
/// # Errors
/// As `run`.
pub fn run_with_two(scenario: &Scenario) -> Result<Outcome, String> {
    run_with(scenario, None, Some(Observation::default()))
}

fn run_with(
    scenario: &Scenario,
    fault: Option<(usize, Fault)>,
    second: Option<Observation>,
) -> Result<Outcome, String> {
    let world = World::new(scenario.replicas);
    let mut runner = Runner {
        world,
        taken: 0,
        applied: 0,
        fault,
        stale: None,
        was_stale: false,
        late: None,
        second,
        trace: Vec::new(),
    };
    for phase in &scenario.phases {
        runner.phase(phase).map_err(|text| failure(scenario, fault, &runner, &text))?;
    }
    let quiet = runner.quiet();
    quiet.map_err(|text| failure(scenario, fault, &runner, &text))?;
    Ok(Outcome { summary: runner.world.summary(), steps: runner.taken, trace: runner.trace })
}

fn failure(scenario: &Scenario, fault: Option<(usize, Fault)>, runner: &Runner, text: &str) -> String {
    let tail = runner.trace.len().saturating_sub(25);
    format!(
        "{} with {fault:?}: {text}\n  {}\n  {}",
        scenario.name,
        runner.world.summary(),
        runner.trace[tail..].join("\n  ")
    )
}

impl Runner {
    fn phase(&mut self, phase: &Phase) -> Result<(), String> {
        match phase {
            Phase::Do(deed) => {
                deed(&mut self.world);
                self.trace.push("-- the scenario acts".to_owned());
                Ok(())
            }
            Phase::Steps(count) => {
                let goal = self.applied + count;
                self.until("steps", |runner, _| runner.applied >= goal)
            }
            Phase::Settle => {
                self.until("settled", |runner, plan| runner.is_undisturbed() && matches!(plan.next, Decision::Steady))
            }
            Phase::Blocked(reason) => self.until(reason, |runner, plan| {
                runner.is_undisturbed() && matches!(&plan.next, Decision::Blocked(b) if b.reason() == *reason)
            }),
            Phase::Ticks(count) => (0..*count).try_for_each(|_| self.pass().map(|_| ())),
        }
    }

    fn is_undisturbed(&self) -> bool {
        !self.was_stale && self.late.is_none()
    }

    fn until(&mut self, what: &str, reached: impl Fn(&Runner, &Plan) -> bool) -> Result<(), String> {
        for _ in 0..PASSES_MAX {
            let plan = self.pass()?;
            if self.world.finished || reached(self, &plan) {
                return Ok(());
            }
        }
        Err(format!("not {what} after {PASSES_MAX} passes"))
    }

    fn quiet(&mut self) -> Result<(), String> {
        let before = self.taken;
        for _ in 0..QUIET_TICKS / 10 {
            (0..9).for_each(|_| self.world.tick());
            self.pass()?;
        }
        if self.taken != before { Err("steps were taken after the goal was reached".to_owned()) } else { Ok(()) }
    }

    fn observation(&mut self) -> Observation {
        let fresh = self.world.observe();
        self.was_stale = self.stale.is_some();
        let Some((old, left, fault)) = self.stale.take() else { return fresh };
        if left > 1 {
            self.stale = Some((old.clone(), left - 1, fault));
        }
        if fault == Fault::StaleEverything {
            old
        } else {
            Observation { words: fresh.words, probe: fresh.probe, ..old }
        }
    }

    fn pass(&mut self) -> Result<Plan, String> {
        let observed = self.observation();
        let plan = plan(&self.world.intent(), &observed, self.world.now_ms, quorate_api::names::seed("c1"));
        if let Decision::Act(step) = &plan.next
            && !self.world.finished
        {
            self.act(step, &observed);
        }
        self.second_acts(observed);
        self.world.tick();
        match self.world.violations.first() {
            Some(violation) => Err(format!("VIOLATION: {violation}")),
            None => Ok(plan),
        }
    }

    fn second_acts(&mut self, now: Observation) {
        let Some(before) = self.second.replace(now.clone()) else {
            self.second = None;
            return;
        };
        // Without the finalizer it has not read anything yet.
        let started = before.objects.finalizer == quorate_plan::Presence::Present;
        let plan = plan(&self.world.intent(), &before, self.world.now_ms, quorate_api::names::seed("c1"));
        if let Decision::Act(step) = &plan.next
            && started
            && !self.world.finished
        {
            self.apply(step, "second: ");
        }
    }

    fn act(&mut self, step: &Step, observed: &Observation) {
        let hit = self.fault.filter(|(at, _)| *at == self.taken).map(|(_, fault)| fault);
        self.taken += 1;
        match hit {
            None => self.apply(step, ""),
            Some(Fault::CrashBefore) => {
                self.trace.push(format!("crash before {step:?}"));
                (0..CRASH_TICKS).for_each(|_| self.world.tick());
            }
            Some(Fault::CrashAfter) => {
                self.apply(step, "crash after ");
                (0..CRASH_TICKS).for_each(|_| self.world.tick());
            }
            Some(Fault::ReplyLost) => self.apply(step, "reply lost: "),
            Some(Fault::Conflict) => self.trace.push(format!("conflict at {step:?}")),
            Some(Fault::Timeout) => {
                self.trace.push(format!("timeout of {step:?}"));
                (0..3).for_each(|_| self.world.tick());
            }
            Some(Fault::AppliedLate) => {
                self.trace.push(format!("late: {step:?}"));
                self.late = Some(step.clone());
                return;
            }
            Some(fault @ (Fault::StaleObjects | Fault::StaleEverything)) => {
                self.stale = Some((observed.clone(), STALE_PASSES, fault));
                self.apply(step, "then stale: ");
            }
        }
        if let Some(late) = self.late.take() {
            self.apply(&late, "at last: ");
        }
    }

    fn apply(&mut self, step: &Step, how: &str) {
        let outcome = self.world.apply(step);
        self.applied += usize::from(outcome.is_ok());
        let shown = outcome.map_or_else(|refused| format!(" -> refused: {}", refused.0), |()| String::new());
        self.trace.push(format!("{how}{step:?}{shown}"));
    }
}

/// Runs a scenario cleanly, then with every fault around every of its steps: the number of runs, and what failed.
pub fn enumerate(scenario: &Scenario) -> (usize, Vec<String>) {
    let clean = match run(scenario, None) {
        Ok(clean) => clean,
        Err(text) => return (1, vec![text]),
    };
    let mut failures = Vec::new();
    for at in 0..clean.steps {
        for fault in Fault::ALL {
            match run(scenario, Some((at, fault))) {
                Ok(outcome) if outcome.summary == clean.summary => {}
                Ok(outcome) => failures.push(format!(
                    "{} with {fault:?} at {at} ends differently\n  {}\n  {}\n  {}",
                    scenario.name,
                    clean.summary,
                    outcome.summary,
                    outcome.trace.join("\n  ")
                )),
                Err(text) => failures.push(text),
            }
        }
    }
    (1 + clean.steps * Fault::ALL.len(), failures)
}
