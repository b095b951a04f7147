//! How much a task's work directory has come to hold. The keeper, which has nothing else to do, looks
//! from time to time: never before a task is a second old, and the longer a look takes the less
//! often, so that it costs no more than a twentieth of a core.
//!
//! It sees files by their names, and those that have none any more by the descriptors that hold them
//! open or, in `mapped`, by the mappings. What nobody sees: a
//! nameless file that travels between two sockets. A directory that it cannot open counts as too much, for it
//! would be a way to hide. A single file is bounded by the process limit on file
//! sizes as well.
//!
//! It looks as well at what waits in the sockets by which the kernel tells of networks (netlink): of all the
//! memory that a task can have the kernel hold for it, this counts as nobody's.

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

use super::{keeper::Word, mapped::Held, plan::Room, sys};

/// Between two looks, at the least.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How many times as long as it took a look is waited for.
pub(super) const REST: u32 = 20;
/// How deep directories are followed; deeper ones are a way to hide, and count as too much.
const DEPTH: usize = 200;
/// How many descriptors are looked at; more of them are a way to hide as well.
const DESCRIPTORS: usize = 1 << 20;
/// The column of that table which says how much a socket holds: after its address, its protocol, its number
/// and its groups.
const RECEIVED: usize = 4;
/// The unit of `st_blocks`, in bytes.
pub(super) const BLOCK: u64 = 512;

/// The bounds, and when to look next: at files, at sockets. What has no bound is not looked at.
pub struct Watch {
    room: Room,
    mappings: bool,
    files: Option<Instant>,
    sockets: Option<Instant>,
}

impl Watch {
    /// A watch over the working directory, mappings included if nobody else looks at them; none when
    /// nothing is bounded.
    pub fn new(room: Room, mappings: bool) -> Option<Self> {
        let first = Instant::now() + PAUSE;
        let files = room.bytes.or(room.files).map(|_| first);
        let sockets = room.memory.map(|_| first);
        files.or(sockets).map(|_| Self { room, mappings, files, sockets })
    }

    /// How long until the next look.
    pub fn pause(&self) -> Duration {
        let next = self.files.into_iter().chain(self.sockets).min();
        let pause = next.map_or(PAUSE, |next| next.saturating_duration_since(Instant::now()));
        pause.max(Duration::from_millis(1))
    }

    /// Looks, when it is time. Tells of too much.
    pub fn look(&mut self) -> Option<Word> {
        let most = self.room.memory.unwrap_or(u64::MAX);
        // They fill sooner than a disk, and looking takes less.
        if let Some(true) = when_due(&mut self.sockets, || waiting() > most) {
            return Some(Word::TooMuchWaits);
        }
        let mut next = self.files;
        let verdict = when_due(&mut next, || self.weigh());
        self.files = next;
        verdict.flatten().map(|files| Word::TooMuch { files })
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

/// Looks, if it is time, and says when it is the next time.
fn when_due<T>(next: &mut Option<Instant>, look: impl FnOnce() -> T) -> Option<T> {
    let began = Instant::now();
    if next.is_none_or(|next| began < next) {
        return None;
    }
    let seen = look();
    *next = Some(Instant::now() + (began.elapsed() * REST).max(PAUSE));
    Some(seen)
}

/// Bytes that wait in the netlink sockets of this network.
fn waiting() -> u64 {
    let table = std::fs::read_to_string("/proc/self/net/netlink").unwrap_or_default();
    let of_line = |line: &str| line.split_ascii_whitespace().nth(RECEIVED)?.parse::<u64>().ok();
    table.lines().filter_map(of_line).fold(0, u64::saturating_add)
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
