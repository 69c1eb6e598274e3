//! What the disk under the log says of itself, for those who let state grow and for people. Numbers only: who decides
//! is the driver and the services.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_log::Space;
use quorate_raft::quorum::majority;
use quorate_raft::types::{Config, MemberId};
use quorate_state::{Command, TxnOp};

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

/// Whether a leader must refuse what grows: its own volume is nearly full, or those of so many voters that no majority is
/// left without. A follower cannot refuse what the leader sends, so the leader must not send it.
pub(crate) fn must_not_grow(leader: MemberId, config: &Config, is_low: impl Fn(MemberId) -> bool) -> bool {
    let lacks = |voters: &std::collections::BTreeSet<MemberId>| {
        let with_room = voters.iter().filter(|id| !is_low(**id)).count();
        !voters.is_empty() && with_room < majority(voters.len())
    };
    is_low(leader) || lacks(&config.voters) || lacks(&config.voters_outgoing)
}

/// Whether carrying out the command can make the state larger. What frees room must stay possible on a full volume.
pub(crate) fn grows(command: &Command) -> bool {
    fn any_put(ops: &[TxnOp]) -> bool {
        ops.iter().any(|op| match op {
            TxnOp::Put(_) => true,
            TxnOp::Txn(txn) => any_put(&txn.success) || any_put(&txn.failure),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) => false,
        })
    }
    match command {
        Command::DeleteRange(_) | Command::Compact { .. } => false,
        Command::Txn(txn) => any_put(&txn.success) || any_put(&txn.failure),
        // Whatever else there is: only what is known to free room passes.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_ends_when_no_majority_has_room_or_the_leader_has_none() {
        let ids = |numbers: &[u64]| numbers.iter().map(|id| MemberId(*id)).collect();
        let config = Config { voters: ids(&[1, 2, 3]), ..Config::default() };
        let low = |low: &'static [u64]| move |id: MemberId| low.contains(&id.0);
        assert!(!must_not_grow(MemberId(1), &config, low(&[])));
        assert!(!must_not_grow(MemberId(1), &config, low(&[3])), "one follower behind is none that commits");
        assert!(must_not_grow(MemberId(1), &config, low(&[2, 3])));
        assert!(must_not_grow(MemberId(1), &config, low(&[1])));
        let joint = Config { voters_outgoing: ids(&[4, 5, 6]), ..config };
        assert!(must_not_grow(MemberId(1), &joint, low(&[4, 5])), "both halves must have room");
        assert!(!must_not_grow(MemberId(1), &joint, low(&[3, 4])));
    }

    #[test]
    fn what_makes_room_does_not_grow() {
        use quorate_state::{DeleteRange, KeyRange, Put, Txn};
        let put = Put { key: "k".into(), ..Put::default() };
        let delete = DeleteRange { range: KeyRange::one("k"), prev_kv: false };
        assert!(grows(&Command::Put(put.clone())));
        assert!(!grows(&Command::DeleteRange(delete.clone())));
        assert!(!grows(&Command::Compact { revision: 3 }));
        let deleting = Txn { success: vec![TxnOp::DeleteRange(delete)], ..Txn::default() };
        assert!(!grows(&Command::Txn(deleting.clone())));
        let nested =
            Txn { failure: vec![TxnOp::Txn(Txn { success: vec![TxnOp::Put(put)], ..deleting })], ..Txn::default() };
        assert!(grows(&Command::Txn(nested)));
    }
}
