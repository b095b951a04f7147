//! The templates of the job file: `{item} {index} {name} {stem} {params.k}` and nothing else.
//! Replaced in one pass, so that a value which itself holds braces stays as it is.

use std::collections::HashMap;
use std::hash::BuildHasher;

/// What the templates of one array element stand for.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// Position in the array, from 0.
    pub index: u32,
    /// The element's value.
    pub item: &'a str,
}

impl<'a> Element<'a> {
    /// The item's file name: what stands after its last `/`.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.item.rsplit('/').next().unwrap_or(self.item)
    }

    /// The file name without its last extension; a leading dot begins no extension.
    #[must_use]
    pub fn stem(&self) -> &'a str {
        let name = self.name();
        match name.rfind('.') {
            Some(0) | None => name,
            Some(dot) => &name[..dot],
        }
    }
}

/// A template that stands for nothing here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    #[error("{{{0}}} is used, but the task is no array")]
    NoArray(&'static str),
    #[error("{{params.{0}}} is used, but there is no such parameter")]
    NoParam(String),
}

/// Replaces the templates of `text`. Other braces are literal.
pub fn replace<S: BuildHasher>(
    text: &str,
    element: Option<Element<'_>>,
    params: &HashMap<String, String, S>,
) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let Some(close) = rest.find('}') else { break };
        let word = &rest[1..close];
        let of =
            |name, value: fn(Element<'_>) -> String| element.map(value).ok_or(TemplateError::NoArray(name));
        let value = match word {
            "item" => of("item", |e| e.item.to_owned())?,
            "index" => of("index", |e| e.index.to_string())?,
            "name" => of("name", |e| e.name().to_owned())?,
            "stem" => of("stem", |e| e.stem().to_owned())?,
            _ => match word.strip_prefix("params.") {
                Some(key) if !key.is_empty() && !key.contains('{') => {
                    params.get(key).cloned().ok_or_else(|| TemplateError::NoParam(key.to_owned()))?
                }
                _ => {
                    out.push('{');
                    rest = &rest[1..];
                    continue;
                }
            },
        };
        out.push_str(&value);
        rest = &rest[close + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether `text` holds a template of the array element.
#[must_use]
pub fn names_element(text: &str) -> bool {
    ["{item}", "{index}", "{name}", "{stem}"].iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(text: &str) -> Result<String, TemplateError> {
        let params = HashMap::from([("k".to_owned(), "{item}".to_owned())]);
        replace(text, Some(Element { index: 7, item: "a/b.tar.gz" }), &params)
    }

    #[test]
    fn exactly_the_five_templates_are_replaced() {
        assert_eq!(go("{item}|{index}|{name}|{stem}").unwrap(), "a/b.tar.gz|7|b.tar.gz|b.tar");
        assert_eq!(go("${HOME} {} {x} {{index}} {item").unwrap(), "${HOME} {} {x} {7} {item");
        assert_eq!(go("{params.}").unwrap(), "{params.}");
    }

    #[test]
    fn a_value_with_braces_is_not_replaced_again() {
        assert_eq!(go("{params.k}").unwrap(), "{item}");
    }

    #[test]
    fn what_stands_for_nothing_is_an_error() {
        assert_eq!(go("{params.nope}"), Err(TemplateError::NoParam("nope".into())));
        let none = HashMap::<String, String>::new();
        assert_eq!(replace("{index}", None, &none), Err(TemplateError::NoArray("index")));
    }
}
