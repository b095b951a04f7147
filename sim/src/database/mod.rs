//! The database: rows with the guards of the coordinator's `store/commit.rs`, one transaction at
//! a time, the leader's row with its epoch and its lock.
//!
//! A guarded write that hits too few rows means that the engine's memory and the database went
//! apart: here that is a broken promise at once.

mod check;
mod snapshot;

pub use check::is_given_back;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coordinator::engine::{
    effect::{AttemptRow, JobRow, Moved, Redriven, TaskRow, Write},
    event::{NewDefinition, NewJob, NodeRecord},
    types::{Counts, JobState, TaskState, Time},
};
use coordinator::store::redrive::fold;
use mesh_proto::{
    ids::{AttemptKey, JobNumber, NodeId, TaskKey},
    state::Named as _,
};

use crate::{
    invariant::{Invariant, Violation},
    network::Point,
};

/// The name of jobs whose rows the database refuses.
pub const POISON: &str = "poison";

/// A job's rows.
#[derive(Clone, Debug)]
pub struct JobRows {
    pub new: Arc<NewJob>,
    pub row: JobRow,
    pub definitions: Vec<Counts>,
}

/// Every table.
#[derive(Clone, Debug, Default)]
pub struct Database {
    pub jobs: BTreeMap<JobNumber, JobRows>,
    pub tasks: BTreeMap<TaskKey, TaskRow>,
    pub attempts: BTreeMap<AttemptKey, AttemptRow>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub keys: BTreeMap<String, JobNumber>,
    /// The first attempt of each task's latest series, where a redrive began one.
    pub series: BTreeMap<TaskKey, u32>,
    /// Who redrove which job: rows in the audit.
    pub redrives: BTreeMap<JobNumber, Vec<String>>,
    /// What was redriven under which key: how many dead letters, and what came back with them.
    pub redrive_keys: BTreeMap<(JobNumber, String), (u64, u64)>,
    /// The id of the last recorded decision.
    pub decisions: u64,
    /// The leader's row: its host, none when it was laid down.
    pub holder: Option<usize>,
    /// How often it went back in time, which nobody inside knows.
    pub timeline: u64,
    pub incarnation: u64,
    pub epoch: u64,
    pub seq: u64,
    /// Nothing is dispatched.
    pub halted: bool,
    /// Jobs, and attempts of every task, are numbered from here on at the least.
    pub first_job: u64,
    pub first_attempt: u32,
}

/// Why a commit did not land.
#[derive(Debug)]
pub enum Refused {
    /// The rows themselves: a constraint.
    Rows,
    /// A promise is broken.
    Broken(Violation),
}

/// The rows of one commit, the last of each key.
#[derive(Debug, Default)]
pub struct Rows {
    new_jobs: BTreeMap<JobNumber, (Arc<NewJob>, Time)>,
    pub jobs: BTreeMap<JobNumber, JobRow>,
    definitions: BTreeMap<(JobNumber, u32), Counts>,
    pub tasks: BTreeMap<TaskKey, TaskRow>,
    pub attempts: BTreeMap<AttemptKey, AttemptRow>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    decisions: Vec<u64>,
    moved: Vec<Moved>,
    redriven: Vec<Redriven>,
    /// Series of attempts that began within the batch, by their first attempt.
    series: BTreeMap<TaskKey, u32>,
}

impl Rows {
    #[must_use]
    pub fn of(writes: Vec<Write>) -> Self {
        let mut rows = Self::default();
        for write in writes {
            match write {
                Write::NewJob { number, job, created_at } => {
                    rows.new_jobs.insert(number, (job, created_at));
                }
                Write::Job(row) => {
                    rows.jobs.insert(row.number, row);
                }
                Write::Definition { job, task, counts } => {
                    rows.definitions.insert((job, task), counts);
                }
                Write::Task(row) => {
                    rows.tasks.insert(row.key, row);
                }
                Write::Attempt(row) => {
                    rows.attempts.insert(row.key, row);
                }
                Write::Moved(moved) => {
                    if moved.how.is_anew() {
                        for key in keys(&moved).filter(|key| rows.tasks.contains_key(key)) {
                            rows.series.insert(key, rows.tasks[&key].attempt + 1);
                        }
                    }
                    rows.moved.extend(fold(&mut rows.tasks, moved));
                }
                Write::Redriven(row) => rows.redriven.push(row),
                Write::Decision(decision) => rows.decisions.push(decision.id),
                Write::Node { record, .. } => {
                    rows.nodes.insert(record.id, record);
                }
            }
        }
        rows
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.new_jobs.is_empty()
            && self.jobs.is_empty()
            && self.definitions.is_empty()
            && self.tasks.is_empty()
            && self.attempts.is_empty()
            && self.nodes.is_empty()
            && self.decisions.is_empty()
            && self.moved.is_empty()
            && self.redriven.is_empty()
    }
}

