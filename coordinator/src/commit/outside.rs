//! What the commit room speaks to.

use mesh_proto::ids::JobNumber;

use crate::engine::{Totals, effect::Say, event::NewJob};

/// Takes what the engine says, after its commit. Must not block: what it cannot take at once
/// it queues within bounds, or drops the session that is too slow for it.
pub trait Outside: Send + 'static {
    fn say(&mut self, say: Say);

    /// A job is committed; what is said of it follows.
    fn accepted(&mut self, number: JobNumber, job: &NewJob);

    /// A new term began: every agent must register again, and who watches must look again, for
    /// what was committed last may never have been said.
    fn register_again(&mut self);

    /// Somebody else leads: what memory holds of the mesh is over.
    fn step_down(&mut self);

    /// The mesh at a glance, about four times a second.
    fn totals(&mut self, totals: Totals);
}
