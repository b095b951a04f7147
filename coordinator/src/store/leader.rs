//! The leader's row: who may write. `commit/` opens with what is built on it.

use chrono::{DateTime, Utc};
use mesh_proto::ids::{CoordinatorId, Incarnation};
use sqlx::PgConnection;

use super::{Store, StoreError};

/// The leader's row as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderRow {
    pub incarnation: Incarnation,
    pub epoch: i64,
    pub seq: i64,
    /// None: laid down in good order.
    pub holder: Option<CoordinatorId>,
    /// The database's clock at the reading.
    pub now: DateTime<Utc>,
}

/// Reads who leads.
pub async fn read(connection: &mut PgConnection) -> Result<LeaderRow, StoreError> {
    let row =
        sqlx::query!(r#"SELECT incarnation, epoch, seq, holder, clock_timestamp() AS "now!" FROM leader"#)
            .fetch_one(connection)
            .await?;
    Ok(LeaderRow {
        incarnation: Incarnation(row.incarnation),
        epoch: row.epoch,
        seq: row.seq,
        holder: row.holder.map(CoordinatorId),
        now: row.now,
    })
}

/// Begins a new epoch if the row still stands as `seen`.
pub async fn take(
    connection: &mut PgConnection,
    seen: &LeaderRow,
    holder: CoordinatorId,
) -> Result<LeaderRow, StoreError> {
    let row = sqlx::query!(
        r#"UPDATE leader SET epoch = epoch + 1, seq = seq + 1, holder = $1
           WHERE incarnation = $2 AND epoch = $3 AND seq = $4
           RETURNING incarnation, epoch, seq, holder, clock_timestamp() AS "now!""#,
        holder.0,
        seen.incarnation.0,
        seen.epoch,
        seen.seq,
    )
    .fetch_optional(connection)
    .await?
    .ok_or(StoreError::Fenced)?;
    Ok(LeaderRow {
        incarnation: Incarnation(row.incarnation),
        epoch: row.epoch,
        seq: row.seq,
        holder: row.holder.map(CoordinatorId),
        now: row.now,
    })
}

/// Raises seq under our epoch: the first statement of every commit, and the idle leader's beat.
pub async fn fence(connection: &mut PgConnection, epoch: i64) -> Result<i64, StoreError> {
    sqlx::query_scalar!("UPDATE leader SET seq = seq + 1 WHERE epoch = $1 RETURNING seq", epoch)
        .fetch_optional(connection)
        .await?
        .ok_or(StoreError::Fenced)
}

/// Lays the lead down in good order, so that a successor need not wait.
pub async fn lay_down(connection: &mut PgConnection, epoch: i64) -> Result<(), StoreError> {
    sqlx::query!("UPDATE leader SET holder = NULL, seq = seq + 1 WHERE epoch = $1", epoch)
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends the connections of a leader that froze in the middle of a commit: its lock on the
/// leader's row must not hold up its successor. Only for who has seen that it stands still.
/// `idle_in_transaction_session_timeout` does the same where Postgres waits between two
/// statements; this also reaches one that waits for the rest of a statement.
pub async fn break_lock(connection: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(pg_terminate_backend(pid)) AS "count!" FROM (
               SELECT DISTINCT pid FROM pg_locks
               WHERE locktype = 'relation' AND relation = 'leader'::regclass AND granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()
           ) AS holders"#
    )
    .fetch_one(connection)
    .await?)
}

/// Bounds how long this connection waits for a lock, in milliseconds; 0 for ever.
pub async fn bound_waits(connection: &mut PgConnection, millis: u32) -> Result<(), StoreError> {
    sqlx::query_scalar!("SELECT set_config('lock_timeout', $1, false)", millis.to_string())
        .fetch_one(connection)
        .await?;
    Ok(())
}

impl Store {
    /// The role of another coordinator's connections, if this one may not end them ([`break_lock`]).
    pub async fn role_out_of_reach(&self) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT usename::text AS "role!" FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = $1
                   AND NOT pg_has_role(current_user, usesysid, 'USAGE')
                   AND NOT pg_has_role(current_user, 'pg_signal_backend', 'USAGE')
               LIMIT 1"#,
            super::APPLICATION,
        )
        .fetch_optional(self.pool())
        .await?)
    }
}
