//! The two clocks of the daemon: the wall's for stamps, which decides nothing, and the boot-time
//! clock, which the jail shares.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since boot, suspends included.
pub fn boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Unix milliseconds now.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
