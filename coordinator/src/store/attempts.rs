//! Attempts: what was promised, what came out of them, where their output is.

use std::time::Duration;

use mesh_proto::{
    ids::{AttemptKey, JobNumber, NodeId, TaskKey},
    v1::{Cause, FileList},
};
use prost::Message as _;

use super::{Store, StoreError, names::optional};

/// An attempt in so far as its agent may ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    pub node: NodeId,
    /// None while it is open.
    pub cause: Option<Cause>,
}

/// An attempt in so far as a reader of its output asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRecord {
    pub attempt: AttemptKey,
    pub node: NodeId,
    /// How long ago it ended; none while it is open.
    pub ended_for: Option<Duration>,
    /// Bytes of the spool, once it ended.
    pub length: u64,
    /// The spool itself when it rode in the result.
    pub inline: Option<Vec<u8>>,
}

impl Store {
    pub async fn attempt(&self, key: AttemptKey) -> Result<Option<AttemptRecord>, StoreError> {
        let row = sqlx::query!(
            "SELECT node, cause::text AS cause FROM attempts
             WHERE job = $1 AND task = $2 AND index = $3 AND number = $4",
            key.task.job.0 as i64,
            key.task.task as i32,
            key.task.index as i32,
            key.number as i32,
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(AttemptRecord { node: NodeId(row.node), cause: optional(row.cause.as_deref(), "cause")? })
        })
        .transpose()
    }

    /// The output of one attempt; `number` 0 is the latest that there is.
    pub async fn output(&self, task: TaskKey, number: u32) -> Result<Option<OutputRecord>, StoreError> {
        let row = sqlx::query!(
            "SELECT number, node, output_length, output,
                (EXTRACT(EPOCH FROM clock_timestamp() - ended_at) * 1000)::bigint AS ended_ms FROM attempts
             WHERE job = $1 AND task = $2 AND index = $3 AND ($4 = 0 OR number = $4)
             ORDER BY number DESC LIMIT 1",
            task.job.0 as i64,
            task.task as i32,
            task.index as i32,
            number as i32,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| OutputRecord {
            attempt: AttemptKey { task, number: row.number as u32 },
            node: NodeId(row.node),
            ended_for: row.ended_ms.map(|ms| Duration::from_millis(ms.max(0).cast_unsigned())),
            length: row.output_length as u64,
            inline: row.output,
        }))
    }

    /// The output files of completed elements of one definition, by index, from `first` on.
    pub async fn outputs(
        &self,
        job: JobNumber,
        task: u32,
        first: u32,
        limit: u32,
    ) -> Result<Vec<(u32, FileList)>, StoreError> {
        sqlx::query!(
            "SELECT t.index, a.outputs FROM tasks t
             JOIN attempts a ON (a.job, a.task, a.index, a.number) = (t.job, t.task, t.index, t.attempt)
             WHERE t.job = $1 AND t.task = $2 AND t.index >= $3 AND t.state = 'completed'
             ORDER BY t.index LIMIT $4",
            job.0 as i64,
            task as i32,
            first as i32,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            let files = FileList::decode(row.outputs.as_deref().unwrap_or_default())
                .map_err(|_| StoreError::Corrupt("outputs"))?;
            Ok((row.index as u32, files))
        })
        .collect()
    }
}
