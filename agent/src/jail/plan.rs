//! What to do for one request on this node: a pure function from the request and the node's
//! facts to an ordered list of steps, every string already in the form that the kernel takes.
//! Another level of confinement is another list. May enter: decisions; nothing is done here.
//!
//! Order matters. Mounts come first, while the keeper may still mount; the uid changes after
//! everything that needs root; capabilities and `no_new_privs` come last before the exec.

use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use super::{
    protocol::{Level, Limits, StartRequest, Wall},
    sys,
};

mod strict;

pub use strict::{Ground, System, ground, landlock_trial};

/// What the plan must know of the jail and its machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub uid: u32,
    pub gid: u32,
    /// The strongest level that was proved here.
    pub strongest: Level,
    /// The jail's own hard limit of open files; no task gets more.
    pub nofile: u64,
    /// The jail's own `oom_score_adj`; tasks get 0.
    pub oom_score_adj: i32,
    /// What holds a request's bounds.
    pub limits: Limits,
    /// Whether requests may leave walls away.
    pub testing: bool,
}

/// The request's directories, resolved on this machine: absolute, without links.
#[derive(Clone, Debug)]
pub struct Places {
    pub work_dir: PathBuf,
    pub attempt_dir: PathBuf,
    /// Those that exist.
    pub hidden: Vec<PathBuf>,
}

