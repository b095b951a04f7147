//! `inputs`: which local files go to which places of the work directory.
//!
//! `from` is a file, a glob, `dir` (the directory itself) or `dir/` (what is in it). `to`
//! ending in `/` means into that directory under its own name, without it exactly there; for
//! a glob and for `dir/` it names the directory either way. Without `to` a thing keeps its
//! relative path. Symbolic links are followed.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use mesh_proto::{
    limits, names,
    template::{self, Element},
};
use walkdir::WalkDir;

use super::{
    files::{FileId, FileTable},
    glob,
    model::Input,
    problem::{Pos, Problem},
    tree::{quote, shorten},
};

/// Parameters by name.
pub type Params = HashMap<String, String>;

/// One file or empty directory at its place in the work directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub path: String,
    /// None: an empty directory.
    pub file: Option<FileId>,
}

/// Where inputs are looked for, and where they are remembered.
pub struct Place<'a> {
    pub base: &'a Path,
    pub params: &'a Params,
    pub files: &'a mut FileTable,
}

/// Whether an input differs from element to element.
pub fn is_template(input: &Input) -> bool {
    template::names_element(&input.from.value)
        || input.to.as_ref().is_some_and(|to| template::names_element(&to.value))
}

/// Everything that one input brings.
pub fn expand(input: &Input, element: Option<Element>, place: &mut Place) -> Result<Vec<Placed>, Problem> {
    let at = input.from.at;
    let replace = |text: &str, at: Pos, element| {
        template::replace(text, element, place.params)
            .map_err(|error| Problem::at(at, names::escape(&error.to_string()), ""))
    };
    let to = input.to.as_ref().map(|to| replace(&to.value, to.at, element)).transpose()?;
    // Whether it is a glob is the file's to say, not the item's: an item stands for itself.
    let blank = element.map(|element| Element { index: element.index, item: "" });
    let mut found = Found { placed: Vec::new(), at };
    if glob::is_glob(&replace(&input.from.value, at, blank)?) {
        let escaped = element.map(|element| glob::escape(element.item));
        let literal =
            element.zip(escaped.as_deref()).map(|(element, item)| Element { index: element.index, item });
        let pattern = replace(&input.from.value, at, literal)?;
        from_glob(&pattern, to.as_deref(), place, &mut found)?;
    } else {
        let from = replace(&input.from.value, at, element)?;
        from_path(&from, to.as_deref(), place, &mut found)?;
    }
    for placed in &found.placed {
        check_place(&placed.path, input.to.as_ref().map_or(at, |to| to.at))?;
    }
    Ok(found.placed)
}

/// A place in the work directory that an input may take.
pub fn check_place(path: &str, at: Pos) -> Result<(), Problem> {
    names::check_path(path).map_err(|error| {
        Problem::at(at, format!("the place {} {error}", quote(path)), "a path inside the work directory")
    })?;
    if path == "inputs" || path.starts_with("inputs/") {
        return Err(Problem::at(
            at,
            format!(
                "the place {} is inside `inputs/`, where the outputs of needed tasks arrive",
                quote(path)
            ),
            "another directory",
        ));
    }
    Ok(())
}

struct Found {
    placed: Vec<Placed>,
    at: Pos,
}

impl Found {
    fn add(&mut self, path: String, file: Option<FileId>) -> Result<(), Problem> {
        if self.placed.len() >= limits::MAX_ENTRIES {
            return Err(Problem::at(
                self.at,
                format!("this input has more than {} files", limits::MAX_ENTRIES),
                "fewer, or an archive of them",
            ));
        }
        self.placed.push(Placed { path, file });
        Ok(())
    }

    fn wrong(&self, error: impl std::fmt::Display, expected: &str) -> Problem {
        Problem::at(self.at, names::escape(&error.to_string()), expected)
    }
}

fn from_glob(pattern: &str, to: Option<&str>, place: &mut Place, found: &mut Found) -> Result<(), Problem> {
    let matches = glob::expand(place.base, pattern)
        .map_err(|error| found.wrong(format!("the glob {} {error}", quote(pattern)), "a glob of files"))?;
    if matches.is_empty() {
        return Err(found.wrong(format!("no file matches {}", quote(pattern)), "at least one"));
    }
    let prefix = glob::prefix(pattern);
    let prefix = prefix.strip_prefix("./").unwrap_or(prefix);
    for path in matches {
        let target = match to {
            Some(to) => join(to, path.strip_prefix(prefix).unwrap_or(&path)),
            None => keep(&path, found)?,
        };
        let local = place.base.join(&path);
        if local.is_dir() {
            directory(&local, &target, place, found)?;
        } else {
            let file = place.files.add(&local).map_err(|error| found.wrong(error, "a regular file"))?;
            found.add(target, Some(file))?;
        }
    }
    Ok(())
}

