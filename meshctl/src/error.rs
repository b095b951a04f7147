//! Why a command failed: one enum, each with its code and exit status.

use std::{fmt, io};

use mesh_proto::{code::Code, names};
use tonic::Status;

use crate::jobfile::{JobFileError, PrepareError};

/// Interrupted by the person.
pub const INTERRUPTED: u8 = 130;
/// `run`: the mesh failed, not the command.
pub const MESH_FAILED: u8 = 125;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// What the coordinator answered.
    #[error("{message}")]
    Answer { code: Code, message: String },
    #[error("the coordinator is not reachable (tried {tried}): {reason}")]
    Unreachable { tried: String, reason: String },
    /// It turned the connection away: the certificate does not count.
    #[error("{0}")]
    Rejected(String),
    #[error("{0}")]
    NoCredential(String),
    /// The file is no credential, or its parts do not belong together.
    #[error("the credential cannot be used: {0}")]
    Credential(#[source] mesh_certs::CertError),
    #[error(transparent)]
    JobFile(#[from] JobFileError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// What came from the mesh is not what it should be.
    #[error("{0}")]
    Corrupt(String),
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    BrokenPipe,
    #[error("interrupted{0}")]
    Interrupted(String),
    /// The person knows already; only the exit status is left.
    #[error("exit status {0}")]
    Told(u8),
}

impl CliError {
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Answer { code, .. } => code.name(),
            Self::Unreachable { .. } => Code::Unavailable.name(),
            Self::Rejected(_) | Self::NoCredential(_) => Code::Unauthenticated.name(),
            Self::Credential(_) | Self::JobFile(_) | Self::Usage(_) => Code::Invalid.name(),
            Self::NotFound(_) => Code::NotFound.name(),
            Self::Io { .. } => "io",
            Self::Corrupt(_) => Code::Internal.name(),
            Self::BrokenPipe => "broken_pipe",
            Self::Interrupted(_) => "interrupted",
            Self::Told(_) => "told",
        }
    }

    pub fn exit(&self) -> u8 {
        match self {
            Self::Answer { code, .. } => code.exit(),
            Self::Unreachable { .. } => Code::Unavailable.exit(),
            Self::Rejected(_) | Self::NoCredential(_) => Code::Unauthenticated.exit(),
            Self::Credential(_) | Self::JobFile(_) | Self::Usage(_) => Code::Invalid.exit(),
            Self::NotFound(_) => Code::NotFound.exit(),
            Self::Io { .. } | Self::Corrupt(_) => 1,
            Self::BrokenPipe => 0,
            Self::Interrupted(_) => INTERRUPTED,
            Self::Told(exit) => *exit,
        }
    }
}

impl From<Status> for CliError {
    /// A message from afar may hold what a stranger typed.
    fn from(status: Status) -> Self {
        let code = Code::of(&status);
        let message = match status.message() {
            "" => format!("the coordinator answered {code}"),
            message => names::escape(message),
        };
        Self::Answer { code, message }
    }
}

impl From<PrepareError> for CliError {
    fn from(error: PrepareError) -> Self {
        Self::JobFile(JobFileError::Override(error))
    }
}
