//! Why a configuration is not taken, or a data directory not used.

use std::path::PathBuf;

/// Each names where the mistake is and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read the configuration file {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{}: {}", .path.display(), .problem.to_string().trim_end())]
    File {
        path: PathBuf,
        // Shown above with line and column; as a source it would be shown twice.
        problem: Box<toml::de::Error>,
    },

    #[error("{key} = {value} is out of range: {expected}")]
    Range { key: &'static str, value: String, expected: String },

    #[error(
        "--mesh-secret-file is for several coordinators of one mesh, which share a database and a store: \
         give {0} as well"
    )]
    Sharing(String),

    #[error("neither HOME nor XDG_DATA_HOME is set: name the data directory with --data-dir")]
    NoHome,

    #[error("could not {doing} {}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(
        "{} belongs to uid {owner}, who could read this mesh's keys and change them: \
         choose another --data-dir, or make it your own (chown)", .path.display()
    )]
    Foreign { path: PathBuf, owner: u32 },

    #[error(
        "another coordinator{} uses the data directory {}: stop it, or choose another --data-dir",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display()
    )]
    InUse { path: PathBuf, pid: Option<u32> },
}
