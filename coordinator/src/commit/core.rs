//! The loop that owns the engine.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use mesh_proto::ids::CoordinatorId;
use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant as Deadline, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    handle::{Core, Message, Phase, Standing},
    outside::Outside,
    term::{self, Term},
};
use crate::{
    engine::{
        effect::{Effects, Refusal, Reply, Say},
        event::{Event, ReplyId},
        types::Settings,
    },
    metrics::Metrics,
    spawn::spawn,
    store::{
        Store, StoreError,
        clock::boot_ms,
        commit::{Rows, commit},
        leader,
    },
};

/// Events in one batch at the most.
const MAX_BATCH: usize = 4096;
/// How often time passes for the engine when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// Waits between attempts to begin a term: doubling from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How much before the takeover time the lease ends, for clocks that run unevenly.
const LEASE_MARGIN: Duration = Duration::from_millis(500);

/// What the commit loop goes by.
#[derive(Clone, Debug)]
pub struct Options {
    pub id: CoordinatorId,
    pub settings: Settings,
    /// How long a leader must stand still before another takes over.
    pub takeover: Duration,
    /// An idle leader raises seq this often.
    pub beat: Duration,
    /// How long nodes have to come back before their attempts count as unreachable.
    pub adoption_grace: Duration,
    /// Events that may wait.
    pub queue: usize,
}

/// Owns the engine and the one connection that writes.
pub struct CommitLoop<O> {
    store: Store,
    options: Options,
    outside: O,
    metrics: Arc<Metrics>,
    queue: mpsc::Receiver<Message>,
    phase: watch::Sender<Phase>,
    standing: Arc<Standing>,
    replies: HashMap<ReplyId, oneshot::Sender<Reply>>,
    /// Events of batches that the database refused, to be handled again, in parts.
    replay: VecDeque<Vec<Event>>,
}

/// A batch that gathers or is being committed.
#[derive(Default)]
struct Batch {
    fx: Effects,
    /// Kept until the commit, in case they must be handled again.
    events: Vec<Event>,
}

/// Why a term ended.
enum End {
    Shutdown,
    /// The rows of these events were refused.
    Poison(Vec<Event>, StoreError),
    /// The outcome is unknown, or the database is gone.
    Failed(StoreError),
}

/// What a commit gives back: its connection, its batch, when it was sent (boot-time
/// milliseconds), and the new seq.
struct Committed {
    connection: PgConnection,
    batch: Batch,
    sent_ms: u64,
    result: Result<i64, StoreError>,
}

type Commit = JoinHandle<Committed>;

