//! What the daemon and the jail say to each other: length-prefixed JSON over a unix socket.
//! The first message each way is a hello with versions; a version talks to the one before.
//! May enter: plain data. Adding an optional field keeps the version; anything else raises it.

use std::{path::PathBuf, time::Duration};

use mesh_proto::ids::AttemptKey;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of this protocol. From 2 on there are leases, from 3 on the jail makes directories, from 4
/// on it tries mounts, from 5 on attempts stand in line.
pub const VERSION: u32 = 5;
/// The first version that knows leases.
pub const LEASES: u32 = 2;
/// The first version that takes [`StartRequest::room`] and [`Op::Clear`].
pub const ROOMS: u32 = 3;
/// The first version that knows [`Op::TryMount`].
pub const MOUNTS: u32 = 4;
/// The first version that knows [`StartRequest::after`] and [`Event::Returned`].
pub const LINES: u32 = 5;
/// The oldest version that this side still speaks.
pub const OLDEST: u32 = 1;
/// The largest message, in bytes: 128 KiB of argv and environment with every byte escaped fit.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// How long an attempt may stand in line.
pub const IN_LINE: Duration = Duration::from_millis(20);
/// Name of the jail's socket in its directory.
pub const SOCKET: &str = "jail.sock";
/// Where a strict task finds its work directory.
pub const WORK: &str = "/work";
/// Name of the output file in an attempt directory (frames of `mesh_proto::frame`).
pub const SPOOL: &str = "spool";

/// How a task is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Own session and clean environment; the kill is a hunt for descendants.
    None,
    /// Own pid and mount namespace: a sure kill, and the agent's files out of reach.
    Basic,
    /// Every namespace, a file tree of its own, no privileges, a short list of system calls, limits.
    Strict,
}

/// What of the network a task reaches (level strict; the others share the host's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A loopback of its own.
    #[default]
    None,
    /// The host's.
    Host,
}

/// A directory of the host that a task sees (level strict).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, on the host.
    pub source: PathBuf,
    /// Absolute, in the task's tree; made there.
    pub to: PathBuf,
    pub read_only: bool,
    /// The owner of the files on the host that the task's uid stands for; none: nobody's, files
    /// keep their owners.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
}

/// What an attempt as a whole may use (level strict). None: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Bytes of memory; files in /tmp and /dev/shm count. Without cgroups: of each process.
    pub memory: Option<u64>,
    /// Processes and threads at a time. Without cgroups: of the slot's uid.
    pub processes: Option<u64>,
    /// Thousandths of a core. Without cgroups: not held.
    pub cpu_millis: Option<u64>,
    /// Bytes that the work directory may come to hold.
    pub disk: Option<u64>,
    /// Files that the work directory may come to hold.
    pub files: Option<u64>,
}

/// A layer of level strict, to be taken away by the tests that show what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wall {
    /// The file tree of its own: the host's is seen, but for what is hidden.
    Tree,
    /// The new pid namespace's own /proc.
    Proc,
    Network,
    Ipc,
    /// The loss of capabilities (and the user namespace above it).
    Capabilities,
    NoNewPrivileges,
    Seccomp,
    Landlock,
    /// The limits of the cgroup or, without one, of the processes.
    Limits,
    /// The bound of the work directory.
    Disk,
    /// No wall: a keeper that stands, for the tests of what has one of its own.
    Standing,
}

/// Limits of the task's processes; each is lowered to what the jail itself may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Open files of one process.
    pub nofile: u64,
    /// Processes of the task's uid; none: as the jail's own.
    pub nproc: Option<u64>,
    /// Bytes of a core file. 1: none, nor what the machine has for crashes started (`core_pattern`), which
    /// the kernel does as root and outside of the sandbox for a limit of 0 too.
    pub core: u64,
    /// Bytes of one written file; none: as the jail's own.
    pub fsize: Option<u64>,
}

impl Default for Rlimits {
    fn default() -> Self {
        Self { nofile: 65536, nproc: None, core: 1, fsize: None }
    }
}

