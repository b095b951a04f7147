//! Dead letters are tried again: what comes back, what stays, what is refused.

use std::{collections::BTreeMap, sync::Arc};

use super::mesh::{Mesh, array, facts, failed, job, key, needs, needs_same, ok, task};
use crate::engine::{
    Attempts, Elements, StoredDefinition,
    effect::{Effects, Refusal, Write},
    event::{Event, NewDefinition, NewJob, Redrive, ReplyId},
    types::{JobState, Retry, TaskState},
};

fn wide() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(16));
    mesh
}

fn going_on(tasks: Vec<NewDefinition>) -> NewJob {
    NewJob { keep_going: true, ..job(tasks) }
}

#[test]
fn a_failed_job_comes_back_with_what_was_cancelled_because_of_it() {
    let mut mesh = Mesh::with_nodes(1);
    let tasks = vec![task("a"), NewDefinition { needs: needs(0), ..task("b") }, array("c", 3)];
    let number = mesh.submit(job(tasks));
    mesh.start_task(key(number, 0, 0));
    mesh.end_task(key(number, 0, 0), failed());
    assert_eq!(mesh.job_state(number), JobState::Failed);
    let started_at = mesh.store.jobs[&number].row.started_at;

    assert_eq!(mesh.redrive(number, &[]), Ok((1, 4)));
    let row = mesh.store.jobs[&number].row.clone();
    assert_eq!((row.state, row.finished_at, row.reason.as_str()), (JobState::Running, None, ""));
    assert_eq!(row.started_at, started_at, "it began when it began");
    assert_eq!(mesh.current(key(number, 0, 0)).number, 2, "attempts are numbered on");
    assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Blocked);
    assert_eq!(mesh.counts(number)[TaskState::Queued], 3);

    while mesh.job_state(number) == JobState::Running {
        let open = mesh.store.attempts.values().find(|row| row.ended.is_none()).map(|row| row.key);
        mesh.end(open.expect("something is to be done"), ok());
    }
    assert_eq!(mesh.job_state(number), JobState::Completed);
    assert_eq!(mesh.redrive(number, &[]), Err(Refusal::NothingDead(number)), "nothing is left");
}

#[test]
fn failures_and_losses_count_anew() {
    let mut mesh = Mesh::with_nodes(1);
    let retry = Retry { attempts: 2, ..task("a").retry };
    let number = mesh.submit(job(vec![NewDefinition { retry, ..task("a") }]));
    let a = key(number, 0, 0);
    for series in 0..3 {
        mesh.end_task(a, failed());
        assert_eq!(mesh.task(a).state, TaskState::Retrying);
        mesh.pass(1_000, &[0]);
        assert_eq!(mesh.current(a).number, 2 * series + 2);
        mesh.end_task(a, failed());
        assert_eq!((mesh.task(a).state, mesh.task(a).own_failures), (TaskState::Failed, 2));
        assert_eq!(mesh.job_state(number), JobState::Failed);
        assert_eq!(mesh.redrive(number, &[(0, None)]), Ok((1, 0)));
        assert_eq!(mesh.task(a).own_failures, 0);
    }
}

#[test]
fn what_needs_another_dead_letter_stays_cancelled() {
    let tasks = vec![
        array("a", 3),
        NewDefinition { needs: needs_same(0), ..array("b", 3) },
        NewDefinition { needs: needs(1), ..task("sum") },
        task("apart"),
    ];
    let mut mesh = wide();
    let number = mesh.submit(going_on(tasks));
    for (task, index, end) in [(0, 0, failed()), (0, 2, failed()), (0, 1, ok()), (1, 1, ok()), (3, 0, ok())] {
        mesh.end_task(key(number, task, index), end);
    }
    assert_eq!(mesh.job_state(number), JobState::PartiallyCompleted);
    assert_eq!(mesh.redrive(number, &[(0, Some(2))]), Ok((1, 1)), "a.2, and b.2 with it");
    assert_eq!(mesh.state(key(number, 1, 2)), TaskState::Blocked);
    assert_eq!(mesh.state(key(number, 1, 0)), TaskState::Cancelled, "it needs a.0");
    assert_eq!(mesh.state(key(number, 2, 0)), TaskState::Cancelled, "it needs b.0");
    mesh.restore();
    mesh.rejoin(0, 0, &[]);
    mesh.end_task(key(number, 0, 2), ok());
    mesh.end_task(key(number, 1, 2), ok());
    assert_eq!(mesh.job_state(number), JobState::PartiallyCompleted, "a.0 is still dead");

    let named = [(0, Some(1)), (0, Some(0))];
    assert_eq!(mesh.redrive(number, &named), Ok((1, 2)), "a.1 is completed and stays so");
    for (task, index) in [(0, 0), (1, 0), (2, 0)] {
        mesh.end_task(key(number, task, index), ok());
    }
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_job_that_stops_is_failed_while_a_dead_letter_is_left() {
    let mut mesh = wide();
    let number = mesh.submit(going_on(vec![array("a", 3)]));
    for index in 0..3 {
        mesh.end_task(key(number, 0, index), failed());
    }
    // As if it had been submitted to stop: several dead letters come from a job redriven before.
    let mut stored = mesh.store.read(number).expect("it is there");
    stored.keep_going = false;
    mesh.redrive_as_read(number, &[(0, Some(1))], Some(stored)).expect("it is dead");
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.job_state(number), JobState::Failed, "two dead letters are left");
    assert_eq!(mesh.store.jobs[&number].row.reason, "2 of 3 tasks failed");
}

