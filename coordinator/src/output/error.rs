//! What can go wrong with output.

use std::{io, sync::Arc};

/// Why output was not stored or read. Cloneable, because one failed sync fails many appends.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutputError {
    #[error("an attempt's output ends at {max} bytes here")]
    TooLong { max: u64 },
    #[error("a piece of output has {size} bytes, at most {max} are allowed")]
    Piece { size: usize, max: usize },
    #[error("the output was removed with its job")]
    Removed,
    #[error("the coordinator's disk for output is full")]
    NoSpace,
    #[error("the output store is closed")]
    Closed,
    #[error("the output store failed")]
    Io(#[source] Arc<io::Error>),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(Arc::new(error)),
        }
    }
}
