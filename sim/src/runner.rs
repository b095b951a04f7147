//! One attempt at a daemon, by the steps of `agent/src/runner.rs`: write it down, stage, start,
//! follow, collect, write its end down. Where the jail makes an attempt's directory there is nothing to write
//! down and to stage before it is asked, and its exit record says all of a good end.

use std::sync::Arc;

use agent::attempts::{Input, Stop};
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::{self, Cause, Ended};

use crate::{
    history::{Exit, LEASE_OVER},
    jail::{Start, started},
    machine::{DaemonStep, Record},
    plan::{MS, Micros, SECOND},
    world::World,
};

/// How long a process that nobody wants any more has after SIGTERM.
const DISCARD_GRACE: Micros = SECOND;

/// When a start is told at the latest, unless its end has come by then.
const LINGER: Micros = 5 * MS;

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Writing,
    Staging,
    Launching,
    Following,
    Collecting,
    Over,
}

/// The work on one attempt.
#[derive(Debug)]
pub struct Runner {
    stage: Stage,
    slot: u32,
    assignment: Arc<v1::Assignment>,
    /// The jail makes its directory.
    plain: bool,
    /// It is to stand in line, behind this attempt.
    after: Option<AttemptKey>,
    pub stop: Option<Stop>,
    passed_on: Option<Stop>,
    told: bool,
    /// The lease that there was while nobody had asked it to stop.
    lease: Option<Micros>,
    /// The jail's exit record says all of the end.
    recorded: bool,
    end: Option<Box<Ended>>,
}

/// What happens next to an attempt.
#[derive(Clone, Copy, Debug)]
pub enum RunnerStep {
    /// It is written down.
    Written,
    /// Its inputs are there.
    Staged,
    /// The jail is asked.
    Launch,
    /// Its process started.
    Started,
    /// Its end did not come at once.
    Lingered,
    /// It stood in line and has not begun.
    Returned,
    /// Its process ended.
    Exited,
    /// The jail that ran it is gone.
    Vanished,
    /// It is asked to stop.
    Stop,
    /// Its outputs are collected, its end is written down.
    Collected,
}

impl Runner {
    #[must_use]
    pub fn new(slot: u32, assignment: Arc<v1::Assignment>, plain: bool, after: Option<AttemptKey>) -> Self {
        Self {
            stage: Stage::Writing,
            slot,
            assignment,
            plain,
            after,
            stop: None,
            passed_on: None,
            told: false,
            lease: None,
            recorded: false,
            end: None,
        }
    }

    /// Its process was started by an earlier daemon.
    #[must_use]
    pub fn resumed(slot: u32, assignment: Arc<v1::Assignment>, plain: bool) -> Self {
        Self { stage: Stage::Following, ..Self::new(slot, assignment, plain, None) }
    }
}

impl World {
    fn runner(&mut self, node: usize, key: AttemptKey) -> Option<&mut Runner> {
        self.machines[node].daemon.as_mut()?.runners.get_mut(&key)
    }

    /// Lets a step of a runner follow after a time between two bounds.
    pub fn runner_after(&mut self, node: usize, key: AttemptKey, wait: (Micros, Micros), step: RunnerStep) {
        let wait = self.rng.skewed(wait.0, wait.1);
        self.daemon_after(node, wait, DaemonStep::Runner { key, step });
    }

    pub fn runner_step(&mut self, node: usize, key: AttemptKey, step: RunnerStep) {
        let Some(stage) = self.runner(node, key).map(|runner| runner.stage) else { return };
        match (step, stage) {
            (RunnerStep::Written, Stage::Writing) => self.written(node, key),
            (RunnerStep::Staged, Stage::Staging) => self.staged(node, key),
            (RunnerStep::Launch, Stage::Launching) => self.ask_jail(node, key),
            (RunnerStep::Started, Stage::Following) => self.tell_start(node, key),
            (RunnerStep::Lingered, Stage::Following) => {
                let now = self.now;
                self.input(node, Input::Started(key, started(now)));
            }
            (RunnerStep::Returned, Stage::Following) => {
                if let Some(daemon) = &mut self.machines[node].daemon {
                    daemon.runners.remove(&key);
                }
                self.input(node, Input::Returned(key));
            }
            (RunnerStep::Exited, Stage::Following) => self.exited(node, key),
            (RunnerStep::Vanished, Stage::Following) => {
                let end = infra("the jail that ran this attempt is gone");
                self.end_after(node, key, end, (100, 2 * MS));
            }
            (RunnerStep::Stop, Stage::Staging) => self.cut_short(node, key),
            (RunnerStep::Stop, Stage::Following) => self.pass_on(node, key),
            (RunnerStep::Stop, Stage::Collecting) => {
                // Collecting outputs ends with a cancel; what was worked out already stays.
                if self.runner(node, key).is_some_and(|runner| runner.stop > Some(Stop::Shutdown)) {
                    let run_ms = self.run_ms(node, key);
                    let end =
                        Box::new(Ended { run_ms, started_at_ms: 1, ..end(Cause::Cancelled, "cancelled") });
                    if let Some(runner) = self.runner(node, key) {
                        runner.end = Some(end);
                    }
                }
            }
            (RunnerStep::Collected, Stage::Collecting | Stage::Over) => self.over(node, key),
            (
                RunnerStep::Written
                | RunnerStep::Staged
                | RunnerStep::Launch
                | RunnerStep::Started
                | RunnerStep::Lingered
                | RunnerStep::Returned
                | RunnerStep::Exited
                | RunnerStep::Vanished
                | RunnerStep::Stop
                | RunnerStep::Collected,
                _,
            ) => {}
        }
    }

