//! Control groups for slots: what bounds the memory, the processes and the processor time of a task
//! as a whole. Made below the jail's own groups, so whatever bounds the agent bounds its tasks.
//!
//! Version 1 with a tree for each controller, and version 2 with one for all. Files are written
//! directly: there are eight. May enter: making, bounding, reading and removing groups; nothing
//! about tasks.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use mesh_proto::digest::Digest;
use rustix::{
    event::EventfdFlags,
    fs::{FlockOperation, flock},
};

use super::protocol::Bounds;

/// The period over which processor time is counted out, in microseconds.
const PERIOD: u64 = 100_000;
/// Processes of a slot that are the jail's own: helper and keeper.
const OWN: u64 = 2;
/// The group for those who were in a group of version 2 that a jail divides.
const BESIDE: &str = "mesh-agent";

/// The groups of this jail, in which slots get theirs.
pub struct Groups {
    version: Version,
    next: u64,
    /// Locks on them: a jail that starts sweeps away what no living one holds.
    _held: Vec<File>,
}

enum Version {
    One { memory: PathBuf, pids: PathBuf, cpu: PathBuf },
    Two(PathBuf),
}

/// What one controller, or all of version 2, is mounted as and where this process is in it.
struct Hierarchy {
    controllers: Vec<String>,
    dir: PathBuf,
}

/// What the groups of the jail of this directory are called. By the directory itself, not by its path
/// alone: in two containers that see one tree of groups, two agents may well have the same path.
pub fn name(dir: &Path) -> io::Result<String> {
    let there = fs::metadata(dir)?;
    let of = format!("{}:{}:", there.dev(), there.ino());
    let mark = Digest::of(&[of.as_bytes(), dir.as_os_str().as_encoded_bytes()].concat()).to_string();
    Ok(format!("mesh-{}", &mark[..16]))
}

impl Groups {
    /// Makes the jail's groups under this name; an error says why there are none.
    pub fn make(name: &str) -> io::Result<Self> {
        let hierarchies = hierarchies(
            &fs::read_to_string("/proc/self/cgroup")?,
            &fs::read_to_string("/proc/self/mountinfo")?,
        );
        Self::among(&hierarchies, name)
    }

    fn among(hierarchies: &[Hierarchy], name: &str) -> io::Result<Self> {
        let one = |controller: &str| {
            hierarchies.iter().find(|found| found.controllers.iter().any(|name| name == controller))
        };
        let mut held = Vec::new();
        let version = if let (Some(memory), Some(pids), Some(cpu)) = (one("memory"), one("pids"), one("cpu"))
        {
            let mut make = |found: &Hierarchy| -> io::Result<PathBuf> {
                let dir = found.dir.join(name);
                sweep(&found.dir);
                held.push(hold(&dir)?);
                empty(&dir)?;
                Ok(dir)
            };
            Version::One { memory: make(memory)?, pids: make(pids)?, cpu: make(cpu)? }
        } else {
            let two = hierarchies.iter().find(|found| found.controllers.is_empty());
            Version::Two(delegated(&two.ok_or(io::ErrorKind::NotFound)?.dir, name, &mut held)?)
        };
        Ok(Self { version, next: 0, _held: held })
    }

    /// A new group for a slot, without bounds.
    pub fn slot(&mut self) -> io::Result<Group> {
        self.next += 1;
        let name = format!("slot-{}", self.next);
        let dirs: Vec<PathBuf> = match &self.version {
            Version::One { memory, pids, cpu } => [memory, pids, cpu].map(|dir| dir.join(&name)).into(),
            Version::Two(dir) => vec![dir.join(&name)],
        };
        for dir in &dirs {
            // A jail of a version without locks may have taken ours for one of a dead jail.
            fs::create_dir_all(dir)?;
        }
        Group::open(dirs, matches!(self.version, Version::Two(_)))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        match &self.version {
            Version::One { memory, pids, cpu } => [memory, pids, cpu].map(remove).into_iter().collect(),
            Version::Two(dir) => remove(dir),
        }
    }
}

fn remove(dir: impl AsRef<Path>) {
    // One that a process is still in stays; the next jail of this directory removes it.
    let _in_use = fs::remove_dir(dir);
}

/// An empty group: what a jail before this one left in it is removed.
fn empty(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for left in fs::read_dir(dir)?.flatten() {
        if left.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(left.path());
        }
    }
    Ok(())
}

