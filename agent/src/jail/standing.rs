//! A standing keeper: starts, buries and ends one task after another, for tasks whose user is not the
//! jail's. It is to each what a keeper of its own would be, but its fork is paid once. Without a sandbox it
//! is a subreaper that hunts until no child is left; in a slot, at level strict, it is process 1 of a pid
//! namespace on ground that stands with it, and tidies that up before it takes the next task.
//!
//! There its tasks are born of a starter (`starter.rs`), else of itself.
//!
//! What it is to be for each task is its own from the beginning (limits, umask, directory, score,
//! capabilities); what a task is to be happens in the task's process, between vfork and exec, so a
//! task finds nothing of the one before: no process, no descriptor, no signal.
//!
//! Everything here runs in a fork of the jail, the steps of a task in a vfork of that.

#![expect(unsafe_code, reason = "forks")]

use std::{
    ffi::{c_int, c_void},
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, UCred,
    },
    process::Pid,
    thread::CapabilitySet,
};

use super::{
    clock,
    keeper::{self, END_NOW, Keeper, STACK, Task, Word},
    orders::{self, Inbox, Order},
    plan::{Plan, Room, Step},
    room::Watch,
    starter::Starter,
    steps::{Hands, carry_out, keep_capabilities},
    stood::Traffic,
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
    /// What a keeper of the task's own would say too.
    Said(Word),
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
            Self::Said(word) => {
                let [kind, a, b] = word.numbers().map(|number| i64::from(number) as u64);
                [3, kind, a, b]
            }
            Self::Over(usage) => [4, nanos(usage.cpu), usage.max_rss_bytes, 0],
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
            3 => Self::Said(Word::of([a, b, c].map(|number| number as i32))?),
            4 => Self::Over(Usage { cpu: Duration::from_nanos(a), max_rss_bytes: b }),
            _ => return None,
        })
    }
}

/// What has come from a keeper by now. The process numbers of one in a pid namespace say nothing here:
/// what runs is then who is named beside the message, or 0 when that was dead by then.
pub fn hear(socket: BorrowedFd<'_>, contained: bool) -> Vec<News> {
    let mut bytes = [0; NEWS * AT_ONCE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut whole = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let Ok(received) = rustix::net::recvmsg(socket, &mut whole, &mut ancillary, flags) else {
        return Vec::new();
    };
    let named = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_nonzero().get()),
        _ => None,
    });
    // What is told at once is far below what a socket takes whole.
    let mut news: Vec<News> = bytes[..received.bytes].chunks_exact(NEWS).filter_map(News::decode).collect();
    for news in news.iter_mut().filter(|_| contained) {
        if let News::Runs { process, .. } = news {
            *process = if *process == 0 { 0 } else { named.unwrap_or(0) };
        }
    }
    news
}

/// Forks a keeper into `namespaces` that gets ready by `steps` and takes orders from `socket`.
pub fn fork(
    namespaces: u64,
    steps: &[Step],
    socket: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
) -> Result<Keeper, Errno> {
    let contained = namespaces & sys::NEW_PID != 0;
    // From inside of a pid namespace the jail has no pid.
    let jail = if contained { 0 } else { std::process::id() as i32 };
    // SAFETY: the jail has one thread (checked when it starts).
    match unsafe { sys::fork_into(namespaces) }? {
        Fork::Parent { pid, pidfd } => Ok(Keeper { pid, pidfd }),
        Fork::Child => {
            // A panic must not unwind into the jail's loop in this copy of it.
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let (socket, _null) = orders::place(socket, null);
                // What every task has there too.
                sys::keep_on_exec(0);
                let stack = Vec::with_capacity(STACK);
                let hands = Hands::default();
                Standing { socket, jail, contained, stack, starter: None, hands }.serve(steps)
            }));
            sys::exit_now(1)
        }
    }
}

