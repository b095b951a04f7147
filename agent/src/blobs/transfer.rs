//! Blobs to and from the coordinator. What fails because the coordinator is away is tried again
//! until it is back; whoever waits can give up by dropping the future. What makes no progress though
//! the coordinator is there is given up after a time (`stall`).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use mesh_proto::code::Code;
use mesh_proto::digest::{Digest, Hasher};
use mesh_proto::duration::format_duration;
use mesh_proto::limits;
use mesh_proto::v1::blobs_client::BlobsClient;
use mesh_proto::v1::{GetBlobRequest, PutBlobRequest, StatBlobsRequest};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::cache::Cache;
use super::stall::{Stall, Watch};
use crate::backoff::Backoff;

/// Transfers at a time, each way together.
const TRANSFERS: usize = 8;
/// Digests asked for in one Stat.
const STAT: usize = 1000;
/// How long one RPC without progress may take before it is tried again.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why a blob cannot be had or sent.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the mesh does not hold blob {0}")]
    Missing(Digest),
    #[error("what arrived for blob {0} has another digest or size")]
    Corrupt(Digest),
    #[error("the coordinator refuses: {0}")]
    Refused(String),
    #[error("on this node's disk: {0}")]
    Disk(#[from] io::Error),
    #[error("no progress in {} with the coordinator there: {why}", format_duration(*.after))]
    Stalled { after: Duration, why: String },
    #[error("the agent stops")]
    Stopped,
}

/// The cache, and the coordinator behind it.
#[derive(Debug)]
pub struct Blobs {
    cache: Arc<Cache>,
    client: BlobsClient<Channel>,
    permits: Semaphore,
    /// One lock for each digest that somebody fetches.
    fetching: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    backoff: Backoff,
    /// How long nothing may go forward while the coordinator is there.
    stall: Duration,
}

impl Blobs {
    pub fn new(cache: Arc<Cache>, channel: Channel, backoff: Backoff, stall: Duration) -> Self {
        let client = BlobsClient::new(channel)
            .max_decoding_message_size(limits::MAX_MESSAGE)
            .max_encoding_message_size(limits::MAX_MESSAGE);
        let permits = Semaphore::new(TRANSFERS);
        Self { cache, client, permits, fetching: Mutex::default(), backoff, stall }
    }

    /// A blob's content, from the cache or fetched into it.
    pub async fn fetch(&self, digest: Digest, size: u64) -> Result<File, BlobError> {
        if let Some(file) = self.cache.get(digest) {
            return Ok(file);
        }
        let lock = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|_, lock| lock.strong_count() > 0);
            let known = fetching.get(&digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                fetching.insert(digest, Arc::downgrade(&lock));
                lock
            })
        };
        let _first = lock.lock().await;
        if let Some(file) = self.cache.get(digest) {
            return Ok(file);
        }
        let _permit = self.permits.acquire().await.map_err(|_| BlobError::Stopped)?;
        let cache = self.cache.clone();
        let verified = tokio::task::spawn_blocking(move || cache.verify(digest)).await;
        if let Some(file) = verified.map_err(|_| BlobError::Stopped)?? {
            return Ok(file);
        }
        self.download(digest, size).await
    }

    async fn download(&self, digest: Digest, size: u64) -> Result<File, BlobError> {
        let mut backoff = self.backoff.clone();
        let mut corrupt = false;
        let mut part = Part::open(&self.cache, digest)?;
        let mut stall = Stall::new(self.stall);
        loop {
            let had = part.size;
            let watch = Watch::new();
            let received = self.receive(digest, size, &mut part, &watch).await;
            if part.size > had {
                // The next try goes on there.
                stall.reset();
            }
            match received {
                Ok(()) if part.is(digest, size) => {
                    return Ok(self.cache.insert(digest, &self.cache.part(digest), size)?);
                }
                Ok(()) if corrupt => return Err(BlobError::Corrupt(digest)),
                Ok(()) => {
                    // Once is an accident.
                    corrupt = true;
                    drop(part);
                    part = Part::open(&self.cache, digest)?;
                }
                Err(Failure::Disk(error)) => return Err(error.into()),
                Err(Failure::Rpc(status)) => match Code::of(&status) {
                    Code::NotFound => return Err(BlobError::Missing(digest)),
                    code if passes(code) => {
                        tracing::debug!(%digest, at = part.size, %status, "download interrupted");
                        stall.after(&status, &watch)?;
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                    _ => return Err(BlobError::Refused(status.message().to_owned())),
                },
            }
        }
    }

    async fn receive(
        &self,
        digest: Digest,
        size: u64,
        part: &mut Part,
        watch: &Watch,
    ) -> Result<(), Failure> {
        let request = GetBlobRequest { digest: digest.to_vec(), offset: part.size };
        let mut stream = patient(self.client.clone().get(request)).await?.into_inner();
        while let Some(piece) = patient(stream.message()).await? {
            part.add(&piece.data).map_err(Failure::Disk)?;
            watch.progress();
            if part.size > size {
                break;
            }
        }
        Ok(())
    }

    /// Sends the files whose content the coordinator does not hold. `open` opens one of them by
    /// its digest, at its beginning.
    pub async fn upload<O>(&self, blobs: &[(Digest, u64)], open: O) -> Result<(), BlobError>
    where
        O: Fn(Digest) -> io::Result<File>,
    {
        for group in blobs.chunks(STAT) {
            let held = self.stat(group).await?;
            for &(digest, size) in group.iter().filter(|(digest, _)| !held.contains(digest)) {
                let _permit = self.permits.acquire().await.map_err(|_| BlobError::Stopped)?;
                self.put(digest, size, &open).await?;
            }
        }
        Ok(())
    }

    async fn stat(&self, group: &[(Digest, u64)]) -> Result<Vec<Digest>, BlobError> {
        let digests: Vec<Vec<u8>> = group.iter().map(|(digest, _)| digest.to_vec()).collect();
        let mut backoff = self.backoff.clone();
        let mut stall = Stall::new(self.stall);
        loop {
            let watch = Watch::new();
            let request = StatBlobsRequest { digests: digests.clone() };
            match patient(self.client.clone().stat(request)).await {
                Ok(answer) => {
                    let blobs = answer.into_inner().blobs;
                    return Ok(blobs
                        .iter()
                        .filter_map(|blob| Digest::try_from(&blob.digest[..]).ok())
                        .collect());
                }
                Err(failure) => self.wait(failure, &mut stall, &watch, &mut backoff).await?,
            }
        }
    }

    async fn put<O>(&self, digest: Digest, size: u64, open: &O) -> Result<(), BlobError>
    where
        O: Fn(Digest) -> io::Result<File>,
    {
        let mut backoff = self.backoff.clone();
        let mut stall = Stall::new(self.stall);
        loop {
            let watch = Watch::new();
            let taken = watch.clone();
            let pieces = ReceiverStream::new(pieces(open(digest)?, digest, size));
            let request = Request::new(pieces.inspect(move |_| taken.progress()));
            // No limit as a whole: the blob may be large. A dead connection shows by its keepalive.
            let mut client = self.client.clone();
            let sent = tokio::select! {
                sent = client.put(request) => sent,
                () = watch.stands_still(stall.left()) => Err(Code::Timeout.status("it takes nothing more")),
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(status) => self.wait(Failure::Rpc(status), &mut stall, &watch, &mut backoff).await?,
            }
        }
    }

    async fn wait(
        &self,
        failure: Failure,
        stall: &mut Stall,
        watch: &Watch,
        backoff: &mut Backoff,
    ) -> Result<(), BlobError> {
        match failure {
            Failure::Disk(error) => Err(error.into()),
            Failure::Rpc(status) if passes(Code::of(&status)) => {
                stall.after(&status, watch)?;
                tokio::time::sleep(backoff.next_wait()).await;
                Ok(())
            }
            Failure::Rpc(status) => Err(BlobError::Refused(status.message().to_owned())),
        }
    }
}

