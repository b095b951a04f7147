//! Words of agents on attempts: in order, late, twice, of another attempt.

use std::sync::Arc;

use mesh_proto::ids::AttemptKey;

use super::mesh::{Mesh, array, facts, failed, job, key, node_id, ok, task};
use crate::engine::{
    effect::{Ack, Say},
    event::{AttemptEnd, Event, NewDefinition},
    types::{Cause, JobState, Retry, SandboxLevel, TaskState},
};

fn acks(said: &[Say]) -> Vec<(AttemptKey, Ack, bool)> {
    said.iter()
        .filter_map(|say| match say {
            Say::Ack { attempt, ack, ended, .. } => Some((*attempt, *ack, *ended)),
            _ => None,
        })
        .collect()
}

fn assigned() -> (Mesh, AttemptKey) {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    (mesh, attempt)
}

#[test]
fn every_word_is_answered_when_it_is_durable() {
    let (mut mesh, attempt) = assigned();
    assert_eq!(acks(mesh.start(attempt)), [(attempt, Ack::Durable, false)]);
    assert_eq!(acks(mesh.end(attempt, ok())), [(attempt, Ack::Durable, true)]);
}

#[test]
fn a_start_told_twice_is_one_start() {
    let (mut mesh, attempt) = assigned();
    mesh.start(attempt);
    let first = mesh.store.attempts[&attempt].started_at;
    mesh.now = mesh.now.plus(500);
    assert_eq!(acks(mesh.start(attempt)), [(attempt, Ack::Durable, false)]);
    assert_eq!(mesh.store.attempts[&attempt].started_at, first);
}

#[test]
fn an_end_told_twice_is_one_end() {
    let (mut mesh, attempt) = assigned();
    mesh.end(attempt, ok());
    assert_eq!(acks(mesh.end(attempt, ok())), [(attempt, Ack::Stale, true)], "the store knows it");
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

#[test]
fn an_end_told_twice_in_one_batch_is_one_end() {
    let (mut mesh, attempt) = assigned();
    let word = || Event::AttemptEnded { node: node_id(0), attempt, end: Arc::new(ok()) };
    let said = mesh.batch(&[word(), word()]);
    assert_eq!(acks(said), [(attempt, Ack::Durable, true), (attempt, Ack::Stale, true)]);
}

#[test]
fn an_end_without_its_start_tells_of_both() {
    let (mut mesh, attempt) = assigned();
    mesh.now = mesh.now.plus(1000);
    let end = AttemptEnd { run_ms: 400, ..ok() };
    mesh.end(attempt, end);
    let row = &mesh.store.attempts[&attempt];
    assert_eq!(row.started_at.map(|at| mesh.now.since(at)), Some(400));
    assert_eq!(mesh.task(attempt.task).started_at, row.started_at);
    assert!(mesh.store.jobs[&attempt.task.job].row.started_at.is_some());
}

#[test]
fn a_start_is_never_before_its_assignment() {
    let (mut mesh, attempt) = assigned();
    mesh.end(attempt, AttemptEnd { run_ms: 3_600_000, ..ok() });
    let row = &mesh.store.attempts[&attempt];
    assert_eq!(row.started_at, Some(row.assigned_at));
}

#[test]
fn an_attempt_that_never_started_has_no_start() {
    let (mut mesh, attempt) = assigned();
    mesh.end(attempt, AttemptEnd::declared(Cause::Staging, "an input is missing"));
    assert_eq!(mesh.store.attempts[&attempt].started_at, None);
    assert_eq!(mesh.store.jobs[&attempt.task.job].row.reason, "a failed: staging: an input is missing");
}

#[test]
fn words_on_an_older_attempt_are_stale() {
    let mut mesh = Mesh::with_nodes(1);
    let base = task("a");
    let retry = Retry { attempts: 3, ..base.retry.clone() };
    let number = mesh.submit(job(vec![NewDefinition { retry, ..base }]));
    let first = mesh.start_task(key(number, 0, 0));
    mesh.end(first, failed());
    mesh.pass(1000, &[0]);
    let second = mesh.current(first.task);
    assert_eq!(second.number, 2);
    assert_eq!(acks(mesh.end(first, ok())), [(first, Ack::Stale, true)]);
    assert_eq!(acks(mesh.start(first)), [(first, Ack::Stale, false)]);
    assert_eq!(mesh.task(first.task).state, TaskState::Assigned, "the second goes on");
}

#[test]
fn words_of_another_node_are_stale() {
    let (mut mesh, attempt) = assigned();
    mesh.join(1, facts(1));
    let end = Arc::new(ok());
    let said = mesh.step(Event::AttemptEnded { node: node_id(1), attempt, end });
    assert_eq!(acks(said), [(attempt, Ack::Stale, true)]);
    let sandbox = SandboxLevel::Basic.into();
    let said = mesh.step(Event::AttemptStarted { node: node_id(1), attempt, sandbox });
    assert_eq!(acks(said), [(attempt, Ack::Stale, false)]);
    assert_eq!(mesh.task(attempt.task).state, TaskState::Assigned);
}

#[test]
fn words_on_what_never_was_are_stale() {
    let (mut mesh, attempt) = assigned();
    let ahead = AttemptKey { number: 2, ..attempt };
    let nowhere = AttemptKey { task: key(mesh_proto::ids::JobNumber(99), 7, 7), number: 1 };
    for unknown in [ahead, nowhere] {
        let end = Arc::new(ok());
        let said = mesh.step(Event::AttemptEnded { node: node_id(0), attempt: unknown, end });
        assert_eq!(acks(said), [(unknown, Ack::Stale, true)]);
    }
}

#[test]
fn an_end_frees_its_node_for_the_next_in_the_same_commit() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 2)]));
    mesh.end_task(key(number, 0, 0), ok());
    assert_eq!(mesh.dispatched(), [(0, mesh.current(key(number, 0, 1)))]);
}

#[test]
fn metrics_hear_of_every_end() {
    let (mut mesh, attempt) = assigned();
    let said = mesh.end(attempt, ok());
    let ends: Vec<_> = said
        .iter()
        .filter_map(|say| match say {
            Say::Ended { cause, retried, run_ms } => Some((*cause, *retried, *run_ms)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(Cause::Exit, false, 10)]);
}

#[test]
fn no_number_of_a_history_that_is_over_is_given_or_sent_again() {
    let (mut mesh, attempt) = assigned();
    // An older state was accepted: the node may have run, and let go of, what it shows as assigned.
    mesh.store.first_attempt = 20_001;
    mesh.restore();
    mesh.rejoin(0, 0, &[]);
    let last = |mesh: &Mesh| mesh.current(attempt.task).number;
    assert_eq!((last(&mesh), mesh.task(attempt.task).losses), (20_001, 1));
    assert!(mesh.dispatched().iter().all(|(_, sent)| sent.number == 20_001), "{:?}", mesh.dispatched());
    mesh.end_task(attempt.task, ok());
    let next = mesh.submit(job(vec![task("b")]));
    assert_eq!(mesh.current(key(next, 0, 0)).number, 20_001, "it may have been assigned before as well");
}
