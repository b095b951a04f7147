//! The coordinator's handlers, by the rules of `coordinator/src/session` and
//! `grpc/node.rs`: what they read from the database takes time and can fail, and meanwhile
//! other things happen.

use std::sync::Arc;

use bytes::Bytes;
use coordinator::{
    engine::{
        effect::{Ack, Reply, Verdict},
        event::{AttemptEnd, Event, Held, NodeRecord, Registration, ReplyId},
        types::Confined,
    },
    session::told_by_agent,
};
use mesh_proto::ids::{AttemptKey, BootId, NodeId, SessionId};
use mesh_proto::v1::{self, attempt_event};

use crate::{
    broken::Broken,
    invariant::Invariant,
    network::{Down, EngineVerdicts, Message, No, Order, Point, Registered, Up},
    plan::{MS, Micros},
    world::{Happening, World},
};

/// Wait before a passing failure of the store is tried again.
pub const RETRY: Micros = 200 * MS;

/// Who waits for a reply.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    Registration { connection: u64, call: u64, node: usize, session: SessionId },
    Client { client: usize, call: u64 },
    Operator { operation: usize, call: u64 },
    Redriver { redriver: usize, call: u64 },
}

/// A handler that goes on after it waited.
#[derive(Clone, Debug)]
pub enum Handler {
    /// The node's row was read.
    Register {
        connection: u64,
        call: u64,
        node: usize,
        boot: BootId,
        inventory: Vec<(AttemptKey, Held)>,
        taken: Micros,
    },
    /// The session began; its event goes to the engine.
    Enqueue { connection: u64, call: u64, node: usize, registration: Arc<Registration> },
    /// The verdicts were looked up.
    Verdicts { connection: u64, call: u64, node: usize, session: SessionId, verdicts: EngineVerdicts },
    /// Assignments were put together.
    Speak { node: NodeId, session: SessionId, orders: Vec<Order> },
    /// Acknowledgements were looked up.
    Acks { node: NodeId, session: SessionId, acks: Vec<(AttemptKey, Ack, bool)> },
    /// Output was written.
    Output { connection: u64, node: NodeId, session: SessionId, key: AttemptKey, length: u64 },
}

impl World {
    /// Whether agents are served: it leads, and is not halted.
    pub fn ready(&self) -> bool {
        let deaf = self.broken == Some(Broken::SpeaksHalted);
        self.core().is_some_and(|core| core.leading && (!core.halted || deaf))
    }

    pub fn standing(&self) -> Point {
        self.core().map_or_else(Point::default, |core| core.standing)
    }

    pub fn live(&self, node: NodeId, session: SessionId) -> bool {
        let sessions = self.core().map(|core| &core.sessions);
        sessions.and_then(|all| all.get(&node)).is_some_and(|entry| entry.session == session)
    }

    pub fn later(&mut self, wait: Micros, handler: Handler) {
        let Some(life) = self.core().map(|core| core.life) else { return };
        self.after(wait, Happening::Handle { life, handler });
    }

    /// A message of an agent arrived.
    pub fn take_up(&mut self, connection: u64, index: usize, up: Up) {
        let node = self.machines[index].id;
        match up {
            Up::Register { call, boot, inventory, seen, taken } => {
                if !self.ready() {
                    return self.refuse_registration(connection, call, No::Unavailable);
                }
                if self.is_ahead(seen) && self.checks_history() {
                    // Or another leads, and this one does not know it yet.
                    self.halt("an agent has seen later commits");
                    return self.refuse_registration(connection, call, No::Unavailable);
                }
                let wait = self.database_wait();
                let node = index;
                self.later(wait, Handler::Register { connection, call, node, boot, inventory, taken });
            }
            Up::Heartbeat { call, session } => {
                let checked = self.broken != Some(Broken::LeaseUnchecked);
                if !self.live(node, session) {
                    self.send(connection, Message::Down(Down::Beat { call, answer: Err(No::Stale) }));
                } else if !self.ready() || checked && !self.holds_lease() {
                    self.send(connection, Message::Down(Down::Beat { call, answer: Err(No::Unavailable) }));
                } else {
                    let event = Event::Heartbeat {
                        reply: None,
                        node,
                        session,
                        load_permille: 100,
                        rtt_us: Some(500),
                    };
                    self.enqueue(event, None);
                    let counts = self.core().is_some_and(|core| core.witness.knows(node, session));
                    let lease = if counts { self.lease() } else { 0 };
                    let answer = Ok((self.standing(), lease));
                    self.send(connection, Message::Down(Down::Beat { call, answer }));
                }
            }
            Up::OpenAssign { session } => self.open_assign(connection, node, session),
            Up::Dropped { session } => self.stream_closed(connection, node, session),
            Up::Results { session, events } => self.take_results(connection, node, session, events),
            Up::Output { session, key, length } => {
                if self.live(node, session) {
                    let wait = self.database_wait();
                    self.later(wait, Handler::Output { connection, node, session, key, length });
                }
            }
        }
    }

