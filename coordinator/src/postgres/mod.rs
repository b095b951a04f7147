//! The private Postgres cluster: what the coordinator stands on when nobody gave it a database.
//!
//! It is made from the Postgres binaries that are installed on this machine and lies in
//! `postgres/` below the coordinator's data directory. Invariants:
//!
//! * It is durable: `fsync`, `full_page_writes` and `synchronous_commit` are on.
//! * Nobody but the coordinator gets in: no TCP, the socket lies in the cluster's own directory
//!   (0700), and `peer` admits the coordinator's and the cluster owner's users alone.
//! * Postgres refuses to run as root, so a root coordinator gives the cluster to an unprivileged
//!   user. That user need not be able to walk down to the data directory: the directory is handed
//!   over as an open descriptor (see `home`).
//! * The postmaster outlives a killed coordinator, and the next one adopts it.
//!
//! May enter: finding, making, starting, checking and stopping Postgres. Tables and queries of
//! the mesh live in `store`.

mod alone;
mod binaries;
mod cluster;
mod error;
mod given;
mod home;
mod launch;
mod owner;
mod settings;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;

pub use alone::run_alone;
pub use cluster::{Cluster, Options, start};
pub use error::PostgresError;
pub use given::check_given;

/// The oldest major version that the mesh runs on.
pub const OLDEST_MAJOR: u32 = 14;
