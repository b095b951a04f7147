//! The output of attempts, on its way to the disk.

use std::{num::NonZeroUsize, pin::Pin, time::Duration};

use bytes::Bytes;
use lru::LruCache;
use mesh_proto::{
    ids::{AttemptKey, NodeId},
    v1::{OutputAck, TaskOutputRequest, TaskOutputResponse},
};
use tokio::{sync::mpsc, time::sleep};
use tonic::{Status, Streaming};
use tracing::warn;

use crate::{
    commit::Core,
    output::{Ack, OutputError, OutputStore},
    session::Sessions,
    spawn::spawn,
    store::Store,
};

/// Appends of output that are under way for one session.
const APPENDS: usize = 64;
/// Attempts of one stream that are remembered as the node's or not.
const ATTEMPTS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Wait before what the disk or the database could not do is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes the output of a session's attempts to disk.
pub(super) struct OutputTaker {
    pub node: NodeId,
    pub output: OutputStore,
    pub store: Store,
    pub core: Core,
}

/// An append whose place is settled; what it gives waits for the disk.
type Append = Pin<Box<dyn Future<Output = OutputAck> + Send>>;

impl OutputTaker {
    /// Until the session, the stream or its reader is over; the first message names the session.
    pub async fn run(
        self,
        sessions: &Sessions,
        mut stream: Streaming<TaskOutputRequest>,
        out: mpsc::Sender<Result<TaskOutputResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = stream.message().await? else { return Ok(()) };
        let live = sessions.check(self.node, &first.session_id)?;
        let (appends, queue) = mpsc::channel::<Append>(APPENDS);
        spawn("output acknowledgements", acknowledge(queue, out.clone()));
        tokio::select! {
            taken = self.take(first, stream, appends) => taken,
            () = live.over.cancelled() => Ok(()),
            () = out.closed() => Ok(()),
        }
    }

    async fn take(
        &self,
        first: TaskOutputRequest,
        mut stream: Streaming<TaskOutputRequest>,
        appends: mpsc::Sender<Append>,
    ) -> Result<(), Status> {
        // Whether an attempt is this node's, asked once each.
        let mut mine = LruCache::new(ATTEMPTS);
        let mut next = Some(first);
        while let Some(message) = next {
            // Whoever leads by now writes to the same files.
            self.core.leased().await;
            for chunk in message.chunks {
                let Ok(attempt) = AttemptKey::try_from(chunk.attempt) else { continue };
                let known = if let Some(known) = mine.get(&attempt) {
                    *known
                } else {
                    let known = self.is_mine(attempt).await;
                    mine.put(attempt, known);
                    known
                };
                let append = if known {
                    self.append(attempt, chunk.position, chunk.data).await
                } else {
                    Box::pin(std::future::ready(discard(attempt)))
                };
                if appends.send(append).await.is_err() {
                    return Ok(());
                }
            }
            next = stream.message().await?;
        }
        Ok(())
    }

    /// While the database does not answer the stream stays open, and waits.
    async fn is_mine(&self, attempt: AttemptKey) -> bool {
        loop {
            match self.store.attempt(attempt).await {
                Ok(row) => return row.is_some_and(|row| row.node == self.node),
                Err(error) => {
                    warn!(%attempt, error = &error as &dyn std::error::Error, "cannot look an attempt up yet");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Puts a piece in order behind those before it. What the disk cannot take now is tried
    /// again until it can: the agent keeps the rest meanwhile, and its credit bounds what is
    /// kept here.
    async fn append(&self, attempt: AttemptKey, position: u64, data: Bytes) -> Append {
        let output = self.output.clone();
        let first = output.append(attempt, position, data.clone()).await;
        Box::pin(async move {
            let mut outcome = settled(first).await;
            let mut behind_a_gap = false;
            loop {
                match outcome {
                    // A piece before it failed and went in late: this one has its place now.
                    Ok(Ack { gap: true, .. }) if !behind_a_gap => behind_a_gap = true,
                    Ok(ack) => {
                        return OutputAck {
                            attempt: Some(attempt.into()),
                            durable: ack.durable,
                            discard: false,
                        };
                    }
                    Err(error @ (OutputError::NoSpace | OutputError::Io(_) | OutputError::Closed)) => {
                        warn!(%attempt, error = &error as &dyn std::error::Error, "output cannot be kept yet");
                        sleep(RETRY).await;
                    }
                    Err(
                        error @ (OutputError::TooLong { .. }
                        | OutputError::Piece { .. }
                        | OutputError::Removed),
                    ) => {
                        warn!(%attempt, %error, "output is not taken");
                        return discard(attempt);
                    }
                }
                outcome = settled(output.append(attempt, position, data.clone()).await).await;
            }
        })
    }
}

async fn settled(
    append: Result<impl Future<Output = Result<Ack, OutputError>>, OutputError>,
) -> Result<Ack, OutputError> {
    append?.await
}

fn discard(attempt: AttemptKey) -> OutputAck {
    OutputAck { attempt: Some(attempt.into()), durable: 0, discard: true }
}

/// Sends acknowledgements in the order of the appends, together where several are ready, until
/// nobody hears them.
async fn acknowledge(
    mut queue: mpsc::Receiver<Append>,
    out: mpsc::Sender<Result<TaskOutputResponse, Status>>,
) {
    let speak = async {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, APPENDS).await > 0 {
            let mut acks = Vec::with_capacity(batch.len());
            for append in batch.drain(..) {
                acks.push(append.await);
            }
            if out.send(Ok(TaskOutputResponse { acks })).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = speak => {}
        () = out.closed() => {}
    }
}
