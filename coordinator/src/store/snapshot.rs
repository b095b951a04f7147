//! Everything unfinished, read once at a start or a rebuild. Finished elements come as ranges,
//! so a million of them cost one sorted pass in the database and nothing here.

use std::collections::BTreeMap;

use mesh_proto::{
    ids::{BootId, JobId, JobNumber, NodeId},
    v1::{TaskSpec, TaskState},
};
use prost::Message as _;
use sqlx::{Connection as _, PgConnection};

use super::{
    StoreError,
    clock::unstamp,
    names::{confined, optional, value},
    nodes,
};
use crate::{
    engine::{
        Attempts, Elements, Finished, Snapshot, StoredDefinition, StoredJob, StoredPlace, StoredTask,
        event::NodeRecord, types::Counts,
    },
    spec,
};

/// Reads what the engine needs to go on.
pub async fn load(connection: &mut PgConnection) -> Result<Snapshot, StoreError> {
    let next_job = sqlx::query_scalar!(
        "SELECT GREATEST(COALESCE(max(number), 0) + 1, (SELECT first_job FROM mesh)) AS \"next!\" FROM jobs"
    )
    .fetch_one(&mut *connection)
    .await? as u64;
    let first_attempt =
        sqlx::query_scalar!("SELECT first_attempt FROM mesh").fetch_optional(&mut *connection).await?;
    let first_attempt = first_attempt.map_or(1, |first| first as u32);
    let next_decision = sqlx::query_scalar!("SELECT COALESCE(max(id), 0) + 1 AS \"next!\" FROM decisions")
        .fetch_one(&mut *connection)
        .await? as u64;
    let nodes = load_nodes(connection).await?;
    let mut jobs = load_jobs(connection).await?;
    let numbers: Vec<i64> = jobs.keys().map(|number| number.0 as i64).collect();
    load_definitions(connection, &numbers, &mut jobs).await?;
    put_ended(read_ended(connection, &numbers).await?, &mut jobs)?;
    load_live(connection, &numbers, &mut jobs).await?;
    let finished = load_finished(connection).await?;
    let jobs = jobs.into_values().collect();
    Ok(Snapshot { next_job, first_attempt, next_decision, finished, nodes, jobs })
}

/// How many jobs and tasks are over, for the metrics.
async fn load_finished(connection: &mut PgConnection) -> Result<Finished, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT state::text AS "state!", count(*) AS "jobs!", sum(counts[6])::bigint AS "completed!",
            sum(counts[7])::bigint AS "failed!", sum(counts[8])::bigint AS "cancelled!"
           FROM jobs WHERE finished_at IS NOT NULL GROUP BY state"#
    )
    .fetch_all(connection)
    .await?;
    let mut finished = Finished::default();
    for row in rows {
        let mut tasks = Counts::default();
        tasks[TaskState::Completed] = row.completed as u64;
        tasks[TaskState::Failed] = row.failed as u64;
        tasks[TaskState::Cancelled] = row.cancelled as u64;
        finished.add(value(&row.state, "job state")?, row.jobs as u64, &tasks);
    }
    Ok(finished)
}

type Jobs = BTreeMap<JobNumber, StoredJob>;

async fn load_nodes(connection: &mut PgConnection) -> Result<Vec<NodeRecord>, StoreError> {
    sqlx::query!("SELECT id, name, boot_id, cordoned, draining, tags FROM nodes ORDER BY id")
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| nodes::record(row.id, row.name, row.boot_id, (row.cordoned, row.draining), row.tags))
        .collect()
}

macro_rules! stored_job {
    ($row:expr) => {
        StoredJob {
            number: JobNumber($row.number as u64),
            uuid: JobId($row.uuid),
            owner: $row.owner,
            priority: $row.priority as u8,
            keep_going: $row.keep_going,
            idempotency_key: $row.idempotency_key,
            payload_digest: $row
                .payload_digest
                .as_slice()
                .try_into()
                .map_err(|_| StoreError::Corrupt("payload digest"))?,
            state: value(&$row.state, "job state")?,
            ending: optional($row.ending.as_deref(), "job state")?,
            reason: $row.reason,
            created_at: unstamp($row.created_at),
            started_at: $row.started_at.map(unstamp),
            finished_at: $row.finished_at.map(unstamp),
            tasks: Vec::new(),
        }
    };
}

async fn load_jobs(connection: &mut PgConnection) -> Result<Jobs, StoreError> {
    sqlx::query!(
        r#"SELECT number, uuid, owner, state::text AS "state!", ending::text AS ending, priority, keep_going,
            idempotency_key, payload_digest, reason, created_at, started_at, finished_at
           FROM jobs WHERE finished_at IS NULL ORDER BY number"#
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| Ok((JobNumber(row.number as u64), stored_job!(row))))
    .collect()
}

/// One job as the engine would hold it, whether it is over or not.
pub async fn load_job(
    connection: &mut PgConnection,
    number: JobNumber,
) -> Result<Option<StoredJob>, StoreError> {
    let Ok(wanted) = i64::try_from(number.0) else { return Ok(None) };
    // One view of all tables.
    let mut reading = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let row = sqlx::query!(
        r#"SELECT number, uuid, owner, state::text AS "state!", ending::text AS ending, priority, keep_going,
            idempotency_key, payload_digest, reason, created_at, started_at, finished_at
           FROM jobs WHERE number = $1"#,
        wanted,
    )
    .fetch_optional(&mut *reading)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let mut jobs = Jobs::from([(number, stored_job!(row))]);
    load_definitions(&mut reading, &[wanted], &mut jobs).await?;
    load_live(&mut reading, &[wanted], &mut jobs).await?;
    let ended = read_ended(&mut reading, &[wanted]).await?;
    // A transaction that stands still is ended by the database: what takes time comes after it.
    reading.commit().await?;
    put_ended(ended, &mut jobs)?;
    Ok(jobs.remove(&number))
}