/// A download on disk that is not verified yet.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Part {
    fn open(cache: &Cache, digest: Digest) -> io::Result<Self> {
        let mut options = File::options();
        let path = cache.part(digest);
        let file = options.write(true).create(true).truncate(true).open(&path)?;
        Ok(Self { path, file, hasher: Hasher::default(), size: 0 })
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        // A write to the page cache: as quick as handing it to another thread.
        self.file.write_all(piece)?;
        self.hasher.update(piece);
        self.size += piece.len() as u64;
        Ok(())
    }

    fn is(&self, digest: Digest, size: u64) -> bool {
        self.size == size && self.hasher.clone().finish() == digest
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A download that was given up must not fill the disk; a whole one has another name by now.
        let _ = fs::remove_file(&self.path);
    }
}

enum Failure {
    Rpc(Status),
    Disk(io::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Rpc(status)
    }
}

/// Whether a later try may succeed.
fn passes(code: Code) -> bool {
    match code {
        Code::Unavailable | Code::Timeout | Code::Stale | Code::Internal | Code::Unauthenticated => true,
        Code::Invalid | Code::NotFound | Code::Denied | Code::Conflict | Code::Exhausted | Code::Version => {
            false
        }
    }
}

async fn patient<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(Failure::Rpc),
        Err(_) => Err(Failure::Rpc(Code::Timeout.status("no answer in time"))),
    }
}

/// The messages of one Put; a file that cannot be read any more ends them early, and the
/// coordinator refuses what is not whole.
fn pieces(mut file: File, digest: Digest, size: u64) -> mpsc::Receiver<PutBlobRequest> {
    let (send, receive) = mpsc::channel(4);
    // Ends with the file, or when nobody receives any more.
    let _detached = tokio::task::spawn_blocking(move || {
        let first = PutBlobRequest { digest: digest.to_vec(), size, data: Bytes::new() };
        let mut going = send.blocking_send(first).is_ok();
        while going {
            let mut buffer = Vec::with_capacity(limits::MAX_CHUNK);
            match (&mut file).take(limits::MAX_CHUNK as u64).read_to_end(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%digest, %error, "cannot read an output while sending it");
                    return;
                }
            }
            let piece = PutBlobRequest { data: buffer.into(), ..PutBlobRequest::default() };
            going = send.blocking_send(piece).is_ok();
        }
    });
    receive
}
