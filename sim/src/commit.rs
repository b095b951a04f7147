//! The coordinator's process and its commit loop, by the rules of `coordinator/src/commit`: one
//! commit at a time while the next batch gathers, nothing said before its commit, every commit
//! fenced, memory read anew under a new epoch when one fails or its outcome is unknown, halves
//! of what the database refuses.

use std::collections::{BTreeMap, VecDeque};

use coordinator::engine::{
    Engine, Snapshot,
    effect::{Effects, Refusal, Reply, Say, Write},
    event::{Event, ReplyId},
    types::{Cause, Settings},
};
use mesh_proto::ids::{NodeId, SessionId};

use crate::{
    broken::Broken,
    database::{Refused, Rows},
    edge::{Asker, Entry},
    network::Point,
    plan::{CommitPoint, MS, Micros, SECOND},
    world::{Happening, World},
};

const MAX_BATCH: usize = 4096;
const TICK: Micros = 250 * MS;
const BEAT: Micros = SECOND;
const PATIENCE: Micros = 10 * SECOND;
const RETRY: (Micros, Micros) = (100 * MS, 2 * SECOND);

/// A batch that gathers or is being committed.
#[derive(Debug, Default)]
pub struct Batch {
    fx: Effects,
    events: Vec<Event>,
    fresh: bool,
}

/// The coordinator's process.
#[derive(Debug)]
pub struct Coordinator {
    pub life: u64,
    engine: Option<Engine>,
    epoch: u64,
    pub standing: Point,
    /// It leads, and takes calls.
    pub leading: bool,
    again: bool,
    untouched: bool,
    inbox: VecDeque<(Event, Option<(ReplyId, Asker)>)>,
    replies: BTreeMap<ReplyId, Asker>,
    pending: Batch,
    replay: VecDeque<Vec<Event>>,
    commit: Option<(u64, Batch)>,
    tick_at: Micros,
    beat_at: Micros,
    wait: Micros,
    /// When it wakes by itself.
    wake: Option<Micros>,
    pub sessions: BTreeMap<NodeId, Entry>,
    /// Result streams that named their session.
    pub result_streams: BTreeMap<SessionId, u64>,
}

/// A transaction at the database.
#[derive(Debug)]
pub struct Transaction {
    life: u64,
    epoch: u64,
    rows: Rows,
    locked: bool,
    lands: bool,
    answer: Option<Micros>,
}

/// What the database answers to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxAnswer {
    Done(u64),
    /// Poison: the rows were refused.
    Refused,
    /// The connection broke: the outcome is unknown.
    Failed,
}

impl World {
    pub fn start_coordinator(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        let life = self.number();
        self.history.note(self.now, "coordinator starts", format_args!("life {life}"));
        self.coordinator = Some(Coordinator {
            life,
            engine: None,
            epoch: 0,
            standing: (0, 0),
            leading: false,
            again: false,
            untouched: true,
            inbox: VecDeque::new(),
            replies: BTreeMap::new(),
            pending: Batch::default(),
            replay: VecDeque::new(),
            commit: None,
            tick_at: 0,
            beat_at: 0,
            wait: RETRY.0,
            wake: None,
            sessions: BTreeMap::new(),
            result_streams: BTreeMap::new(),
        });
        self.begin_term();
    }

    /// kill -9 of the coordinator, and its start after a while.
    pub fn crash(&mut self, down: Micros) {
        let Some(dead) = self.coordinator.take() else { return };
        self.history.note(self.now, "coordinator dies", format_args!("life {}", dead.life));
        self.crash_at = None;
        self.frozen_until = self.now;
        let of_it = |open: &crate::network::Connection| open.process == dead.life;
        let connections: Vec<u64> =
            self.connections.iter().filter(|(_, open)| of_it(open)).map(|(id, _)| *id).collect();
        for connection in connections {
            let agent = self.rng.skewed(0, 50 * MS);
            self.cut(connection, agent, 0);
        }
        // The database sees the connection break and rolls back, or had the COMMIT already.
        let open: Vec<u64> =
            self.transactions.iter().filter(|(_, tx)| tx.life == dead.life).map(|(id, _)| *id).collect();
        for tx in open {
            let lands = self.rng.chance(500);
            if let Some(transaction) = self.transactions.get_mut(&tx) {
                transaction.lands &= lands;
            }
        }
        self.after(down, Happening::StartCoordinator);
    }

