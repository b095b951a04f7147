//! What commands print: tables for people, JSON for programs, progress on a terminal.

pub mod escape;
pub mod json;
pub mod progress;
pub mod table;
pub mod time;

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use serde_json::{Value, json};

use crate::error::CliError;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// Where output goes and how it looks there.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub format: Format,
    /// Standard output may be coloured.
    pub colour: bool,
    /// Standard error may show progress.
    pub progress: bool,
}

impl Out {
    pub fn new(format: Format) -> Self {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            format,
            colour: io::stdout().is_terminal() && !plain,
            progress: io::stderr().is_terminal() && !plain,
        }
    }

    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints JSON, or else what `text` makes.
    pub fn show(self, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Json => print_json(&value()),
            Format::Table => {
                let text = text();
                if text.is_empty() { Ok(()) } else { line(&text) }
            }
        }
    }

    /// An error, on standard error.
    pub fn error(self, error: &CliError) {
        if matches!(error, CliError::BrokenPipe | CliError::Told(_)) {
            return;
        }
        match self.format {
            Format::Json => error_json(error.code(), &error.to_string()),
            Format::Table => note(&error.to_string()),
        }
    }
}

/// Prints JSON on standard output.
pub fn print_json(value: &Value) -> Result<(), CliError> {
    line(&format!("{value:#}"))
}

/// Prints `text` and a newline on standard output.
pub fn line(text: &str) -> Result<(), CliError> {
    print(format!("{text}\n").as_bytes())
}

/// Something worth knowing that is no result, on standard error.
pub fn note(text: &str) {
    aside(&format!("meshctl: {text}"));
}

/// `{"error":{"code","message"}}`
pub fn error_json(code: &str, message: &str) {
    aside(&json!({"error": {"code": code, "message": message}}).to_string());
}

/// A line on standard error. If nobody can read it there is nobody to tell.
pub fn aside(text: &str) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Writes to standard output at once.
pub fn print(bytes: &[u8]) -> Result<(), CliError> {
    write_to(&mut io::stdout().lock(), "standard output", bytes)
}

/// Writes to standard error at once.
pub fn print_error(bytes: &[u8]) -> Result<(), CliError> {
    write_to(&mut io::stderr().lock(), "standard error", bytes)
}

fn write_to(to: &mut impl io::Write, what: &str, bytes: &[u8]) -> Result<(), CliError> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::io(what, error),
    })
}
