//! The configuration file: TOML with the flags' names (`-` is `_`), `[timings]`, `[limits]`
//! and `[placement]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mesh_proto::v1::SandboxLevel;
use serde::{Deserialize, Deserializer, de};

use super::advertise::Advertise;
use super::error::ConfigError;
use super::flags;
use super::limits::Limits;
use super::placement::Placement;
use super::timings::Timings;
use super::values::DatabaseUrl;

/// What the file says. See `Config` for the meaning of each key.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub join_listen: Option<SocketAddr>,
    pub http_listen: Option<SocketAddr>,
    pub advertise: Vec<Advertise>,
    pub database_url: Option<DatabaseUrl>,
    pub pg_bin_dir: Option<PathBuf>,
    #[expect(clippy::struct_field_names, reason = "it is named as its flag is")]
    pub mesh_secret_file: Option<PathBuf>,
    pub store_dir: Option<PathBuf>,
    #[serde(deserialize_with = "sandbox")]
    pub default_sandbox: Option<SandboxLevel>,
    pub timings: Timings,
    pub limits: Limits,
    pub placement: Placement,
}

impl File {
    /// Reads the file. Paths in it are relative to its own directory.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut file: Self = toml::from_str(&text)
            .map_err(|problem| ConfigError::File { path: path.to_owned(), problem: Box::new(problem) })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let File { data_dir, pg_bin_dir, mesh_secret_file, store_dir, .. } = &mut file;
        for path in [data_dir, pg_bin_dir, mesh_secret_file, store_dir].into_iter().flatten() {
            *path = base.join(&*path);
        }
        Ok(file)
    }
}

fn sandbox<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SandboxLevel>, D::Error> {
    let text = String::deserialize(from)?;
    flags::sandbox(&text).map(Some).map_err(de::Error::custom)
}
