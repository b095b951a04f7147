//! A standing keeper: starts, buries and ends one task after another, for tasks without a pid
//! namespace whose user is not the jail's. It is to such a task what a keeper of its own would be,
//! a subreaper that hunts until no child is left, but its fork is paid once.
//!
//! What it is to be for each task is its own from the beginning (limits, umask, directory, score,
//! capabilities); what a task is to be happens in the task's process, between vfork and exec, so a
//! task finds nothing of the one before: no process, no descriptor, no signal.
//!
//! Everything here runs in a fork of the jail, the steps of a task in a vfork of that.

#![expect(unsafe_code, reason = "forks")]

use std::{
    ffi::{c_int, c_void},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
    thread::CapabilitySet,
};

use super::{
    clock,
    keeper::{self, END_NOW, Keeper, STACK, Task, Word},
    orders::{self, Inbox, Order},
    plan::{Plan, Step},
    steps::{Hands, carry_out, keep_capabilities},
    sweep,
    sys::{self, Dead, Fork, Pointers, Signals, Usage},
};

/// A start is told after this time, or with its end when that comes sooner: the jail is woken once for
/// a short task.
const LINGER: Duration = Duration::from_millis(2);

/// What a standing keeper tells the jail of a task, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum News {
    /// The keeper itself could not get ready: this step of [`super::plan::standing`] failed. It ends.
    Unready { step: usize, errno: Errno },
    /// The command runs, since this moment of the boot-time clock and these milliseconds of Unix time.
    Runs { process: i32, since: Duration, at_ms: u64 },
    /// A step of the plan failed.
    StepFailed { step: usize, errno: Errno },
    /// Every step was done, but the command cannot be executed.
    NoExec(Errno),
    /// The command's process ended with this status.
    Ended(i32),
    /// Nothing of the task is alive, and this is what it used. The keeper is ready for another.
    Over(Usage),
}

/// Bytes of one of them.
const NEWS: usize = 32;
/// The most that are told at once.
const AT_ONCE: usize = 3;

impl News {
    fn encode(self) -> [u8; NEWS] {
        let nanos = |time: Duration| time.as_nanos() as u64;
        let words = match self {
            Self::Unready { step, errno } => [1, step as u64, errno.raw_os_error() as u64, 0],
            Self::Runs { process, since, at_ms } => [2, process as u64, nanos(since), at_ms],
            Self::StepFailed { step, errno } => [3, step as u64, errno.raw_os_error() as u64, 0],
            Self::NoExec(errno) => [4, errno.raw_os_error() as u64, 0, 0],
            Self::Ended(status) => [5, status as u64, 0, 0],
            Self::Over(usage) => [6, nanos(usage.cpu), usage.max_rss_bytes, 0],
        };
        let mut bytes = [0; NEWS];
        for (place, word) in words.into_iter().enumerate() {
            bytes[8 * place..8 * place + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |place: usize| Some(u64::from_ne_bytes(*bytes.get(8 * place..)?.first_chunk()?));
        let (a, b, c) = (word(1)?, word(2)?, word(3)?);
        let errno = |word: u64| Errno::from_raw_os_error(word as i32);
        Some(match word(0)? {
            1 => Self::Unready { step: a as usize, errno: errno(b) },
            2 => Self::Runs { process: a as i32, since: Duration::from_nanos(b), at_ms: c },
            3 => Self::StepFailed { step: a as usize, errno: errno(b) },
            4 => Self::NoExec(errno(a)),
            5 => Self::Ended(a as i32),
            6 => Self::Over(Usage { cpu: Duration::from_nanos(a), max_rss_bytes: b }),
            _ => return None,
        })
    }
}

/// What has come from a keeper by now.
pub fn hear(socket: BorrowedFd<'_>) -> Vec<News> {
    let mut bytes = [0; NEWS * AT_ONCE];
    let Ok(received) = rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT) else { return Vec::new() };
    // What is told at once is far below what a socket takes whole.
    bytes[..received.0].chunks_exact(NEWS).filter_map(News::decode).collect()
}

/// Forks a keeper that gets ready by `steps` and takes orders from `socket`.
pub fn fork(steps: &[Step], socket: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<Keeper, Errno> {
    let jail = std::process::id() as i32;
    // SAFETY: the jail has one thread (checked when it starts).
    match unsafe { sys::fork_into(0) }? {
        Fork::Parent { pid, pidfd } => Ok(Keeper { pid, pidfd }),
        Fork::Child => {
            // A panic must not unwind into the jail's loop in this copy of it.
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let (socket, _null) = orders::place(socket, null);
                // What every task has there too.
                sys::keep_on_exec(0);
                Standing { socket, jail, stack: Vec::with_capacity(STACK), hands: Hands::default() }
                    .serve(steps)
            }));
            sys::exit_now(1)
        }
    }
}

struct Standing<'a> {
    socket: BorrowedFd<'a>,
    jail: i32,
    stack: Vec<u128>,
    hands: Hands,
}

