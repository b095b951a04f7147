//! A bounded number of places. When all are taken, whoever holds the most loses its oldest one
//! to the newcomer: a stranger who opens thousands of connections crowds out only itself.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ends what holds a place.
type End = Box<dyn FnOnce() + Send>;

/// The places, shared by those who hold one. Parties are told apart by `K`.
pub(crate) struct Crowd<K> {
    inner: Arc<Mutex<Inner<K>>>,
}

struct Inner<K> {
    size: usize,
    next: u64,
    /// By age.
    places: BTreeMap<u64, (K, End)>,
    counts: HashMap<K, usize>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Crowd<K> {
    pub(crate) fn new(size: usize) -> Self {
        let inner = Inner { size: size.max(1), next: 0, places: BTreeMap::new(), counts: HashMap::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Takes a place for `party`. `start` gets it, to hold while it lasts, and gives back how to
    /// end the holder. Returns whose place was taken for it, if one was.
    pub(crate) fn enter(&self, party: K, start: impl FnOnce(Place) -> End) -> Option<K> {
        let mut inner = lock(&self.inner);
        let loser = if inner.places.len() >= inner.size { inner.oldest_of_largest() } else { None };
        let evicted = loser.and_then(|id| inner.remove(id));
        let id = inner.next;
        inner.next += 1;
        let shared = Arc::clone(&self.inner);
        // The holder may end at once: its place is freed only after this lock is let go.
        let end = start(Place { leave: Some(Box::new(move || drop(lock(&shared).remove(id)))) });
        *inner.counts.entry(party.clone()).or_default() += 1;
        inner.places.insert(id, (party, end));
        drop(inner);
        let (party, end) = evicted?;
        end();
        Some(party)
    }

    /// Ends one holder, as for a newcomer, to free what it holds.
    pub(crate) fn evict(&self) -> Option<K> {
        let mut inner = lock(&self.inner);
        let id = inner.oldest_of_largest()?;
        let (party, end) = inner.remove(id)?;
        drop(inner);
        end();
        Some(party)
    }

    /// Ends all.
    pub(crate) fn clear(&self) {
        while self.evict().is_some() {}
    }
}

impl<K> Clone for Crowd<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    fn oldest_of_largest(&self) -> Option<u64> {
        let most = *self.counts.values().max()?;
        self.places.iter().find(|(_, (party, _))| self.counts.get(party) == Some(&most)).map(|(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<(K, End)> {
        let (party, end) = self.places.remove(&id)?;
        if let Some(count) = self.counts.get_mut(&party) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&party);
            }
        }
        Some((party, end))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under this lock can leave it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while a place is taken; dropping it frees the place.
pub(crate) struct Place {
    leave: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}