async fn load_definitions(
    connection: &mut PgConnection,
    numbers: &[i64],
    jobs: &mut Jobs,
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        "SELECT job, spec FROM task_definitions WHERE job = ANY ($1) ORDER BY job, task",
        numbers,
    )
    .fetch_all(connection)
    .await?;
    let mut specs: BTreeMap<JobNumber, Vec<TaskSpec>> = BTreeMap::new();
    for row in rows {
        let task = TaskSpec::decode(&row.spec[..]).map_err(|_| StoreError::Corrupt("task spec"))?;
        specs.entry(JobNumber(row.job as u64)).or_default().push(task);
    }
    for (number, tasks) in specs {
        let Some(job) = jobs.get_mut(&number) else { continue };
        let definitions = spec::definitions(&tasks).map_err(|_| StoreError::Corrupt("task spec"))?;
        job.tasks = definitions
            .into_iter()
            .map(|definition| StoredDefinition {
                definition,
                completed: Elements::default(),
                failed: Elements::default(),
                cancelled: Elements::default(),
                past: Attempts::default(),
                live: BTreeMap::new(),
            })
            .collect();
    }
    Ok(())
}

/// A run of elements that ended alike, or wait alike.
struct Ended {
    job: i64,
    task: i32,
    state: String,
    number: i32,
    first: i32,
    past: i32,
}

/// The runs of elements that ended alike, or wait alike for a new series of attempts ("gaps
/// and islands": within a run, index minus position stays the same). The attempts of completed
/// ones do not matter any more, so they do not break a run.
async fn read_ended(connection: &mut PgConnection, numbers: &[i64]) -> Result<Vec<Ended>, StoreError> {
    Ok(sqlx::query_as!(
        Ended,
        r#"SELECT job, task, state::text AS "state!", number AS "number!",
               min(index) AS "first!", max(index) + 1 AS "past!"
           FROM (
               SELECT job, task, state, index, CASE WHEN state = 'completed' THEN 0 ELSE attempt END AS number,
                   index - row_number() OVER (
                       PARTITION BY job, task, state, CASE WHEN state = 'completed' THEN 0 ELSE attempt END
                       ORDER BY index
                   ) AS island
               FROM tasks
               WHERE job = ANY ($1) AND (
                   state IN ('completed', 'failed', 'cancelled')
                   OR state = 'queued' AND own_failures = 0 AND losses = 0
               )
           ) AS ended
           GROUP BY job, task, state, number, island"#,
        numbers,
    )
    .fetch_all(connection)
    .await?)
}

fn put_ended(rows: Vec<Ended>, jobs: &mut Jobs) -> Result<(), StoreError> {
    for row in rows {
        let job = JobNumber(row.job as u64);
        let Some(definition) = jobs.get_mut(&job).and_then(|job| job.tasks.get_mut(row.task as usize)) else {
            continue;
        };
        let range = row.first as u32..row.past as u32;
        match value(&row.state, "task state")? {
            TaskState::Completed => {
                definition.completed.insert(range);
                continue;
            }
            TaskState::Failed => {
                definition.failed.insert(range.clone());
            }
            TaskState::Cancelled => {
                definition.cancelled.insert(range.clone());
            }
            TaskState::Queued => {}
            TaskState::Unspecified
            | TaskState::Blocked
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Retrying => return Err(StoreError::Corrupt("task state")),
        }
        definition.past.insert(range, row.number as u32);
    }
    Ok(())
}

async fn load_live(
    connection: &mut PgConnection,
    numbers: &[i64],
    jobs: &mut Jobs,
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"SELECT t.job, t.task, t.index, t.state::text AS "state!", t.attempt, t.own_failures, t.losses,
            a.node, a.boot_id, a.assigned_at, a.started_at, a.sandbox, a.limits, a.decision
           FROM tasks t
           JOIN attempts a ON (a.job, a.task, a.index, a.number) = (t.job, t.task, t.index, t.attempt)
           WHERE t.job = ANY ($1) AND t.state NOT IN ('completed', 'failed', 'cancelled')
             AND NOT (t.state = 'queued' AND t.own_failures = 0 AND t.losses = 0)"#,
        numbers,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let job = JobNumber(row.job as u64);
        let Some(definition) = jobs.get_mut(&job).and_then(|job| job.tasks.get_mut(row.task as usize)) else {
            continue;
        };
        let state: TaskState = value(&row.state, "task state")?;
        let placed = matches!(state, TaskState::Assigned | TaskState::Running).then(|| StoredPlace {
            node: NodeId(row.node),
            boot: BootId(row.boot_id),
            assigned_at: unstamp(row.assigned_at),
            started_at: row.started_at.map(unstamp),
            sandbox: confined(row.sandbox, row.limits),
            decision: row.decision.map(|id| id as u64),
        });
        definition.live.insert(
            row.index as u32,
            StoredTask {
                attempt: row.attempt as u32,
                own_failures: row.own_failures as u32,
                losses: row.losses as u32,
                state,
                placed,
            },
        );
    }
    Ok(())
}
