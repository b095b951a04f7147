//! System calls that neither std, rustix nor nix wraps in the way that the jail needs.
//! May enter: one call each, nothing decided here. All of them may be called in a child of a
//! fork or vfork: none allocates or takes a lock.

#![expect(unsafe_code, reason = "the jail's system calls live here")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::OnceLock,
    time::Duration,
};

use rustix::io::Errno;

/// A new pid namespace.
pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
/// A new mount namespace.
pub const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
/// A new user namespace.
pub const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
/// A new network namespace.
pub const NEW_NETWORK: u64 = libc::CLONE_NEWNET as u64;
/// A new namespace of System V and POSIX queues.
pub const NEW_IPC: u64 = libc::CLONE_NEWIPC as u64;
/// A new namespace of host names.
pub const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;
/// A new namespace of control groups.
pub const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// Which side of a fork this is.
pub enum Fork {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// As in the kernel, up to the part that all kernels with `clone3` have.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

fn last_error() -> Errno {
    // SAFETY: the location is this thread's own errno.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Forks into the namespaces of `flags`, with a pidfd (closed on exec) for the parent.
///
/// # Safety
/// The process must have one thread: the child goes on with a copy of its memory, in which
/// another thread's lock would stay locked for ever.
pub unsafe fn fork_into(flags: u64) -> Result<Fork, Errno> {
    // SAFETY: as the caller promises.
    unsafe { clone(flags, libc::SIGCHLD as u64) }
}

/// The same, as a child of this process's parent.
///
/// # Safety
/// As for [`fork_into`].
pub unsafe fn fork_sibling(flags: u64) -> Result<Fork, Errno> {
    // It tells the parent of its end as this process would.
    // SAFETY: as the caller promises.
    unsafe { clone(flags | libc::CLONE_PARENT as u64, 0) }
}

/// # Safety
/// As for [`fork_into`].
unsafe fn clone(flags: u64, exit_signal: u64) -> Result<Fork, Errno> {
    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are a valid `clone_args` of the size named; without CLONE_VM the
    // child has its own copy of this stack, so both sides may return from here.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(Fork::Child),
        // SAFETY: CLONE_PIDFD made the descriptor, and nobody else knows it.
        1.. => Ok(Fork::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        _ => Err(last_error()),
    }
}

/// Starts `child` in this memory on `stack` and returns when it has exec'd or exited; gives
/// its pid.
///
/// # Safety
/// `child` must end in exec or `exit_now`, must not unwind, allocate or take a lock, must not need
/// more than `stack`, and `arg` must be what it expects, alive until then.
pub unsafe fn vfork_with(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack: &mut [MaybeUninit<u128>],
    arg: *mut c_void,
) -> Result<i32, Errno> {
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    // SAFETY: the stack is 16-aligned and used by the child alone, which grows it downwards from
    // its end; CLONE_VFORK keeps this side from going on, so everything borrowed stays alive.
    let pid = unsafe { libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, arg) };
    if pid < 0 { Err(last_error()) } else { Ok(pid) }
}

/// The same, as a child of this process's parent.
///
/// # Safety
/// As for [`vfork_with`].
pub unsafe fn vfork_sibling_with(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack: &mut [MaybeUninit<u128>],
    arg: *mut c_void,
) -> Result<i32, Errno> {
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    // SAFETY: as for `vfork_with`.
    let pid =
        unsafe { libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT, arg) };
    if pid < 0 { Err(last_error()) } else { Ok(pid) }
}

/// Starts a process in this memory, with this process's descriptors, that lives on beside it and tells
/// nobody of its end: only [`bury_beside`] sees it.
///
/// # Safety
/// `main` must not return or unwind. The stack, and what `arg` is, must be kept until the process is dead;
/// what both touch must be agreed between them.
pub unsafe fn process_beside(
    main: extern "C" fn(*mut c_void) -> c_int,
    stack: &mut [MaybeUninit<u128>],
    arg: *mut c_void,
) -> Result<i32, Errno> {
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    // SAFETY: the stack is 16-aligned and used by that process alone, downwards from its end.
    let pid = unsafe { libc::clone(main, top, libc::CLONE_VM | libc::CLONE_FILES, arg) };
    if pid < 0 { Err(last_error()) } else { Ok(pid) }
}

