//! A mesh of one test: a coordinator with its own data directory and database, a place for
//! agents, a credential for `meshctl`, and a temporary directory that holds it all.

mod ask;
mod hold;

pub use hold::Stopped;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::AtomicU32,
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Agent, AgentOptions, Gate, Second, Witness, binary, disk,
    process::{Process, Signal, kill_marked, tail},
    wait::{self, secs},
    watchman::Watchman,
};

/// Timings that let a test see in seconds what takes half a minute in use.
const FAST: &str = include_str!("fast.toml");

/// How the coordinator is started.
#[derive(Default)]
pub struct MeshOptions {
    /// Lines of configuration beside the fast timings, after them.
    pub extra: String,
    /// Addresses that nodes and clients are told; this machine's loopback when empty.
    pub advertise: Vec<String>,
    /// The product's own timings instead of the fast ones.
    pub own_timings: bool,
    /// The product's own level for tasks, strict. Such a task sees nothing of the host: an agent lets
    /// it have the test's files ([`Mesh::shows_files`]).
    pub own_sandbox: bool,
    /// A database, a secret and a store that a second coordinator can share ([`Mesh::second`]).
    pub shared: bool,
    /// Of these a shared database alone.
    pub lonely: bool,
    /// The data directory lies on a disk of its own, of so many MiB ([`Mesh::fill_disk`]). It and
    /// what is in it are there for the coordinator's processes alone.
    pub disk: Option<u32>,
    /// A program and its arguments that becomes the coordinator, in a world that it has changed before.
    pub through: Vec<String>,
}

/// A running mesh. Ends with the value, and nothing of it is left.
pub struct Mesh {
    _watchman: Watchman,
    root: TempDir,
    coordinator: Option<Process>,
    /// The database of a shared mesh, and its URL.
    database: Option<(Process, String)>,
    ready: Value,
    options: MeshOptions,
    files: AtomicU32,
}

