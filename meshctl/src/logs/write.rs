//! How output is written: raw, as lines with a name before them, or as JSON.

use std::collections::HashMap;

use base64::Engine as _;
use mesh_proto::v1::{LogChunk, OutputStream};
use serde_json::json;

use crate::{
    error::CliError,
    output::{self, escape::Escaper, time::rfc3339},
};

/// Longest line that is put together before its name is written, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// Unfinished lines of all tasks together, in bytes.
const MAX_HELD: usize = 16 * 1024 * 1024;

/// Which descriptors a task's output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// Standard output and standard error, as the task wrote it.
    Own,
    /// All to standard error: standard output holds a result.
    Error,
}

/// How it looks. `escape` says for standard output and standard error whether control
/// bytes are made visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Raw { escape: [bool; 2] },
    Lines { escape: [bool; 2] },
    Json,
}

/// Where the bytes go: standard output and standard error, or a test.
pub trait Sink: Send {
    fn write(&mut self, stderr: bool, bytes: &[u8]) -> Result<(), CliError>;
}

struct Standard;

impl Sink for Standard {
    fn write(&mut self, stderr: bool, bytes: &[u8]) -> Result<(), CliError> {
        if stderr { output::print_error(bytes) } else { output::print(bytes) }
    }
}

/// Writes chunks in one style.
pub struct Writer {
    style: Style,
    to: Descriptors,
    sink: Box<dyn Sink>,
    escapers: [Escaper; 2],
    lines: HashMap<(String, u32, bool), Line>,
    held: usize,
}

/// A line of which the end has not come, and the name that goes before it.
struct Line {
    name: String,
    attempt: u32,
    text: Vec<u8>,
}

impl Writer {
    pub fn new(style: Style, to: Descriptors) -> Self {
        Self::to_sink(style, to, Box::new(Standard))
    }

    fn to_sink(style: Style, to: Descriptors, sink: Box<dyn Sink>) -> Self {
        Self { style, to, sink, escapers: Default::default(), lines: HashMap::new(), held: 0 }
    }

    pub fn chunk(&mut self, chunk: &LogChunk) -> Result<(), CliError> {
        let stderr = chunk.stream() == OutputStream::Stderr;
        match self.style {
            Style::Json => self.json(chunk),
            Style::Raw { .. } | Style::Lines { .. } if chunk.missing => self.missing(chunk),
            Style::Raw { escape } => {
                let at = usize::from(stderr);
                if escape[at] {
                    let text = self.escapers[at].push(&chunk.data);
                    self.put(stderr, text.as_bytes())
                } else {
                    self.put(stderr, &chunk.data)
                }
            }
            Style::Lines { escape } => self.lines(chunk, stderr, escape[usize::from(stderr)]),
        }
    }

    /// Writes what was held back.
    pub fn finish(&mut self) -> Result<(), CliError> {
        for stderr in [false, true] {
            let rest = self.escapers[usize::from(stderr)].finish();
            self.put(stderr, rest.as_bytes())?;
        }
        self.flush()
    }