/// Buries a child that told nobody of its end, if it is dead; its status.
pub fn bury_beside(pid: i32, wait: bool) -> Option<i32> {
    let mut status = 0;
    let flags = libc::__WALL | if wait { 0 } else { libc::WNOHANG };
    // SAFETY: the pointer is to a live value of the right type.
    let dead = unsafe { libc::waitpid(pid, &raw mut status, flags) != 0 };
    dead.then_some(status)
}

/// The processor time that a living process has used; none when it has gone.
pub fn used_by(pid: i32) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the pointer is to a live value of the right type.
    if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) } == 0;
    told.then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
}

/// SIGKILL to a child that is not buried.
pub fn kill_now(pid: i32) {
    // SAFETY: takes integers alone.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// A plain fork; true in the child.
///
/// # Safety
/// As for [`fork_into`].
pub unsafe fn fork() -> Result<bool, Errno> {
    // SAFETY: the caller promises one thread.
    match unsafe { libc::fork() } {
        0 => Ok(true),
        1.. => Ok(false),
        _ => Err(last_error()),
    }
}

/// A null-terminated array of pointers into strings that it keeps alive.
pub struct Pointers<'a> {
    pointers: Vec<*const c_char>,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    /// The pointers of `strings`, for [`exec`].
    pub fn new<S: AsRef<CStr> + 'a>(strings: &'a [S]) -> Self {
        let pointers = strings.iter().map(|string| string.as_ref().as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, strings: std::marker::PhantomData }
    }
}

/// Replaces this process's program; returns only to say why it could not.
pub fn exec(path: &CStr, argv: &Pointers<'_>, env: &Pointers<'_>) -> Errno {
    // SAFETY: path and arrays are null-terminated and borrowed for the call.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    last_error()
}

/// Ends this process at once: no destructors, no exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process, touches no memory.
    unsafe { libc::_exit(code) }
}

/// What a dead child used, its own dead children included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: Duration,
    pub max_rss_bytes: u64,
}

impl Usage {
    /// What both used.
    pub fn and(self, other: Self) -> Self {
        let max_rss_bytes = self.max_rss_bytes.max(other.max_rss_bytes);
        Self { cpu: self.cpu + other.cpu, max_rss_bytes }
    }
}

/// A dead child.
#[derive(Clone, Copy, Debug)]
pub struct Dead {
    pub pid: i32,
    /// As `wait` reports it; read it with [`signal_of`] and [`code_of`].
    pub status: i32,
    pub usage: Usage,
}

/// Buries one dead child, any: none while all live, `ECHILD` when there is none at all.
pub fn reap() -> Result<Option<Dead>, Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match pid {
        0 => Ok(None),
        1.. => {
            let time = |t: libc::timeval| {
                Duration::new(t.tv_sec.unsigned_abs(), (t.tv_usec.unsigned_abs() * 1000) as u32)
            };
            let cpu = time(usage.ru_utime) + time(usage.ru_stime);
            let max_rss_bytes = usage.ru_maxrss.unsigned_abs() * 1024;
            Ok(Some(Dead { pid, status, usage: Usage { cpu, max_rss_bytes } }))
        }
        _ => Err(last_error()),
    }
}

/// The signal that ended a child with this status, if one did.
pub fn signal_of(status: i32) -> Option<i32> {
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

/// The code that a child with this status returned.
pub fn code_of(status: i32) -> i32 {
    libc::WEXITSTATUS(status)
}

/// Takes every capability out of the bounding set.
pub fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        // SAFETY: this prctl takes an integer.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            return match last_error() {
                // Past the last capability that this kernel knows.
                Errno::INVAL => Ok(()),
                error => Err(error),
            };
        }
    }
    Ok(())
}

/// Signals every process that this one may signal, itself and process 1 of its pid namespace
/// not: inside a pid namespace of its own that is all of a task.
pub fn signal_everybody(signal: i32) {
    // SAFETY: sends a signal, touches no memory.
    unsafe { libc::kill(-1, signal) };
}

