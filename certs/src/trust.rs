//! Whom either side trusts: the verifiers of both ends. The server's can be given other roots
//! and a list of the revoked while it serves; each new handshake sees the newest.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_proto::ids::MeshId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    ca::{Ca, Pin},
    conn::Peer,
    error::CertError,
    identity::{Identity, identity_of},
    key::NodeKey,
    x509,
};

/// Makes ring the process's TLS provider; call it first in `main`. Calling it again is harmless.
pub fn install_provider() {
    // An error only says that a provider is installed already.
    let _ = ring::default_provider().install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Whose certificate this is, if it, its key and its CA belong together. Its age does not matter.
pub fn check_member(
    mesh: MeshId,
    ca: &CertificateDer<'static>,
    cert: &CertificateDer<'_>,
    key: &NodeKey,
) -> Result<Identity, CertError> {
    let end = u64::try_from(x509::not_after(cert)?.timestamp()).unwrap_or_default();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(end));
    Trust::new(mesh, std::slice::from_ref(ca))?.verify_client_cert(cert, &[], at)?;
    if x509::key_fingerprint(cert)? != key.fingerprint() {
        return Err(CertError::KeyMismatch);
    }
    identity_of(cert, mesh)
}

type Revoked = dyn Fn(&Peer) -> bool + Send + Sync;

/// Which clients a server lets in: members of one mesh that its CA signed and that are not revoked.
pub struct Trust {
    mesh: MeshId,
    roots: ArcSwap<Arc<dyn ClientCertVerifier>>,
    revoked: ArcSwapOption<Box<Revoked>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    pub fn new(mesh: MeshId, roots: &[CertificateDer<'static>]) -> Result<Self, CertError> {
        Ok(Self {
            mesh,
            roots: ArcSwap::from_pointee(verifier(roots)?),
            revoked: ArcSwapOption::empty(),
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// Trust in one CA.
    pub fn of(ca: &Ca) -> Self {
        Self::new(ca.mesh(), &[ca.cert_der()]).expect("a `Ca` is only made of what can be trusted")
    }

    /// From the next handshake on, these CAs count and no others.
    pub fn replace_roots(&self, roots: &[CertificateDer<'static>]) -> Result<(), CertError> {
        self.roots.store(Arc::new(verifier(roots)?));
        Ok(())
    }

    /// From the next handshake on, peers for which `revoked` says yes are turned away. It is
    /// called on the handshake's thread: it must answer from memory.
    pub fn set_revoked(&self, revoked: impl Fn(&Peer) -> bool + Send + Sync + 'static) {
        let boxed: Box<Revoked> = Box::new(revoked);
        self.revoked.store(Some(Arc::new(boxed)));
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

fn verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
    let store = Arc::new(root_store(roots)?);
    WebPkiClientVerifier::builder_with_provider(store, provider())
        .build()
        .map_err(|error| CertError::Malformed { what: "the CA certificate", problem: error.to_string() })
}

fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client has one certificate; hints would only tell strangers the mesh's name.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.roots.load().verify_client_cert(end_entity, intermediates, now)?;
        let peer = Peer::of(end_entity, self.mesh)
            .map_err(|_| Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        match &*self.revoked.load() {
            Some(revoked) if revoked(&peer) => Err(Error::InvalidCertificate(CertificateError::Revoked)),
            Some(_) | None => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// How a client recognises the mesh's CA.
pub(crate) enum Root {
    /// It has the CA's certificate.
    Known(CertificateDer<'static>),
    /// It has the pin of the CA's key only; the server must send the CA's certificate.
    Pinned(Pin),
}

/// A client's check of a server: its chain to the mesh's CA and its coordinator's URI. The
/// host name does not count: addresses change, the CA does not.
pub(crate) struct CoordinatorVerifier {
    root: Root,
    mesh: MeshId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl CoordinatorVerifier {
    pub(crate) fn known(ca: CertificateDer<'static>, mesh: MeshId) -> Self {
        Self::new(Root::Known(ca), mesh)
    }

    pub(crate) fn pinned(pin: Pin, mesh: MeshId) -> Self {
        Self::new(Root::Pinned(pin), mesh)
    }

    fn new(root: Root, mesh: MeshId) -> Self {
        Self { root, mesh, algorithms: provider().signature_verification_algorithms }
    }
}

impl fmt::Debug for CoordinatorVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorVerifier").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

/// Why a server is not the mesh's coordinator, beyond what TLS itself finds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTheCoordinator {
    #[error(
        "it is not the coordinator that the token was made by (its CA's key does not match the token's pin)"
    )]
    Pin,
    #[error("its certificate is not a coordinator's of this mesh: {0}")]
    Identity(CertError),
    #[error("its certificate is that of {0}, no coordinator's")]
    Role(Identity),
}

fn refuse(problem: NotTheCoordinator) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(problem))))
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = match &self.root {
            Root::Known(ca) => ca.clone(),
            Root::Pinned(pin) => intermediates
                .iter()
                .find(|cert| x509::key_fingerprint(cert).is_ok_and(|found| found == pin.0))
                .map(|cert| cert.clone().into_owned())
                .ok_or_else(|| refuse(NotTheCoordinator::Pin))?,
        };
        let roots = root_store(&[ca])?;
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match identity_of(end_entity, self.mesh) {
            Ok(Identity::Coordinator(_)) => Ok(ServerCertVerified::assertion()),
            Ok(other @ (Identity::Node(_) | Identity::User(_))) => {
                Err(refuse(NotTheCoordinator::Role(other)))
            }
            Err(error) => Err(refuse(NotTheCoordinator::Identity(error))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
