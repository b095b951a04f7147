//! What happened: the true story of every process, and the promises that are checked as soon as
//! something could break one. See `docs/simulation.md` for the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use coordinator::engine::{
    effect::{AttemptRow, TaskRow},
    types::{Cause, TaskState},
};
use mesh_proto::ids::{AttemptKey, BootId, JobNumber, NodeId};

use crate::{
    database::{Change, Database, Landed, is_given_back},
    invariant::{Invariant, Violation},
    plan::Micros,
    restore::Lost,
    witness::Witness,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Exited(i32),
    Killed,
    /// With its machine.
    Vanished,
    /// By its jail, when its node's lease was over.
    LeaseOver,
    /// It could not be started.
    NotStarted,
}

/// What is true of a process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessFact {
    pub node: usize,
    pub ended: Option<Exit>,
}

/// How agents tell that a lease ended an attempt.
pub const LEASE_OVER: &str = "no coordinator acknowledged its node for too long (on_disconnect: kill)";

/// An attempt at a node. Only a history that goes on from an older state can give the same number
/// to another one.
pub type Run = (AttemptKey, usize);

/// The index of a node's machine.
fn index_of(node: NodeId) -> usize {
    node.0.as_u128() as usize - 1
}

fn run_of(row: &AttemptRow) -> Run {
    (row.key, index_of(row.node))
}

/// The record of one run.
#[derive(Debug, Default)]
pub struct History {
    trace: bool,
    /// The first broken promise.
    pub broken: Option<Violation>,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    pub processes: BTreeMap<Run, ProcessFact>,
    /// What is not in the history that goes on.
    pub lost: Lost,
    /// Nodes whose cordon or drain was acknowledged.
    pub cordoned: BTreeSet<NodeId>,
    /// When each attempt was assigned.
    assigned: BTreeMap<AttemptKey, Micros>,
    /// The process that writes in each epoch of each history.
    pub writers: BTreeMap<(u64, u64), u64>,
    /// Every change of state that a commit made.
    pub changes: BTreeSet<Change>,
    /// Of everything that was noted: equal seeds give equal digests.
    pub digest: u64,
}

impl History {
    #[must_use]
    pub fn new(trace: bool) -> Self {
        Self { trace, ..Self::default() }
    }

