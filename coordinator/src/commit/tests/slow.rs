//! A database that takes its time: nothing is lost, and nobody loses the lead without need.

use std::time::Duration;

use tokio::time::Instant;

use super::{Options, Room, fixture, jobs, leader, one, options, proxy::Proxy, soon, standby::shared};
use crate::{
    commit::{CoreError, Phase},
    engine::{effect::Reply, event::NewJob},
    store::Store,
};

/// Beats that a request of [`SLOW`] is far too slow for.
fn beating(name: &str) -> Options {
    Options { takeover: Duration::from_millis(400), ..shared(name) }
}

/// More than half of the takeover time, so that looks at the leader's row count for nothing.
const SLOW: Duration = Duration::from_millis(300);

fn keyed(key: &str) -> NewJob {
    NewJob { idempotency_key: Some(key.to_owned()), ..one() }
}

#[tokio::test]
async fn requests_that_take_seconds_cost_no_epoch_and_no_job() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let usual = Options { beat: Duration::from_secs(1), takeover: Duration::from_secs(3), ..options() };
    let room = Room::start(&proxy.options, usual);
    room.reaches(Phase::Leading).await;
    let (epoch, ..) = leader(&pool).await;
    proxy.delay(Duration::from_millis(2_200));
    // Those that are asked together share a commit.
    let (first, second) = (keyed("first"), keyed("second"));
    let (first, second) = tokio::join!(soon(room.submit(first)), soon(room.submit(second)));
    assert!(matches!(first, Ok(Reply::Submitted { existed: false, .. })), "{first:?}");
    assert!(matches!(second, Ok(Reply::Submitted { existed: false, .. })), "{second:?}");
    proxy.delay(Duration::ZERO);
    assert!(matches!(room.submit(keyed("first")).await, Ok(Reply::Submitted { existed: true, .. })));
    assert_eq!((leader(&pool).await.0, jobs(&pool).await), (epoch, 2));
    assert_eq!(*room.heard.again.borrow(), 0, "memory was thrown away");
}

#[tokio::test]
async fn a_transaction_outlives_round_trips_of_seconds() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let proxy = Proxy::before(&database.options);
    let store = Store::new(proxy.options.clone(), 1);
    let epoch = room.core.standing().epoch();
    // Has its statements prepared.
    store.halt(epoch, "a first reason").await.unwrap();
    proxy.delay(Duration::from_millis(2_200));
    let started = Instant::now();
    store.halt(epoch, "a second reason").await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(8), "it was not slow: {:?}", started.elapsed());
    let halts: i64 = sqlx::query_scalar("SELECT count(*) FROM audit WHERE action = 'database.halt'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(halts, 2);
}

#[tokio::test]
async fn memory_is_read_anew_while_the_database_is_slow() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let room = Room::start(&proxy.options, beating("one"));
    room.reaches(Phase::Leading).await;
    room.submit(keyed("before")).await.unwrap();
    proxy.delay(SLOW);
    proxy.lose_the_next_with("lost");
    assert!(matches!(soon(room.submit(keyed("lost"))).await, Err(CoreError::Recovering)));
    soon(room.heard.again.subscribe().wait_for(|times| *times == 1)).await.unwrap();
    room.reaches(Phase::Leading).await;
    let again = soon(room.submit(keyed("before"))).await;
    assert!(matches!(again, Ok(Reply::Submitted { existed: true, .. })), "{again:?}");
    assert_eq!((leader(&pool).await.0, jobs(&pool).await), (2, 1), "one loss, one new epoch");
}

#[tokio::test]
async fn nobody_takes_the_lead_of_one_whom_the_same_slow_database_keeps_waiting() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let first = Room::start(&proxy.options, beating("one"));
    first.reaches(Phase::Leading).await;
    let second = Room::start(&proxy.options, beating("two"));
    second.reaches(Phase::Standby).await;
    proxy.delay(SLOW);
    for number in 0..4 {
        soon(first.submit(keyed(&number.to_string()))).await.unwrap();
    }
    proxy.delay(Duration::ZERO);
    soon(first.submit(keyed("after"))).await.unwrap();
    assert_eq!((leader(&pool).await.0, jobs(&pool).await), (1, 5), "the lead changed hands");
    assert_eq!(*second.core.phases().borrow(), Phase::Standby);
}

#[tokio::test]
async fn a_leader_too_slow_to_beat_is_followed_and_what_it_acknowledged_is_there() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let first = Room::start(&proxy.options, beating("one"));
    first.reaches(Phase::Leading).await;
    let second = Room::start(&database.options, beating("two"));
    second.reaches(Phase::Standby).await;
    soon(first.submit(keyed("before"))).await.unwrap();
    proxy.delay(beating("").takeover * 3);
    let late = soon(first.submit(keyed("late"))).await;
    second.reaches(Phase::Leading).await;
    first.reaches(Phase::Standby).await;
    let known = soon(second.submit(keyed("before"))).await;
    assert!(matches!(known, Ok(Reply::Submitted { existed: true, .. })), "{known:?}");
    let said = late.is_ok();
    let Ok(Reply::Submitted { existed, .. }) = soon(second.submit(keyed("late"))).await else { panic!() };
    assert!(existed || !said, "what was acknowledged is not there");
    assert_eq!(jobs(&pool).await, 2);
}
