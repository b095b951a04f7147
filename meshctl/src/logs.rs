//! The output of tasks: fetched or followed, and written as people and programs want it.
//!
//! One task: its bytes go to the descriptors that it wrote them to. Several: whole lines,
//! each with `name.index| ` before it. A reader never holds more than 16 MiB of
//! unfinished lines.

mod write;

use std::{
    cell::Cell,
    collections::HashMap,
    io::IsTerminal as _,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use mesh_proto::v1::{self, OutputStream};
use tokio::time::{sleep, timeout};
use tonic::Status;

pub use self::write::{Descriptors, Style, Writer};
use crate::{
    client::{Client, Patience},
    error::CliError,
    output::{Out, note},
    reference::Selection,
    watch,
};

/// How long the log may end before its job does.
const ENDED_AHEAD: Duration = Duration::from_secs(1);
/// How long the log of a job that has ended may say nothing and not end.
const SILENCE: Duration = Duration::from_mins(1);

/// Whose output is wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub job: u64,
    pub selection: Selection,
    /// 0: the latest.
    pub attempt: u32,
    /// Go on until the job has ended and its output is all there.
    pub follow: bool,
    /// Ride out a restart of the coordinator for as long as it takes.
    pub patient: bool,
    pub only: Option<OutputStream>,
}

impl Request {
    fn message(&self) -> v1::StreamLogsRequest {
        v1::StreamLogsRequest {
            job: self.job.to_string(),
            task: self.selection.task.clone(),
            index: self.selection.index,
            attempt: self.attempt,
            follow: self.follow,
            stdout_only: self.only == Some(OutputStream::Stdout),
            stderr_only: self.only == Some(OutputStream::Stderr),
        }
    }
}

/// How output looks in `out` when `count` tasks are selected.
pub fn style(out: Out, count: u64, to: Descriptors) -> Style {
    if out.is_json() {
        Style::Json
    } else {
        let escape = match to {
            Descriptors::Own => [std::io::stdout().is_terminal(), std::io::stderr().is_terminal()],
            Descriptors::Error => [std::io::stderr().is_terminal(); 2],
        };
        if count == 1 { Style::Raw { escape } } else { Style::Lines { escape } }
    }
}

/// Reads one job's output; remembers how far it came, so that a lost connection is taken up
/// again and nothing is written twice.
struct Reader<'a> {
    client: &'a Client,
    request: Request,
    positions: Positions,
    /// When the last of it came.
    latest: Rc<Cell<Instant>>,
}

enum Broken {
    Local(CliError),
    Remote(Status),
}

impl<'a> Reader<'a> {
    fn new(client: &'a Client, request: Request, latest: Rc<Cell<Instant>>) -> Self {
        Self { client, request, positions: Positions::default(), latest }
    }

    /// Writes the output that is wanted, and with `follow` what is still to come.
    async fn read(&mut self, writer: &mut Writer) -> Result<(), CliError> {
        let patience = if self.request.patient { Patience::endless } else { Patience::short };
        let mut patience = patience(self.client);
        let result = loop {
            match self.once(writer, &mut patience).await {
                Ok(()) => break Ok(()),
                Err(Broken::Local(error)) => break Err(error),
                Err(Broken::Remote(status)) => {
                    if let Err(error) = patience.failed(status).await {
                        break Err(error);
                    }
                }
            }
        };
        // What is held back of a last line is output too.
        let finished = writer.finish();
        result.and(finished)
    }

