//! Attempts that stand in line in a jail, by the rules of `agent/src/jail/line.rs` and `server/turn.rs`: each
//! starts when the one before it is over, in whose slot it is to run. None of them has begun; who may not begin
//! soon is given back, and all are forgotten with the daemon.

use mesh_proto::ids::AttemptKey;

use crate::{
    broken::Broken,
    history::Exit,
    jail::{JailStep, Process},
    plan::{MS, Micros},
    runner::RunnerStep,
    world::{Happening, World},
};

/// How long an attempt stands in line at the most.
const IN_LINE: Micros = 20 * MS;

#[derive(Debug)]
struct Waiting {
    key: AttemptKey,
    after: AttemptKey,
    /// Who comes again later comes as another.
    number: u64,
    process: Process,
}

/// All lines of a jail.
#[derive(Debug, Default)]
pub struct Line(Vec<Waiting>);

impl Line {
    /// The slot for which an attempt stands in line.
    fn slot(&self, key: AttemptKey) -> Option<u32> {
        let waiting = self.0.iter().find(|waiting| waiting.key == key)?;
        waiting.process.room.as_deref().map(|room| room.slot)
    }

    fn next(&mut self, over: AttemptKey) -> Option<Waiting> {
        let place = self.0.iter().position(|waiting| waiting.after == over)?;
        Some(self.0.remove(place))
    }

    fn leave(&mut self, key: AttemptKey) -> Option<Waiting> {
        let place = self.0.iter().position(|waiting| waiting.key == key)?;
        Some(self.0.remove(place))
    }

    /// Nothing of what stands in line is known to anybody but who asked for it.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl World {
    /// The jail is asked to start an attempt when another is over.
    pub fn stand_in_line(&mut self, node: usize, key: AttemptKey, after: AttemptKey, process: Process) {
        let number = self.number();
        let machine = &mut self.machines[node];
        let boot = machine.boot;
        let lives = |process: &&Process| process.exit.is_none();
        let running = machine.jail.get(&after).filter(lives).and_then(|process| {
            process.room.as_deref().or_else(|| machine.disk.get(&after)).map(|record| record.slot)
        });
        // It may run elsewhere by now: it was given back and started anew.
        let place = running.or_else(|| machine.line.slot(after));
        let waits = place.is_some() && place == process.room.as_deref().map(|room| room.slot);
        let free = machine.line.0.iter().all(|waiting| waiting.after != after);
        if waits && free {
            machine.line.0.push(Waiting { key, after, number, process });
            self.history.note(self.now, "stands in line", format_args!("{key} behind {after}"));
            let step = JailStep::InLine { number };
            return self.after(IN_LINE, Happening::Jail { node, boot, key, step });
        }
        if self.broken == Some(Broken::StartsBehindNobody) {
            machine.jail.insert(key, process);
            self.start_process(node, key);
            return;
        }
        self.give_back(node, key);
    }

    /// An attempt is over: starts the one behind it.
    pub fn go_on(&mut self, node: usize, over: AttemptKey) {
        let mut over = over;
        while let Some(Waiting { key, mut process, .. }) = self.machines[node].line.next(over) {
            let machine = &mut self.machines[node];
            let now = machine.clock.read(self.now);
            if process.lease.is_some_and(|until| until <= now) {
                self.history.note(self.now, "lease is over in line", key);
                self.give_back(node, key);
                return self.give_back_behind(node, key);
            }
            process.lease = process.lease.map(|until| until.max(machine.lease_until));
            machine.jail.insert(key, process);
            self.history.note(self.now, "has its turn in line", key);
            if self.start_process(node, key) {
                return;
            }
            over = key;
        }
    }

    /// Ends an attempt that stands in line; false when it does not.
    pub fn kill_in_line(&mut self, node: usize, key: AttemptKey) -> bool {
        let Some(waiting) = self.machines[node].line.leave(key) else { return false };
        self.history.note(self.now, "killed in line", key);
        self.machines[node].jail.insert(key, waiting.process);
        self.ends_unstarted(node, key, Exit::Killed);
        self.give_back_behind(node, key);
        true
    }

    pub fn overdue_in_line(&mut self, node: usize, key: AttemptKey, number: u64) {
        let line = &mut self.machines[node].line;
        if line.0.iter().any(|waiting| waiting.number == number) && line.leave(key).is_some() {
            self.give_back(node, key);
            self.give_back_behind(node, key);
        }
    }

    /// Gives back all who stand behind this one, directly or not.
    pub fn give_back_behind(&mut self, node: usize, key: AttemptKey) {
        let mut before = key;
        while let Some(waiting) = self.machines[node].line.next(before) {
            before = waiting.key;
            self.give_back(node, before);
        }
    }

    fn give_back(&mut self, node: usize, key: AttemptKey) {
        self.history.note(self.now, "returned from line", key);
        self.runner_after(node, key, (0, 3 * MS), RunnerStep::Returned);
    }
}