/// One thing to do. Those up to [`Step::Fork`] are done by the keeper, the rest by the task; what a
/// slot's helper does once, before any task, is a list of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Go into a control group, by its list of processes.
    JoinGroup(#[serde(with = "text")] CString),
    /// Keys of nobody else.
    OwnKeyring,
    /// A network with nothing in it but a loopback that works.
    OwnNetwork,
    /// Make a user namespace in which there is this uid and gid alone, and keep hold of it.
    OwnUser {
        uid: u32,
        gid: u32,
    },
    /// From here on build a file tree, aside from the one that this process sees.
    BeginTree,
    /// The root of the tree under construction: empty, in memory.
    TreeRoot(#[serde(with = "text")] CString),
    Link {
        #[serde(with = "text")]
        target: CString,
        #[serde(with = "text")]
        path: CString,
    },
    MakeFile(#[serde(with = "text")] CString),
    /// Make this directory the root, with nothing above it.
    Pivot(#[serde(with = "text")] CString),
    /// Keep hold of the tree that was built and see the host's again.
    EndTree,
    /// Take a copy of the slot's tree, mounts and all, for this task alone.
    EnterTree,
    /// Become, for the kernel, somebody without power outside: no way back.
    EnterUser,
    /// What was held last: no setuid programs, no devices, and its mounts to itself.
    Harden {
        read_only: bool,
    },
    /// What was held last: files of this owner are the task's, and the other way round.
    MapOwner {
        owner: (u32, u32),
        task: (u32, u32),
    },
    /// An empty directory in memory, writable.
    Scratch {
        #[serde(with = "text")]
        path: CString,
        #[serde(with = "text")]
        options: CString,
    },
    /// Pseudo terminals of its own, in this directory.
    Terminals(#[serde(with = "text")] CString),
    /// A directory that everybody may write in.
    MakeOpenDir(#[serde(with = "text")] CString),
    /// Let the root be written to, to make room for mounts.
    Unseal(#[serde(with = "text")] CString),
    /// Write down, for the kernel, what may be done below which directory.
    Rules(Vec<Rule>),
    /// Be held to those rules from here on.
    Restrict,
    /// Be held to the list of system calls from here on.
    Filter,
    /// Be, in the new user namespace, who one was outside.
    MapIds {
        #[serde(with = "text")]
        uid_map: CString,
        #[serde(with = "text")]
        gid_map: CString,
    },
    /// How readily the memory killer takes this process: 0 like anybody, above before others.
    OomScore(i32),
    /// Let no other process look into this one.
    Undumpable,
    /// Keep what is mounted from now on to this namespace.
    PrivateMounts,
    /// Keep hold of a directory that is about to be covered.
    Hold(#[serde(with = "text")] CString),
    /// Cover a directory by an empty one.
    Cover(#[serde(with = "text")] CString),
    /// Make a directory in a cover.
    MakeDir(#[serde(with = "text")] CString),
    /// Put the directory that is held back in its place.
    Restore(#[serde(with = "text")] CString),
    /// Make a cover read-only.
    Seal(#[serde(with = "text")] CString),
    /// A /proc that shows this pid namespace alone.
    OwnProc,
    Chdir(#[serde(with = "text")] CString),
    DropBoundingSet,
    /// Start the task's process, which goes on from here.
    Fork,
    NewSession,
    Umask(u32),
    Limit(Limit, u64),
    ClearGroups,
    Gid(u32),
    Uid(u32),
    /// Die when the keeper dies.
    DieWithKeeper,
    DropCapabilities,
    NoNewPrivileges,
    ResetSignals,
}

/// What the second wall lets a task do below a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    #[serde(with = "text")]
    pub path: CString,
    pub access: Access,
}

/// See [`Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Read, list, execute.
    Look,
    /// Read and write what is there, and talk to devices.
    Use,
    /// Everything.
    Own,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    OpenFiles,
    Processes,
    CoreSize,
    FileSize,
    /// Private memory that is written to.
    Data,
    /// How far above others it may put itself.
    Priority,
    RealTime,
}

impl Limit {
    /// As the kernel calls it.
    pub fn resource(self) -> Resource {
        match self {
            Self::OpenFiles => Resource::Nofile,
            Self::Processes => Resource::Nproc,
            Self::CoreSize => Resource::Core,
            Self::FileSize => Resource::Fsize,
            Self::Data => Resource::Data,
            Self::Priority => Resource::Nice,
            Self::RealTime => Resource::Rtprio,
        }
    }
}

impl Step {
    /// What fails when it fails, for people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::MapIds { .. } => "mapping the uid into a user namespace",
            Self::JoinGroup(_) => "joining a control group",
            Self::OwnKeyring => "making a keyring",
            Self::OwnNetwork => "making a network namespace",
            Self::OwnUser { .. } => "making a user namespace",
            Self::BeginTree | Self::EndTree => "making a mount namespace",
            Self::TreeRoot(_) | Self::Link { .. } | Self::MakeFile(_) => "building the file tree",
            Self::Pivot(_) => "changing the root",
            Self::EnterTree => "entering the file tree",
            Self::EnterUser => "entering the user namespace",
            Self::Harden { .. } => "hardening a mount",
            Self::MapOwner { .. } => "mapping the owner of a mount",
            Self::Scratch { .. } | Self::MakeOpenDir(_) => "making /tmp",
            Self::Terminals(_) => "making pseudo terminals",
            Self::Unseal(_) => "making room for a mount",
            Self::Rules(_) | Self::Restrict => "applying Landlock rules",
            Self::Filter => "filtering system calls",
            Self::OomScore(_) => "setting the out-of-memory score",
            Self::Undumpable => "closing the keeper to others",
            Self::PrivateMounts => "making the mounts private",
            Self::Hold(_) => "opening a directory",
            Self::Cover(_) | Self::MakeDir(_) | Self::Seal(_) => "covering the agent's directories",
            Self::Restore(_) => "putting a directory in its place",
            Self::OwnProc => "mounting /proc",
            Self::Chdir(_) => "changing into the work directory",
            Self::DropBoundingSet | Self::DropCapabilities => "dropping capabilities",
            Self::Fork => "starting the process",
            Self::NewSession => "starting a session",
            Self::Umask(_) => "setting the umask",
            Self::Limit(..) => "setting limits",
            Self::ClearGroups => "dropping supplementary groups",
            Self::Gid(_) => "changing the gid",
            Self::Uid(_) => "changing the uid",
            Self::DieWithKeeper => "tying the process to its keeper",
            Self::NoNewPrivileges => "setting no_new_privs",
            Self::ResetSignals => "resetting signals",
        }
    }
}

/// A request made ready.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Flags of the keeper's namespaces.
    pub namespaces: u64,
    pub steps: Vec<Step>,
    /// What to try to execute, in order.
    #[serde(with = "texts")]
    pub programs: Vec<CString>,
    #[serde(with = "texts")]
    pub argv: Vec<CString>,
    #[serde(with = "texts")]
    pub env: Vec<CString>,
    /// What the keeper watches in the work directory.
    pub room: Room,
}

/// How much a work directory may come to hold; the keeper looks from time to time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub bytes: Option<u64>,
    pub files: Option<u64>,
}

impl Plan {
    /// Whether the keeper is process 1 of a pid namespace: its end is everything's end.
    pub fn contained(&self) -> bool {
        self.namespaces & sys::NEW_PID != 0
    }
}

/// Why a request is not carried out; the texts are for people.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("the command is empty")]
    NoCommand,
    #[error("the command or its environment holds a NUL byte")]
    Nul,
    #[error("not a name of an environment variable: {0:?}")]
    Variable(String),
    #[error("a task never runs as root: give it a uid and a gid of its own")]
    Root,
    #[error("only root can run tasks as another user (asked for uid {0})")]
    OtherUser(u32),
    #[error("level {} is not available on this machine", match .0 { Level::None => "none", Level::Basic => "basic", Level::Strict => "strict" })]
    Level(Level),
    #[error("only a jail that was started for tests leaves parts of a level away")]
    Testing,
    #[error("level {} takes no mounts: they need level strict", match .0 { Level::None => "none", Level::Basic => "basic", Level::Strict => "strict" })]
    Mounts(Level),
    #[error("a mount cannot stand at {}: a place of its own is needed, such as /data or /mnt/data", .0.display())]
    Place(PathBuf),
    #[error("the attempt directory {} must not be inside the work directory", .0.display())]
    AttemptInWork(PathBuf),
    #[error("a hidden directory ({}) must be neither / nor inside the work directory", .0.display())]
    Hidden(PathBuf),
}

/// The environment variable that names the command's directories, and what holds without it.
const PATH: &str = "PATH";
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What to do for `request`.
pub fn plan(request: &StartRequest, places: &Places, facts: &Facts) -> Result<Plan, Refusal> {
    let root = facts.uid == 0;
    let identity = identity(request, facts)?;
    if request.level > facts.strongest {
        return Err(Refusal::Level(request.level));
    }
    if !request.without.is_empty() && !facts.testing {
        return Err(Refusal::Testing);
    }
    if !request.mounts.is_empty() && request.level != Level::Strict {
        return Err(Refusal::Mounts(request.level));
    }
    let contained = match request.level {
        Level::None => false,
        Level::Basic => true,
        Level::Strict => return strict::plan(request, places, facts, identity),
    };
    if places.attempt_dir.starts_with(&places.work_dir) {
        return Err(Refusal::AttemptInWork(places.attempt_dir.clone()));
    }

    let mut namespaces = 0;
    let mut steps = Vec::new();
    if contained {
        namespaces |= sys::NEW_PID | sys::NEW_MOUNT;
        if !root {
            namespaces |= sys::NEW_USER;
            steps.push(Step::MapIds { uid_map: same(facts.uid)?, gid_map: same(facts.gid)? });
        }
    }
    if facts.oom_score_adj != 0 {
        steps.push(Step::OomScore(0));
    }
    steps.extend([Step::Undumpable, Step::Umask(0o022)]);
    if contained {
        steps.push(Step::PrivateMounts);
        steps.extend(covers(places)?);
        steps.push(Step::OwnProc);
    }
    steps.push(Step::Chdir(c_path(&places.work_dir)?));
    if root || contained {
        steps.push(Step::DropBoundingSet);
    }
    steps.extend([Step::Fork, Step::NewSession]);
    steps.extend(limits(request, facts));
    if let Some((uid, gid)) = identity {
        steps.extend([Step::ClearGroups, Step::Gid(gid), Step::Uid(uid)]);
    }
    if !contained {
        steps.push(Step::DieWithKeeper);
    }
    steps.extend([Step::DropCapabilities, Step::NoNewPrivileges, Step::ResetSignals]);

    Ok(Plan {
        namespaces,
        steps,
        programs: programs(request)?,
        argv: argv(request)?,
        env: environment(request)?,
        room: Room::default(),
    })
}

/// The limits that every level sets.
fn limits(request: &StartRequest, facts: &Facts) -> Vec<Step> {
    let limits = &request.limits;
    let mut steps = vec![
        Step::Limit(Limit::OpenFiles, limits.nofile.min(facts.nofile)),
        Step::Limit(Limit::CoreSize, limits.core),
    ];
    steps.extend(limits.nproc.map(|most| Step::Limit(Limit::Processes, most)));
    steps.extend(limits.fsize.map(|most| Step::Limit(Limit::FileSize, most)));
    steps
}

fn argv(request: &StartRequest) -> Result<Vec<CString>, Refusal> {
    request.argv.iter().map(|word| c_string(word.as_str())).collect()
}

/// Maps of a user namespace in which one id stands for itself.
fn same(id: u32) -> Result<CString, Refusal> {
    c_string(format!("{id} {id} 1\n"))
}

/// The uid and gid to change to; none when the jail's own, which is not root, stays.
fn identity(request: &StartRequest, facts: &Facts) -> Result<Option<(u32, u32)>, Refusal> {
    if facts.uid == 0 {
        return match (request.uid, request.gid) {
            (Some(uid), Some(gid)) if uid != 0 && gid != 0 && uid != u32::MAX && gid != u32::MAX => {
                Ok(Some((uid, gid)))
            }
            (Some(_) | None, Some(_) | None) => Err(Refusal::Root),
        };
    }
    match request.uid {
        Some(uid) if uid != facts.uid => Err(Refusal::OtherUser(uid)),
        Some(_) | None => Ok(None),
    }
}

/// Covers over everything hidden, the work directory put back where it lay in one of them.
fn covers(places: &Places) -> Result<Vec<Step>, Refusal> {
    let mut hidden: Vec<&Path> = places.hidden.iter().map(PathBuf::as_path).collect();
    hidden.push(&places.attempt_dir);
    hidden.sort_unstable();
    // A directory sorts before what is in it.
    hidden.dedup_by(|inner, outer| inner.starts_with(*outer));

    let mut steps = Vec::new();
    for cover in hidden {
        if cover == Path::new("/") || (cover.starts_with(&places.work_dir) && cover != places.work_dir) {
            return Err(Refusal::Hidden(cover.to_owned()));
        }
        let Ok(way) = places.work_dir.strip_prefix(cover) else {
            steps.extend([Step::Cover(c_path(cover)?), Step::Seal(c_path(cover)?)]);
            continue;
        };
        let work_dir = c_path(&places.work_dir)?;
        steps.extend([Step::Hold(work_dir.clone()), Step::Cover(c_path(cover)?)]);
        let mut path = cover.to_owned();
        for part in way.components() {
            if let Component::Normal(name) = part {
                path.push(name);
                steps.push(Step::MakeDir(c_path(&path)?));
            }
        }
        steps.extend([Step::Seal(c_path(cover)?), Step::Restore(work_dir)]);
    }
    Ok(steps)
}

/// The paths under which the command may lie, as execvp would try them.
fn programs(request: &StartRequest) -> Result<Vec<CString>, Refusal> {
    let command = request.argv.first().ok_or(Refusal::NoCommand)?;
    if command.is_empty() {
        return Err(Refusal::NoCommand);
    }
    if command.contains('/') {
        return Ok(vec![c_string(command.as_str())?]);
    }
    let path = request.env.iter().rev().find(|(name, _)| name == PATH).map_or(DEFAULT_PATH, |(_, path)| path);
    path.split(':')
        .map(|dir| {
            if dir.is_empty() {
                c_string(format!("./{command}"))
            } else {
                c_string(format!("{dir}/{command}"))
            }
        })
        .collect()
}

fn environment(request: &StartRequest) -> Result<Vec<CString>, Refusal> {
    request
        .env
        .iter()
        .map(|(name, value)| {
            if name.is_empty() || name.contains('=') {
                return Err(Refusal::Variable(name.clone()));
            }
            c_string(format!("{name}={value}"))
        })
        .collect()
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, Refusal> {
    CString::new(text).map_err(|_| Refusal::Nul)
}

fn c_path(path: &Path) -> Result<CString, Refusal> {
    c_string(OsStr::as_bytes(path.as_os_str()))
}

/// Plans travel to a slot's helper as text: every string of a request came as text.
mod text {
    use std::ffi::CString;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _, ser::Error as _};

    pub fn serialize<S: Serializer>(string: &CString, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(string.to_str().map_err(S::Error::custom)?)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<CString, D::Error> {
        CString::new(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// The same for many.
mod texts {
    use std::ffi::CString;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::text")] CString);

    #[derive(Serialize)]
    struct Borrowed<'a>(#[serde(with = "super::text")] &'a CString);

    pub fn serialize<S: Serializer>(strings: &[CString], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(strings.iter().map(Borrowed))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<CString>, D::Error> {
        Ok(Vec::<Text>::deserialize(from)?.into_iter().map(|text| text.0).collect())
    }
}

#[cfg(test)]
mod tests;
