//! Content by its SHA-256: a bounded cache on this node's disk, and the way to and from the
//! coordinator's store.
//!
//! Invariants: a file under its digest's name holds exactly that content (it was verified before
//! it got the name); one download of a digest is under way at a time; the cache stays within its
//! bound but for what is being fetched, the longest unused going first. A file that is in use may
//! be evicted: whoever opened it keeps reading it.
//!
//! May enter: files by digest. Where they are put in a work directory is `stage.rs`.

mod cache;
mod transfer;

pub use cache::Cache;
pub use transfer::{BlobError, Blobs};