struct Standing<'a> {
    socket: BorrowedFd<'a>,
    jail: i32,
    /// Whether it is process 1 of a slot's pid namespace.
    contained: bool,
    stack: Vec<u128>,
    /// In a slot: what tasks are born of.
    starter: Option<Starter>,
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
        if let Ok(has) = rustix::thread::capabilities(None) {
            let _less = keep_capabilities(self.needed() & has.permitted);
        }
        keeper::tie_to_jail(self.contained);
        let mut network = steps.contains(&Step::OwnNetwork).then(Traffic::watch);
        let mut inbox = Inbox::default();
        while let Some(Order::Start(plan)) = inbox.next(self.socket) {
            let Some(stdio) = inbox.descriptors() else { break };
            let held = plan.brought.iter().filter(|step| matches!(step, Step::Hold(_))).count();
            for _ in 0..held {
                let Some([mount]) = inbox.descriptors() else { break };
                self.hands.take_up(mount);
            }
            self.run(&plan, stdio);
            if self.contained && self.tidy(&mut network).is_err() {
                // The jail makes another slot.
                sys::exit_now(1)
            }
        }
        // The jail has gone, or makes no sense.
        sys::exit_now(0)
    }

    /// What it has to be able to do from now on.
    fn needed(&self) -> CapabilitySet {
        // To go into a task's directory, become its user and end what it started.
        let open = CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::KILL;
        // To mount and to make namespaces, and to look at what a task holds.
        let slot = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_PTRACE;
        if self.contained { open | slot } else { open }
    }

    /// Takes away what the last task had, and a network that it has used.
    fn tidy(&mut self, network: &mut Option<Traffic>) -> Result<(), Errno> {
        self.hands.tidy()?;
        if network.as_ref().is_some_and(Traffic::seen) {
            carry_out(&Step::OwnNetwork, &mut self.hands)?;
            *network = Some(Traffic::watch());
        }
        Ok(())
    }

    /// One task from its birth to its burial.
    fn run(&mut self, plan: &Plan, stdio: [OwnedFd; 2]) {
        // What was meant for the task before this one.
        let all = Signals::all();
        while all.wait(Some(Duration::ZERO)).is_some() {}
        let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
        if parent != self.jail {
            // Its death may have been among it.
            sys::exit_now(0)
        }
        let first = plan.steps.iter().position(|step| *step == Step::Fork).unwrap_or(plan.steps.len());
        for (step, what) in plan.steps[..first].iter().enumerate() {
            if let Err(errno) = carry_out(what, &mut self.hands) {
                return self
                    .tell(&[News::Said(Word::StepFailed { step, errno }), News::Over(Usage::default())]);
            }
        }
        let (argv, env) = (Pointers::new(&plan.argv), Pointers::new(&plan.env));
        let (hands, heir) = (&mut self.hands, self.contained);
        let task = Task { plan, argv: &argv, env: &env, hands, first: first + 1, heir, failed: None };
        let mut birth = Birth { task, stdio: &stdio };
        let mut born = Err(Errno::OWNERDEAD);
        // A starter that was killed with the last task may die only now.
        for _ in 0..2 {
            if self.contained
                && let Err((step, errno)) =
                    Starter::ready(&mut self.starter, &plan.steps[first..], birth.task.hands)
            {
                let failed = Word::StepFailed { step: first + step, errno };
                return self.tell(&[News::Said(failed), News::Over(Usage::default())]);
            }
            let (stack, argument) = (self.stack.spare_capacity_mut(), (&raw mut birth).cast());
            born = match &mut self.starter {
                // SAFETY: `become_task` ends in exec or exit and touches only what `birth` holds; it is
                // alive until then because this side waits.
                Some(starter) => unsafe { starter.start(become_task, stack, argument) },
                // SAFETY: the same.
                None => unsafe { sys::vfork_with(become_task, stack, argument) },
            };
            if born != Err(Errno::OWNERDEAD) {
                break;
            }
        }
        let (since, at_ms) = (clock::boot(), clock::wall_ms());
        let failed = birth.task.failed;
        // The task's pipes are not the keeper's to hold open.
        drop(stdio);
        let mut used = Usage::default();
        let mut news = match (born, failed) {
            (Err(errno), _) => vec![News::Said(Word::StepFailed { step: first, errno })],
            (Ok(process), Some(failed)) => {
                if heir {
                    // It tells of its end only from its exec on.
                    sys::bury_beside(process, true);
                }
                vec![News::Said(failed)]
            }
            (Ok(process), None) => {
                let runs = News::Runs { process, since, at_ms };
                self.watch(runs, process, since, plan.room, &mut used)
            }
        };
        let left = sys::reap();
        if left.is_ok() {
            // How it ended is known to the jail while this hunts.
            self.tell(&std::mem::take(&mut news));
            let mut buried = |dead: Dead| used = used.and(dead.usage);
            left.into_iter().flatten().for_each(&mut buried);
            keeper::hunt(self.contained, buried);
        }
        news.push(News::Over(used));
        self.tell(&news);
    }

    /// From the exec to the end of the command's process, or until it holds too much; gives what is left
    /// to tell.
    fn watch(&self, runs: News, process: i32, since: Duration, room: Room, used: &mut Usage) -> Vec<News> {
        let signals = Signals::of(&[libc::SIGCHLD, libc::SIGTERM, END_NOW]);
        let mut untold = vec![runs];
        let mut room = Watch::new(room, true);
        loop {
            let ended = loop {
                match sys::reap() {
                    Ok(Some(dead)) => {
                        *used = used.and(dead.usage);
                        if dead.pid == process {
                            break Some(dead.status);
                        }
                    }
                    // Who is killed between its birth and its exec tells nobody.
                    Err(Errno::CHILD) if self.contained => break sys::bury_beside(process, true),
                    Ok(None) | Err(_) => break None,
                }
            };
            if let Some(status) = ended {
                // Its number is nobody's any more.
                if let Some(News::Runs { process, .. }) = untold.first_mut().filter(|_| self.contained) {
                    *process = 0;
                }
                untold.push(News::Said(Word::Ended(status)));
                return untold;
            }
            if let Some(word) = room.as_mut().and_then(Watch::look) {
                untold.push(News::Said(word));
                return untold;
            }
            let linger =
                (!untold.is_empty()).then(|| LINGER.saturating_sub(clock::boot().saturating_sub(since)));
            let arrived = signals.wait(linger.into_iter().chain(room.as_ref().map(Watch::pause)).min());
            match arrived {
                None => self.tell(&std::mem::take(&mut untold)),
                // Also the kernel's, when the jail has died.
                Some(arrived) if arrived.signal == END_NOW => keeper::end_now(self.contained),
                Some(arrived) if arrived.signal == libc::SIGTERM && arrived.sender == self.jail => {
                    keeper::end_gently(self.contained);
                }
                Some(_) => {}
            }
        }
    }

    fn tell(&self, news: &[News]) {
        if news.is_empty() {
            return;
        }
        let mut bytes = [0; NEWS * AT_ONCE];
        for (place, news) in news.iter().enumerate() {
            bytes[NEWS * place..NEWS * (place + 1)].copy_from_slice(&news.encode());
        }
        let bytes = &bytes[..NEWS * news.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(pid) = self.named(news) {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            ancillary.push(SendAncillaryMessage::ScmCredentials(UCred { pid, uid, gid }));
        }
        // Without a jail to hear it this process ends when it asks for the next order.
        let _unheard =
            rustix::net::sendmsg(self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    }

    /// The living process that is told of; the kernel tells the jail its number there.
    fn named(&self, news: &[News]) -> Option<Pid> {
        news.iter().filter(|_| self.contained).find_map(|news| match news {
            News::Runs { process, .. } => Pid::from_raw(*process),
            _ => None,
        })
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
