//! One task's keeper: carries out a plan's steps, starts the command, buries what dies in its
//! care and ends all of it on request. In a pid namespace it is process 1 there, so its own
//! exit ends everything; outside of one it is a subreaper that hunts until no child is left.
//!
//! Everything here runs in a fork of the jail, the last part in a vfork of that. The jail has one
//! thread, so no lock can be held; still nothing up to the exec allocates. Never returns.

#![expect(unsafe_code, reason = "forks")]

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
        SocketType,
    },
    thread::CapabilitySet,
};

use super::{
    mapped,
    plan::{Plan, Step},
    room::Watch,
    steps::{Hands, carry_out, keep_capabilities},
    sweep,
    sys::{self, Dead, Fork, Pointers, Signals},
};

/// Asks a keeper outside of a pid namespace to end everything at once.
pub const END_NOW: i32 = libc::SIGUSR1;
/// The descriptor of the control socket in keeper and task.
const CONTROL: i32 = 3;
/// The stack on which a task's process lives until its exec, in units of 16 bytes.
pub const STACK: usize = 8 * 1024;

/// What a keeper tells the jail, in this order: the task's process, whether its command runs, how it
/// ended. A failure ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The task's process exists; its pid as the jail sees it.
    Process(i32),
    /// The command was executed.
    Runs,
    /// A step of the plan failed.
    StepFailed { step: usize, errno: Errno },
    /// Every step was done, but the command cannot be executed.
    NoExec(Errno),
    /// The command's process ended with this status.
    Ended(i32),
    /// The work directory holds more bytes, or more files, than it may.
    TooMuch { files: bool },
    /// More memory waits for it in the kernel than it may have.
    TooMuchWaits,
}

/// Numbers of one word.
pub const WORD: usize = 3;

impl Word {
    pub fn numbers(self) -> [i32; WORD] {
        match self {
            Self::Process(pid) => [1, pid, 0],
            Self::Runs => [2, 0, 0],
            Self::StepFailed { step, errno } => [3, step as i32, errno.raw_os_error()],
            Self::NoExec(errno) => [4, errno.raw_os_error(), 0],
            Self::Ended(status) => [5, status, 0],
            Self::TooMuch { files } => [6, files.into(), 0],
            Self::TooMuchWaits => [7, 0, 0],
        }
    }

    pub fn of(numbers: [i32; WORD]) -> Option<Self> {
        Some(match numbers {
            [1, pid, _] => Self::Process(pid),
            [2, ..] => Self::Runs,
            [3, step, errno] => {
                Self::StepFailed { step: step as usize, errno: Errno::from_raw_os_error(errno) }
            }
            [4, errno, _] => Self::NoExec(Errno::from_raw_os_error(errno)),
            [5, status, _] => Self::Ended(status),
            [6, files, _] => Self::TooMuch { files: files != 0 },
            [7, ..] => Self::TooMuchWaits,
            _ => return None,
        })
    }
}

fn tell(word: Word) {
    // SAFETY: the control socket was put at this number before anything is told.
    say(unsafe { BorrowedFd::borrow_raw(CONTROL) }, word);
}

/// Tells a keeper's jail a word, in the keeper's name.
pub fn say(control: BorrowedFd<'_>, word: Word) {
    let mut bytes = [0; 4 * WORD];
    for (place, number) in word.numbers().into_iter().enumerate() {
        bytes[4 * place..4 * place + 4].copy_from_slice(&number.to_ne_bytes());
    }
    // Without a jail to hear it there is nobody to tell; the jail's death ends this process.
    let _unheard = rustix::net::send(control, &bytes, SendFlags::NOSIGNAL);
}

/// The next word of a keeper; none when there is no more for now.
pub fn hear(control: BorrowedFd<'_>) -> Option<Word> {
    let mut bytes = [0; 4 * WORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    if received.bytes != bytes.len() {
        return None;
    }
    let number = |place: usize| i32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * place + byte]));
    match Word::of(std::array::from_fn(number))? {
        // From inside its namespace it does not know its number here; the kernel does.
        Word::Process(_) => ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => {
                Some(Word::Process(sender.pid.as_raw_nonzero().get()))
            }
            _ => None,
        }),
        word => Some(word),
    }
}

/// A socket between the jail and a keeper, the jail's end first.
pub fn control() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_passcred(&ours, true)?;
    Ok((ours, theirs))
}

/// The descriptors of a task.
pub struct Stdio<'a> {
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    pub control: BorrowedFd<'a>,
}