/// Makes a group where there is none, and holds it for as long as the handle lives.
fn hold(dir: &Path) -> io::Result<File> {
    loop {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let handle = match File::open(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        rustix::io::retry_on_intr(|| flock(&handle, FlockOperation::LockExclusive))?;
        // Whoever held it before may have swept it away.
        let (mine, there) = (handle.metadata()?, fs::metadata(dir));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
            return Ok(handle);
        }
    }
}

/// Removes the groups that jails of other directories left when they were killed: those that nobody
/// holds and in which nobody is any more. A living jail's group is empty before its first task is in it.
fn sweep(own: &Path) {
    let ours = |name: &str| {
        name.strip_prefix("mesh-")
            .is_some_and(|mark| mark.len() == 16 && mark.bytes().all(|c| c.is_ascii_hexdigit()))
    };
    let Ok(entries) = fs::read_dir(own) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(ours)) {
        let Ok(handle) = File::open(entry.path()) else { continue };
        if flock(&handle, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _in_use = empty(&entry.path());
            remove(entry.path());
        }
    }
}

/// The groups that this process is in, where they are mounted.
fn hierarchies(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mounts: Vec<(Vec<&str>, &str, &str)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            let (root, point) = (front.next()?, front.next()?);
            let mut back = back.split(' ');
            match back.next()? {
                "cgroup" => Some((back.nth(1)?.split(',').collect(), root, point)),
                "cgroup2" => Some((Vec::new(), root, point)),
                _ => None,
            }
        })
        .collect();
    cgroup
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let controllers: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
            let found = mounts.iter().find(|(options, ..)| match controllers.first() {
                Some(first) => options.contains(first),
                None => options.is_empty() && number == "0",
            });
            let (_, root, point) = found?;
            // In a container the mount shows a part of the tree alone.
            let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
            Some(Hierarchy {
                controllers: controllers.into_iter().map(str::to_owned).collect(),
                dir: Path::new(point).join(below.trim_start_matches('/')),
            })
        })
        .collect()
}

