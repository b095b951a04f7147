//! What a commit writes, and what it refuses.

use std::sync::Arc;

use mesh_proto::{
    ids::{AttemptKey, CoordinatorId, JobNumber, TaskKey},
    v1::{Cause, JobState, TaskState},
};

use super::{Kit, START};
use crate::{
    engine::{
        effect::{AttemptRow, TaskRow, Write},
        event::{AttemptEnd, Event, NodeChange, NodeRecord, ReplyId},
        types::{Confined, Counts, Limits, SandboxLevel},
    },
    store::{StoreError, leader},
    testing::{array, exited, job, new_job, task},
};

const KEY: TaskKey = TaskKey { job: JobNumber(1), task: 0, index: 0 };

fn task_row(state: TaskState, attempt: u32) -> TaskRow {
    TaskRow {
        key: KEY,
        state,
        attempt,
        node: None,
        own_failures: 0,
        losses: 0,
        end: None,
        started_at: None,
        finished_at: None,
    }
}

fn attempt_row(kit: &Kit, number: u32, node: mesh_proto::ids::NodeId, ended: bool) -> AttemptRow {
    AttemptRow {
        decision: None,
        key: AttemptKey { task: KEY, number },
        node,
        boot: mesh_proto::ids::BootId(node.0),
        sandbox: None,
        assigned_at: kit.now,
        started_at: None,
        ended: ended.then(|| (kit.now, Arc::new(exited(0)))),
    }
}

async fn count(kit: &Kit, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(kit.store.pool()).await.unwrap()
}

#[tokio::test]
async fn a_submit_and_its_first_assignments_share_a_commit() {
    let mut kit = Kit::new().await;
    let node = kit.node("amber", 2).await;
    let before = leader::read(&mut kit.connection).await.unwrap().seq;
    let number = kit.submit(new_job(job(vec![array("resize", 5), task("sheet")]))).await;
    let after = leader::read(&mut kit.connection).await.unwrap().seq;
    assert_eq!(after, before + 1, "one commit, one fsync");
    assert_eq!(kit.dispatched().len(), 2, "two cores");
    let record = kit.store.job(number).await.unwrap().unwrap();
    assert_eq!((record.state, &record.counts[..]), (JobState::Queued, &[0, 4, 2, 0, 0, 0, 0, 0][..]));
    let rows = kit.store.task_rows(number, (0, 0), 2, &[], 100).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (row.task, row.index, row.state, row.node.as_deref())).collect();
    assert_eq!(
        rows,
        [(0, 0, TaskState::Assigned, Some("amber")), (0, 1, TaskState::Assigned, Some("amber"))],
        "a task has a row from its first assignment on"
    );
    for (_, attempt) in kit.dispatched() {
        assert_eq!(kit.store.attempt(attempt).await.unwrap().unwrap().node, node.id);
    }
}

#[tokio::test]
async fn the_last_row_of_a_key_counts() {
    let mut kit = Kit::new().await;
    let node = kit.node("amber", 1).await;
    kit.submit(new_job(job(vec![task("one")]))).await;
    let (_, attempt) = kit.dispatched()[0];
    // Started, ended, its task and job over: several rows of each key in one batch.
    let sandbox = Confined { level: SandboxLevel::Strict, limits: Limits::Cgroup };
    let events = [
        Event::AttemptStarted { node: node.id, attempt, sandbox },
        Event::AttemptEnded { node: node.id, attempt, end: Arc::new(exited(0)) },
    ];
    kit.batch(&events).await;
    let record = kit.store.job(JobNumber(1)).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Completed);
    let row = &kit.store.task_rows(JobNumber(1), (0, 0), 1, &[], 10).await.unwrap()[0];
    assert_eq!((row.state, row.exit_code, row.cause), (TaskState::Completed, Some(0), Some(Cause::Exit)));
    assert_eq!(row.sandbox, sandbox);
    assert_eq!(kit.store.history(attempt.task).await.unwrap()[0].sandbox, sandbox);
}

#[tokio::test]
async fn many_jobs_come_in_by_one_commit() {
    let mut kit = Kit::new().await;
    kit.node("amber", 3).await;
    let events: Vec<Event> = (0..40)
        .map(|reply| Event::JobSubmitted {
            reply: ReplyId(reply),
            job: Arc::new(new_job(job(vec![task("one"), array("many", 3)]))),
        })
        .collect();
    let seq = leader::read(&mut kit.connection).await.unwrap().seq;
    kit.batch(&events).await;
    assert_eq!(leader::read(&mut kit.connection).await.unwrap().seq, seq + 1);
    assert_eq!(kit.store.jobs(None, 100, &[], None).await.unwrap().len(), 40);
    let definitions = kit.store.definitions(JobNumber(40)).await.unwrap();
    let seen: Vec<_> =
        definitions.iter().map(|one| (one.name.as_str(), one.total, &one.counts[..])).collect();
    assert_eq!(seen, [("one", 1, &[0, 1, 0, 0, 0, 0, 0, 0][..]), ("many", 3, &[0, 3, 0, 0, 0, 0, 0, 0][..])]);
}

