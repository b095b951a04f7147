//! What the coordinator bounds, so that nobody can take more of it than a share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::values;

/// `[limits]` of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest gRPC message, in bytes. Clients send nothing larger than 4MiB.
    #[serde(with = "values::size")]
    pub max_message: u64,
    /// Streams that one connection may have open at a time.
    pub max_concurrent_streams: u32,
    /// Connections of each gRPC listener.
    pub max_connections: u32,
    /// Handshakes of each gRPC listener that may be under way.
    pub max_handshakes: u32,
    /// From accept to the end of the TLS handshake.
    #[serde(with = "values::duration")]
    pub handshake_timeout: Duration,
    /// Between HTTP/2 pings of the coordinator, also on an idle connection.
    #[serde(with = "values::duration")]
    pub keepalive_interval: Duration,
    /// A ping unanswered for so long ends the connection.
    #[serde(with = "values::duration")]
    pub keepalive_timeout: Duration,
    /// The largest list of HTTP/2 headers, in bytes.
    #[serde(with = "values::size")]
    pub max_header_list: u64,
    /// Requests for joining that are taken a second, from each address. Three times as many may
    /// come at once.
    pub joins_per_second: u32,
    /// Jobs that one identity may submit a second. Three times as many may come at once.
    pub submits_per_second: u32,
    /// Tasks of one job, elements of arrays counted.
    pub max_tasks_per_job: u64,
    /// Entries of any one list in a job (items that are listed, inputs, outputs, needs, environment).
    pub max_entries: u64,
    /// Bytes of output that one node may have on the way.
    #[serde(with = "values::size")]
    pub output_window: u64,
    /// The most output of one attempt that is kept, in bytes.
    #[serde(with = "values::size")]
    pub max_output: u64,
    /// The largest blob, in bytes.
    #[serde(with = "values::size")]
    pub max_blob: u64,
    /// Events that may wait for the engine; a caller waits when they are so many.
    pub max_queued_events: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: mesh_proto::limits::MAX_MESSAGE as u64,
            max_concurrent_streams: 256,
            max_connections: 4096,
            max_handshakes: 512,
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            max_header_list: 16 << 10,
            joins_per_second: 10,
            submits_per_second: 100,
            max_tasks_per_job: mesh_proto::limits::MAX_TASKS,
            max_entries: mesh_proto::limits::MAX_ENTRIES as u64,
            output_window: 4 << 20,
            max_output: 1 << 30,
            max_blob: 64 << 30,
            max_queued_events: 4096,
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        const MIB: u64 = 1 << 20;
        let size = mesh_proto::size::format_size;
        let count = |n: u64| n.to_string();
        let span = |d: u64| mesh_proto::duration::format_duration(Duration::from_millis(d));
        let ms = |d: Duration| d.as_millis() as u64;
        // A chunk of output or of a blob must fit in a message.
        within("limits.max_message", self.max_message, MIB, 64 * MIB, size)?;
        within("limits.max_concurrent_streams", self.max_concurrent_streams.into(), 8, 65_536, count)?;
        within("limits.max_connections", self.max_connections.into(), 1, 1_000_000, count)?;
        within("limits.max_handshakes", self.max_handshakes.into(), 1, 100_000, count)?;
        within("limits.handshake_timeout", ms(self.handshake_timeout), 100, 60_000, span)?;
        within("limits.keepalive_interval", ms(self.keepalive_interval), 100, 3_600_000, span)?;
        within("limits.keepalive_timeout", ms(self.keepalive_timeout), 100, 3_600_000, span)?;
        within("limits.max_header_list", self.max_header_list, 4 << 10, MIB, size)?;
        within("limits.joins_per_second", self.joins_per_second.into(), 1, 1_000_000, count)?;
        within("limits.submits_per_second", self.submits_per_second.into(), 1, 1_000_000, count)?;
        within("limits.max_tasks_per_job", self.max_tasks_per_job, 1, 100_000_000, count)?;
        within("limits.max_entries", self.max_entries, 1, 1_000_000, count)?;
        within("limits.output_window", self.output_window, MIB, 1 << 30, size)?;
        within("limits.max_output", self.max_output, 64 << 10, 1 << 40, size)?;
        within("limits.max_blob", self.max_blob, MIB, 1 << 50, size)?;
        within("limits.max_queued_events", self.max_queued_events.into(), 16, 1_000_000, count)
    }
}

fn within(
    key: &'static str,
    value: u64,
    least: u64,
    most: u64,
    show: impl Fn(u64) -> String,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let expected = format!("expected {} to {}", show(least), show(most));
    Err(ConfigError::Range { key, value: show(value), expected })
}
