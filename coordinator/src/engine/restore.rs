//! The engine's memory from the store: what a start, a rebuild and later a failover read.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::ids::{BootId, JobId, JobNumber, NodeId, TaskKey};

use super::{
    event::{NewDefinition, NodeRecord},
    job::Job,
    machine::{Engine, Finished},
    node::Node,
    ranges::{Attempts, Elements},
    task::{Phase, Placed, Task},
    types::{Confined, JobState, Resources, Settings, TaskState, Time},
};

/// Everything unfinished, as the store has it.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub next_job: u64,
    /// Attempts are numbered from here on at the least: those with lower numbers may have been
    /// given in a history that is over.
    pub first_attempt: u32,
    pub next_decision: u64,
    pub finished: Finished,
    pub nodes: Vec<NodeRecord>,
    pub jobs: Vec<StoredJob>,
}

#[derive(Clone, Debug)]
pub struct StoredJob {
    pub number: JobNumber,
    pub uuid: JobId,
    pub owner: String,
    pub priority: u8,
    pub keep_going: bool,
    pub idempotency_key: Option<String>,
    pub payload_digest: [u8; 32],
    pub state: JobState,
    pub ending: Option<JobState>,
    pub reason: String,
    pub created_at: Time,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    pub tasks: Vec<StoredDefinition>,
}

#[derive(Clone, Debug)]
pub struct StoredDefinition {
    pub definition: NewDefinition,
    pub completed: Elements,
    pub failed: Elements,
    pub cancelled: Elements,
    /// The latest attempts of those that failed or were cancelled, and of those that are queued
    /// with neither a failure nor a loss.
    pub past: Attempts,
    /// All other rows.
    pub live: BTreeMap<u32, StoredTask>,
}

#[derive(Clone, Debug)]
pub struct StoredTask {
    pub attempt: u32,
    pub own_failures: u32,
    pub losses: u32,
    pub state: TaskState,
    /// The current attempt, when the state is assigned or running.
    pub placed: Option<StoredPlace>,
}

#[derive(Clone, Debug)]
pub struct StoredPlace {
    pub node: NodeId,
    pub boot: BootId,
    pub assigned_at: Time,
    pub started_at: Option<Time>,
    pub sandbox: Option<Confined>,
    pub decision: Option<u64>,
}

impl Engine {
    /// Memory from the store. Nodes have until `now + offline_after` to come back before their
    /// attempts count as unreachable; retries begin their backoff anew.
    #[must_use]
    pub fn restore(settings: Settings, snapshot: Snapshot, now: Time) -> Self {
        let mut engine = Self::new(settings, snapshot.next_job);
        engine.finished = snapshot.finished;
        engine.first_attempt = snapshot.first_attempt;
        engine.next_decision = snapshot.next_decision.max(1);
        for record in snapshot.nodes {
            engine.nodes.insert(record.id, Node::new(record, now));
        }
        for stored in snapshot.jobs {
            engine.restore_job(now, stored);
        }
        engine
    }

