//! Who watches which job, and what they are told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_proto::ids::{AttemptKey, JobNumber};
use tokio::sync::{broadcast, watch};

use crate::engine::effect::JobView;

/// News of attempts that a slow follower may lag behind; then it looks them up.
const NEWS: usize = 1024;

/// An attempt of a followed job began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskNews {
    Placed(AttemptKey),
    Ended(AttemptKey),
}

#[derive(Debug)]
struct Entry {
    view: watch::Sender<Option<Arc<JobView>>>,
    news: broadcast::Sender<TaskNews>,
}

/// The watchers of jobs. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Mutex<HashMap<JobNumber, Entry>>>);

impl Hub {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobNumber, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of a job from now on. Nothing in place of its state: look it up.
    #[must_use]
    pub fn watch(&self, job: JobNumber) -> watch::Receiver<Option<Arc<JobView>>> {
        let mut entries = self.lock();
        sweep(&mut entries);
        entry(&mut entries, job).view.subscribe()
    }

    /// Beginnings and ends of a job's attempts from now on.
    #[must_use]
    pub fn follow(&self, job: JobNumber) -> broadcast::Receiver<TaskNews> {
        let mut entries = self.lock();
        sweep(&mut entries);
        entry(&mut entries, job).news.subscribe()
    }

    /// Memory was read anew: what was committed without being said has to be looked up.
    pub fn look_again(&self) {
        for entry in self.lock().values() {
            entry.view.send_replace(None);
        }
    }

    pub fn changed(&self, view: &Arc<JobView>) {
        if let Some(entry) = self.lock().get(&view.row.number) {
            entry.view.send_replace(Some(Arc::clone(view)));
        }
    }

    pub fn news(&self, news: TaskNews) {
        let (TaskNews::Placed(attempt) | TaskNews::Ended(attempt)) = news;
        if let Some(entry) = self.lock().get(&attempt.task.job) {
            // Nobody follows: nobody is told.
            let _ = entry.news.send(news);
        }
    }

    /// Jobs that are kept in mind.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> usize {
        self.lock().len()
    }
}

fn entry(entries: &mut HashMap<JobNumber, Entry>, job: JobNumber) -> &Entry {
    entries
        .entry(job)
        .or_insert_with(|| Entry { view: watch::Sender::new(None), news: broadcast::Sender::new(NEWS) })
}

/// Forgets jobs that nobody watches any more.
fn sweep(entries: &mut HashMap<JobNumber, Entry>) {
    entries.retain(|_, entry| entry.view.receiver_count() > 0 || entry.news.receiver_count() > 0);
}
