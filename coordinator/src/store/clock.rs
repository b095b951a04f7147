//! The clock that the engine is given: boot-time progress from one reading of the database's
//! clock, so that it neither jumps nor depends on this machine's date.

use chrono::{DateTime, Utc};
use rustix::time::{ClockId, clock_gettime};

use crate::engine::types::Time;

/// Database time, read once, carried on by the boot-time clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    database_ms: u64,
    boot_ms: u64,
}

impl Clock {
    /// A clock that shows `database` now.
    #[must_use]
    pub fn new(database: DateTime<Utc>) -> Self {
        Self { database_ms: u64::try_from(database.timestamp_millis()).unwrap_or(0), boot_ms: boot_ms() }
    }

    #[must_use]
    pub fn now(&self) -> Time {
        Time(self.database_ms + boot_ms().saturating_sub(self.boot_ms))
    }
}

/// Milliseconds on the boot-time clock.
#[must_use]
pub fn boot_ms() -> u64 {
    boot_us() / 1000
}

/// Microseconds on the boot-time clock.
#[must_use]
pub fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_nsec.cast_unsigned() / 1000
}

/// The engine's time as the database writes it.
#[must_use]
pub fn stamp(time: Time) -> DateTime<Utc> {
    i64::try_from(time.0).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::UNIX_EPOCH)
}

/// The database's time as the engine reads it.
#[must_use]
pub fn unstamp(stamp: DateTime<Utc>) -> Time {
    Time(u64::try_from(stamp.timestamp_millis()).unwrap_or(0))
}
