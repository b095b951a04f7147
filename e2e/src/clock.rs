//! A wall clock of a program's own, which a test sets while the program runs.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

const SOURCE: &str = include_str!("shift.c");

/// A clock for the programs that are started through it.
pub struct WallClock(TempDir);

impl WallClock {
    /// A clock that is right, where a C compiler can make one.
    pub fn right() -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-clock-").tempdir().expect("make a directory");
        // Processes of other users load it as well.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).expect("open the directory");
        let clock = Self(dir);
        fs::write(clock.path("shift.c"), SOURCE).expect("write the source");
        clock.jump(0);
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-o"]).args([clock.path("shift.so"), clock.path("shift.c")]);
        let made = compile.output().is_ok_and(|out| out.status.success());
        made.then_some(clock)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What becomes the program whose clock this is to be.
    pub fn through(&self) -> Vec<String> {
        let shown = |name| self.path(name).display().to_string();
        let load = format!("LD_PRELOAD={}", shown("shift.so"));
        vec!["env".to_owned(), load, format!("MESH_TEST_SHIFT={}", shown("shift"))]
    }

    /// From now on the clock is wrong by so many seconds.
    pub fn jump(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.path("shift"));
        let file = file.expect("open the clock");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("set the clock");
    }
}
