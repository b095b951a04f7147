//! Level strict: what is prepared once for a slot, and what each task goes through on that ground.
//!
//! Whoever sits in a slot joins its control groups, makes a network and a user namespace and builds the
//! file tree. Then one of two things happens to a task.
//!
//! Under root, where it asks for no mounts, a keeper *stands* in the slot: process 1 of a pid namespace,
//! in the tree itself. It puts the work directory into it and takes it out again, and keeps /tmp, the
//! namespace of queues and the network for as long as nobody touches them. All else that a task could
//! change it has no power to.
//!
//! Elsewhere a helper forks a keeper for each task, into namespaces of its own; that takes a copy of the
//! tree and puts the work directory, /tmp, /proc and mounts into it.
//!
//! Either way power is given up step by step: mounts, then the user, then capabilities and `no_new_privs`,
//! then Landlock, then the filter of system calls, then the command. Where a keeper stands, its starter has
//! gone before through those that are the same for every task (`Step::is_inherited`).

use super::{
    Access, CString, Facts, Level, Limit, Limits, Path, PathBuf, Places, Plan, Refusal, Room, Rule,
    StartRequest, Step, Wall, argv, c_path, c_string, environment, identity, limits, programs, same, sys,
};
use mesh_proto::mounts::{PlaceError, check_place};

use crate::jail::protocol::{Bounds, Mount, Network, WORK};

/// What the machine's system directories look like, as found by looking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// Directories to show.
    pub directories: Vec<PathBuf>,
    /// Symbolic links to make again, such as /bin on most machines.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Devices to show.
    pub devices: Vec<PathBuf>,
    /// Directories that are shown only with the host's network: where the resolver's file lies.
    pub resolver: Vec<PathBuf>,
}

/// What a slot is made for: tasks of the same kind may follow each other in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ground {
    /// As root: the only uid and gid of the slot's user namespace.
    pub identity: Option<(u32, u32)>,
    pub network: Network,
    /// False where a test has taken the tree away.
    pub tree: bool,
    /// False where a test has taken the control groups away.
    pub groups: bool,
    /// Whether a keeper stands here, for one task after another; else a helper forks one for each.
    pub stands: bool,
}

/// How much sooner than other processes the memory killer takes a task's.
const VICTIM: i32 = 500;
/// Of a task's memory how much /tmp may take, and how much when the memory has no bound.
const SCRATCH_SHARE: u64 = 2;
const SCRATCH: u64 = 1 << 30;
/// Bytes for each file that /tmp may hold.
const PER_FILE: u64 = 8192;
/// Signals with a value, and timers, that may wait for a task.
const SIGNALS: u64 = 1024;

impl Ground {
    /// What `request` needs under it.
    pub fn of(request: &StartRequest, facts: &Facts) -> Option<Self> {
        let with = |wall| !request.without.contains(&wall);
        (request.level == Level::Strict).then(|| Self {
            identity: identity(request, facts).ok().flatten(),
            network: if with(Wall::Network) { request.network } else { Network::Host },
            tree: with(Wall::Tree),
            groups: with(Wall::Limits) && facts.limits == Limits::Cgroup,
            stands: super::stands(request, facts),
        })
    }

    /// Flags of the own namespaces of whoever sits here: of a helper none, but for an ordinary user, who
    /// may do nothing of this outside of a user namespace.
    pub fn namespaces(&self, facts: &Facts) -> u64 {
        if self.stands {
            sys::NEW_PID | sys::NEW_MOUNT | sys::NEW_UTS
        } else if facts.uid == 0 {
            0
        } else {
            sys::NEW_USER | sys::NEW_MOUNT
        }
    }
}

