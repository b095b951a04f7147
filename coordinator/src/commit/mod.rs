//! The group commit: the only way from the engine's memory to the outside.
//!
//! ```text
//! handlers ──Core::ask/tell──▶ queue ──▶ engine.handle … engine.settle ──▶ pending batch
//!                                                                             │ one at a time
//!                      replies, assignments, acks, watchers ◀──says── COMMIT ◀┘ writes
//! ```
//!
//! * **One commit at a time; while it is under way the next batch gathers.** What somebody
//!   waits for is committed at once: an answer, an assignment, a job's end. Starts and ends that
//!   nobody waits for may gather for a moment (`batch.rs`), for very short tasks would pay a
//!   commit each; the moment is an upper bound, not a beat.
//! * **Nothing is said before the commit that holds it.** What the engine says in a batch
//!   without writes still waits for the commit before it, because it may rest on it.
//! * **Fenced.** Every commit begins by raising the leader's seq under its own epoch. Zero
//!   rows: somebody else leads, and this process stands by (`standby`), or ends when it shares
//!   nothing with the other.
//! * **Crash-only.** If a commit fails, or its outcome is unknown, the engine's memory is
//!   thrown away and a new *term* begins: connect, take a new epoch (so that a COMMIT whose
//!   answer was lost either is visible to the read that follows or can never land), read
//!   everything unfinished, ask the agents to register again. A start takes the same path.
//! * **Poison.** When the database refuses the rows themselves (SQLSTATE class 22 or 23, or a
//!   guarded write that hits too few rows), the events of the batch are handled again in
//!   halves, each half on memory that was read anew, until the guilty one stands alone; that
//!   one is refused, the others go through. When the outcome is unknown, callers are told
//!   `UNAVAILABLE` and agents send again.
//! * **Patience.** A commit that does not come back in time counts as failed, so that callers
//!   are refused instead of kept waiting; its epoch is over before anything new is read.
//! * **Queue.** Bounded; who asks waits while it is full.

mod batch;
mod core;
mod handle;
mod lead;
mod outside;
mod standby;
mod standing;
mod term;
#[cfg(test)]
mod tests;

pub use core::{CommitLoop, Options};
pub use handle::{Core, CoreError, Phase, halted_status, standby_status};
pub use outside::Outside;
pub use standby::{Pulse, look_every};
pub use standing::Standing;
