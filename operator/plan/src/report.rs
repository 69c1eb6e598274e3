//! What planning returns: at most one step, what follows it, and why nothing more is done now, with the numbers that decided.

use std::fmt;

use quorate_api::names;

use crate::observation::MemberId;
use crate::step::Step;

/// The whole answer of one planning pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub next: Decision,
    /// What is expected to follow, in order; shown, never executed. At most `UPCOMING_MAX`.
    pub upcoming: Vec<PlannedStep>,
    pub report: Report,
}

/// `status.plan` holds no more than this, so that a status stays small.
pub const UPCOMING_MAX: usize = 16;

/// Outcome of planning. `Wait` and `Blocked` are not errors: both are shown as conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing to do: what was asked for is what is.
    Steady,
    Act(Step),
    /// Resolves by itself.
    Wait(Waiting),
    /// Needs a person.
    Blocked(Blocked),
}

impl Decision {
    /// How long a shell waits before it observes again when no event comes first, in milliseconds.
    pub fn requeue_after_ms(&self) -> u64 {
        match self {
            Decision::Act(_) => 0,
            Decision::Wait(_) => 1_000,
            Decision::Steady | Decision::Blocked(_) => 5_000,
        }
    }
}

/// One line of the plan that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    pub step: &'static str,
    pub member: Option<String>,
    pub waits: Option<Waiting>,
}

/// The operation in progress, as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Bootstrap,
    ScaleOut,
    ScaleIn,
    Upgrade,
    ReplaceMember,
    ScaleToZero,
    Delete,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Bootstrap => "Bootstrap",
            Operation::ScaleOut => "ScaleOut",
            Operation::ScaleIn => "ScaleIn",
            Operation::Upgrade => "Upgrade",
            Operation::ReplaceMember => "ReplaceMember",
            Operation::ScaleToZero => "ScaleToZero",
            Operation::Delete => "Delete",
        }
    }
}

/// What the pass found out besides its decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub operation: Option<Operation>,
    /// The member the operation is about.
    pub member: Option<String>,
    /// Members of the configuration that belong to no record and carry no name of ours.
    pub foreign: Vec<MemberId>,
    /// Names what waits for approval, or was approved.
    pub plan_hash: Option<String>,
    /// Everything else worth telling, one sentence each, in a stable order.
    pub notes: Vec<String>,
}

/// Why nothing may be done now. Each resolves without a person, and carries the numbers that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// A part of the world could not be read.
    ObservationIncomplete { what: String },
    /// Nobody leads, or the leader has not confirmed itself lately.
    NoLeader { answering: usize, voters: usize },
    /// A configuration change is not committed yet, or a joint one not left.
    ChangeInFlight,
    /// The member's pod does not answer yet.
    MemberStarting { member: String, reason: String },
    /// Nobody hears the member; it is replaced once that has lasted long enough, and the others are a quorum.
    MemberSilent { member: String, silent_ms: u64, replaced_after_ms: u64, reason: String },
    /// The learner is behind.
    LearnerBehind { member: String, entries_behind: u64, entries_max: u64 },
    /// Too few voters are caught up to take one down.
    NoMargin { member: String, caught_up: usize, needed: usize },
    /// A membership change would leave no live, caught-up majority.
    QuorumAtRisk { member: String, caught_up_after: usize, quorum_after: usize },
    /// The new member would give one failure domain a majority.
    DomainMajority { member: String, domain: String, inside: usize, inside_max: usize },
    /// The leader was asked to hand over and still leads.
    LeaderMoving { from: MemberId, to: MemberId },
    /// Another voter is down already, and one at a time is.
    OneAtATime { member: String, other: String },
    /// Nobody can take over from the leader.
    NoSuccessor { leader: MemberId },
    /// The pod has not ended yet.
    PodStopping { member: String },
    /// The volume is not gone yet.
    VolumeDeleting { member: String },
    /// The record is not gone yet.
    RecordDeleting { member: String },
}

