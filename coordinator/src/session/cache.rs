//! A cache bounded by the weight of what it holds, not by its count: one job's array may weigh
//! what a thousand plain jobs do.

use std::{
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

/// What was used last stays, as long as all of it together weighs no more than `most`.
pub(super) struct Cache<K: Hash + Eq, V> {
    most: usize,
    state: Mutex<State<K, V>>,
}

struct State<K: Hash + Eq, V> {
    entries: LruCache<K, (usize, V)>,
    weight: usize,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// At most `most` bytes, about.
    pub fn new(most: usize) -> Self {
        Self { most, state: Mutex::new(State { entries: LruCache::unbounded(), weight: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &K) -> Option<V> {
        self.lock().entries.get(key).map(|(_, value)| value.clone())
    }

    #[cfg(test)]
    pub fn clear(&self) {
        let mut state = self.lock();
        state.entries.clear();
        state.weight = 0;
    }

    /// Keeps a value of this weight in bytes; one that is too heavy by itself is not kept.
    pub fn put(&self, key: K, value: V, weight: usize) {
        if weight > self.most {
            return;
        }
        let mut state = self.lock();
        state.weight += weight;
        if let Some((before, _)) = state.entries.put(key, (weight, value)) {
            state.weight -= before;
        }
        while state.weight > self.most {
            let Some((_, (lighter, _))) = state.entries.pop_lru() else { return };
            state.weight -= lighter;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_within_the_weight() {
        let cache = Cache::new(10);
        cache.put("a", 1, 4);
        cache.put("b", 2, 4);
        assert_eq!(cache.get(&"a"), Some(1));
        cache.put("c", 3, 4);
        assert_eq!((cache.get(&"a"), cache.get(&"b"), cache.get(&"c")), (Some(1), None, Some(3)));
        cache.put("c", 4, 6);
        assert_eq!((cache.get(&"a"), cache.get(&"c")), (Some(1), Some(4)), "a replaced value weighs once");
        cache.put("huge", 5, 11);
        assert_eq!((cache.get(&"huge"), cache.get(&"c")), (None, Some(4)), "one job does not push out all");
    }
}
