//! How long things take, and how long somebody waits for them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::values;

/// `[timings]` of the file. All are durations with units (`"5s"`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timings {
    /// How often a node says that it is alive; told to each node when it registers.
    #[serde(with = "values::duration")]
    pub heartbeat: Duration,
    /// A node silent for so long is `SUSPECT`: it gets nothing new.
    #[serde(with = "values::duration")]
    pub suspect_after: Duration,
    /// A node silent for so long is `OFFLINE`: its attempts are replaced elsewhere.
    #[serde(with = "values::duration")]
    pub offline_after: Duration,
    /// How long a new leader lets nodes come back before it calls them silent.
    /// Not set: as long as `offline_after`.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub adoption_grace: Option<Duration>,
    /// How often an idle leader shows the stand-bys that it leads.
    #[serde(with = "values::duration")]
    pub leader_beat: Duration,
    /// A stand-by takes over when it has seen no beat for so long.
    #[serde(with = "values::duration")]
    pub leader_takeover: Duration,
    /// How long a node's certificate is good for. It renews it at half of that.
    #[serde(with = "values::duration")]
    pub certificate_lifetime: Duration,
    /// How long a join token is good for when its maker says nothing else.
    #[serde(with = "values::duration")]
    pub token_ttl: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            suspect_after: Duration::from_secs(15),
            offline_after: Duration::from_secs(30),
            adoption_grace: None,
            leader_beat: Duration::from_secs(1),
            leader_takeover: Duration::from_secs(3),
            certificate_lifetime: Duration::from_hours(24),
            token_ttl: Duration::from_mins(10),
        }
    }
}

impl Timings {
    /// `adoption_grace`, or what stands for it.
    pub fn adoption_grace(&self) -> Duration {
        self.adoption_grace.unwrap_or(self.offline_after)
    }

    /// How long tasks with `on_disconnect: kill` go on after the last word of their node that a
    /// leader acknowledged. The rest of `offline_after` is for their ending and for clocks that
    /// run unevenly: once the node is offline, they are gone for sure.
    pub fn lease(&self) -> Duration {
        self.offline_after * 3 / 4
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        const DAY: Duration = Duration::from_hours(24);
        let ms = Duration::from_millis;
        between("timings.heartbeat", self.heartbeat, ms(50), Duration::from_hours(1))?;
        above("timings.suspect_after", self.suspect_after, "heartbeat", self.heartbeat)?;
        above("timings.offline_after", self.offline_after, "suspect_after", self.suspect_after)?;
        between("timings.offline_after", self.offline_after, ms(150), 7 * DAY)?;
        // A lease that does not outlast a lost heartbeat would end tasks for nothing.
        let thrice = self.heartbeat * 3;
        between("timings.offline_after", self.offline_after, thrice, 7 * DAY)?;
        // Silence of offline_after is borne in any case: a shorter grace would have no effect.
        between("timings.adoption_grace", self.adoption_grace(), self.offline_after, 7 * DAY)?;
        between("timings.leader_beat", self.leader_beat, ms(20), Duration::from_mins(1))?;
        // One late beat must not cost a healthy leader its office.
        let twice = self.leader_beat * 2;
        between("timings.leader_takeover", self.leader_takeover, twice, Duration::from_hours(1))?;
        let lifetime = self.certificate_lifetime;
        between("timings.certificate_lifetime", lifetime, Duration::from_secs(1), 825 * DAY)?;
        between("timings.token_ttl", self.token_ttl, Duration::from_secs(1), 30 * DAY)
    }
}

fn between(key: &'static str, value: Duration, least: Duration, most: Duration) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let show = mesh_proto::duration::format_duration;
    let expected = format!("expected {} to {}", show(least), show(most));
    Err(ConfigError::Range { key, value: show(value), expected })
}

fn above(key: &'static str, value: Duration, other: &str, bound: Duration) -> Result<(), ConfigError> {
    if value > bound {
        return Ok(());
    }
    let show = mesh_proto::duration::format_duration;
    let expected = format!("expected more than {other}, which is {}", show(bound));
    Err(ConfigError::Range { key, value: show(value), expected })
}

mod optional_duration {
    use super::values;
    use serde::{Deserializer, Serializer};
    use std::time::Duration;

    #[expect(clippy::ref_option, reason = "serde hands every field over by reference")]
    pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => values::duration::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    // A key that stands in the file has a value: TOML knows no null.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        values::duration::deserialize(from).map(Some)
    }
}
