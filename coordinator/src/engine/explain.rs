//! Why a task waits, or what it would find if it asked for something else.

use mesh_proto::ids::TaskKey;

use super::{
    effect::{Effects, Refusal, Reply, Say},
    event::{ReplyId, WhatIf},
    machine::Engine,
    placement::{QueueKey, Survey, survey},
    task::Phase,
    types::{Requirements, TaskState, Time},
};

/// What the engine says of a task now.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    pub state: TaskState,
    /// Needed definitions that are not completed: name, completed, total.
    pub waits_for: Vec<(String, u64, u64)>,
    /// Milliseconds until the backoff of a retry is over.
    pub retry_in_ms: Option<u64>,
    /// Definitions that are served before its own.
    pub ahead: u64,
    /// How many places in its node's short queue are before it.
    pub queue_place: Option<u32>,
    /// Its node is offline, and it waits for a replacement.
    pub unreachable: bool,
    pub survey: Survey,
}

impl Engine {
    /// Answers a question about a task of an unfinished job.
    pub(super) fn explain(
        &self,
        now: Time,
        reply: ReplyId,
        key: TaskKey,
        what_if: Option<&WhatIf>,
        fx: &mut Effects,
    ) {
        match self.explanation(now, key, what_if) {
            Some(explanation) => {
                fx.says.push(Say::Reply(reply, Reply::Explained(Box::new(explanation))));
            }
            None => Self::refuse(reply, Refusal::NoSuchJob, fx),
        }
    }

    fn explanation(&self, now: Time, key: TaskKey, what_if: Option<&WhatIf>) -> Option<Explanation> {
        let job = self.jobs.get(&key.job)?;
        let definition = job.definition(key.task)?;
        if key.index >= definition.total {
            return None;
        }
        let task = definition.live.get(&key.index);
        let state = match task {
            Some(task) => task.state(),
            None if definition.ready.contains(key.index) => TaskState::Queued,
            None if definition.completed.contains(key.index) => TaskState::Completed,
            None if definition.dropped.contains(key.index) => TaskState::Cancelled,
            None => TaskState::Blocked,
        };
        let waits_for = definition
            .needs
            .iter()
            .filter_map(|need| {
                let needed = job.definition(need.task)?;
                let (done, total) = if need.same_index {
                    (u64::from(needed.completed.contains(key.index)), 1)
                } else {
                    (needed.completed.len(), u64::from(needed.total))
                };
                (done < total).then(|| (needed.name.clone(), done, total))
            })
            .collect();
        let retry_in_ms = task.and_then(|task| match task.phase {
            Phase::Retrying { until } => Some(until.since(now)),
            Phase::Queued { .. } | Phase::Placed(_) => None,
        });
        let placed = task.and_then(|task| task.placed());
        let queue_place = placed.filter(|placed| !placed.granted).and_then(|placed| {
            let node = self.nodes.get(&placed.node)?;
            node.queue.iter().position(|queued| queued == key).map(|place| place as u32)
        });
        let wanted = self.classes.requirements(definition.class)?;
        let wanted = match what_if {
            Some(change) => changed(&wanted, change),
            None => (*wanted).clone(),
        };
        Some(Explanation {
            state,
            waits_for,
            retry_in_ms,
            ahead: self.classes.ahead(QueueKey::new(job.priority, key.job, key.task)) as u64,
            queue_place,
            unreachable: placed.is_some_and(|placed| placed.unreachable),
            survey: survey(&self.nodes, &wanted, now, &self.settings.coefficients),
        })
    }
}

fn changed(wanted: &Requirements, change: &WhatIf) -> Requirements {
    let mut wanted = wanted.clone();
    if let Some(cpu) = change.cpu_millis {
        wanted.resources.cpu_millis = cpu;
    }
    if let Some(memory) = change.memory {
        wanted.resources.memory = memory;
    }
    for (tag, value) in &change.tags {
        match value {
            Some(value) => wanted.tags.insert(tag.clone(), value.clone()),
            None => wanted.tags.remove(tag),
        };
    }
    if let Some(node) = &change.node {
        wanted.node.clone_from(node);
    }
    if let Some(level) = change.sandbox {
        wanted.sandbox = level;
    }
    wanted
}
