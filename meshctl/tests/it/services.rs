//! The services of the fake coordinator, as thin as they can be.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, stream};
use mesh_proto::{
    code::Code,
    digest::Digest,
    v1::{self, access_server::Access, blobs_server::Blobs, jobs_server::Jobs, nodes_server::Nodes},
};
use tonic::{Request, Response, Status, Streaming};

use super::fake::{Job, Shared};

type Answer<T> = Result<Response<T>, Status>;
type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Shared {
    /// Notes a call; a refusal that the test ordered is the answer.
    fn called(&self, name: &str) -> Result<(), Status> {
        self.look(|world| {
            world.calls.push(name.to_owned());
            if world.refusals.is_empty() { Ok(()) } else { Err(world.refusals.remove(0)) }
        })
    }

    fn job(&self, id: &str) -> Result<Job, Status> {
        let world = self.lock();
        let found = match id {
            "last" => world.jobs.last(),
            _ => world.jobs.iter().find(|job| job.shown.number.to_string() == id || job.shown.uuid == id),
        };
        found.cloned().ok_or_else(|| Code::NotFound.status(format!("there is no job {id}")))
    }
}

#[tonic::async_trait]
impl Jobs for Shared {
    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Answer<v1::SubmitJobResponse> {
        self.called("submit")?;
        let request = request.into_inner();
        let spec = request.spec.unwrap_or_default();
        self.look(|world| {
            if let Some(job) = world.jobs.iter().find(|job| job.key == request.idempotency_key) {
                if job.spec != spec {
                    return Err(Code::Conflict.status("the key belongs to another job"));
                }
                let (number, uuid) = (job.shown.number, job.shown.uuid.clone());
                return Ok(Response::new(v1::SubmitJobResponse { number, uuid, existed: true }));
            }
            let number = world.jobs.len() as u64 + 1;
            let uuid = format!("00000000-0000-7000-8000-{number:012}");
            let tasks = spec.tasks.iter().map(|task| v1::TaskSummary {
                name: task.name.clone(),
                total: 1,
                array: task.array.is_some(),
                ..v1::TaskSummary::default()
            });
            let fate = world.next.clone();
            let job = v1::Job {
                number,
                uuid: uuid.clone(),
                name: spec.name.clone(),
                state: fate.state.into(),
                reason: fate.reason,
                tasks: tasks.collect(),
                ..v1::Job::default()
            };
            world.jobs.push(Job {
                shown: job,
                spec,
                key: request.idempotency_key,
                tasks: vec![fate.task],
                chunks: fate.chunks,
                outputs: fate.outputs,
            });
            Ok(Response::new(v1::SubmitJobResponse { number, uuid, existed: false }))
        })
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::Job> {
        self.called("get")?;
        Ok(Response::new(self.job(&request.into_inner().job)?.shown))
    }

    async fn list_jobs(&self, _: Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsResponse> {
        self.called("jobs")?;
        let strip = |job: &Job| v1::Job { tasks: Vec::new(), ..job.shown.clone() };
        let jobs = self.lock().jobs.iter().rev().map(strip).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, next: String::new() }))
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Answer<v1::ListTasksResponse> {
        self.called("tasks")?;
        let request = request.into_inner();
        let job = self.job(&request.job)?;
        let page = request.page.unwrap_or_default();
        let start: usize = page.after.parse().unwrap_or(0);
        // A page of at most three shows whether the client asks for the next one.
        let end = (start + (page.limit as usize).min(3)).min(job.tasks.len());
        let next = if end < job.tasks.len() { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListTasksResponse { tasks: job.tasks[start..end].to_vec(), next }))
    }

    async fn list_dead(&self, request: Request<v1::ListDeadRequest>) -> Answer<v1::ListDeadResponse> {
        self.called("dead")?;
        let request = request.into_inner();
        let world = self.lock();
        let jobs = world
            .jobs
            .iter()
            .filter(|job| request.job.is_empty() || job.shown.number.to_string() == request.job);
        let dead: Vec<v1::DeadLetter> = jobs
            .flat_map(|job| job.tasks.iter().map(|task| (job.shown.name.clone(), task.clone())))
            .filter(|(_, task)| task.state() == v1::TaskState::Failed)
            .filter(|(_, task)| request.task.is_empty() || request.task == task.name)
            .map(|(job_name, task)| v1::DeadLetter { task: Some(task), job_name, failures: 2, losses: 1 })
            .collect();
        let page = request.page.unwrap_or_default();
        let start: usize = page.after.parse().unwrap_or(0);
        // One a page shows whether the client asks for the next one.
        let next = if start + 1 < dead.len() { (start + 1).to_string() } else { String::new() };
        let dead = dead.into_iter().skip(start).take((page.limit as usize).min(1)).collect();
        Ok(Response::new(v1::ListDeadResponse { dead, next }))
    }

    async fn redrive(&self, request: Request<v1::RedriveRequest>) -> Answer<v1::RedriveResponse> {
        self.called("redrive")?;
        let request = request.into_inner();
        let number = self.job(&request.job)?.shown.number;
        let targets = request.targets.iter().map(|target| match target.index {
            Some(index) => format!("{}.{index}", target.task),
            None => target.task.clone(),
        });
        let asked = format!("{number}: {}", targets.collect::<Vec<_>>().join(" "));
        let key = (number, request.idempotency_key.clone());
        let (existed, again) = self.look(|world| {
            let again = world.redrives.contains(&asked);
            let existed = world.redrive_keys.contains(&key);
            if !existed {
                world.redrives.push(asked);
                world.redrive_keys.push(key);
            }
            (existed, again)
        });
        // As when the connection breaks before the answer is there.
        if let Some(status) = self.look(|world| world.lost_answers.pop()) {
            return Err(status);
        }
        if again && !existed {
            return Err(
                Code::Conflict.status(format!("nothing that was named in job {number} is a dead letter"))
            );
        }
        let state = v1::JobState::Running.into();
        Ok(Response::new(v1::RedriveResponse { number, state, redriven: 3, resumed: number - 12, existed }))
    }

    async fn explain_task(
        &self,
        request: Request<v1::ExplainTaskRequest>,
    ) -> Answer<v1::ExplainTaskResponse> {
        self.called("why")?;
        let request = request.into_inner();
        let job = self.job(&request.job)?;
        let best = v1::CandidateNode {
            name: "office-2".to_owned(),
            score: 0.75,
            rtt: 0.25,
            load: 0.5,
            queue: 0.0,
            unreliability: 0.125,
            busy: "0 of 4 cpu free".to_owned(),
        };
        let by = v1::Coefficients { alpha: 0.5, beta: 0.5, gamma: 2.0, delta: 2.0, version: 1 };
        let rejection = v1::RejectionCount {
            reason: "tag".to_owned(),
            count: 3,
            sentence: "3 nodes lack tag site=attic; office-2 has site=attick".to_owned(),
        };
        let supposed = request.what_if.map(|what_if| format!("With {:?} cpu.", what_if.cpu_millis));
        Ok(Response::new(v1::ExplainTaskResponse {
            task: job.tasks.first().cloned(),
            sentences: supposed.into_iter().chain(["It waits\u{1b}[2J for a node.".to_owned()]).collect(),
            now: Some(v1::Placement {
                nodes: 4,
                suitable: u32::from(!self.look(|world| world.unsuited)),
                with_room: 0,
                rejections: vec![rejection],
                best: vec![best],
                coefficients: Some(by),
                ahead: 2,
                at_ms: 0,
            }),
            recorded: None,
            attempts: Vec::new(),
        }))
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Answer<v1::CancelJobResponse> {
        self.called("cancel")?;
        let request = request.into_inner();
        let job = self.job(&request.job)?;
        let state = job.shown.state();
        if state.is_terminal() && state != v1::JobState::Cancelled {
            return Err(Code::Conflict.status(format!("job {} is COMPLETED", job.shown.number)));
        }
        self.look(|world| {
            world.cancels.push(request.reason);
            let job = world.jobs.iter_mut().find(|other| other.shown.number == job.shown.number);
            job.unwrap().shown.set_state(v1::JobState::Cancelled);
        });
        let already = state == v1::JobState::Cancelled;
        let state = v1::JobState::Cancelled.into();
        Ok(Response::new(v1::CancelJobResponse { number: job.shown.number, state, already }))
    }

    type WatchJobStream = Flow<v1::Job>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        self.called("watch")?;
        let id = request.into_inner().job;
        self.job(&id)?;
        let start = (self.clone(), self.changes(), id, false);
        let flow = stream::unfold(Some(start), |state| async move {
            let (shared, mut changes, id, again) = state?;
            if again && changes.changed().await.is_err() {
                return None;
            }
            let job = shared.job(&id).ok()?.shown;
            let next = (!job.state().is_terminal()).then_some((shared, changes, id, true));
            Some((Ok(job), next))
        });
        Ok(Response::new(Box::pin(flow)))
    }

    type StreamLogsStream = Flow<v1::StreamLogsResponse>;

    async fn stream_logs(&self, request: Request<v1::StreamLogsRequest>) -> Answer<Self::StreamLogsStream> {
        self.called("logs")?;
        let request = request.into_inner();
        self.job(&request.job)?;
        let start = (self.clone(), self.changes(), request, 0_usize);
        let flow = stream::unfold(Some(start), |state| async move {
            let (shared, mut changes, request, sent) = state?;
            loop {
                let job = shared.job(&request.job).ok()?;
                let wanted = |chunk: &v1::LogChunk| {
                    (request.task.is_empty() || chunk.task == request.task)
                        && request.index.is_none_or(|index| chunk.index == index)
                        && (request.attempt == 0 || chunk.attempt == request.attempt)
                        && !(request.stdout_only && chunk.stream() == v1::OutputStream::Stderr)
                        && !(request.stderr_only && chunk.stream() == v1::OutputStream::Stdout)
                };
                let chunks: Vec<_> = job.chunks.into_iter().filter(wanted).skip(sent).take(1).collect();
                if !chunks.is_empty() {
                    let sent = sent + chunks.len();
                    let next = (shared, changes, request, sent);
                    return Some((Ok(v1::StreamLogsResponse { chunks }), Some(next)));
                }
                if !request.follow || job.shown.state().is_terminal() || changes.changed().await.is_err() {
                    return None;
                }
            }
        });
        Ok(Response::new(Box::pin(flow)))
    }

    type ListOutputsStream = Flow<v1::ListOutputsResponse>;

    async fn list_outputs(
        &self,
        request: Request<v1::ListOutputsRequest>,
    ) -> Answer<Self::ListOutputsStream> {
        self.called("outputs")?;
        let request = request.into_inner();
        let job = self.job(&request.job)?;
        let tasks = job.outputs.into_iter();
        let tasks = tasks.filter(|task| request.task.is_empty() || task.task == request.task).collect();
        let answer = Ok(v1::ListOutputsResponse { tasks });
        Ok(Response::new(Box::pin(stream::iter([answer]))))
    }
}

