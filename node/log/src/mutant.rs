//! Planted bugs: each is one rule of the log switched off by name, so that a checker can be seen to catch it.
//!
//! Only under the feature `mutants`; a release build does not contain them. `tests/log/mutants.rs` shows what kills each.

use std::str::FromStr;

macro_rules! mutants {
    ($($(#[doc = $rule:literal])* $variant:ident = $name:literal,)+) => {
        /// One planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Mutant {
            $($(#[doc = $rule])* $variant,)+
        }

        impl Mutant {
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)+
                }
            }

            /// What it breaks.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Mutant::$variant => concat!($($rule,)*).trim_ascii(),)+
                }
            }
        }
    };
}

mutants! {
    /// A batch counts as durable before it is flushed (an asynchronous flush taken for a finished one).
    AppendWithoutFlush = "append-without-flush",
    /// A flush that failed is tried again, and the second answer is believed.
    FlushErrorIgnored = "flush-error-ignored",
    /// After an error the log goes on as if nothing had happened.
    ErrorDoesNotStop = "error-does-not-stop",
    /// Damage in the middle is cut like a torn tail.
    RotCutAsTorn = "rot-cut-as-torn",
    /// What is behind a torn batch stays there, to be found behind a later one.
    TornTailNotCleared = "torn-tail-not-cleared",
    /// A new segment is used before its name is durable.
    NoDirectorySync = "no-directory-sync",
    /// Recovery reads the page cache and flushes nothing.
    TailTrustedUnflushed = "tail-trusted-unflushed",
    /// A truncation keeps one entry too many.
    TruncateOffByOne = "truncate-off-by-one",
    /// A segment goes away while entries above the mark are in it.
    SegmentDroppedEarly = "segment-dropped-early",
    /// Segments go away before the mark that makes them needless is durable.
    ClearedBeforeMark = "cleared-before-mark",
    /// A new segment does not repeat term and vote.
    CheckpointForgetsVote = "checkpoint-forgets-vote",
    /// A new segment does not repeat the snapshot mark.
    CheckpointForgetsMark = "checkpoint-forgets-mark",
    /// A mark keeps entries of a log that does not hold it.
    MarkKeepsAlienLog = "mark-keeps-alien-log",
    /// An engine beyond the log is not taken as a mark.
    EngineBeyondLogIgnored = "engine-beyond-log-ignored",
    /// An engine that lost what the log was cut for is accepted.
    EngineBehindAccepted = "engine-behind-accepted",
    /// A vote counts as durable when only the log has it, and no meta slot.
    VoteSentAfterOneCopy = "vote-sent-after-one-copy",
    /// The newer of the two slots is overwritten, so a torn write can lose both.
    NewerSlotOverwritten = "newer-slot-overwritten",
    /// A lost slot together with a cut tail does not forbid to vote.
    LostVoteIgnored = "lost-vote-ignored",
    /// A start does not raise the generation, so a copy looks like the original.
    GenerationNotRaised = "generation-not-raised",
    /// A slot that cannot be read may have held a higher generation; that is forgotten.
    LostSlotGenerationReused = "lost-slot-generation-reused",
    /// A quiet tail is sealed in memory only, so rot in it is later cut as torn.
    SealNotWritten = "seal-not-written",
    /// A segment of another member or place is read as ours.
    ForeignSegmentAccepted = "foreign-segment-accepted",
    /// A batch is taken without looking whether it follows the one before.
    ChainNotChecked = "chain-not-checked",
    /// A full volume refuses everything although a reserve is there.
    ReserveNotUsed = "reserve-not-used",
    /// A spare segment that finds no room when it is flushed ends the member.
    SpareEndsLog = "spare-ends-log",
    /// A failed flush of the spare segment is taken for a want of room.
    SpareErrorForgiven = "spare-error-forgiven",
    /// Room counts as enough until the last byte is gone.
    LowSpaceNotSeen = "low-space-not-seen",
    /// What another member gave is taken without the checksums of what was here.
    RepairUnchecked = "repair-unchecked",
    /// A damaged file is overwritten in its place, so a crash leaves half of each.
    RepairInPlace = "repair-in-place",
    /// The scrub reads what the page cache holds and never the medium's checksums.
    ScrubSkipsBodies = "scrub-skips-bodies",
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Mutant, String> {
        let found = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == text);
        found.ok_or_else(|| format!("no planted bug of the log is called {text:?}"))
    }
}
