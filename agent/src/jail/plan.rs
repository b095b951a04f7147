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

use super::{
    protocol::{Level, StartRequest},
    sys,
};

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
}

/// The request's directories, resolved on this machine: absolute, without links.
#[derive(Clone, Debug)]
pub struct Places {
    pub work_dir: PathBuf,
    pub attempt_dir: PathBuf,
    /// Those that exist.
    pub hidden: Vec<PathBuf>,
}

/// One thing to do. Those up to [`Step::Fork`] are done by the keeper, the rest by the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Be, in the new user namespace, who one was outside.
    MapIds {
        uid_map: CString,
        gid_map: CString,
    },
    /// Be found by the memory killer like anybody.
    OomScore,
    /// Let no other process look into this one.
    Undumpable,
    /// Keep what is mounted from now on to this namespace.
    PrivateMounts,
    /// Keep hold of a directory that is about to be covered.
    Hold(CString),
    /// Cover a directory by an empty one.
    Cover(CString),
    /// Make a directory in a cover.
    MakeDir(CString),
    /// Put the directory that is held back in its place.
    Restore(CString),
    /// Make a cover read-only.
    Seal(CString),
    /// A /proc that shows this pid namespace alone.
    OwnProc,
    Chdir(CString),
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

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    OpenFiles,
    Processes,
    CoreSize,
    FileSize,
}

impl Limit {
    /// As the kernel calls it.
    pub fn resource(self) -> Resource {
        match self {
            Self::OpenFiles => Resource::Nofile,
            Self::Processes => Resource::Nproc,
            Self::CoreSize => Resource::Core,
            Self::FileSize => Resource::Fsize,
        }
    }
}

impl Step {
    /// What fails when it fails, for people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::MapIds { .. } => "mapping the uid into a user namespace",
            Self::OomScore => "setting the out-of-memory score",
            Self::Undumpable => "closing the keeper to others",
            Self::PrivateMounts => "making the mounts private",
            Self::Hold(_) => "opening the work directory",
            Self::Cover(_) | Self::MakeDir(_) | Self::Seal(_) => "covering the agent's directories",
            Self::Restore(_) => "putting the work directory back in place",
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
#[derive(Debug)]
pub struct Plan {
    /// Flags of the keeper's namespaces.
    pub namespaces: u64,
    pub steps: Vec<Step>,
    /// What to try to execute, in order.
    pub programs: Vec<CString>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
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
    #[error("level basic is not available on this machine")]
    Level,
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
    let contained = match request.level {
        Level::None => false,
        Level::Basic if facts.strongest >= Level::Basic => true,
        Level::Basic => return Err(Refusal::Level),
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
            steps.push(Step::MapIds {
                uid_map: c_string(format!("{0} {0} 1\n", facts.uid))?,
                gid_map: c_string(format!("{0} {0} 1\n", facts.gid))?,
            });
        }
    }
    if facts.oom_score_adj != 0 {
        steps.push(Step::OomScore);
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
    let limits = &request.limits;
    steps.push(Step::Limit(Limit::OpenFiles, limits.nofile.min(facts.nofile)));
    steps.push(Step::Limit(Limit::CoreSize, limits.core));
    steps.extend(limits.nproc.map(|most| Step::Limit(Limit::Processes, most)));
    steps.extend(limits.fsize.map(|most| Step::Limit(Limit::FileSize, most)));
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
        argv: request.argv.iter().map(|word| c_string(word.as_str())).collect::<Result<_, _>>()?,
        env: environment(request)?,
    })
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

#[cfg(test)]
mod tests;
