//! The edge: one thin file per service, and one layer before all of them that knows who calls
//! and whether they may.
//!
//! May enter: authenticate, validate, convert, call. No decisions, no SQL.

pub mod auth;
pub mod blobs;
pub mod identities;
pub mod layer;
pub mod rate;
pub mod standard;

#[cfg(test)]
mod testing;
