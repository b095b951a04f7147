//! What this machine can do for a task, each layer proved by doing it in a trial process.
//! Nothing is concluded from versions or settings: those only tell what to advise. `whole` tries all of
//! level strict together.

use std::{ffi::CString, fs, io, path::Path, time::Duration};

use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};

use super::{
    cgroup::{Group, Groups},
    keeper::{Trial, trial},
    plan::{Facts, Step, System, landlock_trial},
    protocol::{Bounds, Layer, Level, Limits, Mount, Network, Probe, Rlimits, StartRequest},
    sys,
};

mod whole;

use whole::everything;

/// The uid and gid that a trial changes to: `nobody` on every Linux.
const NOBODY: u32 = 65534;
/// The empty directory, in the jail's own, on which file trees are built.
pub const TREE: &str = "tree";
/// The memory that a trial may use, and what it tries to use.
const LITTLE: u64 = 16 << 20;
const MUCH: usize = 64 << 20;

const USER_REMEDY: &str = "allow unprivileged user namespaces (sysctl user.max_user_namespaces, \
     kernel.unprivileged_userns_clone; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor \
     profile for the agent that has `userns,`), or run the agent as root";
const ROOT_REMEDY: &str =
    "give the agent CAP_SYS_ADMIN, or run it outside of the container that takes it away";
const TREE_REMEDY: &str = "run a kernel from 5.12 on, and the agent where it may mount what it sees, with a \
     data directory that is in none of those that tasks see (/usr, /etc, /opt and the like)";
const ROOT_LIMITS: &str = "mount the cgroup controllers memory, pids and cpu (version 1 or 2), and with version 2 \
     let the agent divide its group: Delegate=yes in its systemd unit";
const USER_LIMITS: &str = "give the agent's user a control group of its own: Delegate=yes in its systemd unit, \
     started in the system or by a user manager to which memory, pids and cpu are delegated";

