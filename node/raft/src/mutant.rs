//! Planted bugs: each is one rule of the core switched off by name, so that a checker can be seen to catch it.
//!
//! Only under the feature `mutants`; a release build does not contain them.

use std::fmt;
use std::str::FromStr;

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)+
        }

        impl Mutant {
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)+
                }
            }
        }

        impl FromStr for Mutant {
            type Err = String;

            fn from_str(text: &str) -> Result<Mutant, String> {
                match text {
                    $($name => Ok(Mutant::$variant),)+
                    other => Err(format!("no planted bug is called {other:?}")),
                }
            }
        }
    };
}

mutants! {
    /// A vote is answered without a write of the vote.
    VoteNotPersisted = "vote-not-persisted",
    /// An append or vote is answered before the write it promises is durable.
    AckBeforeFsync = "ack-before-fsync",
    /// A new leader appends no entry of its own term and counts as ready at once.
    NoOwnTermNoop = "no-own-term-noop",
    /// An entry of an older term is committed by counting (Figure 8).
    CommitOlderTermByCounting = "commit-older-term-by-counting",
    /// A vote is given without looking at the candidate's log.
    VoteWithoutLogCheck = "vote-without-log-check",
    /// A heartbeat answer reports the durable index of a tail that no append of this term matched.
    HeartbeatMatchesLog = "heartbeat-matches-log",
    /// A heartbeat's commit index is taken beyond what an append of this term matched.
    HeartbeatCommitAboveMatch = "heartbeat-commit-above-match",
    /// A refused pre-vote carries the term asked for instead of the voter's own.
    PreVoteRejectionWithoutTerm = "pre-vote-rejection-without-term",
    /// The quorum index is taken from the list as it comes.
    UnsortedQuorum = "unsorted-quorum",
    /// A leader that hears no majority goes on leading.
    NoCheckQuorum = "no-check-quorum",
    /// A voter that heard its leader just now votes for somebody else all the same.
    VoteDespiteContact = "vote-despite-contact",
    /// A voter votes right after its start.
    VoteAfterRestart = "vote-after-restart",
    /// A leader whose disk hangs goes on leading.
    StalledLeaderStays = "stalled-leader-stays",
    /// The leader counts its own log before its disk holds it.
    LeaderCountsUnsynced = "leader-counts-unsynced",
    /// A candidate asks for votes before its own vote is durable.
    VoteRequestBeforeFsync = "vote-request-before-fsync",
    /// A read is answered without a heartbeat round.
    ReadWithoutRound = "read-without-round",
    /// A new leader answers reads before its no-op is committed.
    ReadBeforeReady = "read-before-ready",
    /// Reads that wait are forgotten when leadership is lost.
    ReadsLostOnStepDown = "reads-lost-on-step-down",
    /// A durable index from before a truncation still counts.
    AckFromBeforeTruncation = "ack-from-before-truncation",
    /// A snapshot at or below commit is installed.
    SnapshotBelowCommit = "snapshot-below-commit",
    /// A snapshot the log does not hold leaves the old tail in place.
    LogKeptUnderSnapshot = "log-kept-under-snapshot",
    /// A snapshot leaves the old configuration in place.
    SnapshotKeepsConfig = "snapshot-keeps-config",
    /// A follower behind the kept log gets nothing.
    NoSnapshotBehindLog = "no-snapshot-behind-log",
    /// A lost append keeps its place in the window.
    WindowLeakedOnDrop = "window-leaked-on-drop",
    /// A transfer hands over to a target that lacks entries, and never ends.
    TransferToLaggingTarget = "transfer-to-lagging-target",
    /// A truncation rolls the log back but not the configuration.
    ConfigNotRolledBack = "config-not-rolled-back",
    /// A configuration counts only once it is committed.
    ConfigActiveOnCommit = "config-active-on-commit",
    /// A change is taken before the leader's own term committed.
    ChangeBeforeReady = "change-before-ready",
    /// A second change is taken while one is not committed.
    TwoChangesInFlight = "two-changes-in-flight",
    /// Compare-and-set is not compared.
    NoCompare = "no-compare",
    /// A change may leave a configuration without a live majority.
    NoLiveMajorityCheck = "no-live-majority-check",
    /// While joint only the new half counts.
    JointCountsNewHalfOnly = "joint-counts-new-half-only",
    /// A joint configuration is left only by the leader that entered it.
    JointNotLeftByNextLeader = "joint-not-left-by-next-leader",
    /// A removed id may come back.
    RemovedIdReused = "removed-id-reused",
    /// A learner counts for commit.
    LearnerCounts = "learner-counts",
    /// The log is cut past what the engine holds.
    CutPastPersisted = "cut-past-persisted",
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
