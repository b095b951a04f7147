//! Classes of like tasks and their queues. A round tries each class once, so its cost does
//! not grow with the number of tasks that wait.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::ids::JobNumber;

use super::super::types::Requirements;

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
}

#[derive(Clone, Debug)]
struct Class {
    requirements: Arc<Requirements>,
    members: u64,
    /// Definitions with something that waits for a node.
    waiting: BTreeSet<QueueKey>,
}

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
        self.by_id.insert(id, Class { requirements, members: 1, waiting: BTreeSet::new() });
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
