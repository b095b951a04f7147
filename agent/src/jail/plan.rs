//! What to do for one request on this node: a pure function from the request and the node's
//! facts to an ordered list of steps, every string already in the form that the kernel takes.
//! Another level of confinement is another list. May enter: decisions; nothing is done here.
//!
//! `step` has the words, `strict` the list of that level.
//!
//! Order matters. Mounts come first, while the keeper may still mount; the uid changes after
//! everything that needs root; capabilities and `no_new_privs` come last before the exec.

use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    protocol::{Level, Limits, StartRequest, Wall},
    sys,
};

mod step;
mod strict;
mod text;

pub use step::{Access, Limit, Rule, Step};
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

/// A request made ready.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Flags of the namespaces of a keeper that is made for this task.
    pub namespaces: u64,
    /// What the jail does before the rest, for a standing keeper: that gets what these steps hold.
    pub brought: Vec<Step>,
    pub steps: Vec<Step>,
    /// What to try to execute, in order.
    #[serde(with = "text::many")]
    pub programs: Vec<CString>,
    #[serde(with = "text::many")]
    pub argv: Vec<CString>,
    #[serde(with = "text::many")]
    pub env: Vec<CString>,
    /// What the keeper watches in the work directory.
    pub room: Room,
}

/// How much a work directory may come to hold, and how much memory may wait where nobody else bounds it; the
/// keeper looks from time to time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub bytes: Option<u64>,
    pub files: Option<u64>,
    /// Bytes that may wait in sockets to the kernel; none also where others have sockets in the same network.
    pub memory: Option<u64>,
}

impl Plan {
    /// Whether a keeper of the task's own is process 1 of a pid namespace: its end is everything's end.
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
    let stands = stands(request, facts);
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
    if !stands {
        steps.extend(alike(facts));
    }
    if contained {
        steps.push(Step::PrivateMounts);
        steps.extend(covers(places)?);
        steps.push(Step::OwnProc);
    }
    let work_dir = Step::Chdir(c_path(&places.work_dir)?);
    if stands {
        // Its keeper stays where it is and goes on to other tasks.
        steps.extend([Step::Fork, work_dir]);
    } else {
        steps.push(work_dir);
        if root || contained {
            steps.push(Step::DropBoundingSet);
        }
        steps.push(Step::Fork);
    }
    steps.push(Step::NewSession);
    steps.extend(limits(request, facts));
    if let Some((uid, gid)) = identity {
        steps.extend([Step::ClearGroups, Step::Gid(gid), Step::Uid(uid)]);
    }
    if !contained {
        steps.push(Step::DieWithKeeper);
    }
    steps.extend([Step::DropCapabilities, Step::NoNewPrivileges]);
    steps.push(if stands { Step::UnblockSignals } else { Step::ResetSignals });

    Ok(Plan {
        namespaces,
        brought: Vec::new(),
        steps,
        programs: programs(request)?,
        argv: argv(request)?,
        env: environment(request)?,
        room: Room::default(),
    })
}

/// What a keeper is that sees what the jail sees.
fn alike(facts: &Facts) -> impl Iterator<Item = Step> {
    let score = (facts.oom_score_adj != 0).then_some(Step::OomScore(0));
    score.into_iter().chain([Step::Undumpable, Step::Umask(0o022)])
}

/// Whether `request` is for a standing keeper: its user cannot reach that, as somebody of the jail's own
/// uid could (limits, priority, processors, signals), and nothing of what it asks for is its keeper's alone.
pub fn stands(request: &StartRequest, facts: &Facts) -> bool {
    let alike = match request.level {
        Level::None => true,
        // What its keeper covers lies elsewhere for each task.
        Level::Basic => false,
        Level::Strict => request.mounts.is_empty() && request.without.is_empty(),
    };
    alike && facts.uid == 0
}

/// What a standing keeper of level none does once, before any task.
pub fn standing(facts: &Facts) -> Vec<Step> {
    alike(facts).chain([Step::DropBoundingSet, Step::ResetActions]).collect()
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

#[cfg(test)]
pub mod tests;
