//! What the commit room says, on its way to agents and watchers; and the tasks that put a
//! session's queue into messages.

use std::{sync::Arc, time::Duration};

use mesh_proto::{
    ids::{AttemptKey, JobNumber},
    v1::{AckKind, AssignTaskResponse, AttemptAck, CancelAttempt, Cause, TaskResultResponse},
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::{error, warn};

use super::{
    hub::{Hub, TaskNews},
    plans::Plans,
    registry::{Acked, Command, Live, Sessions},
};
use crate::{
    commit::{Core, Outside},
    engine::{
        JOB_STATES, Totals,
        effect::{Ack, Say},
        event::{AttemptEnd, Event, NewJob},
        types::{NodeState, TASK_STATES},
    },
    metrics::{Decision, Metrics},
    output::OutputStore,
    store::Store,
};

/// Messages are cut near this size, in bytes.
const MESSAGE: usize = 1024 * 1024;
/// Commands that go into one message at the most.
const BATCH: usize = 256;
/// Wait before a passing failure of the store is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Carries what the commit room says to sessions, watchers and metrics.
#[derive(Clone)]
pub struct Voice {
    pub sessions: Sessions,
    pub hub: Hub,
    pub metrics: Arc<Metrics>,
    /// The mesh at a glance, for the status.
    pub totals: watch::Sender<Totals>,
    pub plans: Plans,
    /// Files that another leader goes on writing.
    pub output: OutputStore,
}

impl Outside for Voice {
    fn accepted(&mut self, number: JobNumber, job: &NewJob) {
        self.plans.learn(number, job);
    }

    fn say(&mut self, say: Say) {
        match say {
            // The commit room keeps the replies itself.
            Say::Reply(..) => {}
            Say::Dispatch { node, session, attempt } => {
                self.hub.news(TaskNews::Placed(attempt));
                self.sessions.command(node, session, Command::Dispatch(attempt));
            }
            Say::Cancel { node, session, attempt, reason } => {
                self.sessions.command(node, session, Command::Cancel(attempt, reason));
            }
            Say::Withdraw { node, session, attempt } => {
                self.sessions.command(node, session, Command::Withdraw(attempt));
            }
            Say::EndSession { node, session } => self.sessions.end(node, session),
            Say::Ack { node, attempt, ack, ended } => {
                if ended && ack == Ack::Durable {
                    self.hub.news(TaskNews::Ended(attempt));
                }
                self.sessions.ack(node, Acked { attempt, ack, ended });
            }
            Say::JobChanged(view) => {
                if let Some(finished) = view.row.finished_at {
                    self.metrics.job_finished(Duration::from_millis(finished.since(view.created_at)));
                }
                self.hub.changed(&view);
            }
            Say::Ended { cause, retried, run_ms } => {
                self.metrics.attempt_ended(cause, Some(Duration::from_millis(run_ms)));
                if retried {
                    self.metrics.task_retried(cause);
                }
            }
            Say::Unplaced { suitable } => {
                let decision = if suitable { Decision::Full } else { Decision::Unsuitable };
                self.metrics.decided(decision, 1);
            }
            Say::Placed { node, waited_ms } => {
                self.metrics.task_started(Duration::from_millis(waited_ms));
                self.metrics.decided(Decision::Placed, 1);
                if let Some(name) = self.sessions.name(node) {
                    self.metrics.assigned(&name, 1);
                }
            }
        }
    }

    fn step_down(&mut self) {
        self.sessions.end_all();
        self.hub.look_again();
        self.output.let_go();
        self.totals.send_replace(Totals::default());
    }

    fn register_again(&mut self) {
        self.hub.look_again();
        self.sessions.register_again();
    }

    fn totals(&mut self, totals: Totals) {
        for state in TASK_STATES {
            self.metrics.set_tasks(state, totals.tasks[state]);
        }
        for (state, count) in JOB_STATES.into_iter().zip(totals.jobs) {
            self.metrics.set_jobs(state, count);
        }
        let nodes = [NodeState::Healthy, NodeState::Suspect, NodeState::Offline];
        for (state, count) in nodes.into_iter().zip(totals.nodes) {
            self.metrics.set_nodes(state, count);
        }
        self.totals.send_replace(totals);
    }
}

/// Serves a session's assignment stream until the session is over or its reader is gone.
pub async fn speak_assignments(
    live: Live,
    mut commands: mpsc::Receiver<Command>,
    out: mpsc::Sender<Result<AssignTaskResponse, Status>>,
    sessions: Sessions,
    plans: Plans,
    core: Core,
) {
    let mut batch = Vec::new();
    loop {
        let count = tokio::select! {
            count = commands.recv_many(&mut batch, BATCH) => count,
            () = live.over.cancelled() => 0,
            () = out.closed() => 0,
        };
        if count == 0 {
            return;
        }
        let mut message = AssignTaskResponse::default();
        let mut size = 0;
        for command in batch.drain(..) {
            match command {
                Command::Dispatch(attempt) => {
                    let Some((assignment, digests)) = assemble(&live, attempt, &plans, &core).await else {
                        continue;
                    };
                    sessions.allow(live.node, attempt, digests);
                    // One alone may be as large as a message can be.
                    let more = assignment.encoded_len();
                    if size > 0 && size + more > MESSAGE {
                        if !send(&out, &core, &mut message).await {
                            return;
                        }
                        size = 0;
                    }
                    size += more;
                    message.assignments.push(assignment);
                }
                Command::Cancel(attempt, reason) => {
                    message.cancels.push(CancelAttempt { attempt: Some(attempt.into()), reason });
                }
                Command::Withdraw(attempt) => message.withdrawals.push(attempt.into()),
                Command::RegisterAgain => message.register_again = true,
            }
        }
        if !send(&out, &core, &mut message).await {
            return;
        }
    }
}

async fn send(
    out: &mpsc::Sender<Result<AssignTaskResponse, Status>>,
    core: &Core,
    message: &mut AssignTaskResponse,
) -> bool {
    let message = AssignTaskResponse { leader: Some(core.standing().point()), ..std::mem::take(message) };
    out.send(Ok(message)).await.is_ok()
}

/// Puts an attempt into words. One that never can be is told to the engine as failed.
async fn assemble(
    live: &Live,
    attempt: AttemptKey,
    plans: &Plans,
    core: &Core,
) -> Option<(mesh_proto::v1::Assignment, Vec<mesh_proto::digest::Digest>)> {
    loop {
        match plans.assignment(attempt).await {
            Ok(assembled) => return Some(assembled),
            Err(error) if error.is_passing() => {
                warn!(%attempt, error = &error as &dyn std::error::Error, "cannot assemble an assignment yet");
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = live.over.cancelled() => return None,
                }
            }
            Err(error) => {
                error!(%attempt, error = &error as &dyn std::error::Error, "cannot assemble an assignment");
                let end = Arc::new(AttemptEnd::declared(Cause::Staging, error.to_string()));
                // If the engine cannot be told, the next registration brings the attempt again.
                let _ = core.tell(Event::AttemptEnded { node: live.node, attempt, end }).await;
                return None;
            }
        }
    }
}

