//! What the agent can be told: flags over environment over file over defaults.
//!
//! May enter: reading and checking of settings; nothing that acts on them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_proto::duration::parse_duration;
use mesh_proto::names::check_name;
use mesh_proto::size::parse_size;
use mesh_proto::v1;
use serde::Deserialize;

use crate::jail;

use crate::attempts::MAX_RUNNING;
use crate::backoff::RECONNECT_MS;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    File { path: PathBuf, message: String },
    #[error("{what} `{value}` {problem}")]
    Value { what: &'static str, value: String, problem: String },
    #[error("no data directory: neither --data-dir nor a home directory is known; give --data-dir")]
    NoDataDir,
}

/// The node daemon of Planetary Mesh.
#[derive(Debug, Parser)]
#[command(name = "agent", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enrol this machine in a mesh and exit
    Join {
        /// The token that `meshctl token create` printed; `-` reads it from standard input
        #[arg(env = "MESH_JOIN_TOKEN", hide_env_values = true)]
        token: String,
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Run the daemon: take tasks and run them until told to stop
    Run {
        /// Enrol first with this token, when not enrolled yet; `-` reads it from standard input
        #[arg(long, value_name = "TOKEN", env = "MESH_JOIN_TOKEN", hide_env_values = true)]
        join: Option<String>,
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Stop the daemon of this data directory: take nothing new, finish what is here
    Stop {
        /// End running tasks instead of waiting for them; they run again elsewhere
        #[arg(long)]
        kill: bool,
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Try each layer of the sandbox on this machine and say what is missing
    Check {
        #[command(flatten)]
        flags: Box<Flags>,
    },
}

/// A sandbox level as flags spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    None,
    Basic,
    Strict,
}

impl Level {
    pub fn wire(self) -> v1::SandboxLevel {
        match self {
            Self::None => v1::SandboxLevel::None,
            Self::Basic => v1::SandboxLevel::Basic,
            Self::Strict => v1::SandboxLevel::Strict,
        }
    }

    pub fn of_jail(self) -> jail::Level {
        match self {
            Self::None => jail::Level::None,
            Self::Basic => jail::Level::Basic,
            Self::Strict => jail::Level::Strict,
        }
    }
}

/// What of the network tasks may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowNetwork {
    None,
    Host,
}

/// A directory that the operator lets jobs mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedMount {
    pub path: PathBuf,
    pub read_only: bool,
    /// Whose files are the task's; none: files keep their owners.
    pub owner: Option<(u32, u32)>,
}

impl AllowedMount {
    /// `/PATH[:ro][:owner=UID[.GID]]`.
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |problem: &str| value("--allow-mount", text, problem);
        let mut parts = text.split(':');
        let path = PathBuf::from(parts.next().unwrap_or_default());
        if !path.is_absolute() {
            return Err(wrong("has no absolute path"));
        }
        let mut mount = Self { path, read_only: false, owner: None };
        for part in parts {
            match part.split_once('=') {
                None if part == "ro" => mount.read_only = true,
                Some(("owner", ids)) => {
                    let (uid, gid) = ids.split_once('.').unwrap_or((ids, ids));
                    let number = |id: &str| {
                        id.parse().map_err(|_| wrong("has an owner that is no UID or UID.GID in numbers"))
                    };
                    mount.owner = Some((number(uid)?, number(gid)?));
                }
                None | Some(_) => return Err(wrong("has an option other than `ro` and `owner=UID[.GID]`")),
            }
        }
        Ok(mount)
    }
}

