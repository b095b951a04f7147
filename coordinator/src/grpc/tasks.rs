//! Lists of tasks. Elements of arrays that were never assigned have no row: what they are
//! follows from the job and from the tasks that they need.

mod elements;

use std::{collections::HashMap, ops::Range};

use mesh_proto::{
    code::Code,
    ids::{AttemptKey, TaskKey},
    v1::{Cause, ListTasksRequest, ListTasksResponse, TaskInfo, TaskState},
};
use prost::Message as _;
use tonic::Status;

use self::elements::{Elements, Rest};
use super::{
    convert::{self, millis},
    pages::MESSAGE,
};
use crate::{
    engine::types::Confined,
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
/// Looks at the database of one call; a call that finds few says where to go on.
const MAX_LOOKS: usize = 100;

/// What a listing reads.
pub struct Lister<'a> {
    pub store: &'a Store,
    pub plans: &'a Plans,
    pub sessions: &'a Sessions,
}

/// One call.
struct List<'a> {
    job: &'a JobRecord,
    definitions: &'a [DefinitionRecord],
    elements: Elements<'a>,
    plan: &'a Plan,
    /// Empty: all.
    states: Vec<TaskState>,
    limit: usize,
    found: Vec<TaskInfo>,
    size: usize,
}

impl Lister<'_> {
    /// A page of a job's tasks, in the order of its file.
    pub async fn list(
        &self,
        job: &JobRecord,
        request: ListTasksRequest,
    ) -> Result<ListTasksResponse, Status> {
        let definitions = self.store.definitions(job.number).await?;
        let plan = self.plans.plan(job.number).await.map_err(|error| {
            tracing::warn!(job = %job.number, error = &error as &dyn std::error::Error, "no plan");
            Code::Unavailable.status("the job's items cannot be read at the moment")
        })?;
        let (tasks, indices) = range(&definitions, &request)?;
        let page = request.page.clone().unwrap_or_default();
        let mut list = List {
            job,
            definitions: &definitions,
            elements: Elements::new(job, &definitions),
            plan: &plan,
            states: request.states().collect(),
            limit: convert::limit(&page) as usize,
            found: Vec::new(),
            size: 0,
        };
        let (mut task, mut index) = cursor(&page.after)?.unwrap_or((tasks.start, indices.start));
        let mut looks = 0;
        while tasks.contains(&task) {
            let end = definitions.get(task as usize).map_or(0, |definition| definition.total);
            let end = end.min(indices.end);
            if index < end && list.may_hold(task) {
                if list.is_full() || looks == MAX_LOOKS {
                    return Ok(ListTasksResponse { tasks: list.found, next: format!("{task}.{index}") });
                }
                looks += 1;
                index = self.look(&mut list, task, index..end).await?;
            } else {
                index = end;
            }
            if index >= end {
                (task, index) = (task + 1, indices.start);
            }
        }
        Ok(ListTasksResponse { tasks: list.found, next: String::new() })
    }

    /// Adds what is found from the beginning of `range` on, and says where to go on.
    async fn look(&self, list: &mut List<'_>, task: u32, range: Range<u32>) -> Result<u32, Status> {
        let left = (list.limit - list.found.len()) as u32;
        if !list.states.is_empty() && list.states.iter().all(|state| always_has_row(*state)) {
            let from = (task, range.start);
            let rows = self.store.task_rows(list.job.number, from, task + 1, &list.states, left).await?;
            for row in rows.into_iter().take_while(|row| row.index < range.end) {
                let past = row.index + 1;
                self.add(list, row);
                if list.is_full() {
                    return Ok(past);
                }
            }
            // With more rows than there is room for, the page were full.
            return Ok(range.end);
        }
        let window = range.start..range.end.min(range.start.saturating_add(WINDOW));
        let count = window.len() as u32;
        let rows = self.store.task_rows(list.job.number, (task, window.start), task + 1, &[], count).await?;
        let mut rows: HashMap<u32, TaskRecord> = rows.into_iter().map(|row| (row.index, row)).collect();
        let rest = self.rest(list, task, &window).await?;
        for index in window.clone() {
            let row = rows.remove(&index).unwrap_or_else(|| without_row(task, index, rest.state(index)));
            if list.states.is_empty() || list.states.contains(&row.state) {
                self.add(list, row);
                if list.is_full() {
                    return Ok(index + 1);
                }
            }
        }
        Ok(window.end)
    }

    /// What the elements without a row are.
    async fn rest(&self, list: &List<'_>, task: u32, window: &Range<u32>) -> Result<Rest, Status> {
        let mut rest = list.elements.rest(task);
        if let Rest::Each(each) = &mut rest {
            let read = each.to_read();
            for (task, index, state) in
                self.store.task_ends(list.job.number, &read, window.start, window.end).await?
            {
                each.saw(task, index, state);
            }
        }
        Ok(rest)
    }

    fn add(&self, list: &mut List<'_>, row: TaskRecord) {
        let Some(definition) = list.definitions.get(row.task as usize) else { return };
        let key = TaskKey { job: list.job.number, task: row.task, index: row.index };
        let progress = (row.state == TaskState::Running)
            .then(|| self.sessions.progress(AttemptKey { task: key, number: row.attempt }))
            .flatten();
        let item = list.plan.tasks.get(row.task as usize).and_then(|task| task.item(row.index));
        let info = TaskInfo {
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
            sandbox: row.sandbox.level.into(),
            limits: row.sandbox.limits.into(),
        };
        list.size += info.encoded_len();
        list.found.push(info);
    }
}

impl List<'_> {
    fn is_full(&self) -> bool {
        self.found.len() >= self.limit || self.size >= MESSAGE
    }

    /// Whether a definition has anything in the wanted states.
    fn may_hold(&self, task: u32) -> bool {
        self.states.is_empty() || self.states.iter().any(|state| self.elements.count(task, *state) > 0)
    }
}

/// Which definitions and which elements are asked for.
fn range(
    definitions: &[DefinitionRecord],
    request: &ListTasksRequest,
) -> Result<(Range<u32>, Range<u32>), Status> {
    if request.task.is_empty() {
        return match request.index {
            Some(_) => Err(Code::Invalid.status("an index needs the name of its task")),
            None => Ok((0..definitions.len() as u32, 0..u32::MAX)),
        };
    }
    let named = definitions.iter().find(|definition| definition.name == request.task);
    let named =
        named.ok_or_else(|| Code::NotFound.status(format!("the job has no task {:?}", request.task)))?;
    let tasks = named.task..named.task + 1;
    match request.index {
        None => Ok((tasks, 0..u32::MAX)),
        Some(index) if index < named.total => Ok((tasks, index..index + 1)),
        Some(index) => {
            let total = named.total;
            let what = format!("task {:?} has no element {index}; it has {total}", request.task);
            Err(Code::NotFound.status(what))
        }
    }
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
        sandbox: Confined::default(),
    }
}
