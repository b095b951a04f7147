//! The daemon's standing connection to its jail: found or started, mended when it breaks, and
//! what the jail tells handed to whoever follows the attempt.
//!
//! May enter: connecting, routing. What a fate means for an attempt is the runner's business.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::ids::AttemptKey;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::clock;
use crate::jail::{
    Client, ClientError, Event, Events, ExitRecord, Mount, Options, Probe, StartRequest, Started, State,
};
use crate::spawn::spawn;

/// How long an ending jail may take.
const FAREWELL: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What is known of an attempt's process.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    pub started: Option<Started>,
    pub ended: Option<ExitRecord>,
    /// The jail that ran it is gone and left no record: nobody knows how it ended.
    pub lost: bool,
    /// It stood in line and has not begun: nobody will start it unless asked again.
    pub returned: bool,
}

/// A handle on the jail; clones share it.
#[derive(Clone, Debug)]
pub struct Jailer {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    client: watch::Sender<Option<Client>>,
    fates: Mutex<HashMap<AttemptKey, Followed>>,
    /// Until when what lives on a lease may live, on the boot-time clock.
    lease: watch::Sender<Duration>,
    /// Set before the jail is told to end, so that its end is no accident.
    closing: watch::Sender<bool>,
}

struct Followed {
    fate: watch::Sender<Fate>,
    /// Its directory, where an exit record would be.
    dir: PathBuf,
    /// The jail was asked to start it: a jail that does not know it has lost it.
    asked: bool,
    /// It was to stand in line: a jail that is gone has begun it only if it has a directory.
    in_line: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Jailer {
    /// Connects to the jail, starting one when there is none, and keeps the connection from then on.
    /// A jail without tasks is replaced: what it proved of this machine is as old as it is, and it may be
    /// of an older version.
    pub async fn start(options: Options) -> Result<Self, ClientError> {
        if let Ok((found, events)) = Client::connect(&options.dir).await {
            let process = process(&found);
            match found.shutdown(false).await {
                Ok(()) | Err(ClientError::Closed) => {
                    drop((found, events));
                    wait_gone(process).await;
                    info!("an idle jail is replaced");
                }
                Err(ClientError::Refused(reason)) => info!(reason, "the jail stays as it is"),
                Err(error) => return Err(error),
            }
        }
        let (client, events) = Client::ensure(&options).await?;
        info!(pid = client.jail_pid(), "connected to the jail");
        let shared = Arc::new(Shared {
            options,
            client: watch::Sender::new(Some(client)),
            fates: Mutex::default(),
            lease: watch::Sender::new(Duration::ZERO),
            closing: watch::Sender::new(false),
        });
        let jailer = Self { shared };
        spawn("jail events", jailer.clone().keep(events));
        spawn("lease", jailer.clone().pass_leases_on());
        Ok(jailer)
    }

    async fn keep(self, mut events: Events) {
        loop {
            while let Some(event) = events.recv().await {
                self.route(event);
            }
            self.shared.client.send_replace(None);
            if *self.shared.closing.borrow() {
                return;
            }
            warn!("the connection to the jail is lost");
            events = self.reconnect().await;
        }
    }

    async fn reconnect(&self) -> Events {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match Client::ensure(&self.shared.options).await {
                Ok((client, events)) => match self.find_lost(&client).await {
                    Ok(()) => {
                        info!(pid = client.jail_pid(), "connected to the jail again");
                        self.shared.client.send_replace(Some(client));
                        return events;
                    }
                    Err(error) => warn!(%error, "the jail does not answer"),
                },
                Err(error) => error!(%error, "no jail: tasks cannot be started"),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Finds the attempts that a former jail took with it.
    async fn find_lost(&self, client: &Client) -> Result<(), ClientError> {
        let known: Vec<AttemptKey> = client.list().await?.into_iter().map(|status| status.attempt).collect();
        for (key, followed) in
            self.fates().iter().filter(|(key, followed)| followed.asked && !known.contains(key))
        {
            let record = crate::jail::read_exit_record(&followed.dir).ok().flatten();
            followed.fate.send_modify(|fate| {
                if record.is_some() {
                    fate.ended = record;
                } else if followed.in_line && !followed.dir.exists() {
                    fate.returned = true;
                } else if fate.ended.is_none() {
                    warn!(attempt = %key, "the jail that ran this attempt is gone");
                    fate.lost = true;
                }
            });
        }
        Ok(())
    }

    fn route(&self, event: Event) {
        let fates = self.fates();
        match event {
            Event::Started(started) => {
                if let Some(followed) = fates.get(&started.attempt) {
                    followed.fate.send_modify(|fate| fate.started = Some(started));
                }
            }
            Event::Ended(record) => {
                if let Some(followed) = fates.get(&record.attempt) {
                    followed.fate.send_modify(|fate| fate.ended = Some(record));
                }
            }
            Event::Returned(attempt) => {
                if let Some(followed) = fates.get(&attempt) {
                    followed.fate.send_modify(|fate| fate.returned = true);
                }
            }
        }
    }

    fn fates(&self) -> MutexGuard<'_, HashMap<AttemptKey, Followed>> {
        self.shared.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an attempt from now on; what the jail knows of it already is in what is returned.
    pub async fn follow(&self, key: AttemptKey, dir: PathBuf, asked: bool) -> watch::Receiver<Fate> {
        let receiver = {
            let mut fates = self.fates();
            let followed = fates.entry(key).or_insert_with(|| {
                let fate = watch::Sender::default();
                Followed { fate, dir, asked, in_line: false }
            });
            followed.asked |= asked;
            followed.fate.subscribe()
        };
        if asked && let Ok(list) = self.call(|client| async move { client.list().await }).await {
            let status = list.into_iter().find(|status| status.attempt == key);
            let record = || {
                let dir = self.fates().get(&key).map(|followed| followed.dir.clone());
                dir.and_then(|dir| crate::jail::read_exit_record(&dir).ok().flatten())
            };
            let fate = match status.map(|status| status.state) {
                Some(State::Starting) => Fate::default(),
                Some(State::Running(started)) => Fate { started: Some(started), ..Fate::default() },
                Some(State::Ended(record)) => Fate { ended: Some(record), ..Fate::default() },
                None => match record() {
                    Some(record) => Fate { ended: Some(record), ..Fate::default() },
                    None => Fate { lost: true, ..Fate::default() },
                },
            };
            if let Some(followed) = self.fates().get(&key) {
                followed.fate.send_modify(|known| {
                    known.started = known.started.or(fate.started);
                    known.ended = known.ended.take().or(fate.ended);
                    known.lost = fate.lost && known.ended.is_none() && known.started.is_none();
                });
            }
        }
        receiver
    }

    /// Starts an attempt that is followed. Tried again when the connection breaks meanwhile: the
    /// jail starts an attempt once.
    pub async fn launch(&self, request: StartRequest) -> Result<(), ClientError> {
        self.call(|client| {
            let request = request.clone();
            if let Some(followed) = self.fates().get_mut(&request.attempt) {
                followed.asked = true;
                followed.in_line = request.after.is_some();
                // What is known of an earlier try: that it did not come to this jail.
                followed.fate.send_modify(|fate| (fate.lost, fate.returned) = (false, false));
            }
            async move {
                if request.lease.is_some() && !client.knows_leases() {
                    return Err(ClientError::Refused("it is of an older version and knows no leases".into()));
                }
                client.start(request).await
            }
        })
        .await
    }

    /// Ends an attempt; its end is told to whoever follows it.
    pub async fn kill(&self, key: AttemptKey, grace: Duration) -> Result<(), ClientError> {
        self.call(|client| async move { client.kill(key, grace).await }).await
    }

    /// Nobody follows this attempt any more, which has not begun.
    pub fn unfollow(&self, key: AttemptKey) {
        self.fates().remove(&key);
    }

    /// Nobody follows these attempts any more, and the jail need not remember them. Gives those of which
    /// there may be something on disk.
    pub async fn clear(&self, keys: Vec<AttemptKey>) -> Result<Vec<AttemptKey>, ClientError> {
        {
            let mut fates = self.fates();
            for key in &keys {
                fates.remove(key);
            }
        }
        self.call(|client| {
            let keys = keys.clone();
            async move { client.clear(keys).await }
        })
        .await
    }

    /// Whether the jail that is connected makes attempts' directories itself.
    pub fn makes_rooms(&self) -> bool {
        self.shared.client.borrow().as_ref().is_some_and(Client::makes_rooms)
    }

    /// Whether attempts may stand in line in the jail that is connected.
    pub fn knows_lines(&self) -> bool {
        self.shared.client.borrow().as_ref().is_some_and(Client::knows_lines)
    }

    /// Every attempt that the jail knows, with where it stands.
    pub async fn list(&self) -> Result<Vec<crate::jail::Status>, ClientError> {
        self.call(|client| async move { client.list().await }).await
    }

    /// A leader has acknowledged a word of this node: what lives on a lease may live until this
    /// moment of the boot-time clock. Returns at once, whether or not the jail listens.
    pub fn prolong(&self, until: Duration) {
        self.shared.lease.send_if_modified(|lease| {
            let later = until > *lease;
            *lease = until.max(*lease);
            later
        });
    }

    /// Until when what lives on a lease may live. Right after the mesh was away no lease runs yet: this
    /// waits for the next word that a leader acknowledges.
    pub async fn lease(&self) -> Duration {
        let mut lease = self.shared.lease.subscribe();
        loop {
            let until = *lease.borrow_and_update();
            // The sender is ours: it is there for as long as this is.
            if until > clock::boot() || lease.changed().await.is_err() {
                return until;
            }
        }
    }

    /// Whether the jail ends what lives on a lease. While none is connected, the next one will.
    pub fn knows_leases(&self) -> bool {
        self.shared.client.borrow().as_ref().is_none_or(Client::knows_leases)
    }

    async fn pass_leases_on(self) {
        let mut lease = self.shared.lease.subscribe();
        while lease.changed().await.is_ok() {
            let until = *lease.borrow_and_update();
            let told = self.call(|client| async move {
                if client.knows_leases() { client.lease(until).await } else { Ok(()) }
            });
            match told.await {
                Ok(()) => {}
                Err(ClientError::Closed) => return,
                // What lives on a lease ends with the one that it has.
                Err(error) => warn!(%error, "the jail does not take a lease"),
            }
        }
    }

    /// What this machine can do.
    pub async fn probe(&self) -> Result<Probe, ClientError> {
        self.call(|client| async move { client.probe().await }).await
    }

    /// Whether a task can be given this directory.
    pub async fn try_mount(&self, mount: Mount) -> Result<(), ClientError> {
        self.call(|client| {
            let mount = mount.clone();
            async move { client.try_mount(mount).await }
        })
        .await
    }

    /// Ends the jail and everything in it; returns when it has gone.
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.shared.closing.send_replace(true);
        let Some(client) = self.shared.client.borrow().clone() else { return Ok(()) };
        let process = process(&client);
        match client.shutdown(true).await {
            // It may be gone before its answer was read: what counts is that it goes.
            Err(ClientError::Closed) if process.is_some() => {}
            asked => asked?,
        }
        wait_gone(process).await;
        Ok(())
    }

    /// Calls the jail; waits for the connection to be mended when there is none.
    async fn call<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut watch = self.shared.client.subscribe();
        loop {
            let client = match watch.wait_for(Option::is_some).await {
                Ok(client) => client.clone(),
                Err(_) => None,
            };
            let Some(client) = client else { return Err(ClientError::Closed) };
            let pid = client.jail_pid();
            match ask(client).await {
                Err(ClientError::Closed) if !*self.shared.closing.borrow() => {
                    // The keeper sees the end of the events as well, and clears it.
                    let gone = watch.wait_for(|now| now.as_ref().is_none_or(|now| now.jail_pid() != pid));
                    let _mended_or_late = tokio::time::timeout(Duration::from_secs(1), gone).await;
                }
                answer => return answer,
            }
        }
    }
}

/// The jail's process, while it is there.
fn process(jail: &Client) -> Option<OwnedFd> {
    let pid = Pid::from_raw(jail.jail_pid() as i32)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

async fn wait_gone(process: Option<OwnedFd>) {
    let Some(process) = process else { return };
    let gone = tokio::task::spawn_blocking(move || {
        let mut ready = [PollFd::new(&process, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, Some(&FAREWELL)))
    });
    if !matches!(gone.await, Ok(Ok(1..))) {
        warn!("the jail takes long to end: it goes on without this agent");
    }
}
