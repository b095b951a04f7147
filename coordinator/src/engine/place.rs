//! A round of placement: waiting tasks meet nodes. See `placement/README.md`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, TaskKey};

use super::{
    cancel::lost,
    effect::{Effects, Move, Moved, Say, Write},
    job::Definition,
    machine::Engine,
    node::Node,
    placement::{BEST, Candidate, Candidates, ClassId, Decision, Offer, QueueKey, Terms, admits},
    queue::DEEP_MS,
    ranges::Elements,
    task::{Phase, Placed, Task},
    types::{Requirements, Resources, TaskState, Time},
};

/// A class that waits and that an offer has nothing for.
type Ahead = (QueueKey, ClassId, Arc<Requirements>);

/// Nodes that the record of a decision looks at.
const LOOK: usize = 32;

impl Engine {
    /// Gives waiting tasks to nodes, by priority and age: first what is free, then places in
    /// the short queues of busy nodes, then those beyond the slots.
    pub(super) fn place(&mut self, now: Time, fx: &mut Effects) {
        self.serve_reserved(now, fx);
        self.serve(now, Offer::Free, fx);
        self.serve(now, Offer::Queue, fx);
        self.serve(now, Offer::Deep, fx);
    }

    fn serve(&mut self, now: Time, offer: Offer, fx: &mut Effects) {
        if self.classes.nothing_waits() || self.none_offers(offer) {
            return;
        }
        let mut heads = self.classes.heads();
        let mut rounds: BTreeMap<ClassId, Candidates> = BTreeMap::new();
        let mut without_room: Vec<ClassId> = Vec::new();
        let mut ahead: Vec<Ahead> = Vec::new();
        while let Some((key, class)) = heads.pop_first() {
            let Some(wanted) = self.classes.requirements(class) else { continue };
            if offer != Offer::Free
                && !rounds.contains_key(&class)
                && self.definition(key.job, key.task).is_some_and(Definition::has_waiting)
                && !self.has_for(offer, key, class)
            {
                ahead.push((key, class, Arc::clone(&wanted)));
            }
            let mut candidates = match rounds.remove(&class) {
                Some(candidates) => candidates,
                None => self.candidates(class, offer, &wanted),
            };
            let mut served = false;
            let exhausted = loop {
                if !self.has_for(offer, key, class) {
                    // This definition is served; the next one of the class may go on.
                    if let Some(next) = self.classes.after(class, key) {
                        heads.insert((next, class));
                    }
                    break false;
                }
                let Some((node, share)) = candidates.choose(&self.index, &self.nodes, &wanted) else {
                    break true;
                };
                if self.is_kept(node, key, offer, &ahead) {
                    continue;
                }
                served = true;
                if self.assign(now, key, node, share, offer, fx)
                    && let Some(node) = self.nodes.get(&node)
                {
                    candidates.offer(node);
                }
            };
            if served {
                self.classes.served(class);
                match offer {
                    Offer::Free => {
                        for earlier in std::mem::take(&mut without_room) {
                            self.passed_over(now, earlier);
                        }
                    }
                    // What is queued takes what comes free: nothing is left to those before it.
                    Offer::Queue => {
                        for (_, earlier, _) in &ahead {
                            self.passed_over(now, *earlier);
                        }
                    }
                    Offer::Deep => {}
                }
            }
            if exhausted {
                self.classes.exhaust(class, offer, self.index.position());
                if !served {
                    without_room.push(class);
                    if offer == Offer::Free && candidates.looked() {
                        let suitable = self.classes.suits_any(class, &self.nodes, self.facts);
                        fx.says.push(Say::Unplaced { suitable });
                    }
                }
            }
            if self.none_offers(offer) {
                return;
            }
            rounds.insert(class, candidates);
        }
    }

    /// Whether what comes free at a node is for an earlier class that waits and that this offer
    /// has nothing for. What was queued there meanwhile would be asked back at once for a higher
    /// priority. One of the same priority that is passed over so is given a node in time
    /// (`reserve.rs`); but nothing is queued deep before its turn.
    fn is_kept(&self, id: NodeId, key: QueueKey, offer: Offer, ahead: &[Ahead]) -> bool {
        self.nodes.get(&id).is_some_and(|node| {
            let first = |earlier: &QueueKey| match offer {
                Offer::Free => false,
                Offer::Queue => earlier.priority() > key.priority(),
                Offer::Deep => *earlier < key,
            };
            ahead.iter().any(|(earlier, _, wanted)| first(earlier) && admits(wanted, node).is_ok())
        })
    }

