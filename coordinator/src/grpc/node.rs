//! The Node service: what agents speak.

use std::{num::NonZeroUsize, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use mesh_proto::{
    PROTOCOL_VERSION,
    code::Code,
    ids::{AttemptKey, NodeId},
    v1::{
        AssignTaskRequest, AssignTaskResponse, AttemptEvent, AttemptVerdict, HeartbeatRequest,
        HeartbeatResponse, ListInputsRequest, ListInputsResponse, OutputAck, RegisterNodeRequest,
        RegisterNodeResponse, RenewCertificateRequest, RenewCertificateResponse, TaskOutputRequest,
        TaskOutputResponse, TaskResultRequest, TaskResultResponse, Verdict, attempt_event, node_server::Node,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{
    auth::Caller,
    convert::{self, store_status},
    identities::Identities,
};
use crate::{
    commit::{Core, CoreError},
    engine::{
        effect::{self, Reply},
        event::Event,
    },
    metrics::Metrics,
    output::{OutputError, OutputStore},
    session::{PlanError, Plans, Sessions, speak_acks, speak_assignments, told_by_agent},
    spawn::spawn,
    store::{Store, clock::boot_us},
};

/// Messages that wait on a stream to an agent.
const STREAM: usize = 16;
/// Appends of output that are under way for one session.
const APPENDS: usize = 64;
/// Attempts of one output stream that are remembered as the node's or not.
const ATTEMPTS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Inputs that go into one message.
const INPUTS: usize = 1000;
/// Longest progress message, in bytes.
const MAX_PROGRESS: usize = 200;

/// Serves agents.
pub struct NodeService {
    pub core: Core,
    pub store: Store,
    pub plans: Plans,
    pub sessions: Sessions,
    pub output: OutputStore,
    pub metrics: Arc<Metrics>,
    pub identities: Arc<Identities>,
    pub ca: Arc<mesh_certs::Ca>,
    pub timings: crate::config::Timings,
    pub output_window: u32,
    /// host:port of the mTLS port, for renewed agents.
    pub endpoints: Vec<String>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for NodeService {
    type AssignTaskStream = Streamed<AssignTaskResponse>;
    type TaskResultStream = Streamed<TaskResultResponse>;
    type TaskOutputStream = Streamed<TaskOutputResponse>;
    type ListInputsStream = Streamed<ListInputsResponse>;

    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let node = Caller::of(&request)?.node()?;
        let request = request.into_inner();
        if request.protocol == 0 || request.protocol > PROTOCOL_VERSION {
            return Err(Code::Version.status(format!(
                "the agent speaks protocol {}, this coordinator {PROTOCOL_VERSION} and the one before",
                request.protocol
            )));
        }
        self.core.ready()?;
        self.check_history(&request)?;
        let stored = self.store.node(node).await.map_err(store_status)?;
        let record = stored.map(|node| node.record).ok_or_else(|| {
            Code::Unauthenticated.status("this mesh does not know the node: join again with a new token")
        })?;
        let session = self.sessions.begin(node, &record.name);
        let name = record.name.clone();
        let registration = Arc::new(convert::registration(&request, record, session)?);
        let reply = self.core.ask(|reply| Event::NodeRegistered { reply, registration }).await?;
        let Reply::Registered { verdicts } = reply else { return Err(CoreError::Mismatch.into()) };
        let mut answers = Vec::with_capacity(verdicts.len());
        for (attempt, verdict) in verdicts {
            let verdict = self.verdict(node, attempt, verdict).await?;
            answers.push(AttemptVerdict { attempt: Some(attempt.into()), verdict: verdict.into() });
        }
        info!(node = %name, %session, held = answers.len(), "registered");
        Ok(Response::new(RegisterNodeResponse {
            session_id: session.to_string(),
            protocol: PROTOCOL_VERSION,
            heartbeat_interval_ms: self.timings.heartbeat.as_millis() as u32,
            offline_after_ms: self.timings.offline_after.as_millis() as u32,
            leader: Some(self.core.standing().point()),
            verdicts: answers,
            node_id: node.to_string(),
            output_window_bytes: self.output_window,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let node = Caller::of(&request)?.node()?;
        let request = request.into_inner();
        let live = self.sessions.check(node, &request.session_id)?;
        let now = boot_us();
        // The round trip: since the echoed token was given, less what the agent held it.
        let rtt_us = (request.echo_token > 0)
            .then(|| now.checked_sub(request.echo_token)?.checked_sub(request.echo_held_us))
            .flatten();
        if let (Some(rtt), Some(name)) = (rtt_us, self.sessions.name(node)) {
            self.metrics.set_rtt(&name, std::time::Duration::from_micros(rtt));
        }
        let (session, load_permille) = (live.session, request.load_permille);
        self.core.tell(Event::Heartbeat { node, session, load_permille, rtt_us }).await?;
        Ok(Response::new(HeartbeatResponse { token: now, leader: Some(self.core.standing().point()) }))
    }

    async fn assign_task(
        &self,
        request: Request<AssignTaskRequest>,
    ) -> Result<Response<Self::AssignTaskStream>, Status> {
        let node = Caller::of(&request)?.node()?;
        let live = self.sessions.check(node, &request.get_ref().session_id)?;
        let commands = self.sessions.take_commands(&live)?;
        let session = live.session;
        self.core.tell(Event::SessionOpened { node, session }).await?;
        let (send, receive) = mpsc::channel(STREAM);
        let (core, sessions, plans) = (self.core.clone(), self.sessions.clone(), self.plans.clone());
        spawn("assignments", async move {
            speak_assignments(live, commands, send, sessions.clone(), plans, core.clone()).await;
            sessions.end(node, session);
            // While the coordinator recovers, memory is read anew without this session anyway.
            let _ = core.tell(Event::SessionClosed { node, session }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn task_result(
        &self,
        request: Request<Streaming<TaskResultRequest>>,
    ) -> Result<Response<Self::TaskResultStream>, Status> {
        let node = Caller::of(&request)?.node()?;
        let stream = request.into_inner();
        let (send, receive) = mpsc::channel(STREAM);
        let (core, sessions, store) = (self.core.clone(), self.sessions.clone(), self.store.clone());
        // Answered at once: a client may wait for that before it sends its first message.
        spawn("results", async move {
            if let Err(status) = take_results(core, sessions, store, node, stream, send.clone()).await {
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn task_output(
        &self,
        request: Request<Streaming<TaskOutputRequest>>,
    ) -> Result<Response<Self::TaskOutputStream>, Status> {
        let node = Caller::of(&request)?.node()?;
        let stream = request.into_inner();
        let (send, receive) = mpsc::channel(STREAM);
        let taker = OutputTaker { node, output: self.output.clone(), store: self.store.clone() };
        let sessions = self.sessions.clone();
        spawn("output", async move {
            if let Err(status) = taker.run(&sessions, stream, send.clone()).await {
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn list_inputs(
        &self,
        request: Request<ListInputsRequest>,
    ) -> Result<Response<Self::ListInputsStream>, Status> {
        let node = Caller::of(&request)?.node()?;
        let request = request.into_inner();
        self.sessions.check(node, &request.session_id)?;
        let attempt = attempt_key(request.attempt)?;
        let inputs = self.allow(node, attempt).await?;
        let pages: Vec<Result<ListInputsResponse, Status>> =
            inputs.chunks(INPUTS).map(|inputs| Ok(ListInputsResponse { inputs: inputs.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let node = caller.node()?;
        let issued = self
            .ca
            .issue_node(&request.get_ref().csr_der, node, self.timings.certificate_lifetime)
            .map_err(|error| Code::Invalid.status(error.to_string()))?;
        if issued.key_fingerprint != caller.peer.key_fingerprint {
            return Err(Code::Denied.status("the request is for another key than the connection's"));
        }
        self.identities.renewed(&caller.peer.identity, issued.not_after);
        Ok(Response::new(RenewCertificateResponse {
            certificate_der: issued.der.to_vec(),
            ca_der: self.ca.cert_der().to_vec(),
            endpoints: self.endpoints.clone(),
        }))
    }
}

impl NodeService {
    /// An agent that has seen later commits than this coordinator made: the database went back.
    fn check_history(&self, request: &RegisterNodeRequest) -> Result<(), Status> {
        let Some(seen) = &request.seen else { return Ok(()) };
        let mine = self.core.standing().point();
        if seen.incarnation == mine.incarnation && (seen.epoch, seen.seq) > (mine.epoch, mine.seq) {
            tracing::error!(
                seen_epoch = seen.epoch,
                seen_seq = seen.seq,
                epoch = mine.epoch,
                seq = mine.seq,
                "an agent has seen later commits than this database holds: the database went back in time"
            );
            return Err(
                Code::Stale.status("the coordinator's database is older than what this agent has seen")
            );
        }
        Ok(())
    }

    /// What becomes of an attempt that an agent holds; what the engine does not know is looked
    /// up: an end of its own that was committed may still owe its output.
    async fn verdict(
        &self,
        node: NodeId,
        attempt: AttemptKey,
        verdict: effect::Verdict,
    ) -> Result<Verdict, Status> {
        match verdict {
            effect::Verdict::Collect => Ok(Verdict::Collect),
            effect::Verdict::Keep => {
                self.allow(node, attempt).await?;
                Ok(Verdict::Keep)
            }
            effect::Verdict::Unknown => {
                let row = self.store.attempt(attempt).await.map_err(store_status)?;
                let own = row.is_some_and(|row| row.node == node && row.cause.is_some_and(told_by_agent));
                Ok(if own { Verdict::Collect } else { Verdict::Kill })
            }
        }
    }

    /// Lets a node read the inputs of an attempt that is open at it, and says which they are.
    async fn allow(
        &self,
        node: NodeId,
        attempt: AttemptKey,
    ) -> Result<Vec<mesh_proto::v1::FileEntry>, Status> {
        let row = self.store.attempt(attempt).await.map_err(store_status)?;
        if row.is_none_or(|row| row.node != node || row.cause.is_some()) {
            return Err(Code::Stale.status("this attempt is not the node's"));
        }
        let unreadable = |error: PlanError| {
            warn!(%attempt, error = &error as &dyn std::error::Error, "cannot list an attempt's inputs");
            Code::Unavailable.status("the inputs cannot be listed at the moment")
        };
        let plan = self.plans.plan(attempt.task.job).await.map_err(unreadable)?;
        let inputs = self.plans.inputs(&plan, attempt.task).await.map_err(unreadable)?;
        self.sessions.allow(node, attempt, crate::session::digests(&inputs));
        Ok(inputs)
    }
}

fn attempt_key(key: Option<mesh_proto::v1::AttemptKey>) -> Result<AttemptKey, Status> {
    AttemptKey::try_from(key).map_err(|error| Code::Invalid.status(error.to_string()))
}

/// Takes a session's words on its attempts; the first message names the session.
async fn take_results(
    core: Core,
    sessions: Sessions,
    store: Store,
    node: NodeId,
    mut stream: Streaming<TaskResultRequest>,
    out: mpsc::Sender<Result<TaskResultResponse, Status>>,
) -> Result<(), Status> {
    let mut next = stream.message().await?;
    let Some(first) = &next else { return Ok(()) };
    let live = sessions.check(node, &first.session_id)?;
    let acks = sessions.take_acks(&live)?;
    spawn("acknowledgements", speak_acks(live.clone(), acks, out.clone(), store));
    while let Some(message) = next.take() {
        for event in message.events {
            take_event(&core, &sessions, node, event).await?;
        }
        next = tokio::select! {
            message = stream.message() => message?,
            () = live.over.cancelled() => None,
            () = out.closed() => None,
        };
    }
    Ok(())
}

/// Takes one word of an agent on an attempt.
async fn take_event(
    core: &Core,
    sessions: &Sessions,
    node: NodeId,
    event: AttemptEvent,
) -> Result<(), Status> {
    let attempt = attempt_key(event.attempt)?;
    match event.event {
        Some(attempt_event::Event::Started(started)) => {
            let sandbox = convert::level(started.sandbox);
            core.tell(Event::AttemptStarted { node, attempt, sandbox }).await?;
        }
        Some(attempt_event::Event::Progress(progress)) => {
            let mut message = mesh_proto::names::escape(&progress.message);
            if message.len() > MAX_PROGRESS {
                let cut = (0..=MAX_PROGRESS).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
                message.truncate(cut);
            }
            sessions.set_progress(node, attempt, progress.percent, message);
        }
        Some(attempt_event::Event::Ended(ended)) => {
            let end = Arc::new(convert::end(ended)?);
            core.tell(Event::AttemptEnded { node, attempt, end }).await?;
        }
        Some(attempt_event::Event::Withdrawn(_)) => {
            core.tell(Event::AttemptWithdrawn { node, attempt }).await?;
        }
        None => {}
    }
    Ok(())
}

/// Takes the output of a session's attempts to disk.
struct OutputTaker {
    node: NodeId,
    output: OutputStore,
    store: Store,
}

type Append = Pin<Box<dyn Future<Output = OutputAck> + Send>>;

impl OutputTaker {
    async fn run(
        self,
        sessions: &Sessions,
        mut stream: Streaming<TaskOutputRequest>,
        out: mpsc::Sender<Result<TaskOutputResponse, Status>>,
    ) -> Result<(), Status> {
        let mut next = stream.message().await?;
        let Some(first) = &next else { return Ok(()) };
        let live = sessions.check(self.node, &first.session_id)?;
        // Whether an attempt is this node's, asked once each.
        let mut mine = lru::LruCache::new(ATTEMPTS);
        let (appends, queue) = mpsc::channel::<Append>(APPENDS);
        spawn("output acknowledgements", acknowledge(queue, out.clone()));
        while let Some(message) = next.take() {
            for chunk in message.chunks {
                let Ok(attempt) = AttemptKey::try_from(chunk.attempt) else { continue };
                let known = match mine.get(&attempt) {
                    Some(known) => *known,
                    None => {
                        let row = self.store.attempt(attempt).await.map_err(store_status)?;
                        let known = row.is_some_and(|row| row.node == self.node);
                        mine.put(attempt, known);
                        known
                    }
                };
                let append = self.append(attempt, chunk.position, chunk.data, known).await;
                if appends.send(append).await.is_err() {
                    return Ok(());
                }
            }
            next = tokio::select! {
                message = stream.message() => message?,
                () = live.over.cancelled() => None,
                () = out.closed() => None,
            };
        }
        Ok(())
    }

    /// Puts a piece in order behind those before it; what it gives back waits for the disk.
    async fn append(&self, attempt: AttemptKey, position: u64, data: Bytes, known: bool) -> Append {
        let discard = OutputAck { attempt: Some(attempt.into()), durable: 0, discard: true };
        if !known {
            return Box::pin(std::future::ready(discard));
        }
        match self.output.append(attempt, position, data).await {
            Ok(written) => Box::pin(async move {
                match written.await {
                    Ok(ack) => {
                        OutputAck { attempt: Some(attempt.into()), durable: ack.durable, discard: false }
                    }
                    Err(error) => refused(attempt, &error, discard),
                }
            }),
            Err(error) => Box::pin(std::future::ready(refused(attempt, &error, discard))),
        }
    }
}

fn refused(attempt: AttemptKey, error: &OutputError, discard: OutputAck) -> OutputAck {
    warn!(%attempt, %error, "output is not taken");
    discard
}

/// Sends acknowledgements in the order of the appends, together where several are ready.
async fn acknowledge(
    mut queue: mpsc::Receiver<Append>,
    out: mpsc::Sender<Result<TaskOutputResponse, Status>>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, APPENDS).await > 0 {
        let mut acks = Vec::with_capacity(batch.len());
        for append in batch.drain(..) {
            acks.push(append.await);
        }
        if out.send(Ok(TaskOutputResponse { acks })).await.is_err() {
            return;
        }
    }
}
