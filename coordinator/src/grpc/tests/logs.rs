//! Logs of attempts that ended: inline, streamed, late, missing.

use bytes::Bytes;
use mesh_proto::{
    code::Code,
    frame::{Kind, header},
    ids::{AttemptKey, JobNumber, NodeId},
    v1::{LogChunk, OutputStream, StreamLogsRequest, StreamLogsResponse},
};
use tonic::{Status, Streaming};

use super::{Mesh, code, soon};
use crate::{
    engine::event::AttemptEnd,
    testing::{array, exited, job, task, trying},
};

/// A spool of one line on each stream.
pub fn spool(line: &str) -> Bytes {
    let mut spool = Vec::new();
    for (kind, line) in [(Kind::Stdout, format!("{line}\n")), (Kind::Stderr, format!("{line} fails\n"))] {
        spool.extend(header(kind, 0, 1_800_000_000_000, line.len()));
        spool.extend(line.as_bytes());
    }
    spool.into()
}

pub fn of(job: JobNumber) -> StreamLogsRequest {
    StreamLogsRequest { job: job.to_string(), ..StreamLogsRequest::default() }
}

/// What people see of chunks, in order.
pub fn text(chunks: &[LogChunk]) -> String {
    let line = |chunk: &LogChunk| {
        let stream = match chunk.stream() {
            OutputStream::Stdout => "out",
            OutputStream::Stderr => "err",
            OutputStream::Unspecified => "",
        };
        let data = if chunk.cut {
            "<cut>\n".into()
        } else if chunk.missing {
            "<missing>\n".into()
        } else {
            String::from_utf8_lossy(&chunk.data)
        };
        format!("{}.{}#{} {stream}| {data}", chunk.task, chunk.index, chunk.attempt)
    };
    chunks.iter().map(line).collect()
}

pub async fn rest(mut stream: Streaming<StreamLogsResponse>) -> Vec<LogChunk> {
    let mut chunks = Vec::new();
    while let Some(message) = soon(stream.message()).await.unwrap() {
        chunks.extend(message.chunks);
    }
    chunks
}

impl Mesh {
    pub async fn logs(&self, request: StreamLogsRequest) -> Result<Streaming<StreamLogsResponse>, Status> {
        Ok(self.jobs().stream_logs(request).await?.into_inner())
    }

    /// Puts output where it is streamed to.
    pub async fn stream_output(&self, attempt: AttemptKey, position: u64, data: Bytes) {
        self.output.append(attempt, position, data).await.unwrap().await.unwrap();
    }

    async fn read(&self, request: StreamLogsRequest) -> String {
        text(&rest(self.logs(request).await.unwrap()).await)
    }
}

fn inline(status: i32, spool: &Bytes) -> AttemptEnd {
    AttemptEnd { output: spool.clone(), output_length: spool.len() as u64, ..exited(status) }
}

fn streamed(status: i32, length: usize) -> AttemptEnd {
    AttemptEnd { output_length: length as u64, ..exited(status) }
}

async fn one(mesh: &Mesh) -> (JobNumber, (NodeId, AttemptKey)) {
    mesh.silent_node("amber", 4).await;
    let number = mesh.submit(job(vec![task("one")])).await;
    (number, mesh.open().await[0])
}

#[tokio::test]
async fn short_output_is_read_from_the_result() {
    let mesh = Mesh::new().await;
    let (number, open) = one(&mesh).await;
    mesh.end(open, inline(0, &spool("hello"))).await;
    assert_eq!(mesh.read(of(number)).await, "one.0#1 out| hello\none.0#1 err| hello fails\n");
    let only = StreamLogsRequest { stdout_only: true, ..of(number) };
    assert_eq!(mesh.read(only).await, "one.0#1 out| hello\n");
    let only = StreamLogsRequest { stderr_only: true, ..of(number) };
    assert_eq!(mesh.read(only).await, "one.0#1 err| hello fails\n");
    let follow = StreamLogsRequest { follow: true, ..of(number) };
    assert_eq!(mesh.read(follow).await, "one.0#1 out| hello\none.0#1 err| hello fails\n");
}

#[tokio::test]
async fn streamed_output_is_read_while_it_comes_and_as_a_whole_at_the_end() {
    let mesh = Mesh::new().await;
    let (number, open) = one(&mesh).await;
    assert_eq!(mesh.read(of(number)).await, "", "nothing yet");
    let spool = spool("hello");
    let half = spool.len() / 2;
    mesh.stream_output(open.1, 0, spool.slice(..half)).await;
    assert_eq!(mesh.read(of(number)).await, "one.0#1 out| hello\n", "what there is, in whole frames");
    mesh.end(open, streamed(0, spool.len())).await;
    // The result came before the rest of the output: the reader waits for that.
    let mut stream = mesh.logs(of(number)).await.unwrap();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(text(&first.chunks), "one.0#1 out| hello\n");
    mesh.stream_output(open.1, half as u64, spool.slice(half..)).await;
    assert_eq!(text(&rest(stream).await), "one.0#1 err| hello fails\n");
}

