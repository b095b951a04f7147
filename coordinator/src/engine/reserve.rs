//! No starvation: a class that is passed over again and again, because smaller tasks keep
//! filling the room that it would need, gets a node set aside for it. That node gives nothing
//! to others until the class has had its turn there.

use mesh_proto::ids::NodeId;

use super::{
    effect::Effects,
    machine::Engine,
    placement::{ClassId, Offer, admits},
    types::Time,
};

/// How long a class may be passed over before a node is set aside, in milliseconds.
const PATIENCE_MS: u64 = 5_000;
/// Nodes that may be set aside at a time: at most one in so many, and at least one.
const SHARE: usize = 4;

impl Engine {
    /// Serves the classes that have a node set aside, and lets go of nodes that are not needed.
    pub(super) fn serve_reserved(&mut self, now: Time, fx: &mut Effects) {
        for (class, id) in self.reserved.clone() {
            let head = self.classes.head(class);
            let wanted = self.classes.requirements(class);
            let (Some(key), Some(wanted), Some(node)) = (head, wanted, self.nodes.get(&id)) else {
                self.unreserve(now, class);
                continue;
            };
            if !node.takes_work() || admits(&wanted, node).is_err() {
                self.unreserve(now, class);
                continue;
            }
            let share = node.share(&wanted.resources);
            if node.fits(&share) {
                self.unreserve(now, class);
                self.assign(now, key, id, share, Offer::Free, fx);
                self.classes.served(class);
            }
        }
    }

    /// A class found no room in a round in which later ones did.
    pub(super) fn passed_over(&mut self, now: Time, class: ClassId) {
        let since = self.classes.passed_over(class, now);
        let most = (self.nodes.len() / SHARE).max(1);
        if now.since(since) < PATIENCE_MS || self.reserved.contains_key(&class) || self.reserved.len() >= most
        {
            return;
        }
        let Some(wanted) = self.classes.requirements(class) else { return };
        // The node that has the most free of those that could hold it: it is there soonest.
        let best = self
            .nodes
            .values()
            .filter(|node| node.takes_work() && node.reserved.is_none() && admits(&wanted, node).is_ok())
            .min_by_key(|node| (node.used_permille(), node.record.id))
            .map(|node| node.record.id);
        if let Some(id) = best {
            self.reserve(now, class, id);
        }
    }

    fn reserve(&mut self, now: Time, class: ClassId, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.reserved = Some(class);
            self.reserved.insert(class, id);
            self.reindex(now, id);
        }
    }

    fn unreserve(&mut self, now: Time, class: ClassId) {
        let Some(id) = self.reserved.remove(&class) else { return };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.reserved = None;
        }
        self.reindex(now, id);
    }
}
