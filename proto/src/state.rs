//! The names of states and causes: UPPERCASE in JSON and tables, lower case in metric
//! labels, counts and filters. One table, so that every tool spells them alike.

use crate::v1::{Cause, JobState, Limits, NodeState, SandboxLevel, TaskState};

/// An enum of the wire with a name in both spellings.
pub trait Named: Sized + Copy + PartialEq + 'static {
    /// Every value but the unspecified one.
    const ALL: &'static [Self];

    /// Lower case.
    fn lower(self) -> &'static str;

    /// UPPERCASE.
    fn upper(self) -> String {
        self.lower().to_ascii_uppercase()
    }

    /// The value of a name in either case.
    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.lower().eq_ignore_ascii_case(name))
    }
}

macro_rules! named {
    ($type:ident { $($value:ident = $name:literal),* $(,)? }) => {
        impl Named for $type {
            const ALL: &'static [Self] = &[$(Self::$value),*];

            fn lower(self) -> &'static str {
                match self {
                    Self::Unspecified => "unknown",
                    $(Self::$value => $name),*
                }
            }
        }
    };
}

named!(JobState {
    Queued = "queued",
    Running = "running",
    Completed = "completed",
    PartiallyCompleted = "partially_completed",
    Failed = "failed",
    Cancelled = "cancelled",
});

named!(TaskState {
    Blocked = "blocked",
    Queued = "queued",
    Assigned = "assigned",
    Running = "running",
    Retrying = "retrying",
    Completed = "completed",
    Failed = "failed",
    Cancelled = "cancelled",
});

named!(NodeState {
    Healthy = "healthy",
    Suspect = "suspect",
    Offline = "offline",
});

named!(Cause {
    Exit = "exit",
    Signal = "signal",
    Timeout = "timeout",
    Oom = "oom",
    Disk = "disk",
    Output = "output",
    Staging = "staging",
    Sandbox = "sandbox",
    Infra = "infra",
    Lost = "lost",
    Cancelled = "cancelled",
    Fenced = "fenced",
});

named!(SandboxLevel {
    None = "none",
    Basic = "basic",
    Strict = "strict",
});

named!(Limits {
    Rlimit = "rlimit",
    Cgroup = "cgroup",
});

impl JobState {
    /// Whether the job will never change again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Unspecified | Self::Queued | Self::Running => false,
            Self::Completed | Self::PartiallyCompleted | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl TaskState {
    /// Whether the task will never change again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Unspecified
            | Self::Blocked
            | Self::Queued
            | Self::Assigned
            | Self::Running
            | Self::Retrying => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}
