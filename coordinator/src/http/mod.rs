//! The small HTTP server for those who watch: `/metrics`, `/healthz`, `/readyz`.
//!
//! It has no authentication and nothing to hide but load, and binds to loopback unless told
//! otherwise. Connections are few and each has a short time for its request, so that no
//! stranger can hold it up.
//!
//! May enter: routes for programs that watch. People's requests go over gRPC.

mod error;
mod routes;
mod server;

pub use error::HttpError;
pub use routes::{Readiness, Watched};
pub use server::{HttpServer, Options};
