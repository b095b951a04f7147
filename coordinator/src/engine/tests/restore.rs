//! A rebuilt engine is the engine that was thrown away.

use std::collections::BTreeMap;

use super::mesh::{Mesh, array, facts, failed, job, key, needs, needs_same, ok, task};
use crate::engine::{
    Engine,
    effect::Verdict,
    event::{Held, NewDefinition, NewJob, NodeChange},
    job::{Definition, Job},
    task::{Phase, Task},
    types::{JobState, NodeState, Retry, TaskState},
};

/// The first difference between an engine and the one restored from what it wrote, other than
/// those that must be: sessions are gone, and nobody is unreachable yet.
pub fn difference(running: &Engine, restored: &Engine) -> Option<String> {
    let numbers = |engine: &Engine| engine.jobs.keys().copied().collect::<Vec<_>>();
    if numbers(running) != numbers(restored) || running.next_job != restored.next_job {
        return Some(format!("jobs {:?}, restored {:?}", numbers(running), numbers(restored)));
    }
    if running.keys != restored.keys {
        return Some(format!("keys {:?}, restored {:?}", running.keys, restored.keys));
    }
    for (job, again) in running.jobs.values().zip(restored.jobs.values()) {
        if job_line(job) != job_line(again) {
            return Some(format!("{}, restored {}", job_line(job), job_line(again)));
        }
        for (task, (old, new)) in job.tasks.iter().zip(&again.tasks).enumerate() {
            if line(old) != line(new) {
                return Some(format!(
                    "job {} task {task}: {}, restored {}",
                    job.number,
                    line(old),
                    line(new)
                ));
            }
            let tasks = |definition: &Definition| -> BTreeMap<u32, String> {
                let told = definition.live.iter().filter(|(_, task)| !waits_unhurt(task));
                told.map(|(index, task)| (*index, task_line(task))).collect()
            };
            if tasks(old) != tasks(new) {
                return Some(format!(
                    "job {} task {task}: {:?}, restored {:?}",
                    job.number,
                    tasks(old),
                    tasks(new)
                ));
            }
        }
    }
    for (id, node) in &running.nodes {
        let Some(new) = restored.nodes.get(id) else { return Some(format!("node {id} is gone")) };
        if node.record != new.record || node.tasks != new.tasks {
            return Some(format!("node {node:?}, restored {new:?}"));
        }
    }
    None
}

fn job_line(job: &Job) -> String {
    format!(
        "{} {} {} {} {:?} {:?} {} {:?}",
        job.uuid, job.owner, job.priority, job.keep_going, job.state, job.ending, job.reason, job.started_at
    )
}

/// Taken back before it did anything: a restored engine counts it among the ready ones.
fn waits_unhurt(task: &Task) -> bool {
    matches!(task.phase, Phase::Queued { .. }) && task.own_failures == 0 && task.losses == 0
}

fn line(definition: &Definition) -> String {
    let (mut ready, mut past) = (definition.ready.clone(), definition.past.clone());
    for (&index, task) in definition.live.iter().filter(|(_, task)| waits_unhurt(task)) {
        ready.insert(index..index + 1);
        past.insert(index..index + 1, task.attempt);
    }
    format!(
        "{} {} {:?} {:?} ready {:?} completed {:?} dropped {:?} blocked {:?} dead {:?} past {:?} {:?}",
        definition.name,
        definition.total,
        definition.needs,
        definition.dependents,
        ready,
        definition.completed,
        definition.dropped,
        definition.blocked(),
        definition.dead,
        past,
        definition.counts,
    )
}

fn task_line(task: &Task) -> String {
    let phase = match &task.phase {
        Phase::Queued { .. } | Phase::Retrying { .. } => "waits".to_owned(),
        Phase::Placed(placed) => format!(
            "{} {} {:?} {:?} {:?} {}",
            placed.node,
            placed.boot,
            placed.assigned_at,
            placed.started_at,
            placed.sandbox,
            placed.cancelling
        ),
    };
    format!("{} {} {} {phase}", task.attempt, task.own_failures, task.losses)
}

/// Rebuilds and compares.
fn rebuild(mesh: &mut Mesh) {
    let old = std::mem::replace(&mut mesh.engine, Engine::new(crate::engine::types::Settings::default(), 0));
    mesh.restore();
    if let Some(difference) = difference(&old, &mesh.engine) {
        panic!("{difference}");
    }
}

#[test]
fn a_mesh_in_full_swing_is_restored() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(4));
    let retry = Retry { attempts: 2, ..task("a").retry };
    let number = mesh.submit(NewJob {
        keep_going: true,
        idempotency_key: Some("k".to_owned()),
        ..job(vec![
            NewDefinition { retry, ..array("a", 8) },
            NewDefinition { needs: needs_same(0), ..array("b", 8) },
            NewDefinition { needs: needs(1), ..task("c") },
        ])
    });
    mesh.start_task(key(number, 0, 0));
    mesh.end_task(key(number, 0, 1), ok());
    mesh.end_task(key(number, 0, 2), failed());
    rebuild(&mut mesh);
    let definition = &mesh.engine.jobs[&number].tasks[0];
    assert_eq!(definition.counts[TaskState::Completed], 1);
    assert_eq!(definition.counts[TaskState::Retrying], 1);
    assert_eq!(definition.counts[TaskState::Running], 1);
}

