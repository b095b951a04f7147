//! A coordinator of the test's own: real mTLS and real gRPC, with everything that it hears kept
//! for the test to look at and everything that it says decided by the test.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mesh_certs::{
    AcceptLimits, Ca, JoinToken, ServerCert, hash_secret, incoming, join_config, mtls_config, same_secret,
};
use mesh_proto::code::Code;
use mesh_proto::digest::Digest;
use mesh_proto::ids::{AttemptKey, CoordinatorId, MeshId, NodeId};
use mesh_proto::v1::blobs_server::{Blobs, BlobsServer};
use mesh_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use mesh_proto::v1::node_server::{Node, NodeServer};
use mesh_proto::v1::{self, attempt_event::Event};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(40);

/// Everything heard, and how to answer.
pub struct State {
    pub registrations: Vec<v1::RegisterNodeRequest>,
    pub events: Vec<(AttemptKey, Event)>,
    pub outputs: HashMap<AttemptKey, Vec<u8>>,
    pub blobs: HashMap<Vec<u8>, Bytes>,
    pub puts: usize,
    pub gets: usize,
    /// Where each Get began.
    pub offsets: Vec<u64>,
    /// Break so many Gets off after their first piece.
    pub break_gets: usize,
    /// Break so many Puts off.
    pub break_puts: usize,
    /// Fail so many Puts, as if the disk did.
    pub fail_puts: usize,
    /// How long each message of a Put takes; none: as long as it takes.
    pub slow_puts: Option<Duration>,
    /// Take nothing of a Put and never answer.
    pub hold_puts: bool,
    pub heartbeats: Vec<v1::HeartbeatRequest>,
    pub renewals: usize,
    pub joins: usize,
    /// Streams that were opened, all kinds.
    pub streams: usize,
    pub ack_ends: bool,
    pub ack_output: bool,
    /// Kill these when they stand in an inventory.
    pub kill: Vec<AttemptKey>,
    pub epoch: u64,
    pub refuse: Option<(Code, &'static str)>,
    /// Answer heartbeats that nothing can be served now.
    pub busy: bool,
    /// What an acknowledged word of the node brings, in milliseconds.
    pub lease_ms: u32,
    pub window: u32,
    /// The newest and the oldest version that it speaks.
    pub protocol: (u32, u32),
    /// Output that came beyond the window.
    pub overrun: bool,
    /// Inputs that ListInputs answers with.
    pub listed: Vec<v1::FileEntry>,
    pub cert_life: Duration,
    /// Uses that are left of the token.
    pub uses: u32,
    assign: Option<mpsc::Sender<Result<v1::AssignTaskResponse, Status>>>,
    node: NodeId,
}

/// A coordinator; clones share it.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    ca: Arc<Ca>,
    pub mesh: MeshId,
    pub grpc: SocketAddr,
    pub token: JoinToken,
    server: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl Fake {
    /// A coordinator that serves on free ports.
    pub fn start() -> Self {
        mesh_certs::install_provider();
        let mesh = MeshId::generate();
        let ca = Ca::generate(mesh).unwrap();
        let state = State {
            registrations: vec![],
            events: vec![],
            outputs: HashMap::new(),
            blobs: HashMap::new(),
            puts: 0,
            gets: 0,
            offsets: vec![],
            break_gets: 0,
            break_puts: 0,
            fail_puts: 0,
            slow_puts: None,
            hold_puts: false,
            heartbeats: vec![],
            renewals: 0,
            joins: 0,
            streams: 0,
            ack_ends: true,
            ack_output: true,
            kill: vec![],
            epoch: 5,
            refuse: None,
            busy: false,
            lease_ms: 10_000,
            window: 1 << 20,
            protocol: (1, 1),
            overrun: false,
            listed: vec![],
            cert_life: Duration::from_hours(24),
            uses: 1,
            assign: None,
            node: NodeId::generate(),
        };
        let grpc = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let join = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let token = JoinToken {
            endpoints: vec![join.local_addr().unwrap().to_string()],
            mesh,
            pin: ca.pin(),
            id: "t1".to_owned(),
            secret: JoinToken::new_secret(),
        };
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(Notify::new()),
            ca: Arc::new(ca),
            mesh,
            grpc: grpc.local_addr().unwrap(),
            token,
            server: Arc::default(),
        };
        fake.serve(grpc, Some(join));
        fake
    }