/// Tries every layer in `dir`, the jail's own directory.
pub fn probe(
    dir: &Path,
    facts: &Facts,
    system: &System,
    groups: &mut io::Result<Groups>,
) -> io::Result<Probe> {
    let root = facts.uid == 0;
    let remedy = if root { ROOT_REMEDY } else { USER_REMEDY };
    // There may be too few of one kind alone.
    let of_kind = |kind: &str| format!("raise sysctl user.max_{kind}_namespaces, or {remedy}");
    let mut layers = Vec::new();
    let mut add = |name: &str, result: Result<(), Trial>, remedy: &str| {
        let remedy = match &result {
            Ok(()) => String::new(),
            Err(Trial::Fork(errno)) => format!("{remedy} ({})", io::Error::from(*errno)),
            Err(Trial::Step(what)) => format!("{remedy} ({what} failed)"),
            Err(Trial::Check) => format!("{remedy} (it has no effect here)"),
            Err(Trial::Together(why)) => format!("{remedy} (a shell does not run inside: {why})"),
        };
        layers.push(Layer { name: name.to_owned(), present: result.is_ok(), remedy });
        result.is_ok()
    };

    let mut first = Vec::new();
    let mut namespaces = 0;
    let mut basic = add("no_new_privs", trial(0, &[Step::NoNewPrivileges], || true), "update the kernel");
    if root {
        let steps = [Step::ClearGroups, Step::Gid(NOBODY), Step::Uid(NOBODY), Step::DropCapabilities];
        let gone = || rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_err();
        basic &= add("uid", trial(0, &steps, gone), "give the agent CAP_SETUID and CAP_SETGID");
    } else {
        namespaces = sys::NEW_USER;
        let map = |id: u32| CString::new(format!("{id} {id} 1\n"));
        first.push(Step::MapIds { uid_map: map(facts.uid)?, gid_map: map(facts.gid)? });
        let same = || rustix::process::getuid().as_raw() == facts.uid;
        basic &= add("user_namespace", trial(namespaces, &first, same), remedy);
    }
    namespaces |= sys::NEW_PID;
    basic &= add("pid_namespace", trial(namespaces, &first, || std::process::id() == 1), &of_kind("pid"));
    namespaces |= sys::NEW_MOUNT;
    first.push(Step::PrivateMounts);

    let mut proc = first.clone();
    proc.push(Step::OwnProc);
    let alone = || fs::read_link("/proc/self").is_ok_and(|pid| pid == Path::new("1"));
    let unmasked = "a container's masks over /proc keep a new one from being mounted: run the agent outside of it, or as root";
    basic &= add("own_proc", trial(namespaces, &proc, alone), if root { remedy } else { unmasked });
    basic &= add("hidden_files", hide(dir, namespaces, first.clone())?, &of_kind("mnt"));
    let mut strict = basic;
    if root {
        let steps = [Step::OwnUser { uid: NOBODY, gid: NOBODY }, Step::EnterUser];
        // Root does not exist in it.
        let powerless = || !rustix::process::getuid().is_root();
        strict &= add("user_namespace", trial(0, &steps, powerless), "raise sysctl user.max_user_namespaces");
    }
    let mut network = first.clone();
    network.push(Step::OwnNetwork);
    strict &= add("network_namespace", trial(namespaces, &network, loopback_alone), &of_kind("net"));
    for (name, namespace, file) in [
        ("ipc_namespace", sys::NEW_IPC, "ipc"),
        ("uts_namespace", sys::NEW_UTS, "uts"),
        ("cgroup_namespace", sys::NEW_CGROUP, "cgroup"),
    ] {
        let file = format!("/proc/self/ns/{file}");
        let outside = fs::read_link(&file)?;
        let other = || fs::read_link(&file).is_ok_and(|inside| inside != outside);
        let remedy = of_kind(name.trim_end_matches("_namespace"));
        strict &= add(name, trial(namespaces | namespace, &first, other), &remedy);
    }
    let filtered = [Step::NoNewPrivileges, Step::Filter];
    let refused = || sys::unshare(sys::NEW_USER) == Err(rustix::io::Errno::PERM);
    strict &= add("seccomp", trial(0, &filtered, refused), "run a kernel with CONFIG_SECCOMP_FILTER");
    // A second wall: where it is missing the first one stands.
    add(
        "landlock",
        restrict(dir)?,
        "run a kernel from 5.13 on with `landlock` among its security modules (lsm=)",
    );
    let tree = dir.join(TREE);
    fs::create_dir_all(&tree)?;
    if strict {
        let result = everything(dir, facts, system, &tree).map_err(Trial::Together);
        strict &= add("file_tree", result, TREE_REMEDY);
    }
    let limits = match groups {
        Ok(groups) => match groups.slot() {
            Ok(group) => bounded(group),
            Err(error) => {
                Err(Trial::Fork(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)))
            }
        },
        Err(error) => {
            Err(Trial::Fork(rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::NOENT)))
        }
    };
    let limits = add("cgroup_limits", limits, if root { ROOT_LIMITS } else { USER_LIMITS });

    let strongest = match (basic, strict) {
        (_, true) => Level::Strict,
        (true, false) => Level::Basic,
        (false, false) => Level::None,
    };
    Ok(Probe { strongest, layers, limits: if limits { Limits::Cgroup } else { Limits::Rlimit } })
}

/// Whether there is no interface but a loopback, and that works.
fn loopback_alone() -> bool {
    let interfaces = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let alone = interfaces.lines().skip(2).all(|line| line.trim_start().starts_with("lo:"));
    let here = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.send_to(b"probe", socket.local_addr()?));
    alone && here.is_ok()
}

/// Allows writing in one directory: it must not be possible beside it.
fn restrict(dir: &Path) -> io::Result<Result<(), Trial>> {
    let open = dir.join("probe");
    fs::create_dir_all(&open)?;
    let rules = landlock_trial(&open).map_err(io::Error::other)?;
    let (inside, outside) = (open.join("inside"), dir.join("outside"));
    let steps = [Step::Rules(rules), Step::NoNewPrivileges, Step::Restrict];
    let result = trial(0, &steps, || fs::write(&inside, "").is_ok() && fs::write(&outside, "").is_err());
    let _there_if_it_failed = fs::remove_file(outside);
    fs::remove_dir_all(open)?;
    Ok(result)
}