/// What the helper of a slot, or its standing keeper, does once. `base` is an empty directory, `groups`
/// are the lists of processes of the slot's control groups.
pub fn ground(
    ground: &Ground,
    system: &System,
    base: &Path,
    groups: &[PathBuf],
    facts: &Facts,
) -> Result<Vec<Step>, Refusal> {
    let mut steps = Vec::new();
    // Before its own user namespace, from which an ordinary user could not write there any more.
    for group in groups {
        steps.push(Step::JoinGroup(c_path(group)?));
    }
    if facts.uid != 0 {
        steps.push(Step::MapIds { uid_map: same(facts.uid)?, gid_map: same(facts.gid)? });
        steps.push(Step::FewWatches);
    }
    if ground.stands {
        // Its tasks have it from their keeper, and none comes below what root gave.
        steps.push(Step::OomScore(VICTIM));
    }
    steps.extend([Step::Undumpable, Step::Umask(0o022), Step::OwnKeyring]);
    if ground.network == Network::None {
        steps.push(Step::OwnNetwork);
    }
    let user = ground.identity.map(|(uid, gid)| Step::OwnUser { uid, gid });
    if ground.stands {
        steps.extend([Step::OwnGroups, Step::ClearGroups, Step::ResetActions]);
        // Before the tree, from which the machine's /proc is not to be seen.
        steps.extend(user);
        steps.extend(tree(ground, system, base, facts)?);
        steps.push(Step::StandingProc);
        return Ok(steps);
    }
    if ground.tree {
        steps.push(Step::BeginTree);
        steps.extend(tree(ground, system, base, facts)?);
        steps.push(Step::EndTree);
    }
    steps.extend(user);
    Ok(steps)
}

/// Builds the file tree of a slot's tasks and makes it the root.
fn tree(ground: &Ground, system: &System, base: &Path, facts: &Facts) -> Result<Vec<Step>, Refusal> {
    let at = |path: &Path| c_path(&base.join(path.strip_prefix("/").unwrap_or(path)));
    let mut steps = vec![Step::PrivateMounts, Step::TreeRoot(c_path(base)?)];
    let mut made = vec![PathBuf::from("/")];
    let mut make_dir = |path: &Path, steps: &mut Vec<Step>| -> Result<(), Refusal> {
        for dir in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !made.iter().any(|made| made == dir) {
                made.push(dir.to_owned());
                steps.push(Step::MakeDir(at(dir)?));
            }
        }
        Ok(())
    };
    for dir in [WORK, "/dev", "/proc", "/run", "/sys", "/tmp", "/var"] {
        make_dir(Path::new(dir), &mut steps)?;
    }
    let resolver = if ground.network == Network::Host { &system.resolver[..] } else { &[] };
    for dir in system.directories.iter().chain(resolver) {
        make_dir(dir, &mut steps)?;
        let harden = Step::Harden { read_only: true };
        steps.extend([Step::Hold(c_path(dir)?), harden, Step::Restore(at(dir)?)]);
    }
    for device in &system.devices {
        // Not hardened: devices are what it is for, and they say themselves who may do what.
        steps.extend([Step::MakeFile(at(device)?), Step::Hold(c_path(device)?), Step::Restore(at(device)?)]);
    }
    make_dir(Path::new("/dev/pts"), &mut steps)?;
    steps.push(Step::Terminals(at(Path::new("/dev/pts"))?));
    for (path, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/shm", "/tmp/.shm"),
        ("/var/tmp", "/tmp"),
        ("/var/run", "/run"),
    ] {
        steps.push(Step::Link { target: c_string(target)?, path: at(Path::new(path))? });
    }
    for (path, target) in &system.links {
        if let Some(above) = path.parent() {
            make_dir(above, &mut steps)?;
        }
        steps.push(Step::Link { target: c_path(target)?, path: at(path)? });
    }
    if facts.uid != 0 {
        // Without root a new /proc is given only to who sees one already; each task's own covers it.
        steps.extend([Step::Hold(c_string("/proc")?), Step::Restore(at(Path::new("/proc"))?)]);
    }
    steps.extend([Step::Seal(c_path(base)?), Step::Pivot(c_path(base)?)]);
    Ok(steps)
}

