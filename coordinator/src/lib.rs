//! The control plane of Planetary Mesh. Modules only; the map is in `ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod blobs;
pub mod commit;
pub mod config;
pub mod credentials;
pub mod directory;
pub mod engine;
mod failpoint;
mod files;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod output;
pub mod postgres;
pub mod proof;
pub mod refusals;
pub mod reload;
mod seal;
pub mod seen;
pub mod server;
pub mod session;
pub mod spawn;
pub mod spec;
pub mod store;
#[cfg(test)]
mod testing;
