//! A batch of the engine's rows, fenced by the leader's epoch: one statement, which is its own
//! transaction, so that a commit costs one round trip.
//!
//! Rows are coalesced by key first. Each kind is one part of the statement, over UNNEST, and reads
//! the fence; each must change exactly as many rows as it was given, for the guards in them
//! (terminal states never change, attempts only grow) hold only if the engine's memory and the
//! database agree. The statement fails otherwise, and nothing of it is written.
//!
//! Moves of many rows and jobs that are opened again (`redrive.rs`) come before it, in one
//! transaction with it: they are rare, and what the statement writes rests on them.

mod attempts;
mod jobs;
mod nodes;
mod tasks;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, TaskKey};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use self::{
    attempts::Attempts,
    jobs::{Definitions, Jobs, NewJobs},
    nodes::Nodes,
    tasks::Tasks,
};
use super::{StoreError, decisions, leader, redrive};
use crate::engine::{
    effect::{AttemptRow, JobRow, Moved, Redriven, TaskRow, Write},
    event::{NewJob, NodeRecord},
    placement::Decision,
    types::{Counts, Time},
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
    moved: Vec<Moved>,
    redriven: Vec<Redriven>,
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
                Write::Moved(moved) => rows.moved.extend(redrive::fold(&mut rows.tasks, moved)),
                Write::Redriven(row) => rows.redriven.push(row),
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
            && self.moved.is_empty()
            && self.redriven.is_empty()
    }
}

/// Writes a batch under the epoch and says the new seq. An empty batch is the leader's beat.
pub async fn commit(connection: &mut PgConnection, epoch: i64, rows: Rows) -> Result<i64, StoreError> {
    if rows.is_empty() {
        return leader::fence(connection, epoch).await;
    }
    let seq = if rows.moved.is_empty() && rows.redriven.is_empty() {
        write(connection, epoch, rows).await?
    } else {
        let mut transaction = connection.begin().await?;
        match write_in_order(&mut transaction, epoch, rows).await {
            Ok(seq) => {
                transaction.commit().await?;
                seq
            }
            Err(error) => {
                // Left to itself the transaction would be rolled back with the connection's next
                // use, and hold the leader's row until then.
                let _ = transaction.rollback().await;
                return Err(error);
            }
        }
    };
    reach(Point::AfterCommit);
    Ok(seq)
}

/// What comes before the statement, and the statement.
async fn write_in_order(
    transaction: &mut PgConnection,
    epoch: i64,
    mut rows: Rows,
) -> Result<i64, StoreError> {
    leader::fence(transaction, epoch).await?;
    redrive::open(transaction, &std::mem::take(&mut rows.redriven)).await?;
    redrive::shift(transaction, &std::mem::take(&mut rows.moved)).await?;
    write(transaction, epoch, rows).await
}

async fn write(connection: &mut PgConnection, epoch: i64, rows: Rows) -> Result<i64, StoreError> {
    let Rows { new_jobs, mut jobs, mut definitions, tasks, attempts, nodes, decisions, .. } = rows;
    let new = NewJobs::of(&new_jobs, &mut jobs, &mut definitions);
    let j = Jobs::of(jobs);
    let d = Definitions::of(&definitions);
    let t = Tasks::of(&tasks);
    let a = Attempts::of(&attempts);
    let node = Nodes::of(&nodes);
    let records = decisions::Columns::of(&decisions);
    let row = sqlx::query_file!(
        "src/store/commit/write.sql",
        epoch,
        // New jobs.
        &new.number,
        &new.uuid,
        &new.name as &[&str],
        &new.owner as &[&str],
        &new.row.state as &[&str],
        &new.row.ending as &[Option<&str>],
        &new.priority,
        &new.keep_going,
        &new.idempotency_key as &[Option<&str>],
        &new.payload_digest as &[&[u8]],
        &new.spec as &[&[u8]],
        &new.row.reason,
        &new.row.counts,
        &new.created_at,
        &new.row.started_at as &[Option<DateTime<Utc>>],
        &new.row.finished_at as &[Option<DateTime<Utc>>],
        &new.definitions.job,
        &new.definitions.task,
        &new.definitions.name as &[&str],
        &new.definitions.total,
        &new.definitions.spec as &[&[u8]],
        &new.definitions.counts,
        // Jobs.
        &j.number,
        &j.state as &[&str],
        &j.ending as &[Option<&str>],
        &j.reason,
        &j.counts,
        &j.started_at as &[Option<DateTime<Utc>>],
        &j.finished_at as &[Option<DateTime<Utc>>],
        &d.job,
        &d.task,
        &d.counts,
        // Tasks.
        &t.job,
        &t.task,
        &t.index,
        &t.state as &[&str],
        &t.attempt,
        &t.node as &[Option<Uuid>],
        &t.own_failures,
        &t.losses,
        &t.cause as &[Option<&str>],
        &t.exit_code as &[Option<i32>],
        &t.signal as &[Option<i32>],
        &t.message as &[Option<&str>],
        &t.started_at as &[Option<DateTime<Utc>>],
        &t.finished_at as &[Option<DateTime<Utc>>],
        // Attempts.
        &a.job,
        &a.task,
        &a.index,
        &a.number,
        &a.state as &[&str],
        &a.node,
        &a.boot,
        &a.cause as &[Option<&str>],
        &a.exit_code as &[Option<i32>],
        &a.signal as &[Option<i32>],
        &a.message as &[Option<&str>],
        &a.sandbox as &[Option<i16>],
        &a.limits as &[Option<i16>],
        &a.assigned_at,
        &a.started_at as &[Option<DateTime<Utc>>],
        &a.ended_at as &[Option<DateTime<Utc>>],
        &a.run_ms as &[Option<i64>],
        &a.cpu_ms as &[Option<i64>],
        &a.max_rss as &[Option<i64>],
        &a.outputs as &[Option<&[u8]>],
        &a.output_length,
        &a.output as &[Option<&[u8]>],
        &a.decision as &[Option<i64>],
        // Nodes.
        &node.id,
        &node.boot as &[Option<Uuid>],
        &node.cordoned,
        &node.draining,
        &node.tags,
        &node.facts as &[Option<&[u8]>],
        // Decisions.
        &records.id,
        &records.at,
        &records.data,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.ok_or(StoreError::Fenced)?.seq)
}