    /// The lease that an acknowledged word of a node brings: only of a leader whom nobody can have
    /// followed, for a follower counts the node's silence from its own start.
    fn lease(&mut self) -> Micros {
        if !self.holds_lease() && self.broken != Some(Broken::LeaseUnchecked) {
            return 0;
        }
        let epoch = self.core().map_or(0, |core| core.epoch);
        if epoch != self.database.epoch && !self.is_of_lost_history() {
            let why = format!("epoch {epoch} gives a lease in epoch {}", self.database.epoch);
            self.history.fail(self.now, Invariant::LeaseGivenByLeader, why);
        }
        self.plan.offline_after_ms * 3 / 4 * MS
    }

    fn refuse_registration(&mut self, connection: u64, call: u64, no: No) {
        self.send(connection, Message::Down(Down::Registered { call, answer: Err(no) }));
    }

    /// Words of an agent. Those of a session that is over may still be taken: they were there
    /// before its end was noticed.
    fn take_results(
        &mut self,
        connection: u64,
        node: NodeId,
        session: SessionId,
        events: Vec<v1::AttemptEvent>,
    ) {
        let live = self.live(node, session);
        let known = self.core().is_some_and(|core| core.result_streams.contains_key(&session));
        if !known {
            let entry = self.core_mut().and_then(|core| core.sessions.get_mut(&node));
            match entry.filter(|entry| live && entry.results.is_none()) {
                Some(entry) => entry.results = Some(connection),
                None => return self.send(connection, Message::Down(Down::ResultsEnded { session })),
            }
            if let Some(core) = self.core_mut() {
                core.result_streams.insert(session, connection);
            }
            self.speak_acks(node);
        } else if !live && !self.rng.chance(300) {
            if let Some(core) = self.core_mut() {
                core.result_streams.remove(&session);
            }
            return;
        }
        if self.broken == Some(Broken::AcksUncommitted) {
            let acks =
                events.iter().filter(|event| matches!(event.event, Some(attempt_event::Event::Ended(_))));
            let acks = acks.filter_map(|event| AttemptKey::try_from(event.attempt).ok());
            let acks = acks.map(|key| (key, v1::AckKind::Durable, true)).collect();
            self.send(connection, Message::Down(Down::Acks { session, acks }));
        }
        for event in events {
            if !self.ready() {
                if let Some(core) = self.core_mut() {
                    core.result_streams.remove(&session);
                }
                return self.send(connection, Message::Down(Down::ResultsEnded { session }));
            }
            if let Some(event) = word(node, event) {
                self.enqueue(event, None);
            }
        }
    }

    /// A handler goes on.
    pub fn handle(&mut self, life: u64, handler: Handler) {
        if self.core().is_none_or(|core| core.life != life) {
            return;
        }
        match handler {
            Handler::Register { connection, call, node, boot, inventory, taken } => {
                if self.read_fails() {
                    return self.refuse_registration(connection, call, No::Unavailable);
                }
                let id = self.machines[node].id;
                let Some(record) = self.database.nodes.get(&id).cloned() else { return };
                let newer = |&(last, at, came): &(BootId, Micros, u64)| {
                    if last == boot { at >= taken } else { came > connection }
                };
                if self.core().and_then(|core| core.newest.get(&id)).is_some_and(newer) {
                    self.history.note(self.now, "late registration refused", id);
                    return self.refuse_registration(connection, call, No::Stale);
                }
                if let Some(core) = self.core_mut() {
                    core.newest.insert(id, (boot, taken, connection));
                }
                let session = self.begin_session(id);
                let registration = Arc::new(self.registration(node, record, session, boot, inventory));
                let preempt = self.weather().preempt;
                let wait = if self.rng.chance(preempt) { self.rng.range(0, MS) } else { 0 };
                if wait > 0 {
                    self.later(wait, Handler::Enqueue { connection, call, node, registration });
                } else {
                    self.ask_registration(connection, call, node, registration);
                }
            }
            Handler::Enqueue { connection, call, node, registration } => {
                self.ask_registration(connection, call, node, registration);
            }
            Handler::Verdicts { connection, call, node, session, verdicts } => {
                self.answer_registration(connection, call, node, session, verdicts);
            }
            Handler::Speak { node, session, orders } => self.spoken(node, session, orders),
            Handler::Acks { node, session, acks } => self.acked(node, session, acks),
            Handler::Output { connection, node, session, key, length } => {
                if self.read_fails() {
                    return self.send(connection, Message::Down(Down::ResultsEnded { session }));
                }
                if !self.ready() {
                    return;
                }
                let discard = self.database.attempts.get(&key).is_none_or(|row| row.node != node);
                let durable = if discard { 0 } else { length };
                self.send(connection, Message::Down(Down::OutputAck { session, key, durable, discard }));
            }
        }
    }

