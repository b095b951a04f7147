//! What can be wrong with a key, a certificate, a token or a credential. Messages say where
//! and, where a person can act, what to do. Each is whole in itself: what it was caused by
//! stands in its text, and so is not among its sources, where it would be told a second time.

use std::{io, path::PathBuf};

use mesh_proto::ids::MeshId;

use crate::dial::ConnectError;

/// Something about a key, a certificate, a token or a credential is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot {action} {}: {problem}", path.display())]
    File { action: &'static str, path: PathBuf, problem: io::Error },
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
    #[error("{name:?} is no user name: it {problem}")]
    UserName { name: String, problem: mesh_proto::names::NameError },
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
    Signing(rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection was lost: {0}")]
    Transport(tonic::transport::Error),
}

impl From<rcgen::Error> for CertError {
    fn from(error: rcgen::Error) -> Self {
        Self::Signing(error)
    }
}

impl From<rustls::Error> for CertError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<tonic::transport::Error> for CertError {
    fn from(error: tonic::transport::Error) -> Self {
        Self::Transport(error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn the_cause_of_an_error_is_told_once() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = CertError::File { action: "read", path: "/x".into(), problem: missing() };
        let name = mesh_proto::names::NameError::Empty;
        let all = [
            (file, missing().to_string()),
            (CertError::UserName { name: String::new(), problem: name }, "is empty".to_owned()),
            (rcgen::Error::CouldNotParseKeyPair.into(), rcgen::Error::CouldNotParseKeyPair.to_string()),
            (rustls::Error::DecryptError.into(), rustls::Error::DecryptError.to_string()),
        ];
        for (error, cause) in all {
            let mut chain = error.to_string();
            let mut next = error.source();
            while let Some(source) = next {
                chain = format!("{chain}: {source}");
                next = source.source();
            }
            assert_eq!(chain.matches(&cause).count(), 1, "{chain}");
        }
    }
}
