//! What can go wrong with the database, told apart by what follows from it.

/// A read or a write failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else leads: zero rows under our epoch.
    #[error("another coordinator leads this mesh")]
    Fenced,
    /// The rows themselves are at fault (SQLSTATE class 22 or 23), so they were not written.
    #[error("the database refused the rows")]
    Rows(#[source] sqlx::Error),
    /// A guarded write hit fewer rows than it was given; nothing was written.
    #[error("memory and database disagree: {0}")]
    Conflict(String),
    /// A stored value makes no sense.
    #[error("the database holds an unusable {0}")]
    Corrupt(&'static str),
    #[error("cannot bring the schema up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// It took too long; what became of a COMMIT under way is unknown.
    #[error("the database does not answer")]
    Silent,
    #[error("the database's disk is full")]
    Full(#[source] sqlx::Error),
    /// Anything else: what it means for a COMMIT under way is unknown.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether a lock was not to be had within `lock_timeout`.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        let Self::Database(error) = self else { return false };
        error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("55P03")
    }

    /// Whether the client's data was refused and surely not written.
    #[must_use]
    pub fn is_poison(&self) -> bool {
        match self {
            Self::Rows(_) | Self::Conflict(_) => true,
            Self::Fenced
            | Self::Corrupt(_)
            | Self::Migrate(_)
            | Self::Silent
            | Self::Full(_)
            | Self::Database(_) => false,
        }
    }
}

/// What `expect_rows` in the database fails with.
const CONFLICT: &str = "MC001";
/// What Postgres says when it cannot make a file longer.
const DISK_FULL: &str = "53100";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let refused = error.as_database_error().and_then(|error| Some((error.code()?, error.message())));
        match refused {
            Some((code, message)) if code == CONFLICT => Self::Conflict(message.to_owned()),
            Some((code, _)) if code == DISK_FULL => Self::Full(error),
            Some((code, _)) if code.starts_with("22") || code.starts_with("23") => Self::Rows(error),
            _ => Self::Database(error),
        }
    }
}