/// Everything that the jail needs to run one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    pub attempt: AttemptKey,
    /// The command; a first word without `/` is searched in the environment's `PATH`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Absolute; exists, without `room`, and belongs to the uid that the task gets.
    pub work_dir: PathBuf,
    /// Absolute; exists, without `room`; the jail writes spool and exit record here. Neither inside the work
    /// directory nor the same.
    pub attempt_dir: PathBuf,
    /// As root: the slot's own uid, never 0. Otherwise none, or the caller's own.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub level: Level,
    /// From the process start, on a boot-time clock; none: no limit.
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL when the timeout or a shutdown ends it.
    pub grace: Duration,
    /// Bytes of output, both streams together, before it is cut; the spool is at most about twice as
    /// long (frames have headers), or output in tiny pieces is cut earlier.
    pub max_output: u64,
    pub limits: Rlimits,
    /// Directories that the task must not see (level basic; at level strict none is seen). The work directory may lie in
    /// one of them. The attempt directory and the jail's own need not be named.
    pub hidden: Vec<PathBuf>,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub bounds: Bounds,
    /// The jail is to make the attempt directory, which bears the attempt's name, with what is said
    /// here; `work_dir` is `work` in it.
    #[serde(default)]
    pub room: Option<Room>,
    /// What to leave away of level strict; refused by a jail that was not started for tests.
    #[serde(default)]
    pub without: Vec<Wall>,
    /// It lives on a lease, which ends at this moment of the boot-time clock unless [`Op::Lease`]
    /// prolongs it; one that is over starts nothing. None: it needs no lease.
    #[serde(default)]
    pub lease: Option<Duration>,
    /// It stands in line: it starts when this attempt, in whose slot it is to run, is over. When that is
    /// not so soon ([`IN_LINE`]), or this attempt neither runs in this `slot` nor stands in line for it, it
    /// is told as [`Event::Returned`].
    #[serde(default)]
    pub after: Option<AttemptKey>,
    /// The slot in which it is to run; none: nobody stands in line with one that has a slot.
    #[serde(default)]
    pub slot: Option<u32>,
}

/// What an attempt directory is to hold before the process is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes of the file `record`.
    #[serde(with = "hexadecimal")]
    pub record: Vec<u8>,
    /// Text of `work/.mesh/script`; empty: no such file.
    pub script: String,
}

/// Bytes in JSON.
mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Why an attempt's process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The command returned; 127 and 126 also stand for a command that is not there or cannot
    /// be executed, as in a shell, with a line on the task's stderr that says so.
    Exited(i32),
    /// A signal from elsewhere ended it.
    Signalled(i32),
    /// It passed its timeout.
    TimedOut,
    /// Ended on request.
    Killed,
    /// It used more memory than it may.
    OutOfMemory,
    /// It wrote more than it may; the text is for people.
    DiskFull(String),
    /// The machine could not start it; the text is for people.
    SpawnFailed(String),
    /// The machine could not keep its output (a full disk), so it was ended; the text is for people.
    OutputLost(String),
}

/// How an attempt ended; kept in its directory, see `record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub attempt: AttemptKey,
    pub cause: ExitCause,
    /// Unix milliseconds; 0: it never ran.
    pub started_at_ms: u64,
    /// Unix milliseconds.
    pub ended_at_ms: u64,
    /// Milliseconds on a boot-time clock.
    pub run_ms: u64,
    /// Processor time of everything the attempt ran, in milliseconds.
    pub cpu_ms: u64,
    /// The largest resident set of any of its processes, in bytes.
    pub max_rss_bytes: u64,
    /// Bytes of the spool, frame headers counted; nothing is added any more.
    pub spool_len: u64,
    pub output_cut: bool,
    /// Who ended it, when the cause is [`ExitCause::Killed`].
    #[serde(default)]
    pub killer: Killer,
    /// Nothing was ever written into its work directory.
    #[serde(default)]
    pub untouched: bool,
}

/// Who ended an attempt that did not end by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Killer {
    /// A daemon or an operator asked for it.
    #[default]
    Request,
    /// Its lease was over.
    Lease,
    /// No daemon came for too long.
    Orphaned,
}

/// The command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub attempt: AttemptKey,
    /// The command's process, as seen from the jail.
    pub pid: i32,
    /// Its start in clock ticks since boot (`/proc/PID/stat`, field 22); 0 when it was gone
    /// before one could look.
    pub start_time: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
}