/// The flags of every command; each has its environment variable and its key in the file.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Where identity, attempts and cached files are kept
    #[arg(long, value_name = "DIR", env = "MESH_AGENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// A TOML file with any of these settings, spelt with `_` for `-`
    #[arg(long, value_name = "FILE", env = "MESH_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// The node's name in the mesh [default: the host name]
    #[arg(long, env = "MESH_AGENT_NAME")]
    pub name: Option<String>,
    /// Tasks at a time [default: the number of cores]
    #[arg(long, value_name = "N", env = "MESH_AGENT_SLOTS")]
    pub slots: Option<u32>,
    /// Memory for tasks, such as 8GiB [default: all but a reserve]
    #[arg(long, value_name = "SIZE", env = "MESH_AGENT_MEMORY")]
    pub memory: Option<String>,
    /// Something true of this node, such as zone=lab; repeatable
    #[arg(long, value_name = "KEY=VALUE", env = "MESH_AGENT_TAG", value_delimiter = ',')]
    pub tag: Vec<String>,
    /// Something that this node can do, such as ffmpeg; repeatable
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_CAPABILITY", value_delimiter = ',')]
    pub capability: Vec<String>,
    /// Units of something that tasks use up while they run, such as licence=2; repeatable
    #[arg(long, value_name = "NAME=N", env = "MESH_AGENT_RESOURCE", value_delimiter = ',')]
    pub resource: Vec<String>,
    /// The weakest sandbox that this node accepts [default: strict]
    #[arg(long, value_name = "LEVEL", env = "MESH_AGENT_SANDBOX_ALLOW")]
    pub sandbox_allow: Option<Level>,
    /// A directory that jobs may mount by name, such as data=/srv/data:ro; repeatable. With
    /// `:owner=UID[.GID]` the files of that owner are the task's
    #[arg(
        long,
        value_name = "NAME=/PATH[:ro][:owner=UID[.GID]]",
        env = "MESH_AGENT_ALLOW_MOUNT",
        value_delimiter = ','
    )]
    pub allow_mount: Vec<String>,
    /// The most of the network that a task may ask for: none or host [default: host]
    #[arg(long, value_name = "KIND", env = "MESH_AGENT_ALLOW_NETWORK")]
    pub allow_network: Option<AllowNetwork>,
    /// Serve /metrics and /healthz there [default: off]
    #[arg(long, value_name = "HOST:PORT", env = "MESH_AGENT_HTTP_LISTEN")]
    pub http_listen: Option<SocketAddr>,
    /// First of the user ids that tasks run as when the agent is root, one for each slot
    /// [default: from 300000 on, different for each data directory]
    #[arg(long, value_name = "UID", env = "MESH_AGENT_UID_BASE")]
    pub uid_base: Option<u32>,
}

/// The file, with the same settings and the ones that few need.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    name: Option<String>,
    slots: Option<u32>,
    memory: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    capabilities: Option<Vec<String>>,
    resources: Option<BTreeMap<String, u64>>,
    sandbox_allow: Option<Level>,
    allow_mounts: Option<BTreeMap<String, String>>,
    allow_network: Option<AllowNetwork>,
    http_listen: Option<SocketAddr>,
    uid_base: Option<u32>,
    reconnect_min: Option<String>,
    reconnect_max: Option<String>,
    connect_timeout: Option<String>,
    keepalive_interval: Option<String>,
    keepalive_timeout: Option<String>,
    orphan_timeout: Option<String>,
    transfer_stall: Option<String>,
    output_poll: Option<String>,
    progress_poll: Option<String>,
    max_output: Option<String>,
    max_output_files: Option<usize>,
    max_output_size: Option<String>,
    max_work_size: Option<String>,
    max_work_files: Option<u64>,
    max_processes: Option<u64>,
    cache_size: Option<String>,
}