    fn begin_term(&mut self) {
        let wait = self.database_wait();
        let Some(core) = &mut self.coordinator else { return };
        core.engine = None;
        core.leading = false;
        core.pending = Batch::default();
        core.commit = None;
        let life = core.life;
        self.after(wait, Happening::Take { life });
    }

    fn term_failed(&mut self, life: u64) {
        let Some(core) = self.coordinator.as_mut().filter(|core| core.life == life) else { return };
        let refused: Vec<Asker> = std::mem::take(&mut core.replies).into_values().collect();
        let waiting: Vec<Asker> = core.inbox.drain(..).filter_map(|(_, asker)| Some(asker?.1)).collect();
        let wait = core.wait;
        core.wait = (wait * 2).min(RETRY.1);
        for asker in refused.into_iter().chain(waiting) {
            self.answer_recovering(asker);
        }
        self.after(wait, Happening::Take { life });
    }

    /// Takes the lead under a new epoch, and reads everything unfinished.
    pub fn take_lead(&mut self, life: u64) {
        if self.coordinator.as_ref().is_none_or(|core| core.life != life) {
            return;
        }
        if self.database_down {
            return self.term_failed(life);
        }
        let fenced = self.broken != Some(Broken::NoEpochCheck);
        if fenced && self.transactions.values().any(|tx| tx.locked) {
            // The leader's row is locked by a transaction of an earlier term.
            return self.after(MS, Happening::Take { life });
        }
        self.database.epoch += 1;
        self.database.seq += 1;
        let (epoch, seq) = (self.database.epoch, self.database.seq);
        self.history.note(self.now, "lead taken", format_args!("epoch {epoch}"));
        let snapshot = Box::new(self.database.snapshot());
        if let Some(core) = &mut self.coordinator {
            core.epoch = epoch;
            core.standing = (epoch, seq);
            core.wait = RETRY.0;
        }
        let wait = self.database_wait();
        self.after(wait, Happening::Loaded { life, snapshot });
    }

    pub fn loaded(&mut self, life: u64, snapshot: Snapshot) {
        if self.database_down {
            return self.term_failed(life);
        }
        let (now, time, settings) = (self.now, self.time(), self.plan.settings.clone());
        let Some(core) = self.coordinator.as_mut().filter(|core| core.life == life) else { return };
        core.engine = Some(Engine::restore(settings, snapshot, time));
        core.untouched = true;
        core.tick_at = now;
        core.beat_at = now;
        self.history.term_begins(time);
        self.pump();
    }

    /// Hands an event to the loop.
    pub fn enqueue(&mut self, event: Event, asker: Option<Asker>) {
        let id = ReplyId(self.number());
        let Some(core) = &mut self.coordinator else { return };
        let event = with_reply(event, id);
        core.inbox.push_back((event, asker.map(|asker| (id, asker))));
        let life = core.life;
        let wait = self.rng.range(0, 300);
        self.after(wait, Happening::Loop { life });
    }

    pub fn wake_loop(&mut self, life: u64) {
        if self.coordinator.as_ref().is_some_and(|core| core.life == life && core.engine.is_some()) {
            self.pump();
        }
    }

    /// One pass of the loop after another, until it must wait.
    fn pump(&mut self) {
        while let Some(mut core) = self.coordinator.take() {
            let Some(mut engine) = core.engine.take() else {
                self.coordinator = Some(core);
                return;
            };
            let more = self.pass(&mut core, &mut engine);
            core.engine = Some(engine);
            match more {
                Pass::Again => self.coordinator = Some(core),
                Pass::RegisterAgain => {
                    self.coordinator = Some(core);
                    self.register_again();
                }
                Pass::Say(says) => {
                    self.coordinator = Some(core);
                    self.release(says);
                }
                Pass::Commit => {
                    self.coordinator = Some(core);
                    self.start_commit();
                }
                Pass::Wait(wake) => {
                    let life = core.life;
                    let sooner = core.wake.is_none_or(|at| wake < at || at <= self.now);
                    if sooner {
                        core.wake = Some(wake);
                    }
                    self.coordinator = Some(core);
                    if sooner {
                        self.at(wake, Happening::Loop { life });
                    }
                    return;
                }
            }
        }
    }

