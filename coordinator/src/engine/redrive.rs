//! Dead letters are tried again: the one way back from a task's terminal state.
//!
//! A redrive begins a new series of attempts: numbers go on, failures and losses count from 0.
//! Everything that was cancelled *because* of a failure comes back with it, but for what needs
//! another dead letter, directly or not. What completed stays completed, and what a person
//! cancelled stays cancelled. A job that was over is read again by the shell and opened here;
//! the commit makes sure that it is still the one that was read.
//!
//! An element that has a row was assigned before, so what it needs is completed for good: it
//! is never blocked again, and its row says `queued` at once.

use mesh_proto::ids::JobNumber;

use super::{
    effect::{Effects, Move, Moved, Redriven, Refusal, Reply, Say, Write},
    event::{Redrive, ReplyId},
    job::Job,
    machine::Engine,
    ranges::Elements,
    restore::StoredJob,
    types::{JobState, TaskState, Time},
};

impl Engine {
    /// Tries dead letters again, or says why not.
    pub(super) fn redrive(&mut self, now: Time, reply: ReplyId, asked: &Redrive, fx: &mut Effects) {
        let number = asked.job;
        let reloaded = match (self.jobs.contains_key(&number), &asked.stored) {
            (true, _) => None,
            (false, None) => return Self::refuse(reply, Refusal::Changed(number), fx),
            (false, Some(stored)) => match self.reload(now, stored) {
                Some(finished_at) => Some(finished_at),
                None => return Self::refuse(reply, Refusal::Changed(number), fx),
            },
        };
        let refusal = match self.jobs.get(&number) {
            None => Some(Refusal::NoSuchJob),
            Some(job) => refusal(job, &asked.targets),
        };
        if let Some(refusal) = refusal {
            if reloaded.is_some() {
                self.dirty.remove(&number);
                self.let_go(number);
            }
            return Self::refuse(reply, refusal, fx);
        }
        if let Some(finished_at) = reloaded {
            self.reopened.insert(number, finished_at);
        }
        let before = fx.writes.len();
        let (redriven, resumed) = self.reopen(now, number, &asked.targets, fx);
        // The job is open before what it brings is written.
        let written = Write::Redriven(Redriven {
            number,
            finished_at: reloaded,
            by: asked.by.clone(),
            detail: asked.detail.clone(),
            key: asked.key.clone(),
            redriven,
            resumed,
        });
        fx.writes.insert(before, written);
        let state = self.jobs.get(&number).map_or(JobState::Queued, |job| job.state);
        fx.says.push(Say::Reply(reply, Reply::Redriven { number, state, redriven, resumed }));
    }

    /// Takes a job that is over into memory; none if it was opened since it was read.
    fn reload(&mut self, now: Time, stored: &StoredJob) -> Option<Time> {
        let finished_at = stored.finished_at?;
        if self.reopened.get(&stored.number).is_some_and(|last| *last != finished_at) {
            return None;
        }
        self.restore_job(now, stored.clone());
        let counts = self.jobs.get(&stored.number)?.counts();
        self.finished.take(stored.state, &counts);
        Some(finished_at)
    }

    /// Says how many dead letters are queued again, and how many tasks come back with them.
    fn reopen(
        &mut self,
        now: Time,
        number: JobNumber,
        targets: &[(u32, Option<u32>)],
        fx: &mut Effects,
    ) -> (u64, u64) {
        self.dirty.entry(number).or_default();
        let Some(job) = self.jobs.get_mut(&number) else { return (0, 0) };
        job.ending = None;
        job.reason.clear();
        job.state = if job.started_at.is_some() { JobState::Running } else { JobState::Queued };
        let tasks = job.tasks.len() as u32;
        let mut back = Vec::new();
        for task in 0..tasks {
            let Some(definition) = self.definition_mut(number, task) else { continue };
            let chosen = chosen(&definition.dead, task, targets);
            let mut cancelled = definition.dropped.clone();
            cancelled.subtract(&definition.dead);
            definition.dead.subtract(&chosen);
            definition.dropped = definition.dead.clone();
            self.shift(number, task, TaskState::Failed, TaskState::Blocked, chosen.len());
            self.shift(number, task, TaskState::Cancelled, TaskState::Blocked, cancelled.len());
            back.push((task, chosen, cancelled));
        }
        for task in 0..tasks {
            let dead = self.definition(number, task).map(|definition| definition.dead.clone());
            if let Some(dead) = dead.filter(|dead| !dead.is_empty()) {
                self.drop_dependents(number, task, &dead);
            }
        }
        for task in 0..tasks {
            self.unblock_all(now, number, task);
            self.requeue(number, task);
        }
        let (mut redriven, mut resumed) = (0, 0);
        for (task, chosen, mut cancelled) in back {
            let Some(definition) = self.definition(number, task) else { continue };
            cancelled.subtract(&definition.dropped);
            redriven += chosen.len();
            resumed += cancelled.len();
            let with_row = definition.past.among(&cancelled);
            for (elements, how) in [(chosen, Move::Redriven), (with_row, Move::Resumed)] {
                if !elements.is_empty() {
                    fx.writes.push(Write::Moved(Moved { job: number, task, elements, how, at: now }));
                }
            }
        }
        (redriven, resumed)
    }
}

/// Why a job cannot be redriven.
fn refusal(job: &Job, targets: &[(u32, Option<u32>)]) -> Option<Refusal> {
    if job.ending == Some(JobState::Cancelled) {
        return Some(Refusal::WasCancelled(job.number));
    }
    let mut definitions = job.tasks.iter().zip(0..);
    if definitions.all(|(definition, task)| chosen(&definition.dead, task, targets).is_empty()) {
        return Some(Refusal::NothingDead(job.number));
    }
    let ending = job.ending.is_some() && job.counts().unfinished() > 0;
    ending.then_some(Refusal::StillEnding(job.number))
}

/// The dead letters of a definition that were named.
fn chosen(dead: &Elements, task: u32, targets: &[(u32, Option<u32>)]) -> Elements {
    let mine = |target: &&(u32, Option<u32>)| target.0 == task;
    if targets.is_empty() || targets.iter().filter(mine).any(|(_, index)| index.is_none()) {
        return dead.clone();
    }
    let mut chosen = Elements::default();
    for index in targets.iter().filter(mine).filter_map(|(_, index)| *index) {
        if dead.contains(index) {
            chosen.insert(index..index + 1);
        }
    }
    chosen
}
