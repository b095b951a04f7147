//! Globs over local files: `*`, `?`, `[…]` within a part of the path, `**` over any number
//! of directories. As in a shell, a leading dot must be asked for; braces are literal.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobMatcher};
use mesh_proto::limits;

/// Why a glob cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum GlobError {
    #[error("is no valid glob: {0}")]
    Pattern(String),
    #[error("ends in `/`")]
    Directory,
    #[error("cannot be expanded: {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("finds {0}, whose name is not valid UTF-8")]
    Name(PathBuf),
    #[error("finds more than {} files", limits::MAX_TASKS)]
    TooMany,
}

/// Directory entries that one glob may look at.
const MAX_VISITED: usize = 4_000_000;

/// Whether `pattern` is more than the name of one file.
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Makes `text` stand for itself inside a glob.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The directories before the first part that is a glob, with their trailing `/`.
pub fn prefix(pattern: &str) -> &str {
    let glob = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    pattern[..glob].rfind('/').map_or("", |slash| &pattern[..=slash])
}

/// The paths below `base` that match, written as the pattern is (relative stays relative),
/// sorted bytewise. Files, directories and symbolic links to either.
pub fn expand(base: &Path, pattern: &str) -> Result<Vec<String>, GlobError> {
    if pattern.ends_with('/') {
        return Err(GlobError::Directory);
    }
    let (root, rest) = match pattern.strip_prefix('/') {
        Some(rest) => ("/", rest),
        None => ("", pattern),
    };
    let parts = rest
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(Part::new)
        .collect::<Result<Vec<_>, _>>()?;
    let mut walk = Walk { base, found: Vec::new(), visited: 0 };
    walk.go(root, &parts)?;
    walk.found.sort_unstable();
    walk.found.dedup();
    Ok(walk.found)
}

enum Part {
    /// Just this name.
    Name(String),
    Glob(Box<GlobMatcher>, bool),
    /// `**`
    Any,
}

impl Part {
    fn new(text: &str) -> Result<Self, GlobError> {
        if text == "**" {
            return Ok(Self::Any);
        }
        if !text.contains(['*', '?', '[', '\\']) {
            return Ok(Self::Name(text.to_owned()));
        }
        let literal_braces: String = text
            .chars()
            .flat_map(|c| match c {
                '{' => vec!['\\', '{'],
                '}' => vec!['\\', '}'],
                c => vec![c],
            })
            .collect();
        let glob = GlobBuilder::new(&literal_braces)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|error| GlobError::Pattern(error.kind().to_string()))?;
        Ok(Self::Glob(Box::new(glob.compile_matcher()), text.starts_with('.')))
    }
}

struct Walk<'a> {
    base: &'a Path,
    found: Vec<String>,
    visited: usize,
}

