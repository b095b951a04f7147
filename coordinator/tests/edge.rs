//! Identities over real mutual TLS: accept loop, layer and a service together, as the
//! coordinator puts them together.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use coordinator::{
    blobs::{BlobStore, Options},
    grpc::{
        auth::{EveryUserIsAdmin, Port, Rpc},
        blobs::{BlobsService, NodeReads},
        gate::Gate,
        identities::Identities,
        layer::{Edge, EdgeLayer},
        standard,
    },
    metrics::Metrics,
    refusals::Refusals,
    spawn::{AbortOnDrop, spawn_owned},
};
use futures_util::{StreamExt as _, stream};
use mesh_certs::{
    AcceptLimits, Ca, ChannelOptions, ClientCert, ClientTls, Identity, NodeKey, ServerCert, Trust, channel,
    incoming, mtls_config_with,
};
use mesh_proto::{
    code::Code,
    digest::Digest,
    ids::{CoordinatorId, MeshId, NodeId},
    v1::{GetBlobRequest, PutBlobRequest, blobs_client::BlobsClient, blobs_server::BlobsServer},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const HOUR: Duration = Duration::from_hours(1);

struct AllBut(Digest);

impl NodeReads for AllBut {
    fn may_read(&self, _node: NodeId, digest: &Digest) -> bool {
        *digest != self.0
    }
}

/// A coordinator that always leads.
struct Leads(CancellationToken);

impl Gate for Leads {
    fn admit(&self, _rpc: &Rpc) -> Result<CancellationToken, Status> {
        Ok(self.0.clone())
    }

    fn ended(&self, _port: Port) -> Status {
        Code::Unavailable.status("it never ends")
    }
}

struct Mesh {
    ca: Ca,
    addr: SocketAddr,
    identities: Arc<Identities>,
    _dir: TempDir,
    _tasks: [AbortOnDrop<()>; 2],
}

impl Mesh {
    /// A server where nodes may read every blob but the one of this content.
    async fn new(secret: &[u8]) -> Self {
        let ca = Ca::generate(MeshId::generate()).unwrap();
        let keyed = ca.issue_coordinator(CoordinatorId::generate(), &[], HOUR).unwrap();
        let cert = ServerCert::new(&keyed, &ca.cert_der()).unwrap();
        let shutdown = CancellationToken::new();
        let identities = Identities::new(shutdown.clone());
        let trust = Arc::new(Trust::of(&ca));
        let revoked = Arc::clone(&identities);
        trust.set_revoked(move |peer| revoked.is_revoked(&peer.identity));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let config = mtls_config_with(trust, cert);
        let seen = Arc::clone(&identities);
        let connections = incoming(listener, config, ca.mesh(), AcceptLimits::default(), |_, _| {}).inspect(
            move |connection| {
                if let Ok(connection) = connection {
                    seen.connected(connection.info());
                }
            },
        );
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(Options {
            dir: dir.path().to_owned(),
            uploads: "tmp".to_owned(),
            max_bytes: 1 << 30,
        })
        .unwrap();
        let reads = Arc::new(AllBut(Digest::of(secret)));
        let edge = Edge {
            port: Port::Mesh,
            identities: Arc::clone(&identities),
            users: Arc::new(EveryUserIsAdmin),
            gate: Arc::new(Leads(CancellationToken::new())),
            metrics: Arc::new(Metrics::new("test").unwrap()),
            refusals: Refusals::new().0,
            deadline: Duration::from_secs(30),
        };
        let router = Server::builder()
            .layer(EdgeLayer::new(edge))
            .add_service(standard::health().1)
            .add_service(BlobsServer::new(BlobsService::new(store, reads, HOUR)));
        let server = spawn_owned("server", async move {
            router.serve_with_incoming(connections).await.unwrap();
        });
        let sweep = spawn_owned("identities", Arc::clone(&identities).run());
        Self { ca, addr, identities, _dir: dir, _tasks: [server, sweep] }
    }

    fn channel(&self, cert: Arc<ClientCert>) -> Channel {
        let tls = ClientTls { ca: self.ca.cert_der(), mesh: self.ca.mesh(), cert };
        channel(vec![self.addr.to_string()], tls, ChannelOptions::default()).0
    }

    fn user(&self, name: &str, lifetime: Duration) -> Channel {
        let user = self.ca.issue_user(name, lifetime).unwrap();
        self.channel(ClientCert::from_pem(&user.cert_pem, &user.key_pem).unwrap())
    }

    fn node(&self) -> Channel {
        let key = NodeKey::generate().unwrap();
        let issued = self.ca.issue_node(&key.csr_der().unwrap(), NodeId::generate(), HOUR).unwrap();
        self.channel(ClientCert::of_node(issued.der, &key).unwrap())
    }
}

async fn put(channel: &Channel, data: Bytes) {
    let first =
        PutBlobRequest { digest: Digest::of(&data).to_vec(), size: data.len() as u64, data: Bytes::new() };
    let pieces: Vec<_> = (0..data.len())
        .step_by(512 * 1024)
        .map(|at| data.slice(at..data.len().min(at + 512 * 1024)))
        .map(|data| PutBlobRequest { digest: Vec::new(), size: 0, data })
        .collect();
    let messages = stream::iter([first]).chain(stream::iter(pieces));
    BlobsClient::new(channel.clone()).put(messages).await.unwrap();
}

async fn get(channel: &Channel, digest: Digest) -> Result<Vec<u8>, Status> {
    let request = GetBlobRequest { digest: digest.to_vec(), offset: 0 };
    let mut pieces = BlobsClient::new(channel.clone()).get(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend(piece.data);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_node_is_known_by_its_certificate_and_gets_its_inputs_only() {
    let mesh = Mesh::new(b"secret").await;
    let (person, node) = (mesh.user("ada", HOUR), mesh.node());
    let input: Bytes = (0..20_u32 << 20).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
    put(&person, input.clone()).await;
    put(&person, Bytes::from_static(b"secret")).await;
    assert!(get(&node, Digest::of(&input)).await.unwrap() == input, "the input came changed");
    let refused = get(&node, Digest::of(b"secret")).await.unwrap_err();
    assert_eq!(Code::of(&refused), Code::Denied, "{refused}");
    assert_eq!(get(&person, Digest::of(b"secret")).await.unwrap(), b"secret");
}

#[tokio::test]
async fn a_revoked_user_is_told_and_gets_no_new_connection() {
    let mesh = Mesh::new(b"").await;
    let (ada, bob) = (mesh.user("ada", HOUR), mesh.user("bob", HOUR));
    let mut streams = Vec::new();
    for channel in [&ada, &bob] {
        let mut health = HealthClient::new(channel.clone());
        let mut stream = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        streams.push(stream);
    }
    mesh.identities.revoke(&Identity::User("ada".into()));
    let told = streams[0].message().await.unwrap_err();
    assert_eq!(Code::of(&told), Code::Unauthenticated, "{told}");
    assert!(told.message().contains("revoked"), "{told}");
    // First its calls are refused, then its connection is closed, and a new one fails.
    let refused = async {
        loop {
            let status =
                HealthClient::new(ada.clone()).check(HealthCheckRequest::default()).await.unwrap_err();
            if Code::of(&status) != Code::Unauthenticated {
                return status;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("its connection stays open");
    HealthClient::new(bob).check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_stream_ends_with_its_certificate() {
    let mesh = Mesh::new(b"").await;
    let mut health = HealthClient::new(mesh.user("ada", Duration::from_secs(2)));
    let mut stream = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.message()).await;
    let status = ended.expect("the stream outlives its certificate").unwrap_err();
    assert!(status.message().contains("expired"), "{status}");
}
