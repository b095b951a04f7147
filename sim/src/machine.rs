//! A machine: its disk, its jail, and its daemon. The jail outlives the
//! daemon; a reboot ends both and leaves the disk.

use std::{collections::BTreeMap, sync::Arc};

use agent::attempts::{Capacity, Input, Table};
use coordinator::engine::event::NodeRecord;
use mesh_proto::ids::{AttemptKey, BootId, NodeId};
use mesh_proto::v1;

use crate::{
    broken::Broken,
    daemon::{Daemon, Phase},
    history::Exit,
    host::BootClock,
    jail::{Process, Start, started},
    line::Line,
    network::Point,
    plan::{MS, Micros, Plan, SECOND},
    runner::{self, Runner, RunnerStep},
    world::{Happening, World},
};

/// What is written down of an attempt.
#[derive(Debug)]
pub struct Record {
    pub boot: u64,
    pub slot: u32,
    pub assignment: Arc<v1::Assignment>,
    /// The jail may have been asked to start it.
    pub executed: bool,
    pub end: Option<Box<v1::Ended>>,
    damaged: bool,
}

impl Record {
    #[must_use]
    pub fn new(boot: u64, slot: u32, assignment: Arc<v1::Assignment>) -> Self {
        Self { boot, slot, assignment, executed: false, end: None, damaged: false }
    }

    /// What the jail writes down of an attempt in the moment in which it starts it.
    #[must_use]
    pub fn begun(boot: u64, slot: u32, assignment: Arc<v1::Assignment>) -> Self {
        Self { executed: true, ..Self::new(boot, slot, assignment) }
    }
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    pub id: NodeId,
    pub boot: u64,
    pub disk: BTreeMap<AttemptKey, Record>,
    pub jail: BTreeMap<AttemptKey, Process>,
    pub line: Line,
    /// The highest point of the coordinator's history that it has seen; on disk.
    pub seen: Point,
    /// The highest seq that it has seen before the database went back in time.
    pub seen_lost: u64,
    pub daemon: Option<Daemon>,
    pub capacity: Capacity,
    pub clock: BootClock,
    /// By its clock, until when what lives on a lease may live.
    pub lease_until: Micros,
}

/// What happens in a daemon.
#[derive(Clone, Copy, Debug)]
pub enum DaemonStep {
    Connect,
    /// A call was not answered in time.
    Late {
        call: u64,
    },
    Beat {
        session: mesh_proto::ids::SessionId,
    },
    Flush,
    Runner {
        key: AttemptKey,
        step: RunnerStep,
    },
    /// The files of an attempt are removed.
    Remove {
        key: AttemptKey,
    },
}

impl Machine {
    #[must_use]
    pub fn new(index: usize, plan: &Plan) -> Self {
        let facts = &plan.nodes[index];
        Self {
            id: NodeId(uuid::Uuid::from_u128(index as u128 + 1)),
            boot: 0,
            disk: BTreeMap::new(),
            jail: BTreeMap::new(),
            line: Line::default(),
            seen: Point::default(),
            seen_lost: 0,
            daemon: None,
            capacity: Capacity {
                slots: facts.slots,
                cpu_millis: facts.total.cpu_millis,
                memory_bytes: facts.total.memory,
                named: facts.total.named.clone(),
                in_line: plan.in_line[index],
            },
            clock: BootClock { gains: plan.clocks[index] },
            lease_until: 0,
        }
    }

    #[must_use]
    pub fn boot_id(&self) -> BootId {
        BootId(uuid::Uuid::from_u128((self.id.0.as_u128() << 64) | u128::from(self.boot)))
    }

    /// The node's row after it joined.
    #[must_use]
    pub fn record(&self) -> NodeRecord {
        NodeRecord {
            id: self.id,
            name: format!("n{}", self.id.0.as_u128()),
            boot: None,
            cordoned: false,
            draining: false,
            tags: BTreeMap::new(),
        }
    }

