//! The Node service: what agents speak. How a registration is answered, words on attempts and
//! output are taken, lies beside it.

mod output;
mod register;
mod results;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use mesh_proto::{
    code::Code,
    ids::{AttemptKey, SessionId},
    v1::{
        AssignTaskRequest, AssignTaskResponse, HeartbeatRequest, HeartbeatResponse, ListInputsRequest,
        ListInputsResponse, RegisterNodeRequest, RegisterNodeResponse, RenewCertificateRequest,
        RenewCertificateResponse, TaskOutputRequest, TaskOutputResponse, TaskResultRequest,
        TaskResultResponse, node_server::Node,
    },
    version::Spoken,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use self::{output::OutputTaker, results::ResultTaker};
use super::{auth::Caller, convert, identities::Identities, pages::Pages};
use crate::{
    commit::{Core, CoreError, halted_status},
    directory::Directory,
    engine::{effect::Reply, event::Event},
    metrics::Metrics,
    output::OutputStore,
    session::{Plans, Sessions, Taken, speak_assignments},
    spawn::spawn,
    store::{Store, clock::boot_us},
};

/// Messages that wait on a stream to an agent.
const STREAM: usize = 16;

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
    pub directory: Directory,
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
        let caller = Caller::of(&request)?;
        let (node, opened, key) = (caller.node()?, caller.opened, caller.peer.key_fingerprint);
        let request = request.into_inner();
        let theirs = Spoken::new(request.protocol, request.oldest_protocol);
        if let Some(refusal) = Spoken::OURS.refusal("this coordinator", "the agent", theirs) {
            return Err(Code::Version.status(refusal));
        }
        self.core.ready()?;
        self.check_key(node, key).await?;
        let stored = self.store.node(node).await?;
        let record = stored.map(|node| node.record).ok_or_else(|| {
            Code::Unauthenticated.status("this mesh does not know the node: join again with a new token")
        })?;
        let name = record.name.clone();
        self.check_history(&name, &request).await?;
        let session = SessionId::generate();
        // A mistaken request does not end the session that there is.
        let registration = Arc::new(convert::registration(&request, record, session)?);
        let taken = Taken { boot: registration.boot, at_us: request.taken_at_us, opened };
        self.sessions.begin(node, &name, session, taken)?;
        let reply = self.core.ask(|reply| Event::NodeRegistered { reply, registration }).await?;
        let Reply::Registered { verdicts } = reply else { return Err(CoreError::Mismatch.into()) };
        let answers = self.answer(node, session, verdicts).await?;
        // It may have halted since the call was let in; then nobody gets a lease or a verdict.
        if let Some(reason) = self.core.standing().halted() {
            return Err(halted_status(&reason));
        }
        info!(node = %name, %session, held = answers.len(), "registered");
        Ok(Response::new(RegisterNodeResponse {
            session_id: session.to_string(),
            protocol: Spoken::OURS.newest,
            oldest_protocol: Spoken::OURS.oldest,
            heartbeat_interval_ms: self.timings.heartbeat.as_millis() as u32,
            offline_after_ms: self.timings.offline_after.as_millis() as u32,
            leader: Some(self.core.standing().point()),
            verdicts: answers,
            node_id: node.to_string(),
            output_window_bytes: self.output_window,
            endpoints: self.directory.members(),
            lease_ms: self.lease_ms(),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let node = Caller::of(&request)?.node()?;
        let request = request.into_inner();
        let live = self.sessions.check(node, &request.session_id)?;
        // Agents build on what a heartbeat is answered with: it must be the leader's word.
        self.core.readable()?;
        let now = boot_us();
        // The round trip: since the echoed token was given, less what the agent held it.
        let rtt_us = (request.echo_token > 0)
            .then(|| now.checked_sub(request.echo_token)?.checked_sub(request.echo_held_us))
            .flatten();
        if let (Some(rtt), Some(name)) = (rtt_us, self.sessions.name(node)) {
            self.metrics.set_rtt(&name, std::time::Duration::from_micros(rtt));
        }
        let (session, load_permille) = (live.session, request.load_permille);
        let heartbeat = |reply| Event::Heartbeat { reply: Some(reply), node, session, load_permille, rtt_us };
        // An agent must hear that the coordinator lives also while the database keeps it waiting.
        let heard = self.core.ask_within(self.timings.heartbeat / 2, heartbeat).await?;
        let counts = matches!(heard, Some(Reply::Heard { counts: true }));
        Ok(Response::new(HeartbeatResponse {
            token: boot_us(),
            leader: Some(self.core.standing().point()),
            lease_ms: if counts { self.lease_ms() } else { 0 },
            endpoints: self.directory.members(),
        }))
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
        let taker = ResultTaker {
            node,
            core: self.core.clone(),
            sessions: self.sessions.clone(),
            store: self.store.clone(),
        };
        // Answered at once: a client may wait for that before it sends its first message.
        spawn("results", async move {
            if let Err(status) = taker.run(stream, send.clone()).await {
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
        let taker = OutputTaker {
            node,
            output: self.output.clone(),
            store: self.store.clone(),
            core: self.core.clone(),
        };
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
        let pages = Pages::of(inputs).map(|inputs| Ok(ListInputsResponse { inputs }));
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let node = caller.node()?;
        self.check_key(node, caller.peer.key_fingerprint).await?;
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
            endpoints: self.directory.members(),
        }))
    }
}

fn attempt_key(key: Option<mesh_proto::v1::AttemptKey>) -> Result<AttemptKey, Status> {
    AttemptKey::try_from(key).map_err(|error| Code::Invalid.status(error.to_string()))
}
