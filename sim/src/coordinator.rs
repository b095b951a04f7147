//! A coordinator's process, by the rules of `coordinator/src/commit`: terms begin and end, and it
//! steps down when the fence tells it that it is deposed. The way to the lead is in `lead`.

use std::collections::{BTreeMap, VecDeque};

use coordinator::engine::{
    Engine,
    effect::Reply,
    event::{Event, ReplyId},
    types::Time,
};
use mesh_proto::ids::{BootId, NodeId, SessionId};

use crate::{
    commit::Batch,
    edge::Asker,
    network::Point,
    plan::{MS, Micros, SECOND},
    session::Entry,
    witness::Witness,
    world::{Happening, World},
};

pub const BEAT: Micros = SECOND;
/// How long the leader's row must be seen to stand still.
pub const TAKEOVER: Micros = 3 * SECOND;
/// A lease ends so much before anybody can take over.
const LEASE_MARGIN: Micros = TAKEOVER / 8;
pub const RETRY: (Micros, Micros) = (100 * MS, 2 * SECOND);

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
pub struct Pulse {
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
    pub clock: (Time, Micros),
    pub epoch: u64,
    pub standing: Point,
    /// The history of the database that its connection belongs to.
    pub timeline: u64,
    /// The highest seq that it has seen, in which incarnation.
    pub highest: (u64, u64),
    /// It has seen a lower one after that.
    pub went_back: bool,
    /// Somebody has seen later commits than its database has.
    pub halted: bool,
    /// On its boot-time clock, until when nobody else can have taken the lead.
    pub lease_until: Micros,
    pub claim: Claim,
    pub pulse: Option<Pulse>,
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
    pub wait: Micros,
    /// When it wakes by itself.
    pub wake: Option<Micros>,
    pub sessions: BTreeMap<NodeId, Entry>,
    /// The newest registration of each node: boot, when it was taken, connection.
    pub newest: BTreeMap<NodeId, (BootId, Micros, u64)>,
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
    pub fn saw(&mut self, at: Point) {
        if self.highest.0 != at.incarnation {
            (self.highest, self.went_back) = ((at.incarnation, at.seq), false);
        }
        self.went_back |= at.seq < self.highest.1;
        self.highest.1 = self.highest.1.max(at.seq);
    }

    /// Looks at the leader's row: how long it has been seen to stand still, by this clock.
    pub fn look(&mut self, at: Point, boot: Micros) -> Micros {
        let seen = self.pulse.filter(|pulse| pulse.at == at && boot - pulse.looked <= TAKEOVER / 2);
        let since = seen.map_or(boot, |pulse| pulse.since);
        self.pulse = Some(Pulse { at, since, looked: boot });
        boot - since
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

    pub fn term_failed(&mut self, life: u64) {
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
}
