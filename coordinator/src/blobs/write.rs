//! An upload on its way to the disk: pieces gather while the batch before them is digested
//! and written on the blocking pool. At most two batches and one piece are in memory.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use mesh_proto::digest::{Digest, Hasher};
use tokio::task::JoinHandle;

use super::{error::BlobError, store::join};
use crate::spawn;

/// Bytes that go to the blocking pool at once.
const BATCH: usize = 1024 * 1024;
/// Pieces that go at once, so that a stream of tiny ones stays as small as it is.
const PIECES: usize = 512;
/// Smaller pieces than this are gathered before they are written.
const BUFFER: usize = 128 * 1024;
/// So often the disk is told to write what the kernel gathered, so that the sync at the end
/// of a large upload has little left to wait for.
const SYNC_EVERY: u64 = 32 * 1024 * 1024;

pub(super) struct Upload {
    path: PathBuf,
    state: State,
    batch: Vec<Bytes>,
    size: usize,
}

enum State {
    New,
    Writing(JoinHandle<Result<Written, BlobError>>),
    /// An error was returned; nothing follows.
    Broken,
}

/// A temporary file with what was written so far. Dropping it removes the file.
pub(super) struct Written {
    file: BufWriter<File>,
    hasher: Hasher,
    unsynced: u64,
    sync: Option<JoinHandle<()>>,
    path: Temporary,
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; what else fails, the next open sweeps.
        let _ = fs::remove_file(&self.0);
    }
}

impl Upload {
    pub(super) fn create(path: PathBuf) -> Self {
        Self { path, state: State::New, batch: Vec::new(), size: 0 }
    }

    pub(super) async fn push(&mut self, piece: Bytes) -> Result<(), BlobError> {
        self.size += piece.len();
        self.batch.push(piece);
        if self.size >= BATCH || self.batch.len() >= PIECES { self.flush().await } else { Ok(()) }
    }

    /// Everything pushed, written and digested, but not yet synced.
    pub(super) async fn written(mut self) -> Result<Written, BlobError> {
        self.flush().await?;
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Writing(task) => join(task).await,
            State::New | State::Broken => unreachable!("a flush leaves a write under way"),
        }
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let before = match std::mem::replace(&mut self.state, State::Broken) {
            State::New => None,
            State::Writing(task) => Some(join(task).await?),
            State::Broken => return Err(std::io::Error::other("the upload failed before").into()),
        };
        let batch = std::mem::take(&mut self.batch);
        self.size = 0;
        let path = self.path.clone();
        self.state = State::Writing(spawn::blocking("write blob", move || {
            let mut written = match before {
                Some(written) => written,
                None => Written::create(path)?,
            };
            written.write(&batch)?;
            Ok(written)
        }));
        Ok(())
    }
}

impl Written {
    fn create(path: PathBuf) -> Result<Self, BlobError> {
        let file = File::options().write(true).create_new(true).open(&path)?;
        let path = Temporary(path);
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { file, hasher: Hasher::default(), unsynced: 0, sync: None, path })
    }

    fn write(&mut self, batch: &[Bytes]) -> Result<(), BlobError> {
        for piece in batch {
            self.hasher.update(piece);
            self.file.write_all(piece)?;
            self.unsynced += piece.len() as u64;
        }
        if self.unsynced >= SYNC_EVERY && self.sync.as_ref().is_none_or(JoinHandle::is_finished) {
            self.unsynced = 0;
            let file = self.file.get_ref().try_clone()?;
            // Only a head start: the sync that counts, and its error, come at the end.
            self.sync = Some(spawn::blocking("sync blob early", move || drop(file.sync_data())));
        }
        Ok(())
    }
}

/// Verifies, syncs and names what was written.
pub(super) fn finish(mut written: Written, digest: Digest, target: &Path) -> Result<(), BlobError> {
    let got = written.hasher.finish();
    if got != digest {
        return Err(BlobError::Digest { announced: digest, got });
    }
    written.file.flush()?;
    written.file.get_ref().sync_all()?;
    fs::rename(&written.path.0, target)?;
    let parent = target.parent().ok_or_else(|| std::io::Error::other("a blob's path has no directory"))?;
    File::open(parent)?.sync_all()?;
    Ok(())
}
