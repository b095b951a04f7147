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
    v1::JobState,
};
use sqlx::PgConnection;

use super::{Store, StoreError, clock::stamp, names::value, snapshot};
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

/// What a redrive did that was asked for under a key.
#[derive(Clone, Debug)]
pub struct Known {
    pub payload_digest: Vec<u8>,
    pub redriven: u64,
    pub resumed: u64,
    /// The job's, now.
    pub state: JobState,
}

impl Store {
    /// A job as the engine would hold it.
    pub async fn stored_job(&self, number: JobNumber) -> Result<Option<StoredJob>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        snapshot::load_job(&mut connection, number).await
    }

    /// The redrive of a job that somebody asked for under this key before.
    pub async fn redrive_by_key(
        &self,
        job: JobNumber,
        actor: &str,
        key: &str,
    ) -> Result<Option<Known>, StoreError> {
        sqlx::query!(
            r#"SELECT r.payload_digest, r.redriven, r.resumed, j.state::text AS "state!"
               FROM redrives r JOIN jobs j ON j.number = r.job
               WHERE r.job = $1 AND r.actor = $2 AND r.idempotency_key = $3"#,
            job.0 as i64,
            actor,
            key,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| {
            Ok(Known {
                payload_digest: row.payload_digest,
                redriven: row.redriven as u64,
                resumed: row.resumed as u64,
                state: value(&row.state, "job state")?,
            })
        })
        .transpose()
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

/// Opens jobs that were over, and notes who asked for it, under which key.
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
        if let Some(key) = &row.key {
            sqlx::query!(
                "INSERT INTO redrives (job, actor, idempotency_key, payload_digest, redriven, resumed)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                row.number.0 as i64,
                row.by,
                key.key,
                &key.payload_digest,
                row.redriven as i64,
                row.resumed as i64,
            )
            .execute(&mut *connection)
            .await?;
        }
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
