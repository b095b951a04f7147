//! Following a job: each attempt's output as it comes, until the job is over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mesh_proto::ids::{AttemptKey, JobNumber};
use tokio::{
    sync::{Notify, broadcast, watch},
    task::JoinSet,
};

use super::{Logs, Out, Over, Selection, Tail, after};
use crate::{engine::effect::JobView, session::TaskNews, spawn::spawn_owned, store::attempts::OutputRecord};

/// Attempts that are followed at the same time; others wait their turn.
const TAILS: usize = 64;

/// One follower.
pub(super) struct Follower {
    logs: Logs,
    job: JobNumber,
    selection: Arc<Selection>,
    out: Out,
    news: broadcast::Receiver<TaskNews>,
    changes: watch::Receiver<Option<Arc<JobView>>>,
    tails: JoinSet<(AttemptKey, Result<(), Over>)>,
    /// Wakes the tail of an attempt that may have ended.
    wakes: HashMap<AttemptKey, Arc<Notify>>,
    seen: HashSet<AttemptKey>,
}

impl Follower {
    /// Listens from now on, so that nothing falls between this and the first look.
    pub fn new(logs: Logs, job: JobNumber, selection: Arc<Selection>, out: Out) -> Self {
        let (news, changes) = (logs.hub.follow(job), logs.hub.watch(job));
        Self {
            logs,
            job,
            selection,
            out,
            news,
            changes,
            tails: JoinSet::new(),
            wakes: HashMap::new(),
            seen: HashSet::new(),
        }
    }

    /// What there is and what comes, until the job is over.
    pub async fn run(mut self) -> Result<(), Over> {
        let mut over = self.look().await?;
        while !(over && self.tails.is_empty()) {
            let look = tokio::select! {
                Some(ended) = self.tails.join_next(), if !self.tails.is_empty() => {
                    self.tail_ended(ended)?;
                    false
                }
                heard = self.news.recv() => match heard {
                    Ok(TaskNews::Placed(attempt)) => {
                        self.placed(attempt).await?;
                        false
                    }
                    Ok(TaskNews::Ended(attempt)) => {
                        if let Some(wake) = self.wakes.get(&attempt) {
                            wake.notify_one();
                        }
                        false
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                heard = self.changes.changed(), if !over => {
                    if heard.is_err() {
                        return Ok(());
                    }
                    // A last look, for nothing begins after the job's end; or a look because
                    // nobody knows what was missed.
                    self.changes.borrow_and_update().as_ref().is_none_or(|view| view.row.state.is_terminal())
                }
                () = self.out.closed() => return Err(Over::Unread),
            };
            if look {
                over = self.look().await?;
            }
        }
        Ok(())
    }

    /// Follows every selected attempt that there is, has each tail look whether it ended, and
    /// says whether the job is over.
    async fn look(&mut self) -> Result<bool, Over> {
        let record = self.logs.store.job(self.job).await?;
        let over = record.is_none_or(|record| record.state.is_terminal());
        for wake in self.wakes.values() {
            wake.notify_one();
        }
        let mut from = Some(self.selection.start());
        while let Some(next) = from {
            let keys = self.logs.tasks(self.job, &self.selection, next).await?;
            for key in &keys {
                if let Some(record) = self.logs.store.output(*key, self.selection.attempt).await? {
                    self.tail(record).await?;
                }
            }
            from = after(&self.selection, &keys);
        }
        Ok(over)
    }

    async fn placed(&mut self, attempt: AttemptKey) -> Result<(), Over> {
        let wanted = self.selection.takes(attempt.task)
            && (self.selection.attempt == 0 || self.selection.attempt == attempt.number);
        if wanted && let Some(record) = self.logs.store.output(attempt.task, attempt.number).await? {
            self.tail(record).await?;
        }
        Ok(())
    }

    /// Begins to follow an attempt, once there is room for it.
    async fn tail(&mut self, record: OutputRecord) -> Result<(), Over> {
        let attempt = record.attempt;
        if !self.seen.insert(attempt) {
            return Ok(());
        }
        while self.tails.len() >= TAILS {
            let Some(ended) = self.tails.join_next().await else { break };
            self.tail_ended(ended)?;
        }
        let wake = Arc::new(Notify::new());
        self.wakes.insert(attempt, Arc::clone(&wake));
        let tail = Tail::new(self.logs.clone(), Arc::clone(&self.selection), self.out.clone());
        let work = spawn_owned("tail", async move { tail.run(record, Some(wake)).await });
        self.tails.spawn(async move { (attempt, work.await.unwrap_or(Err(Over::Unread))) });
        Ok(())
    }

    fn tail_ended(
        &mut self,
        ended: Result<(AttemptKey, Result<(), Over>), tokio::task::JoinError>,
    ) -> Result<(), Over> {
        let (attempt, ended) = ended.map_err(|_| Over::Unread)?;
        self.wakes.remove(&attempt);
        ended
    }
}
