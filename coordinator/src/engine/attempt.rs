//! Attempts start and end. Every word of an agent is checked against the current attempt;
//! whatever comes from another one is stale.

use std::sync::Arc;

use mesh_proto::ids::{AttemptKey, NodeId, TaskKey};

use super::{
    effect::{Ack, Effects, Say, TaskRow, Write},
    event::AttemptEnd,
    machine::Engine,
    placement::smooth,
    ranges::Elements,
    retry::{self, Blame, Next},
    task::{Phase, Placed},
    types::{Confined, JobState, TaskState, Time},
};

/// The last change of a task.
pub(super) struct Finish<'a> {
    pub key: TaskKey,
    pub from: TaskState,
    pub to: TaskState,
    /// Where its last attempt was.
    pub node: Option<NodeId>,
    pub started_at: Option<Time>,
    pub end: &'a Arc<AttemptEnd>,
}

impl Engine {
    /// The agent started the process.
    pub(super) fn attempt_started(
        &mut self,
        now: Time,
        node: NodeId,
        attempt: AttemptKey,
        sandbox: Confined,
        fx: &mut Effects,
    ) {
        self.heard(now, node);
        if !self.is_current(node, attempt) {
            fx.says.push(Say::Ack { node, attempt, ack: Ack::Stale, ended: false });
            return;
        }
        self.adopt(attempt.task);
        fx.says.push(Say::Ack { node, attempt, ack: Ack::Durable, ended: false });
        self.note_start(now, attempt.task, Some(sandbox), fx);
    }

    /// The current attempt of a task runs. An inventory says so without the level, which the
    /// agent's own word brings later.
    pub(super) fn note_start(
        &mut self,
        now: Time,
        key: TaskKey,
        sandbox: Option<Confined>,
        fx: &mut Effects,
    ) {
        let Some(placed) = self.task_mut(key).and_then(|task| task.placed_mut()) else { return };
        let first = placed.started_at.is_none();
        if !first && (placed.sandbox.is_some() || sandbox.is_none()) {
            return;
        }
        placed.started_at.get_or_insert(now);
        placed.sandbox = placed.sandbox.or(sandbox);
        if first {
            let node = placed.node;
            self.settle_withdrawal(key);
            self.grant(key);
            self.reindex(now, node);
            self.shift(key.job, key.task, TaskState::Assigned, TaskState::Running, 1);
            self.job_started(now, key);
        }
        self.write_task(key, fx);
    }

    /// The agent tells how it ended.
    pub(super) fn attempt_ended(
        &mut self,
        now: Time,
        node: NodeId,
        attempt: AttemptKey,
        end: &Arc<AttemptEnd>,
        fx: &mut Effects,
    ) {
        self.heard(now, node);
        if !self.is_current(node, attempt) {
            fx.says.push(Say::Ack { node, attempt, ack: Ack::Stale, ended: true });
            return;
        }
        self.adopt(attempt.task);
        fx.says.push(Say::Ack { node, attempt, ack: Ack::Durable, ended: true });
        if end.started
            && let Some(placed) = self.task_mut(attempt.task).and_then(|task| task.placed_mut())
            && placed.started_at.is_none()
        {
            placed.started_at = Some(Time(now.0.saturating_sub(end.run_ms)).max(placed.assigned_at));
            self.shift(attempt.task.job, attempt.task.task, TaskState::Assigned, TaskState::Running, 1);
            self.job_started(now, attempt.task);
        }
        self.end_attempt(now, attempt.task, end, fx);
    }

    /// Ends the current attempt of a task and decides what follows.
    pub(super) fn end_attempt(&mut self, now: Time, key: TaskKey, end: &Arc<AttemptEnd>, fx: &mut Effects) {
        let Some((row, state)) = self
            .task(key)
            .and_then(|task| Some((task.attempt_row(key, Some((now, Arc::clone(end))))?, task.state())))
        else {
            return;
        };
        let started_at = row.started_at;
        fx.writes.push(Write::Attempt(row));
        let Some(placed) = self.unplace(now, key) else { return };
        if end.started
            && let Some(node) = self.nodes.get_mut(&placed.node)
        {
            node.ran(end.run_ms);
        }
        let good = retry::blame(end.cause) == Blame::Task || end.is_success() || placed.cancelling;
        self.note(now, placed.node, good);
        if end.is_success()
            && let Some(definition) = self.definition_mut(key.job, key.task)
        {
            definition.run_ms = Some(smooth(definition.run_ms, end.run_ms));
            let class = definition.class;
            self.classes.ran(class, end.run_ms);
        }
        let lost_backoff = self.settings.lost_backoff_ms;
        let Some(definition) = self.definition_mut(key.job, key.task) else { return };
        let Some(task) = definition.live.get_mut(&key.index) else { return };
        let cancelling = placed.cancelling;
        if !end.is_success() && !cancelling {
            match retry::blame(end.cause) {
                Blame::Task => task.own_failures += 1,
                Blame::Infrastructure => task.losses += 1,
            }
        }
        let failures = (task.own_failures, task.losses);
        let attempt = AttemptKey { task: key, number: task.attempt };
        let next = retry::next(attempt, end, cancelling, failures, &definition.retry, lost_backoff);
        fx.says.push(Say::Ended {
            cause: end.cause,
            retried: matches!(next, Next::Again(_)),
            run_ms: end.run_ms,
        });
        let node = Some(placed.node);
        let finish = |to| Finish { key, from: state, to, node, started_at, end };
        match next {
            Next::Completed => self.finish(now, &finish(TaskState::Completed), fx),
            Next::Cancelled => self.finish(now, &finish(TaskState::Cancelled), fx),
            Next::Failed => self.finish(now, &finish(TaskState::Failed), fx),
            Next::Again(wait) => {
                if wait == 0 {
                    task.phase = Phase::Queued { since: now };
                    definition.again.insert(key.index);
                } else {
                    task.phase = Phase::Retrying { until: now.plus(wait) };
                    self.retries.insert((now.plus(wait), key));
                }
                let Some(task) = self.task(key) else { return };
                let to = task.state();
                let mut row = task.row(key, Some(Arc::clone(end)));
                row.node = node;
                fx.writes.push(Write::Task(row));
                self.shift(key.job, key.task, state, to, 1);
                self.requeue(key.job, key.task);
            }
        }
    }

