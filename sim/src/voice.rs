//! What a coordinator says to agents, by the rules of `coordinator/src/session`: assignments and
//! acknowledgements wait for their look-ups, one message at a time for each session.

use std::sync::Arc;

use coordinator::{
    engine::{
        effect::{Ack, Say},
        event::Event,
    },
    session::told_by_agent,
};
use mesh_proto::ids::{AttemptKey, NodeId, SessionId};
use mesh_proto::v1::{self, AckKind};

use crate::{
    broken::Broken,
    edge::{Handler, RETRY},
    network::{Down, Message, Order},
    world::World,
};

impl World {
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
                if let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) {
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
        let entry = self.core_mut().and_then(|core| core.sessions.get_mut(&node));
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
            if let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) {
                entry.commands.push_back(Order::RegisterAgain);
            }
            self.speak(node);
        }
    }

    /// Puts what waits for a session into a message, if nothing is being put together.
    pub fn speak(&mut self, node: NodeId) {
        let wait = self.database_wait();
        let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) else { return };
        if entry.speaking || entry.commands.is_empty() || entry.assign.is_none() {
            return;
        }
        entry.speaking = true;
        let orders: Vec<Order> = entry.commands.drain(..).collect();
        let session = entry.session;
        let reads = orders.iter().any(|order| matches!(order, Order::Start(_)));
        self.later(if reads { wait } else { 0 }, Handler::Speak { node, session, orders });
    }

    pub fn spoken(&mut self, node: NodeId, session: SessionId, orders: Vec<Order>) {
        let reads = orders.iter().any(|order| matches!(order, Order::Start(_)));
        if !self.live(node, session) {
            return;
        }
        if reads && self.read_fails() {
            return self.later(RETRY, Handler::Speak { node, session, orders });
        }
        let leader = self.standing();
        let mut said = Vec::new();
        for order in orders {
            match order {
                Order::Start(key) => said.extend(self.assignment(key).map(Order::Run)),
                Order::Run(_) | Order::Cancel(_) | Order::Withdraw(_) | Order::RegisterAgain => {
                    said.push(order);
                }
            }
        }
        let loses = self.broken == Some(Broken::LosesAssignments) && self.rng.chance(100);
        if self.broken == Some(Broken::SendsElsewhere) {
            let other = self.machines[(self.node_index(node) + 1) % self.machines.len()].id;
            let entry = self.core().and_then(|core| core.sessions.get(&other));
            if let Some((session, connection)) = entry.and_then(|entry| Some((entry.session, entry.assign?)))
            {
                let orders = said.clone();
                self.send(connection, Message::Down(Down::Assign { session, orders, leader }));
            }
        }
        let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) else { return };
        entry.speaking = false;
        if let Some(connection) = entry.assign.filter(|_| !loses) {
            self.send(connection, Message::Down(Down::Assign { session, orders: said, leader }));
        }
        self.speak(node);
    }

    /// An attempt in words; none when its job is not there any more.
    fn assignment(&self, key: AttemptKey) -> Option<Arc<v1::Assignment>> {
        let job = self.database.jobs.get(&key.task.job)?;
        let wanted = job.new.tasks.get(key.task.task as usize)?.requirements.resources.clone();
        let planned = (job.new.uuid.0.as_u128() >> 64) as usize;
        let behaviour = self.plan.jobs.get(planned)?.behaviours.get(key.task.task as usize)?;
        let on_disconnect = if behaviour.leased { v1::OnDisconnect::Kill } else { v1::OnDisconnect::Keep };
        Some(Arc::new(v1::Assignment {
            attempt: Some(key.into()),
            job_name: planned.to_string(),
            resources: Some(v1::Resources {
                cpu_millis: wanted.cpu_millis as u32,
                memory_bytes: wanted.memory,
                named: wanted.named.into_iter().collect(),
                ..v1::Resources::default()
            }),
            grace_ms: behaviour.grace_ms,
            on_disconnect: on_disconnect.into(),
            ..v1::Assignment::default()
        }))
    }

    pub fn speak_acks(&mut self, node: NodeId) {
        let wait = self.database_wait();
        let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) else { return };
        if entry.acking || entry.acks.is_empty() || entry.results.is_none() {
            return;
        }
        entry.acking = true;
        let acks: Vec<_> = entry.acks.drain(..).collect();
        let session = entry.session;
        let reads = acks.iter().any(|(_, ack, ended)| *ack == Ack::Stale && *ended);
        self.later(if reads { wait } else { 0 }, Handler::Acks { node, session, acks });
    }

    pub fn acked(&mut self, node: NodeId, session: SessionId, acks: Vec<(AttemptKey, Ack, bool)>) {
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
        let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) else { return };
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
}
