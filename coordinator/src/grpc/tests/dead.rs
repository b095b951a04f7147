//! Dead letters as people see them, and their second chance.

use mesh_proto::{
    code::Code,
    ids::JobNumber,
    v1::{
        Cause, DeadLetter, JobState, ListDeadRequest, Page, RedriveRequest, RedriveResponse, RedriveTarget,
        TaskState, WatchJobRequest,
    },
};
use tonic::Status;

use super::{Mesh, code, soon};
use crate::testing::{array, exited, job, keep_going, needing, task};

/// Every dead letter, by pages.
async fn dead(mesh: &Mesh, job: &str, task: &str, limit: u32) -> Result<Vec<DeadLetter>, Status> {
    let (mut after, mut all) = (String::new(), Vec::new());
    loop {
        let page = Some(Page { limit, after });
        let request = ListDeadRequest { job: job.to_owned(), task: task.to_owned(), index: None, page };
        let answer = mesh.jobs().list_dead(request).await?.into_inner();
        assert!(answer.dead.len() <= limit as usize);
        all.extend(answer.dead);
        after = answer.next;
        if after.is_empty() {
            return Ok(all);
        }
    }
}

fn places(dead: &[DeadLetter]) -> Vec<(u64, u32, u32)> {
    let key = |letter: &DeadLetter| letter.task.as_ref().unwrap().key.unwrap();
    dead.iter().map(key).map(|key| (key.job, key.task, key.index)).collect()
}

async fn redrive(
    mesh: &Mesh,
    job: JobNumber,
    targets: &[(&str, Option<u32>)],
) -> Result<RedriveResponse, Status> {
    redrive_under(mesh, "", job, targets).await
}

/// The same under a key.
async fn redrive_under(
    mesh: &Mesh,
    key: &str,
    job: JobNumber,
    targets: &[(&str, Option<u32>)],
) -> Result<RedriveResponse, Status> {
    let targets =
        targets.iter().map(|(task, index)| RedriveTarget { task: (*task).to_owned(), index: *index });
    let idempotency_key = key.to_owned();
    let request = RedriveRequest { job: job.to_string(), targets: targets.collect(), idempotency_key };
    Ok(mesh.jobs().redrive(request).await?.into_inner())
}

/// Ends everything that is open, element by element.
async fn work(mesh: &Mesh, status: impl Fn(u32, u32) -> i32) {
    for open in mesh.open().await {
        let task = open.1.task;
        mesh.end(open, exited(status(task.task, task.index))).await;
    }
}

#[tokio::test]
async fn dead_letters_are_listed_over_all_jobs_the_newest_first() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 16).await;
    for _ in 0..2 {
        mesh.submit(keep_going(vec![array("a", 3), task("b")])).await;
        mesh.submit(job(vec![task("well")])).await;
        work(&mesh, |task, index| i32::from(task == 0 && index != 1 || task == 1)).await;
    }
    // The single task of the jobs between is definition 0 as well: it failed.
    let expected = [(4, 0, 0), (3, 0, 0), (3, 0, 2), (3, 1, 0), (2, 0, 0), (1, 0, 0), (1, 0, 2), (1, 1, 0)];
    for limit in [1, 2, 3, 8, 100] {
        assert_eq!(places(&dead(&mesh, "", "", limit).await.unwrap()), expected, "{limit} a page");
    }
    assert_eq!(places(&dead(&mesh, "3", "", 1).await.unwrap()), [(3, 0, 0), (3, 0, 2), (3, 1, 0)]);
    assert_eq!(places(&dead(&mesh, "3", "a", 10).await.unwrap()), [(3, 0, 0), (3, 0, 2)]);
    let letter = &dead(&mesh, "1", "", 10).await.unwrap()[1];
    assert_eq!((letter.failures, letter.losses, letter.job_name.as_str()), (1, 0, "thumbnails"));
    let task = letter.task.clone().unwrap();
    assert_eq!((task.cause(), task.exit_code, task.attempt), (Cause::Exit, Some(1), 1));
    assert_eq!((task.node.as_str(), task.item.as_str(), task.array), ("amber", "2", true));
    assert!(task.finished_at_ms > 0);
    for (job, task, expected) in
        [("9", "", Code::NotFound), ("1", "c", Code::NotFound), ("", "a", Code::Invalid)]
    {
        let status = dead(&mesh, job, task, 1).await.unwrap_err();
        assert_eq!(Code::of(&status), expected, "{job}/{task}");
    }
    let page = Some(Page { limit: 1, after: "1.2".to_owned() });
    let request = ListDeadRequest { page, ..ListDeadRequest::default() };
    let status = mesh.jobs().list_dead(request).await.unwrap_err();
    assert_eq!(code(&status), (Code::Invalid, "`after` is no cursor of this list"));
}

