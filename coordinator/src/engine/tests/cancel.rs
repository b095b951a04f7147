//! Cancelling: at once for what waits, and for what runs when its process is gone.

use super::mesh::{Mesh, array, ended, facts, failed, job, key, needs, node_id, ok, task};
use crate::engine::{
    effect::{Ack, Refusal, Say},
    event::{Event, Held, NewDefinition},
    types::{Cause, JobState, Retry, SandboxLevel, TaskState},
};

fn retried() -> NewDefinition {
    let base = task("a");
    NewDefinition { retry: Retry { attempts: 3, ..base.retry.clone() }, ..base }
}

#[test]
fn what_waits_is_cancelled_at_once() {
    let mut mesh = Mesh::new();
    let number =
        mesh.submit(job(vec![array("a", 1_000_000), NewDefinition { needs: needs(0), ..task("b") }]));
    assert_eq!(mesh.cancel(number), Ok(JobState::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    assert_eq!(mesh.counts(number)[TaskState::Cancelled], 1_000_001);
    assert!(mesh.store.tasks.is_empty(), "no rows for what never ran");
    assert_eq!(mesh.store.jobs[&number].row.reason, "not needed");
}

#[test]
fn what_runs_is_cancelled_when_its_process_is_gone() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 2)]));
    let attempt = mesh.start_task(key(number, 0, 0));
    assert_eq!(mesh.cancel(number), Ok(JobState::Cancelled));
    assert_eq!(mesh.cancels(), [attempt]);
    assert_eq!(mesh.task(attempt.task).state, TaskState::Running, "its process may still be there");
    assert_eq!(mesh.job_state(number), JobState::Running);
    assert_eq!(mesh.store.jobs[&number].row.ending, Some(JobState::Cancelled), "and it is durable");

    mesh.end(attempt, ended(Cause::Cancelled));
    assert_eq!(mesh.task(attempt.task).state, TaskState::Cancelled);
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn a_bad_exit_after_the_cancel_is_not_tried_again() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![retried()]));
    let attempt = mesh.start_task(key(number, 0, 0));
    mesh.cancel(number).expect("it runs");
    mesh.end(attempt, failed());
    assert_eq!(mesh.task(attempt.task).state, TaskState::Cancelled);
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn what_waits_out_a_backoff_is_cancelled_and_never_wakes() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![retried()]));
    let a = key(number, 0, 0);
    mesh.end_task(a, failed());
    mesh.cancel(number).expect("it waits");
    assert_eq!(mesh.task(a).state, TaskState::Cancelled);
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    assert_eq!(mesh.engine.next_deadline(), None);
    mesh.pass(5_000, &[0]);
    assert!(mesh.dispatched().is_empty());
}

#[test]
fn what_is_queued_again_is_cancelled() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![retried()]));
    let a = key(number, 0, 0);
    mesh.end_task(a, failed());
    mesh.change(0, crate::engine::event::NodeChange::Cordon);
    mesh.pass(2_000, &[0]);
    assert_eq!(mesh.engine.totals().tasks[TaskState::Queued], 1, "no node takes it");
    mesh.cancel(number).expect("it waits");
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn a_cancel_of_an_unreachable_task_does_not_wait_for_its_node() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    mesh.pass(31_000, &[]);
    mesh.cancel(number).expect("it is unreachable");
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], crate::engine::effect::Verdict::Unknown, "so that the agent ends it");
}

#[test]
fn a_cancelled_task_is_over_when_its_node_goes_offline() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    mesh.cancel(number).expect("it runs");
    mesh.pass(30_000, &[]);
    assert_eq!(mesh.job_state(number), JobState::Running);
    mesh.pass(1_000, &[]);
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    assert_eq!(
        mesh.store.attempts[&attempt].ended.as_ref().map(|(_, end)| end.cause),
        Some(Cause::Lost),
        "nobody saw it end"
    );
}

#[test]
fn a_cancel_reaches_an_agent_that_was_away() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    mesh.close(0);
    mesh.cancel(number).expect("it runs");
    assert!(mesh.cancels().is_empty(), "nobody listens");
    mesh.register(0, 0, &[(attempt, Held::Running)]);
    mesh.open(0);
    assert_eq!(mesh.cancels(), [attempt]);
}

#[test]
fn a_cancelled_assignment_that_the_agent_never_heard_is_over() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    mesh.close(0);
    mesh.cancel(number).expect("it is assigned");
    mesh.rejoin(0, 0, &[]);
    assert!(mesh.dispatched().is_empty(), "nobody starts it now");
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn a_cancel_between_registration_and_stream_follows_its_assignment() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    mesh.close(0);
    mesh.register(0, 0, &[]);
    mesh.cancel(number).expect("it is assigned");
    let order: Vec<&str> = mesh
        .open(0)
        .iter()
        .filter_map(|say| match say {
            Say::Dispatch { .. } => Some("dispatch"),
            Say::Cancel { .. } => Some("cancel"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["dispatch", "cancel"], "so that the agent can tell how it ended");
    mesh.end(attempt, ended(Cause::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn a_second_cancel_says_the_same() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    mesh.start_task(key(number, 0, 0));
    assert_eq!(mesh.cancel(number), Ok(JobState::Cancelled));
    assert_eq!(mesh.cancel(number), Ok(JobState::Cancelled));
    assert!(mesh.cancels().is_empty(), "it was asked already");
}

#[test]
fn a_finished_job_cannot_be_cancelled() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    mesh.end_task(key(number, 0, 0), ok());
    assert_eq!(mesh.cancel(number), Err(Refusal::NoSuchJob));
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_start_after_the_cancel_is_still_heard() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    mesh.cancel(number).expect("it is assigned");
    let said =
        mesh.step(Event::AttemptStarted { node: node_id(0), attempt, sandbox: SandboxLevel::Basic.into() });
    assert!(said.iter().any(|say| matches!(say, Say::Ack { ack: Ack::Durable, .. })));
    assert_eq!(mesh.job_state(number), JobState::Running);
    mesh.end(attempt, ended(Cause::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn a_job_that_is_failing_is_cancelled_for_good() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(16));
    let number = mesh.submit(job(vec![task("a"), task("b")]));
    let b = mesh.start_task(key(number, 1, 0));
    mesh.end_task(key(number, 0, 0), failed());
    assert_eq!(mesh.store.jobs[&number].row.ending, Some(JobState::Failed), "b still runs");
    assert_eq!(mesh.cancel(number), Ok(JobState::Cancelled));
    assert_eq!(mesh.store.jobs[&number].row.ending, Some(JobState::Cancelled), "and it is durable");
    assert_eq!(mesh.store.jobs[&number].row.reason, "not needed");
    mesh.end(b, ended(Cause::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    assert_eq!(mesh.redrive(number, &[]), Err(Refusal::WasCancelled(number)), "nobody brings it back");
}
