//! How much a task's work directory has come to hold. The keeper, which has nothing else to do, looks
//! from time to time: never before a task is a second old, and the longer a look takes the less
//! often, so that it costs no more than a twentieth of a core.
//!
//! It sees files by their names. What is open without a name any more is not seen; a single
//! file is bounded by the process limit on file sizes as well.

use std::{
    ffi::CStr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use super::plan::Room;

/// Between two looks, at the least.
const PAUSE: Duration = Duration::from_secs(1);
/// How many times as long as it took a look is waited for.
const REST: u32 = 20;
/// How deep directories are followed; deeper ones are a way to hide, and count as too much.
const DEPTH: usize = 200;
/// The unit of `st_blocks`, in bytes.
const BLOCK: u64 = 512;

/// The bound, and when to look next.
pub struct Watch {
    room: Room,
    next: Instant,
}

impl Watch {
    /// A watch over the working directory; none when nothing is bounded.
    pub fn new(room: Room) -> Option<Self> {
        (room != Room::default()).then(|| Self { room, next: Instant::now() + PAUSE })
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
        let mut open = vec![Dir::new(open_dir(CWD, c".")?).ok()?];
        loop {
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
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                && let Some(dir) = open_dir(fd, name).and_then(|fd| Dir::new(fd).ok())
            {
                open.push(dir);
            }
        }
    }
}

fn open_dir(at: impl std::os::fd::AsFd, name: &CStr) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).ok()
}
