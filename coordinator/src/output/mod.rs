//! The output store: what attempts wrote to stdout and stderr, in one append-only file for
//! each attempt, `<dir>/<job>/<attempt>`.
//!
//! The bytes are the agent's spool, frames as `mesh_proto::frame` writes them, at the same
//! positions. So copying is appending, any prefix is whole in itself, and after a loss the
//! agent goes on where this store ends.
//!
//! What holds:
//! - An acknowledged position is on disk, and stays there. A few writer threads each own a
//!   share of the attempts; one writes all that has gathered, syncs the files it touched, and
//!   only then releases the acknowledgements, while the next batch gathers.
//! - Readers see durable bytes only, so nobody sees output that a crash could take back.
//! - Memory is bounded: bytes that wait for a writer, open files, and what is known of each
//!   attempt. A full queue makes the caller wait, which is how an agent is slowed down.
//! - Bytes from before the last start are not trusted beyond their frame headers: where a
//!   header is invalid the file is cut, and what the agent sends again replaces what is there.
//!   A frame that is only partly there is kept, for its beginning may have been acknowledged.
//!
//! May enter: keeping and reading output. Short output that rides in an attempt's row and the
//! question whose output may be read do not.

mod attempt_file;
mod error;
mod log;
mod read;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use error::OutputError;
pub use log::{LogDecoder, Piece, Streams};
pub use read::Reader;
pub use store::{Ack, Options, OutputStore};
