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
use mesh_certs::{CertError, Identity as Holder, NodeKey, check_member, pem_of, write_private};
use mesh_proto::digest::Digest;
use mesh_proto::ids::{MeshId, NodeId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

/// What makes the node enrolled.
const NODE: &str = "node.json";

/// Why an identity cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "this node is not enrolled in a mesh: agent run --join TOKEN (`meshctl token create` makes a token)"
    )]
    NotEnrolled,
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} is damaged: {what}. Remove {} and join again with a new token (`meshctl token create` makes one): \
         agent run --join TOKEN. The node keeps its key, and so what it was", path.display(),
        path.with_file_name(NODE).display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{} is damaged: {what}. Without its key this node is lost to the mesh: remove {} and join again with a \
         new token (`meshctl token create` makes one), as another node: agent run --join TOKEN --name NAME",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Keyless { path: PathBuf, what: String },
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

/// The file: with the digest of what it says, or a damaged address would be dialled for ever.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    node: Node,
    /// Missing in files of the first version.
    sum: Option<String>,
}

fn sum_of(node: &Node) -> String {
    let Node { mesh, node, name, endpoints, issued_at_ms } = node;
    let text = format!("{mesh} {node} {name} {} {issued_at_ms}", endpoints.join(" "));
    Digest::of(text.as_bytes()).to_string()
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
        self.path(NODE).exists()
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
        let path = self.path("key.pem");
        let keyless =
            |error: CertError| IdentityError::Keyless { path: path.clone(), what: error.to_string() };
        let key = NodeKey::load(&path).map_err(keyless)?;
        let (cert, ca) = (self.cert("cert.pem")?, self.cert("ca.pem")?);
        let wrong = |what: String| IdentityError::Damaged { path: self.path("cert.pem"), what };
        match check_member(node.mesh, &ca, &cert, &key) {
            Ok(Holder::Node(id)) if id == node.node => Ok(Identity { node, key, cert, ca }),
            Ok(holder) => Err(wrong(format!("it is for {holder}, not for node/{}", node.node))),
            Err(error) => Err(wrong(format!("it does not fit the other files here: {error}"))),
        }
    }

    fn node(&self) -> Result<Node, IdentityError> {
        let path = self.path(NODE);
        let text = fs::read(&path).map_err(|source| IdentityError::Io { path: path.clone(), source })?;
        let wrong = |what: String| IdentityError::Damaged { path: path.clone(), what };
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if kept.sum.is_some_and(|sum| sum != sum_of(&kept.node)) {
            return Err(wrong("its digest is of something else".to_owned()));
        }
        Ok(kept.node)
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
        let path = self.path(NODE);
        let kept = Kept { node: node.clone(), sum: Some(sum_of(node)) };
        let text = serde_json::to_vec_pretty(&kept)
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
