//! Removes a directory tree that a stranger's program may have left in any state: deeper than
//! there are descriptors, closed to its owner, full of links (none is followed).
//!
//! Blocking; callers run it on a blocking thread.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories that are held open on the way down. What lies deeper is first moved up.
const DEPTH: usize = 32;
/// Names that are held in memory of one directory.
const BATCH: usize = 4096;

/// Removes `path` and everything below it. What is not there is removed already.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match rustix::fs::open(parent, FLAGS, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let name = CString::new(name.as_encoded_bytes())?;
    match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = enter(&parent, &name)?;
    empty(&top, &top, 0)?;
    drop(top);
    Ok(rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR)?)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory, also one that its owner (the agent itself, when it is no root) closed.
fn enter(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let parent = parent.as_fd();
    let open = || rustix::fs::openat(parent, name, FLAGS, Mode::empty());
    let dir = match open() {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        dir => dir?,
    };
    // Readable is not yet changeable. Another user's stays as it is, and says so when it is emptied.
    if let Err(Errno::ACCESS | Errno::PERM) =
        rustix::fs::accessat(&dir, c".", rustix::fs::Access::WRITE_OK, AtFlags::empty())
    {
        let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    }
    Ok(dir)
}

/// Removes what is in `dir`, which lies `depth` below `top`. What lies too deep is moved into
/// `top`, where its turn comes: `top` is read until nothing is left in it.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize) -> io::Result<()> {
    loop {
        let batch = entries(dir)?;
        if batch.is_empty() {
            return Ok(());
        }
        for (name, kind) in batch {
            if kind != FileType::Directory {
                match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if depth >= DEPTH {
                // A name that nobody could have taken before.
                let up = CString::new(format!(".removing-{:032x}", rand::random::<u128>()))?;
                rustix::fs::renameat(dir, &name, top, &up)?;
                continue;
            }
            let below = enter(dir, &name)?;
            empty(&below, top, depth + 1)?;
            drop(below);
            rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Some of the names in a directory, none when it is empty. They are read before anything is
/// removed: what a directory shows while it shrinks is not defined.
fn entries(dir: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
        if found.len() >= BATCH {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::write(dir.path().join("kept"), "x").unwrap();
        symlink(dir.path(), tree.join("a/up")).unwrap();
        symlink(dir.path().join("kept"), tree.join("link")).unwrap();
        for closed in ["a/b", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(dir.path().join("kept").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("kept")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::open(&tree, FLAGS, Mode::empty()).unwrap();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, c"d", FLAGS, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
