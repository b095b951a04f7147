//! What must hold of the rows after every commit.

use std::collections::BTreeSet;

use coordinator::engine::{
    effect::AttemptRow,
    event::AttemptEnd,
    types::{Cause, Counts, TaskState},
};
use mesh_proto::ids::{JobNumber, TaskKey};

use super::{Database, Rows, is_final, is_over, keys};
use crate::invariant::{Invariant, Violation};

/// What the engine says of an attempt that its agent gave back.
pub const GIVEN_BACK: &str = "given back before it began";

/// Whether an end says that the attempt was given back.
#[must_use]
pub fn is_given_back(end: &AttemptEnd) -> bool {
    end.cause == Cause::Cancelled && end.message == GIVEN_BACK
}

impl Database {
    /// Checks what a commit touched.
    pub(super) fn check(&self, rows: &Rows) -> Result<(), Violation> {
        let touched: BTreeSet<TaskKey> = rows
            .tasks
            .keys()
            .copied()
            .chain(rows.attempts.keys().map(|attempt| attempt.task))
            .chain(rows.moved.iter().flat_map(keys))
            .collect();
        for key in &touched {
            self.check_task(*key)?;
        }
        let jobs: BTreeSet<JobNumber> = touched
            .iter()
            .map(|key| key.job)
            .chain(rows.jobs.keys().copied())
            .chain(rows.redriven.iter().map(|row| row.number))
            .collect();
        for job in jobs {
            self.check_job(job)?;
        }
        Ok(())
    }

    /// A task has at most one open attempt, which is the last, and has it exactly while it is
    /// assigned or running. Completed, it has exactly one good end. Its counters are those of
    /// its attempts' ends.
    fn check_task(&self, key: TaskKey) -> Result<(), Violation> {
        let task = self.tasks.get(&key).ok_or_else(|| {
            Violation::new(Invariant::OneAttempt, format!("{key} has an attempt and no row"))
        })?;
        let attempts: Vec<&AttemptRow> = self.attempts_of(key).collect();
        let numbers: Vec<u32> = attempts.iter().map(|row| row.key.number).collect();
        // A history that an operator accepted leaves a gap behind it.
        let follows = |pair: &[u32]| pair[1] == pair[0] + 1 || pair[1] == self.first_attempt;
        let begins = |first: u32| first == 1 || first == self.first_attempt;
        let whole = numbers.first().copied().is_none_or(begins) && numbers.windows(2).all(follows);
        if !whole || numbers.last().copied().unwrap_or(0) != task.attempt {
            return Err(Violation::new(
                Invariant::OneAttempt,
                format!("{key} is at attempt {} and has {numbers:?}", task.attempt),
            ));
        }
        let open: Vec<u32> =
            attempts.iter().filter(|row| row.ended.is_none()).map(|row| row.key.number).collect();
        let placed = matches!(task.state, TaskState::Assigned | TaskState::Running);
        let expected = if placed { vec![task.attempt] } else { Vec::new() };
        if open != expected {
            return Err(Violation::new(
                Invariant::OneAttempt,
                format!("{key} is {:?}, its open attempts are {open:?}", task.state),
            ));
        }
        let ends: Vec<&AttemptEnd> =
            attempts.iter().filter_map(|row| row.ended.as_ref()).map(|(_, end)| end.as_ref()).collect();
        let good = ends.iter().filter(|end| end.is_success()).count();
        let completed = task.state == TaskState::Completed;
        if good != usize::from(completed) || completed != ends.last().is_some_and(|end| end.is_success()) {
            return Err(Violation::new(
                Invariant::OneResult,
                format!("{key} is {:?} with {good} good attempts", task.state),
            ));
        }
        if is_over(task.state) != task.finished_at.is_some() {
            return Err(Violation::new(
                Invariant::TerminalStays,
                format!("{task:?} is finished at no time, or too early"),
            ));
        }
        let first = self.series.get(&key).copied().unwrap_or(1);
        let earlier = attempts.iter().filter(|row| row.key.number < first && row.ended.is_some()).count();
        self.check_failures(key, &ends[earlier..])
    }

    /// Losses and failures of a series are counted apart, giving back is neither, and a task fails
    /// only when they say so. A redrive begins the next series.
    fn check_failures(&self, key: TaskKey, ends: &[&AttemptEnd]) -> Result<(), Violation> {
        let Some(job) = self.jobs.get(&key.job) else {
            return Err(Violation::new(Invariant::GuardsHold, format!("{key} is of no job")));
        };
        let Some(task) = self.tasks.get(&key) else { return Ok(()) };
        let own = |end: &&&AttemptEnd| is_own(end) && !end.is_success();
        let lost = |end: &&&AttemptEnd| !is_own(end) && !is_given_back(end);
        let (own, lost) = (ends.iter().filter(own).count(), ends.iter().filter(lost).count());
        let (noted_own, noted_lost) = (task.own_failures as usize, task.losses as usize);
        // The end that a cancel brought is nobody's failure.
        let slack = usize::from(job.row.ending.is_some());
        if noted_own > own || noted_own + slack < own || noted_lost > lost || noted_lost + slack < lost {
            return Err(Violation::new(
                Invariant::CountedApart,
                format!("{key} notes {noted_own} failures and {noted_lost} losses of {ends:?}"),
            ));
        }
        let retry = &job.new.tasks[key.task as usize].retry;
        let latest = ends.last();
        let used_up = noted_own >= retry.attempts as usize
            || noted_lost > retry.max_lost as usize
            || latest.is_some_and(|end| is_own(end) && !retry.on.contains(&end.cause));
        if (task.state == TaskState::Failed) != used_up && !is_over(task.state)
            || task.state == TaskState::Failed && !used_up
        {
            return Err(Violation::new(
                Invariant::CountedApart,
                format!("{key} is {:?} after {ends:?} with {retry:?}", task.state),
            ));
        }
        Ok(())
    }

    /// Counts are those of the rows, and a job is over exactly when all of it is.
    fn check_job(&self, number: JobNumber) -> Result<(), Violation> {
        let Some(job) = self.jobs.get(&number) else {
            return Err(Violation::new(Invariant::GuardsHold, format!("{number} has no row")));
        };
        let mut sum = Counts::default();
        for (task, counts) in (0_u32..).zip(&job.definitions) {
            sum.add(counts);
            for state in [TaskState::Assigned, TaskState::Running, TaskState::Completed, TaskState::Failed] {
                let rows = self.rows(number, task).filter(|row| row.state == state).count();
                if counts[state] != rows as u64 {
                    return Err(Violation::new(
                        Invariant::CountsAgree,
                        format!("{number} task {task}: {counts:?}, but {rows} rows are {state:?}"),
                    ));
                }
            }
        }
        let over = sum.unfinished() == 0;
        if sum != job.row.counts || over != job.row.finished_at.is_some() || over != is_final(job.row.state) {
            return Err(Violation::new(
                Invariant::CountsAgree,
                format!("{number} with {sum:?} is {:?}", job.row),
            ));
        }
        Ok(())
    }
}

/// Whether an end is the task's own doing.
fn is_own(end: &AttemptEnd) -> bool {
    match end.cause {
        Cause::Exit
        | Cause::Signal
        | Cause::Timeout
        | Cause::Oom
        | Cause::Disk
        | Cause::Output
        | Cause::Staging
        | Cause::Sandbox => true,
        Cause::Unspecified | Cause::Infra | Cause::Lost | Cause::Cancelled | Cause::Fenced => false,
    }
}
