//! What the engine of one term was told by the nodes, kept beside it, to judge what it concludes.

use std::collections::{BTreeMap, BTreeSet};

use coordinator::engine::{event::Registration, types::Time};
use mesh_proto::ids::{AttemptKey, BootId, NodeId, SessionId};

use crate::plan::Micros;

/// What a node told.
#[derive(Clone, Debug, Default)]
pub struct Contact {
    /// When it was heard last, or the term began.
    pub heard: Time,
    /// The end of the last silence that was long enough for `OFFLINE`.
    pub silent_until: Option<Micros>,
    pub boot: Option<BootId>,
    pub held: BTreeSet<AttemptKey>,
    session: Option<SessionId>,
}

/// What all of them told in one term.
#[derive(Debug, Default)]
pub struct Witness {
    contacts: BTreeMap<NodeId, Contact>,
    begun: Time,
}

impl Witness {
    /// Silence counts from the beginning of the term.
    #[must_use]
    pub fn new(begun: Time) -> Self {
        Self { contacts: BTreeMap::new(), begun }
    }

    #[must_use]
    pub fn of(&self, node: NodeId) -> Contact {
        self.contacts.get(&node).cloned().unwrap_or_else(|| self.stranger())
    }

    /// Whether a heartbeat of this session counts: the engine was told of it in this term.
    #[must_use]
    pub fn knows(&self, node: NodeId, session: SessionId) -> bool {
        self.contacts.get(&node).is_some_and(|contact| contact.session == Some(session))
    }

    fn stranger(&self) -> Contact {
        Contact { heard: self.begun, ..Contact::default() }
    }

    /// The engine takes in a word of a node; a heartbeat counts in the session that it knows.
    pub fn heard(
        &mut self,
        node: NodeId,
        beat: Option<SessionId>,
        time: Time,
        now: Micros,
        offline_after_ms: u64,
    ) {
        let stranger = self.stranger();
        let contact = self.contacts.entry(node).or_insert(stranger);
        if beat.is_some() && beat != contact.session {
            return;
        }
        if time.since(contact.heard) > offline_after_ms {
            contact.silent_until = Some(now);
        }
        contact.heard = time;
    }

    /// The engine takes in a registration: what the node truly holds.
    pub fn registered(&mut self, new: &Registration) {
        let stranger = self.stranger();
        let contact = self.contacts.entry(new.node).or_insert(stranger);
        contact.boot = Some(new.boot);
        contact.session = Some(new.session);
        contact.held = new.inventory.iter().map(|(key, _)| *key).collect();
    }
}
