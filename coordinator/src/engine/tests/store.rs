//! A store in memory: applies the engine's writes as a commit would, and holds the engine to
//! what it may write and say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, TaskKey};

use crate::engine::{
    Attempts, Elements, Finished, Snapshot, StoredDefinition, StoredJob, StoredPlace, StoredTask,
    effect::{Ack, AttemptRow, Effects, JobRow, Moved, Reply, Say, TaskRow, Write},
    event::{NewDefinition, NewJob, NodeRecord},
    types::{Counts, JobState, TaskState, Time},
};

/// A job's rows.
#[derive(Clone, Debug)]
pub struct JobRows {
    pub new: Arc<NewJob>,
    pub row: JobRow,
    pub definitions: Vec<Counts>,
}

/// Every table.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub jobs: BTreeMap<JobNumber, JobRows>,
    pub tasks: BTreeMap<TaskKey, TaskRow>,
    pub attempts: BTreeMap<AttemptKey, AttemptRow>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// The id of the last recorded decision.
    pub decisions: u64,
    /// Attempts with lower numbers are of a history that is over.
    pub first_attempt: u32,
}

impl Store {
    /// Commits a batch, or says which promise it would break.
    pub fn apply(&mut self, fx: &Effects) -> Result<(), String> {
        let mut tasks = BTreeMap::new();
        let mut attempts = BTreeMap::new();
        // Tasks whose failures and losses count from 0 again.
        let mut anew = BTreeSet::new();
        for write in &fx.writes {
            match write {
                Write::NewJob { number, job, .. } => self.insert_job(*number, job)?,
                Write::Job(row) => {
                    let job = self.jobs.get_mut(&row.number).ok_or("a row of no job")?;
                    if job.row.finished_at.is_some() && job.row != *row {
                        return Err(format!("a finished job changes: {:?} to {row:?}", job.row));
                    }
                    job.row = row.clone();
                }
                Write::Decision(decision) => {
                    if decision.id <= self.decisions {
                        return Err(format!("decision {} comes twice", decision.id));
                    }
                    self.decisions = decision.id;
                }
                Write::Definition { job, task, counts } => {
                    let job = self.jobs.get_mut(job).ok_or("a definition of no job")?;
                    job.definitions[*task as usize] = *counts;
                }
                Write::Task(row) => {
                    tasks.insert(row.key, row.clone());
                }
                Write::Attempt(row) => {
                    attempts.insert(row.key, row.clone());
                }
                Write::Moved(moved) => {
                    for index in moved.elements.iter().flatten() {
                        let key = TaskKey { job: moved.job, task: moved.task, index };
                        let row = match tasks.get_mut(&key) {
                            Some(row) => row,
                            None => self.tasks.get_mut(&key).ok_or("a row of no task moves")?,
                        };
                        move_row(row, moved)?;
                        if moved.how.is_anew() {
                            anew.insert(key);
                        }
                    }
                }
                Write::Redriven(row) => {
                    let job = self.jobs.get_mut(&row.number).ok_or("no job is redriven")?;
                    if job.row.finished_at != row.finished_at {
                        return Err(format!("{:?} is opened, read as {row:?}", job.row));
                    }
                    job.row.finished_at = None;
                }
                Write::Node { record, .. } => {
                    self.nodes.insert(record.id, record.clone());
                }
            }
        }
        for row in attempts.values() {
            self.write_attempt(row)?;
        }
        for row in tasks.values() {
            self.write_task(row, anew.contains(&row.key))?;
        }
        for key in tasks.keys().chain(attempts.keys().map(|attempt| &attempt.task)) {
            self.check_task(*key)?;
        }
        for say in &fx.says {
            self.check_say(say, fx)?;
        }
        Ok(())
    }

