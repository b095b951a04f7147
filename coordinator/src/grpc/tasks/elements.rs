//! What elements without a row are: blocked, queued or cancelled. Pure: told by the counts of
//! the definitions where they tell it, else by the ends of the elements that are needed.
//!
//! An element is cancelled when something that it needs, directly or not, failed or was
//! cancelled. Under `same_index` that shows in the rows of the same index; a whole definition
//! that is needed takes everything along.

use std::collections::{HashMap, HashSet};

use mesh_proto::v1::{Counts, TaskState};

use crate::{
    grpc::convert,
    store::jobs::{DefinitionRecord, JobRecord},
};

/// The definitions of a job, and what they need.
pub(super) struct Elements<'a> {
    definitions: &'a [DefinitionRecord],
    /// The job is decided: whatever has no row was cancelled.
    over: bool,
    by_name: HashMap<&'a str, u32>,
}

/// What the elements of a definition are that have no row.
pub(super) enum Rest {
    All(TaskState),
    Each(Each),
}

/// Told element by element.
pub(super) struct Each {
    /// Needed element by element.
    direct: Vec<u32>,
    /// Everything whose end can cancel an element of the same index.
    above: Vec<u32>,
    /// Whatever is needed as a whole is completed.
    whole: bool,
    completed: HashMap<u32, HashSet<u32>>,
    bad: HashSet<u32>,
}

impl<'a> Elements<'a> {
    pub fn new(job: &JobRecord, definitions: &'a [DefinitionRecord]) -> Self {
        let by_name = definitions.iter().map(|one| (one.name.as_str(), one.task)).collect();
        Self { definitions, over: job.state.is_terminal() || job.ending.is_some(), by_name }
    }

    /// How many elements of a definition are in this state.
    pub fn count(&self, task: u32, state: TaskState) -> u64 {
        let counts = self.counts(task);
        match state {
            TaskState::Unspecified => 0,
            TaskState::Blocked => counts.blocked,
            TaskState::Queued => counts.queued,
            TaskState::Assigned => counts.assigned,
            TaskState::Running => counts.running,
            TaskState::Retrying => counts.retrying,
            TaskState::Completed => counts.completed,
            TaskState::Failed => counts.failed,
            TaskState::Cancelled => counts.cancelled,
        }
    }

    fn counts(&self, task: u32) -> Counts {
        self.definitions.get(task as usize).map(|one| convert::counts(&one.counts)).unwrap_or_default()
    }

    /// Needs of a definition: their positions, and whether element by element.
    fn needs(&self, task: u32) -> impl Iterator<Item = (u32, bool)> + '_ {
        let needs = self.definitions.get(task as usize).map(|one| &one.spec.needs[..]).unwrap_or_default();
        needs.iter().filter_map(|need| Some((*self.by_name.get(need.task.as_str())?, need.same_index)))
    }

    /// Whether something of a definition ended badly.
    fn is_bad(&self, task: u32) -> bool {
        let counts = self.counts(task);
        counts.failed + counts.cancelled > 0
    }

    fn is_complete(&self, task: u32) -> bool {
        self.definitions
            .get(task as usize)
            .is_some_and(|one| self.counts(task).completed == u64::from(one.total))
    }

    pub fn rest(&self, task: u32) -> Rest {
        if self.over {
            return Rest::All(TaskState::Cancelled);
        }
        let counts = self.counts(task);
        match (counts.blocked > 0, counts.queued > 0, counts.cancelled > 0) {
            (true, false, false) => return Rest::All(TaskState::Blocked),
            (false, true, false) => return Rest::All(TaskState::Queued),
            (false, false, true) => return Rest::All(TaskState::Cancelled),
            // Several, or none, which a later look may see differently.
            _ => {}
        }
        let mut above = Vec::new();
        let mut seen = HashSet::from([task]);
        let mut work = vec![task];
        while let Some(next) = work.pop() {
            for (needed, same_index) in self.needs(next) {
                // Where nothing ended badly, nothing above did either.
                if !self.is_bad(needed) {
                    continue;
                }
                if !same_index {
                    return Rest::All(TaskState::Cancelled);
                }
                if seen.insert(needed) {
                    above.push(needed);
                    work.push(needed);
                }
            }
        }
        Rest::Each(Each {
            direct: self.needs(task).filter(|(_, same)| *same).map(|(needed, _)| needed).collect(),
            above,
            whole: self.needs(task).all(|(needed, same)| same || self.is_complete(needed)),
            completed: HashMap::new(),
            bad: HashSet::new(),
        })
    }
}

impl Rest {
    pub fn state(&self, index: u32) -> TaskState {
        match self {
            Self::All(state) => *state,
            Self::Each(each) => each.state(index),
        }
    }
}

impl Each {
    /// The definitions whose ends must be seen.
    pub fn to_read(&self) -> Vec<u32> {
        let all: HashSet<u32> = self.direct.iter().chain(&self.above).copied().collect();
        all.into_iter().collect()
    }

    /// An element ended so.
    pub fn saw(&mut self, task: u32, index: u32, state: TaskState) {
        match state {
            TaskState::Completed => {
                self.completed.entry(task).or_default().insert(index);
            }
            TaskState::Failed | TaskState::Cancelled => {
                self.bad.insert(index);
            }
            TaskState::Unspecified
            | TaskState::Blocked
            | TaskState::Queued
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Retrying => {}
        }
    }

    fn state(&self, index: u32) -> TaskState {
        let done = |task: &u32| self.completed.get(task).is_some_and(|done| done.contains(&index));
        if self.bad.contains(&index) {
            TaskState::Cancelled
        } else if self.whole && self.direct.iter().all(done) {
            TaskState::Queued
        } else {
            TaskState::Blocked
        }
    }
}
