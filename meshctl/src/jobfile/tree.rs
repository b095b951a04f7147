//! The job file as a tree of values that know where they stand. YAML 1.2 and JSON through
//! one parser with a budget, so that no file of a stranger costs more than its size.
//!
//! A scalar keeps its spelling: `1.10` stays `1.10` where text is wanted.

use std::fmt;

use mesh_proto::{limits, names};
use serde::{
    Deserialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{MessageFormatter as _, Spanned, budget::BudgetBreach};

use super::problem::{Pos, Problem};

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    pub at: Pos,
    pub value: Value,
}

#[derive(Debug)]
pub enum Value {
    Null,
    /// Text, quoted or plain.
    Text(String),
    /// A plain scalar that reads as a number or as `true` or `false`, as it was written.
    Plain(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it stands.
#[derive(Debug)]
pub struct Key {
    pub at: Pos,
    pub name: String,
}

impl Node {
    /// What the value is, for messages: `a list`, `the text "x"`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Text(text) => format!("the text {}", quote(text)),
            Value::Plain(text) => format!("`{}`", shorten(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

/// A stranger's text for a message: short and without control characters.
pub fn quote(text: &str) -> String {
    format!("\"{}\"", shorten(text))
}

/// The same without quotes.
pub fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    let short: String = text.chars().take(MOST).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", names::escape(&short))
}

/// Nesting that no honest job file comes near.
const MAX_DEPTH: usize = 32;
/// Values in a file: what fits its 4 MiB honestly, and what aliases may multiply it to.
const MAX_NODES: usize = 1_000_000;
const MAX_REPLAYED: usize = 200_000;

/// Reads `text`.
pub fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > limits::MAX_JOB_FILE {
        return Err(Problem::at(
            Pos::START,
            format!("the file is {} bytes long", text.len()),
            format!("at most {} bytes", limits::MAX_JOB_FILE),
        ));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_total_scalar_bytes: 4 * limits::MAX_JOB_FILE,
            max_recorded_anchor_events: MAX_REPLAYED,
            max_recorded_anchor_bytes: limits::MAX_JOB_FILE,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 16,
        },
        strict_booleans: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| problem(&error))?;
    node(raw, text)
}

fn problem(error: &serde_saphyr::Error) -> Problem {
    use serde_saphyr::Error;
    let at = error.location().map_or(Pos::START, |at| Pos::new(at.line(), at.column()));
    let mut cause = error;
    while let Error::AliasError { error, .. } | Error::WithSnippet { error, .. } = cause {
        cause = error;
    }
    match cause {
        Error::DuplicateMappingKey { key, .. } => Problem::at(
            at,
            match key {
                Some(key) => format!("the key {} stands here twice", quote(key)),
                None => "a key stands here twice".to_owned(),
            },
            "every key at most once",
        ),
        Error::Eof { .. } => Problem::at(at, "the file ends too early", "a job"),
        Error::MultipleDocuments { .. } => {
            Problem::at(at, "a second document begins here", "one job in a file")
        }
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => {
                Problem::at(at, "lists and maps are nested too deeply", format!("at most {MAX_DEPTH} levels"))
            }
            _ => Problem::at(at, "the file holds more than a job can be", "fewer values and fewer aliases"),
        },
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            Problem::at(at, "aliases multiply beyond all measure", "fewer aliases")
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            Problem::at(at, "an alias stands inside what it names", "values without a circle")
        }
        other => {
            let message = serde_saphyr::UserMessageFormatter.format_message(other);
            Problem::at(at, format!("this is no valid YAML or JSON: {}", shorten_message(&message)), "")
        }
    }
}

fn shorten_message(message: &str) -> String {
    names::escape(&message.chars().take(300).collect::<String>())
}

