//! Jobs are cancelled, by a person or because one of their tasks failed. What never ran is
//! cancelled at once; what runs is cancelled when its process is gone or its node is offline.

use std::sync::Arc;

use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, TaskKey};

use super::{
    attempt::Finish,
    effect::{Effects, Move, Moved, Refusal, Reply, Say, Write},
    event::{AttemptEnd, ReplyId},
    machine::Engine,
    task::Phase,
    types::{Cause, JobState, TaskState, Time},
};

impl Engine {
    /// A person cancels a job. The answer comes when that is durable, not when all is over. A job
    /// that is failing already ends as cancelled, so that nobody tries it again.
    pub(super) fn cancel_job(
        &mut self,
        now: Time,
        reply: ReplyId,
        number: JobNumber,
        reason: &str,
        fx: &mut Effects,
    ) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return Self::refuse(reply, Refusal::NoSuchJob, fx);
        };
        let before = job.ending.replace(JobState::Cancelled);
        if before != Some(JobState::Cancelled) {
            reason.clone_into(&mut job.reason);
            self.dirty.entry(number).or_default();
        }
        if before.is_none() {
            self.cancel_rest(now, number, fx);
        }
        fx.says.push(Say::Reply(reply, Reply::Cancelled { number, state: JobState::Cancelled }));
    }

    /// Cancels whatever of a job is not over.
    pub(super) fn cancel_rest(&mut self, now: Time, number: JobNumber, fx: &mut Effects) {
        self.dirty.entry(number).or_default();
        let definitions = self.jobs.get(&number).map_or(0, |job| job.tasks.len() as u32);
        for task in 0..definitions {
            self.drop_unassigned(now, number, task, fx);
            let live: Vec<u32> = self
                .definition(number, task)
                .map(|definition| definition.live.keys().copied().collect())
                .unwrap_or_default();
            for index in live {
                self.cancel_task(now, TaskKey { job: number, task, index }, fx);
            }
            self.requeue(number, task);
        }
    }

    fn drop_unassigned(&mut self, now: Time, number: JobNumber, task: u32, fx: &mut Effects) {
        let Some(definition) = self.definition_mut(number, task) else { return };
        let blocked = definition.blocked();
        let ready = std::mem::take(&mut definition.ready);
        let elements = definition.past.among(&ready);
        if !elements.is_empty() {
            fx.writes.push(Write::Moved(Moved { job: number, task, elements, how: Move::Dropped, at: now }));
        }
        for range in blocked.iter().chain(ready.iter()) {
            definition.dropped.insert(range);
        }
        self.shift(number, task, TaskState::Blocked, TaskState::Cancelled, blocked.len());
        self.shift(number, task, TaskState::Queued, TaskState::Cancelled, ready.len());
    }

    fn cancel_task(&mut self, now: Time, key: TaskKey, fx: &mut Effects) {
        let Some(task) = self.task_mut(key) else { return };
        let from = task.state();
        match &mut task.phase {
            Phase::Queued { .. } | Phase::Retrying { .. } => {
                let end = Arc::new(AttemptEnd::declared(Cause::Cancelled, "cancelled while it waited"));
                let to = TaskState::Cancelled;
                self.finish(now, &Finish { key, from, to, node: None, started_at: None, end: &end }, fx);
            }
            Phase::Placed(placed) => {
                placed.cancelling = true;
                let (node, unreachable) = (placed.node, placed.unreachable);
                let attempt = AttemptKey { task: key, number: task.attempt };
                if unreachable {
                    self.end_attempt(now, key, &lost("its node is offline"), fx);
                } else {
                    self.say_cancel(node, attempt, fx);
                }
            }
        }
    }

    /// Asks the node to end an attempt; while it is away, the next session brings it.
    pub(super) fn say_cancel(&self, node: NodeId, attempt: AttemptKey, fx: &mut Effects) {
        let Some(session) = self.nodes.get(&node).and_then(|node| node.session) else { return };
        if session.open {
            let reason = self.jobs.get(&attempt.task.job).map(|job| job.reason.clone()).unwrap_or_default();
            fx.says.push(Say::Cancel { node, session: session.id, attempt, reason });
        }
    }
}

/// The end that the coordinator declares for an attempt whose node is gone.
pub(super) fn lost(why: &str) -> Arc<AttemptEnd> {
    Arc::new(AttemptEnd::declared(Cause::Lost, why))
}
