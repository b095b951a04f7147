//! The short queue at each node: tasks assigned beyond what is free, so that a slot never waits
//! for a round trip. The agent admits them in order as resources come free; the engine follows
//! its reckoning. Taking one back is a request that the agent answers `withdrawn` or `started`,
//! and no failure of anybody.

use std::sync::Arc;

use mesh_proto::ids::{AttemptKey, NodeId, TaskKey};

use super::{
    attempt::Finish,
    effect::{Ack, Effects, Say, Write},
    event::AttemptEnd,
    machine::Engine,
    placement::{Coefficients, QueueKey, admits},
    queue::DEEP_MS,
    task::Phase,
    types::{Cause, TaskState, Time},
};

/// Requests to take a task back that may be open at a time.
const MAX_WITHDRAWING: usize = 64;
/// Nodes that one round looks at on either side.
const LOOK: usize = 16;
/// A task is moved to an idle node when it would wait longer than this, in milliseconds: the
/// move itself costs a round trip and a commit.
const WORTH_MS: u64 = DEEP_MS;
/// Or when it has waited so long, whatever was expected.
const OVERDUE_MS: u64 = 2 * WORTH_MS;

impl Engine {
    /// Counts queued tasks of a node as running as far as they fit, in order.
    pub(super) fn promote(&mut self, id: NodeId) {
        loop {
            let Some(key) = self.nodes.get(&id).and_then(|node| node.queue.first()) else { return };
            let taken = self.task(key).and_then(|task| task.placed()).map(|placed| placed.taken.clone());
            let Some(node) = self.nodes.get_mut(&id) else { return };
            match taken {
                Some(taken) if !node.fits(&taken) => return,
                Some(_) | None => {}
            }
            self.grant(key);
        }
    }

    /// Counts one queued task as running: it fits, or its agent says that it has begun.
    pub(super) fn grant(&mut self, key: TaskKey) {
        let Some(placed) = self.task_mut(key).and_then(|task| task.placed_mut()) else { return };
        if placed.granted {
            return;
        }
        placed.granted = true;
        let (id, taken) = (placed.node, placed.taken.clone());
        if let Some(node) = self.nodes.get_mut(&id) {
            node.queue.remove(key);
            node.take(&taken);
        }
    }

    /// The agent gives an attempt back that it had not begun: the task waits for a node again.
    pub(super) fn attempt_withdrawn(
        &mut self,
        now: Time,
        node: NodeId,
        attempt: AttemptKey,
        fx: &mut Effects,
    ) {
        self.heard(now, node);
        let key = attempt.task;
        let begun =
            self.task(key).and_then(|task| task.placed()).is_some_and(|placed| placed.started_at.is_some());
        if begun || !self.is_current(node, attempt) {
            fx.says.push(Say::Ack { node, attempt, ack: Ack::Stale, ended: true });
            return;
        }
        self.adopt(key);
        fx.says.push(Say::Ack { node, attempt, ack: Ack::Durable, ended: true });
        let end = Arc::new(AttemptEnd::declared(Cause::Cancelled, "given back before it began"));
        let row = self.task(key).and_then(|task| task.attempt_row(key, Some((now, Arc::clone(&end)))));
        fx.writes.extend(row.map(Write::Attempt));
        let Some(placed) = self.unplace(now, key) else { return };
        if placed.cancelling {
            let (from, to) = (TaskState::Assigned, TaskState::Cancelled);
            let last = Finish { key, from, to, node: Some(node), started_at: None, end: &end };
            return self.finish(now, &last, fx);
        }
        let Some(definition) = self.definition_mut(key.job, key.task) else { return };
        let Some(task) = definition.live.get_mut(&key.index) else { return };
        task.phase = Phase::Queued { since: now };
        definition.again.insert(key.index);
        let row = task.row(key, None);
        fx.writes.push(Write::Task(row));
        self.shift(key.job, key.task, TaskState::Assigned, TaskState::Queued, 1);
        self.requeue(key.job, key.task);
    }

    /// Asks for tasks back that are better off elsewhere: for an idle node, or to make way for
    /// a higher priority.
    pub(super) fn take_back(&mut self, now: Time, fx: &mut Effects) {
        if self.index.queued.is_empty() || self.withdrawing >= MAX_WITHDRAWING {
            return;
        }
        if self.classes.nothing_waits() {
            self.feed_idle(now, fx);
        } else {
            self.make_way(fx);
        }
    }

    /// Idle nodes get what waits in the longest queues.
    fn feed_idle(&mut self, now: Time, fx: &mut Effects) {
        let idle: Vec<NodeId> = self.index.open.iter().take(LOOK).map(|(_, id)| *id).collect();
        for id in idle {
            let Some(key) = self.longest_for(now, id) else { continue };
            self.withdraw(key, fx);
        }
    }

