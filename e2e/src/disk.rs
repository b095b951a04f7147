//! A small disk for one program and what it starts: it is mounted where only they see it, and gone
//! when they are.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// Mounts it in the program's own view of the machine, and becomes the program.
const MOUNT: &str =
    r#"mkdir -p "$2" && mount -t tmpfs -o mode=755,size="$1"m mesh "$2" && shift 2 && exec "$@""#;

/// Whether this machine lets a test mount something; needs root, and not in every container.
pub fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--mount", "mount", "-t", "tmpfs", "mesh", "/mnt"]);
    command.output().is_ok_and(|out| out.status.success())
}

/// A program that finds a disk of so many MiB at `dir`.
pub(crate) fn on_its_own(size: u32, dir: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", MOUNT, "sh", &size.to_string()]).arg(dir).arg(program);
    command
}

/// A program that sees what the process `pid` sees.
pub(crate) fn beside(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &pid.to_string(), program]);
    command
}

/// A file that takes every block that was left. The space is there again when the value goes.
pub struct Filler(PathBuf);

impl Filler {
    #[track_caller]
    pub(crate) fn new(pid: u32, dir: &Path) -> Self {
        let inside = dir.strip_prefix("/").expect("an absolute path");
        let filler = Self(Path::new(&format!("/proc/{pid}/root")).join(inside).join("filler"));
        filler.fill();
        filler
    }

    /// Takes what has come free since.
    #[track_caller]
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(&self.0).expect("open the filler");
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![0; size]) {
                Ok(written) if written > 0 => {}
                Ok(_) => size /= 2,
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{}: {error}", self.0.display()),
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
