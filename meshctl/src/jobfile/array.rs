//! `array`: the four ways to say what a task runs over.

use super::{
    fields::{self, Fields},
    model::{Array, Range},
    problem::{Problem, Spot},
    tree::{Node, quote},
};

const KINDS: [&str; 4] = ["range", "items", "lines", "files"];
const RANGE: &str = "FIRST-LAST or FIRST-LAST:STEP, such as 1-1000 or 0-90:10";

pub fn parse(node: &Node) -> Result<Spot<Array>, Problem> {
    let fields = Fields::open(node, "`array`", &KINDS)?;
    let given: Vec<_> = KINDS.into_iter().filter(|kind| fields.has(kind)).collect();
    let (Some(kind), true) = (given.first(), given.len() == 1) else {
        return Err(Problem::at(
            node.at,
            format!("`array` has {} of its keys", given.len()),
            format!("exactly one of {}", fields::any_of(&KINDS)),
        ));
    };
    let Some(value) = fields.get(kind) else {
        return Err(Problem::at(node.at, "`array` is empty", fields::any_of(&KINDS)));
    };
    let array = match *kind {
        "range" => {
            let text = fields::text(value, "`range`")?;
            let wrong =
                |reason| Problem::at(text.at, format!("the range {} {reason}", quote(&text.value)), RANGE);
            Array::Range(range(&text.value).map_err(wrong)?)
        }
        "items" => {
            let items = fields::list(value, "`items`")?;
            if items.is_empty() {
                return Err(Problem::at(value.at, "`items` is empty", "at least one item"));
            }
            let items = items.iter().map(|item| fields::text(item, "an item").map(|spot| spot.value));
            Array::Items(items.collect::<Result<_, _>>()?)
        }
        "lines" => Array::Lines(path(value, "`lines`")?),
        _ => Array::Files(path(value, "`files`")?),
    };
    Ok(Spot { at: value.at, value: array })
}

fn path(node: &Node, what: &str) -> Result<String, Problem> {
    let path = fields::text(node, what)?;
    if path.value.is_empty() {
        return Err(Problem::at(path.at, format!("{what} is empty"), "a path"));
    }
    Ok(path.value)
}

/// Reads `FIRST-LAST[:STEP]`; the error continues "the range … ".
pub fn range(text: &str) -> Result<Range, &'static str> {
    let (bounds, step) = text.split_once(':').unwrap_or((text, "1"));
    // A sign may begin either bound: the dash between them is the first that follows a digit.
    let dash = bounds
        .char_indices()
        .skip(1)
        .find(|(at, c)| *c == '-' && bounds[..*at].ends_with(|c: char| c.is_ascii_digit()))
        .map(|(at, _)| at)
        .ok_or("has no two bounds")?;
    let (first, last) = (integer(&bounds[..dash])?, integer(&bounds[dash + 1..])?);
    let step = integer(step)?;
    if step < 1 {
        return Err("has no positive step");
    }
    if last < first {
        return Err("ends before it begins");
    }
    Ok(Range { first, last, step })
}

fn integer(text: &str) -> Result<i64, &'static str> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("has something that is no whole number");
    }
    text.parse().map_err(|_| "has a number that is out of range")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_include_both_ends() {
        for (text, expected, count) in [
            ("1-1000", (1, 1000, 1), 1000),
            ("0-9:2", (0, 9, 2), 5),
            ("7-7", (7, 7, 1), 1),
            ("-5--1", (-5, -1, 1), 5),
            ("-5-5:5", (-5, 5, 5), 3),
        ] {
            let range = range(text).unwrap();
            assert_eq!((range.first, range.last, range.step), expected, "{text}");
            assert_eq!(range.count(), count, "{text}");
        }
        let most = range("-9223372036854775808-9223372036854775807").unwrap();
        assert_eq!(most.count(), u64::MAX);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "",
            "5",
            "5-",
            "-5",
            "a-b",
            "1-10:0",
            "1-10:-1",
            "10-1",
            "1-2-3",
            "1-10:",
            "1..5",
            "1 - 5",
            "+1-5",
            "1-99999999999999999999",
            "1-10:2:3",
            "1.5-2",
        ] {
            assert!(range(bad).is_err(), "{bad:?} was taken for a range");
        }
    }

    proptest! {
        #[test]
        fn a_range_reads_as_it_is_written(first in any::<i64>(), span in 0_i64..1_000_000, step in 1_i64..1000) {
            let last = first.saturating_add(span);
            let range = range(&format!("{first}-{last}:{step}")).unwrap();
            prop_assert_eq!(range, Range { first, last, step });
            let count = range.count();
            let end = range.value((count - 1) as u32);
            prop_assert!(end <= last && i128::from(end) + i128::from(step) > i128::from(last));
        }

        #[test]
        fn nothing_typed_makes_it_panic(text in "[-0-9:a ]{0,24}") {
            let _ = range(&text);
        }
    }
}
