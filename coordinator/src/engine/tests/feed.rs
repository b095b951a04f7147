//! The short queues at the nodes, and taking tasks back from them.

use super::mesh::{Mesh, array, facts, job, key, node_id, ok, task};
use crate::engine::{
    event::{Event, NewJob, NodeChange},
    types::{NodeState, TaskState},
};

/// One node of `cores`, and an array whose first element told how long its tasks run.
fn fed(cores: u64, total: u32) -> (Mesh, mesh_proto::ids::JobNumber) {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(cores));
    let number = mesh.submit(job(vec![array("a", total)]));
    mesh.end_task(key(number, 0, 0), ok());
    (mesh, number)
}

#[test]
fn nothing_is_queued_at_a_node_before_it_is_known_how_long_it_runs() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 9)]));
    assert_eq!(mesh.counts(number)[TaskState::Assigned], 1);
}

#[test]
fn short_tasks_wait_at_the_node_as_many_as_it_has_slots() {
    let (mesh, number) = fed(2, 20);
    // Two run or are about to, two wait behind them.
    assert_eq!(mesh.counts(number)[TaskState::Assigned], 4);
    mesh.engine.check_capacity().unwrap();
}

#[test]
fn long_tasks_do_not_wait_at_a_node() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 9)]));
    let long = crate::engine::event::AttemptEnd { run_ms: 60_000, ..ok() };
    mesh.end_task(key(number, 0, 0), long);
    assert_eq!(mesh.counts(number)[TaskState::Assigned], 1);
}

#[test]
fn a_queued_task_begins_when_the_one_before_ends_without_a_word_from_here() {
    let (mut mesh, number) = fed(1, 20);
    let (first, second) = (mesh.current(key(number, 0, 1)), mesh.current(key(number, 0, 2)));
    mesh.start(first);
    let end = Event::AttemptEnded { node: node_id(0), attempt: first, end: std::sync::Arc::new(ok()) };
    mesh.batch(&[end]);
    // The second is counted as running, a third one waits behind it.
    mesh.start(second);
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Running);
    assert_eq!(mesh.state(key(number, 0, 3)), TaskState::Assigned);
}

#[test]
fn a_drain_takes_back_what_waits_and_leaves_what_runs() {
    let (mut mesh, number) = fed(1, 3);
    let running = mesh.start_task(key(number, 0, 1));
    let waiting = mesh.current(key(number, 0, 2));
    mesh.change(0, NodeChange::Drain);
    assert_eq!(mesh.withdrawals(), [waiting]);
    mesh.give_back(waiting);
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Queued);
    mesh.join(1, facts(1));
    let again = mesh.current(key(number, 0, 2));
    assert_eq!((again.number, mesh.store.attempts[&again].node), (2, node_id(1)));
    let task = mesh.task(key(number, 0, 2)).clone();
    assert_eq!((task.own_failures, task.losses), (0, 0), "giving back is nobody's failure");
    mesh.end(running, ok());
    assert_eq!(mesh.state(key(number, 0, 1)), TaskState::Completed);
}

#[test]
fn a_withdrawal_that_crosses_a_start_changes_nothing() {
    let (mut mesh, number) = fed(1, 3);
    let running = mesh.start_task(key(number, 0, 1));
    let waiting = mesh.current(key(number, 0, 2));
    mesh.change(0, NodeChange::Drain);
    mesh.end(running, ok());
    mesh.start(waiting);
    mesh.give_back(waiting);
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Running, "it runs: once");
    mesh.end(waiting, ok());
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Completed);
}

#[test]
fn an_idle_node_gets_what_waits_long_elsewhere() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(1));
    let number = mesh.submit(job(vec![array("a", 3)]));
    let slow = crate::engine::event::AttemptEnd { run_ms: 1_000, ..ok() };
    mesh.end_task(key(number, 0, 0), slow);
    mesh.start_task(key(number, 0, 1));
    let waiting = mesh.current(key(number, 0, 2));
    mesh.join(1, facts(1));
    assert_eq!(mesh.withdrawals(), [waiting]);
    mesh.give_back(waiting);
    assert_eq!(mesh.store.attempts[&mesh.current(key(number, 0, 2))].node, node_id(1));
}

#[test]
fn a_higher_priority_takes_the_places_of_a_lower_one() {
    let (mut mesh, number) = fed(1, 20);
    mesh.start_task(key(number, 0, 1));
    let waiting = mesh.current(key(number, 0, 2));
    let urgent = mesh.submit(NewJob { priority: 9, ..job(vec![task("u")]) });
    assert_eq!(mesh.withdrawals(), [waiting]);
    mesh.give_back(waiting);
    assert_eq!(mesh.state(key(urgent, 0, 0)), TaskState::Assigned);
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Queued);
}

#[test]
fn what_waits_at_a_node_that_goes_away_runs_elsewhere_once() {
    let (mut mesh, number) = fed(1, 3);
    mesh.start_task(key(number, 0, 1));
    mesh.join(1, facts(2));
    for _ in 0..8 {
        mesh.pass(5_000, &[1]);
    }
    assert_eq!(mesh.node_state(0), NodeState::Offline);
    for index in [1, 2] {
        let attempt = mesh.current(key(number, 0, index));
        assert_eq!(mesh.store.attempts[&attempt].node, node_id(1));
        mesh.end_task(key(number, 0, index), ok());
    }
    assert_eq!(mesh.counts(number)[TaskState::Completed], 3);
}

/// Seen in a simulation: hundreds of assignments and withdrawals a second, for nothing.
#[test]
fn what_was_taken_back_for_a_higher_priority_is_not_queued_there_again_at_once() {
    let (mut mesh, number) = fed(1, 20);
    mesh.start_task(key(number, 0, 1));
    let waiting = mesh.current(key(number, 0, 2));
    // Another class, of which it is not known how long it runs: it waits for what comes free.
    let mut long = task("u");
    long.requirements.resources.cpu_millis = 900;
    let urgent = mesh.submit(NewJob { priority: 9, ..job(vec![long]) });
    assert_eq!(mesh.withdrawals(), [waiting]);
    mesh.give_back(waiting);
    assert_eq!((mesh.dispatched(), mesh.withdrawals()), (vec![], vec![]));
    assert_eq!(mesh.state(key(number, 0, 2)), TaskState::Queued);
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.state(key(urgent, 0, 0)), TaskState::Assigned);
}