/// A keeper, from the jail's side.
pub struct Keeper {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Forks a keeper that carries out `plan`.
pub fn start(plan: &Plan, stdio: &Stdio<'_>) -> Result<Keeper, Errno> {
    let (argv, env) = (Pointers::new(&plan.argv), Pointers::new(&plan.env));
    let jail = std::process::id() as i32;
    // Taken before the fork, and never touched on this side of it.
    let mut stack = Vec::with_capacity(STACK);
    // SAFETY: the jail has one thread (checked when it starts).
    match unsafe { sys::fork_into(plan.namespaces) }? {
        Fork::Parent { pid, pidfd } => Ok(Keeper { pid, pidfd }),
        Fork::Child => {
            // A panic must not unwind into the jail's loop in this copy of it.
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                place_descriptors(stdio);
                sys::close_from(CONTROL + 1);
                keep(plan, &argv, &env, &mut Hands::default(), jail, stack.spare_capacity_mut())
            }));
            sys::exit_now(1)
        }
    }
}

/// The same from a slot's helper, as the jail's child. What the helper holds stays open until the
/// command runs.
pub fn start_from_helper(
    plan: &Plan,
    stdio: &Stdio<'_>,
    hands: &mut Hands,
    stack: &mut [MaybeUninit<u128>],
) -> Result<Keeper, Errno> {
    let (argv, env) = (Pointers::new(&plan.argv), Pointers::new(&plan.env));
    // SAFETY: a helper is a fork of the jail and starts no thread.
    match unsafe { sys::fork_sibling(plan.namespaces) }? {
        Fork::Parent { pid, pidfd } => Ok(Keeper { pid, pidfd }),
        Fork::Child => {
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                place_descriptors(stdio);
                // From inside of a pid namespace the jail has no pid.
                keep(plan, &argv, &env, hands, 0, stack)
            }));
            sys::exit_now(1)
        }
    }
}

/// What the task's side needs to know, in memory that it shares with the keeper until its exec.
pub struct Task<'a> {
    pub plan: &'a Plan,
    pub argv: &'a Pointers<'a>,
    pub env: &'a Pointers<'a>,
    pub hands: &'a mut Hands,
    /// The first step that is its own.
    pub first: usize,
    /// It is born of a starter, which has gone through what is inherited.
    pub heir: bool,
    /// Why it did not come to its exec.
    pub failed: Option<Word>,
}

fn keep(
    plan: &Plan,
    argv: &Pointers<'_>,
    env: &Pointers<'_>,
    hands: &mut Hands,
    jail: i32,
    stack: &mut [MaybeUninit<u128>],
) -> ! {
    Signals::all().block_only();
    tie_to_jail(plan.contained());
    for (number, step) in plan.steps.iter().enumerate() {
        if *step == Step::Fork {
            let mut task = Task { plan, argv, env, hands, first: number + 1, heir: false, failed: None };
            // SAFETY: `become_task` ends in exec or exit and touches only what `task` holds; it is
            // alive until then because this side waits.
            let pid = unsafe { sys::vfork_with(become_task, stack, (&raw mut task).cast()) };
            match pid {
                Ok(_) if task.failed.is_some() => sys::exit_now(0),
                Ok(pid) => watch(pid, plan, jail),
                Err(errno) => fail(number, errno),
            }
        }
        if let Err(errno) = carry_out(step, hands) {
            fail(number, errno);
        }
    }
    sys::exit_now(0)
}

fn fail(step: usize, errno: Errno) -> ! {
    tell(Word::StepFailed { step, errno });
    sys::exit_now(0)
}

/// 0, 1, 2 and the control socket at 3.
fn place_descriptors(stdio: &Stdio<'_>) {
    // These numbers are this process's to give: the jail's own 0 to 2 and a helper's 0 to 3 are not
    // used here, and the other descriptors, from 3 on, are read before one of them is replaced.
    for (number, fd) in [stdio.stdin, stdio.stdout, stdio.stderr].into_iter().enumerate() {
        sys::place(fd, number as i32);
        sys::keep_on_exec(number as i32);
    }
    sys::place(stdio.control, CONTROL);
}

