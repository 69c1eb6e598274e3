//! The plan that is shown: the step at hand and what is expected after it. Nothing here is executed.

use crate::hands::restart_is_asked;
use crate::observation::{MemberRecord, Running};
use crate::planner::Pass;
use crate::report::{Decision, Operation, PlannedStep, UPCOMING_MAX};
use crate::view::Leader;

const SEED: [&str; 7] =
    ["CreateMember", "CreateVolume", "StartMember", "RecordBootstrap", "RecordMemberId", "SealSeed", "Activate"];
const ADD: [&str; 6] = ["CreateMember", "CreateVolume", "AddLearner", "RecordMemberId", "StartMember", "Promote"];
const REPLACE: [&str; 10] = [
    "MarkRetiring",
    "CreateMember",
    "CreateVolume",
    "AddLearner",
    "RecordMemberId",
    "StartMember",
    "SwapVoter",
    "StopMember",
    "DeleteVolume",
    "DropRecord",
];
/// The silent one is marked only once the other has everything.
const REPLACE_SILENT: [&str; 10] = [
    "CreateMember",
    "CreateVolume",
    "AddLearner",
    "RecordMemberId",
    "StartMember",
    "MarkRetiring",
    "SwapVoter",
    "StopMember",
    "DeleteVolume",
    "DropRecord",
];
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
    rest_of_operation(pass, &mut lines);
    if let Some(leader) = pass.view.leader {
        operations_after(pass, leader, &mut lines);
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
        Some(Operation::ScaleToZero) => "StopMember",
        Some(Operation::Delete) => "Finish",
        None => "Observe",
    }
}

fn rest_of_operation(pass: &Pass<'_>, lines: &mut Vec<PlannedStep>) {
    let Some(first) = lines.first().cloned() else { return };
    let chains: &[&[&'static str]] = match pass.report.operation {
        Some(Operation::Bootstrap) => &[&SEED],
        Some(Operation::ReplaceMember) if pass.silent.is_some() => &[&REPLACE_SILENT],
        Some(Operation::ReplaceMember) => &[&REPLACE],
        Some(Operation::ScaleToZero) => {
            let running = pass.view.records.values().filter(|r| r.running == Running::Started);
            let later = running.filter(|r| Some(&r.name) != first.member.as_ref());
            later.for_each(|r| push(lines, &["StopMember"], Some(&r.name)));
            &[]
        }
        Some(Operation::ScaleOut | Operation::ScaleIn | Operation::Upgrade | Operation::Delete) => {
            &[&ADD, &REMOVE, &ROLL]
        }
        // A step of its own: a member stopped or started by request, a record that comes back.
        None => return,
    };
    for chain in chains {
        if let Some(at) = chain.iter().position(|step| *step == first.step) {
            chain[at + 1..].iter().for_each(|step| push(lines, &[step], member_of(pass, &first, step)));
        }
    }
}

/// In a replacement the one that leaves and the one that comes are two.
fn member_of<'a>(pass: &'a Pass<'_>, first: &'a PlannedStep, step: &str) -> Option<&'a str> {
    if pass.report.operation != Some(Operation::ReplaceMember) {
        return first.member.as_deref();
    }
    if let Some(silent) = pass.silent {
        let leaves = ["MarkRetiring", "StopMember", "DeleteVolume", "DropRecord"].contains(&step);
        return if leaves {
            Some(&silent.name)
        } else {
            pass.report.member.as_deref().filter(|name| *name != silent.name)
        };
    }
    let marking = first.step == "MarkRetiring";
    if ["StopMember", "DeleteVolume", "DropRecord"].contains(&step) {
        let leaving = pass.view.records.values().find(|r| r.retirement.is_some()).map(|r| r.name.as_str());
        return if marking { first.member.as_deref() } else { leaving };
    }
    first.member.as_deref().filter(|_| !marking)
}

/// Whole operations: additions, changed templates, removals.
fn operations_after(pass: &Pass<'_>, leader: Leader<'_>, lines: &mut Vec<PlannedStep>) {
    if pass.cluster.replicas == 0 {
        return;
    }
    let keepers = pass.keepers(leader);
    let coming = pass.view.records.values().filter(|r| r.retirement.is_none() && !keepers.contains(r)).count();
    let creating = usize::from(lines.first().is_some_and(|f| f.step == "CreateMember"));
    let missing = pass.cluster.replicas.saturating_sub(keepers.len() + coming + creating);
    (0..missing).for_each(|_| push(lines, &ADD, None));
    let named = lines.first().and_then(|f| f.member.clone());
    let asked = |r: &&&MemberRecord| restart_is_asked(pass, r) && Some(&r.name) != named.as_ref();
    keepers.iter().filter(asked).for_each(|r| push(lines, &["RestartMember"], Some(&r.name)));
    let later = |r: &&&MemberRecord| r.template_hash != pass.template_hash && Some(&r.name) != named.as_ref();
    keepers.iter().filter(later).for_each(|r| push(lines, &ROLL, Some(&r.name)));
    let marking =
        lines.first().is_some_and(|f| f.step == "MarkRetiring") && pass.report.operation == Some(Operation::ScaleIn);
    let surplus = keepers.len().saturating_sub(pass.cluster.replicas + usize::from(marking));
    (0..surplus).for_each(|_| push(lines, &REMOVE, None));
}

fn push(lines: &mut Vec<PlannedStep>, steps: &[&'static str], member: Option<&str>) {
    lines.extend(steps.iter().map(|step| PlannedStep { step, member: member.map(str::to_owned), waits: None }));
}
