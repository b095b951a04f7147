//! The short queues at the nodes, and taking tasks back from them.

use mesh_proto::ids::{AttemptKey, JobNumber};

use super::mesh::{Mesh, array, facts, job, key, node_id, ok, task};
use crate::engine::{
    effect::AttemptRow,
    event::{AttemptEnd, Event, NewJob, NodeChange},
    types::{NodeState, TaskState},
};

/// One node of `cores`, and an array whose first element told how long its tasks run.
fn fed(cores: u64, total: u32) -> (Mesh, JobNumber) {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(cores));
    let number = mesh.submit(job(vec![array("a", total)]));
    mesh.end_task(key(number, 0, 0), ran(500));
    (mesh, number)
}

/// A good end after so many milliseconds.
fn ran(run_ms: u64) -> AttemptEnd {
    AttemptEnd { run_ms, ..ok() }
}

/// How many of a job's tasks are at each of these nodes.
fn held<const N: usize>(mesh: &Mesh, number: JobNumber, nodes: [u32; N]) -> [usize; N] {
    let at = |node| {
        let here = |row: &&AttemptRow| row.node == node_id(node) && row.ended.is_none();
        let of = |row: &&AttemptRow| row.key.task.job == number;
        mesh.store.attempts.values().filter(of).filter(here).count()
    };
    nodes.map(at)
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
    mesh.end_task(key(number, 0, 0), ran(60_000));
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
    mesh.end_task(key(number, 0, 0), ran(1_000));
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

/// One node of two cores whose queue is as deep as it gets: two run or are about to.
fn fed_deep(run_ms: u64, total: u32) -> (Mesh, JobNumber) {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(job(vec![array("a", total)]));
    mesh.end_task(key(number, 0, 0), ran(run_ms));
    (mesh, number)
}

#[test]
fn very_short_tasks_wait_at_the_node_as_many_as_it_ends_in_a_moment() {
    for (run_ms, queued) in [(0, 66), (1, 66), (10, 10), (25, 4), (49, 3), (50, 2), (1_999, 2)] {
        let (mesh, number) = fed_deep(run_ms, 1000);
        assert_eq!(mesh.counts(number)[TaskState::Assigned], 2 + queued, "each runs {run_ms} ms");
        mesh.engine.check_capacity().unwrap();
    }
}

#[test]
fn a_deep_queue_is_filled_again_when_half_of_it_is_gone() {
    let (mut mesh, number) = fed_deep(1, 1000);
    let mut sent = Vec::new();
    for index in 1..=66 {
        mesh.end_task(key(number, 0, index), ran(1));
        sent.push(mesh.dispatched().len());
    }
    let filled: Vec<(usize, usize)> =
        sent.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
    assert_eq!(filled, [(32, 33), (65, 33)], "so that one commit carries many");
}

#[test]
fn what_is_not_known_to_be_very_short_by_its_own_ends_is_not_queued_deep() {
    let (mut mesh, number) = fed_deep(1, 3);
    // The same class; nothing of it has ended.
    let other = mesh.submit(job(vec![array("b", 50)]));
    assert_eq!(held(&mesh, other, [0]), [2], "a place for each slot");
    // A long one at the node: what it ends in a moment is not known any more.
    mesh.end_task(key(number, 0, 1), ran(1));
    mesh.end_task(key(number, 0, 2), ran(60_000));
    mesh.end_task(key(other, 0, 0), ran(1));
    assert_eq!(held(&mesh, other, [0]), [4]);
}

#[test]
fn deep_queues_fill_evenly() {
    let mut mesh = Mesh::new();
    for node in 0..3 {
        mesh.join(node, facts(2));
    }
    let number = mesh.submit(job(vec![array("a", 36)]));
    // Each node ends one, in one batch: only then anything is queued.
    let first: Vec<AttemptKey> = mesh.store.attempts.keys().copied().collect();
    let mut seen = std::collections::BTreeSet::new();
    let ends: Vec<Event> = first
        .into_iter()
        .filter(|attempt| seen.insert(mesh.store.attempts[attempt].node))
        .map(|attempt| {
            let node = mesh.store.attempts[&attempt].node;
            Event::AttemptEnded { node, attempt, end: std::sync::Arc::new(ran(1)) }
        })
        .collect();
    mesh.batch(&ends);
    assert_eq!(held(&mesh, number, [0, 1, 2]), [11, 11, 11], "nothing waits, and nobody holds more");
}

#[test]
fn no_node_hoards_while_another_idles() {
    let (mut mesh, number) = fed_deep(1, 20);
    // What was thought to be short blocks the node.
    mesh.start_task(key(number, 0, 1));
    mesh.start_task(key(number, 0, 2));
    mesh.join(1, facts(2));
    assert_eq!(mesh.withdrawals(), [], "in a moment it has begun where it is");
    let (mut moved, mut asked) = (0, Vec::new());
    for _ in 0..20 {
        mesh.pass(1_000, &[0, 1]);
        asked.append(&mut mesh.withdrawals());
        while let Some(attempt) = asked.pop() {
            mesh.give_back(attempt);
            asked.append(&mut mesh.withdrawals());
            moved += 1;
        }
        let open = mesh.store.attempts.values().filter(|row| row.node == node_id(1) && row.ended.is_none());
        let open: Vec<AttemptKey> = open.map(|row| row.key).collect();
        for attempt in open {
            mesh.end(attempt, ran(1));
            asked.append(&mut mesh.withdrawals());
        }
    }
    assert_eq!(held(&mesh, number, [0, 1]), [2, 0], "all others ran at the idle node");
    assert!(moved <= 20, "{moved} moves of 17 tasks");
}

/// What is queued takes what comes free, so nothing would ever be left to a job before it.
#[test]
fn an_earlier_job_that_cannot_be_queued_is_not_passed_over_for_ever() {
    for run_ms in [1, 500] {
        let mut mesh = Mesh::new();
        mesh.join(0, facts(1));
        let known = mesh.submit(job(vec![array("a", 2)]));
        mesh.end_task(key(known, 0, 0), ran(run_ms));
        // Nothing is known of this class, so it waits for what comes free.
        let mut unknown = task("u");
        unknown.requirements.resources.cpu_millis = 900;
        let early = mesh.submit(job(vec![unknown]));
        let flood = mesh.submit(job(vec![array("b", 100_000)]));
        let mut rounds = 0;
        while !mesh.store.tasks.contains_key(&key(early, 0, 0)) {
            rounds += 1;
            assert!(rounds < 20, "{:?}", mesh.counts(flood));
            let open = mesh.store.attempts.values().filter(|row| row.ended.is_none());
            let open: Vec<AttemptKey> = open.map(|row| row.key).collect();
            for attempt in open {
                mesh.end(attempt, ran(run_ms));
            }
            mesh.pass(1_000, &[0]);
        }
    }
}