impl Waiting {
    /// A stable word for conditions, metrics and scripts.
    pub fn reason(&self) -> &'static str {
        match self {
            Waiting::ObservationIncomplete { .. } => "ObservationIncomplete",
            Waiting::NoLeader { .. } => "NoLeader",
            Waiting::ChangeInFlight => "ChangeInFlight",
            Waiting::MemberStarting { .. } => "MemberStarting",
            Waiting::MemberSilent { .. } => "MemberSilent",
            Waiting::LearnerBehind { .. } => "LearnerBehind",
            Waiting::NoMargin { .. } => "NoMargin",
            Waiting::QuorumAtRisk { .. } => "QuorumAtRisk",
            Waiting::DomainMajority { .. } => "DomainMajority",
            Waiting::LeaderMoving { .. } => "LeaderMoving",
            Waiting::OneAtATime { .. } => "OneAtATime",
            Waiting::NoSuccessor { .. } => "NoSuccessor",
            Waiting::PodStopping { .. } => "PodStopping",
            Waiting::VolumeDeleting { .. } => "VolumeDeleting",
            Waiting::RecordDeleting { .. } => "RecordDeleting",
        }
    }

    /// The two numbers of `status.plan`: what there is and what it takes.
    pub fn have_need(&self) -> Option<(u64, u64)> {
        match self {
            Waiting::LearnerBehind { entries_behind, entries_max, .. } => Some((*entries_behind, *entries_max)),
            Waiting::MemberSilent { silent_ms, replaced_after_ms, .. } => {
                Some((silent_ms / 1_000, replaced_after_ms / 1_000))
            }
            Waiting::DomainMajority { inside, inside_max, .. } => Some((*inside as u64, *inside_max as u64)),
            Waiting::NoMargin { caught_up, needed, .. } => Some((*caught_up as u64, *needed as u64)),
            Waiting::QuorumAtRisk { caught_up_after, quorum_after, .. } => {
                Some((*caught_up_after as u64, *quorum_after as u64))
            }
            Waiting::NoLeader { answering, voters } => Some((*answering as u64, *voters as u64)),
            Waiting::ObservationIncomplete { .. }
            | Waiting::ChangeInFlight
            | Waiting::MemberStarting { .. }
            | Waiting::LeaderMoving { .. }
            | Waiting::OneAtATime { .. }
            | Waiting::NoSuccessor { .. }
            | Waiting::PodStopping { .. }
            | Waiting::VolumeDeleting { .. }
            | Waiting::RecordDeleting { .. } => None,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::ObservationIncomplete { what } => write!(f, "cannot read {what}"),
            Waiting::NoLeader { answering, voters } => {
                write!(f, "no leader is confirmed by a majority; {answering} of {voters} voters answer")
            }
            Waiting::ChangeInFlight => write!(f, "a membership change is not committed yet"),
            Waiting::MemberStarting { member, reason } => write!(f, "{member} does not answer yet: {reason}"),
            Waiting::MemberSilent { member, silent_ms, replaced_after_ms, reason } => write!(
                f,
                "nobody has heard {member} for {} s ({reason}); it is replaced after {} s",
                silent_ms / 1_000,
                replaced_after_ms / 1_000
            ),
            Waiting::LearnerBehind { member, entries_behind, entries_max } => {
                write!(f, "learner {member} is {entries_behind} entries behind, promoted at {entries_max} or fewer")
            }
            Waiting::NoMargin { member, caught_up, needed } => {
                write!(f, "{member} may not go down: {caught_up} voters are caught up, {needed} are needed before")
            }
            Waiting::QuorumAtRisk { member, caught_up_after, quorum_after } => write!(
                f,
                "{member} may not be changed: {caught_up_after} caught-up voters would remain for a quorum of {quorum_after}"
            ),
            Waiting::DomainMajority { member, domain, inside, inside_max } => write!(
                f,
                "with {member} in it, {domain} would hold {inside} voters, a majority; at most {inside_max} may be there. Give \
                 members room elsewhere"
            ),
            Waiting::LeaderMoving { from, to } => write!(f, "leadership moves from {from} to {to}"),
            Waiting::OneAtATime { member, other } => {
                write!(f, "{member} stays up: {other} is down, and one voter at a time is taken down")
            }
            Waiting::NoSuccessor { leader } => write!(f, "no caught-up follower can take over from leader {leader}"),
            Waiting::PodStopping { member } => write!(f, "the pod of {member} has not ended yet"),
            Waiting::VolumeDeleting { member } => write!(f, "the volume of {member} is not gone yet"),
            Waiting::RecordDeleting { member } => write!(f, "the record of {member} is not gone yet"),
        }
    }
}

