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
