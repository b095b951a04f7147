//! The loop that owns the engine: term after term, and what happens between two of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use mesh_proto::ids::CoordinatorId;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    batch::{name, reply_of},
    handle::{Core, Message, Phase},
    lead::End,
    outside::Outside,
    standby::{self, Claim},
    standing::Standing,
    term::{self, Begun},
};
use crate::{
    engine::{
        effect::{Refusal, Reply},
        event::{Event, ReplyId},
        types::Settings,
    },
    failpoint::{Point, reach},
    metrics::Metrics,
    proof::Prover,
    store::{Store, StoreError, coordinators::Addresses},
};

/// Waits between attempts to begin a term: doubling from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long nothing is tried after the database's disk was found full: less than the time after which
/// a stand-by, whose database is the same, would take over for nothing.
const FULL: Duration = Duration::from_secs(1);
/// How much before the takeover time the lease ends at the most, for clocks that run unevenly;
/// an eighth of it where that is less.
const LEASE_MARGIN: Duration = Duration::from_millis(500);

/// What the commit loop goes by.
#[derive(Clone, Debug)]
pub struct Options {
    pub id: CoordinatorId,
    /// Where this coordinator is reached.
    pub addresses: Addresses,
    /// Shows agents' commit points to be a coordinator's.
    pub prover: Prover,
    /// It shares nothing, so it can neither stand by nor go on once another leads.
    pub alone: bool,
    pub settings: Settings,
    /// How long a leader must stand still before another takes over.
    pub takeover: Duration,
    /// An idle leader raises seq this often.
    pub beat: Duration,
    /// How long nodes have to come back before their attempts count as unreachable.
    pub adoption_grace: Duration,
    /// A database that does not answer for so long is given up; callers are refused until it
    /// does again.
    pub patience: Duration,
    /// Events that may wait.
    pub queue: usize,
}

/// Owns the engine and the one connection that writes.
pub struct CommitLoop<O> {
    pub(super) store: Store,
    pub(super) options: Options,
    pub(super) outside: O,
    pub(super) metrics: Arc<Metrics>,
    pub(super) queue: mpsc::Receiver<Message>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) standing: Arc<Standing>,
    pub(super) replies: HashMap<ReplyId, oneshot::Sender<Reply>>,
    /// Events of batches that the database refused, to be handled again, in parts.
    pub(super) replay: VecDeque<Vec<Event>>,
}

impl<O: Outside> CommitLoop<O> {
    /// The loop and the handle to it.
    pub fn new(store: Store, options: Options, outside: O, metrics: Arc<Metrics>) -> (Self, Core) {
        let (send, queue) = mpsc::channel(options.queue);
        let (phase, phases) = watch::channel(Phase::Recovering);
        let standing = Arc::new(Standing::new(options.prover.clone()));
        let core = Core {
            queue: send,
            phase: phases,
            standing: Arc::clone(&standing),
            next_reply: Arc::new(AtomicU64::new(1)),
        };
        let this = Self {
            store,
            options,
            outside,
            metrics,
            queue,
            phase,
            standing,
            replies: HashMap::new(),
            replay: VecDeque::new(),
        };
        (this, core)
    }