#[tonic::async_trait]
impl Blobs for Shared {
    async fn put(&self, request: Request<Streaming<v1::PutBlobRequest>>) -> Answer<v1::PutBlobResponse> {
        self.called("put")?;
        let mut stream = request.into_inner();
        let mut first = None;
        let mut content = Vec::new();
        while let Some(message) = stream.message().await? {
            assert!(message.data.len() <= mesh_proto::limits::MAX_CHUNK);
            content.extend_from_slice(&message.data);
            first.get_or_insert((message.digest, message.size));
        }
        let (digest, size) = first.ok_or_else(|| Code::Invalid.status("nothing came"))?;
        let found = Digest::of(&content);
        if found.to_vec() != digest || content.len() as u64 != size {
            return Err(Code::Invalid.status("the content is not what its digest says"));
        }
        let existed = self.look(|world| world.blobs.insert(found, Bytes::from(content)).is_some());
        Ok(Response::new(v1::PutBlobResponse { existed }))
    }

    type GetStream = Flow<v1::GetBlobResponse>;

    async fn get(&self, request: Request<v1::GetBlobRequest>) -> Answer<Self::GetStream> {
        self.called("get blob")?;
        let request = request.into_inner();
        let digest =
            Digest::try_from(request.digest.as_slice()).map_err(|_| Code::Invalid.status("no digest"))?;
        let content = {
            let world = self.lock();
            world.forged.get(&digest).or_else(|| world.blobs.get(&digest)).cloned()
        };
        let content = content.ok_or_else(|| Code::NotFound.status(format!("there is no blob {digest}")))?;
        let size = content.len() as u64;
        let rest = content.slice((request.offset as usize).min(content.len())..);
        let mut pieces: Vec<Bytes> = rest.chunks(100_000).map(Bytes::copy_from_slice).collect();
        if pieces.is_empty() {
            pieces.push(Bytes::new());
        }
        let messages = pieces.into_iter().map(move |data| Ok(v1::GetBlobResponse { size, data }));
        Ok(Response::new(Box::pin(stream::iter(messages.collect::<Vec<_>>()))))
    }