/// A group of version 2 in which others may be bounded. The one that this process is in must be the
/// agent's to divide; who is in it moves to a group beside, since none may be both.
fn delegated(own: &Path, name: &str, held: &mut Vec<File>) -> io::Result<PathBuf> {
    const NEEDED: [&str; 3] = ["memory", "pids", "cpu"];
    // A jail before this one divided the group above and moved us here.
    let own = if own.ends_with(BESIDE) { own.parent().unwrap_or(own) } else { own };
    let there = fs::read_to_string(own.join("cgroup.controllers"))?;
    if !NEEDED.iter().all(|needed| there.split_ascii_whitespace().any(|name| name == *needed)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let dir = own.join(name);
    sweep(own);
    held.push(hold(&dir)?);
    empty(&dir)?;
    // Whoever is born between the reading and the dividing makes the group busy.
    let mut tries = 10;
    while let Err(error) = divide(own) {
        tries -= 1;
        if tries == 0 || error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    enable(&dir)?;
    Ok(dir)
}

/// Gives the groups below this one their controllers.
fn divide(own: &Path) -> io::Result<()> {
    // The machine's own first group, which alone has no type, may be divided with processes in it.
    if own.join("cgroup.type").exists() {
        let beside = own.join(BESIDE);
        empty(&beside)?;
        for process in fs::read_to_string(own.join("cgroup.procs"))?.lines() {
            match fs::write(beside.join("cgroup.procs"), process) {
                // It has gone meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                moved => moved?,
            }
        }
    }
    enable(own)
}

fn enable(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.subtree_control"), "+memory +pids +cpu")
}

/// A slot's control groups. Dropping it removes them, which works once nobody is in them.
pub struct Group {
    dirs: Vec<PathBuf>,
    memory: File,
    /// Memory with swap (version 1), or swap alone (version 2); none where swap is not counted.
    swap: Option<File>,
    /// What waits in sockets of the internet protocols, which version 1 counts apart.
    sockets: Option<File>,
    pids: File,
    cpu: File,
    kills: File,
    held: Bounds,
    two: bool,
    event: OwnedFd,
}

impl Group {
    fn open(dirs: Vec<PathBuf>, two: bool) -> io::Result<Self> {
        let [memory, pids, cpu] = [0, 1, 2].map(|place| dirs[if two { 0 } else { place }].clone());
        let write = |path: PathBuf| OpenOptions::new().write(true).open(path);
        let names = if two {
            ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "memory.events"]
        } else {
            [
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "pids.max",
                "cpu.cfs_quota_us",
                "memory.oom_control",
            ]
        };
        let kills = File::open(memory.join(names[4]))?;
        let event = if two { changes(&memory.join(names[4]))? } else { oom_event(&memory, &kills)? };
        if !two {
            fs::write(cpu.join("cpu.cfs_period_us"), PERIOD.to_string())?;
        }
        Ok(Self {
            memory: write(memory.join(names[0]))?,
            swap: write(memory.join(names[1])).ok(),
            sockets: if two { None } else { Some(write(memory.join("memory.kmem.tcp.limit_in_bytes"))?) },
            pids: write(pids.join(names[2]))?,
            cpu: write(cpu.join(names[3]))?,
            kills,
            held: Bounds::default(),
            two,
            event,
            dirs,
        })
    }

    /// The files by which a process joins.
    pub fn lists(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Becomes readable when the memory has run out (version 2: may have).
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes the event; tells whether memory has run out.
    pub fn take_event(&mut self, kills_before: u64) -> bool {
        let _taken = rustix::io::read(&self.event, &mut [0; 4096]);
        !self.two || self.kills() > kills_before
    }

    /// Sets the bounds, as far as they are others than before.
    pub fn bound(&mut self, bounds: &Bounds) -> io::Result<()> {
        let limit = |file: &File, most: Option<u64>, none: &str| {
            let mut file = file;
            file.write_all(most.map_or_else(|| none.to_owned(), |most| most.to_string()).as_bytes())
        };
        let none = if self.two { "max" } else { "-1" };
        if bounds.memory != self.held.memory {
            let rises = bounds.memory.unwrap_or(u64::MAX) > self.held.memory.unwrap_or(u64::MAX);
            match &self.swap {
                // Swap alone: there is none for a task.
                Some(swap) if self.two => {
                    limit(swap, Some(0), none)?;
                    limit(&self.memory, bounds.memory, none)?;
                }
                // Memory and swap together may never be less than memory.
                Some(swap) if rises => {
                    limit(swap, bounds.memory, none)?;
                    limit(&self.memory, bounds.memory, none)?;
                }
                Some(swap) => {
                    limit(&self.memory, bounds.memory, none)?;
                    limit(swap, bounds.memory, none)?;
                }
                None => limit(&self.memory, bounds.memory, none)?,
            }
            if let Some(sockets) = &self.sockets {
                limit(sockets, bounds.memory, none)?;
            }
        }
        if bounds.processes != self.held.processes {
            limit(&self.pids, bounds.processes.map(|most| most.saturating_add(OWN)), "max")?;
        }
        if bounds.cpu_millis != self.held.cpu_millis {
            // The kernel takes a hundredth of a period at the least.
            let quota =
                bounds.cpu_millis.map(|millis| (millis.saturating_mul(PERIOD) / 1000).max(PERIOD / 100));
            if self.two {
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                (&self.cpu).write_all(format!("{quota} {PERIOD}").as_bytes())?;
            } else {
                limit(&self.cpu, quota, "-1")?;
            }
        }
        self.held = *bounds;
        Ok(())
    }

    /// Whether what former tasks have left in files, and is still counted here, leaves room for these
    /// bounds. A bound below that would end the slot's helper, or be refused.
    pub fn fits(&self, bounds: &Bounds) -> bool {
        let falls = |most: &u64| self.held.memory.is_none_or(|held| *most < held);
        let Some(most) = bounds.memory.filter(falls) else { return true };
        let name = if self.two { "memory.current" } else { "memory.usage_in_bytes" };
        let usage = self.dirs.first().and_then(|dir| fs::read_to_string(dir.join(name)).ok());
        usage.and_then(|usage| usage.trim().parse::<u64>().ok()).is_some_and(|usage| usage < most)
    }

    /// How many processes the memory killer has taken here so far.
    pub fn kills(&mut self) -> u64 {
        let mut text = String::new();
        if self.kills.rewind().and_then(|()| self.kills.read_to_string(&mut text)).is_err() {
            return 0;
        }
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether nobody but the slot's helper is here.
    pub fn is_clean(&self, helper: i32) -> bool {
        self.lists().iter().all(|list| {
            fs::read_to_string(list).is_ok_and(|text| text.lines().all(|pid| pid.parse() == Ok(helper)))
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.dirs.iter().for_each(remove);
    }
}

/// Version 1 tells of exhausted memory through an eventfd.
fn oom_event(dir: &Path, control: &File) -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    fs::write(dir.join("cgroup.event_control"), format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
    Ok(event)
}

/// Version 2 tells of it by a change of a file.
fn changes(file: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, file, inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

#[cfg(test)]
mod tests;
