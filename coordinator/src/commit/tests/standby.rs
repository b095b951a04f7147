//! A second coordinator on the same database: it waits, takes over, and the first gives way.

use std::{collections::BTreeMap, time::Duration};

use mesh_proto::{
    code::{Code, LEADER_HEADER},
    ids::CoordinatorId,
};
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use tonic::Status;

use super::{Options, Room, fixture, jobs, leader, one, options, soon};
use crate::{
    commit::{CoreError, Phase},
    store::coordinators::Addresses,
};

/// Of a coordinator that can stand by.
pub(super) fn shared(name: &str) -> Options {
    let beat = Duration::from_millis(50);
    Options {
        id: CoordinatorId::generate(),
        addresses: Addresses { members: vec![format!("{name}:7443")], joining: vec![format!("{name}:7444")] },
        alone: false,
        beat,
        takeover: beat * 8,
        ..options()
    }
}

#[tokio::test]
async fn a_stand_by_waits_and_tells_who_leads() {
    let (database, pool) = fixture().await;
    let first = Room::leading(&database, shared("one")).await;
    let second = Room::start(&database.options, shared("two"));
    second.reaches(Phase::Standby).await;
    let error = second.submit(one()).await.unwrap_err();
    assert!(matches!(error, CoreError::Standby(_)), "{error}");
    let status = Status::from(error);
    assert_eq!(Code::of(&status), Code::Unavailable);
    assert_eq!(status.metadata().get(LEADER_HEADER).unwrap(), "one:7443");
    assert!(status.message().contains("one:7443 leads"), "{}", status.message());
    assert!(second.core.readable().is_err(), "a stand-by has no lease");
    first.submit(one()).await.unwrap();
    assert_eq!(leader(&pool).await.0, 1, "the stand-by took what another holds");
}

#[tokio::test]
async fn a_stand_by_takes_over_from_a_dead_leader_and_not_before_its_lease_is_over() {
    let (database, pool) = fixture().await;
    let first = Room::leading(&database, shared("one")).await;
    first.submit(one()).await.unwrap();
    let second = Room::start(&database.options, shared("two"));
    second.reaches(Phase::Standby).await;
    first.running.abort();
    let _ = first.running.await;
    let died = Instant::now();
    second.reaches(Phase::Leading).await;
    let away = died.elapsed();
    let takeover = shared("").takeover;
    // Its last beat may be as old as a beat and a look.
    assert!(away + Duration::from_millis(120) >= takeover, "it was not dead for long: {away:?}");
    assert!(!first.core.standing().holds_lease(), "two hold the lease");
    second.submit(one()).await.unwrap();
    assert_eq!(jobs(&pool).await, 2);
}

#[tokio::test]
async fn a_lead_that_is_laid_down_goes_to_the_stand_by_at_once() {
    let (database, _) = fixture().await;
    let slow = |name| Options { takeover: Duration::from_mins(1), ..shared(name) };
    let first = Room::leading(&database, slow("one")).await;
    let second = Room::start(&database.options, slow("two"));
    second.reaches(Phase::Standby).await;
    first.stop.cancel();
    first.ended().await.unwrap();
    second.reaches(Phase::Leading).await;
}

#[tokio::test]
async fn a_deposed_leader_stands_by_and_leads_again_in_its_turn() {
    let (database, pool) = fixture().await;
    let first = Room::leading(&database, shared("one")).await;
    let reign = first.core.standing().reign();
    // As if another had taken over while this one was frozen: it did not see it stand still.
    sqlx::query("UPDATE leader SET epoch = epoch + 1, seq = seq + 1, holder = gen_random_uuid()")
        .execute(&pool)
        .await
        .unwrap();
    let error = soon(first.submit(one())).await.unwrap_err();
    assert!(matches!(error, CoreError::Standby(_) | CoreError::Recovering), "{error}");
    first.reaches(Phase::Standby).await;
    soon(reign.cancelled()).await;
    assert_eq!(*first.heard.deposed.borrow(), 1, "its sessions go on");
    assert_eq!(first.heard.dispatched(), 0);
    assert_eq!(jobs(&pool).await, 0, "a deposed leader wrote");
    // The other does not beat: it is dead.
    first.reaches(Phase::Leading).await;
    first.submit(one()).await.unwrap();
    assert_eq!(leader(&pool).await.0, 3);
    assert!(!first.core.standing().reign().is_cancelled());
}

