//! A job and its task definitions. Elements of an array that were never assigned are kept as
//! ranges; only those with a row in the store are [`Task`]s.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::ids::{JobId, JobNumber};

use super::{
    event::Need,
    placement::ClassId,
    ranges::{Attempts, Elements},
    task::Task,
    types::{Counts, JobState, Retry, TaskState, Time},
};

/// An unfinished job.
#[derive(Clone, Debug)]
pub struct Job {
    pub number: JobNumber,
    pub uuid: JobId,
    pub owner: String,
    pub priority: u8,
    /// `on_failure: continue`.
    pub keep_going: bool,
    pub idempotency_key: Option<String>,
    pub payload_digest: [u8; 32],
    pub state: JobState,
    /// Failed or cancelled, decided, but processes still have to go.
    pub ending: Option<JobState>,
    pub reason: String,
    pub created_at: Time,
    pub started_at: Option<Time>,
    pub tasks: Vec<Definition>,
}

/// One task definition of an unfinished job. Each element is in exactly one of: blocked (in
/// none of the sets below), `ready`, `live`, `completed`, `dropped`.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: String,
    pub array: bool,
    pub total: u32,
    pub class: ClassId,
    pub retry: Retry,
    pub needs: Vec<Need>,
    /// Who needs this: their position, and whether element by element.
    pub dependents: Vec<Need>,
    /// Queued and never assigned.
    pub ready: Elements,
    /// Of `live`: waiting for a node, because they are queued again or their node is offline.
    pub again: BTreeSet<u32>,
    /// With a row in the store, not terminal.
    pub live: BTreeMap<u32, Task>,
    pub completed: Elements,
    /// Failed or cancelled.
    pub dropped: Elements,
    /// Of `dropped`: failed, the dead letters.
    pub dead: Elements,
    /// Of `dropped` and `ready`: those with a row in the store, by their latest attempt.
    pub past: Attempts,
    pub counts: Counts,
    /// When its elements became ready, for the time they waited.
    pub ready_at: Time,
    /// How long its tasks run, smoothed, in milliseconds; none before the first ended.
    pub run_ms: Option<u64>,
}

impl Job {
    /// The counts of all its tasks.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for definition in &self.tasks {
            counts.add(&definition.counts);
        }
        counts
    }

    /// The definition at `task`; keys come from inside, so it is there.
    #[must_use]
    pub fn definition(&self, task: u32) -> Option<&Definition> {
        self.tasks.get(task as usize)
    }
}

impl Definition {
    /// Elements that wait for what they need.
    #[must_use]
    pub fn blocked(&self) -> Elements {
        if self.counts[TaskState::Blocked] == 0 {
            return Elements::default();
        }
        self.unclaimed()
    }

    /// Those of `some` that wait for what they need. One element costs no walk over the others.
    #[must_use]
    pub fn blocked_of(&self, some: &Elements) -> Elements {
        match some.first() {
            Some(only) if some.len() == 1 => {
                if self.is_blocked(only) {
                    some.clone()
                } else {
                    Elements::default()
                }
            }
            _ => self.blocked().intersection(some),
        }
    }

    /// Elements that no other set has, found without the counts.
    #[must_use]
    pub fn unclaimed(&self) -> Elements {
        let mut blocked = Elements::of(0..self.total);
        blocked.subtract(&self.ready);
        blocked.subtract(&self.completed);
        blocked.subtract(&self.dropped);
        for index in self.live.keys() {
            blocked.remove(*index..*index + 1);
        }
        blocked
    }

    /// Whether this element waits for what it needs.
    #[must_use]
    pub fn is_blocked(&self, index: u32) -> bool {
        index < self.total
            && !self.ready.contains(index)
            && !self.completed.contains(index)
            && !self.dropped.contains(index)
            && !self.live.contains_key(&index)
    }

    /// Whether something of it waits for a node.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.again.is_empty()
    }
}
