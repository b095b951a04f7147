//! Carries a plan's steps out, one each, in whatever process comes to them: a slot's helper, a
//! keeper, a task before its exec, a trial. Decides nothing.
//!
//! All of these are forks of a process with one thread, so memory may be allocated; but from the fork
//! of the task on ([`Step::Fork`]) the keeper's memory is shared, and those steps do not.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use landlock::{
    Access as _, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
    process::{DumpableBehavior, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    plan::{Access, Rule, Step},
    stood::Stood,
    sys::{self, Fork, Signals},
};

/// What steps leave for later steps.
#[derive(Default)]
pub struct Hands {
    /// Mounts that wait for their places, in order.
    held: VecDeque<OwnedFd>,
    /// Landlock's rules; none where the kernel has no Landlock.
    rules: Option<OwnedFd>,
    /// Where the host's files are seen, while a tree is built.
    host: Option<Host>,
    /// The slot's file tree.
    tree: Option<OwnedFd>,
    /// The slot's user namespace.
    user: Option<OwnedFd>,
    /// What stands between tasks.
    stood: Stood,
    /// This process has gone into another namespace of its own.
    moved: bool,
}

impl Hands {
    /// A mount that somebody else held comes into these hands.
    pub fn take_up(&mut self, mount: OwnedFd) {
        self.held.push_back(mount);
    }

    /// Whether this process has gone into another namespace since the last time.
    pub fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Gives the mounts that are held into other hands.
    pub fn give_up(self) -> Vec<OwnedFd> {
        self.held.into()
    }

    /// Takes away what a task that has ended had, for the next one on the same ground.
    pub fn tidy(&mut self) -> Result<(), Errno> {
        self.held.clear();
        self.rules = None;
        self.stood.tidy()
    }
}

struct Host {
    mounts: OwnedFd,
    root: OwnedFd,
    /// `/proc/self/ns`, for when /proc is not in sight.
    spaces: OwnedFd,
}

/// Mount options under which nothing can be run or opened that is more than a file.
const INERT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// The same for what a task may write and run.
pub(super) const TAME: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Of the instances and watches that a user of the machine may have, how many a slot's may.
const WATCHES_SHARE: i32 = 16;
/// How pseudo terminals are mounted. The machine has some thousands for all of its tasks and others.
const TERMINALS: &CStr = c"ptmxmode=0666,mode=0600,max=256";

