//! What a start reads.

use std::sync::Arc;

use mesh_proto::v1::TaskState;

use super::Kit;
use crate::{
    engine::{
        Elements,
        event::Event,
        tests::restore::difference,
        types::{Confined, Limits, SandboxLevel},
    },
    store::snapshot,
    testing::{array, exited, job, keep_going, needing, new_job, task, trying},
};

#[tokio::test]
async fn an_empty_database_is_an_empty_mesh() {
    let mut kit = Kit::new().await;
    let snapshot = snapshot::load(&mut kit.connection).await.unwrap();
    assert_eq!(snapshot.next_job, 1);
    assert!(snapshot.jobs.is_empty() && snapshot.nodes.is_empty());
}

#[tokio::test]
async fn finished_jobs_are_not_read_but_their_numbers_are_not_given_again() {
    let mut kit = Kit::new().await;
    let first = kit.submit(new_job(job(vec![task("one")]))).await;
    let second = kit.submit(new_job(job(vec![task("one")]))).await;
    kit.cancel(second).await;
    let snapshot = snapshot::load(&mut kit.connection).await.unwrap();
    let numbers: Vec<_> = snapshot.jobs.iter().map(|job| job.number).collect();
    assert_eq!((numbers, snapshot.next_job), (vec![first], second.0 + 1));
}

#[tokio::test]
async fn what_is_read_is_what_was_committed() {
    let mut kit = Kit::new().await;
    let node = kit.node("amber", 4).await;
    kit.node("birch", 1).await;
    let tasks = vec![
        array("resize", 6),
        needing(array("check", 6), &[("resize", true)]),
        needing(task("sheet"), &[("check", false)]),
        trying(task("flaky"), 3),
    ];
    let mut keyed = new_job(keep_going(tasks));
    keyed.idempotency_key = Some("once".to_owned());
    let number = kit.submit(keyed).await;
    let sent = kit.dispatched();
    // One completed, one failed, one running, others assigned or queued.
    kit.end(sent[0], exited(0)).await;
    kit.end(sent[1], exited(3)).await;
    let sandbox = Confined { level: SandboxLevel::Strict, limits: Limits::Rlimit };
    kit.step(Event::AttemptStarted { node: sent[2].0, attempt: sent[2].1, sandbox }).await;
    let again = kit.read_back().await;
    assert_eq!(difference(&kit.engine, &again), None);
    // And once more, while a cancel waits for processes.
    kit.cancel(number).await;
    let again = kit.read_back().await;
    assert_eq!(difference(&kit.engine, &again), None);
    // A node that is cordoned and tagged comes back as that.
    let change = crate::engine::event::NodeChange::Cordon;
    kit.step(Event::NodeChanged {
        reply: crate::engine::event::ReplyId(1),
        node: node.id,
        change,
        record: None,
    })
    .await;
    let again = kit.read_back().await;
    assert_eq!(difference(&kit.engine, &again), None);
}

#[tokio::test]
async fn a_huge_array_with_many_finished_rows_is_read_as_ranges() {
    const TOTAL: u32 = 1_000_000;
    const DONE: u32 = 200_000;
    let mut kit = Kit::new().await;
    let number = kit.submit(new_job(keep_going(vec![array("many", TOTAL)]))).await;
    // As if they had run, with a failure each 50,000.
    sqlx::query(
        "INSERT INTO tasks (job, task, index, state, attempt, finished_at)
         SELECT $1, 0, i, CASE WHEN i % 50000 = 49999 THEN 'failed' ELSE 'completed' END::task_state, 1, now()
         FROM generate_series(0, $2 - 1) AS i",
    )
    .bind(number.0 as i64)
    .bind(DONE as i32)
    .execute(kit.store.pool())
    .await
    .unwrap();
    let snapshot = snapshot::load(&mut kit.connection).await.unwrap();
    let definition = &snapshot.jobs[0].tasks[0];
    let completed: Vec<_> = definition.completed.iter().collect();
    assert_eq!(completed, [0..49_999, 50_000..99_999, 100_000..149_999, 150_000..199_999]);
    let mut failed = Elements::default();
    for index in [49_999, 99_999, 149_999, 199_999] {
        failed.insert(index..index + 1);
    }
    assert_eq!(definition.failed, failed);
    assert!(definition.live.is_empty() && definition.cancelled.is_empty());
    let engine = kit.read_back().await;
    let tasks = engine.totals().tasks;
    assert_eq!(tasks[TaskState::Queued], u64::from(TOTAL - DONE));
    assert_eq!((tasks[TaskState::Completed], tasks[TaskState::Failed]), (u64::from(DONE) - 4, 4));
}

#[tokio::test]
async fn an_attempt_in_flight_comes_back_with_its_node_and_boot() {
    let mut kit = Kit::new().await;
    let node = kit.node("amber", 1).await;
    kit.submit(new_job(job(vec![task("one")]))).await;
    let (_, attempt) = kit.dispatched()[0];
    let snapshot = snapshot::load(&mut kit.connection).await.unwrap();
    let stored = &snapshot.jobs[0].tasks[0].live[&0];
    let placed = stored.placed.as_ref().unwrap();
    assert_eq!((stored.attempt, placed.node, placed.assigned_at), (1, node.id, kit.now));
    assert_eq!(Some(placed.boot), snapshot.nodes[0].boot);
    // The rebuilt engine takes the end of an attempt that the old one had sent out.
    kit.engine = kit.read_back().await;
    let end = Arc::new(exited(0));
    kit.step(Event::AttemptEnded { node: node.id, attempt, end }).await;
    assert_eq!(
        kit.store.job(attempt.task.job).await.unwrap().unwrap().state,
        mesh_proto::v1::JobState::Completed
    );
}
