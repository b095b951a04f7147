//! The commit loop, by the rules of `coordinator/src/commit/lead.rs`: one commit at a time while
//! the next batch gathers, halves of what the database refused before anything new.

use std::sync::Arc;

use coordinator::engine::{
    Engine,
    effect::{AttemptRow, Effects, Say, Write},
    event::{AttemptEnd, Event, NewDefinition, NewJob, NodeChange, Registration, ReplyId},
    types::{Cause, Time},
};
use mesh_proto::ids::{NodeId, SessionId};

use crate::{
    broken::Broken,
    coordinator::{BEAT, Coordinator},
    edge::Asker,
    invariant::Invariant,
    plan::{MS, Micros},
    witness::Witness,
    world::{Happening, World},
};

const MAX_BATCH: usize = 4096;
const TICK: Micros = 250 * MS;

/// A batch that gathers or is being committed.
#[derive(Debug, Default)]
pub struct Batch {
    pub fx: Effects,
    pub events: Vec<Event>,
    /// It holds what was handled again, first after memory was read anew.
    pub fresh: bool,
}

impl World {
    /// Hands an event to the loop.
    pub fn enqueue(&mut self, event: Event, asker: Option<Asker>) {
        let id = ReplyId(self.number());
        let Some(core) = self.core_mut() else { return };
        let event = with_reply(event, id);
        core.inbox.push_back((event, asker.map(|asker| (id, asker))));
        let life = core.life;
        let wait = self.rng.range(0, 300);
        self.after(wait, Happening::Loop { life });
    }

    pub fn wake_loop(&mut self, life: u64) {
        if self.core_of(life).is_some_and(|core| core.engine.is_some()) {
            self.pump();
        }
    }

    /// One pass of the loop after another, until it must wait.
    pub fn pump(&mut self) {
        let host = self.turn;
        while let Some(mut core) = self.hosts[host].process.take() {
            let Some(mut engine) = core.engine.take() else {
                self.hosts[host].process = Some(core);
                return;
            };
            let more = self.pass(&mut core, &mut engine);
            core.engine = Some(engine);
            match more {
                Pass::Again => self.hosts[host].process = Some(core),
                Pass::RegisterAgain => {
                    self.hosts[host].process = Some(core);
                    self.register_again();
                }
                Pass::Say(says) => {
                    self.hosts[host].process = Some(core);
                    self.release(says);
                }
                Pass::Commit => {
                    self.hosts[host].process = Some(core);
                    self.start_commit();
                }
                Pass::Wait(wake) => {
                    let life = core.life;
                    let sooner = core.wake.is_none_or(|at| wake < at || at <= self.now);
                    if sooner {
                        core.wake = Some(wake);
                    }
                    self.hosts[host].process = Some(core);
                    if sooner {
                        self.at(wake, Happening::Loop { life });
                    }
                    return;
                }
            }
        }
    }

