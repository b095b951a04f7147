//! Durations as people write them in files and flags: `500ms`, `10s`, `1m30s`, `2h`, `1d`.

use std::fmt::Write as _;
use std::time::Duration;

/// What a duration is not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DurationError {
    #[error("`{0}` is no duration: expected numbers with units, such as 500ms, 10s, 1m30s, 2h or 1d")]
    Format(String),
    #[error("`{0}` is too long: the most is 36500d")]
    TooLong(String),
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The longest duration: a hundred years, far from where adding it to a time overflows.
pub const MAX_DURATION: Duration = Duration::from_hours(24 * 36_500);

/// Reads a duration: whole numbers, each with its unit, larger units first. A number without
/// a unit is refused, except `0`: whoever wrote it may have meant something else.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError::Format(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut units = UNITS.iter();
    let mut total = 0u64;
    while !rest.is_empty() || total == 0 && units.len() == UNITS.len() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(wrong());
        }
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        // `find` goes on from the last unit: one that came already, or a larger one, is wrong.
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| too_long())?;
        total = number.checked_mul(*factor).and_then(|ms| total.checked_add(ms)).ok_or_else(too_long)?;
        rest = after.trim_start();
    }
    let duration = Duration::from_millis(total);
    if duration > MAX_DURATION { Err(too_long()) } else { Ok(duration) }
}

/// A duration as `parse_duration` reads it back, to the millisecond: `1m30s`, `500ms`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut out = String::new();
    for (unit, factor) in UNITS {
        let factor = u128::from(factor);
        if rest >= factor {
            let _ = write!(out, "{}{unit}", rest / factor);
            rest %= factor;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ways_people_write_durations_are_read() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("90 s", 90_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1d2h3m4s5ms", 93_784_005),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", " ", "5", "s", "-5s", "5x", "5M", "1.5s", "5s5", "30s1m", "5s 6s", "1e3s", "5s,"] {
            assert_eq!(parse_duration(text), Err(DurationError::Format(text.into())), "{text}");
        }
        for text in ["36501d", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong(text.into())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(ms in 0..=MAX_DURATION.as_millis() as u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn nothing_typed_makes_it_panic(text in ".{0,40}") {
            let _ = parse_duration(&text);
        }
    }
}
