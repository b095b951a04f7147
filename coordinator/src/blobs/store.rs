//! The store's directory: `<aa>/<digest>` for each blob (`aa`: the digest's first byte), and
//! one for uploads under way (`tmp/`). Blobs never change, so several processes may share it.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use mesh_proto::digest::Digest;

use super::{
    error::BlobError,
    read::BlobReader,
    write::{Upload, finish},
};
use crate::spawn;

/// Where a store is and what it takes.
#[derive(Clone, Debug)]
pub struct Options {
    pub dir: PathBuf,
    /// Name of the directory for uploads under way, below `dir`: each process that writes to the
    /// store has its own.
    pub uploads: String,
    /// The largest blob, in bytes.
    pub max_bytes: u64,
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    New,
    /// It was here before; what was sent is dropped.
    Existed,
}

/// A directory of blobs. Cloning is cheap.
#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    uploads: AtomicU64,
}

impl Inner {
    fn uploads_dir(&self) -> PathBuf {
        self.options.dir.join(&self.options.uploads)
    }
}

impl BlobStore {
    /// Opens the store, making it where there is none, and sweeps the leftovers of uploads
    /// that a crash cut. Blocks on the disk: for the start of the process. One process only
    /// may have a directory of uploads open.
    pub fn open(options: Options) -> Result<Self, BlobError> {
        let tmp = options.dir.join(&options.uploads);
        fs::create_dir_all(&tmp)?;
        for entry in fs::read_dir(&tmp)? {
            fs::remove_file(entry?.path())?;
        }
        for first in 0..=u8::MAX {
            match fs::create_dir(options.dir.join(format!("{first:02x}"))) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        File::open(&options.dir)?.sync_all()?;
        Ok(Self { inner: Arc::new(Inner { options, uploads: AtomicU64::new(0) }) })
    }

    /// Stores what the stream yields under `digest`, after checking that it is `size` bytes
    /// with that digest; on return it is on disk. The stream's own error ends the upload and
    /// is returned as it is. A stream with more than `size` bytes is not read to its end.
    pub async fn put_stream<S, E>(&self, digest: Digest, size: u64, stream: S) -> Result<Stored, E>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: From<BlobError>,
    {
        let max = self.inner.options.max_bytes;
        if size > max {
            return Err(BlobError::TooLarge { size, max }.into());
        }
        let mut stream = std::pin::pin!(stream);
        if self.holds(digest, size).await? {
            // Read to the end, so that a client in the middle of its upload sees the answer.
            let mut got = 0;
            while let Some(piece) = stream.next().await.transpose()? {
                got = check_length(got, piece.len(), size)?;
            }
            return Ok(Stored::Existed);
        }
        let number = self.inner.uploads.fetch_add(1, Ordering::Relaxed);
        let mut upload = Upload::create(self.inner.uploads_dir().join(format!("{digest}.{number}")));
        let mut got = 0;
        while let Some(piece) = stream.next().await.transpose()? {
            got = check_length(got, piece.len(), size)?;
            upload.push(piece).await?;
        }
        if got != size {
            return Err(BlobError::Size { announced: size, got }.into());
        }
        let written = upload.written().await?;
        let path = self.path(digest);
        join(spawn::blocking("store blob", move || finish(written, digest, &path))).await?;
        Ok(Stored::New)
    }

    /// Whether the blob is here already. One of another size than announced cannot be meant.
    async fn holds(&self, digest: Digest, size: u64) -> Result<bool, BlobError> {
        match self.stat(vec![digest]).await?.first() {
            None => Ok(false),
            Some((_, here)) if *here == size => Ok(true),
            Some((_, here)) => Err(BlobError::Size { announced: size, got: *here }),
        }
    }

    /// Those of `digests` that are here with their sizes in bytes, in the order asked.
    pub async fn stat(&self, digests: Vec<Digest>) -> Result<Vec<(Digest, u64)>, BlobError> {
        let store = self.clone();
        join(spawn::blocking("stat blobs", move || {
            let mut found = Vec::new();
            for digest in digests {
                match fs::metadata(store.path(digest)) {
                    Ok(metadata) => found.push((digest, metadata.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(found)
        }))
        .await
    }

    /// Opens a blob for reading from `offset`, which may be its very end.
    pub async fn open_blob(&self, digest: Digest, offset: u64) -> Result<BlobReader, BlobError> {
        let store = self.clone();
        join(spawn::blocking("open blob", move || {
            let (file, size) = store.file(digest)?;
            if offset > size {
                return Err(BlobError::Offset { offset, size });
            }
            Ok(BlobReader::new(file, size, offset))
        }))
        .await
    }

    /// A whole blob in memory, refused when it is over `max` bytes.
    pub async fn get_bytes(&self, digest: Digest, max: u64) -> Result<Bytes, BlobError> {
        let store = self.clone();
        join(spawn::blocking("read blob", move || {
            let (mut file, size) = store.file(digest)?;
            if size > max {
                return Err(BlobError::TooLarge { size, max });
            }
            let mut bytes = Vec::with_capacity(size as usize + 1);
            file.read_to_end(&mut bytes)?;
            Ok(bytes.into())
        }))
        .await
    }

    fn file(&self, digest: Digest) -> Result<(File, u64), BlobError> {
        let file = File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::NotFound(digest),
            _ => BlobError::Io(error),
        })?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        path(&self.inner.options.dir, digest)
    }
}

pub(super) fn path(dir: &Path, digest: Digest) -> PathBuf {
    let name = digest.to_string();
    dir.join(&name[..2]).join(name)
}

fn check_length(got: u64, more: usize, announced: u64) -> Result<u64, BlobError> {
    let got = got + more as u64;
    if got > announced { Err(BlobError::Size { announced, got }) } else { Ok(got) }
}

/// What the blocking pool made of it; a panic or a runtime that shuts down is an error.
pub(super) async fn join<T>(task: tokio::task::JoinHandle<Result<T, BlobError>>) -> Result<T, BlobError> {
    task.await.unwrap_or_else(|error| Err(BlobError::Io(io::Error::other(error))))
}
