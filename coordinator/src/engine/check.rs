//! The engine's own invariants, checked by its tests after every event.

use std::collections::BTreeSet;

use mesh_proto::ids::TaskKey;

use super::{
    machine::Engine,
    types::{Counts, Resources, TaskState},
};

impl Engine {
    /// The first invariant that does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut totals = Counts::default();
        let mut placed: BTreeSet<TaskKey> = BTreeSet::new();
        for job in self.jobs.values() {
            for (task, definition) in job.tasks.iter().enumerate() {
                let mut counts = Counts::default();
                counts[TaskState::Blocked] = definition.blocked().len();
                counts[TaskState::Queued] = definition.ready.len();
                counts[TaskState::Completed] = definition.completed.len();
                let dropped = definition.dropped.len();
                for (index, live) in &definition.live {
                    counts[live.state()] += 1;
                    let key = TaskKey { job: job.number, task: task as u32, index: *index };
                    let waits = definition.again.contains(index);
                    let should_wait =
                        live.placed().map_or(live.state() == TaskState::Queued, |placed| placed.unreachable);
                    if waits != should_wait {
                        return Err(format!("{key} waits: {waits}, should: {should_wait}"));
                    }
                    if let Some(place) = live.placed() {
                        placed.insert(key);
                        let known = self.nodes.get(&place.node).is_some_and(|node| node.tasks.contains(&key));
                        if !known {
                            return Err(format!("{key} is not among the tasks of its node"));
                        }
                    }
                }
                counts[TaskState::Failed] = definition.counts[TaskState::Failed];
                counts[TaskState::Cancelled] = dropped - counts[TaskState::Failed].min(dropped);
                if counts != definition.counts {
                    return Err(format!(
                        "job {} task {task}: counted {counts:?}, noted {:?}",
                        job.number, definition.counts
                    ));
                }
                totals.add(&counts);
            }
        }
        if totals != self.totals {
            return Err(format!("totals are {totals:?}, noted {:?}", self.totals));
        }
        for node in self.nodes.values() {
            let mut used = Resources::default();
            for key in &node.tasks {
                if !placed.remove(key) {
                    return Err(format!("{} holds {key}, which is not placed", node.record.name));
                }
                if let Some(place) = self.task(*key).and_then(|task| task.placed()) {
                    if place.node != node.record.id {
                        return Err(format!("{} holds {key} of another node", node.record.name));
                    }
                    used.cpu_millis += place.taken.cpu_millis;
                    used.memory += place.taken.memory;
                }
            }
            if (used.cpu_millis, used.memory) != (node.used.cpu_millis, node.used.memory) {
                return Err(format!("{} uses {used:?}, noted {:?}", node.record.name, node.used));
            }
        }
        match placed.first() {
            Some(key) => Err(format!("{key} is placed nowhere")),
            None => Ok(()),
        }
    }

    /// Whether every node holds at most what it has.
    pub fn check_capacity(&self) -> Result<(), String> {
        for node in self.nodes.values() {
            let Some(facts) = &node.facts else { continue };
            let named = node
                .used
                .named
                .iter()
                .all(|(name, used)| *used <= facts.total.named.get(name).copied().unwrap_or(0));
            if node.used.cpu_millis > facts.total.cpu_millis
                || node.used.memory > facts.total.memory
                || !named
            {
                return Err(format!("{} holds {:?} of {:?}", node.record.name, node.used, facts.total));
            }
        }
        Ok(())
    }
}
