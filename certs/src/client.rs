//! The client's end: a gRPC channel over mutual TLS that reconnects by itself, with a
//! certificate that can be replaced while it is open.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use mesh_proto::ids::MeshId;
use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    credential::Credential,
    dial::{Dialer, LastError},
    error::CertError,
    key::NodeKey,
    route::Route,
    server::ALPN_H2,
    trust::{CoordinatorVerifier, provider},
    x509,
};

/// A client's certificate and key, replaceable while channels are open.
#[derive(Debug)]
pub struct ClientCert {
    current: ArcSwap<CertifiedKey>,
}

impl ClientCert {
    pub fn new(cert: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Arc<Self>, CertError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(certified(cert, key)?) }))
    }

    /// A node's: its own key and the certificate that was issued for it.
    pub fn of_node(cert: CertificateDer<'static>, key: &NodeKey) -> Result<Arc<Self>, CertError> {
        Self::new(cert, key.private_key())
    }

    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>, CertError> {
        Self::new(x509::certs_from_pem(cert_pem)?.swap_remove(0), x509::key_from_pem(key_pem)?)
    }

    /// From the next connection on, this certificate is shown. The open one stays.
    pub fn replace(
        &self,
        cert: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), CertError> {
        self.current.store(Arc::new(certified(cert, key)?));
        Ok(())
    }
}

fn certified(cert: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, CertError> {
    Ok(CertifiedKey::from_der(vec![cert], key, &provider())?)
}

impl ResolvesClientCert for ClientCert {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Whom a client trusts and what it shows.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub ca: CertificateDer<'static>,
    pub mesh: MeshId,
    pub cert: Arc<ClientCert>,
}

impl ClientTls {
    pub fn of(credential: &Credential) -> Result<Self, CertError> {
        Ok(Self {
            ca: credential.ca_der()?,
            mesh: credential.mesh,
            cert: ClientCert::from_pem(&credential.cert, &credential.key)?,
        })
    }

    fn config(self) -> Arc<ClientConfig> {
        client_config(CoordinatorVerifier::known(self.ca, self.mesh), Some(self.cert))
    }
}

pub(crate) fn client_config(
    verifier: CoordinatorVerifier,
    cert: Option<Arc<ClientCert>>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match cert {
        Some(cert) => builder.with_client_cert_resolver(cert),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // The name is not the server's: it tells nothing, so it is not sent.
    config.enable_sni = false;
    Arc::new(config)
}

/// Timings of a channel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelOptions {
    /// For each address: TCP, TLS and the server's first word.
    pub connect_timeout: Duration,
    /// Between HTTP/2 pings, also while nothing else is going on.
    pub keepalive_interval: Duration,
    /// A ping unanswered for so long ends the connection.
    pub keepalive_timeout: Duration,
    /// What the client says of itself with each call; empty: nothing of its own.
    pub user_agent: &'static str,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            user_agent: "",
        }
    }
}

/// A channel that connects at its first call, and anew when it has lost its connection. The
/// handle tells why the last connect failed.
pub fn channel(endpoints: Vec<String>, tls: ClientTls, options: ChannelOptions) -> (Channel, LastError) {
    channel_on(&Route::new(endpoints), tls, options)
}

/// A channel whose connections follow a route.
pub fn channel_on(route: &Route, tls: ClientTls, options: ChannelOptions) -> (Channel, LastError) {
    let last = LastError::default();
    let dialer = Arc::new(Dialer::new(route.clone(), tls.config(), options.connect_timeout, last.clone()));
    let connector = tower::service_fn(move |_: Uri| {
        let dialer = Arc::clone(&dialer);
        async move { dialer.dial().await.map(TokioIo::new) }
    });
    (endpoint(options).connect_with_connector_lazy(connector), last)
}

pub(crate) fn endpoint(options: ChannelOptions) -> Endpoint {
    let endpoint = Endpoint::from_static("http://mesh");
    let endpoint = match options.user_agent {
        "" => endpoint,
        text => endpoint.user_agent(text).unwrap_or_else(|_| Endpoint::from_static("http://mesh")),
    };
    endpoint
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
}
