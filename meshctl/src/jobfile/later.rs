//! Keys of the contract whose feature comes later: refused with that reason, never ignored.

use super::problem::{Pos, Problem};

/// What names the feature, and that it is not there.
pub fn not_yet(at: Pos, what: &str) -> Problem {
    Problem::at(
        at,
        format!("{what} comes in a later version; this one cannot honour it"),
        "a job file without it",
    )
}
