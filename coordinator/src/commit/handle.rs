//! The handle to the engine that the other rooms hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_proto::code::{Code, LEADER_HEADER, RETRY_AFTER_HEADER};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tonic::{Status, metadata::MetadataValue};

use super::standing::Standing;
use crate::engine::{
    effect::{Refusal, Reply},
    event::{Event, ReplyId},
};

/// Between two looks at a lease that ran out.
const LEASE_LOOK: Duration = Duration::from_millis(50);

/// Whether the engine can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for Postgres or for the lead, or reading everything.
    Recovering,
    Leading,
    /// Another coordinator leads.
    Standby,
    Ended,
}

/// An event and who waits for its answer.
#[derive(Debug)]
pub(super) struct Message {
    pub event: Event,
    pub reply: Option<(ReplyId, oneshot::Sender<Reply>)>,
}

/// Asks and tells the engine.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) queue: mpsc::Sender<Message>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) standing: Arc<Standing>,
    pub(super) next_reply: Arc<AtomicU64>,
}

/// The engine could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    #[error("the coordinator is recovering; try again in a moment")]
    Recovering,
    #[error(
        "the database's disk is full, so nothing can be changed; free some space on it, and the mesh goes on by itself"
    )]
    Full,
    #[error("{}", following(.0))]
    Standby(Vec<String>),
    #[error("the coordinator is shutting down")]
    Ended,
    #[error("{}", refused(.0))]
    Refused(Refusal),
    #[error("the engine gave an answer to another question")]
    Mismatch,
}

fn following(leader: &[String]) -> String {
    match leader {
        [] => "this coordinator is a stand-by, and no leader is known yet".into(),
        [leader, ..] => format!("this coordinator is a stand-by; {leader} leads"),
    }
}

/// How a stand-by answers every call: `UNAVAILABLE`, with the leader's addresses (`host:port`)
/// for programs. The header is there in any case, so that a client knows whom it asked.
#[must_use]
pub fn standby_status(leader: &[String]) -> Status {
    let mut status = Code::Unavailable.status(following(leader));
    let addresses = leader.join(",").parse().unwrap_or_else(|_| MetadataValue::from_static(""));
    let headers = status.metadata_mut();
    headers.insert(LEADER_HEADER, addresses);
    headers.insert(RETRY_AFTER_HEADER, MetadataValue::from_static("300"));
    status
}

/// How a halted coordinator answers what would change something.
#[must_use]
pub fn halted_status(reason: &str) -> Status {
    Code::Stale.status(format!("the mesh is halted: {reason}"))
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoSuchJob => "there is no such job".into(),
        Refusal::NoSuchNode => "there is no such node".into(),
        Refusal::KeyUsed(job) => {
            format!("this idempotency key was used for another payload, by job {job}")
        }
        Refusal::Poison(why) => format!("the database refused this: {why}"),
        Refusal::NothingDead(job) => format!("nothing that was named in job {job} is a dead letter"),
        Refusal::WasCancelled(job) => format!("job {job} was cancelled; submit it again instead"),
        Refusal::StillEnding(job) => {
            format!("job {job} is ending and some of its processes still run; try again when it is over")
        }
        Refusal::Changed(job) => format!("job {job} changed meanwhile; try again"),
    }
}

impl From<CoreError> for Status {
    fn from(error: CoreError) -> Self {
        let code = match &error {
            CoreError::Standby(leader) => return standby_status(leader),
            CoreError::Recovering | CoreError::Full | CoreError::Ended => Code::Unavailable,
            CoreError::Refused(Refusal::NoSuchJob | Refusal::NoSuchNode) => Code::NotFound,
            CoreError::Refused(
                Refusal::KeyUsed(_)
                | Refusal::NothingDead(_)
                | Refusal::WasCancelled(_)
                | Refusal::StillEnding(_)
                | Refusal::Changed(_),
            ) => Code::Conflict,
            CoreError::Refused(Refusal::Poison(_)) => Code::Invalid,
            CoreError::Mismatch => Code::Internal,
        };
        let mut status = code.status(error.to_string());
        if code == Code::Unavailable {
            status.metadata_mut().insert(RETRY_AFTER_HEADER, MetadataValue::from_static("500"));
        }
        status
    }
}

