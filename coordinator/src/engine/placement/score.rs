//! The score of a node: what a task that goes there can expect. Lower is better.
//!
//! `score = α·RTT + β·Load + γ·Queue + δ·(1 − Reliability)`, each term within 0 to 1:
//!
//! | term | from | unit | normalised |
//! |---|---|---|---|
//! | RTT | the coordinator, over the live session, smoothed as in RFC 6298 | microseconds | `r / (r + 10 ms)`; unmeasured: ½ |
//! | Load | the agent's heartbeat | thousandths of its processors | `load / 1000`; unknown: 0 |
//! | Queue | the engine: given and not finished | processors asked for | share of twice the node's processors |
//! | Reliability | the engine: ends that were the node's fault, with a prior, ageing | share | as it is |
//!
//! The RTT's form is the Hill curve with coefficient 1: half at 10 ms, strictly growing, so
//! that a node on another continent is still better than one twice as far.

use super::super::{node::Node, types::Time};

/// The round trip that counts half, in microseconds.
const RTT_HALF_US: f64 = 10_000.0;
/// Resolution of a score as an ordered key: a millionth.
const RESOLUTION: f64 = 1_000_000.0;

/// How much each term counts; each at least 0 and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Round trip.
    pub alpha: f64,
    /// Load.
    pub beta: f64,
    /// Queue.
    pub gamma: f64,
    /// Unreliability.
    pub delta: f64,
    /// Counts the changes of these at run time, from 1.
    pub version: u32,
}

impl Default for Coefficients {
    fn default() -> Self {
        Self { alpha: 0.5, beta: 0.5, gamma: 2.0, delta: 2.0, version: 1 }
    }
}

/// The terms of one node's score, each within 0 to 1, lower is better.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    pub rtt: f64,
    pub load: f64,
    pub queue: f64,
    pub unreliability: f64,
}

impl Terms {
    /// The terms of a node as it stands.
    #[must_use]
    pub fn of(node: &Node, now: Time) -> Self {
        let rtt = node.rtt_us.map_or(0.5, |us| us as f64 / (us as f64 + RTT_HALF_US));
        let load = f64::from(node.load_permille.unwrap_or(0).min(1000)) / 1000.0;
        let total = node.facts.as_ref().map_or(0, |facts| facts.total.cpu_millis);
        let queue = if total == 0 { 1.0 } else { node.given_millis as f64 / (2 * total) as f64 };
        Self { rtt, load, queue: queue.min(1.0), unreliability: 1.0 - node.reliability(now) }
    }

    /// The weighted sum.
    #[must_use]
    pub fn score(&self, by: &Coefficients) -> f64 {
        by.alpha * self.rtt + by.beta * self.load + by.gamma * self.queue + by.delta * self.unreliability
    }

    /// The score as a key that orders nodes.
    #[must_use]
    pub fn key(&self, by: &Coefficients) -> u64 {
        (self.score(by) * RESOLUTION) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms() -> impl Strategy<Value = Terms> {
        (0.0..=1.0, 0.0..=1.0, 0.0..=1.0, 0.0..=1.0).prop_map(|(rtt, load, queue, unreliability)| Terms {
            rtt,
            load,
            queue,
            unreliability,
        })
    }

    proptest! {
        #[test]
        fn worse_in_one_term_is_never_a_better_score(terms in terms(), more in 0.0..1.0_f64) {
            let by = Coefficients::default();
            for worse in [
                Terms { rtt: terms.rtt + more, ..terms },
                Terms { load: terms.load + more, ..terms },
                Terms { queue: terms.queue + more, ..terms },
                Terms { unreliability: terms.unreliability + more, ..terms },
            ] {
                prop_assert!(worse.score(&by) >= terms.score(&by));
                prop_assert!(worse.key(&by) >= terms.key(&by));
            }
        }
    }
}
