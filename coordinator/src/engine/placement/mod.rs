//! Where a task runs. See `README.md` beside this file.
//!
//! May enter: the filter, the order among nodes, and the queues of waiting tasks by class.
//! No job state: the machine says what waits and what was placed.

mod class;
mod filter;

pub use class::{ClassId, Classes, QueueKey};
pub use filter::{Unfit, admits};

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use mesh_proto::ids::NodeId;

use super::{
    node::Node,
    types::{Requirements, Resources},
};

/// Nodes by id, in a fixed order, so that equal histories decide alike.
pub type Nodes = BTreeMap<NodeId, Node>;

/// The nodes that one class may use during one round, emptiest first.
pub struct Candidates {
    heap: BinaryHeap<Reverse<(u64, NodeId)>>,
}

impl Candidates {
    /// Those of `open` (nodes that take work and have something free) that the filter admits.
    pub fn gather<'a>(open: impl Iterator<Item = &'a Node>, wanted: &Requirements) -> Self {
        let heap = open
            .filter(|node| node.takes_work() && admits(wanted, node).is_ok())
            .map(|node| Reverse((node.used_permille(), node.record.id)))
            .collect();
        Self { heap }
    }

    /// The emptiest node on which `wanted` fits now, and what it takes there. Nodes that are
    /// full leave the round: resources are only taken during one.
    pub fn choose(&mut self, nodes: &Nodes, wanted: &Resources) -> Option<(NodeId, Resources)> {
        while let Some(Reverse((key, id))) = self.heap.pop() {
            let Some(node) = nodes.get(&id) else { continue };
            let share = node.share(wanted);
            if !node.fits(&share) {
                continue;
            }
            if node.used_permille() != key {
                // Another class used it meanwhile: back to its place.
                self.heap.push(Reverse((node.used_permille(), id)));
                continue;
            }
            return Some((id, share));
        }
        None
    }

    /// Offers a node again after it was given a task.
    pub fn offer(&mut self, node: &Node) {
        self.heap.push(Reverse((node.used_permille(), node.record.id)));
    }
}
