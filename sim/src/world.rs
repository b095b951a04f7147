//! Everything together, and the queue of what happens next. One thread, one clock that jumps
//! from one happening to the next, one stream of chance: a seed decides all of it.

use std::collections::{BTreeMap, BTreeSet};

use coordinator::engine::types::Time;
use mesh_proto::ids::{AttemptKey, NodeId, SessionId};

use crate::{
    broken::Broken,
    client::{Client, ClientStep},
    database::{Change, Database},
    edge::Handler,
    history::History,
    host::{BootClock, Host},
    invariant::{Invariant, Violation},
    jail::JailStep,
    machine::{DaemonStep, Machine},
    network::{Connection, Link, Point, Side},
    operator::{Operation, OperatorStep},
    plan::{MS, Micros, Plan, SECOND},
    redrive::{RedriveStep, Redriver},
    rng::Rng,
    stream::Parcel,
    transaction::{Transaction, TxAnswer},
    trouble::{Fault, Weather},
};

/// How long everything may take to come to its end once all is healed. The longest wait of all
/// is for a node that kept failing and is left alone, up to five minutes.
const PATIENCE: Micros = 900 * SECOND;
/// The database's clock at the beginning, in milliseconds: far from 0, so that it can be set back.
const EPOCH_MS: u64 = 1_000_000_000;

/// Something that will happen.
#[derive(Debug)]
pub enum Happening {
    Fault(Fault),
    Heal,
    Probe,
    // The coordinator, which may stand still.
    Loop { life: u64 },
    Committed { life: u64, tx: u64, answer: TxAnswer },
    GiveUp { life: u64, tx: u64 },
    Look { life: u64 },
    Seize { life: u64, at: Point, since: Micros },
    KeepHalt { life: u64, epoch: u64, timeline: u64 },
    Loaded { life: u64, snapshot: Box<coordinator::engine::Snapshot>, ready: Micros },
    Handle { life: u64, handler: Handler },
    Arrive { connection: u64, parcel: Parcel },
    Noticed { connection: u64, side: Side },
    // The rest of the world.
    StartCoordinator { host: usize },
    Fence { tx: u64 },
    Land { tx: u64 },
    DatabaseUp { outage: u64 },
    Copy,
    Restore,
    Accept,
    Keepalive { node: usize, host: usize, block: u64 },
    Unblock { node: usize, host: usize, block: u64 },
    Boot { node: usize, damage: bool },
    Daemon { node: usize, life: u64, step: DaemonStep },
    Jail { node: usize, boot: u64, key: AttemptKey, step: JailStep },
    MustBeDead { node: usize, key: AttemptKey, session: SessionId },
    Client { client: usize, step: ClientStep },
    Operator { operation: usize, step: OperatorStep },
    LookForDead,
    Redrive { redriver: usize, step: RedriveStep },
}

/// The whole world.
#[derive(Debug)]
pub struct World {
    pub now: Micros,
    queue: BTreeMap<(Micros, u64), Happening>,
    numbers: u64,
    pub rng: Rng,
    pub plan: Plan,
    /// The rule that is broken on purpose.
    pub broken: Option<Broken>,
    pub healed: bool,
    pub database: Database,
    /// A copy of it from before.
    pub copy: Option<Box<Database>>,
    /// How often it went back in time.
    pub timeline: u64,
    pub restored_to: Option<Point>,
    pub transactions: BTreeMap<u64, Transaction>,
    pub database_down: bool,
    pub database_slow_until: Micros,
    pub database_read_only_until: Micros,
    pub outage: u64,
    /// How far the database's clock was set.
    pub wall_ms: i64,
    pub hosts: Vec<Host>,
    /// The host whose coordinator does what happens now.
    pub turn: usize,
    pub machines: Vec<Machine>,
    pub links: Vec<Link>,
    pub connections: BTreeMap<u64, Connection>,
    pub clients: Vec<Client>,
    pub operations: Vec<Operation>,
    pub redrivers: Vec<Redriver>,
    pub history: History,
    calm: Weather,
    pub done: bool,
    pub happenings: u64,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// What promise was broken, if one was.
    pub broken: Option<Violation>,
    pub counts: BTreeMap<&'static str, u64>,
    /// Every change of state that a commit made: of a task or a job, from, to.
    pub changes: BTreeSet<Change>,
    pub digest: u64,
    pub happenings: u64,
    /// Simulated.
    pub lasted: Micros,
}

/// Plays one seed to its end.
#[must_use]
pub fn run(seed: u64, broken: Option<Broken>, trace: bool) -> Outcome {
    let mut world = World::new(seed, broken, trace);
    world.begin();
    while world.history.broken.is_none() && !world.done {
        world.step();
    }
    Outcome {
        seed,
        broken: world.history.broken.take(),
        counts: std::mem::take(&mut world.history.counts),
        changes: std::mem::take(&mut world.history.changes),
        digest: world.history.digest,
        happenings: world.happenings,
        lasted: world.now,
    }
}

