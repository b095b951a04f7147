//! What can be wrong with a key, a certificate, a token or a credential. Messages say where
//! and, where a person can act, what to do.

use std::{io, path::PathBuf};

use mesh_proto::ids::MeshId;

use crate::dial::ConnectError;

/// Something about a key, a certificate, a token or a credential is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
    #[error("{} belongs to mesh {found}, not to mesh {expected}", path.display())]
    OtherMesh { path: PathBuf, found: MeshId, expected: MeshId },
    #[error("{what} cannot be read: {problem}")]
    Malformed { what: &'static str, problem: String },
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("the certificate request is refused: {0}")]
    Request(&'static str),
    #[error("{name:?} is no user name: it {source}")]
    UserName { name: String, source: mesh_proto::names::NameError },
    #[error("{0:?} is neither an IP address nor a host name")]
    Host(String),
    #[error("the certificate names no member of this mesh: {0}")]
    Identity(&'static str),
    #[error("this is no join token: it should begin with \"mesh1.\"")]
    NotAToken,
    #[error("the token was cut or altered: copy it again")]
    TokenDamaged,
    #[error("a token cannot be made: {0}")]
    TokenContent(&'static str),
    #[error("the signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection was lost: {0}")]
    Transport(#[from] tonic::transport::Error),
}