impl Mesh {
    /// A coordinator that is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(MeshOptions::default())
    }

    #[track_caller]
    pub fn start_with(options: MeshOptions) -> Self {
        let root = tempfile::Builder::new().prefix("mesh-e2e-").tempdir().expect("make a directory");
        // Tasks and a private Postgres run as other users: they must be able to pass through.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        for name in ["agents", "logs", "files"] {
            fs::create_dir(root.path().join(name)).expect("make a directory");
        }
        let timings = if options.own_timings { "" } else { FAST };
        let config = format!("{timings}{}", options.extra);
        let watchman = Watchman::start(root.path());
        let mut mesh = Self {
            _watchman: watchman,
            root,
            coordinator: None,
            database: None,
            ready: Value::Null,
            options,
            files: AtomicU32::new(0),
        };
        mesh.configure(&config);
        if mesh.options.shared || mesh.options.lonely {
            let secret = "a secret that all coordinators share\n";
            fs::write(mesh.root.path().join("secret"), secret).expect("write the secret");
            mesh.start_database();
        }
        mesh.start_coordinator();
        mesh
    }

    /// Writes the configuration file anew, for the next start of a coordinator.
    pub fn configure(&self, text: &str) {
        fs::write(self.root.path().join("coordinator.toml"), text).expect("write the configuration");
    }

    /// A mesh that a second coordinator can join.
    #[track_caller]
    pub fn shared() -> Self {
        Self::start_with(MeshOptions { shared: true, ..MeshOptions::default() })
    }

    /// An agent that takes strict tasks alone, and lets them write to the test's files under the
    /// name `files`.
    pub fn shows_files(&self, options: AgentOptions) -> AgentOptions {
        let allow = format!("files={}", self.path("").display());
        let allow = allow.trim_end_matches('/');
        options.flag("--allow-mount").flag(allow).flag("--sandbox-allow").flag("strict")
    }

    /// A script as a strict task has to say it that mounts the test's files as `/files`.
    pub fn inside(&self, script: &str) -> String {
        script.replace(self.path("").to_str().expect("temporary paths are UTF-8"), "/files/")
    }

    /// Whether a node can do what this mesh asks of it; a machine that cannot says so.
    pub fn is_strict(&self, node: &str) -> bool {
        let there = self.node(node).is_some_and(|node| node["sandbox"]["level"] == "strict");
        if !there {
            mesh_skip::skip("this machine does not give level strict");
        }
        there
    }

    /// kill -9 of the database of a shared mesh, all of its processes.
    pub fn kill_database(&mut self) {
        let (mut process, _) = self.database.take().expect("the mesh has a database of its own");
        // What looks after it first, or it would start it again.
        process.kill();
        assert!(kill_marked(&self.root.path().join("database"), secs(10)), "Postgres cannot be ended");
    }

    /// Starts the database of a shared mesh, again at the same place.
    #[track_caller]
    pub fn start_database(&mut self) {
        let mut command = Command::new(binary::path("coordinator"));
        command.arg("database").arg("--data-dir").arg(self.root.path().join("database"));
        command.env_remove("DATABASE_URL").env("HOME", self.root.path());
        let mut process = Process::start("database", &mut command, &self.root.path().join("logs"));
        let url = process.line(secs(60));
        self.database = Some((process, url));
    }

    /// Arguments by which a coordinator takes part in a shared mesh.
    pub fn sharing(&self) -> Vec<String> {
        let Some((_, url)) = &self.database else { return Vec::new() };
        let path = |name: &str| self.root.path().join(name).display().to_string();
        if self.options.lonely {
            return vec!["--database-url".to_owned(), url.clone()];
        }
        ["--database-url", url, "--mesh-secret-file", &path("secret"), "--store-dir", &path("store")]
            .map(str::to_owned)
            .to_vec()
    }

    /// Starts a second coordinator on the same database and store, with a data directory of its
    /// own; waits for its ready line.
    #[track_caller]
    pub fn second(&self, name: &str) -> Second {
        let mut command = Command::new(binary::path("coordinator"));
        command.arg("serve").arg("--data-dir").arg(self.root.path().join(name)).args(self.sharing());
        command.arg("--config").arg(self.root.path().join("coordinator.toml"));
        for flag in ["--listen", "--join-listen", "--http-listen"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--advertise", "127.0.0.1"]);
        command.env_remove("DATABASE_URL").env("HOME", self.root.path());
        command.env("MESH_COORDINATOR_DEFAULT_SANDBOX", "basic");
        Second::start(name, &mut command, &self.root.path().join("logs"))
    }

    /// A mesh with agents of these names, two slots each.
    #[track_caller]
    pub fn with_agents<const N: usize>(names: [&str; N]) -> (Self, [Agent; N]) {
        let mesh = Self::start();
        let agents = names.map(|name| mesh.agent(name, AgentOptions::default()));
        (mesh, agents)
    }

    /// Starts the coordinator, at the same addresses as before if it ran before.
    #[track_caller]
    pub fn start_coordinator(&mut self) {
        let address = |key: &str| self.ready[key].as_str().unwrap_or("127.0.0.1:0").to_owned();
        let mut command = match self.options.disk {
            None => binary::through(&self.options.through, "coordinator"),
            Some(size) => disk::on_its_own(size, &self.data_dir(), &binary::path("coordinator")),
        };
        command.arg("serve").arg("--data-dir").arg(self.data_dir());
        command.arg("--config").arg(self.root.path().join("coordinator.toml"));
        command.args(["--listen", &address("grpc"), "--join-listen", &address("join")]);
        command.args(["--http-listen", &address("http")]);
        command.args(self.sharing());
        if self.options.advertise.is_empty() {
            command.args(["--advertise", "127.0.0.1"]);
        }
        for place in &self.options.advertise {
            command.args(["--advertise", place]);
        }
        command.env_remove("DATABASE_URL").env("HOME", self.root.path());
        if !self.options.own_sandbox {
            // Most tests talk to their tasks through files of the host, which a strict task does not see.
            command.env("MESH_COORDINATOR_DEFAULT_SANDBOX", "basic");
        }
        let mut process = Process::start("coordinator", &mut command, &self.root.path().join("logs"));
        self.ready = process.ready(secs(60));
        self.coordinator = Some(process);
    }

    /// What the coordinator said when it was ready.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// kill -9 of the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill();
    }

    /// SIGTERM to the coordinator, and its exit status.
    #[track_caller]
    pub fn stop_coordinator(&mut self) -> ExitStatus {
        let mut process = self.coordinator.take().expect("the coordinator runs");
        process.signal(Signal::SIGTERM);
        process.exit(secs(30))
    }

    /// The coordinator's process id.
    pub fn coordinator_pid(&self) -> u32 {
        self.coordinator.as_ref().expect("the coordinator runs").pid()
    }

    /// What the coordinator logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("logs/coordinator.err")).unwrap_or_default()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root.path().join("coordinator")
    }

    /// A file or directory of the test's own, below the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("files").join(name)
    }

    /// host:port of the mTLS port, the join port or the HTTP port (`grpc`, `join`, `http`).
    pub fn address(&self, port: &str) -> &str {
        self.ready[port].as_str().expect("the ready line names the port")
    }

    pub fn credential(&self) -> PathBuf {
        if self.options.disk.is_some() {
            // What the coordinator says lies on the disk that only its processes see.
            return self.root.path().join(".config/mesh/credential");
        }
        PathBuf::from(self.ready["credential"].as_str().expect("the ready line names the credential"))
    }

    /// A witness for this test's tasks.
    pub fn witness(&self) -> Witness {
        Witness::new(self.path("witness"))
    }

    /// A closed gate for this test's tasks.
    pub fn gate(&self, name: &str) -> Gate {
        Gate::new(self.path(&format!("gate-{name}")))
    }

    /// A new token, from `meshctl token create` with further arguments.
    #[track_caller]
    pub fn token(&self, args: &[&str]) -> String {
        let args: Vec<&str> = ["token", "create"].iter().chain(args).copied().collect();
        self.meshctl(&args).ok().stdout.trim().to_owned()
    }

    /// Starts an agent and waits until it is a healthy member.
    #[track_caller]
    pub fn agent(&self, name: &str, options: AgentOptions) -> Agent {
        let agent = Agent::start(name, &self.token(&[]), options, self.root.path());
        self.node_becomes(name, "HEALTHY");
        agent
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_logs();
        }
        if let Some(process) = &mut self.coordinator {
            process.signal(Signal::SIGTERM);
            wait::within(secs(5), || process.exited());
            process.kill();
        }
        if let Some((process, _)) = &mut self.database {
            process.signal(Signal::SIGINT);
            wait::within(secs(10), || process.exited());
        }
        if !kill_marked(self.root.path(), secs(10)) {
            eprintln!("some processes of {} could not be ended", self.root.path().display());
        }
    }
}

impl Mesh {
    fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(self.root.path().join("logs")) else { return };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.iter().filter(|path| fs::metadata(path).is_ok_and(|data| data.len() > 0)) {
            let name = path.file_name().map_or(path.as_path(), Path::new);
            eprintln!("===== {}\n{}", name.display(), tail(path));
        }
    }
}
