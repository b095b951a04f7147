//! The schema at the start. Only the leader migrates: a newer program that finds an older one
//! leading waits until the lead is to be had.

use std::time::Duration;

use mesh_proto::ids::CoordinatorId;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    commit::{Pulse, look_every},
    store::{Store, StoreError, clock::boot_ms, leader},
};

/// Brings the schema up to date, once nobody else leads.
pub(super) async fn prepare(store: &Store, id: CoordinatorId, takeover: Duration) -> Result<(), StoreError> {
    let limit = u64::try_from(takeover.as_millis()).unwrap_or(u64::MAX);
    let mut pulse = Pulse::default();
    let mut told = false;
    while store.is_behind().await? {
        let mut connection = store.connection().await?;
        // A new database has no leader's row.
        let Ok(row) = leader::read(&mut connection).await else { return store.migrate().await };
        let still = pulse.look(&row, boot_ms(), limit / 2);
        if row.holder.is_none_or(|holder| holder == id) || still.is_some_and(|still| still >= limit) {
            info!("bringing the schema up to date");
            return store.migrate().await;
        }
        if !std::mem::replace(&mut told, true) {
            warn!("an older coordinator leads; waiting for the lead to bring the schema up to date");
        }
        sleep(look_every(takeover)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use sqlx::PgPool;
    use tokio::time::Instant;

    use super::*;
    use crate::postgres::testing::database;

    const TAKEOVER: Duration = Duration::from_millis(600);

    /// As an older program left it, while that one leads.
    async fn older(pool: &PgPool) {
        for sql in [
            "DELETE FROM _sqlx_migrations WHERE version = 7",
            "ALTER TABLE mesh DROP COLUMN silence_ms",
            "UPDATE leader SET epoch = 1, seq = 1, holder = gen_random_uuid()",
        ] {
            sqlx::query(sql).execute(pool).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_newer_coordinator_migrates_only_once_the_older_leader_is_gone() {
        let database = database().await;
        let pool = database.pool(2).await;
        older(&pool).await;
        let store = Store::new(database.options.clone(), 2);
        let mut prepared = pin!(prepare(&store, CoordinatorId::generate(), TAKEOVER));
        let leads = async {
            let started = Instant::now();
            while started.elapsed() < TAKEOVER * 3 {
                sqlx::query("UPDATE leader SET seq = seq + 1").execute(&pool).await.unwrap();
                assert!(store.is_behind().await.unwrap(), "the schema changed under the older leader");
            }
        };
        tokio::select! {
            ended = &mut prepared => panic!("it did not wait: {ended:?}"),
            () = leads => {}
        }
        let gone = Instant::now();
        prepared.await.unwrap();
        // A look may have fallen behind the last beat.
        assert!(gone.elapsed() + look_every(TAKEOVER) * 2 >= TAKEOVER, "{:?}", gone.elapsed());
        assert!(!store.is_behind().await.unwrap());
    }

    #[tokio::test]
    async fn a_lead_that_was_laid_down_is_not_waited_for() {
        let database = database().await;
        let pool = database.pool(1).await;
        older(&pool).await;
        sqlx::query("UPDATE leader SET holder = NULL").execute(&pool).await.unwrap();
        let store = Store::new(database.options.clone(), 2);
        prepare(&store, CoordinatorId::generate(), Duration::from_hours(1)).await.unwrap();
        assert!(!store.is_behind().await.unwrap());
    }
}
