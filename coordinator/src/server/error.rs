//! Why the coordinator cannot serve.

use std::{io, net::SocketAddr};

use mesh_certs::CertError;

use super::shared::SharedError;
use crate::{
    blobs::BlobError, config::ConfigError, credentials::CredentialError, http::HttpError,
    postgres::PostgresError, store::StoreError,
};

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("the database URL cannot be read")]
    Url(#[source] sqlx::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error("cannot listen on {addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("cannot open the blobs")]
    Blobs(#[from] BlobError),
    #[error("cannot open the output")]
    Output(#[source] io::Error),
    #[error("the commit loop broke; the log says where")]
    Broken,
    #[error("cannot set up {0}")]
    Setup(&'static str),
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(
        "another coordinator leads this mesh and is alive. For this one to stand by, give both the same \
         --mesh-secret-file and --store-dir; or stop the other one first"
    )]
    Led,
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
}
