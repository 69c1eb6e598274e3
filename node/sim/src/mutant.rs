//! Planted bugs of the shell that the simulator carries itself: each is one rule switched off by name, so that an oracle
//! can be seen to catch it. The core and the log have their own.
//!
//! Only under the feature `mutants`; a release build does not contain them.

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
                let found = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == text);
                found.ok_or_else(|| format!("no planted bug of the shell is called {text:?}"))
            }
        }
    };
}

mutants! {
    /// The engine persists what the local log does not hold durably.
    PersistPastDurable = "engine-persists-past-durable",
    /// An engine beyond its log is not taken as a snapshot mark at start.
    EngineAheadNotMarked = "engine-beyond-log-not-marked",
    /// The engine's position becomes durable apart from its data.
    AppliedApartFromData = "applied-apart-from-data",
    /// Peers listen to a data directory of a lower generation.
    OldCopyAdmitted = "old-copy-admitted",
    /// Peers listen to a second data directory of the same generation.
    TwinAdmitted = "twin-admitted",
    /// A data directory is opened without asking whose it is.
    ForeignDiskOpened = "foreign-disk-opened",
    /// A completion is dropped when much input waits.
    CompletionDropped = "completion-dropped-when-full",
    /// A message leaves before the write it waits for.
    PromiseNotHeld = "promise-not-held",
    /// A failed write counts as done.
    WriteErrorIgnored = "write-error-ignored",
    /// The checksum of a frame is not compared.
    FrameUnchecked = "frame-unchecked",
    /// A leader takes what grows though no majority has room.
    GrowthNotRefused = "growth-not-refused",
    /// A read is answered from a state that is not there yet.
    ReadBeforeApplied = "read-before-applied",
    /// Watchers are not told to read history after a snapshot moved the state.
    WatchSkipsGap = "watch-skips-snapshot-gap",
}
