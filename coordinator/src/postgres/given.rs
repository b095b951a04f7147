//! Checks a database that was named with `--database-url`.

use sqlx::PgPool;

use super::OLDEST_MAJOR;
use super::error::PostgresError;

/// Refuses a database that is too old or that may lose what it acknowledged.
pub async fn check_given(pool: &PgPool) -> Result<(), PostgresError> {
    let (version, fsync, commit, full_pages): (i32, String, String, String) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int, current_setting('fsync'), \
         current_setting('synchronous_commit'), current_setting('full_page_writes')",
    )
    .fetch_one(pool)
    .await
    .map_err(PostgresError::Read)?;
    check(version as u32 / 10_000, &fsync, &commit)?;
    if full_pages == "off" {
        tracing::warn!(
            "the given database has full_page_writes = off: right only on a file system that never tears a page"
        );
    }
    Ok(())
}

fn check(major: u32, fsync: &str, synchronous_commit: &str) -> Result<(), PostgresError> {
    if major < OLDEST_MAJOR {
        return Err(PostgresError::GivenTooOld { found: major, oldest: OLDEST_MAJOR });
    }
    if fsync != "on" {
        return Err(PostgresError::FsyncOff);
    }
    // `local`, `remote_write` and `remote_apply` flush on this server as `on` does.
    if synchronous_commit == "off" {
        return Err(PostgresError::AsyncCommit);
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_what_can_lose_commits_is_refused() {
        for commit in ["on", "local", "remote_write", "remote_apply"] {
            check(14, "on", commit).unwrap();
        }
        assert!(matches!(check(13, "on", "on"), Err(PostgresError::GivenTooOld { found: 13, oldest: 14 })));
        assert!(matches!(check(17, "off", "on"), Err(PostgresError::FsyncOff)));
        assert!(matches!(check(17, "on", "off"), Err(PostgresError::AsyncCommit)));
    }
}
