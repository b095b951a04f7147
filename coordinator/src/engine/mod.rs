//! The engine: every decision about nodes, jobs, tasks and attempts, taken by one synchronous
//! state machine.
//!
//! ```text
//! handle(now, event, &mut effects)   one thing happened
//! settle(now, &mut effects)          once per batch: timers, placement, rows that changed
//! ```
//!
//! **What may enter:** values. No I/O, no clock, no randomness, no async, no database, no
//! wire; `tests/purity.rs` fails otherwise. Time is a parameter, ids are made outside.
//!
//! **What it promises.** Effects are *wishes*: the commit room writes `Effects::writes` in one
//! transaction under the leader's fence, and only then says `Effects::says`. So the engine may
//! run ahead of the disk; if a commit fails, it is thrown away and built anew from the store
//! ([`Engine::restore`]). Equal histories give equal decisions: every map is ordered.
//!
//! **Where to look.** `machine.rs` the door; `submit.rs` jobs come in; `place.rs` and
//! `placement/` tasks find nodes; `attempt.rs` attempts start and end, `retry.rs` what follows
//! from an end; `dag.rs` what unblocks or drops others; `cancel.rs`; `redrive.rs`; `nodes.rs` registration,
//! silence, reconciliation; `restore.rs` memory from the store; `check.rs` its invariants.

mod attempt;
mod cancel;
mod check;
mod dag;
pub mod effect;
pub mod event;
mod explain;
mod feed;
mod job;
mod machine;
mod node;
mod nodes;
mod place;
pub mod placement;
mod queue;
mod ranges;
mod redrive;
mod reserve;
mod restore;
mod retry;
mod submit;
mod task;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;

pub use explain::Explanation;
pub use machine::{Engine, Finished, JOB_STATES, Totals};
pub use ranges::{Attempts, Elements};
pub use restore::{Snapshot, StoredDefinition, StoredJob, StoredPlace, StoredTask};
