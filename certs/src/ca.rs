//! The mesh's own certificate authority. What a certificate says is decided here alone:
//! from a request only the public key is taken, after its proof of possession was checked,
//! and every parameter is made fresh.

use std::{fmt, net::IpAddr, path::Path, time::Duration};

use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::{CoordinatorId, MeshId, NodeId},
    names,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use crate::{
    error::CertError,
    files::{content, create_private_dir, read_text, write_private},
    identity::{Identity, mesh_of_ca, mesh_uri},
    key::NodeKey,
    trust::Trust,
    x509,
};

/// Lifetime of a mesh's CA: ten years.
const CA_LIFETIME: Duration = Duration::from_hours(3650 * 24);
/// How far back a certificate begins, so that a machine whose clock is behind accepts it.
const BACKDATE: Duration = Duration::from_hours(24);
/// Longer requests are no requests for one P-256 key.
const MAX_CSR: usize = 16 * 1024;

/// SHA-256 of a CA's public key (its SPKI): by it an agent recognises its mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// A certificate for a key that somebody else holds.
#[derive(Clone, Debug)]
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub not_after: DateTime<Utc>,
    /// SHA-256 of the public key's SPKI.
    pub key_fingerprint: [u8; 32],
}

/// The files of a CA in its directory.
const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct KeyedCert {
    pub cert_pem: String,
    pub key_pem: String,
    pub not_after: DateTime<Utc>,
}

impl fmt::Debug for KeyedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCert").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A mesh's certificate authority: its key and its self-signed certificate.
pub struct Ca {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    mesh: MeshId,
    pin: Pin,
    not_after: DateTime<Utc>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("mesh", &self.mesh).field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new CA for a new mesh.
    pub fn generate(mesh: MeshId) -> Result<Self, CertError> {
        let key = NodeKey::generate()?;
        let now = x509::now_seconds();
        let mut params = CertificateParams::default();
        validity(&mut params, now.saturating_sub(BACKDATE.as_secs()), now + CA_LIFETIME.as_secs());
        params.serial_number = Some(serial());
        params.distinguished_name = named(&format!("mesh {mesh}"));
        params.subject_alt_names = vec![SanType::URI(mesh_uri(mesh).try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(key.pair())?;
        Self::new(cert.der().clone(), key)
    }

    /// The CA whose files lie in `dir` (`ca.pem`, `ca.key`); made when there is none.
    pub fn load_or_create(dir: &Path, mesh: MeshId) -> Result<Self, CertError> {
        let cert_path = dir.join(CERT_FILE);
        if cert_path.exists() {
            let ca = Self::load(dir)?;
            if ca.mesh != mesh {
                return Err(CertError::OtherMesh { path: cert_path, found: ca.mesh, expected: mesh });
            }
            return Ok(ca);
        }
        // A key without a certificate is what a crash between the two writes leaves: nothing
        // was ever signed with it.
        let ca = Self::generate(mesh)?;
        ca.save(dir)?;
        Ok(ca)
    }

    /// Whether files of a CA lie in `dir`.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(CERT_FILE).exists()
    }

    /// Keeps the CA in `dir`, in place of any that is there.
    pub fn save(&self, dir: &Path) -> Result<(), CertError> {
        create_private_dir(dir)?;
        write_private(&dir.join(KEY_FILE), self.key_pem().as_bytes())?;
        write_private(&dir.join(CERT_FILE), self.cert_pem().as_bytes())
    }

    /// The CA whose files lie in `dir`.
    pub fn load(dir: &Path) -> Result<Self, CertError> {
        let cert_path = dir.join(CERT_FILE);
        let der = first_cert(&read_text(&cert_path)?).map_err(content(&cert_path))?;
        let key = NodeKey::load(&dir.join(KEY_FILE))?;
        Self::new(der, key).map_err(content(&cert_path))
    }

    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        Self::new(first_cert(cert_pem)?, NodeKey::from_pem(key_pem)?)
    }

    fn new(der: CertificateDer<'static>, key: NodeKey) -> Result<Self, CertError> {
        let pin = Pin(x509::key_fingerprint(&der)?);
        if pin.0 != key.fingerprint() {
            return Err(CertError::KeyMismatch);
        }
        let mesh = mesh_of_ca(&der)?;
        // `Trust::of` counts on it.
        Trust::new(mesh, std::slice::from_ref(&der))?;
        let not_after = x509::not_after(&der)?;
        let issuer = Issuer::from_ca_cert_der(&der, key.into_pair())?;
        Ok(Self { der, issuer, mesh, pin, not_after })
    }

