//! The data directory: made with the right modes, held by one daemon at a time, and where work
//! directories go when other users cannot reach it.
//!
//! ```text
//! lock        held while a daemon runs; holds its process id
//! identity/   key and certificates
//! attempts/   one directory each, see `records.rs`
//! blobs/      cached content
//! jail/       the jail's own
//! seen.json   the highest epoch obeyed
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mesh_proto::digest::Digest;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another agent (process {pid}) runs on {}; stop it with: agent stop --data-dir {}", dir.display(), dir.display())]
    Held { dir: PathBuf, pid: String },
    #[error("no agent runs on {}", .0.display())]
    NotRunning(PathBuf),
    #[error(
        "tasks run as users of their own, who cannot pass through {}: choose a --data-dir that others can \
         reach, such as /var/lib/mesh/agent, or make it passable (chmod o+x)", .0.display()
    )]
    Unreachable(PathBuf),
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    _lock: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

impl DataDir {
    /// Makes the directory and takes its lock.
    pub fn hold(path: &Path) -> Result<Self, DataDirError> {
        // Passable, not readable: tasks reach their work directories through it.
        fs::DirBuilder::new().mode(0o711).recursive(true).create(path).map_err(at(path))?;
        let path = fs::canonicalize(path).map_err(at(path))?;
        let mut lock = open_lock(&path)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(DataDirError::Held { dir: path, pid: pid.trim().to_owned() });
            }
            Err(error) => return Err(at(&path.join("lock"))(error.into())),
        }
        let write = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write(&mut lock).map_err(at(&path.join("lock")))?;
        open_up(&path)?;
        for name in ["attempts", "blobs", "jail"] {
            let dir = path.join(name);
            let mode = if name == "attempts" { 0o711 } else { 0o700 };
            fs::DirBuilder::new().mode(mode).recursive(true).create(&dir).map_err(at(&dir))?;
        }
        open_up(&path.join("attempts"))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where work directories go: beside the attempts' records, or, when the agent is root and
    /// other users cannot pass through what lies above, in a directory of this agent's own under
    /// `/var/tmp`.
    pub fn work_root(&self, root: bool) -> Result<PathBuf, DataDirError> {
        let inside = self.path.join("attempts");
        let Some(closed) = closed_to_others(&inside).filter(|_| root) else { return Ok(inside) };
        let outside = self.outside();
        match fs::DirBuilder::new().mode(0o711).create(&outside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Others may make names there: only a directory of our own will do.
                let meta = fs::symlink_metadata(&outside).map_err(at(&outside))?;
                if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
                    return Err(DataDirError::Unreachable(closed));
                }
            }
            Err(error) => return Err(at(&outside)(error)),
        }
        open_up(&outside)?;
        if closed_to_others(&outside).is_some() {
            return Err(DataDirError::Unreachable(closed));
        }
        tracing::info!(
            closed = %closed.display(),
            work = %outside.display(),
            "other users cannot reach the data directory: work directories go elsewhere"
        );
        Ok(outside)
    }

    fn outside(&self) -> PathBuf {
        let mark = Digest::of(self.path.as_os_str().as_encoded_bytes()).to_string();
        PathBuf::from("/var/tmp").join(format!("mesh-agent-{}", &mark[..16]))
    }

    /// Leaves nothing elsewhere when there is nothing left to keep.
    pub fn remove_work_root(&self) {
        // Not there, most of the time; not empty, when an end could not be told.
        let _ = fs::remove_dir(self.outside());
    }
}

/// Lets other users pass through, whatever the umask said.
fn open_up(path: &Path) -> Result<(), DataDirError> {
    let mode = fs::metadata(path).map_err(at(path))?.mode() & 0o777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o111)).map_err(at(path))
}

/// The first directory on the way to `path` that others cannot pass through.
fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    let closed = |dir: &&&Path| fs::metadata(dir).map_or(true, |meta| meta.mode() & 0o001 == 0);
    above.iter().find(closed).map(|dir| dir.to_path_buf())
}

fn open_lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join("lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(at(&path))
}

/// Tells the daemon of a data directory to stop and waits until it has gone: `SIGUSR1` drains,
/// `SIGUSR2` ends its tasks.
pub fn stop_daemon(dir: &Path, kill: bool) -> Result<(), DataDirError> {
    let running = || DataDirError::NotRunning(dir.to_owned());
    if !dir.join("lock").exists() {
        return Err(running());
    }
    let mut lock = open_lock(dir)?;
    let path = dir.join("lock");
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Err(running()),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(at(&path)(error.into())),
    }
    let mut text = String::new();
    lock.read_to_string(&mut text).map_err(at(&path))?;
    // It holds the lock, so the number in it is that of the living holder.
    let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(running)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| at(&path)(error.into()))?;
    let signal = if kill { Signal::USR2 } else { Signal::USR1 };
    pidfd_send_signal(fd, signal).map_err(|error| at(&path)(error.into()))?;
    // Granted when the daemon has gone.
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| at(&path)(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let held = DataDir::hold(&path).unwrap();
        let error = DataDir::hold(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        DataDir::hold(&path).unwrap();
    }

    #[test]
    fn stopping_what_does_not_run_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(stop_daemon(dir.path(), false), Err(DataDirError::NotRunning(_))));
        drop(DataDir::hold(dir.path()).unwrap());
        assert!(matches!(stop_daemon(dir.path(), false), Err(DataDirError::NotRunning(_))));
    }

    #[test]
    fn a_directory_closed_to_others_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(closed_to_others(&inner).as_deref(), Some(dir.path()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(closed_to_others(&inner), None);
    }
}
