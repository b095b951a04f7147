//! Leases outlive the leader that gave them, and its settings.

use std::{sync::Arc, time::Duration};

use mesh_proto::ids::BootId;
use sqlx::PgPool;
use tokio::time::Instant;

use super::{Options, Room, fixture, one, options, soon};
use crate::{
    engine::{
        effect::Reply,
        event::{Event, Registration},
        types::Settings,
    },
    store::Store,
    testing::{joined, registration},
};

/// A leader that bears silent nodes for so long.
fn bearing(of: &Options, offline_after_ms: u64) -> Options {
    let settings =
        Settings { suspect_after_ms: offline_after_ms / 2, offline_after_ms, ..Settings::default() };
    Options { settings, adoption_grace: Duration::ZERO, ..of.clone() }
}

async fn kept(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT silence_ms FROM mesh").fetch_one(pool).await.unwrap()
}

/// A node that goes on speaking, until it is sent something.
async fn is_sent(room: &Room, registration: &Arc<Registration>) -> Instant {
    let (node, session) = (registration.node, registration.session);
    let heartbeat =
        |reply| Event::Heartbeat { reply: Some(reply), node, session, load_permille: 0, rtt_us: None };
    soon(async {
        loop {
            let heard = room.core.ask(heartbeat).await.unwrap();
            assert!(matches!(heard, Reply::Heard { counts: true }), "{heard:?}");
            if room.heard.dispatches().iter().any(|(to, _)| *to == node) {
                return Instant::now();
            }
        }
    })
    .await
}

async fn register(room: &Room, pool: &PgPool, name: &str) -> Arc<Registration> {
    let record = joined(pool, name).await;
    let registration = Arc::new(registration(&record, BootId::generate(), 4));
    let (node, session) = (registration.node, registration.session);
    room.core
        .ask(|reply| Event::NodeRegistered { reply, registration: Arc::clone(&registration) })
        .await
        .unwrap();
    room.core.tell(Event::SessionOpened { node, session }).await.unwrap();
    registration
}

#[tokio::test]
async fn a_leader_with_less_patience_waits_for_the_leases_of_the_one_before() {
    let (database, pool) = fixture().await;
    Store::new(database.options.clone(), 1).mesh_id().await.unwrap();
    let same = options();
    let patient = Room::leading(&database, bearing(&same, 3_000)).await;
    let amber = register(&patient, &pool, "amber").await;
    patient.submit(one()).await.unwrap();
    let attempt = soon(patient.heard.dispatch()).await;
    assert_eq!(patient.heard.dispatches()[0].0, amber.node);
    assert_eq!(kept(&pool).await, 3_000, "it gives leases that nobody knows of");
    patient.running.abort();
    let _ = patient.running.await;

    let began = Instant::now();
    let hasty = Room::leading(&database, bearing(&same, 300)).await;
    let beryl = register(&hasty, &pool, "beryl").await;
    let replaced = is_sent(&hasty, &beryl).await;
    let after = replaced - began;
    assert!(
        after >= Duration::from_secs(3),
        "{attempt} may live on its lease still, replaced after {after:?}"
    );
    soon(async { while kept(&pool).await != 300 {} }).await;
    hasty.running.abort();
    let _ = hasty.running.await;

    // What the patient one gave is over, and waited for no more.
    let began = Instant::now();
    let next = Room::leading(&database, bearing(&same, 300)).await;
    let coral = register(&next, &pool, "coral").await;
    let after = is_sent(&next, &coral).await - began;
    assert!(after < Duration::from_secs(3), "replaced after {after:?}");
}

#[tokio::test]
async fn a_leader_that_is_deposed_forgets_no_lease_of_its_successor() {
    let (database, pool) = fixture().await;
    let store = Store::new(database.options.clone(), 1);
    store.mesh_id().await.unwrap();
    let patient = Room::leading(&database, bearing(&options(), 3_000)).await;
    let epoch = patient.core.standing().epoch();
    assert!(store.outlive_leases(epoch - 1, 300).await.is_err(), "an epoch that is over");
    assert_eq!(kept(&pool).await, 3_000);
    store.outlive_leases(epoch, 300).await.unwrap();
    assert_eq!(kept(&pool).await, 300);
}
