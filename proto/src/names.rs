//! Names that strangers choose, and paths that travel: what is allowed.

use std::fmt::Write as _;

/// Longest name in bytes.
pub const MAX_NAME: usize = 64;
/// Longest relative path in bytes.
pub const MAX_PATH: usize = 1024;
/// The capability of agents that end tasks with `on_disconnect: kill` when their lease is over;
/// such tasks ask for it by themselves.
pub const LEASE: &str = "on_disconnect.kill";

/// Why a name or path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("is {0} bytes long, at most {1} are allowed")]
    Long(usize, usize),
    #[error("begins with {0:?}")]
    Start(char),
    #[error("contains {0:?}; allowed are a-z, 0-9, `.`, `_` and `-`")]
    Character(char),
    #[error("is absolute; a path relative to the work directory is expected")]
    Absolute,
    #[error("contains the part {0:?}")]
    Part(String),
    #[error("contains a NUL byte")]
    Nul,
}

/// A name of a node, job, task, tag, capability or resource: 1–64 of `[a-z0-9._-]`, not
/// beginning with `-` or `.`.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
        return Err(NameError::Character(bad));
    }
    if name.len() > MAX_NAME {
        return Err(NameError::Long(name.len(), MAX_NAME));
    }
    match name.chars().next() {
        Some(c @ ('-' | '.')) => Err(NameError::Start(c)),
        _ => Ok(()),
    }
}

/// A relative path of a file that moves between machines: no `.`, `..`, empty parts or NUL,
/// not absolute. One trailing `/` is allowed (a directory).
pub fn check_path(path: &str) -> Result<(), NameError> {
    if path.is_empty() {
        return Err(NameError::Empty);
    }
    if path.len() > MAX_PATH {
        return Err(NameError::Long(path.len(), MAX_PATH));
    }
    if path.starts_with('/') {
        return Err(NameError::Absolute);
    }
    if path.contains('\0') {
        return Err(NameError::Nul);
    }
    let body = path.strip_suffix('/').unwrap_or(path);
    match body.split('/').find(|part| matches!(*part, "" | "." | "..")) {
        Some(part) => Err(NameError::Part(part.to_owned())),
        None => Ok(()),
    }
}

/// Makes a stranger's text safe for a terminal or a log line: control characters (C0, DEL,
/// C1 and the bidirectional overrides) become `\xNN` or `\u{NNNN}`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            c if (c as u32) < 0x100 && c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_contract_says() {
        for good in ["a", "node-1", "x.y_z", "0", &"a".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good:?}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "a/b", "a\0", "é", "a\n", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?} was taken for a name");
        }
    }

    #[test]
    fn paths_stay_below_their_root() {
        for good in ["a", "a/b", "out/", "a b/ü.txt", "...", "-x"] {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
        for bad in ["", "/", "/a", "..", "a/..", "../a", "a//b", "./a", "a/./b", "a\0b", "a//"] {
            assert!(check_path(bad).is_err(), "{bad:?} was taken for a path");
        }
    }

    #[test]
    fn escapes_cannot_move_a_cursor() {
        assert_eq!(escape("a\x1b[2Jb\u{9b}c\u{202e}d\te\nf"), "a\\x1b[2Jb\\x9bc\\u{202e}d\te\\x0af");
    }
}
