//! What the end of one task means for those that need it.

use mesh_proto::ids::{JobNumber, TaskKey};

use super::{
    job::Job,
    machine::Engine,
    ranges::Elements,
    types::{TaskState, Time},
};

impl Engine {
    /// Makes every blocked element of a definition ready whose needs are met.
    pub(super) fn unblock_all(&mut self, now: Time, job: JobNumber, task: u32) {
        let Some(of) = self.jobs.get(&job) else { return };
        let Some(definition) = of.definition(task) else { return };
        let freed = met(of, task).intersection(&definition.blocked());
        self.make_ready(now, job, task, &freed);
    }

    /// A task completed: its dependents may go on.
    pub(super) fn unblock_dependents(&mut self, now: Time, key: TaskKey) {
        let Some(definition) = self.definition(key.job, key.task) else { return };
        let all = definition.completed.len() == u64::from(definition.total);
        for dependent in definition.dependents.clone() {
            if dependent.same_index {
                let freed = self.jobs.get(&key.job).is_some_and(|job| {
                    job.definition(dependent.task).is_some_and(|definition| definition.is_blocked(key.index))
                        && is_met(job, dependent.task, key.index)
                });
                if freed {
                    let one = Elements::of(key.index..key.index + 1);
                    self.make_ready(now, key.job, dependent.task, &one);
                }
            } else if all {
                self.unblock_all(now, key.job, dependent.task);
            }
        }
    }

    /// Elements were dropped: under `on_failure: continue` those that need them are dropped too.
    pub(super) fn drop_dependents(&mut self, job: JobNumber, task: u32, dropped: &Elements) {
        let mut work = vec![(task, dropped.clone())];
        while let Some((task, dropped)) = work.pop() {
            let Some(definition) = self.definition(job, task) else { continue };
            for dependent in definition.dependents.clone() {
                let Some(target) = self.definition_mut(job, dependent.task) else { continue };
                let gone = if dependent.same_index { target.blocked_of(&dropped) } else { target.blocked() };
                if gone.is_empty() {
                    continue;
                }
                for range in gone.iter() {
                    target.dropped.insert(range);
                }
                self.shift(job, dependent.task, TaskState::Blocked, TaskState::Cancelled, gone.len());
                work.push((dependent.task, gone));
            }
        }
    }

    fn make_ready(&mut self, now: Time, job: JobNumber, task: u32, freed: &Elements) {
        if freed.is_empty() {
            return;
        }
        if let Some(definition) = self.definition_mut(job, task) {
            if definition.ready.is_empty() {
                definition.ready_at = now;
            }
            for range in freed.iter() {
                definition.ready.insert(range);
            }
        }
        self.shift(job, task, TaskState::Blocked, TaskState::Queued, freed.len());
        self.requeue(job, task);
    }
}

/// The elements of a definition whose needs are met.
fn met(job: &Job, task: u32) -> Elements {
    let Some(definition) = job.definition(task) else { return Elements::default() };
    let mut met = Elements::of(0..definition.total);
    for need in &definition.needs {
        let Some(needed) = job.definition(need.task) else { return Elements::default() };
        if need.same_index {
            met = met.intersection(&needed.completed);
        } else if needed.completed.len() != u64::from(needed.total) {
            return Elements::default();
        }
    }
    met
}

/// Whether the needs of one element are met.
fn is_met(job: &Job, task: u32, index: u32) -> bool {
    job.definition(task).is_some_and(|definition| {
        definition.needs.iter().all(|need| {
            job.definition(need.task).is_some_and(|needed| {
                if need.same_index {
                    needed.completed.contains(index)
                } else {
                    needed.completed.len() == u64::from(needed.total)
                }
            })
        })
    })
}
