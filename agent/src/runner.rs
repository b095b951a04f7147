//! One attempt, from its assignment to its end: write it down, stage its inputs, have the jail
//! start its process, follow it, collect its outputs.
//!
//! May enter: the order of things and what each failure is called. Each step's work is in a room
//! of its own (`stage`, `jailer`, `progress`, `collect`, `blobs/`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::{Assignment, Cause, Ended};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::attempts::{Input, Stop};
use crate::beneath::Owner;
use crate::blobs::Blobs;
use crate::command;
use crate::config::Config;
use crate::hub::Hub;
use crate::jail::{self, ClientError, ExitCause, ExitRecord};
use crate::jailer::{Fate, Jailer};
use crate::node::NodeRpc;
use crate::progress;
use crate::records::Records;
use crate::stage;

mod outputs;
mod prepare;
mod words;

use words::{end, of_record, with_sources};
pub use words::{infra, started};

/// A start is told after this time, unless its end has come by then: a short task is one commit
/// of the coordinator less, and nobody sees a start that early.
const LINGER: Duration = Duration::from_millis(5);
/// How long a process that nobody wants any more has after SIGTERM.
const DISCARD_GRACE: Duration = Duration::from_secs(1);
/// The largest end that is sent, in bytes: a gRPC message holds 4 MiB.
const MAX_END: usize = 3 * 1024 * 1024;

/// What every runner works with.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    pub node_name: Arc<str>,
    pub jail: Jailer,
    pub blobs: Arc<Blobs>,
    pub records: Records,
    pub rpc: NodeRpc,
    /// Where work directories are.
    pub work_root: Arc<PathBuf>,
    pub strongest: jail::Level,
    /// What holds strict tasks to their limits.
    pub limits: jail::Limits,
    /// What a task may use that says nothing, in bytes.
    pub memory_per_slot: u64,
    pub root: bool,
}

/// What is to be run.
#[derive(Debug)]
pub struct Job {
    pub key: AttemptKey,
    pub slot: u32,
    pub assignment: Arc<Assignment>,
    /// Its process was started by an earlier daemon.
    pub resume: bool,
    /// It is to stand in line in the jail, behind this attempt.
    pub after: Option<AttemptKey>,
}

/// How a step ended that did not lead on.
enum Cut {
    /// This is the end.
    End(Box<Ended>),
    /// The runner was asked to stop.
    Stopped(Stop),
    /// It was to stand in line, and has not begun.
    Returned,
}

impl Context {
    /// Who tasks of a slot run as; none when the agent is no root: as the agent itself.
    fn owner(&self, slot: u32) -> Option<Owner> {
        let uid = self.config.uid_base + slot;
        self.root.then_some(Owner { uid, gid: uid })
    }

    /// The work directory of an attempt.
    fn work_dir(&self, key: AttemptKey) -> PathBuf {
        self.work_root.join(key.to_string()).join("work")
    }

    /// Removes everything that is left of attempts, in the jail and on disk.
    pub async fn remove(&self, keys: Vec<AttemptKey>) {
        let left = match self.jail.clear(keys.clone()).await {
            Ok(left) => left,
            Err(error) => {
                debug!(%error, "the jail does not forget");
                keys
            }
        };
        if left.is_empty() {
            return;
        }
        let (records, works) = (self.records.clone(), self.work_root.clone());
        let removed = tokio::task::spawn_blocking(move || {
            for key in left {
                let work = crate::remove::remove_tree(&works.join(key.to_string()));
                if let Err(error) = work.and(records.remove(key)) {
                    warn!(attempt = %key, %error, "cannot remove all of an attempt's files");
                }
            }
        });
        if let Err(error) = removed.await {
            warn!(%error, "removing attempts' files failed");
        }
    }

    /// Whether the jail makes the directory of such an attempt in the moment that it starts it: there
    /// is nothing to put there but what the jail is told.
    fn is_plain(&self, assignment: &Assignment) -> bool {
        assignment.inputs.is_empty()
            && !assignment.inputs_listed
            && !assignment.outputs.iter().any(|output| output.ends_with('/'))
            && *self.work_root == self.config.data_dir.join("attempts")
            && self.jail.makes_rooms()
    }
}