    /// Whether its jail writes down what it starts, in the moment in which it does; only then can anybody
    /// stand in line.
    #[must_use]
    pub const fn makes_rooms(&self) -> bool {
        self.capacity.in_line > 0
    }

    /// A process that lives in the slot of this attempt, beside it.
    #[must_use]
    pub fn neighbour(&self, key: AttemptKey) -> Option<AttemptKey> {
        let slot = self.disk.get(&key)?.slot;
        let lives = |process: &Process| process.started.is_some() && process.exit.is_none();
        let mut others = self.jail.iter().filter(|(other, process)| **other != key && lives(process));
        others
            .find(|(other, _)| self.disk.get(other).is_some_and(|record| record.slot == slot))
            .map(|(other, _)| *other)
    }

    /// Processors, memory and named resources that its processes use, and whether that is more
    /// than it has.
    pub fn overload(&self) -> Option<String> {
        let living =
            self.jail.iter().filter(|(_, process)| process.started.is_some() && process.exit.is_none());
        let used = living.filter_map(|(key, _)| self.disk.get(key)?.assignment.resources.clone());
        let (mut cpu, mut memory) = (0, 0);
        let mut named: BTreeMap<String, u64> = BTreeMap::new();
        let share = self.capacity.memory_bytes / u64::from(self.capacity.slots.max(1));
        for resources in used {
            cpu += u64::from(resources.cpu_millis);
            memory += if resources.memory_bytes == 0 { share } else { resources.memory_bytes };
            for (name, units) in resources.named {
                *named.entry(name).or_default() += units;
            }
        }
        let has = |name: &String| self.capacity.named.get(name).copied().unwrap_or(0);
        let over = cpu > self.capacity.cpu_millis
            || memory > self.capacity.memory_bytes
            || named.iter().any(|(name, units)| *units > has(name));
        over.then(|| format!("{cpu} of {} cpu, {memory} bytes, {named:?}", self.capacity.cpu_millis))
    }
}

impl World {
    /// The daemon starts and takes up what an earlier one left.
    pub fn boot(&mut self, node: usize, damage: bool) {
        if self.machines[node].daemon.is_some() {
            return;
        }
        let life = self.number();
        self.history.note(self.now, "daemon starts", format_args!("node {node}"));
        if damage {
            let keys: Vec<AttemptKey> = self.machines[node].disk.keys().copied().collect();
            let hit = self.rng.pick(&keys);
            if let Some(record) = hit.and_then(|key| self.machines[node].disk.get_mut(&key)) {
                record.damaged = true;
            }
        }
        let machine = &mut self.machines[node];
        let mut capacity = machine.capacity.clone();
        if self.broken == Some(Broken::TakesTooMuch) {
            capacity.slots *= 2;
            capacity.cpu_millis *= 2;
            capacity.memory_bytes *= 2;
        }
        machine.daemon = Some(Daemon::new(life, Table::new(capacity)));
        let boot = machine.boot;
        let mut kept: Vec<AttemptKey> = Vec::new();
        let mut buried: Vec<AttemptKey> = Vec::new();
        for (key, record) in &machine.disk {
            if record.boot == boot && !record.damaged && (record.end.is_some() || record.executed) {
                kept.push(*key);
            } else {
                buried.push(*key);
            }
        }
        buried.extend(machine.jail.keys().filter(|key| !machine.disk.contains_key(key)));
        for key in kept {
            self.recover(node, key);
            if self.broken == Some(Broken::StartsAgain) {
                self.launch(node, key, Start::default());
            }
        }
        for key in buried {
            self.history.note(self.now, "attempt buried", key);
            self.kill_at_once(node, key);
            let machine = &mut self.machines[node];
            machine.jail.remove(&key);
            let record = machine.disk.remove(&key);
            if record.is_some_and(|record| record.damaged && record.boot == boot) {
                // It may have run: it is told as ended, also after the next restart.
                let assignment =
                    Arc::new(v1::Assignment { attempt: Some(key.into()), ..v1::Assignment::default() });
                let end = runner::infra("its record on this node's disk was damaged");
                let mut record = Record::new(boot, 0, Arc::clone(&assignment));
                record.end = Some(end.clone());
                machine.disk.insert(key, record);
                self.input(node, Input::Recovered { assignment, slot: 0, started: None, ended: Some(end) });
            }
        }
        let wait = self.rng.skewed(MS, 500 * MS);
        self.after(wait, Happening::Daemon { node, life, step: DaemonStep::Connect });
    }

