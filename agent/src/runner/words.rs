//! What the coordinator is told of an attempt: its start and its end, in the coordinator's words.

use mesh_proto::v1::{self, Assignment, Cause, Ended};

use crate::attempts::Stop;
use crate::jail::{self, ExitCause, ExitRecord};

/// The longest message of an end, in bytes.
const MAX_MESSAGE: usize = 1024;
/// The start as it is told.
pub fn started(assignment: &Assignment, process: jail::Started, held: jail::Limits) -> v1::Started {
    let level = match assignment.sandbox() {
        v1::SandboxLevel::None => v1::SandboxLevel::None,
        v1::SandboxLevel::Basic => v1::SandboxLevel::Basic,
        v1::SandboxLevel::Unspecified | v1::SandboxLevel::Strict => v1::SandboxLevel::Strict,
    };
    let limits = match (level, held) {
        (v1::SandboxLevel::Strict, jail::Limits::Cgroup) => v1::Limits::Cgroup,
        (v1::SandboxLevel::Strict, jail::Limits::Rlimit) => v1::Limits::Rlimit,
        (_, jail::Limits::Cgroup | jail::Limits::Rlimit) => v1::Limits::Unspecified,
    };
    v1::Started { at_ms: process.at_ms, sandbox: level.into(), limits: limits.into() }
}

/// The end of something that the node could not run.
pub fn infra(message: String) -> Ended {
    end(Cause::Infra, message)
}

pub fn end(cause: Cause, mut message: String) -> Ended {
    while message.len() > MAX_MESSAGE {
        message.pop();
    }
    Ended { cause: cause.into(), message, ended_at_ms: crate::clock::unix_ms(), ..Ended::default() }
}

/// How the process ended, in the coordinator's words.
pub fn of_record(record: &ExitRecord, stop: Option<Stop>) -> Ended {
    let (cause, message) = match &record.cause {
        // It may have ended by itself just before the cancel reached it; what it left is not wanted.
        ExitCause::Exited(0) if stop == Some(Stop::Cancel) => (Cause::Cancelled, "cancelled".to_owned()),
        ExitCause::Exited(_) => (Cause::Exit, String::new()),
        ExitCause::Signalled(_) => (Cause::Signal, String::new()),
        ExitCause::TimedOut => (Cause::Timeout, "it ran longer than its timeout".to_owned()),
        ExitCause::Killed if record.killer == jail::Killer::Lease => (
            Cause::Lost,
            "no coordinator acknowledged its node for too long (on_disconnect: kill)".to_owned(),
        ),
        ExitCause::Killed if record.killer == jail::Killer::Orphaned => {
            (Cause::Infra, "its agent was away for longer than orphan_timeout".to_owned())
        }
        ExitCause::Killed => match stop {
            // None: an operator ended it while no daemon ran. A cancel
            // that a daemon before this one passed on is known to the coordinator anyway.
            Some(Stop::Shutdown) | None => (Cause::Infra, "the agent was stopped with its tasks".to_owned()),
            Some(Stop::Cancel | Stop::Discard) => (Cause::Cancelled, "cancelled".to_owned()),
        },
        ExitCause::OutOfMemory => (Cause::Oom, "it used more memory than it may".to_owned()),
        ExitCause::DiskFull(why) => (Cause::Disk, why.clone()),
        ExitCause::SpawnFailed(why) => (Cause::Infra, format!("the process could not be started: {why}")),
        ExitCause::OutputLost(why) => (Cause::Infra, format!("its output could not be kept: {why}")),
    };
    let (exit_code, signal) = match record.cause {
        ExitCause::Exited(code) => (code, 0),
        ExitCause::Signalled(signal) => (0, signal),
        ExitCause::TimedOut
        | ExitCause::Killed
        | ExitCause::OutOfMemory
        | ExitCause::DiskFull(_)
        | ExitCause::SpawnFailed(_)
        | ExitCause::OutputLost(_) => (0, 0),
    };
    Ended {
        exit_code,
        signal,
        started_at_ms: record.started_at_ms,
        ended_at_ms: record.ended_at_ms,
        run_ms: record.run_ms,
        cpu_ms: record.cpu_ms,
        max_rss_bytes: record.max_rss_bytes,
        ..end_at(cause, message)
    }
}

fn end_at(cause: Cause, message: String) -> Ended {
    Ended { ended_at_ms: 0, ..end(cause, message) }
}

/// An error with what lies below it.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = source.source();
    }
    text
}
