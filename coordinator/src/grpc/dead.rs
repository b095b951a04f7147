//! Dead letters: tasks that used up their attempts, as a list.

use mesh_proto::{
    code::Code,
    ids::{JobNumber, TaskKey},
    v1::{Cause, DeadLetter, ListDeadRequest, ListDeadResponse, TaskInfo, TaskState},
};
use prost::Message as _;
use tonic::Status;

use super::{
    convert::{self, millis},
    pages::MESSAGE,
};
use crate::{
    session::Plans,
    store::{
        Store,
        dead::{Dead, DeadCursor},
        jobs::{DefinitionRecord, JobRecord},
    },
};

/// A page of dead letters: of one job, or of all, the newest job first.
pub async fn list(
    store: &Store,
    plans: &Plans,
    record: Option<JobRecord>,
    request: ListDeadRequest,
) -> Result<ListDeadResponse, Status> {
    let page = request.page.clone().unwrap_or_default();
    let limit = convert::limit(&page);
    let after = cursor(&page.after)?;
    let (job, task) = match &record {
        Some(record) => (Some(record.number), target(store, record, &request.task, request.index).await?),
        None if request.task.is_empty() && request.index.is_none() => (None, None),
        None => return Err(Code::Invalid.status("a task needs the number of its job")),
    };
    let rows = store.dead(job, task, after, limit).await?;
    let mut next = (rows.len() == limit as usize).then(|| rows.last().map(place)).flatten();
    let mut dead = Vec::new();
    let mut size = 0;
    let mut last = None;
    for row in rows {
        // One task's message may be long: a page ends where it no longer fits.
        if size >= MESSAGE {
            next = last;
            break;
        }
        last = Some(place(&row));
        let letter = letter(plans, row).await;
        size += letter.encoded_len();
        dead.push(letter);
    }
    let next = next.map(|at| format!("{}.{}.{}", at.job, at.task, at.index)).unwrap_or_default();
    Ok(ListDeadResponse { dead, next })
}

fn place(row: &Dead) -> TaskKey {
    TaskKey { job: row.job, task: row.task.task, index: row.task.index }
}

async fn letter(plans: &Plans, row: Dead) -> DeadLetter {
    // A list of items that cannot be read keeps nobody from seeing what failed.
    let plan = plans.plan(row.job).await.ok();
    let item = plan.as_ref().and_then(|plan| plan.tasks.get(row.task.task as usize)?.item(row.task.index));
    let task = TaskInfo {
        key: Some(place(&row).into()),
        name: row.name,
        array: plan
            .as_ref()
            .and_then(|plan| plan.tasks.get(row.task.task as usize))
            .is_some_and(|task| task.spec.array.is_some()),
        item: item.unwrap_or_default(),
        state: TaskState::Failed.into(),
        attempt: row.task.attempt,
        node: row.task.node.unwrap_or_default(),
        cause: row.task.cause.unwrap_or(Cause::Unspecified).into(),
        exit_code: row.task.exit_code,
        signal: row.task.signal,
        started_at_ms: millis(row.task.started_at),
        finished_at_ms: millis(row.task.finished_at),
        message: row.task.message,
        sandbox: row.task.sandbox.level.into(),
        limits: row.task.sandbox.limits.into(),
        ..TaskInfo::default()
    };
    DeadLetter { task: Some(task), job_name: row.job_name, failures: row.own_failures, losses: row.losses }
}

fn cursor(after: &str) -> Result<Option<DeadCursor>, Status> {
    if after.is_empty() {
        return Ok(None);
    }
    let mut parts = after.split('.');
    let mut parse = || {
        let job = JobNumber(parts.next()?.parse().ok()?);
        let place = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some((job, place.0, place.1))
    };
    parse().map(Some).ok_or_else(|| Code::Invalid.status("`after` is no cursor of this list"))
}

async fn target(
    store: &Store,
    record: &JobRecord,
    task: &str,
    index: Option<u32>,
) -> Result<Option<(u32, Option<u32>)>, Status> {
    match (task, index) {
        ("", None) => Ok(None),
        ("", Some(_)) => Err(Code::Invalid.status("an index needs the name of its task")),
        (task, index) => {
            let definitions = store.definitions(record.number).await?;
            find(record, &definitions, task, index).map(Some)
        }
    }
}

/// The place of a task, or of one element of it, by its name.
pub fn find(
    record: &JobRecord,
    definitions: &[DefinitionRecord],
    task: &str,
    index: Option<u32>,
) -> Result<(u32, Option<u32>), Status> {
    let found = definitions
        .iter()
        .find(|definition| definition.name == task)
        .ok_or_else(|| Code::NotFound.status(format!("job {} has no task {task:?}", record.number)))?;
    match index {
        Some(index) if index >= found.total => {
            let total = found.total;
            let what = format!("task {task:?} has no element {index}; it has {total}");
            Err(Code::NotFound.status(what))
        }
        index => Ok((found.task, index)),
    }
}
