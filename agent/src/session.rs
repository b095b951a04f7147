//! The node's standing with the coordinator: register with everything it holds, keep the three
//! streams and the heartbeat, and begin again whenever any of them breaks, for ever.
//!
//! ```text
//! register ──▶ verdicts ──▶ AssignTask, TaskResult, TaskOutput, heartbeats
//!    ▲                                   │ one ends, or `register_again`
//!    └───────── wait (jitter) ◀──────────┘
//! ```
//!
//! Invariants: nothing is taken from a coordinator that stands behind what this node has seen;
//! tasks go on whatever happens here; what was not acknowledged is sent again in the next session.
//!
//! May enter: the conversation. What an answer means for an attempt is in `attempts/`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_certs::{LastError, Route};
use mesh_proto::code::Code;
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::{self, HeartbeatRequest, RegisterNodeRequest, RegisterNodeResponse};
use mesh_proto::{names, version::Spoken};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, error, info, warn};

use crate::attempts::Input;
use crate::backoff::Backoff;
use crate::clock;
use crate::facts::{self, Load, Machine};
use crate::hub::Hub;
use crate::identity::IdentityDir;
use crate::metrics::Metrics;
use crate::seen::{Seen, StaleLeader};
use crate::spool;

/// How long an end waits for others where they follow each other at once.
const LINGER: Duration = Duration::from_millis(5);
/// How long the coordinator may take to register a node.
const REGISTER: Duration = Duration::from_secs(20);
/// How long a registered node's heartbeat may take, at the least, unless the coordinator bears
/// silent nodes for less than twice of it.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Bytes of events in one message; a single larger event still goes.
const EVENTS: usize = 512 * 1024;
/// Between tries once the coordinator has said no.
const REFUSED: Duration = Duration::from_secs(30);
/// Between tries while a stand-by answers: it takes over within seconds.
const STANDBY: Duration = Duration::from_millis(300);
/// Output in flight when the coordinator names no window.
const DEFAULT_WINDOW: u32 = 4 * 1024 * 1024;

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "the coordinator does not take this node: {0}. Join again with a new token \
         (`meshctl token create` makes one): agent run --join TOKEN"
    )]
    NotAMember(String),
}

