//! Following logs: several tasks at once, retries, ends that nobody tells.

use mesh_proto::{
    ids::JobNumber,
    v1::{StreamLogsRequest, StreamLogsResponse},
};
use tonic::Streaming;

use super::{
    Mesh,
    logs::{of, rest, spool, text},
    soon,
};
use crate::{
    engine::event::AttemptEnd,
    testing::{array, exited, job, needing, task, trying},
};

fn following(job: JobNumber) -> StreamLogsRequest {
    StreamLogsRequest { follow: true, stdout_only: true, ..of(job) }
}

async fn next(stream: &mut Streaming<StreamLogsResponse>) -> String {
    text(&soon(stream.message()).await.unwrap().expect("the stream goes on").chunks)
}

#[tokio::test]
async fn a_follower_sees_running_tasks_side_by_side_and_those_that_come_later() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 8).await;
    let tasks = vec![array("a", 2), needing(task("sheet"), &[("a", false)])];
    let number = mesh.submit(job(tasks)).await;
    let mut stream = mesh.logs(following(number)).await.unwrap();
    let open = mesh.open().await;
    mesh.stream_output(open[1].1, 0, spool("second")).await;
    assert_eq!(next(&mut stream).await, "a.1#1 out| second\n");
    mesh.stream_output(open[0].1, 0, spool("first")).await;
    assert_eq!(next(&mut stream).await, "a.0#1 out| first\n");
    for open in open {
        let length = if open.1.task.index == 0 { spool("first").len() } else { spool("second").len() };
        mesh.end(open, AttemptEnd { output_length: length as u64, ..exited(0) }).await;
    }
    let sheet = mesh.open().await[0];
    let short = spool("sheet");
    mesh.end(sheet, AttemptEnd { output_length: short.len() as u64, output: short, ..exited(0) }).await;
    assert_eq!(text(&rest(stream).await), "sheet.0#1 out| sheet\n");
}

#[tokio::test]
async fn a_follower_sees_each_attempt_and_ends_with_the_job() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 8).await;
    let mut flaky = trying(task("flaky"), 3);
    flaky.retry.as_mut().unwrap().backoff_ms = 0;
    let number = mesh.submit(job(vec![flaky])).await;
    let mut stream = mesh.logs(following(number)).await.unwrap();
    for (attempt, status) in [(1, 1), (2, 1), (3, 0)] {
        let open = mesh.open().await[0];
        let output = spool("line");
        mesh.stream_output(open.1, 0, output.clone()).await;
        assert_eq!(next(&mut stream).await, format!("flaky.0#{attempt} out| line\n"));
        mesh.end(open, AttemptEnd { output_length: output.len() as u64, ..exited(status) }).await;
    }
    assert_eq!(text(&rest(stream).await), "");
}

#[tokio::test]
async fn a_follower_ends_when_nobody_told_the_end() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 8).await;
    let number = mesh.submit(job(vec![array("a", 3)])).await;
    let mut stream = mesh.logs(following(number)).await.unwrap();
    let open = mesh.open().await;
    mesh.stream_output(open[0].1, 0, spool("first")).await;
    assert_eq!(next(&mut stream).await, "a.0#1 out| first\n");
    // As if the answer to the last commit had been lost, and memory had been read anew.
    sqlx::raw_sql(
        "UPDATE attempts SET state = 'ended', cause = 'lost', ended_at = now();
         UPDATE tasks SET state = 'failed', finished_at = now();
         UPDATE jobs SET state = 'failed', finished_at = now()",
    )
    .execute(&mesh.pool)
    .await
    .unwrap();
    mesh.hub.look_again();
    assert_eq!(text(&rest(stream).await), "");
}

#[tokio::test]
async fn more_tasks_than_are_followed_at_once_are_all_followed() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 100).await;
    let number = mesh.submit(job(vec![array("a", 100)])).await;
    let stream = mesh.logs(following(number)).await.unwrap();
    let reader = crate::spawn::spawn_owned("reader", rest(stream));
    for open in mesh.open().await {
        let output = spool(&open.1.task.index.to_string());
        let end = AttemptEnd { output_length: output.len() as u64, output, ..exited(0) };
        mesh.end(open, end).await;
    }
    let mut seen: Vec<u32> = reader.await.unwrap().iter().map(|chunk| chunk.index).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}