    fn recover(&mut self, node: usize, key: AttemptKey) {
        let machine = &self.machines[node];
        let Some(record) = machine.disk.get(&key) else { return };
        let (assignment, slot, ended) = (Arc::clone(&record.assignment), record.slot, record.end.clone());
        let process = machine.jail.get(&key);
        let runs = process.is_some_and(|process| process.started.is_some() && process.exit.is_none());
        let step = match process {
            _ if ended.is_some() => None,
            Some(process) if process.exit.is_some() => Some(RunnerStep::Exited),
            Some(process) if process.started.is_some() => Some(RunnerStep::Started),
            Some(_) => None,
            None => Some(RunnerStep::Vanished),
        };
        self.history.note(self.now, "attempt taken up", key);
        let resumes = ended.is_none();
        let plain = machine.makes_rooms();
        let started = runs.then(|| started(self.now));
        self.input(node, Input::Recovered { assignment: Arc::clone(&assignment), slot, started, ended });
        if resumes && let Some(daemon) = &mut self.machines[node].daemon {
            daemon.runners.insert(key, Runner::resumed(slot, assignment, plain));
        }
        if let Some(step) = step {
            self.runner_after(node, key, (0, 5 * MS), step);
        }
    }

    /// kill -9 of the daemon.
    pub fn kill_daemon(&mut self, node: usize, down: Micros, damage: bool) {
        if self.machines[node].daemon.take().is_none() {
            return;
        }
        self.history.note(self.now, "daemon killed", format_args!("node {node}"));
        self.machines[node].line.clear();
        for connection in self.connections_of(node) {
            let server = self.rng.skewed(0, 50 * MS);
            self.cut(connection, 0, server);
        }
        self.after(down, Happening::Boot { node, damage });
    }

    /// The machine loses power, and comes back.
    pub fn reboot(&mut self, node: usize, down: Micros) {
        let had_daemon = self.machines[node].daemon.take().is_some();
        self.history.note(self.now, "machine reboots", format_args!("node {node}"));
        let machine = &mut self.machines[node];
        machine.boot += 1;
        machine.line.clear();
        for (key, process) in std::mem::take(&mut machine.jail) {
            if process.started.is_some() && process.exit.is_none() {
                self.history.process_ends(self.now, (key, node), Exit::Vanished);
            }
        }
        for connection in self.connections_of(node) {
            // Nobody says goodbye.
            let server = self.rng.range(5 * SECOND, 25 * SECOND);
            self.cut(connection, 0, server);
        }
        if had_daemon {
            self.after(down, Happening::Boot { node, damage: false });
        }
    }

    /// Whether anything of attempts is left on a machine.
    pub fn leftover(&self, node: usize) -> Option<String> {
        let machine = &self.machines[node];
        let Some(daemon) = &machine.daemon else { return Some(format!("node {node} has no daemon")) };
        if !matches!(daemon.phase, Phase::Live { .. }) {
            return Some(format!("node {node} has no session"));
        }
        if !daemon.table.is_idle() || daemon.table.running() + daemon.table.waiting() > 0 {
            return Some(format!("node {node} holds {:?}", daemon.table.inventory()));
        }
        let keys: Vec<&AttemptKey> = machine.disk.keys().chain(machine.jail.keys()).collect();
        (!keys.is_empty()).then(|| format!("node {node} keeps {keys:?}"))
    }
}
