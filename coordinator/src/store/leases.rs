//! How long silent nodes are borne under the leases that may still run. Kept because the next leader
//! may be another process with another `offline_after`.

use sqlx::PgConnection;

use super::{Store, StoreError, leader};

/// A leader says under which time it will give leases, before it gives one. Gives the longest under
/// which any may still run.
pub async fn promise(connection: &mut PgConnection, silence_ms: u64) -> Result<u64, StoreError> {
    let own = i64::try_from(silence_ms).unwrap_or(i64::MAX);
    let longest = sqlx::query_scalar!(
        "UPDATE mesh SET silence_ms = GREATEST(silence_ms, $1) RETURNING silence_ms",
        own,
    )
    .fetch_optional(connection)
    .await?;
    Ok(longest.map_or(silence_ms, |longest| longest as u64))
}

impl Store {
    /// The leases of earlier leaders are over: those of this one alone count.
    pub async fn outlive_leases(&self, epoch: i64, silence_ms: u64) -> Result<(), StoreError> {
        let mut transaction = self.pool().begin().await?;
        // So that none of a later leader is forgotten.
        leader::fence(&mut transaction, epoch).await?;
        let own = i64::try_from(silence_ms).unwrap_or(i64::MAX);
        sqlx::query!("UPDATE mesh SET silence_ms = $1", own).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}
