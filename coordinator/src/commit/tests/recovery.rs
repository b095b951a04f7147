//! Commits that fail, or whose outcome nobody knows.

use std::{sync::Arc, time::Duration};

use futures_util::poll;
use mesh_proto::{
    code::Code,
    ids::{AttemptKey, BootId},
};
use tonic::Status;

use super::{Options, Room, Stall, fixture, jobs, leader, one, options, proxy::Proxy, soon};
use crate::{
    commit::{CoreError, Phase},
    engine::{
        effect::{Reply, Verdict},
        event::{AttemptEnd, Event, Held, NewJob, Registration},
    },
    testing::{exited, joined, registration},
};

#[tokio::test]
async fn a_commit_whose_connection_is_killed_is_told_as_unavailable_and_leaves_nothing() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let (epoch, _, _) = leader(&pool).await;
    let mut stall = Stall::of_jobs(&database).await;
    let mut submit = Box::pin(room.submit(one()));
    assert!(poll!(&mut submit).is_pending());
    let pid = stall.felt().await;
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&pool).await.unwrap();
    let error = soon(submit).await.unwrap_err();
    assert!(matches!(error, CoreError::Recovering), "{error}");
    let status = Status::from(error);
    assert_eq!(Code::of(&status), Code::Unavailable);
    assert_eq!(status.metadata().get("mesh-retry-after-ms").unwrap(), "500");
    soon(room.heard.again.subscribe().wait_for(|times| *times == 1)).await.unwrap();
    room.reaches(Phase::Leading).await;
    assert!(leader(&pool).await.0 > epoch);
    stall.over().await;
    assert_eq!(jobs(&pool).await, 0);
    let Reply::Submitted { number, existed, .. } = room.submit(one()).await.unwrap() else { panic!() };
    assert_eq!((number.0, existed), (1, false), "memory went back to what is stored");
}

#[tokio::test]
async fn what_a_commit_brought_whose_answer_was_lost_is_there_afterwards() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let room = Room::start(&proxy.options, options());
    room.reaches(Phase::Leading).await;
    let keyed = || NewJob { idempotency_key: Some("once".to_owned()), ..one() };
    proxy.lose_the_next_answer_to_a_commit();
    let error = soon(room.submit(keyed())).await.unwrap_err();
    assert!(matches!(error, CoreError::Recovering), "{error}");
    assert!(proxy.lost());
    soon(room.heard.again.subscribe().wait_for(|times| *times == 1)).await.unwrap();
    room.reaches(Phase::Leading).await;
    let again = room.submit(keyed()).await.unwrap();
    assert!(matches!(again, Reply::Submitted { existed: true, .. }), "{again:?}");
    assert_eq!(jobs(&pool).await, 1, "the same submit made two jobs");
}

#[tokio::test]
async fn a_commit_that_never_arrived_is_written_once_when_it_is_said_again() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let room = Room::start(&proxy.options, options());
    room.reaches(Phase::Leading).await;
    let keyed = || NewJob { idempotency_key: Some("never-arrives".to_owned()), ..one() };
    room.submit(one()).await.unwrap();
    let (epoch, ..) = leader(&pool).await;
    proxy.lose_the_next_with("never-arrives");
    let error = soon(room.submit(keyed())).await.unwrap_err();
    assert!(matches!(error, CoreError::Recovering), "{error}");
    assert!(proxy.lost());
    soon(room.heard.again.subscribe().wait_for(|times| *times == 1)).await.unwrap();
    room.reaches(Phase::Leading).await;
    assert_eq!(leader(&pool).await.0, epoch + 1, "what may be on its way still must never land");
    assert_eq!(jobs(&pool).await, 1, "it was there before it was said again");
    let Reply::Submitted { number, existed, .. } = room.submit(keyed()).await.unwrap() else { panic!() };
    assert_eq!((number.0, existed), (2, false));
    let again = room.submit(keyed()).await.unwrap();
    assert!(matches!(again, Reply::Submitted { existed: true, .. }), "{again:?}");
    assert_eq!(jobs(&pool).await, 2);
}