impl Walk<'_> {
    /// `at` is empty or ends in `/`.
    fn go(&mut self, at: &str, parts: &[Part]) -> Result<(), GlobError> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        match part {
            Part::Name(name) => {
                let path = format!("{at}{name}");
                if rest.is_empty() {
                    if self.base.join(&path).symlink_metadata().is_ok() {
                        self.add(path)?;
                    }
                } else if self.base.join(&path).is_dir() {
                    self.go(&format!("{path}/"), rest)?;
                }
            }
            Part::Glob(matcher, dot) => {
                for (name, is_dir, _) in self.entries(at)? {
                    if (name.starts_with('.') && !dot) || !matcher.is_match(&name) {
                        continue;
                    }
                    if rest.is_empty() {
                        self.add(format!("{at}{name}"))?;
                    } else if is_dir {
                        self.go(&format!("{at}{name}/"), rest)?;
                    }
                }
            }
            Part::Any if rest.is_empty() => {
                // `a/**` is everything below `a`.
                for (name, is_dir, link) in self.entries(at)? {
                    if name.starts_with('.') {
                        continue;
                    }
                    if is_dir && !link {
                        self.go(&format!("{at}{name}/"), parts)?;
                    } else if !is_dir {
                        self.add(format!("{at}{name}"))?;
                    }
                }
            }
            Part::Any => {
                self.go(at, rest)?;
                for (name, is_dir, link) in self.entries(at)? {
                    // Links are not followed here: they may lead around in a circle.
                    if is_dir && !link && !name.starts_with('.') {
                        self.go(&format!("{at}{name}/"), parts)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: String) -> Result<(), GlobError> {
        if self.found.len() as u64 >= limits::MAX_TASKS {
            return Err(GlobError::TooMany);
        }
        self.found.push(path);
        Ok(())
    }

    /// Name, whether it is a directory (also through a link), whether it is a link.
    fn entries(&mut self, at: &str) -> Result<Vec<(String, bool, bool)>, GlobError> {
        let path = self.base.join(at);
        let failed = |source| GlobError::Io { path: path.clone(), source };
        let read = match fs::read_dir(if path.as_os_str().is_empty() { Path::new(".") } else { &path }) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut entries = Vec::new();
        for entry in read {
            let entry = entry.map_err(failed)?;
            self.visited += 1;
            if self.visited > MAX_VISITED {
                return Err(GlobError::TooMany);
            }
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name().into_string().map_err(|_| GlobError::Name(entry.path()))?;
            let link = kind.is_symlink();
            let is_dir = if link { entry.path().is_dir() } else { kind.is_dir() };
            entries.push((name, is_dir, link));
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    #[test]
    fn globs_find_what_a_shell_would() {
        let dir = tree(&[
            "a.jpg",
            "B.jpg",
            "b.JPG",
            ".hidden.jpg",
            "p/c.jpg",
            "p/q/d.jpg",
            "p/.git/e.jpg",
            "p/x{y}.txt",
            "p/[z].txt",
        ]);
        let go = |pattern: &str| expand(dir.path(), pattern).unwrap();
        assert_eq!(go("*.jpg"), ["B.jpg", "a.jpg"]);
        assert_eq!(go("./*.jpg"), ["B.jpg", "a.jpg"]);
        assert_eq!(go(".*.jpg"), [".hidden.jpg"]);
        assert_eq!(go("**/*.jpg"), ["B.jpg", "a.jpg", "p/c.jpg", "p/q/d.jpg"]);
        assert_eq!(go("p/**"), ["p/[z].txt", "p/c.jpg", "p/q/d.jpg", "p/x{y}.txt"]);
        assert_eq!(go("*/c.jpg"), ["p/c.jpg"]);
        assert_eq!(go("p/x{*}.txt"), ["p/x{y}.txt"]);
        assert_eq!(go(&format!("p/{}*", escape("[z]"))), ["p/[z].txt"]);
        assert_eq!(go("[ab].*"), ["a.jpg", "b.JPG"]);
        assert!(go("none/*").is_empty());
        let absolute = format!("{}/*.jpg", dir.path().display());
        assert_eq!(go(&absolute).len(), 2);
    }

    #[test]
    fn a_circle_of_links_ends() {
        let dir = tree(&["p/a.txt"]);
        std::os::unix::fs::symlink("..", dir.path().join("p/up")).unwrap();
        assert_eq!(expand(dir.path(), "**/*.txt").unwrap(), ["p/a.txt"]);
    }

    #[test]
    fn what_is_no_glob_says_so() {
        let dir = tree(&[]);
        assert!(matches!(expand(dir.path(), "a[b"), Err(GlobError::Pattern(_))));
        assert!(matches!(expand(dir.path(), "a*/"), Err(GlobError::Directory)));
    }

    #[test]
    fn the_prefix_is_what_stands_before_the_first_star() {
        assert_eq!(prefix("a/b/*.c"), "a/b/");
        assert_eq!(prefix("*.c"), "");
        assert_eq!(prefix("a/b*/c"), "a/");
    }
}