    fn insert_job(&mut self, number: JobNumber, new: &Arc<NewJob>) -> Result<(), String> {
        let row = JobRow {
            number,
            state: JobState::Queued,
            ending: None,
            reason: String::new(),
            counts: Counts::default(),
            started_at: None,
            finished_at: None,
        };
        let blocked = |definition: &NewDefinition| {
            let mut counts = Counts::default();
            counts[TaskState::Blocked] = u64::from(definition.total);
            counts
        };
        let definitions = new.tasks.iter().map(blocked).collect();
        let rows = JobRows { new: Arc::clone(new), row, definitions };
        match self.jobs.insert(number, rows) {
            None => Ok(()),
            Some(_) => Err(format!("job {number} is made twice")),
        }
    }

    fn write_attempt(&mut self, row: &AttemptRow) -> Result<(), String> {
        if let Some(old) = self.attempts.insert(row.key, row.clone()) {
            if old.ended.is_some() && old != *row {
                return Err(format!("the end of {} changes: {old:?} to {row:?}", row.key));
            }
            let fixed = |row: &AttemptRow| (row.node, row.boot, row.assigned_at);
            let unsaid = |old: bool, new: bool| old && !new;
            if fixed(&old) != fixed(row)
                || unsaid(old.started_at.is_some(), row.started_at.is_some())
                || unsaid(old.sandbox.is_some(), row.sandbox.is_some())
            {
                return Err(format!("{} changes from {old:?} to {row:?}", row.key));
            }
        }
        Ok(())
    }

    fn write_task(&mut self, row: &TaskRow, anew: bool) -> Result<(), String> {
        if let Some(old) = self.tasks.insert(row.key, row.clone()) {
            if is_over(old.state) && old != *row {
                return Err(format!("{} was over: {old:?} to {row:?}", row.key));
            }
            let back = row.losses < old.losses || row.own_failures < old.own_failures;
            if row.attempt < old.attempt || back && !anew {
                return Err(format!("{} counts back: {old:?} to {row:?}", row.key));
            }
        }
        Ok(())
    }

    /// A task has at most one open attempt, which is the last, and has it exactly while it is
    /// assigned or running.
    fn check_task(&self, key: TaskKey) -> Result<(), String> {
        let task = self.tasks.get(&key).ok_or_else(|| format!("{key} has an attempt and no row"))?;
        let first = AttemptKey { task: key, number: 0 };
        let last = AttemptKey { task: key, number: u32::MAX };
        let attempts: Vec<&AttemptRow> = self.attempts.range(first..last).map(|(_, row)| row).collect();
        let numbers: Vec<u32> = attempts.iter().map(|row| row.key.number).collect();
        // A history that an operator accepted leaves a gap behind it.
        let follows = |pair: &[u32]| pair[1] == pair[0] + 1 || pair[1] == self.first_attempt;
        let begins = |first: &u32| *first == 1 || *first == self.first_attempt;
        let whole = numbers.first().is_none_or(begins) && numbers.windows(2).all(follows);
        if !whole || numbers.last().copied().unwrap_or(0) != task.attempt {
            return Err(format!("{key} is at attempt {} and has {numbers:?}", task.attempt));
        }
        let open: Vec<u32> =
            attempts.iter().filter(|row| row.ended.is_none()).map(|row| row.key.number).collect();
        let placed = matches!(task.state, TaskState::Assigned | TaskState::Running);
        let expected = if placed { vec![task.attempt] } else { Vec::new() };
        if open != expected {
            return Err(format!("{key} is {:?}, its open attempts are {open:?}", task.state));
        }
        if let Some(row) = attempts.last()
            && placed
        {
            let started = row.started_at.is_some();
            if task.node != Some(row.node) || started != (task.state == TaskState::Running) {
                return Err(format!("{task:?} does not tell of {row:?}"));
            }
        }
        if task.state == TaskState::Completed {
            let ends: Vec<_> = attempts.iter().filter_map(|row| row.ended.as_ref()).collect();
            let good = ends.iter().filter(|(_, end)| end.is_success()).count();
            if good != 1 || !ends.last().is_some_and(|(_, end)| end.is_success()) {
                return Err(format!("{key} is completed with {good} good attempts"));
            }
        }
        if is_over(task.state) != task.finished_at.is_some() {
            return Err(format!("{task:?} is finished at no time, or too early"));
        }
        Ok(())
    }

