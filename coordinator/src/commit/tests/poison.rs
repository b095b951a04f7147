//! Rows that the database refuses.

use futures_util::{future::join_all, poll};
use mesh_proto::v1::JobState;

use super::{Room, Stall, fixture, jobs, leader, one, options, poison, soon};
use crate::{
    commit::{CoreError, Phase},
    engine::effect::{Refusal, Reply},
};

#[tokio::test]
async fn a_poisonous_event_is_refused_alone_and_its_batch_mates_go_through() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let (epoch, _, _) = leader(&pool).await;
    let mut stall = Stall::of_jobs(&database).await;
    let mut first = Box::pin(room.submit(one()));
    assert!(poll!(&mut first).is_pending());
    stall.felt().await;
    // Two poisonous ones among twenty-one, in one batch.
    let mut batch = join_all((0..21).map(|at| {
        let bad = at == 5 || at == 13;
        room.submit(if bad { poison() } else { one() })
    }));
    assert!(poll!(&mut batch).is_pending());
    stall.over().await;
    soon(first).await.unwrap();
    let answers = soon(batch).await;
    for (at, answer) in answers.iter().enumerate() {
        match answer {
            Ok(Reply::Submitted { existed: false, .. }) => assert!(at != 5 && at != 13, "{at} went through"),
            Err(CoreError::Refused(Refusal::Poison(_))) => assert!(at == 5 || at == 13, "{at} was refused"),
            other => panic!("{at}: {other:?}"),
        }
    }
    assert_eq!(jobs(&pool).await, 20);
    room.reaches(Phase::Leading).await;
    assert!(leader(&pool).await.0 > epoch, "memory was read anew under a new epoch");
    assert!(*room.heard.again.borrow() > 0, "agents were not asked to register again");
    room.submit(one()).await.unwrap();
}

#[tokio::test]
async fn an_innocent_event_beside_refused_rows_of_the_scheduler_goes_through() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    room.node(&pool, "amber").await;
    // The rows of the first assignment cannot be written; the job's own can.
    sqlx::raw_sql("ALTER TABLE attempts ADD CONSTRAINT none CHECK (number = 0)")
        .execute(&pool)
        .await
        .unwrap();
    let answer = soon(room.submit(one())).await.unwrap();
    assert!(matches!(answer, Reply::Submitted { existed: false, .. }), "{answer:?}");
    let state: String = sqlx::query_scalar("SELECT state::text FROM jobs").fetch_one(&pool).await.unwrap();
    assert_eq!(state.to_uppercase(), JobState::Queued.as_str_name().trim_start_matches("JOB_STATE_"));
}

#[tokio::test]
async fn when_memory_and_database_disagree_the_caller_may_try_again() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let node = room.node(&pool, "amber").await;
    // Behind the engine's back.
    sqlx::query("DELETE FROM nodes").execute(&pool).await.unwrap();
    let answer = soon(room.core.ask(|reply| crate::engine::event::Event::NodeChanged {
        reply,
        node: node.id,
        change: crate::engine::event::NodeChange::Cordon,
        record: None,
    }))
    .await;
    // On memory that was read anew there is no such node.
    assert!(matches!(answer, Err(CoreError::Refused(Refusal::NoSuchNode))), "{answer:?}");
    room.reaches(Phase::Leading).await;
    room.submit(one()).await.unwrap();
}
