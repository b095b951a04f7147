//! Which of the waiting attempts may start: in order of arrival, as far as the resources reach,
//! counted as the coordinator counts them: processors, memory, named resources. A slot is the
//! place of one running attempt, with a user of its own; small attempts may be more than the
//! node's slots. The head is passed over by smaller attempts only a bounded number of times, so that a
//! large one gets its turn.
//!
//! Where attempts are over in an instant, the next ones stand *in line* for a slot, so that it need not
//! wait for anybody: who is at the head of the line takes the place of the one that runs there. That
//! needs no more than its predecessor, so nothing is to be decided in that moment.

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
    /// Attempts that may stand in line for a slot; 0: none.
    pub in_line: usize,
}

/// What one attempt uses while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub named: BTreeMap<String, u64>,
    /// Nothing is to be staged before it and nothing to be collected after it: it may stand in line, and
    /// others behind it.
    pub plain: bool,
}

impl Need {
    /// Whether an attempt with this need has room in the place of one with `other`.
    fn is_within(&self, other: &Self) -> bool {
        self.cpu_millis <= other.cpu_millis
            && self.memory_bytes <= other.memory_bytes
            && self.named.iter().all(|(name, units)| *units <= other.named.get(name).copied().unwrap_or(0))
    }
}

/// The place of an attempt in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InLine {
    pub key: AttemptKey,
    pub slot: u32,
    /// The one before it.
    pub after: AttemptKey,
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
    /// Who stands in line for a slot.
    lines: BTreeMap<u32, VecDeque<(AttemptKey, Need)>>,
    /// The slots whose last attempt was over in an instant.
    quick: BTreeSet<u32>,
}

impl Admission {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            free: (0..MAX_RUNNING).collect(),
            running: BTreeMap::new(),
            busy_millis: 0,
            waiting: VecDeque::new(),
            passes: 0,
            lines: BTreeMap::new(),
            quick: BTreeSet::new(),
        }
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

    /// An attempt is over, `quick`ly or not: gives back what it used, to the head of the line if there is
    /// one.
    pub fn release(&mut self, key: AttemptKey, quick: bool) {
        let Some(slot) = self.vacate(key) else {
            self.leave_line(key);
            return;
        };
        if quick {
            self.quick.insert(slot);
        } else {
            self.quick.remove(&slot);
        }
        // What ended while no daemon saw it was found again beside the one that had its slot by then.
        if self.running.values().any(|(used, _)| *used == slot) {
            return;
        }
        match self.lines.get_mut(&slot).and_then(VecDeque::pop_front) {
            Some((next, need)) => self.occupy(next, slot, need),
            None if slot < MAX_RUNNING => drop(self.free.insert(slot)),
            None => {}
        }
    }

    /// An attempt has begun. If it stood in line, all before it there are over, whoever tells of that.
    pub fn begin(&mut self, key: AttemptKey) {
        let Some((slot, place)) = self.place(key) else { return };
        let passed = self.lines.get_mut(&slot).and_then(|line| line.drain(..=place).next_back());
        let Some((_, need)) = passed else { return };
        let before = self.running.iter().find(|(_, (used, _))| *used == slot).map(|(key, _)| *key);
        before.and_then(|before| self.vacate(before));
        self.occupy(key, slot, need);
    }

    /// An attempt that was to stand in line has not begun: it is the first in the queue.
    pub fn put_back(&mut self, key: AttemptKey, need: Need) {
        self.forsake(key);
        self.waiting.push_front((key, need));
    }

    /// An attempt that was to stand in line has not begun and will not.
    pub fn forsake(&mut self, key: AttemptKey) {
        match self.leave_line(key) {
            Some((slot, _)) => drop(self.quick.remove(&slot)),
            None => self.release(key, false),
        }
    }

    /// Takes one out of the running; its slot.
    fn vacate(&mut self, key: AttemptKey) -> Option<u32> {
        let (slot, need) = self.running.remove(&key)?;
        self.busy_millis -= need.cpu_millis;
        Some(slot)
    }

    fn leave_line(&mut self, key: AttemptKey) -> Option<(u32, Need)> {
        let (slot, place) = self.place(key)?;
        let (_, need) = self.lines.get_mut(&slot)?.remove(place)?;
        Some((slot, need))
    }

    /// The slot for which it stands in line, and how many are before it.
    fn place(&self, key: AttemptKey) -> Option<(u32, usize)> {
        self.lines.iter().find_map(|(slot, line)| {
            let place = line.iter().position(|(waiting, _)| *waiting == key)?;
            Some((*slot, place))
        })
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.in_line()
    }

    pub fn in_line(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
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

    /// The attempts that stand in line from now on: the first of the queue, one behind the other, each in
    /// the shortest line in which it has room.
    pub fn line_up(&mut self) -> Vec<InLine> {
        let mut lined = Vec::new();
        while let Some((key, need)) = self.waiting.front().filter(|(_, need)| need.plain) {
            let (key, in_line) = (*key, self.capacity.in_line);
            let line = |slot: u32| self.lines.get(&slot);
            let open = self.running.iter().filter_map(|(running, (slot, used))| {
                let (last, last_need) = match line(*slot).and_then(VecDeque::back) {
                    Some((last, need)) => (last, need),
                    None => (running, used),
                };
                let length = line(*slot).map_or(0, VecDeque::len);
                let fits = length < in_line && last_need.plain && need.is_within(last_need);
                (fits && self.quick.contains(slot)).then_some((length, *slot, *last))
            });
            let Some((_, slot, after)) = open.min() else { break };
            lined.push(InLine { key, slot, after });
            let first = self.waiting.pop_front();
            self.lines.entry(slot).or_default().extend(first);
        }
        lined
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
