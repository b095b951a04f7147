//! The coordinator's handlers and sessions, by the rules of `coordinator/src/session` and
//! `grpc/node.rs`: what they read from the database takes time and can fail, and meanwhile
//! other things happen.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use coordinator::{
    engine::{
        effect::{Ack, Reply, Say, Verdict},
        event::{AttemptEnd, Event, Held, NodeRecord, Registration},
    },
    session::told_by_agent,
};
use mesh_proto::ids::{AttemptKey, BootId, NodeId, SessionId};
use mesh_proto::v1::{self, AckKind, attempt_event};

use crate::{
    broken::Broken,
    commit::Coordinator,
    database::is_final,
    network::{Down, EngineVerdicts, Message, No, Order, Point, Registered, Up},
    plan::{MS, Micros},
    world::{Happening, World},
};

/// Wait before a passing failure of the store is tried again.
const RETRY: Micros = 200 * MS;

/// A session of a node.
#[derive(Debug)]
pub struct Entry {
    session: SessionId,
    commands: VecDeque<Order>,
    acks: VecDeque<(AttemptKey, Ack, bool)>,
    /// The connections of its streams, once they are there.
    assign: Option<u64>,
    results: Option<u64>,
    /// A message is being put together.
    speaking: bool,
    acking: bool,
}

/// Who waits for a reply.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    Registration { connection: u64, call: u64, node: usize, session: SessionId },
    Client { client: usize, call: u64 },
    Operator { operation: usize, call: u64 },
}

/// A handler that goes on after it waited.
#[derive(Clone, Debug)]
pub enum Handler {
    /// The node's row was read.
    Register { connection: u64, call: u64, node: usize, boot: BootId, inventory: Vec<(AttemptKey, Held)> },
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
    fn core(&mut self) -> Option<&mut Coordinator> {
        self.coordinator.as_mut()
    }

    fn ready(&self) -> bool {
        self.coordinator.as_ref().is_some_and(|core| core.leading)
    }

    fn standing(&self) -> Point {
        self.coordinator.as_ref().map_or((0, 0), |core| core.standing)
    }

    fn live(&self, node: NodeId, session: SessionId) -> bool {
        let sessions = self.coordinator.as_ref().map(|core| &core.sessions);
        sessions.and_then(|all| all.get(&node)).is_some_and(|entry| entry.session == session)
    }

    fn later(&mut self, wait: Micros, handler: Handler) {
        let Some(life) = self.coordinator.as_ref().map(|core| core.life) else { return };
        self.after(wait, Happening::Handle { life, handler });
    }

