//! Classes of like tasks and their queues. A round tries each class once, so its cost does
//! not grow with the number of tasks that wait.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use mesh_proto::ids::{JobNumber, NodeId};

use super::{
    super::types::{Requirements, Time},
    Index, Nodes, Offer, admits,
};

/// Names a class while it has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u64);

/// The order in which definitions are served: priority, then age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueKey {
    priority: Reverse<u8>,
    pub job: JobNumber,
    pub task: u32,
}

impl QueueKey {
    #[must_use]
    pub fn new(priority: u8, job: JobNumber, task: u32) -> Self {
        Self { priority: Reverse(priority), job, task }
    }

    #[must_use]
    pub fn priority(&self) -> u8 {
        self.priority.0
    }
}

#[derive(Clone, Debug)]
struct Class {
    requirements: Arc<Requirements>,
    members: u64,
    /// Definitions with something that waits for a node.
    waiting: BTreeSet<QueueKey>,
    /// When no node was left for it, by offer: the index's position then. Only nodes that
    /// changed since need a look.
    exhausted: [Option<u64>; 3],
    /// The nodes that the filter admits, when they are few, and the facts that this is true of.
    few: Option<(u64, Option<Arc<Vec<NodeId>>>)>,
    /// How many nodes the filter keeps out, by reason, and the facts that this is true of.
    rejected: Option<(u64, Reasons)>,
    /// The latest record of a decision.
    decided: Option<(Time, u64)>,
    /// Since when later ones were served while it found no room.
    passed_over: Option<Time>,
    /// How long its tasks run, smoothed, in milliseconds; none before the first ended.
    run_ms: Option<u64>,
}

/// A class is remembered with its nodes when they are at most one in so many.
const SELECTIVE: usize = 16;

/// How long the record of a decision stands for those that follow, in milliseconds.
const RECORD_MS: u64 = 100;

/// An average in which the newest counts a quarter.
#[must_use]
pub fn smooth(old: Option<u64>, new: u64) -> u64 {
    old.map_or(new, |old| (old * 3 + new) / 4)
}

/// How many nodes are out of the question, by the reason's kind.
pub type Reasons = Arc<Vec<(&'static str, u32)>>;

/// All classes that have members.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    next: u64,
    by_id: BTreeMap<ClassId, Class>,
    by_requirements: BTreeMap<Arc<Requirements>, ClassId>,
    /// Classes with a queue, by its head.
    heads: BTreeSet<(QueueKey, ClassId)>,
}

impl Classes {
    /// Joins the class with these requirements.
    pub fn join(&mut self, requirements: &Requirements) -> ClassId {
        if let Some(id) = self.by_requirements.get(requirements)
            && let Some(class) = self.by_id.get_mut(id)
        {
            class.members += 1;
            return *id;
        }
        let id = ClassId(self.next);
        self.next += 1;
        let requirements = Arc::new(requirements.clone());
        self.by_requirements.insert(Arc::clone(&requirements), id);
        self.by_id.insert(
            id,
            Class {
                requirements,
                members: 1,
                waiting: BTreeSet::new(),
                exhausted: [None; 3],
                few: None,
                rejected: None,
                decided: None,
                passed_over: None,
                run_ms: None,
            },
        );
        id
    }

    /// Leaves a class; the last one out ends it.
    pub fn leave(&mut self, id: ClassId, key: QueueKey) {
        self.set_waiting(id, key, false);
        let Some(class) = self.by_id.get_mut(&id) else { return };
        class.members -= 1;
        if class.members == 0 {
            self.by_requirements.remove(&class.requirements);
            self.by_id.remove(&id);
        }
    }

    /// Says whether a definition has something that waits for a node.
    pub fn set_waiting(&mut self, id: ClassId, key: QueueKey, waits: bool) {
        let Some(class) = self.by_id.get_mut(&id) else { return };
        let before = class.waiting.first().copied();
        let changed = if waits { class.waiting.insert(key) } else { class.waiting.remove(&key) };
        let after = class.waiting.first().copied();
        if changed && before != after {
            if let Some(head) = before {
                self.heads.remove(&(head, id));
            }
            if let Some(head) = after {
                self.heads.insert((head, id));
            }
        }
    }

