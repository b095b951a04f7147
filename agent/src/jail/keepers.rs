//! Standing keepers, from the jail's side: one of them, and the stock of those that are free. Each
//! serves tasks of one user, one at a time, and is replaced when anything about it is odd.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt::Timeout},
    process::Signal,
};

use super::{
    keeper::Keeper,
    orders::{self, Order},
    plan::{self, Facts, Plan, Step},
    standing::{self, News},
};

/// Free keepers that are kept.
const STOCK: usize = 64;
/// How long a keeper may leave an order unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// A standing keeper.
pub struct Standing {
    pub keeper: Keeper,
    socket: OwnedFd,
    /// Whose tasks it serves.
    owner: (u32, u32),
    /// Whether the event loop knows it.
    pub watched: bool,
    /// Nothing of a task is alive in it.
    free: bool,
    steps: Rc<[Step]>,
}

impl Standing {
    /// Has it start a task. The error is for people; it is not to be used again then.
    pub fn start(
        &mut self,
        plan: &Plan,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> Result<(), String> {
        self.free = false;
        orders::send(self.socket.as_fd(), &Order::Start(plan), &[stdout, stderr])
            .map_err(|errno| format!("the keeper takes no order: {}", io::Error::from(errno)))
    }

    /// What it has told since the last time.
    pub fn hear(&mut self) -> Vec<News> {
        let news = standing::hear(self.socket.as_fd());
        self.free |= matches!(news.last(), Some(News::Over(_)));
        news
    }

    /// Whether nothing of its task is alive.
    pub fn is_free(&self) -> bool {
        self.free
    }

    /// What fails when this step of getting ready fails, for people.
    pub fn describe(&self, step: usize) -> &'static str {
        self.steps.get(step).map_or("preparing the keeper", Step::describe)
    }

    /// The jail's end of it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The stock of standing keepers.
pub struct Keepers {
    steps: Rc<[Step]>,
    free: Vec<Standing>,
    /// Killed and not buried yet.
    ending: Vec<Standing>,
}

impl Keepers {
    pub fn new(facts: &Facts) -> Self {
        Self { steps: plan::standing(facts).into(), free: Vec::new(), ending: Vec::new() }
    }

    /// A free keeper of this user, or a new one. The error is for people.
    pub fn take(&mut self, owner: (u32, u32), null: BorrowedFd<'_>) -> Result<Standing, String> {
        if let Some(place) = self.free.iter().rposition(|standing| standing.owner == owner) {
            return Ok(self.free.swap_remove(place));
        }
        let make = || -> Result<Standing, Errno> {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            rustix::net::sockopt::set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
            let keeper = standing::fork(&self.steps, theirs.as_fd(), null)?;
            Ok(Standing {
                keeper,
                socket: ours,
                owner,
                watched: false,
                free: true,
                steps: self.steps.clone(),
            })
        };
        make().map_err(|errno| format!("cannot fork: {}", io::Error::from(errno)))
    }

    /// Gives one back after its task.
    pub fn give_back(&mut self, standing: Standing) {
        if standing.free && self.free.len() < STOCK {
            self.free.push(standing);
        } else {
            self.retire(standing);
        }
    }

    /// Ends a free one that said something though nothing was asked of it.
    pub fn mistrust(&mut self, pid: i32) -> Option<&Standing> {
        let place = self.free.iter().position(|standing| standing.keeper.pid == pid)?;
        let standing = self.free.swap_remove(place);
        self.retire(standing);
        self.ending.last()
    }

    fn retire(&mut self, standing: Standing) {
        let _gone = rustix::process::pidfd_send_signal(&standing.keeper.pidfd, Signal::KILL);
        self.ending.push(standing);
    }

    /// A child of the jail has died; whether it was a keeper that is here.
    pub fn buried(&mut self, pid: i32) -> bool {
        let before = self.free.len() + self.ending.len();
        self.free.retain(|standing| standing.keeper.pid != pid);
        self.ending.retain(|standing| standing.keeper.pid != pid);
        before != self.free.len() + self.ending.len()
    }

    /// Those that are here.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.free.iter().chain(&self.ending).map(|standing| standing.keeper.pid)
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        for standing in std::mem::take(&mut self.free) {
            self.retire(standing);
        }
        for standing in std::mem::take(&mut self.ending) {
            let _buried = rustix::process::waitid(
                rustix::process::WaitId::PidFd(standing.keeper.pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
        }
    }
}
