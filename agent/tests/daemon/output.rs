//! Output on its way: live, bounded, and never before a result.

use mesh_proto::v1::Cause;

use crate::fake::Fake;
use crate::process::{Agent, key, script};

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_output_while_the_task_runs() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &[]).await;
    fake.assign(script(0, "echo first; sleep 300")).await;
    let have = fake.wait("live output", |state| state.outputs.get(&key(0)).cloned()).await;
    assert!(have.ends_with(b"first\n"));
    fake.cancel(key(0)).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Cancelled);
    assert!(ended.output.is_empty() && ended.output_length > 0, "what was streamed is not said twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn unacknowledged_output_is_bounded_and_holds_up_no_result() {
    let fake = Fake::start();
    {
        let mut state = fake.state();
        state.ack_output = false;
        state.window = 300_000;
    }
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    fake.assign(script(0, "head -c 5000000 /dev/zero")).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Exit, "the result came though no byte was acknowledged");
    fake.assign(script(1, "echo quick")).await;
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit);
    fake.wait("a full window", |state| (state.outputs.get(&key(0))?.len() == 300_000).then_some(())).await;
    assert!(!fake.state().overrun, "more than the window was in flight");
    fake.state().ack_output = true;
    fake.hang_up();
    fake.wait("all of it", |state| {
        (state.outputs[&key(0)].len() as u64 == ended.output_length).then_some(())
    })
    .await;
    agent.removed(key(0)).await;
}
