//! Reading a blob piece by piece, with the next pieces read ahead.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use mesh_proto::limits::MAX_CHUNK;

use super::{error::BlobError, store::join};
use crate::{files::read_at, spawn};

/// Bytes that one piece has at the most.
pub const CHUNK: usize = MAX_CHUNK;
/// Pieces that are read before they are asked for.
const AHEAD: usize = 3;

/// An open blob. It stays readable whatever happens to its name.
#[derive(Debug)]
pub struct BlobReader {
    file: Arc<File>,
    size: u64,
    offset: u64,
}

impl BlobReader {
    pub(super) fn new(file: File, size: u64, offset: u64) -> Self {
        Self { file: Arc::new(file), size, offset }
    }

    /// Of the whole blob, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pieces from the offset to the end, in order, each at most [`CHUNK`] bytes.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static {
        let Self { file, size, offset } = self;
        stream::iter((offset..size).step_by(CHUNK))
            .map(move |at| {
                let file = Arc::clone(&file);
                let length = (size - at).min(CHUNK as u64) as usize;
                join(spawn::blocking("read blob", move || Ok(read_exact(&file, at, length)?)))
            })
            .buffered(AHEAD)
    }
}

fn read_exact(file: &File, at: u64, length: usize) -> io::Result<Bytes> {
    let bytes = read_at(file, at, length)?;
    if bytes.len() < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a blob became shorter"));
    }
    Ok(bytes)
}