#[tokio::test]
async fn a_terminal_task_never_changes() {
    let mut kit = Kit::new().await;
    for state in [TaskState::Completed, TaskState::Failed, TaskState::Cancelled] {
        sqlx::query("DELETE FROM tasks").execute(kit.store.pool()).await.unwrap();
        kit.write(vec![Write::Task(task_row(state, 1))]).await.unwrap();
        for (to, attempt) in [(TaskState::Running, 1), (TaskState::Queued, 2), (TaskState::Completed, 1)] {
            let error = kit.write(vec![Write::Task(task_row(to, attempt))]).await.unwrap_err();
            assert!(
                matches!(error, StoreError::Conflict(ref what) if what == "tasks: 0 of 1 rows could change"),
                "{error}"
            );
        }
        let row = &kit.store.task_rows(KEY.job, (0, 0), 1, &[], 10).await.unwrap()[0];
        assert_eq!((row.state, row.attempt), (state, 1));
    }
}

#[tokio::test]
async fn a_task_never_goes_back_to_an_earlier_attempt() {
    let mut kit = Kit::new().await;
    kit.write(vec![Write::Task(task_row(TaskState::Running, 3))]).await.unwrap();
    let error = kit.write(vec![Write::Task(task_row(TaskState::Running, 2))]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(ref what) if what.starts_with("tasks: ")), "{error}");
    kit.write(vec![Write::Task(task_row(TaskState::Assigned, 4))]).await.unwrap();
    let row = &kit.store.task_rows(KEY.job, (0, 0), 1, &[], 10).await.unwrap()[0];
    assert_eq!(row.attempt, 4);
}

#[tokio::test]
async fn an_ended_attempt_never_changes_and_no_attempt_moves_to_another_node() {
    let mut kit = Kit::new().await;
    let (amber, birch) = (kit.node("amber", 1).await.id, kit.node("birch", 1).await.id);
    kit.write(vec![Write::Attempt(attempt_row(&kit, 1, amber, false))]).await.unwrap();
    let moved = kit.write(vec![Write::Attempt(attempt_row(&kit, 1, birch, true))]).await.unwrap_err();
    assert!(matches!(moved, StoreError::Conflict(ref what) if what.starts_with("attempts: ")), "{moved}");
    kit.write(vec![Write::Attempt(attempt_row(&kit, 1, amber, true))]).await.unwrap();
    let lost = Arc::new(AttemptEnd::declared(Cause::Lost, "too late"));
    for ended in [Some((START, lost)), None] {
        let row = AttemptRow { ended, ..attempt_row(&kit, 1, amber, false) };
        let error = kit.write(vec![Write::Attempt(row)]).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(ref what) if what.starts_with("attempts: ")), "{error}");
    }
    let row = kit.store.attempt(AttemptKey { task: KEY, number: 1 }).await.unwrap().unwrap();
    assert_eq!((row.node, row.cause), (amber, Some(Cause::Exit)));
}

#[tokio::test]
async fn a_finished_job_never_changes() {
    let mut kit = Kit::new().await;
    kit.node("amber", 1).await;
    let number = kit.submit(new_job(job(vec![task("one")]))).await;
    let dispatched = kit.dispatched()[0];
    kit.end(dispatched, exited(0)).await;
    let row = crate::engine::effect::JobRow {
        number,
        state: JobState::Running,
        ending: None,
        reason: String::new(),
        counts: Counts::default(),
        started_at: None,
        finished_at: None,
    };
    let error = kit.write(vec![Write::Job(row)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(ref what) if what.starts_with("jobs: ")), "{error}");
    assert_eq!(kit.store.job(number).await.unwrap().unwrap().state, JobState::Completed);
}

