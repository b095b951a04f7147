//! Typed ids: one declaration each, so that a node's id can never be passed for a job's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::v1;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by time (UUID version 7).
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A mesh, made once at the first start of its first coordinator.
    MeshId
}
uuid_id! {
    /// A node: the machine behind one certificate.
    NodeId
}
uuid_id! {
    /// A coordinator process's installation (its data directory).
    CoordinatorId
}
uuid_id! {
    /// A job, beside the number that people type.
    JobId
}
uuid_id! {
    /// One registration of an agent: from `RegisterNode` until the next one or its silence.
    SessionId
}
uuid_id! {
    /// One boot of a machine's kernel (`/proc/sys/kernel/random/boot_id`).
    BootId
}
uuid_id! {
    /// One history of the database: changes when it is made anew or restored.
    Incarnation
}

/// A job's number: mesh-wide, from 1, what people type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobNumber(pub u64);

impl fmt::Display for JobNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// One task: a job's number, the position of its definition, and the element of its array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskKey {
    pub job: JobNumber,
    /// Position of the definition in the job file, from 0.
    pub task: u32,
    /// Array element, from 0; 0 when the task is no array.
    pub index: u32,
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.job, self.task, self.index)
    }
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One attempt at one task; numbers count from 1. Its text form, `12-0-7-1`, is a file name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    pub task: TaskKey,
    pub number: u32,
}

impl fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.task.job, self.task.task, self.task.index, self.number)
    }
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no attempt key (`JOB-TASK-INDEX-NUMBER`).
#[derive(Debug, thiserror::Error)]
#[error("not an attempt key (JOB-TASK-INDEX-NUMBER): {0:?}")]
pub struct ParseAttemptKeyError(String);

impl FromStr for AttemptKey {
    type Err = ParseAttemptKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('-');
            let job = JobNumber(parts.next()?.parse().ok()?);
            let task = parts.next()?.parse().ok()?;
            let index = parts.next()?.parse().ok()?;
            let number = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { task: TaskKey { job, task, index }, number })
        };
        parse().ok_or_else(|| ParseAttemptKeyError(text.to_owned()))
    }
}

impl From<TaskKey> for v1::TaskKey {
    fn from(key: TaskKey) -> Self {
        Self { job: key.job.0, task: key.task, index: key.index }
    }
}

impl From<v1::TaskKey> for TaskKey {
    fn from(key: v1::TaskKey) -> Self {
        Self { job: JobNumber(key.job), task: key.task, index: key.index }
    }
}

impl From<AttemptKey> for v1::AttemptKey {
    fn from(key: AttemptKey) -> Self {
        Self { task: Some(key.task.into()), number: key.number }
    }
}

/// A message lacked the key that it must carry.
#[derive(Debug, thiserror::Error)]
#[error("the message names no attempt")]
pub struct MissingKey;

impl TryFrom<v1::AttemptKey> for AttemptKey {
    type Error = MissingKey;

    fn try_from(key: v1::AttemptKey) -> Result<Self, Self::Error> {
        let task = key.task.ok_or(MissingKey)?.into();
        if key.number == 0 {
            return Err(MissingKey);
        }
        Ok(Self { task, number: key.number })
    }
}

impl TryFrom<Option<v1::AttemptKey>> for AttemptKey {
    type Error = MissingKey;

    fn try_from(key: Option<v1::AttemptKey>) -> Result<Self, Self::Error> {
        key.ok_or(MissingKey)?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_keys_survive_their_text_form() {
        let key = AttemptKey { task: TaskKey { job: JobNumber(12), task: 0, index: 7 }, number: 3 };
        assert_eq!(key.to_string(), "12-0-7-3");
        assert_eq!("12-0-7-3".parse::<AttemptKey>().unwrap(), key);
        for bad in ["", "12", "12-0-7", "12-0-7-3-4", "a-0-0-1", "-1-0-0-1", "../1-0-0"] {
            assert!(bad.parse::<AttemptKey>().is_err(), "{bad:?} was taken for a key");
        }
    }
}