    /// Notes that something happened.
    pub fn note(&mut self, now: Micros, what: &'static str, of: impl Display) {
        *self.counts.entry(what).or_default() += 1;
        for byte in now.to_le_bytes().iter().chain(what.as_bytes()) {
            // FNV-1a.
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace {
            println!("{:>12.6}  {what:<34} {of}", now as f64 / 1e6);
        }
    }

    /// A promise is broken; the first one is what is told.
    pub fn fail(&mut self, now: Micros, invariant: Invariant, why: impl Into<String>) {
        self.report(now, Violation::new(invariant, why));
    }

    /// The same, for one that is at hand.
    pub fn report(&mut self, now: Micros, violation: Violation) {
        self.note(now, "BROKEN", &violation);
        self.broken.get_or_insert(violation);
    }

    /// Whether the engine may declare this attempt lost. A silent node is suspected, not
    /// replaced; an attempt that its node holds is not lost.
    pub fn check_lost(&mut self, now: Micros, witness: &Witness, row: &AttemptRow, offline_after_ms: u64) {
        let Some((at, end)) = &row.ended else { return };
        if end.cause != Cause::Lost {
            return;
        }
        let contact = witness.of(row.node);
        // One that was assigned in this batch is not noted yet.
        let assigned = self.assigned.get(&row.key).copied().unwrap_or(now);
        let silent = at.since(contact.heard) > offline_after_ms
            || contact.silent_until.is_some_and(|until| until > assigned);
        let justified = match end.message.as_str() {
            "the node restarted" => contact.boot.is_some_and(|boot| boot != row.boot),
            "the agent has no record of it" => !contact.held.contains(&row.key),
            LEASE_OVER => {
                self.processes.get(&run_of(row)).is_none_or(|fact| fact.ended == Some(Exit::LeaseOver))
            }
            _ => silent,
        };
        if !justified {
            let why = format!("{} is given up too early ({}): heard {contact:?}", row.key, end.message);
            self.fail(now, Invariant::NotGivenUpEarly, why);
        }
    }

    /// A process starts: its assignment is committed for this node and boot, and this is the
    /// first time; what was given back never starts.
    #[expect(clippy::too_many_arguments, reason = "what is true of a start, looked at once")]
    pub fn process_starts(
        &mut self,
        now: Micros,
        key: AttemptKey,
        node: usize,
        id: NodeId,
        boot: BootId,
        leased: bool,
        database: &Database,
    ) {
        self.note(now, "process starts", format_args!("{key} at node {node}"));
        let lost = self.lost.assigned.contains(&(key, id));
        let wrong = match database.attempts.get(&key) {
            None if lost => None,
            Some(row) if lost && row.node != id => None,
            None => Some((Invariant::StartsCommitted, "its assignment is not committed".to_owned())),
            Some(row) if row.node != id || row.boot != boot => {
                Some((Invariant::StartsCommitted, format!("it is assigned as {row:?}")))
            }
            Some(row) => match &row.ended {
                Some((_, end)) if is_given_back(end) => {
                    Some((Invariant::GivenBackNeverBegan, "it was given back".to_owned()))
                }
                Some((_, end)) if end.cause != Cause::Lost => {
                    Some((Invariant::StartsCommitted, format!("it has ended: {end:?}")))
                }
                Some(_) | None => None,
            },
        };
        if let Some((invariant, wrong)) = wrong {
            self.fail(now, invariant, format!("{key} starts at node {node}, but {wrong}"));
        }
        // What was assigned in a history that is over may overlap with what goes on.
        let over = |(key, fact): &(AttemptKey, &ProcessFact)| {
            self.lost.assigned.iter().any(|(of, node)| of == key && index_of(*node) == fact.node)
        };
        let other = self.alive().find(|other| other.0.task == key.task && !over(other));
        let other = other.map(|(other, _)| other);
        if let Some(other) = other.filter(|_| leased && !lost) {
            self.fail(now, Invariant::NoOverlap, format!("{key} starts while {other} lives"));
        }
        let fact = ProcessFact { node, ended: None };
        if self.processes.insert((key, node), fact).is_some() {
            self.fail(now, Invariant::StartsOnce, format!("{key} starts twice"));
        }
    }

    pub fn process_ends(&mut self, now: Micros, (key, node): Run, exit: Exit) {
        self.note(now, "process ends", format_args!("{key}: {exit:?}"));
        if let Some(fact) = self.processes.get_mut(&(key, node))
            && fact.ended.is_none()
        {
            fact.ended = Some(exit);
        }
    }

    /// The processes that live.
    pub fn alive(&self) -> impl Iterator<Item = (AttemptKey, &ProcessFact)> {
        self.processes.iter().filter(|(_, fact)| fact.ended.is_none()).map(|((key, _), fact)| (*key, fact))
    }

    /// Checks what a commit made true against what is true.
    pub fn landed(&mut self, now: Micros, landed: &Landed, database: &Database) {
        self.changes.extend(&landed.changes);
        for row in &landed.assigned {
            self.note(now, "assigned", row.key);
            self.assigned.insert(row.key, now);
            if self.cordoned.contains(&row.node) {
                let why = format!("{} is assigned to a node that takes nothing", row.key);
                self.fail(now, Invariant::CordonHolds, why);
            }
            if let Err(unmet) = check_needs(database, row.key) {
                self.fail(now, Invariant::NeedsFirst, unmet);
            }
        }
        for row in &landed.ended {
            if let Err(untrue) = self.check_end(row) {
                self.report(now, untrue);
            }
        }
        for job in &landed.redriven {
            self.note(now, "job redriven", job);
        }
        *self.counts.entry("series begun").or_default() += landed.anew;
        for row in &landed.finished_tasks {
            self.note(now, finished(row), row.key);
            self.check_processes_gone(now, database, row.key.job, |key| key.task == row.key);
        }
        for job in &landed.finished_jobs {
            self.note(now, "job is over", format_args!("{job}"));
            self.check_processes_gone(now, database, *job, |_| true);
        }
    }

    /// The end that is committed is the end that was.
    fn check_end(&mut self, row: &AttemptRow) -> Result<(), Violation> {
        let Some((_, end)) = &row.ended else { return Ok(()) };
        let key = row.key;
        let fact = self.processes.get(&run_of(row)).copied();
        let count = match end.cause {
            Cause::Lost => "attempt lost",
            _ if is_given_back(end) => "attempt given back",
            _ => "attempt ends",
        };
        *self.counts.entry(count).or_default() += 1;
        if end.cause == Cause::Lost {
            return Ok(());
        }
        if is_given_back(end) {
            return match fact {
                None => Ok(()),
                Some(fact) => Err(Violation::new(
                    Invariant::GivenBackNeverBegan,
                    format!("{key} counts as given back, but it began: {fact:?}"),
                )),
            };
        }
        if let Some(ProcessFact { ended: None, .. }) = fact {
            let why = format!("{key} is ended as {end:?}, but its process lives");
            return Err(Violation::new(Invariant::TrueEnd, why));
        }
        if end.cause == Cause::Exit && fact.and_then(|fact| fact.ended) != end.exit_code.map(Exit::Exited) {
            let why = format!("{key} is ended as {end:?}, but its process: {fact:?}");
            return Err(Violation::new(Invariant::TrueEnd, why));
        }
        Ok(())
    }

    /// Of what is over no process lives, but for attempts whose node was offline.
    fn check_processes_gone(
        &mut self,
        now: Micros,
        database: &Database,
        job: JobNumber,
        of: impl Fn(&AttemptKey) -> bool,
    ) {
        let lives = self.alive().find(|(key, fact)| {
            let row = database.attempts.get(key).filter(|row| index_of(row.node) == fact.node);
            let given_up = match row {
                // Of a history that is over: it ends when its node comes back.
                None => !self.lost.assigned.is_empty(),
                Some(row) => row.ended.as_ref().is_some_and(|(_, end)| end.cause == Cause::Lost),
            };
            key.task.job == job && of(key) && !given_up
        });
        let lives = lives.map(|(key, _)| key);
        if let Some(key) = lives {
            self.fail(
                now,
                Invariant::ProcessesGone,
                format!("{job} is over in part, but the process of {key} lives"),
            );
        }
    }
}

fn finished(row: &TaskRow) -> &'static str {
    match row.state {
        TaskState::Completed => "task completed",
        TaskState::Failed => "task failed",
        TaskState::Cancelled => "task cancelled",
        TaskState::Unspecified
        | TaskState::Blocked
        | TaskState::Queued
        | TaskState::Assigned
        | TaskState::Running
        | TaskState::Retrying => "task goes on",
    }
}

/// A task is assigned only when what it needs is completed.
fn check_needs(database: &Database, key: AttemptKey) -> Result<(), String> {
    let Some(job) = database.jobs.get(&key.task.job) else {
        return Err(format!("{key} is assigned, but its job has no row"));
    };
    for need in &job.new.tasks[key.task.task as usize].needs {
        let total = job.new.tasks[need.task as usize].total;
        let done = |index: u32| {
            database
                .rows(key.task.job, need.task)
                .any(|row| row.key.index == index && row.state == TaskState::Completed)
        };
        let met = if need.same_index { done(key.task.index) } else { (0..total).all(done) };
        if !met {
            return Err(format!("{key} is assigned before what it needs is completed"));
        }
    }
    Ok(())
}
