//! A writer: one thread that owns the files of its share of the attempts. It takes all that
//! has gathered, writes it, syncs what it touched, and then releases the acknowledgements.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use mesh_proto::ids::{AttemptKey, JobNumber};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::{
    attempt_file::{AttemptFile, Landed},
    error::OutputError,
    store::{Ack, Lengths},
};

/// Requests that one batch takes at the most.
const BATCH: usize = 512;
/// Attempts whose files this process is remembered to have written. Past it they are looked
/// at again when opened, which costs time and nothing else.
const REMEMBERED: usize = 100_000;

type Answer<T> = oneshot::Sender<Result<T, OutputError>>;

pub(super) enum Request {
    Append(Append),
    /// Opens the attempt's file, if there is one, and answers with its durable length.
    Load {
        attempt: AttemptKey,
        done: Answer<watch::Receiver<u64>>,
    },
    /// Lets go of every file of the job, so that they can be removed.
    Forget {
        job: JobNumber,
        done: oneshot::Sender<()>,
    },
}

pub(super) struct Append {
    pub attempt: AttemptKey,
    pub position: u64,
    pub data: Bytes,
    pub permit: OwnedSemaphorePermit,
    pub done: Answer<Ack>,
}

pub(super) struct Writer {
    pub dir: PathBuf,
    pub max_open: usize,
    pub requests: mpsc::Receiver<Request>,
    pub lengths: Arc<Lengths>,
    pub files: HashMap<AttemptKey, Open>,
    pub remembered: BTreeSet<AttemptKey>,
    pub batches: u64,
    /// Of the store, and as it was at the last batch.
    pub turn: Arc<AtomicU64>,
    pub own_turn: u64,
}

pub(super) struct Open {
    file: AttemptFile,
    /// The batch that used it last.
    used: u64,
}

#[derive(Default)]
struct Batch {
    appends: Vec<(AttemptKey, Landed, Answer<Ack>)>,
    loads: Vec<(AttemptKey, Answer<watch::Receiver<u64>>)>,
    /// Directories that got a new name in them.
    dirs: BTreeSet<PathBuf>,
    new: Vec<AttemptKey>,
}

impl Writer {
    /// Serves until the store is dropped.
    pub(super) fn run(mut self) {
        let mut requests = Vec::with_capacity(BATCH);
        while self.requests.blocking_recv_many(&mut requests, BATCH) > 0 {
            self.batches += 1;
            let turn = self.turn.load(Ordering::Acquire);
            if std::mem::replace(&mut self.own_turn, turn) != turn {
                self.files.clear();
                self.remembered.clear();
                self.lengths.forget_all();
            }
            let mut batch = Batch::default();
            for request in requests.drain(..) {
                self.take(request, &mut batch);
            }
            let failed = self.sync(&batch);
            self.release(batch, &failed);
            self.evict();
        }
    }

    fn take(&mut self, request: Request, batch: &mut Batch) {
        match request {
            Request::Append(Append { attempt, position, data, permit, done }) => {
                match self.write(attempt, position, &data, batch) {
                    Ok(landed) => batch.appends.push((attempt, landed, done)),
                    Err(error) => drop(done.send(Err(told(attempt, error)))),
                }
                drop(permit);
            }
            Request::Load { attempt, done } => match self.open(attempt) {
                Ok(_) => batch.loads.push((attempt, done)),
                Err(error) => drop(done.send(Err(told(attempt, error)))),
            },
            Request::Forget { job, done } => {
                self.files.retain(|attempt, _| attempt.task.job != job);
                self.remembered.retain(|attempt| attempt.task.job != job);
                self.lengths.forget(job);
                // Whoever asked may be gone; the job is forgotten all the same.
                let _ = done.send(());
            }
        }
    }

    fn write(
        &mut self,
        attempt: AttemptKey,
        position: u64,
        data: &[u8],
        batch: &mut Batch,
    ) -> io::Result<Landed> {
        if !self.open(attempt)? {
            if position > 0 {
                return Ok(Landed::Gap);
            }
            self.create(attempt, batch)?;
        }
        match self.files.get_mut(&attempt) {
            Some(open) => open.file.write(position, data),
            None => Ok(Landed::Gap),
        }
    }

