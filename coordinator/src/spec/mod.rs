//! What a job asks for: checked once at the edge, read into the engine's words, and turned
//! into an assignment for one element. Pure: no I/O.

mod assignment;
mod check;
mod complete;
mod definition;
mod needs;
mod size;
#[cfg(test)]
mod tests;

pub use assignment::{Plan, PlannedTask, assignment, input_path};
pub use check::{Limits, SpecError, check, check_items};
pub use complete::complete;
pub use definition::{count, definitions};
pub use size::check_size;