    fn none_offers(&self, offer: Offer) -> bool {
        match offer {
            Offer::Free => self.index.open.is_empty(),
            Offer::Queue => self.index.feeds.is_empty(),
            Offer::Deep => self.index.deep.is_empty(),
        }
    }

    fn candidates(&mut self, class: ClassId, offer: Offer, wanted: &Requirements) -> Candidates {
        match self.classes.worth_a_look(class, offer, &self.index, &self.nodes, self.facts) {
            Some(ids) => Candidates::among(offer, ids, &self.nodes, wanted),
            None => Candidates::all(offer),
        }
    }

    /// Whether a definition has something for an offer: short queues take only short tasks, as
    /// far as their like tell; deep ones only what is very short by its own ends.
    fn has_for(&self, offer: Offer, key: QueueKey, class: ClassId) -> bool {
        let Some(definition) = self.definition(key.job, key.task) else { return false };
        match offer {
            Offer::Free => definition.has_waiting(),
            Offer::Queue => {
                let run_ms = definition.run_ms.or_else(|| self.classes.run_ms(class));
                definition.has_waiting() && run_ms.is_some_and(|run| run < self.settings.feed_below_ms)
            }
            Offer::Deep => {
                let most_ms = DEEP_MS.min(self.settings.feed_below_ms);
                definition.has_waiting() && definition.run_ms.is_some_and(|run| run < most_ms)
            }
        }
    }

    /// Gives the next waiting task of a definition to a node, and says whether the node can be
    /// offered more.
    pub(super) fn assign(
        &mut self,
        now: Time,
        queue: QueueKey,
        node: NodeId,
        share: Resources,
        offer: Offer,
        fx: &mut Effects,
    ) -> bool {
        let Some((boot, session)) = self.nodes.get(&node).and_then(|at| Some((at.boot()?, at.session?)))
        else {
            return false;
        };
        let decision = self.decision(now, queue, fx);
        let Some((key, since)) = self.next_waiting(now, queue, fx) else { return true };
        let expected_ms = self.nodes.get(&node).map_or(0, |at| self.expected_ms(key, at));
        let Some(at) = self.nodes.get_mut(&node) else { return false };
        let granted = offer == Offer::Free;
        at.given_millis += share.cpu_millis;
        if granted {
            at.take(&share);
        } else {
            at.queue.push(key, expected_ms);
        }
        at.tasks.insert(key);
        let first = self.first_attempt;
        let Some(definition) = self.definition_mut(key.job, key.task) else { return false };
        definition.again.remove(&key.index);
        let past = &mut definition.past;
        let task = definition.live.entry(key.index).or_insert_with(|| Task {
            attempt: past.take(key.index).unwrap_or(0),
            own_failures: 0,
            losses: 0,
            phase: Phase::Queued { since },
        });
        task.attempt = (task.attempt + 1).max(first);
        task.phase = Phase::Placed(Placed {
            node,
            boot,
            taken: share,
            assigned_at: now,
            started_at: None,
            sandbox: None,
            decision,
            granted,
            withdrawing: false,
            cancelling: false,
            unreachable: false,
        });
        let attempt = AttemptKey { task: key, number: task.attempt };
        self.shift(key.job, key.task, TaskState::Queued, TaskState::Assigned, 1);
        self.requeue(key.job, key.task);
        self.reindex(now, node);
        self.write_task(key, fx);
        fx.says.push(Say::Dispatch { node, session: session.id, attempt });
        fx.says.push(Say::Placed { node, waited_ms: now.since(since) });
        true
    }

    /// How long a task is expected to hold its place at a node, in milliseconds: as long as its
    /// like did, or as what ended there of late if that is longer.
    pub(super) fn expected_ms(&self, key: TaskKey, node: &Node) -> u64 {
        let definition = self.definition(key.job, key.task);
        let run_ms = definition.and_then(|known| known.run_ms.or_else(|| self.classes.run_ms(known.class)));
        run_ms.unwrap_or(self.settings.feed_below_ms).max(node.run_ms.unwrap_or(0))
    }