/// What the jail tells unasked. All that was not forgotten is told again on each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Started(Started),
    Ended(ExitRecord),
    /// It stood in line, has not begun, and is forgotten: it may be asked for again.
    Returned(AttemptKey),
}

/// Where an attempt stands in the jail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its processes are being set up; the command does not run yet.
    Starting,
    Running(Started),
    Ended(ExitRecord),
}

/// One attempt that the jail knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub attempt: AttemptKey,
    pub state: State,
}

/// One layer of confinement, tried on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub name: String,
    pub present: bool,
    /// When absent: what an operator can do; else empty.
    pub remedy: String,
}

/// What this machine can do, each part proved by doing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub strongest: Level,
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub limits: Limits,
}

/// What holds [`Bounds`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limits {
    /// The limits of single processes.
    #[default]
    Rlimit,
    /// A control group for each slot.
    Cgroup,
}

/// The first message, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// The oldest version that the sender speaks.
    pub oldest: u32,
    pub pid: u32,
}

impl Hello {
    /// This side's.
    pub fn ours() -> Self {
        Self { version: VERSION, oldest: OLDEST, pid: std::process::id() }
    }

    /// Whether a sender of this hello and this side understand each other.
    pub fn suits(self) -> bool {
        self.version >= OLDEST && self.oldest <= VERSION
    }
}

/// What a daemon asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Start(Box<StartRequest>),
    Kill {
        attempt: AttemptKey,
        grace: Duration,
    },
    List,
    Forget {
        attempt: AttemptKey,
    },
    /// Every attempt that lives on a lease may live until this moment of the boot-time clock; an
    /// earlier moment than was said before changes nothing.
    Lease {
        until: Duration,
    },
    /// Forget ended attempts and take back what the jail made for them on disk.
    Clear {
        attempts: Vec<AttemptKey>,
    },
    Probe,
    /// Try whether a task can be given this directory; refused with the reason when not.
    TryMount(Mount),
    /// End; with tasks running only when they are to be killed.
    Shutdown {
        kill_all: bool,
    },
}

/// A request with the number that its reply bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub op: Op,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    List(Vec<Status>),
    Probe(Probe),
    /// Of these there is something on disk that is not the jail's to remove.
    Left(Vec<AttemptKey>),
    /// The request makes no sense here; the text is for people.
    Refused(String),
}

/// What the jail sends after its hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    Answer { id: u64, answer: Answer },
    Event(Event),
}

/// The other side does not speak this protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("message of {0} bytes, at most {MAX_MESSAGE} are allowed")]
    Length(usize),
    #[error("cannot read the message")]
    Json(#[from] serde_json::Error),
}

/// Encodes a message with its length before it (u32, little endian).
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(ProtocolError::Length(length));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Takes one message off the front of `buffer`, if a whole one is there.
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, ProtocolError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_MESSAGE {
        return Err(ProtocolError::Length(length));
    }
    let Some(body) = buffer.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice(body)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::{JobNumber, TaskKey};

    use super::*;

    #[test]
    fn messages_survive_being_cut_and_joined() {
        let attempt = AttemptKey { task: TaskKey { job: JobNumber(7), task: 1, index: 2 }, number: 3 };
        let calls = [
            Call { id: 1, op: Op::Kill { attempt, grace: Duration::from_millis(1500) } },
            Call { id: 2, op: Op::List },
        ];
        let bytes: Vec<u8> = calls.iter().flat_map(|call| encode(call).unwrap()).collect();
        let mut buffer = Vec::new();
        let mut got = Vec::new();
        for piece in bytes.chunks(3) {
            buffer.extend_from_slice(piece);
            while let Some(call) = decode::<Call>(&mut buffer).unwrap() {
                got.push(call);
            }
        }
        assert_eq!(got, calls);
    }

    #[test]
    fn a_lying_length_is_refused_before_any_memory_is_taken() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(decode::<Call>(&mut buffer), Err(ProtocolError::Length(_))));
    }

    #[test]
    fn versions_that_overlap_understand_each_other() {
        assert!(Hello { version: VERSION + 1, oldest: VERSION, pid: 1 }.suits());
        assert!(!Hello { version: VERSION + 2, oldest: VERSION + 1, pid: 1 }.suits());
        assert!(!Hello { version: OLDEST - 1, oldest: 0, pid: 1 }.suits());
    }
}
