//! A small mesh on the loopback: a CA, a coordinator's server, its clients, and a forger who
//! has the CA's key.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_certs::{
    AcceptLimits, Ca, ChannelOptions, ClientCert, ClientTls, Identity, Issued, JoinToken, KeyedCert,
    LastError, NodeKey, PeerInfo, ServerCert, Trust, channel, incoming, join_config, mtls_config_with,
};
use mesh_proto::{
    ids::{CoordinatorId, MeshId, NodeId},
    v1::{
        GetBlobRequest, GetBlobResponse, JoinRequest, JoinResponse, PutBlobRequest, PutBlobResponse,
        StatBlobsRequest, StatBlobsResponse,
        blobs_server::{Blobs, BlobsServer},
        enrollment_client::EnrollmentClient,
        enrollment_server::{Enrollment, EnrollmentServer},
    },
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

pub const HOUR: Duration = Duration::from_hours(1);

/// `Join` answers with who asked; `Get` streams the newest number for ever.
#[derive(Clone)]
struct Desk {
    calls: watch::Sender<Vec<PeerInfo>>,
    numbers: watch::Receiver<u64>,
}

#[tonic::async_trait]
impl Enrollment for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let info = request.extensions().get::<PeerInfo>().expect("every connection says who it is").clone();
        let name = info.peer.as_ref().map_or_else(|| "nobody".to_owned(), |peer| peer.identity.to_string());
        self.calls.send_modify(|calls| calls.push(info));
        Ok(Response::new(JoinResponse { name, ..JoinResponse::default() }))
    }
}

#[tonic::async_trait]
impl Blobs for Desk {
    async fn put(&self, _: Request<Streaming<PutBlobRequest>>) -> Result<Response<PutBlobResponse>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }

    type GetStream = std::pin::Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn get(&self, _: Request<GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        let numbers = WatchStream::new(self.numbers.clone())
            .map(|number| Ok(GetBlobResponse { size: number, data: Vec::new().into() }));
        Ok(Response::new(Box::pin(numbers)))
    }

    async fn stat(&self, _: Request<StatBlobsRequest>) -> Result<Response<StatBlobsResponse>, Status> {
        Err(Status::unimplemented("not part of this test"))
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
        let keyed = coordinator_cert(&ca, coordinator);
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

    pub fn tls_of(&self, cert: &KeyedCert) -> ClientTls {
        let cert = ClientCert::from_pem(&cert.cert_pem, &cert.key_pem).unwrap();
        ClientTls { ca: self.ca.cert_der(), mesh: self.ca.mesh(), cert }
    }

    pub fn token(&self, endpoint: &str) -> JoinToken {
        JoinToken {
            endpoints: vec![endpoint.to_owned()],
            mesh: self.ca.mesh(),
            pin: self.ca.pin(),
            id: "t1".to_owned(),
            secret: JoinToken::new_secret(),
        }
    }
}

pub fn coordinator_cert(ca: &Ca, id: CoordinatorId) -> KeyedCert {
    ca.issue_coordinator(id, &["127.0.0.1".to_owned(), "localhost".to_owned()], HOUR).unwrap()
}

/// A certificate that this CA signs but would never make by itself.
pub fn forge(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, NodeKey) {
    let issuer = Issuer::from_ca_cert_der(&ca.cert_der(), KeyPair::from_pem(&ca.key_pem()).unwrap()).unwrap();
    let key = NodeKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&Identity::Node(NodeId::generate()).uri(ca.mesh()))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let pair = KeyPair::from_pem(&key.pem()).unwrap();
    (params.signed_by(&pair, &issuer).unwrap().der().clone(), key)
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn der_of(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A server; it ends when this is dropped.
pub struct Running {
    pub addr: SocketAddr,
    /// Who called `Join`.
    pub calls: watch::Receiver<Vec<PeerInfo>>,
    /// What `Get` streams.
    pub numbers: watch::Sender<u64>,
    pub refusals: watch::Receiver<Vec<String>>,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn start(config: Arc<rustls::ServerConfig>, mesh: MeshId, limits: AcceptLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (calls_in, calls) = watch::channel(Vec::new());
        let (refusals_in, refusals) = watch::channel(Vec::new());
        let (numbers, numbers_out) = watch::channel(0);
        let connections = incoming(listener, config, mesh, limits, move |_, refusal| {
            refusals_in.send_modify(|all: &mut Vec<String>| all.push(refusal.to_string()));
        });
        let desk = Desk { calls: calls_in, numbers: numbers_out };
        let router = Server::builder()
            .add_service(EnrollmentServer::new(desk.clone()))
            .add_service(BlobsServer::new(desk));
        let task = start(async move { router.serve_with_incoming(connections).await.unwrap() });
        Self { addr, calls, numbers, refusals, task }
    }

    pub fn endpoint(&self) -> String {
        self.addr.to_string()
    }

    pub fn channel(&self, tls: ClientTls) -> (Channel, LastError) {
        channel(vec![self.endpoint()], tls, ChannelOptions::default())
    }

    pub fn client(&self, tls: ClientTls) -> (EnrollmentClient<Channel>, LastError) {
        let (channel, last) = self.channel(tls);
        (EnrollmentClient::new(channel), last)
    }

    /// The client is refused before any RPC, and told `reason` both ways.
    pub async fn assert_refused(&self, tls: ClientTls, reason: &str) {
        let (mut client, last) = self.client(tls);
        let status = client.join(JoinRequest::default()).await.expect_err("was let in");
        assert!(status.message().contains(reason), "the call does not say {reason:?}: {status}");
        let kept = last.get().expect("the reason was not kept");
        assert!(kept.is_rejection(), "{kept} is not taken for a rejection");
        assert!(kept.to_string().contains(reason), "{kept}");
        assert!(self.calls.borrow().is_empty(), "a refused client reached an RPC");
    }

    pub async fn wait_for_refusal(&self, reason: &str) {
        let mut refusals = self.refusals.clone();
        let seen = refusals.wait_for(|all| all.iter().any(|one| one.contains(reason)));
        tokio::time::timeout(Duration::from_secs(10), seen)
            .await
            .unwrap_or_else(|_| panic!("no refusal says {reason:?}: {:?}", self.refusals.borrow()))
            .unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the crate keeps its helper to itself")]
pub fn start<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(future)
}