    /// Leads and stands by, term after term, until `shutdown`; one that cannot stand by also until
    /// somebody else leads.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut wait = RETRY.0;
        let mut claim = Claim::Start;
        let mut again = false;
        let result = loop {
            let begun = tokio::select! {
                begun = self.begin(claim) => begun,
                () = shutdown.cancelled() => break Ok(()),
            };
            let begun = match begun {
                Ok(begun) => begun,
                Err(StoreError::Fenced) if self.options.alone => break Err(StoreError::Fenced),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot begin a term; trying again");
                    if matches!(error, StoreError::Full(_)) {
                        self.standing.fills(true);
                    }
                    self.refuse_waiting();
                    if pause(wait, &shutdown).await {
                        break Ok(());
                    }
                    wait = (wait * 2).min(RETRY.1);
                    continue;
                }
            };
            wait = RETRY.0;
            claim = Claim::Epoch(begun.term.epoch);
            self.standing.begin(begun.incarnation, begun.term.epoch.cast_unsigned());
            self.standing.moved(begun.seq.cast_unsigned(), begun.sent_ms, self.lease_ms());
            self.metrics.set_leader(true);
            let halted = match begun.halted {
                Some(reason) => Some(reason),
                None => self.went_back(begun.term.epoch, begun.seq).await,
            };
            self.metrics.set_halted(halted.is_some());
            self.standing.halts(halted);
            let leases = begun.leases;
            let end = self.lead(begun.term, again, &shutdown).await;
            drop(leases);
            again = true;
            self.metrics.set_leader(false);
            self.metrics.set_halted(false);
            match end {
                End::Shutdown => break Ok(()),
                End::Failed(StoreError::Fenced) => {
                    warn!("another coordinator took the lead");
                    claim = Claim::Deposed;
                    self.step_down();
                    again = false;
                }
                End::Failed(error) => {
                    let full = matches!(error, StoreError::Full(_));
                    self.standing.fills(full);
                    self.phase.send_replace(Phase::Recovering);
                    error!(error = &error as &dyn std::error::Error, "a commit failed; memory is read anew");
                    self.replies.clear();
                    self.replay.clear();
                    // Memory would be read, and every agent register, over and over.
                    if full && pause(FULL, &shutdown).await {
                        break Ok(());
                    }
                }
                End::Poison { events, fresh, error } => {
                    self.phase.send_replace(Phase::Recovering);
                    // Only time went on, so there is no event to drop: slow down and try again.
                    if events.is_empty() && pause(RETRY.1, &shutdown).await {
                        break Ok(());
                    }
                    reach(Point::BeforeSplit);
                    self.split(events, fresh, &error);
                }
            }
        };
        self.phase.send_replace(Phase::Ended);
        self.replies.clear();
        result
    }

    async fn begin(&self, claim: Claim) -> Result<Begun, StoreError> {
        let taken = standby::take(&self.store, &self.options, claim, &self.phase, &self.standing).await?;
        if *self.phase.borrow() == Phase::Standby {
            info!(epoch = taken.row.epoch, "takes over");
            self.phase.send_replace(Phase::Recovering);
        }
        term::begin(&self.store, &self.options, taken).await
    }

    /// Whether this process has seen later commits than the database holds, and why it halts then.
    async fn went_back(&self, epoch: i64, seq: i64) -> Option<String> {
        let highest = self.standing.went_back()?;
        let reason = format!(
            "the database went back in time: this coordinator has seen {highest}, the database holds {seq}. \
             Restore the newer database, or go on with this one by `meshctl accept-database`"
        );
        error!(
            seen = highest,
            seq, "the database went back in time; nothing is dispatched until an operator accepts it"
        );
        // So that it holds over restarts; if this fails, whoever has seen more says it again.
        if let Err(error) = self.store.halt(epoch, &reason).await {
            warn!(error = &error as &dyn std::error::Error, "cannot keep that the mesh is halted");
        }
        Some(reason)
    }

    /// Nothing of the term that is over goes out any more: its streams end, and who waits for an
    /// answer is sent to the new leader.
    fn step_down(&mut self) {
        self.standing.depose();
        let next = if self.options.alone { Phase::Recovering } else { Phase::Standby };
        self.phase.send_replace(next);
        self.outside.step_down();
        self.replay.clear();
        self.refuse_waiting();
    }

    pub(super) fn lease_ms(&self) -> u64 {
        let margin = LEASE_MARGIN.min(self.options.takeover / 8);
        u64::try_from(self.options.takeover.saturating_sub(margin).as_millis()).unwrap_or(u64::MAX)
    }

    /// Answers those who asked before the recovery began: their replies are dropped.
    fn refuse_waiting(&mut self) {
        self.replies.clear();
        while let Ok(message) = self.queue.try_recv() {
            drop(message);
        }
    }

    /// Halves a refused batch. An event that is refused alone, on memory that was just read, is
    /// the guilty one; before that, its batch may have held work of the scheduler beside it.
    fn split(&mut self, mut events: Vec<Event>, fresh: bool, error: &StoreError) {
        let cause = error as &dyn std::error::Error;
        if events.len() > 1 {
            let count = events.len();
            warn!(
                events = count,
                error = cause,
                "the database refused a batch; looking for the guilty event"
            );
            let second = events.split_off(count / 2);
            self.replay.push_front(second);
            self.replay.push_front(events);
            return;
        }
        let Some(event) = events.first() else { return };
        if !fresh {
            self.replay.push_front(events);
            return;
        }
        error!(error = cause, event = name(event), "the database refused an event; it is dropped");
        let Some(reply) = reply_of(event).and_then(|id| self.replies.remove(&id)) else { return };
        if matches!(error, StoreError::Rows(_)) {
            let _ = reply.send(Reply::Refused(Refusal::Poison("its rows are not acceptable".into())));
        }
        // Otherwise memory and database disagreed, which is not the caller's fault: the reply
        // is dropped, and it may try again.
    }
}

/// Waits, and says whether the process ends meanwhile.
async fn pause(time: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = sleep(time) => false,
        () = shutdown.cancelled() => true,
    }
}