    /// Lets the jail start an attempt that needs nothing before.
    pub fn ask_to_start(&mut self, node: usize, key: AttemptKey) {
        let until = self.machines[node].lease_until;
        let Some(runner) = self.runner(node, key) else { return };
        runner.lease = (runner.assignment.on_disconnect() == v1::OnDisconnect::Kill).then_some(until);
        runner.stage = Stage::Launching;
        let latest = if runner.after.is_some() { 4 * MS } else { MS };
        self.runner_after(node, key, (10, latest), RunnerStep::Launch);
    }

    fn ask_jail(&mut self, node: usize, key: AttemptKey) {
        let boot = self.machines[node].boot;
        let Some(runner) = self.runner(node, key) else { return };
        runner.stage = Stage::Following;
        let (lease, after, stopped) = (runner.lease, runner.after, runner.stop.is_some());
        let begun = || Box::new(Record::begun(boot, runner.slot, Arc::clone(&runner.assignment)));
        let room = runner.plain.then(begun);
        // It is stopped just before or just after the jail is asked.
        if room.is_some() && stopped && self.rng.chance(500) {
            return self.cut_short(node, key);
        }
        self.launch(node, key, Start { lease, room, after });
        self.pass_on(node, key);
    }

    /// A start is told at once; of an attempt that may be over in an instant, with its end.
    fn tell_start(&mut self, node: usize, key: AttemptKey) {
        let now = self.now;
        let Some(runner) = self.runner(node, key) else { return };
        let plain = runner.plain;
        if std::mem::replace(&mut runner.told, true) {
            return;
        }
        if plain {
            self.input(node, Input::Began(key, started(now)));
            self.daemon_after(node, LINGER, DaemonStep::Runner { key, step: RunnerStep::Lingered });
        } else {
            self.input(node, Input::Started(key, started(now)));
        }
        if self.rng.chance(500)
            && let Some(daemon) = &mut self.machines[node].daemon
        {
            daemon.table.begin_streaming(key);
        }
    }

    fn set_stage(&mut self, node: usize, key: AttemptKey, stage: Stage) {
        if let Some(runner) = self.runner(node, key) {
            runner.stage = stage;
        }
    }

    fn written(&mut self, node: usize, key: AttemptKey) {
        let boot = self.machines[node].boot;
        let Some(runner) = self.runner(node, key) else { return };
        runner.stage = Stage::Staging;
        let (slot, assignment, stopped) =
            (runner.slot, Arc::clone(&runner.assignment), runner.stop.is_some());
        self.machines[node].disk.insert(key, Record::new(boot, slot, assignment));
        if stopped {
            return self.cut_short(node, key);
        }
        let long = if self.rng.chance(50) { 5 * SECOND } else { 20 * MS };
        self.runner_after(node, key, (100, long), RunnerStep::Staged);
    }

    fn staged(&mut self, node: usize, key: AttemptKey) {
        let spawn = self.weather().spawn;
        if self.rng.chance(spawn) {
            let end = if self.rng.chance(500) {
                Box::new(end(Cause::Staging, "an input is missing"))
            } else {
                infra("spawn failed")
            };
            return self.end_after(node, key, end, (100, 2 * MS));
        }
        if let Some(record) = self.machines[node].disk.get_mut(&key) {
            record.executed = true;
        }
        let until = self.machines[node].lease_until;
        if let Some(runner) = self.runner(node, key) {
            runner.lease = (runner.assignment.on_disconnect() == v1::OnDisconnect::Kill).then_some(until);
        }
        self.set_stage(node, key, Stage::Launching);
        self.runner_after(node, key, (10, MS), RunnerStep::Launch);
    }

