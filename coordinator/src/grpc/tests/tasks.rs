//! Lists of tasks: those with rows and those without, in every state, page by page.

use mesh_proto::{
    code::Code,
    ids::JobNumber,
    v1::{Counts, JobSpec, ListTasksRequest, Page, TaskInfo, TaskState},
};
use tonic::Status;

use super::{Mesh, code};
use crate::{
    engine::types::TASK_STATES,
    testing::{array, exited, job, keep_going, needing, task},
};

/// A whole listing, by pages of `limit`.
async fn list(
    mesh: &Mesh,
    job: JobNumber,
    limit: u32,
    states: &[TaskState],
    task: &str,
) -> Result<Vec<TaskInfo>, Status> {
    let (mut after, mut all) = (String::new(), Vec::new());
    loop {
        let request = ListTasksRequest {
            job: job.to_string(),
            page: Some(Page { limit, after }),
            states: states.iter().map(|state| (*state).into()).collect(),
            task: task.to_owned(),
            index: None,
        };
        let answer = mesh.jobs().list_tasks(request).await?.into_inner();
        assert!(answer.tasks.len() <= limit as usize);
        all.extend(answer.tasks);
        after = answer.next;
        if after.is_empty() {
            return Ok(all);
        }
    }
}

fn place(task: &TaskInfo) -> (u32, u32) {
    let key = task.key.unwrap();
    (key.task, key.index)
}

fn count(counts: &Counts, state: TaskState) -> u64 {
    match state {
        TaskState::Unspecified => 0,
        TaskState::Blocked => counts.blocked,
        TaskState::Queued => counts.queued,
        TaskState::Assigned => counts.assigned,
        TaskState::Running => counts.running,
        TaskState::Retrying => counts.retrying,
        TaskState::Completed => counts.completed,
        TaskState::Failed => counts.failed,
        TaskState::Cancelled => counts.cancelled,
    }
}

/// A listing tells what the counts tell, whatever the pages; returns it.
async fn agrees(mesh: &Mesh, number: JobNumber) -> Vec<TaskInfo> {
    let job = mesh.job(number).await;
    let whole = list(mesh, number, 1000, &[], "").await.unwrap();
    let places: Vec<_> = whole.iter().map(place).collect();
    assert!(places.is_sorted(), "in the order of the file");
    let total: u64 = job.tasks.iter().map(|task| task.total).sum();
    assert_eq!(places.len() as u64, total, "every task once");
    for summary in &job.tasks {
        for state in TASK_STATES {
            let found =
                whole.iter().filter(|task| task.name == summary.name && task.state() == state).count();
            let counted = count(summary.counts.as_ref().unwrap(), state);
            assert_eq!(found as u64, counted, "{} {state:?}", summary.name);
        }
    }
    for limit in [1, 3, 7] {
        assert_eq!(list(mesh, number, limit, &[], "").await.unwrap(), whole, "{limit} a page");
    }
    for states in [
        &[TaskState::Blocked][..],
        &[TaskState::Queued],
        &[TaskState::Cancelled],
        &[TaskState::Completed],
        &[TaskState::Failed, TaskState::Assigned],
        &[TaskState::Failed, TaskState::Cancelled],
    ] {
        let expected: Vec<_> = whole.iter().filter(|task| states.contains(&task.state())).cloned().collect();
        assert_eq!(list(mesh, number, 2, states, "").await.unwrap(), expected, "{states:?}");
    }
    whole
}

fn chain() -> Vec<mesh_proto::v1::TaskSpec> {
    vec![
        array("fetch", 6),
        needing(array("resize", 6), &[("fetch", true)]),
        needing(array("check", 6), &[("resize", true)]),
        needing(task("sheet"), &[("check", false)]),
        needing(array("frames", 4), &[("sheet", false)]),
        task("alone"),
    ]
}

async fn end_open(mesh: &Mesh, wants: impl Fn(u32, u32) -> Option<i32>) {
    for open in mesh.open().await {
        if let Some(status) = wants(open.1.task.task, open.1.task.index) {
            mesh.end(open, exited(status)).await;
        }
    }
}

#[tokio::test]
async fn a_listing_says_what_the_counts_say_at_every_step() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 4).await;
    let number = mesh.submit(keep_going(chain())).await;
    agrees(&mesh, number).await;
    // One element of the first fails, and takes along what needs it, element by element.
    end_open(&mesh, |task, index| (task == 0 && index < 3).then_some(i32::from(index == 1))).await;
    let whole = agrees(&mesh, number).await;
    let state = |at: (u32, u32)| whole.iter().find(|task| place(task) == at).unwrap().state();
    assert_eq!(state((0, 1)), TaskState::Failed);
    assert_eq!((state((1, 1)), state((2, 1))), (TaskState::Cancelled, TaskState::Cancelled));
    assert_eq!(state((3, 0)), TaskState::Cancelled, "what needs all of an array that lost an element");
    assert_eq!(state((4, 0)), TaskState::Cancelled);
    assert_eq!(state((2, 4)), TaskState::Blocked);
    for _ in 0..8 {
        end_open(&mesh, |_, _| Some(0)).await;
        agrees(&mesh, number).await;
    }
    assert!(mesh.over(number).await.is_terminal());
    agrees(&mesh, number).await;
}

