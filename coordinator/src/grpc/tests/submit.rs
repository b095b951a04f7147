//! Jobs come in: what is refused, and one job for one key.

use std::collections::HashMap;

use futures_util::future::join_all;
use mesh_proto::{
    code::Code,
    digest::Digest,
    ids::JobNumber,
    v1::{
        ArraySpec, BlobRef, FileEntry, Item, ItemList, JobSpec, JobState, SubmitJobRequest, TaskSpec,
        array_spec, jobs_client::JobsClient,
    },
};
use prost::Message as _;
use sqlx::Connection as _;

use super::{Mesh, code, soon};
use crate::testing::{array, exited, job, needing, task};

fn blob(digest: Digest, count: u32) -> ArraySpec {
    let blob = BlobRef { digest: digest.to_vec(), size: 1, count };
    ArraySpec { kind: Some(array_spec::Kind::ItemsBlob(blob)) }
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_told_with_its_place() {
    let mesh = Mesh::new().await;
    let nowhere = Digest::of(b"nowhere");
    let listed = ItemList { items: vec![Item { value: "a\0".to_owned(), file: None }] };
    let nul = mesh.put(&listed.encode_to_vec()).await;
    let junk = mesh.put(b"\xff\xff junk").await;
    let blobs = |digest, count| TaskSpec { array: Some(blob(digest, count)), ..task("many") };
    for (spec, expected) in [
        (job(Vec::new()), "tasks is empty; a job has at least one task"),
        (job(vec![needing(task("a"), &[("b", false)])]), "task \"a\": needs names \"b\", which is no task"),
        (job(vec![blobs(nowhere, 3)]), "task \"many\": array: the list of the array's items cannot be read"),
        (job(vec![blobs(junk, 3)]), "task \"many\": array: the list of the array's items is damaged"),
        (job(vec![blobs(nul, 2)]), "task \"many\": array: the list of the array's items is damaged"),
        (job(vec![blobs(nul, 1)]), "task \"many\": array has an item with a NUL byte"),
    ] {
        let status = mesh.try_submit(spec, "").await.unwrap_err();
        assert_eq!(code(&status), (Code::Invalid, expected));
    }
    let status = mesh.jobs().submit_job(SubmitJobRequest::default()).await.unwrap_err();
    assert_eq!(code(&status), (Code::Invalid, "the request has no job"));
    for (key, expected) in [
        ("k".repeat(129), "the idempotency key is longer than 128 bytes"),
        ("a\0b".to_owned(), "the idempotency key contains a NUL byte"),
    ] {
        let status = mesh.try_submit(job(vec![task("a")]), &key).await.unwrap_err();
        assert_eq!(code(&status), (Code::Invalid, expected));
    }
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&mesh.pool).await.unwrap();
    assert_eq!(jobs, 0);
}

#[tokio::test]
async fn the_items_of_a_list_are_its_elements() {
    let mesh = Mesh::new().await;
    let file = |path: &str| FileEntry {
        path: path.to_owned(),
        digest: Digest::of(path.as_bytes()).to_vec(),
        ..FileEntry::default()
    };
    let items =
        ["a.jpg", "b.jpg"].map(|path| Item { value: path.to_owned(), file: Some(file(path)) }).to_vec();
    let digest = mesh.put(&ItemList { items }.encode_to_vec()).await;
    let many = TaskSpec { array: Some(blob(digest, 2)), ..task("many") };
    let number = mesh.submit(job(vec![many])).await;
    assert_eq!(mesh.job(number).await.tasks[0].total, 2);
    let plan = mesh.plans.plan(number).await.unwrap();
    assert_eq!(plan.tasks[0].item(1).unwrap(), "b.jpg");
    assert_eq!(plan.tasks[0].own_inputs(1)[0].path, "b.jpg");
}

/// A job whose maps are filled in this order.
fn with_maps(order: impl Iterator<Item = u32>) -> JobSpec {
    let mut one = task("one");
    let mut params = HashMap::new();
    for at in order {
        one.env.insert(format!("K{at}"), at.to_string());
        params.insert(format!("p{at}"), at.to_string());
    }
    JobSpec { params, ..job(vec![one]) }
}

#[tokio::test]
async fn the_same_key_and_payload_is_the_same_job_while_it_lives_and_after() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 1).await;
    let first = mesh.try_submit(with_maps(0..20), "once").await.unwrap();
    assert!(!first.1);
    let traced = JobSpec { traceparent: "00-2".to_owned(), ..with_maps((0..20).rev()) };
    assert_eq!(mesh.try_submit(traced, "once").await.unwrap(), (first.0, true));
    let other = mesh.try_submit(with_maps(0..19), "once").await.unwrap_err();
    let expected = "this idempotency key was used for another payload, by job 1";
    assert_eq!(code(&other), (Code::Conflict, expected));
    let open = mesh.open().await[0];
    mesh.end(open, exited(0)).await;
    assert_eq!(mesh.over(first.0).await, JobState::Completed);
    assert_eq!(mesh.try_submit(with_maps(0..20), "once").await.unwrap(), (first.0, true));
    let other = mesh.try_submit(with_maps(0..19), "once").await.unwrap_err();
    assert_eq!(code(&other), (Code::Conflict, expected));
    // Somebody else's key is another one.
    let request = SubmitJobRequest { spec: Some(with_maps(0..20)), idempotency_key: "once".to_owned() };
    let theirs = JobsClient::new(mesh.of("bob")).submit_job(request).await.unwrap().into_inner();
    assert!(!theirs.existed && theirs.number != first.0.0);
}

#[tokio::test]
async fn twenty_submits_with_one_key_at_once_are_one_job() {
    let mesh = Mesh::new().await;
    let answers = join_all((0..20).map(|_| mesh.try_submit(job(vec![array("a", 3)]), "once"))).await;
    let answers: Vec<(JobNumber, bool)> = answers.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|(number, _)| *number == answers[0].0), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, existed)| !existed).count(), 1, "{answers:?}");
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&mesh.pool).await.unwrap();
    assert_eq!(jobs, 1);
}

#[tokio::test]
async fn a_key_whose_job_came_and_went_meanwhile_still_names_that_job() {
    let mesh = Mesh::new().await;
    mesh.submit(job(vec![task("a")])).await;
    // The submit passes the look for its key, and its commit is held up.
    let mut stall = sqlx::PgConnection::connect_with(&mesh.database.options).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT * FROM leader FOR UPDATE").execute(&mut stall).await.unwrap();
    let submit = mesh.try_submit(job(vec![task("a")]), "once");
    let meanwhile = async {
        let waits = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE leader%'";
        super::until(async || {
            let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&mesh.pool).await.unwrap();
            waiting > 0
        })
        .await;
        let insert =
            "INSERT INTO jobs (number, uuid, name, owner, state, priority, keep_going, idempotency_key,
                payload_digest, spec, counts, created_at, finished_at)
            SELECT 1000, gen_random_uuid(), name, owner, 'completed', priority, keep_going, 'once',
                payload_digest, spec, counts, created_at, now() FROM jobs WHERE number = 1";
        sqlx::raw_sql(insert).execute(&mesh.pool).await.unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut stall).await.unwrap();
    };
    let (answer, ()) = soon(async { tokio::join!(submit, meanwhile) }).await;
    assert_eq!(answer.unwrap(), (JobNumber(1000), true));
}