#[tokio::test]
async fn an_end_whose_commit_never_arrived_is_collected_and_committed_once() {
    let (database, pool) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let room = Room::start(&proxy.options, options());
    room.reaches(Phase::Leading).await;
    let record = joined(&pool, "amber").await;
    let boot = BootId::generate();
    let register = async |held: Option<AttemptKey>| {
        let inventory = held.into_iter().map(|attempt| (attempt, Held::Ended)).collect();
        let registration = Arc::new(Registration { inventory, ..registration(&record, boot, 4) });
        let session = registration.session;
        let reply = room.core.ask(|reply| Event::NodeRegistered { reply, registration }).await.unwrap();
        room.core.tell(Event::SessionOpened { node: record.id, session }).await.unwrap();
        reply
    };
    register(None).await;
    room.submit(one()).await.unwrap();
    let attempt = soon(room.heard.dispatch()).await;
    let end = Arc::new(AttemptEnd { message: "never-arrives".to_owned(), ..exited(0) });
    let ended = || Event::AttemptEnded { node: record.id, attempt, end: Arc::clone(&end) };
    proxy.lose_the_next_with("never-arrives");
    room.core.tell(ended()).await.unwrap();
    soon(room.heard.again.subscribe().wait_for(|times| *times == 1)).await.unwrap();
    assert!(proxy.lost());
    assert_eq!(room.heard.acks(attempt), 0, "what never arrived was acknowledged");
    let reply = register(Some(attempt)).await;
    assert!(
        matches!(&reply, Reply::Registered { verdicts } if verdicts[..] == [(attempt, Verdict::Collect)])
    );
    // Once more than needed: an agent repeats itself when it is not sure.
    room.core.tell(ended()).await.unwrap();
    room.core.tell(ended()).await.unwrap();
    let stored = async || -> (i64, i64) {
        sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE state = 'ended' AND message = 'never-arrives') FROM attempts",
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    soon(async {
        while room.heard.acks(attempt) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stored().await, (1, 1), "one attempt, one end");
    let state: String = sqlx::query_scalar("SELECT state::text FROM jobs").fetch_one(&pool).await.unwrap();
    assert_eq!(state, "completed");
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_given_up_and_callers_are_refused() {
    let (database, pool) = fixture().await;
    let hasty = Options { patience: Duration::from_secs(1), ..options() };
    let room = Room::leading(&database, hasty).await;
    let mut stall = Stall::of_jobs(&database).await;
    let mut submit = Box::pin(room.submit(one()));
    assert!(poll!(&mut submit).is_pending());
    stall.felt().await;
    assert!(matches!(soon(submit).await, Err(CoreError::Recovering)));
    // Its backend is still there; what it holds is awaited before anything is read.
    stall.over().await;
    soon(room.heard.again.subscribe().wait_for(|times| *times > 0)).await.unwrap();
    room.reaches(Phase::Leading).await;
    let Reply::Submitted { number, .. } = room.submit(one()).await.unwrap() else { panic!() };
    let stored = jobs(&pool).await;
    assert_eq!(u64::try_from(stored).unwrap(), number.0, "memory and database count the same jobs");
}

#[tokio::test]
async fn somebody_elses_epoch_ends_the_loop() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    sqlx::query("UPDATE leader SET epoch = epoch + 1, holder = gen_random_uuid()")
        .execute(&pool)
        .await
        .unwrap();
    let error = soon(room.submit(one())).await.unwrap_err();
    assert!(matches!(error, CoreError::Recovering | CoreError::Ended), "{error}");
    room.reaches(Phase::Ended).await;
    assert!(matches!(room.submit(one()).await, Err(CoreError::Ended)));
    let ended = room.ended().await;
    assert!(matches!(ended, Err(crate::store::StoreError::Fenced)), "{ended:?}");
    assert_eq!(jobs(&pool).await, 0, "a deposed leader wrote");
}

#[tokio::test]
async fn an_idle_leader_notices_by_its_beat_that_it_is_deposed() {
    let (database, pool) = fixture().await;
    let beating = Options { beat: Duration::from_millis(50), ..options() };
    let room = Room::leading(&database, beating).await;
    sqlx::query("UPDATE leader SET epoch = epoch + 1").execute(&pool).await.unwrap();
    let ended = room.ended().await;
    assert!(matches!(ended, Err(crate::store::StoreError::Fenced)), "{ended:?}");
}

#[tokio::test]
async fn a_start_waits_for_the_database() {
    let (database, _) = fixture().await;
    let proxy = Proxy::before(&database.options);
    let nowhere = proxy.options.clone().socket("/nonexistent");
    let room = Room::start(&nowhere, options());
    assert!(matches!(room.submit(one()).await, Err(CoreError::Recovering)));
    room.stop.cancel();
    room.ended().await.unwrap();
}

#[tokio::test]
async fn a_coordinator_that_has_seen_later_commits_halts_by_itself() {
    let (database, pool) = fixture().await;
    sqlx::query("INSERT INTO mesh (id) VALUES (gen_random_uuid())").execute(&pool).await.unwrap();
    let room = Room::leading(&database, options()).await;
    for _ in 0..5 {
        room.submit(one()).await.unwrap();
    }
    let standing = room.core.standing();
    assert_eq!(standing.halted(), None);
    let before = standing.point().seq;
    // As if an older copy had taken the place of the database.
    sqlx::query("UPDATE leader SET seq = 1").execute(&pool).await.unwrap();
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .execute(&pool)
    .await
    .unwrap();
    soon(room.submit(one())).await.unwrap_err();
    let mut halts = standing.halts_seen();
    let reason = soon(halts.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert!(reason.contains(&format!("has seen commit {before}")), "{reason}");
    room.reaches(Phase::Leading).await;
    let kept: Option<String> = sqlx::query_scalar("SELECT halted FROM mesh").fetch_one(&pool).await.unwrap();
    assert_eq!(kept, Some(reason), "it holds over restarts");
}
