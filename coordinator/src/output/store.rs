//! The store's handle: hands appends to the writers, and readers their durable lengths.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use mesh_proto::{
    ids::{AttemptKey, JobNumber},
    limits::MAX_CHUNK,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    error::OutputError,
    read::Reader,
    writer::{Append, Request, Writer, job_dir, path},
};
use crate::spawn;

/// Writers: enough that syncs of different files overlap and the disk can merge them.
const WRITERS: usize = 4;
/// Requests that wait for one writer.
const QUEUE: usize = 1024;

/// Where the output is kept and what bounds it.
#[derive(Clone, Debug)]
pub struct Options {
    pub dir: PathBuf,
    /// The most output of one attempt, frames counted, in bytes.
    pub max_output: u64,
    /// Files that are held open, all attempts together.
    pub open_files: usize,
    /// Bytes that may wait for the disk, all attempts together; at least one piece's.
    pub waiting_bytes: usize,
}

/// The answer to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Everything below this position is on disk. The agent goes on here.
    pub durable: u64,
    /// The piece lay past the end and was dropped: what comes before it has to come first.
    pub gap: bool,
}

/// A directory of output. Cloning is cheap.
#[derive(Clone)]
pub struct OutputStore {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    /// Raised when the files may have been written by somebody else.
    turn: Arc<AtomicU64>,
    waiting: Arc<Semaphore>,
    writers: Vec<Share>,
}

struct Share {
    requests: mpsc::Sender<Request>,
    lengths: Arc<Lengths>,
}

impl OutputStore {
    /// Opens the store, making it where there is none, and starts its writers, which end when
    /// the last handle is dropped. One process only may
    /// write to a directory at a time.
    pub fn open(options: Options) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        File::open(&options.dir)?.sync_all()?;
        let mut writers = Vec::new();
        let turn = Arc::new(AtomicU64::new(0));
        for _ in 0..WRITERS {
            let (sender, requests) = mpsc::channel(QUEUE);
            let lengths = Arc::new(Lengths::default());
            let writer = Writer {
                dir: options.dir.clone(),
                max_open: (options.open_files / WRITERS).max(8),
                requests,
                lengths: Arc::clone(&lengths),
                files: HashMap::new(),
                remembered: BTreeSet::new(),
                batches: 0,
                turn: Arc::clone(&turn),
                own_turn: 0,
            };
            spawn::thread("output writer", move || writer.run())?;
            writers.push(Share { requests: sender, lengths });
        }
        let waiting = Arc::new(Semaphore::new(options.waiting_bytes.max(MAX_CHUNK)));
        Ok(Self { inner: Arc::new(Inner { options, turn, waiting, writers }) })
    }

    /// Appends a piece of an attempt's spool that begins at `position`. Returns once the piece
    /// has its place in the queue (waiting for one when the disk is behind), with the future of
    /// its acknowledgement. Pieces of one attempt must be given in order, each after the call
    /// before has returned; what overlaps is kept once. Dropping the future loses the answer
    /// only.
    pub async fn append(
        &self,
        attempt: AttemptKey,
        position: u64,
        data: Bytes,
    ) -> Result<impl Future<Output = Result<Ack, OutputError>> + Send + 'static, OutputError> {
        if data.len() > MAX_CHUNK {
            return Err(OutputError::Piece { size: data.len(), max: MAX_CHUNK });
        }
        let max = self.inner.options.max_output;
        if position.checked_add(data.len() as u64).is_none_or(|end| end > max) {
            return Err(OutputError::TooLong { max });
        }
        let waiting = Arc::clone(&self.inner.waiting);
        let permit = waiting.acquire_many_owned(data.len() as u32).await.map_err(|_| OutputError::Closed)?;
        let (done, answer) = oneshot::channel();
        let append = Append { attempt, position, data, permit, done };
        let share = self.share(attempt);
        share.requests.send(Request::Append(append)).await.map_err(|_| OutputError::Closed)?;
        Ok(async move { answer.await.unwrap_or(Err(OutputError::Closed)) })
    }

    /// Whether output of which `kept` bytes are here, of `length` that were written, was cut: pieces
    /// that pass the limit are not taken, and none after them.
    #[must_use]
    pub fn cuts(&self, kept: u64, length: u64) -> bool {
        let max = self.inner.options.max_output;
        length > max && kept.saturating_add(MAX_CHUNK as u64) > max
    }

    /// A reader of an attempt's output, also of one that has none yet.
    pub async fn reader(&self, attempt: AttemptKey) -> Result<Reader, OutputError> {
        let share = self.share(attempt);
        let durable = if let Some(durable) = share.lengths.subscribe(attempt) {
            durable
        } else {
            let (done, answer) = oneshot::channel();
            share.requests.send(Request::Load { attempt, done }).await.map_err(|_| OutputError::Closed)?;
            answer.await.map_err(|_| OutputError::Closed)??
        };
        Ok(Reader::new(path(&self.inner.options.dir, attempt), durable))
    }

    /// Removes all output of a job. Its readers end with [`OutputError::Removed`]. Again, or
    /// for a job without output, it does nothing.
    pub async fn remove(&self, job: JobNumber) -> Result<(), OutputError> {
        for share in &self.inner.writers {
            let (done, answer) = oneshot::channel();
            share.requests.send(Request::Forget { job, done }).await.map_err(|_| OutputError::Closed)?;
            answer.await.map_err(|_| OutputError::Closed)?;
        }
        let dir = job_dir(&self.inner.options.dir, job);
        let removed = spawn::blocking("remove output", move || fs::remove_dir_all(dir)).await;
        match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Another coordinator writes to the directory from now on: what is known of its files and
    /// lengths is dropped before anything else is done. Readers of attempts end.
    pub fn let_go(&self) {
        self.inner.turn.fetch_add(1, Ordering::Release);
        for writer in &self.inner.writers {
            writer.lengths.forget_all();
        }
    }

    fn share(&self, attempt: AttemptKey) -> &Share {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(attempt);
        &self.inner.writers[hash as usize % WRITERS]
    }
}

