//! The sessions of nodes at a coordinator: they begin with a registration and end with their streams.

use std::collections::VecDeque;

use coordinator::engine::{effect::Ack, event::Event};
use mesh_proto::ids::{AttemptKey, NodeId, SessionId};

use crate::{
    network::{Down, Message, Order},
    world::World,
};

/// A session of a node.
#[derive(Debug)]
pub struct Entry {
    pub session: SessionId,
    pub commands: VecDeque<Order>,
    pub acks: VecDeque<(AttemptKey, Ack, bool)>,
    /// The connections of its streams, once they are there.
    pub assign: Option<u64>,
    pub results: Option<u64>,
    /// A message is being put together.
    pub speaking: bool,
    pub acking: bool,
}

impl World {
    /// Whatever session a node has here ends.
    pub fn close_session(&mut self, node: NodeId) {
        let entry = self.core_mut().and_then(|core| core.sessions.remove(&node));
        if let Some(entry) = entry {
            self.session_over(node, &entry);
        }
    }

    pub fn open_assign(&mut self, connection: u64, node: NodeId, session: SessionId) {
        let ready = self.ready();
        let entry = self.core_mut().and_then(|core| core.sessions.get_mut(&node));
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
    pub fn stream_closed(&mut self, connection: u64, node: NodeId, session: SessionId) {
        if let Some(core) = self.core_mut() {
            core.result_streams.remove(&session);
        }
        let opened = self
            .core()
            .and_then(|core| core.sessions.get(&node))
            .is_some_and(|entry| entry.session == session && entry.assign == Some(connection));
        if opened {
            self.end_session(node, session);
        }
    }

    pub fn server_disconnected(&mut self, connection: u64) {
        let Some(core) = self.core_mut() else { return };
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

    pub fn end_session(&mut self, node: NodeId, session: SessionId) {
        if !self.live(node, session) {
            return;
        }
        self.close_session(node);
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
    pub fn begin_session(&mut self, node: NodeId) -> SessionId {
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
        let old = self.core_mut().and_then(|core| core.sessions.insert(node, entry));
        if let Some(old) = old {
            self.session_over(node, &old);
        }
        session
    }
}