    /// What is said is what is stored.
    fn check_say(&self, say: &Say, fx: &Effects) -> Result<(), String> {
        let holds = match say {
            Say::Dispatch { node, attempt, .. } => {
                // What ended in the same batch ended with its session, which nobody hears any more.
                let ends_now = fx.writes.iter().any(
                    |write| matches!(write, Write::Attempt(row) if row.key == *attempt && row.ended.is_some()),
                );
                let row = self
                    .attempts
                    .get(attempt)
                    .filter(|row| (row.ended.is_none() || ends_now) && row.node == *node);
                let boot = self.nodes.get(node).and_then(|node| node.boot);
                row.is_some_and(|row| boot == Some(row.boot))
            }
            Say::Ack { attempt, ack: Ack::Durable, ended: true, .. } => fx.writes.iter().any(
                |write| matches!(write, Write::Attempt(row) if row.key == *attempt && row.ended.is_some()),
            ),
            Say::Ack { attempt, ack: Ack::Durable, ended: false, .. } => {
                self.attempts.get(attempt).is_some_and(|row| row.started_at.is_some())
            }
            Say::Reply(_, Reply::Submitted { number, uuid, .. }) => {
                self.jobs.get(number).is_some_and(|job| job.new.uuid == *uuid)
            }
            Say::Reply(_, Reply::Redriven { number, redriven, .. }) => {
                *redriven > 0 && self.jobs.contains_key(number)
            }
            Say::Reply(_, Reply::Cancelled { number, state }) => self
                .jobs
                .get(number)
                .is_some_and(|job| job.row.ending == Some(*state) && job.row.ending.is_some()),
            Say::JobChanged(view) => self
                .jobs
                .get(&view.row.number)
                .is_some_and(|job| job.row == view.row && job.definitions == view.definitions),
            Say::Cancel { .. }
            | Say::Withdraw { .. }
            | Say::Unplaced { .. }
            | Say::EndSession { .. }
            | Say::Ack { ack: Ack::Stale, .. }
            | Say::Ended { .. }
            | Say::Placed { .. }
            | Say::Reply(
                _,
                Reply::Registered { .. }
                | Reply::Heard { .. }
                | Reply::Node(_)
                | Reply::Nodes(_)
                | Reply::Explained(_)
                | Reply::Refused(_),
            ) => true,
        };
        if holds { Ok(()) } else { Err(format!("said, but not stored: {say:?}")) }
    }

    /// Rows of one definition.
    fn rows(&self, job: JobNumber, task: u32) -> impl Iterator<Item = &TaskRow> {
        let first = TaskKey { job, task, index: 0 };
        let last = TaskKey { job, task, index: u32::MAX };
        self.tasks.range(first..=last).map(|(_, row)| row)
    }

    /// The counts of a job and of its definitions are those of the rows.
    pub fn check_counts(&self) -> Result<(), String> {
        for (number, job) in &self.jobs {
            let mut sum = Counts::default();
            for (task, counts) in job.definitions.iter().enumerate() {
                sum.add(counts);
                let of = |state| self.rows(*number, task as u32).filter(|row| row.state == state).count();
                for state in [
                    TaskState::Assigned,
                    TaskState::Running,
                    TaskState::Retrying,
                    TaskState::Completed,
                    TaskState::Failed,
                ] {
                    if counts[state] != of(state) as u64 {
                        return Err(format!("job {number} task {task}: {counts:?}, rows {state:?} differ"));
                    }
                }
            }
            if sum != job.row.counts {
                return Err(format!("job {number}: {:?}, its definitions {sum:?}", job.row.counts));
            }
            let over = job.row.counts.unfinished() == 0;
            if over != job.row.finished_at.is_some() || over != is_final(job.row.state) {
                return Err(format!("job {number} with {sum:?} is {:?}", job.row.state));
            }
        }
        Ok(())
    }

