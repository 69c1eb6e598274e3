//! Which process may speak for a member: the rule its peers judge a data directory by.
//!
//! Each start of a data directory raises its generation and draws a nonce, and the directory remembers the starts before
//! it. A lower generation than one seen before is an old copy; another nonce at the generation that was seen, now or among
//! the earlier starts, is a second copy, or a member that lost its disk and begins anew under its old id. Neither may vote:
//! what it promised is forgotten. Peers keep what they saw durably, before they listen.

/// Earlier starts a directory remembers. A copy that was started more often than this, after the last start its peers have
/// seen of the original, no longer shows.
pub const LINEAGE_MAX: usize = 64;

/// One start of one data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Boot {
    pub generation: u64,
    /// Random, drawn at the start.
    pub nonce: u64,
}

/// The starts before the current one, newest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lineage {
    /// Generations begin at 1: 0 is none.
    boots: [Boot; LINEAGE_MAX],
}

impl Default for Lineage {
    fn default() -> Lineage {
        Lineage { boots: [Boot::default(); LINEAGE_MAX] }
    }
}

impl Lineage {
    /// Of these, newest first; as many as are remembered.
    pub fn of(boots: impl IntoIterator<Item = Boot>) -> Lineage {
        let mut lineage = Lineage::default();
        for (place, boot) in lineage.boots.iter_mut().zip(boots) {
            *place = boot;
        }
        lineage
    }

    /// What comes after `boot`.
    #[must_use]
    pub fn after(&self, boot: Boot) -> Lineage {
        Lineage::of(std::iter::once(boot).chain(self.boots()))
    }

    pub fn boots(&self) -> impl Iterator<Item = Boot> {
        self.boots.into_iter().take_while(|boot| boot.generation > 0)
    }

    fn at(&self, generation: u64) -> Option<Boot> {
        self.boots().find(|boot| boot.generation == generation)
    }
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

/// Judges what a member tells of itself, with the starts `before` this one, against the newest start of it that was seen.
///
/// # Errors
/// The peer is refused. Not every copy shows: one taken after the last start that was seen passes, and so does one whose
/// starts before are forgotten ([`LINEAGE_MAX`]).
pub fn judge(seen: Option<Boot>, told: Boot, before: &Lineage) -> Result<(), Imposture> {
    let Some(seen) = seen else { return Ok(()) };
    if seen.generation > told.generation {
        return Err(Imposture::OldCopy { told: told.generation, seen: seen.generation });
    }
    // A start whose slot was damaged is missing in the lineage: that says nothing.
    let then = if seen.generation == told.generation { Some(told) } else { before.at(seen.generation) };
    match then {
        Some(then) if then.nonce != seen.nonce => Err(Imposture::Twin { generation: seen.generation }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(generation: u64, nonce: u64) -> Boot {
        Boot { generation, nonce }
    }

    #[test]
    fn a_copy_shows_however_often_it_was_started() {
        let original = Lineage::of([boot(2, 20), boot(1, 10)]);
        let seen = Some(boot(3, 30));
        assert_eq!(judge(seen, boot(3, 30), &original), Ok(()));
        assert_eq!(judge(seen, boot(4, 40), &original.after(boot(3, 30))), Ok(()), "started again");
        let mut copy = original;
        for generation in 3..20 {
            copy = copy.after(boot(generation, 99));
        }
        assert_eq!(judge(seen, boot(20, 99), &copy), Err(Imposture::Twin { generation: 3 }));
        assert_eq!(judge(seen, boot(2, 99), &original), Err(Imposture::OldCopy { told: 2, seen: 3 }));
        assert_eq!(judge(seen, boot(3, 99), &original), Err(Imposture::Twin { generation: 3 }));
    }

    #[test]
    fn what_is_not_known_is_not_held_against_a_member() {
        assert_eq!(judge(None, boot(9, 1), &Lineage::default()), Ok(()));
        let with_a_gap = Lineage::of([boot(2, 20), boot(1, 10)]);
        assert_eq!(judge(Some(boot(3, 30)), boot(5, 50), &with_a_gap), Ok(()), "the slot of 3 was damaged");
    }

    #[test]
    fn the_oldest_start_is_forgotten_first() {
        let many = (1..=100).fold(Lineage::default(), |before, generation| before.after(boot(generation, 1)));
        assert_eq!(many.boots().count(), LINEAGE_MAX);
        assert_eq!(many.boots().next(), Some(boot(100, 1)));
        assert_eq!(many.boots().last(), Some(boot(101 - LINEAGE_MAX as u64, 1)));
    }
}
