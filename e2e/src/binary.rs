//! Where the product's binaries are: beside this test, in the target directory of its profile.

use std::path::PathBuf;

/// Path of a binary of this workspace. `MESH_BIN_DIR` names another directory to test.
pub(crate) fn path(name: &str) -> PathBuf {
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

/// `target/debug/deps/test-hash` lies two steps below `target/debug`.
fn beside() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its own path");
    test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned()
}
