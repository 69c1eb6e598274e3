//! Planted bugs: each is one rule of the log switched off by name, so that a checker can be seen to catch it.
//!
//! Only under the feature `mutants`; a release build does not contain them.

use std::str::FromStr;

/// One planted bug.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mutant {
    /// A batch counts as durable before it is flushed.
    AppendWithoutFlush,
    /// A flush that failed is taken for one that worked.
    FlushErrorIgnored,
    /// Damage in the middle is cut like a torn tail.
    RotCutAsTorn,
    /// A new segment is used before its name is durable.
    NoDirectorySync,
    /// Recovery reads the page cache and flushes nothing.
    TailTrustedUnflushed,
    /// A truncation keeps one entry too many.
    TruncateOffByOne,
    /// A segment goes away while entries above the mark are in it.
    SegmentDroppedEarly,
    /// A new segment does not repeat term and vote.
    CheckpointForgetsVote,
    /// A new segment does not repeat the snapshot mark.
    CheckpointForgetsMark,
    /// A mark keeps entries of a log that does not hold it.
    MarkKeepsAlienLog,
}

impl Mutant {
    pub const ALL: &'static [Mutant] = &[
        Mutant::AppendWithoutFlush,
        Mutant::FlushErrorIgnored,
        Mutant::RotCutAsTorn,
        Mutant::NoDirectorySync,
        Mutant::TailTrustedUnflushed,
        Mutant::TruncateOffByOne,
        Mutant::SegmentDroppedEarly,
        Mutant::CheckpointForgetsVote,
        Mutant::CheckpointForgetsMark,
        Mutant::MarkKeepsAlienLog,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mutant::AppendWithoutFlush => "append-without-flush",
            Mutant::FlushErrorIgnored => "flush-error-ignored",
            Mutant::RotCutAsTorn => "rot-cut-as-torn",
            Mutant::NoDirectorySync => "no-directory-sync",
            Mutant::TailTrustedUnflushed => "tail-trusted-unflushed",
            Mutant::TruncateOffByOne => "truncate-off-by-one",
            Mutant::SegmentDroppedEarly => "segment-dropped-early",
            Mutant::CheckpointForgetsVote => "checkpoint-forgets-vote",
            Mutant::CheckpointForgetsMark => "checkpoint-forgets-mark",
            Mutant::MarkKeepsAlienLog => "mark-keeps-alien-log",
        }
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Mutant, String> {
        let found = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == text);
        found.ok_or_else(|| format!("no planted bug of the log is called {text:?}"))
    }
}
