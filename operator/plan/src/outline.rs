//! The plan that is shown: the step at hand and what is expected after it. Nothing here is executed.

use crate::observation::{MemberRecord, RetireReason};
use crate::planner::Pass;
use crate::report::{Decision, Operation, PlannedStep, UPCOMING_MAX};
use crate::view::Leader;

const ADD: [&str; 6] = ["CreateMember", "CreateVolume", "AddLearner", "RecordMemberId", "StartMember", "Promote"];
const REMOVE: [&str; 5] = ["MarkRetiring", "RemoveMember", "StopMember", "DeleteVolume", "DropRecord"];
const ROLL: [&str; 2] = ["ApplyTemplate", "RestartMember"];

pub(crate) fn outline(pass: &Pass<'_>, next: &Decision) -> Vec<PlannedStep> {
    let mut lines = Vec::new();
    match next {
        Decision::Act(step) => {
            lines.push(PlannedStep { step: step.name(), member: step.member().map(str::to_owned), waits: None });
        }
        Decision::Wait(waiting) => lines.push(PlannedStep {
            step: waiting_step(pass.report.operation),
            member: pass.report.member.clone(),
            waits: Some(waiting.clone()),
        }),
        Decision::Steady | Decision::Blocked(_) => return lines,
    }
    if let Some(leader) = pass.view.leader {
        after(pass, leader, &mut lines);
    }
    lines.truncate(UPCOMING_MAX);
    lines
}

/// What a wait holds up.
fn waiting_step(operation: Option<Operation>) -> &'static str {
    match operation {
        Some(Operation::Bootstrap) => "RecordBootstrap",
        Some(Operation::ScaleOut) => "Promote",
        Some(Operation::ReplaceMember) => "SwapVoter",
        Some(Operation::ScaleIn) => "RemoveMember",
        Some(Operation::Upgrade) => "RestartMember",
        Some(Operation::Delete) => "Finish",
        None => "Observe",
    }
}

/// The rest of the operation at hand, then whole operations: additions, changed templates, removals.
fn after(pass: &Pass<'_>, leader: Leader<'_>, lines: &mut Vec<PlannedStep>) {
    let keepers = pass.keepers(leader);
    let coming = pass.view.records.values().filter(|r| r.retirement.is_none() && !keepers.contains(r)).count();
    let first = lines.first().cloned();
    if let Some(first) = &first {
        for chain in [&ADD[..], &REMOVE[..], &ROLL[..]] {
            if let Some(at) = chain.iter().position(|step| *step == first.step) {
                push(lines, &chain[at + 1..], first.member.as_deref());
            }
        }
    }
    let creating = usize::from(first.is_some_and(|f| f.step == "CreateMember"));
    let missing = pass.cluster.replicas.saturating_sub(keepers.len() + coming + creating);
    (0..missing).for_each(|_| push(lines, &ADD, None));
    let current = |r: &&&MemberRecord| r.template_hash != pass.template_hash;
    keepers.iter().filter(current).for_each(|r| push(lines, &ROLL, Some(&r.name)));
    let leaving = pass.view.records.values().filter(|r| r.retirement.as_ref().is_some_and(is_scale_in)).count();
    let surplus = keepers.len().saturating_sub(pass.cluster.replicas + leaving);
    (0..surplus).for_each(|_| push(lines, &REMOVE, None));
}

fn is_scale_in(retirement: &crate::observation::Retirement) -> bool {
    retirement.reason == RetireReason::ScaleIn
}

fn push(lines: &mut Vec<PlannedStep>, steps: &[&'static str], member: Option<&str>) {
    lines.extend(steps.iter().map(|step| PlannedStep { step, member: member.map(str::to_owned), waits: None }));
}
