//! A person's credential: one JSON file with all that meshctl needs to reach the mesh.

use std::{fmt, path::Path};

use mesh_proto::ids::MeshId;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    ca::{Ca, KeyedCert},
    error::CertError,
    files::{content, read_text, write_private},
    identity::{Identity, identity_of, mesh_of_ca},
    key::NodeKey,
    token::is_endpoint,
    x509,
};

/// Mesh, where it is reached (mTLS port), its CA, and one's own certificate and key as PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credential {
    pub mesh: MeshId,
    /// `host:port`.
    pub endpoints: Vec<String>,
    pub ca: String,
    pub cert: String,
    pub key: String,
}

impl Credential {
    pub fn new(ca: &Ca, endpoints: Vec<String>, cert: KeyedCert) -> Self {
        Self { mesh: ca.mesh(), endpoints, ca: ca.cert_pem(), cert: cert.cert_pem, key: cert.key_pem }
    }

    /// Reads and checks the file: it is whole, of one mesh, and its key fits its certificate.
    pub fn load(path: &Path) -> Result<Self, CertError> {
        let text = read_text(path)?;
        let bad = |problem: String| CertError::Content { path: path.to_owned(), problem };
        let credential: Self = serde_json::from_str(&text)
            .map_err(|error| bad(format!("is no mesh credential (JSON): {error}")))?;
        if credential.endpoints.is_empty() {
            return Err(bad("names no endpoint".to_owned()));
        }
        if let Some(wrong) = credential.endpoints.iter().find(|endpoint| !is_endpoint(endpoint)) {
            return Err(bad(format!("endpoint {wrong:?} is not of the form HOST:PORT")));
        }
        credential.identity().map_err(content(path))?;
        Ok(credential)
    }

    /// Writes the file with mode 0600, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), CertError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| CertError::Malformed { what: "the credential", problem: error.to_string() })?;
        text.push('\n');
        write_private(path, text.as_bytes())
    }

    /// The mesh's CA certificate.
    pub fn ca_der(&self) -> Result<CertificateDer<'static>, CertError> {
        let ca = x509::certs_from_pem(&self.ca)?.swap_remove(0);
        if mesh_of_ca(&ca)? != self.mesh {
            return Err(CertError::Identity("its CA is of another mesh"));
        }
        Ok(ca)
    }

    /// Whose credential it is; checks that its parts belong together.
    pub fn identity(&self) -> Result<Identity, CertError> {
        self.ca_der()?;
        let cert = x509::certs_from_pem(&self.cert)?.swap_remove(0);
        if NodeKey::from_pem(&self.key)?.fingerprint() != x509::key_fingerprint(&cert)? {
            return Err(CertError::KeyMismatch);
        }
        identity_of(&cert, self.mesh)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("mesh", &self.mesh)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
