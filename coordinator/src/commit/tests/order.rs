//! What is said when, and what goes into which commit.

use std::task::Poll;

use futures_util::{future::join_all, poll};
use mesh_proto::ids::SessionId;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{Room, SOON, Stall, fixture, jobs, leader, one, options, soon};
use crate::{
    commit::Phase,
    engine::{effect::Reply, event::Event},
    spawn::spawn_owned,
};

#[tokio::test]
async fn nothing_is_said_before_the_commit_that_holds_it() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    room.node(&pool, "amber").await;
    let mut stall = Stall::of_jobs(&database).await;
    let mut submit = Box::pin(room.submit(one()));
    assert!(poll!(&mut submit).is_pending());
    stall.felt().await;
    // A question without rows of its own waits as well: its answer rests on what is not committed.
    let mut nodes = Box::pin(room.core.ask(|reply| Event::NodesAsked { reply }));
    assert!(poll!(&mut nodes).is_pending());
    let ticks = *room.heard.totals.borrow();
    soon(room.heard.totals.subscribe().wait_for(|now| *now > ticks + 1)).await.unwrap();
    assert!(poll!(&mut submit).is_pending(), "acknowledged before it was durable");
    assert!(poll!(&mut nodes).is_pending(), "told of what was not durable");
    assert_eq!(room.heard.dispatched(), 0, "an assignment went out before it was durable");
    assert!(room.heard.accepted.lock().unwrap().is_empty(), "a job was learnt before it was durable");
    stall.over().await;
    assert!(matches!(soon(submit).await.unwrap(), Reply::Submitted { existed: false, .. }));
    assert!(matches!(soon(nodes).await.unwrap(), Reply::Nodes(_)));
    assert_eq!(room.heard.dispatched(), 1);
    assert_eq!(room.heard.accepted.lock().unwrap().len(), 1);
    assert_eq!(jobs(&pool).await, 1);
}

#[tokio::test]
async fn while_a_commit_runs_the_next_batch_gathers() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    room.submit(one()).await.unwrap();
    let (_, before, _) = leader(&pool).await;
    let mut stall = Stall::of_jobs(&database).await;
    let mut first = Box::pin(room.submit(one()));
    assert!(poll!(&mut first).is_pending());
    stall.felt().await;
    let mut others = join_all((0..100).map(|_| room.submit(one())));
    assert!(matches!(poll!(&mut others), Poll::Pending));
    stall.over().await;
    soon(first).await.unwrap();
    let answers = soon(others).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let (_, after, _) = leader(&pool).await;
    assert_eq!(after - before, 2, "a hundred submits, one commit after the one that was under way");
    assert_eq!(jobs(&pool).await, 102);
    let text = room.metrics.encode().unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("mesh_commit_batch_size_sum") && line.ends_with(" 102")),
        "{text}"
    );
}

#[tokio::test]
async fn waiting_for_a_commit_costs_no_processor_time() {
    let (database, _) = fixture().await;
    // Overdue beats must not keep the loop awake.
    let beating = super::Options { beat: std::time::Duration::from_millis(20), ..options() };
    let room = Room::leading(&database, beating).await;
    let mut stall = Stall::of_the_leader(&database).await;
    stall.felt().await;
    let used = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec * 1000 + time.tv_nsec / 1_000_000
    };
    let (before, started) = (used(), Instant::now());
    let ticks = *room.heard.totals.borrow();
    soon(room.heard.totals.subscribe().wait_for(|now| *now > ticks + 2)).await.unwrap();
    let (spent, passed) = (used() - before, started.elapsed().as_millis());
    assert!(u128::from(spent.cast_unsigned()) * 3 < passed, "{spent} of {passed} ms");
    stall.over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_constant_load_time_goes_on_and_a_shutdown_is_heard() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let node = room.node(&pool, "amber").await.id;
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let core = room.core.clone();
            spawn_owned("sender", async move {
                let session = SessionId::generate();
                let beat = Event::Heartbeat { reply: None, node, session, load_permille: 1, rtt_us: None };
                while core.tell(beat.clone()).await.is_ok() {}
            })
        })
        .collect();
    let ticks = *room.heard.totals.borrow();
    soon(room.heard.totals.subscribe().wait_for(|now| *now > ticks + 3)).await.unwrap();
    room.stop.cancel();
    tokio::time::timeout(SOON, room.running).await.unwrap().unwrap().unwrap();
    assert_eq!(leader(&pool).await.2, None, "the lead was not laid down");
    drop(senders);
}

#[tokio::test]
async fn a_stream_waits_out_a_recovery_while_other_calls_are_refused() {
    let (database, pool) = fixture().await;
    let node = crate::testing::joined(&pool, "amber").await.id;
    let mut stall = Stall::of_the_leader(&database).await;
    let room = Room::start(&database.options, options());
    stall.felt().await;
    assert!(room.submit(one()).await.is_err(), "a submit is refused at once");
    let session = SessionId::generate();
    let mut told = Box::pin(room.core.tell_in_time(Event::SessionClosed { node, session }));
    assert!(poll!(&mut told).is_pending());
    stall.over().await;
    soon(told).await.unwrap();
    room.reaches(Phase::Leading).await;
}
