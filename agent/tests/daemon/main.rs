//! The daemon against a coordinator of the test's own: the real binary, its real jail, real mTLS.

mod blobs;
mod crash;
mod ends;
mod fake;
mod join;
mod output;
mod process;
mod session;
