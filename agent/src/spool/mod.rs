//! The tasks' output on its way to the coordinator: the jail appends to one spool file for each
//! attempt, this room ships its bytes by position, as far as the coordinator gives credit.
//!
//! Invariants: at most the window is unacknowledged, all attempts together; a byte is sent in
//! order and again only after a reconnect; an attempt with much output does not hold up others
//! (one chunk each in turn); nothing here ever waits for a result or makes one wait.

mod flow;
mod ship;

pub use flow::{Chunk, Flow};
pub use ship::ship;
