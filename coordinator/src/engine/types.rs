//! The engine's own words: time, resources, requirements, counts. Plain values only.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Index, IndexMut},
};

pub use super::placement::Coefficients;
pub use mesh_proto::v1::{Cause, JobState, Limits, NodeState, SandboxLevel, TaskState};

/// A moment in milliseconds of database time. The shell reads it from a boot-time clock that
/// was set by the database once, so that it never jumps; the engine only compares and adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This moment and `ms` milliseconds more.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; 0 when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a task takes of a node, or a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes. In a requirement 0 means: the node's memory divided by its slots.
    pub memory: u64,
    /// Units of named resources.
    pub named: BTreeMap<String, u64>,
}

/// What a node must be and have before a task may run there. Tasks with equal requirements
/// form a class and wait in one queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirements {
    pub resources: Resources,
    pub tags: BTreeMap<String, String>,
    pub capabilities: BTreeSet<String>,
    pub os: Option<String>,
    pub arch: Option<String>,
    /// A node's name.
    pub node: Option<String>,
    /// Limits must be held by a cgroup.
    pub cgroup: bool,
    pub sandbox: SandboxLevel,
    /// The node's network is asked for.
    pub host_network: bool,
    /// Mounts by name; true: to be written to.
    pub mounts: BTreeMap<String, bool>,
}

/// How an attempt is confined, in the words of its agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    pub level: SandboxLevel,
    /// What holds it to its limits; unspecified: nothing does, or an older agent does not say.
    pub limits: Limits,
}

impl From<SandboxLevel> for Confined {
    /// Held to no limits.
    fn from(level: SandboxLevel) -> Self {
        Self { level, limits: Limits::Unspecified }
    }
}

/// Every state of a task, in the order of [`Counts`] and of the database's enum.
pub const TASK_STATES: [TaskState; 8] = [
    TaskState::Blocked,
    TaskState::Queued,
    TaskState::Assigned,
    TaskState::Running,
    TaskState::Retrying,
    TaskState::Completed,
    TaskState::Failed,
    TaskState::Cancelled,
];

/// How many tasks are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; 8]);

impl Counts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that can still change.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.total() - self[TaskState::Completed] - self[TaskState::Failed] - self[TaskState::Cancelled]
    }

    /// Moves `n` from one state to another.
    pub fn shift(&mut self, from: TaskState, to: TaskState, n: u64) {
        debug_assert!(self[from] >= n, "{n} of {} tasks leave {from:?}", self[from]);
        self[from] -= n;
        self[to] += n;
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    pub fn sub(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine -= theirs;
        }
    }
}

/// The place of a state in [`Counts`].
fn place(state: TaskState) -> usize {
    match state {
        TaskState::Unspecified | TaskState::Blocked => 0,
        TaskState::Queued => 1,
        TaskState::Assigned => 2,
        TaskState::Running => 3,
        TaskState::Retrying => 4,
        TaskState::Completed => 5,
        TaskState::Failed => 6,
        TaskState::Cancelled => 7,
    }
}

impl Index<TaskState> for Counts {
    type Output = u64;

    fn index(&self, state: TaskState) -> &u64 {
        &self.0[place(state)]
    }
}

impl IndexMut<TaskState> for Counts {
    fn index_mut(&mut self, state: TaskState) -> &mut u64 {
        &mut self.0[place(state)]
    }
}

/// When and how often a task is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The task's own bad ends that are allowed, the first included; at least 1.
    pub attempts: u32,
    /// Which causes are worth another attempt.
    pub on: Vec<Cause>,
    pub backoff_ms: u64,
    pub max_backoff_ms: u64,
    /// Losses of the infrastructure that are allowed.
    pub max_lost: u32,
}

/// Timings and limits that the engine decides by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Silence after which a node is suspected, in milliseconds.
    pub suspect_after_ms: u64,
    /// Silence after which it is offline, in milliseconds.
    pub offline_after_ms: u64,
    /// Backoff after a loss of the infrastructure, in milliseconds.
    pub lost_backoff_ms: u64,
    /// Only tasks that run shorter than this are put into a node's short queue, in
    /// milliseconds; 0: none is.
    pub feed_below_ms: u64,
    pub coefficients: Coefficients,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            suspect_after_ms: 15_000,
            offline_after_ms: 30_000,
            lost_backoff_ms: 200,
            feed_below_ms: 2_000,
            coefficients: Coefficients::default(),
        }
    }
}
