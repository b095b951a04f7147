//! Sizes as people write them in files and flags: `512MiB`, `2GB`, `1.5GiB`. Bytes inside.

/// What a size is not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    #[error("`{0}` is no size: expected a number and a unit, such as 512MiB or 2GB")]
    Number(String),
    #[error("`{0}` is no unit of size: expected B, KB, MB, GB, TB (1000) or KiB, MiB, GiB, TiB (1024)")]
    Unit(String),
    #[error("`{0}` is too large: the most is 8EiB less one byte")]
    TooLarge(String),
}

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// The largest size, in bytes: what a signed 64-bit column and message field can hold.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// Reads a size in bytes. A bare number is bytes; a fraction is cut to whole bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let no_number = || SizeError::Number(text.to_owned());
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
    let factor = match unit {
        "" => 1,
        _ => UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, factor)| *factor)
            .ok_or_else(|| if number.is_empty() { no_number() } else { SizeError::Unit(unit.to_owned()) })?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // At most 9 digits of a fraction are read: more say nothing that a byte could show.
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Err(no_number());
    }
    let too_large = || SizeError::TooLarge(text.to_owned());
    // Only digits are left: what does not parse is too long.
    let whole: u128 = whole.parse::<u64>().map_err(|_| too_large())?.into();
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = fraction.parse::<u64>().map_err(|_| no_number())?.into();
    let bytes = whole * u128::from(factor) + fraction * u128::from(factor) / scale;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_SIZE).ok_or_else(too_large)
}

/// A size in the largest unit that shows it exactly, so that `parse_size` gives it back:
/// `512MiB`, `2GB`, `1234B`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map(|(unit, factor)| (bytes / factor, unit))
        .min_by_key(|(count, _)| *count)
        .map_or_else(|| "0B".to_owned(), |(count, unit)| format!("{count}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_unit_and_a_bare_number_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("2KB", 2_000),
            ("2KiB", 2_048),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("2GB", 2_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0.5B", 0),
            ("3TB", 3_000_000_000_000),
            ("1TiB", 1 << 40),
            (" 4MiB ", 4 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for text in ["", "MiB", "-1", "+1", ".5MiB", "1.MiB", "1.2.3", "1e9", "0x10", "NaN", "inf"] {
            assert!(
                matches!(parse_size(text), Err(SizeError::Number(_) | SizeError::Unit(_))),
                "{text}: {:?}",
                parse_size(text)
            );
        }
        assert_eq!(parse_size("5 potatoes"), Err(SizeError::Unit("potatoes".into())));
        assert_eq!(parse_size("8388608TiB"), Err(SizeError::TooLarge("8388608TiB".into())));
        let long = "9".repeat(60);
        assert_eq!(parse_size(&long), Err(SizeError::TooLarge(long.clone())));
    }

    #[test]
    fn a_round_size_is_shown_in_its_unit() {
        for text in ["0B", "512MiB", "2GB", "1234B", "1TiB", "3KB", "1GiB"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in 0..=MAX_SIZE) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn nothing_typed_makes_it_panic(text in ".{0,40}") {
            let _ = parse_size(&text);
        }
    }
}
