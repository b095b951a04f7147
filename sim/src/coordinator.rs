//! A coordinator's process between two terms, by the rules of `coordinator/src/commit`: it stands
//! by while another leads, takes the lead when that one stands still, reads everything under a
//! new epoch, and steps down when the fence tells it that it is deposed.

use std::collections::{BTreeMap, VecDeque};

use coordinator::engine::{
    Engine, Snapshot,
    effect::Reply,
    event::{Event, ReplyId},
    types::Time,
};
use mesh_proto::ids::{BootId, NodeId, SessionId};

use crate::{
    broken::Broken,
    commit::Batch,
    edge::{Asker, Entry},
    invariant::Invariant,
    network::Point,
    plan::{MS, Micros, SECOND},
    transaction::TxAnswer,
    witness::Witness,
    world::{Happening, World},
};

pub const BEAT: Micros = SECOND;
/// How long the leader's row must be seen to stand still.
const TAKEOVER: Micros = 3 * SECOND;
/// A lease ends so much before anybody can take over.
const LEASE_MARGIN: Micros = TAKEOVER / 8;
const LOOK: Micros = 250 * MS;
/// A former leader that stands in the middle of a commit holds its row for so long.
const LOCK_WAIT: Micros = 500 * MS;
const RETRY: (Micros, Micros) = (100 * MS, 2 * SECOND);

/// How a process comes to stand before the leader's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has just begun: a lead under its name is its own.
    Start,
    /// It led this epoch last.
    Epoch(u64),
    Deposed,
}

/// How long the leader's row has been seen to stand still.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    at: Point,
    since: Micros,
    looked: Micros,
}

/// The coordinator's process.
#[derive(Debug)]
pub struct Coordinator {
    pub life: u64,
    pub engine: Option<Engine>,
    /// The time that the engine is given: the database's when the term began, and the boot-time
    /// clock then.
    clock: (Time, Micros),
    pub epoch: u64,
    pub standing: Point,
    /// The history of the database that its connection belongs to.
    pub timeline: u64,
    /// The highest seq that it has seen, in which incarnation.
    highest: (u64, u64),
    /// It has seen a lower one after that.
    went_back: bool,
    /// Somebody has seen later commits than its database has.
    pub halted: bool,
    /// On its boot-time clock, until when nobody else can have taken the lead.
    pub lease_until: Micros,
    claim: Claim,
    pulse: Option<Pulse>,
    /// It leads, and takes calls.
    pub leading: bool,
    pub again: bool,
    pub untouched: bool,
    pub inbox: VecDeque<(Event, Option<(ReplyId, Asker)>)>,
    pub replies: BTreeMap<ReplyId, Asker>,
    /// The last answer, for a rule that is broken on purpose.
    pub answered: Option<Reply>,
    pub pending: Batch,
    pub replay: VecDeque<Vec<Event>>,
    pub commit: Option<(u64, Batch)>,
    pub tick_at: Micros,
    pub beat_at: Micros,
    wait: Micros,
    /// When it wakes by itself.
    pub wake: Option<Micros>,
    pub sessions: BTreeMap<NodeId, Entry>,
    /// The newest registration of each node.
    pub newest: BTreeMap<NodeId, (BootId, Micros, u64)>,
    /// Registrations that came in.
    pub arrived: u64,
    /// Result streams that named their session.
    pub result_streams: BTreeMap<SessionId, u64>,
    /// What its engine was told in this term.
    pub witness: Witness,
}

impl Coordinator {
    fn new(life: u64) -> Self {
        Self {
            life,
            engine: None,
            clock: (Time(0), 0),
            epoch: 0,
            standing: Point::default(),
            highest: (0, 0),
            went_back: false,
            timeline: 0,
            halted: false,
            lease_until: 0,
            claim: Claim::Start,
            pulse: None,
            leading: false,
            again: false,
            untouched: true,
            inbox: VecDeque::new(),
            replies: BTreeMap::new(),
            answered: None,
            pending: Batch::default(),
            replay: VecDeque::new(),
            commit: None,
            tick_at: 0,
            beat_at: 0,
            wait: RETRY.0,
            wake: None,
            sessions: BTreeMap::new(),
            newest: BTreeMap::new(),
            arrived: 0,
            result_streams: BTreeMap::new(),
            witness: Witness::default(),
        }
    }

    /// What its engine is told to be now.
    #[must_use]
    pub fn time(&self, boot: Micros) -> Time {
        Time(self.clock.0.0 + (boot - self.clock.1) / MS)
    }

    /// A fence went through that was sent when its clock showed that.
    pub fn moved(&mut self, seq: u64, sent: Micros) {
        self.standing.seq = seq;
        self.saw(self.standing);
        self.lease_until = sent + TAKEOVER - LEASE_MARGIN;
    }