/// Signals one process.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: sends a signal, touches no memory.
    unsafe { libc::kill(pid, signal) };
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// These and no others.
    pub fn of(signals: &[i32]) -> Self {
        // SAFETY: sigset_t is plain integers; sigemptyset then makes it a value.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the set is a live value.
        unsafe { libc::sigemptyset(&raw mut set) };
        for &signal in signals {
            // SAFETY: the set is a live value; a wrong number is an error without effect.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        Self(set)
    }

    /// Every signal.
    pub fn all() -> Self {
        // SAFETY: as in `of`.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the set is a live value.
        unsafe { libc::sigfillset(&raw mut set) };
        Self(set)
    }

    /// Blocks exactly these.
    pub fn block_only(&self) {
        // SAFETY: the set is a live value; the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }

    /// A descriptor that becomes readable when one of these, blocked, arrives.
    pub fn descriptor(&self) -> Result<OwnedFd, Errno> {
        // SAFETY: the set is a live value.
        let fd: RawFd =
            unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(last_error());
        }
        // SAFETY: the descriptor is new, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Waits for one of these, blocked, and takes it; none after `limit`.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Arrived> {
        // SAFETY: siginfo_t is plain integers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
        });
        let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: all pointers are to live values, the limit may be null.
        let signal = unsafe { libc::sigtimedwait(&raw const self.0, &raw mut info, limit) };
        if signal <= 0 {
            return None;
        }
        // SAFETY: for signals sent by processes or the kernel the field is set, else it is zero.
        Some(Arrived { signal, sender: unsafe { info.si_pid() } })
    }
}

/// A signal that arrived.
#[derive(Clone, Copy)]
pub struct Arrived {
    pub signal: i32,
    /// Who sent it; 0 for a sender outside of this pid namespace.
    pub sender: i32,
}

/// Closes every descriptor but 0 to 2: to be called before any is opened.
pub fn close_inherited() {
    // SAFETY: nothing in this process owns a descriptor from 3 on yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, c_int::MAX, 0) };
}

/// Closes every descriptor from `first` on.
///
/// For a process that uses none of them any more and ends without giving up what it owned.
pub fn close_from(first: i32) {
    // SAFETY: the caller's promise; a wrong one is an error at the next use, not undefined.
    unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
}

/// Closes every descriptor below `end`, likewise.
pub fn close_below(end: i32) {
    // SAFETY: as for `close_from`.
    unsafe { libc::syscall(libc::SYS_close_range, 0, end - 1, 0) };
}

/// Makes `number` a copy of `fd`, closed on exec, whatever it was before.
pub fn place(fd: BorrowedFd<'_>, number: i32) {
    if fd.as_raw_fd() != number {
        // SAFETY: the caller uses nothing that had this number.
        unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    }
}

/// Lets a descriptor live on in the program that is executed.
pub fn keep_on_exec(number: i32) {
    // SAFETY: changes a flag of a descriptor.
    unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
}

/// Gives every signal its default action again.
pub fn default_actions() {
    // The kernel's sigaction, all zero: the default action, no flags, no mask. Not libc's call,
    // which leaves out the two signals that it keeps for itself and that may be inherited ignored.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the action is at least as long as the kernel's struct and holds no pointer; SIGKILL
        // and SIGSTOP are errors without effect.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u64>(), 8) };
    }
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: ignoring holds no pointer.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Leaves namespaces for new ones.
pub fn unshare(namespaces: u64) -> Result<(), Errno> {
    // SAFETY: takes an integer; the flags of this module touch neither memory nor descriptors.
    if unsafe { libc::unshare(namespaces as c_int) } < 0 { Err(last_error()) } else { Ok(()) }
}

/// Goes into an existing namespace of this kind.
pub fn enter(namespace: &OwnedFd, kind: u64) -> Result<(), Errno> {
    // SAFETY: takes a live descriptor and an integer.
    if unsafe { libc::setns(namespace.as_raw_fd(), kind as c_int) } < 0 { Err(last_error()) } else { Ok(()) }
}

