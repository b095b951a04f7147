//! What an attempt has on disk from its first moment, made for it or used again:
//!
//! ```text
//! attempts/spare-7/  ── written, then renamed ──▶  attempts/12-0-7-1/
//!   record    what the attempt is, as the daemon words it
//!   exit      room for how it ends; zeros until then
//!   work/     the task's own, with .mesh/ in it
//! ```
//!
//! Making and removing these costs a file system more than starting a small program does. So a
//! directory in which a task has left nothing is taken back: renamed, wiped, and given to a later
//! attempt of the same user.
//!
//! Invariants:
//! - The name of an attempt appears in one step, with its record whole: who finds it knows that the
//!   attempt may have been started, and which it is.
//! - What is used again is as new, as far as anybody can look: no name, no other owner, mode, size,
//!   attribute or time than it was made with. Anything else, and it is left to the daemon to remove.
//! - No secret of an attempt outlasts it here: its record is overwritten when it is taken back.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use mesh_proto::ids::AttemptKey;
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, Uid},
    io::Errno,
};

use super::{
    clock, log,
    protocol::{Room as Wanted, SPOOL},
    record::{Pending, RECORD, RESERVED},
    sys,
};
use crate::remove::remove_tree;

/// The most spare directories that are kept, and attempts whose directories may become spare. Ends that
/// are told are acknowledged many at a time: of very short tasks hundreds wait for that.
const STOCK: usize = 1024;
/// Descriptors that each of them holds open.
const DESCRIPTORS: u64 = 5;
/// Longer than a file system's clock stands still.
const TICK: Duration = Duration::from_millis(20);
/// How the names of spare directories begin; no attempt's does.
pub const SPARE: &str = "spare-";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::CREATE.union(OFlags::EXCL).union(OFlags::WRONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why an attempt cannot begin in a directory of its own.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// Its directory is there: a jail once began it.
    #[error("its directory is there already")]
    Begun,
    #[error("cannot make its directory: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for RoomError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The directories of the attempts that began here, and the spare ones.
pub struct Rooms {
    stock: usize,
    root: Option<Root>,
    spare: Vec<Room>,
    taken: HashMap<AttemptKey, Room>,
    next: u64,
}

struct Root {
    /// As it was asked for.
    asked: PathBuf,
    path: PathBuf,
    dir: OwnedFd,
}

struct Room {
    name: String,
    owner: Option<(u32, u32)>,
    dir: OwnedFd,
    record: File,
    written: u64,
    exit: Rc<File>,
    work: Clean,
    area: Clean,
    /// When its own names changed last; only the agent changes them.
    names: (i64, u64),
    /// When all of these times were taken.
    since: Duration,
    /// The clock of the file system had gone on since then when the attempt began: whatever changes from
    /// then on has another time.
    settled: bool,
}

/// A directory, and what it looks like when nobody has touched it.
struct Clean {
    dir: OwnedFd,
    look: Look,
    times: Times,
}

/// When the kernel saw a directory change and be read last. Nobody can set the first back.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Times {
    change: (i64, u64),
    access: (i64, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    /// Of 32 or 64 bits, as the machine has it.
    links: u128,
    size: i64,
    attributes: sys::Attributes,
}

impl Rooms {
    /// None yet. They take no more than an eighth of `nofile` open files each.
    pub fn new(nofile: u64) -> Self {
        let most = usize::try_from(nofile / 8 / DESCRIPTORS).unwrap_or(STOCK);
        let (spare, taken) = (Vec::new(), HashMap::new());
        Self { stock: STOCK.min(most), root: None, spare, taken, next: 0 }
    }

    /// The directory in which attempts have theirs, without links.
    pub fn root(&mut self, asked: &Path) -> io::Result<PathBuf> {
        if let Some(root) = self.root.as_ref().filter(|root| root.asked == asked) {
            return Ok(root.path.clone());
        }
        self.leave();
        let path = asked.canonicalize()?;
        let dir = rustix::fs::open(&path, DIRECTORY, Mode::empty())?;
        // What a jail before this one kept.
        for entry in std::fs::read_dir(&path)?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(SPARE)) {
                remove_tree(&entry.path())?;
            }
        }
        self.root = Some(Root { asked: asked.to_owned(), path: path.clone(), dir });
        Ok(path)
    }

    /// Gives an attempt its directory, everything in it that `wanted` says; from here on it counts
    /// as begun. `root` must have been called for where it is.
    pub fn begin(
        &mut self,
        key: AttemptKey,
        wanted: &Wanted,
        owner: Option<(u32, u32)>,
    ) -> Result<Pending, RoomError> {
        let attempts = &self.root.as_ref().ok_or(Errno::NOENT)?.dir;
        let mut room = if let Some(place) = self.spare.iter().rposition(|room| room.owner == owner) {
            self.spare.swap_remove(place)
        } else {
            self.next += 1;
            Room::make(attempts, &format!("{SPARE}{}", self.next), owner)?
        };
        let filled = room.fill(wanted).and_then(|()| {
            room.settle();
            let name = key.to_string();
            rustix::fs::renameat_with(attempts, &room.name, attempts, &name, RenameFlags::NOREPLACE)?;
            room.name = name;
            Ok(())
        });
        if let Err(error) = filled {
            self.drop_room(&room);
            let begun = error.kind() == io::ErrorKind::AlreadyExists;
            return Err(if begun { RoomError::Begun } else { RoomError::Io(error) });
        }
        let pending = Pending::in_place(room.exit.clone());
        if self.taken.len() < self.stock {
            self.taken.insert(key, room);
        }
        Ok(pending)
    }

    /// Whether nothing was ever written into an attempt's work directory; false where that is not known.
    pub fn is_untouched(&self, key: AttemptKey) -> bool {
        self.taken.get(&key).is_some_and(|room| room.is_untouched().unwrap_or(false))
    }

    /// Takes an ended attempt's directory back; false when there is something to remove.
    pub fn take_back(&mut self, key: AttemptKey) -> bool {
        let Some(mut room) = self.taken.remove(&key) else { return false };
        let Some(attempts) = &self.root else { return false };
        let as_it_was = room.is_as_it_was().unwrap_or(false);
        if self.spare.len() >= self.stock || !(as_it_was || room.is_clean().unwrap_or(false)) {
            return false;
        }
        self.next += 1;
        let name = format!("{SPARE}{}", self.next);
        if rustix::fs::renameat(&attempts.dir, &room.name, &attempts.dir, &name).is_err() {
            return false;
        }
        room.name = name;
        match room.wipe(as_it_was) {
            Ok(()) => self.spare.push(room),
            Err(error) => {
                log(&format!("a directory cannot be used again: {error}"));
                self.drop_room(&room);
            }
        }
        true
    }

    fn drop_room(&self, room: &Room) {
        if let Some(root) = &self.root
            && let Err(error) = remove_tree(&root.path.join(&room.name))
        {
            log(&format!("cannot remove {}: {error}", room.name));
        }
    }

    fn leave(&mut self) {
        for room in std::mem::take(&mut self.spare) {
            self.drop_room(&room);
        }
        self.taken.clear();
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Room {
    fn make(root: &OwnedFd, name: &str, owner: Option<(u32, u32)>) -> io::Result<Self> {
        // The names above let the slot's user through, and nobody else.
        let dir = make_dir(root.as_fd(), name, 0o710, owner.map(|(_, gid)| (0, gid)))?;
        let make = || -> io::Result<Self> {
            let file = |name: &str| -> io::Result<File> {
                Ok(rustix::fs::openat(&dir, name, NEW, Mode::from_raw_mode(0o600))?.into())
            };
            let (record, exit) = (file("record")?, file(RECORD)?);
            reserve(&exit)?;
            let work = make_dir(dir.as_fd(), "work", 0o700, owner)?;
            let area = make_dir(work.as_fd(), ".mesh", 0o755, owner)?;
            Ok(Self {
                name: name.to_owned(),
                owner,
                work: Clean::of(work)?,
                area: Clean::of(area)?,
                names: names_changed(&dir)?,
                since: clock::boot(),
                settled: false,
                record,
                written: 0,
                exit: Rc::new(exit),
                dir: dir.try_clone()?,
            })
        };
        make().inspect_err(|_| {
            let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(root)));
            let _first_error_counts = remove_tree(&path.join(name));
        })
    }

    fn fill(&mut self, wanted: &Wanted) -> io::Result<()> {
        let length = wanted.record.len() as u64;
        self.record.write_all_at(&wanted.record, 0)?;
        if length < self.written {
            self.record.set_len(length)?;
        }
        self.written = length;
        if !wanted.script.is_empty() {
            let script = rustix::fs::openat(&self.area.dir, "script", NEW, Mode::from_raw_mode(0o500))?;
            rustix::fs::fchmod(&script, Mode::from_raw_mode(0o500))?;
            give(script.as_fd(), self.owner)?;
            File::from(script).write_all(wanted.script.as_bytes())?;
        }
        Ok(())
    }

    /// Notes whether a change from now on shows in the times.
    fn settle(&mut self) {
        // A file system that counts whole seconds shows it by times without a fraction.
        let fine =
            [self.work.times.change, self.area.times.change, self.names].iter().all(|time| time.1 != 0);
        self.settled = fine && clock::boot().saturating_sub(self.since) >= TICK;
    }

    /// Whether its task has changed and read nothing, by the times alone.
    fn is_untouched(&self) -> io::Result<bool> {
        Ok(self.settled && self.work.is_as_it_was()? && self.area.is_as_it_was()?)
    }

    /// Whether nobody has changed anything that the next attempt could see, by the times alone.
    fn is_as_it_was(&self) -> io::Result<bool> {
        Ok(self.is_untouched()?
            && names_changed(&self.dir)? == self.names
            && rustix::fs::fstat(&self.record)?.st_nlink == 1
            && rustix::fs::fstat(&*self.exit)?.st_nlink == 1)
    }

    /// Removes what is known to be in it, and looks whether that was all.
    fn is_clean(&self) -> io::Result<bool> {
        for name in [SPOOL, "end"] {
            remove_file(self.dir.as_fd(), name)?;
        }
        if !names(&self.area.dir, &[])? {
            // What tasks leave as a rule.
            for name in ["script", "progress"] {
                remove_file(self.area.dir.as_fd(), name)?;
            }
        }
        let in_place = |at: &OwnedFd, name: &str, inode: u64| -> io::Result<bool> {
            Ok(rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino == inode)
        };
        Ok(names(&self.area.dir, &[])?
            && names(&self.work.dir, &[".mesh"])?
            && self.area.is_untouched()?
            && self.work.is_untouched()?
            && in_place(&self.dir, "work", self.work.look.inode)?
            && in_place(&self.work.dir, ".mesh", self.area.look.inode)?
            && rustix::fs::fstat(&self.record)?.st_nlink == 1
            && rustix::fs::fstat(&*self.exit)?.st_nlink == 1
            && names(&self.dir, &["record", RECORD, "work"])?)
    }

    fn wipe(&mut self, as_it_was: bool) -> io::Result<()> {
        let zeros = vec![0; (self.written.max(RESERVED)) as usize];
        self.record.write_all_at(&zeros[..self.written as usize], 0)?;
        self.exit.write_all_at(&zeros[..RESERVED as usize], 0)?;
        if as_it_was {
            return Ok(());
        }
        // Also the time at which the kernel saw it change last.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        for dir in [&self.work.dir, &self.area.dir] {
            rustix::fs::futimens(dir, &Timestamps { last_access: now, last_modification: now })?;
        }
        (self.work.times, self.area.times) = (times(&self.work.dir)?, times(&self.area.dir)?);
        self.names = names_changed(&self.dir)?;
        self.since = clock::boot();
        Ok(())
    }
}

