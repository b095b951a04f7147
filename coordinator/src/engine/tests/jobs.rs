//! Jobs come in, go on and end.

use super::mesh::{Mesh, array, ended, facts, failed, job, job_id, key, needs, ok, task};
use crate::engine::{
    effect::{Refusal, Say},
    event::{Event, NewDefinition, NewJob, ReplyId},
    types::{Cause, JobState, TaskState},
};

fn keyed(owner: &str, key: &str, payload: u8) -> NewJob {
    NewJob {
        owner: owner.to_owned(),
        idempotency_key: Some(key.to_owned()),
        payload_digest: [payload; 32],
        ..job(vec![task("a")])
    }
}

#[test]
fn a_job_runs_from_submit_to_completed() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    assert_eq!(mesh.dispatched(), [(0, attempt)], "the submit itself dispatches");
    assert_eq!(mesh.job_state(number), JobState::Queued);
    assert_eq!(mesh.state(attempt.task), TaskState::Assigned);

    mesh.start(attempt);
    assert_eq!(mesh.job_state(number), JobState::Running);
    assert_eq!(mesh.store.jobs[&number].row.started_at, Some(mesh.now));

    mesh.now = mesh.now.plus(10);
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
    assert_eq!(mesh.store.jobs[&number].row.finished_at, Some(mesh.now));
    assert!(mesh.engine.jobs.is_empty(), "a finished job takes no memory");
    assert_eq!(mesh.engine.totals().tasks.unfinished(), 0);
    assert!(mesh.engine.classes.nothing_waits());
    assert_eq!(mesh.engine.classes.members(), 0);
}

#[test]
fn numbers_count_up_across_jobs() {
    let mut mesh = Mesh::new();
    let first = mesh.submit(job(vec![task("a")]));
    let second = mesh.submit(job(vec![task("a")]));
    assert_eq!((first.0, second.0), (1, 2));
}

#[test]
fn the_same_key_and_payload_is_the_same_job() {
    let mut mesh = Mesh::new();
    let number = mesh.submit(NewJob { uuid: job_id(1), ..keyed("ann", "nightly", 1) });
    let again = NewJob { uuid: job_id(2), ..keyed("ann", "nightly", 1) };
    assert_eq!(mesh.try_submit(again), Ok((number, true)));
    assert_eq!(mesh.store.jobs.len(), 1, "no second job");
}

#[test]
fn the_same_key_with_another_payload_is_refused() {
    let mut mesh = Mesh::new();
    let number = mesh.submit(keyed("ann", "nightly", 1));
    assert_eq!(mesh.try_submit(keyed("ann", "nightly", 2)), Err(Refusal::KeyUsed(number)));
    assert_eq!(mesh.store.jobs.len(), 1);
    assert!(mesh.try_submit(keyed("bob", "nightly", 2)).is_ok(), "keys belong to their owner");
}

#[test]
fn a_key_holds_within_one_batch() {
    let mut mesh = Mesh::new();
    let submit =
        |reply| Event::JobSubmitted { reply: ReplyId(reply), job: keyed("ann", "nightly", 1).into() };
    mesh.batch(&[submit(1), submit(2)]);
    assert_eq!(mesh.store.jobs.len(), 1);
}

#[test]
fn a_million_elements_are_one_range() {
    let mut mesh = Mesh::new();
    let number = mesh.submit(job(vec![array("a", 1_000_000)]));
    let definition = &mesh.engine.jobs[&number].tasks[0];
    assert_eq!(definition.ready.len(), 1_000_000);
    assert_eq!(definition.ready.iter().count(), 1);
    assert!(definition.live.is_empty());
    assert!(mesh.store.tasks.is_empty(), "no rows before the first assignment");
    assert_eq!(mesh.counts(number)[TaskState::Queued], 1_000_000);

    mesh.join(0, facts(4));
    let definition = &mesh.engine.jobs[&number].tasks[0];
    assert_eq!((definition.live.len(), definition.ready.iter().count()), (4, 1));
    assert_eq!(mesh.store.tasks.len(), 4, "rows for what was assigned, and no more");
}

#[test]
fn a_million_elements_that_wait_for_others_are_ranges_too() {
    let mut mesh = Mesh::with_nodes(1).without_queues();
    let wide = NewDefinition { needs: needs(0), ..array("b", 1_000_000) };
    let number = mesh.submit(job(vec![task("a"), wide]));
    assert_eq!(mesh.counts(number)[TaskState::Blocked], 1_000_000);
    mesh.start_task(key(number, 0, 0));
    mesh.end_task(key(number, 0, 0), ok());
    let definition = &mesh.engine.jobs[&number].tasks[1];
    assert_eq!((definition.live.len(), definition.ready.iter().count()), (1, 1));
    assert_eq!(mesh.counts(number)[TaskState::Queued], 999_999);
}