    async fn stat(&self, request: Request<v1::StatBlobsRequest>) -> Answer<v1::StatBlobsResponse> {
        self.called("stat")?;
        let digests = request.into_inner().digests;
        assert!(digests.len() <= 1000);
        let world = self.lock();
        let blobs = digests.into_iter().filter_map(|digest| {
            let key = Digest::try_from(digest.as_slice()).ok()?;
            let size = world.blobs.get(&key)?.len() as u64;
            Some(v1::BlobStat { digest, size })
        });
        Ok(Response::new(v1::StatBlobsResponse { blobs: blobs.collect() }))
    }
}

impl Shared {
    fn change(&self, name: &str, change: impl FnOnce(&mut v1::NodeInfo)) -> Answer<v1::NodeInfo> {
        self.look(|world| {
            let node = world.nodes.iter_mut().find(|node| node.name == name || node.id == name);
            let node = node.ok_or_else(|| Code::NotFound.status(format!("there is no node {name}")))?;
            change(node);
            Ok(Response::new(node.clone()))
        })
    }
}

#[tonic::async_trait]
impl Nodes for Shared {
    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        self.called("nodes")?;
        let nodes = self.lock().nodes.clone();
        Ok(Response::new(v1::ListNodesResponse { nodes, next: String::new() }))
    }

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Answer<v1::NodeInfo> {
        self.change(&request.into_inner().node, |_| {})
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Answer<v1::NodeInfo> {
        self.change(&request.into_inner().node, |node| node.cordoned = true)
    }

    async fn uncordon(&self, request: Request<v1::UncordonRequest>) -> Answer<v1::NodeInfo> {
        self.change(&request.into_inner().node, |node| (node.cordoned, node.draining) = (false, false))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Answer<v1::NodeInfo> {
        self.change(&request.into_inner().node, |node| (node.cordoned, node.draining) = (true, true))
    }

    async fn tag(&self, request: Request<v1::TagRequest>) -> Answer<v1::NodeInfo> {
        let request = request.into_inner();
        self.change(&request.node, |node| {
            let tags = &mut node.facts.get_or_insert_default().tags;
            tags.extend(request.set);
            tags.retain(|key, _| !request.remove.contains(key));
        })
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::MeshStatus> {
        self.called("status")?;
        let counted = |pairs: &[(&str, u64)]| pairs.iter().map(|(key, n)| ((*key).to_owned(), *n)).collect();
        Ok(Response::new(v1::MeshStatus {
            mesh_id: "0190aaaa-0000-7000-8000-000000000001".into(),
            coordinator_id: "0190aaaa-0000-7000-8000-000000000002".into(),
            version: "0.1.0".into(),
            leader: Some(v1::CommitPoint { incarnation: "i".into(), epoch: 3, seq: 4711, proof: Vec::new() }),
            started_at_ms: 1_762_000_000_000,
            nodes: counted(&[("healthy", 3), ("suspect", 0), ("offline", 1)]),
            jobs: counted(&[("running", 2)]),
            tasks: Some(v1::mesh_status::Counts { queued: 7, running: 2, ..Default::default() }),
            slots_total: 12,
            slots_free: 10,
            ca_not_after_ms: 2_077_000_000_000,
            halted: String::new(),
        }))
    }

    async fn accept_database(
        &self,
        _request: Request<v1::AcceptDatabaseRequest>,
    ) -> Answer<v1::AcceptDatabaseResponse> {
        self.called("accept database")?;
        Ok(Response::new(v1::AcceptDatabaseResponse {}))
    }
}

#[tonic::async_trait]
impl Access for Shared {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::CreateTokenResponse> {
        self.called("create token")?;
        let request = request.into_inner();
        Ok(Response::new(v1::CreateTokenResponse {
            id: "t1".into(),
            token: "mesh1.secret".into(),
            expires_at_ms: 1_762_000_000_000 + request.ttl_ms as i64,
            uses: request.uses,
            node: request.node,
        }))
    }

    async fn list_tokens(&self, _: Request<v1::ListTokensRequest>) -> Answer<v1::ListTokensResponse> {
        let tokens = self.lock().tokens.clone();
        Ok(Response::new(v1::ListTokensResponse { tokens, next: String::new() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Answer<v1::RevokeTokenResponse> {
        let id = request.into_inner().id;
        self.look(|world| match world.tokens.iter_mut().find(|token| token.id == id) {
            Some(token) => {
                token.revoked = true;
                Ok(Response::new(v1::RevokeTokenResponse {}))
            }
            None => Err(Code::NotFound.status(format!("there is no token {id}"))),
        })
    }
}
