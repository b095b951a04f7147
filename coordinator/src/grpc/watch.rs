//! A watched job: the newest state, at most ten times a second, and its end at once.

use std::{sync::Arc, time::Duration};

use mesh_proto::v1::Job;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::convert;
use crate::engine::effect::JobView;

/// The shortest time between two states that are not final.
const PACE: Duration = Duration::from_millis(100);

/// Sends `job` as it was read, then what it changes to, until it is terminal.
pub async fn follow(
    mut job: Job,
    mut changes: watch::Receiver<Option<Arc<JobView>>>,
    out: mpsc::Sender<Result<Job, Status>>,
) {
    loop {
        if out.send(Ok(job.clone())).await.is_err() || job.state().is_terminal() {
            return;
        }
        let next = Instant::now() + PACE;
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = out.closed() => return,
            }
            if let Some(view) = changes.borrow_and_update().clone() {
                // A change that the read had seen already is no news.
                if newer(&job, &view) {
                    convert::apply(&mut job, &view);
                    break;
                }
            }
        }
        while !job.state().is_terminal() {
            match timeout_at(next, changes.changed()).await {
                Ok(Ok(())) => {
                    if let Some(view) = changes.borrow_and_update().clone() {
                        convert::apply(&mut job, &view);
                    }
                }
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
    }
}

/// A terminal state is never taken back by a change that came before it.
fn newer(job: &Job, view: &JobView) -> bool {
    !job.state().is_terminal() || view.row.state.is_terminal()
}
