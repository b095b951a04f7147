//! Runs the programs of Postgres as the cluster's owner, in a clean environment.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::process::Command;

use super::binaries::Binaries;
use super::error::PostgresError;
use super::home::Home;
use super::owner::Owner;
use super::settings::{self, Durability};

/// For what answers at once.
pub(super) const SHORT: Duration = Duration::from_secs(30);
/// For initdb, which writes some 40 MB and syncs them.
const INITDB: Duration = Duration::from_mins(5);
/// For a start, which may replay a gigabyte of log after a crash.
const START: Duration = Duration::from_mins(10);
/// How much of a failed program's output goes into the error, in bytes.
const SHOWN: usize = 2000;

/// What `pg_ctl` and Postgres say until the log collector runs.
pub(super) const STARTUP_LOG: &str = "startup.log";

/// A program to be run as the owner.
pub(super) fn command(program: &Path, owner: &Owner) -> Command {
    let mut command = Command::new(program);
    // Nothing of PGDATA, PGOPTIONS, LD_PRELOAD and the like may reach it.
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C");
    // A directory that every user can enter: pg_ctl wants to go back to where it was.
    command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    if owner.is_other() {
        // The standard library drops root's supplementary groups along with its uid.
        command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
    }
    command
}

/// Runs a program to its end.
pub(super) async fn output(mut command: Command, limit: Duration) -> Result<Output, PostgresError> {
    let program = PathBuf::from(command.as_std().get_program());
    match tokio::time::timeout(limit, command.output()).await {
        Ok(ended) => ended.map_err(PostgresError::io("run", &program)),
        Err(_elapsed) => Err(PostgresError::Hangs { program, seconds: limit.as_secs() }),
    }
}

/// Makes a new cluster in `dir`, which appears there whole or not at all.
pub(super) async fn initdb(
    dir: &Path,
    binaries: &Binaries,
    owner: &Owner,
    durability: Durability,
) -> Result<(), PostgresError> {
    let new = dir.with_extension("new");
    match std::fs::remove_dir_all(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(PostgresError::io("remove the unfinished cluster", &new)(error));
        }
        Ok(()) => tracing::info!(path = %new.display(), "removed an unfinished postgres cluster"),
        Err(_not_found) => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&new).map_err(PostgresError::io("create", &new))?;
    if owner.is_other() {
        std::os::unix::fs::chown(&new, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
            .map_err(PostgresError::io("give away", &new))?;
    }
    let home = Home::open(&new)?;

    let mut initdb = command(&binaries.dir.join("initdb"), owner);
    let handle = pass(&home, owner, &mut initdb)?;
    initdb.args(["--encoding=UTF8", "--no-locale", "--data-checksums", "--auth=peer"]);
    initdb.arg(format!("--username={}", settings::SUPERUSER));
    match durability {
        Durability::Full => {}
        #[cfg(any(test, feature = "testing"))]
        Durability::None => {
            initdb.arg("--no-sync");
        }
    }
    let ended = output(initdb, INITDB).await?;
    drop(handle);
    if !ended.status.success() {
        return Err(PostgresError::Initdb {
            dir: dir.to_owned(),
            status: ended.status.to_string(),
            output: shown(&[&ended.stdout, &ended.stderr]),
        });
    }
    std::fs::rename(&new, dir).map_err(PostgresError::io("create", dir))?;
    let parent = dir.parent().unwrap_or(dir);
    std::fs::File::open(parent).and_then(|file| file.sync_all()).map_err(PostgresError::io("sync", parent))
}

/// Starts the postmaster in a session of its own and waits until it is ready.
pub(super) async fn start(home: &Home, binaries: &Binaries, owner: &Owner) -> Result<(), PostgresError> {
    let mut pg_ctl = command(&binaries.dir.join("pg_ctl"), owner);
    let handle = pass(home, owner, &mut pg_ctl)?;
    // pg_ctl's child calls setsid before it becomes the postmaster.
    pg_ctl.args(["start", "-w", "-t", &START.as_secs().to_string(), "-l"]);
    let log = match &handle {
        Some(handle) => format!("/proc/self/fd/{}/{STARTUP_LOG}", handle.as_raw_fd()).into(),
        None => home.path().join(STARTUP_LOG),
    };
    pg_ctl.arg(log);
    home.write(STARTUP_LOG, "", owner)?;
    let run = output(pg_ctl, START + SHORT);
    tokio::pin!(run);
    let mut progress = tokio::time::interval(Duration::from_secs(5));
    progress.tick().await;
    let ended = loop {
        tokio::select! {
            ended = &mut run => break ended?,
            _ = progress.tick() => tracing::info!("waiting for the private postgres to become ready"),
        }
    };
    drop(handle);
    if ended.status.success() {
        return Ok(());
    }
    let startup = tail(&home.path().join(STARTUP_LOG));
    let log = newest(&home.path().join("log")).map(|path| tail(&path)).unwrap_or_default();
    Err(PostgresError::Start {
        dir: home.path().to_owned(),
        status: ended.status.to_string(),
        output: shown(&[&ended.stdout, &ended.stderr, &startup, &log]),
    })
}

/// The file in `dir` that was written last.
fn newest(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?.flatten();
    files.max_by_key(|file| file.metadata().and_then(|meta| meta.modified()).ok()).map(|file| file.path())
}

/// The end of a file of the owner's, which may be large or no plain file at all.
fn tail(path: &Path) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)?;
        let meta = file.metadata()?;
        let mut end = Vec::new();
        if meta.is_file() {
            file.seek(SeekFrom::Start(meta.len().saturating_sub(SHOWN as u64)))?;
            file.take(SHOWN as u64).read_to_end(&mut end)?;
        }
        Ok(end)
    };
    read().unwrap_or_default()
}

/// Tells a program where the cluster is: by its path or, when it runs as another user, by an
/// inherited descriptor, which must stay open until the program has ended.
fn pass(home: &Home, owner: &Owner, command: &mut Command) -> Result<Option<OwnedFd>, PostgresError> {
    if !owner.is_other() {
        command.arg("-D").arg(home.path());
        return Ok(None);
    }
    let handle = home.inheritable()?;
    command.arg("-D").arg(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    Ok(Some(handle))
}

/// The end of what a program said, in one line.
fn shown(parts: &[&[u8]]) -> String {
    let all: Vec<String> = parts
        .iter()
        .flat_map(|part| {
            String::from_utf8_lossy(part).lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|line| !line.is_empty())
        .collect();
    let text = all.join("; ");
    let start = text.len().saturating_sub(SHOWN);
    text[text.ceil_char_boundary(start)..].to_owned()
}
