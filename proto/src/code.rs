//! The typed error code: one list, mapped to gRPC and to meshctl's exit status. It travels
//! in the `mesh-code` metadata of a gRPC status; the status message is for people.

use std::fmt;

use tonic::{Status, metadata::MetadataValue};

/// Metadata key that carries the code's name.
pub const CODE_HEADER: &str = "mesh-code";
/// Metadata key with the address of the leader, on `Unavailable` from a stand-by.
pub const LEADER_HEADER: &str = "mesh-leader";
/// Metadata key with the milliseconds after which a retry makes sense.
pub const RETRY_AFTER_HEADER: &str = "mesh-retry-after-ms";

/// What went wrong, as programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request itself is wrong; the message says where.
    Invalid,
    NotFound,
    /// No, foreign, expired or revoked identity.
    Unauthenticated,
    /// A known identity that may not do this.
    Denied,
    /// The same name or key is already used for something else, or the state forbids it.
    Conflict,
    /// A limit: size, count, rate, quota.
    Exhausted,
    /// The session, attempt or epoch is not the current one.
    Stale,
    /// The coordinator cannot serve now; retry.
    Unavailable,
    Timeout,
    /// The peer speaks a protocol version that is not served.
    Version,
    Internal,
}

impl Code {
    pub const ALL: [Self; 11] = [
        Self::Invalid,
        Self::NotFound,
        Self::Unauthenticated,
        Self::Denied,
        Self::Conflict,
        Self::Exhausted,
        Self::Stale,
        Self::Unavailable,
        Self::Timeout,
        Self::Version,
        Self::Internal,
    ];

    /// The name on the wire and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Exhausted => "exhausted",
            Self::Stale => "stale",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Version => "version",
            Self::Internal => "internal",
        }
    }

    #[must_use]
    pub fn grpc(self) -> tonic::Code {
        match self {
            Self::Invalid => tonic::Code::InvalidArgument,
            Self::NotFound => tonic::Code::NotFound,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::Denied => tonic::Code::PermissionDenied,
            Self::Conflict => tonic::Code::AlreadyExists,
            Self::Exhausted => tonic::Code::ResourceExhausted,
            Self::Stale => tonic::Code::Aborted,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Timeout => tonic::Code::DeadlineExceeded,
            Self::Version => tonic::Code::FailedPrecondition,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// meshctl's exit status for it.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Unauthenticated | Self::Denied | Self::Exhausted | Self::Version => 4,
            Self::Unavailable | Self::Timeout => 5,
            Self::Conflict | Self::Stale => 6,
            Self::Internal => 1,
        }
    }

    /// The code of a status: by its header, else by the nearest gRPC code.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let named = status.metadata().get(CODE_HEADER).and_then(|value| value.to_str().ok());
        if let Some(code) = named.and_then(|name| Self::ALL.into_iter().find(|code| code.name() == name)) {
            return code;
        }
        match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange | tonic::Code::Unimplemented => {
                Self::Invalid
            }
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::PermissionDenied => Self::Denied,
            tonic::Code::AlreadyExists => Self::Conflict,
            tonic::Code::ResourceExhausted => Self::Exhausted,
            tonic::Code::Aborted => Self::Stale,
            tonic::Code::Unavailable | tonic::Code::Cancelled => Self::Unavailable,
            tonic::Code::DeadlineExceeded => Self::Timeout,
            tonic::Code::FailedPrecondition => Self::Version,
            tonic::Code::Ok | tonic::Code::Unknown | tonic::Code::DataLoss | tonic::Code::Internal => {
                Self::Internal
            }
        }
    }

    /// A gRPC status with this code and a message for people.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.grpc(), message);
        status.metadata_mut().insert(CODE_HEADER, MetadataValue::from_static(self.name()));
        status
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_its_status() {
        for code in Code::ALL {
            assert_eq!(Code::of(&code.status("text")), code);
            let mut bare = code.status("text");
            bare.metadata_mut().clear();
            assert_eq!(
                Code::of(&bare).exit(),
                code.exit(),
                "{code} loses its exit status without the header"
            );
        }
    }
}