impl World {
    pub fn new(seed: u64, broken: Option<Broken>, trace: bool) -> Self {
        let mut plan = Plan::new(seed);
        if broken == Some(Broken::KeepsReplaced) {
            // Processes that outlive a replacement, so that there is something to keep.
            for behaviour in plan.jobs.iter_mut().flat_map(|job| &mut job.behaviours) {
                behaviour.run_ms = (30_000, 90_000);
                behaviour.leased = false;
            }
        }
        if broken == Some(Broken::OutlivesLease) {
            for behaviour in plan.jobs.iter_mut().flat_map(|job| &mut job.behaviours) {
                // Longer than a lease and what follows it, and short enough for all to end in time.
                behaviour.run_ms = (30_000, 40_000);
                behaviour.leased = true;
            }
        }
        if broken == Some(Broken::ReplacesBeforeOffline) {
            plan.settings.offline_after_ms = 6_000;
            plan.settings.suspect_after_ms = 5_500;
        }
        let machines: Vec<Machine> = (0..plan.nodes.len()).map(|node| Machine::new(node, &plan)).collect();
        let mut database = Database::default();
        for machine in &machines {
            database.nodes.insert(machine.id, machine.record());
        }
        Self {
            now: 0,
            queue: BTreeMap::new(),
            numbers: 0,
            rng: Rng::new(seed),
            broken,
            healed: false,
            database,
            copy: None,
            timeline: 0,
            restored_to: None,
            transactions: BTreeMap::new(),
            database_down: false,
            database_slow_until: 0,
            database_read_only_until: 0,
            outage: 0,
            wall_ms: 0,
            links: (0..machines.len() * plan.hosts.len()).map(|_| Link::default()).collect(),
            hosts: plan
                .hosts
                .iter()
                .map(|gains| Host { clock: BootClock { gains: *gains }, ..Host::default() })
                .collect(),
            turn: 0,
            machines,
            connections: BTreeMap::new(),
            clients: Client::all(&plan),
            operations: Vec::new(),
            redrivers: Vec::new(),
            history: History::new(trace),
            calm: Weather::default(),
            done: false,
            happenings: 0,
            plan,
        }
    }

    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let at = self.rng.skewed(0, SECOND);
            self.at(at, Happening::StartCoordinator { host });
        }
        for node in 0..self.machines.len() {
            let at = self.rng.skewed(0, 3 * SECOND);
            self.at(at, Happening::Boot { node, damage: false });
        }
        for client in 0..self.clients.len() {
            let at = self.plan.jobs[self.clients[client].job].at;
            self.at(at, Happening::Client { client, step: ClientStep::Submit });
        }
        for (at, fault) in self.plan.faults.clone() {
            self.at(at, Happening::Fault(fault));
        }
        for at in self.plan.redrives.clone() {
            self.at(at, Happening::LookForDead);
        }
        if let Some((copied, restored)) = self.plan.restore {
            self.at(copied, Happening::Copy);
            self.at(restored, Happening::Restore);
        }
        self.at(self.plan.healed_at, Happening::Heal);
    }

    fn step(&mut self) {
        let Some(happening) = self.pop() else {
            return self.history.fail(
                self.now,
                Invariant::EverythingEnds,
                "nothing happens any more, and not everything is over",
            );
        };
        if let Some(life) = self.process_of(&happening) {
            // What is of a process that is gone happens nowhere.
            let Some(host) = self.host_of(life) else { return };
            let until = self.hosts[host].frozen_until;
            if self.now < until {
                return self.at(until, happening);
            }
            self.turn = host;
        }
        self.happen(happening);
    }

    /// What happens next; it is its time now.
    pub fn pop(&mut self) -> Option<Happening> {
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now = at;
        self.happenings += 1;
        Some(happening)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Fault(fault) => self.strike(fault),
            Happening::Heal => self.heal(),
            Happening::Probe => self.probe(),
            Happening::Loop { life } => self.wake_loop(life),
            Happening::Committed { life, tx, answer } => self.committed(life, tx, answer),
            Happening::GiveUp { life, tx } => self.give_up_commit(life, tx),
            Happening::Look { life } => self.look_at_lead(life),
            Happening::Seize { life, at, since } => self.seize(life, at, since),
            Happening::Loaded { life, snapshot, ready } => self.loaded(life, snapshot, ready),
            Happening::KeepHalt { life, epoch, timeline } => self.keep_halt(life, epoch, timeline),
            Happening::Handle { life, handler } => self.handle(life, handler),
            Happening::Arrive { connection, parcel } => self.arrive(connection, parcel),
            Happening::Noticed { connection, side } => self.noticed(connection, side),
            Happening::StartCoordinator { host } => self.start_coordinator(host),
            Happening::Fence { tx } => self.fence(tx),
            Happening::Land { tx } => self.land(tx),
            Happening::DatabaseUp { outage } => self.database_up(Some(outage)),
            Happening::Copy => self.copy_database(),
            Happening::Restore => self.restore_database(),
            Happening::Accept => self.accept_database(),
            Happening::Keepalive { node, host, block } => self.keepalive(node, host, block),
            Happening::Unblock { node, host, block } => self.unblock(node, host, Some(block)),
            Happening::Boot { node, damage } => self.boot(node, damage),
            Happening::Daemon { node, life, step } => self.daemon_step(node, life, step),
            Happening::Jail { node, boot, key, step } => self.jail_step(node, boot, key, step),
            Happening::MustBeDead { node, key, session } => self.must_be_dead(node, key, session),
            Happening::Client { client, step } => self.client_step(client, step),
            Happening::Operator { operation, step } => self.operator_step(operation, step),
            Happening::LookForDead => self.look_for_dead(),
            Happening::Redrive { redriver, step } => self.redrive_step(redriver, step),
        }
    }

    /// Lets something happen at a time.
    pub fn at(&mut self, at: Micros, happening: Happening) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), happening);
    }

    /// Lets something happen after a while.
    pub fn after(&mut self, wait: Micros, happening: Happening) {
        self.at(self.now + wait, happening);
    }

    /// A number that was never used.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// What the database's clock shows. It decides nothing but what is written.
    #[must_use]
    pub fn database_time(&self) -> Time {
        Time((EPOCH_MS + self.now / MS).saturating_add_signed(self.wall_ms))
    }

    #[must_use]
    pub fn weather(&self) -> &Weather {
        if self.healed { &self.calm } else { &self.plan.weather }
    }

    /// The machine of a node.
    pub fn node_index(&self, id: NodeId) -> usize {
        self.machines.iter().position(|machine| machine.id == id).expect("nodes are known from the beginning")
    }

    /// How long the database takes for something small.
    pub fn database_wait(&mut self) -> Micros {
        let wait = self.rng.skewed(50, 2 * MS);
        if self.now < self.database_slow_until {
            return wait + self.rng.skewed(100 * MS, 12 * SECOND);
        }
        wait
    }

    /// Whether a read of the database fails now.
    pub fn read_fails(&mut self) -> bool {
        let permille = self.weather().read;
        self.cut_off(self.turn) || self.rng.chance(permille)
    }

    /// Looks whether everything is over, until it is or has taken too long.
    fn probe(&mut self) {
        match self.unfinished() {
            None => {
                self.check_end();
                self.history.note(self.now, "all is over", "");
                self.done = true;
            }
            Some(what) if self.now > self.plan.healed_at + PATIENCE => {
                for host in &self.hosts {
                    let engine = format!("{:?}", host.process.as_ref().map(|core| &core.engine));
                    self.history.note(self.now, "the engine", engine);
                }
                self.history.fail(
                    self.now,
                    Invariant::EverythingEnds,
                    format!("stuck although all is healed: {what}"),
                );
            }
            Some(_) => self.after(SECOND, Happening::Probe),
        }
    }
}

