//! The configuration that holds, once all of its sources are merged and checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use etcetera::BaseStrategy as _;
use mesh_proto::state::Named as _;
use mesh_proto::v1::SandboxLevel;
use serde::{Serialize, Serializer};

use super::advertise::{self, Advertise};
use super::error::ConfigError;
use super::file::File;
use super::flags::Flags;
use super::limits::Limits;
use super::placement::Placement;
use super::timings::Timings;
use super::values::DatabaseUrl;

/// Everything that an operator can set.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where keys, blobs, output and the private Postgres are kept.
    pub data_dir: PathBuf,
    /// gRPC for members of the mesh, with mutual TLS.
    pub listen: SocketAddr,
    /// gRPC for nodes that join: that one call, with the server's certificate only.
    pub join_listen: SocketAddr,
    /// HTTP for metrics and health. Plain: it is bound to loopback unless told otherwise.
    pub http_listen: SocketAddr,
    /// Under what others reach this coordinator; never empty. A port that is not named is the
    /// listener's.
    pub advertise: Vec<Advertise>,
    /// The database; none means the private cluster.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hidden")]
    pub database_url: Option<DatabaseUrl>,
    /// Server binaries for the private cluster; none means to look for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pg_bin_dir: Option<PathBuf>,
    /// The secret that all coordinators of this mesh share. With it a coordinator can stand by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Where blobs and output are kept; none means the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_dir: Option<PathBuf>,
    /// The sandbox of tasks that name none.
    #[serde(serialize_with = "level")]
    pub default_sandbox: SandboxLevel,
    /// How long things take.
    pub timings: Timings,
    /// What is bounded.
    pub limits: Limits,
    /// How nodes are weighed.
    pub placement: Placement,
    /// The file that was read.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

impl Config {
    /// Merges default < file < environment < flag, and checks the outcome. Clap has put the
    /// environment under the flags already.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let data_dir = match flags.data_dir.or(file.data_dir) {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        let data_dir = std::path::absolute(&data_dir).map_err(|source| ConfigError::Io {
            doing: "resolve",
            path: data_dir.clone(),
            source,
        })?;
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listen = flags.listen.or(file.listen).unwrap_or_else(|| any(7443));
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 7480));
        let advertise = [flags.advertise, file.advertise].into_iter().find(|named| !named.is_empty());
        let config = Self {
            data_dir,
            listen,
            join_listen: flags.join_listen.or(file.join_listen).unwrap_or_else(|| any(7444)),
            http_listen: flags.http_listen.or(file.http_listen).unwrap_or(http),
            advertise: advertise.unwrap_or_else(|| advertise::default_for(listen.ip())),
            // DATABASE_URL= in the environment names none.
            database_url: flags.database_url.or(file.database_url).filter(|url| !url.is_empty()),
            pg_bin_dir: flags.pg_bin_dir.or(file.pg_bin_dir),
            mesh_secret_file: flags.mesh_secret_file.or(file.mesh_secret_file),
            store_dir: match flags.store_dir.or(file.store_dir) {
                Some(dir) => Some(std::path::absolute(&dir).map_err(|source| ConfigError::Io {
                    doing: "resolve",
                    path: dir.clone(),
                    source,
                })?),
                None => None,
            },
            default_sandbox: flags.default_sandbox.or(file.default_sandbox).unwrap_or(SandboxLevel::Strict),
            timings: file.timings,
            limits: file.limits,
            placement: file.placement,
            file: flags.config,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads `[placement]` of the configuration file again.
    pub fn read_placement(file: &std::path::Path) -> Result<Placement, ConfigError> {
        let placement = File::read(file)?.placement;
        placement.check()?;
        Ok(placement)
    }

    /// As a configuration file that says the same, but for the database's URL, which is hidden.
    pub fn to_toml(&self) -> String {
        // Every field is a string, a number or a table of those.
        toml::to_string(self).expect("a configuration is TOML")
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.mesh_secret_file.is_some() {
            let missing =
                [("--database-url", self.database_url.is_none()), ("--store-dir", self.store_dir.is_none())];
            let missing: Vec<&str> =
                missing.into_iter().filter_map(|(flag, is)| is.then_some(flag)).collect();
            if !missing.is_empty() {
                return Err(ConfigError::Sharing(missing.join(" and ")));
            }
        }
        self.timings.check()?;
        self.limits.check()?;
        self.placement.check()
    }
}

fn default_data_dir() -> Result<PathBuf, ConfigError> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok("/var/lib/mesh/coordinator".into());
    }
    let base = etcetera::choose_base_strategy().map_err(|_no_home| ConfigError::NoHome)?;
    Ok(base.data_dir().join("mesh/coordinator"))
}

#[expect(clippy::ref_option, reason = "serde hands every field over by reference")]
fn hidden<S: Serializer>(_url: &Option<DatabaseUrl>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str("hidden")
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands every field over by reference")]
fn level<S: Serializer>(level: &SandboxLevel, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(level.lower())
}