#[tokio::test]
async fn a_job_that_was_over_goes_on_after_a_redrive() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 16).await;
    let tasks = vec![array("a", 3), needing(task("sum"), &[("a", false)])];
    let number = mesh.submit(keep_going(tasks)).await;
    work(&mesh, |_, index| i32::from(index == 1)).await;
    assert_eq!(mesh.over(number).await, JobState::PartiallyCompleted);
    let over = mesh.job(number).await;

    let answer = redrive(&mesh, number, &[]).await.unwrap();
    assert_eq!((answer.state(), answer.redriven, answer.resumed), (JobState::Running, 1, 1));
    let open = mesh.job(number).await;
    assert_eq!((open.state(), open.finished_at_ms, open.reason.as_str()), (JobState::Running, 0, ""));
    assert_eq!((open.started_at_ms, open.created_at_ms), (over.started_at_ms, over.created_at_ms));
    let counts = open.counts.unwrap();
    assert_eq!((counts.completed, counts.assigned, counts.blocked, counts.failed), (2, 1, 1, 0));
    let again = mesh.open().await;
    assert_eq!((again.len(), again[0].1.number), (1, 2), "attempts are numbered on");
    let status = redrive(&mesh, number, &[]).await.unwrap_err();
    assert_eq!(code(&status), (Code::Conflict, "nothing that was named in job 1 is a dead letter"));

    // A watcher that comes now waits for the new end.
    let request = WatchJobRequest { job: number.to_string() };
    let mut watching = mesh.jobs().watch_job(request).await.unwrap().into_inner();
    work(&mesh, |_, _| 0).await;
    work(&mesh, |_, _| 0).await;
    let mut last = None;
    while let Some(seen) = soon(watching.message()).await.unwrap() {
        last = Some(seen.state());
    }
    assert_eq!(last, Some(JobState::Completed));
    assert!(mesh.job(number).await.finished_at_ms >= over.finished_at_ms);
    let audit: Vec<(String, String, String)> =
        sqlx::query_as("SELECT actor, subject, detail FROM audit WHERE action = 'job.redrive'")
            .fetch_all(&mesh.pool)
            .await
            .unwrap();
    assert_eq!(audit, [("ada".to_owned(), "1".to_owned(), "every dead letter".to_owned())]);
}

#[tokio::test]
async fn only_what_is_named_and_dead_is_redriven() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 16).await;
    let number = mesh.submit(keep_going(vec![array("a", 4), task("b")])).await;
    work(&mesh, |task, index| i32::from(task == 1 || index != 1)).await;
    assert_eq!(mesh.over(number).await, JobState::PartiallyCompleted);
    for (targets, expected) in [
        (vec![("c", None)], Code::NotFound),
        (vec![("a", Some(4))], Code::NotFound),
        (vec![("a", Some(1))], Code::Conflict),
    ] {
        let status = redrive(&mesh, number, &targets).await.unwrap_err();
        assert_eq!(Code::of(&status), expected, "{targets:?}: {}", status.message());
    }
    let status = redrive(&mesh, JobNumber(9), &[]).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
    assert_eq!(mesh.audited("job.redrive").await, 0, "nothing was done");

    assert_eq!(redrive(&mesh, number, &[("a", Some(3)), ("a", Some(1))]).await.unwrap().redriven, 1);
    assert_eq!(redrive(&mesh, number, &[("a", None)]).await.unwrap().redriven, 2);
    assert_eq!(places(&dead(&mesh, "1", "", 10).await.unwrap()), [(1, 1, 0)]);
    work(&mesh, |_, _| 0).await;
    assert_eq!(mesh.over(number).await, JobState::PartiallyCompleted, "b is dead");

    let well = mesh.submit(job(vec![task("well")])).await;
    work(&mesh, |_, _| 0).await;
    let status = redrive(&mesh, well, &[]).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Conflict);
}

