//! A node with a jail: temporary directories, a connection, and what a daemon would do with them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use agent::jail::{
    Bounds, Client, Event, Events, ExitCause, ExitRecord, Level, Network, Options, Rlimits, StartRequest,
    Started, Wall, protocol::SPOOL,
};
use mesh_proto::{
    frame::{Decoder, Kind},
    ids::{AttemptKey, JobNumber, TaskKey},
};
use tempfile::TempDir;

use super::ordinary::BINARY;
pub use super::ordinary::{as_everybody, as_everybody_given, as_everybody_in_groups, in_groups, needs_root};

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// The uid that root's tasks get: no other test's, since the kernel counts processes by uid.
pub fn task_uid() -> u32 {
    30_000 + std::process::id() % 30_000
}

pub fn root() -> bool {
    uid() == 0
}

pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether another program finds here what level basic needs: then the jail must find it too.
fn machine_has_namespaces() -> bool {
    let mut unshare = Command::new("unshare");
    if !root() {
        unshare.arg("--user");
    }
    unshare.args(["--pid", "--fork", "--mount-proc", "true"]).status().is_ok_and(|status| status.success())
}

pub fn binary() -> PathBuf {
    std::env::var_os(BINARY).map_or_else(|| env!("CARGO_BIN_EXE_agent").into(), PathBuf::from)
}

/// Runs `body` as this user, where tasks can be contained.
pub fn as_this_user<F: Future<Output = ()>>(body: impl Fn(Node) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Node::new().await;
        let probe = node.client.probe().await.unwrap();
        if probe.strongest >= Level::Basic || machine_has_namespaces() {
            body(node).await;
        } else {
            mesh_skip::skip(&format!(
                "this machine gives no namespaces to uid {}: {:?}",
                uid(),
                probe.layers
            ));
        }
    });
}

/// The levels that a task can be asked for here, the strongest first. A test that goes through them
/// says so when this machine lacks one.
pub async fn levels(node: &Node) -> Vec<Level> {
    let strongest = node.client.probe().await.unwrap().strongest;
    let (there, missing): (Vec<Level>, Vec<Level>) =
        [Level::Strict, Level::Basic, Level::None].into_iter().partition(|level| *level <= strongest);
    if !missing.is_empty() {
        mesh_skip::skip(&format!("this machine does not give {missing:?} to uid {}", uid()));
    }
    there
}

/// How a strict task may be kept here: under root by a keeper that stands, or by one of its own as
/// everywhere.
pub fn ways() -> Vec<Vec<Wall>> {
    if root() { vec![vec![], vec![Wall::Standing]] } else { vec![vec![]] }
}

pub fn world_readable_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// What one attempt left.
#[derive(Debug)]
pub struct Ended {
    pub record: ExitRecord,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub cuts: usize,
}

impl Ended {
    pub fn out(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    pub fn err(&self) -> &str {
        str::from_utf8(&self.stderr).unwrap()
    }

    /// The cause, with what the task said should it be another.
    #[track_caller]
    pub fn expect(&self, cause: &ExitCause) -> &Self {
        assert_eq!(&self.record.cause, cause, "out: {} err: {}", self.out(), self.err());
        self
    }
}

/// A node's private directory with a jail in it, and a daemon's connection.
pub struct Node {
    pub dir: TempDir,
    pub client: Client,
    events: Option<Events>,
    started: HashMap<AttemptKey, Started>,
    ended: HashMap<AttemptKey, ExitRecord>,
    returned: HashSet<AttemptKey>,
    next: AtomicU64,
}

impl Node {
    pub async fn new() -> Self {
        let dir = world_readable_dir();
        fs::create_dir(dir.path().join("attempts")).unwrap();
        fs::write(dir.path().join("key.pem"), "the agent's private key").unwrap();
        let (client, events) = Client::ensure(&Self::options(dir.path())).await.unwrap();
        let (started, ended) = (HashMap::new(), HashMap::new());
        let returned = HashSet::new();
        Self { dir, client, events: Some(events), started, ended, returned, next: AtomicU64::new(1) }
    }

    pub fn options(dir: &Path) -> Options {
        Options { exe: Some(binary()), testing: true, ..Options::new(dir.join("jail")) }
    }

    /// A daemon that dies: the connection goes, nothing else does.
    pub fn disconnect(&mut self) {
        self.events = None;
        self.started.clear();
        self.ended.clear();
        self.returned.clear();
    }

    /// A new daemon.
    pub async fn reconnect(&mut self) {
        self.connect(Self::options(self.dir.path())).await;
    }

    pub async fn connect(&mut self, options: Options) {
        let (client, events) = Client::ensure(&options).await.unwrap();
        self.client = client;
        self.events = Some(events);
    }