/// Every setting, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub data_dir: PathBuf,
    /// As given; the host name otherwise.
    pub name: String,
    /// None: the number of cores.
    pub slots: Option<u32>,
    /// Bytes; none: all but a reserve.
    pub memory_bytes: Option<u64>,
    pub tags: BTreeMap<String, String>,
    pub capabilities: Vec<String>,
    pub resources: BTreeMap<String, u64>,
    pub sandbox_allow: Level,
    /// By name.
    pub mounts: BTreeMap<String, AllowedMount>,
    pub allow_network: AllowNetwork,
    pub http_listen: Option<SocketAddr>,
    pub uid_base: u32,
    pub timings: Timings,
    pub limits: Limits,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// The first wait before connecting again; doubled each time, with jitter.
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// How long tasks run on while no daemon is there; a running jail keeps what it was started with.
    pub orphan_timeout: Duration,
    /// How long inputs on their way in and outputs on their way out may stand still while the coordinator
    /// is there, before the attempt ends with cause `infra`.
    pub transfer_stall: Duration,
    /// How often spools are looked at for new output.
    pub output_poll: Duration,
    /// How often progress files are looked at.
    pub progress_poll: Duration,
}

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Output that is kept of one attempt, stdout and stderr together, in bytes.
    pub max_output: u64,
    /// Files that one attempt may leave as outputs.
    pub max_output_files: usize,
    /// Bytes that these files may have together.
    pub max_output_size: u64,
    /// Bytes that a work directory may come to hold at level strict.
    pub max_work_size: u64,
    /// Files that it may come to hold.
    pub max_work_files: u64,
    /// Processes and threads that a task may have at a time.
    pub max_processes: u64,
    /// Size of the blob cache in bytes; none: the smaller of 10 GiB and a tenth of the disk.
    pub cache_size: Option<u64>,
}

impl Config {
    /// Merges flags (which clap filled from the environment already) over the file over defaults.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        Self::merge(flags, file)
    }

    fn merge(flags: &Flags, file: File) -> Result<Self, ConfigError> {
        let mut mounts = BTreeMap::new();
        for (name, text) in file.allow_mounts.unwrap_or_default() {
            mounts.insert(name, AllowedMount::parse(&text)?);
        }
        for text in &flags.allow_mount {
            let (name, mount) = split("--allow-mount", text)?;
            mounts.insert(name.to_owned(), AllowedMount::parse(mount)?);
        }
        let data_dir = match flags.data_dir.clone().or(file.data_dir) {
            Some(dir) => dir,
            None => default_data_dir().ok_or(ConfigError::NoDataDir)?,
        };
        let mut tags = file.tags.unwrap_or_default();
        for text in &flags.tag {
            let (key, value) = split("--tag", text)?;
            tags.insert(key.to_owned(), value.to_owned());
        }
        let mut resources = file.resources.unwrap_or_default();
        for text in &flags.resource {
            let (name, units) = split("--resource", text)?;
            let units =
                units.parse().map_err(|_| value("--resource", text, "is not NAME=N, N a whole number"))?;
            resources.insert(name.to_owned(), units);
        }
        let mut capabilities = file.capabilities.unwrap_or_default();
        capabilities.extend(flags.capability.iter().cloned());
        capabilities.sort();
        capabilities.dedup();
        for (what, name) in (tags.keys().map(|key| ("tag", key)))
            .chain(resources.keys().map(|name| ("resource", name)))
            .chain(capabilities.iter().map(|name| ("capability", name)))
            .chain(mounts.keys().map(|name| ("mount", name)))
        {
            check_name(name).map_err(|error| value(what, name, &error.to_string()))?;
        }
        if let Some((key, long)) = tags.iter().find(|(_, text)| text.len() > 256) {
            return Err(value(
                "tag",
                key,
                &format!("has a value of {} bytes, at most 256 are allowed", long.len()),
            ));
        }
        let name = match flags.name.clone().or(file.name) {
            Some(name) => {
                check_name(&name).map_err(|error| value("node name", &name, &error.to_string()))?;
                name
            }
            None => valid_name(&gethostname::gethostname().to_string_lossy()),
        };
        let slots = flags.slots.or(file.slots);
        if let Some(0 | 10_001..) = slots {
            let text = slots.unwrap_or_default().to_string();
            return Err(value("slots", &text, "is out of range: 1 to 10000 are possible"));
        }
        let memory = flags.memory.as_ref().or(file.memory.as_ref());
        let memory_bytes = memory.map(|text| size("memory", text)).transpose()?;
        let time = |what, text: Option<String>, default| match text {
            Some(text) => match parse_duration(&text) {
                Ok(Duration::ZERO) => Err(value(what, &text, "must be longer than 0")),
                Ok(duration) => Ok(duration),
                Err(error) => Err(ConfigError::Value { what, value: text, problem: error.to_string() }),
            },
            None => Ok(Duration::from_millis(default)),
        };
        let bytes = |what, text: Option<String>, default| match text {
            Some(text) => size(what, &text),
            None => Ok(default),
        };
        let uid_base = flags.uid_base.or(file.uid_base).unwrap_or_else(|| default_uids(&data_dir));
        if !(1000..=u32::MAX - 20_000).contains(&uid_base) {
            return Err(value(
                "uid base",
                &uid_base.to_string(),
                "is out of range: tasks never run as a system user",
            ));
        }
        let reconnect_min = time("reconnect_min", file.reconnect_min, RECONNECT_MS.0)?;
        Ok(Self {
            data_dir,
            name,
            slots,
            memory_bytes,
            tags,
            capabilities,
            resources,
            sandbox_allow: flags.sandbox_allow.or(file.sandbox_allow).unwrap_or(Level::Strict),
            mounts,
            allow_network: flags.allow_network.or(file.allow_network).unwrap_or(AllowNetwork::Host),
            http_listen: flags.http_listen.or(file.http_listen),
            uid_base,
            timings: Timings {
                reconnect_min,
                reconnect_max: time("reconnect_max", file.reconnect_max, RECONNECT_MS.1)?.max(reconnect_min),
                connect_timeout: time("connect_timeout", file.connect_timeout, 2_000)?,
                keepalive_interval: time("keepalive_interval", file.keepalive_interval, 5_000)?,
                keepalive_timeout: time("keepalive_timeout", file.keepalive_timeout, 5_000)?,
                orphan_timeout: time("orphan_timeout", file.orphan_timeout, 24 * 3_600_000)?,
                transfer_stall: time("transfer_stall", file.transfer_stall, 1_800_000)?,
                output_poll: time("output_poll", file.output_poll, 20)?,
                progress_poll: time("progress_poll", file.progress_poll, 250)?,
            },
            limits: Limits {
                max_output: bytes("max_output", file.max_output, 1 << 30)?,
                max_output_files: file.max_output_files.unwrap_or(10_000),
                max_output_size: bytes("max_output_size", file.max_output_size, 100 << 30)?,
                max_work_size: bytes("max_work_size", file.max_work_size, 100 << 30)?,
                max_work_files: file.max_work_files.unwrap_or(2_000_000),
                max_processes: file.max_processes.unwrap_or(4096),
                cache_size: file.cache_size.map(|text| size("cache_size", &text)).transpose()?,
            },
        })
    }
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::File { path: path.to_owned(), message: error.to_string() })
}