#[tokio::test]
async fn a_redrive_that_is_told_twice_is_done_once_also_when_it_failed_again() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 16).await;
    let number = mesh.submit(keep_going(vec![array("a", 3), task("b")])).await;
    work(&mesh, |task, index| i32::from(task == 0 && index != 1)).await;
    assert_eq!(mesh.over(number).await, JobState::PartiallyCompleted);

    let targets = [("a", Some(0)), ("a", Some(2))];
    let first = redrive_under(&mesh, "k", number, &targets).await.unwrap();
    assert_eq!((first.redriven, first.existed, first.state()), (2, false, JobState::Running));
    let again = redrive_under(&mesh, "k", number, &targets).await.unwrap();
    assert_eq!((again.redriven, again.existed, again.state()), (2, true, JobState::Running));
    // They fail again: another attempt would follow a redrive, and the job would be open.
    work(&mesh, |_, _| 1).await;
    assert_eq!(mesh.over(number).await, JobState::PartiallyCompleted);
    let other_order = [targets[1], targets[0]];
    for targets in [&targets, &other_order] {
        let again = redrive_under(&mesh, "k", number, targets).await.unwrap();
        assert_eq!((again.redriven, again.existed, again.state()), (2, true, JobState::PartiallyCompleted));
    }
    assert!(mesh.open().await.is_empty(), "it was done twice");
    assert_eq!(mesh.audited("job.redrive").await, 1);

    let status = redrive_under(&mesh, "k", number, &[]).await.unwrap_err();
    let used = "this idempotency key was used for another redrive of job 1";
    assert_eq!(code(&status), (Code::Conflict, used));
    for (key, expected) in [
        ("k".repeat(129), "the idempotency key is longer than 128 bytes"),
        ("a\0b".to_owned(), "the idempotency key contains a NUL byte"),
    ] {
        let status = redrive_under(&mesh, &key, number, &targets).await.unwrap_err();
        assert_eq!(code(&status), (Code::Invalid, expected));
    }
    // Another key is another redrive, and the key is the job's own.
    assert_eq!(redrive_under(&mesh, "l", number, &targets).await.unwrap().redriven, 2);
    let other = mesh.submit(keep_going(vec![task("c")])).await;
    work(&mesh, |_, _| 1).await;
    assert_eq!(mesh.over(other).await, JobState::Failed);
    assert!(!redrive_under(&mesh, "k", other, &[]).await.unwrap().existed);
}

#[tokio::test]
async fn of_redrives_that_meet_under_one_key_one_is_done() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 16).await;
    let number = mesh.submit(keep_going(vec![array("a", 3)])).await;
    work(&mesh, |_, _| 1).await;
    assert_eq!(mesh.over(number).await, JobState::Failed);
    let answers =
        futures_util::future::join_all((0..8).map(|_| redrive_under(&mesh, "k", number, &[]))).await;
    let answers: Vec<RedriveResponse> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.existed).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.redriven == 3), "{answers:?}");
    assert_eq!(mesh.audited("job.redrive").await, 1);
}

#[tokio::test]
async fn a_hundred_thousand_dead_letters_come_back_in_one_commit() {
    const MANY: i64 = 100_000;
    let mesh = Mesh::new().await;
    let number = mesh.submit(keep_going(vec![array("a", MANY as u32)])).await;
    mesh.jobs()
        .cancel_job(mesh_proto::v1::CancelJobRequest { job: number.to_string(), reason: String::new() })
        .await
        .unwrap();
    // What a job leaves all of whose elements failed.
    for statement in [
        "UPDATE jobs SET state = 'failed', ending = NULL, counts = ARRAY[0, 0, 0, 0, 0, 0, 100000, 0]",
        "UPDATE task_definitions SET counts = ARRAY[0, 0, 0, 0, 0, 0, 100000, 0]",
        "INSERT INTO tasks (job, task, index, state, attempt, own_failures, cause, exit_code, finished_at)
         SELECT 1, 0, index, 'failed', 1 + index % 2, 1, 'exit', 1, now() FROM generate_series(0, 99999) AS index",
    ] {
        sqlx::query(statement).execute(&mesh.pool).await.unwrap();
    }
    assert_eq!(dead(&mesh, "1", "", 1000).await.unwrap().len() as i64, MANY);
    let answer = redrive(&mesh, number, &[]).await.unwrap();
    assert_eq!((answer.redriven as i64, answer.state()), (MANY, JobState::Queued), "nothing ever started");
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT state::text, count(*) FROM tasks WHERE own_failures = 0 GROUP BY state")
            .fetch_all(&mesh.pool)
            .await
            .unwrap();
    assert_eq!(rows, [("queued".to_owned(), MANY)]);
    // They are read back as they were, and go on with their own numbers.
    let stored = mesh.store.stored_job(number).await.unwrap().unwrap();
    assert!(stored.tasks[0].live.is_empty());
    mesh.silent_node("amber", 2).await;
    let numbers: Vec<u32> = mesh.open().await.iter().take(2).map(|(_, attempt)| attempt.number).collect();
    assert_eq!(numbers, [2, 3]);
    let request = mesh_proto::v1::ListTasksRequest {
        job: number.to_string(),
        states: vec![TaskState::Queued.into()],
        page: Some(Page { limit: 1000, after: String::new() }),
        ..Default::default()
    };
    assert_eq!(mesh.jobs().list_tasks(request).await.unwrap().into_inner().tasks.len(), 1000);
}