    /// A request to run `argv` at the default level, its directories made.
    pub fn request(&self, argv: &[&str]) -> StartRequest {
        let job = JobNumber(self.next.fetch_add(1, Ordering::Relaxed));
        let attempt = AttemptKey { task: TaskKey { job, task: 0, index: 0 }, number: 1 };
        let attempt_dir = self.dir.path().join("attempts").join(attempt.to_string());
        let work_dir = attempt_dir.join("work");
        fs::create_dir_all(&work_dir).unwrap();
        let uid = root().then(task_uid);
        std::os::unix::fs::chown(&work_dir, uid, uid).unwrap();
        let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8")];
        StartRequest {
            attempt,
            argv: argv.iter().map(|&word| word.into()).collect(),
            env: env.map(|(name, value)| (name.into(), value.into())).into(),
            work_dir,
            attempt_dir,
            uid,
            gid: uid,
            level: Level::Basic,
            timeout: None,
            grace: Duration::from_secs(1),
            max_output: 64 << 20,
            limits: Rlimits::default(),
            hidden: vec![self.dir.path().to_owned()],
            network: Network::None,
            mounts: Vec::new(),
            bounds: Bounds::default(),
            room: None,
            without: Vec::new(),
            lease: None,
            after: None,
            slot: None,
        }
    }

    pub fn shell(&self, script: &str) -> StartRequest {
        self.request(&["/bin/sh", "-c", script])
    }

    pub async fn start(&self, request: &StartRequest) {
        self.client.start(request.clone()).await.unwrap();
    }

    async fn next_event(&mut self) {
        let event = tokio::time::timeout(PATIENCE, self.events.as_mut().unwrap().recv());
        match event.await.expect("the jail told nothing in time").expect("the jail is gone") {
            Event::Started(started) => {
                self.started.insert(started.attempt, started);
            }
            Event::Ended(record) => {
                self.ended.insert(record.attempt, record);
            }
            Event::Returned(attempt) => {
                self.returned.insert(attempt);
            }
        }
    }

    pub async fn started(&mut self, request: &StartRequest) -> Started {
        loop {
            if let Some(started) = self.started.get(&request.attempt) {
                return *started;
            }
            assert!(!self.ended.contains_key(&request.attempt), "ended: {:?}", self.ended[&request.attempt]);
            self.next_event().await;
        }
    }

    /// Waits until what was to stand in line is given back.
    pub async fn returned(&mut self, request: &StartRequest) {
        while !self.returned.contains(&request.attempt) {
            assert!(!self.ended.contains_key(&request.attempt), "ended: {:?}", self.ended[&request.attempt]);
            self.next_event().await;
        }
    }

    /// Waits until it has ended, or is given back and has not begun; whether it has ended.
    pub async fn is_over(&mut self, request: &StartRequest) -> bool {
        while !self.ended.contains_key(&request.attempt) && !self.returned.contains(&request.attempt) {
            self.next_event().await;
        }
        self.ended.contains_key(&request.attempt)
    }

    /// Waits for the end of what was started with `request`.
    pub async fn ended(&mut self, request: &StartRequest) -> Ended {
        loop {
            if let Some(record) = self.ended.get(&request.attempt) {
                return read(request, record.clone());
            }
            self.next_event().await;
        }
    }

    pub async fn run(&mut self, request: StartRequest) -> Ended {
        self.start(&request).await;
        self.ended(&request).await
    }

    /// Waits until the task has written `text` to its output.
    pub async fn says(&self, request: &StartRequest, text: &str) {
        let spool = request.attempt_dir.join(SPOOL);
        until(&format!("the task to say {text:?}"), || {
            let bytes = fs::read(&spool).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever the test left running goes with the jail.
        let pid = rustix::process::Pid::from_raw(self.client.jail_pid() as i32);
        if let Some(pid) = pid {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Reads an attempt's spool: it must be whole, as long as the record says, and stamped in order.
fn read(request: &StartRequest, record: ExitRecord) -> Ended {
    let bytes = fs::read(request.attempt_dir.join(SPOOL)).unwrap_or_default();
    assert_eq!(bytes.len() as u64, record.spool_len, "the record lies about the spool");
    let mut ended = Ended { record, stdout: Vec::new(), stderr: Vec::new(), cuts: 0 };
    let mut decoder = Decoder::default();
    let mut time = 0;
    for piece in bytes.chunks(1 << 20) {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame().unwrap() {
            assert!(frame.time_ms >= time, "frames out of order");
            time = frame.time_ms;
            let stream = match frame.kind {
                Kind::Stdout => &mut ended.stdout,
                Kind::Stderr => &mut ended.stderr,
                Kind::Cut => {
                    ended.cuts += 1;
                    continue;
                }
            };
            assert_eq!(frame.offset, stream.len() as u64, "a hole in the output");
            stream.extend_from_slice(&frame.data);
        }
    }
    assert_eq!(decoder.pending(), 0, "the spool ends in a torn frame");
    ended
}

/// Waits for a condition on the machine.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Pids of processes whose command line holds `mark`.
pub fn processes(mark: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// A word that no other process on this machine has in its command line.
pub fn mark() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!("{}{time}{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
