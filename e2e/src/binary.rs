//! Where the product's binaries are: beside this test, in the target directory of its profile.

use std::{path::PathBuf, process::Command};

/// Path of a binary of this workspace. `MESH_BIN_DIR` names another directory to test.
pub fn path(name: &str) -> PathBuf {
    let dir = std::env::var_os("MESH_BIN_DIR").map_or_else(beside, PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace` first (as `make test` does), or name the \
         directory of the binaries in MESH_BIN_DIR",
        path.display()
    );
    path
}

/// A binary of this workspace, by way of a program and its arguments that becomes it, if there is one.
pub(crate) fn through(way: &[String], name: &str) -> Command {
    let Some((program, words)) = way.split_first() else { return Command::new(path(name)) };
    let mut command = Command::new(program);
    command.args(words).arg(path(name));
    command
}

/// `target/debug/deps/test-hash` lies two steps below `target/debug`, a program one.
fn beside() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its own path");
    let dir = own.parent().expect("a program lies in a directory");
    let dir = if dir.ends_with("deps") { dir.parent().expect("deps lies in target/<profile>") } else { dir };
    dir.to_owned()
}
