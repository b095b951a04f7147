//! Everything unfinished, as the coordinator's `store/snapshot.rs` reads it.

use coordinator::engine::{
    Attempts, Elements, Finished, Snapshot, StoredDefinition, StoredJob, StoredPlace, StoredTask,
    effect::TaskRow,
    types::{TaskState, Time},
};
use mesh_proto::ids::{AttemptKey, JobNumber};

use super::{Database, JobRows, is_over};

impl Database {
    /// Reads what the engine needs to go on.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut finished = Finished::default();
        for job in self.jobs.values().filter(|job| job.row.finished_at.is_some()) {
            finished.add(job.row.state, 1, &job.row.counts);
        }
        Snapshot {
            next_decision: self.decisions + 1,
            finished,
            next_job: self.jobs.keys().next_back().map_or(1, |last| last.0 + 1).max(self.first_job),
            first_attempt: self.first_attempt,
            nodes: self.nodes.values().cloned().collect(),
            jobs: self
                .jobs
                .iter()
                .filter(|(_, job)| job.row.finished_at.is_none())
                .map(|(number, job)| self.stored_job(*number, job))
                .collect(),
        }
    }

    /// A job as the engine would hold it, whether it is over or not.
    #[must_use]
    pub fn stored(&self, number: JobNumber) -> Option<StoredJob> {
        Some(self.stored_job(number, self.jobs.get(&number)?))
    }

    fn stored_job(&self, number: JobNumber, job: &JobRows) -> StoredJob {
        let tasks = (0_u32..).zip(&job.new.tasks).map(|(task, definition)| {
            let all = |state| {
                let mut elements = Elements::default();
                for row in self.rows(number, task).filter(|row| row.state == state) {
                    elements.insert(row.key.index..row.key.index + 1);
                }
                elements
            };
            let mut past = Attempts::default();
            for row in self.rows(number, task) {
                let over = matches!(row.state, TaskState::Failed | TaskState::Cancelled);
                if over || waits_anew(row) {
                    past.insert(row.key.index..row.key.index + 1, row.attempt);
                }
            }
            StoredDefinition {
                definition: definition.clone(),
                completed: all(TaskState::Completed),
                failed: all(TaskState::Failed),
                cancelled: all(TaskState::Cancelled),
                past,
                live: self
                    .rows(number, task)
                    .filter(|row| !is_over(row.state) && !waits_anew(row))
                    .map(|row| (row.key.index, self.stored_task(row)))
                    .collect(),
            }
        });
        StoredJob {
            number,
            uuid: job.new.uuid,
            owner: job.new.owner.clone(),
            priority: job.new.priority,
            keep_going: job.new.keep_going,
            idempotency_key: job.new.idempotency_key.clone(),
            payload_digest: job.new.payload_digest,
            state: job.row.state,
            ending: job.row.ending,
            reason: job.row.reason.clone(),
            created_at: Time::default(),
            started_at: job.row.started_at,
            finished_at: job.row.finished_at,
            tasks: tasks.collect(),
        }
    }

    fn stored_task(&self, row: &TaskRow) -> StoredTask {
        let placed = matches!(row.state, TaskState::Assigned | TaskState::Running);
        let attempt = AttemptKey { task: row.key, number: row.attempt };
        StoredTask {
            attempt: row.attempt,
            own_failures: row.own_failures,
            losses: row.losses,
            state: row.state,
            placed: self.attempts.get(&attempt).filter(|_| placed).map(|row| StoredPlace {
                node: row.node,
                boot: row.boot,
                assigned_at: row.assigned_at,
                started_at: row.started_at,
                sandbox: row.sandbox,
                decision: row.decision,
            }),
        }
    }
}

/// Whether a row is queued with neither a failure nor a loss: such rows are read as ranges.
fn waits_anew(row: &TaskRow) -> bool {
    row.state == TaskState::Queued && row.own_failures == 0 && row.losses == 0
}
