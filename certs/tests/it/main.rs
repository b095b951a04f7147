//! The crate from the outside: what its users rely on, over real sockets where TLS matters.

mod support;
mod tls;
