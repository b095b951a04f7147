//! What happens outside and reaches the engine. Events are plain values that can be handled
//! again after a rebuild, so they carry ids of replies, never channels.

use std::sync::Arc;

use bytes::Bytes;
use mesh_proto::ids::{AttemptKey, BootId, JobId, JobNumber, NodeId, SessionId, TaskKey};

use super::restore::StoredJob;
use super::types::{Cause, Coefficients, Confined, Requirements, Resources, Retry, SandboxLevel};

/// Names the caller that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    JobSubmitted {
        reply: ReplyId,
        job: Arc<NewJob>,
    },
    JobCancelled {
        reply: ReplyId,
        job: JobNumber,
        reason: String,
    },
    JobRedriven {
        reply: ReplyId,
        redrive: Arc<Redrive>,
    },
    NodeRegistered {
        reply: ReplyId,
        registration: Arc<Registration>,
    },
    /// The assignment stream of a session is there: the node can be given work.
    SessionOpened {
        node: NodeId,
        session: SessionId,
    },
    SessionClosed {
        node: NodeId,
        session: SessionId,
    },
    Heartbeat {
        /// Who waits to hear that it counts; see [`super::effect::Reply::Heard`].
        reply: Option<ReplyId>,
        node: NodeId,
        session: SessionId,
        load_permille: u32,
        rtt_us: Option<u64>,
    },
    AttemptStarted {
        node: NodeId,
        attempt: AttemptKey,
        sandbox: Confined,
    },
    AttemptEnded {
        node: NodeId,
        attempt: AttemptKey,
        end: Arc<AttemptEnd>,
    },
    /// The agent gives back an attempt that it had not begun.
    AttemptWithdrawn {
        node: NodeId,
        attempt: AttemptKey,
    },
    /// An operator weighs the terms of the score anew.
    CoefficientsChanged {
        coefficients: Coefficients,
    },
    NodeChanged {
        reply: ReplyId,
        node: NodeId,
        change: NodeChange,
        /// Its row, for a node that joined since memory was read and never registered.
        record: Option<Box<NodeRecord>>,
    },
    TaskAsked {
        reply: ReplyId,
        key: TaskKey,
        what_if: Option<WhatIf>,
    },
    NodesAsked {
        reply: ReplyId,
    },
    /// Time went on.
    Tick,
}

/// Dead letters are to be tried again.
#[derive(Debug)]
pub struct Redrive {
    pub job: JobNumber,
    /// Definitions by position, and elements of them; none: all of it. Empty: the whole job.
    pub targets: Vec<(u32, Option<u32>)>,
    /// The job as it is stored, when it is over.
    pub stored: Option<StoredJob>,
    /// Who asks, and for what, for the audit.
    pub by: String,
    pub detail: String,
    pub key: Option<RedriveKey>,
}

/// By which a redrive that is told again is known. The store looks it up and writes it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedriveKey {
    pub key: String,
    /// Of what is asked for under it.
    pub payload_digest: [u8; 32],
}

/// Other requirements to try in thought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// None: without this tag.
    pub tags: std::collections::BTreeMap<String, Option<String>>,
    /// Some(None): on any node.
    pub node: Option<Option<String>>,
    pub sandbox: Option<SandboxLevel>,
}

/// A job as it is accepted.
#[derive(Debug)]
pub struct NewJob {
    pub uuid: JobId,
    pub name: String,
    pub owner: String,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// `on_failure: continue`.
    pub keep_going: bool,
    pub idempotency_key: Option<String>,
    pub payload_digest: [u8; 32],
    /// Encoded `JobSpec` without its tasks; the engine only hands it on.
    pub spec: Bytes,
    pub tasks: Vec<NewDefinition>,
}

/// One task definition of a job.
#[derive(Clone, Debug)]
pub struct NewDefinition {
    pub name: String,
    pub array: bool,
    /// Elements, at least 1; 1 for a single task.
    pub total: u32,
    pub requirements: Requirements,
    pub retry: Retry,
    pub needs: Vec<Need>,
    /// Encoded `TaskSpec`; the engine only hands it on.
    pub spec: Bytes,
}

/// One task definition needs another. The caller has checked that needs lead to definitions of
/// the job, never in a circle, and element by element only between equal totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Position of the needed definition.
    pub task: u32,
    /// Element by element; otherwise all of it.
    pub same_index: bool,
}

/// An agent says who it is and what it holds.
#[derive(Debug)]
pub struct Registration {
    pub node: NodeId,
    pub session: SessionId,
    pub boot: BootId,
    pub facts: Facts,
    /// Encoded `NodeFacts`, kept for readers.
    pub encoded_facts: Bytes,
    pub inventory: Vec<(AttemptKey, Held)>,
    /// What the nodes table says.
    pub record: NodeRecord,
}

/// A node's row in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub id: NodeId,
    pub name: String,
    pub boot: Option<BootId>,
    pub cordoned: bool,
    pub draining: bool,
    /// The operator's tags.
    pub tags: std::collections::BTreeMap<String, String>,
}

/// What a node has, in so far as placement asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub total: Resources,
    pub slots: u32,
    pub tags: std::collections::BTreeMap<String, String>,
    pub capabilities: std::collections::BTreeSet<String>,
    pub os: String,
    pub arch: String,
    /// The strongest level that was proved, and the weakest that the node accepts.
    pub sandbox: (SandboxLevel, SandboxLevel),
    pub cgroup: bool,
    pub host_network: bool,
    /// Mounts that the operator allows; true: to be written to.
    pub mounts: std::collections::BTreeMap<String, bool>,
}

/// What an agent says of an attempt that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Accepted,
    Running,
    Ended,
}

/// How an attempt ended, as the agent tells it.
#[derive(Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    pub cause: Cause,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
    /// Whether its process ever started.
    pub started: bool,
    pub run_ms: u64,
    pub cpu_ms: u64,
    pub max_rss_bytes: u64,
    /// Encoded `FileList`; the engine only hands it on.
    pub outputs: Bytes,
    /// Bytes of the whole spool.
    pub output_length: u64,
    /// The spool itself when it is short.
    pub output: Bytes,
}

impl AttemptEnd {
    /// An end that the coordinator itself declares.
    #[must_use]
    pub fn declared(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            exit_code: None,
            signal: None,
            message: message.into(),
            started: false,
            run_ms: 0,
            cpu_ms: 0,
            max_rss_bytes: 0,
            outputs: Bytes::new(),
            output_length: 0,
            output: Bytes::new(),
        }
    }

    /// Whether the task did what it should.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.cause == Cause::Exit && self.exit_code == Some(0)
    }
}

/// What an operator does to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Cordon,
    Uncordon,
    Drain,
    Tag { set: std::collections::BTreeMap<String, String>, remove: Vec<String> },
}
