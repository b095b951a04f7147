//! `on_disconnect: kill`: such tasks live as long as a leader acknowledges their node, and not longer.

use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::attempt_event::Event;
use mesh_proto::v1::{Assignment, Cause, OnDisconnect};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::process::{Agent, key, levels, processes, script, until};

const LEASE_MS: u32 = 1500;

fn leased(index: u32, text: &str) -> Assignment {
    Assignment { on_disconnect: OnDisconnect::Kill.into(), ..script(index, text) }
}

fn mark(number: u32) -> String {
    format!("77{number}{}", std::process::id())
}

async fn both_run(fake: &Fake, marks: [&str; 2]) {
    fake.state().lease_ms = LEASE_MS;
    let mut task = leased(0, &format!("sleep {}", marks[0]));
    // The product's own, where this machine gives it: `basic` is what the jail's tests try as well.
    task.set_sandbox(levels(fake)[0]);
    fake.assign(task).await;
    fake.assign(script(1, &format!("sleep {}", marks[1]))).await;
    fake.started(key(0)).await;
    fake.started(key(1)).await;
}

fn was_started(fake: &Fake, wanted: AttemptKey) -> bool {
    fake.state().events.iter().any(|(key, event)| *key == wanted && matches!(event, Event::Started(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_outlives_many_leases_and_dies_with_the_last_one() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &["--slots", "2"]).await;
    let marks = [mark(0), mark(1)];
    both_run(&fake, [&marks[0], &marks[1]]).await;
    let beats = fake.state().heartbeats.len();
    fake.wait("three leases of heartbeats", |state| (state.heartbeats.len() > beats + 45).then_some(()))
        .await;
    assert!(!processes(&marks[0]).is_empty(), "heartbeats were acknowledged, and it died");
    // As when Postgres is away: the coordinator lives and cannot speak for the mesh.
    fake.state().busy = true;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Lost, "{ended:?}");
    assert!(ended.message.contains("on_disconnect"), "{ended:?}");
    assert_eq!(processes(&marks[0]), [0; 0]);
    assert!(!processes(&marks[1]).is_empty(), "`keep` was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_holds_up_no_lease() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "2"]).await;
    let marks = [mark(2), mark(3)];
    both_run(&fake, [&marks[0], &marks[1]]).await;
    agent.signal(Signal::SIGSTOP);
    until("the end of the lease", || processes(&marks[0]).is_empty()).await;
    assert!(!processes(&marks[1]).is_empty(), "`keep` was asked for");
    agent.kill9().await;
    agent.start(None).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Lost, "{ended:?}");
    assert!(!processes(&marks[1]).is_empty(), "it was taken up again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_lease_starts_nothing_that_needs_one() {
    let fake = Fake::start();
    fake.state().lease_ms = 0;
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    fake.assign(leased(0, "true")).await;
    // What needs none goes its whole way meanwhile, and many heartbeats go by.
    fake.assign(script(1, "true")).await;
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit);
    let beats = fake.state().heartbeats.len();
    fake.wait("heartbeats", |state| (state.heartbeats.len() > beats + 5).then_some(())).await;
    assert!(!was_started(&fake, key(0)), "it ran without a lease");
    // It was not lost by that either: an outage would use up a task's losses at once.
    fake.state().lease_ms = LEASE_MS;
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Exit);
    agent.removed(key(0)).await;
}
