//! The data directory: made for this user alone, and used by one coordinator at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::ConfigError;

/// A data directory that is this process's until the value is dropped or the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing (0700, and what is above it 0755) and locks it.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Io { doing, path, source }
        };
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io("create", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io("create", path)(error)),
            Ok(()) | Err(_) => {}
        }
        let meta = std::fs::metadata(path).map_err(io("look at", path))?;
        let me = rustix::process::geteuid().as_raw();
        if meta.uid() != me {
            return Err(ConfigError::Foreign { path: path.to_owned(), owner: meta.uid() });
        }
        // Whoever can write here can put keys of their own in the place of the mesh's.
        let mode = meta.mode() & 0o7777;
        if mode & 0o022 != 0 {
            let safe = Permissions::from_mode(mode & !0o022);
            std::fs::set_permissions(path, safe).map_err(io("protect", path))?;
        }
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(dir: &Path) -> Result<File, ConfigError> {
    let path = dir.join("lock");
    let io = |source| ConfigError::Io { doing: "lock", path: path.clone(), source };
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(ConfigError::InUse { path: dir.to_owned(), pid: holder });
        }
        Err(errno) => return Err(io(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok(file)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn it_is_made_for_its_owner_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b/coordinator");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn others_lose_the_right_to_write_in_it() {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), Permissions::from_mode(0o777)).unwrap();
        let dir = DataDir::open(base.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_second_coordinator_is_refused_until_the_first_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let first = DataDir::open(base.path()).unwrap();
        let error = DataDir::open(base.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("another coordinator (pid {})", std::process::id())), "{error}");
        drop(first);
        DataDir::open(base.path()).unwrap();
    }
}
