//! What is wrong with a job file: where, what, and what was expected instead.

use std::fmt;

/// A place in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    pub line: u32,
    pub column: u32,
}

impl Pos {
    pub const START: Self = Self { line: 1, column: 1 };

    pub fn new(line: u64, column: u64) -> Self {
        let fit = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).max(1);
        Self { line: fit(line), column: fit(column) }
    }
}

/// A value of the file with its place.
#[derive(Clone, Debug)]
pub struct Spot<T> {
    pub at: Pos,
    pub value: T,
}

/// One thing that is wrong: what was found, then what was expected.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub at: Pos,
    wrong: String,
    expected: String,
}

impl Problem {
    /// `expected` continues "expected …"; empty when `wrong` says it all.
    pub fn at(at: Pos, wrong: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { at, wrong: wrong.into(), expected: expected.into() }
    }
}

impl Problem {
    /// Without the place.
    pub fn message(&self) -> String {
        if self.expected.is_empty() {
            self.wrong.clone()
        } else {
            format!("{}; expected {}", self.wrong, self.expected)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.at.line, self.at.column, self.message())
    }
}