    /// A task reaches a terminal state.
    pub(super) fn finish(&mut self, now: Time, last: &Finish<'_>, fx: &mut Effects) {
        let key = last.key;
        let Some(definition) = self.definition_mut(key.job, key.task) else { return };
        let Some(task) = definition.live.remove(&key.index) else { return };
        definition.again.remove(&key.index);
        let one = key.index..key.index + 1;
        if last.to == TaskState::Completed {
            definition.completed.insert(one.clone());
        } else {
            definition.dropped.insert(one.clone());
            definition.past.insert(one.clone(), task.attempt);
            if last.to == TaskState::Failed {
                definition.dead.insert(one.clone());
            }
        }
        fx.writes.push(Write::Task(TaskRow {
            key,
            state: last.to,
            attempt: task.attempt,
            node: last.node,
            own_failures: task.own_failures,
            losses: task.losses,
            end: Some(Arc::clone(last.end)),
            started_at: last.started_at,
            finished_at: Some(now),
        }));
        if let Phase::Retrying { until } = task.phase {
            self.retries.remove(&(until, key));
        }
        self.shift(key.job, key.task, last.from, last.to, 1);
        self.requeue(key.job, key.task);
        match last.to {
            TaskState::Completed => self.unblock_dependents(now, key),
            TaskState::Failed => self.task_failed(now, key, last.end, fx),
            TaskState::Cancelled => self.drop_dependents(key.job, key.task, &Elements::of(one)),
            TaskState::Unspecified
            | TaskState::Blocked
            | TaskState::Queued
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Retrying => {}
        }
    }

    fn task_failed(&mut self, now: Time, key: TaskKey, end: &AttemptEnd, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key.job) else { return };
        if job.keep_going {
            self.drop_dependents(key.job, key.task, &Elements::of(key.index..key.index + 1));
        } else if job.ending.is_none() {
            job.ending = Some(JobState::Failed);
            if let Some(definition) = job.tasks.get(key.task as usize) {
                let element = if definition.array { format!(".{}", key.index) } else { String::new() };
                job.reason = format!("{}{element} failed: {}", definition.name, describe(end));
            }
            self.cancel_rest(now, key.job, fx);
        }
    }

    /// Takes the current attempt from its node and gives its resources back. The task is left
    /// queued until its caller decides.
    pub(super) fn unplace(&mut self, now: Time, key: TaskKey) -> Option<Placed> {
        let definition = self.definition_mut(key.job, key.task)?;
        definition.again.remove(&key.index);
        let task = definition.live.get_mut(&key.index)?;
        let placed = task.placed()?.clone();
        task.phase = Phase::Queued { since: placed.assigned_at };
        if placed.withdrawing {
            self.withdrawing -= 1;
        }
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.tasks.remove(&key);
            node.resend.retain(|attempt| attempt.task != key);
            node.given_millis = node.given_millis.saturating_sub(placed.taken.cpu_millis);
            if placed.granted {
                node.release(&placed.taken);
            } else {
                node.queue.remove(key);
            }
        }
        self.promote(placed.node);
        self.reindex(now, placed.node);
        Some(placed)
    }

    /// Whether an attempt is the current one of its task, at this node.
    pub(super) fn is_current(&self, node: NodeId, attempt: AttemptKey) -> bool {
        self.task(attempt.task).is_some_and(|task| {
            task.attempt == attempt.number && task.placed().is_some_and(|placed| placed.node == node)
        })
    }

    /// An attempt whose node was offline is heard of again: it needs no replacement.
    pub(super) fn adopt(&mut self, key: TaskKey) {
        let Some(definition) = self.definition_mut(key.job, key.task) else { return };
        let Some(placed) = definition.live.get_mut(&key.index).and_then(|task| task.placed_mut()) else {
            return;
        };
        if placed.unreachable {
            placed.unreachable = false;
            definition.again.remove(&key.index);
            self.requeue(key.job, key.task);
        }
    }

    /// Writes the rows of a task and its current attempt as they stand.
    pub(super) fn write_task(&mut self, key: TaskKey, fx: &mut Effects) {
        let Some(task) = self.task(key) else { return };
        fx.writes.push(Write::Task(task.row(key, None)));
        if let Some(row) = task.attempt_row(key, None) {
            fx.writes.push(Write::Attempt(row));
        }
    }

    fn job_started(&mut self, now: Time, key: TaskKey) {
        if let Some(job) = self.jobs.get_mut(&key.job) {
            job.started_at.get_or_insert(now);
            job.state = JobState::Running;
        }
    }
}

/// An end in a few words, for the job's reason.
fn describe(end: &AttemptEnd) -> String {
    use mesh_proto::state::Named as _;
    match (end.exit_code, end.signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) if end.message.is_empty() => end.cause.lower().to_owned(),
        (None, None) => format!("{}: {}", end.cause.lower(), end.message),
    }
}
