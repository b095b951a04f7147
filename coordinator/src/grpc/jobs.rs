//! The Jobs service.

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use mesh_proto::{
    code::Code,
    ids::{JobId, JobNumber},
    state::Named as _,
    v1::{
        CancelJobRequest, CancelJobResponse, ExplainTaskRequest, ExplainTaskResponse, GetJobRequest, Job,
        JobState, ListDeadRequest, ListDeadResponse, ListJobsRequest, ListJobsResponse, ListOutputsRequest,
        ListOutputsResponse, ListTasksRequest, ListTasksResponse, RedriveRequest, RedriveResponse,
        SandboxLevel, StreamLogsRequest, StreamLogsResponse, SubmitJobRequest, SubmitJobResponse,
        TaskOutputs, WatchJobRequest, array_spec, jobs_server::Jobs,
    },
};
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    auth::Caller,
    convert, dead, keys,
    logs::{self, Logs},
    pages::Pages,
    rate::RateLimiter,
    redrive, tasks, watch, why,
};
use crate::{
    commit::{Core, CoreError},
    engine::{
        effect::{Refusal, Reply},
        event::{Event, NewJob},
    },
    output::OutputStore,
    session::{Hub, Plans, Sessions},
    spawn::spawn,
    spec,
    store::{
        Store, StoreError,
        jobs::{DefinitionRecord, JobRecord, JobRef},
    },
};

/// Messages that wait for a slow reader of a stream; then the stream's own work waits.
const STREAM: usize = 8;
/// Rows of outputs that go into one message.
const OUTPUT_PAGE: u32 = 200;
/// Tries to cancel a job that is redriven again and again meanwhile.
const TRIES: usize = 5;

