//! Tasks, attempts and their outputs, as people read them.

use std::sync::Arc;

use bytes::Bytes;
use mesh_proto::{
    ids::TaskKey,
    v1::{Cause, FileEntry, FileList, TaskState},
};
use prost::Message as _;

use super::Kit;
use crate::{
    engine::event::{AttemptEnd, Event},
    testing::{array, exited, job, keep_going, new_job, task, trying},
};

fn outputs(path: &str) -> Bytes {
    let file = FileEntry { path: path.to_owned(), ..FileEntry::default() };
    FileList { files: vec![file] }.encode_to_vec().into()
}

#[tokio::test]
async fn rows_are_read_from_a_cursor_on_below_a_definition_and_by_state() {
    let mut kit = Kit::new().await;
    kit.node("amber", 4).await;
    let number = kit.submit(new_job(keep_going(vec![array("a", 3), array("b", 3)]))).await;
    for dispatched in kit.dispatched() {
        let index = dispatched.1.task.index;
        kit.end(dispatched, exited(i32::from(index == 1))).await;
    }
    let read = async |from, end, states: &[TaskState], limit| {
        let rows = kit.store.task_rows(number, from, end, states, limit).await.unwrap();
        rows.iter().map(|row| (row.task, row.index)).collect::<Vec<_>>()
    };
    assert_eq!(read((0, 0), 2, &[], 100).await, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    assert_eq!(read((0, 2), 2, &[], 2).await, [(0, 2), (1, 0)]);
    assert_eq!(read((0, 0), 1, &[], 100).await, [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(read((0, 0), 2, &[TaskState::Failed], 100).await, [(0, 1)]);
    assert_eq!(read((2, 0), 9, &[], 100).await, []);
    let row = &kit.store.task_rows(number, (0, 1), 1, &[], 1).await.unwrap()[0];
    assert_eq!((row.cause, row.exit_code, row.signal), (Some(Cause::Exit), Some(1), None));
    assert!(row.started_at.is_some() && row.finished_at.is_some());
}

#[tokio::test]
async fn the_latest_output_is_read_unless_an_attempt_is_named() {
    let mut kit = Kit::new().await;
    kit.node("amber", 1).await;
    kit.submit(new_job(job(vec![trying(task("one"), 2)]))).await;
    let first = kit.dispatched()[0];
    let end = AttemptEnd { output: Bytes::from_static(b"spool"), output_length: 5, ..exited(1) };
    kit.end(first, end).await;
    kit.now = kit.now.plus(60_000);
    kit.step(Event::Tick).await;
    let second = kit.dispatched()[0];
    assert_eq!(second.1.number, 2);
    let key = first.1.task;
    let latest = kit.store.output(key, 0).await.unwrap().unwrap();
    assert_eq!((latest.attempt, latest.ended_for, latest.inline), (second.1, None, None));
    let named = kit.store.output(key, 1).await.unwrap().unwrap();
    assert_eq!(
        (named.ended_for.is_some(), named.length, named.inline.as_deref()),
        (true, 5, Some(&b"spool"[..]))
    );
    assert!(kit.store.output(key, 3).await.unwrap().is_none());
    assert!(kit.store.output(TaskKey { index: 7, ..key }, 0).await.unwrap().is_none());
}

#[tokio::test]
async fn output_files_are_those_of_completed_elements_by_their_last_attempt() {
    let mut kit = Kit::new().await;
    kit.node("amber", 4).await;
    let number = kit.submit(new_job(keep_going(vec![array("resize", 4)]))).await;
    for (node, attempt) in kit.dispatched() {
        let index = attempt.task.index;
        let end = AttemptEnd { outputs: outputs(&format!("{index}.png")), ..exited(i32::from(index == 2)) };
        kit.step(Event::AttemptEnded { node, attempt, end: Arc::new(end) }).await;
    }
    let read = async |first, limit| {
        let rows = kit.store.outputs(number, 0, first, limit).await.unwrap();
        rows.iter().map(|(index, files)| (*index, files.files[0].path.clone())).collect::<Vec<_>>()
    };
    let of = |index: u32| (index, format!("{index}.png"));
    assert_eq!(read(0, 10).await, [of(0), of(1), of(3)], "a failed element gives nothing to others");
    assert_eq!(read(1, 1).await, [of(1)]);
    assert_eq!(read(2, 10).await, [of(3)]);
}
