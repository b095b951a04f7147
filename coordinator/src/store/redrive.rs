//! Dead letters come back: jobs that were over are opened again, and rows of many tasks change
//! their state together.
//!
//! These are the only writes that leave a terminal state. Each is guarded by what the engine
//! believes: the job finished at the moment that was read, the tasks are in the state that they
//! leave.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    ids::{JobNumber, TaskKey},
    state::Named as _,
    v1::SandboxLevel,
};
use sqlx::PgConnection;

use super::{Store, StoreError, clock::stamp, names::optional, snapshot, tasks::TaskRecord};
use crate::engine::{
    StoredJob,
    effect::{Move, Moved, Redriven, TaskRow},
    event::AttemptEnd,
    types::{Cause, TaskState},
};

/// Rows that one statement changes.
const CHUNK: usize = 50_000;
/// What a row says that was cancelled before its new series began.
pub const DROPPED: &str = "cancelled while it waited";

/// A task that used up its attempts, with the names of its job and its definition.
#[derive(Clone, Debug)]
pub struct Dead {
    pub job: JobNumber,
    pub job_name: String,
    pub name: String,
    pub own_failures: u32,
    pub losses: u32,
    pub task: TaskRecord,
}

/// The last dead letter of a page: job, definition, element.
pub type DeadCursor = (JobNumber, u32, u32);

impl Store {
    /// A job as the engine would hold it.
    pub async fn stored_job(&self, number: JobNumber) -> Result<Option<StoredJob>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        snapshot::load_job(&mut connection, number).await
    }

    /// Dead letters after `after`: of one job, of one of its definitions, of one element; or of
    /// every job, the newest first.
    pub async fn dead(
        &self,
        job: Option<JobNumber>,
        target: Option<(u32, Option<u32>)>,
        after: Option<DeadCursor>,
        limit: u32,
    ) -> Result<Vec<Dead>, StoreError> {
        let mut found = Vec::new();
        if let Some(job) = job {
            let after = after.map(|(_, task, index)| (task, index));
            self.dead_of(job, target, after, limit, &mut found).await?;
            return Ok(found);
        }
        let (mut before, mut inside) = match after {
            // The rest of the job where the page before ended, then those before it.
            Some((job, task, index)) => (job.0.saturating_add(1), Some((task, index))),
            None => (u64::MAX, None),
        };
        while (found.len() as u32) < limit {
            let next = sqlx::query_scalar!(
                "SELECT number FROM jobs WHERE number < $1 AND counts[7] > 0 ORDER BY number DESC LIMIT 1",
                i64::try_from(before).unwrap_or(i64::MAX),
            )
            .fetch_optional(&self.pool)
            .await?;
            let Some(number) = next else { break };
            before = number as u64;
            let job = JobNumber(before);
            let inside = inside.take().filter(|_| after.is_some_and(|(at, ..)| at == job));
            self.dead_of(job, None, inside, limit - found.len() as u32, &mut found).await?;
        }
        Ok(found)
    }

    async fn dead_of(
        &self,
        job: JobNumber,
        target: Option<(u32, Option<u32>)>,
        after: Option<(u32, u32)>,
        limit: u32,
        found: &mut Vec<Dead>,
    ) -> Result<(), StoreError> {
        let Ok(number) = i64::try_from(job.0) else { return Ok(()) };
        let (task, index) = match target {
            Some((task, index)) => (Some(task as i32), index.map(|index| index as i32)),
            None => (None, None),
        };
        let (after_task, after_index) = after.map_or((-1, -1), |(task, index)| (task as i32, index as i32));
        let rows = sqlx::query_file!(
            "src/store/dead.sql",
            number,
            task,
            index,
            after_task,
            after_index,
            i64::from(limit)
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            found.push(Dead {
                job,
                job_name: row.job_name,
                name: row.name,
                own_failures: row.own_failures as u32,
                losses: row.losses as u32,
                task: TaskRecord {
                    task: row.task as u32,
                    index: row.index as u32,
                    state: TaskState::Failed,
                    attempt: row.attempt as u32,
                    node: row.node,
                    cause: optional(row.cause.as_deref(), "cause")?,
                    exit_code: row.exit_code,
                    signal: row.signal,
                    message: row.message.unwrap_or_default(),
                    started_at: row.started_at,
                    finished_at: row.finished_at,
                    sandbox: row
                        .sandbox
                        .and_then(|level| SandboxLevel::try_from(i32::from(level)).ok())
                        .unwrap_or_default(),
                },
            });
        }
        Ok(())
    }
}