impl Clean {
    fn of(dir: OwnedFd) -> io::Result<Self> {
        Ok(Self { look: look(&dir)?, times: times(&dir)?, dir })
    }

    fn is_as_it_was(&self) -> io::Result<bool> {
        Ok(times(&self.dir)? == self.times)
    }

    fn is_untouched(&self) -> io::Result<bool> {
        // Attributes with names are none of ours; a file system that has none says so.
        let named = match rustix::fs::flistxattr(&self.dir, &mut [0_u8; 0]) {
            Ok(length) => length > 0,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(!named && look(&self.dir)? == self.look)
    }
}

fn look(dir: &OwnedFd) -> io::Result<Look> {
    let stat = rustix::fs::fstat(dir)?;
    Ok(Look {
        inode: stat.st_ino,
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        links: u128::from(stat.st_nlink),
        size: stat.st_size,
        attributes: sys::attributes(dir.as_fd()),
    })
}

fn times(dir: &OwnedFd) -> io::Result<Times> {
    let stat = rustix::fs::fstat(dir)?;
    let change = (stat.st_ctime, stat.st_ctime_nsec as u64);
    Ok(Times { change, access: (stat.st_atime, stat.st_atime_nsec as u64) })
}

/// When a name in it was made, removed or renamed last.
fn names_changed(dir: &OwnedFd) -> io::Result<(i64, u64)> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_mtime, stat.st_mtime_nsec as u64))
}

fn make_dir(at: BorrowedFd<'_>, name: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700))?;
    let dir = rustix::fs::openat(at, name, DIRECTORY, Mode::empty())?;
    // Whatever the umask says.
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    give(dir.as_fd(), owner)?;
    Ok(dir)
}

fn give(fd: BorrowedFd<'_>, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    Ok(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Takes the space for an exit record.
pub fn reserve(file: &File) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, RESERVED) {
        // A file system without it takes the room only when the record is written.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        // A directory of that name is found when its parent is looked through.
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR | Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a directory holds exactly these names.
fn names(dir: &OwnedFd, expected: &[&str]) -> io::Result<bool> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut entries = rustix::fs::RawDir::new(dir, &mut buffer);
    let mut found = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if !expected.iter().any(|expected| expected.as_bytes() == name.to_bytes()) {
            return Ok(false);
        }
        found += 1;
    }
    Ok(found == expected.len())
}