/// Why one session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the coordinator asks to register again")]
    Again,
    #[error("the node drains")]
    Drain,
    #[error(transparent)]
    Stale(#[from] StaleLeader),
    #[error("{}", names::escape(.0.message()))]
    Rpc(#[from] Status),
}

/// What a session needs.
pub struct Session {
    pub hub: Arc<Hub>,
    pub machine: Machine,
    pub sandbox: v1::Sandbox,
    pub seen: Arc<Seen>,
    pub last_error: LastError,
    /// The way to the leader.
    pub route: Route,
    /// Where the coordinators' addresses are kept.
    pub identity: IdentityDir,
    pub metrics: Arc<Metrics>,
    /// Becomes true when the node is registered for the first time.
    pub ready: watch::Sender<bool>,
    /// Becomes true when the agent drains.
    pub draining: watch::Receiver<bool>,
    /// Becomes true when the coordinator knows that it drains, and sends nothing new.
    pub closed: watch::Sender<bool>,
    /// Why there was no session when that was last logged; empty at first.
    pub said: String,
}

impl Session {
    /// Keeps a session open. Returns only when the coordinator refuses the node before it was
    /// ever registered by this daemon.
    pub async fn run(mut self) -> SessionError {
        let timings = self.hub.context().config.timings;
        let mut backoff = Backoff::new(timings.reconnect_min, timings.reconnect_max);
        loop {
            let registered = Instant::now();
            let end = self.once(&mut backoff).await;
            self.hub.context().rpc.set_session(None);
            self.metrics.connected(false);
            self.seen.keep();
            let wait = match &end {
                End::Again | End::Drain => {
                    info!(reason = %end, "registering again");
                    continue;
                }
                End::Stale(stale) => {
                    error!(%stale, "refusing this coordinator; tasks go on, trying again");
                    backoff.next_wait().max(Duration::from_secs(1))
                }
                End::Rpc(status) if self.route.heed(status) => {
                    self.told(status, &mut backoff);
                    STANDBY.mul_f64(rand::random_range(0.5..1.5))
                }
                End::Rpc(status) => match self.refused(status) {
                    Some(error) if !*self.ready.borrow() => return error,
                    Some(error) => {
                        error!(%error, "not a member any more; trying again now and then");
                        REFUSED.mul_f64(rand::random_range(0.8..1.2))
                    }
                    None => self.told(status, &mut backoff),
                },
            };
            debug!(?wait, lasted = ?registered.elapsed(), "session ended");
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether the coordinator says that this node is none of its mesh.
    fn refused(&self, status: &Status) -> Option<SessionError> {
        if let Some(connect) = self.last_error.get().filter(|error| error.is_rejection()) {
            return Some(SessionError::NotAMember(connect.to_string()));
        }
        // Without its own code the answer is not the coordinator's.
        status.metadata().get(mesh_proto::code::CODE_HEADER)?;
        match Code::of(status) {
            Code::Unauthenticated | Code::Denied | Code::NotFound => {
                Some(SessionError::NotAMember(names::escape(status.message())))
            }
            Code::Invalid
            | Code::Conflict
            | Code::Exhausted
            | Code::Stale
            | Code::Unavailable
            | Code::Timeout
            | Code::Version
            | Code::Internal => None,
        }
    }

    /// Logs why there is no session, once for each reason, and says how long to wait.
    fn told(&mut self, status: &Status, backoff: &mut Backoff) -> Duration {
        let reason = match self.last_error.reason() {
            Some(reason) => reason,
            None => names::escape(status.message()),
        };
        let code = Code::of(status);
        if self.said == reason {
            debug!(%code, %reason, "still no session with the coordinator");
        } else {
            warn!(%code, %reason, "no session with the coordinator; trying again");
            self.said = reason;
        }
        if code == Code::Timeout {
            // It may be frozen, and another lead by now.
            self.route.avoid();
        }
        match code {
            Code::Version | Code::Invalid => REFUSED,
            Code::NotFound
            | Code::Unauthenticated
            | Code::Denied
            | Code::Conflict
            | Code::Exhausted
            | Code::Stale
            | Code::Unavailable
            | Code::Timeout
            | Code::Internal => backoff.next_wait(),
        }
    }

    async fn once(&mut self, backoff: &mut Backoff) -> End {
        match self.open().await {
            Ok(session) => {
                info!(session = %session.session_id, node = %session.node_id, "registered with the coordinator");
                backoff.reset();
                self.said.clear();
                self.metrics.connected(true);
                self.ready.send_replace(true);
                self.converse(session).await
            }
            Err(end) => end,
        }
    }

    /// Registers, with everything that this node holds, and takes the verdicts.
    async fn open(&mut self) -> Result<RegisterNodeResponse, End> {
        let context = self.hub.context();
        let draining = *self.draining.borrow_and_update();
        let mut facts = self.machine.facts(&context.config, &context.node_name, &self.sandbox, draining);
        if context.jail.knows_leases() {
            facts.capabilities.push(names::LEASE.to_owned());
        }
        let taken_at_us = clock::boot().as_micros() as u64;
        let request = RegisterNodeRequest {
            protocol: Spoken::OURS.newest,
            oldest_protocol: Spoken::OURS.oldest,
            boot_id: self.machine.boot_id.clone(),
            facts: Some(facts),
            inventory: self.hub.inventory(),
            seen: self.seen.point(),
            taken_at_us,
        };
        let mut client = context.rpc.client();
        let sent = clock::boot();
        let answer = tokio::time::timeout(REGISTER, client.register_node(request))
            .await
            .map_err(|_| Code::Timeout.status("the coordinator does not answer"))??
            .into_inner();
        let theirs = Spoken::new(answer.protocol, answer.oldest_protocol);
        if let Some(refusal) = Spoken::OURS.refusal("this agent", "the coordinator", theirs) {
            return Err(Code::Version.status(refusal).into());
        }
        self.seen.observe(answer.leader.as_ref())?;
        self.learn(&answer.endpoints);
        for verdict in &answer.verdicts {
            self.verdict(*verdict);
        }
        // Behind the verdicts: what another attempt has taken the place of gets no time from this.
        self.prolong(sent, answer.lease_ms);
        self.hub.handle(Input::SessionOpened);
        self.closed.send_replace(draining);
        context.rpc.set_session(Some(answer.session_id.clone()));
        Ok(answer)
    }

    /// Takes note of where the coordinators are reached, for the next start as well.
    fn learn(&self, endpoints: &[String]) {
        if !self.route.learn(endpoints) {
            return;
        }
        let endpoints = self.route.endpoints();
        info!(?endpoints, "coordinators");
        if let Err(error) = self.identity.keep_endpoints(&endpoints) {
            warn!(error = &error as &dyn std::error::Error, "cannot keep the coordinators' addresses");
        }
    }

    /// What lives on a lease lives on, from when the acknowledged word was sent.
    fn prolong(&self, sent: Duration, lease_ms: u32) {
        if lease_ms > 0 {
            self.hub.context().jail.prolong(sent + Duration::from_millis(lease_ms.into()));
        }
    }

    fn verdict(&self, verdict: v1::AttemptVerdict) {
        if let Ok(key) = AttemptKey::try_from(verdict.attempt) {
            debug!(attempt = %key, verdict = ?verdict.verdict(), "verdict");
            self.hub.handle(Input::Verdict(key, verdict.verdict()));
        }
    }

    /// Keeps the session until one of its parts ends.
    async fn converse(&mut self, session: RegisterNodeResponse) -> End {
        let window =
            if session.output_window_bytes == 0 { DEFAULT_WINDOW } else { session.output_window_bytes };
        let mut draining = self.draining.clone();
        tokio::select! {
            end = self.assignments(&session.session_id) => end,
            end = self.results(&session.session_id) => End::Rpc(end),
            end = spool::ship(&self.hub, &session.session_id, window.into()) => End::Rpc(end),
            end = self.heartbeats(&session) => end,
            Ok(()) = draining.changed() => End::Drain,
        }
    }

    async fn assignments(&self, session_id: &str) -> End {
        let request = v1::AssignTaskRequest { session_id: session_id.to_owned() };
        let mut client = self.hub.context().rpc.client();
        let mut stream = match client.assign_task(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status.into(),
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Code::Unavailable.status("the coordinator ended the assignments").into(),
                Err(status) => return status.into(),
            };
            if let Err(stale) = self.seen.observe(message.leader.as_ref()) {
                return stale.into();
            }
            self.metrics.assigned(message.assignments.len());
            for assignment in message.assignments {
                self.hub.handle(Input::Assigned(Arc::new(assignment)));
            }
            for key in message.withdrawals.into_iter().filter_map(|key| AttemptKey::try_from(key).ok()) {
                self.hub.handle(Input::Withdraw(key));
            }
            for cancel in message.cancels {
                if let Ok(key) = AttemptKey::try_from(cancel.attempt) {
                    info!(attempt = %key, reason = %names::escape(&cancel.reason), "cancel");
                    self.hub.handle(Input::Cancel(key));
                }
            }
            for verdict in message.verdicts {
                self.verdict(verdict);
            }
            if message.register_again {
                return End::Again;
            }
        }
    }

    /// Tells starts, progress and ends, and takes the acknowledgements.
    async fn results(&self, session_id: &str) -> Status {
        let (send, receive) = mpsc::channel(2);
        let hub = &self.hub;
        let tell = async {
            // The first message names the session; the coordinator answers the call once it has it.
            let mut first = true;
            loop {
                let events = hub.take_events(EVENTS);
                if events.is_empty() && !std::mem::take(&mut first) {
                    hub.results.notified().await;
                    if hub.is_busy() {
                        // More ends come at once: one message for several, and one commit.
                        tokio::time::sleep(LINGER).await;
                    }
                    continue;
                }
                let message = v1::TaskResultRequest { session_id: session_id.to_owned(), events };
                if send.send(message).await.is_err() {
                    // The other half says why.
                    std::future::pending::<()>().await;
                }
            }
        };
        let hear = async {
            let mut client = hub.context().rpc.client();
            let mut stream = client.task_result(ReceiverStream::new(receive)).await?.into_inner();
            while let Some(message) = stream.message().await? {
                for ack in message.acks {
                    let Ok(key) = AttemptKey::try_from(ack.attempt) else { continue };
                    match ack.kind() {
                        v1::AckKind::Unspecified => {}
                        v1::AckKind::Durable => {
                            hub.handle(Input::Ack { key, stale: false, ended: ack.ended });
                        }
                        v1::AckKind::Stale => hub.handle(Input::Ack { key, stale: true, ended: ack.ended }),
                    }
                }
            }
            Err::<(), Status>(Code::Unavailable.status("the coordinator ended the result stream"))
        };
        tokio::select! {
            () = tell => Code::Internal.status("the result stream ended"),
            heard = hear => heard.err().unwrap_or_else(|| Code::Internal.status("the result stream ended")),
        }
    }

    async fn heartbeats(&self, session: &RegisterNodeResponse) -> End {
        let interval = Duration::from_millis(session.heartbeat_interval_ms.max(50).into());
        let offline_after = Duration::from_millis(session.offline_after_ms.into());
        let patience = (interval * 2).max(HEARTBEAT.min(offline_after / 2));
        let offline_after = offline_after.max(patience);
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut load = Load::default();
        load.permille();
        let mut client = self.hub.context().rpc.client();
        let mut echo: Option<(u64, Instant)> = None;
        let mut answered = Instant::now();
        loop {
            tick.tick().await;
            let data_dir = &self.hub.context().config.data_dir;
            let (running, queued) = self.hub.counts();
            let request = HeartbeatRequest {
                session_id: session.session_id.clone(),
                load_permille: load.permille(),
                free_memory_bytes: facts::memory().free,
                free_disk_bytes: facts::disk(data_dir).free,
                running: running as u32,
                queued: queued as u32,
                echo_token: echo.map_or(0, |(token, _)| token),
                echo_held_us: echo.map_or(0, |(_, since)| since.elapsed().as_micros() as u64),
            };
            let sent = clock::boot();
            let late = |_| Code::Timeout.status("a heartbeat was not answered in time");
            let beat = tokio::time::timeout(patience, client.heartbeat(request)).await;
            match beat.map_err(late).and_then(|answer| answer) {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    answered = Instant::now();
                    echo = (answer.token != 0).then_some((answer.token, answered));
                    if let Err(stale) = self.seen.observe(answer.leader.as_ref()) {
                        return stale.into();
                    }
                    self.prolong(sent, answer.lease_ms);
                    self.seen.keep();
                    self.learn(&answer.endpoints);
                }
                // It says itself that it cannot serve now: the streams stay open meanwhile.
                Err(status) if is_busy(&status) && answered.elapsed() < offline_after => {
                    debug!(%status, "heartbeat not served");
                }
                Err(status) => return status.into(),
            }
        }
    }
}

/// Whether a coordinator that is alive and leads says that it cannot serve at the moment.
fn is_busy(status: &Status) -> bool {
    mesh_certs::leader_in(status).is_none()
        && status.metadata().get(mesh_proto::code::CODE_HEADER).is_some()
        && Code::of(status) == Code::Unavailable
}
