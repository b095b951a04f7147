//! Logs: the output of one attempt, or of every task of a job, from what is durable here.

mod follow;
mod tail;

use std::sync::Arc;

use mesh_proto::{
    code::Code,
    ids::{JobNumber, TaskKey},
    v1::{StreamLogsRequest, StreamLogsResponse},
};
use tokio::sync::mpsc;
use tonic::Status;

use self::{follow::Follower, tail::Tail};
use crate::{
    output::{OutputStore, Streams},
    session::Hub,
    store::{Store, StoreError, jobs::DefinitionRecord},
};

/// Rows that one look reads.
const PAGE: u32 = 1000;

/// What is asked for.
#[derive(Debug)]
pub struct Selection {
    /// Position and name of each definition, and whether it is an array.
    tasks: Vec<(u32, String, bool)>,
    index: Option<u32>,
    attempt: u32,
    follow: bool,
    streams: Streams,
}

impl Selection {
    pub fn of(request: &StreamLogsRequest, definitions: &[DefinitionRecord]) -> Result<Self, Status> {
        let tasks: Vec<(u32, String, bool)> = definitions
            .iter()
            .filter(|definition| request.task.is_empty() || definition.name == request.task)
            .map(|definition| (definition.task, definition.name.clone(), definition.spec.array.is_some()))
            .collect();
        if tasks.is_empty() {
            return Err(Code::NotFound.status(format!("the job has no task {:?}", request.task)));
        }
        if let Some(index) = request.index {
            if request.task.is_empty() {
                return Err(Code::Invalid.status("an index needs the name of its task"));
            }
            let total = definitions.iter().find(|one| one.name == request.task).map_or(0, |one| one.total);
            if index >= total {
                let what = format!("task {:?} has no element {index}; it has {total}", request.task);
                return Err(Code::NotFound.status(what));
            }
        }
        let streams = match (request.stdout_only, request.stderr_only) {
            (true, false) => Streams::Stdout,
            (false, true) => Streams::Stderr,
            (false, false) | (true, true) => Streams::Both,
        };
        Ok(Self { tasks, index: request.index, attempt: request.attempt, follow: request.follow, streams })
    }

    /// A definition's name, and whether it is an array, if it is selected.
    fn name(&self, task: u32) -> Option<(&str, bool)> {
        let at = self.tasks.binary_search_by_key(&task, |(position, ..)| *position).ok()?;
        self.tasks.get(at).map(|(_, name, array)| (name.as_str(), *array))
    }

    fn takes(&self, key: TaskKey) -> bool {
        self.name(key.task).is_some() && self.index.is_none_or(|index| index == key.index)
    }

    /// The first element that may be selected.
    fn start(&self) -> (u32, u32) {
        (self.tasks.first().map_or(0, |(task, ..)| *task), self.index.unwrap_or(0))
    }

    /// Past the last definition that is selected.
    fn end(&self) -> u32 {
        self.tasks.last().map_or(0, |(task, ..)| task + 1)
    }
}

/// What a log stream reads.
#[derive(Clone)]
pub struct Logs {
    pub store: Store,
    pub output: OutputStore,
    pub hub: Hub,
}

type Out = mpsc::Sender<Result<StreamLogsResponse, Status>>;

/// Why a stream ends early.
enum Over {
    /// The reader is gone.
    Unread,
    Failed(Status),
}

impl From<StoreError> for Over {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl Logs {
    /// Streams what is selected, and ends.
    pub async fn run(self, job: JobNumber, selection: Selection, out: Out) {
        let selection = Arc::new(selection);
        let done = if selection.follow {
            Follower::new(self, job, selection, out.clone()).run().await
        } else {
            self.read(job, selection, &out).await
        };
        if let Err(Over::Failed(status)) = done {
            let _ = out.send(Err(status)).await;
        }
    }

    /// What there is now, task by task.
    async fn read(&self, job: JobNumber, selection: Arc<Selection>, out: &Out) -> Result<(), Over> {
        let mut from = Some(selection.start());
        let mut found = false;
        while let Some(next) = from {
            let keys = self.tasks(job, &selection, next).await?;
            for key in &keys {
                let Some(record) = self.store.output(*key, selection.attempt).await? else { continue };
                found = true;
                Tail::new(self.clone(), Arc::clone(&selection), out.clone()).run(record, None).await?;
            }
            from = after(&selection, &keys);
        }
        if selection.attempt > 0 && !found {
            let what = format!("nothing that is selected has an attempt {}", selection.attempt);
            return Err(Over::Failed(Code::NotFound.status(what)));
        }
        Ok(())
    }

    /// The next selected tasks that were assigned at least once.
    async fn tasks(
        &self,
        job: JobNumber,
        selection: &Selection,
        from: (u32, u32),
    ) -> Result<Vec<TaskKey>, Over> {
        let limit = if selection.index.is_some() { 1 } else { PAGE };
        let rows = self.store.task_rows(job, from, selection.end(), &[], limit).await?;
        let keys = rows.into_iter().map(|row| TaskKey { job, task: row.task, index: row.index });
        Ok(keys.filter(|key| selection.takes(*key)).collect())
    }
}

/// Where the page after this one begins.
fn after(selection: &Selection, page: &[TaskKey]) -> Option<(u32, u32)> {
    let last = page.last().filter(|_| selection.index.is_none())?;
    Some((last.task, last.index + 1))
}
