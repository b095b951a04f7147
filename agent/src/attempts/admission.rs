//! Which of the waiting attempts may start: in order of arrival, as far as the resources reach,
//! counted as the coordinator counts them: processors, memory, named resources. A slot is the
//! place of one running attempt, with a user of its own; small attempts may be more than the
//! node's slots. The head is passed over by smaller attempts only a bounded number of times, so that a
//! large one gets its turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_proto::ids::AttemptKey;

/// Places of running attempts, and so users of their own, that are ever used.
pub const MAX_RUNNING: u32 = 4096;
/// How often in a row others may start before an attempt that stands at the head.
const MAX_PASSES: u32 = 16;

/// What all running attempts together may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Attempts of the ordinary size (one core, the memory's share) at a time.
    pub slots: u32,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub named: BTreeMap<String, u64>,
}

/// What one attempt uses while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub named: BTreeMap<String, u64>,
}

/// The queue before the slots.
#[derive(Debug)]
pub struct Admission {
    capacity: Capacity,
    free: BTreeSet<u32>,
    running: BTreeMap<AttemptKey, (u32, Need)>,
    /// What those that run use of the processors, in thousandths.
    busy_millis: u64,
    waiting: VecDeque<(AttemptKey, Need)>,
    passes: u32,
}

impl Admission {
    pub fn new(capacity: Capacity) -> Self {
        let free = (0..MAX_RUNNING).collect();
        Self { capacity, free, running: BTreeMap::new(), busy_millis: 0, waiting: VecDeque::new(), passes: 0 }
    }

    /// Puts an attempt at the end of the queue.
    pub fn queue(&mut self, key: AttemptKey, need: Need) {
        self.waiting.push_back((key, need));
    }

    /// Takes a waiting attempt out of the queue.
    pub fn unqueue(&mut self, key: AttemptKey) {
        self.waiting.retain(|(waiting, _)| *waiting != key);
    }

    /// Counts an attempt that already runs (found again after a restart).
    pub fn occupy(&mut self, key: AttemptKey, slot: u32, need: Need) {
        self.free.remove(&slot);
        self.busy_millis += need.cpu_millis;
        if let Some((_, before)) = self.running.insert(key, (slot, need)) {
            self.busy_millis -= before.cpu_millis;
        }
    }

    /// Gives back what a running attempt used.
    pub fn release(&mut self, key: AttemptKey) {
        if let Some((slot, need)) = self.running.remove(&key) {
            self.busy_millis -= need.cpu_millis;
            if slot < MAX_RUNNING {
                self.free.insert(slot);
            }
        }
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The attempts that may start now, each with its slot.
    pub fn admit(&mut self) -> Vec<(AttemptKey, u32)> {
        let mut admitted = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let Some(&slot) = self.free.first() else { break };
            // Every attempt asks for some of them: a long queue is not walked for nothing.
            if self.busy_millis >= self.capacity.cpu_millis && !self.running.is_empty() {
                break;
            }
            if at > 0 && self.passes >= MAX_PASSES {
                break;
            }
            if !self.fits(&self.waiting[at].1) {
                at += 1;
                continue;
            }
            if let Some((key, need)) = self.waiting.remove(at) {
                self.passes = if at == 0 { 0 } else { self.passes + 1 };
                self.occupy(key, slot, need);
                admitted.push((key, slot));
            }
        }
        admitted
    }

    fn fits(&self, need: &Need) -> bool {
        // What asks for more than there is runs alone rather than never.
        if self.running.is_empty() {
            return true;
        }
        let sum = |part: fn(&Need) -> u64| -> u64 {
            self.running.values().map(|(_, need)| part(need)).fold(part(need), u64::saturating_add)
        };
        let named = |name: &str| -> u64 {
            let of = |need: &Need| need.named.get(name).copied().unwrap_or(0);
            self.running.values().map(|(_, need)| of(need)).fold(of(need), u64::saturating_add)
        };
        sum(|need| need.cpu_millis) <= self.capacity.cpu_millis
            && sum(|need| need.memory_bytes) <= self.capacity.memory_bytes
            && need
                .named
                .keys()
                .all(|name| named(name) <= self.capacity.named.get(name).copied().unwrap_or(0))
    }
}
