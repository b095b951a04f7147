//! Rate limits: a token bucket for each caller, in a map that cannot be flooded.
//!
//! May enter: counting. What is limited, and to how much, is decided where it is used.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh_proto::code::{Code, RETRY_AFTER_HEADER};
use tonic::Status;

/// How much each caller may do.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Calls a second in the long run; more than zero.
    pub per_second: f64,
    /// Calls at once after a pause; at least 1.
    pub burst: f64,
    /// Callers that are told apart. Further ones share one bucket until others are idle.
    pub max_callers: usize,
}

/// Limits the calls of each `K`.
pub struct RateLimiter<K> {
    rate: Rate,
    state: Mutex<State<K>>,
}

struct State<K> {
    buckets: HashMap<K, Bucket>,
    others: Bucket,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Calls made, not yet forgiven.
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn used(&self, rate: &Rate, now: Instant) -> f64 {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (self.used - passed.as_secs_f64() * rate.per_second).max(0.0)
    }

    fn take(&mut self, rate: &Rate, now: Instant) -> Result<(), Duration> {
        let used = self.used(rate, now);
        if used + 1.0 > rate.burst {
            return Err(Duration::from_secs_f64((used + 1.0 - rate.burst) / rate.per_second));
        }
        *self = Self { used: used + 1.0, at: Some(now) };
        Ok(())
    }
}

impl<K: Hash + Eq> RateLimiter<K> {
    pub fn new(rate: Rate) -> Self {
        let state = State { buckets: HashMap::new(), others: Bucket::default(), swept: None };
        Self { rate, state: Mutex::new(state) }
    }

    /// Counts a call, or says after how long the next would be taken.
    pub fn check(&self, caller: K, now: Instant) -> Result<(), Duration> {
        let rate = &self.rate;
        // Nothing that runs under the lock can leave the buckets half changed.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.buckets.len() >= rate.max_callers && !state.buckets.contains_key(&caller) {
            // Once a second at the most, so that a flood of new callers costs no more than that.
            if state.swept.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1)) {
                state.swept = Some(now);
                state.buckets.retain(|_, bucket| bucket.used(rate, now) > 0.0);
            }
            if state.buckets.len() >= rate.max_callers {
                return state.others.take(rate, now);
            }
        }
        state.buckets.entry(caller).or_default().take(rate, now)
    }

    /// The same, as the status that the caller sees.
    pub fn admit(&self, caller: K, now: Instant) -> Result<(), Status> {
        self.check(caller, now).map_err(|wait| {
            let millis = wait.as_millis().max(1) as u64;
            let mut status = Code::Exhausted.status(format!("too many calls: try again in {millis} ms"));
            status.metadata_mut().insert(RETRY_AFTER_HEADER, millis.into());
            status
        })
    }
}

/// What stands for a stranger: the address, of IPv6 the network of 64 bits that one host may fill.
pub fn origin(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => IpAddr::V4(addr),
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 5.0, max_callers: 3 };

    #[test]
    fn a_caller_gets_its_burst_and_then_its_rate() {
        let limiter = RateLimiter::new(RATE);
        let start = Instant::now();
        let taken = |at: u64| {
            (0..100).filter(|_| limiter.check("a", start + Duration::from_millis(at)).is_ok()).count()
        };
        assert_eq!(taken(0), 5);
        let wait = limiter.check("a", start).unwrap_err();
        assert!((wait.as_secs_f64() - 0.1).abs() < 1e-6, "{wait:?}");
        assert_eq!(taken(1000), 5);
        assert_eq!((1..=10).map(|n| taken(1000 + n * 100)).sum::<usize>(), 10);
        assert_eq!(limiter.check("b", start), Ok(()));
    }

    #[test]
    fn a_flood_of_strangers_neither_grows_the_map_nor_hurts_those_it_knows() {
        let limiter = RateLimiter::new(RATE);
        let start = Instant::now();
        for known in [1, 2, 3] {
            limiter.check(known, start).unwrap();
        }
        let let_in = (100..1100).filter(|stranger| limiter.check(*stranger, start).is_ok()).count();
        assert_eq!(let_in, 5, "strangers past the bound share one bucket");
        assert_eq!(limiter.state.lock().unwrap().buckets.len(), 3);
        assert_eq!(limiter.check(1, start), Ok(()));
        // Once those it knew are idle, there is room for others.
        assert_eq!(limiter.check(5000, start + Duration::from_secs(2)), Ok(()));
        assert!(limiter.state.lock().unwrap().buckets.contains_key(&5000));
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let limiter = RateLimiter::new(Rate { per_second: 0.5, burst: 1.0, max_callers: 10 });
        let now = Instant::now();
        limiter.admit("a", now).unwrap();
        let status = limiter.admit("a", now).unwrap_err();
        assert_eq!(Code::of(&status), Code::Exhausted);
        assert_eq!(status.metadata().get(RETRY_AFTER_HEADER).unwrap(), "2000");
    }

    #[test]
    fn one_host_is_one_origin() {
        let of = |text: &str| origin(text.parse().unwrap());
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_eq!(of("2001:db8:1:2:3::1"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_ne!(of("10.0.0.7"), of("10.0.0.8"));
    }
}
