//! A batch of the engine's rows in one transaction, fenced by the leader's epoch.
//!
//! Rows are coalesced by key before they come here. Each kind is one statement over UNNEST;
//! each statement must change exactly as many rows as it was given, for the guards in them
//! (terminal states never change, attempts only grow) hold only if the engine's memory and
//! the database agree.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::{AttemptKey, JobNumber, NodeId, TaskKey},
    state::Named as _,
};
use sqlx::{Acquire as _, PgConnection};
use uuid::Uuid;

use super::{StoreError, clock::stamp, decisions, leader};
use crate::engine::{
    effect::{AttemptRow, JobRow, TaskRow, Write},
    event::{NewJob, NodeRecord},
    placement::Decision,
    types::{Counts, JobState, TaskState, Time},
};
use crate::failpoint::{Point, reach};

/// The rows of one commit, the last of each key.
#[derive(Debug, Default)]
pub struct Rows {
    new_jobs: BTreeMap<JobNumber, (Arc<NewJob>, Time)>,
    jobs: BTreeMap<JobNumber, JobRow>,
    definitions: BTreeMap<(JobNumber, u32), Counts>,
    tasks: BTreeMap<TaskKey, TaskRow>,
    attempts: BTreeMap<AttemptKey, AttemptRow>,
    nodes: BTreeMap<NodeId, (NodeRecord, Option<Bytes>)>,
    decisions: Vec<Arc<Decision>>,
}

impl Rows {
    /// Takes the writes of a batch, in order.
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
                Write::Decision(decision) => rows.decisions.push(decision),
                Write::Node { record, facts } => {
                    let facts = facts.or_else(|| rows.nodes.remove(&record.id).and_then(|(_, facts)| facts));
                    rows.nodes.insert(record.id, (record, facts));
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
    }
}

