//! Who holds a certificate: exactly one URI `spiffe://<mesh>/<path>`, in exactly one spelling.
//! Anything else, a second URI included, names nobody.

use std::fmt;

use mesh_proto::{
    ids::{CoordinatorId, MeshId, NodeId},
    names,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::{error::CertError, x509};

/// A member of a mesh, as its certificate names it. Displays as its path: `node/<id>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    Node(NodeId),
    User(String),
    Coordinator(CoordinatorId),
}

impl Identity {
    /// The URI that stands in the certificate.
    pub fn uri(&self, mesh: MeshId) -> String {
        format!("{}/{self}", mesh_uri(mesh))
    }

    /// Reads the path form, `node/<id>`, `user/<name>` or `coordinator/<id>`, in its one spelling.
    pub fn from_path(path: &str) -> Option<Self> {
        let (kind, name) = path.split_once('/')?;
        let identity = match kind {
            "node" => Self::Node(name.parse().ok()?),
            "user" => {
                names::check_name(name).ok()?;
                Self::User(name.to_owned())
            }
            "coordinator" => Self::Coordinator(name.parse().ok()?),
            _ => return None,
        };
        // A UUID has several spellings; only the one that this mesh writes counts.
        (identity.to_string() == path).then_some(identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::User(name) => write!(f, "user/{name}"),
            Self::Coordinator(id) => write!(f, "coordinator/{id}"),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URI of the mesh itself, which its CA's certificate carries.
pub(crate) fn mesh_uri(mesh: MeshId) -> String {
    format!("spiffe://{mesh}")
}

/// Who holds this certificate. Says nothing about who signed it.
pub fn identity_of(cert: &CertificateDer<'_>, mesh: MeshId) -> Result<Identity, CertError> {
    let parsed = x509::parse(cert)?;
    let san = parsed
        .subject_alternative_name()
        .map_err(|_| CertError::Identity("its subject alternative names cannot be read"))?
        .ok_or(CertError::Identity("it has no subject alternative name"))?;
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(CertError::Identity("it has no URI"))?;
    if uris.next().is_some() {
        return Err(CertError::Identity("it has more than one URI"));
    }
    let path = uri
        .strip_prefix(&mesh_uri(mesh))
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or(CertError::Identity("its URI is not of this mesh"))?;
    let identity =
        Identity::from_path(path).ok_or(CertError::Identity("its URI is no node, user or coordinator"))?;
    let others_fit = san.value.general_names.iter().all(|name| match name {
        GeneralName::URI(_) => true,
        GeneralName::DNSName(_) | GeneralName::IPAddress(_) => matches!(identity, Identity::Coordinator(_)),
        _ => false,
    });
    if others_fit { Ok(identity) } else { Err(CertError::Identity("it carries further names")) }
}

/// The mesh that a CA's certificate is of.
pub(crate) fn mesh_of_ca(cert: &CertificateDer<'_>) -> Result<MeshId, CertError> {
    let parsed = x509::parse(cert)?;
    let is_ca = parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
    if !is_ca {
        return Err(CertError::Identity("it is no CA certificate"));
    }
    let san = parsed.subject_alternative_name().ok().flatten();
    let names = san.as_ref().map_or(&[][..], |san| &san.value.general_names[..]);
    let [GeneralName::URI(uri)] = names else {
        return Err(CertError::Identity("it does not carry the URI of one mesh"));
    };
    uri.strip_prefix("spiffe://")
        .and_then(|id| id.parse::<MeshId>().ok())
        .filter(|mesh| mesh_uri(*mesh) == **uri)
        .ok_or(CertError::Identity("its URI is of no mesh"))
}
