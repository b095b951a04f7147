//! One agent of a test's mesh: the daemon, its jail and what they run.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use serde_json::Value;

use crate::{
    Outcome, binary,
    process::{Process, Signal, kill_marked, marked, name, with_descendants},
    wait::{self, secs},
};

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub slots: u32,
    pub tags: Vec<(&'static str, &'static str)>,
    /// Further flags of `agent run`.
    pub flags: Vec<String>,
    /// A program and its arguments that becomes the agent, in a world that it has changed before.
    pub through: Vec<String>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { slots: 2, tags: Vec::new(), flags: Vec::new(), through: Vec::new() }
    }
}

impl AgentOptions {
    pub fn slots(slots: u32) -> Self {
        Self { slots, ..Self::default() }
    }

    #[must_use]
    pub fn tag(mut self, key: &'static str, value: &'static str) -> Self {
        self.tags.push((key, value));
        self
    }

    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }
}

/// A running agent. Everything it started ends with the value.
pub struct Agent {
    pub name: String,
    options: AgentOptions,
    data: PathBuf,
    logs: PathBuf,
    process: Process,
    ready: Value,
}

impl Agent {
    pub(crate) fn start(name: &str, token: &str, options: AgentOptions, root: &Path) -> Self {
        let data = root.join("agents").join(name);
        let logs = root.join("logs");
        let mut command = command(name, &options, &data);
        command.env("MESH_JOIN_TOKEN", token);
        let mut process = Process::start(name, &mut command, &logs);
        let ready = process.ready(secs(30));
        Self { name: name.to_owned(), options, data, logs, process, ready }
    }

    /// One call of `agent` with other arguments and this agent's data directory.
    pub fn call(&self, args: &[&str]) -> Outcome {
        call(&self.data, args)
    }

    pub fn id(&self) -> &str {
        self.ready["node"].as_str().expect("the ready line names the node")
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the daemon logged, of all its lives.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, what: Signal) {
        self.process.signal(what);
    }

    /// Waits for the daemon's own end.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        self.process.exit(secs(20))
    }

    /// kill -9 of the daemon alone; its jail and tasks go on.
    pub fn kill_daemon(&mut self) {
        self.process.kill();
    }

    /// The machine is gone: daemon, jail and every task, at once.
    pub fn kill_all(&mut self) {
        // The daemon is stopped first, or it would start a new jail or tell of the losses.
        self.process.signal(Signal::SIGSTOP);
        let daemon = self.process.pid();
        for pid in marked(&self.data) {
            if pid != daemon {
                crate::signal(pid, Signal::SIGKILL);
            }
        }
        self.process.kill();
        assert!(kill_marked(&self.data, secs(10)), "{} left processes", self.name);
    }

    /// Starts the daemon again on the same data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_unready();
        self.ready = self.process.ready(secs(30));
    }

    /// The same, without waiting until it is ready.
    pub fn start_unready(&mut self) {
        self.process.kill();
        let mut command = command(&self.name, &self.options, &self.data);
        self.process = Process::start(&self.name, &mut command, &self.logs);
    }

    /// Every living process of this agent: daemon, jail and tasks.
    pub fn processes(&self) -> BTreeSet<u32> {
        marked(&self.data)
    }

    /// Every living process of its tasks: not the daemon, the jail, and what that keeps for its slots.
    pub fn tasks(&self) -> BTreeSet<u32> {
        let mut tasks = with_descendants(self.processes());
        tasks.retain(|pid| *pid != self.pid() && !name(*pid).is_some_and(|name| name.starts_with("mesh-")));
        tasks
    }

    /// Waits until no process of a task lives.
    #[track_caller]
    pub fn settles(&self) {
        let idle = wait::within(secs(20), || self.tasks().is_empty().then_some(()));
        assert!(idle.is_some(), "{} still runs {:?}", self.name, self.tasks());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        kill_marked(&self.data, secs(10));
    }
}

fn command(name: &str, options: &AgentOptions, data: &Path) -> Command {
    let mut command = binary::through(&options.through, "agent");
    command.arg("run").arg("--data-dir").arg(data).args(["--name", name]);
    command.args(["--slots", &options.slots.to_string()]);
    for (key, value) in &options.tags {
        command.arg("--tag").arg(format!("{key}={value}"));
    }
    command.args(&options.flags);
    command.env_remove("MESH_JOIN_TOKEN").env("MESH_AGENT_SANDBOX_ALLOW", "basic");
    command
}

/// One call of `agent` on a data directory.
pub(crate) fn call(data: &Path, args: &[&str]) -> Outcome {
    let mut command = Command::new(binary::path("agent"));
    let (verb, rest) = args.split_first().expect("a subcommand");
    command.arg(verb).arg("--data-dir").arg(data).args(rest).env_remove("MESH_JOIN_TOKEN");
    Outcome::of(&mut command)
}
