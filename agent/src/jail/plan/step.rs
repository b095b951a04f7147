//! What there is to do: the words of a plan.

use std::ffi::CString;

use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use super::text;

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
    /// Control groups are seen from the own ones down.
    OwnGroups,
    /// Make a user namespace in which there are this uid and gid alone and few watches of files, and keep
    /// hold of it.
    OwnUser {
        uid: u32,
        gid: u32,
    },
    /// No more than a part of the machine's watches of files for whoever is in this user namespace.
    FewWatches,
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
    /// The same for one task after another: each sees its own processes there and not their keeper.
    StandingProc,
    /// Process numbers begin anew, as if nobody had been here.
    NumbersAnew,
    /// Queues, semaphores and shared memory of its own: a namespace in which nobody ever made one.
    StandingQueues,
    /// [`Step::Scratch`] at /tmp, but for one that is there, of that size and untouched.
    StandingScratch(#[serde(with = "text")] CString),
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
    /// No action of a signal but the default one, and none blocked.
    ResetSignals,
    ResetActions,
    UnblockSignals,
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
    /// Signals and timers that wait; those of a user namespace count as its maker's too.
    Signals,
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
            Self::Signals => Resource::Sigpending,
        }
    }
}

impl Step {
    /// Whether this is the same for all tasks of a slot, and a starter goes through it for them.
    pub fn is_inherited(&self) -> bool {
        matches!(self, Self::EnterUser | Self::DropBoundingSet | Self::NoNewPrivileges | Self::Filter)
    }

    /// What fails when it fails, for people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::MapIds { .. } => "mapping the uid into a user namespace",
            Self::JoinGroup(_) => "joining a control group",
            Self::OwnKeyring => "making a keyring",
            Self::OwnNetwork => "making a network namespace",
            Self::OwnGroups => "making a cgroup namespace",
            Self::OwnUser { .. } => "making a user namespace",
            Self::FewWatches => "limiting watches of files",
            Self::BeginTree | Self::EndTree => "making a mount namespace",
            Self::TreeRoot(_) | Self::Link { .. } | Self::MakeFile(_) => "building the file tree",
            Self::Pivot(_) => "changing the root",
            Self::EnterTree => "entering the file tree",
            Self::EnterUser => "entering the user namespace",
            Self::Harden { .. } => "hardening a mount",
            Self::MapOwner { .. } => "mapping the owner of a mount",
            Self::Scratch { .. } | Self::StandingScratch(_) | Self::MakeOpenDir(_) => "making /tmp",
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
            Self::OwnProc | Self::StandingProc => "mounting /proc",
            Self::StandingQueues => "making an ipc namespace",
            Self::NumbersAnew => "setting the process number",
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
            Self::ResetSignals | Self::ResetActions | Self::UnblockSignals => "resetting signals",
        }
    }
}