/// Writes a batch under the epoch and says the new seq. An empty batch is the leader's beat.
pub async fn commit(connection: &mut PgConnection, epoch: i64, mut rows: Rows) -> Result<i64, StoreError> {
    if rows.is_empty() {
        return leader::fence(connection, epoch).await;
    }
    let mut transaction = connection.begin().await?;
    reach(Point::BeforeFence);
    match write(&mut transaction, epoch, &mut rows).await {
        Ok(seq) => {
            reach(Point::BeforeCommit);
            transaction.commit().await?;
            reach(Point::AfterCommit);
            Ok(seq)
        }
        Err(error) => {
            // Left to itself the transaction would be rolled back with the connection's next
            // use, and hold the leader's row until then.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

async fn write(transaction: &mut PgConnection, epoch: i64, rows: &mut Rows) -> Result<i64, StoreError> {
    let seq = leader::fence(transaction, epoch).await?;
    reach(Point::AfterFence);
    insert_jobs(transaction, rows).await?;
    reach(Point::AfterNewJobs);
    update_jobs(transaction, &rows.jobs).await?;
    update_definitions(transaction, &rows.definitions).await?;
    reach(Point::AfterJobs);
    upsert_tasks(transaction, &rows.tasks).await?;
    reach(Point::AfterTasks);
    upsert_attempts(transaction, &rows.attempts).await?;
    reach(Point::AfterAttempts);
    update_nodes(transaction, &rows.nodes).await?;
    decisions::insert(transaction, &rows.decisions).await?;
    Ok(seq)
}

fn expect(what: &'static str, sent: usize, hit: u64) -> Result<(), StoreError> {
    let sent = sent as u64;
    if hit == sent { Ok(()) } else { Err(StoreError::Conflict { what, sent, hit }) }
}

fn counts(counts: &Counts) -> Vec<i64> {
    counts.0.iter().map(|count| *count as i64).collect()
}

async fn insert_jobs(connection: &mut PgConnection, rows: &mut Rows) -> Result<(), StoreError> {
    for (number, (job, created_at)) in &rows.new_jobs {
        let row = rows.jobs.remove(number);
        let (state, ending, reason, all, started_at, finished_at) = match row {
            Some(row) => (row.state, row.ending, row.reason, row.counts, row.started_at, row.finished_at),
            None => (JobState::Queued, None, String::new(), Counts::default(), None, None),
        };
        sqlx::query!(
            "INSERT INTO jobs (number, uuid, name, owner, state, ending, priority, keep_going, idempotency_key,
                payload_digest, spec, reason, counts, created_at, started_at, finished_at)
             VALUES ($1, $2, $3, $4, $5::text::job_state, $6::text::job_state, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
            number.0 as i64,
            job.uuid.0,
            job.name,
            job.owner,
            state.lower(),
            ending.map(JobState::lower),
            i16::from(job.priority),
            job.keep_going,
            job.idempotency_key,
            &job.payload_digest[..],
            &job.spec[..],
            reason,
            &counts(&all)[..],
            stamp(*created_at),
            started_at.map(stamp),
            finished_at.map(stamp),
        )
        .execute(&mut *connection)
        .await?;
        let mut tasks = Vec::new();
        let mut names = Vec::new();
        let mut totals = Vec::new();
        let mut specs: Vec<&[u8]> = Vec::new();
        let mut flat = Vec::new();
        for (task, definition) in job.tasks.iter().enumerate() {
            tasks.push(task as i32);
            names.push(definition.name.clone());
            totals.push(definition.total as i32);
            specs.push(&definition.spec);
            let mine = rows.definitions.remove(&(*number, task as u32)).unwrap_or_else(|| {
                let mut blocked = Counts::default();
                blocked[TaskState::Blocked] = u64::from(definition.total);
                blocked
            });
            flat.push(array_text(&mine));
        }
        sqlx::query!(
            "INSERT INTO task_definitions (job, task, name, total, spec, counts)
             SELECT $1, task, name, total, spec, counts::bigint[]
             FROM UNNEST($2::int[], $3::text[], $4::int[], $5::bytea[], $6::text[])
                AS t (task, name, total, spec, counts)",
            number.0 as i64,
            &tasks,
            &names,
            &totals,
            &specs as &[&[u8]],
            &flat,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Counts as a Postgres array literal: UNNEST would flatten an array of arrays.
fn array_text(counts: &Counts) -> String {
    let numbers: Vec<String> = counts.0.iter().map(u64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}

async fn update_jobs(
    connection: &mut PgConnection,
    rows: &BTreeMap<JobNumber, JobRow>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut numbers = Vec::with_capacity(rows.len());
    let mut states = Vec::with_capacity(rows.len());
    let mut endings: Vec<Option<&str>> = Vec::with_capacity(rows.len());
    let mut reasons = Vec::with_capacity(rows.len());
    let mut all = Vec::with_capacity(rows.len());
    let mut started: Vec<Option<DateTime<Utc>>> = Vec::with_capacity(rows.len());
    let mut finished: Vec<Option<DateTime<Utc>>> = Vec::with_capacity(rows.len());
    for row in rows.values() {
        numbers.push(row.number.0 as i64);
        states.push(row.state.lower());
        endings.push(row.ending.map(JobState::lower));
        reasons.push(row.reason.as_str());
        all.push(array_text(&row.counts));
        started.push(row.started_at.map(stamp));
        finished.push(row.finished_at.map(stamp));
    }
    let hit = sqlx::query!(
        "UPDATE jobs SET state = t.state::job_state, ending = t.ending::job_state, reason = t.reason,
            counts = t.counts::bigint[], started_at = t.started_at, finished_at = t.finished_at
         FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[])
            AS t (number, state, ending, reason, counts, started_at, finished_at)
         WHERE jobs.number = t.number AND jobs.finished_at IS NULL",
        &numbers,
        &states as &[&str],
        &endings as &[Option<&str>],
        &reasons as &[&str],
        &all,
        &started as &[Option<DateTime<Utc>>],
        &finished as &[Option<DateTime<Utc>>],
    )
    .execute(connection)
    .await?
    .rows_affected();
    expect("jobs", rows.len(), hit)
}

async fn update_definitions(
    connection: &mut PgConnection,
    rows: &BTreeMap<(JobNumber, u32), Counts>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let jobs: Vec<i64> = rows.keys().map(|(job, _)| job.0 as i64).collect();
    let tasks: Vec<i32> = rows.keys().map(|(_, task)| *task as i32).collect();
    let all: Vec<String> = rows.values().map(array_text).collect();
    let hit = sqlx::query!(
        "UPDATE task_definitions AS d SET counts = t.counts::bigint[]
         FROM UNNEST($1::bigint[], $2::int[], $3::text[]) AS t (job, task, counts)
         WHERE d.job = t.job AND d.task = t.task",
        &jobs,
        &tasks,
        &all,
    )
    .execute(connection)
    .await?
    .rows_affected();
    expect("task definitions", rows.len(), hit)
}

#[derive(Default)]
struct TaskColumns<'a> {
    job: Vec<i64>,
    task: Vec<i32>,
    index: Vec<i32>,
    state: Vec<&'static str>,
    attempt: Vec<i32>,
    node: Vec<Option<Uuid>>,
    own_failures: Vec<i32>,
    losses: Vec<i32>,
    cause: Vec<Option<&'static str>>,
    exit_code: Vec<Option<i32>>,
    signal: Vec<Option<i32>>,
    message: Vec<Option<&'a str>>,
    started_at: Vec<Option<DateTime<Utc>>>,
    finished_at: Vec<Option<DateTime<Utc>>>,
}

async fn upsert_tasks(
    connection: &mut PgConnection,
    rows: &BTreeMap<TaskKey, TaskRow>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut c = TaskColumns::default();
    for row in rows.values() {
        let end = row.end.as_deref();
        c.job.push(row.key.job.0 as i64);
        c.task.push(row.key.task as i32);
        c.index.push(row.key.index as i32);
        c.state.push(row.state.lower());
        c.attempt.push(row.attempt as i32);
        c.node.push(row.node.map(|node| node.0));
        c.own_failures.push(row.own_failures as i32);
        c.losses.push(row.losses as i32);
        c.cause.push(end.map(|end| end.cause.lower()));
        c.exit_code.push(end.and_then(|end| end.exit_code));
        c.signal.push(end.and_then(|end| end.signal));
        c.message.push(end.map(|end| end.message.as_str()).filter(|text| !text.is_empty()));
        c.started_at.push(row.started_at.map(stamp));
        c.finished_at.push(row.finished_at.map(stamp));
    }
    let hit = sqlx::query_file!(
        "src/store/upsert_tasks.sql",
        &c.job,
        &c.task,
        &c.index,
        &c.state as &[&str],
        &c.attempt,
        &c.node as &[Option<Uuid>],
        &c.own_failures,
        &c.losses,
        &c.cause as &[Option<&str>],
        &c.exit_code as &[Option<i32>],
        &c.signal as &[Option<i32>],
        &c.message as &[Option<&str>],
        &c.started_at as &[Option<DateTime<Utc>>],
        &c.finished_at as &[Option<DateTime<Utc>>],
    )
    .execute(connection)
    .await?
    .rows_affected();
    expect("tasks", rows.len(), hit)
}

#[derive(Default)]
struct AttemptColumns<'a> {
    job: Vec<i64>,
    task: Vec<i32>,
    index: Vec<i32>,
    number: Vec<i32>,
    state: Vec<&'static str>,
    node: Vec<Uuid>,
    boot: Vec<Uuid>,
    cause: Vec<Option<&'static str>>,
    exit_code: Vec<Option<i32>>,
    signal: Vec<Option<i32>>,
    message: Vec<Option<&'a str>>,
    sandbox: Vec<Option<i16>>,
    decision: Vec<Option<i64>>,
    assigned_at: Vec<DateTime<Utc>>,
    started_at: Vec<Option<DateTime<Utc>>>,
    ended_at: Vec<Option<DateTime<Utc>>>,
    run_ms: Vec<Option<i64>>,
    cpu_ms: Vec<Option<i64>>,
    max_rss: Vec<Option<i64>>,
    outputs: Vec<Option<&'a [u8]>>,
    output_length: Vec<i64>,
    output: Vec<Option<&'a [u8]>>,
}

async fn upsert_attempts(
    connection: &mut PgConnection,
    rows: &BTreeMap<AttemptKey, AttemptRow>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut c = AttemptColumns::default();
    for row in rows.values() {
        let end = row.ended.as_ref().map(|(_, end)| end.as_ref());
        c.job.push(row.key.task.job.0 as i64);
        c.task.push(row.key.task.task as i32);
        c.index.push(row.key.task.index as i32);
        c.number.push(row.key.number as i32);
        c.state.push(match (end, row.started_at) {
            (Some(_), _) => "ended",
            (None, Some(_)) => "running",
            (None, None) => "assigned",
        });
        c.node.push(row.node.0);
        c.boot.push(row.boot.0);
        c.cause.push(end.map(|end| end.cause.lower()));
        c.exit_code.push(end.and_then(|end| end.exit_code));
        c.signal.push(end.and_then(|end| end.signal));
        c.message.push(end.map(|end| end.message.as_str()).filter(|text| !text.is_empty()));
        c.sandbox.push(row.sandbox.map(|level| level as i16));
        c.decision.push(row.decision.map(|id| id as i64));
        c.assigned_at.push(stamp(row.assigned_at));
        c.started_at.push(row.started_at.map(stamp));
        c.ended_at.push(row.ended.as_ref().map(|(at, _)| stamp(*at)));
        c.run_ms.push(end.map(|end| end.run_ms as i64));
        c.cpu_ms.push(end.map(|end| end.cpu_ms as i64));
        c.max_rss.push(end.map(|end| end.max_rss_bytes as i64));
        c.outputs.push(end.map(|end| &end.outputs[..]).filter(|bytes| !bytes.is_empty()));
        c.output_length.push(end.map_or(0, |end| end.output_length as i64));
        c.output.push(end.map(|end| &end.output[..]).filter(|bytes| !bytes.is_empty()));
    }
    let hit = sqlx::query_file!(
        "src/store/upsert_attempts.sql",
        &c.job,
        &c.task,
        &c.index,
        &c.number,
        &c.state as &[&str],
        &c.node,
        &c.boot,
        &c.cause as &[Option<&str>],
        &c.exit_code as &[Option<i32>],
        &c.signal as &[Option<i32>],
        &c.message as &[Option<&str>],
        &c.sandbox as &[Option<i16>],
        &c.assigned_at,
        &c.started_at as &[Option<DateTime<Utc>>],
        &c.ended_at as &[Option<DateTime<Utc>>],
        &c.run_ms as &[Option<i64>],
        &c.cpu_ms as &[Option<i64>],
        &c.max_rss as &[Option<i64>],
        &c.outputs as &[Option<&[u8]>],
        &c.output_length,
        &c.output as &[Option<&[u8]>],
        &c.decision as &[Option<i64>],
    )
    .execute(connection)
    .await?
    .rows_affected();
    expect("attempts", rows.len(), hit)
}

async fn update_nodes(
    connection: &mut PgConnection,
    rows: &BTreeMap<NodeId, (NodeRecord, Option<Bytes>)>,
) -> Result<(), StoreError> {
    for (id, (record, facts)) in rows {
        let hit = sqlx::query!(
            "UPDATE nodes SET boot_id = $2, cordoned = $3, draining = $4, tags = $5,
                facts = COALESCE($6, facts),
                registered_at = CASE WHEN $6::bytea IS NULL THEN registered_at ELSE now() END
             WHERE id = $1",
            id.0,
            record.boot.map(|boot| boot.0),
            record.cordoned,
            record.draining,
            serde_json::json!(record.tags),
            facts.as_deref(),
        )
        .execute(&mut *connection)
        .await?
        .rows_affected();
        expect("nodes", 1, hit)?;
    }
    Ok(())
}