/// Runs an attempt to its end; what is returned goes to the table.
pub async fn run(context: &Context, hub: &Arc<Hub>, job: Job, stop: watch::Receiver<Option<Stop>>) -> Input {
    let key = job.key;
    let mut runner = Runner { context, hub, job, stop, recorded: false };
    let ended = match runner.go().await {
        Ok(ended) | Err(Cut::End(ended)) => ended,
        Err(Cut::Stopped(Stop::Discard)) => return Input::Gone(key),
        Err(Cut::Returned) => {
            context.jail.unfollow(key);
            return Input::Returned(key);
        }
        Err(Cut::Stopped(Stop::Cancel)) => Box::new(end(Cause::Cancelled, "cancelled".to_owned())),
        Err(Cut::Stopped(Stop::Shutdown)) => Box::new(infra("the agent was stopped".to_owned())),
    };
    if runner.discarded() {
        return Input::Gone(key);
    }
    if !runner.recorded {
        let (records, written) = (context.records.clone(), ended.clone());
        let (slot, assignment) = (runner.job.slot, runner.job.assignment.clone());
        let write = tokio::task::spawn_blocking(move || {
            if !records.dir(key).exists() {
                // It ended before the jail was asked to begin it.
                records.write(key, slot, &assignment)?;
            }
            records.write_end(key, &written)
        });
        if let Ok(Err(error)) = write.await {
            // Not fatal: after a restart the end is worked out again from the exit record.
            warn!(%error, "cannot write an attempt's end down");
        }
    }
    if ended.cause() == Cause::Exit && ended.exit_code == 0 {
        debug!("attempt completed");
    } else {
        info!(cause = ?ended.cause(), code = ended.exit_code, "attempt ended");
    }
    Input::Ended(key, ended)
}

struct Runner<'a> {
    context: &'a Context,
    hub: &'a Arc<Hub>,
    job: Job,
    stop: watch::Receiver<Option<Stop>>,
    /// The jail's exit record says all of the end: it need not be written down once more.
    recorded: bool,
}