#[tokio::test]
async fn a_leader_that_froze_in_the_middle_of_a_commit_does_not_hold_up_its_successor() {
    let (database, pool) = fixture().await;
    // A connection that has raised seq and then says nothing more, and no timeout ends it: Postgres
    // waits for the rest of a statement.
    let mut frozen = PgConnection::connect_with(&database.options).await.unwrap();
    for sql in [
        "UPDATE leader SET epoch = 1, seq = 1, holder = gen_random_uuid()",
        "SET idle_in_transaction_session_timeout = 0",
        "BEGIN",
        "UPDATE leader SET seq = seq + 1 WHERE epoch = 1",
    ] {
        sqlx::raw_sql(sql).execute(&mut frozen).await.unwrap();
    }
    let started = Instant::now();
    let heir = Room::start(&database.options, shared("heir"));
    heir.reaches(Phase::Leading).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let woken = sqlx::raw_sql("COMMIT").execute(&mut frozen).await;
    assert!(woken.is_err(), "the frozen leader wrote after its successor began");
    assert_eq!(leader(&pool).await.0, 2);
}

#[tokio::test]
async fn a_lead_under_ones_own_id_that_somebody_else_took_is_not_ones_own() {
    let (database, pool) = fixture().await;
    let mine = Options { takeover: Duration::from_mins(1), ..shared("one") };
    let room = Room::leading(&database, mine.clone()).await;
    // A copy of this installation leads.
    sqlx::query("UPDATE leader SET epoch = epoch + 1, seq = seq + 1").execute(&pool).await.unwrap();
    room.reaches(Phase::Standby).await;
    assert_eq!(leader(&pool).await.0, 2, "the two take the lead from each other in turn");
}

#[tokio::test]
async fn of_two_that_start_together_one_writes_in_each_epoch() {
    let (database, pool) = fixture().await;
    // Every change of the leader's row, and who made it.
    sqlx::raw_sql(
        "CREATE TABLE writers (epoch bigint, seq bigint, holder uuid);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN INSERT INTO writers VALUES (NEW.epoch, NEW.seq, NEW.holder); RETURN NULL; END';
         CREATE TRIGGER note AFTER UPDATE ON leader FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let quick = |name| Options {
        takeover: Duration::from_millis(120),
        beat: Duration::from_millis(20),
        ..shared(name)
    };
    for round in 1..=100 {
        let rooms =
            [Room::start(&database.options, quick("one")), Room::start(&database.options, quick("two"))];
        let (mut first, mut second) = (rooms[0].core.phases(), rooms[1].core.phases());
        soon(async {
            tokio::select! {
                led = first.wait_for(|phase| *phase == Phase::Leading) => drop(led.unwrap()),
                led = second.wait_for(|phase| *phase == Phase::Leading) => drop(led.unwrap()),
            }
        })
        .await;
        // Both are asked; only the leader may say yes, and what it says yes to is there.
        let (one_says, two_says) = tokio::join!(rooms[0].submit(one()), rooms[1].submit(one()));
        let yes = i64::from(one_says.is_ok()) + i64::from(two_says.is_ok());
        assert!(jobs(&pool).await >= yes, "round {round}: an acknowledged job is not there");
        for room in rooms {
            // Some lay the lead down, some die holding it.
            if round % 2 == 0 {
                room.stop.cancel();
                room.ended().await.unwrap();
            } else {
                room.running.abort();
            }
        }
    }
    let rows: Vec<(i64, i64, Option<uuid::Uuid>)> =
        sqlx::query_as("SELECT epoch, seq, holder FROM writers ORDER BY seq").fetch_all(&pool).await.unwrap();
    let mut holders = BTreeMap::new();
    for pair in rows.windows(2) {
        assert!(pair[0].1 < pair[1].1, "seq was raised twice to {}", pair[0].1);
        assert!(pair[0].0 <= pair[1].0, "epoch {} came back", pair[1].0);
    }
    for (epoch, _, holder) in rows {
        if let Some(holder) = holder {
            assert_eq!(*holders.entry(epoch).or_insert(holder), holder, "two wrote in epoch {epoch}");
        }
    }
    assert!(holders.len() >= 100, "only {} epochs", holders.len());
}
