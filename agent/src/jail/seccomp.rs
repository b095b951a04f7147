//! The system calls that a strict task may make: an allowlist, by groups with a reason each, and its
//! compilation into the kernel's filter language. Pure; `sys` hands the program to the kernel.
//!
//! What is on no list fails with EPERM; `clone3`, POSIX queues, `io_setup` and everything newer than this list with ENOSYS, so
//! that a C library falls back to the older call, whose flags a filter can see. Another machine's
//! system calls (32-bit ones on a 64-bit kernel) end the process.
//!
//! The program is a binary search over ranges of numbers, not a chain of comparisons: the kernel
//! runs and translates it for each start of a task, which costs 2 ms for a chain of 700
//! instructions and some hundredths of that for this one, 0.14 µs for each instruction.

use libc::{c_long, sock_filter};

/// Some system calls and why a task may make them.
pub struct Group {
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers; a test holds it to say something"))]
    pub why: &'static str,
    pub calls: &'static [c_long],
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// What an argument must be for a call that is allowed with some arguments only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// None of these bits is set in the argument.
    Without { argument: u8, bits: u32, error: i32 },
    /// The argument, after the mask, is one of these.
    Only { argument: u8, values: &'static [u32], error: i32 },
    /// The argument, after the mask, is none of these.
    Except { argument: u8, mask: u32, values: &'static [u32], error: i32 },
}

/// The flags of `clone` and `unshare` that make a namespace (all but the time one, whose bit means a
/// signal in `clone`).
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
const NEW_TIME: u32 = 0x80;
/// Puts a character into the input of a terminal, and the same for consoles.
const TERMINAL_INPUT: [u32; 2] = [0x5412, 0x541c];
/// The families of sockets: local, IPv4, IPv6 and the kernel's table of addresses and routes.
const FAMILIES: [u32; 4] =
    [libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32];
const DEVICES: [u32; 2] = [libc::S_IFCHR, libc::S_IFBLK];
/// The default, 32-bit machine names, no address randomisation (debuggers and some Lisps ask for
/// it), and the question what it is.
const PERSONALITIES: [u32; 6] = [0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, u32::MAX];

/// Calls that are allowed with some arguments only.
pub const RULED: &[(c_long, Rule)] = &[
    // Threads and processes, but no namespaces: in one of its own a task would have every capability.
    (libc::SYS_clone, Rule::Without { argument: 0, bits: NAMESPACES, error: libc::EPERM }),
    (libc::SYS_unshare, Rule::Without { argument: 0, bits: NAMESPACES | NEW_TIME, error: libc::EPERM }),
    // Not: typing into a terminal that somebody else reads.
    (
        libc::SYS_ioctl,
        Rule::Except { argument: 1, mask: u32::MAX, values: &TERMINAL_INPUT, error: libc::EPERM },
    ),
    // Not: hypervisor sockets, kernel cryptography, raw packets and the other families, each a large
    // and little used part of the kernel.
    (libc::SYS_socket, Rule::Only { argument: 0, values: &FAMILIES, error: libc::EAFNOSUPPORT }),
    // FIFOs and files, no devices.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, Rule::Except { argument: 1, mask: libc::S_IFMT, values: &DEVICES, error: libc::EPERM }),
    (
        libc::SYS_mknodat,
        Rule::Except { argument: 2, mask: libc::S_IFMT, values: &DEVICES, error: libc::EPERM },
    ),
    // Its own limits and its children's, not those of process 1: a keeper that may open no file does not see
    // what the task writes, and an ordinary user's has the task's own uid.
    (libc::SYS_prlimit64, Rule::Except { argument: 0, mask: u32::MAX, values: &[1], error: libc::EPERM }),
    (libc::SYS_personality, Rule::Only { argument: 0, values: &PERSONALITIES, error: libc::EPERM }),
];

/// Calls that do not exist for a task: the C library does without `clone3`; POSIX queues lie in a file
/// system of their own that no Landlock rule can name, so opening one would fail for a reason that
/// no program expects; of the kernel's own asynchronous input and output the machine has one small stock for
/// everybody (`fs.aio-max-nr`), which one task could use up.
pub const ABSENT: &[c_long] = calls![SYS_clone3 SYS_mq_open SYS_mq_unlink SYS_io_setup];

/// The newest system call that was looked at for these lists; the newer ones do not exist for a task.
pub const NEWEST: c_long = 469;

/// `fchmodat2`, whose number the `libc` crate knows on some machines alone; it is the same on all.
const FCHMODAT2: c_long = 452;

/// Calls that are allowed whatever their arguments.
pub const ALLOWED: &[Group] = &[
    Group {
        why: "files by descriptor: reading, writing, locking, mapping",
        calls: calls![
            SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev
            SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_fcntl
            SYS_flock SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_ftruncate
            SYS_truncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_sendfile SYS_splice SYS_tee
            SYS_vmsplice SYS_copy_file_range SYS_pipe2 SYS_memfd_create
        ],
    },
    Group {
        why: "the file tree as far as it can be seen: names, modes, attributes",
        calls: calls![
            SYS_openat SYS_openat2 SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat
            SYS_symlinkat SYS_readlinkat SYS_fchmod SYS_fchmodat SYS_fchown
            SYS_fchownat SYS_faccessat SYS_faccessat2 SYS_utimensat SYS_newfstatat SYS_fstat
            SYS_statx SYS_statfs SYS_fstatfs SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask
            SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr
            SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr
            SYS_fremovexattr SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
        ],
    },
    Group { why: "modes of links, which older kernels left to the C library", calls: &[FCHMODAT2] },
    Group {
        why: "memory of its own",
        calls: calls![
            SYS_brk SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_msync SYS_mincore
            SYS_mlock SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_pkey_alloc
            SYS_pkey_free SYS_pkey_mprotect SYS_membarrier SYS_process_madvise SYS_mseal
            SYS_get_mempolicy SYS_set_mempolicy SYS_mbind SYS_set_mempolicy_home_node
        ],
    },
    Group {
        why: "starting, naming and burying processes of its own; what it may signal the pid namespace bounds",
        calls: calls![
            SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill
            SYS_tgkill SYS_pidfd_open SYS_pidfd_send_signal SYS_getpid SYS_getppid SYS_gettid
            SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_prctl SYS_set_tid_address
            SYS_set_robust_list SYS_get_robust_list SYS_futex SYS_futex_waitv SYS_rseq
            SYS_restart_syscall SYS_getrusage SYS_times SYS_getrlimit SYS_setrlimit
            SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set
        ],
    },
    Group {
        why: "scheduling: rlimits and missing capabilities keep real-time and raised priorities away",
        calls: calls![
            SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam
            SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler
            SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval
            SYS_sched_getattr SYS_sched_setattr SYS_getcpu
        ],
    },
    Group {
        why: "who one is: there is nobody else to become without a capability",
        calls: calls![
            SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups
            SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid
            SYS_setfsgid SYS_setgroups SYS_capget SYS_capset
        ],
    },
    Group {
        why: "signals",
        calls: calls![
            SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending
            SYS_rt_sigtimedwait SYS_rt_sigsuspend SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo
            SYS_sigaltstack SYS_signalfd4
        ],
    },
    Group {
        why: "waiting for events",
        calls: calls![
            SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
            SYS_eventfd2
        ],
    },
    Group {
        why: "reading clocks and setting timers; the clocks themselves stay as they are",
        calls: calls![
            SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday
            SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime
            SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime
            SYS_timerfd_gettime
        ],
    },
    Group {
        why: "sockets of the allowed families; where they lead the network namespace decides",
        calls: calls![
            SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname
            SYS_getpeername SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg
            SYS_recvmmsg SYS_shutdown SYS_setsockopt SYS_getsockopt
        ],
    },
    Group {
        why: "System V queues, semaphores and memory, in an ipc namespace of its own",
        calls: calls![
            SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl
            SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
        ],
    },
    Group { why: "what machine this is, and chance", calls: calls![SYS_uname SYS_sysinfo SYS_getrandom] },
    Group {
        why: "programs that confine themselves further",
        calls: calls![
            SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Group {
        why: "older forms of the above, which this machine still has",
        calls: calls![
            SYS_open SYS_creat SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link SYS_symlink
            SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_access SYS_utime SYS_utimes
            SYS_futimesat SYS_stat SYS_lstat SYS_getdents SYS_inotify_init SYS_pipe SYS_dup2
            SYS_fork SYS_vfork SYS_getpgrp SYS_time SYS_alarm SYS_pause SYS_poll SYS_select
            SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_arch_prctl
        ],
    },
];

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Error(i32),
    Ruled(Rule),
}

const X86_64: u32 = 0xc000_003e;
const AARCH64: u32 = 0xc000_00b7;
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { X86_64 } else { AARCH64 };

/// Offsets in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = libc::BPF_RET as u16;

/// The program that the kernel runs before each system call of a task.
pub fn program() -> Vec<sock_filter> {
    compile(ARCHITECTURE, verdict)
}

/// The same for any machine.
fn compile(architecture: u32, verdict: impl Fn(u32) -> Verdict) -> Vec<sock_filter> {
    let mut code = Code::default();
    code.steps.extend([
        step(LOAD, MACHINE),
        jump(EQUAL, architecture, 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, NUMBER),
    ]);
    code.search(&ranges(verdict));
    code.finish()
}

fn verdict(number: u32) -> Verdict {
    let call = c_long::from(number);
    if let Some((_, rule)) = RULED.iter().find(|(ruled, _)| *ruled == call) {
        return Verdict::Ruled(*rule);
    }
    if ALLOWED.iter().any(|group| group.calls.contains(&call)) {
        return Verdict::Allow;
    }
    if call > NEWEST || ABSENT.contains(&call) {
        return Verdict::Error(libc::ENOSYS);
    }
    Verdict::Error(libc::EPERM)
}

/// Where the verdict changes, from the number 0 up.
fn ranges(verdict: impl Fn(u32) -> Verdict) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    // Past the newest one the verdict is the same for every number.
    for number in 0..=NEWEST as u32 + 1 {
        let verdict = verdict(number);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    }
    ranges
}

/// A program in the making.
#[derive(Default)]
struct Code {
    steps: Vec<sock_filter>,
    /// Comparisons whose two ways are not known yet: where, then the way if so, then the other.
    open: Vec<(usize, Way, Way)>,
}

/// Where it goes on.
#[derive(Clone, Copy)]
enum Way {
    To(usize),
    /// To the one end of the program that gives this.
    End(u32),
}

impl Code {
    /// Finds the range of the number loaded and gives its verdict.
    fn search(&mut self, ranges: &[(u32, Verdict)]) -> Way {
        let here = self.steps.len();
        let [(_, verdict)] = ranges else {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            self.steps.push(jump(AT_LEAST, high[0].0, 0, 0));
            let (low, high) = (self.search(low), self.search(high));
            self.open.push((here, high, low));
            return Way::To(here);
        };
        match *verdict {
            Verdict::Allow => Way::End(libc::SECCOMP_RET_ALLOW),
            Verdict::Error(error) => Way::End(libc::SECCOMP_RET_ERRNO | error as u32),
            Verdict::Ruled(rule) => {
                self.steps.extend(give(rule));
                Way::To(here)
            }
        }
    }

    /// The whole program: each verdict stands once, at its end, as far as a jump of this language reaches.
    fn finish(mut self) -> Vec<sock_filter> {
        let mut ends: Vec<(u32, usize)> = Vec::new();
        for (place, met, other) in self.open {
            let mut over = |way| {
                let to = match way {
                    Way::To(to) => to,
                    Way::End(end) => {
                        let known = ends.iter().find(|(known, _)| *known == end).map(|(_, to)| *to);
                        known.unwrap_or_else(|| {
                            ends.push((end, self.steps.len()));
                            self.steps.push(step(RETURN, end));
                            self.steps.len() - 1
                        })
                    }
                };
                u8::try_from(to - place - 1).expect("a program of this list is shorter than its jumps reach")
            };
            (self.steps[place].jt, self.steps[place].jf) = (over(met), over(other));
        }
        self.steps
    }
}

/// Code that looks at an argument.
fn give(rule: Rule) -> Vec<sock_filter> {
    let allow = step(RETURN, libc::SECCOMP_RET_ALLOW);
    let deny = |error: i32| step(RETURN, libc::SECCOMP_RET_ERRNO | error as u32);
    // All of these are 32 bits wide for the kernel, which ignores the upper half as this does.
    let load = |argument: u8| step(LOAD, ARGUMENTS + 8 * u32::from(argument));
    let any_of = |values: &[u32], then: sock_filter, other: sock_filter| {
        let count = values.len();
        let compare = values
            .iter()
            .enumerate()
            .map(move |(place, value)| jump(EQUAL, *value, (count - place) as u8, 0));
        compare.chain([other, then]).collect::<Vec<_>>()
    };
    match rule {
        Rule::Without { argument, bits, error } => {
            vec![load(argument), jump(ANY_BIT, bits, 1, 0), allow, deny(error)]
        }
        Rule::Only { argument, values, error } => {
            [vec![load(argument)], any_of(values, allow, deny(error))].concat()
        }
        Rule::Except { argument, mask, values, error } => {
            let masked = if mask == u32::MAX { vec![] } else { vec![step(AND, mask)] };
            [vec![load(argument)], masked, any_of(values, deny(error), allow)].concat()
        }
    }
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
