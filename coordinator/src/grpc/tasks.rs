//! Lists of tasks. Elements of arrays that were never assigned have no row: what they are
//! follows from the job and from the tasks that they need.

use std::collections::HashMap;

use mesh_proto::{
    code::Code,
    ids::{AttemptKey, TaskKey},
    v1::{Cause, ListTasksRequest, ListTasksResponse, TaskInfo, TaskState},
};
use tonic::Status;

use super::convert::{self, millis, store_status};
use crate::{
    session::{Plans, Sessions},
    spec::Plan,
    store::{
        Store,
        jobs::{DefinitionRecord, JobRecord},
        tasks::TaskRecord,
    },
};

/// Elements that are looked at together.
const WINDOW: u32 = 1000;
/// Windows that one call looks through; a call that finds few says where to go on.
const MAX_WINDOWS: usize = 20;

/// What a listing reads.
pub struct Lister<'a> {
    pub store: &'a Store,
    pub plans: &'a Plans,
    pub sessions: &'a Sessions,
}

/// Rows by element.
type Rows = HashMap<(u32, u32), TaskRecord>;

impl Lister<'_> {
    /// A page of a job's tasks, in the order of its file.
    pub async fn list(
        &self,
        job: &JobRecord,
        request: ListTasksRequest,
    ) -> Result<ListTasksResponse, Status> {
        let definitions = self.store.definitions(job.number).await.map_err(store_status)?;
        let plan = self.plans.plan(job.number).await.map_err(|error| {
            tracing::warn!(job = %job.number, error = &error as &dyn std::error::Error, "no plan");
            Code::Unavailable.status("the job's items cannot be read at the moment")
        })?;
        let page = request.page.clone().unwrap_or_default();
        let limit = convert::limit(&page) as usize;
        let states: Vec<TaskState> = request.states().collect();
        let range = range(&definitions, &request)?;
        let (mut task, mut index) = cursor(&page.after)?.unwrap_or((range.0.start, range.1.start));
        let mut found = Vec::new();
        let with_rows = !states.is_empty() && states.iter().all(|state| always_has_row(*state));
        for _ in 0..MAX_WINDOWS {
            if !range.0.contains(&task) {
                return Ok(ListTasksResponse { tasks: found, next: String::new() });
            }
            let Some(definition) = definitions.get(task as usize) else { break };
            let end = definition.total.min(range.1.end);
            let left = (limit - found.len()) as u32;
            if with_rows {
                let rows = self
                    .store
                    .task_rows(job.number, (task, index), task + 1, &states, left + 1)
                    .await
                    .map_err(store_status)?;
                let rows: Vec<TaskRecord> = rows.into_iter().filter(|row| row.index < end).collect();
                let more = rows.len() > left as usize;
                for row in rows.into_iter().take(left as usize) {
                    index = row.index + 1;
                    found.push(self.info(job, definition, &plan, row));
                }
                if more {
                    return Ok(ListTasksResponse { tasks: found, next: format!("{task}.{index}") });
                }
                (task, index) = (task + 1, range.1.start);
                continue;
            }
            let past = index.saturating_add(WINDOW).min(end);
            let rows = self.window(job, &definitions, task, index..past).await?;
            while index < past {
                if found.len() == limit {
                    return Ok(ListTasksResponse { tasks: found, next: format!("{task}.{index}") });
                }
                let row = rows.get(&(task, index)).cloned().unwrap_or_else(|| {
                    without_row(task, index, synthesise(job, &definitions, &rows, task, index))
                });
                if states.is_empty() || states.contains(&row.state) {
                    found.push(self.info(job, definition, &plan, row));
                }
                index += 1;
            }
            if index >= end {
                (task, index) = (task + 1, range.1.start);
            }
        }
        let next = if range.0.contains(&task) { format!("{task}.{index}") } else { String::new() };
        Ok(ListTasksResponse { tasks: found, next })
    }

    /// The rows of a window, and of the same elements of what it needs, directly or not.
    async fn window(
        &self,
        job: &JobRecord,
        definitions: &[DefinitionRecord],
        task: u32,
        range: std::ops::Range<u32>,
    ) -> Result<Rows, Status> {
        let mut rows = Rows::new();
        let mut wanted = vec![task];
        let mut seen = Vec::new();
        while let Some(task) = wanted.pop() {
            if seen.contains(&task) {
                continue;
            }
            seen.push(task);
            let page = self
                .store
                .task_rows(job.number, (task, range.start), task + 1, &[], range.len() as u32)
                .await
                .map_err(store_status)?;
            rows.extend(
                page.into_iter().filter(|row| row.index < range.end).map(|row| ((row.task, row.index), row)),
            );
            let Some(definition) = definitions.get(task as usize) else { continue };
            for need in definition.spec.needs.iter().filter(|need| need.same_index) {
                wanted.extend(position(definitions, &need.task));
            }
        }
        Ok(rows)
    }

    fn info(&self, job: &JobRecord, definition: &DefinitionRecord, plan: &Plan, row: TaskRecord) -> TaskInfo {
        let key = TaskKey { job: job.number, task: row.task, index: row.index };
        let progress = (row.state == TaskState::Running)
            .then(|| self.sessions.progress(AttemptKey { task: key, number: row.attempt }))
            .flatten();
        let item = plan.tasks.get(row.task as usize).and_then(|task| task.item(row.index));
        TaskInfo {
            key: Some(key.into()),
            name: definition.name.clone(),
            array: definition.spec.array.is_some(),
            item: item.unwrap_or_default(),
            state: row.state.into(),
            attempt: row.attempt,
            node: row.node.unwrap_or_default(),
            cause: row.cause.unwrap_or(Cause::Unspecified).into(),
            exit_code: row.exit_code,
            signal: row.signal,
            progress: progress.as_ref().map(|(percent, _)| *percent),
            progress_message: progress.map(|(_, message)| message).unwrap_or_default(),
            started_at_ms: millis(row.started_at),
            finished_at_ms: millis(row.finished_at),
            message: row.message,
            queued_at_ms: 0,
            sandbox: row.sandbox.into(),
        }
    }
}

