//! Who this node is: its key, its certificate and its mesh, in `identity/` of the data directory.
//!
//! ```text
//! identity/key.pem     made here, 0600, kept through every join and renewal
//! identity/cert.pem    the newest certificate for it
//! identity/ca.pem      whom the node trusts
//! identity/node.json   mesh, node, name, addresses, when the certificate was issued
//! ```
//!
//! May enter: files. Asking for certificates is `enroll.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use mesh_certs::{CertError, NodeKey, pem_of, write_private};
use mesh_proto::ids::{MeshId, NodeId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

/// Why an identity cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "this node is not enrolled in a mesh: agent run --join TOKEN (`meshctl token create` makes a token)"
    )]
    NotEnrolled,
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {what}; remove {} and join again", path.display(), path.parent().unwrap_or(path).display())]
    Damaged { path: PathBuf, what: String },
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// What is known of the node beside key and certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub mesh: MeshId,
    pub node: NodeId,
    pub name: String,
    /// `host:port` of the mTLS port.
    pub endpoints: Vec<String>,
    /// Unix milliseconds when the certificate arrived.
    pub issued_at_ms: u64,
}

/// An enrolled node.
#[derive(Debug)]
pub struct Identity {
    pub node: Node,
    pub key: NodeKey,
    pub cert: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
}

/// The directory that holds it.
#[derive(Clone, Debug)]
pub struct IdentityDir(PathBuf);

impl IdentityDir {
    /// The identity of a data directory; the directory is made when it is missing.
    pub fn of(data_dir: &Path) -> Result<Self, IdentityError> {
        let dir = data_dir.join("identity");
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        made.map_err(|source| IdentityError::Io { path: dir.clone(), source })?;
        Ok(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether the node joined a mesh.
    pub fn is_enrolled(&self) -> bool {
        self.path("node.json").exists()
    }

    /// The node's key; made when there is none.
    pub fn key(&self) -> Result<NodeKey, IdentityError> {
        Ok(NodeKey::load_or_create(&self.path("key.pem"))?)
    }

    pub fn load(&self) -> Result<Identity, IdentityError> {
        if !self.is_enrolled() {
            return Err(IdentityError::NotEnrolled);
        }
        let node = self.node()?;
        let key = NodeKey::load(&self.path("key.pem"))?;
        Ok(Identity { node, key, cert: self.cert("cert.pem")?, ca: self.cert("ca.pem")? })
    }

    fn node(&self) -> Result<Node, IdentityError> {
        let path = self.path("node.json");
        let text = fs::read(&path).map_err(|source| IdentityError::Io { path: path.clone(), source })?;
        serde_json::from_slice(&text)
            .map_err(|error| IdentityError::Damaged { path, what: error.to_string() })
    }

    fn cert(&self, name: &str) -> Result<CertificateDer<'static>, IdentityError> {
        let path = self.path(name);
        CertificateDer::from_pem_file(&path)
            .map_err(|error| IdentityError::Damaged { path, what: error.to_string() })
    }

    /// Keeps what a join brought. `node.json` comes last: with it the node is enrolled.
    pub fn save(
        &self,
        node: &Node,
        cert: &CertificateDer<'_>,
        ca: &CertificateDer<'_>,
    ) -> Result<(), IdentityError> {
        write_private(&self.path("ca.pem"), pem_of(ca).as_bytes())?;
        self.renewed(node, cert)
    }

    /// Keeps where the coordinators are reached by now.
    pub fn keep_endpoints(&self, endpoints: &[String]) -> Result<(), IdentityError> {
        let mut node = self.node()?;
        node.endpoints = endpoints.to_vec();
        self.write(&node)
    }

    /// Keeps what a renewal brought.
    pub fn renewed(&self, node: &Node, cert: &CertificateDer<'_>) -> Result<(), IdentityError> {
        write_private(&self.path("cert.pem"), pem_of(cert).as_bytes())?;
        self.write(node)
    }

    fn write(&self, node: &Node) -> Result<(), IdentityError> {
        let path = self.path("node.json");
        let text = serde_json::to_vec_pretty(node)
            .map_err(|error| IdentityError::Damaged { path: path.clone(), what: error.to_string() })?;
        Ok(write_private(&path, &text)?)
    }
}

impl Identity {
    /// When the certificate ends.
    pub fn not_after(&self) -> Result<DateTime<Utc>, CertError> {
        mesh_certs::not_after(&self.cert)
    }
}
