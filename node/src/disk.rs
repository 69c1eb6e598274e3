//! What the disk under the log says of itself, for those who let state grow and for people. Numbers only: who decides
//! is the driver and the services.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_log::Space;

/// Shared by the log thread, the scrub and everybody who asks.
#[derive(Debug, Default)]
pub struct DiskHealth {
    free_bytes: AtomicU64,
    reserved_bytes: AtomicU64,
    is_low: AtomicBool,
    /// This member leads, and nothing that grows may be proposed.
    is_growth_refused: AtomicBool,
    /// Passes of the scrub over all finished segments, and bytes it has read.
    pub scrub_passes: AtomicU64,
    pub scrub_bytes: AtomicU64,
    /// Damage found in finished segments, and how much of it was mended.
    pub rot_found: AtomicU64,
    pub rot_mended: AtomicU64,
}

impl DiskHealth {
    pub(crate) fn note(&self, space: Space) {
        self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        self.reserved_bytes.store(space.reserved_bytes, Ordering::Relaxed);
        let was_low = self.is_low.swap(space.is_low, Ordering::Relaxed);
        if space.is_low && !was_low {
            tracing::warn!(
                free_bytes = space.free_bytes,
                reserved_bytes = space.reserved_bytes,
                "the volume is nearly full: a leader refuses puts; deletes, compaction, reads and votes go on"
            );
        } else if was_low && !space.is_low {
            tracing::info!(free_bytes = space.free_bytes, "the volume has room again: puts are taken");
        }
    }

    /// Free on the volume of the log.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }
    /// Set aside for votes and for what makes room.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }
    /// Nothing that grows should be promised any more.
    pub fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }
    /// Whether this member, as the leader, refuses what grows.
    pub fn is_growth_refused(&self) -> bool {
        self.is_growth_refused.load(Ordering::Relaxed)
    }
    pub(crate) fn refuse_growth(&self, refused: bool) {
        self.is_growth_refused.store(refused, Ordering::Relaxed);
    }
    /// Damage found and not mended: gone only with a repair at the next start, or with the segment.
    pub fn rot_open(&self) -> u64 {
        self.rot_found.load(Ordering::Relaxed).saturating_sub(self.rot_mended.load(Ordering::Relaxed))
    }
}
