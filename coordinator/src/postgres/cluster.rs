//! Starts, adopts and stops the private cluster.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::binaries::{self, Binaries, Wanted};
use super::error::PostgresError;
use super::home::{Home, Postmaster};
use super::launch;
use super::owner::Owner;
use super::settings::{self, Durability};

/// How long a postmaster that says it is up may take to answer.
const ANSWER: Duration = Duration::from_mins(1);
/// How long a fast shutdown may take: it writes a checkpoint.
const STOP: Duration = Duration::from_mins(2);
/// How long processes whose postmaster died may take to notice.
const LEFTOVERS: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Where the cluster lies and what runs it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The coordinator's data directory; it must be there. The cluster lies in `postgres/` below it.
    pub data_dir: PathBuf,
    /// `--pg-bin-dir`: where the server binaries are.
    pub bin_dir: Option<PathBuf>,
}

/// A running private cluster. Dropping this leaves it running; the next start adopts it.
#[derive(Debug)]
#[must_use]
pub struct Cluster {
    home: Home,
    pid: i32,
    adopted: bool,
}

/// Brings the cluster up: makes it if it is new, adopts it if it runs, and returns when the
/// database accepts connections. The caller holds the lock of the data directory.
pub async fn start(options: Options) -> Result<Cluster, PostgresError> {
    start_with(options, Durability::Full).await
}

pub(super) async fn start_with(options: Options, durability: Durability) -> Result<Cluster, PostgresError> {
    let data_dir =
        std::path::absolute(&options.data_dir).map_err(PostgresError::io("resolve", &options.data_dir))?;
    let dir = data_dir.join("postgres");
    let owner = Owner::find(&dir)?;
    let bin_dir = options.bin_dir.as_deref();

    let made = if is_there(&dir)? {
        None
    } else {
        let binaries = binaries::find(bin_dir, Wanted::New, &owner).await?;
        tracing::info!(major = binaries.major, user = %owner.name, path = %dir.display(), "making a private postgres cluster");
        launch::initdb(&dir, &binaries, &owner, durability).await?;
        Some(binaries)
    };
    let mut home = Home::open(&dir)?;
    let major = home.major().ok_or_else(|| PostgresError::NoCluster(dir.clone()))?;

    let running = match home.postmaster(&owner).await? {
        Some(postmaster) if postmaster.stopping => {
            tracing::info!(pid = postmaster.pid, "waiting for the private postgres to end its shutdown");
            wait_gone(postmaster.pid, STOP).await?;
            None
        }
        running => running,
    };
    if let Some(postmaster) = running {
        let cluster = Cluster { home, pid: postmaster.pid, adopted: true };
        match cluster.prepare().await {
            Ok(()) => return Ok(cluster.ready(major)),
            // It was seen in its last moments: nobody else will start one here.
            Err(PostgresError::Ended { pid, .. }) => {
                tracing::warn!(pid, "the private postgres ended while it was waited for; starting another");
            }
            Err(error) => return Err(error),
        }
        home = cluster.home;
    }
    let binaries = match made {
        Some(binaries) => binaries,
        None => binaries::find(bin_dir, Wanted::Major(major, &dir), &owner).await?,
    };
    let postmaster = launch_in(&home, &binaries, &owner, durability).await?;
    let cluster = Cluster { home, pid: postmaster.pid, adopted: false };
    cluster.prepare().await?;
    Ok(cluster.ready(major))
}

/// Whether a cluster is in `dir`. Something else there is never overwritten.
fn is_there(dir: &Path) -> Result<bool, PostgresError> {
    let looked = dir.symlink_metadata();
    match looked {
        Ok(meta) if meta.is_dir() => Ok(true),
        Ok(_) => Err(PostgresError::NoCluster(dir.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PostgresError::io("look at", dir)(error)),
    }
}

/// Starts a postmaster where none runs.
async fn launch_in(
    home: &Home,
    binaries: &Binaries,
    owner: &Owner,
    durability: Durability,
) -> Result<Postmaster, PostgresError> {
    // Processes whose postmaster was killed still write; they end by themselves when they notice.
    let deadline = Instant::now() + LEFTOVERS;
    loop {
        let pids = home.processes(owner).await?;
        if pids.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(PostgresError::Leftovers { dir: home.path().to_owned(), pids });
        }
        tokio::time::sleep(LOOK).await;
    }
    // Nobody works here, so the lock files are stale. Postgres itself would refuse to start when
    // another process of its user has that pid by now, or the dead one is not reaped yet.
    home.remove_lock_files()?;
    home.write("postgresql.conf", &settings::postgresql_conf(durability), owner)?;
    home.write("pg_hba.conf", settings::PG_HBA, owner)?;
    home.write("pg_ident.conf", &settings::pg_ident(owner), owner)?;
    launch::start(home, binaries, owner).await?;
    home.postmaster(owner).await?.ok_or_else(|| PostgresError::Start {
        dir: home.path().to_owned(),
        status: "success".to_owned(),
        output: "but it is not there any more; look at its log".to_owned(),
    })
}

