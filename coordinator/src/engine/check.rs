//! The engine's own invariants, checked by its tests after every event.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::ids::TaskKey;

use super::{
    job::{Definition, Job},
    machine::Engine,
    node::Node,
    placement::QueueKey,
    task::{Phase, Task},
    types::{Counts, NodeState, Resources, TaskState, Time},
};

impl Engine {
    /// The first invariant that does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut totals = Counts::default();
        let mut placed: BTreeSet<TaskKey> = BTreeSet::new();
        let mut retries: BTreeSet<(Time, TaskKey)> = BTreeSet::new();
        let mut members = 0;
        for job in self.jobs.values() {
            for (task, definition) in job.tasks.iter().enumerate() {
                let task = task as u32;
                totals.add(&check_counts(job, task, definition)?);
                members += 1;
                let waits =
                    self.classes.waits(definition.class, QueueKey::new(job.priority, job.number, task));
                if waits != definition.has_waiting() {
                    return Err(format!("job {} task {task}: its class says waits: {waits}", job.number));
                }
                for (index, live) in &definition.live {
                    let key = TaskKey { job: job.number, task, index: *index };
                    self.check_task(job, definition, key, live)?;
                    match live.phase {
                        Phase::Placed(_) => {
                            placed.insert(key);
                        }
                        Phase::Retrying { until } => {
                            retries.insert((until, key));
                        }
                        Phase::Queued { .. } => {}
                    }
                }
            }
        }
        if totals != self.totals {
            return Err(format!("totals are {totals:?}, noted {:?}", self.totals));
        }
        if retries != self.retries {
            return Err(format!("backoffs are {retries:?}, noted {:?}", self.retries));
        }
        if members != self.classes.members() {
            return Err(format!("{members} definitions, {} members of classes", self.classes.members()));
        }
        for node in self.nodes.values() {
            self.check_node(node, &mut placed)?;
        }
        match placed.first() {
            Some(key) => Err(format!("{key} is placed nowhere")),
            None => Ok(()),
        }
    }

    fn check_task(
        &self,
        job: &Job,
        definition: &Definition,
        key: TaskKey,
        task: &Task,
    ) -> Result<(), String> {
        let waits = definition.again.contains(&key.index);
        let should_wait =
            task.placed().map_or(task.state() == TaskState::Queued, |placed| placed.unreachable);
        if waits != should_wait {
            return Err(format!("{key} waits: {waits}, should: {should_wait}"));
        }
        if task.attempt == 0 {
            return Err(format!("{key} has a row without an attempt"));
        }
        let Some(placed) = task.placed() else {
            if job.ending.is_some() {
                return Err(format!("{key} waits although its job is ending"));
            }
            return Ok(());
        };
        if job.ending.is_some() != placed.cancelling {
            return Err(format!("{key}: cancelling {}, its job {:?}", placed.cancelling, job.ending));
        }
        let Some(node) = self.nodes.get(&placed.node).filter(|node| node.tasks.contains(&key)) else {
            return Err(format!("{key} is not among the tasks of its node"));
        };
        if placed.unreachable && (node.session.is_some() || placed.cancelling) {
            return Err(format!("{key} is unreachable, but {} has a session", node.record.name));
        }
        if !placed.unreachable && node.state == NodeState::Offline {
            return Err(format!("{key} is bound to {}, which is offline", node.record.name));
        }
        Ok(())
    }

    fn check_node(&self, node: &Node, placed: &mut BTreeSet<TaskKey>) -> Result<(), String> {
        let name = &node.record.name;
        let (mut used, mut given) = (Resources::default(), 0);
        for key in &node.tasks {
            if !placed.remove(key) {
                return Err(format!("{name} holds {key}, which is not placed"));
            }
            if let Some(place) = self.task(*key).and_then(|task| task.placed()) {
                if place.node != node.record.id {
                    return Err(format!("{name} holds {key} of another node"));
                }
                given += place.taken.cpu_millis;
                if place.granted == node.queue.contains(*key) {
                    return Err(format!(
                        "{key} at {name}: granted {}, queue {:?}",
                        place.granted, node.queue
                    ));
                }
                if !place.granted {
                    continue;
                }
                used.cpu_millis += place.taken.cpu_millis;
                used.memory += place.taken.memory;
                for (resource, units) in &place.taken.named {
                    *used.named.entry(resource.clone()).or_default() += units;
                }
            }
        }
        if given != node.given_millis || node.queue.iter().any(|key| !node.tasks.contains(&key)) {
            return Err(format!(
                "{name} was given {given}, noted {}; queue {:?}",
                node.given_millis, node.queue
            ));
        }
        let noted = &node.used;
        if (used.cpu_millis, used.memory) != (noted.cpu_millis, noted.memory)
            || nonzero(&used) != nonzero(noted)
        {
            return Err(format!("{name} uses {used:?}, noted {noted:?}"));
        }
        let total = node.facts.as_ref().map_or(0, |facts| facts.total.cpu_millis);
        let stands = node.standing;
        let takes = node.takes_work() && total > 0 && node.reserved.is_none();
        let right = stands.open.is_some() == (takes && node.used.cpu_millis < total)
            && stands.feeds.is_some() == (takes && node.feeds())
            && stands.deep.is_some() == (takes && node.feeds_deep())
            && stands.queued.is_none() == node.queue.is_empty();
        let id = node.record.id;
        let indexed = stands.open.is_none_or(|key| self.index.open.contains(&(key, id)))
            && stands.feeds.is_none_or(|key| self.index.feeds.contains(&(key, id)))
            && stands.deep.is_none_or(|key| self.index.deep.contains(&(key, id)))
            && stands.queued.is_none_or(|key| self.index.queued.contains(&(key, id)));
        if !right || !indexed {
            return Err(format!("{name} stands at {stands:?}, which is not where it is"));
        }
        if node.state == NodeState::Offline && node.session.is_some() {
            return Err(format!("{name} is offline with a session"));
        }
        for attempt in &node.resend {
            if !self.is_current(node.record.id, *attempt) {
                return Err(format!("{name} is to be sent {attempt}, which is not current"));
            }
        }
        Ok(())
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

/// Every element is in exactly one set, and the counts say so.
fn check_counts(job: &Job, task: u32, definition: &Definition) -> Result<Counts, String> {
    let mut counts = Counts::default();
    counts[TaskState::Blocked] = definition.unclaimed().len();
    counts[TaskState::Queued] = definition.ready.len();
    counts[TaskState::Completed] = definition.completed.len();
    for live in definition.live.values() {
        counts[live.state()] += 1;
    }
    let dropped = definition.dropped.len();
    let dead = &definition.dead;
    counts[TaskState::Failed] = dead.len();
    counts[TaskState::Cancelled] = dropped - dead.len();
    let place = || format!("job {} task {task}", job.number);
    let unknown = dead.intersection(&definition.dropped).len() < dead.len()
        || definition.past.among(dead).len() < dead.len();
    let misplaced = definition
        .past
        .iter()
        .flat_map(|(range, _)| range)
        .find(|index| !definition.dropped.contains(*index) && !definition.ready.contains(*index));
    if unknown || misplaced.is_some() {
        return Err(format!("{}: dead {dead:?}, {misplaced:?} of {:?}", place(), definition.past));
    }
    if counts != definition.counts {
        return Err(format!("{}: counted {counts:?}, noted {:?}", place(), definition.counts));
    }
    if counts.total() != u64::from(definition.total) {
        return Err(format!("{}: {} of {} elements", place(), counts.total(), definition.total));
    }
    if job.ending.is_some() && counts[TaskState::Blocked] + counts[TaskState::Queued] > 0 {
        return Err(format!("{}: something waits although the job is ending", place()));
    }
    Ok(counts)
}

fn nonzero(resources: &Resources) -> BTreeMap<&String, u64> {
    resources.named.iter().filter(|(_, units)| **units > 0).map(|(name, units)| (name, *units)).collect()
}