/// Uses more memory than the group may: only death proves the bound.
fn bounded(mut group: Group) -> Result<(), Trial> {
    let errno = |error: &io::Error| rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
    let bounds =
        Bounds { memory: Some(LITTLE), processes: Some(16), cpu_millis: Some(1000), ..Bounds::default() };
    group.bound(&bounds).map_err(|error| Trial::Fork(errno(&error)))?;
    let mut steps = Vec::new();
    for list in group.lists() {
        let list = CString::new(list.into_os_string().into_encoded_bytes());
        steps.push(Step::JoinGroup(list.map_err(|_| Trial::Check)?));
    }
    let survived = trial(0, &steps, || {
        let much = vec![1_u8; MUCH];
        std::hint::black_box(&much).iter().map(|&byte| usize::from(byte)).sum::<usize>() == MUCH
    });
    match survived {
        Err(Trial::Check) if group.kills() > 0 => Ok(()),
        Ok(()) | Err(Trial::Check) => Err(Trial::Check),
        Err(error) => Err(error),
    }
}

/// A request that nobody made, at level strict.
pub fn request(argv: &[&str], work_dir: &Path, attempt_dir: &Path, facts: &Facts) -> StartRequest {
    let id = (facts.uid == 0).then_some(NOBODY);
    StartRequest {
        attempt: AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index: 0 }, number: 1 },
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        work_dir: work_dir.to_owned(),
        attempt_dir: attempt_dir.to_owned(),
        uid: id,
        gid: id,
        level: Level::Strict,
        timeout: None,
        grace: Duration::ZERO,
        max_output: 0,
        limits: Rlimits::default(),
        hidden: Vec::new(),
        network: Network::None,
        mounts: Vec::new(),
        bounds: Bounds::default(),
        room: None,
        without: Vec::new(),
        lease: None,
        after: None,
        slot: None,
    }
}

/// Makes ready to mount a directory into a task's tree, as its plan would. The error is for people.
pub fn mount(mount: &Mount, facts: &Facts) -> Result<(), String> {
    let text = |error: std::ffi::NulError| error.to_string();
    let mut namespaces = sys::NEW_MOUNT;
    let mut steps = Vec::new();
    if facts.uid != 0 {
        if mount.owner.is_some() {
            return Err("owner= needs an agent that runs as root".to_owned());
        }
        namespaces |= sys::NEW_USER;
        let map = |id: u32| CString::new(format!("{id} {id} 1\n")).map_err(text);
        steps.push(Step::MapIds { uid_map: map(facts.uid)?, gid_map: map(facts.gid)? });
    }
    let source = CString::new(mount.source.as_os_str().as_encoded_bytes()).map_err(text)?;
    steps.extend([Step::PrivateMounts, Step::Hold(source), Step::Harden { read_only: mount.read_only }]);
    if let Some(owner) = mount.owner {
        steps.push(Step::MapOwner { owner, task: (NOBODY, NOBODY) });
    }
    trial(namespaces, &steps, || true).map_err(|failed| match failed {
        Trial::Step(what) if mount.owner.is_some() && what == (steps[steps.len() - 1].describe()) => {
            "its file system cannot show files under another owner: leave owner= out, or use one that has \
             idmapped mounts"
                .to_owned()
        }
        Trial::Fork(errno) => io::Error::from(errno).to_string(),
        Trial::Step(what) => format!("{what} failed"),
        Trial::Check | Trial::Together(_) => "the trial died".to_owned(),
    })
}

/// Covers a directory with a secret and a work directory in it: only the second may be seen.
fn hide(dir: &Path, namespaces: u64, mut steps: Vec<Step>) -> io::Result<Result<(), Trial>> {
    let outer = dir.join("probe");
    let work = outer.join("work");
    let secret = outer.join("secret");
    fs::create_dir_all(&work)?;
    fs::write(&secret, "secret")?;
    fs::write(work.join("file"), "file")?;
    let c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
    steps.extend([
        Step::Hold(c(&work)?),
        Step::Cover(c(&outer)?),
        Step::MakeDir(c(&work)?),
        Step::Seal(c(&outer)?),
        Step::Restore(c(&work)?),
    ]);
    let result = trial(namespaces, &steps, || {
        fs::metadata(&secret).is_err()
            && fs::write(outer.join("new"), "new").is_err()
            && fs::read(work.join("file")).is_ok_and(|text| text == b"file")
    });
    fs::remove_dir_all(&outer)?;
    Ok(result)
}