    /// The nodes worth a look for a class; none: all of them. A class that few nodes suit
    /// remembers them; one that found nothing before looks only at what changed since.
    pub fn worth_a_look(
        &mut self,
        id: ClassId,
        offer: Offer,
        index: &Index,
        nodes: &Nodes,
        facts: u64,
    ) -> Option<Vec<NodeId>> {
        let class = self.by_id.get_mut(&id)?;
        if let Some(changed) = class.exhausted[offer as usize].and_then(|at| index.changed_since(at)) {
            return Some(changed.into_iter().collect());
        }
        if class.few.as_ref().is_none_or(|(of, _)| *of != facts) {
            let most = nodes.len() / SELECTIVE;
            let admitted = nodes.values().filter(|node| admits(&class.requirements, node).is_ok());
            let few: Vec<NodeId> = admitted.map(|node| node.record.id).take(most + 1).collect();
            class.few = Some((facts, (few.len() <= most).then(|| Arc::new(few))));
        }
        class.few.as_ref()?.1.as_ref().map(|few| few.to_vec())
    }

    /// Notes that a round left nothing for a class at this position of the index.
    pub fn exhaust(&mut self, id: ClassId, offer: Offer, position: u64) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.exhausted[offer as usize] = Some(position);
        }
    }

    /// Notes that a class found no room while later ones did, and says since when that is so.
    pub fn passed_over(&mut self, id: ClassId, now: Time) -> Time {
        self.by_id.get_mut(&id).map_or(now, |class| *class.passed_over.get_or_insert(now))
    }

    /// Notes that a class was given room.
    pub fn served(&mut self, id: ClassId) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.passed_over = None;
        }
    }

    /// How many nodes the filter keeps out of a class, by reason.
    pub fn rejected(&mut self, id: ClassId, nodes: &Nodes, facts: u64) -> Reasons {
        let Some(class) = self.by_id.get_mut(&id) else { return Arc::default() };
        if let Some((of, rejected)) = &class.rejected
            && *of == facts
        {
            return Arc::clone(rejected);
        }
        let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
        for node in nodes.values() {
            if let Err(unfit) = admits(&class.requirements, node) {
                *counts.entry(unfit.kind()).or_default() += 1;
            }
        }
        let rejected = Arc::new(counts.into_iter().collect::<Vec<_>>());
        class.rejected = Some((facts, Arc::clone(&rejected)));
        rejected
    }

    /// Whether the filter admits any node.
    pub fn suits_any(&mut self, id: ClassId, nodes: &Nodes, facts: u64) -> bool {
        let out: u32 = self.rejected(id, nodes, facts).iter().map(|(_, count)| count).sum();
        (out as usize) < nodes.len()
    }

    /// The record of a decision that is still true enough.
    #[must_use]
    pub fn decided(&self, id: ClassId, now: Time) -> Option<u64> {
        let (at, decision) = self.by_id.get(&id)?.decided?;
        (now.since(at) < RECORD_MS).then_some(decision)
    }

    pub fn decide(&mut self, id: ClassId, now: Time, decision: u64) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.decided = Some((now, decision));
        }
    }

    /// Notes how long a task of a class ran.
    pub fn ran(&mut self, id: ClassId, run_ms: u64) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.run_ms = Some(smooth(class.run_ms, run_ms));
        }
    }

    /// How long tasks of a class run, in milliseconds.
    #[must_use]
    pub fn run_ms(&self, id: ClassId) -> Option<u64> {
        self.by_id.get(&id)?.run_ms
    }

    /// The definition of a class that waits behind `key`.
    #[must_use]
    pub fn after(&self, id: ClassId, key: QueueKey) -> Option<QueueKey> {
        self.by_id.get(&id)?.waiting.range((Bound::Excluded(key), Bound::Unbounded)).next().copied()
    }

    /// Definitions of a class that wait, and those of all classes that are served before `key`.
    #[must_use]
    pub fn ahead(&self, key: QueueKey) -> usize {
        self.by_id.values().map(|class| class.waiting.range(..key).count()).sum()
    }

    #[must_use]
    pub fn requirements(&self, id: ClassId) -> Option<Arc<Requirements>> {
        self.by_id.get(&id).map(|class| Arc::clone(&class.requirements))
    }

    /// The classes with a queue, in the order of their heads.
    #[must_use]
    pub fn heads(&self) -> BTreeSet<(QueueKey, ClassId)> {
        self.heads.clone()
    }

    /// The first waiting definition of a class.
    #[must_use]
    pub fn head(&self, id: ClassId) -> Option<QueueKey> {
        self.by_id.get(&id)?.waiting.first().copied()
    }

    /// Whether a definition is known to have something that waits.
    #[must_use]
    pub fn waits(&self, id: ClassId, key: QueueKey) -> bool {
        self.by_id.get(&id).is_some_and(|class| class.waiting.contains(&key))
    }

    /// Definitions that joined and did not leave; as many as there are queues to lead.
    #[must_use]
    pub fn members(&self) -> u64 {
        self.by_id.values().map(|class| class.members).sum()
    }

    #[must_use]
    pub fn nothing_waits(&self) -> bool {
        self.heads.is_empty()
    }
}
