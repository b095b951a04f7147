//! A task that has been assigned at least once and is not terminal.

use mesh_proto::ids::{AttemptKey, BootId, NodeId, TaskKey};

use super::{
    effect::{AttemptRow, TaskRow},
    event::AttemptEnd,
    types::{Confined, Resources, TaskState, Time},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The number of its latest attempt, from 1.
    pub attempt: u32,
    pub own_failures: u32,
    pub losses: u32,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a node, again.
    Queued { since: Time },
    /// Waiting out a backoff.
    Retrying { until: Time },
    /// The current attempt is at a node.
    Placed(Placed),
}

/// The current attempt of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub node: NodeId,
    pub boot: BootId,
    /// What it takes of the node.
    pub taken: Resources,
    pub assigned_at: Time,
    /// None until the agent says so.
    pub started_at: Option<Time>,
    pub sandbox: Option<Confined>,
    /// The decision that sent it there.
    pub decision: Option<u64>,
    /// Counted among what the node uses; otherwise it waits in the node's short queue.
    pub granted: bool,
    /// It was asked back from the node's short queue.
    pub withdrawing: bool,
    /// Its end was asked for: exactly while its job is ending.
    pub cancelling: bool,
    /// Its node is offline: it stays current until a replacement is committed.
    pub unreachable: bool,
}

impl Task {
    #[must_use]
    pub fn state(&self) -> TaskState {
        match &self.phase {
            Phase::Queued { .. } => TaskState::Queued,
            Phase::Retrying { .. } => TaskState::Retrying,
            Phase::Placed(placed) if placed.started_at.is_some() => TaskState::Running,
            Phase::Placed(_) => TaskState::Assigned,
        }
    }

    #[must_use]
    pub fn placed(&self) -> Option<&Placed> {
        match &self.phase {
            Phase::Placed(placed) => Some(placed),
            Phase::Queued { .. } | Phase::Retrying { .. } => None,
        }
    }

    pub fn placed_mut(&mut self) -> Option<&mut Placed> {
        match &mut self.phase {
            Phase::Placed(placed) => Some(placed),
            Phase::Queued { .. } | Phase::Retrying { .. } => None,
        }
    }

    /// Its row while it lives; `end` is the last attempt's.
    #[must_use]
    pub fn row(&self, key: TaskKey, end: Option<std::sync::Arc<AttemptEnd>>) -> TaskRow {
        TaskRow {
            key,
            state: self.state(),
            attempt: self.attempt,
            node: self.placed().map(|placed| placed.node),
            own_failures: self.own_failures,
            losses: self.losses,
            end,
            started_at: self.placed().and_then(|placed| placed.started_at),
            finished_at: None,
        }
    }

    /// The row of its current attempt, open or ended.
    #[must_use]
    pub fn attempt_row(
        &self,
        task: TaskKey,
        ended: Option<(Time, std::sync::Arc<AttemptEnd>)>,
    ) -> Option<AttemptRow> {
        let placed = self.placed()?;
        Some(AttemptRow {
            key: AttemptKey { task, number: self.attempt },
            node: placed.node,
            boot: placed.boot,
            sandbox: placed.sandbox,
            decision: placed.decision,
            assigned_at: placed.assigned_at,
            started_at: placed.started_at,
            ended,
        })
    }
}
