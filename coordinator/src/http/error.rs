//! What can go wrong with the HTTP server.

use std::{io, net::SocketAddr};

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot listen on {addr} for HTTP (--http-listen)")]
    Listen { addr: SocketAddr, source: io::Error },
}