/// Why nothing may be done until a person acts; the text names the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// The spec is refused as a whole, without effect.
    InvalidSpec { problems: Vec<String> },
    /// `spec.paused` is set, and there would be something to do.
    Paused { step: &'static str },
    /// Volumes of this incarnation exist, so a new cluster would hide what they hold.
    BootstrapRefused { volumes: usize },
    /// Too few voters have a disk left to ever elect a leader.
    QuorumLost { with_disk: usize, quorum: usize },
    /// Two members of the configuration carry one record's name.
    AmbiguousMember { name: String },
    /// Somebody else's learner holds the one place for learners.
    ForeignLearner { id: MemberId },
    /// A new template did not come up; the roll stopped after this member.
    CanaryFailed { member: String, reason: String },
    /// `spec.approval` asks a person first.
    ApprovalNeeded { step: &'static str, hash: String },
    /// Stopped by a person, and nothing else is to be done.
    MemberFenced { members: Vec<String> },
    /// A request in an annotation cannot be read.
    RequestRefused { problems: Vec<String> },
}

impl Blocked {
    pub fn reason(&self) -> &'static str {
        match self {
            Blocked::InvalidSpec { .. } => "InvalidSpec",
            Blocked::Paused { .. } => "Paused",
            Blocked::BootstrapRefused { .. } => "BootstrapRefused",
            Blocked::QuorumLost { .. } => "QuorumLost",
            Blocked::AmbiguousMember { .. } => "AmbiguousMember",
            Blocked::ForeignLearner { .. } => "ForeignLearner",
            Blocked::CanaryFailed { .. } => "CanaryFailed",
            Blocked::ApprovalNeeded { .. } => "WaitingForApproval",
            Blocked::MemberFenced { .. } => "MemberFenced",
            Blocked::RequestRefused { .. } => "RequestRefused",
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocked::InvalidSpec { problems } => write!(f, "{}", problems.join("; ")),
            Blocked::Paused { step } => {
                write!(f, "spec.paused is true; {step} would be next. Set it to false to go on")
            }
            Blocked::BootstrapRefused { volumes } => write!(
                f,
                "{volumes} volume(s) of this cluster exist but no record of it: a new cluster would hide their data. \
                 Recreate the member records, or delete the volumes if their data is not wanted"
            ),
            Blocked::QuorumLost { with_disk, quorum } => write!(
                f,
                "{with_disk} voters still have their disk and {quorum} are needed. Bring a lost volume back; \
                 nothing is rebuilt without its data"
            ),
            Blocked::AmbiguousMember { name } => {
                write!(f, "two members are named {name}. Remove the one that was added by hand")
            }
            Blocked::ForeignLearner { id } => write!(
                f,
                "learner {id} was added by somebody else, and there is one learner at a time. Promote or remove it"
            ),
            Blocked::CanaryFailed { member, reason } => write!(
                f,
                "{member} did not come up on the new template ({reason}); no other member was touched. \
                 Correct or revert the spec"
            ),
            Blocked::ApprovalNeeded { step, hash } => write!(
                f,
                "{step} is next and waits for approval: set the annotation {}={hash}, or spec.approval to Automatic",
                names::ANNOTATION_APPROVE
            ),
            Blocked::MemberFenced { members } => {
                write!(f, "fenced by request: {}. Unfence to start what is stopped", members.join(", "))
            }
            Blocked::RequestRefused { problems } => write!(f, "{}", problems.join("; ")),
        }
    }
}
