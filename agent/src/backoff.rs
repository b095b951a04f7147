//! Waiting before something is tried again: longer each time, up to a bound, with jitter, so that
//! many nodes do not come back at the same moment.

use std::time::Duration;

/// Between tries to reach the coordinator again, unless the configuration says otherwise: at first, and
/// at most, in milliseconds. Short enough that a node whose cable is whole again is back within 5 s with
/// all it has to do then, and that no second in which a flapping link is up goes unused.
pub const RECONNECT_MS: (u64, u64) = (200, 1_000);

/// The waits of one series of tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next wait: between half of the current step and all of it. The step doubles.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] >= Duration::from_millis(100) && waits[0] <= Duration::from_millis(200));
        assert!(waits[10..].iter().all(|wait| (5.0..=10.0).contains(&wait.as_secs_f64())), "{waits:?}");
        assert!(waits[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(200));
    }
}