impl Runner<'_> {
    async fn go(&mut self) -> Result<Box<Ended>, Cut> {
        let key = self.job.key;
        let dir = self.context.records.dir(key);
        if self.job.resume {
            let fate = self.context.jail.follow(key, dir, true).await;
            return self.follow(fate).await;
        }
        let plain = self.context.is_plain(&self.job.assignment);
        if self.job.after.is_some() && !(plain && self.context.jail.knows_lines()) {
            return Err(Cut::Returned);
        }
        let level = if plain { self.level()? } else { self.prepare().await? };
        let fate = self.context.jail.follow(key, dir.clone(), false).await;
        if !plain {
            self.context.records.write_exec(key).map_err(|error| Cut::infra(&error))?;
        }
        let owner = self.context.owner(self.job.slot);
        // In this order: as long as the lease runs that there was while nobody had asked it to stop,
        // no other attempt of the task can have begun. The jail looks at the clock last.
        let mut stop = self.stop.clone();
        let lease =
            async { if self.lives_on_lease() { Some(self.context.jail.lease().await) } else { None } };
        let lease = tokio::select! {
            biased;
            stop = stopped(&mut stop) => return Err(Cut::Stopped(stop)),
            lease = lease => lease,
        };
        if let Some(stop) = *self.stop.borrow() {
            return Err(Cut::Stopped(stop));
        }
        let mut request = command::request(self.context, &self.job, level, owner, lease)
            .map_err(|why| Cut::End(Box::new(end(Cause::Sandbox, why))))?;
        if plain {
            let record = self.context.records.begun(self.job.slot, &self.job.assignment);
            request.room = Some(jail::Room { record, script: self.job.assignment.script.clone() });
        }
        self.context.jail.launch(request).await.map_err(|error| Cut::infra(&error))?;
        self.follow(fate).await
    }

    /// Waits for the process's end, telling of its start and progress and passing stops on.
    async fn follow(&mut self, mut fate: watch::Receiver<Fate>) -> Result<Box<Ended>, Cut> {
        let key = self.job.key;
        let mut told = false;
        let mut tell_at: Option<Instant> = None;
        let mut progress = progress::Watcher::new(self.context.work_dir(key));
        let mut tick = tokio::time::interval(self.context.config.timings.progress_poll);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut passed_on: Option<Stop> = None;
        let record = loop {
            let now = fate.borrow_and_update().clone();
            if let (Some(process), false) = (now.started, told) {
                let start = started(&self.job.assignment, process, self.context.limits);
                if tell_at.is_none() {
                    self.hub.handle(Input::Began(key, start));
                }
                if *tell_at.get_or_insert_with(|| Instant::now() + LINGER) <= Instant::now() {
                    told = true;
                    self.hub.handle(Input::Started(key, start));
                }
            }
            if let Some(record) = now.ended {
                // What it wrote last, since the last look.
                if !record.untouched
                    && let Some(progress) = progress.look()
                {
                    self.hub.handle(Input::Progress(key, progress));
                }
                break record;
            }
            if now.returned {
                return Err(Cut::Returned);
            }
            if now.lost {
                return self.lost().await;
            }
            let wanted = *self.stop.borrow_and_update();
            if wanted > passed_on {
                passed_on = wanted;
                self.pass_on(wanted.unwrap_or(Stop::Cancel)).await;
            }
            tokio::select! {
                changed = fate.changed() => {
                    if changed.is_err() {
                        return Err(Cut::End(Box::new(infra("the agent lost track of it".to_owned()))));
                    }
                }
                Ok(()) = self.stop.changed() => {}
                () = sleep_until(tell_at.unwrap_or_else(Instant::now)), if tell_at.is_some() && !told => {}
                _ = tick.tick(), if told => {
                    if let Some(progress) = progress.look() {
                        self.hub.handle(Input::Progress(key, progress));
                    }
                }
            }
        };
        self.finish(record).await
    }

    async fn pass_on(&self, stop: Stop) {
        let grace = Duration::from_millis(self.job.assignment.grace_ms);
        let grace = match stop {
            Stop::Cancel | Stop::Shutdown => grace,
            Stop::Discard => grace.min(DISCARD_GRACE),
        };
        match self.context.jail.kill(self.job.key, grace).await {
            Ok(()) => {}
            // It has just been returned.
            Err(ClientError::Refused(reason)) if self.job.after.is_some() => debug!(reason, "nothing to end"),
            Err(error) => warn!(%error, "the jail does not end the attempt"),
        }
    }

    /// What the process's end means, with its outputs when it succeeded.
    async fn finish(&mut self, record: ExitRecord) -> Result<Box<Ended>, Cut> {
        if self.discarded() {
            return Err(Cut::Stopped(Stop::Discard));
        }
        let stop = *self.stop.borrow();
        self.recorded = stop.is_none() && self.job.assignment.outputs.is_empty();
        let mut ended = of_record(&record, stop);
        let succeeded = record.cause == ExitCause::Exited(0) && ended.cause() == Cause::Exit;
        if succeeded && !self.job.assignment.outputs.is_empty() {
            let mut stop = self.stop.clone();
            let collected = tokio::select! {
                biased;
                stop = cancelled(&mut stop) => Err(Cut::Stopped(stop)),
                collected = self.collect() => collected,
            };
            match collected {
                Ok(outputs) => ended.outputs = outputs,
                Err(Cut::End(failed)) => {
                    ended.cause = failed.cause;
                    ended.exit_code = 0;
                    ended.message = failed.message;
                }
                Err(cut @ (Cut::Returned | Cut::Stopped(Stop::Discard))) => return Err(cut),
                Err(Cut::Stopped(Stop::Cancel | Stop::Shutdown)) => {
                    ended.cause = Cause::Cancelled.into();
                    "cancelled while its outputs were collected".clone_into(&mut ended.message);
                }
            }
        }
        if prost::Message::encoded_len(&ended) > MAX_END {
            ended.outputs.clear();
            ended.cause = Cause::Output.into();
            "the names of the outputs are too long together".clone_into(&mut ended.message);
        }
        self.with_output(ended, record.spool_len).await
    }

    /// The end of an attempt that died with its jail; what it wrote until then is kept.
    async fn lost(&self) -> Result<Box<Ended>, Cut> {
        let spool = self.context.records.dir(self.job.key).join(jail::protocol::SPOOL);
        let length = tokio::fs::metadata(spool).await.map_or(0, |meta| meta.len());
        let why = "the jail that ran this attempt is gone, and nobody knows how far it came";
        self.with_output(infra(why.to_owned()), length).await
    }

    /// Says how much output there is, and gives it along when it is short and was not streamed.
    async fn with_output(&self, mut ended: Ended, spool_len: u64) -> Result<Box<Ended>, Cut> {
        ended.output_length = spool_len;
        if self.hub.seal(self.job.key, spool_len) {
            ended.output = self.spool(spool_len).await?;
        }
        Ok(Box::new(ended))
    }

    /// The whole of a short spool.
    async fn spool(&self, length: u64) -> Result<Bytes, Cut> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let path = self.context.records.dir(self.job.key).join(jail::protocol::SPOOL);
        let mut bytes = tokio::fs::read(path).await.map_err(|error| Cut::infra(&error))?;
        bytes.truncate(length as usize);
        Ok(bytes.into())
    }

    fn discarded(&self) -> bool {
        *self.stop.borrow() == Some(Stop::Discard)
    }
}

impl Cut {
    fn infra(error: &impl std::error::Error) -> Self {
        Self::End(Box::new(infra(with_sources(error))))
    }

    fn stage(error: &stage::StageError) -> Self {
        let cause = if error.is_infra() { Cause::Infra } else { Cause::Staging };
        Self::End(Box::new(end(cause, error.to_string())))
    }
}

/// The result of blocking work; its panic is the agent's fault, not the task's.
fn flat<T>(joined: Result<T, tokio::task::JoinError>) -> Result<T, Cut> {
    joined.map_err(|error| Cut::infra(&error))
}

async fn stopped(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    loop {
        if let Some(stop) = *stop.borrow_and_update() {
            return stop;
        }
        if stop.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A stop that also ends the collecting: an agent that shuts down finishes it first.
async fn cancelled(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    let wanted = stop.wait_for(|stop| *stop > Some(Stop::Shutdown)).await.map(|stop| *stop);
    match wanted {
        Ok(stop) => stop.unwrap_or(Stop::Cancel),
        Err(_) => std::future::pending().await,
    }
}