    /// Whether the attempt has a file, which is then open.
    fn open(&mut self, attempt: AttemptKey) -> io::Result<bool> {
        if let Some(open) = self.files.get_mut(&attempt) {
            open.used = self.batches;
            return Ok(true);
        }
        match AttemptFile::open(&path(&self.dir, attempt), self.remembered.contains(&attempt)) {
            Ok(file) => {
                self.remember(attempt);
                self.files.insert(attempt, Open { file, used: self.batches });
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, attempt: AttemptKey, batch: &mut Batch) -> io::Result<()> {
        let path = path(&self.dir, attempt);
        let parent = job_dir(&self.dir, attempt.task.job);
        match fs::create_dir(&parent) {
            Ok(()) => drop(batch.dirs.insert(self.dir.clone())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let file = AttemptFile::create(&path)?;
        batch.dirs.insert(parent);
        batch.new.push(attempt);
        self.remember(attempt);
        self.files.insert(attempt, Open { file, used: self.batches });
        Ok(())
    }

    fn remember(&mut self, attempt: AttemptKey) {
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(attempt);
    }

    /// Syncs what the batch touched; what failed comes back with its error.
    fn sync(&mut self, batch: &Batch) -> HashMap<AttemptKey, OutputError> {
        let mut failed = HashMap::new();
        for (attempt, _, _) in &batch.appends {
            let Some(open) = self.files.get_mut(attempt).filter(|open| open.file.dirty) else { continue };
            if let Err(error) = open.file.sync() {
                failed.insert(*attempt, told(*attempt, error));
            }
        }
        for dir in &batch.dirs {
            let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) else { continue };
            let error = OutputError::from(error);
            for attempt in &batch.new {
                failed.insert(*attempt, error.clone());
                // Its name may not last: made again, or opened and looked at, next time.
                self.files.remove(attempt);
                self.remembered.remove(attempt);
            }
        }
        failed
    }

    fn release(&self, batch: Batch, failed: &HashMap<AttemptKey, OutputError>) {
        // An asker that has gone learns the position when it asks again.
        for (attempt, landed, done) in batch.appends {
            let answer = match (failed.get(&attempt), self.files.get(&attempt)) {
                (Some(error), _) => Err(error.clone()),
                (None, Some(open)) => {
                    self.lengths.grow(attempt, open.file.durable());
                    Ok(Ack { durable: open.file.durable(), gap: landed == Landed::Gap })
                }
                (None, None) if landed == Landed::Gap => Ok(Ack { durable: 0, gap: true }),
                (None, None) => Err(OutputError::Removed),
            };
            let _ = done.send(answer);
        }
        for (attempt, done) in batch.loads {
            let durable = self.files.get(&attempt).map_or(0, |open| open.file.durable());
            let _ = done.send(Ok(self.lengths.subscribe_at(attempt, durable)));
        }
    }

    /// Closes the files that were not used for longest. All are synced by now.
    fn evict(&mut self) {
        if self.files.len() > self.max_open {
            let mut used: Vec<u64> = self.files.values().map(|open| open.used).collect();
            // A quarter at once, so that this is not done for every batch.
            let (_, limit, _) = used.select_nth_unstable(self.files.len() - self.max_open * 3 / 4);
            let limit = *limit;
            self.files.retain(|_, open| open.used >= limit);
            if self.files.len() > self.max_open {
                // All of one batch: none is older than another.
                let surplus: Vec<AttemptKey> = self.files.keys().copied().skip(self.max_open).collect();
                for attempt in surplus {
                    self.files.remove(&attempt);
                }
            }
        }
        let files = &self.files;
        self.lengths.tidy(self.max_open * 2, |attempt| files.contains_key(attempt));
    }
}

fn told(attempt: AttemptKey, error: io::Error) -> OutputError {
    tracing::error!(%attempt, %error, "storing output failed");
    error.into()
}

pub(super) fn job_dir(dir: &Path, job: JobNumber) -> PathBuf {
    dir.join(job.to_string())
}

pub(super) fn path(dir: &Path, attempt: AttemptKey) -> PathBuf {
    job_dir(dir, attempt.task.job).join(attempt.to_string())
}
