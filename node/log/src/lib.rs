//! The durable log of one member: what a promise rests on.
//!
//! `FORMAT.md` draws the bytes. [`Log`] is written against [`Disk`], so production ([`RealDisk`]) and simulator
//! ([`FaultyDisk`]) run the same code. Must not know the network, the clock or what an entry means. Left out in this
//! version: reuse of dropped segments.

#[cfg(feature = "mutants")]
macro_rules! planted {
    ($options:expr, $variant:ident) => {
        $options.mutant == Some(crate::mutant::Mutant::$variant)
    };
}
#[cfg(not(feature = "mutants"))]
macro_rules! planted {
    ($options:expr, $variant:ident) => {{
        let _: &Options = &$options;
        false
    }};
}

mod disk;
mod error;
pub mod faulty;
pub mod format;
mod identity;
mod log;
#[cfg(feature = "mutants")]
pub mod mutant;
mod real;
mod recover;
mod repair;
mod room;
mod scrub;

pub use disk::{Disk, FileId};
pub use error::{Identity, LogError, Verdict};
pub use faulty::FaultyDisk;
pub use identity::{Boot, Imposture, LINEAGE_MAX, Lineage, judge};
pub use log::{Log, Options, SEGMENT_BYTES_DEFAULT, Space};
pub use real::RealDisk;
pub use repair::{ASIDE_SUFFIX, Mended, Progress, Repair, Wanted};
pub use room::{ROOM_BELIEVED_US, ROOM_TOLD_EVERY_US, Rooms};
pub use scrub::{Scrub, Scrubbed};
