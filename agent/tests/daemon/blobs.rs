//! Content on its way in and out: interrupted, wrong, wanted twice.

use mesh_proto::digest::Digest;
use mesh_proto::v1::{Cause, FileEntry};

use crate::fake::Fake;
use crate::process::{Agent, key, script};

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 % 251) as u8).collect()
}

fn entry(path: &str, digest: Digest, size: usize) -> FileEntry {
    FileEntry { path: path.into(), digest: digest.to_vec(), size: size as u64, ..FileEntry::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_transfer_goes_on_where_it_was() {
    let fake = Fake::start();
    {
        let mut state = fake.state();
        (state.break_gets, state.break_puts) = (3, 2);
    }
    let _agent = Agent::join(&fake, &[]).await;
    let content = content(1_000_000);
    let mut task = script(0, "cat in in > out");
    task.inputs = vec![entry("in", fake.put_blob(&content), content.len())];
    task.outputs = vec!["out".into()];
    fake.assign(task).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    assert_eq!(fake.state().offsets, [0, 100_000, 200_000, 300_000], "what was here was not fetched again");
    let out = [content.as_slice(), &content].concat();
    assert!(fake.state().blobs[&Digest::of(&out).to_vec()] == out);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_was_named_is_never_used() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &[]).await;
    let named = Digest::of(b"the true content");
    fake.state().blobs.insert(named.to_vec(), "the other content".into());
    let mut task = script(0, "cat in");
    task.inputs = vec![entry("in", named, 16)];
    fake.assign(task).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Staging, "{ended:?}");
    assert!(ended.message.contains("another digest"), "{}", ended.message);
    // Nothing of it stays, and the true content is taken when it is there.
    assert_eq!(std::fs::read_dir(agent.data().join("blobs/part")).unwrap().count(), 0);
    fake.put_blob(b"the true content");
    let mut task = script(1, "cat in");
    task.inputs = vec![entry("in", named, 16)];
    fake.assign(task).await;
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_tasks_want_at_once_is_fetched_once() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &["--slots", "8"]).await;
    let content = content(3_000_000);
    let digest = fake.put_blob(&content);
    for index in 0..8 {
        let mut task = script(index, "cat in > out");
        task.inputs = vec![entry("in", digest, content.len())];
        task.outputs = vec!["out".into()];
        fake.assign(task).await;
    }
    for index in 0..8 {
        let ended = fake.ended(key(index)).await;
        assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    }
    assert_eq!(fake.state().gets, 1);
    assert_eq!(fake.state().puts, 0, "what the coordinator holds is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_input_that_was_damaged_meanwhile_is_fetched_again() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &[]).await;
    let content = content(300_000);
    let digest = fake.put_blob(&content);
    let task = |index| {
        let mut task = script(index, "cat in > out");
        task.inputs = vec![entry("in", digest, content.len())];
        task.outputs = vec!["out".into()];
        task
    };
    fake.assign(task(0)).await;
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Exit);
    let name = digest.to_string();
    let cached = agent.data().join("blobs").join(&name[..2]).join(&name);
    // Nothing, too little and something else, as after a power cut.
    let damaged = [Vec::new(), content[..4096].to_vec(), vec![0; content.len()]];
    for (index, damaged) in (1..).zip(damaged) {
        agent.kill9().await;
        std::fs::write(&cached, damaged).unwrap();
        agent.start(None).await;
        fake.assign(task(index)).await;
        let ended = fake.ended(key(index)).await;
        assert_eq!(ended.cause(), Cause::Exit, "{ended:?}");
        assert_eq!(ended.outputs[0].digest, digest.to_vec(), "the task worked on something else");
        assert_eq!(fake.state().gets, u64::from(index) as usize + 1);
    }
    agent.kill9().await;
    agent.start(None).await;
    fake.assign(task(9)).await;
    assert_eq!(fake.ended(key(9)).await.outputs[0].digest, digest.to_vec());
    assert_eq!(fake.state().gets, 4, "what is whole is not fetched again");
}
