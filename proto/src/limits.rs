//! Limits that both ends check. Those that an operator may change are the defaults.

/// A gRPC message, in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// A chunk of a blob or of output on a stream, in bytes.
pub const MAX_CHUNK: usize = 512 * 1024;
/// Tasks of one job, array elements counted.
pub const MAX_TASKS: u64 = 1_000_000;
/// Entries of a list in a job file (items, inputs, outputs, needs, environment).
pub const MAX_ENTRIES: usize = 10_000;
/// argv and environment of one task together, in bytes.
pub const MAX_ARGV_ENV: usize = 128 * 1024;
/// A job file, in bytes.
pub const MAX_JOB_FILE: usize = 4 * 1024 * 1024;
/// An attempt's spool up to this size rides in its result, in bytes.
pub const INLINE_OUTPUT: usize = 8 * 1024;
/// Inputs of an assignment up to this count ride in it; longer lists are asked for.
pub const INLINE_INPUTS: usize = 256;
/// Items of an array up to this encoded size ride in the submit; longer lists are a blob.
pub const INLINE_ITEMS: usize = 256 * 1024;
/// Rows of one page at the most, and when the caller names no number.
pub const MAX_PAGE: u32 = 1000;
pub const DEFAULT_PAGE: u32 = 200;
