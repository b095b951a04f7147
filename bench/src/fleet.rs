//! The load generator: agents that speak the real protocol over their own mutually
//! authenticated connections, and run no process. What they are given has ended at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use mesh_certs::{ChannelOptions, ClientCert, ClientTls, JoinToken, NodeKey, pinned_channel};
use mesh_proto::v1::{
    AckKind, AssignTaskRequest, Assignment, AttemptEvent, Cause, Ended, HeartbeatRequest, JoinRequest,
    NodeFacts, RegisterNodeRequest, Sandbox, SandboxLevel, TaskResultRequest, attempt_event::Event,
    enrollment_client::EnrollmentClient, node_client::NodeClient,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::bed::Bed;

/// Joins that are under way at a time.
const JOINING: usize = 16;
/// Messages of one agent that wait to be sent; then it reads no more assignments.
const WAITING: usize = 8;

/// Simulated agents, connected. They end with the value.
pub struct Fleet {
    agents: JoinSet<anyhow::Result<()>>,
    finished: Arc<AtomicU64>,
}

impl Fleet {
    /// Joins and connects `count` agents of `slots` slots each; returns when all are members.
    pub async fn connect(bed: &Bed, name: &str, count: u32, slots: u32) -> anyhow::Result<Self> {
        let token = Arc::new(bed.token().await?);
        let join = pinned_channel(&token).await?;
        let finished = Arc::new(AtomicU64::new(0));
        let mut agents = JoinSet::new();
        let mut joining = JoinSet::new();
        let mut left = (0..count).map(|number| format!("{name}-{number}"));
        let mut connected = 0;
        while connected < count {
            while joining.len() < JOINING
                && let Some(name) = left.next()
            {
                let (token, join, endpoints) = (Arc::clone(&token), join.clone(), bed.endpoints.clone());
                joining.spawn(async move { Session::begin(&token, join, endpoints, name, slots).await });
            }
            let session = joining.join_next().await.ok_or_else(|| anyhow!("nobody joins"))???;
            let finished = Arc::clone(&finished);
            agents.spawn(session.serve(finished));
            connected += 1;
        }
        Ok(Self { agents, finished })
    }

    /// Ends that the coordinator acknowledged as durable.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Says why, if an agent lost its session: then nothing that was measured counts.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.agents.try_join_next() {
            None => Ok(()),
            Some(ended) => Err(match ended {
                Ok(Err(error)) => error.context("a simulated agent lost its session"),
                Ok(Ok(())) => anyhow!("the coordinator ended a simulated agent's session"),
                Err(error) => anyhow!(error),
            }),
        }
    }
}

/// One agent that is registered.
struct Session {
    node: NodeClient<Channel>,
    id: String,
    heartbeat: Duration,
}

impl Session {
    async fn begin(
        token: &JoinToken,
        join: Channel,
        endpoints: Vec<String>,
        name: String,
        slots: u32,
    ) -> anyhow::Result<Self> {
        let key = NodeKey::generate()?;
        let request = JoinRequest {
            token_id: token.id.clone(),
            secret: token.secret.to_vec(),
            csr_der: key.csr_der()?,
            name: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let joined = EnrollmentClient::new(join).join(request).await.context("join")?.into_inner();
        let tls = ClientTls {
            ca: CertificateDer::from(joined.ca_der),
            mesh: token.mesh,
            cert: ClientCert::of_node(CertificateDer::from(joined.certificate_der), &key)?,
        };
        let (channel, _last) = mesh_certs::channel(endpoints, tls, ChannelOptions::default());
        let mut node = NodeClient::new(channel);
        let facts = NodeFacts {
            name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots,
            cpu_millis: slots * 1000,
            memory_bytes: u64::from(slots) << 30,
            os: "linux".to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cores: slots,
            total_memory_bytes: u64::from(slots) << 30,
            sandbox: Some(Sandbox {
                strongest: SandboxLevel::Basic.into(),
                weakest: SandboxLevel::None.into(),
                ..Sandbox::default()
            }),
            ..NodeFacts::default()
        };
        let request = RegisterNodeRequest {
            protocol: mesh_proto::PROTOCOL_VERSION,
            boot_id: uuid::Uuid::now_v7().to_string(),
            facts: Some(facts),
            ..RegisterNodeRequest::default()
        };
        let registered = node.register_node(request).await.context("register")?.into_inner();
        let heartbeat = Duration::from_millis(registered.heartbeat_interval_ms.into());
        Ok(Self { node, id: registered.session_id, heartbeat })
    }

    /// Takes assignments and tells their ends until the coordinator ends the session.
    async fn serve(mut self, finished: Arc<AtomicU64>) -> anyhow::Result<()> {
        let (tell, told) = mpsc::channel(WAITING);
        // The first message names the session.
        tell.send(TaskResultRequest { session_id: self.id.clone(), events: Vec::new() }).await?;
        let mut acks = self.node.task_result(ReceiverStream::new(told)).await?.into_inner();
        let request = AssignTaskRequest { session_id: self.id.clone() };
        let mut given = self.node.assign_task(request).await?.into_inner();
        let beats = heartbeats(self.node.clone(), self.id.clone(), self.heartbeat);
        let id = self.id;
        let work = async {
            while let Some(message) = given.message().await? {
                let events: Vec<AttemptEvent> = message.assignments.into_iter().map(ended).collect();
                if !events.is_empty() {
                    tell.send(TaskResultRequest { session_id: id.clone(), events }).await?;
                }
            }
            anyhow::Ok(())
        };
        let hear = async {
            while let Some(message) = acks.message().await? {
                let durable =
                    message.acks.iter().filter(|ack| ack.ended && ack.kind() == AckKind::Durable).count();
                finished.fetch_add(durable as u64, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        tokio::select! {
            done = work => done,
            done = hear => done,
            done = beats => done,
        }
    }
}

/// The end of a task that did nothing, as an agent tells it.
#[expect(clippy::needless_pass_by_value, reason = "it is mapped over assignments")]
fn ended(assignment: Assignment) -> AttemptEvent {
    let end = Ended {
        cause: Cause::Exit.into(),
        started_at_ms: 1,
        ended_at_ms: 1,
        max_rss_bytes: 1 << 20,
        ..Ended::default()
    };
    AttemptEvent { attempt: assignment.attempt, event: Some(Event::Ended(end)) }
}

async fn heartbeats(mut node: NodeClient<Channel>, session: String, every: Duration) -> anyhow::Result<()> {
    // Not all at the same moment.
    let first = Instant::now() + every.mul_f64(rand::random());
    let mut tick = interval_at(first, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut echo: Option<(u64, Instant)> = None;
    loop {
        tick.tick().await;
        let request = HeartbeatRequest {
            session_id: session.clone(),
            load_permille: 100,
            free_memory_bytes: 1 << 30,
            free_disk_bytes: 1 << 30,
            echo_token: echo.map_or(0, |(token, _)| token),
            echo_held_us: echo.map_or(0, |(_, since)| since.elapsed().as_micros() as u64),
            ..HeartbeatRequest::default()
        };
        let answer = node.heartbeat(request).await?.into_inner();
        echo = Some((answer.token, Instant::now()));
    }
}