    /// Everything unfinished, as a start reads it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            first_attempt: self.first_attempt,
            next_decision: self.decisions + 1,
            finished: Finished::default(),
            next_job: self.jobs.keys().next_back().map_or(1, |last| last.0 + 1),
            nodes: self.nodes.values().cloned().collect(),
            jobs: self
                .jobs
                .iter()
                .filter(|(_, job)| job.row.finished_at.is_none())
                .map(|(number, job)| self.stored_job(*number, job))
                .collect(),
        }
    }

    /// A job as the shell reads it.
    pub fn read(&self, number: JobNumber) -> Option<StoredJob> {
        self.jobs.get(&number).map(|job| self.stored_job(number, job))
    }

    fn stored_job(&self, number: JobNumber, job: &JobRows) -> StoredJob {
        let tasks = job
            .new
            .tasks
            .iter()
            .enumerate()
            .map(|(task, definition)| {
                let all = |state| {
                    let mut elements = Elements::default();
                    for row in self.rows(number, task as u32).filter(|row| row.state == state) {
                        elements.insert(row.key.index..row.key.index + 1);
                    }
                    elements
                };
                let mut past = Attempts::default();
                for row in self.rows(number, task as u32) {
                    let over = matches!(row.state, TaskState::Failed | TaskState::Cancelled);
                    if over || waits_anew(row) {
                        past.insert(row.key.index..row.key.index + 1, row.attempt);
                    }
                }
                StoredDefinition {
                    definition: definition.clone(),
                    completed: all(TaskState::Completed),
                    failed: all(TaskState::Failed),
                    cancelled: all(TaskState::Cancelled),
                    past,
                    live: self
                        .rows(number, task as u32)
                        .filter(|row| !is_over(row.state) && !waits_anew(row))
                        .map(|row| (row.key.index, self.stored_task(row)))
                        .collect(),
                }
            })
            .collect();
        StoredJob {
            number,
            uuid: job.new.uuid,
            owner: job.new.owner.clone(),
            priority: job.new.priority,
            keep_going: job.new.keep_going,
            idempotency_key: job.new.idempotency_key.clone(),
            payload_digest: job.new.payload_digest,
            state: job.row.state,
            ending: job.row.ending,
            reason: job.row.reason.clone(),
            created_at: Time::default(),
            started_at: job.row.started_at,
            finished_at: job.row.finished_at,
            tasks,
        }
    }

    fn stored_task(&self, row: &TaskRow) -> StoredTask {
        let placed = matches!(row.state, TaskState::Assigned | TaskState::Running);
        let attempt = AttemptKey { task: row.key, number: row.attempt };
        StoredTask {
            attempt: row.attempt,
            own_failures: row.own_failures,
            losses: row.losses,
            state: row.state,
            placed: self.attempts.get(&attempt).filter(|_| placed).map(|row| StoredPlace {
                decision: row.decision,
                node: row.node,
                boot: row.boot,
                assigned_at: row.assigned_at,
                started_at: row.started_at,
                sandbox: row.sandbox,
            }),
        }
    }
}

/// Whether a row is queued with neither a failure nor a loss: such rows are read as ranges.
fn waits_anew(row: &TaskRow) -> bool {
    row.state == TaskState::Queued && row.own_failures == 0 && row.losses == 0
}

/// What rows become that change their state together; the first that is not in the state that
/// it leaves, in words.
fn move_row(row: &mut TaskRow, moved: &Moved) -> Result<(), String> {
    let (from, to) = moved.how.states();
    if row.state != from {
        return Err(format!("{row:?} is not {from:?}: {:?}", moved.how));
    }
    row.state = to;
    row.finished_at = None;
    if moved.how.is_anew() {
        (row.own_failures, row.losses, row.started_at) = (0, 0, None);
    }
    if to == TaskState::Cancelled {
        row.finished_at = Some(moved.at);
    }
    Ok(())
}

pub fn is_over(state: TaskState) -> bool {
    matches!(state, TaskState::Completed | TaskState::Failed | TaskState::Cancelled)
}

pub fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Completed | JobState::PartiallyCompleted | JobState::Failed | JobState::Cancelled
    )
}