    fn serve(&self, grpc: std::net::TcpListener, join: Option<std::net::TcpListener>) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let issued =
            self.ca.issue_coordinator(CoordinatorId::generate(), &hosts, Duration::from_hours(1)).unwrap();
        let cert = ServerCert::new(&issued, &self.ca.cert_der()).unwrap();
        let _inside = runtime.enter();
        let listen = |listener: std::net::TcpListener| {
            listener.set_nonblocking(true).unwrap();
            TcpListener::from_std(listener).unwrap()
        };
        let limits = AcceptLimits::default();
        let (mesh, trust) = (self.mesh, mtls_config(&self.ca, cert.clone()));
        let connections = incoming(listen(grpc), trust, mesh, limits, |_, _| {});
        let router = tonic::transport::Server::builder()
            .add_service(NodeServer::new(self.clone()))
            .add_service(BlobsServer::new(self.clone()));
        agent::spawn::spawn("fake", async move { router.serve_with_incoming(connections).await.unwrap() });
        if let Some(join) = join {
            let connections = incoming(listen(join), join_config(cert), mesh, limits, |_, _| {});
            let router = tonic::transport::Server::builder().add_service(EnrollmentServer::new(self.clone()));
            agent::spawn::spawn("fake join", async move {
                router.serve_with_incoming(connections).await.unwrap();
            });
        }
        if let Some(before) = self.server.lock().unwrap().replace(runtime) {
            before.shutdown_background();
        }
    }

    /// Goes away with every connection, as by a kill.
    pub fn crash(&self) {
        self.state().assign = None;
        if let Some(runtime) = self.server.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    /// Comes back on the same port.
    pub async fn come_back(&self) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match std::net::TcpListener::bind(self.grpc) {
                Ok(listener) => return self.serve(listener, None),
                Err(error) => assert!(tokio::time::Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn token_text(&self) -> String {
        self.token.to_text().unwrap()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.changed.notify_waiters();
        done
    }

    /// Waits until `is` answers.
    pub async fn wait<T>(&self, what: &str, mut is: impl FnMut(&State) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = is(&self.state()) {
                    return found;
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await.ok();
        found.unwrap_or_else(|| panic!("{what} did not happen; events: {:?}", self.state().events))
    }

    pub async fn registered(&self, times: usize) {
        self.wait("the registration", |state| {
            (state.registrations.len() >= times && state.assign.is_some()).then_some(())
        })
        .await;
    }

    /// The end of an attempt, once it is told.
    pub async fn ended(&self, key: AttemptKey) -> v1::Ended {
        self.wait(&format!("the end of {key}"), |state| {
            state.events.iter().find_map(|(of, event)| match event {
                Event::Ended(ended) if *of == key => Some(ended.clone()),
                _ => None,
            })
        })
        .await
    }

    pub async fn started(&self, key: AttemptKey) {
        self.wait(&format!("the start of {key}"), |state| {
            let is = |(of, event): &(AttemptKey, Event)| *of == key && matches!(event, Event::Started(_));
            state.events.iter().any(is).then_some(())
        })
        .await;
    }

    /// Says something on the assignment stream.
    pub async fn say(&self, message: v1::AssignTaskResponse) {
        let assign = self.wait("a session", |state| state.assign.clone()).await;
        assign.send(Ok(message)).await.unwrap();
    }

    pub async fn assign(&self, assignment: v1::Assignment) {
        self.say(v1::AssignTaskResponse { assignments: vec![assignment], ..Default::default() }).await;
    }

    pub async fn cancel(&self, key: AttemptKey) {
        let cancel = v1::CancelAttempt { attempt: Some(key.into()), reason: "test".into() };
        self.say(v1::AssignTaskResponse { cancels: vec![cancel], ..Default::default() }).await;
    }

    /// Ends the assignment stream, as a broken connection does.
    pub fn hang_up(&self) {
        self.state().assign = None;
    }

    /// Keeps content as if somebody had put it.
    pub fn put_blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        self.state().blobs.insert(digest.to_vec(), content.to_vec().into());
        digest
    }

    fn leader(&self) -> v1::CommitPoint {
        v1::CommitPoint { incarnation: "one".into(), epoch: self.state().epoch, seq: 1, proof: Vec::new() }
    }
}

#[tonic::async_trait]
impl Node for Fake {
    type AssignTaskStream = ReceiverStream<Result<v1::AssignTaskResponse, Status>>;
    type TaskResultStream = ReceiverStream<Result<v1::TaskResultResponse, Status>>;
    type TaskOutputStream = ReceiverStream<Result<v1::TaskOutputResponse, Status>>;
    type ListInputsStream = ReceiverStream<Result<v1::ListInputsResponse, Status>>;

    async fn register_node(
        &self,
        request: Request<v1::RegisterNodeRequest>,
    ) -> Result<Response<v1::RegisterNodeResponse>, Status> {
        let request = request.into_inner();
        let leader = self.leader();
        self.change(|state| {
            let verdict = |item: &v1::InventoryItem| {
                let key = AttemptKey::try_from(item.attempt).unwrap();
                let verdict = if state.kill.contains(&key) { v1::Verdict::Kill } else { v1::Verdict::Keep };
                v1::AttemptVerdict { attempt: item.attempt, verdict: verdict.into() }
            };
            let verdicts = request.inventory.iter().map(verdict).collect();
            state.assign = None;
            state.registrations.push(request.clone());
            if let Some((code, message)) = state.refuse {
                return Err(code.status(message));
            }
            Ok(Response::new(v1::RegisterNodeResponse {
                session_id: format!("s{}", state.registrations.len()),
                protocol: state.protocol.0,
                oldest_protocol: state.protocol.1,
                heartbeat_interval_ms: 100,
                offline_after_ms: 3000,
                leader: Some(leader),
                verdicts,
                node_id: state.node.to_string(),
                output_window_bytes: state.window,
                endpoints: Vec::new(),
                lease_ms: state.lease_ms,
            }))
        })
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let leader = self.leader();
        let (token, busy, lease_ms) = self.change(|state| {
            state.heartbeats.push(request.into_inner());
            (1000 + state.heartbeats.len() as u64, state.busy, state.lease_ms)
        });
        if busy {
            return Err(Code::Unavailable.status("recovering"));
        }
        Ok(Response::new(v1::HeartbeatResponse {
            token,
            leader: Some(leader),
            endpoints: Vec::new(),
            lease_ms,
        }))
    }

    async fn assign_task(
        &self,
        _: Request<v1::AssignTaskRequest>,
    ) -> Result<Response<Self::AssignTaskStream>, Status> {
        let (send, receive) = mpsc::channel(16);
        self.change(|state| {
            state.streams += 1;
            state.assign = Some(send);
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn task_result(
        &self,
        request: Request<Streaming<v1::TaskResultRequest>>,
    ) -> Result<Response<Self::TaskResultStream>, Status> {
        let (send, receive) = mpsc::channel(16);
        let (fake, mut stream) = (self.clone(), request.into_inner());
        fake.change(|state| state.streams += 1);
        // As the coordinator does: the call is answered once its first message named the session.
        let mut next = stream.message().await?;
        agent::spawn::spawn("fake results", async move {
            while let Some(message) = next {
                let acks = fake.change(|state| {
                    let mut acks = vec![];
                    for event in message.events {
                        let key = AttemptKey::try_from(event.attempt).unwrap();
                        let event = event.event.unwrap();
                        let ended = matches!(event, Event::Ended(_));
                        if !ended || state.ack_ends {
                            let kind = v1::AckKind::Durable.into();
                            acks.push(v1::AttemptAck { attempt: Some(key.into()), kind, ended });
                        }
                        state.events.push((key, event));
                    }
                    acks
                });
                if send.send(Ok(v1::TaskResultResponse { acks })).await.is_err() {
                    return;
                }
                next = stream.message().await.ok().flatten();
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn task_output(
        &self,
        request: Request<Streaming<v1::TaskOutputRequest>>,
    ) -> Result<Response<Self::TaskOutputStream>, Status> {
        let (send, receive) = mpsc::channel(16);
        let (fake, mut stream) = (self.clone(), request.into_inner());
        fake.change(|state| state.streams += 1);
        let mut next = stream.message().await?;
        agent::spawn::spawn("fake output", async move {
            let mut unacked = 0;
            while let Some(message) = next {
                let acks = fake.change(|state| {
                    let mut acks = vec![];
                    for chunk in message.chunks {
                        let key = AttemptKey::try_from(chunk.attempt).unwrap();
                        let kept = state.outputs.entry(key).or_default();
                        let (position, length) = (chunk.position as usize, chunk.data.len());
                        if position <= kept.len() && position + length > kept.len() {
                            kept.extend_from_slice(&chunk.data[kept.len() - position..]);
                        }
                        unacked += length;
                        let durable = kept.len() as u64;
                        acks.push(v1::OutputAck { attempt: Some(key.into()), durable, discard: false });
                    }
                    state.overrun |= unacked > state.window as usize;
                    if state.ack_output { acks } else { vec![] }
                });
                if !acks.is_empty() {
                    unacked = 0;
                    if send.send(Ok(v1::TaskOutputResponse { acks })).await.is_err() {
                        return;
                    }
                }
                next = stream.message().await.ok().flatten();
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn list_inputs(
        &self,
        _: Request<v1::ListInputsRequest>,
    ) -> Result<Response<Self::ListInputsStream>, Status> {
        let listed = self.state().listed.clone();
        let (send, receive) = mpsc::channel(listed.len().max(1));
        for entry in listed {
            send.try_send(Ok(v1::ListInputsResponse { inputs: vec![entry] })).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let (node, life) = self.change(|state| {
            state.renewals += 1;
            (state.node, state.cert_life)
        });
        let issued = self.ca.issue_node(&request.into_inner().csr_der, node, life).unwrap();
        Ok(Response::new(v1::RenewCertificateResponse {
            certificate_der: issued.der.to_vec(),
            ca_der: self.ca.cert_der().to_vec(),
            endpoints: vec![self.grpc.to_string()],
        }))
    }
}

#[tonic::async_trait]
impl Blobs for Fake {
    type GetStream = ReceiverStream<Result<v1::GetBlobResponse, Status>>;

    async fn put(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.unwrap();
        let mut content = first.data.to_vec();
        let (cut, fail, slow, hold) = self.change(|state| {
            let (cut, fail) = (state.break_puts > 0, state.fail_puts > 0);
            state.break_puts = state.break_puts.saturating_sub(1);
            state.fail_puts = state.fail_puts.saturating_sub(usize::from(!cut));
            (cut, fail, state.slow_puts, state.hold_puts)
        });
        if cut {
            return Err(Code::Unavailable.status("cut"));
        }
        if fail {
            return Err(Code::Internal.status("the blob store failed"));
        }
        if hold {
            std::future::pending::<()>().await;
        }
        while let Some(piece) = stream.message().await? {
            content.extend_from_slice(&piece.data);
            if let Some(slow) = slow {
                tokio::time::sleep(slow).await;
            }
        }
        if first.digest != Digest::of(&content).to_vec() || first.size != content.len() as u64 {
            return Err(Code::Invalid.status("not what was named"));
        }
        let existed = self.change(|state| {
            state.puts += 1;
            state.blobs.insert(first.digest, content.into()).is_some()
        });
        Ok(Response::new(v1::PutBlobResponse { existed }))
    }

    async fn get(&self, request: Request<v1::GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        let (content, cut) = self.change(|state| {
            state.gets += 1;
            state.offsets.push(request.offset);
            let cut = state.break_gets > 0;
            state.break_gets = state.break_gets.saturating_sub(1);
            (state.blobs.get(&request.digest).cloned(), cut)
        });
        let content = content.ok_or_else(|| Code::NotFound.status("no such blob"))?;
        let (send, receive) = mpsc::channel(4);
        agent::spawn::spawn("fake get", async move {
            let mut first = true;
            for piece in content[request.offset as usize..].chunks(100_000) {
                let size = if std::mem::take(&mut first) { content.len() as u64 } else { 0 };
                let piece = v1::GetBlobResponse { size, data: Bytes::copy_from_slice(piece) };
                if send.send(Ok(piece)).await.is_err() {
                    return;
                }
                if cut {
                    let _ = send.send(Err(Code::Unavailable.status("cut"))).await;
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn stat(
        &self,
        request: Request<v1::StatBlobsRequest>,
    ) -> Result<Response<v1::StatBlobsResponse>, Status> {
        let state = self.state();
        let digests = request.into_inner().digests.into_iter();
        let blobs = digests.filter_map(|digest| {
            let size = state.blobs.get(&digest)?.len() as u64;
            Some(v1::BlobStat { digest, size })
        });
        Ok(Response::new(v1::StatBlobsResponse { blobs: blobs.collect() }))
    }
}

#[tonic::async_trait]
impl Enrollment for Fake {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let right = same_secret(&request.secret, &hash_secret(&self.token.secret));
        let (node, life) = self.change(|state| {
            state.joins += 1;
            if request.token_id != self.token.id || !right || state.uses == 0 {
                return Err(
                    Code::Denied.status("the token is not valid; make a new one with `meshctl token create`")
                );
            }
            state.uses -= 1;
            Ok((state.node, state.cert_life))
        })?;
        let issued = self.ca.issue_node(&request.csr_der, node, life).unwrap();
        Ok(Response::new(v1::JoinResponse {
            mesh_id: self.mesh.to_string(),
            node_id: node.to_string(),
            name: request.name,
            ca_der: self.ca.cert_der().to_vec(),
            certificate_der: issued.der.to_vec(),
            endpoints: vec![self.grpc.to_string()],
        }))
    }
}