    fn pass(&mut self, core: &mut Coordinator, engine: &mut Engine) -> Pass {
        let (now, time) = (self.now, self.time());
        if core.commit.is_none() && core.pending.events.is_empty() {
            if let Some(events) = core.replay.pop_front() {
                for event in &events {
                    self.take(engine, event, &mut core.pending.fx);
                }
                self.settle(engine, &mut core.pending.fx);
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
        let deadline = engine.next_deadline().map_or(core.tick_at, |at| core.tick_at.min(Self::micros(at)));
        let wake = if core.commit.is_some() { deadline } else { deadline.min(core.beat_at) };
        if wake <= now {
            core.untouched = false;
            if core.tick_at <= now {
                core.tick_at = now + TICK;
                engine.handle(time, &Event::Tick, &mut core.pending.fx);
            }
            self.settle(engine, &mut core.pending.fx);
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
                self.take(engine, &event, &mut core.pending.fx);
                core.pending.events.push(event);
            }
            self.settle(engine, &mut core.pending.fx);
            return Pass::Again;
        }
        Pass::Wait(wake)
    }

    fn take(&mut self, engine: &mut Engine, event: &Event, fx: &mut Effects) {
        let time = self.time();
        if let Some((node, beat)) = speaker(event) {
            self.history.heard(node, beat, time, Settings::default().offline_after_ms);
        }
        if let Event::NodeRegistered { registration, .. } = event {
            self.history.registered(registration);
        }
        let known = fx.writes.len();
        match self.bend(event) {
            Some(event) => engine.handle(time, &event, fx),
            None => engine.handle(time, event, fx),
        }
        self.look(fx, known);
    }

    fn settle(&mut self, engine: &mut Engine, fx: &mut Effects) {
        let known = fx.writes.len();
        engine.settle(self.time(), fx);
        self.look(fx, known);
        if let Err(inside) = engine.check() {
            self.history.fail(self.now, format!("the engine's memory is broken: {inside}"));
        }
    }

    /// Looks at what the engine decided just now.
    fn look(&mut self, fx: &mut Effects, known: usize) {
        for write in &fx.writes[known.min(fx.writes.len())..] {
            if let Write::Attempt(row) = write {
                self.history.check_lost(self.now, row, Settings::default().offline_after_ms);
            }
        }
        if self.broken == Some(Broken::LeavesOldAttempt) {
            let is_lost = |write: &Write| match write {
                Write::Attempt(row) => row.ended.as_ref().is_some_and(|(_, end)| end.cause == Cause::Lost),
                Write::NewJob { .. }
                | Write::Job(_)
                | Write::Definition { .. }
                | Write::Task(_)
                | Write::Decision(_)
                | Write::Node { .. } => false,
            };
            fx.writes.retain(|write| !is_lost(write));
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
                let bare = coordinator::engine::event::Registration {
                    node: registration.node,
                    session: registration.session,
                    boot: registration.boot,
                    facts: registration.facts.clone(),
                    encoded_facts: registration.encoded_facts.clone(),
                    inventory: Vec::new(),
                    record: registration.record.clone(),
                };
                Some(Event::NodeRegistered { reply: *reply, registration: std::sync::Arc::new(bare) })
            }
            _ => None,
        }
    }

    /// Sends a batch to the database.
    fn start_commit(&mut self) {
        let Some(core) = &mut self.coordinator else { return };
        let mut batch = std::mem::take(&mut core.pending);
        let rows = Rows::of(std::mem::take(&mut batch.fx.writes));
        let beat = rows.is_empty();
        let (life, epoch) = (core.life, core.epoch);
        let early = self.broken == Some(Broken::SaysBeforeCommit);
        let says = if early { std::mem::take(&mut batch.fx.says) } else { Vec::new() };
        let tx = self.number();
        if let Some(core) = &mut self.coordinator {
            core.commit = Some((tx, batch));
        }
        if !beat && let Some((CommitPoint::BeforeSend, down)) = self.crash_at {
            self.history.note(self.now, "dies before the commit", "");
            return self.crash(down);
        }
        let fence = self.now + self.database_wait() / 4;
        let land = fence + self.database_wait();
        let answer = land + self.rng.range(50, 500);
        let mut transaction =
            Transaction { life, epoch, rows, locked: false, lands: true, answer: Some(answer) };
        let bad = self.database_down || self.rng.chance(self.plan.weather.commit) && !self.healed;
        if bad {
            self.spoil(tx, &mut transaction, (fence, land, answer));
        }
        self.transactions.insert(tx, transaction);
        self.at(fence, Happening::Fence { tx });
        self.at(land, Happening::Land { tx });
        self.after(PATIENCE, Happening::GiveUp { life, tx });
        if !beat && let Some((CommitPoint::InFlight, down)) = self.crash_at {
            self.history.note(self.now, "dies amid the commit", "");
            let when = self.rng.range(self.now, answer);
            self.crash_at = None;
            self.at(when, Happening::Fault(crate::plan::Fault::CrashCoordinator { down }));
        }
        self.release(says);
    }

