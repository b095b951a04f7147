//! Postgres: rows to domain values and back, one file per noun. The only room that knows
//! sqlx; every query is checked against the schema when it is compiled.
//!
//! Two ways in: [`commit`] writes a batch of the engine's rows under the leader's fence, and
//! everything else reads committed state or writes what needs no atomicity with scheduling.

pub mod access;
pub mod attempts;
mod authority;
pub mod clock;
pub mod commit;
pub mod coordinators;
pub mod dead;
pub mod decisions;
mod error;
pub mod history;
pub mod jobs;
pub mod leader;
pub mod leases;
pub mod mesh;
mod names;
pub mod nodes;
pub mod redrive;
pub mod snapshot;
pub mod tasks;
#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use clock::Clock;
pub use error::StoreError;

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// A connection that was in use so lately is not asked whether it still works: after a restart
/// of Postgres those in the pool are dead.
const FRESH: Duration = Duration::from_millis(500);

/// How the database knows a coordinator's connections.
const APPLICATION: &str = "mesh-coordinator";

/// The schema, in order.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// The database, for reads and for services beside the engine.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    options: PgConnectOptions,
}

impl Store {
    /// Connects lazily; at most `connections` at a time.
    #[must_use]
    pub fn new(options: PgConnectOptions, connections: u32) -> Self {
        let options = options
            .application_name(APPLICATION)
            // What a program that froze has locked is let go of in the end. Not sooner: between two
            // statements lies a round trip, and one to a slow database takes seconds. A successor
            // breaks the lock on the leader's row itself.
            .options([("idle_in_transaction_session_timeout", "10000"), ("statement_timeout", "30000")])
            .log_statements(tracing::log::LevelFilter::Trace);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(Duration::from_mins(1))
            // sqlx's own test costs a round trip each time; a connection that was in use a moment
            // ago needs none.
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > FRESH {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options.clone());
        Self { pool, options }
    }

    /// A connection of one's own, outside the pool.
    pub async fn connection(&self) -> Result<PgConnection, StoreError> {
        Ok(self.options.connect().await?)
    }

    /// The connection that commits. Its one statement is planned once, by key: planning costs more
    /// than a small commit, and what the tables held when it was planned says nothing of later.
    pub async fn writer(&self) -> Result<PgConnection, StoreError> {
        let options = self.options.clone().options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
        ]);
        Ok(options.connect().await?)
    }

    /// Whether migrations of this program are missing in the database. A database that a newer
    /// program migrated is not behind.
    pub async fn is_behind(&self) -> Result<bool, StoreError> {
        let made = sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "made!""#)
            .fetch_one(&self.pool)
            .await?;
        if !made {
            return Ok(true);
        }
        let applied: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(&self.pool)
            .await?;
        Ok(MIGRATIONS.iter().any(|migration| !applied.contains(&migration.version)))
    }

    /// Brings the schema up to date. Only the leader does.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        MIGRATIONS.run(&mut connection).await?;
        Ok(())
    }

    /// Whether the database answers.
    pub async fn answers(&self) -> bool {
        sqlx::query_scalar!("SELECT 1 AS \"one!\"").fetch_one(&self.pool).await.is_ok()
    }

    /// The pool, for checks of the database itself.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}