    pub fn cert_der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    pub fn cert_pem(&self) -> String {
        x509::pem_of(&self.der)
    }

    /// The CA's private key, for whoever keeps it elsewhere than in a file.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn pin(&self) -> Pin {
        self.pin
    }

    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn not_after(&self) -> DateTime<Utc> {
        self.not_after
    }

    /// A node's certificate. Of the request only the public key counts, once its holder has
    /// proved it; the names and extensions that it asks for are ignored.
    pub fn issue_node(&self, csr_der: &[u8], node: NodeId, lifetime: Duration) -> Result<Issued, CertError> {
        let key = proved_key(csr_der)?;
        let params = self.params(&Identity::Node(node), lifetime)?;
        let (der, not_after) = self.sign(&params, &key)?;
        let key_fingerprint = Sha256::digest(key.subject_public_key_info()).into();
        Ok(Issued { der, not_after, key_fingerprint })
    }

    /// A user's certificate, with a key made here.
    pub fn issue_user(&self, name: &str, lifetime: Duration) -> Result<KeyedCert, CertError> {
        names::check_name(name).map_err(|problem| CertError::UserName { name: name.to_owned(), problem })?;
        let params = self.params(&Identity::User(name.to_owned()), lifetime)?;
        self.keyed(&params)
    }

    /// A coordinator's certificate, with a key made here. `hosts` are its addresses and host
    /// names without ports: for tools that check names; the mesh's own clients check the URI.
    pub fn issue_coordinator(
        &self,
        id: CoordinatorId,
        hosts: &[String],
        lifetime: Duration,
    ) -> Result<KeyedCert, CertError> {
        let mut params = self.params(&Identity::Coordinator(id), lifetime)?;
        for host in hosts {
            let name = match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(dns_name(host)?.try_into()?),
            };
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.keyed(&params)
    }

    /// Fresh parameters of a leaf: one URI, client use only, no CA.
    fn params(&self, identity: &Identity, lifetime: Duration) -> Result<CertificateParams, CertError> {
        let now = x509::now_seconds();
        let last = self.not_after.timestamp().try_into().unwrap_or(0);
        let kind = match identity {
            Identity::Node(_) => "mesh node",
            Identity::User(_) => "mesh user",
            Identity::Coordinator(_) => "mesh coordinator",
        };
        let mut params = CertificateParams::default();
        let until = now.saturating_add(lifetime.as_secs().max(1)).min(last);
        validity(&mut params, now.saturating_sub(BACKDATE.as_secs()), until);
        params.serial_number = Some(serial());
        params.distinguished_name = named(kind);
        params.subject_alt_names = vec![SanType::URI(identity.uri(self.mesh).try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn keyed(&self, params: &CertificateParams) -> Result<KeyedCert, CertError> {
        let key = NodeKey::generate()?;
        let (der, not_after) = self.sign(params, key.pair())?;
        Ok(KeyedCert { cert_pem: x509::pem_of(&der), key_pem: key.pem(), not_after })
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<(CertificateDer<'static>, DateTime<Utc>), CertError> {
        let der = params.signed_by(key, &self.issuer)?.der().clone();
        let not_after = x509::not_after(&der)?;
        Ok((der, not_after))
    }
}

/// The public key of a request whose sender holds the private one.
fn proved_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, CertError> {
    if csr_der.len() > MAX_CSR {
        return Err(CertError::Request("it is too long"));
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|_| CertError::Request("it is no PKCS#10 request"))?;
    if !rest.is_empty() {
        return Err(CertError::Request("bytes follow it"));
    }
    csr.verify_signature()
        .map_err(|_| CertError::Request("its signature is not by the key that it names"))?;
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| CertError::Request("its key is of an unknown kind"))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(CertError::Request("its key is no ECDSA P-256 key"));
    }
    Ok(key)
}

fn first_cert(pem: &str) -> Result<CertificateDer<'static>, CertError> {
    let mut certs = x509::certs_from_pem(pem)?;
    Ok(certs.swap_remove(0))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn dns_name(host: &str) -> Result<String, CertError> {
    let fits = !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        });
    if fits { Ok(host.to_owned()) } else { Err(CertError::Host(host.to_owned())) }
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive and never shorter: serial numbers are signed in DER.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Sets the lifetime, in seconds since 1970.
fn validity(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}