    /// The commit fails, or its answer does not arrive.
    fn spoil(&mut self, tx: u64, transaction: &mut Transaction, times: (Micros, Micros, Micros)) {
        let (fence, land, answer) = times;
        let life = transaction.life;
        transaction.answer = None;
        let kind = if self.database_down { 0 } else { self.rng.range(0, 5) };
        transaction.lands = !matches!(kind, 0 | 1);
        let at = match kind {
            0 => fence,
            1 => answer,
            2 => land + 1,
            // The answer is known to be lost before the transaction is through.
            3 => self.rng.range(self.now, land),
            // Nothing is heard of it at all.
            _ => return self.history.note(self.now, "commit without an answer", format_args!("{tx}")),
        };
        let what = if transaction.lands { "commit lands, answer lost" } else { "commit fails" };
        self.history.note(self.now, what, format_args!("{tx}"));
        self.at(at, Happening::Committed { life, tx, answer: TxAnswer::Failed });
    }

    /// The first statement of a transaction.
    pub fn fence(&mut self, tx: u64) {
        let (epoch, fenced) = (self.database.epoch, self.broken != Some(Broken::NoEpochCheck));
        let Some(transaction) = self.transactions.get_mut(&tx) else { return };
        if transaction.epoch == epoch || !fenced {
            transaction.locked = true;
            return;
        }
        self.history.note(self.now, "commit of an old epoch is refused", format_args!("{tx}"));
        self.transactions.remove(&tx);
    }

    /// COMMIT.
    pub fn land(&mut self, tx: u64) {
        let Some(transaction) = self.transactions.remove(&tx) else { return };
        if !transaction.lands {
            return;
        }
        let life = transaction.life;
        let result = if transaction.rows.is_empty() {
            Ok(crate::database::Landed::default())
        } else {
            self.database.commit(&transaction.rows)
        };
        let answer = match result {
            Ok(landed) => {
                self.database.seq += 1;
                self.history.note(self.now, "commit", format_args!("seq {}", self.database.seq));
                self.history.landed(self.now, &landed, &self.database);
                TxAnswer::Done(self.database.seq)
            }
            Err(Refused::Rows) => {
                self.history.note(self.now, "rows refused", "");
                TxAnswer::Refused
            }
            Err(Refused::Broken(why)) => return self.history.fail(self.now, why),
        };
        if let Some(at) = transaction.answer {
            self.at(at, Happening::Committed { life, tx, answer });
        }
    }

    /// Whether this process waits for this commit.
    fn waits_for(&self, life: u64, tx: u64) -> bool {
        let commit =
            self.coordinator.as_ref().filter(|core| core.life == life).and_then(|c| c.commit.as_ref());
        commit.is_some_and(|(waiting, _)| *waiting == tx)
    }

    pub fn give_up_commit(&mut self, life: u64, tx: u64) {
        if self.waits_for(life, tx) {
            self.history.note(self.now, "commit given up", format_args!("{tx}"));
            // Its connection is closed: the database may or may not have had it all.
            self.committed(life, tx, TxAnswer::Failed);
        }
    }

