//! How long a transfer may go without progress while the coordinator is there. A coordinator that is
//! away costs nothing of that time: what waits for it is not lost, however long that takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::code::{CODE_HEADER, Code};
use tokio::time::Instant;
use tonic::Status;

use super::transfer::BlobError;

/// When one try of a transfer went forward last.
#[derive(Clone, Debug)]
pub struct Watch {
    began: Instant,
    last: Arc<Mutex<Instant>>,
}

impl Watch {
    pub fn new() -> Self {
        let began = Instant::now();
        Self { began, last: Arc::new(Mutex::new(began)) }
    }

    /// A piece has gone over.
    pub fn progress(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when nothing has gone over for so long.
    pub async fn stands_still(&self, bound: Duration) {
        loop {
            let until = self.last() + bound;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// The time that one transfer has stood still, over all its tries.
#[derive(Debug)]
pub struct Stall {
    bound: Duration,
    spent: Duration,
    /// When the last try failed, the coordinator there: waiting for the next one counts as well.
    failed: Option<Instant>,
}

impl Stall {
    pub fn new(bound: Duration) -> Self {
        Self { bound, spent: Duration::ZERO, failed: None }
    }

    /// What is left for the next try.
    pub fn left(&self) -> Duration {
        self.bound.saturating_sub(self.spent)
    }

    /// What was gained is kept: all of the time is there again.
    pub fn reset(&mut self) {
        (self.spent, self.failed) = (Duration::ZERO, None);
    }

    /// A try failed so. An error when that was the last one.
    pub fn after(&mut self, status: &Status, watch: &Watch) -> Result<(), BlobError> {
        // An answer of the coordinator itself, and not one that says that it serves nobody now.
        let there = status.metadata().contains_key(CODE_HEADER) && Code::of(status) != Code::Unavailable;
        if !there {
            self.failed = None;
        } else if self.is_over(watch.began, watch.last(), Instant::now()) {
            return Err(BlobError::Stalled { after: self.bound, why: status.message().to_owned() });
        }
        Ok(())
    }

    /// A try went from `began` to `now`, forward until `last`: whether it was the last one.
    fn is_over(&mut self, began: Instant, last: Instant, now: Instant) -> bool {
        let waited = self.failed.map_or(Duration::ZERO, |before| began.saturating_duration_since(before));
        self.spent += waited + now.saturating_duration_since(last);
        self.failed = Some(now);
        self.spent >= self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn standing_still_is_counted_over_all_tries_and_going_forward_is_not() {
        let mut stall = Stall::new(10 * SECOND);
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        // An hour forward and three seconds without an answer, then two until the next try.
        assert!(!stall.is_over(at(0), at(3600), at(3603)));
        assert_eq!(stall.left(), 7 * SECOND);
        assert!(!stall.is_over(at(3605), at(3605), at(3609)));
        assert_eq!(stall.left(), SECOND);
        assert!(stall.is_over(at(3610), at(3700), at(3700)), "the wait before it counts as well");
        stall.reset();
        assert!(!stall.is_over(at(5000), at(5000), at(5009)));
    }

    #[test]
    fn a_coordinator_that_is_away_costs_nothing() {
        let mut stall = Stall::new(SECOND);
        let long_ago = Instant::now().checked_sub(100 * SECOND).unwrap();
        let watch = Watch { began: long_ago, last: Arc::new(Mutex::new(long_ago)) };
        stall.after(&Code::Unavailable.status("no leader here"), &watch).unwrap();
        // Words of the transport, not of the coordinator.
        stall.after(&Status::unknown("transport error"), &watch).unwrap();
        stall.after(&Status::internal("h2 protocol error"), &watch).unwrap();
        assert_eq!(stall.left(), SECOND);
        let error = stall.after(&Code::Internal.status("its disk fails"), &watch).unwrap_err().to_string();
        assert_eq!(error, "no progress in 1s with the coordinator there: its disk fails");
    }
}
