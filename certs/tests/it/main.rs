//! The crate from the outside: what its users rely on, over real sockets where TLS matters.

mod authority;
mod crowds;
mod files;
mod names;
mod pinned;
mod rotation;
mod server_check;
mod support;
mod tls;
mod token;
