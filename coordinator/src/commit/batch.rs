//! A batch of events on its way through one commit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_proto::ids::JobNumber;
use sqlx::PgConnection;
use tokio::time::Instant as Deadline;

use crate::{
    engine::{
        effect::{Ack, Effects, Reply, Say, Write},
        event::{Event, NewJob, ReplyId},
    },
    failpoint::{Point, reach},
    metrics::Metrics,
    spawn::{AbortOnDrop, spawn_owned},
    store::{
        StoreError,
        clock::boot_ms,
        commit::{Rows, commit},
    },
};

/// Events in one batch at the most.
pub(super) const MAX_BATCH: usize = 4096;

/// How long rows may gather that nobody waits for. Ends of very short tasks come one by one,
/// and a commit costs many times what one more row in it does.
pub(super) const GATHER: Duration = Duration::from_millis(25);

/// A batch that gathers or is being committed.
#[derive(Default)]
pub(super) struct Batch {
    pub fx: Effects,
    /// Kept until the commit, in case they must be handled again.
    pub events: Vec<Event>,
    /// It holds what was handled again, first after the memory was read anew: whatever the
    /// database refuses in it is the work of these events and of nothing else.
    pub fresh: bool,
    /// When its first row came.
    since: Option<Deadline>,
    /// Somebody waits for its commit.
    presses: bool,
    /// What was said so far, as far as it was looked at for that.
    looked_at: usize,
    /// Jobs among its rows.
    pub accepted: Vec<(JobNumber, Arc<NewJob>)>,
}

impl Batch {
    /// Takes note of what came to it since it was looked at last.
    pub fn note(&mut self) {
        if self.since.is_none() && !self.fx.writes.is_empty() {
            self.since = Some(Deadline::now());
        }
        self.presses |= self.fx.says.iter().skip(self.looked_at).any(presses);
        self.looked_at = self.fx.says.len();
    }

    /// When it is to be committed: at once, or when it has gathered long enough. None: it has no
    /// rows.
    pub fn due(&self) -> Option<Deadline> {
        let since = self.since?;
        let at_once = self.presses || self.fresh || self.events.len() >= MAX_BATCH;
        Some(if at_once { since } else { since + GATHER })
    }
}

/// Whether somebody waits to hear this. An agent goes on without its acknowledgements; what a
/// watcher sees of a job that goes on may be a moment old.
fn presses(say: &Say) -> bool {
    match say {
        // A heartbeat is answered soon enough with the batch.
        Say::Reply(_, Reply::Heard { .. })
        | Say::Ack { ack: Ack::Durable, .. }
        | Say::Ended { .. }
        | Say::Unplaced { .. }
        | Say::Placed { .. } => false,
        Say::JobChanged(view) => view.row.finished_at.is_some(),
        Say::Reply(..)
        | Say::Dispatch { .. }
        | Say::Withdraw { .. }
        | Say::Cancel { .. }
        | Say::EndSession { .. }
        | Say::Ack { ack: Ack::Stale, .. } => true,
    }
}

/// What a commit gives back: its connection, its batch, when it was sent (boot-time
/// milliseconds), and the new seq.
pub(super) struct Committed {
    pub connection: PgConnection,
    pub batch: Batch,
    pub sent_ms: u64,
    /// It held no rows.
    pub beat: bool,
    pub result: Result<i64, StoreError>,
}

/// A commit under way. Dropping it closes its connection; what became of it is then unknown.
pub(super) type Commit = AbortOnDrop<Committed>;

/// Begins to commit a batch. One without rows is the leader's beat.
pub(super) fn start(
    mut connection: PgConnection,
    epoch: i64,
    mut batch: Batch,
    metrics: Arc<Metrics>,
) -> Commit {
    spawn_owned("commit", async move {
        let (started, sent_ms) = (Instant::now(), boot_ms());
        let writes = std::mem::take(&mut batch.fx.writes);
        batch.accepted = writes.iter().filter_map(accepted).collect();
        let rows = Rows::of(writes);
        let beat = rows.is_empty();
        reach(Point::BeforeCommit);
        let result = commit(&mut connection, epoch, rows).await;
        if !beat {
            metrics.committed(batch.events.len(), started.elapsed());
        }
        Committed { connection, batch, sent_ms, beat, result }
    })
}

fn accepted(write: &Write) -> Option<(JobNumber, Arc<NewJob>)> {
    match write {
        Write::NewJob { number, job, .. } => Some((*number, Arc::clone(job))),
        Write::Job(_)
        | Write::Definition { .. }
        | Write::Task(_)
        | Write::Attempt(_)
        | Write::Moved(_)
        | Write::Redriven(_)
        | Write::Decision(_)
        | Write::Node { .. } => None,
    }
}

/// Who waits for what an event brings.
pub(super) fn reply_of(event: &Event) -> Option<ReplyId> {
    match event {
        Event::JobSubmitted { reply, .. }
        | Event::JobCancelled { reply, .. }
        | Event::JobRedriven { reply, .. }
        | Event::NodeRegistered { reply, .. }
        | Event::NodeChanged { reply, .. }
        | Event::TaskAsked { reply, .. }
        | Event::NodesAsked { reply } => Some(*reply),
        Event::Heartbeat { reply, .. } => *reply,
        Event::SessionOpened { .. }
        | Event::SessionClosed { .. }
        | Event::AttemptStarted { .. }
        | Event::AttemptEnded { .. }
        | Event::AttemptWithdrawn { .. }
        | Event::CoefficientsChanged { .. }
        | Event::Tick => None,
    }
}

/// An event's kind, for the log: never its payload.
pub(super) fn name(event: &Event) -> &'static str {
    match event {
        Event::JobSubmitted { .. } => "job submitted",
        Event::JobCancelled { .. } => "job cancelled",
        Event::JobRedriven { .. } => "job redriven",
        Event::NodeRegistered { .. } => "node registered",
        Event::SessionOpened { .. } => "session opened",
        Event::SessionClosed { .. } => "session closed",
        Event::Heartbeat { .. } => "heartbeat",
        Event::AttemptStarted { .. } => "attempt started",
        Event::AttemptEnded { .. } => "attempt ended",
        Event::AttemptWithdrawn { .. } => "attempt withdrawn",
        Event::CoefficientsChanged { .. } => "coefficients changed",
        Event::NodeChanged { .. } => "node changed",
        Event::TaskAsked { .. } => "task asked",
        Event::NodesAsked { .. } => "nodes asked",
        Event::Tick => "tick",
    }
}
