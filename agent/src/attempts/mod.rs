//! The attempts that this node holds, as a pure state machine: which run, which wait, what the
//! coordinator must still be told, what may be thrown away. It knows no clock, no file and no
//! network; `hub.rs` carries inputs in and effects out.
//!
//! ```text
//!              admitted            runner: Ended
//!   Waiting ─────────────▶ Active ───────────────▶ Ended ──▶ gone, once the end is durable at the
//!      │ withdrawn, cancelled │ discarded                    coordinator and so is all its output
//!      ▼                      ▼
//!   Withdrawn / Ended      gone, once the runner has ended the process
//! ```
//!
//! Invariants: an attempt runs at most once; every attempt the coordinator gave is answered by an
//! end or a withdrawal, sent again in each session until it is acknowledged; nothing is removed
//! while a process of it may live.
//!
//! May enter: ids, messages, std.

mod admission;
mod table;

pub use admission::{Capacity, MAX_RUNNING, Need};
pub use table::{Effect, Input, Shippable, Stop, Table};

#[cfg(test)]
mod tests;
