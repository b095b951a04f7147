//! What follows from a bad end: backoff, losses, the last attempt.

use super::mesh::{Mesh, ended, failed, job, key, ok, task};
use crate::engine::{
    event::{NewDefinition, NewJob},
    types::{Cause, JobState, Retry, TaskState},
};

fn tries(attempts: u32, max_lost: u32) -> NewDefinition {
    let base = task("a");
    NewDefinition { retry: Retry { attempts, max_lost, ..base.retry.clone() }, ..base }
}

#[test]
fn a_bad_exit_is_tried_again_after_its_backoff() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(2, 0)]));
    let a = key(number, 0, 0);
    mesh.start_task(a);
    mesh.end_task(a, failed());
    assert_eq!(mesh.task(a).state, TaskState::Retrying);
    assert!(mesh.dispatched().is_empty());
    assert_eq!(mesh.task(a).end.as_ref().and_then(|end| end.exit_code), Some(1), "people see why");

    let due = mesh.engine.next_deadline().expect("somebody must wake the engine");
    let wait = due.since(mesh.now);
    assert!((750..=1000).contains(&wait), "{wait}");
    mesh.pass(wait - 1, &[0]);
    assert_eq!(mesh.task(a).state, TaskState::Retrying);
    mesh.pass(1, &[0]);
    assert_eq!(mesh.dispatched(), [(0, mesh.current(a))]);
    assert_eq!(mesh.current(a).number, 2);
    assert_eq!(mesh.engine.next_deadline(), None);

    mesh.end_task(a, ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn the_last_attempt_fails_the_task_with_its_cause() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(2, 0)]));
    let a = key(number, 0, 0);
    mesh.end_task(a, failed());
    mesh.pass(1000, &[0]);
    mesh.end_task(a, failed());
    assert_eq!(mesh.task(a).state, TaskState::Failed);
    assert_eq!(mesh.task(a).own_failures, 2);
    assert_eq!(mesh.task(a).end.as_ref().map(|end| end.cause), Some(Cause::Exit));
    assert_eq!(mesh.job_state(number), JobState::Failed);
}

#[test]
fn a_cause_that_is_not_named_is_not_tried_again() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(5, 0)]));
    mesh.end_task(key(number, 0, 0), ended(Cause::Timeout));
    assert_eq!(mesh.job_state(number), JobState::Failed);
    assert_eq!(mesh.store.jobs[&number].row.reason, "a failed: timeout");
}

#[test]
fn a_fault_of_the_node_costs_the_task_no_attempt() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(1, 2)]));
    let a = key(number, 0, 0);
    for _ in 0..2 {
        mesh.end_task(a, ended(Cause::Infra));
        assert_eq!(mesh.task(a).state, TaskState::Retrying);
        mesh.pass(1000, &[0]);
    }
    assert_eq!((mesh.task(a).own_failures, mesh.task(a).losses), (0, 2));
    mesh.end_task(a, ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_task_that_keeps_taking_nodes_down_is_stopped() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(1, 1)]));
    let a = key(number, 0, 0);
    for boot in 1..=2 {
        mesh.start_task(a);
        mesh.rejoin(0, boot, &[]);
    }
    assert_eq!(mesh.task(a).state, TaskState::Failed);
    assert_eq!(mesh.task(a).losses, 2);
    assert_eq!(mesh.task(a).end.as_ref().map(|end| end.cause), Some(Cause::Lost));
}

#[test]
fn losses_that_only_show_when_a_replacement_is_due_stop_it_too() {
    let mut mesh = Mesh::with_nodes(2);
    let number = mesh.submit(NewJob { keep_going: true, ..job(vec![tries(1, 0), tries(1, 0)]) });
    let (a, b) = (key(number, 0, 0), key(number, 1, 0));
    mesh.start_task(a);
    mesh.start_task(b);
    mesh.pass(31_000, &[1]);
    assert_eq!(mesh.task(a).state, TaskState::Running, "unreachable, and nowhere to go");
    mesh.end_task(b, ok());
    assert_eq!(mesh.task(a).state, TaskState::Failed, "giving it up is one loss too many");
    assert!(mesh.dispatched().is_empty());
    assert_eq!(mesh.job_state(number), JobState::PartiallyCompleted);
}

#[test]
fn retries_wait_without_holding_a_node() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![tries(2, 0), task("b")]));
    mesh.end_task(key(number, 0, 0), failed());
    assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Assigned, "the next one has the node");
}