    fn pass(&mut self, core: &mut Coordinator, engine: &mut Engine) -> Pass {
        let (now, time) = (self.now, core.time(self.clock()));
        if core.commit.is_none() && core.pending.events.is_empty() {
            if let Some(events) = core.replay.pop_front() {
                for event in &events {
                    self.take(&mut core.witness, time, engine, event, &mut core.pending.fx);
                }
                self.settle(&core.witness, time, engine, &mut core.pending.fx);
                core.pending.events = events;
                core.pending.fresh = std::mem::take(&mut core.untouched);
            } else if !std::mem::replace(&mut core.leading, true) {
                self.history.note(now, "leads", format_args!("epoch {}", core.epoch));
                if std::mem::replace(&mut core.again, true) {
                    return Pass::RegisterAgain;
                }
            }
        }
        if core.commit.is_none() {
            if !core.pending.fx.writes.is_empty() || core.beat_at <= now {
                core.beat_at = now + BEAT;
                return Pass::Commit;
            }
            let batch = std::mem::take(&mut core.pending);
            if !batch.fx.says.is_empty() || !core.leading {
                return Pass::Say(batch.fx.says);
            }
        }
        let deadline =
            engine.next_deadline().map_or(core.tick_at, |at| core.tick_at.min(now + at.since(time) * MS));
        let wake = if core.commit.is_some() { deadline } else { deadline.min(core.beat_at) };
        if wake <= now {
            core.untouched = false;
            if core.tick_at <= now {
                core.tick_at = now + TICK;
                engine.handle(time, &Event::Tick, &mut core.pending.fx);
            }
            self.settle(&core.witness, time, engine, &mut core.pending.fx);
            // What waits for a time that is not reached by a whole millisecond.
            let later = engine.next_deadline().is_some_and(|at| at <= time);
            return if later { Pass::Wait(now + MS) } else { Pass::Again };
        }
        if core.leading && core.pending.events.len() < MAX_BATCH && !core.inbox.is_empty() {
            core.untouched = false;
            while core.pending.events.len() < MAX_BATCH
                && let Some((event, asker)) = core.inbox.pop_front()
            {
                core.replies.extend(asker);
                self.take(&mut core.witness, time, engine, &event, &mut core.pending.fx);
                core.pending.events.push(event);
            }
            self.settle(&core.witness, time, engine, &mut core.pending.fx);
            return Pass::Again;
        }
        Pass::Wait(wake)
    }

    fn take(
        &mut self,
        witness: &mut Witness,
        time: Time,
        engine: &mut Engine,
        event: &Event,
        fx: &mut Effects,
    ) {
        if let Some((node, beat)) = speaker(event) {
            witness.heard(node, beat, time, self.now, self.plan.offline_after_ms);
        }
        if let Event::NodeRegistered { registration, .. } = event {
            witness.registered(registration);
        }
        let known = fx.writes.len();
        match self.bend(event) {
            Some(event) => engine.handle(time, &event, fx),
            None => engine.handle(time, event, fx),
        }
        self.look(witness, fx, known);
    }

    fn settle(&mut self, witness: &Witness, time: Time, engine: &mut Engine, fx: &mut Effects) {
        let known = fx.writes.len();
        engine.settle(time, fx);
        self.look(witness, fx, known);
        if let Err(inside) = engine.check() {
            self.history.fail(
                self.now,
                Invariant::EngineSound,
                format!("the engine's memory is broken: {inside}"),
            );
        }
    }

    /// Looks at what the engine decided just now.
    fn look(&mut self, witness: &Witness, fx: &mut Effects, known: usize) {
        for write in &fx.writes[known.min(fx.writes.len())..] {
            if let Write::Attempt(row) = write {
                self.history.check_lost(self.now, witness, row, self.plan.offline_after_ms);
            }
        }
        if let Some(broken) = self.broken {
            spoil(broken, &mut fx.writes);
        }
        if self.broken == Some(Broken::ForgetsNeeds) {
            for write in fx.writes.iter_mut().skip(known) {
                if let Write::NewJob { job, .. } = write {
                    let planned = &self.plan.jobs[(job.uuid.0.as_u128() >> 64) as usize];
                    *job = Arc::new(Self::with_tasks(job, planned.definitions.clone()));
                }
            }
        }
    }

    /// A job with other tasks.
    fn with_tasks(job: &NewJob, tasks: Vec<NewDefinition>) -> NewJob {
        NewJob {
            uuid: job.uuid,
            name: job.name.clone(),
            owner: job.owner.clone(),
            priority: job.priority,
            keep_going: job.keep_going,
            idempotency_key: job.idempotency_key.clone(),
            payload_digest: job.payload_digest,
            spec: job.spec.clone(),
            tasks,
        }
    }

