//! Cleans up after a test that was itself killed: a shell that waits for the test's end and
//! then kills what the test left, and removes its directory.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Reads until the test is gone, by whatever cause: only the test holds the other end.
const SCRIPT: &str = r#"
cat >/dev/null
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    if [ "$pid" != $$ ] && grep -qsF -- "$1" "$process/cmdline" "$process/environ"; then
        kill -9 "$pid"
    fi
done
rm -rf -- "$1"
"#;

/// Runs beside one test; needed no more when the value is dropped.
pub(crate) struct Watchman {
    child: Child,
}

impl Watchman {
    /// Watches over what bears `root` in its command line or environment.
    pub fn start(root: &Path) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "watchman"]).arg(root);
        // A group of its own: whoever kills the test's group must not get this one too.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Self { child: command.spawn().expect("start the watchman") }
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
