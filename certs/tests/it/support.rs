//! A small mesh on the loopback: a CA, a coordinator's server with one RPC, and clients.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_certs::{
    AcceptLimits, Ca, ChannelOptions, ClientCert, ClientTls, Issued, JoinToken, LastError, NodeKey, PeerInfo,
    Refusal, ServerCert, Trust, channel, incoming, join_config, mtls_config_with,
};
use mesh_proto::{
    ids::{CoordinatorId, MeshId, NodeId},
    v1::{
        JoinRequest, JoinResponse,
        enrollment_client::EnrollmentClient,
        enrollment_server::{Enrollment, EnrollmentServer},
    },
};
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

pub const HOUR: Duration = Duration::from_hours(1);

/// Answers `Join` with who asked, and counts the calls that it saw.
#[derive(Clone)]
pub struct Desk {
    pub calls: watch::Sender<usize>,
}

#[tonic::async_trait]
impl Enrollment for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.calls.send_modify(|calls| *calls += 1);
        let info = request.extensions().get::<PeerInfo>().expect("every connection says who it is").clone();
        let name = info.peer.map_or_else(|| "nobody".to_owned(), |peer| peer.identity.to_string());
        Ok(Response::new(JoinResponse { name, ..JoinResponse::default() }))
    }
}

pub struct Mesh {
    pub ca: Ca,
    pub trust: Arc<Trust>,
    pub cert: Arc<ServerCert>,
    pub coordinator: CoordinatorId,
}

impl Mesh {
    pub fn new() -> Self {
        let ca = Ca::generate(MeshId::generate()).unwrap();
        let coordinator = CoordinatorId::generate();
        let keyed = ca.issue_coordinator(coordinator, &["127.0.0.1".to_owned()], HOUR).unwrap();
        let cert = ServerCert::new(&keyed, &ca.cert_der()).unwrap();
        Self { trust: Arc::new(Trust::of(&ca)), ca, cert, coordinator }
    }

    pub async fn serve(&self) -> Running {
        self.serve_with(AcceptLimits::default()).await
    }

    pub async fn serve_with(&self, limits: AcceptLimits) -> Running {
        let config = mtls_config_with(Arc::clone(&self.trust), Arc::clone(&self.cert));
        Running::start(config, self.ca.mesh(), limits).await
    }

    pub async fn serve_join(&self, limits: AcceptLimits) -> Running {
        Running::start(join_config(Arc::clone(&self.cert)), self.ca.mesh(), limits).await
    }

    pub fn node(&self, lifetime: Duration) -> (NodeId, NodeKey, Issued) {
        let key = NodeKey::generate().unwrap();
        let node = NodeId::generate();
        let issued = self.ca.issue_node(&key.csr_der().unwrap(), node, lifetime).unwrap();
        (node, key, issued)
    }

    pub fn node_tls(&self) -> (NodeId, ClientTls) {
        let (node, key, issued) = self.node(HOUR);
        (node, self.tls(issued.der, &key))
    }

    pub fn tls(&self, cert: CertificateDer<'static>, key: &NodeKey) -> ClientTls {
        let cert = ClientCert::of_node(cert, key).unwrap();
        ClientTls { ca: self.ca.cert_der(), mesh: self.ca.mesh(), cert }
    }

    pub fn token(&self, addr: SocketAddr) -> JoinToken {
        JoinToken {
            endpoints: vec![addr.to_string()],
            mesh: self.ca.mesh(),
            pin: self.ca.pin(),
            id: "t1".to_owned(),
            secret: JoinToken::new_secret(),
        }
    }
}

/// A server; it ends when this is dropped.
pub struct Running {
    pub addr: SocketAddr,
    pub calls: watch::Receiver<usize>,
    pub refusals: watch::Receiver<Vec<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(config: Arc<rustls::ServerConfig>, mesh: MeshId, limits: AcceptLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (calls_in, calls) = watch::channel(0);
        let (refusals_in, refusals) = watch::channel(Vec::new());
        let connections = incoming(listener, config, mesh, limits, move |_, refusal: &Refusal| {
            refusals_in.send_modify(|all: &mut Vec<String>| all.push(refusal.to_string()));
        });
        let router = Server::builder().add_service(EnrollmentServer::new(Desk { calls: calls_in }));
        let task = start(async move { router.serve_with_incoming(connections).await.unwrap() });
        Self { addr, calls, refusals, task }
    }

    pub fn client(&self, tls: ClientTls) -> (EnrollmentClient<Channel>, LastError) {
        let (channel, last) = channel(vec![self.addr.to_string()], tls, ChannelOptions::default());
        (EnrollmentClient::new(channel), last)
    }

    /// No call reached the service.
    pub fn assert_no_call(&self) {
        assert_eq!(*self.calls.borrow(), 0, "a refused client reached an RPC");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the crate's helper is its own")]
pub fn start<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(future)
}