    /// The last task of the longest queue that the idle node could begin at once.
    fn longest_for(&self, now: Time, idle: NodeId) -> Option<TaskKey> {
        let node = self.nodes.get(&idle).filter(|node| node.queue.is_empty())?;
        self.index.queued.iter().rev().take(LOOK).find_map(|(_, id)| {
            let other = self.nodes.get(id)?;
            let slots = other.slots().max(1) as u64;
            let (place, key, since) = other.queue.iter().enumerate().rev().find_map(|(place, key)| {
                let placed = self.task(key)?.placed().filter(|placed| !placed.withdrawing)?;
                Some((place, key, placed.assigned_at))
            })?;
            let definition = self.definition(key.job, key.task)?;
            let run_ms = definition.run_ms.or_else(|| self.classes.run_ms(definition.class)).unwrap_or(0);
            let waits_ms = run_ms * (place as u64 + 1) / slots;
            let worth = waits_ms >= WORTH_MS || now.since(since) >= OVERDUE_MS;
            let wanted = self.classes.requirements(definition.class)?;
            let fits = admits(&wanted, node).is_ok() && node.fits(&node.share(&wanted.resources));
            (worth && fits).then_some(key)
        })
    }

    /// A class that found no place asks a node to give back what waits there at a lower
    /// priority.
    fn make_way(&mut self, fx: &mut Effects) {
        for (head, class) in self.classes.heads().into_iter().take(LOOK) {
            let Some(wanted) = self.classes.requirements(class) else { continue };
            let lower = self.index.queued.iter().take(LOOK).find_map(|(_, id)| {
                let node = self.nodes.get(id).filter(|node| admits(&wanted, node).is_ok())?;
                let lower: Vec<TaskKey> = node.queue.iter().filter(|key| self.is_below(*key, head)).collect();
                (!lower.is_empty()).then_some(lower)
            });
            for key in lower.into_iter().flatten() {
                self.withdraw(key, fx);
            }
            if self.withdrawing >= MAX_WITHDRAWING {
                return;
            }
        }
    }

    /// Whether a queued task has a lower priority and was not asked for yet.
    fn is_below(&self, key: TaskKey, head: QueueKey) -> bool {
        let lower = self.jobs.get(&key.job).is_some_and(|job| job.priority < head.priority());
        let asked = self.task(key).and_then(|task| task.placed()).is_none_or(|placed| placed.withdrawing);
        lower && !asked
    }

    /// Everything that waits in a node's queue is asked for.
    pub(super) fn withdraw_all(&mut self, id: NodeId, fx: &mut Effects) {
        let queued: Vec<TaskKey> =
            self.nodes.get(&id).map(|node| node.queue.iter().collect()).unwrap_or_default();
        for key in queued {
            self.withdraw(key, fx);
        }
    }

    fn withdraw(&mut self, key: TaskKey, fx: &mut Effects) {
        let Some(task) = self.task_mut(key) else { return };
        let attempt = AttemptKey { task: key, number: task.attempt };
        let Some(placed) = task.placed_mut().filter(|placed| !placed.withdrawing) else { return };
        let node = placed.node;
        placed.withdrawing = true;
        self.withdrawing += 1;
        if let Some(session) = self.nodes.get(&node).and_then(|node| node.session).filter(|live| live.open) {
            fx.says.push(Say::Withdraw { node, session: session.id, attempt });
        }
    }

    /// A task is not being asked back any more: answered, or its session is over.
    pub(super) fn settle_withdrawal(&mut self, key: TaskKey) {
        if let Some(placed) = self.task_mut(key).and_then(|task| task.placed_mut())
            && std::mem::take(&mut placed.withdrawing)
        {
            self.withdrawing -= 1;
        }
    }

    /// Nodes that were left alone long enough may be tried again.
    pub(super) fn release_held(&mut self, now: Time) {
        while let Some((until, id)) = self.held.first().copied() {
            if until > now {
                return;
            }
            self.held.remove(&(until, id));
            if let Some(node) = self.nodes.get_mut(&id)
                && node.held_until.is_some_and(|held| held <= now)
            {
                node.held_until = None;
            }
            self.reindex(now, id);
        }
    }

    /// Notes how an attempt at a node ended, in so far as the node answers for it.
    pub(super) fn note(&mut self, now: Time, id: NodeId, good: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.note(now, good);
        if let Some(until) = node.held_until {
            self.held.insert((until, id));
        }
        self.reindex(now, id);
    }

    /// The score is weighed anew.
    pub(super) fn change_coefficients(&mut self, now: Time, coefficients: Coefficients) {
        let version = self.settings.coefficients.version + 1;
        self.settings.coefficients = Coefficients { version, ..coefficients };
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.reindex(now, id);
        }
    }
}