    fn put(&mut self, stderr: bool, bytes: &[u8]) -> Result<(), CliError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.write(stderr || self.to == Descriptors::Error, bytes)
    }

    fn missing(&mut self, chunk: &LogChunk) -> Result<(), CliError> {
        let why = if chunk.cut { "was cut: it passed its limit" } else { "did not reach the coordinator" };
        let text = format!(
            "meshctl: the {} of {} from byte {} on {why}\n",
            if chunk.stream() == OutputStream::Stderr { "standard error" } else { "standard output" },
            name(chunk),
            chunk.offset
        );
        self.put(true, text.as_bytes())
    }

    fn json(&mut self, chunk: &LogChunk) -> Result<(), CliError> {
        let (data, encoding) = match std::str::from_utf8(&chunk.data) {
            Ok(text) => (text.to_owned(), "utf8"),
            Err(_) => (base64::engine::general_purpose::STANDARD.encode(&chunk.data), "base64"),
        };
        let mut object = json!({
            "task": chunk.task,
            "index": chunk.array.then_some(chunk.index),
            "attempt": chunk.attempt,
            "stream": if chunk.stream() == OutputStream::Stderr { "stderr" } else { "stdout" },
            "offset": chunk.offset,
            "time": rfc3339(chunk.time_ms),
            "data": data,
            "encoding": encoding,
        });
        if chunk.missing {
            object["missing"] = true.into();
            object["cut"] = chunk.cut.into();
        }
        // A result of its own: JSON goes to standard output whatever stream it tells of.
        self.put(false, format!("{object}\n").as_bytes())
    }

    fn lines(&mut self, chunk: &LogChunk, stderr: bool, escape: bool) -> Result<(), CliError> {
        let key = (chunk.task.clone(), chunk.index, stderr);
        let mut line = self.lines.remove(&key).unwrap_or_else(|| Line {
            name: name(chunk),
            attempt: chunk.attempt,
            text: Vec::new(),
        });
        self.held -= line.text.len();
        let mut out = Vec::with_capacity(chunk.data.len() + 64);
        if line.attempt != chunk.attempt {
            end_line(&mut out, &mut line, escape);
            line.attempt = chunk.attempt;
        }
        let mut rest: &[u8] = &chunk.data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            line.text.extend_from_slice(&rest[..end]);
            write_line(&mut out, &mut line, escape);
            rest = &rest[end + 1..];
        }
        line.text.extend_from_slice(rest);
        while line.text.len() > MAX_LINE {
            let tail = line.text.split_off(MAX_LINE);
            write_line(&mut out, &mut line, escape);
            line.text = tail;
        }
        if !line.text.is_empty() {
            self.held += line.text.len();
            self.lines.insert(key, line);
        }
        self.put(stderr, &out)?;
        if self.held > MAX_HELD { self.flush() } else { Ok(()) }
    }

    /// Writes every unfinished line as if it had ended.
    fn flush(&mut self) -> Result<(), CliError> {
        let Style::Lines { escape } = self.style else { return Ok(()) };
        let mut lines: Vec<_> = self.lines.drain().collect();
        self.held = 0;
        lines.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for ((_, _, stderr), mut line) in lines {
            let mut out = Vec::new();
            end_line(&mut out, &mut line, escape[usize::from(stderr)]);
            self.put(stderr, &out)?;
        }
        Ok(())
    }
}

fn name(chunk: &LogChunk) -> String {
    let name = mesh_proto::names::escape(&chunk.task);
    if chunk.array { format!("{name}.{}", chunk.index) } else { name }
}

fn end_line(out: &mut Vec<u8>, line: &mut Line, escape: bool) {
    if !line.text.is_empty() {
        write_line(out, line, escape);
    }
}

