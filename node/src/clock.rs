//! The one clock of the driver: CLOCK_BOOTTIME, so that a suspended machine's time counts.

use quorate_raft::types::Time;
use rustix::time::{ClockId, clock_gettime};

/// Microseconds since boot.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("time since boot is not negative");
    let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Time(seconds * 1_000_000 + nanos / 1_000)
}