/// The tasks that a move is for.
fn keys(moved: &Moved) -> impl Iterator<Item = TaskKey> {
    let (job, task) = (moved.job, moved.task);
    moved.elements.iter().flatten().map(move |index| TaskKey { job, task, index })
}

/// What a commit changed that the history is checked for.
#[derive(Debug, Default)]
pub struct Landed {
    pub assigned: Vec<AttemptRow>,
    pub ended: Vec<AttemptRow>,
    pub finished_tasks: Vec<TaskRow>,
    pub finished_jobs: Vec<JobNumber>,
    pub redriven: Vec<JobNumber>,
    /// Tasks that begin a new series of attempts.
    pub anew: u64,
    pub changes: Vec<Change>,
}

/// A change of state that a commit made: of what, from, to.
pub type Change = (&'static str, &'static str, &'static str);

impl Database {
    /// Where its history stands.
    #[must_use]
    pub fn point(&self) -> Point {
        Point { incarnation: self.incarnation, epoch: self.epoch, seq: self.seq, timeline: self.timeline }
    }

    /// Writes all rows or none.
    pub fn commit(&mut self, rows: &Rows) -> Result<Landed, Refused> {
        for (number, (job, _)) in &rows.new_jobs {
            let used = job.idempotency_key.as_ref().is_some_and(|key| self.keys.contains_key(key));
            if job.name == POISON || used || self.jobs.contains_key(number) {
                return Err(Refused::Rows);
            }
        }
        let mut keys = BTreeSet::new();
        for row in &rows.redriven {
            let key = row.key.as_ref().map(|key| (row.number, key.key.clone()));
            let used = key.is_some_and(|key| self.redrive_keys.contains_key(&key) || !keys.insert(key));
            // Opened and over again since it was read, by one that was handled again as well.
            let finished = self.jobs.get(&row.number).map(|job| job.row.finished_at);
            let changed = row.finished_at.is_some() && finished != Some(row.finished_at);
            if used || changed {
                return Err(Refused::Rows);
            }
        }
        let mut landed = Landed::default();
        self.write(rows, &mut landed).map_err(Refused::Broken)?;
        self.check(rows).map_err(Refused::Broken)?;
        Ok(landed)
    }

    fn write(&mut self, rows: &Rows, landed: &mut Landed) -> Result<(), Violation> {
        for (number, (job, _)) in &rows.new_jobs {
            self.insert_job(*number, job);
        }
        for row in &rows.redriven {
            self.reopen(row, landed)?;
        }
        for row in rows.jobs.values() {
            let job = self
                .jobs
                .get_mut(&row.number)
                .ok_or_else(|| Violation::new(Invariant::GuardsHold, format!("{} has no row", row.number)))?;
            if job.row.finished_at.is_some() {
                return Err(Violation::new(
                    Invariant::TerminalStays,
                    format!("a finished job changes: {:?} to {row:?}", job.row),
                ));
            }
            if row.finished_at.is_some() {
                landed.finished_jobs.push(row.number);
            }
            if job.row.state != row.state {
                landed.changes.push(("job", job.row.state.lower(), row.state.lower()));
            }
            job.row = row.clone();
        }
        for ((number, task), counts) in &rows.definitions {
            let job = self
                .jobs
                .get_mut(number)
                .ok_or_else(|| Violation::new(Invariant::GuardsHold, format!("{number} has no row")))?;
            job.definitions[*task as usize] = *counts;
        }
        for row in rows.attempts.values() {
            self.write_attempt(row, landed)?;
        }
        for moved in &rows.moved {
            self.shift(moved, landed)?;
        }
        self.series.extend(&rows.series);
        for row in rows.tasks.values() {
            if let Some(old) = self.tasks.get(&row.key) {
                if is_over(old.state) || row.attempt < old.attempt {
                    return Err(Violation::new(
                        Invariant::TerminalStays,
                        format!("a task that is over, or further, changes: {old:?} to {row:?}"),
                    ));
                }
                let anew = rows.series.contains_key(&row.key);
                if !anew && (row.losses < old.losses || row.own_failures < old.own_failures) {
                    return Err(Violation::new(
                        Invariant::TerminalStays,
                        format!("{} counts back: {old:?} to {row:?}", row.key),
                    ));
                }
            }
            // Before its first assignment a task has no row.
            let old = self.tasks.get(&row.key).map_or(TaskState::Queued, |old| old.state);
            if old != row.state {
                landed.changes.push(("task", old.lower(), row.state.lower()));
            }
            if is_over(row.state) {
                landed.finished_tasks.push(row.clone());
            }
            self.tasks.insert(row.key, row.clone());
        }
        for id in &rows.decisions {
            if *id <= self.decisions {
                return Err(Violation::new(Invariant::GuardsHold, format!("decision {id} comes twice")));
            }
            self.decisions = *id;
        }
        for (id, record) in &rows.nodes {
            if self.nodes.insert(*id, record.clone()).is_none() {
                return Err(Violation::new(Invariant::GuardsHold, format!("{id} has no row")));
            }
        }
        Ok(())
    }

    /// Opens a job that is over, if it is the one that was read.
    fn reopen(&mut self, row: &Redriven, landed: &mut Landed) -> Result<(), Violation> {
        let job = self
            .jobs
            .get_mut(&row.number)
            .ok_or_else(|| Violation::new(Invariant::GuardsHold, format!("{} has no row", row.number)))?;
        if row.finished_at.is_some() {
            let open = if job.row.started_at.is_some() { JobState::Running } else { JobState::Queued };
            landed.changes.push(("job", job.row.state.lower(), open.lower()));
            (job.row.state, job.row.ending, job.row.finished_at) = (open, None, None);
        }
        let before = self.redrives.entry(row.number).or_default();
        if before.contains(&row.by) {
            let why = format!("{} of {} is done twice", row.by, row.number);
            return Err(Violation::new(Invariant::RedrivenOnce, why));
        }
        before.push(row.by.clone());
        if let Some(key) = &row.key {
            self.redrive_keys.insert((row.number, key.key.clone()), (row.redriven, row.resumed));
        }
        landed.redriven.push(row.number);
        Ok(())
    }

    /// Moves tasks from state to state, with no attempt to tell of.
    fn shift(&mut self, moved: &Moved, landed: &mut Landed) -> Result<(), Violation> {
        let (from, to) = moved.how.states();
        for key in keys(moved) {
            let row = self.tasks.get_mut(&key).ok_or_else(|| {
                Violation::new(Invariant::GuardsHold, format!("{key} moves and has no row"))
            })?;
            if row.state == TaskState::Completed {
                let what = format!("what is completed is tried again: {row:?}, {:?}", moved.how);
                return Err(Violation::new(Invariant::TerminalStays, what));
            }
            if row.state != from {
                let what = format!("{row:?} is not {from:?}: {:?}", moved.how);
                return Err(Violation::new(Invariant::GuardsHold, what));
            }
            landed.changes.push(("task", from.lower(), to.lower()));
            row.state = to;
            row.finished_at = (to == TaskState::Cancelled).then_some(moved.at);
            if moved.how.is_anew() {
                (row.own_failures, row.losses, row.started_at) = (0, 0, None);
                self.series.insert(key, row.attempt + 1);
                landed.anew += 1;
            }
        }
        Ok(())
    }

    fn insert_job(&mut self, number: JobNumber, new: &Arc<NewJob>) {
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
        if let Some(key) = &new.idempotency_key {
            self.keys.insert(key.clone(), number);
        }
        self.jobs.insert(number, JobRows { new: Arc::clone(new), row, definitions });
    }

    fn write_attempt(&mut self, row: &AttemptRow, landed: &mut Landed) -> Result<(), Violation> {
        let old = self.attempts.get(&row.key);
        if let Some(old) = old {
            if old.ended.is_some() {
                return Err(Violation::new(
                    Invariant::TerminalStays,
                    format!("an ended attempt changes: {old:?} to {row:?}"),
                ));
            }
            let fixed = |row: &AttemptRow| (row.node, row.boot, row.assigned_at);
            let unsaid = old.started_at.is_some() && row.started_at.is_none();
            if fixed(old) != fixed(row) || unsaid {
                return Err(Violation::new(
                    Invariant::GuardsHold,
                    format!("{} changes from {old:?} to {row:?}", row.key),
                ));
            }
        } else {
            landed.assigned.push(row.clone());
        }
        if row.ended.is_some() {
            landed.ended.push(row.clone());
        }
        self.attempts.insert(row.key, row.clone());
        Ok(())
    }

    /// The attempts of a task, in order.
    pub fn attempts_of(&self, key: TaskKey) -> impl Iterator<Item = &AttemptRow> {
        let first = AttemptKey { task: key, number: 0 };
        let last = AttemptKey { task: key, number: u32::MAX };
        self.attempts.range(first..=last).map(|(_, row)| row)
    }

    /// Rows of one definition.
    pub fn rows(&self, job: JobNumber, task: u32) -> impl Iterator<Item = &TaskRow> {
        let first = TaskKey { job, task, index: 0 };
        let last = TaskKey { job, task, index: u32::MAX };
        self.tasks.range(first..=last).map(|(_, row)| row)
    }
}

#[must_use]
pub fn is_over(state: TaskState) -> bool {
    matches!(state, TaskState::Completed | TaskState::Failed | TaskState::Cancelled)
}

#[must_use]
pub fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Completed | JobState::PartiallyCompleted | JobState::Failed | JobState::Cancelled
    )
}
