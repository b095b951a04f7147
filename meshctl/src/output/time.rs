//! Times, durations and sizes as they are shown.

use chrono::{DateTime, SecondsFormat, Utc};

/// RFC 3339 in UTC; 0 is a time that has not come.
pub fn rfc3339(ms: i64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    DateTime::<Utc>::from_timestamp_millis(ms).map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The same for a table: to the second, `-` for none.
pub fn short(ms: i64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    DateTime::<Utc>::from_timestamp_millis(ms)
        .map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// A duration at a glance: `420ms`, `12.3s`, `5m07s`, `3h12m`, `2d4h`.
pub fn glance(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// From the first to the second time, when both are known.
pub fn between(start_ms: i64, end_ms: i64) -> String {
    if start_ms == 0 || end_ms < start_ms {
        return "-".to_owned();
    }
    glance((end_ms - start_ms) as u64)
}

/// A size at a glance, in binary units: `1.4 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_unknown_ones_are_none() {
        assert_eq!(rfc3339(1_762_000_000_123).as_deref(), Some("2025-11-01T12:26:40.123Z"));
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(i64::MAX), None);
    }

    #[test]
    fn durations_are_read_at_a_glance() {
        let shown: Vec<_> =
            [0, 420, 12_345, 307_000, 11_520_000, 187_200_000].into_iter().map(glance).collect();
        assert_eq!(shown, ["0ms", "420ms", "12.3s", "5m07s", "3h12m", "2d4h"]);
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        let shown: Vec<_> = [0, 1023, 1024, 1_503_238_554, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.4 GiB", "16384.0 PiB"]);
    }
}
