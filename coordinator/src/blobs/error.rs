//! What can go wrong with a blob.

use std::io;

use mesh_proto::digest::Digest;

/// Why a blob was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob {0} is not here")]
    NotFound(Digest),
    #[error("a blob of {size} bytes is over this mesh's limit of {max} bytes")]
    TooLarge { size: u64, max: u64 },
    #[error("the upload has {got} bytes, {announced} were announced")]
    Size { announced: u64, got: u64 },
    #[error("the bytes sent have the digest {got}, {announced} was announced: the file changed meanwhile")]
    Digest { announced: Digest, got: Digest },
    #[error("the offset {offset} is past the end of a blob of {size} bytes")]
    Offset { offset: u64, size: u64 },
    #[error("the coordinator's disk for blobs is full")]
    NoSpace,
    #[error("the blob store failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}
