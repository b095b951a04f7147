//! Reading an attempt's output while it grows. Only durable bytes are seen.

use std::{fs::File, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::error::OutputError;
use crate::{files::read_at, spawn};

/// Reads one attempt's output.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// Opened with the first byte, for until then there may be no file.
    file: Option<Arc<File>>,
    durable: watch::Receiver<u64>,
}

impl Reader {
    pub(super) fn new(path: PathBuf, durable: watch::Receiver<u64>) -> Self {
        Self { path, file: None, durable }
    }

    /// Bytes that can be read now.
    pub fn durable(&self) -> u64 {
        *self.durable.borrow()
    }

    /// At most `max` bytes from position `from`; empty when nothing durable is there yet.
    pub async fn read(&mut self, from: u64, max: usize) -> Result<Bytes, OutputError> {
        let length = self.durable().saturating_sub(from).min(max as u64) as usize;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let open = self.file.clone();
        let path = self.path.clone();
        let read = spawn::blocking("read output", move || {
            let file = match open {
                Some(file) => file,
                None => Arc::new(File::open(path)?),
            };
            let bytes = read_at(&file, from, length)?;
            Ok::<_, io::Error>((file, bytes))
        });
        let (file, bytes) = match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OutputError::Removed),
            Err(error) => return Err(error.into()),
        };
        self.file = Some(file);
        Ok(bytes)
    }

    /// Waits until something past `from` is durable, and says up to where.
    pub async fn grown(&mut self, from: u64) -> Result<u64, OutputError> {
        self.durable
            .wait_for(|length| *length > from)
            .await
            .map(|length| *length)
            .map_err(|_| OutputError::Removed)
    }
}
