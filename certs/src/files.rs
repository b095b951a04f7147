//! Files that hold secrets: written whole or not at all, readable by their owner alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::error::CertError;

/// Larger files are no keys, certificates or credentials.
const MAX_FILE: u64 = 1024 * 1024;

/// Writes `bytes` to `path` with mode 0600: a reader sees the old content or the new, also
/// after a crash.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = write_new(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(&directory)?.sync_all());
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|problem| CertError::File { action: "write", path: path.to_owned(), problem })
}

/// Makes a directory for its owner alone, where there is none.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), CertError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|problem| CertError::File { action: "create", path: path.to_owned(), problem })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The text of a small file.
pub(crate) fn read_text(path: &Path) -> Result<String, CertError> {
    let fail = |problem| CertError::File { action: "read", path: path.to_owned(), problem };
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE {
        let problem = format!("is {size} bytes long, at most {MAX_FILE} are expected");
        return Err(CertError::Content { path: path.to_owned(), problem });
    }
    fs::read_to_string(path).map_err(fail)
}

/// The error of a file whose content is wrong: the problem, with the file's name before it.
pub(crate) fn content(path: &Path) -> impl FnOnce(CertError) -> CertError {
    let path = path.to_owned();
    move |error| CertError::Content { path, problem: error.to_string() }
}
