//! The server's TLS: one certificate that can be replaced while serving, TLS 1.3 only, no
//! session resumption and no early data, so that every connection is judged anew.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::CertificateDer;

use crate::{
    ca::{Ca, KeyedCert},
    error::CertError,
    trust::{Trust, provider},
    x509,
};

pub(crate) const ALPN_H2: &[u8] = b"h2";

/// The server's certificate, with its CA's behind it so that a joining node can check the pin.
#[derive(Debug)]
pub struct ServerCert {
    current: ArcSwap<CertifiedKey>,
}

impl ServerCert {
    pub fn new(cert: &KeyedCert, ca: &CertificateDer<'static>) -> Result<Arc<Self>, CertError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(certified(cert, ca)?) }))
    }

    /// From the next handshake on, this certificate is shown. Open connections stay.
    pub fn replace(&self, cert: &KeyedCert, ca: &CertificateDer<'static>) -> Result<(), CertError> {
        self.current.store(Arc::new(certified(cert, ca)?));
        Ok(())
    }
}

fn certified(cert: &KeyedCert, ca: &CertificateDer<'static>) -> Result<CertifiedKey, CertError> {
    let mut chain = x509::certs_from_pem(&cert.cert_pem)?;
    chain.truncate(1);
    chain.push(ca.clone());
    let key = x509::key_from_pem(&cert.key_pem)?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

impl ResolvesServerCert for ServerCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Clients must present a certificate of this mesh.
pub fn mtls_config(ca: &Ca, cert: Arc<ServerCert>) -> Arc<ServerConfig> {
    mtls_config_with(Arc::new(Trust::of(ca)), cert)
}

/// The same, with a trust whose roots and revocations can change while serving.
pub fn mtls_config_with(trust: Arc<Trust>, cert: Arc<ServerCert>) -> Arc<ServerConfig> {
    config(Some(trust), cert)
}

/// The join port: only the server shows a certificate.
pub fn join_config(cert: Arc<ServerCert>) -> Arc<ServerConfig> {
    config(None, cert)
}

fn config(clients: Option<Arc<Trust>>, cert: Arc<ServerCert>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has cipher suites for TLS 1.3");
    let builder = match clients {
        Some(trust) => builder.with_client_cert_verifier(trust as Arc<dyn ClientCertVerifier>),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(cert);
    // With rustls' defaults a client that was revoked meanwhile would resume and be let in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}
