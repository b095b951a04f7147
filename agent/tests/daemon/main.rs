//! The daemon against a coordinator of the test's own: the real binary, its real jail, real mTLS.

mod blobs;
mod crash;
mod damage;
mod ends;
mod fake;
mod identity;
mod join;
mod lease;
mod mounts;
mod output;
mod process;
mod session;
mod strict;
mod upgrade;
