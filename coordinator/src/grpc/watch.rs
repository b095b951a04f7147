//! A watched job: the newest state, at most ten times a second, and its end at once.

use std::{sync::Arc, time::Duration};

use mesh_proto::{ids::JobNumber, v1::Job};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tonic::Status;

use super::convert;
use crate::{engine::effect::JobView, store::Store};

/// The shortest time between two states that are not final.
const PACE: Duration = Duration::from_millis(100);
/// Wait before a database that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Changes of a job; nothing in place of its state says: look it up.
pub type Changes = watch::Receiver<Option<Arc<JobView>>>;

/// Sends `job` as it was read, then what it changes to, until it is terminal.
pub async fn follow(
    store: Store,
    mut job: Job,
    mut changes: Changes,
    out: mpsc::Sender<Result<Job, Status>>,
) {
    loop {
        let over = job.state().is_terminal();
        if out.send(Ok(job.clone())).await.is_err() || over {
            return;
        }
        let next = Instant::now() + PACE;
        tokio::select! {
            heard = changes.changed() => if heard.is_err() { return },
            () = out.closed() => return,
        }
        take(&store, &mut job, &mut changes).await;
        while !job.state().is_terminal() {
            match timeout_at(next, changes.changed()).await {
                Ok(Ok(())) => take(&store, &mut job, &mut changes).await,
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
    }
}

/// Brings a job up to its newest change.
async fn take(store: &Store, job: &mut Job, changes: &mut Changes) {
    let view = changes.borrow_and_update().clone();
    if let Some(view) = view {
        convert::apply(job, &view);
        return;
    }
    // The coordinator read its memory anew: what it committed last was never said.
    loop {
        match read(store, JobNumber(job.number)).await {
            Ok(Some(read)) => *job = read,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a watched job yet");
                sleep(RETRY).await;
                continue;
            }
        }
        return;
    }
}

/// A job with its tasks, as it is stored.
pub async fn read(store: &Store, number: JobNumber) -> Result<Option<Job>, crate::store::StoreError> {
    let Some(record) = store.job(number).await? else { return Ok(None) };
    let definitions = store.definitions(number).await?;
    Ok(Some(convert::job(&record, &definitions)))
}
