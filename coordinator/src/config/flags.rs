//! The command line and the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use mesh_proto::state::Named as _;
use mesh_proto::v1::SandboxLevel;

use super::advertise::Advertise;
use super::values::DatabaseUrl;

/// The control plane of a mesh: keeps its jobs, places their tasks on nodes, and remembers.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the mesh; the first start makes it
    Serve(Flags),
    /// Make a new admin credential, on the coordinator's own machine
    AdminCredential(AdminCredential),
    /// Check the configuration, and show what holds once file, environment and flags are merged
    Config(Flags),
    /// Run the private Postgres alone and print its URL, until interrupted: for restoring a
    /// backup and for repair
    Database(Flags),
}

#[derive(Debug, Args)]
pub struct AdminCredential {
    #[command(flatten)]
    pub flags: Flags,
    /// Whom it is for
    #[arg(long, value_name = "NAME", default_value = "admin", value_parser = user_name)]
    pub user: String,
    /// Where to write it [default: admin.credential in the data directory]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What can be set on the command line, and in the environment.
#[derive(Debug, Default, Args)]
pub struct Flags {
    /// A TOML file with these settings, timings and limits
    #[arg(long, value_name = "FILE", env = "MESH_COORDINATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where keys, blobs, output and the private Postgres are kept
    /// [default: /var/lib/mesh/coordinator as root, else $XDG_DATA_HOME/mesh/coordinator]
    #[arg(long, value_name = "DIR", env = "MESH_COORDINATOR_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// gRPC for members of the mesh, with mutual TLS [default: 0.0.0.0:7443]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MESH_COORDINATOR_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// gRPC for nodes that join, this one call only [default: 0.0.0.0:7444]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MESH_COORDINATOR_JOIN_LISTEN")]
    pub join_listen: Option<SocketAddr>,
    /// HTTP for /metrics, /healthz and /readyz [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MESH_COORDINATOR_HTTP_LISTEN")]
    pub http_listen: Option<SocketAddr>,
    /// How others reach this coordinator; may be given several times
    /// [default: the host's name and its addresses]
    #[arg(long, value_name = "HOST[:PORT]", env = "MESH_COORDINATOR_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<Advertise>,
    /// A Postgres database [default: a private cluster below the data directory].
    /// A URL with a password belongs in the environment or the file, not in `ps`
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true, value_parser = database_url)]
    pub database_url: Option<DatabaseUrl>,
    /// A file with the secret that all coordinators of this mesh share: with it, --store-dir and
    /// --database-url a second coordinator can stand by
    #[arg(long, value_name = "FILE", env = "MESH_COORDINATOR_SECRET_FILE")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Where blobs and output are kept; the same directory for all coordinators of this mesh
    /// [default: the data directory]
    #[arg(long, value_name = "DIR", env = "MESH_COORDINATOR_STORE_DIR")]
    pub store_dir: Option<PathBuf>,
    /// Server binaries for the private cluster [default: the highest version installed]
    #[arg(long, value_name = "DIR", env = "MESH_COORDINATOR_PG_BIN_DIR")]
    pub pg_bin_dir: Option<PathBuf>,
    /// The sandbox of tasks that name none: strict, basic or none [default: strict]
    #[arg(long, value_name = "LEVEL", env = "MESH_COORDINATOR_DEFAULT_SANDBOX", value_parser = sandbox)]
    pub default_sandbox: Option<SandboxLevel>,
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn database_url(text: &str) -> Result<DatabaseUrl, std::convert::Infallible> {
    Ok(text.into())
}

pub(super) fn sandbox(text: &str) -> Result<SandboxLevel, String> {
    SandboxLevel::parse(text)
        .ok_or_else(|| format!("`{text}` is no sandbox level: expected strict, basic or none"))
}

fn user_name(text: &str) -> Result<String, String> {
    mesh_proto::names::check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
