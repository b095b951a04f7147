//! Jobs as clients see them, and their cancelling.

use mesh_proto::{
    code::Code,
    ids::JobNumber,
    v1::{
        CancelJobRequest, CancelJobResponse, GetJobRequest, JobState, ListJobsRequest, Page,
        jobs_client::JobsClient,
    },
};
use tonic::Status;

use super::{Mesh, code};
use crate::testing::{array, exited, job, needing, task};

async fn cancel(mesh: &Mesh, job: &str, reason: &str) -> Result<CancelJobResponse, Status> {
    let request = CancelJobRequest { job: job.to_owned(), reason: reason.to_owned() };
    Ok(mesh.jobs().cancel_job(request).await?.into_inner())
}

#[tokio::test]
async fn a_job_is_found_by_number_uuid_and_last() {
    let mesh = Mesh::new().await;
    let first =
        mesh.submit(job(vec![array("resize", 3), needing(task("sheet"), &[("resize", false)])])).await;
    let second = mesh.submit(job(vec![task("one")])).await;
    let found = mesh.job(first).await;
    assert_eq!((found.number, found.name.as_str(), found.owner.as_str()), (1, "thumbnails", "ada"));
    let tasks: Vec<_> = found.tasks.iter().map(|task| (task.name.as_str(), task.total, task.array)).collect();
    assert_eq!(tasks, [("resize", 3, true), ("sheet", 1, false)]);
    assert_eq!(found.tasks[1].needs, ["resize"]);
    let counts = found.counts.unwrap();
    assert_eq!((counts.queued, counts.blocked), (3, 1));
    let get = async |job: &str| mesh.jobs().get_job(GetJobRequest { job: job.to_owned() }).await;
    assert_eq!(get(&found.uuid).await.unwrap().into_inner().number, first.0);
    assert_eq!(get("last").await.unwrap().into_inner().number, second.0);
    let request = GetJobRequest { job: "last".to_owned() };
    let status = JobsClient::new(mesh.of("bob")).get_job(request).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound, "last is one's own latest");
    for (no, expected) in [
        ("99", Code::NotFound),
        ("0", Code::Invalid),
        ("-1", Code::Invalid),
        ("18446744073709551615", Code::Invalid),
        ("", Code::Invalid),
        ("' OR 1=1", Code::Invalid),
        ("0190b6a5-1111-7000-8000-000000000000", Code::NotFound),
    ] {
        assert_eq!(Code::of(&get(no).await.unwrap_err()), expected, "{no:?}");
    }
}

#[tokio::test]
async fn lists_of_jobs_are_paged_by_their_cursors() {
    let mesh = Mesh::new().await;
    for _ in 0..7 {
        mesh.submit(job(vec![task("one")])).await;
    }
    cancel(&mesh, "4", "").await.unwrap();
    let list = async |limit, states: Vec<JobState>| {
        let (mut after, mut numbers) = (String::new(), Vec::new());
        loop {
            let page = Some(Page { limit, after });
            let states = states.iter().map(|state| (*state).into()).collect();
            let answer = mesh.jobs().list_jobs(ListJobsRequest { page, states, mine: true }).await.unwrap();
            let answer = answer.into_inner();
            numbers.extend(answer.jobs.iter().map(|job| job.number));
            after = answer.next;
            if after.is_empty() {
                return numbers;
            }
        }
    };
    assert_eq!(list(2, Vec::new()).await, [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(list(0, Vec::new()).await, [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(list(1, vec![JobState::Cancelled]).await, [4]);
    let page = Some(Page { limit: 1, after: "x".to_owned() });
    let bad =
        mesh.jobs().list_jobs(ListJobsRequest { page, ..ListJobsRequest::default() }).await.unwrap_err();
    assert_eq!(code(&bad), (Code::Invalid, "`after` is no cursor of this list"));
}

#[tokio::test]
async fn a_cancel_is_durable_once_told_and_told_again_when_it_was() {
    let mesh = Mesh::new().await;
    let number = mesh.submit(job(vec![array("a", 5)])).await;
    let answer = cancel(&mesh, "last", "not \u{1b}[2J needed").await.unwrap();
    assert_eq!((answer.number, answer.state(), answer.already), (number.0, JobState::Cancelled, false));
    let stored = mesh.job(number).await;
    assert_eq!(stored.state(), JobState::Cancelled);
    assert!(stored.reason.contains("needed") && !stored.reason.contains('\u{1b}'), "{:?}", stored.reason);
    let again = cancel(&mesh, "1", "").await.unwrap();
    assert_eq!((again.state(), again.already), (JobState::Cancelled, true));
    assert_eq!(mesh.audited("job.cancel").await, 2);
    let status = cancel(&mesh, "9", "").await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
}

#[tokio::test]
async fn a_job_that_is_over_cannot_be_cancelled() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 2).await;
    for status in [0, 1] {
        let number = mesh.submit(job(vec![task("one")])).await;
        let open = mesh.open().await[0];
        mesh.end(open, exited(status)).await;
        mesh.over(number).await;
    }
    for (job, expected) in [("1", "job 1 is COMPLETED already"), ("2", "job 2 is FAILED already")] {
        let status = cancel(&mesh, job, "").await.unwrap_err();
        assert_eq!(code(&status), (Code::Conflict, expected));
    }
    assert!(mesh.job(JobNumber(2)).await.reason.starts_with("one failed: exit status 1"));
}

#[tokio::test]
async fn a_cancelled_job_is_over_when_its_processes_are() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 1).await;
    let number = mesh.submit(job(vec![array("a", 3)])).await;
    let open = mesh.open().await[0];
    let answer = cancel(&mesh, "1", "").await.unwrap();
    assert_eq!((answer.state(), answer.already), (JobState::Cancelled, false));
    assert_eq!(mesh.job(number).await.reason, "cancelled by ada");
    assert!(!mesh.job(number).await.state().is_terminal(), "a process still runs");
    mesh.end(open, exited(143)).await;
    for queued in mesh.open().await {
        mesh.end(queued, exited(143)).await;
    }
    assert_eq!(mesh.over(number).await, JobState::Cancelled);
}
