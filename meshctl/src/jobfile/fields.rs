//! Typed access to the tree: maps whose keys are all known, scalars of a wanted type.

use std::str::FromStr;

use mesh_proto::{duration::parse_duration, limits, names, size::parse_size};

use super::{
    problem::{Pos, Problem, Spot},
    tree::{Key, Node, Value, quote, shorten},
};

/// A map with a closed set of keys.
pub struct Fields<'a> {
    pub at: Pos,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// Opens `node`, which must be a map of no other keys than `known`. `what` is its name in
    /// messages: `a task`, `retry`.
    pub fn open(node: &'a Node, what: &str, known: &[&str]) -> Result<Self, Problem> {
        let fields = Self { at: node.at, entries: entries(node, what)? };
        for (key, _) in fields.entries {
            if !known.contains(&key.name.as_str()) {
                return Err(unknown(key, what, known));
            }
        }
        Ok(fields)
    }

    /// The value of a key that stands there; a key without a value counts as one with nothing.
    pub fn get(&self, name: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Where a key stands.
    pub fn key_at(&self, name: &str) -> Pos {
        self.entries.iter().find(|(key, _)| key.name == name).map_or(self.at, |(key, _)| key.at)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// The entries of a map.
pub fn entries<'a>(node: &'a Node, what: &str) -> Result<&'a [(Key, Node)], Problem> {
    match &node.value {
        Value::Map(entries) if entries.len() > limits::MAX_ENTRIES => {
            Err(too_many(node.at, what, entries.len()))
        }
        Value::Map(entries) => Ok(entries),
        Value::Null | Value::Text(_) | Value::Plain(_) | Value::List(_) => {
            Err(Problem::at(node.at, format!("{what} is {}", node.describe()), "a map of keys and values"))
        }
    }
}

/// The elements of a list.
pub fn list<'a>(node: &'a Node, what: &str) -> Result<&'a [Node], Problem> {
    match &node.value {
        Value::List(items) if items.len() > limits::MAX_ENTRIES => Err(too_many(node.at, what, items.len())),
        Value::List(items) => Ok(items),
        Value::Null | Value::Text(_) | Value::Plain(_) | Value::Map(_) => {
            Err(Problem::at(node.at, format!("{what} is {}", node.describe()), "a list"))
        }
    }
}

fn too_many(at: Pos, what: &str, count: usize) -> Problem {
    Problem::at(at, format!("{what} has {count} entries"), format!("at most {}", limits::MAX_ENTRIES))
}

/// Text. A number or `true` counts as it was written.
pub fn text(node: &Node, what: &str) -> Result<Spot<String>, Problem> {
    match &node.value {
        Value::Text(text) | Value::Plain(text) => {
            if text.contains('\0') {
                return Err(Problem::at(node.at, format!("{what} contains a NUL byte"), "text without it"));
            }
            Ok(Spot { at: node.at, value: text.clone() })
        }
        Value::Null | Value::List(_) | Value::Map(_) => Err(Problem::at(
            node.at,
            format!("{what} is {}", node.describe()),
            if matches!(node.value, Value::Null) { "text (write \"\" for an empty one)" } else { "text" },
        )),
    }
}

/// A name: 1–64 of `[a-z0-9._-]`.
pub fn name(node: &Node, what: &str) -> Result<Spot<String>, Problem> {
    let spot = text(node, what)?;
    check_name(&spot.value, spot.at, what)?;
    Ok(spot)
}

pub fn check_name(name: &str, at: Pos, what: &str) -> Result<(), Problem> {
    names::check_name(name).map_err(|error| {
        Problem::at(
            at,
            format!("{what} {} {}", quote(name), names::escape(&error.to_string())),
            format!(
                "1 to {} of a-z, 0-9, `.`, `_` and `-`, beginning with a letter, digit or `_`",
                names::MAX_NAME
            ),
        )
    })
}

/// One of a few words.
pub fn one_of<'w>(node: &Node, what: &str, words: &[&'w str]) -> Result<&'w str, Problem> {
    let expected = || any_of(words);
    let (Value::Text(text) | Value::Plain(text)) = &node.value else {
        return Err(Problem::at(node.at, format!("{what} is {}", node.describe()), expected()));
    };
    words
        .iter()
        .find(|word| *word == text)
        .copied()
        .ok_or_else(|| Problem::at(node.at, format!("{what} is {}", quote(text)), expected()))
}

/// A whole number of a range.
pub fn whole<T>(node: &Node, what: &str, least: T, most: T) -> Result<T, Problem>
where
    T: FromStr + PartialOrd + std::fmt::Display + Copy,
{
    let number = match &node.value {
        Value::Plain(text) => text.parse::<T>().ok(),
        Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
    };
    number.filter(|number| *number >= least && *number <= most).ok_or_else(|| {
        Problem::at(
            node.at,
            format!("{what} is {}", node.describe()),
            format!("a whole number from {least} to {most}"),
        )
    })
}

/// A finite number of a range.
pub fn number(node: &Node, what: &str, least: f64, most: f64) -> Result<f64, Problem> {
    let number = match &node.value {
        Value::Plain(text) => text.parse::<f64>().ok(),
        Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
    };
    number.filter(|number| number.is_finite() && *number >= least && *number <= most).ok_or_else(|| {
        Problem::at(
            node.at,
            format!("{what} is {}", node.describe()),
            format!("a number from {least} to {most}"),
        )
    })
}

/// `true` or `false`.
pub fn truth(node: &Node, what: &str) -> Result<bool, Problem> {
    match &node.value {
        Value::Plain(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::Plain(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Value::Null | Value::Plain(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
            Err(Problem::at(node.at, format!("{what} is {}", node.describe()), "`true` or `false`"))
        }
    }
}

/// A size in bytes.
pub fn size(node: &Node, what: &str) -> Result<u64, Problem> {
    const EXPECTED: &str = "a size such as 512MiB or 2GB";
    let (Value::Text(text) | Value::Plain(text)) = &node.value else {
        return Err(Problem::at(node.at, format!("{what} is {}", node.describe()), EXPECTED));
    };
    match parse_size(text) {
        Ok(0) => Err(Problem::at(node.at, format!("{what} is zero"), EXPECTED)),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(Problem::at(node.at, format!("{what}: {}", names::escape(&error.to_string())), "")),
    }
}

/// A duration in milliseconds.
pub fn duration_ms(node: &Node, what: &str) -> Result<u64, Problem> {
    let (Value::Text(text) | Value::Plain(text)) = &node.value else {
        return Err(Problem::at(
            node.at,
            format!("{what} is {}", node.describe()),
            "a duration such as 500ms, 10s, 1m30s, 2h or 1d",
        ));
    };
    let duration = parse_duration(text).map_err(|error| {
        Problem::at(node.at, format!("{what}: {}", names::escape(&error.to_string())), "")
    })?;
    Ok(duration.as_millis() as u64)
}

fn unknown(key: &Key, what: &str, known: &[&str]) -> Problem {
    let wrong = format!("{what} has no key `{}`", shorten(&key.name));
    match nearest(&key.name, known) {
        Some(near) => Problem::at(key.at, wrong, format!("`{near}`, by the look of it")),
        None => Problem::at(key.at, wrong, any_of(known)),
    }
}

/// `a, b or c`.
pub fn any_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that was probably meant.
pub fn nearest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    let limit = (word.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance, in characters; a word too long for any key is far away.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let known = ["command", "script", "outputs", "inputs", "env"];
        assert_eq!(nearest("comand", &known), Some("command"));
        assert_eq!(nearest("output", &known), Some("outputs"));
        assert_eq!(nearest("envs", &known), Some("env"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