#[test]
fn a_failure_under_continue_stays_one() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let number = mesh.submit(NewJob {
        keep_going: true,
        ..job(vec![
            array("a", 3),
            NewDefinition { needs: needs_same(0), ..array("b", 3) },
            NewDefinition { needs: needs_same(1), ..array("c", 3) },
        ])
    });
    mesh.end_task(key(number, 0, 0), failed());
    rebuild(&mut mesh);
    assert_eq!(mesh.state(key(number, 2, 0)), TaskState::Cancelled);
    assert_eq!(mesh.state(key(number, 2, 1)), TaskState::Blocked);
}

#[test]
fn a_cancel_goes_on_after_a_rebuild() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 100)]));
    let attempt = mesh.start_task(key(number, 0, 0));
    mesh.cancel(number).expect("it runs");
    rebuild(&mut mesh);
    mesh.register(0, 0, &[(attempt, Held::Running)]);
    mesh.open(0);
    assert_eq!(mesh.cancels(), [attempt], "the agent may not have heard");
    assert!(mesh.dispatched().is_empty());
    mesh.end(attempt, super::mesh::ended(crate::engine::types::Cause::Cancelled));
    assert_eq!(mesh.job_state(number), JobState::Cancelled);
}

#[test]
fn tasks_go_on_through_a_rebuild() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 2)]));
    let attempt = mesh.start_task(key(number, 0, 0));
    rebuild(&mut mesh);
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], Verdict::Keep);
    assert!(mesh.dispatched().is_empty(), "the node is full: what it holds is counted");
    mesh.end(attempt, ok());
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn a_result_on_an_older_stream_is_taken_before_the_node_registers() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    rebuild(&mut mesh);
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(number), JobState::Completed);
}

#[test]
fn nodes_have_time_to_come_back() {
    let mut mesh = Mesh::with_nodes(2);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    rebuild(&mut mesh);
    mesh.rejoin(1, 0, &[]);
    mesh.pass(30_000, &[1]);
    assert_eq!(mesh.current(attempt.task), attempt);
    mesh.pass(1_000, &[1]);
    assert_eq!(mesh.node_state(0), NodeState::Offline);
    assert_eq!(mesh.dispatched(), [(1, mesh.current(attempt.task))]);
}

#[test]
fn a_backoff_goes_on_after_a_rebuild() {
    let mut mesh = Mesh::with_nodes(1);
    let retry = Retry { attempts: 2, ..task("a").retry };
    let number = mesh.submit(job(vec![NewDefinition { retry, ..task("a") }]));
    let a = key(number, 0, 0);
    mesh.end_task(a, failed());
    rebuild(&mut mesh);
    mesh.rejoin(0, 0, &[]);
    assert!(mesh.dispatched().is_empty());
    mesh.pass(1_000, &[0]);
    assert_eq!(mesh.dispatched(), [(0, mesh.current(a))]);
    mesh.end_task(a, failed());
    assert_eq!(mesh.job_state(number), JobState::Failed, "its failures are remembered");
}

#[test]
fn a_backoff_that_is_over_stays_over() {
    let mut mesh = Mesh::with_nodes(1);
    let retry = Retry { attempts: 2, ..task("a").retry };
    let number = mesh.submit(job(vec![NewDefinition { retry, ..task("a") }, task("b")]));
    mesh.end_task(key(number, 0, 0), failed());
    mesh.pass(1_000, &[0]);
    assert_eq!(mesh.counts(number)[TaskState::Queued], 1, "b has the node");
    assert_eq!(mesh.task(key(number, 0, 0)).state, TaskState::Queued, "and people see that");
    rebuild(&mut mesh);
    mesh.batch(&[]);
    assert_eq!(mesh.counts(number)[TaskState::Queued], 1);
}

#[test]
fn losses_are_remembered() {
    let mut mesh = Mesh::with_nodes(1);
    let retry = Retry { max_lost: 1, ..task("a").retry };
    let number = mesh.submit(job(vec![NewDefinition { retry, ..task("a") }]));
    mesh.rejoin(0, 1, &[]);
    rebuild(&mut mesh);
    mesh.rejoin(0, 2, &[]);
    assert_eq!(mesh.job_state(number), JobState::Failed, "the second loss");
}

#[test]
fn keys_numbers_and_cordons_survive() {
    let mut mesh = Mesh::with_nodes(1);
    mesh.change(0, NodeChange::Cordon);
    let keyed = || NewJob { idempotency_key: Some("k".to_owned()), ..job(vec![task("a")]) };
    let number = mesh.submit(keyed());
    rebuild(&mut mesh);
    assert_eq!(mesh.try_submit(keyed()), Ok((number, true)));
    mesh.rejoin(0, 0, &[]);
    assert!(mesh.dispatched().is_empty(), "it is cordoned");
    assert!(mesh.submit(job(vec![task("b")])) > number);
}

#[test]
fn a_task_whose_node_has_no_row_is_not_lost_sight_of() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    mesh.start_task(key(number, 0, 0));
    mesh.store.nodes.clear();
    mesh.restore();
    mesh.join(1, facts(1));
    mesh.pass(31_000, &[1]);
    assert_eq!(mesh.dispatched(), [(1, mesh.current(key(number, 0, 0)))]);
}

#[test]
fn a_job_that_was_over_without_being_marked_is_settled() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let unmarked = mesh.store.jobs[&number].row.clone();
    mesh.end_task(key(number, 0, 0), ok());
    mesh.store.jobs.get_mut(&number).expect("it is there").row = unmarked;
    mesh.restore();
    mesh.batch(&[]);
    assert_eq!(mesh.job_state(number), JobState::Completed);
}
