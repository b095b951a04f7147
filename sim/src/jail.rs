//! The jail of a machine: processes start, end, are asked to end and outlive their leases. It
//! outlives the daemon.

use mesh_proto::ids::AttemptKey;
use mesh_proto::v1;

use crate::{
    broken::Broken,
    history::Exit,
    invariant::Invariant,
    machine::Record,
    plan::{Behaviour, MS, Micros},
    runner::RunnerStep,
    world::{Happening, World},
};

/// A process under the jail; its exit record stays until it is forgotten.
#[derive(Debug)]
pub struct Process {
    /// Counts the ends that were planned for it: only the last one happens.
    plan: u64,
    pub started: Option<Micros>,
    ends: Micros,
    stubborn: bool,
    pub exit: Option<(Exit, u64)>,
    kill_at: Option<Micros>,
    pub output: u64,
    /// By the machine's clock, when it is ended at the latest, if it lives on a lease.
    pub lease: Option<Micros>,
    /// What the jail writes down in the moment in which it starts it.
    pub room: Option<Box<Record>>,
}

/// What the jail is asked with.
#[derive(Debug, Default)]
pub struct Start {
    pub lease: Option<Micros>,
    /// What it is to write down; what is not said here is there already.
    pub room: Option<Box<Record>>,
    /// It starts when this attempt is over.
    pub after: Option<AttemptKey>,
}

/// What happens in a jail.
#[derive(Clone, Copy, Debug)]
pub enum JailStep {
    Launch,
    /// It has stood in line for long enough, since it came as this number.
    InLine {
        number: u64,
    },
    /// Looks whether its lease is over.
    Lease,
    End {
        plan: u64,
        exit: Exit,
    },
}

/// A start as it is told.
#[must_use]
pub fn started(now: Micros) -> v1::Started {
    v1::Started { at_ms: now / MS + 1, sandbox: v1::SandboxLevel::Basic.into(), ..v1::Started::default() }
}

impl World {
    /// The jail is asked to start an attempt.
    pub fn launch(&mut self, node: usize, key: AttemptKey, start: Start) {
        let Start { lease, room, after } = start;
        let written = room.as_deref().or_else(|| self.machines[node].disk.get(&key));
        let stubborn = self.behaviour(written, key).stubborn;
        let process = Process {
            plan: 0,
            started: None,
            ends: 0,
            stubborn: self.rng.chance(stubborn),
            exit: None,
            kill_at: None,
            output: 0,
            lease,
            room,
        };
        if let Some(after) = after {
            return self.stand_in_line(node, key, after, process);
        }
        let machine = &mut self.machines[node];
        machine.jail.insert(key, process);
        let boot = machine.boot;
        let wait = self.rng.skewed(50, 2 * MS);
        self.after(wait, Happening::Jail { node, boot, key, step: JailStep::Launch });
    }

    fn behaviour(&self, record: Option<&Record>, key: AttemptKey) -> Behaviour {
        let job = record.and_then(|record| record.assignment.job_name.parse::<usize>().ok()).unwrap_or(0);
        self.plan.jobs[job].behaviours[key.task.task as usize]
    }

    /// Asks the jail to end a process: SIGTERM, grace, SIGKILL.
    pub fn kill(&mut self, node: usize, key: AttemptKey, grace: Micros) {
        let quick = self.rng.skewed(MS, 200 * MS);
        if self.kill_in_line(node, key) {
            return;
        }
        let Some(process) = self.machines[node].jail.get_mut(&key) else { return };
        let deadline = self.now + grace;
        process.kill_at = Some(process.kill_at.map_or(deadline, |at| at.min(deadline)));
        if process.started.is_none() || process.exit.is_some() {
            return;
        }
        let at = if process.stubborn { deadline + MS } else { (self.now + quick).min(deadline + MS) };
        self.end_process_at(node, key, at, Exit::Killed);
    }

    fn end_process_at(&mut self, node: usize, key: AttemptKey, at: Micros, exit: Exit) {
        let machine = &mut self.machines[node];
        let boot = machine.boot;
        let Some(process) = machine.jail.get_mut(&key) else { return };
        if process.plan > 0 && process.ends <= at {
            return;
        }
        process.plan += 1;
        process.ends = at;
        let plan = process.plan;
        self.at(at, Happening::Jail { node, boot, key, step: JailStep::End { plan, exit } });
    }

    pub fn kill_at_once(&mut self, node: usize, key: AttemptKey) {
        let lives = |process: &&Process| process.started.is_some() && process.exit.is_none();
        if self.machines[node].jail.get(&key).as_ref().is_some_and(lives) {
            self.history.process_ends(self.now, (key, node), Exit::Killed);
        }
    }

