//! What the engine wants done: rows to be written, and words to be said once they are.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_proto::ids::{AttemptKey, BootId, JobId, JobNumber, NodeId, SessionId, TaskKey};

use super::{
    event::{AttemptEnd, NewJob, NodeRecord, RedriveKey, ReplyId},
    explain::Explanation,
    placement::Decision,
    ranges::Elements,
    types::{Cause, Confined, Counts, JobState, NodeState, TaskState, Time},
};

/// The effects of a batch of events. Writes go into one transaction; what is said goes out
/// only after its commit.
#[derive(Debug, Default)]
pub struct Effects {
    pub writes: Vec<Write>,
    pub says: Vec<Say>,
}

impl Effects {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.says.is_empty()
    }
}

/// A row as it must stand after the commit. The last one of a key wins.
#[derive(Clone, Debug)]
pub enum Write {
    /// Its definitions begin with every element blocked; a `Definition` follows where that is
    /// not so any more.
    NewJob {
        number: JobNumber,
        job: Arc<NewJob>,
        created_at: Time,
    },
    Job(JobRow),
    Definition {
        job: JobNumber,
        task: u32,
        counts: Counts,
    },
    Task(TaskRow),
    Attempt(AttemptRow),
    Moved(Moved),
    Redriven(Redriven),
    /// Why tasks of a class went where they went.
    Decision(Arc<Decision>),
    Node {
        record: NodeRecord,
        facts: Option<Bytes>,
    },
}

/// The part of a job's row that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    pub number: JobNumber,
    pub state: JobState,
    /// Failed or cancelled, decided, but processes still have to go.
    pub ending: Option<JobState>,
    pub reason: String,
    pub counts: Counts,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
}

/// A task's whole row.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRow {
    pub key: TaskKey,
    pub state: TaskState,
    pub attempt: u32,
    pub node: Option<NodeId>,
    pub own_failures: u32,
    pub losses: u32,
    pub end: Option<Arc<AttemptEnd>>,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
}

/// Rows of tasks that change their state together, with no attempt to tell of.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    pub job: JobNumber,
    pub task: u32,
    /// All of them have a row in the first state.
    pub elements: Elements,
    pub how: Move,
    pub at: Time,
}

/// How rows of tasks change together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Dead letters are queued for a new series of attempts.
    Redriven,
    /// Cancelled because another task failed, which is tried again: queued, for a new series.
    Resumed,
    /// Queued for a new series, and cancelled before it began.
    Dropped,
    /// A backoff is over: queued.
    Woken,
}

impl Move {
    /// The states before and after.
    #[must_use]
    pub fn states(self) -> (TaskState, TaskState) {
        match self {
            Self::Redriven => (TaskState::Failed, TaskState::Queued),
            Self::Resumed => (TaskState::Cancelled, TaskState::Queued),
            Self::Dropped => (TaskState::Queued, TaskState::Cancelled),
            Self::Woken => (TaskState::Retrying, TaskState::Queued),
        }
    }

    /// Whether a new series of attempts begins: failures and losses count from 0.
    #[must_use]
    pub fn is_anew(self) -> bool {
        match self {
            Self::Redriven | Self::Resumed => true,
            Self::Dropped | Self::Woken => false,
        }
    }
}

/// Dead letters of a job are tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Redriven {
    pub number: JobNumber,
    /// When the job had finished, if it had: it is open again.
    pub finished_at: Option<Time>,
    /// Who asked, for the audit.
    pub by: String,
    pub detail: String,
    /// Under which key, and what came of it: dead letters, and what was cancelled because of them.
    pub key: Option<RedriveKey>,
    pub redriven: u64,
    pub resumed: u64,
}

/// An attempt's whole row.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRow {
    pub key: AttemptKey,
    pub node: NodeId,
    pub boot: BootId,
    pub sandbox: Option<Confined>,
    /// The decision that sent it there.
    pub decision: Option<u64>,
    pub assigned_at: Time,
    pub started_at: Option<Time>,
    pub ended: Option<(Time, Arc<AttemptEnd>)>,
}

