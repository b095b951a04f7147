//! Logs: the output of one attempt, or of every task of a job, from what is durable here.

use std::{collections::HashSet, time::Duration};

use mesh_proto::{
    code::Code,
    ids::{AttemptKey, JobNumber, TaskKey},
    v1::{LogChunk, StreamLogsRequest, StreamLogsResponse, TaskState},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tonic::Status;

use super::convert::store_status;
use crate::{
    engine::effect::JobView,
    output::{LogDecoder, OutputStore, Streams},
    session::{Hub, TaskNews},
    spawn::spawn_owned,
    store::{Store, jobs::DefinitionRecord},
};

/// What is read at once from a spool, in bytes.
const READ: usize = 256 * 1024;
/// Attempts that are followed at the same time; others wait their turn.
const TAILS: usize = 64;
/// Rows that one look reads.
const PAGE: u32 = 1000;
/// How often a waiting tail asks whether its attempt ended, when nothing else tells it.
const LOOK: Duration = Duration::from_millis(500);
/// How long after the end of an attempt its last output may still be on its way; a node that
/// goes away takes it along.
const LATE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Position and name of each definition; empty: all.
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

    fn name(&self, task: u32) -> Option<&(u32, String, bool)> {
        self.tasks.iter().find(|(position, ..)| *position == task)
    }

    fn takes(&self, key: TaskKey) -> bool {
        self.name(key.task).is_some() && self.index.is_none_or(|index| index == key.index)
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

/// The reader is gone, or was told an error.
struct Over;

impl Logs {
    /// Streams what is selected, and ends.
    pub async fn run(self, job: JobNumber, selection: Selection, out: Out) {
        // Both begin before the first look, so that nothing falls between.
        let news = self.hub.follow(job);
        let changes = self.hub.watch(job);
        let whole = if selection.follow {
            self.follow(job, &selection, &out, news, changes).await
        } else {
            self.read(job, &selection, &out).await
        };
        if let Err(error) = whole
            && let Some(status) = error
        {
            let _ = out.send(Err(status)).await;
        }
    }

    /// What there is now, task by task.
    async fn read(&self, job: JobNumber, selection: &Selection, out: &Out) -> Result<(), Option<Status>> {
        let mut from = self.start(selection);
        loop {
            let rows = self.rows(job, selection, from).await?;
            for (key, _) in &rows {
                let tail = Tail { logs: self.clone(), selection: selection.clone(), out: out.clone() };
                tail.run(*key, selection.attempt, None).await.map_err(|Over| None)?;
            }
            match rows.last() {
                Some((key, _)) => from = (key.task, key.index + 1),
                None => return Ok(()),
            }
        }
    }

    fn start(&self, selection: &Selection) -> (u32, u32) {
        (selection.tasks.first().map_or(0, |(task, ..)| *task), selection.index.unwrap_or(0))
    }

    /// The next selected tasks that were assigned at least once.
    async fn rows(
        &self,
        job: JobNumber,
        selection: &Selection,
        from: (u32, u32),
    ) -> Result<Vec<(TaskKey, TaskState)>, Option<Status>> {
        let end = selection.tasks.last().map_or(0, |(task, ..)| task + 1);
        let rows = self
            .store
            .task_rows(job, from, end, &[], PAGE)
            .await
            .map_err(|error| Some(store_status(error)))?;
        Ok(rows
            .into_iter()
            .map(|row| (TaskKey { job, task: row.task, index: row.index }, row.state))
            .filter(|(key, _)| selection.takes(*key))
            .collect())
    }

    /// What there is and what comes, until the job is over.
    async fn follow(
        &self,
        job: JobNumber,
        selection: &Selection,
        out: &Out,
        mut news: broadcast::Receiver<TaskNews>,
        mut changes: watch::Receiver<Option<std::sync::Arc<JobView>>>,
    ) -> Result<(), Option<Status>> {
        let mut seen: HashSet<AttemptKey> = HashSet::new();
        let mut tails = JoinSet::new();
        let mut look = true;
        let mut over = false;
        loop {
            if look {
                look = false;
                over = self.is_over(job).await?;
                let mut from = self.start(selection);
                loop {
                    let rows = self.rows(job, selection, from).await?;
                    let Some((last, _)) = rows.last() else { break };
                    from = (last.task, last.index + 1);
                    for (key, _) in rows {
                        let latest = self.store.output(key, selection.attempt).await;
                        if let Some(record) = latest.map_err(|error| Some(store_status(error)))?
                            && seen.insert(record.attempt)
                        {
                            self.tail(&mut tails, record.attempt, selection, out, &changes).await?;
                        }
                    }
                }
            }
            if over && tails.is_empty() {
                return Ok(());
            }
            tokio::select! {
                ended = tails.join_next(), if !tails.is_empty() => {
                    if let Some(Ok(Err(Over))) = ended {
                        return Err(None);
                    }
                }
                heard = news.recv() => match heard {
                    Ok(TaskNews::Placed(attempt)) => {
                        let wanted = selection.takes(attempt.task)
                            && (selection.attempt == 0 || selection.attempt == attempt.number);
                        if wanted && seen.insert(attempt) {
                            self.tail(&mut tails, attempt, selection, out, &changes).await?;
                        }
                    }
                    Ok(TaskNews::Ended(_)) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => look = true,
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                changed = changes.changed(), if !over => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let ended = changes
                        .borrow_and_update()
                        .as_ref()
                        .is_some_and(|view| view.row.state.is_terminal());
                    // A last look: nothing begins after the job's end.
                    look = ended;
                }
                () = out.closed() => return Err(None),
            }
        }
    }

    async fn is_over(&self, job: JobNumber) -> Result<bool, Option<Status>> {
        let record = self.store.job(job).await.map_err(|error| Some(store_status(error)))?;
        Ok(record.is_none_or(|record| record.state.is_terminal()))
    }

    /// Begins to follow an attempt, once there is room for it.
    async fn tail(
        &self,
        tails: &mut JoinSet<Result<(), Over>>,
        attempt: AttemptKey,
        selection: &Selection,
        out: &Out,
        changes: &watch::Receiver<Option<std::sync::Arc<JobView>>>,
    ) -> Result<(), Option<Status>> {
        while tails.len() >= TAILS {
            if let Some(Ok(Err(Over))) = tails.join_next().await {
                return Err(None);
            }
        }
        let tail = Tail { logs: self.clone(), selection: selection.clone(), out: out.clone() };
        let changes = changes.clone();
        let work =
            spawn_owned("tail", async move { tail.run(attempt.task, attempt.number, Some(changes)).await });
        tails.spawn(async move { work.await.unwrap_or(Err(Over)) });
        Ok(())
    }
}

/// One attempt's output on its way to a reader.
struct Tail {
    logs: Logs,
    selection: Selection,
    out: Out,
}

impl Tail {
    /// Sends the output of an attempt: what there is, and with `changes` what still comes.
    async fn run(
        &self,
        task: TaskKey,
        number: u32,
        mut changes: Option<watch::Receiver<Option<std::sync::Arc<JobView>>>>,
    ) -> Result<(), Over> {
        let Some((_, name, array)) = self.selection.name(task.task).cloned() else { return Ok(()) };
        let Some(record) = self.check(self.logs.store.output(task, number).await).await? else {
            return Ok(());
        };
        let attempt = record.attempt;
        if let Some(inline) = &record.inline {
            let pieces = LogDecoder::whole(self.selection.streams, inline);
            let chunks = pieces.into_iter().map(|piece| piece.into_chunk(&name, array, attempt)).collect();
            return self.send(chunks).await;
        }
        let mut ended = record.ended;
        let mut length = record.length;
        let mut waited = Duration::ZERO;
        let mut decoder = LogDecoder::new(self.selection.streams, 0);
        let Ok(mut reader) = self.logs.output.reader(attempt).await else { return Ok(()) };
        loop {
            let part = match reader.read(decoder.position(), READ).await {
                Ok(part) => part,
                Err(error) => {
                    tracing::warn!(%attempt, %error, "output cannot be read");
                    return self.missing(&name, array, attempt).await;
                }
            };
            if !part.is_empty() {
                waited = Duration::ZERO;
                let pieces = decoder.push(&part);
                let chunks =
                    pieces.into_iter().map(|piece| piece.into_chunk(&name, array, attempt)).collect();
                self.send(chunks).await?;
                continue;
            }
            if ended && decoder.position() >= length {
                return Ok(());
            }
            let Some(changes) = &mut changes else { return Ok(()) };
            if ended && waited >= LATE {
                return self.missing(&name, array, attempt).await;
            }
            tokio::select! {
                grown = timeout(LOOK, reader.grown(decoder.position())) => match grown {
                    Ok(Ok(_)) => continue,
                    Ok(Err(_)) => return self.missing(&name, array, attempt).await,
                    Err(_) => {}
                },
                changed = changes.changed(), if !ended => if changed.is_err() { return Ok(()) },
                () = self.out.closed() => return Err(Over),
            }
            if ended {
                waited += LOOK;
                continue;
            }
            let Ok(again) = self.logs.store.output(task, attempt.number).await else {
                // The database is away: the next look asks again.
                continue;
            };
            let Some(again) = again else { return Ok(()) };
            if again.ended
                && let Some(inline) = &again.inline
            {
                let pieces = LogDecoder::whole(self.selection.streams, inline);
                let chunks =
                    pieces.into_iter().map(|piece| piece.into_chunk(&name, array, attempt)).collect();
                return self.send(chunks).await;
            }
            (ended, length) = (again.ended, again.length);
        }
    }

    async fn check<T>(&self, result: Result<T, crate::store::StoreError>) -> Result<T, Over> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let _ = self.out.send(Err(store_status(error))).await;
                Err(Over)
            }
        }
    }

    async fn send(&self, chunks: Vec<LogChunk>) -> Result<(), Over> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.out.send(Ok(StreamLogsResponse { chunks })).await.map_err(|_| Over)
    }

    async fn missing(&self, name: &str, array: bool, attempt: AttemptKey) -> Result<(), Over> {
        self.send(vec![LogChunk {
            task: name.to_owned(),
            index: attempt.task.index,
            array,
            attempt: attempt.number,
            missing: true,
            ..LogChunk::default()
        }])
        .await
    }
}
