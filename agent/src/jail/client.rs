//! The daemon's hand on the jail: finds or starts it, asks it for things, hears of ends.
//! The one file of this room that runs in the daemon. A connection that breaks is not
//! mended in here: `Events` ends, every call fails, and the daemon calls `ensure` again,
//! after which all that was not forgotten is told once more.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_proto::ids::AttemptKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    sync::{mpsc, oneshot},
};

use super::{
    protocol::{
        Answer, Call, Event, Hello, LEASES, LINES, MOUNTS, Message, Mount, Op, Probe, ProtocolError, ROOMS,
        SOCKET, StartRequest, Status, decode, encode,
    },
    scope,
};
use crate::spawn::spawn;

/// Calls that wait to be sent.
const CALLS: usize = 256;
/// Events that the daemon has not taken yet; past this the connection is dropped and the
/// next one is told everything again.
const EVENTS: usize = 200_000;
/// How long a jail may take to start or to answer the hello.
const PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong between daemon and jail.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no jail answers in {}", dir.display())]
    Connect {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the jail ({})", exe.display())]
    Start {
        exe: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the jail did not start: {0}")]
    NotStarted(String),
    #[error(
        "the running jail speaks protocol {theirs}, this agent {ours}: end its tasks with the version that started it"
    )]
    Version { theirs: u32, ours: u32 },
    #[error("the jail's socket belongs to uid {0}")]
    Stranger(u32),
    #[error("the connection to the jail is closed")]
    Closed,
    #[error("the jail did not answer the greeting in time")]
    Silent,
    /// The jail will not do it; the text is for people.
    #[error("the jail refuses: {0}")]
    Refused(String),
    #[error("the jail answered something else than was asked")]
    Unexpected,
    #[error("talking to the jail")]
    Io(#[from] io::Error),
    #[error("talking to the jail")]
    Protocol(#[from] ProtocolError),
}

/// Where the jail lives and how it is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The jail's own directory, private to the agent; made when missing.
    pub dir: PathBuf,
    /// The program to run as `… jail`; none: this one.
    pub exe: Option<PathBuf>,
    /// How long tasks run on when no daemon is connected.
    pub orphan_timeout: Duration,
    /// Requests may leave parts of a level away; for tests.
    pub testing: bool,
}

impl Options {
    /// This program, and a day for orphans.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), exe: None, orphan_timeout: Duration::from_hours(24), testing: false }
    }
}

/// The stream of what the jail tells; ends when the connection does, and the connection with it.
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event, or none when the connection is gone.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

struct Asked {
    op: Op,
    answer: oneshot::Sender<Answer>,
}