    pub fn jail_step(&mut self, node: usize, boot: u64, key: AttemptKey, step: JailStep) {
        let machine = &mut self.machines[node];
        if machine.boot != boot {
            return;
        }
        if let JailStep::InLine { number } = step {
            return self.overdue_in_line(node, key, number);
        }
        let Some(process) = machine.jail.get_mut(&key) else { return };
        match step {
            JailStep::InLine { .. } => {}
            JailStep::Launch if process.lease.is_some_and(|until| until <= machine.clock.read(self.now)) => {
                self.ends_unstarted(node, key, Exit::LeaseOver);
                self.give_back_behind(node, key);
            }
            JailStep::Launch => {
                if !self.start_process(node, key) {
                    self.give_back_behind(node, key);
                }
            }
            JailStep::Lease => self.watch_lease(node, key),
            JailStep::End { plan, exit } => {
                if process.plan != plan || process.exit.is_some() {
                    return;
                }
                let run_ms = (self.now - process.started.unwrap_or(self.now)) / MS;
                process.exit = Some((exit, run_ms));
                self.history.process_ends(self.now, (key, node), exit);
                self.runner_after(node, key, (0, 3 * MS), RunnerStep::Exited);
                self.go_on(node, key);
            }
        }
    }

    /// What the jail was asked to start has ended before.
    pub fn ends_unstarted(&mut self, node: usize, key: AttemptKey, exit: Exit) {
        if let Some(process) = self.machines[node].jail.get_mut(&key) {
            process.exit = Some((exit, 0));
            self.runner_after(node, key, (0, 3 * MS), RunnerStep::Exited);
        }
    }

    /// Starts what the jail holds; false when that fails.
    pub fn start_process(&mut self, node: usize, key: AttemptKey) -> bool {
        let permille = self.weather().spawn;
        let machine = &mut self.machines[node];
        let Some(process) = machine.jail.get_mut(&key) else { return false };
        // What needs more than the jail fails before.
        if process.room.is_some() && self.rng.chance(permille) {
            self.ends_unstarted(node, key, Exit::NotStarted);
            return false;
        }
        process.started = Some(self.now);
        let leased = process.lease.is_some();
        if let Some(record) = process.room.take() {
            machine.disk.insert(key, *record);
        }
        let (id, boot_id) = (machine.id, machine.boot_id());
        self.history.process_starts(self.now, key, node, id, boot_id, leased, &self.database);
        if let Some(other) = self.machines[node].neighbour(key) {
            let why = format!("{key} starts at node {node} in the slot in which {other} runs");
            self.history.fail(self.now, Invariant::OwnSlot, why);
        }
        if let Some(over) = self.machines[node].overload() {
            let why = format!("node {node} runs more than it has: {over}");
            self.history.fail(self.now, Invariant::NoOverload, why);
        }
        self.run_process(node, key);
        self.watch_lease(node, key);
        true
    }

    fn run_process(&mut self, node: usize, key: AttemptKey) {
        let behaviour = self.behaviour(self.machines[node].disk.get(&key), key);
        let run = self.rng.range(behaviour.run_ms.0 * MS, behaviour.run_ms.1 * MS);
        let fails = self.rng.chance(behaviour.fails);
        let output = if behaviour.output == 0 { 0 } else { self.rng.range(1, behaviour.output) };
        let Some(process) = self.machines[node].jail.get_mut(&key) else { return };
        process.output = output;
        let kill_at = process.kill_at;
        self.end_process_at(node, key, self.now + run, Exit::Exited(i32::from(fails) * 3));
        if let Some(at) = kill_at {
            self.end_process_at(node, key, at.max(self.now + MS), Exit::Killed);
        }
        self.runner_after(node, key, (0, 2 * MS), RunnerStep::Started);
    }

    /// What lives on a lease lives on, from when the word that was acknowledged was sent.
    pub fn prolong(&mut self, node: usize, sent: Micros, lease: Micros) {
        if lease == 0 {
            return;
        }
        let machine = &mut self.machines[node];
        machine.lease_until = machine.lease_until.max(sent + lease);
        for process in machine.jail.values_mut() {
            process.lease = process.lease.map(|until| until.max(sent + lease));
        }
    }

    /// Ends a process whose lease is over, or looks again when it will be.
    fn watch_lease(&mut self, node: usize, key: AttemptKey) {
        let machine = &self.machines[node];
        let (boot, clock) = (machine.boot, machine.clock);
        let process = machine.jail.get(&key).filter(|process| process.exit.is_none());
        let Some(until) = process.and_then(|process| process.lease) else { return };
        if self.broken == Some(Broken::OutlivesLease) {
            return;
        }
        if clock.read(self.now) < until {
            let at = clock.when(until).max(self.now + MS);
            return self.at(at, Happening::Jail { node, boot, key, step: JailStep::Lease });
        }
        self.history.note(self.now, "lease is over", key);
        self.end_process_at(node, key, self.now, Exit::LeaseOver);
    }
}