impl<O: Outside> CommitLoop<O> {
    /// The loop and the handle to it.
    pub fn new(store: Store, options: Options, outside: O, metrics: Arc<Metrics>) -> (Self, Core) {
        let (send, queue) = mpsc::channel(options.queue);
        let (phase, phases) = watch::channel(Phase::Recovering);
        let standing = Arc::new(Standing::default());
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

    /// Leads, term after term, until `shutdown` or until somebody else leads.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut wait = RETRY.0;
        let mut first = true;
        let result = loop {
            let begun = tokio::select! {
                begun = term::begin(&self.store, &self.options) => begun,
                () = shutdown.cancelled() => break Ok(()),
            };
            let begun = match begun {
                Ok(begun) => begun,
                Err(StoreError::Fenced) => break Err(StoreError::Fenced),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot begin a term; trying again");
                    self.refuse_waiting();
                    tokio::select! {
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
                        () = shutdown.cancelled() => break Ok(()),
                    }
                    continue;
                }
            };
            wait = RETRY.0;
            let row = begun.row;
            self.standing.begin(row.incarnation, row.epoch.cast_unsigned());
            self.standing.moved(row.seq.cast_unsigned(), begun.sent_ms, self.lease_ms());
            self.metrics.set_leader(true);
            if !std::mem::take(&mut first) {
                self.outside.register_again();
            }
            let end = self.lead(begun.term, &shutdown).await;
            self.phase.send_replace(Phase::Recovering);
            self.metrics.set_leader(false);
            match end {
                End::Shutdown => break Ok(()),
                End::Failed(StoreError::Fenced) => break Err(StoreError::Fenced),
                End::Failed(error) => {
                    error!(error = &error as &dyn std::error::Error, "a commit failed; memory is read anew");
                    self.replies.clear();
                    self.replay.clear();
                }
                End::Poison(events, error) => {
                    if events.is_empty() {
                        // Only time went on, so there is no event to drop: slow down and try again.
                        tokio::time::sleep(RETRY.1).await;
                    }
                    self.split(events, &error);
                }
            }
        };
        self.phase.send_replace(Phase::Ended);
        self.replies.clear();
        result
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.options.takeover.saturating_sub(LEASE_MARGIN).as_millis()).unwrap_or(0)
    }

    /// Answers those who asked before the recovery began: their replies are dropped.
    fn refuse_waiting(&mut self) {
        self.replies.clear();
        while let Ok(message) = self.queue.try_recv() {
            drop(message);
        }
    }

    /// Halves a refused batch; a single event that is refused is the guilty one.
    fn split(&mut self, mut events: Vec<Event>, error: &StoreError) {
        let cause = error as &dyn std::error::Error;
        if events.len() > 1 {
            warn!(
                events = events.len(),
                error = cause,
                "the database refused a batch; looking for the guilty event"
            );
            let second = events.split_off(events.len() / 2);
            self.replay.push_front(second);
            self.replay.push_front(events);
            return;
        }
        error!(error = cause, event = ?events.first().map(name), "the database refused an event; it is dropped");
        let reply = events.first().and_then(reply_of).and_then(|id| self.replies.remove(&id));
        if let Some(reply) = reply {
            let _ = reply.send(Reply::Refused(Refusal::Poison("its rows are not acceptable".into())));
        }
    }

    /// One term: until a commit fails or the process ends.
    async fn lead(&mut self, term: Term, shutdown: &CancellationToken) -> End {
        let Term { connection, mut engine, clock, epoch } = term;
        let mut idle = Some(connection);
        let mut commit: Option<Commit> = None;
        let mut pending = Batch::default();
        let mut tick = Deadline::now();
        let mut beat = Deadline::now() + self.options.beat;
        if self.replay.is_empty() {
            self.phase.send_replace(Phase::Leading);
        }
        loop {
            // Refused batches are handled again one part at a time, before anything new.
            if commit.is_none()
                && pending.events.is_empty()
                && let Some(events) = self.replay.pop_front()
            {
                for event in &events {
                    engine.handle(clock.now(), event, &mut pending.fx);
                }
                engine.settle(clock.now(), &mut pending.fx);
                pending.events = events;
            } else if self.replay.is_empty() && commit.is_none() {
                self.phase
                    .send_if_modified(|phase| std::mem::replace(phase, Phase::Leading) != Phase::Leading);
            }
            if let Some(connection) =
                idle.take_if(|_| !pending.fx.writes.is_empty() || beat <= Deadline::now())
            {
                beat = Deadline::now() + self.options.beat;
                commit = Some(self.start(connection, epoch, std::mem::take(&mut pending)));
            } else if commit.is_none() && !pending.fx.says.is_empty() {
                let batch = std::mem::take(&mut pending);
                self.release(batch.fx.says);
            } else if commit.is_none() {
                pending.events.clear();
            }
            let wake = engine
                .next_deadline()
                .map_or(tick, |at| tick.min(Deadline::now() + Duration::from_millis(at.since(clock.now()))));
            let open = pending.events.len() < MAX_BATCH && self.replay.is_empty();
            tokio::select! {
                biased;
                done = async { commit.as_mut().expect("guarded").await }, if commit.is_some() => {
                    commit = None;
                    let Ok(Committed { connection, batch, sent_ms, result }) = done else {
                        return End::Failed(StoreError::Database(sqlx::Error::WorkerCrashed));
                    };
                    match result {
                        Ok(seq) => {
                            self.standing.moved(seq.cast_unsigned(), sent_ms, self.lease_ms());
                            idle = Some(connection);
                            self.release(batch.fx.says);
                        }
                        Err(error) if error.is_poison() => {
                            let mut later = pending.events;
                            if !later.is_empty() {
                                self.replay.push_front(std::mem::take(&mut later));
                            }
                            return End::Poison(batch.events, error);
                        }
                        Err(error) => return End::Failed(error),
                    }
                }
                message = self.queue.recv(), if open => {
                    let Some(message) = message else { return End::Shutdown };
                    let started = Instant::now();
                    self.take(&mut engine, clock.now(), message, &mut pending);
                    while pending.events.len() < MAX_BATCH && let Ok(message) = self.queue.try_recv() {
                        self.take(&mut engine, clock.now(), message, &mut pending);
                    }
                    engine.settle(clock.now(), &mut pending.fx);
                    self.metrics.scheduled(started.elapsed());
                }
                () = sleep_until(wake.min(beat)) => {
                    if tick <= Deadline::now() {
                        tick = Deadline::now() + TICK;
                        engine.handle(clock.now(), &Event::Tick, &mut pending.fx);
                        self.outside.totals(engine.totals());
                    }
                    engine.settle(clock.now(), &mut pending.fx);
                }
                () = shutdown.cancelled() => {
                    info!("laying down the lead");
                    if let Some(commit) = commit.take()
                        && let Ok(Committed { connection, batch, result: Ok(_), .. }) = commit.await
                    {
                        self.release(batch.fx.says);
                        idle = Some(connection);
                    }
                    if let Some(mut connection) = idle
                        && let Err(error) = leader::lay_down(&mut connection, epoch).await
                    {
                        warn!(error = &error as &dyn std::error::Error, "could not lay down the lead");
                    }
                    return End::Shutdown;
                }
            }
        }
    }

    fn take(
        &mut self,
        engine: &mut crate::engine::Engine,
        now: crate::engine::types::Time,
        message: Message,
        pending: &mut Batch,
    ) {
        if let Some((id, reply)) = message.reply {
            self.replies.insert(id, reply);
        }
        engine.handle(now, &message.event, &mut pending.fx);
        pending.events.push(message.event);
    }

    /// Begins to commit a batch.
    fn start(&self, mut connection: PgConnection, epoch: i64, mut batch: Batch) -> Commit {
        let metrics = Arc::clone(&self.metrics);
        spawn("commit", async move {
            let (started, sent_ms) = (Instant::now(), boot_ms());
            let rows = Rows::of(std::mem::take(&mut batch.fx.writes));
            let beat = rows.is_empty();
            let result = commit(&mut connection, epoch, rows).await;
            if !beat {
                metrics.committed(batch.events.len(), started.elapsed());
            }
            Committed { connection, batch, sent_ms, result }
        })
    }

    /// Says what a batch said: its commit is through.
    fn release(&mut self, says: Vec<Say>) {
        for say in says {
            if let Say::Reply(id, reply) = say {
                if let Some(waiting) = self.replies.remove(&id) {
                    let _ = waiting.send(reply);
                }
            } else {
                self.outside.say(say);
            }
        }
    }
}