/// What a task goes through.
pub(super) fn plan(
    request: &StartRequest,
    places: &Places,
    facts: &Facts,
    identity: Option<(u32, u32)>,
) -> Result<Plan, Refusal> {
    let with = |wall| !request.without.contains(&wall);
    let stands = super::stands(request, facts);
    let (namespaces, brought, mut steps) = if stands {
        let (brought, steps) = on_ground(request, places)?;
        (0, brought, steps)
    } else {
        let (namespaces, steps) = from_helper(request, places, facts, identity)?;
        (namespaces, Vec::new(), steps)
    };
    steps.push(Step::Fork);
    if stands {
        steps.extend([Step::Chdir(c_string(WORK)?), Step::EnterUser, Step::DropBoundingSet]);
    } else {
        // The score stands in a file that a closed process may not write.
        steps.extend([Step::OomScore(VICTIM), Step::Undumpable]);
    }
    steps.push(Step::NewSession);
    steps.extend(limits(request, facts));
    if with(Wall::Limits) {
        steps.extend([Step::Limit(Limit::Priority, 0), Step::Limit(Limit::RealTime, 0)]);
        steps.push(Step::Limit(Limit::Signals, SIGNALS));
        if facts.limits == Limits::Rlimit {
            steps.extend(request.bounds.memory.map(|most| Step::Limit(Limit::Data, most)));
            steps.extend(request.bounds.processes.map(|most| Step::Limit(Limit::Processes, most)));
        }
        steps.extend(request.bounds.disk.map(|most| Step::Limit(Limit::FileSize, most)));
    }
    if let Some((uid, gid)) = identity {
        steps.extend([Step::Gid(gid), Step::Uid(uid)]);
    }
    if with(Wall::Capabilities) {
        steps.push(Step::DropCapabilities);
    }
    if with(Wall::NoNewPrivileges) {
        steps.push(Step::NoNewPrivileges);
    }
    steps.push(if stands { Step::UnblockSignals } else { Step::ResetSignals });
    if with(Wall::Landlock) {
        steps.push(Step::Restrict);
    }
    if with(Wall::Seccomp) {
        steps.push(Step::Filter);
    }
    let bounds = if with(Wall::Disk) { request.bounds } else { Bounds::default() };
    let own_network = with(Wall::Network) && request.network == Network::None;
    let memory = request.bounds.memory.filter(|_| own_network && with(Wall::Limits));
    Ok(Plan {
        namespaces,
        brought,
        steps,
        programs: programs(request)?,
        argv: argv(request)?,
        env: environment(request)?,
        room: Room { bytes: bounds.disk, files: bounds.files, memory },
    })
}

/// What the jail brings for a task of a standing keeper, and what that does before it: all else stands.
fn on_ground(request: &StartRequest, places: &Places) -> Result<(Vec<Step>, Vec<Step>), Refusal> {
    let brought = vec![Step::Hold(c_path(&places.work_dir)?), Step::Harden { read_only: false }];
    let steps = vec![
        Step::NumbersAnew,
        Step::StandingQueues,
        Step::Restore(c_string(WORK)?),
        Step::StandingScratch(scratch(request)?),
        // The keeper watches from there, and its task is born elsewhere.
        Step::Chdir(c_string(WORK)?),
        Step::Rules(rules(&[WORK.to_owned(), "/tmp".to_owned()])?),
    ];
    Ok((brought, steps))
}

/// Flags of the namespaces of a keeper that a helper forks, and what that does before its task.
fn from_helper(
    request: &StartRequest,
    places: &Places,
    facts: &Facts,
    identity: Option<(u32, u32)>,
) -> Result<(u64, Vec<Step>), Refusal> {
    let with = |wall| !request.without.contains(&wall);
    let mut namespaces = sys::NEW_PID | sys::NEW_UTS | sys::NEW_CGROUP;
    if with(Wall::Ipc) {
        namespaces |= sys::NEW_IPC;
    }
    // A score that root gives is one below which no task comes back.
    let score = (facts.uid == 0).then_some(Step::OomScore(0));
    let mut steps: Vec<Step> = score.into_iter().collect();
    steps.extend([Step::Undumpable, Step::Umask(0o022)]);
    let mut writable = vec![WORK.to_owned(), "/tmp".to_owned()];
    if with(Wall::Tree) {
        steps.extend(into_tree(request, places, identity)?);
        writable.extend(
            request
                .mounts
                .iter()
                .filter(|mount| !mount.read_only)
                .map(|mount| mount.to.to_string_lossy().into_owned()),
        );
    } else {
        namespaces |= sys::NEW_MOUNT;
        steps.push(Step::PrivateMounts);
        writable = vec![places.work_dir.to_string_lossy().into_owned()];
    }
    if with(Wall::Proc) {
        steps.push(Step::OwnProc);
    }
    steps.push(Step::Chdir(if with(Wall::Tree) { c_string(WORK)? } else { c_path(&places.work_dir)? }));
    if identity.is_some() {
        steps.push(Step::ClearGroups);
        if with(Wall::Capabilities) {
            steps.push(Step::EnterUser);
        }
    }
    if with(Wall::Landlock) {
        steps.push(Step::Rules(rules(&writable)?));
    }
    if with(Wall::Capabilities) {
        steps.push(Step::DropBoundingSet);
    }
    Ok((namespaces, steps))
}