    fn registration(
        &self,
        node: usize,
        record: NodeRecord,
        session: SessionId,
        boot: BootId,
        inventory: Vec<(AttemptKey, Held)>,
    ) -> Registration {
        Registration {
            node: record.id,
            session,
            boot,
            facts: self.plan.nodes[node].clone(),
            encoded_facts: Bytes::new(),
            inventory,
            record,
        }
    }

    fn ask_registration(&mut self, connection: u64, call: u64, node: usize, registration: Arc<Registration>) {
        if !self.ready() {
            return self.refuse_registration(connection, call, No::Unavailable);
        }
        let session = registration.session;
        let event = Event::NodeRegistered { reply: ReplyId(0), registration };
        self.enqueue(event, Some(Asker::Registration { connection, call, node, session }));
    }

    /// Looks up what the engine does not know, and answers.
    fn answer_registration(
        &mut self,
        connection: u64,
        call: u64,
        node: usize,
        session: SessionId,
        verdicts: EngineVerdicts,
    ) {
        if self.read_fails() || self.core().is_some_and(|core| core.halted) {
            return self.refuse_registration(connection, call, No::Unavailable);
        }
        let id = self.machines[node].id;
        let mut answers = Vec::new();
        for (key, verdict) in verdicts {
            let row = self.database.attempts.get(&key).filter(|row| row.node == id);
            let own = row.and_then(|row| row.ended.as_ref()).is_some_and(|(_, end)| told_by_agent(end.cause));
            let answer = match verdict {
                Verdict::Collect => v1::Verdict::Collect,
                Verdict::Keep if row.is_none_or(|row| row.ended.is_some()) => {
                    return self.refuse_registration(connection, call, No::Stale);
                }
                Verdict::Keep => v1::Verdict::Keep,
                Verdict::Unknown if own => v1::Verdict::Collect,
                Verdict::Unknown if self.broken == Some(Broken::KeepsReplaced) => v1::Verdict::Keep,
                Verdict::Unknown => {
                    self.history.note(self.now, "verdict: kill", key);
                    v1::Verdict::Kill
                }
            };
            answers.push((key, answer));
        }
        let lease = self.lease();
        let answer = Ok(Registered { session, verdicts: answers, leader: self.standing(), lease });
        self.send(connection, Message::Down(Down::Registered { call, answer }));
    }

    /// The engine's answer.
    pub fn answer(&mut self, asker: Asker, reply: Reply) {
        match asker {
            Asker::Registration { connection, call, node, session } => {
                let Reply::Registered { verdicts } = reply else { return };
                let wait = self.database_wait();
                self.later(wait, Handler::Verdicts { connection, call, node, session, verdicts });
            }
            Asker::Client { client, call } => self.client_answered(client, call, &reply),
            Asker::Operator { operation, call } => self.operator_answered(operation, call, &reply),
            Asker::Redriver { redriver, call } => self.redrive_answered(redriver, call, &reply),
        }
    }

    /// There is no answer: memory is read anew.
    pub fn answer_recovering(&mut self, asker: Asker) {
        match asker {
            Asker::Registration { connection, call, .. } => {
                self.refuse_registration(connection, call, No::Unavailable);
            }
            Asker::Client { client, call } => self.client_unavailable(client, call),
            Asker::Operator { operation, call } => self.operator_unavailable(operation, call),
            Asker::Redriver { redriver, call } => self.redrive_unavailable(redriver, call),
        }
    }
}

/// A word of an agent as an event.
fn word(node: NodeId, event: v1::AttemptEvent) -> Option<Event> {
    let attempt = AttemptKey::try_from(event.attempt).ok()?;
    match event.event? {
        attempt_event::Event::Started(started) => {
            let sandbox = Confined { level: started.sandbox(), limits: started.limits() };
            Some(Event::AttemptStarted { node, attempt, sandbox })
        }
        attempt_event::Event::Progress(_) => None,
        attempt_event::Event::Ended(ended) => {
            let cause = ended.cause();
            let end = AttemptEnd {
                exit_code: (cause == v1::Cause::Exit).then_some(ended.exit_code),
                signal: (cause == v1::Cause::Signal).then_some(ended.signal),
                started: ended.started_at_ms > 0,
                run_ms: ended.run_ms,
                output_length: ended.output_length,
                output: ended.output,
                ..AttemptEnd::declared(cause, ended.message)
            };
            Some(Event::AttemptEnded { node, attempt, end: Arc::new(end) })
        }
        attempt_event::Event::Withdrawn(_) => Some(Event::AttemptWithdrawn { node, attempt }),
    }
}
