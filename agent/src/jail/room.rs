//! How much a task's work directory has come to hold. The keeper, which has nothing else to do, looks
//! from time to time: never before a task is a second old, and the longer a look takes the less
//! often, so that it costs no more than a twentieth of a core.
//!
//! It sees files by their names, and those that have none any more by the descriptors that hold them
//! open or, in `mapped`, by the mappings. What nobody sees: a
//! nameless file that travels between two sockets. A directory that it cannot open counts as too much, for it
//! would be a way to hide. A single file is bounded by the process limit on file
//! sizes as well.

use std::{
    collections::HashSet,
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::{mapped::Held, plan::Room, sys};

/// Between two looks, at the least.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How many times as long as it took a look is waited for.
pub(super) const REST: u32 = 20;
/// How deep directories are followed; deeper ones are a way to hide, and count as too much.
const DEPTH: usize = 200;
/// How many descriptors are looked at; more of them are a way to hide as well.
const DESCRIPTORS: usize = 1 << 20;
/// The unit of `st_blocks`, in bytes.
pub(super) const BLOCK: u64 = 512;

/// The bound, and when to look next.
pub struct Watch {
    room: Room,
    mappings: bool,
    next: Instant,
}

impl Watch {
    /// A watch over the working directory, mappings included if nobody else looks at them; none when
    /// nothing is bounded.
    pub fn new(room: Room, mappings: bool) -> Option<Self> {
        (room != Room::default()).then(|| Self { room, mappings, next: Instant::now() + PAUSE })
    }

    /// How long until the next look.
    pub fn pause(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Looks, when it is time. Tells of too much: whether of files rather than of bytes.
    pub fn look(&mut self) -> Option<bool> {
        let began = Instant::now();
        if began < self.next {
            return None;
        }
        let verdict = self.weigh();
        self.next = Instant::now() + (began.elapsed() * REST).max(PAUSE);
        verdict
    }

    fn weigh(&self) -> Option<bool> {
        let (most_bytes, most_files) =
            (self.room.bytes.unwrap_or(u64::MAX), self.room.files.unwrap_or(u64::MAX));
        let (mut bytes, mut files) = (0_u64, 0_u64);
        let Ok((root, work)) = try_open_dir(CWD, c".").and_then(|root| {
            let work = rustix::fs::fstat(&root)?;
            Ok((Dir::new(root)?, work))
        }) else {
            return Some(true);
        };
        let mut open = vec![root];
        while !open.is_empty() {
            let depth = open.len();
            let dir = open.last_mut()?;
            let Some(entry) = dir.next() else {
                open.pop();
                continue;
            };
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(fd) = dir.fd() else { continue };
            // Gone meanwhile is well.
            let Ok(stat) = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            files += 1;
            // A file of several names counts once for each: it is no way to more room.
            bytes = bytes.saturating_add((stat.st_blocks.unsigned_abs()).saturating_mul(BLOCK));
            if bytes > most_bytes {
                return Some(false);
            }
            if files > most_files || depth > DEPTH {
                return Some(true);
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                match try_open_dir(fd, name).and_then(Dir::new) {
                    Ok(dir) => open.push(dir),
                    // Something else stands there by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(_) => return Some(true),
                }
            }
        }
        // Of this pid namespace alone: nobody else is in this /proc.
        let mut nameless = Nameless { device: work.st_dev, ..Nameless::default() };
        nameless.look();
        if self.mappings {
            let held = Held::by(CWD, c"/proc", work);
            if held.too_many {
                return Some(true);
            }
            for (inode, size) in held.files {
                if nameless.seen.insert(inode) {
                    nameless.bytes = nameless.bytes.saturating_add(size);
                }
            }
        }
        if nameless.looked > DESCRIPTORS || files.saturating_add(nameless.seen.len() as u64) > most_files {
            return Some(true);
        }
        (bytes.saturating_add(nameless.bytes) > most_bytes).then_some(false)
    }
}

/// Files of one device that are open and have no name.
#[derive(Default)]
struct Nameless {
    device: u64,
    seen: HashSet<u64>,
    bytes: u64,
    looked: usize,
}

impl Nameless {
    fn look(&mut self) {
        for_each_number(CWD, c"/proc", |processes, process| {
            let Some(own) = open_dir(processes, process) else { return };
            let mut first = None;
            for_each_number(own, c"task", |threads, thread| {
                let number = |text: &CStr| text.to_str().ok()?.parse().ok();
                // Threads have their files in common, unless one has made itself free of that.
                match (first, number(thread)) {
                    (Some(first), Some(this)) if sys::same_files(first, this) => return,
                    (Some(_), _) => {}
                    (None, this) => first = this,
                }
                if let Some(thread) = open_dir(threads, thread) {
                    self.table(thread);
                }
            });
        });
    }

    fn table(&mut self, thread: OwnedFd) {
        for_each_number(thread, c"fd", |table, name| {
            self.looked += 1;
            if self.looked > DESCRIPTORS {
                return;
            }
            let Ok(stat) = rustix::fs::statat(table, name, AtFlags::empty()) else { return };
            if stat.st_nlink == 0 && stat.st_dev == self.device && self.seen.insert(stat.st_ino) {
                self.bytes = self.bytes.saturating_add(stat.st_blocks.unsigned_abs().saturating_mul(BLOCK));
            }
        });
    }
}

/// Does something for each entry of a directory whose name is a number.
pub(super) fn for_each_number(at: impl AsFd, path: &CStr, mut action: impl FnMut(BorrowedFd<'_>, &CStr)) {
    let Some(mut dir) = open_dir(at, path).and_then(|fd| Dir::new(fd).ok()) else { return };
    while let Some(Ok(entry)) = dir.next() {
        let name = entry.file_name();
        if name.to_bytes().iter().all(u8::is_ascii_digit)
            && let Ok(fd) = dir.fd()
        {
            action(fd, name);
        }
    }
}

pub(super) fn open_dir(at: impl AsFd, name: &CStr) -> Option<OwnedFd> {
    try_open_dir(at, name).ok()
}

fn try_open_dir(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}