#[test]
fn dead_letters_of_a_running_job_are_tried_again_at_once() {
    let mut mesh = wide();
    let number = mesh.submit(going_on(vec![array("a", 3), NewDefinition { needs: needs(0), ..task("sum") }]));
    mesh.end_task(key(number, 0, 1), failed());
    assert_eq!(mesh.job_state(number), JobState::Running);
    assert_eq!(mesh.redrive(number, &[(0, Some(1))]), Ok((1, 1)));
    assert_eq!(mesh.redrive(number, &[]), Err(Refusal::NothingDead(number)), "told twice, done once");
    for index in 0..3 {
        mesh.end_task(key(number, 0, index), ok());
    }
    mesh.end_task(key(number, 1, 0), ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn what_cannot_be_redriven_says_why() {
    let mut mesh = wide();
    let ending = mesh.submit(job(vec![task("a"), task("b")]));
    mesh.start_task(key(ending, 1, 0));
    mesh.end_task(key(ending, 0, 0), failed());
    assert_eq!(mesh.redrive(ending, &[]), Err(Refusal::StillEnding(ending)), "b still runs");
    mesh.end_task(key(ending, 1, 0), failed());
    assert_eq!(mesh.redrive(ending, &[(1, None)]), Err(Refusal::NothingDead(ending)), "b was cancelled");
    assert_eq!(mesh.redrive(ending, &[]), Ok((1, 1)), "and comes back");
    assert_eq!(mesh.current(key(ending, 1, 0)).number, 2);

    let cancelled = mesh.submit(going_on(vec![array("a", 2)]));
    mesh.end_task(key(cancelled, 0, 0), failed());
    mesh.cancel(cancelled).expect("it is running");
    mesh.end_task(key(cancelled, 0, 1), failed());
    assert_eq!(mesh.job_state(cancelled), JobState::Cancelled);
    assert_eq!(mesh.redrive(cancelled, &[]), Err(Refusal::WasCancelled(cancelled)));
    let totals = mesh.engine.totals();
    assert_eq!(mesh.redrive(cancelled, &[]), Err(Refusal::WasCancelled(cancelled)));
    assert_eq!(mesh.engine.totals(), totals, "looking at it changes nothing");
}

#[test]
fn a_job_that_was_opened_since_it_was_read_must_be_read_again() {
    let mut mesh = wide();
    let number = mesh.submit(job(vec![task("a")]));
    mesh.end_task(key(number, 0, 0), failed());
    let old = mesh.store.read(number);
    mesh.redrive(number, &[]).expect("it is dead");
    mesh.pass(1_000, &[0]);
    mesh.end_task(key(number, 0, 0), failed());
    assert_eq!(mesh.redrive_as_read(number, &[], old), Err(Refusal::Changed(number)));
    assert_eq!(mesh.redrive(number, &[]), Ok((1, 0)));
}

#[test]
fn a_redriven_job_survives_a_rebuild_and_can_be_cancelled() {
    let mut mesh = wide();
    let number = mesh.submit(going_on(vec![array("a", 3)]));
    for index in 0..3 {
        mesh.end_task(key(number, 0, index), failed());
    }
    mesh.close(0);
    mesh.redrive(number, &[]).expect("they are dead");
    assert_eq!(mesh.state(key(number, 0, 1)), TaskState::Queued, "nowhere to go");
    mesh.restore();
    mesh.join(0, facts(16));
    assert_eq!(mesh.dispatched().len(), 3);
    assert!(mesh.dispatched().iter().all(|(_, attempt)| attempt.number == 2));
    for index in 0..3 {
        mesh.end_task(key(number, 0, index), failed());
    }
    mesh.close(0);
    mesh.redrive(number, &[]).expect("they are dead");
    mesh.cancel(number).expect("it is open");
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
    assert_eq!(mesh.task(key(number, 0, 0)).state, TaskState::Cancelled);
}

#[test]
fn a_hundred_thousand_dead_letters_are_one_range() {
    const MANY: u32 = 100_000;
    let mut mesh = Mesh::new();
    let number =
        mesh.submit(going_on(vec![array("a", MANY), NewDefinition { needs: needs(0), ..task("sum") }]));
    mesh.cancel(number).expect("it is open");
    let mut stored = mesh.store.read(number).expect("it is there");
    let all = || Elements::of(0..MANY);
    let mut past = Attempts::default();
    past.insert(0..MANY, 3);
    let definition = |at: usize| stored.tasks[at].definition.clone();
    let tasks = vec![
        StoredDefinition {
            definition: definition(0),
            completed: Elements::default(),
            failed: all(),
            cancelled: Elements::default(),
            past,
            live: BTreeMap::new(),
        },
        StoredDefinition {
            definition: definition(1),
            completed: Elements::default(),
            failed: Elements::default(),
            cancelled: Elements::default(),
            past: Attempts::default(),
            live: BTreeMap::new(),
        },
    ];
    (stored.tasks, stored.ending, stored.state) = (tasks, None, JobState::Failed);
    let redrive = Redrive {
        job: number,
        targets: Vec::new(),
        stored: Some(stored),
        by: "ann".to_owned(),
        detail: String::new(),
        key: None,
    };
    let mut fx = Effects::default();
    let event = Event::JobRedriven { reply: ReplyId(1), redrive: Arc::new(redrive) };
    mesh.engine.handle(mesh.now, &event, &mut fx);
    mesh.engine.settle(mesh.now, &mut fx);
    mesh.engine.check().expect("sound");
    let moved: Vec<u64> = fx
        .writes
        .iter()
        .filter_map(|write| if let Write::Moved(moved) = write { Some(moved.elements.len()) } else { None })
        .collect();
    assert_eq!(moved, [u64::from(MANY)]);
    let definition = mesh.engine.definition(number, 0).expect("it is open");
    assert_eq!((definition.past.iter().count(), definition.live.len()), (1, 0), "no memory for each");
}