/// An empty session keyring instead of the one that was inherited.
pub fn new_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: the name may be null: an anonymous keyring.
    let made = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<c_char>()) };
    match made {
        0.. => Ok(()),
        // A kernel without keys has none to hide.
        _ => match last_error() {
            Errno::NOSYS => Ok(()),
            error => Err(error),
        },
    }
}

/// Switches the loopback of this network namespace on.
pub fn loopback_up() -> Result<(), Errno> {
    // SAFETY: makes a descriptor, touches no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is new, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: ifreq is plain integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: this ioctl reads an ifreq, which is alive.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// As in the kernel.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn set_mount(mount: &OwnedFd, attributes: &MountAttributes) -> Result<(), Errno> {
    // SAFETY: the path is empty and the attributes are alive and of the size named.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// Takes setuid programs and devices, perhaps also writing, away from a mount that is not in place
/// yet and from those in it, and what happens to them elsewhere.
pub fn harden_mount(mount: &OwnedFd, read_only: bool) -> Result<(), Errno> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
    set_mount(mount, &MountAttributes { set, propagation: libc::MS_PRIVATE, ..MountAttributes::default() })
}

/// Shows the files of a mount that is not in place yet as if their owners were mapped by `user`.
pub fn map_mount(mount: &OwnedFd, user: &OwnedFd) -> Result<(), Errno> {
    let user_namespace = user.as_raw_fd() as u64;
    set_mount(
        mount,
        &MountAttributes { set: libc::MOUNT_ATTR_IDMAP, user_namespace, ..MountAttributes::default() },
    )
}

/// What the owner of a file may set on it beside its mode, owner and times; zeros where the file system
/// has no such thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    flags: u32,
    project: u32,
    generation: u32,
}

/// Reads them.
pub fn attributes(file: BorrowedFd<'_>) -> Attributes {
    // FS_IOC_FSGETXATTR and FS_IOC_GETVERSION.
    const EXTENDED: libc::Ioctl = 0x801c_581f;
    const GENERATION: libc::Ioctl = 0x8008_7601;
    // As in the kernel: flags, extent size, extents, project, and what is no owner's to set.
    let mut extended = [0_u32; 7];
    // SAFETY: the kernel writes a struct of these 28 bytes, or nothing.
    if unsafe { libc::ioctl(file.as_raw_fd(), EXTENDED, extended.as_mut_ptr()) } < 0 {
        extended = [0; 7];
    }
    // The kernel writes 32 bits on most file systems, and announces 64.
    let mut generation = [0_u32; 2];
    // SAFETY: the kernel writes at most these 8 bytes.
    if unsafe { libc::ioctl(file.as_raw_fd(), GENERATION, generation.as_mut_ptr()) } < 0 {
        generation = [0; 2];
    }
    Attributes { flags: extended[0], project: extended[3], generation: generation[0] }
}

/// Holds this process to a Landlock ruleset from here on.
pub fn landlock_restrict(rules: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: takes a live descriptor and flags.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// The compiled list of system calls.
static CALLS: OnceLock<Vec<libc::sock_filter>> = OnceLock::new();

/// Compiles it; to be called once, before any fork.
pub fn prepare_filter() {
    CALLS.get_or_init(super::seccomp::program);
}

/// Holds this process to the list of system calls from here on.
pub fn filter_calls() -> Result<(), Errno> {
    let calls = CALLS.get().ok_or(Errno::INVAL)?;
    let program = libc::sock_fprog { len: calls.len() as u16, filter: calls.as_ptr().cast_mut() };
    // SAFETY: the program is alive and as long as it says; the kernel copies it and writes nothing.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program))
    };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// Whether two threads have their open files in common; where the kernel does not tell, they may not.
pub fn same_files(one: i32, other: i32) -> bool {
    const FILES: c_int = 2;
    // SAFETY: takes integers alone.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) == 0 }
}

/// Waits for a signal.
pub fn pause() {
    // SAFETY: touches no memory.
    unsafe { libc::pause() };
}
