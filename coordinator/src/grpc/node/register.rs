//! How a registration is answered: what becomes of each attempt that the agent holds.

use std::{collections::BTreeSet, time::Duration};

use mesh_proto::{
    code::Code,
    ids::{AttemptKey, NodeId, SessionId},
    v1::{AttemptVerdict, FileEntry, RegisterNodeRequest, Verdict},
};
use tonic::Status;
use tracing::warn;

use super::NodeService;
use crate::{
    commit::halted_status,
    engine::effect,
    session::{PlanError, digests, told_by_agent},
    store::StoreError,
};

/// The inputs of an attempt cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputsError {
    #[error("this attempt is not the node's")]
    NotTheirs,
    #[error("the inputs cannot be listed")]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<InputsError> for Status {
    fn from(error: InputsError) -> Self {
        match error {
            InputsError::NotTheirs => Code::Stale.status("this attempt is not the node's"),
            InputsError::Plan(error) => {
                warn!(error = &error as &dyn std::error::Error, "cannot list an attempt's inputs");
                Code::Unavailable.status("the inputs cannot be listed at the moment")
            }
            InputsError::Store(error) => error.into(),
        }
    }
}

impl NodeService {
    /// A node whose place was given to another machine is out, though its certificate is good for a
    /// while longer.
    pub(super) async fn check_key(&self, node: NodeId, key: [u8; 32]) -> Result<(), Status> {
        let now = self.store.node_key(node).await?;
        if now.is_some_and(|now| now != key) {
            return Err(Code::Unauthenticated.status(
                "this node's place was given to another machine: join again with a new token and another name",
            ));
        }
        Ok(())
    }

    /// The lease that an acknowledged word of a node brings, in milliseconds from when the node sent
    /// it; 0: none. Whoever leads after this process counts the node's silence from its own start,
    /// so only a leader that nobody can have followed yet may give one.
    pub(super) fn lease_ms(&self) -> u32 {
        let lease = if self.core.standing().holds_lease() { self.timings.lease() } else { Duration::ZERO };
        u32::try_from(lease.as_millis()).unwrap_or(u32::MAX)
    }

    /// An agent that has seen later commits than this database holds: it went back in time. What
    /// the mesh would do now rests on a state that is over, so it halts until an operator decides.
    /// `seq` never falls, not even with a new epoch, so it alone tells within one history; a later
    /// history is greater. Only what a coordinator gave out counts: a node that lies halts nothing.
    pub(super) async fn check_history(
        &self,
        node: &str,
        request: &RegisterNodeRequest,
    ) -> Result<(), Status> {
        let Some(seen) = &request.seen else { return Ok(()) };
        let mine = self.core.standing().point();
        let ahead = seen.incarnation == mine.incarnation && (seen.epoch > mine.epoch || seen.seq > mine.seq)
            || seen.incarnation > mine.incarnation;
        if !ahead {
            return Ok(());
        }
        if !self.core.standing().gave(seen) {
            warn!(
                node,
                seq = seen.seq,
                "the node names a commit that no coordinator told it of; it counts for nothing"
            );
            return Ok(());
        }
        let reason = format!(
            "the database went back in time: node {node} has seen commit {} of epoch {}, the database holds {} \
             of epoch {}. Restore the newer database, or go on with this one by `meshctl accept-database`",
            seen.seq, seen.epoch, mine.seq, mine.epoch
        );
        tracing::error!(
            node,
            seen_incarnation = seen.incarnation,
            seen_epoch = seen.epoch,
            seen_seq = seen.seq,
            incarnation = mine.incarnation,
            epoch = mine.epoch,
            seq = mine.seq,
            "the database went back in time; nothing is dispatched until an operator accepts it"
        );
        self.metrics.set_halted(true);
        self.core.halt(&reason);
        self.sessions.end_all();
        // So that it holds over restarts; if this fails, the next agent says it again.
        if let Err(error) = self.store.halt(self.core.standing().epoch(), &reason).await {
            warn!(error = &error as &dyn std::error::Error, "cannot keep that the mesh is halted");
        }
        Err(halted_status(&reason))
    }

    /// The verdicts on everything that the agent holds.
    pub(super) async fn answer(
        &self,
        node: NodeId,
        session: SessionId,
        verdicts: Vec<(AttemptKey, effect::Verdict)>,
    ) -> Result<Vec<AttemptVerdict>, Status> {
        let mut answers = Vec::with_capacity(verdicts.len());
        let mut held = BTreeSet::new();
        for (attempt, verdict) in verdicts {
            let verdict = self.verdict(node, attempt, verdict).await?;
            if verdict != Verdict::Kill {
                held.insert(attempt);
            }
            answers.push(AttemptVerdict { attempt: Some(attempt.into()), verdict: verdict.into() });
        }
        self.sessions.holds(node, session, &held);
        Ok(answers)
    }

    /// What becomes of an attempt that an agent holds; what the engine does not know is looked
    /// up: an end of its own that was committed may still owe its output.
    async fn verdict(
        &self,
        node: NodeId,
        attempt: AttemptKey,
        verdict: effect::Verdict,
    ) -> Result<Verdict, Status> {
        match verdict {
            effect::Verdict::Collect => return Ok(Verdict::Collect),
            effect::Verdict::Keep => match self.allow(node, attempt).await {
                Ok(_) => return Ok(Verdict::Keep),
                // One job's unreadable list must not keep the whole node out: the attempt runs
                // on, and only its staging, if that is still to come, asks again.
                Err(InputsError::Plan(error)) => {
                    warn!(%attempt, error = &error as &dyn std::error::Error, "cannot list an attempt's inputs");
                    return Ok(Verdict::Keep);
                }
                Err(InputsError::Store(error)) => return Err(error.into()),
                // It ended since the engine was asked.
                Err(InputsError::NotTheirs) => {}
            },
            effect::Verdict::Unknown => {}
        }
        let row = self.store.attempt(attempt).await?;
        let own = row.is_some_and(|row| row.node == node && row.cause.is_some_and(told_by_agent));
        Ok(if own { Verdict::Collect } else { Verdict::Kill })
    }

    /// Lets a node read the inputs of an attempt that is open at it, and says which they are.
    pub(super) async fn allow(
        &self,
        node: NodeId,
        attempt: AttemptKey,
    ) -> Result<Vec<FileEntry>, InputsError> {
        let row = self.store.attempt(attempt).await?;
        if row.is_none_or(|row| row.node != node || row.cause.is_some()) {
            return Err(InputsError::NotTheirs);
        }
        let plan = self.plans.plan(attempt.task.job).await?;
        let inputs = self.plans.inputs(&plan, attempt.task).await?;
        self.sessions.allow(node, attempt, digests(&inputs));
        Ok(inputs)
    }
}