fn from_path(from: &str, to: Option<&str>, place: &mut Place, found: &mut Found) -> Result<(), Problem> {
    let local = place.base.join(from);
    let meta = std::fs::metadata(&local).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no file {}", quote(from)),
            _ => format!("{}: {error}", shorten(from)),
        };
        found.wrong(reason, "a file, a directory or a glob, relative to the job file")
    })?;
    let contents = from.ends_with('/');
    if meta.is_dir() {
        let target = match (contents, to) {
            (true, None) => String::new(),
            (true, Some(to)) => to.trim_end_matches('/').to_owned(),
            (false, to) => target(from, to, found)?,
        };
        return directory(&local, &target, place, found);
    }
    if contents {
        return Err(found.wrong(format!("{} is a file", quote(from)), "a directory before the `/`"));
    }
    let file = place.files.add(&local).map_err(|error| found.wrong(error, "a regular file"))?;
    let target = target(from, to, found)?;
    found.add(target, Some(file))
}

/// Where one file or directory goes.
fn target(from: &str, to: Option<&str>, found: &Found) -> Result<String, Problem> {
    match to {
        None => keep(from, found),
        Some(to) if to.ends_with('/') || to == "." => {
            let name = Path::new(from).file_name().and_then(|name| name.to_str());
            match name {
                Some(name) => Ok(join(to, name)),
                None => Err(found.wrong(format!("{} has no file name", quote(from)), "`to` with a name")),
            }
        }
        Some(to) => Ok(to.strip_prefix("./").unwrap_or(to).to_owned()),
    }
}

/// The relative path as it is, when it has one.
fn keep(from: &str, found: &Found) -> Result<String, Problem> {
    let parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if from.starts_with('/') || parts.is_empty() || parts.contains(&"..") {
        return Err(found.wrong(
            format!("{} is not below the job file's directory", quote(from)),
            "`to`, to say where it goes in the work directory",
        ));
    }
    Ok(parts.join("/"))
}

fn join(to: &str, rest: &str) -> String {
    let to = to.strip_prefix("./").unwrap_or(to).trim_end_matches('/');
    if to.is_empty() || to == "." { rest.to_owned() } else { format!("{to}/{rest}") }
}

/// A directory with everything in it; empty directories are kept.
fn directory(local: &Path, target: &str, place: &mut Place, found: &mut Found) -> Result<(), Problem> {
    let mut directories = Vec::new();
    let mut filled = HashSet::new();
    let walk = WalkDir::new(local).follow_links(true).min_depth(1).sort_by_file_name();
    for entry in walk {
        let entry = entry.map_err(|error| found.wrong(error, "a directory that can be read"))?;
        let below = entry.path().strip_prefix(local).unwrap_or(entry.path());
        let below = below.to_str().ok_or_else(|| {
            found.wrong(
                format!("the name of {} is not valid UTF-8", entry.path().display()),
                "a name in UTF-8",
            )
        })?;
        let path = if target.is_empty() { below.to_owned() } else { format!("{target}/{below}") };
        if let Some((parent, _)) = path.rsplit_once('/') {
            filled.insert(parent.to_owned());
        }
        if entry.file_type().is_dir() {
            directories.push(path);
        } else {
            let file = place.files.add(entry.path()).map_err(|error| found.wrong(error, "a regular file"))?;
            found.add(path, Some(file))?;
        }
    }
    if !target.is_empty() {
        directories.push(target.to_owned());
    }
    for path in directories {
        if !filled.contains(&path) {
            found.add(path, None)?;
        }
    }
    Ok(())
}

/// Refuses two things at one place, and a file where another needs a directory.
pub fn check_conflicts<'p>(placed: impl Iterator<Item = &'p Placed> + Clone, at: Pos) -> Result<(), Problem> {
    let mut seen: HashMap<&str, Option<FileId>> = HashMap::new();
    for placed in placed.clone() {
        match seen.insert(&placed.path, placed.file) {
            Some(before) if before != placed.file => {
                return Err(Problem::at(
                    at,
                    format!("two inputs go to {}", quote(&placed.path)),
                    "one for each place",
                ));
            }
            Some(_) | None => {}
        }
    }
    for placed in placed {
        let mut path = placed.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            if let Some(Some(_)) = seen.get(parent) {
                return Err(Problem::at(
                    at,
                    format!("{} goes below {}, which is a file", quote(&placed.path), quote(parent)),
                    "another place",
                ));
            }
            path = parent;
        }
    }
    Ok(())
}
