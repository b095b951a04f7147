//! The elements of an array: read from where the file says, one by one on demand.

use std::{borrow::Cow, fs, io::Read as _, path::Path};

use mesh_proto::{limits, names, template::Element};

use super::{
    files::{FileId, FileTable},
    glob, inputs,
    model::{Array, Range},
    problem::{Problem, Spot},
    tree::quote,
};

/// The elements of a task's array.
#[derive(Debug)]
pub enum Elements {
    Range(Range),
    List(Vec<Item>),
}

#[derive(Debug)]
pub struct Item {
    pub value: String,
    /// The element's own file, of a `files` array.
    pub file: Option<FileId>,
}

/// A file of lines, in bytes: what a million tasks can honestly need.
const MAX_LINES_FILE: u64 = 256 * 1024 * 1024;
/// Longest item in bytes: it must fit a task's environment.
const MAX_ITEM: usize = limits::MAX_ARGV_ENV / 2;

impl Elements {
    pub fn load(array: &Spot<Array>, base: &Path, files: &mut FileTable) -> Result<Self, Problem> {
        let elements = match &array.value {
            Array::Range(range) => Self::Range(*range),
            Array::Items(items) => Self::List(items.iter().cloned().map(plain).collect()),
            Array::Lines(path) => lines(array, path, base)?,
            Array::Files(pattern) => matching(array, pattern, base, files)?,
        };
        if elements.count() > limits::MAX_TASKS {
            return Err(Problem::at(
                array.at,
                format!("the array has {} elements", elements.count()),
                format!("at most {}", limits::MAX_TASKS),
            ));
        }
        if let Self::List(items) = &elements
            && let Some((index, item)) =
                items.iter().enumerate().find(|(_, item)| item.value.len() > MAX_ITEM)
        {
            return Err(Problem::at(
                array.at,
                format!("item {index} is {} bytes long", item.value.len()),
                format!("at most {MAX_ITEM} bytes"),
            ));
        }
        Ok(elements)
    }

    pub fn count(&self) -> u64 {
        match self {
            Self::Range(range) => range.count(),
            Self::List(items) => items.len() as u64,
        }
    }

    /// The value of an element below the count.
    pub fn value(&self, index: u32) -> Cow<'_, str> {
        match self {
            Self::Range(range) => Cow::Owned(range.value(index).to_string()),
            Self::List(items) => Cow::Borrowed(&items[index as usize].value),
        }
    }

    /// The index of the longest value: the worst case of every size check.
    pub fn longest(&self) -> u32 {
        let at = match self {
            Self::Range(range) => {
                let last = range.count() - 1;
                if range.value(0).to_string().len() > range.value(last as u32).to_string().len() {
                    0
                } else {
                    last
                }
            }
            Self::List(items) => {
                let longest = items.iter().enumerate().max_by_key(|(_, item)| item.value.len());
                longest.map_or(0, |(index, _)| index as u64)
            }
        };
        at as u32
    }

    /// Calls `each` for every element.
    pub fn try_for_each<E>(&self, mut each: impl FnMut(Element) -> Result<(), E>) -> Result<(), E> {
        (0..self.count() as u32).try_for_each(|index| each(Element { index, item: &self.value(index) }))
    }
}

fn plain(value: String) -> Item {
    Item { value, file: None }
}

fn lines(array: &Spot<Array>, path: &str, base: &Path) -> Result<Elements, Problem> {
    let wrong = |what: String, expected: &str| Problem::at(array.at, what, expected);
    let expected = "a text file with one item a line, relative to the job file";
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => wrong(format!("there is no file {}", quote(path)), expected),
        _ => wrong(format!("{}: {error}", quote(path)), expected),
    };
    let mut text = Vec::new();
    let file = fs::File::open(base.join(path)).map_err(failed)?;
    file.take(MAX_LINES_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_LINES_FILE {
        return Err(wrong(format!("{} is longer than {MAX_LINES_FILE} bytes", quote(path)), "a shorter one"));
    }
    let text =
        String::from_utf8(text).map_err(|_| wrong(format!("{} is not valid UTF-8", quote(path)), "text"))?;
    // A newline ends a line: what stands after the last one is a line only if there is something.
    let body = text.strip_suffix('\n').unwrap_or(&text);
    if text.is_empty() {
        return Err(wrong(format!("{} is empty", quote(path)), "at least one line"));
    }
    if body.contains('\0') {
        return Err(wrong(format!("{} contains a NUL byte", quote(path)), "text without it"));
    }
    let items: Vec<Item> = body
        .split('\n')
        .take(limits::MAX_TASKS as usize + 1)
        .map(|line| plain(line.strip_suffix('\r').unwrap_or(line).to_owned()))
        .collect();
    Ok(Elements::List(items))
}

fn matching(
    array: &Spot<Array>,
    pattern: &str,
    base: &Path,
    files: &mut FileTable,
) -> Result<Elements, Problem> {
    let wrong = |what: String, expected: &str| Problem::at(array.at, what, expected);
    if pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
        return Err(wrong(
            format!("the glob {} leaves the job file's directory", quote(pattern)),
            "a relative one: each file is an input at its relative path",
        ));
    }
    let paths = glob::expand(base, pattern).map_err(|error| {
        wrong(format!("the glob {} {}", quote(pattern), names::escape(&error.to_string())), "a glob of files")
    })?;
    let mut items = Vec::new();
    for path in paths {
        let local = base.join(&path);
        if local.is_dir() {
            continue;
        }
        inputs::check_place(&path, array.at)?;
        let file =
            files.add(&local).map_err(|error| wrong(names::escape(&error.to_string()), "a regular file"))?;
        items.push(Item { value: path, file: Some(file) });
    }
    if items.is_empty() {
        return Err(wrong(format!("no file matches {}", quote(pattern)), "at least one"));
    }
    Ok(Elements::List(items))
}