impl World {
    /// The coordinator's process that this happens to, if it is one.
    fn process_of(&self, happening: &Happening) -> Option<u64> {
        match happening {
            Happening::Loop { life }
            | Happening::Committed { life, .. }
            | Happening::GiveUp { life, .. }
            | Happening::Look { life }
            | Happening::Seize { life, .. }
            | Happening::Loaded { life, .. }
            | Happening::KeepHalt { life, .. }
            | Happening::Handle { life, .. } => Some(*life),
            Happening::Arrive { connection, parcel } if parcel.is_up() => self.process_at(*connection),
            Happening::Noticed { connection, side: Side::Server } => self.process_at(*connection),
            Happening::Arrive { .. }
            | Happening::Noticed { side: Side::Agent, .. }
            | Happening::Fault(_)
            | Happening::Heal
            | Happening::Probe
            | Happening::StartCoordinator { .. }
            | Happening::Fence { .. }
            | Happening::Land { .. }
            | Happening::DatabaseUp { .. }
            | Happening::Copy
            | Happening::Restore
            | Happening::Accept
            | Happening::Keepalive { .. }
            | Happening::Unblock { .. }
            | Happening::Boot { .. }
            | Happening::Daemon { .. }
            | Happening::Jail { .. }
            | Happening::MustBeDead { .. }
            | Happening::Client { .. }
            | Happening::Operator { .. }
            | Happening::LookForDead
            | Happening::Redrive { .. } => None,
        }
    }
}
