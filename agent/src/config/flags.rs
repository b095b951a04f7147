//! What stands on the command line. May enter: flags and their texts; nothing is decided here.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_proto::v1;
use serde::Deserialize;

use crate::jail;

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
