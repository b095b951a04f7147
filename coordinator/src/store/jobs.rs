//! Jobs, as people read them.

use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::{JobId, JobNumber},
    state::Named as _,
    v1::{self, JobState},
};
use prost::Message as _;

use super::{
    Store, StoreError,
    names::{optional, value},
};

/// A job's row.
#[derive(Clone, Debug)]
pub struct JobRecord {
    pub number: JobNumber,
    pub uuid: JobId,
    pub name: String,
    pub owner: String,
    pub state: JobState,
    pub ending: Option<JobState>,
    pub priority: u8,
    pub keep_going: bool,
    pub reason: String,
    /// One per task state, in its order.
    pub counts: Vec<i64>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A task definition's row.
#[derive(Clone, Debug)]
pub struct DefinitionRecord {
    pub task: u32,
    pub name: String,
    pub total: u32,
    pub counts: Vec<i64>,
    pub spec: v1::TaskSpec,
}

/// How a person names a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRef {
    Number(JobNumber),
    Uuid(JobId),
    /// The latest of this owner.
    Last(String),
}

macro_rules! job_record {
    ($row:expr) => {
        JobRecord {
            number: JobNumber($row.number as u64),
            uuid: JobId($row.uuid),
            name: $row.name,
            owner: $row.owner,
            state: value(&$row.state, "job state")?,
            ending: optional($row.ending.as_deref(), "job state")?,
            priority: $row.priority as u8,
            keep_going: $row.keep_going,
            reason: $row.reason,
            counts: $row.counts,
            created_at: $row.created_at,
            started_at: $row.started_at,
            finished_at: $row.finished_at,
        }
    };
}

impl Store {
    /// The number behind a reference.
    pub async fn job_number(&self, job: &JobRef) -> Result<Option<JobNumber>, StoreError> {
        let found = match job {
            JobRef::Number(number) => return Ok(Some(*number)),
            JobRef::Uuid(uuid) => {
                sqlx::query_scalar!("SELECT number FROM jobs WHERE uuid = $1", uuid.0)
                    .fetch_optional(&self.pool)
                    .await?
            }
            JobRef::Last(owner) => {
                sqlx::query_scalar!("SELECT max(number) FROM jobs WHERE owner = $1", owner)
                    .fetch_one(&self.pool)
                    .await?
            }
        };
        Ok(found.map(|number| JobNumber(number as u64)))
    }

    pub async fn job(&self, number: JobNumber) -> Result<Option<JobRecord>, StoreError> {
        let Ok(number) = i64::try_from(number.0) else { return Ok(None) };
        sqlx::query!(
            r#"SELECT number, uuid, name, owner, state::text AS "state!", ending::text AS ending, priority,
                keep_going, reason, counts, created_at, started_at, finished_at
               FROM jobs WHERE number = $1"#,
            number,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| Ok(job_record!(row)))
        .transpose()
    }

    /// The job that this key made before, and the digest of what was submitted.
    pub async fn job_by_key(
        &self,
        owner: &str,
        key: &str,
    ) -> Result<Option<(JobNumber, JobId, Vec<u8>)>, StoreError> {
        let row = sqlx::query!(
            "SELECT number, uuid, payload_digest FROM jobs WHERE owner = $1 AND idempotency_key = $2",
            owner,
            key,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| (JobNumber(row.number as u64), JobId(row.uuid), row.payload_digest)))
    }

    /// Newest first, below `before`. No states: all; no owner: everybody's.
    pub async fn jobs(
        &self,
        before: Option<JobNumber>,
        limit: u32,
        states: &[JobState],
        owner: Option<&str>,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let before = before.and_then(|number| i64::try_from(number.0).ok()).unwrap_or(i64::MAX);
        let states: Vec<&str> = states.iter().map(|state| state.lower()).collect();
        sqlx::query!(
            r#"SELECT number, uuid, name, owner, state::text AS "state!", ending::text AS ending, priority,
                keep_going, reason, counts, created_at, started_at, finished_at
               FROM jobs
               WHERE number < $1 AND (cardinality($2::text[]) = 0 OR state::text = ANY ($2))
                 AND ($3::text IS NULL OR owner = $3)
               ORDER BY number DESC LIMIT $4"#,
            before,
            &states as &[&str],
            owner,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| Ok(job_record!(row)))
        .collect()
    }

    /// The task definitions of a job, in the order of its file.
    pub async fn definitions(&self, job: JobNumber) -> Result<Vec<DefinitionRecord>, StoreError> {
        sqlx::query!(
            "SELECT task, name, total, counts, spec FROM task_definitions WHERE job = $1 ORDER BY task",
            job.0 as i64,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            Ok(DefinitionRecord {
                task: row.task as u32,
                name: row.name,
                total: row.total as u32,
                counts: row.counts,
                spec: v1::TaskSpec::decode(&row.spec[..]).map_err(|_| StoreError::Corrupt("task spec"))?,
            })
        })
        .collect()
    }

    /// What was submitted beside the tasks.
    pub async fn job_spec(&self, job: JobNumber) -> Result<Option<v1::JobSpec>, StoreError> {
        sqlx::query_scalar!("SELECT spec FROM jobs WHERE number = $1", job.0 as i64)
            .fetch_optional(&self.pool)
            .await?
            .map(|spec| v1::JobSpec::decode(&spec[..]).map_err(|_| StoreError::Corrupt("job spec")))
            .transpose()
    }
}
