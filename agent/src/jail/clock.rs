//! The jail's two clocks: boot time for every duration and deadline, wall time for stamps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since boot, suspends included.
pub fn boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Unix milliseconds.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