    /// Takes note of where the leader's row stands, and whether it went back in time.
    fn saw(&mut self, at: Point) {
        if self.highest.0 != at.incarnation {
            (self.highest, self.went_back) = ((at.incarnation, at.seq), false);
        }
        self.went_back |= at.seq < self.highest.1;
        self.highest.1 = self.highest.1.max(at.seq);
    }

    /// Looks at the leader's row: how long it has been seen to stand still, by this clock.
    fn look(&mut self, at: Point, boot: Micros) -> Micros {
        let seen = self.pulse.filter(|pulse| pulse.at == at && boot - pulse.looked <= TAKEOVER / 2);
        let since = seen.map_or(boot, |pulse| pulse.since);
        self.pulse = Some(Pulse { at, since, looked: boot });
        boot - since
    }
}

/// What is read as a broken rule would have it.
fn misread(broken: Broken, snapshot: &mut Snapshot) {
    for definition in snapshot.jobs.iter_mut().flat_map(|job| &mut job.tasks) {
        if broken == Broken::ForgetsAttempts {
            for index in definition.failed.iter().flatten() {
                definition.past.take(index);
            }
        }
    }
}

impl World {
    pub fn start_coordinator(&mut self, host: usize) {
        self.turn = host;
        if self.core().is_some() {
            return;
        }
        let life = self.number();
        self.history.note(self.now, "coordinator starts", format_args!("{host}: life {life}"));
        self.hosts[host].process = Some(Coordinator::new(life));
        self.begin_term();
    }

    /// Now, on the clock that the engine of this turn is given.
    #[must_use]
    pub fn time(&self) -> Time {
        self.core().map_or_else(|| self.database_time(), |core| core.time(self.clock()))
    }