/// Does one step.
pub fn carry_out(step: &Step, hands: &mut Hands) -> Result<(), Errno> {
    match step {
        Step::JoinGroup(list) => write_file(list, b"0"),
        Step::OwnKeyring => sys::new_session_keyring(),
        Step::OwnNetwork => {
            sys::unshare(sys::NEW_NETWORK)?;
            hands.moved = true;
            sys::loopback_up()
        }
        Step::OwnGroups => sys::unshare(sys::NEW_CGROUP),
        Step::OwnUser { uid, gid } => {
            let user = user_namespace((*uid, *uid), (*gid, *gid))?;
            in_user_namespace(&user, few_watches)?;
            hands.user = Some(user);
            Ok(())
        }
        Step::FewWatches => few_watches(),
        Step::BeginTree => {
            let spaces = open_dir(c"/proc/self/ns")?;
            let mounts = open_file_at(&spaces, c"mnt")?;
            hands.host = Some(Host { mounts, root: open_dir(c"/")?, spaces });
            sys::unshare(sys::NEW_MOUNT)
        }
        Step::TreeRoot(path) => rustix::mount::mount(
            c"mesh",
            path.as_c_str(),
            c"tmpfs",
            TAME,
            c"mode=0755,size=1m,nr_inodes=1024",
        ),
        Step::Link { target, path } => rustix::fs::symlinkat(target.as_c_str(), CWD, path.as_c_str()),
        Step::MakeFile(path) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        Step::Pivot(path) => {
            rustix::process::chdir(path.as_c_str())?;
            rustix::process::pivot_root(c".", c".")?;
            // The old root lies over the new one now.
            rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
            rustix::process::chdir(c"/")
        }
        Step::EndTree => {
            let host = hands.host.take().ok_or(Errno::BADF)?;
            hands.tree = Some(open_file_at(&host.spaces, c"mnt")?);
            sys::enter(&host.mounts, sys::NEW_MOUNT)?;
            // Where the agent itself lives under another root, that is the host.
            rustix::process::fchdir(&host.root)?;
            rustix::process::chroot(c".")
        }
        Step::EnterTree => {
            sys::enter(hands.tree.as_ref().ok_or(Errno::BADF)?, sys::NEW_MOUNT)?;
            sys::unshare(sys::NEW_MOUNT)
        }
        Step::EnterUser => sys::enter(hands.user.as_ref().ok_or(Errno::BADF)?, sys::NEW_USER),
        Step::MapIds { uid_map, gid_map } => {
            // These files belong to root when the process may not be looked into.
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            write_file(c"/proc/self/setgroups", b"deny")?;
            write_file(c"/proc/self/uid_map", uid_map.to_bytes())?;
            write_file(c"/proc/self/gid_map", gid_map.to_bytes())
        }
        Step::OomScore(score) => {
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            let mut digits = [0; 12];
            write_file(c"/proc/self/oom_score_adj", decimal(*score, &mut digits))
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
            hands.held.push_back(rustix::mount::open_tree(CWD, path.as_c_str(), flags)?);
            Ok(())
        }
        Step::Harden { read_only } => sys::harden_mount(hands.held.back().ok_or(Errno::BADF)?, *read_only),
        Step::MapOwner { owner, task } => {
            let map = user_namespace((owner.0, task.0), (owner.1, task.1))?;
            sys::map_mount(hands.held.back().ok_or(Errno::BADF)?, &map)
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
        Step::Unseal(path) => rustix::mount::mount_remount(path.as_c_str(), INERT | MountFlags::BIND, c""),
        Step::Restore(path) => {
            let tree = hands.held.pop_front().ok_or(Errno::BADF)?;
            rustix::mount::move_mount(
                &tree,
                c"",
                CWD,
                path.as_c_str(),
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
        }
        Step::Scratch { path, options } => {
            rustix::mount::mount(c"mesh", path.as_c_str(), c"tmpfs", TAME, options.as_c_str())
        }
        Step::Terminals(path) => {
            let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
            rustix::mount::mount(c"mesh", path.as_c_str(), c"devpts", flags, TERMINALS)?;
            // Devices open all the same, but no task changes what the next one finds.
            rustix::mount::mount_remount(path.as_c_str(), flags | MountFlags::BIND | MountFlags::RDONLY, c"")
        }
        Step::StandingScratch(options) => hands.stood.scratch(options),
        Step::StandingQueues => {
            hands.moved |= hands.stood.queues()?;
            Ok(())
        }
        Step::MakeOpenDir(path) => make_open_dir(path),
        Step::OwnProc => rustix::mount::mount(c"proc", c"/proc", c"proc", INERT, None::<&CStr>),
        // Nobody is seen but by those who could trace him: a task its own processes, not its keeper.
        Step::StandingProc => rustix::mount::mount(c"proc", c"/proc", c"proc", INERT, c"hidepid=2"),
        Step::NumbersAnew => hands.stood.numbers_anew(),
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
        Step::ResetActions => {
            sys::default_actions();
            Ok(())
        }
        Step::UnblockSignals => {
            Signals::of(&[]).block_only();
            Ok(())
        }
        Step::Rules(rules) => {
            hands.rules = landlock_rules(rules, &mut hands.stood)?;
            Ok(())
        }
        Step::Restrict => hands.rules.as_ref().map_or(Ok(()), sys::landlock_restrict),
        Step::Filter => sys::filter_calls(),
    }
}

/// Keeps these capabilities of those that the process has.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// A directory that everybody may write in.
pub(super) fn make_open_dir(path: &CStr) -> Result<(), Errno> {
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))?;
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o1777), rustix::fs::AtFlags::empty())
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes).map(|_| ())
}

