//! What can go wrong with the private cluster or a given database, each with its remedy.

use std::path::PathBuf;

/// Why there is no database to work with.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no Postgres binaries were found in --pg-bin-dir, /usr/lib/postgresql/*/bin, /usr/pgsql-*/bin or PATH: \
         install them ({install}) or name a database with --database-url"
    )]
    NotInstalled { install: String },

    #[error(
        "{} holds no Postgres server binaries (postgres, initdb, pg_ctl): correct --pg-bin-dir or leave it out",
        .0.display()
    )]
    BinDir(PathBuf),

    #[error(
        "the newest Postgres found is version {found}, in {}, but at least {oldest} is needed: \
         install a newer one ({install}) or name a database with --database-url", .dir.display()
    )]
    TooOld { found: u32, dir: PathBuf, oldest: u32, install: String },

    #[error(
        "the cluster in {} was made by Postgres {major}, whose binaries are not installed: \
         install them again ({install})", .dir.display()
    )]
    MajorGone { major: u32, dir: PathBuf, install: String },

    #[error(
        "Postgres does not run as root, and there is no user `postgres` or `mesh-postgres` to run it as: \
         make one (useradd --system --shell /usr/sbin/nologin mesh-postgres) or name a database with --database-url"
    )]
    NoUser,

    #[error(
        "Postgres needs a user with an entry in passwd, and uid {0} has none: \
         add one or name a database with --database-url"
    )]
    NoPasswdEntry(u32),

    #[error(
        "the cluster in {} belongs to uid {owner}, but this coordinator runs as uid {uid}: \
         run it as that user or as root, or choose another --data-dir", .dir.display()
    )]
    Foreign { dir: PathBuf, owner: u32, uid: u32 },

    #[error("{} is not a Postgres cluster (no readable PG_VERSION in it): move it away or choose another --data-dir", .0.display())]
    NoCluster(PathBuf),

    #[error("could not {doing} {}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("could not make a Postgres cluster in {}: initdb ended with {status}: {output}", .dir.display())]
    Initdb { dir: PathBuf, status: String, output: String },

    #[error("could not start Postgres in {}: pg_ctl ended with {status}: {output}", .dir.display())]
    Start { dir: PathBuf, status: String, output: String },

    #[error("could not run {}: it did not end within {seconds} s", .program.display())]
    Hangs { program: PathBuf, seconds: u64 },

    #[error(
        "Postgres of this data directory runs (pid {pid}) but did not answer within {seconds} s: \
         look at its log in {}, end it (kill -INT {pid}) and start the coordinator again", .log.display()
    )]
    Unresponsive {
        pid: i32,
        seconds: u64,
        log: PathBuf,
        #[source]
        source: Option<sqlx::Error>,
    },

    #[error(
        "Postgres of this data directory (pid {pid}) ended before it answered: look at its log in {}", .log.display()
    )]
    Ended { pid: i32, log: PathBuf },

    #[error(
        "processes of an earlier Postgres in {} are still there (pids {pids:?}) although their postmaster is gone: \
         end them (kill -QUIT) and start the coordinator again", .dir.display()
    )]
    Leftovers { dir: PathBuf, pids: Vec<i32> },

    #[error("Postgres (pid {pid}) did not stop within {seconds} s")]
    DoesNotStop { pid: i32, seconds: u64 },

    #[error("could not prepare the database of the private cluster")]
    Prepare(#[source] sqlx::Error),

    #[error("could not read the settings of the given database")]
    Read(#[source] sqlx::Error),

    #[error("the given database is Postgres {found}, but at least {oldest} is needed: upgrade it")]
    GivenTooOld { found: u32, oldest: u32 },

    #[error(
        "the given database has fsync = off, and loses acknowledged jobs when its machine crashes: \
         set it (ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();)"
    )]
    FsyncOff,

    #[error(
        "the given database has synchronous_commit = off, and loses acknowledged jobs when its machine crashes: \
         set it (ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();), \
         also where a role or the database itself overrides it (ALTER ROLE, ALTER DATABASE)"
    )]
    AsyncCommit,
}

impl PostgresError {
    /// For `map_err`: an error of the file system, with what was being done.
    pub(super) fn io<'a>(
        doing: &'static str,
        path: &'a std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
