//! What a coordinator says to agents, by the rules of `coordinator/src/session`: assignments and
//! acknowledgements wait for their look-ups, one message at a time for each session.

use coordinator::{
    engine::{
        effect::{Ack, Say},
        event::Event,
    },
    session::told_by_agent,
};
use mesh_proto::ids::{AttemptKey, NodeId, SessionId};
use mesh_proto::v1::AckKind;

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
        let Some(entry) = self.core_mut().and_then(|core| core.sessions.get_mut(&node)) else { return };
        entry.speaking = false;
        if let Some(connection) = entry.assign {
            self.send(connection, Message::Down(Down::Assign { session, orders, leader }));
        }
        self.speak(node);
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
