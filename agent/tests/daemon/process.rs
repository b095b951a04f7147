//! The real binary, started as an operator starts it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};
use mesh_proto::v1::{Assignment, Resources, SandboxLevel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::Fake;

/// A data directory, and the daemon that may run on it.
pub struct Agent {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    args: Vec<String>,
    pub ready: serde_json::Value,
}

impl Agent {
    /// An agent that joined `fake` and is registered.
    pub async fn join(fake: &Fake, args: &[&str]) -> Self {
        Self::join_in(fake, tempfile::tempdir().unwrap(), args).await
    }

    /// The same, with its data directory in `dir`.
    pub async fn join_in(fake: &Fake, dir: tempfile::TempDir, args: &[&str]) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        let mut agent = Self { dir, child: None, args, ready: serde_json::Value::Null };
        agent.start(Some(&fake.token_text())).await;
        agent
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.arg(verb).arg("--data-dir").arg(self.data());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MESH_")) {
            command.env_remove(name);
        }
        command.env("MESH_LOG", "agent=debug,info");
        // See `script`.
        command.env("MESH_AGENT_SANDBOX_ALLOW", "basic");
        command
    }

    /// Starts the daemon and waits for its ready line.
    pub async fn start(&mut self, token: Option<&str>) {
        let mut command = self.run_command();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(token) = token {
            command.args(["--join", token]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut child = command.stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(Duration::from_secs(40), line).await;
        let line = line.unwrap_or_else(|_| panic!("not ready: {}", self.log_text())).unwrap().unwrap();
        self.ready = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line:?} is not ready: {}", self.log_text()));
        self.child = Some(child);
    }

    /// `agent run` on its directory.
    pub fn run_command(&self) -> Command {
        let mut command = self.command("run");
        command.args(["--name", "desk"]).args(&self.args);
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid as i32), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub async fn gone(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().unwrap();
        let wait = tokio::task::spawn_blocking(move || child.wait());
        let wait = tokio::time::timeout(Duration::from_secs(40), wait).await;
        wait.unwrap_or_else(|_| panic!("does not end: {}", self.log_text())).unwrap().unwrap()
    }

    pub async fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.gone().await;
    }

    /// One call of another command on this data directory.
    pub async fn call(&self, verb: &str, args: &[&str]) -> Output {
        let mut command = self.command(verb);
        command.args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Waits until the attempt's end was told and acknowledged.
    pub async fn removed_after_end(&self, fake: &Fake, key: AttemptKey) {
        fake.ended(key).await;
        self.removed(key).await;
    }

    /// Waits until the attempt's directories are gone.
    pub async fn removed(&self, key: AttemptKey) {
        until(&format!("the removal of {key}"), || {
            !self.data().join("attempts").join(key.to_string()).exists()
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}", self.log_text());
        }
        // The jail outlives its daemon by design; not its test.
        let jail = self.data().join("jail");
        let end = async move {
            let Ok((client, mut events)) = agent::jail::Client::connect(&jail).await else { return };
            let _ = client.shutdown(true).await;
            while events.recv().await.is_some() {}
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), end).await });
        });
        let _ = thread.join();
    }
}

/// One call of `agent join` on a fresh directory.
pub async fn try_join(token: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(["join", token, "--name", "desk", "--data-dir"]).arg(dir.path());
    tokio::task::spawn_blocking(move || {
        let output = command.output().unwrap();
        drop(dir);
        output
    })
    .await
    .unwrap()
}

pub fn key(index: u32) -> AttemptKey {
    AttemptKey { task: TaskKey { job: JobNumber(12), task: 0, index }, number: 1 }
}

/// An assignment of a shell script.
pub fn script(index: u32, text: &str) -> Assignment {
    Assignment {
        attempt: Some(key(index).into()),
        job_name: "test".into(),
        task_name: "work".into(),
        script: text.to_owned(),
        resources: Some(Resources { cpu_millis: 1000, ..Resources::default() }),
        grace_ms: 500,
        // Most tests talk to their tasks through files of the host.
        sandbox: SandboxLevel::Basic.into(),
        ..Assignment::default()
    }
}

/// The levels for a test that is to hold at each: the product's own, and the one of `script`. A
/// machine that does not give the first says so.
pub fn levels(fake: &Fake) -> Vec<SandboxLevel> {
    let registered = fake.state().registrations.last().and_then(|last| last.facts.clone());
    let sandbox = registered.and_then(|facts| facts.sandbox).unwrap();
    if sandbox.strongest() == SandboxLevel::Strict {
        return vec![SandboxLevel::Strict, SandboxLevel::Basic];
    }
    mesh_skip::skip("this machine does not give level strict");
    vec![SandboxLevel::Basic]
}

/// Waits for something that only looking shows.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(40);
    while !is() {
        assert!(tokio::time::Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Living processes whose command line contains `mark`.
pub fn processes(mark: &str) -> Vec<i32> {
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let text = read(&entry.path().join("cmdline"));
        text.contains(mark).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

fn read(path: &Path) -> String {
    let mut bytes = vec![];
    if let Ok(mut file) = std::fs::File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
