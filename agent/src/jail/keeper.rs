//! One task's keeper: carries out a plan's steps, starts the command, buries what dies in its
//! care and ends all of it on request. In a pid namespace it is process 1 there, so its own
//! exit ends everything; outside of one it is a subreaper that hunts until no child is left.
//!
//! Everything here runs in a fork of the jail, the last part in a vfork of that. The jail has one
//! thread, so no lock can be held; still nothing up to the exec allocates. Never returns.

#![expect(unsafe_code, reason = "forks")]

use std::{
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags},
    process::{DumpableBehavior, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    plan::{Plan, Step},
    sweep,
    sys::{self, Fork, Pointers, Signals},
};

/// Asks a keeper outside of a pid namespace to end everything at once.
pub const END_NOW: i32 = libc::SIGUSR1;
/// The descriptor of the control socket in keeper and task.
const CONTROL: i32 = 3;
/// The stack on which a task's process lives until its exec, in units of 16 bytes.
const STACK: usize = 8 * 1024;

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
}

const PROCESS: i32 = 1;
const RUNS: i32 = 2;
const STEP_FAILED: i32 = 3;
const NO_EXEC: i32 = 4;
const ENDED: i32 = 5;
const WORD: usize = 12;

fn tell(kind: i32, a: i32, b: i32) {
    let mut bytes = [0; WORD];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&a.to_ne_bytes());
    bytes[8..].copy_from_slice(&b.to_ne_bytes());
    // SAFETY: the control socket was put at this number before anything is told.
    let control = unsafe { BorrowedFd::borrow_raw(CONTROL) };
    // Without a jail to hear it there is nobody to tell; the jail's death ends this process.
    let _unheard = rustix::net::send(control, &bytes, SendFlags::NOSIGNAL);
}

/// The next word of a keeper; none when there is no more for now.
pub fn hear(control: BorrowedFd<'_>) -> Option<Word> {
    let mut bytes = [0; WORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    if received.bytes != WORD {
        return None;
    }
    let number = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (a, b) = (number(4), number(8));
    match number(0) {
        PROCESS => ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => {
                Some(Word::Process(sender.pid.as_raw_nonzero().get()))
            }
            _ => None,
        }),
        RUNS => Some(Word::Runs),
        STEP_FAILED => Some(Word::StepFailed { step: a as usize, errno: Errno::from_raw_os_error(b) }),
        NO_EXEC => Some(Word::NoExec(Errno::from_raw_os_error(a))),
        ENDED => Some(Word::Ended(a)),
        _ => None,
    }
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
    let argv = Pointers::new(&plan.argv);
    let env = Pointers::new(&plan.env);
    let jail = std::process::id() as i32;
    // Taken before the fork, and never touched on this side of it.
    let mut stack = Vec::with_capacity(STACK);
    // SAFETY: the jail has one thread (checked when it starts).
    match unsafe { sys::fork_into(plan.namespaces) }? {
        Fork::Parent { pid, pidfd } => Ok(Keeper { pid, pidfd }),
        Fork::Child => {
            // A panic must not unwind into the jail's loop in this copy of it.
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                keep(plan, &argv, &env, stdio, jail, stack.spare_capacity_mut())
            }));
            sys::exit_now(1)
        }
    }
}

/// What the task's side needs to know, in memory that it shares with the keeper until its exec.
struct Task<'a> {
    plan: &'a Plan,
    argv: &'a Pointers<'a>,
    env: &'a Pointers<'a>,
    first: usize,
    failed: bool,
}

