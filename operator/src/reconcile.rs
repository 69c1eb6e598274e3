//! One pass: observe, validate, plan, act, tell. The same for every world.
//!
//! A pass never asks why it was called, takes at most one step, and builds the status on every path from the observation its
//! plan was made on. A glance is a pass that takes none.

use quorate_api::{ConsistentClusterStatus, names};
use quorate_plan::{Decision, Intent, Plan, StatusInput, Step};
use tracing::Instrument;

use crate::clock;
use crate::members::{self, Members};
use crate::world::{ActError, Observer, Performer, Seen};

/// What one pass did and found.
#[derive(Debug)]
pub struct Pass {
    pub seen: Seen,
    pub plan: Plan,
    pub status: ConsistentClusterStatus,
    pub acted: Acted,
}

#[derive(Debug)]
pub enum Acted {
    /// There was no step to take.
    Nothing,
    Done(Step),
    Refused(Step, ActError),
}

impl Pass {
    pub fn failure(&self) -> Option<String> {
        match &self.acted {
            Acted::Refused(step, error @ ActError::Failed(_)) => Some(format!("{}: {error}", step.name())),
            Acted::Refused(_, ActError::News(_)) | Acted::Done(_) | Acted::Nothing => None,
        }
    }
}

/// Runs one pass over a world.
pub async fn pass<W: Observer + Performer + Sync>(
    world: &W,
    members: &Members,
    intent: &Intent,
    previous: Option<&ConsistentClusterStatus>,
) -> Pass {
    let identity = intent.identity();
    let span = tracing::info_span!("reconcile", cluster = %format!("{}/{}", identity.namespace, identity.name), operation = tracing::field::Empty);
    in_span(world, members, intent, previous).instrument(span).await
}

async fn in_span<W: Observer + Performer + Sync>(
    world: &W,
    members: &Members,
    intent: &Intent,
    previous: Option<&ConsistentClusterStatus>,
) -> Pass {
    let mut seen = world.observe(intent).await;
    let intent = &intent.settled(&seen.observation);
    world.equip(intent, &mut seen).await;
    // After the objects, so that no word is older than the record it is joined with.
    members.ask(&mut seen).await;
    let plan = planned(intent, &seen);
    if let Some(operation) = plan.report.operation {
        tracing::Span::current().record("operation", operation.as_str());
    }
    let acted = match &plan.next {
        Decision::Act(step) => act(world, members, intent, step, &seen).await,
        Decision::Steady | Decision::Wait(_) | Decision::Blocked(_) => Acted::Nothing,
    };
    told(intent, Pass { seen, plan, status: ConsistentClusterStatus::default(), acted }, previous)
}

/// Runs one pass on a reading that may lag. Nothing when there is none, or when a step follows from it: what a step rests on is
/// read live.
pub async fn glance<W: Observer + Sync>(
    world: &W,
    members: &Members,
    intent: &Intent,
    previous: Option<&ConsistentClusterStatus>,
) -> Option<Pass> {
    let identity = intent.identity();
    let span = tracing::info_span!("glance", cluster = %format!("{}/{}", identity.namespace, identity.name));
    let mut seen = world.glance(intent).instrument(span).await?;
    let intent = &intent.settled(&seen.observation);
    members.ask(&mut seen).await;
    let plan = planned(intent, &seen);
    match plan.next {
        Decision::Act(_) => return None,
        Decision::Steady | Decision::Wait(_) | Decision::Blocked(_) => {}
    }
    let pass = Pass { seen, plan, status: ConsistentClusterStatus::default(), acted: Acted::Nothing };
    Some(told(intent, pass, previous))
}

fn planned(intent: &Intent, seen: &Seen) -> Plan {
    let seed = names::seed(&intent.identity().uid);
    quorate_plan::plan(intent, &seen.observation, clock::now_ms(), seed)
}

fn told(intent: &Intent, mut pass: Pass, previous: Option<&ConsistentClusterStatus>) -> Pass {
    pass.status = quorate_plan::status(StatusInput {
        intent,
        observed: &pass.seen.observation,
        plan: &pass.plan,
        previous,
        now_ms: clock::now_ms(),
        failure: pass.failure().as_deref(),
    });
    pass
}

async fn act<W: Observer + Performer + Sync>(
    world: &W,
    members: &Members,
    intent: &Intent,
    step: &Step,
    seen: &Seen,
) -> Acted {
    let outcome = match members::call_of(step, |record| world.urls(intent, record)) {
        Ok(Some(call)) => members.call(call, seen).await,
        Ok(None) => world.act(intent, step, seen).await,
        Err(error) => Err(error),
    };
    let (name, member) = (step.name(), step.member().unwrap_or_default());
    match outcome {
        Ok(()) => {
            tracing::info!(step = name, member, "done");
            Acted::Done(step.clone())
        }
        Err(error @ ActError::News(_)) => {
            tracing::debug!(step = name, member, "not taken, observing again: {error}");
            Acted::Refused(step.clone(), error)
        }
        Err(error @ ActError::Failed(_)) => {
            tracing::warn!(step = name, member, "failed: {error}");
            Acted::Refused(step.clone(), error)
        }
    }
}