/// Which definitions and which elements are asked for.
fn range(
    definitions: &[DefinitionRecord],
    request: &ListTasksRequest,
) -> Result<(std::ops::Range<u32>, std::ops::Range<u32>), Status> {
    let tasks = if request.task.is_empty() {
        0..definitions.len() as u32
    } else {
        let task = position(definitions, &request.task)
            .ok_or_else(|| Code::NotFound.status(format!("the job has no task {:?}", request.task)))?;
        task..task + 1
    };
    let elements = match request.index {
        None => 0..u32::MAX,
        Some(index) => {
            let total = definitions.get(tasks.start as usize).map_or(0, |definition| definition.total);
            if index >= total {
                let what = format!("task {:?} has no element {index}; it has {total}", request.task);
                return Err(Code::NotFound.status(what));
            }
            index..index + 1
        }
    };
    Ok((tasks, elements))
}

fn cursor(after: &str) -> Result<Option<(u32, u32)>, Status> {
    if after.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let (task, index) = after.split_once('.')?;
        Some((task.parse().ok()?, index.parse().ok()?))
    };
    parse().map(Some).ok_or_else(|| Code::Invalid.status("`after` is no cursor of this list"))
}

fn position(definitions: &[DefinitionRecord], name: &str) -> Option<u32> {
    definitions.iter().position(|definition| definition.name == name).map(|task| task as u32)
}

/// Whether tasks in this state were assigned before, and so have a row.
fn always_has_row(state: TaskState) -> bool {
    match state {
        TaskState::Unspecified | TaskState::Blocked | TaskState::Queued | TaskState::Cancelled => false,
        TaskState::Assigned
        | TaskState::Running
        | TaskState::Retrying
        | TaskState::Completed
        | TaskState::Failed => true,
    }
}

/// What an element without a row is.
fn synthesise(
    job: &JobRecord,
    definitions: &[DefinitionRecord],
    rows: &Rows,
    task: u32,
    index: u32,
) -> TaskState {
    if job.state.is_terminal() || job.ending.is_some() {
        return TaskState::Cancelled;
    }
    let Some(definition) = definitions.get(task as usize) else { return TaskState::Blocked };
    let mut state = TaskState::Queued;
    for need in &definition.spec.needs {
        let Some(needed) = position(definitions, &need.task) else { continue };
        let met = if need.same_index {
            match rows.get(&(needed, index)) {
                Some(row) => row.state,
                None => synthesise(job, definitions, rows, needed, index),
            }
        } else {
            all_of(&definitions[needed as usize])
        };
        match met {
            TaskState::Completed => {}
            TaskState::Failed | TaskState::Cancelled => return TaskState::Cancelled,
            TaskState::Unspecified
            | TaskState::Blocked
            | TaskState::Queued
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Retrying => state = TaskState::Blocked,
        }
    }
    state
}

/// A whole definition as something that another needs.
fn all_of(definition: &DefinitionRecord) -> TaskState {
    let counts = convert::counts(&definition.counts);
    if counts.failed + counts.cancelled > 0 {
        TaskState::Cancelled
    } else if counts.completed == u64::from(definition.total) {
        TaskState::Completed
    } else {
        TaskState::Running
    }
}

fn without_row(task: u32, index: u32, state: TaskState) -> TaskRecord {
    TaskRecord {
        task,
        index,
        state,
        attempt: 0,
        node: None,
        cause: None,
        exit_code: None,
        signal: None,
        message: String::new(),
        started_at: None,
        finished_at: None,
        sandbox: mesh_proto::v1::SandboxLevel::Unspecified,
    }
}
