//! A database that went back in time: that it did is kept in it, and so is that an operator
//! accepted it.

use mesh_proto::ids::Incarnation;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError, access::audit, leader};

/// Jobs, and the attempts of every task, are numbered on from the next but one multiple of this.
const NUMBERS: i64 = 10_000;

/// Why nothing is dispatched; none: it is.
pub async fn halted(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT halted FROM mesh").fetch_optional(connection).await?.flatten())
}

impl Store {
    /// Keeps the reason over restarts.
    pub async fn halt(&self, epoch: i64, reason: &str) -> Result<(), StoreError> {
        let mut transaction = self.pool().begin().await?;
        leader::fence(&mut transaction, epoch).await?;
        sqlx::query!("UPDATE mesh SET halted = COALESCE(halted, $1)", reason)
            .execute(&mut *transaction)
            .await?;
        audit(&mut transaction, "coordinator", "database.halt", "mesh", reason).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A new history begins with what the database holds. The lead is laid down with it, so that
    /// a new term begins; `unix_ms` makes the new incarnation greater than every earlier one.
    pub async fn accept_history(&self, epoch: i64, actor: &str, unix_ms: u64) -> Result<(), StoreError> {
        let mut transaction = self.pool().begin().await?;
        leader::fence(&mut transaction, epoch).await?;
        let old = leader::read(&mut transaction).await?.incarnation;
        let new = successor(old, unix_ms);
        sqlx::query!(
            "UPDATE leader SET incarnation = $1, epoch = epoch + 1, seq = seq + 1, holder = NULL WHERE epoch = $2",
            new.0,
            epoch,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "UPDATE mesh SET halted = NULL,
                 first_job = ((SELECT COALESCE(max(number), 0) FROM jobs) / $1 + 2) * $1 + 1,
                 first_attempt = ((SELECT COALESCE(max(attempt), 0) FROM tasks) / $2 + 2) * $2 + 1",
            NUMBERS,
            NUMBERS as i32,
        )
        .execute(&mut *transaction)
        .await?;
        audit(&mut transaction, actor, "database.accept", &new.to_string(), &old.to_string()).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Agents obey the greatest incarnation that they have seen, compared as text. So a new one must
/// be greater than the old one, and than every other that was made from it before.
fn successor(old: Incarnation, unix_ms: u64) -> Incarnation {
    let (high, _) = old.0.as_u64_pair();
    Incarnation(Uuid::from_u64_pair(high.saturating_add(unix_ms), rand::random()))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_later_history_is_greater_as_text() {
        let first = Incarnation(Uuid::new_v4());
        let (one, two) = (successor(first, 1_800_000_000_000), successor(first, 1_800_000_000_001));
        let three = successor(two, 1_800_000_000_002);
        let text = [first, one, two, three].map(|one| one.to_string());
        assert!(text.windows(2).all(|pair| pair[0] < pair[1]), "{text:?}");
    }
}
