//! Planted bugs: each is one rule of the core switched off by name, so that a checker can be seen to catch it.
//!
//! Only under the feature `mutants`; a release build does not contain them.

use std::fmt;
use std::str::FromStr;

/// Which part of the core a planted bug belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Area {
    Votes,
    Commit,
    Reads,
    Leases,
    Replication,
    Snapshots,
    Membership,
}

macro_rules! mutants {
    ($($(#[doc = $rule:literal])+ $area:ident $variant:ident = $name:literal,)+) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Mutant {
            $($(#[doc = $rule])+ $variant,)+
        }

        impl Mutant {
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)+
                }
            }

            pub fn area(self) -> Area {
                match self {
                    $(Mutant::$variant => Area::$area,)+
                }
            }

            /// What the member does with this bug and must not do.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Mutant::$variant => concat!($($rule,)+).trim_ascii(),)+
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
    Votes VoteNotPersisted = "vote-not-persisted",
    /// An append is answered before the write it promises is durable.
    Replication AckBeforeFsync = "ack-before-fsync",
    /// A new leader appends no entry of its own term and counts as ready at once.
    Commit NoOwnTermNoop = "no-own-term-noop",
    /// An entry of an older term is committed by counting (Figure 8).
    Commit CommitOlderTermByCounting = "commit-older-term-by-counting",
    /// A vote is given without looking at the candidate's log.
    Votes VoteWithoutLogCheck = "vote-without-log-check",
    /// A heartbeat answer reports the durable index of a tail that no append of this term matched.
    Commit HeartbeatMatchesLog = "heartbeat-matches-log",
    /// A heartbeat's commit index is taken beyond what an append of this term matched.
    Commit HeartbeatCommitAboveMatch = "heartbeat-commit-above-match",
    /// A refused pre-vote carries the term asked for instead of the voter's own.
    Votes PreVoteRejectionWithoutTerm = "pre-vote-rejection-without-term",
    /// The quorum index is taken from the list as it comes.
    Commit UnsortedQuorum = "unsorted-quorum",
    /// A leader that hears no majority goes on leading.
    Votes NoCheckQuorum = "no-check-quorum",
    /// A voter that heard its leader just now votes for somebody else all the same.
    Votes VoteDespiteContact = "vote-despite-contact",
    /// A voter votes right after its start.
    Votes VoteAfterRestart = "vote-after-restart",
    /// A leader whose disk hangs goes on leading.
    Commit StalledLeaderStays = "stalled-leader-stays",
    /// The leader counts its own log before its disk holds it.
    Commit LeaderCountsUnsynced = "leader-counts-unsynced",
    /// A candidate asks for votes before its own vote is durable.
    Votes VoteRequestBeforeFsync = "vote-request-before-fsync",
    /// A read is answered without a heartbeat round.
    Reads ReadWithoutRound = "read-without-round",
    /// A new leader answers reads before its no-op is committed.
    Reads ReadBeforeReady = "read-before-ready",
    /// Reads that wait are forgotten when leadership is lost.
    Reads ReadsLostOnStepDown = "reads-lost-on-step-down",
    /// A durable index from before a truncation still counts.
    Replication AckFromBeforeTruncation = "ack-from-before-truncation",
    /// A snapshot at or below commit is installed.
    Snapshots SnapshotBelowCommit = "snapshot-below-commit",
    /// A snapshot the log does not hold leaves the old tail in place.
    Snapshots LogKeptUnderSnapshot = "log-kept-under-snapshot",
    /// A snapshot leaves the old configuration in place.
    Snapshots SnapshotKeepsConfig = "snapshot-keeps-config",
    /// A follower behind the kept log gets nothing.
    Snapshots NoSnapshotBehindLog = "no-snapshot-behind-log",
    /// A snapshot that came to nothing is sent again at once.
    Snapshots SnapshotWithoutPause = "snapshot-without-pause",
    /// A lost append keeps its place in the window.
    Replication WindowLeakedOnDrop = "window-leaked-on-drop",
    /// After a loss the leader forgets what was received and is not durable, and sends one window more.
    Replication ProbeForgetsWindow = "probe-forgets-window",
    /// A follower takes whatever it is sent, however much waits for its disk.
    Replication UnflushedUnbounded = "unflushed-unbounded",
    /// A candidate begins another term while its vote in the last one is not on disk.
    Votes CampaignUnwritten = "campaign-unwritten",
    /// A transfer hands over to a target that lacks entries, and never ends.
    Replication TransferToLaggingTarget = "transfer-to-lagging-target",
    /// A truncation rolls the log back but not the configuration.
    Membership ConfigNotRolledBack = "config-not-rolled-back",
    /// A configuration counts only once it is committed.
    Membership ConfigActiveOnCommit = "config-active-on-commit",
    /// A change is taken before the leader's own term committed.
    Membership ChangeBeforeReady = "change-before-ready",
    /// A second change is taken while one is not committed.
    Membership TwoChangesInFlight = "two-changes-in-flight",
    /// Compare-and-set is not compared.
    Membership NoCompare = "no-compare",
    /// A change may leave a configuration without a live majority.
    Membership NoLiveMajorityCheck = "no-live-majority-check",
    /// While joint only the new half counts.
    Membership JointCountsNewHalfOnly = "joint-counts-new-half-only",
    /// A joint configuration is left only by the leader that entered it.
    Membership JointNotLeftByNextLeader = "joint-not-left-by-next-leader",
    /// A removed id may come back.
    Membership RemovedIdReused = "removed-id-reused",
    /// A learner counts for commit.
    Membership LearnerCounts = "learner-counts",
    /// The log is cut past what the engine holds.
    Snapshots CutPastPersisted = "cut-past-persisted",
    /// A vote is answered before it is durable.
    Votes VoteReplyBeforeFsync = "vote-reply-before-fsync",
    /// An append or heartbeat of a lower term is not answered, so its sender never learns the term.
    Votes LowerTermIgnored = "lower-term-ignored",
    /// Only a tick moves the clock; messages are handled at the time of the last one.
    Votes StaleClock = "stale-clock",
    /// A voter votes only for whom its own view of the configuration names.
    Votes VoteByOwnConfig = "vote-by-own-config",
    /// The loss of any connection, not only of the leader's, lifts the refusal to vote.
    Votes HintFromAnyPeer = "hint-from-any-peer",
    /// After a broken connection nobody waits a random while, so two followers split the vote.
    Votes HintWithoutWait = "hint-without-wait",
    /// A restarted voter refuses votes for its new election timeout only, not for the larger one it promised before.
    Leases RestartForgetsOldTimeout = "restart-forgets-old-timeout",
    /// A restarted voter refuses to vote for others but campaigns itself before its old promise has run out.
    Leases CampaignInsidePromise = "campaign-inside-promise",
    /// A lease is measured from when the answer came, not from when the heartbeat was sent.
    Leases LeaseFromReceiveTime = "lease-from-receive-time",
    /// A lease lasts for the leader's own election timeout, whatever the voters promised.
    Leases LeaseFromOwnTimeout = "lease-from-own-timeout",
    /// A lease ignores that clocks run at different rates.
    Leases LeaseIgnoresDrift = "lease-ignores-drift",
    /// While joint only the new half's promises count.
    Leases LeaseCountsNewHalfOnly = "lease-counts-new-half-only",
    /// A lease goes on while leadership is handed over.
    Leases LeaseKeptInTransfer = "lease-kept-in-transfer",
    /// A lease comes back after a transfer was given up, though its target may still be told to start.
    Leases LeaseResumedAfterTransfer = "lease-resumed-after-transfer",
    /// A lease is used before the leader's own no-op is applied.
    Leases LeaseBeforeReady = "lease-before-ready",
    /// A lease read needs no round though leases are off.
    Leases LeaseWithoutSetting = "lease-without-setting",
    /// A broken connection lifts the refusal to vote though leases are on.
    Leases HintUnderLease = "hint-under-lease",
    /// A voter that honours broken connections promises to refuse votes all the same.
    Leases PromiseWhileHinting = "promise-while-hinting",
    /// A write that was under way when its entries were truncated counts for the entries that replaced them.
    Replication CompletionAba = "completion-aba",
    /// A leader counts the append answer of an older term.
    Replication AckOfOlderTermCounts = "ack-of-older-term-counts",
    /// An append drops everything behind it, committed or not.
    Replication TruncationBelowCommit = "truncation-below-commit",
    /// One durable answer, enough for a policy, counts as committed.
    Commit PolicyCountsAsCommit = "policy-counts-as-commit",
    /// A heartbeat that overtakes the first append sends the leader back to the first entry.
    Replication ProbeFromTheStart = "probe-from-the-start",
    /// A member whose log is shorter than what it said was durable is fed and counted again.
    Replication LogReversionAccepted = "log-reversion-accepted",
    /// A member that is told that its log lost what it promised goes on all the same.
    Votes ReversionIgnored = "reversion-ignored",
    /// A member whose uncommitted tail a new leader truncated is taken for one that lost its disk.
    Replication TruncationTakenForReversion = "truncation-taken-for-reversion",
    /// A snapshot the log already holds replaces it, with the acknowledged entries behind.
    Snapshots SnapshotDropsTail = "snapshot-drops-tail",
    /// A learner counts for commit while the configuration is joint.
    Membership LearnerCountsWhileJoint = "learner-counts-while-joint",
    /// A removed member is asked for its vote, and it counts.
    Membership RemovedVoteCounts = "removed-vote-counts",
    /// Compare-and-set looks at the index only, which another term may have used too.
    Membership CompareIndexOnly = "compare-index-only",
    /// A change is taken while the configuration is joint.
    Membership ChangeWhileJoint = "change-while-joint",
    /// A new leader leaves a joint configuration before its own term committed.
    Membership JointLeftBeforeReady = "joint-left-before-ready",
    /// Somebody is told to be removed by a configuration that is not committed.
    Membership RemovedToldUncommitted = "removed-told-uncommitted",
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
