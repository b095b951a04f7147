//! Waiting on a condition with a deadline: the only place where a test lets time pass.

use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(25);

/// Asks `condition` until it gives a value. Panics after `limit`, naming `what` was awaited.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    match within(limit, &mut condition) {
        Some(value) => value,
        None => panic!("not within {limit:?}: {what}"),
    }
}

/// Asks `condition` until it gives a value or `limit` has passed.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        pause(STEP);
    }
}

/// Watches that `condition` keeps holding for `time`; for what must not happen.
#[track_caller]
pub fn holds(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let broken = within(time, || (!condition()).then_some(()));
    assert!(broken.is_none(), "did not hold for {time:?}: {what}");
}

#[expect(clippy::disallowed_methods, reason = "the one place that waits between two looks at a condition")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Seconds, for short calls.
#[must_use]
pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
