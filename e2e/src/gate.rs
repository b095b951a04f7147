//! A gate that tasks wait at until the test opens it: how a test decides when a task ends.

use std::{fs, path::PathBuf};

/// A file that does not exist yet.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Shell words that wait until the gate is open.
    pub fn shell(&self) -> String {
        format!("until [ -e {} ]; do sleep 0.05; done", self.path.display())
    }

    pub fn open(&self) {
        fs::write(&self.path, "").expect("open the gate");
    }
}
