//! Standing keepers, from the jail's side: one of them, and the stock of those that are free. Each
//! serves tasks of one kind, one at a time, and is replaced when anything about it is odd.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt::Timeout},
    process::Signal,
    time::Timespec,
};

use super::{
    held::Held,
    keeper::Keeper,
    orders::{self, Order},
    plan::{self, Facts, Ground, Plan, Step},
    protocol::Bounds,
    standing::{self, News},
    steps::{Hands, carry_out},
};

/// Free keepers that are kept.
const STOCK: usize = 64;
/// How long a keeper may leave an order unread, or unanswered.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where a keeper stands: what tasks of the same kind have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Without a sandbox, for the tasks of this user.
    Open((u32, u32)),
    /// At level strict, in a slot.
    Slot(Ground),
}

/// A standing keeper.
pub struct Standing {
    pub keeper: Keeper,
    socket: OwnedFd,
    seat: Seat,
    pub held: Held,
    /// Whether the event loop knows it.
    pub watched: bool,
    /// Nothing of a task is alive in it.
    free: bool,
    steps: Rc<[Step]>,
}

impl Standing {
    /// One that gets ready in this seat by these steps.
    pub fn make(
        seat: Seat,
        facts: &Facts,
        steps: Rc<[Step]>,
        held: Held,
        null: BorrowedFd<'_>,
    ) -> Result<Self, Errno> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
        let namespaces = match &seat {
            Seat::Open(_) => 0,
            Seat::Slot(ground) => ground.namespaces(facts),
        };
        if namespaces != 0 {
            // Process numbers come as they are here.
            rustix::net::sockopt::set_socket_passcred(&ours, true)?;
        }
        let keeper = standing::fork(namespaces, &steps, theirs.as_fd(), null)?;
        Ok(Self { keeper, socket: ours, seat, held, watched: false, free: true, steps })
    }

    /// Has it start a task. The error is for people.
    pub fn start(
        &mut self,
        plan: &Plan,
        bounds: &Bounds,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> Result<(), String> {
        let named = |what: &str, errno: Errno| format!("{what}: {}", io::Error::from(errno));
        // Whatever fails from here on, it is not to be used again.
        self.free = false;
        self.held
            .bound(bounds)
            .map_err(|error| format!("setting the limits of the control group: {error}"))?;
        let mut hands = Hands::default();
        for step in &plan.brought {
            carry_out(step, &mut hands).map_err(|errno| named(step.describe(), errno))?;
        }
        let brought = hands.give_up();
        let given: Vec<BorrowedFd<'_>> =
            [stdout, stderr].into_iter().chain(brought.iter().map(OwnedFd::as_fd)).collect();
        orders::send(self.socket.as_fd(), &Order::Start(plan), &given)
            .map_err(|errno| named("the keeper takes no order", errno))
    }

    /// Waits until it has told something, or has died.
    pub fn wait(&self) -> Result<(), Errno> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        match rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, Some(&patience)))? {
            0 => Err(Errno::TIMEDOUT),
            _ => Ok(()),
        }
    }

    /// Ends it for good, outside of a stock.
    pub fn end(self) {
        let _gone = rustix::process::pidfd_send_signal(&self.keeper.pidfd, Signal::KILL);
        let _buried = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.keeper.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }

    /// What it has told since the last time.
    pub fn hear(&mut self) -> Vec<News> {
        let news = standing::hear(self.socket.as_fd(), matches!(self.seat, Seat::Slot(_)));
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
    facts: Facts,
    /// How one without a sandbox gets ready.
    steps: Rc<[Step]>,
    free: Vec<Standing>,
    /// Killed and not buried yet.
    ending: Vec<Standing>,
}

impl Keepers {
    pub fn new(facts: Facts) -> Self {
        Self { steps: plan::standing(&facts).into(), facts, free: Vec::new(), ending: Vec::new() }
    }

    /// A free keeper of this seat in which there is room, or a new one; `prepare` says how a new one of a
    /// slot gets ready. Where tasks follow each other at `once`, two take turns in a slot: one tidies up
    /// while the other serves. The error is for people.
    pub fn take(
        &mut self,
        seat: Seat,
        bounds: &Bounds,
        once: bool,
        prepare: impl FnOnce(&Ground) -> Result<(Vec<Step>, Held), String>,
        null: BorrowedFd<'_>,
    ) -> Result<Standing, String> {
        let mut free = self.free.iter().enumerate().filter(|(_, standing)| standing.seat == seat);
        // Who was free first has tidied up first.
        let first = free.next().map(|(place, _)| place);
        let alone = once && matches!(seat, Seat::Slot(_)) && free.next().is_none();
        if let Some(place) = first.filter(|_| !alone) {
            let standing = self.free.remove(place);
            if standing.held.fits(bounds) {
                return Ok(standing);
            }
            self.retire(standing);
        }
        let (steps, held) = match &seat {
            Seat::Open(_) => (self.steps.clone(), Held::by(None)),
            Seat::Slot(ground) => prepare(ground).map(|(steps, held)| (steps.into(), held))?,
        };
        Standing::make(seat, &self.facts, steps, held, null)
            .map_err(|errno| format!("cannot fork: {}", io::Error::from(errno)))
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
        let standing = self.free.remove(place);
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
            standing.end();
        }
    }
}
