//! The edge: one thin file per service, and one layer before all of them that knows who calls
//! and whether they may.
//!
//! May enter: authenticate, validate, convert, call. No decisions, no SQL.

pub mod access;
pub mod auth;
pub mod blobs;
pub mod convert;
mod dead;
pub mod enrollment;
pub mod gate;
pub mod identities;
pub mod jobs;
mod keys;
pub mod layer;
mod logs;
pub mod node;
pub mod nodes;
mod pages;
pub mod rate;
mod redrive;
pub mod standard;
mod tasks;
mod watch;
mod why;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
