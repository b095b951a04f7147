//! Keys of the contract whose feature comes later: refused with that reason, never ignored.

use super::{
    fields::Fields,
    problem::{Pos, Problem},
};

/// Refuses what a task asks of features that are not there yet.
pub fn refuse(task: &Fields) -> Result<(), Problem> {
    if let Some(node) = task.get("on_disconnect") {
        match super::fields::one_of(node, "`on_disconnect`", &["keep", "kill"])? {
            "keep" => {}
            _ => return Err(not_yet(node.at, "`on_disconnect: kill`")),
        }
    }
    Ok(())
}

/// What names the feature, and that it is not there.
pub fn not_yet(at: Pos, what: &str) -> Problem {
    Problem::at(
        at,
        format!("{what} comes in a later version; this one cannot honour it"),
        "a job file without it",
    )
}
