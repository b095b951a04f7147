//! Who leads.

use std::sync::Arc;

use mesh_proto::ids::CoordinatorId;

use super::Kit;
use crate::store::{Store, StoreError, leader};

#[tokio::test]
async fn of_two_who_saw_the_same_row_one_takes_the_lead() {
    let kit = Kit::new().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let take = async || {
        let mut connection = kit.store.connection().await.unwrap();
        let seen = leader::read(&mut connection).await.unwrap();
        barrier.wait().await;
        leader::take(&mut connection, &seen, CoordinatorId::generate()).await
    };
    let (one, two) = tokio::join!(take(), take());
    let (winner, loser) = match (one, two) {
        (Ok(row), Err(error)) | (Err(error), Ok(row)) => (row, error),
        both => panic!("not one winner: {both:?}"),
    };
    assert!(matches!(loser, StoreError::Fenced), "{loser}");
    assert_eq!(winner.epoch, kit.epoch + 1);
}

#[tokio::test]
async fn a_lead_that_moved_since_it_was_seen_is_not_taken() {
    let mut kit = Kit::new().await;
    let seen = leader::read(&mut kit.connection).await.unwrap();
    let seq = leader::fence(&mut kit.connection, kit.epoch).await.unwrap();
    assert_eq!(seq, seen.seq + 1);
    let taken = leader::take(&mut kit.connection, &seen, CoordinatorId::generate()).await;
    assert!(matches!(taken, Err(StoreError::Fenced)), "{taken:?}");
    assert!(leader::fence(&mut kit.connection, kit.epoch).await.is_ok(), "the leader leads on");
}

#[tokio::test]
async fn laying_down_leaves_no_holder_and_only_the_own_lead_can_be_laid_down() {
    let mut kit = Kit::new().await;
    leader::lay_down(&mut kit.connection, kit.epoch - 1).await.unwrap();
    assert!(
        leader::read(&mut kit.connection).await.unwrap().holder.is_some(),
        "an old leader lays down nothing"
    );
    let before = leader::read(&mut kit.connection).await.unwrap();
    leader::lay_down(&mut kit.connection, kit.epoch).await.unwrap();
    let after = leader::read(&mut kit.connection).await.unwrap();
    assert_eq!((after.holder, after.epoch, after.seq), (None, before.epoch, before.seq + 1));
}

#[tokio::test]
async fn another_coordinators_role_that_is_out_of_reach_is_named() {
    let database = crate::postgres::testing::database().await;
    let store = Store::new(database.options.clone(), 1);
    let same = Store::new(database.options.clone(), 1);
    assert!(same.answers().await);
    assert_eq!(store.role_out_of_reach().await.unwrap(), None, "its own role's connections it may end");
    let other = Store::new(database.options.clone().username("postgres"), 1);
    assert!(other.answers().await);
    assert_eq!(store.role_out_of_reach().await.unwrap().as_deref(), Some("postgres"));
    assert_eq!(other.role_out_of_reach().await.unwrap(), None, "a superuser may end all");
}
