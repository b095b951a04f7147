//! A member's own private key (ECDSA P-256). It is made where it is used and never travels.

use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::{
    error::CertError,
    files::{content, read_text, write_private},
};

/// A P-256 key pair.
pub struct NodeKey {
    pair: KeyPair,
}

impl NodeKey {
    pub fn generate() -> Result<Self, CertError> {
        Ok(Self { pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    pub fn from_pem(pem: &str) -> Result<Self, CertError> {
        let bad =
            |problem: &str| CertError::Malformed { what: "the private key", problem: problem.to_owned() };
        let pair = KeyPair::from_pem(pem).map_err(|_| bad("it is no PKCS#8 key in PEM"))?;
        if pair.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(bad("it is no ECDSA P-256 key"));
        }
        Ok(Self { pair })
    }

    pub fn load(path: &Path) -> Result<Self, CertError> {
        Self::from_pem(&read_text(path)?).map_err(content(path))
    }

    /// The key at `path`; made and saved when there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, CertError> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate()?;
        key.save(path)?;
        Ok(key)
    }

    /// Saves the key with mode 0600, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), CertError> {
        write_private(path, self.pem().as_bytes())
    }

    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// SHA-256 of the public key's SPKI.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.pair.subject_public_key_info()).into()
    }

    /// A certificate request: it proves the key and asks for nothing else.
    pub fn csr_der(&self) -> Result<Vec<u8>, CertError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.pair)?.der().to_vec())
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn into_pair(self) -> KeyPair {
        self.pair
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({})", hex::encode(self.fingerprint()))
    }
}
