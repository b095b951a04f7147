//! The nodes that can be given something, in the order of their scores. Kept up to date node
//! by node, so that a placement looks at few of them.

use std::collections::{BTreeSet, VecDeque};

use mesh_proto::ids::NodeId;

/// Changes of nodes that are remembered; who asks for older ones looks at all nodes.
const REMEMBERED: usize = 8192;

/// Where a node stands in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its score, when something of it is free.
    pub open: Option<u64>,
    /// Its queue's key, when its short queue has room.
    pub feeds: Option<u64>,
    /// How long its short queue lasts, in microseconds, when it is to be filled beyond its slots.
    pub deep: Option<u64>,
    /// The length of its short queue, when it has one.
    pub queued: Option<u64>,
}

/// The index.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Nodes with something free, best score first.
    pub open: BTreeSet<(u64, NodeId)>,
    /// Nodes whose short queue has room, shortest first.
    pub feeds: BTreeSet<(u64, NodeId)>,
    /// Nodes whose short queue is to be filled beyond their slots, the one that is over first at
    /// the head.
    pub deep: BTreeSet<(u64, NodeId)>,
    /// Nodes with a short queue, by its length.
    pub queued: BTreeSet<(u64, NodeId)>,
    /// Nodes that changed, oldest first, and the number of the first of them.
    changes: VecDeque<NodeId>,
    first: u64,
}

impl Index {
    /// Moves a node from one standing to another.
    pub fn shift(&mut self, id: NodeId, from: Standing, to: Standing) {
        shift(&mut self.open, id, from.open, to.open);
        shift(&mut self.feeds, id, from.feeds, to.feeds);
        shift(&mut self.deep, id, from.deep, to.deep);
        shift(&mut self.queued, id, from.queued, to.queued);
        if to.open.is_some() || to.feeds.is_some() || to.deep.is_some() {
            self.changes.push_back(id);
            if self.changes.len() > REMEMBERED {
                self.changes.pop_front();
                self.first += 1;
            }
        }
    }

    /// The number that the next change will have.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// The nodes that changed since `position`; none when that is too long ago to tell.
    #[must_use]
    pub fn changed_since(&self, position: u64) -> Option<BTreeSet<NodeId>> {
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        Some(self.changes.iter().skip(skip).copied().collect())
    }
}

fn shift(set: &mut BTreeSet<(u64, NodeId)>, id: NodeId, from: Option<u64>, to: Option<u64>) {
    if from == to {
        return;
    }
    if let Some(key) = from {
        set.remove(&(key, id));
    }
    if let Some(key) = to {
        set.insert((key, id));
    }
}
