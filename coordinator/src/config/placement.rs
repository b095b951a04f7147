//! How much each term of the score counts. The one section that is read again at a SIGHUP.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::values;
use crate::engine::types::Coefficients;

/// `[placement]` of the file. The terms are within 0 to 1; see `engine/placement/score.rs`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// How much the round trip to a node counts.
    pub alpha: f64,
    /// How much the load of its processors counts.
    pub beta: f64,
    /// How much what it was given and has not finished counts.
    pub gamma: f64,
    /// How much its unreliability counts.
    pub delta: f64,
    /// Only tasks that run shorter than this wait in a node's short queue, as many as it has
    /// slots (and more of very short ones, see `engine/queue.rs`); `0s`: none does.
    #[serde(with = "values::duration")]
    pub feed_below: Duration,
}

impl Default for Placement {
    fn default() -> Self {
        let by = Coefficients::default();
        let feed_below = Duration::from_secs(2);
        Self { alpha: by.alpha, beta: by.beta, gamma: by.gamma, delta: by.delta, feed_below }
    }
}

impl Placement {
    /// As the engine takes them.
    pub fn coefficients(&self) -> Coefficients {
        Coefficients { alpha: self.alpha, beta: self.beta, gamma: self.gamma, delta: self.delta, version: 1 }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let terms = [
            ("placement.alpha", self.alpha),
            ("placement.beta", self.beta),
            ("placement.gamma", self.gamma),
            ("placement.delta", self.delta),
        ];
        for (key, value) in terms {
            // A number that is none is in no range.
            if !(0.0..=1000.0).contains(&value) {
                let expected = "expected 0 to 1000".to_owned();
                return Err(ConfigError::Range { key, value: value.to_string(), expected });
            }
        }
        if self.feed_below > Duration::from_hours(1) {
            let value = mesh_proto::duration::format_duration(self.feed_below);
            let expected = "expected 0s to 1h".to_owned();
            return Err(ConfigError::Range { key: "placement.feed_below", value, expected });
        }
        Ok(())
    }
}
