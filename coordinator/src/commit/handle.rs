//! The handle to the engine that the other rooms hold.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_proto::{
    code::{Code, LEADER_HEADER, RETRY_AFTER_HEADER},
    ids::Incarnation,
    v1::CommitPoint,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, metadata::MetadataValue};

use crate::{
    engine::{
        effect::{Refusal, Reply},
        event::{Event, ReplyId},
    },
    proof::Prover,
    store::{clock::boot_ms, coordinators::Addresses},
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

/// Where the leader stands: shared with readers and sessions.
#[derive(Debug)]
pub struct Standing {
    prover: Prover,
    epoch: AtomicU64,
    seq: AtomicU64,
    /// Boot-time milliseconds until which nobody else can have taken the lead.
    lease_until: AtomicU64,
    incarnation: watch::Sender<Option<Incarnation>>,
    highest: Mutex<Highest>,
    /// Where the leader is reached, while that is somebody else.
    leader: watch::Sender<Addresses>,
    /// Why nothing is dispatched or changed.
    halted: watch::Sender<Option<String>>,
    /// The last thing that could not be written failed for want of space.
    full: AtomicBool,
    /// Cancelled when this coordinator is deposed or halts; then there is a new one.
    reign: ArcSwap<CancellationToken>,
}

/// The highest commit that this coordinator has seen in the leader's row, leading or not.
#[derive(Debug, Default)]
struct Highest {
    incarnation: Option<Incarnation>,
    seq: u64,
    /// A lower one came after it.
    went_back: bool,
}

impl Standing {
    pub(super) fn new(prover: Prover) -> Self {
        Self {
            prover,
            epoch: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            incarnation: watch::Sender::new(None),
            highest: Mutex::default(),
            leader: watch::Sender::default(),
            halted: watch::Sender::default(),
            full: AtomicBool::new(false),
            reign: ArcSwap::default(),
        }
    }

    pub(super) fn begin(&self, incarnation: Incarnation, epoch: u64) {
        self.incarnation.send_replace(Some(incarnation));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Somebody else leads, and is reached there.
    pub(super) fn follows(&self, leader: Addresses) {
        self.leader.send_replace(leader);
    }

    /// The lease and everything that hangs on the lead are over.
    pub(super) fn depose(&self) {
        self.lease_until.store(0, Ordering::Release);
        self.leader.send_replace(Addresses::default());
        self.halted.send_replace(None);
        self.reign.swap(Arc::default()).cancel();
    }

    pub(super) fn halts(&self, reason: Option<String>) {
        let halts = reason.is_some();
        self.halted.send_replace(reason);
        if halts {
            self.reign.swap(Arc::default()).cancel();
        }
    }

    /// Why nothing is dispatched or changed, if that is so.
    #[must_use]
    pub fn halted(&self) -> Option<String> {
        self.halted.borrow().clone()
    }

    /// Changes of it.
    #[must_use]
    pub fn halts_seen(&self) -> watch::Receiver<Option<String>> {
        self.halted.subscribe()
    }

    /// Whether it is for want of space on the database's disk that nothing can be written.
    pub fn fills(&self, full: bool) {
        self.full.store(full, Ordering::Release);
    }

    /// Why nobody is served at the moment.
    pub(super) fn hindrance(&self) -> CoreError {
        if self.full.load(Ordering::Acquire) { CoreError::Full } else { CoreError::Recovering }
    }

    /// Where the leader is reached, as far as a stand-by knows.
    #[must_use]
    pub fn leader(&self) -> Addresses {
        self.leader.borrow().clone()
    }

    /// Is cancelled when this coordinator is deposed.
    #[must_use]
    pub fn reign(&self) -> CancellationToken {
        self.reign.load().as_ref().clone()
    }

    /// Takes note of where the leader's row stands, or stood when this coordinator ran last. No later
    /// incarnation is followed by an earlier one, and within one `seq` never falls, unless the database
    /// goes back in time.
    pub fn saw(&self, incarnation: Incarnation, seq: u64) {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if highest.incarnation < Some(incarnation) {
            *highest = Highest { incarnation: Some(incarnation), seq, went_back: false };
        }
        let seen = (highest.incarnation, highest.seq);
        highest.went_back |= (Some(incarnation), seq) < seen;
        if highest.incarnation == Some(incarnation) {
            highest.seq = highest.seq.max(seq);
        }
    }

    /// The highest commit that was seen, in words, if a lower one came after it.
    pub(super) fn went_back(&self) -> Option<String> {
        let highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        let later = *self.incarnation.borrow() < highest.incarnation;
        let of = if later { " of a later history" } else { "" };
        highest.went_back.then(|| format!("commit {}{of}", highest.seq))
    }

    /// The highest commit that was seen. None while the mesh is halted: what is committed then may be
    /// of a history that no operator will accept.
    #[must_use]
    pub fn highest(&self) -> Option<(Incarnation, u64)> {
        let halted = self.halted.borrow().is_some();
        let highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        let point = highest.incarnation.map(|incarnation| (incarnation, highest.seq));
        point.filter(|_| !halted && !highest.went_back)
    }

    /// A fence went through that was sent at `sent_ms`.
    pub(super) fn moved(&self, seq: u64, sent_ms: u64, lease_ms: u64) {
        let incarnation = *self.incarnation.borrow();
        if let Some(incarnation) = incarnation {
            self.saw(incarnation, seq);
        }
        self.seq.store(seq, Ordering::Release);
        self.lease_until.store(sent_ms + lease_ms, Ordering::Release);
    }

    /// Whether reads may be served: nobody else can lead yet.
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        boot_ms() < self.lease_until.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire).cast_signed()
    }

    /// The last commit, for agents.
    #[must_use]
    pub fn point(&self) -> CommitPoint {
        let mut point = CommitPoint {
            incarnation: self.incarnation.borrow().map(|id| id.to_string()).unwrap_or_default(),
            epoch: self.epoch.load(Ordering::Acquire),
            seq: self.seq.load(Ordering::Acquire),
            proof: Vec::new(),
        };
        self.prover.prove(&mut point);
        point
    }

    /// Whether a coordinator of this mesh gave this point out.
    #[must_use]
    pub fn gave(&self, point: &CommitPoint) -> bool {
        self.prover.proved(point)
    }
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

#[cfg(test)]
mod unit {
    use super::*;

    fn incarnation(number: u128) -> Incarnation {
        Incarnation(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_commit_that_is_behind_what_was_seen_is_noticed_and_an_accepted_history_is_not() {
        let standing = Standing::new(Prover::new(b"of this test"));
        assert_eq!(standing.highest(), None);
        standing.saw(incarnation(5), 10);
        standing.saw(incarnation(5), 12);
        assert_eq!((standing.highest(), standing.went_back()), (Some((incarnation(5), 12)), None));
        standing.begin(incarnation(5), 1);
        standing.saw(incarnation(5), 11);
        assert_eq!(standing.went_back().as_deref(), Some("commit 12"));
        assert_eq!(standing.highest(), None, "what is committed now may be of no account");
        standing.saw(incarnation(6), 3);
        assert_eq!((standing.highest(), standing.went_back()), (Some((incarnation(6), 3)), None), "accepted");
        // A copy from before that was accepted, however long it went on.
        standing.begin(incarnation(5), 9);
        standing.saw(incarnation(5), 900);
        assert_eq!(standing.went_back().as_deref(), Some("commit 3 of a later history"));
        standing.saw(incarnation(7), 901);
        standing.halts(Some("an agent has seen more".to_owned()));
        assert_eq!((standing.highest(), standing.went_back()), (None, None));
        standing.halts(None);
        assert_eq!(standing.highest(), Some((incarnation(7), 901)));
    }
}
