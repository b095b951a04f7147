//! What stands in a slot from one task to the next, and what shows that a task has touched it: then the
//! next one gets another. For those who sit in slots: a helper, a standing keeper.

use std::{
    ffi::{CStr, CString},
    fs::File,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::UnmountFlags,
};

use super::{
    protocol::WORK,
    steps::{TAME, make_open_dir, open_path},
    sys,
};

const TMP: &CStr = c"/tmp";
/// Where shared memory lies in it.
const SHARED: &CStr = c"/tmp/.shm";
/// Unmounts what may still be held: nobody sees it from then on.
const AWAY: UnmountFlags = UnmountFlags::DETACH.union(UnmountFlags::NOFOLLOW);

/// The number that the next queue, semaphore and segment is to get: the first ever, until one is made.
const NEXT: [&CStr; 3] =
    [c"/proc/sys/kernel/msg_next_id", c"/proc/sys/kernel/sem_next_id", c"/proc/sys/kernel/shm_next_id"];
const FIRST: &[u8] = b"0\n";

/// What a standing keeper keeps.
#[derive(Default)]
pub struct Stood {
    scratch: Option<Scratch>,
    queues: Option<[OwnedFd; 3]>,
    /// The file of the process number given last.
    last_number: Option<OwnedFd>,
    /// Directories that Landlock's rules name for every task.
    open: Vec<(CString, OwnedFd)>,
}

impl Stood {
    /// An empty /tmp with these options: the one that stands, or another.
    pub fn scratch(&mut self, options: &CString) -> Result<(), Errno> {
        if self.scratch.as_ref().is_some_and(|scratch| scratch.options == *options) {
            return Ok(());
        }
        if self.scratch.take().is_some() {
            rustix::mount::unmount(TMP, AWAY)?;
        }
        rustix::mount::mount(c"mesh", TMP, c"tmpfs", TAME, options.as_c_str())?;
        make_open_dir(SHARED)?;
        self.scratch = Some(Scratch { options: options.clone(), untouched: Stamp::take()? });
        Ok(())
    }

    /// A namespace of queues, semaphores and shared memory in which none was ever made. Whoever makes one
    /// takes the number that was set for the next, which shows it. Whether it is another than before.
    pub fn queues(&mut self) -> Result<bool, Errno> {
        let untouched = |file: &OwnedFd| {
            let mut number = [0; 8];
            rustix::io::pread(file, &mut number, 0).is_ok_and(|length| number[..length] == *FIRST)
        };
        if self.queues.as_ref().is_some_and(|files| files.iter().all(untouched)) {
            return Ok(false);
        }
        self.queues = None;
        sys::unshare(sys::NEW_IPC)?;
        let set = |path: &CStr| {
            let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::pwrite(&file, FIRST, 0)?;
            Ok::<_, Errno>(file)
        };
        self.queues = match (set(NEXT[0]), set(NEXT[1]), set(NEXT[2])) {
            (Ok(messages), Ok(semaphores), Ok(segments)) => Some([messages, semaphores, segments]),
            // A kernel without checkpoints has no such files: every task gets a namespace of its own.
            _ => None,
        };
        Ok(true)
    }

    /// Process numbers begin again. A kernel without checkpoints goes on counting, which tells how many
    /// there were.
    pub fn numbers_anew(&mut self) -> Result<(), Errno> {
        if self.last_number.is_none() {
            let path = c"/proc/sys/kernel/ns_last_pid";
            self.last_number = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        }
        self.last_number.as_ref().map_or(Ok(()), |file| rustix::io::pwrite(file, b"1", 0).map(drop))
    }

    /// A directory that is the same for every task.
    pub fn open(&mut self, path: &CString) -> Result<BorrowedFd<'_>, Errno> {
        let known = self.open.iter().position(|(name, _)| name == path);
        if known.is_none() {
            self.open.push((path.clone(), open_path(path)?));
        }
        Ok(self.open[known.unwrap_or(self.open.len() - 1)].1.as_fd())
    }

    /// Takes away what the last task had in the tree: its work directory, and /tmp when it was touched.
    pub fn tidy(&mut self) -> Result<(), Errno> {
        rustix::process::chdir(c"/")?;
        match rustix::mount::unmount(WORK, AWAY) {
            // Its plan did not come so far.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        if self.scratch.as_ref().is_some_and(|scratch| Stamp::take().ok() != Some(scratch.untouched)) {
            self.scratch = None;
            rustix::mount::unmount(TMP, AWAY)?;
        }
        Ok(())
    }
}

/// A /tmp that stands as long as no task touches it.
struct Scratch {
    options: CString,
    untouched: Stamp,
}

/// What shows a use of /tmp: times and modes of its two directories, and what its file system has left.
#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    directories: [[i64; 8]; 2],
    left: [u64; 2],
}

impl Stamp {
    fn take() -> Result<Self, Errno> {
        let of = |path| {
            let stat = rustix::fs::lstat(path)?;
            Ok::<_, Errno>([
                i64::from(stat.st_mode),
                stat.st_nlink as i64,
                stat.st_atime,
                stat.st_atime_nsec as i64,
                stat.st_mtime,
                stat.st_mtime_nsec as i64,
                stat.st_ctime,
                stat.st_ctime_nsec as i64,
            ])
        };
        let space = rustix::fs::statfs(TMP)?;
        Ok(Self { directories: [of(TMP)?, of(SHARED)?], left: [space.f_bfree, space.f_ffree] })
    }
}

/// The counters of a network of its own: whether anything was ever sent there. A task makes no packets
/// but IP's, so those of the interface say no more. Flow labels stay for a while without anything sent.
pub struct Traffic {
    files: Vec<File>,
    unused: Vec<u8>,
}

impl Traffic {
    /// Of the network that this process has now, unused.
    pub fn watch() -> Self {
        let file = |name| File::open(format!("/proc/self/net/{name}")).ok();
        let mut traffic = Self {
            files: ["snmp", "snmp6", "ip6_flowlabel"].into_iter().filter_map(file).collect(),
            unused: Vec::new(),
        };
        traffic.unused = traffic.read();
        traffic
    }

    /// Whether it was used since.
    pub fn seen(&self) -> bool {
        self.files.is_empty() || self.read() != self.unused
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16 * 1024];
        let mut length = 0;
        for file in &self.files {
            // Each is given whole, and is far shorter.
            length += file.read_at(&mut bytes[length..], 0).unwrap_or(0);
        }
        bytes.truncate(length);
        bytes
    }
}
