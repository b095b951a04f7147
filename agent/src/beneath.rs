//! Files below a directory that a stranger's program writes to. Every path is resolved by the
//! kernel beneath that directory and through no symbolic link (`openat2`), so that nothing a task
//! leaves behind leads the agent elsewhere.
//!
//! May enter: opening, making and listing. Blocking; callers run it on a blocking thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};

/// Who owns what is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A directory beneath which paths are resolved.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// Given to everything made here; none: whoever the agent is.
    owner: Option<Owner>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// A FIFO, a socket or a device.
    Special,
}

impl Root {
    /// Opens `path` itself, which must not be a symbolic link.
    pub fn open(path: &Path, owner: Option<Owner>) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { dir: rustix::fs::open(path, flags, Mode::empty())?, owner })
    }

    fn resolve(&self, path: &str, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "." } else { path };
        let mut tries = 0;
        loop {
            let opened =
                rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::from(mode), resolve);
            match opened {
                // A rename somewhere below while the kernel looked.
                Err(rustix::io::Errno::AGAIN) if tries < 100 => tries += 1,
                opened => return Ok(opened?),
            }
        }
    }

    fn give(&self, fd: impl AsFd) -> io::Result<()> {
        let Some(Owner { uid, gid }) = self.owner else { return Ok(()) };
        Ok(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    /// Makes a directory and those above it; what is there already stays as it is.
    pub fn make_dirs(&self, path: &str) -> io::Result<()> {
        let path = path.trim_end_matches('/');
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let (parent, name) = match path[..end].rsplit_once('/') {
                Some((parent, name)) => (parent, name),
                None => ("", &path[..end]),
            };
            let parent = self.resolve(parent, OFlags::DIRECTORY | OFlags::RDONLY, 0)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
                Ok(()) => {
                    let made = self.resolve(&path[..end], OFlags::DIRECTORY | OFlags::RDONLY, 0)?;
                    self.give(made)?;
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes a new file, and the directories above it.
    pub fn create(&self, path: &str, mode: u32) -> io::Result<File> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_dirs(parent)?;
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let file = File::from(self.resolve(path, flags, mode)?);
        // What the umask took away.
        rustix::fs::fchmod(&file, Mode::from(mode))?;
        self.give(&file)?;
        Ok(file)
    }

    /// Opens a regular file to read. Never waits, whatever stands there.
    pub fn read(&self, path: &str) -> io::Result<(File, Stat)> {
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, 0)?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((File::from(file), stat))
    }

    /// What stands at `path`; none when nothing does. A symbolic link on the way is an error.
    pub fn look(&self, path: &str) -> io::Result<Option<(Kind, u64)>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = match self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Ok(parent) => parent,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, Mode::empty()) {
            Ok(entry) => {
                let stat = rustix::fs::fstat(entry)?;
                Ok(Some((kind(&stat), stat.st_size as u64)))
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The entries of a directory, at most `max`, by name.
    pub fn list(&self, path: &str, max: usize) -> io::Result<Vec<Item>> {
        let dir = self.resolve(path, OFlags::DIRECTORY | OFlags::RDONLY, 0)?;
        let mut items = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if items.len() >= max {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too many entries"));
            }
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            items.push(Item { name: name.to_bytes().to_vec(), kind: kind(&stat), size: stat.st_size as u64 });
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Kind::Special,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_made_with_the_directories_above_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), None).unwrap();
        root.create("a/b/c.txt", 0o755).unwrap().write_all(b"hi").unwrap();
        let mut text = String::new();
        root.read("a/b/c.txt").unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
        assert_eq!(root.look("a/b").unwrap().unwrap().0, Kind::Directory);
        assert_eq!(root.look("a/x/y").unwrap(), None);
        assert_eq!(root.look("a/b/c.txt/d").unwrap(), None);
        assert!(root.create("a/b/c.txt", 0o644).is_err(), "nothing is overwritten");
        root.make_dirs("a/b/").unwrap();
    }

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        let root = Root::open(dir.path(), None).unwrap();
        assert!(root.read("out/secret").is_err());
        assert!(root.read("file").is_err());
        assert!(root.create("out/new", 0o644).is_err());
        assert!(root.make_dirs("out/new").is_err());
        assert!(root.list("out", 10).is_err());
        assert!(root.look("out/secret").is_err());
        assert!(root.read("../x").is_err());
        assert_eq!(root.look("file").unwrap().unwrap().0, Kind::Symlink);
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = Root::open(dir.path(), None).unwrap();
        assert_eq!(root.read("pipe").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(root.look("pipe").unwrap().unwrap().0, Kind::Special);
    }
}
