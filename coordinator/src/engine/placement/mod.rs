//! Where a task runs. See `README.md` beside this file.
//!
//! May enter: the filter, the score, the index of nodes, and the queues of waiting tasks by
//! class. No job state: the machine says what waits and what was placed.

mod class;
mod explain;
mod filter;
mod index;
mod score;

pub use class::{ClassId, Classes, QueueKey, smooth};
pub use explain::{BEST, Candidate, Decision, Rejection, Survey, survey};
pub use filter::{Unfit, admits};
pub use index::{Index, Standing};
pub use score::{Coefficients, Terms};

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    ops::Bound,
};

use mesh_proto::ids::NodeId;

use super::{
    node::Node,
    types::{Requirements, Resources},
};

/// Nodes by id, in a fixed order, so that equal histories decide alike.
pub type Nodes = BTreeMap<NodeId, Node>;

/// What a round gives: something free, a place in a node's short queue, or one beyond the slots
/// in a queue that very short tasks make deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Free = 0,
    Queue = 1,
    Deep = 2,
}

impl Offer {
    fn key(self, node: &Node) -> Option<u64> {
        match self {
            Self::Free => node.standing.open,
            Self::Queue => node.standing.feeds,
            Self::Deep => node.standing.deep,
        }
    }

    fn order(self, index: &Index) -> &BTreeSet<(u64, NodeId)> {
        match self {
            Self::Free => &index.open,
            Self::Queue => &index.feeds,
            Self::Deep => &index.deep,
        }
    }
}

/// How far the order of nodes was walked.
#[derive(Clone, Copy, Debug)]
enum Walked {
    Nowhere,
    To((u64, NodeId)),
    ToTheEnd,
}

/// The nodes that one class may use during one round, best first. Each node is looked at once:
/// the order is walked as far as it is needed, and what was found stays at hand.
#[derive(Debug)]
pub struct Candidates {
    offer: Offer,
    found: BinaryHeap<Reverse<(u64, NodeId)>>,
    walked: Walked,
    looked: bool,
}

impl Candidates {
    /// All nodes that offer something.
    #[must_use]
    pub fn all(offer: Offer) -> Self {
        Self { offer, found: BinaryHeap::new(), walked: Walked::Nowhere, looked: true }
    }

    /// Only these nodes: the others were looked at before and have not changed since.
    #[must_use]
    pub fn among(
        offer: Offer,
        ids: impl IntoIterator<Item = NodeId>,
        nodes: &Nodes,
        wanted: &Requirements,
    ) -> Self {
        let mut looked = false;
        let found = ids
            .into_iter()
            .filter_map(|id| {
                looked = true;
                let node = nodes.get(&id)?;
                let key = offer.key(node)?;
                admits(wanted, node).is_ok().then_some(Reverse((key, id)))
            })
            .collect();
        Self { offer, found, walked: Walked::ToTheEnd, looked }
    }

    /// The best node that takes a task with these requirements now, and what it takes there.
    pub fn choose(
        &mut self,
        index: &Index,
        nodes: &Nodes,
        wanted: &Requirements,
    ) -> Option<(NodeId, Resources)> {
        loop {
            self.walk(index, nodes, wanted);
            let Reverse((key, id)) = self.found.pop()?;
            let Some(node) = nodes.get(&id) else { continue };
            match self.offer.key(node) {
                // Nothing left there.
                None => {}
                // It was used meanwhile: back to its place.
                Some(now) if now != key => self.found.push(Reverse((now, id))),
                Some(_) => {
                    let share = node.share(&wanted.resources);
                    if self.offer != Offer::Free || node.fits(&share) {
                        return Some((id, share));
                    }
                }
            }
        }
    }

    /// Whether any node was worth a look.
    #[must_use]
    pub fn looked(&self) -> bool {
        self.looked
    }

    /// Offers a node again after it was given a task.
    pub fn offer(&mut self, node: &Node) {
        if let Some(key) = self.offer.key(node) {
            self.found.push(Reverse((key, node.record.id)));
        }
    }

    /// Walks the order until its next node is no better than the best one at hand.
    fn walk(&mut self, index: &Index, nodes: &Nodes, wanted: &Requirements) {
        loop {
            let from = match self.walked {
                Walked::Nowhere => Bound::Unbounded,
                Walked::To(past) => Bound::Excluded(past),
                Walked::ToTheEnd => return,
            };
            let next = self.offer.order(index).range((from, Bound::Unbounded)).next().copied();
            let Some((key, id)) = next else {
                self.walked = Walked::ToTheEnd;
                return;
            };
            if self.found.peek().is_some_and(|Reverse(best)| *best <= (key, id)) {
                return;
            }
            self.walked = Walked::To((key, id));
            if nodes.get(&id).is_some_and(|node| admits(wanted, node).is_ok()) {
                self.found.push(Reverse((key, id)));
            }
        }
    }
}