impl Cluster {
    /// The URL of the database, for programs on this machine that run as this user.
    pub fn url(&self) -> String {
        self.connect_options().to_url_lossy().to_string()
    }

    /// How to connect to the database, as the role that owns it.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.options_for(settings::ROLE, settings::DATABASE)
    }

    /// Whether it ran already when it was started.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The postmaster's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the cluster: open transactions are rolled back, what was committed is on disk.
    /// Returns when it is gone.
    pub async fn stop(self) -> Result<(), PostgresError> {
        let Some(pidfd) = open(self.pid) else { return Ok(()) };
        // It may have ended, and its pid be another's, between the start and the open.
        let owner = Owner::find(self.home.path())?;
        if !self.home.processes(&owner).await?.contains(&self.pid) {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::INT) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(PostgresError::io("stop Postgres in", self.home.path())(errno.into())),
        }
        wait_end(pidfd, self.pid, STOP).await?;
        tracing::info!(pid = self.pid, "the private postgres has stopped");
        Ok(())
    }

    pub(super) fn options_for(&self, role: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.home.socket_dir())
            .port(settings::PORT)
            .username(role)
            .database(database)
            .application_name("mesh-coordinator")
            .ssl_mode(PgSslMode::Disable)
    }

    fn ready(self, major: u32) -> Self {
        tracing::info!(pid = self.pid, adopted = self.adopted, major, "the private postgres is ready");
        self
    }

    /// Waits until it answers and makes the role and the database where they are missing.
    async fn prepare(&self) -> Result<(), PostgresError> {
        let mut connection = self.answer().await?;
        let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
            .bind(settings::ROLE)
            .fetch_one(&mut connection)
            .await
            .map_err(PostgresError::Prepare)?;
        if !made {
            run(&mut connection, format!("CREATE ROLE {} LOGIN", settings::ROLE)).await?;
        }
        let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(settings::DATABASE)
            .fetch_one(&mut connection)
            .await
            .map_err(PostgresError::Prepare)?;
        if !made {
            run(&mut connection, format!("CREATE DATABASE {} OWNER {}", settings::DATABASE, settings::ROLE))
                .await?;
        }
        connection.close().await.map_err(PostgresError::Prepare)
    }

    /// A connection of the superuser, as soon as one is to be had. A postmaster that ends before
    /// is not waited for.
    async fn answer(&self) -> Result<PgConnection, PostgresError> {
        let options = self.options_for(settings::SUPERUSER, "postgres");
        let log = || self.home.path().join("log");
        let ended = || PostgresError::Ended { pid: self.pid, log: log() };
        let process = open(self.pid).ok_or_else(ended)?;
        let deadline = Instant::now() + ANSWER;
        let mut last = None;
        while Instant::now() < deadline {
            match tokio::time::timeout(ANSWER, options.connect()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = Some(error),
                Err(_elapsed) => break,
            }
            if has_ended(&process, Duration::ZERO).map_err(PostgresError::io("watch", self.home.path()))? {
                return Err(ended());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(PostgresError::Unresponsive {
            pid: self.pid,
            seconds: ANSWER.as_secs(),
            log: log(),
            source: last,
        })
    }
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), PostgresError> {
    // The names in it are this module's own constants.
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map_err(PostgresError::Prepare)?;
    Ok(())
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

async fn wait_gone(pid: i32, limit: Duration) -> Result<(), PostgresError> {
    match open(pid) {
        Some(pidfd) => wait_end(pidfd, pid, limit).await,
        None => Ok(()),
    }
}

/// Waits without holding up the runtime.
async fn wait_end(pidfd: OwnedFd, pid: i32, limit: Duration) -> Result<(), PostgresError> {
    let ended = tokio::task::spawn_blocking(move || has_ended(&pidfd, limit))
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(PostgresError::io("wait for a process of", Path::new("Postgres")))?;
    if ended { Ok(()) } else { Err(PostgresError::DoesNotStop { pid, seconds: limit.as_secs() }) }
}

/// Whether a process ends within `limit`: its pidfd becomes readable then.
fn has_ended(pidfd: &OwnedFd, limit: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| rustix::io::Errno::INVAL)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