fn value(what: &'static str, value: &str, problem: &str) -> ConfigError {
    ConfigError::Value { what, value: value.to_owned(), problem: problem.to_owned() }
}

fn size(what: &'static str, text: &str) -> Result<u64, ConfigError> {
    match parse_size(text) {
        Ok(0) => Err(value(what, text, "must be more than 0")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(value(what, text, &format!("is not usable: {error}"))),
    }
}

fn split<'a>(what: &'static str, text: &'a str) -> Result<(&'a str, &'a str), ConfigError> {
    text.split_once('=').ok_or_else(|| value(what, text, "lacks its `=`"))
}

/// Where the users of this agent's tasks begin: agents that share a machine have data
/// directories of their own, and their tasks must not be each other's users.
fn default_uids(data_dir: &Path) -> u32 {
    let whole = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let digest = mesh_proto::digest::Digest::of(whole.as_os_str().as_encoded_bytes());
    300_000 + MAX_RUNNING * u32::from(digest.0[0])
}

fn default_data_dir() -> Option<PathBuf> {
    use etcetera::BaseStrategy as _;
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/mesh/agent"));
    }
    Some(etcetera::choose_base_strategy().ok()?.data_dir().join("mesh/agent"))
}

/// A host name made into a valid node name.
fn valid_name(host: &str) -> String {
    let valid = |c: char| if matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-') { c } else { '-' };
    let name: String = host.to_lowercase().chars().map(valid).take(mesh_proto::names::MAX_NAME).collect();
    let name = name.trim_start_matches(['-', '.']).trim_end_matches(['-', '.']);
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, ConfigError> {
        let cli = Cli::try_parse_from([&["agent", "check", "--data-dir", "/d"], args].concat()).unwrap();
        let Command::Check { flags } = cli.command else { panic!("not check") };
        Config::load(&flags)
    }

    #[test]
    fn flags_win_over_the_file_and_add_to_its_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let text = "name = 'from-file'\nslots = 3\nmemory = '2GiB'\ncapabilities = ['ffmpeg']\n\
                    reconnect_max = '30s'\n[tags]\nzone = 'a'\nrack = '1'\n";
        std::fs::write(&path, text).unwrap();
        let config = parse(&[
            "--config",
            path.to_str().unwrap(),
            "--slots",
            "5",
            "--tag",
            "zone=b",
            "--capability",
            "blender",
            "--resource",
            "licence=2",
        ])
        .unwrap();
        assert_eq!(config.name, "from-file");
        assert_eq!(config.slots, Some(5));
        assert_eq!(config.memory_bytes, Some(2 << 30));
        assert_eq!(config.tags["zone"], "b");
        assert_eq!(config.tags["rack"], "1");
        assert_eq!(config.capabilities, ["blender", "ffmpeg"]);
        assert_eq!(config.resources["licence"], 2);
        assert_eq!(config.timings.reconnect_max, Duration::from_secs(30));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        let message = |args: &[&str]| parse(args).unwrap_err().to_string();
        assert!(message(&["--name", "Node A"]).contains("node name `Node A` contains 'N'"));
        assert!(message(&["--slots", "0"]).contains("slots `0`"));
        assert!(message(&["--memory", "lots"]).contains("lots"));
        assert!(message(&["--tag", "zone"]).contains("lacks its `=`"));
        assert!(message(&["--resource", "gpu=many"]).contains("gpu=many"));
        assert!(message(&["--allow-mount", "data=srv"]).contains("no absolute path"));
        assert!(message(&["--allow-mount", "data=/srv:rw"]).contains("an option other than"));
        assert!(message(&["--allow-mount", "Data=/srv"]).contains("mount `Data`"));
    }

    #[test]
    fn mounts_are_read_with_their_options() {
        let config = parse(&["--allow-mount", "data=/srv/data:ro,home=/home/x:owner=1000.100"]).unwrap();
        let mount = |path: &str, read_only, owner| AllowedMount { path: path.into(), read_only, owner };
        assert_eq!(config.mounts["data"], mount("/srv/data", true, None));
        assert_eq!(config.mounts["home"], mount("/home/x", false, Some((1000, 100))));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "slots = 2\nslotz = 3\n").unwrap();
        let message = parse(&["--config", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(message.contains("slotz") && message.contains("agent.toml"), "{message}");
    }

    #[test]
    fn agents_on_one_machine_have_users_of_their_own() {
        let bases: Vec<u32> =
            ["/d/attic", "/d/office", "/d/lab"].map(|dir| default_uids(Path::new(dir))).to_vec();
        for (place, base) in bases.iter().enumerate() {
            assert!((300_000..=1_348_576 - MAX_RUNNING).contains(base), "{base}");
            assert!(bases[..place].iter().all(|other| other.abs_diff(*base) >= MAX_RUNNING), "{bases:?}");
        }
    }

    #[test]
    fn any_host_name_becomes_a_valid_node_name() {
        for (host, name) in [
            ("Desk.Example.org", "desk.example.org"),
            ("MY PC", "my-pc"),
            ("-.", "node"),
            ("", "node"),
            ("übung", "bung"),
        ] {
            assert_eq!(valid_name(host), name);
            assert_eq!(check_name(&valid_name(host)), Ok(()));
        }
        assert_eq!(check_name(&valid_name(&"x".repeat(300))), Ok(()));
    }
}
