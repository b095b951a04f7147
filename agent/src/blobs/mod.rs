//! Content by its SHA-256: a bounded cache on this node's disk, and the way to and from the
//! coordinator's store.
//!
//! Invariants: only content that has its digest is handed out (a file is verified before it gets
//! that name, and once more when an earlier life of the agent left it); one download of a digest is under way at a time; the cache stays within its
//! bound but for what is being fetched, the longest unused going first. A file that is in use may
//! be evicted: whoever opened it keeps reading it.
//!
//! May enter: files by digest. Where they are put in a work directory is `stage.rs`.

mod cache;
mod stall;
mod transfer;

pub use cache::Cache;
pub use transfer::{BlobError, Blobs};