impl Standing<'_> {
    fn serve(mut self, steps: &[Step]) -> ! {
        Signals::all().block_only();
        for (step, what) in steps.iter().enumerate() {
            if let Err(errno) = carry_out(what, &mut self.hands) {
                self.tell(&[News::Unready { step, errno }]);
                sys::exit_now(1)
            }
        }
        // To go into a task's directory, become its user and end what it started.
        let needed = CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::KILL;
        if let Ok(has) = rustix::thread::capabilities(None) {
            let _less = keep_capabilities(needed & has.permitted);
        }
        keeper::tie_to_jail(false);
        let mut inbox = Inbox::default();
        while let Some(Order::Start(plan)) = inbox.next(self.socket) {
            let Some(stdio) = inbox.descriptors() else { break };
            self.run(&plan, stdio);
        }
        // The jail has gone, or makes no sense.
        sys::exit_now(0)
    }

    /// One task from its birth to its burial.
    fn run(&mut self, plan: &Plan, stdio: [OwnedFd; 2]) {
        // What was meant for the task before this one.
        let all = Signals::all();
        while all.wait(Some(Duration::ZERO)).is_some() {}
        if rustix::process::getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != self.jail) {
            // Its death may have been among it.
            sys::exit_now(0)
        }
        let (argv, env) = (Pointers::new(&plan.argv), Pointers::new(&plan.env));
        let task = Task { plan, argv: &argv, env: &env, hands: &mut self.hands, first: 1, failed: None };
        let mut birth = Birth { task, stdio: &stdio };
        // SAFETY: `become_task` ends in exec or exit and touches only what `birth` holds; it is alive
        // until then because this side waits.
        let born =
            unsafe { sys::vfork_with(become_task, self.stack.spare_capacity_mut(), (&raw mut birth).cast()) };
        let (since, at_ms) = (clock::boot(), clock::wall_ms());
        let failed = birth.task.failed;
        // The task's pipes are not the keeper's to hold open.
        drop(stdio);
        let mut used = Usage::default();
        let mut news = match (born, failed) {
            (Err(errno), _) => vec![News::StepFailed { step: 0, errno }],
            (Ok(_), Some(Word::StepFailed { step, errno })) => vec![News::StepFailed { step, errno }],
            (Ok(_), Some(Word::NoExec(errno))) => vec![News::NoExec(errno)],
            (Ok(process), _) => self.watch(News::Runs { process, since, at_ms }, process, since, &mut used),
        };
        let left = sys::reap();
        if left.is_ok() {
            // How it ended is known to the jail while this hunts.
            self.tell(&std::mem::take(&mut news));
            let mut buried = |dead: Dead| used = used.and(dead.usage);
            left.into_iter().flatten().for_each(&mut buried);
            keeper::hunt(buried);
        }
        news.push(News::Over(used));
        self.tell(&news);
    }

    /// From the exec to the end of the command's process; gives what is left to tell.
    fn watch(&self, runs: News, process: i32, since: Duration, used: &mut Usage) -> Vec<News> {
        let signals = Signals::of(&[libc::SIGCHLD, libc::SIGTERM, END_NOW]);
        let mut untold = vec![runs];
        loop {
            while let Ok(Some(dead)) = sys::reap() {
                *used = used.and(dead.usage);
                if dead.pid == process {
                    untold.push(News::Ended(dead.status));
                    return untold;
                }
            }
            let wait = LINGER.saturating_sub(clock::boot().saturating_sub(since));
            let arrived = signals.wait((!untold.is_empty()).then_some(wait));
            match arrived {
                None => self.tell(&std::mem::take(&mut untold)),
                // Also the kernel's, when the jail has died.
                Some(arrived) if arrived.signal == END_NOW => {
                    sweep::signal_descendants(std::process::id() as i32, libc::SIGKILL);
                }
                Some(arrived) if arrived.signal == libc::SIGTERM && arrived.sender == self.jail => {
                    keeper::end_gently(false);
                }
                Some(_) => {}
            }
        }
    }

    fn tell(&self, news: &[News]) {
        let mut bytes = [0; NEWS * AT_ONCE];
        for (place, news) in news.iter().enumerate() {
            bytes[NEWS * place..NEWS * (place + 1)].copy_from_slice(&news.encode());
        }
        // Without a jail to hear it this process ends when it asks for the next order.
        let _unheard = rustix::net::send(self.socket, &bytes[..NEWS * news.len()], SendFlags::NOSIGNAL);
    }
}

/// A task between vfork and exec.
struct Birth<'a> {
    task: Task<'a>,
    stdio: &'a [OwnedFd; 2],
}

/// The task's process, from its birth to its exec, in the keeper's memory but with descriptors of its own.
extern "C" fn become_task(birth: *mut c_void) -> c_int {
    // SAFETY: the keeper passes its `Birth` and waits until this process has exec'd or exited.
    let birth = unsafe { &mut *birth.cast::<Birth<'_>>() };
    for (fd, number) in birth.stdio.iter().zip(1..) {
        sys::place(fd.as_fd(), number);
        sys::keep_on_exec(number);
    }
    birth.task.go_on();
    sys::exit_now(1)
}
