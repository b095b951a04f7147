//! The output of tasks: fetched or followed, and written as people and programs want it.
//!
//! One task: its bytes go to the descriptors that it wrote them to. Several: whole lines,
//! each with `name.index| ` before it. A reader never holds more than [`MAX_HELD`] bytes of
//! unfinished lines.

mod write;

use std::{collections::HashMap, io::IsTerminal as _};

use mesh_proto::v1::{self, OutputStream};
use tonic::Status;

pub use self::write::{Descriptors, Style, Writer};
use crate::{
    client::{Client, Patience},
    error::CliError,
    output::Out,
    reference::Selection,
};

/// Whose output is wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub job: u64,
    pub selection: Selection,
    /// 0: the latest.
    pub attempt: u32,
    pub follow: bool,
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

/// Writes the output that is wanted, and with `follow` what is still to come. A lost
/// connection is taken up again: nothing is written twice.
pub async fn stream(client: &Client, request: &Request, writer: &mut Writer) -> Result<(), CliError> {
    let mut patience = if request.follow { Patience::endless(client) } else { Patience::short(client) };
    let mut positions = Positions::default();
    let result = loop {
        match once(client, request, writer, &mut positions, &mut patience).await {
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

enum Broken {
    Local(CliError),
    Remote(Status),
}

async fn once(
    client: &Client,
    request: &Request,
    writer: &mut Writer,
    positions: &mut Positions,
    patience: &mut Patience<'_>,
) -> Result<(), Broken> {
    let mut stream = client.jobs().stream_logs(request.message()).await.map_err(Broken::Remote)?.into_inner();
    while let Some(message) = stream.message().await.map_err(Broken::Remote)? {
        patience.succeeded();
        for chunk in message.chunks {
            if let Some(chunk) = positions.fresh(chunk) {
                writer.chunk(&chunk).map_err(Broken::Local)?;
            }
        }
    }
    Ok(())
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
