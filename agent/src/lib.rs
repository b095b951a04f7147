//! The node daemon of Planetary Mesh: it dials the coordinator, runs tasks as sandboxed
//! processes through its jail, and keeps output and results until they are durable.
//!
//! ```text
//! daemon ── session ⇄ coordinator          what it says, in and out
//!             │
//!            hub ── attempts/              what is held, what follows (pure)
//!             │
//!           runner ── stage, jailer, progress, collect      one attempt
//!             │
//!        blobs/  spool/  records           content, output, what survives a kill
//! ```

#![deny(unsafe_code)]

pub mod attempts;
pub mod backoff;
pub mod beneath;
pub mod blobs;
pub mod clock;
pub mod collect;
pub mod command;
pub mod config;
pub mod daemon;
pub mod datadir;
pub mod enroll;
pub mod facts;
pub mod http;
pub mod hub;
pub mod identity;
pub mod jail;
pub mod jailer;
pub mod logging;
pub mod metrics;
pub mod mounts;
pub mod node;
pub mod progress;
pub mod records;
pub mod remove;
pub mod runner;
pub mod seen;
pub mod session;
pub mod spawn;
pub mod spool;
pub mod stage;
pub mod token;
