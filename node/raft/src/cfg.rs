//! What a member is told once at start. Bounds are checked by [`Cfg::validate`], not trusted.

use crate::types::MemberId;

/// Lease reads: how far clocks are trusted. One setting for the whole cluster.
///
/// Only for machines whose clocks run on while they are paused or suspended: a hypervisor that stops a guest without
/// moving its clock on rules leases out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseCfg {
    /// Most by which the rates of any two members' clocks differ, in parts per million.
    pub drift_ppm: u32,
    /// Taken off every lease besides, for what is not drift (timer resolution, scheduling), in microseconds.
    pub guard_us: u64,
}

impl LeaseCfg {
    /// 5 % and 10 ms: far beyond what a healthy clock does.
    pub const DEFAULT: LeaseCfg = LeaseCfg { drift_ppm: 50_000, guard_us: 10_000 };

    /// How long a promise of `promise_us` binds its giver, as measured by the slowest clock that may read it.
    pub(crate) fn trusted_us(self, promise_us: u64) -> u64 {
        let kept_ppm = u128::from(PPM.saturating_sub(self.drift_ppm));
        let shrunk = u128::from(promise_us) * kept_ppm / u128::from(PPM);
        u64::try_from(shrunk).unwrap_or(u64::MAX).saturating_sub(self.guard_us)
    }
}

const PPM: u32 = 1_000_000;

/// Timeouts and budgets of one member. Times are microseconds, sizes bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cfg {
    pub id: MemberId,
    /// Election timeout, drawn anew from (min, max) each time. Its lower bound is "ET" in every rule; a leader that hears
    /// nobody lasts for the upper one.
    pub election_us: (u64, u64),
    /// How long after its own start this member refuses votes: the larger of the old and the new ET, because a
    /// restart forgets the leader contact that others rely on.
    pub start_refusal_us: u64,
    pub heartbeat_us: u64,
    /// Carried for the shell, which turns a flush older than this into `Input::DiskStalled`.
    pub stall_us: u64,
    /// Entries of one append add up to at most this (one entry always fits).
    pub max_append_bytes: usize,
    /// Entries sent to one peer and not yet durable there.
    pub inflight_bytes_max: usize,
    /// Entries appended by this leader and not committed yet; proposals above are refused.
    pub uncommitted_bytes_max: usize,
    /// Entries committed and not applied yet; proposals above are refused.
    pub unapplied_bytes_max: usize,
    /// One command.
    pub entry_bytes_max: usize,
    /// Proposals held while leadership moves; more are refused.
    pub held_bytes_max: usize,
    /// Reads waiting for an index; more are refused.
    pub reads_waiting_max: usize,
    /// Tail of the log kept behind the engine's persisted index, so that a slow follower needs no snapshot.
    pub keep_entries: u64,
    pub keep_bytes: usize,
    /// While a snapshot travels the entries behind it are kept too, up to this.
    pub hold_bytes_max: usize,
    /// A voter further behind than this does not count as live when a change is weighed.
    pub live_lag_max: u64,
    /// A broken replication connection lets a follower ask for votes early. Without effect while leases are on.
    pub hint_on_disconnect: bool,
    /// Lease reads; off by default, and a lease read is then a ReadIndex.
    pub leases: Option<LeaseCfg>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::mutant::Mutant>,
}

impl Cfg {
    /// Defaults for members in one region: election timeout 150 to 300 ms, heartbeat 50 ms.
    pub fn lan(id: MemberId) -> Cfg {
        Cfg {
            id,
            election_us: (150_000, 300_000),
            start_refusal_us: 150_000,
            heartbeat_us: 50_000,
            stall_us: 500_000,
            max_append_bytes: 1 << 20,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            unapplied_bytes_max: 64 << 20,
            entry_bytes_max: 2 << 20,
            held_bytes_max: 16 << 20,
            reads_waiting_max: 65_536,
            keep_entries: 10_000,
            keep_bytes: 64 << 20,
            hold_bytes_max: 512 << 20,
            live_lag_max: 10_000,
            hint_on_disconnect: true,
            leases: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Defaults for members far apart: election timeout 1 to 2 s, heartbeat 100 ms.
    pub fn wan(id: MemberId) -> Cfg {
        Cfg {
            election_us: (1_000_000, 2_000_000),
            start_refusal_us: 1_000_000,
            heartbeat_us: 100_000,
            stall_us: 1_000_000,
            ..Cfg::lan(id)
        }
    }

    /// Checks what the core relies on.
    ///
    /// # Errors
    /// The sentence names the setting and the remedy.
    pub fn validate(&self) -> Result<(), String> {
        let (min, max) = self.election_us;
        if self.id.0 == 0 {
            return Err("id is 0, which means nobody; give the member an id".into());
        }
        if self.heartbeat_us == 0 || min < self.heartbeat_us.saturating_mul(3) {
            return Err(format!(
                "election timeout of {min} us is below 3 heartbeats of {} us; raise it or lower the heartbeat",
                self.heartbeat_us
            ));
        }
        if max <= min {
            return Err(format!(
                "election timeouts from {min} to {max} us leave no room for chance; raise the upper one"
            ));
        }
        if self.start_refusal_us < min {
            return Err(format!(
                "start refusal of {} us is below the election timeout of {min} us",
                self.start_refusal_us
            ));
        }
        if self.entry_bytes_max > crate::codec::ENTRY_DATA_BYTES_MAX {
            return Err(format!(
                "entry limit of {} bytes is above the {} that can be sent; lower it",
                self.entry_bytes_max,
                crate::codec::ENTRY_DATA_BYTES_MAX
            ));
        }
        if self.max_append_bytes == 0 || self.inflight_bytes_max == 0 {
            return Err("a replication window of 0 bytes sends nothing; raise it".into());
        }
        if let Some(lease) = self.leases.filter(|lease| lease.trusted_us(min) == 0) {
            return Err(format!(
                "a lease of {min} us with a drift of {} ppm and a guard of {} us is over before it begins; lower them",
                lease.drift_ppm, lease.guard_us
            ));
        }
        Ok(())
    }

    /// Whether a broken connection lifts this voter's refusal. If so it can promise nobody to refuse votes.
    pub(crate) fn honours_hints(&self) -> bool {
        self.hint_on_disconnect && self.leases.is_none()
    }

    /// Entries from leaders that may wait for this member's disk: the window of one leader and that of the next. Beyond
    /// it nothing is taken, so that a disk that hangs costs a bounded amount of memory.
    pub fn unflushed_bytes_max(&self) -> usize {
        2 * (self.inflight_bytes_max + self.max_append_bytes)
    }

    /// ET: the lower bound of the election timeout.
    pub(crate) fn et_us(&self) -> u64 {
        self.election_us.0
    }

    /// A leader that heard no majority for this long steps down: the longest that a follower waits before it stands.
    ///
    /// Earlier would gain nothing, since nobody else need lead yet, and would cost a whole election for answers that are merely
    /// late. etcd's leader looks once per election timeout whether somebody answered since it last looked, so it too lasts
    /// between one and two of them.
    pub(crate) fn quorum_us(&self) -> u64 {
        self.election_us.1
    }
}