fn open_dir(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

pub(super) fn open_path(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn open_file_at(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A number as text, without memory of its own.
fn decimal(number: i32, digits: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    &digits[at..]
}

/// A user namespace in which one uid and one gid exist: (inside, outside) each. Only a privileged
/// process may do this for ids that are not its own.
fn user_namespace(uid: (u32, u32), gid: (u32, u32)) -> Result<OwnedFd, Errno> {
    // SAFETY: helpers, keepers and trials are forks of a process with one thread.
    #[expect(unsafe_code, reason = "a fork")]
    let pidfd = match unsafe { sys::fork_into(sys::NEW_USER) }? {
        Fork::Parent { pidfd, .. } => pidfd,
        Fork::Child => loop {
            // Until it is killed, with its parent at the latest.
            let _armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            sys::pause();
        },
    };
    let made = (|| {
        // Its number where /proc was mounted, which may be another than here.
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
        let info = info.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::SRCH)?.trim();
        let file = |name| CString::new(format!("/proc/{pid}/{name}")).map_err(|_| Errno::INVAL);
        write_file(&file("uid_map")?, format!("{} {} 1\n", uid.0, uid.1).as_bytes())?;
        write_file(&file("gid_map")?, format!("{} {} 1\n", gid.0, gid.1).as_bytes())?;
        rustix::fs::openat(CWD, &file("ns/user")?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })();
    let _gone = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let _buried = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    made
}

/// Does something with power over a user namespace, which this process does not enter.
fn in_user_namespace(user: &OwnedFd, what: fn() -> Result<(), Errno>) -> Result<(), Errno> {
    #[expect(unsafe_code, reason = "a fork")]
    // SAFETY: as in `user_namespace`.
    let pidfd = match unsafe { sys::fork_into(0) }? {
        Fork::Parent { pidfd, .. } => pidfd,
        Fork::Child => {
            let done = sys::enter(user, sys::NEW_USER).and_then(|()| what());
            sys::exit_now(done.err().map_or(0, Errno::raw_os_error))
        }
    };
    let status = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        code => Err(code.map_or(Errno::IO, Errno::from_raw_os_error)),
    }
}

/// Whoever is in this user namespace may watch a part of the files that the machine lets each of its users
/// watch. It counts as its maker's too, who may be root.
fn few_watches() -> Result<(), Errno> {
    for (machine, own) in [
        (c"/proc/sys/fs/inotify/max_user_instances", c"/proc/sys/user/max_inotify_instances"),
        (c"/proc/sys/fs/inotify/max_user_watches", c"/proc/sys/user/max_inotify_watches"),
    ] {
        let mut digits = [0; 24];
        let length = match rustix::fs::open(machine, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => rustix::io::read(file, &mut digits)?,
            // A kernel without inotify.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let most = str::from_utf8(&digits[..length]).ok().and_then(|text| text.trim().parse::<i32>().ok());
        write_file(own, decimal(most.ok_or(Errno::INVAL)? / WATCHES_SHARE, &mut [0; 12]))?;
    }
    Ok(())
}

/// As far as this kernel knows what is forbidden: older ones forbid less.
fn landlock_rules(rules: &[Rule], stood: &mut Stood) -> Result<Option<OwnedFd>, Errno> {
    let all = AccessFs::from_all(NEWEST_ABI);
    let look = AccessFs::from_read(NEWEST_ABI);
    let refused = |_: landlock::RulesetError| Errno::INVAL;
    (|| {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)
            .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal))
            .and_then(Ruleset::create)
            .map_err(refused)?;
        for rule in rules {
            let access = match rule.access {
                Access::Look => look,
                Access::Use => look | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::Truncate,
                Access::Own => all,
            };
            ruleset = match rule.access {
                // The same for each task: mounts have no part in it, and these are never mounted anew.
                Access::Look | Access::Use => {
                    ruleset.add_rule(PathBeneath::new(stood.open(&rule.path)?, access))
                }
                Access::Own => ruleset.add_rule(PathBeneath::new(open_path(&rule.path)?, access)),
            }
            .map_err(refused)?;
        }
        Ok(ruleset.into())
    })()
}

/// What the rules are written for.
const NEWEST_ABI: landlock::ABI = landlock::ABI::V7;