fn reply_of(event: &Event) -> Option<ReplyId> {
    match event {
        Event::JobSubmitted { reply, .. }
        | Event::JobCancelled { reply, .. }
        | Event::NodeRegistered { reply, .. }
        | Event::NodeChanged { reply, .. }
        | Event::NodesAsked { reply } => Some(*reply),
        Event::SessionOpened { .. }
        | Event::SessionClosed { .. }
        | Event::Heartbeat { .. }
        | Event::AttemptStarted { .. }
        | Event::AttemptEnded { .. }
        | Event::AttemptWithdrawn { .. }
        | Event::CoefficientsChanged { .. }
        | Event::Tick => None,
    }
}

/// An event's kind, for the log: never its payload.
fn name(event: &Event) -> &'static str {
    match event {
        Event::JobSubmitted { .. } => "job submitted",
        Event::JobCancelled { .. } => "job cancelled",
        Event::NodeRegistered { .. } => "node registered",
        Event::SessionOpened { .. } => "session opened",
        Event::SessionClosed { .. } => "session closed",
        Event::Heartbeat { .. } => "heartbeat",
        Event::AttemptStarted { .. } => "attempt started",
        Event::AttemptEnded { .. } => "attempt ended",
        Event::AttemptWithdrawn { .. } => "attempt withdrawn",
        Event::CoefficientsChanged { .. } => "coefficients changed",
        Event::NodeChanged { .. } => "node changed",
        Event::NodesAsked { .. } => "nodes asked",
        Event::Tick => "tick",
    }
}