/// The jail's death is this process's, also when it happened a moment ago.
pub fn tie_to_jail(contained: bool) {
    let signal = if contained { libc::SIGKILL } else { END_NOW };
    // SAFETY: prctl with integers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) };
    if !contained {
        // SAFETY: prctl with integers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    }
    // SAFETY: prctl with a static string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"mesh-keeper".as_ptr(), 0, 0, 0) };
    // SAFETY: placed before.
    let control = unsafe { BorrowedFd::borrow_raw(CONTROL) };
    let mut poll = [rustix::event::PollFd::new(&control, rustix::event::PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0) {
        sys::exit_now(0);
    }
}

/// The task's process, from its birth to its exec, in the keeper's memory.
extern "C" fn become_task(task: *mut c_void) -> c_int {
    // SAFETY: the keeper passes its `Task` and waits until this process has exec'd or exited.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    tell(Word::Process(0));
    tell(task.go_on());
    sys::exit_now(1)
}

impl Task<'_> {
    /// Carries out the rest of the plan and becomes the command; returns only to say why it could not.
    /// In the keeper's memory: allocates nothing.
    pub fn go_on(&mut self) -> Word {
        let failure = self.fail();
        self.failed = Some(failure);
        failure
    }

    fn fail(&mut self) -> Word {
        for (step, what) in self.plan.steps.iter().enumerate().skip(self.first) {
            if self.heir && what.is_inherited() {
                continue;
            }
            if let Err(errno) = carry_out(what, self.hands) {
                return Word::StepFailed { step, errno };
            }
        }
        let mut found = Errno::NOENT;
        for program in &self.plan.programs {
            match sys::exec(program, self.argv, self.env) {
                // Not here; somewhere else in PATH perhaps.
                Errno::NOENT | Errno::NOTDIR if self.plan.programs.len() > 1 => {}
                Errno::ACCESS => found = Errno::ACCESS,
                errno => {
                    found = errno;
                    break;
                }
            }
        }
        Word::NoExec(found)
    }
}

/// From the exec on: bury, pass requests to end on, look at the work directory, and end with the
/// command.
fn watch(task: i32, plan: &Plan, jail: i32) -> ! {
    tell(Word::Runs);
    let contained = plan.contained();
    // The task's pipes are not the keeper's to hold open, nor is what led here.
    sys::close_below(CONTROL);
    sys::close_from(CONTROL + 1);
    // Changing who one is has disarmed this.
    tie_to_jail(contained);
    let mut room = Watch::new(plan.room, mapped::sees_itself(plan));
    // To signal a task of another uid, and to look into its directory and at what it holds open, is
    // all that is still needed; without root not even that.
    let needed = if room.is_some() {
        CapabilitySet::KILL | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_PTRACE
    } else {
        CapabilitySet::KILL
    };
    let _less = keep_capabilities(needed).or_else(|_| keep_capabilities(CapabilitySet::empty()));
    let signals = Signals::of(&[libc::SIGCHLD, libc::SIGTERM, END_NOW]);
    loop {
        while let Ok(Some(dead)) = sys::reap() {
            if dead.pid == task {
                tell(Word::Ended(dead.status));
                if !contained {
                    hunt(contained, |_| {});
                }
                sys::exit_now(0);
            }
        }
        if let Some(room) = &mut room
            && let Some(word) = room.look()
        {
            tell(word);
            sys::exit_now(0);
        }
        let Some(arrived) = signals.wait(room.as_ref().map(Watch::pause)) else { continue };
        // Only the jail's word counts; from inside a namespace it has pid 0.
        let from_jail = arrived.sender == if contained { 0 } else { jail };
        match arrived.signal {
            libc::SIGTERM if from_jail => end_gently(contained),
            // Also the kernel's, when the jail has died.
            END_NOW if !contained => end_now(contained),
            _ => {}
        }
    }
}

/// SIGTERM to all, and SIGCONT, for a stopped process takes no SIGTERM.
pub fn end_gently(contained: bool) {
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        if contained {
            sys::signal_everybody(signal);
        } else {
            sweep::signal_descendants(std::process::id() as i32, signal);
        }
    }
}

/// SIGKILL to all.
pub fn end_now(contained: bool) {
    if contained {
        sys::signal_everybody(libc::SIGKILL);
    } else {
        sweep::signal_descendants(std::process::id() as i32, libc::SIGKILL);
    }
}

/// Kills until no child is left and gives each that it buries; whatever a dead one leaves becomes this
/// process's child.
pub fn hunt(contained: bool, mut buried: impl FnMut(Dead)) {
    let child = Signals::of(&[libc::SIGCHLD]);
    loop {
        loop {
            match sys::reap() {
                Ok(Some(dead)) => buried(dead),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        end_now(contained);
        child.wait(Some(Duration::from_millis(2)));
    }
}

/// Forks a process into `namespaces` that carries out `steps`, then gives `check`'s verdict: the
/// proof that a layer works here.
pub fn trial(namespaces: u64, steps: &[Step], check: impl Fn() -> bool) -> Result<(), Trial> {
    // SAFETY: the jail has one thread (checked when it starts).
    let pidfd = match unsafe { sys::fork_into(namespaces) }.map_err(Trial::Fork)? {
        Fork::Parent { pidfd, .. } => pidfd,
        Fork::Child => {
            let mut hands = Hands::default();
            let failed = steps.iter().position(|step| carry_out(step, &mut hands).is_err());
            sys::exit_now(match failed {
                Some(number) => 2 + number as i32,
                None if check() => 0,
                None => 1,
            })
        }
    };
    let status = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )
    .map_err(Trial::Fork)?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        Some(code) => Err(steps
            .get((code as usize).wrapping_sub(2))
            .map_or(Trial::Check, |step| Trial::Step(step.describe()))),
        None => Err(Trial::Check),
    }
}

/// Why a trial failed.
#[derive(Debug)]
pub enum Trial {
    /// The namespaces were not given.
    Fork(Errno),
    /// This step failed.
    Step(&'static str),
    /// Every step was done and yet it does not hold.
    Check,
    /// All of it together failed, for this reason.
    Together(String),
}
