//! The coordinator's configuration: command line, environment, TOML file and defaults, merged and
//! checked before anything starts. Later ones win: default < file < environment < flag.
//!
//! May enter: what an operator can set, and the data directory that it names. What the values do
//! is the business of the rooms that get them.

mod advertise;
mod data_dir;
mod error;
mod file;
mod flags;
mod limits;
mod placement;
mod resolve;
mod timings;
mod values;

#[cfg(test)]
mod tests;

pub use advertise::Advertise;
pub use data_dir::DataDir;
pub use error::ConfigError;
pub use flags::{AdminCredential, Cli, Command, Flags};
pub use limits::Limits;
pub use placement::Placement;
pub use resolve::Config;
pub use timings::Timings;
pub use values::DatabaseUrl;
