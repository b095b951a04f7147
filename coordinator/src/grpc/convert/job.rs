//! Jobs as people see them.

use mesh_proto::v1::{Counts, Job, OnFailure, TaskState, TaskSummary};

use super::millis;
use crate::{
    engine::{effect::JobView, types},
    store::{
        clock::stamp,
        jobs::{DefinitionRecord, JobRecord},
    },
};

/// Stored counts, one per state.
#[must_use]
pub fn counts(stored: &[i64]) -> Counts {
    let at = |place: usize| stored.get(place).copied().unwrap_or(0).max(0).cast_unsigned();
    Counts {
        blocked: at(0),
        queued: at(1),
        assigned: at(2),
        running: at(3),
        retrying: at(4),
        completed: at(5),
        failed: at(6),
        cancelled: at(7),
    }
}

/// The engine's counts.
#[must_use]
pub fn task_counts(counts: &types::Counts) -> Counts {
    Counts {
        blocked: counts[TaskState::Blocked],
        queued: counts[TaskState::Queued],
        assigned: counts[TaskState::Assigned],
        running: counts[TaskState::Running],
        retrying: counts[TaskState::Retrying],
        completed: counts[TaskState::Completed],
        failed: counts[TaskState::Failed],
        cancelled: counts[TaskState::Cancelled],
    }
}

/// Share of tasks that are over, 0 to 1.
fn progress(counts: &Counts) -> f64 {
    let over = counts.completed + counts.failed + counts.cancelled;
    let all = over + counts.blocked + counts.queued + counts.assigned + counts.running + counts.retrying;
    if all == 0 { 0.0 } else { over as f64 / all as f64 }
}

/// A stored job; without `definitions` its tasks are left out, as in lists.
#[must_use]
pub fn job(record: &JobRecord, definitions: &[DefinitionRecord]) -> Job {
    let all = counts(&record.counts);
    let on_failure = if record.keep_going { OnFailure::Continue } else { OnFailure::Stop };
    let end = record.finished_at.unwrap_or_else(chrono::Utc::now);
    let run_ms = record.started_at.map_or(0, |start| (end - start).num_milliseconds().max(0).cast_unsigned());
    Job {
        number: record.number.0,
        uuid: record.uuid.to_string(),
        name: record.name.clone(),
        owner: record.owner.clone(),
        state: record.state.into(),
        priority: u32::from(record.priority),
        on_failure: on_failure.into(),
        created_at_ms: record.created_at.timestamp_millis(),
        started_at_ms: millis(record.started_at),
        finished_at_ms: millis(record.finished_at),
        counts: Some(all),
        tasks: definitions.iter().map(summary).collect(),
        reason: record.reason.clone(),
        progress: progress(&all),
        run_ms,
    }
}

fn summary(definition: &DefinitionRecord) -> TaskSummary {
    TaskSummary {
        name: definition.name.clone(),
        total: u64::from(definition.total),
        array: definition.spec.array.is_some(),
        counts: Some(counts(&definition.counts)),
        needs: definition.spec.needs.iter().map(|need| need.task.clone()).collect(),
    }
}

/// Brings a job that was read before up to what the engine has just committed.
pub fn apply(job: &mut Job, view: &JobView) {
    let all = task_counts(&view.row.counts);
    job.state = view.row.state.into();
    job.reason.clone_from(&view.row.reason);
    job.started_at_ms = millis(view.row.started_at.map(stamp));
    job.finished_at_ms = millis(view.row.finished_at.map(stamp));
    job.progress = progress(&all);
    job.counts = Some(all);
    for (task, counts) in job.tasks.iter_mut().zip(&view.definitions) {
        task.counts = Some(task_counts(counts));
    }
    if let (Some(start), Some(end)) = (view.row.started_at, view.row.finished_at) {
        job.run_ms = end.since(start);
    }
}
