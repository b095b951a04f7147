//! A gRPC server on loopback whose connections claim to be of a given peer.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use mesh_certs::{Closer, Identity, Peer, PeerInfo};
use mesh_proto::ids::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::Routes,
    transport::{Channel, Endpoint, Server, server::Connected},
};

use super::{
    auth::{EveryUserIsAdmin, Port, Rpc},
    gate::Gate,
    identities::Identities,
    layer::{Edge, EdgeLayer},
};
use crate::{
    commit::standby_status,
    metrics::Metrics,
    refusals::{Refusals, Writer},
    spawn::{AbortOnDrop, spawn_owned},
};

pub(crate) fn user() -> Identity {
    Identity::User("ada".into())
}

pub(crate) fn node() -> Identity {
    Identity::Node(NodeId::generate())
}

/// Open until its token is cancelled; then the coordinator is a stand-by.
#[derive(Default)]
pub(crate) struct TestGate(pub CancellationToken);

impl Gate for TestGate {
    fn admit(&self, rpc: &Rpc) -> Result<CancellationToken, Status> {
        if self.0.is_cancelled() && !rpc.is_of_grpc() {
            return Err(self.ended(rpc.port));
        }
        Ok(self.0.clone())
    }

    fn ended(&self, port: Port) -> Status {
        standby_status(&[match port {
            Port::Mesh => "mesh.example:7443".to_owned(),
            Port::Join => "mesh.example:7444".to_owned(),
        }])
    }
}

pub(crate) struct Rig {
    pub channel: Channel,
    pub identities: Arc<Identities>,
    pub metrics: Arc<Metrics>,
    pub gate: Arc<TestGate>,
    pub shutdown: CancellationToken,
    /// What was refused, on its way to the audit.
    pub refused: Writer,
    _server: AbortOnDrop<()>,
}

impl Rig {
    /// Serves `routes` to connections of `identity`.
    pub(crate) async fn new(routes: Routes, port: Port, identity: Option<Identity>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let identities = Identities::new(shutdown.clone());
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let gate = Arc::new(TestGate::default());
        let (refusals, refused) = Refusals::new();
        let edge = Edge {
            port,
            identities: Arc::clone(&identities),
            users: Arc::new(EveryUserIsAdmin),
            gate: gate.clone(),
            metrics: Arc::clone(&metrics),
            refusals,
            deadline: Duration::from_millis(200),
        };
        let peer = identity.map(|identity| Peer {
            identity,
            not_after: expiry(),
            fingerprint: [0; 32],
            key_fingerprint: [0; 32],
        });
        let incoming = TcpListenerStream::new(listener).map(move |stream| {
            let info = PeerInfo { addr, opened: 0, peer: peer.clone(), closer: Closer::default() };
            stream.map(|stream| Claimed { stream, info })
        });
        let server = Server::builder().layer(EdgeLayer::new(edge)).add_routes(routes);
        let server = spawn_owned("test server", async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        Self { channel, identities, metrics, gate, shutdown, refused, _server: server }
    }

    /// Waits until the metrics have this line.
    pub(crate) async fn counted(&self, line: &str) {
        let seen = async {
            while !self.metrics.encode().unwrap().lines().any(|l| l == line) {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
        assert!(seen.is_ok(), "{line:?} is missing in\n{}", self.metrics.encode().unwrap());
    }
}

/// When the certificates of the test connections end.
pub(crate) fn expiry() -> DateTime<Utc> {
    Utc::now() + TimeDelta::hours(1)
}

struct Claimed {
    stream: TcpStream,
    info: PeerInfo,
}

impl Connected for Claimed {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Claimed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Claimed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