#[tokio::test]
async fn one_refused_row_undoes_its_whole_batch() {
    let mut kit = Kit::new().await;
    kit.write(vec![Write::Task(task_row(TaskState::Completed, 1))]).await.unwrap();
    let seq = leader::read(&mut kit.connection).await.unwrap().seq;
    let good = TaskRow { key: TaskKey { index: 9, ..KEY }, ..task_row(TaskState::Running, 1) };
    let writes = vec![Write::Task(good), Write::Task(task_row(TaskState::Running, 1))];
    let error = kit.write(writes).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Conflict(ref what) if what == "tasks: 1 of 2 rows could change"),
        "{error}"
    );
    assert_eq!(count(&kit, "tasks").await, 1, "the good row stayed out as well");
    assert_eq!(leader::read(&mut kit.connection).await.unwrap().seq, seq);
    // The connection can be used on.
    kit.write(vec![Write::Task(task_row(TaskState::Completed, 1))]).await.unwrap_err();
    kit.node("amber", 1).await;
}

#[tokio::test]
async fn under_an_old_epoch_nothing_is_written() {
    let mut kit = Kit::new().await;
    let seen = leader::read(&mut kit.connection).await.unwrap();
    leader::take(&mut kit.connection, &seen, CoordinatorId::generate()).await.unwrap();
    let node = crate::testing::joined(kit.store.pool(), "amber").await;
    let tagged = NodeRecord { tags: [("rack".to_owned(), "b2".to_owned())].into(), ..node.clone() };
    let everything = vec![
        Write::NewJob {
            number: JobNumber(1),
            job: Arc::new(new_job(job(vec![task("one")]))),
            created_at: START,
        },
        Write::Definition { job: JobNumber(1), task: 0, counts: Counts::default() },
        Write::Task(task_row(TaskState::Running, 1)),
        Write::Attempt(attempt_row(&kit, 1, node.id, false)),
        Write::Node { record: tagged, facts: None },
    ];
    let error = kit.write(everything).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    for table in ["jobs", "task_definitions", "tasks", "attempts"] {
        assert_eq!(count(&kit, table).await, 0, "{table}");
    }
    assert_eq!(kit.store.node(node.id).await.unwrap().unwrap().record, node);
    let error = kit.write(Vec::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "a beat is fenced as well: {error}");
    assert_eq!(count(&kit, "tasks").await, 0);
    let now = leader::read(&mut kit.connection).await.unwrap();
    assert_eq!((now.epoch, now.seq), (seen.epoch + 1, seen.seq + 1), "seq moves under the new epoch only");
}

#[tokio::test]
async fn what_postgres_cannot_hold_is_the_fault_of_the_rows() {
    let mut kit = Kit::new().await;
    let mut poison = new_job(job(vec![task("one")]));
    poison.name = "nul\0".to_owned();
    let mut fx = crate::engine::effect::Effects::default();
    kit.engine.handle(kit.now, &Event::JobSubmitted { reply: ReplyId(1), job: Arc::new(poison) }, &mut fx);
    let error = kit.write(fx.writes).await.unwrap_err();
    assert!(error.is_poison() && matches!(error, StoreError::Rows(_)), "{error}");
    let mut twice = new_job(job(vec![task("one")]));
    twice.idempotency_key = Some("k".to_owned());
    let twice = Arc::new(twice);
    for number in [1, 2] {
        let job = Write::NewJob { number: JobNumber(number), job: Arc::clone(&twice), created_at: START };
        let written = kit.write(vec![job]).await;
        assert_eq!(written.is_ok(), number == 1, "one job for one key: {written:?}");
    }
}

#[tokio::test]
async fn what_an_operator_says_of_a_node_and_what_it_says_itself_are_kept_apart() {
    let mut kit = Kit::new().await;
    let node = kit.node("amber", 2).await;
    let change = NodeChange::Tag {
        set: [("rack".to_owned(), "b2".to_owned())].into(),
        remove: vec!["none".to_owned()],
    };
    kit.step(Event::NodeChanged { reply: ReplyId(1), node: node.id, change, record: None }).await;
    kit.step(Event::NodeChanged {
        reply: ReplyId(1),
        node: node.id,
        change: NodeChange::Drain,
        record: None,
    })
    .await;
    let stored = kit.store.node(node.id).await.unwrap().unwrap();
    assert_eq!(stored.record.tags["rack"], "b2");
    assert!(stored.record.draining && !stored.record.cordoned);
    assert_eq!(stored.facts.unwrap().slots, 2, "a change without facts keeps those of the registration");
    // A node without a row would be kept nowhere: that is a conflict.
    let nobody = NodeRecord { id: mesh_proto::ids::NodeId::generate(), ..node };
    let error = kit.write(vec![Write::Node { record: nobody, facts: None }]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(ref what) if what.starts_with("nodes: ")), "{error}");
}
