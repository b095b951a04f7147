//! A daemon: the agent's real table of attempts, driven as `agent/src/hub.rs` and `session.rs`
//! drive it.

use std::collections::{BTreeMap, BTreeSet};

use agent::attempts::{Effect, Input, Shippable, Stop, Table};
use mesh_proto::ids::{AttemptKey, SessionId};

use crate::{
    broken::Broken,
    contact::BACKOFF,
    invariant::Invariant,
    machine::DaemonStep,
    network::{Message, Up},
    plan::{MS, Micros},
    runner::{Runner, RunnerStep},
    world::{Happening, World},
};

/// Bytes of events in one message.
const EVENTS: usize = 512 * 1024;

/// Where a daemon stands with the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Away,
    Registering {
        connection: u64,
        call: u64,
        sent: Micros,
    },
    /// `beat`: the call that is not answered yet, and when it was sent by the machine's clock.
    Live {
        connection: u64,
        session: SessionId,
        answered: Micros,
        beat: Option<(u64, Micros)>,
    },
}

/// One life of a daemon.
#[derive(Debug)]
pub struct Daemon {
    pub life: u64,
    pub table: Table,
    pub runners: BTreeMap<AttemptKey, Runner>,
    pub phase: Phase,
    pub connection: Option<u64>,
    /// The host that it tries next.
    pub endpoint: usize,
    pub backoff: Micros,
    pub flushing: bool,
    /// Output that is on its way.
    pub shipping: BTreeSet<AttemptKey>,
}

impl Daemon {
    #[must_use]
    pub fn new(life: u64, table: Table) -> Self {
        Self {
            life,
            table,
            runners: BTreeMap::new(),
            phase: Phase::Away,
            connection: None,
            endpoint: 0,
            backoff: BACKOFF.0,
            flushing: false,
            shipping: BTreeSet::new(),
        }
    }
}

impl World {
    pub fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.machines[node].daemon.as_mut()
    }

    pub fn daemon_after(&mut self, node: usize, wait: Micros, step: DaemonStep) {
        let Some(life) = self.daemon(node).map(|daemon| daemon.life) else { return };
        self.after(wait, Happening::Daemon { node, life, step });
    }

    pub fn daemon_step(&mut self, node: usize, life: u64, step: DaemonStep) {
        if self.machines[node].daemon.as_ref().is_none_or(|daemon| daemon.life != life) {
            return;
        }
        match step {
            DaemonStep::Connect => self.connect_daemon(node),
            DaemonStep::Late { call } => self.late(node, call),
            DaemonStep::Beat { session } => self.beat(node, session),
            DaemonStep::Flush => self.flush(node),
            DaemonStep::Runner { key, step } => self.runner_step(node, key, step),
            DaemonStep::Remove { key } => self.remove_files(node, key),
        }
    }

    /// Moves the table on and does what it says.
    pub fn input(&mut self, node: usize, input: Input) {
        let Some(daemon) = self.daemon(node) else { return };
        let effects = daemon.table.handle(input);
        for effect in effects {
            match effect {
                Effect::Run { key, slot, assignment, after } => {
                    let plain = self.machines[node].makes_rooms();
                    let Some(daemon) = self.daemon(node) else { return };
                    daemon.runners.insert(key, Runner::new(slot, assignment, plain, after));
                    if plain {
                        self.ask_to_start(node, key);
                    } else {
                        self.runner_after(node, key, (50, 2 * MS), RunnerStep::Written);
                    }
                }
                Effect::Stop { key, stop } => self.stop_runner(node, key, stop),
                Effect::Remove(key) => self.removed(node, key),
            }
        }
        let Some(daemon) = self.daemon(node) else { return };
        if matches!(daemon.phase, Phase::Live { .. }) && !std::mem::replace(&mut daemon.flushing, true) {
            let wait = self.rng.range(0, 200);
            self.daemon_after(node, wait, DaemonStep::Flush);
        }
    }

    /// The table lets go of an attempt: its end must be committed, and no process of it live.
    fn removed(&mut self, node: usize, key: AttemptKey) {
        let row = self.database.attempts.get(&key);
        let run = (key, self.machines[node].id);
        // Its end was committed, in a history that is over.
        let ended_before = self.history.lost.ended.contains(&run);
        if row.is_some_and(|row| row.ended.is_none() && row.node == run.1) && !ended_before {
            self.history.fail(
                self.now,
                Invariant::NothingDropped,
                format!("node {node} drops {key}, which is not ended in the database"),
            );
        }
        let wait = self.rng.skewed(100, 20 * MS);
        self.daemon_after(node, wait, DaemonStep::Remove { key });
    }

    fn remove_files(&mut self, node: usize, key: AttemptKey) {
        if self.history.processes.get(&(key, node)).is_some_and(|fact| fact.ended.is_none()) {
            self.history.fail(
                self.now,
                Invariant::ProcessesGone,
                format!("{key} is removed while its process lives"),
            );
        }
        self.machines[node].disk.remove(&key);
        self.machines[node].jail.remove(&key);
    }

    fn flush(&mut self, node: usize) {
        if let Some(daemon) = self.daemon(node) {
            daemon.flushing = false;
        }
        self.tell(node, false);
        self.ship(node);
    }

    /// Tells what waits to be told; the first message names the session, if with nothing else.
    pub fn tell(&mut self, node: usize, mut first: bool) {
        loop {
            let Some(daemon) = self.daemon(node) else { return };
            let Phase::Live { connection, session, .. } = daemon.phase else { return };
            let events = daemon.table.take_events(EVENTS);
            if events.is_empty() && !std::mem::take(&mut first) {
                return;
            }
            self.send(connection, Message::Up(Up::Results { session, events }));
        }
    }

    /// Sends the output of attempts whose end does not carry it.
    pub fn ship(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node) else { return };
        let Phase::Live { connection, session, .. } = daemon.phase else { return };
        let mut chunks = Vec::new();
        for Shippable { key, durable, length, .. } in daemon.table.shippable() {
            if let Some(length) = length.filter(|length| durable < *length)
                && !daemon.shipping.contains(&key)
                && daemon.table.begin_streaming(key)
            {
                daemon.shipping.insert(key);
                chunks.push((key, length));
            }
        }
        for (key, length) in chunks {
            self.send(connection, Message::Up(Up::Output { session, key, length }));
        }
    }

    fn stop_runner(&mut self, node: usize, key: AttemptKey, stop: Stop) {
        if self.broken == Some(Broken::LetsGoAlive) && stop == Stop::Discard {
            return self.input(node, Input::Gone(key));
        }
        if let Some(runner) = self.daemon(node).and_then(|daemon| daemon.runners.get_mut(&key)) {
            runner.stop = runner.stop.max(Some(stop));
            self.runner_after(node, key, (0, 200), RunnerStep::Stop);
        }
    }
}