#[tokio::test]
async fn output_that_never_came_is_said_to_be_missing() {
    let mesh = Mesh::new().await;
    let (number, open) = one(&mesh).await;
    let spool = spool("hello");
    mesh.stream_output(open.1, 0, spool.slice(..30)).await;
    mesh.end(open, streamed(0, spool.len())).await;
    // Its node went away with the rest, a while ago.
    sqlx::raw_sql("UPDATE attempts SET ended_at = now() - interval '1 hour'")
        .execute(&mesh.pool)
        .await
        .unwrap();
    for follow in [false, true] {
        let request = StreamLogsRequest { follow, ..of(number) };
        assert_eq!(mesh.read(request).await, "one.0#1 out| hello\none.0#1 | <missing>\n");
    }
}

#[tokio::test]
async fn unreadable_output_is_said_to_be_missing() {
    let mesh = Mesh::new().await;
    let (number, open) = one(&mesh).await;
    let mut spool = spool("hello").to_vec();
    spool.extend([99; 100]);
    mesh.stream_output(open.1, 0, spool.clone().into()).await;
    mesh.end(open, streamed(0, spool.len())).await;
    let expected = "one.0#1 out| hello\none.0#1 err| hello fails\none.0#1 | <missing>\n";
    assert_eq!(mesh.read(of(number)).await, expected);
}

#[tokio::test]
async fn the_latest_attempt_is_read_unless_one_is_named() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 4).await;
    let mut flaky = trying(task("flaky"), 3);
    flaky.retry.as_mut().unwrap().backoff_ms = 0;
    let number = mesh.submit(job(vec![flaky])).await;
    mesh.end(mesh.open().await[0], inline(1, &spool("first"))).await;
    mesh.end(mesh.open().await[0], inline(0, &spool("second"))).await;
    let out = |attempt| StreamLogsRequest { stdout_only: true, attempt, ..of(number) };
    assert_eq!(mesh.read(out(0)).await, "flaky.0#2 out| second\n");
    assert_eq!(mesh.read(out(1)).await, "flaky.0#1 out| first\n");
    let status = mesh.logs(out(3)).await.unwrap().message().await.unwrap_err();
    assert_eq!(code(&status), (Code::NotFound, "nothing that is selected has an attempt 3"));
}

#[tokio::test]
async fn a_task_or_an_element_is_read_alone() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 8).await;
    let number = mesh.submit(job(vec![array("a", 3), task("b")])).await;
    for open in mesh.open().await {
        let key = open.1.task;
        mesh.end(open, inline(0, &spool(&format!("{}-{}", key.task, key.index)))).await;
    }
    let read = async |task: &str, index| {
        let request = StreamLogsRequest { task: task.to_owned(), index, stdout_only: true, ..of(number) };
        mesh.read(request).await
    };
    assert_eq!(read("", None).await, "a.0#1 out| 0-0\na.1#1 out| 0-1\na.2#1 out| 0-2\nb.0#1 out| 1-0\n");
    assert_eq!(read("a", None).await, "a.0#1 out| 0-0\na.1#1 out| 0-1\na.2#1 out| 0-2\n");
    assert_eq!(read("a", Some(1)).await, "a.1#1 out| 0-1\n");
    assert_eq!(read("b", Some(0)).await, "b.0#1 out| 1-0\n");
    for (task, index, expected) in [
        ("c", None, (Code::NotFound, "the job has no task \"c\"")),
        ("a", Some(3), (Code::NotFound, "task \"a\" has no element 3; it has 3")),
        ("", Some(0), (Code::Invalid, "an index needs the name of its task")),
    ] {
        let request = StreamLogsRequest { task: task.to_owned(), index, ..of(number) };
        assert_eq!(code(&mesh.logs(request).await.unwrap_err()), expected);
    }
    let status = mesh.logs(of(JobNumber(9))).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
}

#[tokio::test]
async fn output_over_the_limit_of_the_coordinator_is_said_to_be_cut() {
    let mesh = Mesh::new().await;
    let (number, open) = one(&mesh).await;
    let first = spool("hello");
    mesh.stream_output(open.1, 0, first.clone()).await;
    // The node kept more than the 64 MiB that are taken here; what is too long is turned away.
    let length = (64 << 20) + 1;
    let kept = u64::MAX - first.len() as u64;
    assert!(mesh.output.cuts(kept.min(64 << 20), length) && !mesh.output.cuts(0, length));
    assert!(!mesh.output.cuts(64 << 20, 64 << 20), "all of it is here");
    mesh.end(open, streamed(0, first.len())).await;
    assert!(!mesh.read(of(number)).await.contains("<cut>"));
}