#[tokio::test]
async fn a_job_that_stops_at_its_first_failure_lists_the_rest_as_cancelled() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 2).await;
    let number = mesh.submit(job(chain())).await;
    let first = mesh.open().await[0];
    mesh.end(first, exited(1)).await;
    agrees(&mesh, number).await;
    end_open(&mesh, |_, _| Some(1)).await;
    mesh.over(number).await;
    let whole = agrees(&mesh, number).await;
    assert_eq!(whole.iter().filter(|task| task.state() == TaskState::Blocked).count(), 0);
    let failed = &whole[0];
    assert_eq!((failed.attempt, failed.exit_code, failed.node.as_str()), (1, Some(1), "amber"));
    assert_eq!((failed.item.as_str(), failed.array), ("0", true));
}

#[tokio::test]
async fn one_task_or_one_element_can_be_asked_for() {
    let mesh = Mesh::new().await;
    let number = mesh.submit(job(chain())).await;
    let resize = list(&mesh, number, 4, &[], "resize").await.unwrap();
    assert_eq!(resize.iter().map(place).collect::<Vec<_>>(), (0..6).map(|at| (1, at)).collect::<Vec<_>>());
    let ask = async |task: &str, index: Option<u32>, after: &str| {
        let request = ListTasksRequest {
            job: number.to_string(),
            page: Some(Page { limit: 10, after: after.to_owned() }),
            states: Vec::new(),
            task: task.to_owned(),
            index,
        };
        mesh.jobs().list_tasks(request).await.map(|answer| answer.into_inner().tasks)
    };
    let one = ask("resize", Some(5), "").await.unwrap();
    assert_eq!(one.iter().map(place).collect::<Vec<_>>(), [(1, 5)]);
    for (task, index, after, expected) in [
        ("none", None, "", (Code::NotFound, "the job has no task \"none\"")),
        ("resize", Some(6), "", (Code::NotFound, "task \"resize\" has no element 6; it has 6")),
        ("", Some(0), "", (Code::Invalid, "an index needs the name of its task")),
        ("", None, "x", (Code::Invalid, "`after` is no cursor of this list")),
        ("", None, "1", (Code::Invalid, "`after` is no cursor of this list")),
    ] {
        assert_eq!(code(&ask(task, index, after).await.unwrap_err()), expected);
    }
    assert!(ask("", None, "4294967295.4294967295").await.unwrap().is_empty());
    assert_eq!(ask("", None, "4.4294967295").await.unwrap().iter().map(place).collect::<Vec<_>>(), [(5, 0)]);
}

#[tokio::test]
async fn a_net_of_needs_costs_no_more_than_its_size() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 2).await;
    // Thirty layers of two, each needing both of the layer before: 2^30 ways through.
    let mut tasks = Vec::new();
    for layer in 0..30 {
        for side in ["a", "b"] {
            let one = array(&format!("{side}{layer}"), 3);
            let (a, b) = (format!("a{}", layer - 1), format!("b{}", layer - 1));
            tasks.push(if layer == 0 { one } else { needing(one, &[(&a, true), (&b, true)]) });
        }
    }
    let spec: JobSpec = keep_going(tasks);
    let number = mesh.submit(spec).await;
    // Something failed and something completed, so that nothing is told by the counts alone.
    end_open(&mesh, |_, index| Some(i32::from(index == 1))).await;
    let whole = agrees(&mesh, number).await;
    let last = whole.iter().filter(|task| task.name == "b29").map(TaskInfo::state).collect::<Vec<_>>();
    assert_eq!(last, [TaskState::Blocked, TaskState::Cancelled, TaskState::Blocked]);
}

#[tokio::test]
async fn a_large_array_without_rows_is_listed_by_pages() {
    let mesh = Mesh::new().await;
    let number = mesh.submit(job(vec![array("many", 100_000)])).await;
    let whole = list(&mesh, number, 1000, &[], "").await.unwrap();
    assert_eq!(whole.len(), 100_000);
    assert!(whole.iter().all(|task| task.state() == TaskState::Queued && task.attempt == 0));
    assert!(list(&mesh, number, 1000, &[TaskState::Failed], "").await.unwrap().is_empty());
    assert!(list(&mesh, number, 1000, &[TaskState::Cancelled], "").await.unwrap().is_empty());
}
