//! What the agent can be told: flags over environment over file over defaults.
//!
//! May enter: reading and checking of settings; nothing that acts on them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_proto::duration::parse_duration;
use mesh_proto::names::check_name;
use mesh_proto::size::parse_size;
use serde::Deserialize;

use crate::attempts::MAX_RUNNING;
use crate::backoff::RECONNECT_MS;

mod flags;

pub use flags::{AllowNetwork, Cli, Command, Flags, Level};

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
mod tests;
