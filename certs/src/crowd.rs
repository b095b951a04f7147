//! A bounded number of places. When all are taken, whoever holds the most loses its oldest one
//! to the newcomer: a stranger who opens thousands of connections crowds out only itself.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The places. Parties are told apart by `K`; `H` is what ends the holder of a place.
pub(crate) struct Crowd<K, H> {
    inner: Arc<Mutex<Inner<K, H>>>,
}

struct Inner<K, H> {
    size: usize,
    next: u64,
    /// By age.
    places: BTreeMap<u64, (K, H)>,
    counts: HashMap<K, usize>,
}

impl<K, H> Crowd<K, H>
where
    K: Clone + Eq + Hash + Send + 'static,
    H: Send + 'static,
{
    pub(crate) fn new(size: usize) -> Self {
        let inner = Inner { size: size.max(1), next: 0, places: BTreeMap::new(), counts: HashMap::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Takes a place for `party`. `start` gets it, to hold while it lasts, and must neither drop
    /// it nor block. Returns what had to give way; the caller ends it.
    pub(crate) fn enter(&self, party: K, start: impl FnOnce(Place) -> H) -> Option<H> {
        let mut inner = self.lock();
        let evicted = if inner.places.len() >= inner.size { inner.evict() } else { None };
        let id = inner.next;
        inner.next += 1;
        let crowd = Self { inner: Arc::clone(&self.inner) };
        // A holder that ends at once frees its place only after this lock is let go.
        let holder = start(Place { leave: Some(Box::new(move || drop(crowd.lock().remove(id)))) });
        *inner.counts.entry(party.clone()).or_default() += 1;
        inner.places.insert(id, (party, holder));
        evicted
    }

    /// Frees one place, as for a newcomer. The caller ends its holder.
    pub(crate) fn evict(&self) -> Option<H> {
        self.lock().evict()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, H>> {
        // Nothing under this lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash, H> Inner<K, H> {
    fn evict(&mut self) -> Option<H> {
        let most = *self.counts.values().max()?;
        let (id, _) = self.places.iter().find(|(_, (party, _))| self.counts.get(party) == Some(&most))?;
        self.remove(*id)
    }

    fn remove(&mut self, id: u64) -> Option<H> {
        let (party, holder) = self.places.remove(&id)?;
        if let Some(count) = self.counts.get_mut(&party) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&party);
            }
        }
        Some(holder)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Enters and keeps the place; returns who gave way.
    fn enter(
        crowd: &Crowd<&'static str, &'static str>,
        kept: &mut Vec<Place>,
        party: &'static str,
        name: &'static str,
    ) -> Option<&'static str> {
        crowd.enter(party, |place| {
            kept.push(place);
            name
        })
    }

    #[test]
    fn a_flood_crowds_out_itself_alone() {
        let crowd = Crowd::new(3);
        let mut kept = Vec::new();
        assert_eq!(enter(&crowd, &mut kept, "legit", "first"), None);
        assert_eq!(enter(&crowd, &mut kept, "flood", "f1"), None);
        assert_eq!(enter(&crowd, &mut kept, "flood", "f2"), None);
        assert_eq!(enter(&crowd, &mut kept, "flood", "f3"), Some("f1"));
        assert_eq!(enter(&crowd, &mut kept, "other", "second"), Some("f2"));
        assert_eq!(crowd.lock().places.len(), 3);
    }

    #[test]
    fn a_place_that_was_left_is_free_and_an_evicted_holder_frees_nothing_twice() {
        let crowd = Crowd::new(2);
        let mut kept = Vec::new();
        enter(&crowd, &mut kept, "a", "a1");
        enter(&crowd, &mut kept, "a", "a2");
        kept.pop();
        assert_eq!(enter(&crowd, &mut kept, "b", "b1"), None);
        assert_eq!(enter(&crowd, &mut kept, "b", "b2"), Some("a1"));
        // The place of `a1`, which gave way, is dropped only now.
        kept.remove(0);
        assert_eq!(crowd.lock().places.len(), 2);
        drop(kept);
        assert!(crowd.lock().places.is_empty() && crowd.lock().counts.is_empty());
    }
}