    /// The record of why tasks of this class go where they go at the moment: one for a tenth of
    /// a second, so that explaining a flood of small tasks costs nothing beside running them.
    fn decision(&mut self, now: Time, queue: QueueKey, fx: &mut Effects) -> Option<u64> {
        let class = self.definition(queue.job, queue.task)?.class;
        if let Some(id) = self.classes.decided(class, now) {
            return Some(id);
        }
        let wanted = self.classes.requirements(class)?;
        let rejected = self.classes.rejected(class, &self.nodes, self.facts);
        let by = self.settings.coefficients;
        let mut best = Vec::new();
        // In the order of their scores, so that the first that suit are the best.
        let order = if self.index.open.is_empty() { &self.index.feeds } else { &self.index.open };
        for (_, id) in order.iter().take(LOOK) {
            let Some(node) = self.nodes.get(id).filter(|node| admits(&wanted, node).is_ok()) else {
                continue;
            };
            let terms = Terms::of(node, now);
            best.push(Candidate {
                name: node.record.name.clone(),
                terms,
                score: terms.score(&by),
                busy: None,
            });
            if best.len() == BEST {
                break;
            }
        }
        let out: u32 = rejected.iter().map(|(_, count)| count).sum();
        let id = self.next_decision;
        self.next_decision += 1;
        self.classes.decide(class, now, id);
        let nodes = self.nodes.len() as u32;
        fx.writes.push(Write::Decision(Arc::new(Decision {
            id,
            at: now,
            nodes,
            suitable: nodes.saturating_sub(out),
            with_room: self.index.open.len() as u32,
            rejected: rejected.to_vec(),
            best,
            coefficients: by,
        })));
        Some(id)
    }

    /// Takes the next waiting task: one that was assigned before, else a new element. A task
    /// whose node is offline is only now given up: the commit of its replacement ends it.
    fn next_waiting(&mut self, now: Time, queue: QueueKey, fx: &mut Effects) -> Option<(TaskKey, Time)> {
        loop {
            let definition = self.definition_mut(queue.job, queue.task)?;
            let Some(index) = definition.again.first().copied() else {
                let index = definition.ready.pop()?;
                let since = definition.ready_at;
                return Some((TaskKey { job: queue.job, task: queue.task, index }, since));
            };
            let key = TaskKey { job: queue.job, task: queue.task, index };
            match &definition.live.get(&index)?.phase {
                Phase::Queued { since } => return Some((key, *since)),
                Phase::Placed(_) => {
                    // It is queued again now, unless that was one loss too many.
                    self.end_attempt(now, key, &lost("its node is offline; it runs elsewhere now"), fx);
                }
                Phase::Retrying { .. } => {
                    definition.again.remove(&index);
                }
            }
        }
    }

    /// Tasks whose backoff is over wait for a node again. Says which.
    pub(super) fn wake_retries(&mut self, now: Time) -> Vec<TaskKey> {
        let mut woken = Vec::new();
        while let Some((until, key)) = self.retries.first().copied() {
            if until > now {
                break;
            }
            self.retries.remove(&(until, key));
            let Some(definition) = self.definition_mut(key.job, key.task) else { continue };
            let Some(task) = definition.live.get_mut(&key.index) else { continue };
            task.phase = Phase::Queued { since: now };
            definition.again.insert(key.index);
            self.shift(key.job, key.task, TaskState::Retrying, TaskState::Queued, 1);
            self.requeue(key.job, key.task);
            woken.push(key);
        }
        woken
    }

    /// Writes down which of the woken tasks found no node: the others' rows are written already.
    pub(super) fn note_woken(&self, now: Time, woken: &[TaskKey], fx: &mut Effects) {
        let mut waiting: BTreeMap<(JobNumber, u32), Elements> = BTreeMap::new();
        for key in woken {
            if self.task(*key).is_some_and(|task| task.state() == TaskState::Queued) {
                waiting.entry((key.job, key.task)).or_default().insert(key.index..key.index + 1);
            }
        }
        for ((job, task), elements) in waiting {
            fx.writes.push(Write::Moved(Moved { job, task, elements, how: Move::Woken, at: now }));
        }
    }
}
