//! Which steps wait for a person, and what a person allows.
//!
//! What begins something waits; what was begun goes on, or a change would be left half done by an approval that is missing.
//! An approval names one change of one generation, so that it is moot once the spec is edited again.

use quorate_api::Approval;

use crate::mutants::{Mutant, is_planted};
use crate::observation::RetireReason;
use crate::planner::Pass;
use crate::report::{Blocked, Decision, Operation};
use crate::step::{Eviction, RecordFor, Step};

pub(crate) fn hold_for_approval(pass: &mut Pass<'_>, decided: Decision) -> Decision {
    let waits = match (&decided, pass.cluster.approval) {
        (_, Approval::Automatic) | (Decision::Steady | Decision::Wait(_) | Decision::Blocked(_), _) => return decided,
        (Decision::Act(step), Approval::Disruptive) => disrupts(pass, step),
        (Decision::Act(step), Approval::Manual) => disrupts(pass, step) || begins(step),
    };
    let operation = pass.report.operation.map_or("", Operation::as_str);
    let one = pass.report.operation == Some(Operation::ReplaceMember);
    let member = pass.report.member.as_deref().filter(|_| one).unwrap_or_default();
    let hash = pass.cluster.plan_hash(operation, member);
    pass.report.plan_hash = Some(hash.clone());
    let Decision::Act(step) = &decided else { return decided };
    if !waits || pass.cluster.approved.as_ref() == Some(&hash) || is_planted(Mutant::IgnoreApproval) {
        return decided;
    }
    Decision::Blocked(Blocked::ApprovalNeeded { step: step.name(), hash })
}

/// Stops a voter that is well, moves leadership, or decides that a voter leaves.
fn disrupts(pass: &Pass<'_>, step: &Step) -> bool {
    match step {
        Step::RestartMember { evict, .. } => *evict == Eviction::Evict,
        // A person's request for just this is the approval.
        Step::TransferLeader { .. } => pass.report.operation.is_some(),
        Step::ApplyTemplate { record, .. } => {
            pass.view.leader.is_some_and(|l| pass.keepers(l).iter().any(|r| r.uid == record.uid))
        }
        Step::MarkRetiring { reason, .. } => matches!(reason, RetireReason::ScaleIn | RetireReason::VolumeChange),
        Step::StopMember { .. } => pass.report.operation == Some(Operation::ScaleToZero),
        Step::AddFinalizer
        | Step::ApplyObjects { .. }
        | Step::SetBudget { .. }
        | Step::CreateMember { .. }
        | Step::CreateVolume { .. }
        | Step::AdoptVolume { .. }
        | Step::AddLearner { .. }
        | Step::RecordMemberId { .. }
        | Step::StartMember { .. }
        | Step::RecordBootstrap { .. }
        | Step::SealSeed { .. }
        | Step::Activate { .. }
        | Step::Promote { .. }
        | Step::RemoveMember { .. }
        | Step::SwapVoter { .. }
        | Step::DeletePod { .. }
        | Step::DeleteVolume { .. }
        | Step::ReleaseVolume { .. }
        | Step::DropRecord { .. }
        | Step::GrowVolume { .. }
        | Step::Finish => false,
    }
}

fn begins(step: &Step) -> bool {
    match step {
        // A record that comes back is no beginning: its member is in the configuration.
        Step::CreateMember { purpose, .. } => !matches!(purpose, RecordFor::Returning(_)),
        // For one that is silent, the new member was the beginning.
        Step::MarkRetiring { reason, .. } => !matches!(reason, RetireReason::Abandoned | RetireReason::Unreachable),
        Step::GrowVolume { .. } => true,
        _ => false,
    }
}
