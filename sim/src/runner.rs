//! One attempt at a daemon, by the steps of `agent/src/runner.rs`: write it down, stage, start,
//! follow, collect, write its end down.

use std::sync::Arc;

use agent::attempts::{Input, Stop};
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::{self, Cause, Ended};

use crate::{
    history::{Exit, LEASE_OVER},
    jail::started,
    machine::{DaemonStep, Record},
    plan::{MS, Micros, SECOND},
    world::World,
};

/// How long a process that nobody wants any more has after SIGTERM.
const DISCARD_GRACE: Micros = SECOND;

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
    pub stop: Option<Stop>,
    passed_on: Option<Stop>,
    told: bool,
    /// The lease that there was while nobody had asked it to stop.
    lease: Option<Micros>,
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
    pub fn new(slot: u32, assignment: Arc<v1::Assignment>) -> Self {
        Self {
            stage: Stage::Writing,
            slot,
            assignment,
            stop: None,
            passed_on: None,
            told: false,
            lease: None,
            end: None,
        }
    }

    /// Its process was started by an earlier daemon.
    #[must_use]
    pub fn resumed(slot: u32, assignment: Arc<v1::Assignment>) -> Self {
        Self { stage: Stage::Following, ..Self::new(slot, assignment) }
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
            (RunnerStep::Launch, Stage::Launching) => {
                self.set_stage(node, key, Stage::Following);
                let lease = self.runner(node, key).and_then(|runner| runner.lease);
                self.launch(node, key, lease);
                self.pass_on(node, key);
            }
            (RunnerStep::Started, Stage::Following) => {
                let now = self.now;
                let told =
                    self.runner(node, key).is_some_and(|runner| std::mem::replace(&mut runner.told, true));
                if !told {
                    self.input(node, Input::Started(key, started(now)));
                    if self.rng.chance(500)
                        && let Some(daemon) = &mut self.machines[node].daemon
                    {
                        daemon.table.begin_streaming(key);
                    }
                }
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
                | RunnerStep::Exited
                | RunnerStep::Vanished
                | RunnerStep::Stop
                | RunnerStep::Collected,
                _,
            ) => {}
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
        let stop = self.runner(node, key).and_then(|runner| runner.stop);
        let mut ended = match (exit, stop) {
            (Exit::Exited(0), Some(Stop::Cancel)) => end(Cause::Cancelled, "cancelled"),
            (Exit::LeaseOver, _) => end(Cause::Lost, LEASE_OVER),
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
        if let Some(record) = self.machines[node].disk.get_mut(&key) {
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
