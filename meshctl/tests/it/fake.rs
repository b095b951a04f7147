//! A coordinator in a box: real mTLS, real gRPC, and a world that the test sets up.

use std::{
    collections::HashMap,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_certs::{AcceptLimits, Ca, Credential, ServerCert, incoming, mtls_config};
use mesh_proto::{
    digest::Digest,
    ids::{CoordinatorId, MeshId},
    v1::{
        self, access_server::AccessServer, blobs_server::BlobsServer, jobs_server::JobsServer,
        nodes_server::NodesServer,
    },
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tonic::transport::Server;

/// What the coordinator knows and was asked.
#[derive(Default)]
pub struct World {
    pub jobs: Vec<Job>,
    pub nodes: Vec<v1::NodeInfo>,
    pub tokens: Vec<v1::TokenInfo>,
    pub blobs: HashMap<Digest, Bytes>,
    /// What becomes of the next job.
    pub next: Fate,
    /// Names of the calls, in order.
    pub calls: Vec<String>,
    /// Bytes to serve instead of a blob's own.
    pub forged: HashMap<Digest, Bytes>,
    /// Answers to give before any other.
    pub refusals: Vec<tonic::Status>,
    pub cancels: Vec<String>,
    /// No node suits what is asked for.
    pub unsuited: bool,
    /// What was redriven, as asked.
    pub redrives: Vec<String>,
    /// The keys of redrives, with the numbers of their jobs.
    pub redrive_keys: Vec<(u64, String)>,
    /// What is answered instead, after the work was done.
    pub lost_answers: Vec<tonic::Status>,
}

/// What a submitted job will be.
#[derive(Clone, Default)]
pub struct Fate {
    pub state: v1::JobState,
    pub reason: String,
    pub task: v1::TaskInfo,
    pub chunks: Vec<v1::LogChunk>,
    pub outputs: Vec<v1::TaskOutputs>,
}

#[derive(Clone, Default)]
pub struct Job {
    pub shown: v1::Job,
    pub spec: v1::JobSpec,
    pub key: String,
    pub tasks: Vec<v1::TaskInfo>,
    pub chunks: Vec<v1::LogChunk>,
    pub outputs: Vec<v1::TaskOutputs>,
}

/// What the services share with the test.
#[derive(Clone)]
pub struct Shared {
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Shared {
    pub fn look<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let result = look(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
        result
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The coordinator, its address, and a directory with a credential.
pub struct Fake {
    pub dir: TempDir,
    pub ca: Ca,
    pub addr: SocketAddr,
    pub shared: Shared,
    runtime: Runtime,
    /// The server's own runtime: dropping it cuts every connection.
    server: Mutex<Option<Runtime>>,
}

impl Fake {
    pub fn start() -> Self {
        mesh_certs::install_provider();
        let runtime = runtime();
        let ca = Ca::generate(MeshId::generate()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared { world: Arc::default(), changed: Arc::new(watch::Sender::new(0)) };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let fake = Self { dir, ca, addr, shared, runtime, server: Mutex::new(None) };
        fake.credential(&fake.ca, "credential");
        fake.serve(listener);
        fake
    }

    /// Writes a credential whose certificate and trust are of `ca`.
    pub fn credential(&self, ca: &Ca, name: &str) -> PathBuf {
        self.mixed_credential(ca, ca, name)
    }

    /// The same, trusting one CA and signed by the other.
    pub fn mixed_credential(&self, trusted: &Ca, signer: &Ca, name: &str) -> PathBuf {
        let cert = signer.issue_user("ann", Duration::from_hours(1)).unwrap();
        let credential = Credential::new(trusted, vec![self.addr.to_string()], cert);
        let path = self.dir.path().join(name);
        credential.save(&path).unwrap();
        path
    }

    fn serve(&self, listener: TcpListener) {
        let cert = self
            .ca
            .issue_coordinator(CoordinatorId::generate(), &["127.0.0.1".to_owned()], Duration::from_hours(1))
            .unwrap();
        let cert = ServerCert::new(&cert, &self.ca.cert_der()).unwrap();
        let config = mtls_config(&self.ca, cert);
        let mesh = self.ca.mesh();
        let shared = self.shared.clone();
        let server = runtime();
        // A listener belongs to the runtime that made it.
        let listener = listener.into_std().unwrap();
        server.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let connections = incoming(listener, config, mesh, AcceptLimits::default(), |_, _| {});
            let router = Server::builder()
                .add_service(JobsServer::new(shared.clone()))
                .add_service(BlobsServer::new(shared.clone()))
                .add_service(NodesServer::new(shared.clone()))
                .add_service(AccessServer::new(shared));
            router.serve_with_incoming(connections).await.unwrap();
        });
        *self.server.lock().unwrap() = Some(server);
    }

    /// As kill -9 would: every connection is cut and the port is closed.
    pub fn kill(&self) {
        let server = self.server.lock().unwrap().take().expect("it serves");
        server.shutdown_timeout(Duration::from_secs(10));
        self.wait_until("the port is closed", || {
            std::net::TcpStream::connect(self.addr).is_err().then_some(())
        });
    }

    /// Serves again on the same port.
    pub fn revive(&self) {
        let listener =
            self.wait_until("the port is free", || self.runtime.block_on(TcpListener::bind(self.addr)).ok());
        self.serve(listener);
    }

    /// meshctl with this mesh's credential, in this directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("MESH_CREDENTIAL", self.dir.path().join("credential"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(args, self.command(args).output().unwrap())
    }

    /// Starts meshctl and leaves it running, its output piped.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { args: args.join(" "), child: Some(command.spawn().unwrap()) }
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        let outcome = self.run(&args).exits(0);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        self.shared.look(look)
    }

    /// Waits until `found` finds something; fails the test when it takes a minute.
    pub fn wait_until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(result) = found() {
                return result;
            }
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
        }
    }

    /// Waits until the coordinator was asked `call` so many times.
    pub fn wait_for_call(&self, call: &str, times: usize) {
        self.wait_until(&format!("{times} × {call}"), || {
            let world = self.shared.lock();
            (world.calls.iter().filter(|name| *name == call).count() >= times).then_some(())
        });
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What meshctl printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    args: String,
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    fn of(args: &[&str], output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("meshctl prints UTF-8");
        let status = output.status.code().unwrap_or(-1);
        Self { args: args.join(" "), status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, status, "meshctl {}\n{}\n{}", self.args, self.stdout, self.stderr);
        self
    }
}

/// A meshctl that still runs; ended when the test gives up.
pub struct Running {
    args: String,
    pub child: Option<std::process::Child>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id().try_into().unwrap()
    }

    /// Reads standard error until a line holds `text`; gives what was read.
    pub fn stderr_until(&mut self, text: &str) -> String {
        let stderr = self.child.as_mut().unwrap().stderr.as_mut().unwrap();
        let mut read = String::new();
        let mut byte = [0];
        while !(read.ends_with('\n') && read.contains(text)) {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "ended without {text:?}: {read}");
            read.push(char::from(byte[0]));
        }
        read
    }

    pub fn finish(mut self) -> Outcome {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        Outcome::of(&[&self.args], output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A chunk of output.
pub fn chunk(task: &str, index: u32, array: bool, stderr: bool, data: &str) -> v1::LogChunk {
    let stream = if stderr { v1::OutputStream::Stderr } else { v1::OutputStream::Stdout };
    v1::LogChunk {
        task: task.to_owned(),
        index,
        array,
        attempt: 1,
        stream: stream.into(),
        time_ms: 1_762_000_000_000,
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..v1::LogChunk::default()
    }
}

/// A summary of a task.
pub fn summary(name: &str, total: u64, array: bool) -> v1::TaskSummary {
    v1::TaskSummary { name: name.to_owned(), total, array, ..v1::TaskSummary::default() }
}