    pub(super) fn restore_job(&mut self, now: Time, stored: StoredJob) {
        let new: Vec<NewDefinition> = stored.tasks.iter().map(|task| task.definition.clone()).collect();
        let tasks = self.definitions(&new);
        for definition in &tasks {
            self.totals.add(&definition.counts);
        }
        let number = stored.number;
        if let Some(key) = &stored.idempotency_key {
            self.keys.insert((stored.owner.clone(), key.clone()), number);
        }
        self.jobs.insert(
            number,
            Job {
                number,
                uuid: stored.uuid,
                owner: stored.owner,
                priority: stored.priority,
                keep_going: stored.keep_going,
                idempotency_key: stored.idempotency_key,
                payload_digest: stored.payload_digest,
                state: stored.state,
                ending: stored.ending,
                reason: stored.reason,
                created_at: stored.created_at,
                started_at: stored.started_at,
                tasks,
            },
        );
        let mut dropped = Vec::new();
        for (task, definition) in stored.tasks.into_iter().enumerate() {
            let task = task as u32;
            let mut gone = definition.failed.clone();
            for range in definition.cancelled.iter() {
                gone.insert(range);
            }
            self.shift(number, task, TaskState::Blocked, TaskState::Completed, definition.completed.len());
            self.shift(number, task, TaskState::Blocked, TaskState::Failed, definition.failed.len());
            self.shift(number, task, TaskState::Blocked, TaskState::Cancelled, definition.cancelled.len());
            if let Some(mine) = self.definition_mut(number, task) {
                mine.completed = definition.completed;
                mine.dropped = gone.clone();
                mine.dead = definition.failed;
                mine.past = definition.past;
            }
            dropped.push((task, gone));
            for (index, live) in definition.live {
                self.restore_task(now, TaskKey { job: number, task, index }, &live);
            }
        }
        for (task, gone) in dropped {
            if !gone.is_empty() {
                self.drop_dependents(number, task, &gone);
            }
        }
        let tasks = self.jobs.get(&number).map_or(0, |job| job.tasks.len() as u32);
        if stored.ending.is_some() {
            // Elements without a row were cancelled with the decision.
            for task in 0..tasks {
                let Some(definition) = self.definition_mut(number, task) else { continue };
                let rest = definition.blocked();
                for range in rest.iter() {
                    definition.dropped.insert(range);
                }
                self.shift(number, task, TaskState::Blocked, TaskState::Cancelled, rest.len());
            }
        } else {
            for task in 0..tasks {
                self.unblock_all(now, number, task);
            }
        }
        for task in 0..tasks {
            self.requeue(number, task);
        }
        // What was read is what is stored, but for a job that is over and was not marked so.
        self.dirty.remove(&number);
        if self.jobs.get(&number).is_some_and(|job| job.counts().unfinished() == 0) {
            self.dirty.insert(number, BTreeSet::new());
        }
    }

    fn restore_task(&mut self, now: Time, key: TaskKey, stored: &StoredTask) {
        let cancelling = self.jobs.get(&key.job).is_some_and(|job| job.ending.is_some());
        let phase = match (&stored.placed, stored.state) {
            (Some(place), TaskState::Assigned | TaskState::Running) => {
                // A node without a row could never fall silent, and its task never be replaced.
                self.nodes.entry(place.node).or_insert_with(|| unknown(place, now)).tasks.insert(key);
                Phase::Placed(Placed {
                    node: place.node,
                    boot: place.boot,
                    taken: Resources::default(),
                    assigned_at: place.assigned_at,
                    started_at: place.started_at,
                    sandbox: place.sandbox,
                    decision: place.decision,
                    granted: true,
                    withdrawing: false,
                    cancelling,
                    unreachable: false,
                })
            }
            (_, TaskState::Retrying) => {
                let base =
                    self.definition(key.job, key.task).map_or(0, |definition| definition.retry.backoff_ms);
                let until = now.plus(base);
                self.retries.insert((until, key));
                Phase::Retrying { until }
            }
            (_, _) => Phase::Queued { since: now },
        };
        let task =
            Task { attempt: stored.attempt, own_failures: stored.own_failures, losses: stored.losses, phase };
        let state = task.state();
        if let Some(definition) = self.definition_mut(key.job, key.task) {
            if state == TaskState::Queued {
                definition.again.insert(key.index);
            }
            definition.live.insert(key.index, task);
        }
        self.shift(key.job, key.task, TaskState::Blocked, state, 1);
    }
}

/// A node of which only its attempts are known.
fn unknown(place: &StoredPlace, now: Time) -> Node {
    let record = NodeRecord {
        id: place.node,
        name: place.node.to_string(),
        boot: Some(place.boot),
        cordoned: false,
        draining: false,
        tags: BTreeMap::new(),
    };
    Node::new(record, now)
}