fn keep(
    plan: &Plan,
    argv: &Pointers<'_>,
    env: &Pointers<'_>,
    stdio: &Stdio<'_>,
    jail: i32,
    stack: &mut [MaybeUninit<u128>],
) -> ! {
    Signals::all().block_only();
    place_descriptors(stdio);
    tie_to_jail(plan.contained());

    let mut held = None;
    for (number, step) in plan.steps.iter().enumerate() {
        if *step == Step::Fork {
            let mut task = Task { plan, argv, env, first: number + 1, failed: false };
            // SAFETY: `become_task` ends in exec or exit and touches only what `task` holds; it is
            // alive until then because this side waits.
            let pid = unsafe { sys::vfork_with(become_task, stack, (&raw mut task).cast()) };
            match pid {
                Ok(_) if task.failed => sys::exit_now(0),
                Ok(pid) => watch(pid, plan.contained(), jail),
                Err(errno) => fail(number, errno),
            }
        }
        if let Err(errno) = carry_out(step, &mut held) {
            fail(number, errno);
        }
    }
    sys::exit_now(0)
}

fn fail(step: usize, errno: Errno) -> ! {
    tell(STEP_FAILED, step as i32, errno.raw_os_error());
    sys::exit_now(0)
}

/// 0, 1, 2 and the control socket at 3; everything else of the jail's is closed.
fn place_descriptors(stdio: &Stdio<'_>) {
    // SAFETY: these numbers are this process's to give: the jail's own 0 to 2 are not used here,
    // and its other descriptors, from 3 on, are read before one of them is replaced.
    unsafe {
        libc::dup2(stdio.stdin.as_raw_fd(), 0);
        libc::dup2(stdio.stdout.as_raw_fd(), 1);
        libc::dup2(stdio.stderr.as_raw_fd(), 2);
        if stdio.control.as_raw_fd() != CONTROL {
            libc::dup3(stdio.control.as_raw_fd(), CONTROL, libc::O_CLOEXEC);
        }
        libc::syscall(libc::SYS_close_range, CONTROL + 1, c_int::MAX, 0);
    }
}

/// The jail's death is this process's, also when it happened a moment ago.
fn tie_to_jail(contained: bool) {
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

/// Does one step. `held` is what the last `Hold` holds.
pub fn carry_out(step: &Step, held: &mut Option<OwnedFd>) -> Result<(), Errno> {
    const INERT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
    match step {
        Step::MapIds { uid_map, gid_map } => {
            // These files belong to root when the process may not be looked into.
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            write_file(c"/proc/self/setgroups", b"deny")?;
            write_file(c"/proc/self/uid_map", uid_map.to_bytes())?;
            write_file(c"/proc/self/gid_map", gid_map.to_bytes())
        }
        Step::OomScore => {
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            write_file(c"/proc/self/oom_score_adj", b"0")
        }
        Step::Undumpable => rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
        Step::PrivateMounts => {
            rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        }
        Step::Hold(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            *held = Some(rustix::mount::open_tree(CWD, path.as_c_str(), flags)?);
            Ok(())
        }
        Step::Cover(path) => rustix::mount::mount(
            c"mesh",
            path.as_c_str(),
            c"tmpfs",
            INERT,
            c"mode=0755,size=64k,nr_inodes=256",
        ),
        Step::MakeDir(path) => rustix::fs::mkdirat(CWD, path.as_c_str(), Mode::from_raw_mode(0o755)),
        Step::Seal(path) => {
            rustix::mount::mount_remount(path.as_c_str(), INERT | MountFlags::BIND | MountFlags::RDONLY, c"")
        }
        Step::Restore(path) => {
            let tree = held.take().ok_or(Errno::BADF)?;
            rustix::mount::move_mount(
                &tree,
                c"",
                CWD,
                path.as_c_str(),
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
        }
        Step::OwnProc => rustix::mount::mount(c"proc", c"/proc", c"proc", INERT, None::<&CStr>),
        Step::Chdir(path) => rustix::process::chdir(path.as_c_str()),
        Step::DropBoundingSet => sys::drop_bounding_set(),
        Step::Fork => Ok(()),
        Step::NewSession => rustix::process::setsid().map(|_| ()),
        Step::Umask(mask) => {
            rustix::process::umask(Mode::from_raw_mode(*mask));
            Ok(())
        }
        Step::Limit(limit, most) => {
            let old = rustix::process::getrlimit(limit.resource());
            // What is above the jail's own hard limit is not its to give.
            let most = Some(old.maximum.map_or(*most, |hard| hard.min(*most)));
            rustix::process::setrlimit(limit.resource(), Rlimit { current: most, maximum: most })
        }
        Step::ClearGroups => rustix::thread::set_thread_groups(&[]),
        Step::Gid(gid) => {
            let gid = rustix::process::Gid::from_raw(*gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid)
        }
        Step::Uid(uid) => {
            let uid = rustix::process::Uid::from_raw(*uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid)
        }
        Step::DieWithKeeper => rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
        Step::DropCapabilities => {
            rustix::thread::clear_ambient_capability_set()?;
            keep_capabilities(CapabilitySet::empty())
        }
        Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
        Step::ResetSignals => {
            sys::default_actions();
            Signals::of(&[]).block_only();
            Ok(())
        }
    }
}

fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes).map(|_| ())
}

