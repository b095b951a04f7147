//! Both gRPC ports: services, layer, limits, accept loop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use mesh_certs::{AcceptLimits, Ca, Refusal, ServerCert, Trust, incoming, join_config, mtls_config_with};
use mesh_proto::{
    ids::{CoordinatorId, MeshId},
    v1::{
        access_server::AccessServer, blobs_server::BlobsServer, enrollment_server::EnrollmentServer,
        jobs_server::JobsServer, node_server::NodeServer, nodes_server::NodesServer,
    },
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{error, info};

use super::error::ServeError;
use crate::{
    blobs::BlobStore,
    commit::Core,
    config::{Config, Limits},
    directory::Directory,
    engine::Totals,
    grpc::{
        access::AccessService,
        auth::{EveryUserIsAdmin, Port},
        blobs::BlobsService,
        enrollment::EnrollmentService,
        identities::Identities,
        jobs::JobsService,
        layer::{Edge, EdgeLayer},
        node::NodeService,
        nodes::NodesService,
        rate::{Rate, RateLimiter},
        standard,
    },
    metrics::Metrics,
    output::OutputStore,
    refusals::{Action, Refusals, Refused},
    session::{Hub, Plans, Sessions},
    spawn::{AbortOnDrop, spawn_owned},
    spec,
    store::Store,
};

/// The longest that a call without a stream may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// An upload that sends nothing for so long is given up.
const UPLOAD_IDLE: Duration = Duration::from_mins(1);
/// Callers that a rate limit tells apart.
const MAX_CALLERS: usize = 10_000;
/// HTTP/2 flow-control windows, of one stream and of a connection, in bytes: a blob's way over
/// a LAN must not wait for them.
const WINDOWS: (u32, u32) = (4 * 1024 * 1024, 16 * 1024 * 1024);
/// On the port for joining, where strangers may send: one call with a short message is all that
/// anybody needs, and what a connection may keep in memory is bounded by these.
const JOIN_MESSAGE: u32 = 64 * 1024;
const JOIN_STREAMS: u32 = 4;

/// Everything that the services share.
pub(super) struct Rooms {
    pub core: Core,
    pub store: Store,
    pub plans: Plans,
    pub sessions: Sessions,
    pub hub: Hub,
    pub output: OutputStore,
    pub blobs: BlobStore,
    pub metrics: Arc<Metrics>,
    pub identities: Arc<Identities>,
    pub ca: Arc<Ca>,
    pub mesh: MeshId,
    pub id: CoordinatorId,
    pub totals: watch::Receiver<Totals>,
    pub directory: Directory,
    pub refusals: Refusals,
}

fn accept_limits(limits: &Limits) -> AcceptLimits {
    AcceptLimits {
        handshake_timeout: limits.handshake_timeout,
        max_connections: limits.max_connections as usize,
        max_handshakes: limits.max_handshakes as usize,
    }
}

fn server(limits: &Limits) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .max_concurrent_streams(limits.max_concurrent_streams)
        .http2_max_header_list_size(u32::try_from(limits.max_header_list).unwrap_or(u32::MAX))
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
}

fn rate(per_second: u32) -> Rate {
    let per_second = f64::from(per_second);
    Rate { per_second, burst: per_second * 3.0, max_callers: MAX_CALLERS }
}

fn log_refusal(addr: Option<SocketAddr>, refusal: &Refusal) {
    info!(?addr, %refusal, "a connection was refused");
}

/// Who shows no certificate of this mesh, or one that does not count.
fn audit_refusal(refusals: &Refusals, addr: Option<SocketAddr>, refusal: &Refusal) {
    let Refusal::Handshake(why) = refusal else { return };
    refusals.note(Refused {
        stranger: true,
        actor: addr.map(|addr| addr.ip().to_string()).unwrap_or_default(),
        action: Action::Connection,
        subject: "mesh port".to_owned(),
        detail: why.clone(),
    });
}

