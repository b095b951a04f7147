//! One term: events are handled and committed until a commit fails or the process ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use tokio::time::{Instant as Deadline, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    batch::{Batch, Commit, Committed, MAX_BATCH, start},
    core::CommitLoop,
    handle::{Message, Phase},
    outside::Outside,
    term::Term,
};
use crate::{
    engine::{Engine, effect::Say, event::Event, types::Time},
    failpoint::{Point, reach},
    store::{StoreError, leader},
};

/// How often time passes for the engine when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// How long the last commit and laying down the lead may take at the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why a term ended.
pub(super) enum End {
    Shutdown,
    /// The rows that these events brought were refused.
    Poison {
        events: Vec<Event>,
        /// See [`Batch::fresh`].
        fresh: bool,
        error: StoreError,
    },
    /// The outcome is unknown, or the database is gone.
    Failed(StoreError),
}

/// The writing connection: idle, or taken by a commit under way.
struct Writer {
    idle: Option<PgConnection>,
    commit: Option<Commit>,
    /// When the commit under way is given up.
    until: Deadline,
}

impl<O: Outside> CommitLoop<O> {
    /// `again`: not the first term of this process, so agents must register again.
    pub(super) async fn lead(&mut self, term: Term, again: bool, shutdown: &CancellationToken) -> End {
        let Term { connection, mut engine, clock, epoch } = term;
        let mut writer = Writer { idle: Some(connection), commit: None, until: Deadline::now() };
        let mut pending = Batch::default();
        let mut untouched = true;
        let mut leading = false;
        let mut tick = Deadline::now();
        // At once: reading everything may have used up most of the lease.
        let mut beat = Deadline::now();
        loop {
            // Refused batches are handled again one part at a time, before anything new.
            if writer.commit.is_none() && pending.events.is_empty() {
                if let Some(events) = self.replay.pop_front() {
                    for event in &events {
                        engine.handle(clock.now(), event, &mut pending.fx);
                    }
                    engine.settle(clock.now(), &mut pending.fx);
                    pending.events = events;
                    pending.fresh = std::mem::take(&mut untouched);
                    pending.note();
                } else if !std::mem::replace(&mut leading, true) {
                    self.phase.send_replace(Phase::Leading);
                    if again {
                        self.outside.register_again();
                    }
                }
            }
            let due = pending.due();
            if let Some(connection) =
                writer.idle.take_if(|_| due.unwrap_or(beat).min(beat) <= Deadline::now())
            {
                beat = Deadline::now() + self.options.beat;
                writer.until = Deadline::now() + self.options.patience;
                let batch = std::mem::take(&mut pending);
                writer.commit = Some(start(connection, epoch, batch, Arc::clone(&self.metrics)));
            } else if writer.commit.is_none() && due.is_none() {
                // Nothing to write, and nothing under way that it could rest on.
                self.release(std::mem::take(&mut pending));
                if !leading {
                    continue;
                }
            }
            let wake = engine
                .next_deadline()
                .map_or(tick, |at| tick.min(Deadline::now() + Duration::from_millis(at.since(clock.now()))));
            // While a commit is under way its end is what the beat and the next batch wait for.
            let wake = if writer.commit.is_some() { wake } else { wake.min(due.unwrap_or(beat)).min(beat) };
            let open = leading && pending.events.len() < MAX_BATCH;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    self.farewell(writer, epoch).await;
                    return End::Shutdown;
                }
                done = async { writer.commit.as_mut().expect("guarded").await }, if writer.commit.is_some() => {
                    writer.commit = None;
                    let Ok(Committed { connection, batch, sent_ms, beat: empty, result }) = done else {
                        return End::Failed(StoreError::Database(sqlx::Error::WorkerCrashed));
                    };
                    match result {
                        Ok(seq) => {
                            self.standing.moved(seq.cast_unsigned(), sent_ms, self.lease_ms());
                            writer.idle = Some(connection);
                            if !empty {
                                self.standing.fills(false);
                            }
                            reach(Point::BeforeRelease);
                            self.release(batch);
                            reach(Point::AfterRelease);
                        }
                        Err(error) if error.is_poison() => {
                            if !pending.events.is_empty() {
                                self.replay.push_front(pending.events);
                            }
                            return End::Poison { events: batch.events, fresh: batch.fresh, error };
                        }
                        Err(error) => return End::Failed(error),
                    }
                }
                () = sleep_until(writer.until), if writer.commit.is_some() => {
                    return End::Failed(StoreError::Silent);
                }
                () = sleep_until(wake) => {
                    untouched = false;
                    if tick <= Deadline::now() {
                        tick = Deadline::now() + TICK;
                        engine.handle(clock.now(), &Event::Tick, &mut pending.fx);
                        self.outside.totals(engine.totals());
                    }
                    engine.settle(clock.now(), &mut pending.fx);
                    pending.note();
                }
                message = self.queue.recv(), if open => {
                    let Some(message) = message else { return End::Shutdown };
                    untouched = false;
                    let started = Instant::now();
                    self.take(&mut engine, clock.now(), message, &mut pending);
                    while pending.events.len() < MAX_BATCH && let Ok(message) = self.queue.try_recv() {
                        self.take(&mut engine, clock.now(), message, &mut pending);
                    }
                    engine.settle(clock.now(), &mut pending.fx);
                    pending.note();
                    self.metrics.scheduled(started.elapsed());
                }
            }
        }
    }

    fn take(&mut self, engine: &mut Engine, now: Time, message: Message, pending: &mut Batch) {
        if let Some((id, reply)) = message.reply {
            self.replies.insert(id, reply);
        }
        engine.handle(now, &message.event, &mut pending.fx);
        pending.events.push(message.event);
    }

    /// Says what a batch said: its commit is through.
    fn release(&mut self, batch: Batch) {
        for (number, job) in &batch.accepted {
            self.outside.accepted(*number, job);
        }
        for say in batch.fx.says {
            reach(Point::AmidRelease);
            if let Say::Reply(id, reply) = say {
                if let Some(waiting) = self.replies.remove(&id) {
                    let _ = waiting.send(reply);
                }
            } else {
                self.outside.say(say);
            }
        }
    }

    /// Lets the last commit end and lays down the lead, so that a successor need not wait.
    async fn farewell(&mut self, mut writer: Writer, epoch: i64) {
        info!("laying down the lead");
        let laid_down = timeout(FAREWELL, async {
            if let Some(commit) = writer.commit.take()
                && let Ok(Committed { connection, batch, result: Ok(_), .. }) = commit.await
            {
                self.release(batch);
                writer.idle = Some(connection);
            }
            reach(Point::BeforeLayDown);
            match &mut writer.idle {
                Some(connection) => leader::lay_down(connection, epoch).await,
                None => Ok(()),
            }
        });
        match laid_down.await {
            Ok(Ok(())) => reach(Point::AfterLayDown),
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "could not lay down the lead");
            }
            Err(_) => warn!("could not lay down the lead: the database does not answer"),
        }
    }
}
