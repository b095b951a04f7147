//! Watched jobs reach their end, whatever happens on the way.

use mesh_proto::{
    code::Code,
    ids::JobNumber,
    v1::{Job, JobState, WatchJobRequest},
};
use tonic::{Status, Streaming};

use super::{Mesh, soon};
use crate::testing::{array, exited, job, task};

async fn watch(mesh: &Mesh, job: JobNumber) -> Result<Streaming<Job>, Status> {
    Ok(mesh.jobs().watch_job(WatchJobRequest { job: job.to_string() }).await?.into_inner())
}

async fn next(stream: &mut Streaming<Job>) -> Option<Job> {
    soon(stream.message()).await.unwrap()
}

#[tokio::test]
async fn a_watcher_sees_the_job_now_its_changes_and_its_end() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 4).await;
    let number = mesh.submit(job(vec![array("a", 4)])).await;
    let mut stream = watch(&mesh, number).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.counts.unwrap().assigned, 4);
    let mut seen = Vec::new();
    for open in mesh.open().await {
        mesh.end(open, exited(0)).await;
    }
    while let Some(job) = next(&mut stream).await {
        seen.push((job.state(), job.counts.unwrap().completed, job.tasks[0].counts.unwrap().completed));
    }
    assert!(seen.is_sorted_by_key(|(_, completed, _)| *completed), "{seen:?}");
    assert_eq!(seen.last(), Some(&(JobState::Completed, 4, 4)));
    assert!(seen.iter().all(|(_, all, of_task)| all == of_task), "{seen:?}");
}

#[tokio::test]
async fn many_changes_reach_a_watcher_as_few() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 50).await;
    let number = mesh.submit(job(vec![array("a", 50)])).await;
    let mut stream = watch(&mesh, number).await.unwrap();
    let started = std::time::Instant::now();
    for open in mesh.open().await {
        mesh.end(open, exited(0)).await;
    }
    let mut messages = 0;
    while next(&mut stream).await.is_some() {
        messages += 1;
    }
    // One now, one for each tenth of a second, and the end.
    let most = 3 + started.elapsed().as_millis() / 100;
    assert!(messages <= most, "{messages} messages, at most {most} expected");
}

#[tokio::test]
async fn a_job_that_is_over_is_told_once() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 1).await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let open = mesh.open().await[0];
    mesh.end(open, exited(3)).await;
    let mut stream = watch(&mesh, number).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().state(), JobState::Failed);
    assert!(next(&mut stream).await.is_none());
    let status = watch(&mesh, JobNumber(99)).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
}

#[tokio::test]
async fn a_watcher_reaches_an_end_that_was_committed_and_never_said() {
    let mesh = Mesh::new().await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let mut stream = watch(&mesh, number).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().state(), JobState::Queued);
    // As if the answer to its last commit had been lost, and memory had been read anew.
    sqlx::raw_sql("UPDATE jobs SET state = 'completed', finished_at = now()")
        .execute(&mesh.pool)
        .await
        .unwrap();
    mesh.hub.look_again();
    assert_eq!(next(&mut stream).await.unwrap().state(), JobState::Completed);
    assert!(next(&mut stream).await.is_none());
}

#[tokio::test]
async fn who_stops_watching_leaves_nothing_behind() {
    let mesh = Mesh::new().await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let stream = watch(&mesh, number).await.unwrap();
    assert_eq!(mesh.hub.watched(), 1);
    drop(stream);
    super::until(async || {
        // The next subscription sweeps.
        drop(mesh.hub.watch(JobNumber(7)));
        drop(mesh.hub.follow(JobNumber(8)));
        mesh.hub.watched() == 1
    })
    .await;
}
