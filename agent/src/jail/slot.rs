//! Slots with a helper, from the jail's side: that helper on prepared ground, its control groups, and the
//! stock of those that are free. A slot serves one task at a time and is replaced when a task has left
//! something in it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    process::{Pid, PidfdFlags, Signal},
};

use super::{
    cgroup::Groups,
    held::Held,
    helper::{self, Reply},
    keeper::{Keeper, Stdio},
    log,
    orders::{self, Order},
    plan::{self, Facts, Ground, Plan, Step, System},
    protocol::Bounds,
};

/// Free slots that are kept.
const STOCK: usize = 64;
/// How long a helper may take to answer, its preparations included, in seconds.
const PATIENCE: i64 = 10;

/// A helper and what it sits on.
pub struct Slot {
    pub pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    ground: Ground,
    steps: Vec<Step>,
    pub held: Held,
    /// Not to be used again.
    spent: bool,
    /// Its helper is dead and buried.
    lost: bool,
}

impl Slot {
    /// Starts a keeper here. The error is for people; the slot is spent then.
    pub fn start(&mut self, plan: &Plan, bounds: &Bounds, stdio: &Stdio<'_>) -> Result<Keeper, String> {
        // Made for this task's mounts, the directories would tell the next one of them.
        self.spent |= plan.steps.iter().any(|step| matches!(step, Step::Unseal(_)));
        if let Err(error) = self.held.bound(bounds) {
            self.spent = true;
            return Err(format!("setting the limits of the control group: {error}"));
        }
        let sent = orders::send(
            self.socket.as_fd(),
            &Order::Start(plan),
            &[stdio.stdout, stdio.stderr, stdio.control],
        );
        let reply = sent.and_then(|()| self.hear());
        let wrong = match reply {
            Ok(Reply::Forked(pid)) => match pidfd(pid) {
                // A child of this process that nobody has buried yet: the number is its.
                Ok(pidfd) => return Ok(Keeper { pid, pidfd }),
                Err(error) => format!("watching the task: {error}"),
            },
            Ok(Reply::CannotFork(errno)) => format!("cannot fork: {}", io::Error::from(errno)),
            Ok(Reply::NoGround { step, errno }) => {
                let what = self.steps.get(step).map_or("preparing the sandbox", Step::describe);
                format!("{what}: {}", io::Error::from(errno))
            }
            Ok(Reply::Confused) => "the slot's helper does not understand".to_owned(),
            Err(error) => format!("the slot's helper does not answer: {}", io::Error::from(error)),
        };
        self.spent = true;
        Err(wrong)
    }

    /// A helper only forks; it answers at once or is in trouble.
    fn hear(&self) -> Result<Reply, Errno> {
        let mut bytes = [0; Reply::SIZE];
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, Some(&patience)))? == 0 {
            return Err(Errno::TIMEDOUT);
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut bytes))? {
            Reply::SIZE => Ok(Reply::decode(bytes)),
            _ => Err(Errno::PIPE),
        }
    }

    /// Its helper is dead and buried.
    pub fn lose(&mut self) {
        self.lost = true;
    }
}

fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    rustix::process::pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())
}

/// The stock of slots.
pub struct Slots {
    facts: Facts,
    system: System,
    /// An empty directory for trees to be built on.
    base: PathBuf,
    groups: Option<Groups>,
    free: Vec<Slot>,
    /// Slots whose helpers were killed and are not buried yet.
    ending: Vec<Slot>,
}

impl Slots {
    pub fn new(facts: Facts, system: System, base: PathBuf, groups: Option<Groups>) -> Self {
        Self { facts, system, base, groups, free: Vec::new(), ending: Vec::new() }
    }

    /// A free slot on this ground in which there is room, or a new one. The error is for people.
    pub fn take(&mut self, ground: &Ground, bounds: &Bounds, null: BorrowedFd<'_>) -> Result<Slot, String> {
        if let Some(place) = self.free.iter().rposition(|slot| slot.ground == *ground) {
            let slot = self.free.swap_remove(place);
            if slot.held.fits(bounds) {
                return Ok(slot);
            }
            self.retire(slot);
        }
        let held = self.hold(ground)?;
        make(&self.facts, &self.system, &self.base, ground, held, null)
    }

    /// What a standing keeper takes to sit on this ground: the steps and its hold. The error is for people.
    pub fn prepare(&mut self, ground: &Ground) -> Result<(Vec<Step>, Held), String> {
        let held = self.hold(ground)?;
        let steps = plan::ground(ground, &self.system, &self.base, &held.lists(), &self.facts);
        Ok((steps.map_err(|error| error.to_string())?, held))
    }

    fn hold(&mut self, ground: &Ground) -> Result<Held, String> {
        let group = match &mut self.groups {
            Some(groups) if ground.groups => {
                Some(groups.slot().map_err(|error| format!("making a control group: {error}"))?)
            }
            Some(_) | None => None,
        };
        Ok(Held::by(group))
    }

    /// Gives a slot back after its task has ended, to the last process.
    pub fn give_back(&mut self, slot: Slot) {
        if slot.lost {
            // Nobody is left to wait for: with the slot its control groups go, now.
            return;
        }
        let clean = slot.held.is_clean(slot.pid);
        if slot.spent
            || !clean
            || self.free.len() >= STOCK
            || orders::send(slot.socket.as_fd(), &Order::Clean, &[]).is_err()
        {
            self.retire(slot);
        } else {
            self.free.push(slot);
        }
    }

    fn retire(&mut self, slot: Slot) {
        let _gone = rustix::process::pidfd_send_signal(&slot.pidfd, Signal::KILL);
        self.ending.push(slot);
    }

    /// A child of the jail has died; whether it was a helper of a slot that is here.
    pub fn buried(&mut self, pid: i32) -> bool {
        let before = self.free.len() + self.ending.len();
        // With the slot its control groups go.
        self.free.retain(|slot| slot.pid != pid);
        self.ending.retain(|slot| slot.pid != pid);
        before != self.free.len() + self.ending.len()
    }

    /// The helpers of slots that are here.
    pub fn helpers(&self) -> impl Iterator<Item = i32> {
        self.free.iter().chain(&self.ending).map(|slot| slot.pid)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in std::mem::take(&mut self.free) {
            self.retire(slot);
        }
        for slot in std::mem::take(&mut self.ending) {
            let _buried = rustix::process::waitid(
                rustix::process::WaitId::PidFd(slot.pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
        }
    }
}

/// A helper on this ground.
pub fn make(
    facts: &Facts,
    system: &System,
    base: &Path,
    ground: &Ground,
    held: Held,
    null: BorrowedFd<'_>,
) -> Result<Slot, String> {
    let steps =
        plan::ground(ground, system, base, &held.lists(), facts).map_err(|error| error.to_string())?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| format!("cannot make a socket: {}", io::Error::from(error)))?;
    let (pid, pidfd) = helper::fork(ground.namespaces(facts), &steps, theirs.as_fd(), null)
        .map_err(|error| format!("cannot fork: {}", io::Error::from(error)))?;
    Ok(Slot { pid, pidfd, socket: ours, ground: ground.clone(), steps, held, spent: false, lost: false })
}

impl Slot {
    /// Leaves the slot for good, outside of a stock.
    pub fn end(self) {
        let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let buried = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        if let Err(error) = buried {
            log(&format!("a slot's helper cannot be buried: {}", io::Error::from(error)));
        }
    }
}