/// A copy of the slot's tree, with what is this task's alone.
fn into_tree(
    request: &StartRequest,
    places: &Places,
    identity: Option<(u32, u32)>,
) -> Result<Vec<Step>, Refusal> {
    let mut steps = vec![Step::Hold(c_path(&places.work_dir)?), Step::Harden { read_only: false }];
    for mount in &request.mounts {
        steps.extend([Step::Hold(c_path(&mount.source)?), Step::Harden { read_only: mount.read_only }]);
        if let (Some(owner), Some(task)) = (mount.owner, identity) {
            steps.push(Step::MapOwner { owner, task });
        }
    }
    steps.push(Step::EnterTree);
    if !request.mounts.is_empty() {
        steps.push(Step::Unseal(c_string("/")?));
        for dir in mount_points(&request.mounts)? {
            steps.push(Step::MakeDir(c_path(&dir)?));
        }
        steps.push(Step::Seal(c_string("/")?));
    }
    steps.push(Step::Restore(c_string(WORK)?));
    for mount in &request.mounts {
        steps.push(Step::Restore(c_path(&mount.to)?));
    }
    steps.extend([
        Step::Scratch { path: c_string("/tmp")?, options: scratch(request)? },
        Step::MakeOpenDir(c_string("/tmp/.shm")?),
    ]);
    Ok(steps)
}

/// How /tmp is mounted.
fn scratch(request: &StartRequest) -> Result<CString, Refusal> {
    let size = request.bounds.memory.map_or(SCRATCH, |most| (most / SCRATCH_SHARE).max(1 << 20));
    let files = (size / PER_FILE).clamp(4096, 1 << 20);
    c_string(format!("mode=1777,size={size},nr_inodes={files}"))
}

/// The directories to make for the mounts, those above first.
fn mount_points(mounts: &[Mount]) -> Result<Vec<PathBuf>, Refusal> {
    let mut made: Vec<PathBuf> = Vec::new();
    for (number, mount) in mounts.iter().enumerate() {
        let wrong = |_| Refusal::Place(mount.to.clone());
        let to = mount.to.to_str().ok_or(PlaceError::Path).map_err(wrong)?;
        check_place(to, mounts[..number].iter().filter_map(|other| other.to.to_str())).map_err(wrong)?;
        let above: Vec<&Path> = mount.to.ancestors().filter(|dir| *dir != Path::new("/")).collect();
        for dir in above.into_iter().rev() {
            if !made.iter().any(|made| made == dir) {
                made.push(dir.to_owned());
            }
        }
    }
    Ok(made)
}

/// The second wall: read everything that can be seen, write where one may.
fn rules(writable: &[String]) -> Result<Vec<Rule>, Refusal> {
    let rule = |path: &str, access| Ok(Rule { path: c_string(path)?, access });
    let fixed = [("/", Access::Look), ("/dev", Access::Use), ("/proc", Access::Use)];
    let fixed = fixed.into_iter().map(|(path, access)| rule(path, access));
    fixed.chain(writable.iter().map(|path| rule(path, Access::Own))).collect()
}

/// The rules of a trial: look at everything, change what is in `dir`.
pub fn landlock_trial(dir: &Path) -> Result<Vec<Rule>, Refusal> {
    rules(&[dir.to_string_lossy().into_owned()])
}

#[cfg(test)]
mod tests;
