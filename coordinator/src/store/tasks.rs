//! Tasks, as people read them. Elements that were never assigned have no row: who looks at
//! them gets them from the ranges (see `grpc/tasks.rs`).

use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::JobNumber,
    state::Named as _,
    v1::{Cause, TaskState},
};

use super::{Store, StoreError, names::value};
use crate::engine::types::Confined;

/// A task's row with its current attempt.
#[derive(Clone, Debug)]
pub struct TaskRecord {
    pub task: u32,
    pub index: u32,
    pub state: TaskState,
    pub attempt: u32,
    /// The node's name.
    pub node: Option<String>,
    pub cause: Option<Cause>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub sandbox: Confined,
}

/// A row of a task with what its current attempt says.
macro_rules! task_record {
    ($row:expr) => {
        $crate::store::tasks::TaskRecord {
            task: $row.task as u32,
            index: $row.index as u32,
            state: $crate::store::names::value(&$row.state, "task state")?,
            attempt: $row.attempt as u32,
            node: $row.node,
            cause: $crate::store::names::optional($row.cause.as_deref(), "cause")?,
            exit_code: $row.exit_code,
            signal: $row.signal,
            message: $row.message.unwrap_or_default(),
            started_at: $row.started_at,
            finished_at: $row.finished_at,
            sandbox: $crate::store::names::confined($row.sandbox, $row.limits).unwrap_or_default(),
        }
    };
}
pub(super) use task_record;

impl Store {
    /// Rows of a job from (`task`, `index`) on, in order, below definition `end`; no states: all.
    pub async fn task_rows(
        &self,
        job: JobNumber,
        (task, index): (u32, u32),
        end: u32,
        states: &[TaskState],
        limit: u32,
    ) -> Result<Vec<TaskRecord>, StoreError> {
        let states: Vec<&str> = states.iter().map(|state| state.lower()).collect();
        sqlx::query!(
            r#"SELECT t.task, t.index, t.state::text AS "state!", t.attempt, n.name AS "node?",
                t.cause::text AS cause, t.exit_code, t.signal, t.message, t.started_at, t.finished_at, a.sandbox AS "sandbox?",
                a.limits AS "limits?"
               FROM tasks t
               LEFT JOIN nodes n ON n.id = t.node
               LEFT JOIN attempts a ON (a.job, a.task, a.index, a.number) = (t.job, t.task, t.index, t.attempt)
               WHERE t.job = $1 AND (t.task, t.index) >= ($2, $3) AND t.task < $4
                 AND (cardinality($5::text[]) = 0 OR t.state::text = ANY ($5))
               ORDER BY t.task, t.index LIMIT $6"#,
            job.0 as i64,
            task as i32,
            index as i32,
            end as i32,
            &states as &[&str],
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| Ok(task_record!(row)))
        .collect()
    }

    /// The elements of these definitions that ended, from `first` to before `past`, and how.
    pub async fn task_ends(
        &self,
        job: JobNumber,
        tasks: &[u32],
        first: u32,
        past: u32,
    ) -> Result<Vec<(u32, u32, TaskState)>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let tasks: Vec<i32> = tasks.iter().map(|task| *task as i32).collect();
        sqlx::query!(
            r#"SELECT task, index, state::text AS "state!" FROM tasks
               WHERE job = $1 AND task = ANY ($2) AND index >= $3 AND index < $4
                 AND state IN ('completed', 'failed', 'cancelled')"#,
            job.0 as i64,
            &tasks,
            first as i32,
            past as i32,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| Ok((row.task as u32, row.index as u32, value(&row.state, "task state")?)))
        .collect()
    }
}
