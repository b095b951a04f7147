//! Jobs and their task definitions, as columns.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use mesh_proto::{ids::JobNumber, state::Named as _};
use uuid::Uuid;

use crate::{
    engine::{
        effect::JobRow,
        event::NewJob,
        types::{Counts, JobState, TaskState, Time},
    },
    store::clock::stamp,
};

/// Jobs that are new.
#[derive(Default)]
pub(super) struct NewJobs<'a> {
    pub number: Vec<i64>,
    pub uuid: Vec<Uuid>,
    pub name: Vec<&'a str>,
    pub owner: Vec<&'a str>,
    pub priority: Vec<i16>,
    pub keep_going: Vec<bool>,
    pub idempotency_key: Vec<Option<&'a str>>,
    pub payload_digest: Vec<&'a [u8]>,
    pub spec: Vec<&'a [u8]>,
    pub created_at: Vec<DateTime<Utc>>,
    /// What changes of a job, as it is by now.
    pub row: Jobs,
    pub definitions: NewDefinitions<'a>,
}

/// Their definitions.
#[derive(Default)]
pub(super) struct NewDefinitions<'a> {
    pub job: Vec<i64>,
    pub task: Vec<i32>,
    pub name: Vec<&'a str>,
    pub total: Vec<i32>,
    pub spec: Vec<&'a [u8]>,
    pub counts: Vec<String>,
}

impl<'a> NewJobs<'a> {
    /// Takes from `rows` and `definitions` what belongs to a new job.
    pub fn of(
        new: &'a BTreeMap<JobNumber, (Arc<NewJob>, Time)>,
        rows: &mut BTreeMap<JobNumber, JobRow>,
        definitions: &mut BTreeMap<(JobNumber, u32), Counts>,
    ) -> Self {
        let mut columns = Self::default();
        for (number, (job, created_at)) in new {
            columns.number.push(number.0 as i64);
            columns.uuid.push(job.uuid.0);
            columns.name.push(&job.name);
            columns.owner.push(&job.owner);
            columns.priority.push(i16::from(job.priority));
            columns.keep_going.push(job.keep_going);
            columns.idempotency_key.push(job.idempotency_key.as_deref());
            columns.payload_digest.push(&job.payload_digest);
            columns.spec.push(&job.spec);
            columns.created_at.push(stamp(*created_at));
            columns.row.push(rows.remove(number).unwrap_or_else(|| JobRow {
                number: *number,
                state: JobState::Queued,
                ending: None,
                reason: String::new(),
                counts: Counts::default(),
                started_at: None,
                finished_at: None,
            }));
            for (task, definition) in (0_u32..).zip(&job.tasks) {
                let counts = definitions.remove(&(*number, task)).unwrap_or_else(|| {
                    let mut blocked = Counts::default();
                    blocked[TaskState::Blocked] = u64::from(definition.total);
                    blocked
                });
                columns.definitions.job.push(number.0 as i64);
                columns.definitions.task.push(task as i32);
                columns.definitions.name.push(&definition.name);
                columns.definitions.total.push(definition.total as i32);
                columns.definitions.spec.push(&definition.spec);
                columns.definitions.counts.push(array_text(&counts));
            }
        }
        columns
    }
}

/// The part of jobs' rows that changes.
#[derive(Default)]
pub(super) struct Jobs {
    pub number: Vec<i64>,
    pub state: Vec<&'static str>,
    pub ending: Vec<Option<&'static str>>,
    pub reason: Vec<String>,
    pub counts: Vec<String>,
    pub started_at: Vec<Option<DateTime<Utc>>>,
    pub finished_at: Vec<Option<DateTime<Utc>>>,
}

impl Jobs {
    fn push(&mut self, row: JobRow) {
        self.number.push(row.number.0 as i64);
        self.state.push(row.state.lower());
        self.ending.push(row.ending.map(JobState::lower));
        self.reason.push(row.reason);
        self.counts.push(array_text(&row.counts));
        self.started_at.push(row.started_at.map(stamp));
        self.finished_at.push(row.finished_at.map(stamp));
    }

    pub fn of(rows: BTreeMap<JobNumber, JobRow>) -> Self {
        let mut columns = Self::default();
        for row in rows.into_values() {
            columns.push(row);
        }
        columns
    }
}

/// Counts of definitions.
#[derive(Default)]
pub(super) struct Definitions {
    pub job: Vec<i64>,
    pub task: Vec<i32>,
    pub counts: Vec<String>,
}

impl Definitions {
    pub fn of(rows: &BTreeMap<(JobNumber, u32), Counts>) -> Self {
        let mut columns = Self::default();
        for ((job, task), counts) in rows {
            columns.job.push(job.0 as i64);
            columns.task.push(*task as i32);
            columns.counts.push(array_text(counts));
        }
        columns
    }
}

/// Counts as a Postgres array literal: UNNEST would flatten an array of arrays.
fn array_text(counts: &Counts) -> String {
    let numbers: Vec<String> = counts.0.iter().map(u64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
