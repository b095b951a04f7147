//! A node as the engine knows it: what it has, what it was given, when it last spoke.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::ids::{AttemptKey, BootId, SessionId, TaskKey};

use super::{
    effect::NodeView,
    event::{Facts, NodeRecord},
    placement::{ClassId, Coefficients, Standing, Terms, smooth},
    queue::{DEEP_MS, ShortQueue},
    types::{NodeState, Resources, Time},
};

/// Weight of the prior in [`Node::reliability`], in tasks.
const PRIOR: f64 = 4.0;
/// Time in which the weight of what was noted halves, in milliseconds.
const HALF_LIFE_MS: f64 = 600_000.0;
/// Failures of its own in a row after which a node is left alone for a while.
const PATIENCE: u32 = 3;
/// Failures within this time are one, in milliseconds.
const TOGETHER_MS: u64 = 1_000;
/// How long it is left alone: doubling from the first to the last, in milliseconds.
const HOLD_MS: (u64, u64) = (5_000, 300_000);

#[derive(Clone, Debug)]
pub struct Node {
    pub record: NodeRecord,
    pub state: NodeState,
    pub session: Option<Session>,
    /// None until it registers for the first time since the engine was built.
    pub facts: Option<Facts>,
    pub used: Resources,
    /// Tasks whose current attempt is here.
    pub tasks: BTreeSet<TaskKey>,
    /// Assigned and committed, but unknown to the agent: to be sent when the stream opens.
    pub resend: Vec<AttemptKey>,
    pub last_contact: Time,
    pub spoke: bool,
    pub load_permille: Option<u32>,
    pub rtt_us: Option<u64>,
    /// Where it stands in the index of nodes.
    pub standing: Standing,
    /// Processors asked for by all that it was given and has not finished, in thousandths.
    pub given_millis: u64,
    /// Assigned beyond what is free, in the order in which the agent will admit them.
    pub queue: ShortQueue,
    /// How long the attempts here ran of late, smoothed, in milliseconds; none before the first
    /// ended.
    pub run_ms: Option<u64>,
    /// Set aside for a class that was passed over too long.
    pub reserved: Option<ClassId>,
    /// Left alone until then, because it kept failing.
    pub held_until: Option<Time>,
    good: f64,
    bad: f64,
    noted_at: Time,
    failed_in_row: u32,
    failed_at: Option<Time>,
}

/// A live registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    /// Its assignment stream is there.
    pub open: bool,
}

impl Node {
    /// A node from its row: it has until `now + offline_after` to come back.
    #[must_use]
    pub fn new(record: NodeRecord, now: Time) -> Self {
        Self {
            record,
            state: NodeState::Suspect,
            session: None,
            facts: None,
            used: Resources::default(),
            tasks: BTreeSet::new(),
            resend: Vec::new(),
            last_contact: now,
            spoke: false,
            load_permille: None,
            rtt_us: None,
            standing: Standing::default(),
            given_millis: 0,
            queue: ShortQueue::default(),
            run_ms: None,
            reserved: None,
            held_until: None,
            good: 0.0,
            bad: 0.0,
            noted_at: now,
            failed_in_row: 0,
            failed_at: None,
        }
    }

    #[must_use]
    pub fn boot(&self) -> Option<BootId> {
        self.record.boot
    }

