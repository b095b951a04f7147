//! What the end of one task means for those that need it.

use super::mesh::{Mesh, array, facts, failed, job, key, needs, needs_same, ok, task};
use crate::engine::{
    event::{Need, NewDefinition, NewJob},
    types::{JobState, TaskState},
};

fn wide() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(16));
    mesh
}

#[test]
fn all_of_an_array_must_be_completed() {
    let mut mesh = wide();
    let number = mesh.submit(job(vec![array("map", 3), NewDefinition { needs: needs(0), ..task("reduce") }]));
    for index in [2, 0] {
        mesh.end_task(key(number, 0, index), ok());
        assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Blocked);
    }
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.dispatched(), [(0, mesh.current(key(number, 1, 0)))], "in the same commit");
}

#[test]
fn the_same_index_goes_element_by_element() {
    let mut mesh = wide();
    let number =
        mesh.submit(job(vec![array("map", 3), NewDefinition { needs: needs_same(0), ..array("check", 3) }]));
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.state(key(number, 1, 1)), TaskState::Assigned);
    assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Blocked);
    assert_eq!(mesh.state(key(number, 1, 2)), TaskState::Blocked);
}

#[test]
fn several_needs_must_all_be_met() {
    let mut mesh = wide();
    let both = vec![Need { task: 0, same_index: true }, Need { task: 1, same_index: false }];
    let number =
        mesh.submit(job(vec![array("a", 2), task("b"), NewDefinition { needs: both, ..array("c", 2) }]));
    mesh.end_task(key(number, 0, 0), ok());
    assert_eq!(mesh.state(key(number, 2, 0)), TaskState::Blocked, "b is not done");
    mesh.end_task(key(number, 1, 0), ok());
    assert_eq!(mesh.state(key(number, 2, 0)), TaskState::Assigned);
    assert_eq!(mesh.state(key(number, 2, 1)), TaskState::Blocked, "a.1 is not done");
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.state(key(number, 2, 1)), TaskState::Assigned);
}

#[test]
fn a_chain_runs_in_order() {
    let mut mesh = wide();
    let number = mesh.submit(job(vec![
        NewDefinition { needs: needs(1), ..task("last") },
        NewDefinition { needs: needs(2), ..task("middle") },
        task("first"),
    ]));
    for task in [2, 1, 0] {
        assert_eq!(mesh.counts(number)[TaskState::Assigned], 1);
        mesh.end_task(key(number, task, 0), ok());
    }
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_diamond_joins_once() {
    let mut mesh = wide();
    let join = vec![Need { task: 1, same_index: false }, Need { task: 2, same_index: false }];
    let number = mesh.submit(job(vec![
        task("top"),
        NewDefinition { needs: needs(0), ..task("left") },
        NewDefinition { needs: needs(0), ..task("right") },
        NewDefinition { needs: join, ..task("bottom") },
    ]));
    mesh.end_task(key(number, 0, 0), ok());
    assert_eq!(mesh.dispatched().len(), 2);
    mesh.end_task(key(number, 1, 0), ok());
    assert!(mesh.dispatched().is_empty());
    mesh.end_task(key(number, 2, 0), ok());
    assert_eq!(mesh.dispatched().len(), 1);
    mesh.end_task(key(number, 3, 0), ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn continue_drops_what_needs_the_failed_one_and_all_behind_it() {
    let mut mesh = wide();
    let number = mesh.submit(NewJob {
        keep_going: true,
        ..job(vec![
            array("a", 3),
            NewDefinition { needs: needs_same(0), ..array("b", 3) },
            NewDefinition { needs: needs_same(1), ..array("c", 3) },
            NewDefinition { needs: needs(2), ..task("sum") },
            task("apart"),
        ])
    });
    mesh.end_task(key(number, 0, 1), failed());
    for task in [1, 2] {
        assert_eq!(mesh.state(key(number, task, 1)), TaskState::Cancelled);
        assert_eq!(mesh.state(key(number, task, 0)), TaskState::Blocked);
    }
    assert_eq!(mesh.state(key(number, 3, 0)), TaskState::Cancelled, "it needs all of c");
    assert_eq!(mesh.state(key(number, 4, 0)), TaskState::Assigned, "it needs nothing");

    for task in 0..3 {
        for index in [0, 2] {
            mesh.end_task(key(number, task, index), ok());
        }
    }
    assert_eq!(mesh.job_state(number), JobState::Running);
    mesh.end_task(key(number, 4, 0), ok());
    assert_eq!(mesh.job_state(number), JobState::PartiallyCompleted);
    let counts = mesh.counts(number);
    assert_eq!((counts[TaskState::Failed], counts[TaskState::Cancelled]), (1, 3));
}

#[test]
fn a_dependent_of_two_failures_is_dropped_once() {
    let mut mesh = wide();
    let both = vec![Need { task: 0, same_index: false }, Need { task: 1, same_index: false }];
    let number = mesh.submit(NewJob {
        keep_going: true,
        ..job(vec![task("a"), task("b"), NewDefinition { needs: both, ..task("c") }])
    });
    mesh.end_task(key(number, 0, 0), failed());
    mesh.end_task(key(number, 1, 0), failed());
    assert_eq!(mesh.job_state(number), JobState::Failed);
    assert_eq!(mesh.counts(number)[TaskState::Cancelled], 1);
}