/// The durable lengths of the attempts that are open or read, which readers watch.
#[derive(Default)]
pub(super) struct Lengths(Mutex<HashMap<AttemptKey, watch::Sender<u64>>>);

impl Lengths {
    /// Nothing that runs under the lock can leave the map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptKey, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self, attempt: AttemptKey) -> Option<watch::Receiver<u64>> {
        self.lock().get(&attempt).map(watch::Sender::subscribe)
    }

    pub(super) fn subscribe_at(&self, attempt: AttemptKey, durable: u64) -> watch::Receiver<u64> {
        let mut lengths = self.lock();
        let sender = lengths.entry(attempt).or_insert_with(|| watch::Sender::new(durable));
        sender.send_if_modified(|length| raise(length, durable));
        sender.subscribe()
    }

    pub(super) fn grow(&self, attempt: AttemptKey, durable: u64) {
        let mut lengths = self.lock();
        let sender = lengths.entry(attempt).or_insert_with(|| watch::Sender::new(durable));
        sender.send_if_modified(|length| raise(length, durable));
    }

    /// Every reader sees that its sender is gone.
    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    /// Readers of the job's attempts see that their sender is gone.
    pub(super) fn forget(&self, job: JobNumber) {
        self.lock().retain(|attempt, _| attempt.task.job != job);
    }

    /// Drops what nobody reads and no open file needs, once there is much of it.
    pub(super) fn tidy(&self, limit: usize, is_open: impl Fn(&AttemptKey) -> bool) {
        let mut lengths = self.lock();
        if lengths.len() > limit {
            lengths.retain(|attempt, sender| is_open(attempt) || sender.receiver_count() > 0);
        }
    }
}

fn raise(length: &mut u64, durable: u64) -> bool {
    let grows = durable > *length;
    if grows {
        *length = durable;
    }
    grows
}
