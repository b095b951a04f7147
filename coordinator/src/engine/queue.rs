//! A node's short queue: what it was assigned beyond what is free, in the order in which its
//! agent will admit it, and how deep it may be.
//!
//! As many tasks as the node has slots may always wait there, as long as they are short. Very
//! short ones may be more: as many as the node ends in [`DEEP_MS`], so that one commit carries
//! many ends and many assignments. Such a queue is filled to its depth, left alone until half of
//! it is gone, and filled again.

use std::collections::VecDeque;

use mesh_proto::ids::TaskKey;

/// Time in which a node ends what waits in its queue beyond its slots, at the most; in
/// milliseconds. A task is moved to an idle node when it would wait longer than this, so a deep
/// queue by itself gives no cause to move anything.
pub const DEEP_MS: u64 = 50;
/// Tasks that may wait beyond the slots, whatever the time.
pub const DEEP: usize = 64;

/// The queue.
#[derive(Clone, Debug, Default)]
pub struct ShortQueue {
    /// Each with the time that it is expected to run, in milliseconds.
    tasks: VecDeque<(TaskKey, u64)>,
    expected_ms: u64,
    /// Half of its depth was gone and it has not been full since.
    refills: bool,
}

impl ShortQueue {
    /// Adds a task that is expected to run so long, in milliseconds; any counts at least 1.
    pub fn push(&mut self, key: TaskKey, expected_ms: u64) {
        let expected_ms = expected_ms.max(1);
        self.tasks.push_back((key, expected_ms));
        self.expected_ms += expected_ms;
    }

    pub fn remove(&mut self, key: TaskKey) {
        // It is nearly always the first.
        if let Some(place) = self.tasks.iter().position(|(queued, _)| *queued == key)
            && let Some((_, expected_ms)) = self.tasks.remove(place)
        {
            self.expected_ms -= expected_ms;
        }
    }

    pub fn clear(&mut self) {
        self.tasks.clear();
        self.expected_ms = 0;
    }

    #[must_use]
    pub fn first(&self) -> Option<TaskKey> {
        self.tasks.front().map(|(key, _)| *key)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The tasks, first to be admitted first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = TaskKey> + ExactSizeIterator + '_ {
        self.tasks.iter().map(|(key, _)| *key)
    }

    #[must_use]
    pub fn contains(&self, key: TaskKey) -> bool {
        self.iter().any(|queued| queued == key)
    }

    /// How long one slot would run all of it, in milliseconds.
    #[must_use]
    pub fn expected_ms(&self) -> u64 {
        self.expected_ms
    }

    /// Whether more than a place for each slot is to be filled now, at a node with so many.
    /// Looked at after each change, for it goes by what was before.
    pub fn refill(&mut self, slots: usize) {
        let (most, most_ms) = (slots + DEEP, slots as u64 * DEEP_MS);
        if self.tasks.len() * 2 <= most && self.expected_ms * 2 <= most_ms {
            self.refills = true;
        } else if self.tasks.len() >= most || self.expected_ms >= most_ms {
            self.refills = false;
        }
    }

    /// See [`Self::refill`].
    #[must_use]
    pub fn refills(&self) -> bool {
        self.refills
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::JobNumber;
    use proptest::prelude::*;

    use super::*;

    fn key(index: u32) -> TaskKey {
        TaskKey { job: JobNumber(1), task: 0, index }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Remove(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0_u64..40).prop_map(Step::Push),
            6 => any::<usize>().prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// What is pushed only while the queue refills never exceeds the depth by more than one
        /// task, in number and in time; and a queue that was full is left alone until half is gone.
        #[test]
        fn depth_is_bounded_in_number_and_time(slots in 1_usize..80, steps in proptest::collection::vec(steps(), 0..400)) {
            let mut queue = ShortQueue::default();
            let mut model: Vec<(TaskKey, u64)> = Vec::new();
            queue.refill(slots);
            let mut was_full = false;
            for (number, step) in (0_u32..).zip(steps) {
                match step {
                    Step::Push(expected) if queue.refills() => {
                        queue.push(key(number), expected);
                        model.push((key(number), expected.max(1)));
                    }
                    Step::Remove(pick) if !model.is_empty() => {
                        let (gone, _) = model.remove(pick % model.len());
                        queue.remove(gone);
                    }
                    Step::Push(_) | Step::Remove(_) => {}
                    Step::Clear => {
                        queue.clear();
                        model.clear();
                    }
                }
                queue.refill(slots);
                let expected: u64 = model.iter().map(|(_, expected)| expected).sum();
                prop_assert_eq!(queue.iter().collect::<Vec<_>>(), model.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                prop_assert_eq!((queue.len(), queue.expected_ms()), (model.len(), expected));
                prop_assert!(queue.len() <= slots + DEEP);
                let most_ms = slots as u64 * DEEP_MS;
                prop_assert!(queue.expected_ms() < most_ms + 40);
                let full = queue.len() >= slots + DEEP || expected >= most_ms;
                let half = queue.len() * 2 <= slots + DEEP && expected * 2 <= most_ms;
                was_full = (was_full || full) && !half;
                prop_assert!(!(was_full && queue.refills()), "it is left alone until half of it is gone");
                prop_assert!(!half || queue.refills());
            }
        }
    }
}