/// The task's process, from its birth to its exec, in the keeper's memory.
extern "C" fn become_task(task: *mut c_void) -> c_int {
    // SAFETY: the keeper passes its `Task` and waits until this process has exec'd or exited.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    tell(PROCESS, 0, 0);
    for (number, step) in task.plan.steps.iter().enumerate().skip(task.first) {
        if let Err(errno) = carry_out(step, &mut None) {
            task.failed = true;
            tell(STEP_FAILED, number as i32, errno.raw_os_error());
            sys::exit_now(1);
        }
    }
    let mut found = Errno::NOENT;
    for program in &task.plan.programs {
        match sys::exec(program, task.argv, task.env) {
            // Not here; somewhere else in PATH perhaps.
            Errno::NOENT | Errno::NOTDIR if task.plan.programs.len() > 1 => {}
            Errno::ACCESS => found = Errno::ACCESS,
            errno => {
                found = errno;
                break;
            }
        }
    }
    task.failed = true;
    tell(NO_EXEC, found.raw_os_error(), 0);
    sys::exit_now(1)
}

/// From the exec on: bury, pass requests to end on, and end with the command.
fn watch(task: i32, contained: bool, jail: i32) -> ! {
    tell(RUNS, 0, 0);
    // The task's pipes are not the keeper's to hold open.
    for fd in 0..CONTROL {
        // SAFETY: nothing here uses these descriptors.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    // To signal a task of another uid is all that is still needed; without root not even that.
    let _less = keep_capabilities(CapabilitySet::KILL).or_else(|_| keep_capabilities(CapabilitySet::empty()));
    let signals = Signals::of(&[libc::SIGCHLD, libc::SIGTERM, END_NOW]);
    loop {
        while let Ok(Some(dead)) = sys::reap() {
            if dead.pid == task {
                tell(ENDED, dead.status, 0);
                if !contained {
                    hunt();
                }
                sys::exit_now(0);
            }
        }
        let Some(arrived) = signals.wait(None) else { continue };
        // Only the jail's word counts; from inside a namespace it has pid 0.
        let from_jail = arrived.sender == if contained { 0 } else { jail };
        match arrived.signal {
            libc::SIGTERM if from_jail => end_gently(contained),
            // Also the kernel's, when the jail has died.
            END_NOW if !contained => sweep::signal_descendants(std::process::id() as i32, libc::SIGKILL),
            _ => {}
        }
    }
}

/// SIGTERM to all, and SIGCONT, for a stopped process takes no SIGTERM.
fn end_gently(contained: bool) {
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        if contained {
            sys::signal_everybody(signal);
        } else {
            sweep::signal_descendants(std::process::id() as i32, signal);
        }
    }
}

/// Kills until no child is left; whatever a dead one leaves becomes this process's child.
fn hunt() {
    let child = Signals::of(&[libc::SIGCHLD]);
    loop {
        loop {
            match sys::reap() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        sweep::signal_descendants(std::process::id() as i32, libc::SIGKILL);
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
            let mut held = None;
            let failed = steps.iter().position(|step| carry_out(step, &mut held).is_err());
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
}