    /// The runner stops before there is a process.
    fn cut_short(&mut self, node: usize, key: AttemptKey) {
        let stop = self.runner(node, key).and_then(|runner| runner.stop);
        let end = match stop {
            Some(Stop::Shutdown) => infra("the agent was stopped"),
            Some(Stop::Cancel | Stop::Discard) | None => Box::new(end(Cause::Cancelled, "cancelled")),
        };
        self.end_after(node, key, end, (10, MS));
    }

    fn pass_on(&mut self, node: usize, key: AttemptKey) {
        let Some(runner) = self.runner(node, key) else { return };
        if runner.stop <= runner.passed_on {
            return;
        }
        runner.passed_on = runner.stop;
        let grace = runner.assignment.grace_ms * MS;
        let grace = match runner.stop {
            Some(Stop::Discard) => grace.min(DISCARD_GRACE),
            Some(Stop::Cancel | Stop::Shutdown) | None => grace,
        };
        self.kill(node, key, grace);
    }

    fn run_ms(&self, node: usize, key: AttemptKey) -> u64 {
        self.machines[node].jail.get(&key).and_then(|process| process.exit).map_or(0, |(_, run_ms)| run_ms)
    }

    /// What the process's end means.
    fn exited(&mut self, node: usize, key: AttemptKey) {
        let Some(process) = self.machines[node].jail.get(&key) else { return };
        let Some((exit, run_ms)) = process.exit else { return };
        let (output, began) = (process.output, process.started.is_some());
        if began && self.runner(node, key).is_some_and(|runner| runner.plain) {
            self.tell_start(node, key);
        }
        let stop = self.runner(node, key).and_then(|runner| runner.stop);
        let mut ended = match (exit, stop) {
            (Exit::Exited(0), Some(Stop::Cancel)) => end(Cause::Cancelled, "cancelled"),
            (Exit::LeaseOver, _) => end(Cause::Lost, LEASE_OVER),
            (Exit::NotStarted, _) => end(Cause::Infra, "spawn failed"),
            (Exit::Exited(code), _) => Ended { exit_code: code, ..end(Cause::Exit, "") },
            (Exit::Killed | Exit::Vanished, Some(Stop::Shutdown) | None) => {
                end(Cause::Infra, "the agent was stopped with its tasks")
            }
            (Exit::Killed | Exit::Vanished, Some(Stop::Cancel | Stop::Discard)) => {
                end(Cause::Cancelled, "cancelled")
            }
        };
        ended.started_at_ms = u64::from(began);
        ended.run_ms = run_ms;
        ended.output_length = output;
        if let Some(runner) = self.runner(node, key) {
            runner.recorded = runner.plain && stop.is_none();
        }
        let long = if self.rng.chance(100) { 2 * SECOND } else { 10 * MS };
        self.end_after(node, key, Box::new(ended), (100, long));
    }

    fn end_after(&mut self, node: usize, key: AttemptKey, end: Box<Ended>, wait: (Micros, Micros)) {
        let Some(runner) = self.runner(node, key) else { return };
        runner.stage = if end.cause() == Cause::Exit { Stage::Collecting } else { Stage::Over };
        runner.end = Some(end);
        self.runner_after(node, key, wait, RunnerStep::Collected);
    }

    fn over(&mut self, node: usize, key: AttemptKey) {
        let Some(daemon) = self.machines[node].daemon.as_mut() else { return };
        let Some(runner) = daemon.runners.remove(&key) else { return };
        if runner.stop == Some(Stop::Discard) {
            return self.input(node, Input::Gone(key));
        }
        let Some(mut ended) = runner.end else { return };
        if daemon.table.seal(key, ended.output_length) {
            ended.output = vec![b'.'; ended.output_length as usize].into();
        }
        let machine = &mut self.machines[node];
        if runner.plain && !runner.recorded {
            // It may have ended before the jail began it.
            let record = || Record::new(machine.boot, runner.slot, Arc::clone(&runner.assignment));
            machine.disk.entry(key).or_insert_with(record);
        }
        if let Some(record) = machine.disk.get_mut(&key).filter(|_| !runner.recorded) {
            record.end = Some(ended.clone());
        }
        self.input(node, Input::Ended(key, ended));
    }
}

fn end(cause: Cause, message: &str) -> Ended {
    Ended { cause: cause.into(), message: message.to_owned(), ..Ended::default() }
}

/// The end of something that the node could not run.
#[must_use]
pub fn infra(message: &str) -> Box<Ended> {
    Box::new(end(Cause::Infra, message))
}
