//! Content on its way in and out: interrupted, wrong, wanted twice.

use std::time::{Duration, Instant};

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

/// An agent that lets a transfer stand still for three seconds.
async fn impatient(fake: &Fake) -> (tempfile::TempDir, Agent) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, "transfer_stall = \"3s\"\n").unwrap();
    let agent = Agent::join(fake, &["--config", config.to_str().unwrap()]).await;
    (dir, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_stand_still_are_given_up_and_the_slot_serves_on() {
    let fake = Fake::start();
    let (_dir, _agent) = impatient(&fake).await;
    let task = |index, text: &str| {
        let mut task = script(index, text);
        task.outputs = vec!["out".into()];
        task
    };
    // Taken by nobody, and refused each time.
    fake.state().hold_puts = true;
    fake.assign(task(0, "head -c 9000000 /dev/zero > out")).await;
    let held = fake.ended(key(0)).await;
    (fake.state().hold_puts, fake.state().fail_puts) = (false, usize::MAX);
    fake.assign(task(1, "echo refused > out")).await;
    let refused = fake.ended(key(1)).await;
    for (ended, why) in [(held, "it takes nothing more"), (refused, "the blob store failed")] {
        assert_eq!(ended.cause(), Cause::Infra, "{ended:?}");
        let said = "its outputs could not be sent: no progress in 3s with the coordinator there: ";
        assert_eq!(ended.message, format!("{said}{why}"));
    }
    fake.state().fail_puts = 0;
    fake.assign(task(2, "echo taken > out")).await;
    assert_eq!(fake.ended(key(2)).await.cause(), Cause::Exit);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_not_lost_to_a_slow_network_nor_to_a_coordinator_that_is_away() {
    let fake = Fake::start();
    let (_dir, _agent) = impatient(&fake).await;
    // Two dozen pieces, each of which takes a tenth of the bound: some of them wait on the way.
    fake.state().slow_puts = Some(Duration::from_millis(300));
    let mut slow = script(0, "head -c 24000000 /dev/zero > out");
    slow.outputs = vec!["out".into()];
    let began = Instant::now();
    fake.assign(slow).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!((ended.cause(), ended.outputs[0].size), (Cause::Exit, 24_000_000), "{ended:?}");
    assert!(began.elapsed() > Duration::from_secs(6), "it was not slow: {:?}", began.elapsed());
    (fake.state().slow_puts, fake.state().break_puts) = (None, 10);
    // More tries than fit into the bound.
    let mut away = script(1, "echo waited > out");
    away.outputs = vec!["out".into()];
    let began = Instant::now();
    fake.assign(away).await;
    let ended = fake.ended(key(1)).await;
    assert_eq!((ended.cause(), ended.outputs[0].size), (Cause::Exit, 7), "{ended:?}");
    assert!(began.elapsed() > Duration::from_secs(3), "it was not away: {:?}", began.elapsed());
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
