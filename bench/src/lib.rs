//! Benchmarks of a whole mesh: real binaries, a private Postgres with fsync on, mutual TLS,
//! all on this machine. Each figure stands beside the floor of the same run, what the machine
//! itself needs for the least that must happen, because machines are noisy and their ratio is
//! not. `README.md` says how each is taken.
//!
//! May enter: measuring, and the load generator (simulated agents over real gRPC). No figure
//! is asserted in a test.

#![forbid(unsafe_code)]

pub mod bed;
pub mod cases;
pub mod fleet;
pub mod floor;
pub mod jobs;
pub mod processes;
pub mod report;
pub mod stats;
