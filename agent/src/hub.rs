//! Carries inputs into the table of attempts and its effects out: runners are started and
//! stopped, files removed, the session woken. Everything that happens to an attempt passes here.
//!
//! May enter: wiring. What is decided is in `attempts/`, what one attempt does in `runner.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::ids::AttemptKey;
use mesh_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::attempts::{Capacity, Effect, Input, Shippable, Stop, Table};
use crate::metrics::Metrics;
use crate::records::Entry;
use crate::runner::{self, Context, Job};
use crate::spawn::spawn;

/// How long a process whose record was damaged may take to die before its files go anyway.
const BURIAL: Duration = Duration::from_secs(30);
/// Attempts that are removed at a time.
const REMOVALS: usize = 256;

/// The one owner of the table.
pub struct Hub {
    context: Context,
    table: Mutex<Table>,
    runners: Mutex<HashMap<AttemptKey, watch::Sender<Option<Stop>>>>,
    metrics: Arc<Metrics>,
    /// Something waits to be told on the result stream.
    pub results: Notify,
    /// The table changed.
    pub changed: Notify,
    /// Attempts of which nothing is needed any more.
    removals: mpsc::UnboundedSender<AttemptKey>,
}

impl Hub {
    pub fn new(context: Context, capacity: Capacity, metrics: Arc<Metrics>) -> Arc<Self> {
        let (removals, removed) = mpsc::unbounded_channel();
        spawn("removing attempts", remove(context.clone(), removed));
        Arc::new(Self {
            context,
            table: Mutex::new(Table::new(capacity)),
            runners: Mutex::default(),
            metrics,
            results: Notify::new(),
            changed: Notify::new(),
            removals,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runners(&self) -> MutexGuard<'_, HashMap<AttemptKey, watch::Sender<Option<Stop>>>> {
        self.runners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the table on and does what it says.
    pub fn handle(self: &Arc<Self>, input: Input) {
        if let Input::Ended(_, ended) = &input {
            self.metrics.ended(ended.cause());
        }
        let (effects, running, waiting) = {
            let mut table = self.table();
            (table.handle(input), table.running(), table.waiting())
        };
        self.metrics.attempts(running, waiting);
        for effect in effects {
            match effect {
                Effect::Run { key, slot, assignment, after } => {
                    self.run(Job { key, slot, assignment, resume: false, after });
                }
                Effect::Stop { key, stop } => {
                    if let Some(runner) = self.runners().get(&key) {
                        runner.send_replace(Some(stop));
                    }
                }
                Effect::Remove(key) => self.remove(key),
            }
        }
        self.results.notify_one();
        self.changed.notify_waiters();
    }

    fn run(self: &Arc<Self>, job: Job) {
        let key = job.key;
        let (stop, stopped) = watch::channel(None);
        self.runners().insert(key, stop);
        let hub = self.clone();
        let span = info_span!("attempt", attempt = %key, job = key.task.job.0);
        let work = async move {
            // A runner that fails in a way nobody thought of must not leave its attempt for ever.
            let watched = RunnerEnds { hub: hub.clone(), key };
            let input = runner::run(&hub.context, &hub, job, stopped).await;
            std::mem::forget(watched);
            hub.runners().remove(&key);
            hub.handle(input);
        };
        spawn("runner", work.instrument(span));
    }

    fn remove(&self, key: AttemptKey) {
        // Taken for as long as there is a runtime.
        let _ending = self.removals.send(key);
    }

    /// Takes up what an earlier daemon left on this machine: attempts that run go on, ends that
    /// were not told are told, and what cannot be trusted is ended and removed.
    pub async fn recover(self: &Arc<Self>) -> anyhow::Result<()> {
        let records = self.context.records.clone();
        let entries = tokio::task::spawn_blocking(move || records.scan()).await??;
        let known: HashMap<AttemptKey, crate::jail::State> = self
            .context
            .jail
            .list()
            .await?
            .into_iter()
            .map(|status| (status.attempt, status.state))
            .collect();
        let (mut kept, mut buried, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Found(found) => {
                    let (key, slot) = (found.key, found.slot);
                    if found.end.is_none() && !found.executed {
                        // It never started; the coordinator gives it again.
                        buried.push(key);
                        continue;
                    }
                    kept.push(key);
                    let started = match known.get(&key) {
                        Some(crate::jail::State::Running(started)) => {
                            Some(runner::started(&found.assignment, *started, self.context.limits))
                        }
                        Some(crate::jail::State::Starting | crate::jail::State::Ended(_)) | None => None,
                    };
                    let ended = found.end.map(Box::new);
                    let resume = ended.is_none();
                    let assignment = Arc::new(found.assignment);
                    info!(attempt = %key, ended = !resume, "taking up an attempt of the daemon before");
                    self.handle(Input::Recovered { assignment: assignment.clone(), slot, started, ended });
                    if resume {
                        self.run(Job { key, slot, assignment, resume, after: None });
                    }
                }
                Entry::Old(key) => {
                    info!(attempt = %key, "dropping an attempt of an earlier boot");
                    buried.push(key);
                }
                Entry::Rejected(key, problem) => {
                    error!(attempt = %key, %problem, "an attempt's record is rejected: ending what runs of it");
                    buried.push(key);
                    rejected.push(key);
                }
                Entry::Foreign(path) => {
                    warn!(path = %path.display(), "not an attempt's directory: it is left alone");
                }
            }
        }
        buried.extend(known.into_keys().filter(|key| !kept.contains(key)));
        buried.sort_unstable();
        buried.dedup();
        // Before the coordinator is asked for anything: it may give the same attempt again.
        for key in buried {
            self.bury(key).await;
        }
        // It may have run: an attempt of that number must not begin once more.
        for key in rejected {
            self.tell_rejected(key).await;
        }
        Ok(())
    }

    /// Tells that an attempt ended whose record was damaged; also after the next restart.
    async fn tell_rejected(self: &Arc<Self>, key: AttemptKey) {
        let ended = runner::infra("its record on this node's disk was damaged".to_owned());
        let assignment = v1::Assignment { attempt: Some(key.into()), ..v1::Assignment::default() };
        let (records, end, written) = (self.context.records.clone(), ended.clone(), assignment.clone());
        let write = tokio::task::spawn_blocking(move || {
            records.write(key, 0, &written)?;
            records.write_end(key, &end)
        });
        if let Ok(Err(error)) = write.await {
            warn!(attempt = %key, %error, "cannot write an attempt's end down");
        }
        let (assignment, ended) = (Arc::new(assignment), Some(Box::new(ended)));
        self.handle(Input::Recovered { assignment, slot: 0, started: None, ended });
    }

    /// Ends whatever runs of an attempt that is not in the table, and removes it.
    async fn bury(&self, key: AttemptKey) {
        let jail = &self.context.jail;
        let mut fate = jail.follow(key, self.context.records.dir(key), true).await;
        // Refused when the jail knows nothing of it.
        if jail.kill(key, Duration::ZERO).await.is_ok() {
            let dead = fate.wait_for(|fate| fate.ended.is_some() || fate.lost);
            if tokio::time::timeout(BURIAL, dead).await.is_err() {
                error!(attempt = %key, "a process does not die");
            }
        }
        self.context.remove(vec![key]).await;
    }

    /// Up to a message's worth of events that the coordinator must be told.
    pub fn take_events(&self, max_bytes: usize) -> Vec<v1::AttemptEvent> {
        self.table().take_events(max_bytes)
    }

    pub fn inventory(&self) -> Vec<v1::InventoryItem> {
        self.table().inventory()
    }

    pub fn shippable(&self) -> Vec<Shippable> {
        self.table().shippable()
    }

    pub fn begin_streaming(&self, key: AttemptKey) -> bool {
        self.table().begin_streaming(key)
    }

    pub fn seal(&self, key: AttemptKey, length: u64) -> bool {
        self.table().seal(key, length)
    }

    /// Whether attempts follow each other so fast that they stand in line.
    pub fn is_busy(&self) -> bool {
        self.table().is_busy()
    }

    pub fn is_idle(&self) -> bool {
        self.table().is_idle()
    }

    /// Attempts that run, and that wait for a slot.
    pub fn counts(&self) -> (usize, usize) {
        let table = self.table();
        (table.running(), table.waiting())
    }

    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// Removes attempts, as many at once as have come together; the table holds no more than it may.
async fn remove(context: Context, mut removals: mpsc::UnboundedReceiver<AttemptKey>) {
    let mut keys = Vec::new();
    while removals.recv_many(&mut keys, REMOVALS).await > 0 {
        context.remove(std::mem::take(&mut keys)).await;
    }
}

/// Ends an attempt whose runner panicked.
struct RunnerEnds {
    hub: Arc<Hub>,
    key: AttemptKey,
}

impl Drop for RunnerEnds {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // The runtime ends: the next daemon takes the attempt up again.
            return;
        }
        let ended = runner::infra("the agent failed while it ran this attempt; its log says more".to_owned());
        self.hub.runners().remove(&self.key);
        self.hub.handle(Input::Ended(self.key, Box::new(ended)));
    }
}