/// What serde hands over: the spelling of a typed scalar is not in it, but its span is.
enum Raw {
    Null,
    Text(String),
    Typed,
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("text, a number, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

fn node(raw: Spanned<Raw>, source: &str) -> Result<Node, Problem> {
    let at = Pos::new(raw.referenced.line(), raw.referenced.column());
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Typed => {
            let span = raw.defined.span();
            let spelling = span.byte_offset().zip(span.byte_len()).and_then(|(start, len)| {
                let start = usize::try_from(start).ok()?;
                source.get(start..start.checked_add(usize::try_from(len).ok()?)?)
            });
            match spelling {
                Some(text) => Value::Plain(text.trim().to_owned()),
                None => return Err(Problem::at(at, "this value cannot be read", "text in quotes")),
            }
        }
        Raw::List(items) => {
            Value::List(items.into_iter().map(|item| node(item, source)).collect::<Result<_, _>>()?)
        }
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let at = Pos::new(key.referenced.line(), key.referenced.column());
                    Ok((Key { at, name: key.value }, node(value, source)?))
                })
                .collect::<Result<_, Problem>>()?,
        ),
    };
    Ok(Node { at, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<(Key, Node)> {
        match parse(text).unwrap().value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_spelling_and_their_place() {
        let entries = map("a: 1.10\nüü: 0x10 # no\nb: yes\nc: true\nd: \"5\"\ne: ~\nf: 1e999\ng: -.inf\n");
        let shown: Vec<_> = entries
            .iter()
            .map(|(key, node)| format!("{} {}:{} {:?}", key.name, node.at.line, node.at.column, node.value))
            .collect();
        assert_eq!(
            shown,
            [
                "a 1:4 Plain(\"1.10\")",
                "üü 2:5 Plain(\"0x10\")",
                "b 3:4 Text(\"yes\")",
                "c 4:4 Plain(\"true\")",
                "d 5:4 Text(\"5\")",
                "e 6:4 Null",
                "f 7:4 Plain(\"1e999\")",
                "g 8:4 Plain(\"-.inf\")",
            ]
        );
    }

    #[test]
    fn an_alias_stands_where_it_is_used() {
        let entries = map("a: &x 1.50\nb: *x\n");
        assert_eq!(entries[1].1.at, Pos { line: 2, column: 4 });
        assert!(matches!(&entries[1].1.value, Value::Plain(text) if text == "1.50"));
    }

    #[test]
    fn json_is_read_by_the_same_door() {
        let entries = map(r#"{"a": 1.0, "b": [true, null, "x\ty"]}"#);
        assert!(matches!(&entries[0].1.value, Value::Plain(text) if text == "1.0"));
        let Value::List(items) = &entries[1].1.value else { panic!() };
        assert!(matches!(&items[2].value, Value::Text(text) if text == "x\ty"));
    }

    #[test]
    fn bombs_are_refused_at_once() {
        let laughs = "bcdefghi".chars().zip("abcdefgh".chars()).fold(
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned(),
            |text, (this, before)| {
                let aliases = vec![format!("*{before}"); 10].join(", ");
                format!("{text}{this}: &{this} [{aliases}]\n")
            },
        );
        let deep_flow = "[".repeat(10_000);
        let deep_block =
            (0..10_000).fold(String::new(), |text, depth| text + &" ".repeat(depth % 400) + "- \n");
        let huge = " ".repeat(limits::MAX_JOB_FILE + 1);
        let recursive = "a: &a [*a]\n".to_owned();
        let nested = (0..200).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n");
        let mut told = Vec::new();
        let started = std::time::Instant::now();
        for (name, bomb) in [
            ("laughs", laughs),
            ("deep flow", deep_flow),
            ("deep block", deep_block),
            ("huge", huge),
            ("recursive", recursive),
            ("nested", nested),
        ] {
            match parse(&bomb) {
                Ok(_) => panic!("{name} was read"),
                Err(problem) => told.push(format!("{name}: {problem}")),
            }
        }
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
        insta::assert_snapshot!(told.join("\n"));
    }
}