impl Core {
    /// Has an event handled and waits until what it brought is committed.
    pub async fn ask(&self, event: impl FnOnce(ReplyId) -> Event) -> Result<Reply, CoreError> {
        let reply = self.send(event).await?;
        self.answer(reply).await
    }

    /// The same, but whoever asks waits no longer than `patience` once the engine has the event:
    /// none when that is over. The event is handled all the same.
    pub async fn ask_within(
        &self,
        patience: Duration,
        event: impl FnOnce(ReplyId) -> Event,
    ) -> Result<Option<Reply>, CoreError> {
        let reply = self.send(event).await?;
        match timeout(patience, self.answer(reply)).await {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn answer(&self, reply: oneshot::Receiver<Reply>) -> Result<Reply, CoreError> {
        match reply.await {
            Ok(Reply::Refused(refusal)) => Err(CoreError::Refused(refusal)),
            Ok(reply) => Ok(reply),
            // The term that heard it is over.
            Err(_) => Err(self.ready().err().unwrap_or_else(|| self.standing.hindrance())),
        }
    }

    async fn send(
        &self,
        event: impl FnOnce(ReplyId) -> Event,
    ) -> Result<oneshot::Receiver<Reply>, CoreError> {
        self.ready()?;
        let id = ReplyId(self.next_reply.fetch_add(1, Ordering::Relaxed));
        let (send, receive) = oneshot::channel();
        let message = Message { event: event(id), reply: Some((id, send)) };
        self.queue.send(message).await.map_err(|_| CoreError::Ended)?;
        Ok(receive)
    }

    /// Has an event handled. Nobody waits for it: if it is lost in a rebuild, its sender says
    /// it again when it registers again.
    pub async fn tell(&self, event: Event) -> Result<(), CoreError> {
        self.ready()?;
        self.queue.send(Message { event, reply: None }).await.map_err(|_| CoreError::Ended)
    }

    /// Has an event handled, after the recovery if one is under way: for streams, which stay
    /// open meanwhile.
    pub async fn tell_in_time(&self, event: Event) -> Result<(), CoreError> {
        let mut phase = self.phase.clone();
        match phase.wait_for(|phase| *phase != Phase::Recovering).await.map(|phase| *phase) {
            Ok(Phase::Leading) => {}
            Ok(Phase::Standby) => return Err(CoreError::Standby(self.standing.leader().members)),
            Ok(Phase::Recovering | Phase::Ended) | Err(_) => return Err(CoreError::Ended),
        }
        self.queue.send(Message { event, reply: None }).await.map_err(|_| CoreError::Ended)
    }

    /// Refuses while the engine cannot answer.
    pub fn ready(&self) -> Result<(), CoreError> {
        match *self.phase.borrow() {
            Phase::Leading => Ok(()),
            Phase::Recovering => Err(self.standing.hindrance()),
            Phase::Standby => Err(CoreError::Standby(self.standing.leader().members)),
            Phase::Ended => Err(CoreError::Ended),
        }
    }

    /// Refuses reads that another leader may have overtaken.
    pub fn readable(&self) -> Result<(), CoreError> {
        self.ready()?;
        if self.standing.holds_lease() { Ok(()) } else { Err(CoreError::Recovering) }
    }

    /// Stops dispatch and changes until an operator accepts the database as it is. Every stream
    /// ends.
    pub fn halt(&self, reason: &str) {
        self.standing.halts(Some(reason.to_owned()));
    }

    /// Waits until nobody else can have taken the lead: for what stays open while the database is
    /// away, and is ended from outside when this coordinator is deposed.
    pub async fn leased(&self) {
        while !self.standing.holds_lease() {
            tokio::time::sleep(LEASE_LOOK).await;
        }
    }

    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Changes of phase.
    #[must_use]
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }
}