    /// Whether it may be given work at all.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        self.state == NodeState::Healthy
            && self.session.is_some_and(|session| session.open)
            && !self.record.cordoned
            && !self.record.draining
            && self.held_until.is_none()
    }

    /// The agent's tags, overridden by the operator's.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = self.facts.as_ref().map(|facts| facts.tags.clone()).unwrap_or_default();
        tags.extend(self.record.tags.clone());
        tags
    }

    /// What a requirement takes here: memory 0 stands for the node's share per slot.
    #[must_use]
    pub fn share(&self, wanted: &Resources) -> Resources {
        let mut share = wanted.clone();
        if share.memory == 0
            && let Some(facts) = &self.facts
        {
            share.memory = facts.total.memory / u64::from(facts.slots.max(1));
        }
        share
    }

    /// Whether `wanted` (a [`Self::share`]) fits beside what is used.
    #[must_use]
    pub fn fits(&self, wanted: &Resources) -> bool {
        let Some(facts) = &self.facts else { return false };
        self.used.cpu_millis + wanted.cpu_millis <= facts.total.cpu_millis
            && self.used.memory + wanted.memory <= facts.total.memory
            && wanted.named.iter().all(|(name, units)| {
                self.used.named.get(name).copied().unwrap_or(0) + units
                    <= facts.total.named.get(name).copied().unwrap_or(0)
            })
    }

    pub fn take(&mut self, wanted: &Resources) {
        self.used.cpu_millis += wanted.cpu_millis;
        self.used.memory += wanted.memory;
        for (name, units) in &wanted.named {
            *self.used.named.entry(name.clone()).or_default() += units;
        }
    }

    pub fn release(&mut self, wanted: &Resources) {
        self.used.cpu_millis = self.used.cpu_millis.saturating_sub(wanted.cpu_millis);
        self.used.memory = self.used.memory.saturating_sub(wanted.memory);
        for (name, units) in &wanted.named {
            if let Some(used) = self.used.named.get_mut(name) {
                *used = used.saturating_sub(*units);
            }
        }
    }

    /// Notes how an attempt here ended, in so far as the node answers for it. A node that keeps
    /// failing is left alone for a while, longer each time; one success makes up for it.
    pub fn note(&mut self, now: Time, good: bool) {
        let kept = self.kept(now);
        (self.good, self.bad, self.noted_at) = (self.good * kept, self.bad * kept, now);
        if good {
            self.good += 1.0;
            self.failed_in_row = 0;
            return;
        }
        self.bad += 1.0;
        // What fails together, as when a machine restarts, is one failure of the machine.
        if self.failed_at.is_some_and(|at| now.since(at) < TOGETHER_MS) {
            return;
        }
        self.failed_at = Some(now);
        self.failed_in_row += 1;
        if self.failed_in_row >= PATIENCE {
            let doubled = HOLD_MS.0 << (self.failed_in_row - PATIENCE).min(16);
            self.held_until = Some(now.plus(doubled.min(HOLD_MS.1)));
        }
    }

    /// What is left by now of the weight of what was noted.
    fn kept(&self, now: Time) -> f64 {
        0.5_f64.powf(now.since(self.noted_at) as f64 / HALF_LIFE_MS)
    }

    /// Share of attempts that the node did not spoil, 0 to 1, with a prior of four good ones;
    /// older ones count less.
    #[must_use]
    pub fn reliability(&self, now: Time) -> f64 {
        let kept = self.kept(now);
        (self.good * kept + PRIOR) / ((self.good + self.bad) * kept + PRIOR)
    }

    /// Thousandths of its processors that are promised.
    #[must_use]
    pub fn used_permille(&self) -> u64 {
        let total = self.facts.as_ref().map_or(0, |facts| facts.total.cpu_millis);
        (self.used.cpu_millis * 1000).checked_div(total).unwrap_or(1000)
    }

    /// Notes how long an attempt held its place here.
    pub fn ran(&mut self, run_ms: u64) {
        self.run_ms = Some(smooth(self.run_ms, run_ms));
    }

    #[must_use]
    pub fn slots(&self) -> usize {
        self.facts.as_ref().map_or(0, |facts| facts.slots as usize)
    }

    /// Whether its short queue has a place left of those that it has for its slots.
    #[must_use]
    pub fn feeds(&self) -> bool {
        self.queue.len() < self.slots()
    }

    /// Whether its short queue is to be filled beyond its slots: what ended here of late was very
    /// short, and half of what the queue may hold is gone.
    #[must_use]
    pub fn feeds_deep(&self) -> bool {
        self.slots() > 0 && self.run_ms.is_some_and(|run| run < DEEP_MS) && self.queue.refills()
    }

    /// Where it stands now.
    #[must_use]
    pub fn stands(&self, now: Time, by: &Coefficients) -> Standing {
        let total = self.facts.as_ref().map_or(0, |facts| facts.total.cpu_millis);
        let takes = self.takes_work() && total > 0 && self.reserved.is_none();
        let score = Terms::of(self, now).key(by);
        Standing {
            open: (takes && self.used.cpu_millis < total).then_some(score),
            feeds: (takes && self.feeds()).then_some(score),
            // What waits least is filled first; the score ends at twice the node's processors.
            deep: (takes && self.feeds_deep()).then(|| self.queue.expected_ms() * 1000 / self.slots() as u64),
            queued: (!self.queue.is_empty()).then_some(self.queue.len() as u64),
        }
    }

    /// Smooths a round trip into the estimate (RFC 6298, alpha 1/8).
    pub fn measure(&mut self, rtt_us: u64) {
        self.rtt_us = Some(match self.rtt_us {
            None => rtt_us,
            Some(old) => (old * 7 + rtt_us) / 8,
        });
    }

    /// What people see of it; `running` of its tasks have started.
    #[must_use]
    pub fn view(&self, now: Time, running: u32) -> NodeView {
        let empty = Facts::default();
        let facts = self.facts.as_ref().unwrap_or(&empty);
        let cpu_free = facts.total.cpu_millis.saturating_sub(self.used.cpu_millis);
        NodeView {
            record: self.record.clone(),
            state: self.state,
            connected: self.session.is_some(),
            rtt_us: self.rtt_us,
            load_permille: self.load_permille,
            running,
            queued: self.tasks.len() as u32 - running,
            reliability: self.reliability(now),
            slots: facts.slots,
            slots_free: ((cpu_free / 1000) as u32).min(facts.slots),
            cpu_millis_free: cpu_free,
            memory_total: facts.total.memory,
            memory_free: facts.total.memory.saturating_sub(self.used.memory),
            silent_ms: self.spoke.then(|| now.since(self.last_contact)),
            tags: self.tags(),
        }
    }
}
