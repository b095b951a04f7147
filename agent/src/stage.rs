//! Makes the work directory of an attempt: its inputs, the directories it was promised, its
//! script and its progress file. Everything in it is a copy that the task may change.
//!
//! ```text
//! <work dir>/            the task's own
//!   .mesh/script         the job file's `script`
//!   .mesh/progress       $MESH_PROGRESS
//! ```
//!
//! May enter: making files. Where their content comes from is `blobs/`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use mesh_proto::names::{NameError, check_path, escape};
use mesh_proto::v1::{Assignment, FileEntry};

use crate::beneath::{Owner, Root};
use crate::collect::is_glob;

/// The agent's own directory in each work directory; it is neither input nor output.
pub const AREA: &str = ".mesh";
/// The script's path in the work directory.
pub const SCRIPT: &str = ".mesh/script";
/// The progress file's path in the work directory.
pub const PROGRESS: &str = ".mesh/progress";

/// Why a work directory cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("input path `{path}` {source}")]
    Path { path: String, source: NameError },
    #[error("input `{0}`: the directory {AREA} of the work directory is the agent's own")]
    Reserved(String),
    #[error("input `{path}` cannot be put in place: {source}")]
    Place { path: String, source: io::Error },
    #[error("the work directory cannot be made: {0}")]
    Work(io::Error),
}

impl StageError {
    /// Whether this machine, not the job, is at fault: a full disk and the like.
    pub fn is_infra(&self) -> bool {
        let of = |error: &io::Error| {
            !matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidFilename
            )
        };
        match self {
            Self::Path { .. } | Self::Reserved(_) => false,
            Self::Place { source, .. } | Self::Work(source) => of(source),
        }
    }
}

/// Makes an empty work directory, with what is the agent's own in it. One that is left from a
/// start that was cut off is made anew.
pub fn work_dir(path: &Path, owner: Option<Owner>, assignment: &Assignment) -> Result<Root, StageError> {
    let make = || -> io::Result<Root> {
        crate::remove::remove_tree(path)?;
        fs::DirBuilder::new().mode(0o700).recursive(true).create(path)?;
        if let Some(Owner { uid, gid }) = owner {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        }
        let root = Root::open(path, owner)?;
        root.create(PROGRESS, 0o600)?;
        if !assignment.script.is_empty() {
            root.create(SCRIPT, 0o500)?.write_all(assignment.script.as_bytes())?;
        }
        for output in &assignment.outputs {
            if output.ends_with('/') && !is_glob(output) && check_path(output).is_ok() {
                root.make_dirs(output)?;
            }
        }
        Ok(root)
    };
    make().map_err(StageError::Work)
}

/// Checks an input's path and puts it in place; `content` is none for a directory. The copy is a
/// reflink where the filesystem has them.
pub fn place(root: &Root, entry: &FileEntry, content: Option<&mut File>) -> Result<(), StageError> {
    let path = entry.path.trim_end_matches('/');
    check_path(path).map_err(|source| StageError::Path { path: escape(path), source })?;
    if path == AREA || path.starts_with(".mesh/") {
        return Err(StageError::Reserved(escape(path)));
    }
    let placed = match content {
        None => root.make_dirs(path),
        Some(from) => {
            let mode = if entry.executable { 0o755 } else { 0o644 };
            root.create(path, mode).and_then(|mut to| io::copy(from, &mut to).map(drop))
        }
    };
    placed.map_err(|source| StageError::Place { path: escape(path), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn entry(path: &str) -> FileEntry {
        FileEntry { path: path.to_owned(), executable: true, ..FileEntry::default() }
    }

    #[test]
    fn a_work_directory_holds_inputs_script_and_promised_directories() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("left over"), "x").unwrap();
        let source = dir.path().join("blob");
        fs::write(&source, "content").unwrap();
        let assignment = Assignment {
            script: "echo hi".into(),
            outputs: vec!["out/deep/".into(), "*/".into(), "file".into()],
            ..Assignment::default()
        };
        let root = work_dir(&work, None, &assignment).unwrap();
        place(&root, &entry("in/run.sh"), Some(&mut File::open(&source).unwrap())).unwrap();
        place(&root, &FileEntry { path: "empty".into(), directory: true, ..FileEntry::default() }, None)
            .unwrap();
        assert_eq!(fs::read_to_string(work.join("in/run.sh")).unwrap(), "content");
        assert_eq!(fs::metadata(work.join("in/run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_to_string(work.join(SCRIPT)).unwrap(), "echo hi");
        assert!(work.join("out/deep").is_dir() && work.join("empty").is_dir());
        assert!(!work.join("left over").exists());
    }

    #[test]
    fn an_input_cannot_leave_the_work_directory_or_pose_as_the_agents() {
        let dir = tempfile::tempdir().unwrap();
        let root = work_dir(&dir.path().join("work"), None, &Assignment::default()).unwrap();
        for path in ["../x", "/etc/x", "a/../../x", ".mesh/script", ".mesh", "", "a\0b"] {
            let error = place(&root, &entry(path), None).unwrap_err();
            assert!(!error.is_infra(), "{path:?}: {error}");
        }
        place(&root, &entry("a"), Some(&mut File::open("/dev/null").unwrap())).unwrap();
        let error = place(&root, &entry("a/b"), Some(&mut File::open("/dev/null").unwrap())).unwrap_err();
        assert!(!error.is_infra(), "a file where a directory must be is the job's fault: {error}");
    }
}