    /// The answer to a commit.
    pub fn committed(&mut self, life: u64, tx: u64, answer: TxAnswer) {
        if !self.waits_for(life, tx) {
            return;
        }
        let Some(core) = &mut self.coordinator else { return };
        let Some((_, batch)) = core.commit.take() else { return };
        match answer {
            TxAnswer::Done(seq) => {
                core.standing.1 = seq;
                let beat = batch.events.is_empty() && batch.fx.says.is_empty();
                if !beat && let Some((CommitPoint::BeforeRelease, down)) = self.crash_at {
                    self.history.note(self.now, "dies before saying", "");
                    return self.crash(down);
                }
                self.release_committed(batch.fx.says);
                self.pump();
            }
            TxAnswer::Refused => {
                let gathered = std::mem::take(&mut core.pending.events);
                if !gathered.is_empty() {
                    core.replay.push_front(gathered);
                }
                self.split(batch.events, batch.fresh);
                self.begin_term();
            }
            TxAnswer::Failed => {
                let refused: Vec<Asker> = std::mem::take(&mut core.replies).into_values().collect();
                core.replay.clear();
                self.history.note(self.now, "memory is read anew", "");
                self.begin_term();
                for asker in refused {
                    self.answer_recovering(asker);
                }
            }
        }
    }

    fn split(&mut self, mut events: Vec<Event>, fresh: bool) {
        let Some(core) = &mut self.coordinator else { return };
        if events.len() > 1 {
            let second = events.split_off(events.len() / 2);
            core.replay.push_front(second);
            core.replay.push_front(events);
            return;
        }
        let Some(event) = events.first() else { return };
        if !fresh {
            core.replay.push_front(events);
            return;
        }
        let reply = reply_of(event);
        self.history.note(self.now, "poison event refused", "");
        if let Some(asker) = reply.and_then(|id| self.coordinator.as_mut()?.replies.remove(&id)) {
            self.answer(asker, Reply::Refused(Refusal::Poison(String::new())));
        }
    }

    fn release_committed(&mut self, says: Vec<Say>) {
        let crash = self.crash_at.filter(|_| !says.is_empty());
        match crash {
            Some((CommitPoint::AmidRelease, down)) => {
                let keep = self.rng.index(says.len());
                self.release(says.into_iter().take(keep).collect());
                self.history.note(self.now, "dies amid saying", "");
                self.crash(down);
            }
            Some((CommitPoint::AfterRelease, down)) => {
                self.release(says);
                self.history.note(self.now, "dies after saying", "");
                self.crash(down);
            }
            Some((CommitPoint::BeforeSend | CommitPoint::InFlight | CommitPoint::BeforeRelease, _))
            | None => {
                self.release(says);
            }
        }
    }

    fn release(&mut self, says: Vec<Say>) {
        for say in says {
            self.check_say(&say);
            if let Say::Reply(id, reply) = say {
                let asker = self.coordinator.as_mut().and_then(|core| core.replies.remove(&id));
                if let Some(asker) = asker {
                    self.answer(asker, reply);
                }
            } else {
                self.say(&say);
            }
        }
    }

    /// The engine, when there is one.
    pub fn engine(&self) -> Option<&Engine> {
        self.coordinator.as_ref()?.engine.as_ref()
    }

    /// Asks the engine for its nodes, outside of any batch.
    pub fn node_views(&mut self) -> Vec<coordinator::engine::effect::NodeView> {
        let time = self.time();
        let Some(engine) = self.coordinator.as_mut().and_then(|core| core.engine.as_mut()) else {
            return Vec::new();
        };
        let mut fx = Effects::default();
        engine.handle(time, &Event::NodesAsked { reply: ReplyId(0) }, &mut fx);
        fx.says
            .into_iter()
            .find_map(|say| match say {
                Say::Reply(_, Reply::Nodes(views)) => Some(views),
                _ => None,
            })
            .unwrap_or_default()
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
        | Event::SessionOpened { .. }
        | Event::SessionClosed { .. }
        | Event::CoefficientsChanged { .. }
        | Event::NodeChanged { .. }
        | Event::NodesAsked { .. }
        | Event::TaskAsked { .. }
        | Event::Tick => None,
    }
}

fn reply_of(event: &Event) -> Option<ReplyId> {
    match event {
        Event::JobSubmitted { reply, .. }
        | Event::JobCancelled { reply, .. }
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
    | Event::NodeRegistered { reply, .. }
    | Event::NodeChanged { reply, .. }
    | Event::NodesAsked { reply }
    | Event::TaskAsked { reply, .. } = &mut event
    {
        *reply = id;
    }
    event
}
