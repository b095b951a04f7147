//! What every member of the mesh agrees on: the `mesh.v1` messages and services, typed
//! ids, error codes and how they map to gRPC and exit statuses, names and their limits,
//! and the frame in which a task's output is kept from the jail to the reader.
//!
//! May enter: definitions that at least two of coordinator, agent and meshctl need.

#![forbid(unsafe_code)]

pub mod code;
pub mod digest;
pub mod duration;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod mounts;
pub mod names;
pub mod size;
pub mod state;
pub mod template;
pub mod version;

/// Generated from `proto/mesh/v1`.
#[allow(clippy::all, clippy::pedantic, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("mesh.v1");
}

/// The encoded descriptor set of `mesh.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mesh.v1.bin"));

pub use version::PROTOCOL_VERSION;