#[test]
fn elements_that_end_out_of_order_end_the_job() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(5));
    let number = mesh.submit(job(vec![array("a", 5)]));
    for index in [3, 0, 4, 1] {
        mesh.end_task(key(number, 0, index), ok());
        assert_eq!(mesh.job_state(number), JobState::Running);
    }
    mesh.end_task(key(number, 0, 2), ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_failure_stops_the_job() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(job(vec![array("render", 4), task("other")]));
    let running = mesh.start_task(key(number, 0, 1));
    mesh.end_task(key(number, 0, 0), failed());
    assert_eq!(mesh.cancels(), [running], "what runs is asked to end");
    assert_eq!(mesh.job_state(number), JobState::Running, "a process is still there");
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Cancelled);
    assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Cancelled);
    assert!(mesh.dispatched().is_empty(), "nothing new starts");

    mesh.end(running, ended(Cause::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Failed);
    let row = &mesh.store.jobs[&number].row;
    assert_eq!(row.reason, "render.0 failed: exit status 1");
    assert_eq!((row.counts[TaskState::Failed], row.counts[TaskState::Cancelled]), (1, 4));
}

#[test]
fn a_failure_under_continue_leaves_the_rest_alone() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(NewJob { keep_going: true, ..job(vec![array("a", 3)]) });
    mesh.end_task(key(number, 0, 0), failed());
    mesh.end_task(key(number, 0, 1), ok());
    mesh.end_task(key(number, 0, 2), ok());
    assert_eq!(mesh.job_state(number), JobState::PartiallyCompleted);
}

#[test]
fn a_job_of_which_nothing_worked_failed() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(NewJob { keep_going: true, ..job(vec![array("a", 2)]) });
    mesh.end_task(key(number, 0, 0), failed());
    mesh.end_task(key(number, 0, 1), failed());
    assert_eq!(mesh.job_state(number), JobState::Failed);
}

#[test]
fn a_result_that_comes_with_the_failure_of_another_counts() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(job(vec![array("a", 2)]));
    let good = mesh.start_task(key(number, 0, 1));
    mesh.end_task(key(number, 0, 0), failed());
    mesh.end(good, ok());
    assert_eq!(mesh.task(good.task).state, TaskState::Completed, "it finished before the cancel");
    assert_eq!(mesh.job_state(number), JobState::Failed);
}

#[test]
fn a_job_without_tasks_is_over_at_once() {
    let mut mesh = Mesh::new();
    let number = mesh.submit(job(Vec::new()));
    assert_eq!(mesh.job_state(number), JobState::Completed);
    assert!(mesh.engine.jobs.is_empty());
}

#[test]
fn watchers_hear_of_every_change() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let seen = |mesh: &Mesh| {
        mesh.says.iter().any(|say| matches!(say, Say::JobChanged(view) if view.row.number == number))
    };
    assert!(seen(&mesh));
    mesh.start_task(key(number, 0, 0));
    assert!(seen(&mesh));
    mesh.end_task(key(number, 0, 0), ok());
    assert!(seen(&mesh));
}

#[test]
fn what_is_over_stays_counted() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 2)]));
    for index in 0..2 {
        mesh.end_task(key(number, 0, index), ok());
    }
    mesh.submit(job(vec![task("b")]));
    let totals = mesh.engine.totals();
    assert_eq!(totals.jobs, [1, 0, 1, 0, 0, 0]);
    assert_eq!((totals.tasks[TaskState::Completed], totals.tasks[TaskState::Assigned]), (2, 1));
}

/// People wait from the submit on, whatever happens until the first process starts.
#[test]
fn a_job_tells_when_it_was_submitted() {
    let mut mesh = Mesh::new();
    let submitted = mesh.now;
    let number = mesh.submit(job(vec![task("a")]));
    mesh.pass(5_000, &[]);
    mesh.join(0, facts(1));
    mesh.start_task(key(number, 0, 0));
    mesh.end_task(key(number, 0, 0), ok());
    let view = mesh.says.iter().find_map(|say| match say {
        Say::JobChanged(view) => Some(view.clone()),
        _ => None,
    });
    let view = view.expect("it is over");
    assert_eq!(view.created_at, submitted);
    assert!(view.row.started_at.is_some_and(|started| started > submitted));
}