    async fn once(&mut self, writer: &mut Writer, patience: &mut Patience<'_>) -> Result<(), Broken> {
        let request = self.request.message();
        let mut stream = self.client.jobs().stream_logs(request).await.map_err(Broken::Remote)?.into_inner();
        while let Some(message) = stream.message().await.map_err(Broken::Remote)? {
            patience.succeeded();
            self.latest.set(Instant::now());
            for chunk in message.chunks {
                if let Some(chunk) = self.positions.fresh(chunk) {
                    writer.chunk(&chunk).map_err(Broken::Local)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the output that is wanted, once.
pub async fn stream(client: &Client, request: Request, writer: &mut Writer) -> Result<(), CliError> {
    Reader::new(client, request, Rc::new(Cell::new(Instant::now()))).read(writer).await
}

/// Follows the output until the job has ended and its output is all there. `seen` gets each
/// state of the job.
pub async fn until_done(
    client: &Client,
    request: Request,
    writer: &mut Writer,
    seen: impl FnMut(&v1::Job),
) -> Result<v1::Job, CliError> {
    let watching = watch::until_done(client, request.job, seen);
    let mut watching = pin!(watching);
    let latest = Rc::new(Cell::new(Instant::now()));
    let mut reader = Reader::new(client, request, Rc::clone(&latest));
    loop {
        let mut reading = pin!(reader.read(writer));
        tokio::select! {
            result = &mut reading => {
                result?;
                // Nearly always the job has ended now. If not, the coordinator let go too early.
                if let Ok(job) = timeout(ENDED_AHEAD, &mut watching).await {
                    return job;
                }
            }
            job = &mut watching => {
                let job = job?;
                latest.set(Instant::now());
                tokio::select! {
                    result = reading => result?,
                    () = silence(&latest) => note("the rest of the output does not come: left out"),
                }
                return Ok(job);
            }
        }
    }
}

/// Ends when nothing came for [`SILENCE`].
async fn silence(latest: &Cell<Instant>) {
    loop {
        let left = SILENCE.saturating_sub(latest.get().elapsed());
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

/// How far each stream was written, so that a second reading of it adds nothing.
#[derive(Default)]
struct Positions(HashMap<(String, u32, i32), Position>);

#[derive(Default)]
struct Position {
    attempt: u32,
    end: u64,
    missing: bool,
}

impl Positions {
    /// The part of a chunk that was not written yet.
    fn fresh(&mut self, mut chunk: v1::LogChunk) -> Option<v1::LogChunk> {
        let key = (chunk.task.clone(), chunk.index, chunk.stream);
        let position = self.0.entry(key).or_default();
        if chunk.attempt != position.attempt {
            *position = Position { attempt: chunk.attempt, ..Position::default() };
        }
        if chunk.missing {
            return (!std::mem::replace(&mut position.missing, true)).then_some(chunk);
        }
        let end = chunk.offset + chunk.data.len() as u64;
        if end <= position.end {
            return None;
        }
        if chunk.offset < position.end {
            let _ = chunk.data.split_to((position.end - chunk.offset) as usize);
            chunk.offset = position.end;
        }
        position.end = end;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(attempt: u32, offset: u64, data: &'static str) -> v1::LogChunk {
        v1::LogChunk { task: "t".into(), attempt, offset, data: data.into(), ..v1::LogChunk::default() }
    }

    #[test]
    fn a_second_reading_adds_nothing() {
        let mut positions = Positions::default();
        let mut seen = String::new();
        for chunk in [
            chunk(1, 0, "hello "),
            chunk(1, 6, "wor"),
            // The connection broke; the log comes again, cut otherwise.
            chunk(1, 0, "hello w"),
            chunk(1, 7, "orld"),
            // The task was tried again.
            chunk(2, 0, "!"),
        ] {
            if let Some(fresh) = positions.fresh(chunk) {
                seen.push_str(std::str::from_utf8(&fresh.data).unwrap());
            }
        }
        assert_eq!(seen, "hello world!");
    }

    #[test]
    fn what_is_missing_is_said_once() {
        let mut positions = Positions::default();
        let missing = v1::LogChunk { missing: true, ..chunk(1, 5, "") };
        assert!(positions.fresh(missing.clone()).is_some());
        assert!(positions.fresh(missing).is_none());
    }
}
