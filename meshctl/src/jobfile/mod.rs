//! The job file: read, checked with the place of every mistake, made ready to be sent.
//!
//! [`tree`] reads YAML or JSON, [`parse`] gives it types ([`model`]), [`prepare`] looks at the
//! files that it names and makes the message. All of it is local and synchronous; the
//! coordinator checks again what it is sent.

mod array;
mod check;
mod command;
mod elements;
mod fields;
mod files;
mod glob;
mod graph;
mod inputs;
mod later;
mod model;
mod parse;
mod prepare;
mod problem;
mod resources;
mod settings;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use mesh_proto::{limits, names};

pub use self::{
    command::{CommandJob, default_place, prepare as prepare_command},
    parse::is_param_name,
    prepare::{Overrides, PrepareError, Prepared, Submission, Summary},
    resources::cpu_millis,
};

/// Why a job file is refused.
#[derive(Debug, thiserror::Error)]
pub enum JobFileError {
    #[error("{path}: {source}")]
    Read { path: String, source: io::Error },
    /// A mistake at a place: `FILE:LINE:COLUMN: what was wrong; what was expected`.
    #[error("{path}:{problem}")]
    Problem { path: String, problem: problem::Problem },
    #[error("{path}: {error}")]
    Whole { path: String, error: PrepareError },
    #[error("{0}")]
    Override(PrepareError),
    /// A mistake in the flags of `run`.
    #[error("{0}")]
    Flag(String),
}

/// Reads and checks the job file at `path`; `-` is standard input.
pub fn load(path: &str, overrides: &Overrides) -> Result<Prepared, JobFileError> {
    let (text, shown, base) = if path == "-" {
        (read(&mut io::stdin().lock()), "stdin".to_owned(), PathBuf::new())
    } else {
        let base = Path::new(path).parent().map(Path::to_owned).unwrap_or_default();
        (fs::File::open(path).and_then(|mut file| read(&mut file)), names::escape(path), base)
    };
    let text = text.map_err(|source| JobFileError::Read { path: shown.clone(), source })?;
    let default_name = if path == "-" { "job".to_owned() } else { job_name(path) };
    from_text(&text, &shown, &default_name, &base, overrides)
}

fn from_text(
    text: &[u8],
    shown: &str,
    default_name: &str,
    base: &Path,
    overrides: &Overrides,
) -> Result<Prepared, JobFileError> {
    let at = |problem| JobFileError::Problem { path: shown.to_owned(), problem };
    let text = std::str::from_utf8(text).map_err(|error| {
        let line = text[..error.valid_up_to()].split(|byte| *byte == b'\n').count() as u64;
        at(problem::Problem::at(problem::Pos::new(line, 1), "this is not valid UTF-8", "text"))
    })?;
    let job = tree::parse(text).and_then(|root| parse::job(&root)).map_err(at)?;
    prepare::prepare(job, default_name, base, overrides).map_err(|error| match error {
        PrepareError::Problem(problem) => at(problem),
        error @ PrepareError::UnknownParam { .. } => JobFileError::Override(error),
        error @ (PrepareError::File(_) | PrepareError::TooLarge(_)) => {
            JobFileError::Whole { path: shown.to_owned(), error }
        }
    })
}

/// At most one byte more than is allowed: enough to say that it is too long.
fn read(from: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(limits::MAX_JOB_FILE as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// A valid name out of a file's or a command's name.
pub fn job_name(path: &str) -> String {
    let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = [".yaml", ".yml", ".json"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    let mut name: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-') { c } else { '-' })
        .collect();
    name.drain(..name.len() - name.trim_start_matches(['-', '.']).len());
    name.truncate(names::MAX_NAME);
    if name.is_empty() { "job".to_owned() } else { name }
}

/// The digest and the length of a file as it is now.
pub fn digest_file(path: &Path) -> io::Result<(mesh_proto::digest::Digest, u64)> {
    files::digest(path, &mut vec![0; 256 * 1024])
}