/// Serves the acknowledgements of a session's result stream.
pub async fn speak_acks(
    live: Live,
    mut acks: mpsc::Receiver<Acked>,
    out: mpsc::Sender<Result<TaskResultResponse, Status>>,
    store: Store,
) {
    let mut batch = Vec::new();
    loop {
        let count = tokio::select! {
            count = acks.recv_many(&mut batch, BATCH) => count,
            () = live.over.cancelled() => 0,
            () = out.closed() => 0,
        };
        if count == 0 {
            return;
        }
        let mut message = TaskResultResponse::default();
        for acked in batch.drain(..) {
            let kind = match acked.ack {
                Ack::Durable => AckKind::Durable,
                Ack::Stale if acked.ended => settle(&live, acked.attempt, &store).await,
                Ack::Stale => AckKind::Stale,
            };
            message.acks.push(AttemptAck {
                attempt: Some(acked.attempt.into()),
                kind: kind.into(),
                ended: acked.ended,
            });
        }
        if out.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

/// An end for an attempt that the engine does not hold: durable if this node's own end was
/// committed before (its acknowledgement was lost), stale otherwise. Unsaid when the session is
/// over before the database answers.
async fn settle(live: &Live, attempt: AttemptKey, store: &Store) -> AckKind {
    loop {
        match store.attempt(attempt).await {
            Ok(Some(row)) if row.node == live.node && row.cause.is_some_and(told_by_agent) => {
                return AckKind::Durable;
            }
            Ok(_) => return AckKind::Stale,
            Err(error) => {
                warn!(%attempt, error = &error as &dyn std::error::Error, "cannot look an attempt up yet");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = live.over.cancelled() => return AckKind::Unspecified,
        }
    }
}

/// Whether an agent says such a cause; the others are declared by the coordinator.
#[must_use]
pub fn told_by_agent(cause: Cause) -> bool {
    match cause {
        Cause::Unspecified | Cause::Lost | Cause::Fenced => false,
        Cause::Exit
        | Cause::Signal
        | Cause::Timeout
        | Cause::Oom
        | Cause::Disk
        | Cause::Output
        | Cause::Staging
        | Cause::Sandbox
        | Cause::Infra
        | Cause::Cancelled => true,
    }
}
