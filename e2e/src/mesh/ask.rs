//! What a test asks of its mesh: by `meshctl` and the other programs, by HTTP, by SQL.

use std::{
    ffi::OsStr,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::Ordering,
};

use serde_json::Value;

use super::Mesh;
use crate::{
    Job, Outcome, Reply, Running, agent, binary, disk, http,
    wait::{self, secs},
};

impl Mesh {
    /// One statement for the private Postgres, by its superuser.
    #[track_caller]
    pub fn sql(&self, statement: &str) {
        let out = self.psql(statement).output().expect("psql is installed with Postgres");
        assert!(out.status.success(), "{statement}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// `psql` with a statement for the private Postgres, by its superuser.
    pub fn psql(&self, statement: &str) -> Command {
        let mut command = match self.options.disk {
            None => Command::new("psql"),
            Some(_) => disk::beside(self.coordinator_pid(), "psql"),
        };
        command.arg("-h").arg(self.data_dir().join("postgres")).args(["-U", "postgres", "-d", "mesh"]);
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// What a query to the private Postgres gives, as text, by its superuser.
    #[track_caller]
    pub fn query(&self, query: &str) -> String {
        let out = self.psql(query).args(["-A", "-t"]).stdout(Stdio::piped()).output().expect("psql runs");
        assert!(out.status.success(), "{query}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// GETs from the HTTP port.
    pub fn http(&self, path: &str) -> Option<Reply> {
        http::get(self.address("http"), path)
    }

    /// The figure of a metric's line, zero when it is not there.
    pub fn figure(&self, line: &str) -> i64 {
        self.http("/metrics").and_then(|reply| reply.figure(line)).unwrap_or(0)
    }

    /// One call of `agent` on a data directory of this name.
    pub fn agent_call(&self, name: &str, args: &[&str]) -> Outcome {
        agent::call(&self.root.path().join("agents").join(name), args)
    }

    /// One call of `coordinator` on a data directory of its own that ends by itself.
    pub fn coordinator_call(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(binary::path("coordinator"));
        let (verb, rest) = args.split_first().expect("a subcommand");
        command.arg(verb).arg("--data-dir").arg(self.path("second-coordinator")).args(rest);
        Outcome::of(command.env_remove("DATABASE_URL").env("HOME", self.root.path()))
    }

    /// Prepares `meshctl` with this mesh's credential, to be run in the test's directory.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(binary::path("meshctl"));
        command.args(args).current_dir(self.root.path().join("files"));
        command
            .env("MESH_CREDENTIAL", self.credential())
            .env("HOME", self.root.path())
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Runs `meshctl`.
    pub fn meshctl<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        Outcome::of(&mut self.command(args))
    }

    /// Runs `meshctl … -o json` and reads what it prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        self.meshctl(&args).ok().json()
    }

    /// Starts `meshctl` and leaves it running.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("start meshctl");
        Running::new(format!("meshctl {}", args.join(" ")), child)
    }

    /// Writes a file of the test's own, with its directories; its path.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("make directories");
        fs::write(&path, content).expect("write a file");
        path
    }

    /// Writes a job file of its own name beside the test's files; its path.
    pub fn job_file(&self, text: &str) -> PathBuf {
        let count = self.files.fetch_add(1, Ordering::Relaxed);
        self.write(&format!("job-{count}.yaml"), text)
    }

    /// Submits a job.
    #[track_caller]
    pub fn submit(&self, text: &str) -> Job<'_> {
        self.submit_with(text, &[])
    }

    /// Submits a job with further arguments.
    #[track_caller]
    pub fn submit_with(&self, text: &str, args: &[&str]) -> Job<'_> {
        let file = self.job_file(text);
        let path = file.to_str().expect("temporary paths are UTF-8");
        let args: Vec<&str> = ["submit", path].iter().chain(args).copied().collect();
        let out = self.meshctl(&args).ok();
        let number = out.stdout.trim().parse().unwrap_or_else(|_| panic!("no job number from {out}"));
        Job::new(self, number)
    }

    /// The job with a number.
    pub fn job(&self, number: u64) -> Job<'_> {
        Job::new(self, number)
    }

    /// A node as `meshctl nodes` shows it.
    pub fn node(&self, name: &str) -> Option<Value> {
        let nodes = self.meshctl(&["nodes", "-o", "json"]);
        // While the coordinator is away there is no answer.
        let Value::Array(nodes) = serde_json::from_str(&nodes.stdout).ok()? else { return None };
        nodes.into_iter().find(|node| node["name"] == name)
    }

    /// Waits until a node is in a state.
    #[track_caller]
    pub fn node_becomes(&self, name: &str, state: &str) {
        let what = format!("node {name} becomes {state}");
        wait::until(secs(30), &what, || self.node(name).filter(|node| node["state"] == state));
    }
}
