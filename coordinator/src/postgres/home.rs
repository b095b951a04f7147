//! The cluster's directory and who is at work in it.
//!
//! The directory is held open. A root coordinator hands this descriptor to the processes of the
//! unprivileged owner, which find the cluster at `/proc/self/fd/N`: so they need no right to walk
//! through the directories above it, which may well be root's alone.
//!
//! Every process of Postgres has the cluster as its working directory. That tells them apart from
//! a stranger who got the pid that an old `postmaster.pid` names.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::error::PostgresError;
use super::launch;
use super::owner::Owner;
use super::settings::PORT;

/// The longest path of a unix socket, in bytes (`sun_path` without its closing NUL).
const MAX_SOCKET_PATH: usize = 107;

/// An open cluster directory.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    handle: OwnedFd,
    device: u64,
    inode: u64,
}

/// The main process of a running cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Postmaster {
    pub pid: i32,
    pub stopping: bool,
}

impl Home {
    pub fn open(path: &Path) -> Result<Self, PostgresError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| PostgresError::io("open", path)(errno.into()))?;
        let meta =
            rustix::fs::fstat(&handle).map_err(|errno| PostgresError::io("look at", path)(errno.into()))?;
        Ok(Self { path: path.to_owned(), handle, device: meta.st_dev, inode: meta.st_ino })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The major version that made this cluster.
    pub fn major(&self) -> Option<u32> {
        std::fs::read_to_string(self.path.join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// A descriptor of the directory that children inherit. Keep it until they have started.
    pub fn inheritable(&self) -> Result<OwnedFd, PostgresError> {
        rustix::io::dup(&self.handle).map_err(|errno| PostgresError::io("open", &self.path)(errno.into()))
    }

    /// The directory of the socket as this process can name it: the cluster's own path or, where
    /// that is too long for a socket's address, the descriptor's.
    pub fn socket_dir(&self) -> PathBuf {
        let socket = format!("/.s.PGSQL.{PORT}");
        let fits = self.path.as_os_str().as_bytes().len() + socket.len() <= MAX_SOCKET_PATH;
        if fits && self.path.to_str().is_some() && self.path.is_absolute() {
            self.path.clone()
        } else {
            format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()).into()
        }
    }

    /// Writes a file of the owner's, whole or not at all. The owner may write in this directory,
    /// so a link that it could have laid there must not be followed.
    pub fn write(&self, name: &str, contents: &str, owner: &Owner) -> Result<(), PostgresError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            remove_file(&new)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            if owner.is_other() {
                fchown(&file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
            }
            file.write_all(contents.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(PostgresError::io("write", &path))
    }

    /// Takes away the lock files of a postmaster that is no more.
    pub fn remove_lock_files(&self) -> Result<(), PostgresError> {
        for name in ["postmaster.pid", &format!(".s.PGSQL.{PORT}.lock")] {
            let path = self.path.join(name);
            remove_file(&path).map_err(PostgresError::io("remove", &path))?;
        }
        Ok(())
    }

    /// The running postmaster, if there is one: `postmaster.pid` names it, and it is at work here.
    pub async fn postmaster(&self, owner: &Owner) -> Result<Option<Postmaster>, PostgresError> {
        let Ok(text) = std::fs::read_to_string(self.path.join("postmaster.pid")) else { return Ok(None) };
        let Some(named) = parse_pid_file(&text) else { return Ok(None) };
        let here = self.processes(owner).await?;
        Ok(here.contains(&named.pid).then_some(named))
    }

    /// The pids of all Postgres processes that work in this directory.
    pub async fn processes(&self, owner: &Owner) -> Result<Vec<i32>, PostgresError> {
        let candidates = postgres_processes_of(owner.uid.as_raw());
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        // Where another user's processes work is shown to that user, not to a root without
        // CAP_SYS_PTRACE, as in most containers. So the owner looks.
        let mut command = launch::command(Path::new("stat"), owner);
        command.args(["--dereference", "--format=%d:%i %n"]);
        command.args(candidates.iter().map(|pid| format!("/proc/{pid}/cwd")));
        let output = launch::output(command, launch::SHORT).await?;
        let ours = format!("{}:{} /proc/", self.device, self.inode);
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.strip_prefix(&ours)?.strip_suffix("/cwd")?.parse().ok())
            .collect())
    }
}

/// Processes named `postgres` of one user.
fn postgres_processes_of(uid: u32) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_postgres = entry.metadata().is_ok_and(|meta| meta.uid() == uid)
            && std::fs::read_to_string(entry.path().join("comm"))
                .is_ok_and(|comm| comm.starts_with("postgres") || comm.starts_with("postmaster"));
        if is_postgres {
            pids.push(pid);
        }
    }
    pids
}

/// The first line is the pid (negative for a single-user server), the eighth the state.
fn parse_pid_file(text: &str) -> Option<Postmaster> {
    let mut lines = text.lines();
    let pid: i32 = lines.next()?.trim().parse().ok()?;
    let state = lines.nth(6).unwrap_or_default().trim();
    (pid > 1).then_some(Postmaster { pid, stopping: state == "stopping" })
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_pid_file_names_the_process_and_its_state() {
        let text = "14840\n/proc/self/fd/9\n1795216161\n5432\n.\n\n 10543221         4\nready   \n";
        assert_eq!(parse_pid_file(text), Some(Postmaster { pid: 14840, stopping: false }));
        assert_eq!(
            parse_pid_file(&text.replace("ready   ", "stopping")),
            Some(Postmaster { pid: 14840, stopping: true })
        );
        // Just begun, cut off, damaged, single-user.
        assert_eq!(parse_pid_file("77\n"), Some(Postmaster { pid: 77, stopping: false }));
        for text in ["", "x\n", "-77\n", "0\n", "1\n"] {
            assert_eq!(parse_pid_file(text), None, "{text:?}");
        }
    }
}
