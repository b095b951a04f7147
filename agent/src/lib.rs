//! The node daemon of Planetary Mesh: it dials the coordinator, runs tasks as sandboxed
//! processes through its jail, and keeps output and results until they are durable.

#![deny(unsafe_code)]

pub mod jail;
pub mod spawn;
