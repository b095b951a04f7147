//! Files that a task has deleted and closed and still holds by mapping them. What one takes on disk is
//! told to privileged processes alone, such as a standing keeper, which looks with all else that it looks
//! at. A keeper of the task's own has gone into the slot's user namespace; so there the slot's helper looks,
//! when a task is a second old and then from time to time, the longer a look takes the less often. Where the
//! agent is no root nobody may ask: the keeper looks, and a file counts by how much of it is mapped.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
    process::{Signal, pidfd_send_signal},
};

use super::{
    keeper::{self, Keeper, Word},
    plan::{Plan, Room, Step},
    protocol::WORK,
    room::{BLOCK, PAUSE, REST, for_each_number, open_dir},
};

/// How many mappings are looked at; more of them are a way to hide.
const MAPPINGS: usize = 1 << 22;
/// What the kernel adds to the names of deleted files.
const DELETED: &[u8] = b" (deleted)";

/// The watch over one task.
pub struct Mapped {
    room: Room,
    keeper: Keeper,
    control: OwnedFd,
    next: Instant,
}

impl Mapped {
    /// A watch over the task of this keeper, which speaks to the jail through `control`; none when nothing
    /// is bounded, or when the keeper sees as much itself.
    pub fn new(plan: &Plan, keeper: Keeper, control: OwnedFd) -> Option<Self> {
        let room = plan.room;
        let wanted = room != Room::default() && !sees_itself(plan);
        wanted.then(|| Self { room, keeper, control, next: Instant::now() + PAUSE })
    }

    /// How long until the next look.
    pub fn pause(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Looks; ends the task when it holds too much.
    pub fn look(&mut self) {
        let began = Instant::now();
        if let Some(files) = self.weigh() {
            keeper::say(self.control.as_fd(), Word::TooMuch { files });
            let _gone = pidfd_send_signal(&self.keeper.pidfd, Signal::KILL);
        }
        self.next = Instant::now() + (began.elapsed() * REST).max(PAUSE);
    }

    /// Whether of files rather than of bytes there are too many.
    fn weigh(&self) -> Option<bool> {
        let path = |name: &str| CString::new(format!("/proc/{}/{name}", self.keeper.pid)).ok();
        let work = rustix::fs::stat(path("cwd")?).ok()?;
        // The task's own, in which nobody else is. By way of a link of the kernel's, which is no path.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let processes = rustix::fs::open(path("root/proc")?, flags, Mode::empty()).ok()?;
        let held = Held::by(processes.as_fd(), c".", work);
        let (most_bytes, most_files) =
            (self.room.bytes.unwrap_or(u64::MAX), self.room.files.unwrap_or(u64::MAX));
        if held.too_many || held.files.len() as u64 > most_files {
            return Some(true);
        }
        let bytes = held.files.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        (bytes > most_bytes).then_some(false)
    }
}

/// Whether a keeper has no less power than the helper that forked it.
pub fn sees_itself(plan: &Plan) -> bool {
    !plan.steps.contains(&Step::EnterUser)
}

/// What is held by mappings.
pub struct Held {
    work: Stat,
    /// Bytes on disk by inode, or as many as are mapped where those are not told.
    pub files: HashMap<u64, u64>,
    looked: usize,
    pub too_many: bool,
}

impl Held {
    /// What the processes of this /proc hold, but for their keeper, of the device and the owner of `work`.
    pub fn by(at: impl AsFd, proc: &CStr, work: Stat) -> Self {
        let mut held = Self { work, files: HashMap::new(), looked: 0, too_many: false };
        for_each_number(at, proc, |processes, process| {
            if process != c"1"
                && let Some(process) = open_dir(processes, process)
            {
                held.process(&process);
            }
        });
        held
    }