/// Runs this command as the jail of `options`; it ends once a jail listens.
async fn run_jail(
    mut command: Command,
    options: &Options,
    variable: Option<(&str, PathBuf)>,
) -> Result<(), ClientError> {
    let output = command
        .args([OsStr::new("jail"), OsStr::new("--detach"), OsStr::new("--dir"), options.dir.as_os_str()])
        .arg("--orphan-timeout")
        .arg(mesh_proto::duration::format_duration(options.orphan_timeout))
        .args(options.testing.then_some("--testing"))
        // It keeps its environment for as long as it lives; the daemon's may hold a join token.
        .env_clear()
        .envs(variable)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .output()
        .await
        .map_err(|source| ClientError::Start {
            exe: PathBuf::from(command.as_std().get_program()),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(ClientError::NotStarted(text.trim().chars().take(1000).collect()))
}

/// A connection to a jail; clones share it.
#[derive(Clone)]
pub struct Client {
    calls: mpsc::Sender<Asked>,
    jail_pid: u32,
    jail_version: u32,
}

impl Client {
    /// Connects to the jail of `dir`. The newest connection is the one that hears events;
    /// an older one is closed by the jail.
    pub async fn connect(dir: &Path) -> Result<(Self, Events), ClientError> {
        let connect = |source| ClientError::Connect { dir: dir.to_owned(), source };
        let mut stream = {
            // Through a descriptor of the directory: a socket's path must be under 108 bytes.
            let handle = File::open(dir).map_err(connect)?;
            let path = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
            UnixStream::connect(path).await.map_err(connect)?
        };
        let peer = stream.peer_cred()?.uid();
        if peer != rustix::process::geteuid().as_raw() {
            return Err(ClientError::Stranger(peer));
        }
        stream.write_all(&encode(&Hello::ours())?).await?;
        let mut buffer = Vec::new();
        let hello = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(hello) = decode::<Hello>(&mut buffer)? {
                    return Ok::<_, ClientError>(hello);
                }
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(ClientError::Closed);
                }
            }
        })
        .await
        .map_err(|_| ClientError::Silent)??;
        if !hello.suits() {
            return Err(ClientError::Version { theirs: hello.version, ours: Hello::ours().version });
        }
        let (calls, asked) = mpsc::channel(CALLS);
        let (told, events) = mpsc::channel(64);
        spawn("jail connection", async move {
            if let Err(error) = Connection::new(stream, buffer, told).run(asked).await {
                tracing::warn!(%error, "connection to the jail lost");
            }
        });
        Ok((Self { calls, jail_pid: hello.pid, jail_version: hello.version }, Events(events)))
    }

    /// Connects to the living jail of `options.dir`, or starts one in a session of its own.
    pub async fn ensure(options: &Options) -> Result<(Self, Events), ClientError> {
        let patience = Instant::now() + PATIENCE;
        let mut started = false;
        loop {
            let error = match Self::connect(&options.dir).await {
                Ok(connected) => return Ok(connected),
                Err(error @ (ClientError::Version { .. } | ClientError::Stranger(_))) => return Err(error),
                Err(error) => error,
            };
            if started {
                if Instant::now() > patience {
                    return Err(error);
                }
                // A jail that is ending still holds its directory.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Self::start_jail(options).await?;
            started = true;
        }
    }

    /// Runs `agent jail --detach`, which returns once the jail listens or another one does: in a
    /// scope of its own where systemd gives one.
    async fn start_jail(options: &Options) -> Result<(), ClientError> {
        let exe = options.exe.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let runtime = scope::runtime_dir();
        let pid = std::process::id();
        if let Some(prefix) = scope::prefix("/".as_ref(), runtime.as_deref(), pid, &options.dir) {
            // This program as another process finds it, also when its file was replaced.
            let own = || std::env::current_exe().ok().filter(|exe| exe.is_file());
            let exe = options.exe.clone().or_else(own).unwrap_or_else(|| format!("/proc/{pid}/exe").into());
            let mut command = Command::new(&prefix[0]);
            command.args(&prefix[1..]).arg(exe);
            let runtime = runtime.map(|dir| ("XDG_RUNTIME_DIR", dir));
            match run_jail(command, options, runtime).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "systemd gave the jail no scope; it starts as a part of what the agent runs in"
                ),
            }
        }
        let mut command = Command::new(exe);
        command.arg0("mesh-agent-jail");
        run_jail(command, options, None).await
    }

    /// The jail's process id.
    pub fn jail_pid(&self) -> u32 {
        self.jail_pid
    }

    /// Whether the jail ends what lives on a lease: one of an older version does not.
    pub fn knows_leases(&self) -> bool {
        self.jail_version >= LEASES
    }

    /// What lives on a lease may live until this moment of the boot-time clock. Not for a jail that
    /// knows no leases.
    pub async fn lease(&self, until: Duration) -> Result<(), ClientError> {
        self.ask_done(Op::Lease { until }).await
    }

    async fn ask(&self, op: Op) -> Result<Answer, ClientError> {
        let (answer, wait) = oneshot::channel();
        self.calls.send(Asked { op, answer }).await.map_err(|_| ClientError::Closed)?;
        match wait.await.map_err(|_| ClientError::Closed)? {
            Answer::Refused(reason) => Err(ClientError::Refused(reason)),
            answer @ (Answer::Done | Answer::List(_) | Answer::Probe(_) | Answer::Left(_)) => Ok(answer),
        }
    }

    async fn ask_done(&self, op: Op) -> Result<(), ClientError> {
        match self.ask(op).await? {
            Answer::Done => Ok(()),
            Answer::List(_) | Answer::Probe(_) | Answer::Left(_) | Answer::Refused(_) => {
                Err(ClientError::Unexpected)
            }
        }
    }

    /// Starts an attempt; what becomes of it is told as events. An attempt that runs or has
    /// ended is not started again: its events are told once more instead.
    pub async fn start(&self, request: StartRequest) -> Result<(), ClientError> {
        self.ask_done(Op::Start(Box::new(request))).await
    }

    /// Ends an attempt: SIGTERM to all of its processes, after `grace` SIGKILL. Returns once
    /// that is under way; the end is told as an event. Nothing happens to an ended attempt;
    /// an unknown one is refused.
    pub async fn kill(&self, attempt: AttemptKey, grace: Duration) -> Result<(), ClientError> {
        self.ask_done(Op::Kill { attempt, grace }).await
    }

    /// Every attempt that runs, or ended and is not forgotten.
    pub async fn list(&self) -> Result<Vec<Status>, ClientError> {
        match self.ask(Op::List).await? {
            Answer::List(list) => Ok(list),
            Answer::Done | Answer::Probe(_) | Answer::Left(_) | Answer::Refused(_) => {
                Err(ClientError::Unexpected)
            }
        }
    }

    /// Drops an ended attempt from the jail's memory; its files stay. An unknown attempt is
    /// forgotten already; a running one is refused.
    pub async fn forget(&self, attempt: AttemptKey) -> Result<(), ClientError> {
        self.ask_done(Op::Forget { attempt }).await
    }

    /// Whether the jail makes attempts' directories itself.
    pub fn makes_rooms(&self) -> bool {
        self.jail_version >= ROOMS
    }

    /// Whether attempts may stand in line in the jail ([`StartRequest::after`]).
    pub fn knows_lines(&self) -> bool {
        self.jail_version >= LINES
    }

    /// Drops ended attempts from the jail's memory and takes back what it made for them; gives those of
    /// which something may be left on disk. One that runs is such a one too, and stays.
    pub async fn clear(&self, attempts: Vec<AttemptKey>) -> Result<Vec<AttemptKey>, ClientError> {
        if !self.makes_rooms() {
            for &attempt in &attempts {
                match self.forget(attempt).await {
                    Ok(()) | Err(ClientError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(attempts);
        }
        match self.ask(Op::Clear { attempts }).await? {
            Answer::Left(attempts) => Ok(attempts),
            Answer::Done | Answer::List(_) | Answer::Probe(_) | Answer::Refused(_) => {
                Err(ClientError::Unexpected)
            }
        }
    }

    /// What this machine can do, as the jail proved it when it started.
    pub async fn probe(&self) -> Result<Probe, ClientError> {
        match self.ask(Op::Probe).await? {
            Answer::Probe(probe) => Ok(probe),
            Answer::Done | Answer::List(_) | Answer::Left(_) | Answer::Refused(_) => {
                Err(ClientError::Unexpected)
            }
        }
    }

    /// Whether a task can be given this directory: [`ClientError::Refused`] says why not. A jail that is
    /// too old to try says yes.
    pub async fn try_mount(&self, mount: Mount) -> Result<(), ClientError> {
        if self.jail_version < MOUNTS {
            return Ok(());
        }
        self.ask_done(Op::TryMount(mount)).await
    }

    /// Ends the jail. With tasks running it is refused, unless `kill_all`: then each gets
    /// SIGTERM, its grace, SIGKILL, and its end is told before the connection closes.
    pub async fn shutdown(&self, kill_all: bool) -> Result<(), ClientError> {
        self.ask_done(Op::Shutdown { kill_all }).await
    }
}

/// The socket and what waits on it, owned by one background task.
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    last_id: u64,
    /// Kept here, not in the channel, so that a daemon that asks while it handles an event
    /// can never wait for itself.
    untold: VecDeque<Event>,
    told: mpsc::Sender<Event>,
}

impl Connection {
    fn new(stream: UnixStream, buffer: Vec<u8>, told: mpsc::Sender<Event>) -> Self {
        Self { stream, buffer, waiting: HashMap::new(), last_id: 0, untold: VecDeque::new(), told }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) -> Result<(), ClientError> {
        loop {
            while let Some(message) = decode::<Message>(&mut self.buffer)? {
                self.take(message)?;
            }
            tokio::select! {
                call = asked.recv() => {
                    let Some(Asked { op, answer }) = call else { return Ok(()) };
                    self.last_id += 1;
                    let bytes = match encode(&Call { id: self.last_id, op }) {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            let _gone = answer.send(Answer::Refused(error.to_string()));
                            continue;
                        }
                    };
                    self.waiting.insert(self.last_id, answer);
                    self.stream.write_all(&bytes).await?;
                }
                read = self.stream.read_buf(&mut self.buffer) => {
                    if read? == 0 {
                        // What has arrived is still told before the stream of events ends.
                        self.waiting.clear();
                        for event in self.untold {
                            if self.told.send(event).await.is_err() {
                                break;
                            }
                        }
                        return Ok(());
                    }
                }
                () = self.told.closed() => return Ok(()),
                permit = self.told.reserve(), if !self.untold.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(event) = self.untold.pop_front() {
                        permit.send(event);
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<(), ClientError> {
        match message {
            Message::Answer { id, answer } => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    let _gone = waiting.send(answer);
                }
            }
            Message::Event(event) => {
                if self.untold.len() >= EVENTS {
                    return Err(ClientError::Closed);
                }
                self.untold.push_back(event);
            }
        }
        Ok(())
    }
}
