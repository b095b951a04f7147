//! The jail: a small process that alone creates, ends and buries the tasks of a node.
//!
//! It is this same binary run as `agent jail`, with one thread and no async runtime, so
//! that a fork is cheap and safe. It outlives the daemon: it owns the tasks' pipes, writes
//! their output into spools, holds the deadlines and writes the exit records. Kill the
//! daemon in any way and no task notices; the next daemon connects and is told what ended.
//!
//! One attempt is three processes:
//!
//! ```text
//! jail ── keeper ── the task's command ── whatever it starts
//! ```
//!
//! The keeper is a fork of the jail. In a pid namespace (levels `basic` and `strict`) it is process 1:
//! when it goes, the kernel ends everything inside, and it goes when the command ends, when
//! the jail kills it, or when the jail itself dies. At level `none` it is a subreaper and
//! hunts its descendants down. The command is started from the keeper with `vfork`.
//!
//! Where tasks have other users than the jail, which is where that is root, a keeper *stands* for the
//! next task of its kind: at level `none` for those of a user, at `strict` in a *slot*, on prepared ground
//! (control groups, namespaces, file tree, and a *starter* that has the filter already), so that a task gets
//! all of that for the price of a `vfork`.
//! Else, and for tasks with mounts, a slot has a *helper*, a fork of the jail that waits on such ground
//! and forks a keeper for each task; that is the jail's child all the same.
//!
//! Where to look: `plan` decides, purely, which steps a request takes on this node, and
//! `plan/strict` is the whole of level strict as two lists; `steps` carries steps out; `keeper`
//! goes through a task's and buries it; `standing` and `keepers` are the two sides of one that stays,
//! `helper` and `slot` those of a slot with a helper, `starter` what its tasks are born of, `orders` what both are told, `stood` what
//! they keep for the next task, `held` and `cgroup` a slot's limits, `system` what of the machine a tree shows, `seccomp` the list of system calls, `room`
//! the watch over a work directory, `mapped` over what of it is mapped alone, `rooms` what an attempt has
//! on disk; `server` is the event loop, `running` one live attempt, `line` what starts when one is over; `protocol` and `client` are how the daemon speaks to it, `scope` where
//! systemd puts it; `record` is what is left on
//! disk; `probe` proves what this machine can do, `cost` what it costs here; `sys` has the system calls that no
//! library wraps. What may enter: what a task's process needs from its birth to its burial.
//! Not here: staging, collecting outputs, talking to a coordinator.
//!
//! Invariants:
//! - A request runs at most once in an attempt directory; a second one is told so.
//! - The exit record is on disk before anybody is told of the end.
//! - No task has uid 0, and no level is quietly replaced by a weaker one.
//! - Nothing of a task is alive when its end is told.

use std::io::Write as _;

mod cgroup;
pub mod client;
mod clock;
mod conn;
mod cost;
mod entry;
mod held;
mod helper;
mod keeper;
mod keepers;
mod line;
mod mapped;
mod orders;
mod plan;
mod probe;
pub mod protocol;
pub mod record;
mod room;
mod rooms;
mod running;
mod scope;
mod seccomp;
mod server;
mod slot;
mod spool;
mod standing;
mod starter;
mod steps;
mod stood;
mod sweep;
mod sys;
mod system;

pub use cgroup::name as groups_name;
pub use client::{Client, ClientError, Events, Options};
pub use entry::main;
pub use protocol::{
    Bounds, Event, ExitCause, ExitRecord, Killer, Layer, Level, Limits, Mount, Network, Probe, Rlimits, Room,
    StartRequest, Started, State, Status, WORK, Wall,
};
pub use record::{RecordError, read_exit_record};
pub use rooms::SPARE;

/// A line for the operator, on the jail's stderr (its log once it is detached).
fn log(line: &str) {
    let stamp = chrono::Utc::now().to_rfc3339();
    // Not `eprintln!`: a log on a full disk must not end the jail and every task with it.
    let _unheard = writeln!(std::io::stderr(), "{stamp} mesh-jail[{}]: {line}", std::process::id());
}
