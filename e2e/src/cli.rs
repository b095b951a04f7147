//! One call of a command-line tool and what came of it.

use std::{
    fmt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::{
    binary,
    process::{Signal, connects},
    wait::{self, secs},
};

/// Exit status and output of a finished command.
pub struct Outcome {
    command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

#[expect(clippy::return_self_not_must_use, reason = "an assertion may be the last word on an outcome")]
impl Outcome {
    pub(crate) fn of(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self::from_output(name, &output)
    }

    pub(crate) fn from_output(command: String, output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { command, code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Asserts the exit status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Asserts that the errors tell `text`.
    #[track_caller]
    pub fn tells(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} on standard error of {self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// Standard output as one JSON object a line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (exit status {})", self.command, self.code)?;
        writeln!(f, "--- standard output\n{}", self.stdout)?;
        write!(f, "--- standard error\n{}", self.stderr)
    }
}

/// `meshctl` in a directory of its own, without any credential.
pub fn meshctl_alone(dir: &Path) -> Command {
    let mut command = Command::new(binary::path("meshctl"));
    command.current_dir(dir).env("HOME", dir).env_remove("MESH_CREDENTIAL").env_remove("XDG_CONFIG_HOME");
    command
}

/// A `meshctl` that still runs.
pub struct Running {
    name: String,
    child: Option<Child>,
}

impl Running {
    pub(crate) fn new(name: String, child: Child) -> Self {
        Self { name, child: Some(child) }
    }

    /// Its standard output, to be read while it runs.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.as_mut().and_then(|child| child.stdout.take()).expect("the output is taken once")
    }

    pub fn signal(&self, what: Signal) {
        if let Some(child) = &self.child {
            crate::signal(child.id(), what);
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut().expect("it is waited for once");
        child.try_wait().expect("ask for the exit").is_none()
    }

    /// Whether it has a connection to this loopback address (host:port).
    pub fn is_connected(&self, address: &str) -> bool {
        let pid = self.child.as_ref().expect("it is waited for once").id();
        address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .is_some_and(|port| connects(pid, port))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let mut child = self.child.take().expect("it is waited for once");
        let what = format!("{} exits", self.name);
        // Its output is small: the pipes hold it.
        wait::until(secs(60), &what, || child.try_wait().expect("ask for the exit"));
        let output = child.wait_with_output().expect("read its output");
        Outcome::from_output(self.name.clone(), &output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