/// Something to be said outside, after the commit.
#[derive(Clone, Debug)]
pub enum Say {
    Reply(ReplyId, Reply),
    /// Start this attempt. The session assembles the assignment from the stored job.
    Dispatch {
        node: NodeId,
        session: SessionId,
        attempt: AttemptKey,
    },
    /// Give this attempt back if it has not begun.
    Withdraw {
        node: NodeId,
        session: SessionId,
        attempt: AttemptKey,
    },
    /// End this attempt's process.
    Cancel {
        node: NodeId,
        session: SessionId,
        attempt: AttemptKey,
        reason: String,
    },
    /// The node counts as gone: end its session, so that it registers again.
    EndSession {
        node: NodeId,
        session: SessionId,
    },
    /// The agent's word on an attempt is durable, or comes too late.
    Ack {
        node: NodeId,
        attempt: AttemptKey,
        ack: Ack,
        ended: bool,
    },
    /// A job changed: for those who watch it.
    JobChanged(Arc<JobView>),
    /// An attempt's end, for the metrics.
    Ended {
        cause: Cause,
        retried: bool,
        run_ms: u64,
    },
    /// A class found no room, for the metrics: whether any node would suit.
    Unplaced {
        suitable: bool,
    },
    /// A task was placed, for the metrics: how long it had waited.
    Placed {
        node: NodeId,
        waited_ms: u64,
    },
}

/// The answer to an agent's word on an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Durable,
    /// Not the current attempt of its task, as far as the engine knows; the store knows
    /// whether the same end was committed before.
    Stale,
}

/// The answer to a caller.
#[derive(Clone, Debug)]
pub enum Reply {
    Submitted {
        number: JobNumber,
        uuid: JobId,
        existed: bool,
    },
    Cancelled {
        number: JobNumber,
        state: JobState,
    },
    /// How many dead letters are tried again, and how many tasks come back that were cancelled
    /// because of them.
    Redriven {
        number: JobNumber,
        state: JobState,
        redriven: u64,
        resumed: u64,
    },
    Registered {
        verdicts: Vec<(AttemptKey, Verdict)>,
    },
    /// A heartbeat was taken in. Only one that `counts`, as a word of the node's own session, puts
    /// off the moment at which the node is offline, and may so be answered with a lease.
    Heard {
        counts: bool,
    },
    Node(Box<NodeView>),
    Nodes(Vec<NodeView>),
    Explained(Box<Explanation>),
    Refused(Refusal),
}

/// What becomes of an attempt that an agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Collect,
    /// Not current, as far as the engine knows.
    Unknown,
}

/// Why the engine says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No unfinished job has this number.
    NoSuchJob,
    NoSuchNode,
    /// The idempotency key was used for another payload, by this job.
    KeyUsed(JobNumber),
    /// The database refused the rows of this event.
    Poison(String),
    /// Nothing that was named is a dead letter.
    NothingDead(JobNumber),
    /// A person cancelled the job.
    WasCancelled(JobNumber),
    /// The job is failing, and processes of it still have to go.
    StillEnding(JobNumber),
    /// The job is another than the one that was read: read it again.
    Changed(JobNumber),
}

/// A job at a glance.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    pub row: JobRow,
    pub created_at: Time,
    pub definitions: Vec<Counts>,
}

/// A node at a glance, now.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    pub record: NodeRecord,
    pub state: NodeState,
    pub connected: bool,
    pub rtt_us: Option<u64>,
    pub load_permille: Option<u32>,
    pub running: u32,
    pub queued: u32,
    /// 0 to 1.
    pub reliability: f64,
    pub slots: u32,
    pub slots_free: u32,
    pub cpu_millis_free: u64,
    pub memory_total: u64,
    pub memory_free: u64,
    /// Since its last word, in milliseconds; none before the first.
    pub silent_ms: Option<u64>,
    pub tags: BTreeMap<String, String>,
}
