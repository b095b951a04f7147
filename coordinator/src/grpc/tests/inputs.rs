//! What attempts are given and what they leave: lists of any length, files that cannot be.

use bytes::Bytes;
use mesh_proto::{
    code::Code,
    digest::Digest,
    limits::MAX_MESSAGE,
    v1::{
        ArraySpec, BlobRef, Ended, FileEntry, InventoryState, Item, ItemList, JobState, ListInputsRequest,
        ListOutputsRequest, TaskSpec, TaskState, Verdict, array_spec, attempt_event,
    },
};
use prost::Message as _;

use super::{
    Mesh,
    agent::{Agent, assigned, exit, held, key_of},
    soon,
};
use crate::testing::{array, job, needing, task};

fn file(path: &str) -> FileEntry {
    FileEntry { path: path.to_owned(), digest: Digest::of(b"x").to_vec(), size: 1, ..FileEntry::default() }
}

/// So many files with long names: more than a message holds.
fn long(count: usize) -> Vec<FileEntry> {
    (0..count).map(|at| file(&format!("out/{at:05}-{}", "x".repeat(900)))).collect()
}

async fn inputs(agent: &mut Agent, attempt: mesh_proto::ids::AttemptKey) -> Vec<FileEntry> {
    let request = ListInputsRequest { session_id: agent.session.clone(), attempt: Some(attempt.into()) };
    let mut stream = agent.client.list_inputs(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(page) = soon(stream.message()).await.unwrap() {
        all.extend(page.inputs);
    }
    all
}

#[tokio::test]
async fn outputs_become_inputs_however_many_they_are() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let mut results = agent.results().await;
    let number =
        mesh.submit(job(vec![array("resize", 2), needing(task("sheet"), &[("resize", false)])])).await;
    let files = long(3000);
    for _ in 0..2 {
        let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
        // Six megabytes of names: as an agent would send them if messages were that long.
        let end = Ended { outputs: files.clone(), ..exit(0) };
        let end = std::sync::Arc::new(crate::grpc::convert::end(end).unwrap());
        mesh.end((agent.node, attempt), std::sync::Arc::into_inner(end).unwrap()).await;
        results.ack().await;
    }
    let sheet = assigned(&mut assignments, 1).await.remove(0);
    assert!(sheet.inputs_listed && sheet.inputs.is_empty());
    let seen = inputs(&mut agent, key_of(&sheet)).await;
    assert_eq!(seen.len(), 6000);
    assert_eq!(seen[0].path, format!("inputs/resize/0/{}", files[0].path));
    assert_eq!(seen[5999].path, format!("inputs/resize/1/{}", files[2999].path));
    let request = ListOutputsRequest { job: number.to_string(), task: "resize".to_owned() };
    let mut stream = mesh.jobs().list_outputs(request).await.unwrap().into_inner();
    let mut listed = Vec::new();
    while let Some(page) = soon(stream.message()).await.unwrap() {
        assert!(page.encoded_len() < MAX_MESSAGE / 2, "{} bytes", page.encoded_len());
        listed.extend(
            page.tasks
                .into_iter()
                .flat_map(|task| task.files.into_iter().map(move |file| (task.index, file.path))),
        );
    }
    let expected: Vec<_> =
        (0..2).flat_map(|index| files.iter().map(move |file| (index, file.path.clone()))).collect();
    assert_eq!(listed, expected);
    let request = ListOutputsRequest { job: number.to_string(), task: "none".to_owned() };
    let status = mesh.jobs().list_outputs(request).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
}

#[tokio::test]
async fn large_assignments_are_cut_into_messages() {
    let mesh = Mesh::new().await;
    let mut agent = mesh.joined_agent("amber").await;
    agent.register(8, Vec::new()).await.unwrap();
    let large = |name: &str| TaskSpec {
        command: Vec::new(),
        script: format!("#{}\n", "x".repeat(600_000)),
        ..task(name)
    };
    let number = mesh.submit(job(["a", "b", "c", "d", "e", "f"].map(large).to_vec())).await;
    // All of them are waiting when the stream begins.
    let mut assignments = agent.assignments().await.unwrap();
    let all = assigned(&mut assignments, 6).await;
    assert!(
        all.iter()
            .all(|assignment| assignment.script.len() > 600_000 && key_of(assignment).task.job == number)
    );
}