    /// An event as a broken rule would have it.
    fn bend(&mut self, event: &Event) -> Option<Event> {
        match (self.broken?, event) {
            (Broken::NoAttemptCheck, Event::AttemptEnded { attempt, end, .. }) => {
                let row = self.database.attempts_of(attempt.task).last()?;
                Some(Event::AttemptEnded { node: row.node, attempt: row.key, end: end.clone() })
            }
            (Broken::IgnoresInventory, Event::NodeRegistered { reply, registration }) => {
                let bare = Registration {
                    node: registration.node,
                    session: registration.session,
                    boot: registration.boot,
                    facts: registration.facts.clone(),
                    encoded_facts: registration.encoded_facts.clone(),
                    inventory: Vec::new(),
                    record: registration.record.clone(),
                };
                Some(Event::NodeRegistered { reply: *reply, registration: Arc::new(bare) })
            }
            (Broken::ForgetsNeeds, Event::JobSubmitted { reply, job }) => {
                let tasks = job.tasks.iter().map(|task| NewDefinition { needs: Vec::new(), ..task.clone() });
                let bare = Self::with_tasks(job, tasks.collect());
                Some(Event::JobSubmitted { reply: *reply, job: Arc::new(bare) })
            }
            (
                Broken::ForgetsCordon,
                Event::NodeChanged { reply, node, change: NodeChange::Cordon | NodeChange::Drain, record },
            ) => {
                let change = NodeChange::Uncordon;
                Some(Event::NodeChanged { reply: *reply, node: *node, change, record: record.clone() })
            }
            _ => None,
        }
    }
}

/// Rows as a broken rule would have them.
fn spoil(broken: Broken, writes: &mut Vec<Write>) {
    match broken {
        Broken::LeavesOldAttempt => writes.retain(|write| {
            !matches!(write, Write::Attempt(row) if row.ended.as_ref().is_some_and(|(_, end)| end.cause == Cause::Lost))
        }),
        Broken::ForgetsCounts => writes.retain(|write| !matches!(write, Write::Definition { .. })),
        Broken::SpoilsResults => {
            for write in writes {
                if let Write::Attempt(AttemptRow { ended: Some((_, end)), .. }) = write
                    && end.is_success()
                {
                    *end = Arc::new(AttemptEnd { exit_code: Some(1), ..AttemptEnd::declared(Cause::Exit, "") });
                }
            }
        }
        Broken::CountsTwice => {
            for write in writes {
                if let Write::Task(row) = write {
                    row.own_failures = row.own_failures.max(row.losses);
                }
            }
        }
        _ => {}
    }
}

/// What a pass of the loop leads to.
enum Pass {
    Again,
    RegisterAgain,
    Say(Vec<Say>),
    Commit,
    Wait(Micros),
}

/// The node whose word an event is, and the session of a heartbeat.
fn speaker(event: &Event) -> Option<(NodeId, Option<SessionId>)> {
    match event {
        Event::NodeRegistered { registration, .. } => Some((registration.node, None)),
        Event::Heartbeat { node, session, .. } => Some((*node, Some(*session))),
        Event::AttemptStarted { node, .. }
        | Event::AttemptEnded { node, .. }
        | Event::AttemptWithdrawn { node, .. } => Some((*node, None)),
        Event::JobSubmitted { .. }
        | Event::JobCancelled { .. }
        | Event::JobRedriven { .. }
        | Event::SessionOpened { .. }
        | Event::SessionClosed { .. }
        | Event::CoefficientsChanged { .. }
        | Event::NodeChanged { .. }
        | Event::NodesAsked { .. }
        | Event::TaskAsked { .. }
        | Event::Tick => None,
    }
}

pub fn reply_of(event: &Event) -> Option<ReplyId> {
    match event {
        Event::JobSubmitted { reply, .. }
        | Event::JobCancelled { reply, .. }
        | Event::JobRedriven { reply, .. }
        | Event::NodeRegistered { reply, .. }
        | Event::NodeChanged { reply, .. }
        | Event::NodesAsked { reply }
        | Event::TaskAsked { reply, .. } => Some(*reply),
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

fn with_reply(mut event: Event, id: ReplyId) -> Event {
    if let Event::JobSubmitted { reply, .. }
    | Event::JobCancelled { reply, .. }
    | Event::JobRedriven { reply, .. }
    | Event::NodeRegistered { reply, .. }
    | Event::NodeChanged { reply, .. }
    | Event::NodesAsked { reply }
    | Event::TaskAsked { reply, .. } = &mut event
    {
        *reply = id;
    }
    event
}