    fn process(&mut self, process: &OwnedFd) {
        // What one process maps of a file in several pieces.
        let mut pieces: HashMap<u64, u64> = HashMap::new();
        let _gone_meanwhile = for_each_line(process, c"maps", |line| {
            self.looked += 1;
            self.too_many |= self.looked > MAPPINGS;
            if self.too_many {
                return false;
            }
            let Some(mapping) = Mapping::of(line) else { return true };
            let path = CString::new([b"map_files/", mapping.range].concat());
            match path.map(|path| rustix::fs::statat(process, path, AtFlags::empty())) {
                // Whatever else was deleted under a program, such as a library, was not this task's to write.
                Ok(Ok(stat)) => {
                    if stat.st_nlink == 0
                        && stat.st_dev == self.work.st_dev
                        && stat.st_uid == self.work.st_uid
                    {
                        let bytes = stat.st_blocks.unsigned_abs().saturating_mul(BLOCK);
                        self.files.insert(stat.st_ino, bytes);
                    }
                }
                Ok(Err(Errno::PERM | Errno::ACCESS)) if mapping.is_in(&self.work) => {
                    let sum = pieces.entry(mapping.inode).or_default();
                    *sum = sum.saturating_add(mapping.length);
                }
                // Gone meanwhile.
                Ok(Err(_)) | Err(_) => {}
            }
            true
        });
        for (inode, bytes) in pieces {
            let most = self.files.entry(inode).or_default();
            *most = bytes.max(*most);
        }
    }
}

/// A mapping of a deleted file, from a line of `/proc/PID/maps`.
struct Mapping<'a> {
    range: &'a [u8],
    length: u64,
    device: (u32, u32),
    inode: u64,
    name: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// None of a line that tells of something else.
    fn of(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(DELETED)?;
        // 7f0000000000-7f0000001000 rw-s 00000000 fd:01 1234    /work/name
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let (range, _permissions, _offset) = (fields.next()?, fields.next()?, fields.next()?);
        let (device, inode, name) = (fields.next()?, fields.next()?, fields.next()?);
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let pair = |bytes: &'a [u8], between| str::from_utf8(bytes).ok()?.split_once(between);
        let (from, to) = pair(range, '-')?;
        let (major, minor) = pair(device, ':')?;
        Some(Self {
            range,
            length: hexadecimal(to)?.checked_sub(hexadecimal(from)?)?,
            device: (hexadecimal(major)? as u32, hexadecimal(minor)? as u32),
            inode: str::from_utf8(inode).ok()?.parse().ok()?,
            name: name.trim_ascii_start(),
        })
    }

    /// Whether it seems to be of a file in the work directory.
    fn is_in(&self, work: &Stat) -> bool {
        let device = (rustix::fs::major(work.st_dev), rustix::fs::minor(work.st_dev));
        let below = self.name.strip_prefix(WORK.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
        self.device == device && below
    }
}

/// Does something for each line of a file, until it says no. A line that is longer than any is left away.
fn for_each_line(dir: impl AsFd, name: &CStr, mut action: impl FnMut(&[u8]) -> bool) -> Result<(), Errno> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let file: BorrowedFd<'_> = file.as_fd();
    let mut buffer = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut buffer[filled..]))?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut start = 0;
        while let Some(length) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            if !action(&buffer[start..start + length]) {
                return Ok(());
            }
            start += length + 1;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_deleted_file_is_read_and_others_are_left() {
        let line =
            b"7f52c0000000-7f52c0800000 rw-s 00001000 fd:01 4711                       /work/a b (deleted)";
        let mapping = Mapping::of(line).unwrap();
        assert_eq!((mapping.length, mapping.inode, mapping.device), (8 << 20, 4711, (0xfd, 1)));
        assert_eq!((mapping.range, mapping.name), (&b"7f52c0000000-7f52c0800000"[..], &b"/work/a b"[..]));
        for other in [
            &b"7f52c0000000-7f52c0800000 rw-s 00001000 fd:01 4711                       /work/a"[..],
            b"7f52c0000000-7f52c0800000 rw-p 00000000 00:00 0 ",
            b"",
        ] {
            assert!(Mapping::of(other).is_none());
        }
    }

    #[test]
    fn lines_are_whole_however_long_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (0..50_000).map(|number| format!("line {number}")).collect();
        std::fs::write(dir.path().join("maps"), lines.join("\n") + "\n").unwrap();
        let dir = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut seen = Vec::new();
        for_each_line(&dir, c"maps", |line| {
            seen.push(String::from_utf8(line.to_vec()).unwrap());
            true
        })
        .unwrap();
        assert_eq!(seen, lines);
    }
}
