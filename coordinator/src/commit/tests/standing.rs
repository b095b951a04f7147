//! Leads and leases: beats, laying down, taking over.

use std::time::Duration;

use mesh_proto::ids::CoordinatorId;
use tokio::time::Instant;

use super::{Options, Room, Stall, fixture, leader, one, options, proxy::Proxy, soon};
use crate::{commit::Phase, store::StoreError};

fn beating(beat_ms: u64) -> Options {
    let beat = Duration::from_millis(beat_ms);
    Options { beat, takeover: beat * 8, ..options() }
}

#[tokio::test]
async fn an_idle_leader_asks_the_database_nothing_but_its_beat() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let room = Room::start(&proxy.options, beating(100));
    room.reaches(Phase::Leading).await;
    let seq = async || leader(&pool).await.1;
    // The first beats may still have statements prepared.
    let warm = seq().await + 2;
    soon(async { while seq().await < warm {} }).await;
    let (started, first, sent) = (Instant::now(), seq().await, proxy.sent());
    soon(async { while seq().await < first + 8 {} }).await;
    let (beats, sent) = (seq().await - first, proxy.sent() - sent);
    let sent = i64::try_from(sent).unwrap();
    assert!((beats - 1..=beats + 1).contains(&sent), "{sent} requests for {beats} beats");
    let each = started.elapsed() / u32::try_from(beats).unwrap();
    assert!(each >= Duration::from_millis(90), "a beat each {each:?}");
}

#[tokio::test]
async fn a_lead_that_was_laid_down_is_taken_at_once_by_anybody() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    room.submit(one()).await.unwrap();
    room.stop.cancel();
    room.ended().await.unwrap();
    assert_eq!(leader(&pool).await.2, None);
    let started = Instant::now();
    let next = Room::leading(&database, options()).await;
    assert!(started.elapsed() < options().takeover / 2, "it waited for somebody who had gone");
    next.submit(one()).await.unwrap();
    assert_eq!(leader(&pool).await.0, 2);
}

#[tokio::test]
async fn after_a_crash_the_same_coordinator_leads_again_at_once() {
    let (database, _) = fixture().await;
    let mine = options();
    let room = Room::leading(&database, mine.clone()).await;
    room.running.abort();
    let started = Instant::now();
    Room::leading(&database, mine.clone()).await;
    assert!(started.elapsed() < mine.takeover / 2);
}

#[tokio::test]
async fn another_coordinator_takes_over_from_a_dead_one_after_the_takeover_time_only() {
    let (database, _) = fixture().await;
    let room = Room::leading(&database, beating(50)).await;
    room.running.abort();
    let _ = room.running.await;
    let started = Instant::now();
    let heir = Options { id: CoordinatorId::generate(), ..beating(50) };
    let takeover = heir.takeover;
    Room::leading(&database, heir).await;
    assert!(started.elapsed() >= takeover, "it took the lead of one that might have been alive");
}

#[tokio::test]
async fn a_coordinator_beside_a_living_leader_does_not_lead() {
    let (database, _) = fixture().await;
    let leader = Room::leading(&database, beating(50)).await;
    let second = Room::start(&database.options, beating(50));
    let ended = second.ended().await;
    assert!(matches!(ended, Err(StoreError::Fenced)), "{ended:?}");
    leader.submit(one()).await.unwrap();
}

#[tokio::test]
async fn reads_stop_when_the_lease_runs_out_and_go_on_with_the_next_beat() {
    let (database, _) = fixture().await;
    let room = Room::leading(&database, beating(100)).await;
    room.core.readable().unwrap();
    let mut stall = Stall::of_the_leader(&database).await;
    stall.felt().await;
    soon(async {
        while room.core.readable().is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    room.core.ready().unwrap();
    stall.over().await;
    soon(async {
        while room.core.readable().is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_short_takeover_time_leaves_a_lease_that_outlasts_a_beat() {
    let (database, _) = fixture().await;
    // The least that the configuration allows.
    let tight = Options { takeover: Duration::from_millis(40), ..beating(20) };
    let room = Room::leading(&database, tight).await;
    soon(async {
        while room.core.readable().is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn reading_much_does_not_let_the_lead_look_abandoned() {
    let (database, pool) = fixture().await;
    // What is to be read is held back for longer than the takeover time.
    let stall = Stall::by(&database, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").await;
    let first = Room::start(&database.options, beating(30));
    soon(async { while leader(&pool).await.0 == 0 {} }).await;
    let second = Room::start(&database.options, beating(30));
    let ended = second.ended().await;
    assert!(matches!(ended, Err(StoreError::Fenced)), "{ended:?}");
    stall.over().await;
    first.reaches(Phase::Leading).await;
}