/// Serves jobs.
pub struct JobsService {
    pub core: Core,
    pub store: Store,
    pub plans: Plans,
    pub hub: Hub,
    pub sessions: Sessions,
    pub output: OutputStore,
    pub limits: spec::Limits,
    pub default_sandbox: SandboxLevel,
    pub submits: RateLimiter<String>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchJobStream = Streamed<Job>;
    type StreamLogsStream = Streamed<StreamLogsResponse>;
    type ListOutputsStream = Streamed<ListOutputsResponse>;

    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let owner = Caller::of(&request)?.user()?.to_owned();
        self.submits.admit(owner.clone(), Instant::now())?;
        let SubmitJobRequest { spec, idempotency_key } = request.into_inner();
        let spec = spec.ok_or_else(|| Code::Invalid.status("the request has no job"))?;
        let job = Arc::new(self.new_job(owner, spec, idempotency_key).await?);
        self.core.ready()?;
        if let Some(known) = self.known(&job).await? {
            return Ok(Response::new(known));
        }
        let submitted = Arc::clone(&job);
        match self.core.ask(|reply| Event::JobSubmitted { reply, job: submitted }).await {
            Ok(Reply::Submitted { number, uuid, existed }) => {
                Ok(Response::new(SubmitJobResponse { number: number.0, uuid: uuid.to_string(), existed }))
            }
            Ok(_) => Err(CoreError::Mismatch.into()),
            // Its key may have been used, and that job ended, since it was looked for.
            Err(error @ CoreError::Refused(Refusal::Poison(_))) => match self.known(&job).await? {
                Some(known) => Ok(Response::new(known)),
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let record = self.record(Caller::of(&request)?, &request.get_ref().job).await?;
        let definitions = self.store.definitions(record.number).await?;
        Ok(Response::new(convert::job(&record, &definitions)))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        self.core.readable()?;
        let owner = Caller::of(&request)?.user()?.to_owned();
        let request = request.into_inner();
        let page = request.page.clone().unwrap_or_default();
        let limit = convert::limit(&page);
        let before = match page.after.as_str() {
            "" => None,
            after => {
                let bad = |_| Code::Invalid.status("`after` is no cursor of this list");
                Some(JobNumber(after.parse().map_err(bad)?))
            }
        };
        let states: Vec<JobState> = request.states().collect();
        let mine = request.mine.then_some(owner.as_str());
        let records = self.store.jobs(before, limit, &states, mine).await?;
        let next = if records.len() < limit as usize { None } else { records.last() };
        let next = next.map(|last| last.number.to_string()).unwrap_or_default();
        let jobs = records.iter().map(|record| convert::job(record, &[])).collect();
        Ok(Response::new(ListJobsResponse { jobs, next }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let record = self.record(Caller::of(&request)?, &request.get_ref().job).await?;
        let lister = tasks::Lister { store: &self.store, plans: &self.plans, sessions: &self.sessions };
        lister.list(&record, request.into_inner()).await.map(Response::new)
    }

    async fn explain_task(
        &self,
        request: Request<ExplainTaskRequest>,
    ) -> Result<Response<ExplainTaskResponse>, Status> {
        let record = self.record(Caller::of(&request)?, &request.get_ref().job).await?;
        let lister = tasks::Lister { store: &self.store, plans: &self.plans, sessions: &self.sessions };
        let explainer = why::Explainer { core: &self.core, store: &self.store, lister };
        explainer.explain(&record, request.into_inner()).await.map(Response::new)
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let record = self.record(caller, &request.get_ref().job).await?;
        let number = record.number;
        let user = caller.user()?.to_owned();
        let reason = match request.get_ref().reason.as_str() {
            "" => format!("cancelled by {user}"),
            reason => mesh_proto::names::escape(reason).chars().take(200).collect(),
        };
        self.store.note(&user, "job.cancel", &number.to_string(), "").await?;
        for _ in 0..TRIES {
            let reason = reason.clone();
            match self.core.ask(|reply| Event::JobCancelled { reply, job: number, reason }).await {
                Ok(Reply::Cancelled { number, state }) => {
                    let response =
                        CancelJobResponse { number: number.0, state: state.into(), already: false };
                    return Ok(Response::new(response));
                }
                Ok(_) => return Err(CoreError::Mismatch.into()),
                // No unfinished job has the number: it ended before.
                Err(CoreError::Refused(Refusal::NoSuchJob)) => {
                    if let Some(response) = self.cancelled_before(number).await? {
                        return Ok(Response::new(response));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CoreError::Refused(Refusal::Changed(number)).into())
    }

    async fn list_dead(
        &self,
        request: Request<ListDeadRequest>,
    ) -> Result<Response<ListDeadResponse>, Status> {
        self.core.readable()?;
        let record = match request.get_ref().job.as_str() {
            "" => None,
            job => Some(self.record(Caller::of(&request)?, job).await?),
        };
        dead::list(&self.store, &self.plans, record, request.into_inner()).await.map(Response::new)
    }

    async fn redrive(&self, request: Request<RedriveRequest>) -> Result<Response<RedriveResponse>, Status> {
        let caller = Caller::of(&request)?;
        let record = self.record(caller, &request.get_ref().job).await?;
        let by = caller.user()?.to_owned();
        redrive::redrive(&self.core, &self.store, &record, by, request.into_inner()).await.map(Response::new)
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let number = self.number(Caller::of(&request)?, &request.get_ref().job).await?;
        // Subscribed before it is read, so that no change falls between.
        let changes = self.hub.watch(number);
        let first = watch::read(&self.store, number).await?;
        let first = first.ok_or_else(|| Code::NotFound.status(format!("there is no job {number}")))?;
        let (send, receive) = tokio::sync::mpsc::channel(1);
        spawn("watch job", watch::follow(self.store.clone(), first, changes, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn stream_logs(
        &self,
        request: Request<StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let record = self.record(Caller::of(&request)?, &request.get_ref().job).await?;
        let request = request.into_inner();
        let definitions = self.store.definitions(record.number).await?;
        let selection = logs::Selection::of(&request, &definitions)?;
        let logs = Logs { store: self.store.clone(), output: self.output.clone(), hub: self.hub.clone() };
        let (send, receive) = tokio::sync::mpsc::channel(STREAM);
        spawn("stream logs", logs.run(record.number, selection, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn list_outputs(
        &self,
        request: Request<ListOutputsRequest>,
    ) -> Result<Response<Self::ListOutputsStream>, Status> {
        let record = self.record(Caller::of(&request)?, &request.get_ref().job).await?;
        let wanted = request.into_inner().task;
        let definitions = self.store.definitions(record.number).await?;
        if !wanted.is_empty() && !definitions.iter().any(|definition| definition.name == wanted) {
            return Err(Code::NotFound.status(format!("job {} has no task {wanted:?}", record.number)));
        }
        let (send, receive) = tokio::sync::mpsc::channel(STREAM);
        let store = self.store.clone();
        spawn("list outputs", async move {
            let selected = definitions.iter().filter(|one| wanted.is_empty() || one.name == wanted);
            for definition in selected {
                if let Err(error) = send_outputs(&store, record.number, definition, &send).await {
                    let _ = send.send(Err(error.into())).await;
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

type OutputsOut = tokio::sync::mpsc::Sender<Result<ListOutputsResponse, Status>>;

/// Sends the output files of one definition, in messages of bounded size.
async fn send_outputs(
    store: &Store,
    job: JobNumber,
    definition: &DefinitionRecord,
    out: &OutputsOut,
) -> Result<(), StoreError> {
    let mut first = 0;
    loop {
        let rows = store.outputs(job, definition.task, first, OUTPUT_PAGE).await?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        first = last + 1;
        // The files of one task may be more than a message holds.
        let tasks = rows.into_iter().flat_map(|(index, files)| {
            Pages::of(files.files).map(move |files| TaskOutputs {
                task: definition.name.clone(),
                array: definition.spec.array.is_some(),
                index,
                files,
            })
        });
        for tasks in Pages::of(tasks.collect()) {
            if out.send(Ok(ListOutputsResponse { tasks })).await.is_err() {
                return Ok(());
            }
        }
    }
}

impl JobsService {
    /// The submitted job, checked and read into the engine's words.
    async fn new_job(
        &self,
        owner: String,
        mut job: mesh_proto::v1::JobSpec,
        key: String,
    ) -> Result<NewJob, Status> {
        let idempotency_key = keys::read(key)?;
        let payload_digest = keys::job_digest(&job);
        spec::complete(&mut job, self.default_sandbox);
        let invalid = |error: spec::SpecError| Code::Invalid.status(error.to_string());
        spec::check(&job, &self.limits).map_err(invalid)?;
        for task in &job.tasks {
            let kind = task.array.as_ref().and_then(|array| array.kind.as_ref());
            if let Some(array_spec::Kind::ItemsBlob(blob)) = kind {
                let items =
                    self.plans.item_blob(blob).await.map_err(|error| {
                        Code::Invalid.status(format!("task {:?}: array: {error}", task.name))
                    })?;
                spec::check_items(&task.name, &items).map_err(invalid)?;
                spec::check_size(task, &job.params, Some(&items), &self.limits).map_err(invalid)?;
            }
        }
        let tasks = spec::definitions(&job.tasks).map_err(invalid)?;
        job.tasks.clear();
        Ok(NewJob {
            uuid: JobId::generate(),
            name: job.name.clone(),
            owner,
            priority: job.priority as u8,
            keep_going: job.on_failure() == mesh_proto::v1::OnFailure::Continue,
            idempotency_key,
            payload_digest,
            spec: job.encode_to_vec().into(),
            tasks,
        })
    }

    /// The job that the key made before, if it did.
    async fn known(&self, job: &NewJob) -> Result<Option<SubmitJobResponse>, Status> {
        let Some(key) = &job.idempotency_key else { return Ok(None) };
        let found = self.store.job_by_key(&job.owner, key).await?;
        let Some((number, uuid, digest)) = found else { return Ok(None) };
        if digest == job.payload_digest {
            Ok(Some(SubmitJobResponse { number: number.0, uuid: uuid.to_string(), existed: true }))
        } else {
            Err(CoreError::Refused(Refusal::KeyUsed(number)).into())
        }
    }

    async fn number(&self, caller: &Caller, job: &str) -> Result<JobNumber, Status> {
        self.core.readable()?;
        let job: JobRef = convert::parse_job(job, caller.user()?)?;
        let number = self.store.job_number(&job).await?;
        number.ok_or_else(|| Code::NotFound.status("there is no such job"))
    }

    async fn read(&self, number: JobNumber) -> Result<JobRecord, Status> {
        let record = self.store.job(number).await?;
        record.ok_or_else(|| Code::NotFound.status(format!("there is no job {number}")))
    }

    async fn record(&self, caller: &Caller, job: &str) -> Result<JobRecord, Status> {
        let number = self.number(caller, job).await?;
        self.read(number).await
    }

    /// The answer to a cancel of a job that is over; none if it was redriven meanwhile.
    async fn cancelled_before(&self, number: JobNumber) -> Result<Option<CancelJobResponse>, Status> {
        let record = self.read(number).await?;
        match record.state {
            JobState::Queued | JobState::Running => Ok(None),
            JobState::Cancelled => {
                let state = JobState::Cancelled.into();
                Ok(Some(CancelJobResponse { number: number.0, state, already: true }))
            }
            JobState::Unspecified | JobState::Completed | JobState::PartiallyCompleted | JobState::Failed => {
                Err(Code::Conflict.status(format!("job {number} is {} already", record.state.upper())))
            }
        }
    }
}
