//! Drives the product as a user would: real binaries on free ports, a real Postgres, real
//! processes. A test starts a [`Mesh`], adds agents, runs `meshctl`, and breaks things by
//! pid, signal and cut connection. Nothing here looks inside the product: what a test
//! knows, it knows from exit codes, JSON, logs, metrics and the files that tasks leave.
//!
//! May enter: what at least two test files need to start, watch or break a mesh.

#![forbid(unsafe_code)]

mod agent;
mod binary;
mod cli;
mod clock;
mod disk;
mod gate;
mod http;
mod job;
mod mesh;
mod process;
mod proxy;
mod second;
pub mod wait;
mod watchman;
mod witness;

pub use agent::{Agent, AgentOptions};
pub use binary::path as program;
pub use cli::{Outcome, Running, meshctl_alone};
pub use clock::WallClock;
pub use disk::{Filler, can_mount};
pub use gate::Gate;
pub use http::{Reply, get};
pub use job::Job;
pub use mesh::{Mesh, MeshOptions, Stopped};
pub use process::{Signal, signal};
pub use proxy::{Connection, Proxy, Way};
pub use second::Second;
pub use witness::{Event, Witness};