/// Serves both gRPC ports.
pub(super) fn start_edges(
    config: &Config,
    rooms: &Rooms,
    grpc: TcpListener,
    join: TcpListener,
    cert: Arc<ServerCert>,
    stop: &CancellationToken,
) -> Result<Vec<AbortOnDrop<()>>, ServeError> {
    let limits = &config.limits;
    let max_message = usize::try_from(limits.max_message).unwrap_or(usize::MAX);
    let edge = |port| {
        EdgeLayer::new(Edge {
            port,
            identities: Arc::clone(&rooms.identities),
            users: Arc::new(EveryUserIsAdmin),
            gate: Arc::new(rooms.core.clone()),
            metrics: Arc::clone(&rooms.metrics),
            refusals: rooms.refusals.clone(),
            deadline: DEADLINE,
        })
    };
    let trust = Arc::new(Trust::of(&rooms.ca));
    let revoked = Arc::clone(&rooms.identities);
    trust.set_revoked(move |peer| revoked.is_revoked(&peer.identity));
    let seen = Arc::clone(&rooms.identities);
    let refusals = rooms.refusals.clone();
    let members = incoming(
        grpc,
        mtls_config_with(trust, Arc::clone(&cert)),
        rooms.mesh,
        accept_limits(limits),
        move |addr, refusal| {
            log_refusal(addr, refusal);
            audit_refusal(&refusals, addr, refusal);
        },
    )
    .inspect(move |connection| {
        if let Ok(connection) = connection {
            seen.connected(connection.info());
        }
    });
    let joining = incoming(join, join_config(cert), rooms.mesh, accept_limits(limits), log_refusal);

    let (edge_mesh, edge_join) = (edge(Port::Mesh), edge(Port::Join));
    let enrollment = EnrollmentService {
        core: rooms.core.clone(),
        store: rooms.store.clone(),
        ca: Arc::clone(&rooms.ca),
        mesh: rooms.mesh,
        identities: Arc::clone(&rooms.identities),
        lifetime: config.timings.certificate_lifetime,
        directory: rooms.directory.clone(),
        joins: RateLimiter::new(rate(limits.joins_per_second)),
        refusals: rooms.refusals.clone(),
    };
    let join_router = server(limits)
        .max_concurrent_streams(limits.max_concurrent_streams.min(JOIN_STREAMS))
        .initial_stream_window_size(JOIN_MESSAGE)
        .initial_connection_window_size(JOIN_MESSAGE * JOIN_STREAMS)
        .layer(edge_join)
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(JOIN_MESSAGE as usize));

    let node = NodeService {
        core: rooms.core.clone(),
        store: rooms.store.clone(),
        plans: rooms.plans.clone(),
        sessions: rooms.sessions.clone(),
        output: rooms.output.clone(),
        metrics: Arc::clone(&rooms.metrics),
        identities: Arc::clone(&rooms.identities),
        ca: Arc::clone(&rooms.ca),
        timings: config.timings.clone(),
        output_window: u32::try_from(limits.output_window).unwrap_or(u32::MAX),
        directory: rooms.directory.clone(),
    };
    let jobs = JobsService {
        core: rooms.core.clone(),
        store: rooms.store.clone(),
        plans: rooms.plans.clone(),
        hub: rooms.hub.clone(),
        sessions: rooms.sessions.clone(),
        output: rooms.output.clone(),
        limits: spec::Limits {
            max_tasks: limits.max_tasks_per_job,
            max_entries: usize::try_from(limits.max_entries).unwrap_or(usize::MAX),
            ..spec::Limits::default()
        },
        default_sandbox: config.default_sandbox,
        submits: RateLimiter::new(rate(limits.submits_per_second)),
    };
    let nodes = NodesService {
        core: rooms.core.clone(),
        store: rooms.store.clone(),
        totals: rooms.totals.clone(),
        mesh: rooms.mesh,
        coordinator: rooms.id,
        started_at_ms: chrono::Utc::now().timestamp_millis(),
        ca: Arc::clone(&rooms.ca),
    };
    let access = AccessService {
        core: rooms.core.clone(),
        store: rooms.store.clone(),
        mesh: rooms.mesh,
        pin: rooms.ca.pin(),
        directory: rooms.directory.clone(),
        default_ttl: config.timings.token_ttl,
    };
    let reads = Arc::new(rooms.sessions.clone());
    let blobs = BlobsService::new(rooms.blobs.clone(), reads, UPLOAD_IDLE);
    let (reporter, health) = standard::health();
    let (reflection, reflection_alpha) =
        standard::reflection().map_err(|_| ServeError::Setup("gRPC reflection"))?;
    let mesh_router = server(limits)
        .layer(edge_mesh)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .add_service(NodeServer::new(node).max_decoding_message_size(max_message))
        .add_service(JobsServer::new(jobs).max_decoding_message_size(max_message))
        .add_service(NodesServer::new(nodes).max_decoding_message_size(max_message))
        .add_service(AccessServer::new(access).max_decoding_message_size(max_message))
        .add_service(BlobsServer::new(blobs).max_decoding_message_size(max_message));

    let (stop_mesh, stop_join) = (stop.clone(), stop.clone());
    let mesh_edge = spawn_owned("mesh port", async move {
        let stopped = stop_mesh.cancelled_owned();
        if let Err(error) = mesh_router.serve_with_incoming_shutdown(members, stopped).await {
            error!(error = &error as &dyn std::error::Error, "the mesh port failed");
        }
    });
    let join_edge = spawn_owned("join port", async move {
        let stopped = stop_join.cancelled_owned();
        if let Err(error) = join_router.serve_with_incoming_shutdown(joining, stopped).await {
            error!(error = &error as &dyn std::error::Error, "the join port failed");
        }
    });
    let health_edge = spawn_owned("health", standard::follow(reporter, rooms.core.phases(), stop.clone()));
    Ok(vec![mesh_edge, join_edge, health_edge])
}