/// Brings whole rows of the same batch up to a move that comes after them; what is left of the
/// move is for rows that were written before.
#[must_use]
pub fn fold(tasks: &mut BTreeMap<TaskKey, TaskRow>, mut moved: Moved) -> Option<Moved> {
    let mut done = Vec::new();
    for range in moved.elements.iter() {
        let key = |index| TaskKey { job: moved.job, task: moved.task, index };
        for (key, row) in tasks.range_mut(key(range.start)..key(range.end)) {
            apply(row, &moved);
            done.push(key.index);
        }
    }
    for index in done {
        moved.elements.remove(index..index + 1);
    }
    (!moved.elements.is_empty()).then_some(moved)
}

/// What a move makes of a row.
fn apply(row: &mut TaskRow, moved: &Moved) {
    row.state = moved.how.states().1;
    row.finished_at = None;
    if moved.how.is_anew() {
        (row.own_failures, row.losses, row.started_at) = (0, 0, None);
    }
    if row.state == TaskState::Cancelled {
        row.finished_at = Some(moved.at);
        row.end = Some(Arc::new(AttemptEnd::declared(Cause::Cancelled, DROPPED)));
    }
}

/// Opens jobs that were over, and notes who asked for it.
pub async fn open(connection: &mut PgConnection, rows: &[Redriven]) -> Result<(), StoreError> {
    for row in rows {
        if let Some(finished_at) = row.finished_at {
            let hit = sqlx::query!(
                "UPDATE jobs SET state = 'queued', ending = NULL, finished_at = NULL
                 WHERE number = $1 AND finished_at = $2",
                row.number.0 as i64,
                stamp(finished_at),
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            expect("jobs to open", 1, hit)?;
        }
        sqlx::query!(
            "INSERT INTO audit (actor, action, subject, detail) VALUES ($1, 'job.redrive', $2, $3)",
            row.by,
            row.number.to_string(),
            row.detail,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Moves tasks from state to state, in the order in which that was decided.
pub async fn shift(connection: &mut PgConnection, moves: &[Moved]) -> Result<(), StoreError> {
    for alike in moves.chunk_by(|one, next| (one.how, one.at) == (next.how, next.at)) {
        let Some(Moved { how, at, .. }) = alike.first() else { continue };
        let keys: Vec<(i64, i32, i32)> = alike
            .iter()
            .flat_map(|moved| {
                let (job, task) = (moved.job.0 as i64, moved.task as i32);
                moved.elements.iter().flatten().map(move |index| (job, task, index as i32))
            })
            .collect();
        for keys in keys.chunks(CHUNK) {
            update(connection, keys, *how, stamp(*at)).await?;
        }
    }
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    keys: &[(i64, i32, i32)],
    how: Move,
    at: chrono::DateTime<chrono::Utc>,
) -> Result<(), StoreError> {
    let jobs: Vec<i64> = keys.iter().map(|(job, ..)| *job).collect();
    let tasks: Vec<i32> = keys.iter().map(|(_, task, _)| *task).collect();
    let indices: Vec<i32> = keys.iter().map(|(.., index)| *index).collect();
    let (from, to) = how.states();
    let hit = sqlx::query_file!(
        "src/store/move_tasks.sql",
        &jobs,
        &tasks,
        &indices,
        to.lower(),
        from.lower(),
        how.is_anew(),
        at,
        DROPPED,
    )
    .execute(connection)
    .await?
    .rows_affected();
    expect("tasks to move", keys.len(), hit)
}

/// A guarded write must hit every row that it was given.
fn expect(what: &str, sent: usize, hit: u64) -> Result<(), StoreError> {
    if hit == sent as u64 {
        return Ok(());
    }
    Err(StoreError::Conflict(format!("{hit} of {sent} {what} were hit")))
}