    /// Whether nobody else can have taken the lead.
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        self.core().is_some_and(|core| core.leading && self.clock() < core.lease_until)
    }

    pub fn begin_term(&mut self) {
        let wait = self.database_wait();
        let Some(core) = self.core_mut() else { return };
        core.engine = None;
        core.leading = false;
        core.pending = Batch::default();
        core.commit = None;
        core.pulse = None;
        let life = core.life;
        self.after(wait, Happening::Look { life });
    }

    fn term_failed(&mut self, life: u64) {
        let Some(core) = self.core_of(life) else { return };
        let wait = core.wait;
        core.wait = (wait * 2).min(RETRY.1);
        self.refuse_waiting();
        self.after(wait, Happening::Look { life });
    }

    /// Who asked is told that there is no answer.
    fn refuse_waiting(&mut self) {
        let Some(core) = self.core_mut() else { return };
        let refused: Vec<Asker> = std::mem::take(&mut core.replies).into_values().collect();
        let waiting: Vec<Asker> = core.inbox.drain(..).filter_map(|(_, asker)| Some(asker?.1)).collect();
        for asker in refused.into_iter().chain(waiting) {
            self.answer_recovering(asker);
        }
    }

    /// Looks who leads, and whether that one still moves.
    pub fn look_at_lead(&mut self, life: u64) {
        let host = self.turn;
        if self.core_of(life).is_none() {
            return;
        }
        if self.cut_off(host) {
            return self.term_failed(life);
        }
        let (at, holder, boot) = (self.database.point(), self.database.holder, self.clock());
        let hasty = self.broken == Some(Broken::TakesOverAtOnce);
        let Some(core) = self.core_of(life) else { return };
        core.saw(at);
        let still = core.look(at, boot);
        let own = match core.claim {
            Claim::Start => true,
            Claim::Epoch(epoch) => epoch == at.epoch,
            Claim::Deposed => false,
        };
        if holder.is_none() || holder == Some(host) && own || still >= TAKEOVER || hasty {
            let (wait, since) = (self.database_wait(), self.now);
            return self.after(wait, Happening::Seize { life, at, since });
        }
        self.history.note(self.now, "stands by", format_args!("{host}"));
        self.after(LOOK, Happening::Look { life });
    }

    /// Takes the lead as it was seen, under a new epoch.
    pub fn seize(&mut self, life: u64, at: Point, since: Micros) {
        let host = self.turn;
        if self.core_of(life).is_none() {
            return;
        }
        if self.cut_off(host) {
            return self.term_failed(life);
        }
        let locked = self.broken != Some(Broken::NoEpochCheck) && self.leader_is_locked();
        if locked && self.now - since < LOCK_WAIT {
            return self.after(MS, Happening::Seize { life, at, since });
        }
        if locked {
            self.break_locks();
        }
        if self.database.point() != at {
            // It moved after all.
            return self.look_at_lead(life);
        }
        self.check_nobody_leads(host);
        if self.database.holder.is_some_and(|holder| holder != host) {
            self.history.note(self.now, "takes over", format_args!("{host}"));
        }
        if self.broken != Some(Broken::SharesEpoch) || self.database.epoch == 0 {
            self.database.epoch += 1;
        }
        self.database.seq += 1;
        self.database.holder = Some(host);
        let (epoch, seq, halted) = (self.database.epoch, self.database.seq, self.database.halted);
        let (point, timeline) = (self.database.point(), self.timeline);
        self.history.note(self.now, "lead taken", format_args!("epoch {epoch} by {host}"));
        let (snapshot, boot) = (Box::new(self.database.snapshot()), self.clock());
        let clock = (self.database_time(), boot);
        let load = self.database_wait();
        let ready = self.now + load;
        let Some(core) = self.core_of(life) else { return };
        core.epoch = epoch;
        core.standing = point;
        core.timeline = timeline;
        core.halted = halted;
        core.clock = clock;
        core.claim = Claim::Epoch(epoch);
        core.wait = RETRY.0;
        core.moved(seq, boot);
        let went_back = core.went_back;
        if halted {
            self.end_sessions();
        } else if went_back && self.checks_history() {
            self.halt("the database is behind its coordinator");
        }
        self.after(load.min(BEAT), Happening::Loaded { life, snapshot, ready });
    }

    /// Nobody takes the lead of one whose lease holds.
    fn check_nobody_leads(&mut self, host: usize) {
        let reigns = |at: &usize| {
            let other = &self.hosts[*at];
            let lease =
                other.process.as_ref().filter(|core| core.engine.is_some()).map(|core| core.lease_until);
            let same = other.process.as_ref().is_some_and(|core| core.timeline == self.timeline);
            // One that is halted gives no leases.
            let same = same && other.process.as_ref().is_some_and(|core| !core.halted);
            *at != host && same && lease.is_some_and(|until| other.clock.read(self.now) < until)
        };
        if self.database.holder.is_some()
            && let Some(other) = (0..self.hosts.len()).find(reigns)
        {
            let why = format!("{host} takes the lead while {other} holds a lease");
            self.history.fail(self.now, Invariant::LeaseExclusive, why);
        }
    }

    /// Everything was read; while that takes long, the lead goes on beating.
    pub fn loaded(&mut self, life: u64, snapshot: Box<Snapshot>, ready: Micros) {
        let (host, timeline) = (self.turn, self.timeline);
        let gone = self.core_of(life).is_some_and(|core| core.timeline != timeline);
        if self.cut_off(host) || gone {
            return self.term_failed(life);
        }
        let (now, time, boot) = (self.now, self.time(), self.clock());
        let (epoch, settings, broken) = (self.database.epoch, self.plan.settings.clone(), self.broken);
        let Some(core) = self.core_of(life) else { return };
        if now < ready {
            if core.epoch != epoch {
                return self.step_down(life);
            }
            self.database.seq += 1;
            let seq = self.database.seq;
            if let Some(core) = self.core_of(life) {
                core.moved(seq, boot);
            }
            return self.after((ready - now).min(BEAT), Happening::Loaded { life, snapshot, ready });
        }
        let mut snapshot = *snapshot;
        if let Some(broken) = broken {
            misread(broken, &mut snapshot);
        }
        core.engine = Some(Engine::restore(settings, snapshot, time));
        core.untouched = true;
        core.tick_at = now;
        core.beat_at = now;
        core.witness = Witness::new(time);
        self.pump();
    }

    /// The fence hit no row: another leads. Nothing of this term goes out any more.
    pub fn step_down(&mut self, life: u64) {
        if self.core_of(life).is_none() {
            return;
        }
        self.history.note(self.now, "steps down", format_args!("{}", self.turn));
        self.begin_term();
        let Some(core) = self.core_of(life) else { return };
        core.claim = Claim::Deposed;
        core.lease_until = 0;
        core.halted = false;
        core.again = false;
        core.replay.clear();
        let nodes: Vec<NodeId> = core.sessions.keys().copied().collect();
        for node in nodes {
            self.close_session(node);
        }
        self.refuse_waiting();
    }

    /// A commit did not come through, or nobody knows: memory is read anew.
    pub fn rebuild(&mut self, life: u64) {
        let Some(core) = self.core_of(life) else { return };
        let refused: Vec<Asker> = std::mem::take(&mut core.replies).into_values().collect();
        core.replay.clear();
        self.history.note(self.now, "memory is read anew", "");
        self.begin_term();
        for asker in refused {
            self.answer_recovering(asker);
        }
    }

    /// The connections that hold the leader's row are ended: who took the lead has seen their
    /// leader stand still.
    fn break_locks(&mut self) {
        let held: Vec<u64> =
            self.transactions.iter().filter(|(_, open)| open.locked).map(|(tx, _)| *tx).collect();
        for tx in held {
            self.history.note(self.now, "lock broken", format_args!("{tx}"));
            if let Some(gone) = self.transactions.remove(&tx) {
                self.after(MS, Happening::Committed { life: gone.life, tx, answer: TxAnswer::Failed });
            }
        }
    }

    pub fn leader_is_locked(&self) -> bool {
        self.transactions.values().any(|tx| tx.locked && tx.timeline == self.timeline)
    }
}