#[tokio::test]
async fn a_job_whose_items_are_gone_keeps_no_node_out() {
    let mesh = Mesh::new().await;
    let items = (0..3).map(|at| Item { value: at.to_string(), file: None }).collect();
    let digest = mesh.put(&ItemList { items }.encode_to_vec()).await;
    let blob = BlobRef { digest: digest.to_vec(), size: 1, count: 3 };
    let many =
        TaskSpec { array: Some(ArraySpec { kind: Some(array_spec::Kind::ItemsBlob(blob)) }), ..task("many") };
    let mut agent = mesh.joined_agent("amber").await;
    agent.register(1, Vec::new()).await.unwrap();
    mesh.submit(job(vec![many])).await;
    let mut assignments = agent.assignments().await.unwrap();
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    // The list is lost, and the coordinator has started anew since.
    mesh.plans.forget();
    let shard = digest.to_string();
    let removed = remove_blob(mesh.dir.path(), &shard);
    assert!(removed, "no file {shard}");
    let answer = agent.register(1, vec![held(attempt, InventoryState::Running)]).await.unwrap();
    assert_eq!(answer.verdicts[0].verdict(), Verdict::Keep, "it runs on");
}

fn remove_blob(dir: &std::path::Path, name: &str) -> bool {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            remove_blob(&path, name)
        } else if path.to_string_lossy().replace('/', "").contains(name) {
            std::fs::remove_file(path).is_ok()
        } else {
            false
        }
    })
}

#[tokio::test]
async fn an_attempt_that_names_an_impossible_output_fails_with_the_reason() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let mut results = agent.results().await;
    for (bad, expected) in [
        (file("../../etc/cron.d/x"), r#"the output "../../etc/cron.d/x" contains the part "..""#),
        (file("/etc/passwd"), r#"the output "/etc/passwd" is absolute"#),
        (
            FileEntry { path: "a".to_owned(), ..FileEntry::default() },
            r#"the output "a" has no SHA-256 digest"#,
        ),
    ] {
        let number = mesh.submit(job(vec![task("one")])).await;
        let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
        let end = Ended { outputs: vec![file("good"), bad], ..exit(0) };
        results.say(attempt, attempt_event::Event::Ended(end)).await;
        results.ack().await;
        assert_eq!(mesh.over(number).await, JobState::Failed);
        let row = &mesh.store.task_rows(number, (0, 0), 1, &[], 1).await.unwrap()[0];
        assert_eq!((row.state, row.cause), (TaskState::Failed, Some(mesh_proto::v1::Cause::Output)));
        assert!(row.message.starts_with(expected), "{}", row.message);
        assert!(mesh.store.outputs(number, 0, 0, 10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_end_is_bounded_whatever_the_agent_says() {
    let end = crate::grpc::convert::end(Ended {
        message: format!("nul\0 {}", "é".repeat(2000)),
        run_ms: u64::MAX,
        cpu_ms: u64::MAX,
        max_rss_bytes: u64::MAX,
        output_length: u64::MAX,
        output: Bytes::from(vec![0; 9000]),
        ..exit(3)
    })
    .unwrap();
    assert_eq!((end.exit_code, end.signal), (Some(3), None));
    assert!(end.message.starts_with("nul\\0 é") && end.message.len() <= 1024, "{}", end.message.len());
    for number in [end.run_ms, end.cpu_ms, end.max_rss_bytes, end.output_length] {
        assert_eq!(number, i64::MAX as u64);
    }
    assert!(end.output.is_empty(), "what is no short output does not ride in the row");
    let status = crate::grpc::convert::end(Ended::default()).unwrap_err();
    assert_eq!(Code::of(&status), Code::Invalid);
}
