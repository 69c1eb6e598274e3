//! Guards that tests take away one at a time, to show that each is held by a test. Without the feature `mutants` none can be.

/// A guard of the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Takes a voter down without counting who is left.
    NoMarginBeforeRestart,
    /// Removes a voter without counting who is left.
    NoMarginBeforeRemoval,
    /// Promotes a learner that is still behind.
    PromoteWithoutCatchUp,
    /// Removes or restarts the leader without moving leadership first.
    NoTransferFirst,
    /// Stops a member before its removal is committed.
    StopBeforeRemoval,
    /// Deletes a volume while its pod may still run.
    VolumeBeforePod,
    /// Removes a voter without a durable mark.
    RemoveWithoutMark,
    /// Believes a leader that no majority confirmed lately.
    BelieveUnconfirmedLeader,
    /// Makes a new cluster although volumes of this one exist.
    BootstrapOverVolumes,
    /// Rolls on while the first member on a new template is not caught up.
    NoCanary,
    /// Removes a lost voter before its replacement caught up.
    RemoveBeforeReplacement,
    /// Decides from absences although something could not be read.
    IgnoreUnread,
    /// Acts while paused.
    IgnorePause,
    /// Leaves the seed able to make a new cluster on an empty disk.
    NeverSealSeed,
    /// Sets the budget to a bare majority.
    BudgetOfQuorumOnly,
    /// Moves leadership although the term it was asked for in is over.
    ObeyOldTransfer,
    /// Stops a fenced voter without counting who is left.
    NoMarginBeforeFence,
    /// Takes a voter down by request while another is down.
    TwoAtOnce,
    /// Starts a member again that is to stay stopped.
    StartFenced,
    /// Scaled to zero, stops the leader while others still follow it.
    StopLeaderFirst,
    /// Wakes a cluster without the members that were about to leave it.
    WakeWithoutLeavers,
    /// Takes a step that was to wait for a person.
    IgnoreApproval,
    /// Leaves every volume of the wrong size or class at once.
    MoveAllAtOnce,
    /// Replaces a silent member whatever time has passed.
    ReplaceTooSoon,
    /// Replaces a silent member while nobody shows that the template works.
    ReplaceUnproven,
    /// Swaps a silent member out without a durable mark.
    SwapUnmarked,
    /// Lets a replacement give one zone a majority.
    BuildDomainMajority,
    /// Takes a member for one that is down while the roll restarts it, and removes it before the others are rolled.
    ShrinkBeforeRoll,
    /// Counts on a member whose pod ends, as long as it answers.
    EndingPodCounts,
}

impl Mutant {
    pub const ALL: [Mutant; 29] = [
        Mutant::NoMarginBeforeRestart,
        Mutant::NoMarginBeforeRemoval,
        Mutant::PromoteWithoutCatchUp,
        Mutant::NoTransferFirst,
        Mutant::StopBeforeRemoval,
        Mutant::VolumeBeforePod,
        Mutant::RemoveWithoutMark,
        Mutant::BelieveUnconfirmedLeader,
        Mutant::BootstrapOverVolumes,
        Mutant::NoCanary,
        Mutant::RemoveBeforeReplacement,
        Mutant::IgnoreUnread,
        Mutant::IgnorePause,
        Mutant::NeverSealSeed,
        Mutant::BudgetOfQuorumOnly,
        Mutant::ObeyOldTransfer,
        Mutant::NoMarginBeforeFence,
        Mutant::TwoAtOnce,
        Mutant::StartFenced,
        Mutant::StopLeaderFirst,
        Mutant::WakeWithoutLeavers,
        Mutant::IgnoreApproval,
        Mutant::MoveAllAtOnce,
        Mutant::ReplaceTooSoon,
        Mutant::ReplaceUnproven,
        Mutant::SwapUnmarked,
        Mutant::BuildDomainMajority,
        Mutant::ShrinkBeforeRoll,
        Mutant::EndingPodCounts,
    ];
}

#[cfg(feature = "mutants")]
mod planted {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Takes one guard away from every later pass on this thread.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    pub(crate) fn is_planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub(crate) use planted::is_planted;
#[cfg(feature = "mutants")]
pub use planted::plant;

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_planted(_: Mutant) -> bool {
    false
}
