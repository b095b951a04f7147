//! One attempt's output on its way to a reader.

use std::{sync::Arc, time::Duration};

use mesh_proto::{
    ids::AttemptKey,
    v1::{LogChunk, StreamLogsResponse},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use super::{Logs, Out, Over, Selection};
use crate::{
    output::{LogDecoder, OutputError, Piece, Reader},
    store::attempts::OutputRecord,
};

/// What is read at once from a spool, in bytes.
const READ: usize = 256 * 1024;
/// How often a waiting tail asks whether its attempt ended, when nothing tells it: as where the
/// coordinator itself declared the end.
const LOOK: Duration = Duration::from_secs(2);
/// How long after the end of an attempt, or after the last of its output that came, more of it
/// may still be on its way; a node that goes away takes it along.
const LATE: Duration = Duration::from_secs(30);

/// Output that passed its limit is told to be cut when so long nothing more came of it.
const SETTLED: Duration = Duration::from_secs(1);

/// Sends the output of attempts to one reader.
pub(super) struct Tail {
    logs: Logs,
    selection: Arc<Selection>,
    out: Out,
}

/// What is known of an attempt's end.
struct End {
    /// Bytes of the spool.
    length: u64,
    /// When it is too late for more.
    until: Instant,
}

impl End {
    fn of(record: &OutputRecord) -> Option<Self> {
        let left = LATE.saturating_sub(record.ended_for?);
        Some(Self { length: record.length, until: Instant::now() + left })
    }
}

impl Tail {
    pub fn new(logs: Logs, selection: Arc<Selection>, out: Out) -> Self {
        Self { logs, selection, out }
    }

    /// Sends what there is of an attempt, which is all of it once it ended; with `news`, which
    /// wakes it when the attempt may have ended, also what comes until then.
    pub async fn run(&self, record: OutputRecord, news: Option<Arc<Notify>>) -> Result<(), Over> {
        let attempt = record.attempt;
        if let Some(inline) = &record.inline {
            return self.send(attempt, LogDecoder::whole(self.selection.streams, inline)).await;
        }
        let mut end = End::of(&record);
        let mut decoder = LogDecoder::new(self.selection.streams, 0);
        let mut reader = match self.logs.output.reader(attempt).await {
            Ok(reader) => reader,
            Err(error) => return self.unreadable(attempt, &error).await,
        };
        loop {
            if let Some(error) = self.copy(attempt, &mut reader, &mut decoder).await? {
                return self.unreadable(attempt, &error).await;
            }
            let position = decoder.position();
            match &mut end {
                Some(end) if position >= end.length => return Ok(()),
                Some(end) => {
                    // The result came, and its output is still on its way, unless it is too long.
                    let cut = self.logs.output.cuts(position, end.length);
                    let until = if cut { end.until.min(Instant::now() + SETTLED) } else { end.until };
                    tokio::select! {
                        grown = reader.grown(position) => match grown {
                            Ok(_) => end.until = end.until.max(Instant::now() + LATE),
                            Err(error) => return self.unreadable(attempt, &error).await,
                        },
                        () = sleep_until(until) => return self.missing(attempt, cut).await,
                        () = self.out.closed() => return Err(Over::Unread),
                    }
                }
                None => {
                    let Some(news) = &news else { return Ok(()) };
                    let looks = tokio::select! {
                        grown = timeout(LOOK, reader.grown(position)) => match grown {
                            Ok(Ok(_)) => false,
                            Ok(Err(error)) => return self.unreadable(attempt, &error).await,
                            Err(_) => true,
                        },
                        () = news.notified() => true,
                        () = self.out.closed() => return Err(Over::Unread),
                    };
                    // If the database is away, the next look asks again.
                    if looks && let Ok(again) = self.logs.store.output(attempt.task, attempt.number).await {
                        let Some(again) = again else { return Ok(()) };
                        if let Some(inline) = &again.inline {
                            let pieces = LogDecoder::whole(self.selection.streams, inline);
                            return self.send(attempt, pieces).await;
                        }
                        end = End::of(&again);
                    }
                }
            }
        }
    }

    /// Sends what can be read now; gives back what stands in the way.
    async fn copy(
        &self,
        attempt: AttemptKey,
        reader: &mut Reader,
        decoder: &mut LogDecoder,
    ) -> Result<Option<OutputError>, Over> {
        loop {
            match reader.read(decoder.position(), READ).await {
                Ok(part) if part.is_empty() => return Ok(None),
                Ok(part) => self.send(attempt, decoder.push(&part)).await?,
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    async fn send(&self, attempt: AttemptKey, pieces: Vec<Piece>) -> Result<(), Over> {
        let Some((name, array)) = self.selection.name(attempt.task.task) else { return Ok(()) };
        let chunks: Vec<LogChunk> =
            pieces.into_iter().map(|piece| piece.into_chunk(name, array, attempt)).collect();
        if chunks.is_empty() {
            return Ok(());
        }
        self.out.send(Ok(StreamLogsResponse { chunks })).await.map_err(|_| Over::Unread)
    }

    async fn unreadable(&self, attempt: AttemptKey, error: &OutputError) -> Result<(), Over> {
        tracing::warn!(%attempt, error = error as &dyn std::error::Error, "output cannot be read");
        self.missing(attempt, false).await
    }

    /// Says that more was written than is here.
    async fn missing(&self, attempt: AttemptKey, cut: bool) -> Result<(), Over> {
        let Some((name, array)) = self.selection.name(attempt.task.task) else { return Ok(()) };
        let chunk = LogChunk {
            task: name.to_owned(),
            index: attempt.task.index,
            array,
            attempt: attempt.number,
            missing: true,
            cut,
            ..LogChunk::default()
        };
        let message = StreamLogsResponse { chunks: vec![chunk] };
        self.out.send(Ok(message)).await.map_err(|_| Over::Unread)
    }
}