fn write_line(out: &mut Vec<u8>, line: &mut Line, escape: bool) {
    out.extend_from_slice(line.name.as_bytes());
    out.extend_from_slice(b"| ");
    if escape {
        let mut escaper = Escaper::default();
        let text = line.text.strip_suffix(b"\r").unwrap_or(&line.text);
        out.extend_from_slice(escaper.push(text).as_bytes());
        out.extend_from_slice(escaper.finish().as_bytes());
    } else {
        out.extend_from_slice(&line.text);
    }
    out.push(b'\n');
    line.text.clear();
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<[Vec<u8>; 2]>>);

    impl Sink for Captured {
        fn write(&mut self, stderr: bool, bytes: &[u8]) -> Result<(), CliError> {
            self.0.lock().unwrap()[usize::from(stderr)].extend_from_slice(bytes);
            Ok(())
        }
    }

    impl Captured {
        fn text(&self, stderr: bool) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()[usize::from(stderr)]).into_owned()
        }
    }

    fn chunk(index: u32, stream: OutputStream, data: &'static [u8]) -> LogChunk {
        LogChunk {
            task: "resize".into(),
            index,
            array: true,
            attempt: 1,
            stream: stream.into(),
            data: data.into(),
            time_ms: 1_762_000_000_000,
            ..LogChunk::default()
        }
    }

    fn written(style: Style, to: Descriptors, chunks: &[LogChunk]) -> Captured {
        let captured = Captured::default();
        let mut writer = Writer::to_sink(style, to, Box::new(captured.clone()));
        for chunk in chunks {
            writer.chunk(chunk).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(writer.held, 0);
        captured
    }

    const PLAIN: [bool; 2] = [false; 2];
    use OutputStream::{Stderr, Stdout};

    #[test]
    fn one_task_is_raw_on_its_own_descriptors() {
        let chunks = [chunk(0, Stdout, b"a\x1b[1m\xff"), chunk(0, Stderr, b"oops"), chunk(0, Stdout, b"b\n")];
        let raw = written(Style::Raw { escape: PLAIN }, Descriptors::Own, &chunks);
        assert_eq!(raw.0.lock().unwrap()[0], b"a\x1b[1m\xffb\n");
        assert_eq!(raw.text(true), "oops");
        let shown = written(Style::Raw { escape: [true; 2] }, Descriptors::Own, &chunks);
        assert_eq!(shown.text(false), "a\\x1b[1m\\xffb\n");
    }

    #[test]
    fn several_tasks_are_told_apart_line_by_line() {
        let chunks = [
            chunk(0, Stdout, b"half "),
            chunk(1, Stdout, b"one\ntwo\n\nthr"),
            chunk(0, Stderr, b"oops\n"),
            chunk(0, Stdout, b"a line\nno end"),
        ];
        let lines = written(Style::Lines { escape: PLAIN }, Descriptors::Own, &chunks);
        assert_eq!(
            lines.text(false),
            "resize.1| one\nresize.1| two\nresize.1| \nresize.0| half a line\nresize.0| no end\nresize.1| thr\n"
        );
        assert_eq!(lines.text(true), "resize.0| oops\n");
    }

    #[test]
    fn a_forged_line_stays_inside_its_own() {
        let forged = [chunk(0, Stdout, b"x\rresize.1| forged\x1b[A\n")];
        let shown = written(Style::Lines { escape: [true; 2] }, Descriptors::Own, &forged);
        assert_eq!(shown.text(false), "resize.0| x\\x0dresize.1| forged\\x1b[A\n");
    }

    #[test]
    fn endless_lines_are_cut_and_memory_stays_bounded() {
        let captured = Captured::default();
        let mut writer =
            Writer::to_sink(Style::Lines { escape: PLAIN }, Descriptors::Own, Box::new(captured.clone()));
        let long: &'static [u8] = vec![b'x'; 60 * 1024].leak();
        for index in 0..400 {
            writer.chunk(&chunk(index, Stdout, long)).unwrap();
            assert!(writer.held <= MAX_HELD);
            let held: usize = writer.lines.values().map(|line| line.text.len()).sum();
            assert_eq!(held, writer.held);
        }
        writer.chunk(&chunk(0, Stdout, long)).unwrap();
        writer.chunk(&chunk(0, Stdout, long)).unwrap();
        writer.finish().unwrap();
        let longest = captured.text(false).lines().map(str::len).max().unwrap();
        assert!(longest <= MAX_LINE + "resize.399| ".len(), "{longest}");
    }

    #[test]
    fn a_new_attempt_begins_a_new_line() {
        let again = LogChunk { attempt: 2, ..chunk(0, Stdout, b"fresh\n") };
        let lines =
            written(Style::Lines { escape: PLAIN }, Descriptors::Own, &[chunk(0, Stdout, b"cut of"), again]);
        assert_eq!(lines.text(false), "resize.0| cut of\nresize.0| fresh\n");
    }

    #[test]
    fn json_is_one_object_a_line_and_loses_no_byte() {
        let mut single = chunk(0, Stderr, b"\xff\x00");
        single.array = false;
        single.offset = 7;
        let json = written(Style::Json, Descriptors::Own, &[chunk(3, Stdout, "é\n".as_bytes()), single]);
        insta::assert_snapshot!(json.text(false), @r#"
        {"attempt":1,"data":"é\n","encoding":"utf8","index":3,"offset":0,"stream":"stdout","task":"resize","time":"2025-11-01T12:26:40.000Z"}
        {"attempt":1,"data":"/wA=","encoding":"base64","index":null,"offset":7,"stream":"stderr","task":"resize","time":"2025-11-01T12:26:40.000Z"}
        "#);
    }

    #[test]
    fn beside_a_result_everything_goes_to_standard_error() {
        let captured = written(Style::Raw { escape: PLAIN }, Descriptors::Error, &[chunk(0, Stdout, b"x")]);
        assert_eq!((captured.text(false).as_str(), captured.text(true).as_str()), ("", "x"));
    }
}
