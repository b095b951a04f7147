//! The blob store: files by the SHA-256 of their content, in a directory.
//!
//! What holds: a file at a digest's path has that digest and is on disk, data and name. It
//! gets there by a rename of a verified, synced temporary file, so any number of uploads of
//! one digest may race, and a crash leaves only temporary files, which the next open sweeps.
//! Nothing here runs on the async threads for longer than a moment: hashing, writing, syncing
//! and reading go to the blocking pool a piece at a time, so that a slow peer holds memory for
//! a few pieces and never a thread.
//!
//! May enter: storing and reading bytes by digest. Who may do it is decided in `grpc/`.

mod error;
mod read;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use error::BlobError;
pub use read::{BlobReader, CHUNK};
pub use store::{BlobStore, Options, Stored};
