//! Which process may speak for a member: the rule its peers judge a data directory by.
//!
//! Each start of a data directory raises its generation and draws a nonce. A lower generation than one seen before is an
//! old copy; an equal one with another nonce is a second copy, or a member that lost its disk and begins anew under its
//! old id. Neither may vote: what it promised is forgotten. Peers keep what they saw durably, before they listen.

/// One start of one data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Boot {
    pub generation: u64,
    /// Random, drawn at the start.
    pub nonce: u64,
}

/// Why a peer is not who it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Imposture {
    #[error(
        "its data directory is at generation {told}, but {seen} was seen before: an old copy, or its disk was lost; \
         replace it under a new id"
    )]
    OldCopy { told: u64, seen: u64 },
    #[error(
        "two data directories at generation {generation} with one id: a copy, or its disk was lost; replace it under \
         a new id"
    )]
    Twin { generation: u64 },
}

/// Judges what a member tells of itself against the newest start of it that was seen.
///
/// # Errors
/// The peer is refused. Not every copy shows: one that was started more often than the original passes.
pub fn judge(seen: Option<Boot>, told: Boot) -> Result<(), Imposture> {
    match seen {
        Some(seen) if seen.generation > told.generation => {
            Err(Imposture::OldCopy { told: told.generation, seen: seen.generation })
        }
        Some(seen) if seen.generation == told.generation && seen.nonce != told.nonce => {
            Err(Imposture::Twin { generation: told.generation })
        }
        Some(_) | None => Ok(()),
    }
}
