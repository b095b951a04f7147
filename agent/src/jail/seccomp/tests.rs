//! The program does to every system call what the lists say, and is small.

use std::collections::{BTreeMap, HashSet};

use seccompiler::{SeccompAction, SeccompFilter, SeccompRule};

use super::*;

/// A jump of the library's programs; ours have none.
const ALWAYS: u16 = libc::BPF_JMP as u16;

/// A system call as the filter sees it.
#[derive(Clone, Copy, Default)]
struct Call {
    number: u32,
    machine: u32,
    arguments: [u64; 6],
}

impl Call {
    fn new(number: c_long, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Self { number: number as u32, machine: ARCHITECTURE, arguments: all }
    }
}

/// Runs a program as the kernel would.
fn run(program: &[sock_filter], call: Call) -> u32 {
    let mut data = [0; 64];
    data[..4].copy_from_slice(&call.number.to_le_bytes());
    data[4..8].copy_from_slice(&call.machine.to_le_bytes());
    for (place, argument) in call.arguments.iter().enumerate() {
        data[16 + 8 * place..24 + 8 * place].copy_from_slice(&argument.to_le_bytes());
    }
    let (mut a, mut at) = (0, 0);
    loop {
        let op = program[at];
        at += 1;
        match op.code {
            LOAD => a = u32::from_le_bytes(data[op.k as usize..][..4].try_into().unwrap()),
            AND => a &= op.k,
            ALWAYS => at += op.k as usize,
            RETURN => return op.k,
            code => {
                let met = match code {
                    EQUAL => a == op.k,
                    AT_LEAST => a >= op.k,
                    ANY_BIT => a & op.k != 0,
                    code => panic!("{code:#x}"),
                };
                at += usize::from(if met { op.jt } else { op.jf });
            }
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn error(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

#[test]
fn every_number_gets_what_the_lists_say() {
    let program = program();
    let allowed: HashSet<c_long> = ALLOWED.iter().flat_map(|group| group.calls).copied().collect();
    let ruled: HashSet<c_long> = RULED.iter().map(|(call, _)| *call).collect();
    assert!(allowed.is_disjoint(&ruled), "{:?}", allowed.intersection(&ruled));
    for number in (0..2000).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
        let call = c_long::from(number);
        if ruled.contains(&call) {
            continue;
        }
        let expected = match call {
            call if allowed.contains(&call) => ALLOW,
            call if ABSENT.contains(&call) => error(libc::ENOSYS),
            0..=NEWEST => error(libc::EPERM),
            _ => error(libc::ENOSYS),
        };
        assert_eq!(run(&program, Call::new(call, &[])), expected, "system call {number}");
    }
}

#[test]
fn what_reaches_into_the_kernel_or_out_of_the_sandbox_is_on_no_list() {
    let program = program();
    for call in [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_userfaultfd,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_perf_event_open,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_clock_settime,
        libc::SYS_settimeofday,
        libc::SYS_syslog,
        libc::SYS_fanotify_init,
        libc::SYS_quotactl,
        libc::SYS_sethostname,
    ] {
        assert_eq!(run(&program, Call::new(call, &[])), error(libc::EPERM), "system call {call}");
    }
}

#[test]
fn arguments_decide_where_a_call_is_half_allowed() {
    let program = program();
    let go = |call: c_long, arguments: &[u64]| run(&program, Call::new(call, arguments));
    let threads = (libc::CLONE_VM | libc::CLONE_THREAD | libc::SIGCHLD) as u64;
    assert_eq!(go(libc::SYS_clone, &[threads]), ALLOW);
    for bit in 0..32 {
        let flag = 1_u64 << bit;
        let expected = if NAMESPACES & flag as u32 != 0 { error(libc::EPERM) } else { ALLOW };
        assert_eq!(go(libc::SYS_clone, &[threads | flag]), expected, "clone bit {bit}");
    }
    assert_eq!(go(libc::SYS_unshare, &[libc::CLONE_FILES as u64]), ALLOW);
    assert_eq!(go(libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64]), error(libc::EPERM));
    assert_eq!(go(libc::SYS_unshare, &[0x80]), error(libc::EPERM));

    assert_eq!(go(libc::SYS_ioctl, &[0, libc::TCGETS]), ALLOW);
    assert_eq!(go(libc::SYS_ioctl, &[0, libc::TIOCSTI]), error(libc::EPERM));
    // The kernel looks at the lower half alone, and so must the filter.
    assert_eq!(go(libc::SYS_ioctl, &[0, libc::TIOCSTI | 1 << 32]), error(libc::EPERM));
    assert_eq!(go(libc::SYS_ioctl, &[0, libc::TIOCLINUX]), error(libc::EPERM));

    for family in 0..50 {
        let expected = if FAMILIES.contains(&family) { ALLOW } else { error(libc::EAFNOSUPPORT) };
        assert_eq!(go(libc::SYS_socket, &[family.into()]), expected, "family {family}");
    }
    for (kind, expected) in [
        (libc::S_IFIFO, ALLOW),
        (libc::S_IFREG, ALLOW),
        (libc::S_IFCHR, error(libc::EPERM)),
        (libc::S_IFBLK, error(libc::EPERM)),
    ] {
        assert_eq!(go(libc::SYS_mknodat, &[0, 0, u64::from(kind | 0o644)]), expected, "{kind:o}");
    }
    // Whoever of the task's processes; the kernel takes the lower half of the number.
    for (process, expected) in
        [(0, ALLOW), (2, ALLOW), (1, error(libc::EPERM)), (1 | 1 << 32, error(libc::EPERM))]
    {
        assert_eq!(go(libc::SYS_prlimit64, &[process]), expected, "{process:#x}");
    }
    assert_eq!(go(libc::SYS_personality, &[0xffff_ffff]), ALLOW);
    assert_eq!(go(libc::SYS_personality, &[0x40_0000]), error(libc::EPERM), "READ_IMPLIES_EXEC");
}

#[test]
fn another_machines_system_calls_end_the_process() {
    let program = program();
    for machine in [0, 0x4000_0003, 0x4000_0028, !ARCHITECTURE] {
        for number in [1, 4, 11] {
            let call = Call { number, machine, ..Call::default() };
            assert_eq!(run(&program, call), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}

/// The chain of comparisons of a library that others rely on, from the same lists.
#[test]
fn a_library_makes_the_same_of_the_lists() {
    let rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().flat_map(|group| group.calls).map(|call| (*call, Vec::new())).collect();
    let target = std::env::consts::ARCH.try_into().unwrap();
    let reference =
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, target);
    let reference: seccompiler::BpfProgram = reference.unwrap().try_into().unwrap();
    let reference: Vec<sock_filter> = reference
        .into_iter()
        .map(|op| sock_filter { code: op.code, jt: op.jt, jf: op.jf, k: op.k })
        .collect();
    let ours = program();
    for number in 0..=NEWEST {
        if RULED.iter().any(|(call, _)| *call == number) {
            continue;
        }
        let call = Call::new(number, &[]);
        assert_eq!(run(&ours, call) == ALLOW, run(&reference, call) == ALLOW, "system call {number}");
    }
    // Why it is not used: the kernel's work for each start grows with the length.
    assert!(ours.len() * 3 < reference.len(), "{} against {}", ours.len(), reference.len());
}

#[test]
fn every_group_says_why() {
    for group in ALLOWED {
        assert!(group.why.len() > 5 && !group.calls.is_empty(), "{}", group.why);
    }
    let all: Vec<c_long> = ALLOWED.iter().flat_map(|group| group.calls).copied().collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "a call stands in two groups");
}

/// The numbers of 64-bit Arm, as the kernel's headers have them for every newer machine.
const HEADER: &str = "/usr/include/asm-generic/unistd.h";
/// From here on a system call has the same number on every machine.
const COMMON: c_long = 424;

fn header(text: &str) -> std::collections::HashMap<&str, u32> {
    let words = |line| str::split_whitespace(line).collect::<Vec<_>>();
    let lines: Vec<Vec<&str>> = text.lines().map(words).filter(|words| words.len() >= 3).collect();
    let defines = lines.iter().filter(|words| words[0] == "#define" && words[1].starts_with("__NR"));
    let numbers: std::collections::HashMap<&str, u32> =
        defines.clone().filter_map(|words| Some((words[1], words[2].parse().ok()?))).collect();
    let value = |word: &str| numbers.get(word).copied().or_else(|| word.parse().ok());
    defines.filter_map(|words| Some((words[1].strip_prefix("__NR_")?, value(words[2])?))).collect()
}

/// Names on lists for every machine, as they stand in the source.
fn common_names() -> Vec<&'static str> {
    let source = include_str!("../seccomp.rs");
    let lists = source.split("calls![").skip(1).filter_map(|rest| rest.split_once(']'));
    let mut before = source.split("calls![").next().unwrap();
    let mut names = Vec::new();
    for (list, rest) in lists {
        let of_one_machine =
            before.rsplit_once("Group {").is_some_and(|(above, _)| above.trim_end().ends_with(']'));
        if !of_one_machine {
            names.extend(list.split_whitespace().filter_map(|name| name.strip_prefix("SYS_")));
        }
        before = rest;
    }
    names
}

#[test]
fn the_lists_make_a_program_for_the_other_machine_too() {
    let Ok(text) = std::fs::read_to_string(HEADER) else {
        mesh_skip::skip(&format!("{HEADER} is not on this machine"));
        return;
    };
    let header = header(&text);
    assert_eq!((header["read"], header["newfstatat"], header["clone3"]), (63, 79, 435));
    let names = common_names();
    assert!(names.len() > 200, "{}", names.len());
    let newer = || ALLOWED.iter().flat_map(|group| group.calls).filter(|call| **call >= COMMON);
    let unknown: Vec<&&str> = names.iter().filter(|name| !header.contains_key(**name)).collect();
    // Headers may be older than the lists; what is older than both must be there.
    assert!(unknown.len() <= newer().count(), "64-bit Arm lacks some of {unknown:?}");
    let absent: Vec<u32> = ["clone3", "mq_open", "mq_unlink", "io_setup"].map(|name| header[name]).into();
    let known = names.iter().filter_map(|name| header.get(name).copied());
    let allowed: HashSet<u32> =
        known.chain(newer().map(|call| *call as u32)).filter(|number| !absent.contains(number)).collect();
    let devices = RULED.iter().find(|(call, _)| *call == libc::SYS_mknodat).unwrap().1;
    let program = compile(AARCH64, |call| {
        if call == header["mknodat"] {
            Verdict::Ruled(devices)
        } else if allowed.contains(&call) {
            Verdict::Allow
        } else if absent.contains(&call) || c_long::from(call) > NEWEST {
            Verdict::Error(libc::ENOSYS)
        } else {
            Verdict::Error(libc::EPERM)
        }
    });
    // The kernel takes no more.
    assert!(program.len() < 4096);
    for call in 0..1000 {
        let expected = match call {
            call if allowed.contains(&call) => ALLOW,
            call if absent.contains(&call) || c_long::from(call) > NEWEST => error(libc::ENOSYS),
            call if call == header["mknodat"] => ALLOW,
            _ => error(libc::EPERM),
        };
        let call = Call { number: call, machine: AARCH64, ..Call::default() };
        assert_eq!(run(&program, call), expected, "system call {}", call.number);
        assert_eq!(run(&program, Call { machine: X86_64, ..call }), libc::SECCOMP_RET_KILL_PROCESS);
    }
    for dangerous in
        ["ptrace", "keyctl", "bpf", "mount", "setns", "userfaultfd", "io_uring_setup", "perf_event_open"]
    {
        assert!(!allowed.contains(&header[dangerous]), "{dangerous}");
    }
}
