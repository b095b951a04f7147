//! What an agent says of its attempts.

use std::sync::Arc;

use mesh_proto::{
    ids::NodeId,
    v1::{AttemptEvent, Progress, TaskResultRequest, TaskResultResponse, attempt_event},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::attempt_key;
use crate::{
    commit::Core,
    engine::{event::Event, types::Confined},
    grpc::convert,
    session::{Sessions, speak_acks},
    spawn::spawn,
    store::Store,
};

/// Longest progress message, in bytes.
const MAX_PROGRESS: usize = 200;

/// Takes a session's words on its attempts.
pub(super) struct ResultTaker {
    pub node: NodeId,
    pub core: Core,
    pub sessions: Sessions,
    pub store: Store,
}

impl ResultTaker {
    /// Until the session, the stream or its reader is over; the first message names the session.
    pub async fn run(
        self,
        mut stream: Streaming<TaskResultRequest>,
        out: mpsc::Sender<Result<TaskResultResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = stream.message().await? else { return Ok(()) };
        let live = self.sessions.check(self.node, &first.session_id)?;
        let acks = self.sessions.take_acks(&live)?;
        spawn("acknowledgements", speak_acks(live.clone(), acks, out.clone(), self.store.clone()));
        tokio::select! {
            taken = self.take(first, stream) => taken,
            () = live.over.cancelled() => Ok(()),
            () = out.closed() => Ok(()),
        }
    }

    async fn take(
        &self,
        first: TaskResultRequest,
        mut stream: Streaming<TaskResultRequest>,
    ) -> Result<(), Status> {
        let mut next = Some(first);
        while let Some(message) = next {
            for event in message.events {
                self.event(event).await?;
            }
            next = stream.message().await?;
        }
        Ok(())
    }

    /// Takes one word on an attempt. While the coordinator recovers it waits here, so that the
    /// stream stays open; what was taken before and is lost with the old memory, the agent says
    /// again when it registers again.
    async fn event(&self, event: AttemptEvent) -> Result<(), Status> {
        let attempt = attempt_key(event.attempt)?;
        let node = self.node;
        let event = match event.event {
            Some(attempt_event::Event::Started(started)) => {
                let sandbox = Confined { level: convert::level(started.sandbox), limits: started.limits() };
                Event::AttemptStarted { node, attempt, sandbox }
            }
            Some(attempt_event::Event::Progress(progress)) => {
                self.sessions.set_progress(node, attempt, progress.percent, message(&progress));
                return Ok(());
            }
            Some(attempt_event::Event::Ended(ended)) => {
                Event::AttemptEnded { node, attempt, end: Arc::new(convert::end(ended)?) }
            }
            Some(attempt_event::Event::Withdrawn(_)) => Event::AttemptWithdrawn { node, attempt },
            None => return Ok(()),
        };
        Ok(self.core.tell_in_time(event).await?)
    }
}

/// A progress message, harmless on a terminal and bounded.
fn message(progress: &Progress) -> String {
    let mut message = mesh_proto::names::escape(&progress.message);
    message.truncate(message.floor_char_boundary(MAX_PROGRESS));
    message
}