    /// A message of an agent arrived.
    pub fn take_up(&mut self, connection: u64, index: usize, up: Up) {
        let node = self.machines[index].id;
        match up {
            Up::Register { call, boot, inventory, seen } => {
                if !self.ready() {
                    return self.refuse_registration(connection, call, No::Unavailable);
                }
                if seen > self.standing() {
                    let why = format!("node {index} has seen {seen:?}, beyond {:?}", self.standing());
                    return self.history.fail(self.now, why);
                }
                let wait = self.database_wait();
                self.later(wait, Handler::Register { connection, call, node: index, boot, inventory });
            }
            Up::Heartbeat { call, session } => {
                let answer = if !self.live(node, session) {
                    Err(No::Stale)
                } else if self.ready() {
                    let event = Event::Heartbeat {
                        reply: None,
                        node,
                        session,
                        load_permille: 100,
                        rtt_us: Some(500),
                    };
                    self.enqueue(event, None);
                    Ok(self.standing())
                } else {
                    Err(No::Unavailable)
                };
                self.send(connection, Message::Down(Down::Beat { call, answer }));
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

    fn refuse_registration(&mut self, connection: u64, call: u64, no: No) {
        self.send(connection, Message::Down(Down::Registered { call, answer: Err(no) }));
    }

    fn open_assign(&mut self, connection: u64, node: NodeId, session: SessionId) {
        let ready = self.ready();
        let entry = self.core().and_then(|core| core.sessions.get_mut(&node));
        let taken = entry.filter(|entry| entry.session == session && entry.assign.is_none());
        let Some(entry) = taken else {
            return self.send(connection, Message::Down(Down::AssignEnded { session }));
        };
        entry.assign = Some(connection);
        if !ready {
            return self.send(connection, Message::Down(Down::AssignEnded { session }));
        }
        self.enqueue(Event::SessionOpened { node, session }, None);
        self.speak(node);
    }

    /// The reader of a session's streams is gone.
    fn stream_closed(&mut self, connection: u64, node: NodeId, session: SessionId) {
        if let Some(core) = self.core() {
            core.result_streams.remove(&session);
        }
        let opened = self
            .coordinator
            .as_ref()
            .and_then(|core| core.sessions.get(&node))
            .is_some_and(|entry| entry.session == session && entry.assign == Some(connection));
        if opened {
            self.end_session(node, session);
        }
    }

    pub fn server_disconnected(&mut self, connection: u64) {
        let Some(core) = self.core() else { return };
        core.result_streams.retain(|_, of| *of != connection);
        let gone: Vec<(NodeId, SessionId)> = core
            .sessions
            .iter()
            .filter(|(_, entry)| entry.assign == Some(connection))
            .map(|(node, entry)| (*node, entry.session))
            .collect();
        for (node, session) in gone {
            self.end_session(node, session);
        }
    }

    fn end_session(&mut self, node: NodeId, session: SessionId) {
        if !self.live(node, session) {
            return;
        }
        let entry = self.core().and_then(|core| core.sessions.remove(&node));
        if let Some(entry) = entry {
            self.session_over(node, &entry);
        }
    }

    fn session_over(&mut self, node: NodeId, entry: &Entry) {
        let session = entry.session;
        if let Some(connection) = entry.assign {
            self.send(connection, Message::Down(Down::AssignEnded { session }));
            if self.ready() {
                self.enqueue(Event::SessionClosed { node, session }, None);
            }
        }
        if let Some(connection) = entry.results {
            self.send(connection, Message::Down(Down::ResultsEnded { session }));
        }
    }

    /// A node's session begins; its older one ends.
    fn begin_session(&mut self, node: NodeId) -> SessionId {
        let session = SessionId(uuid::Uuid::from_u128(u128::from(self.number())));
        let entry = Entry {
            session,
            commands: VecDeque::new(),
            acks: VecDeque::new(),
            assign: None,
            results: None,
            speaking: false,
            acking: false,
        };
        let old = self.core().and_then(|core| core.sessions.insert(node, entry));
        if let Some(old) = old {
            self.session_over(node, &old);
        }
        session
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
        let known = self.coordinator.as_ref().is_some_and(|core| core.result_streams.contains_key(&session));
        if !known {
            let entry = self.core().and_then(|core| core.sessions.get_mut(&node));
            match entry.filter(|entry| live && entry.results.is_none()) {
                Some(entry) => entry.results = Some(connection),
                None => return self.send(connection, Message::Down(Down::ResultsEnded { session })),
            }
            if let Some(core) = self.core() {
                core.result_streams.insert(session, connection);
            }
            self.speak_acks(node);
        } else if !live && !self.rng.chance(300) {
            if let Some(core) = self.core() {
                core.result_streams.remove(&session);
            }
            return;
        }
        for event in events {
            if !self.ready() {
                if let Some(core) = self.core() {
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
        if self.coordinator.as_ref().is_none_or(|core| core.life != life) {
            return;
        }
        match handler {
            Handler::Register { connection, call, node, boot, inventory } => {
                if self.read_fails() {
                    return self.refuse_registration(connection, call, No::Unavailable);
                }
                let id = self.machines[node].id;
                let Some(record) = self.database.nodes.get(&id).cloned() else { return };
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
        let event = Event::NodeRegistered { reply: coordinator::engine::event::ReplyId(0), registration };
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
        if self.read_fails() {
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
        let answer = Ok(Registered { session, verdicts: answers, leader: self.standing() });
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
        }
    }

    /// What the engine says to agents.
    pub fn say(&mut self, say: &Say) {
        match *say {
            Say::Dispatch { node, session, attempt } => {
                self.history.note(self.now, "dispatch", attempt);
                self.command(node, session, Order::Start(attempt));
            }
            Say::Cancel { node, session, attempt, .. } => {
                self.history.note(self.now, "cancel said", attempt);
                self.command(node, session, Order::Cancel(attempt));
            }
            Say::Withdraw { node, session, attempt } => {
                self.history.note(self.now, "withdrawal asked", attempt);
                if self.broken == Some(Broken::WithdrawsUnanswered) {
                    self.enqueue(Event::AttemptWithdrawn { node, attempt }, None);
                }
                self.command(node, session, Order::Withdraw(attempt));
            }
            Say::EndSession { node, session } => {
                self.history.note(self.now, "node offline", format_args!("{}", self.node_index(node)));
                self.end_session(node, session);
            }
            Say::Ack { node, attempt, ack, ended } => {
                if ack == Ack::Stale {
                    self.history.note(self.now, "stale word", attempt);
                }
                if let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) {
                    entry.acks.push_back((attempt, ack, ended));
                    self.speak_acks(node);
                }
            }
            Say::Reply(..)
            | Say::JobChanged(_)
            | Say::Ended { .. }
            | Say::Unplaced { .. }
            | Say::Placed { .. } => {}
        }
    }

    fn command(&mut self, node: NodeId, session: SessionId, order: Order) {
        let entry = self.core().and_then(|core| core.sessions.get_mut(&node));
        if let Some(entry) = entry.filter(|entry| entry.session == session) {
            entry.commands.push_back(order);
            self.speak(node);
        }
    }

    /// Every agent is asked to register again.
    pub fn register_again(&mut self) {
        let Some(core) = self.core() else { return };
        let nodes: Vec<NodeId> = core.sessions.keys().copied().collect();
        for node in nodes {
            if let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) {
                entry.commands.push_back(Order::RegisterAgain);
            }
            self.speak(node);
        }
    }

    /// Puts what waits for a session into a message, if nothing is being put together.
    pub fn speak(&mut self, node: NodeId) {
        let wait = self.database_wait();
        let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) else { return };
        if entry.speaking || entry.commands.is_empty() || entry.assign.is_none() {
            return;
        }
        entry.speaking = true;
        let orders: Vec<Order> = entry.commands.drain(..).collect();
        let session = entry.session;
        let reads = orders.iter().any(|order| matches!(order, Order::Start(_)));
        self.later(if reads { wait } else { 0 }, Handler::Speak { node, session, orders });
    }

    fn spoken(&mut self, node: NodeId, session: SessionId, orders: Vec<Order>) {
        let reads = orders.iter().any(|order| matches!(order, Order::Start(_)));
        if !self.live(node, session) {
            return;
        }
        if reads && self.read_fails() {
            return self.later(RETRY, Handler::Speak { node, session, orders });
        }
        let leader = self.standing();
        let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) else { return };
        entry.speaking = false;
        if let Some(connection) = entry.assign {
            self.send(connection, Message::Down(Down::Assign { session, orders, leader }));
        }
        self.speak(node);
    }

    fn speak_acks(&mut self, node: NodeId) {
        let wait = self.database_wait();
        let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) else { return };
        if entry.acking || entry.acks.is_empty() || entry.results.is_none() {
            return;
        }
        entry.acking = true;
        let acks: Vec<_> = entry.acks.drain(..).collect();
        let session = entry.session;
        let reads = acks.iter().any(|(_, ack, ended)| *ack == Ack::Stale && *ended);
        self.later(if reads { wait } else { 0 }, Handler::Acks { node, session, acks });
    }

    fn acked(&mut self, node: NodeId, session: SessionId, acks: Vec<(AttemptKey, Ack, bool)>) {
        if !self.live(node, session) {
            return;
        }
        let reads = acks.iter().any(|(_, ack, ended)| *ack == Ack::Stale && *ended);
        if reads && self.read_fails() {
            return self.later(RETRY, Handler::Acks { node, session, acks });
        }
        let mut said = Vec::new();
        for (key, ack, ended) in acks {
            let kind = match ack {
                Ack::Durable => AckKind::Durable,
                Ack::Stale if ended => self.settled(node, key),
                Ack::Stale => AckKind::Stale,
            };
            said.push((key, kind, ended));
        }
        let Some(entry) = self.core().and_then(|core| core.sessions.get_mut(&node)) else { return };
        entry.acking = false;
        if let Some(connection) = entry.results {
            self.send(connection, Message::Down(Down::Acks { session, acks: said }));
        }
        self.speak_acks(node);
    }

    /// An end for an attempt that the engine does not hold.
    fn settled(&self, node: NodeId, key: AttemptKey) -> AckKind {
        let row = self.database.attempts.get(&key).filter(|row| row.node == node);
        let own = row.and_then(|row| row.ended.as_ref()).is_some_and(|(_, end)| told_by_agent(end.cause));
        if own { AckKind::Durable } else { AckKind::Stale }
    }

    /// What is said is what is committed.
    pub fn check_say(&mut self, say: &Say) {
        let database = &self.database;
        let holds = match say {
            Say::Dispatch { node, attempt, .. } => {
                database.attempts.get(attempt).is_some_and(|row| row.node == *node)
            }
            Say::Ack { attempt, ack: Ack::Durable, ended, .. } => {
                let row = database.attempts.get(attempt);
                row.is_some_and(|row| row.ended.is_some() || !ended && row.started_at.is_some())
            }
            Say::Reply(_, Reply::Submitted { number, uuid, .. }) => {
                database.jobs.get(number).is_some_and(|job| job.new.uuid == *uuid)
            }
            Say::Reply(_, Reply::Cancelled { number, state }) => database
                .jobs
                .get(number)
                .is_some_and(|job| job.row.ending == Some(*state) || is_final(job.row.state)),
            // One of several views in a batch may be older than the row that landed.
            Say::JobChanged(view) => database
                .jobs
                .get(&view.row.number)
                .is_some_and(|job| view.row.finished_at.is_none() || job.row == view.row),
            Say::Cancel { .. }
            | Say::Withdraw { .. }
            | Say::EndSession { .. }
            | Say::Ack { ack: Ack::Stale, .. }
            | Say::Ended { .. }
            | Say::Unplaced { .. }
            | Say::Placed { .. }
            | Say::Reply(
                _,
                Reply::Registered { .. }
                | Reply::Heard { .. }
                | Reply::Node(_)
                | Reply::Nodes(_)
                | Reply::Explained(_)
                | Reply::Refused(_),
            ) => true,
        };
        if !holds {
            self.history.fail(self.now, format!("said, but not committed: {say:?}"));
        }
    }
}

/// A word of an agent as an event.
fn word(node: NodeId, event: v1::AttemptEvent) -> Option<Event> {
    let attempt = AttemptKey::try_from(event.attempt).ok()?;
    match event.event? {
        attempt_event::Event::Started(started) => {
            Some(Event::AttemptStarted { node, attempt, sandbox: started.sandbox() })
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
