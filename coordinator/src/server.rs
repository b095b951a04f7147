//! Wiring: the only file that sees every room.

use std::{
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use mesh_certs::{
    AcceptLimits, Ca, CertError, Refusal, ServerCert, Trust, incoming, join_config, mtls_config_with,
};
use mesh_proto::{
    ids::{CoordinatorId, MeshId},
    v1::{
        access_server::AccessServer, blobs_server::BlobsServer, enrollment_server::EnrollmentServer,
        jobs_server::JobsServer, node_server::NodeServer, nodes_server::NodesServer,
    },
};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::{
    blobs::{BlobError, BlobStore},
    commit::{self, CommitLoop, Core, Phase},
    config::{Advertise, Config, ConfigError, DataDir, Limits},
    credentials::{self, CredentialError},
    engine::{Totals, types::Settings},
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
    http::{HttpError, HttpServer, Options as HttpOptions, Readiness, Watched},
    metrics::Metrics,
    output::OutputStore,
    postgres::{self, Cluster, PostgresError},
    reload,
    session::{Hub, Plans, Sessions, Voice},
    spawn::{AbortOnDrop, spawn, spawn_owned},
    spec,
    store::{Store, StoreError},
};

/// Connections of readers to the database.
const POOL: u32 = 12;
/// A commit that takes longer is given up, and callers are refused until the database answers.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a call without a stream may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// An upload that sends nothing for so long is given up.
const UPLOAD_IDLE: Duration = Duration::from_mins(1);
/// How often the coordinator's own certificate is replaced.
const CERTIFICATE_TURN: Duration = Duration::from_hours(24);
/// How long open calls may take to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// Callers that a rate limit tells apart.
const MAX_CALLERS: usize = 10_000;
/// HTTP/2 flow-control windows, of one stream and of a connection, in bytes: a blob's way over
/// a LAN must not wait for them.
const WINDOWS: (u32, u32) = (4 * 1024 * 1024, 16 * 1024 * 1024);

/// Why the coordinator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("the database URL cannot be read")]
    Url(#[source] sqlx::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error("cannot listen on {addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("cannot open the blobs")]
    Blobs(#[from] BlobError),
    #[error("cannot open the output")]
    Output(#[source] io::Error),
    #[error("cannot set up {0}")]
    Setup(&'static str),
    #[error(
        "another coordinator leads this mesh and is alive; a stand-by comes with a later version, \
         so stop the other one first"
    )]
    Led,
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
}

/// What was bound, and where it can be dialled.
struct Ports {
    grpc: TcpListener,
    join: TcpListener,
    http: HttpServer,
    grpc_addr: SocketAddr,
    join_addr: SocketAddr,
}

/// Serves until SIGTERM or SIGINT, or until it cannot go on.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    mesh_certs::install_provider();
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let stopping = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let data_dir = DataDir::open(&config.data_dir)?;
    let ports = bind(&config).await?;
    let database = Database::open(&config).await?;
    let result = serve_on(&config, &data_dir, ports, &database, stopping).await;
    database.close().await;
    result
}

async fn bind(config: &Config) -> Result<Ports, ServeError> {
    let listen = async |addr: SocketAddr| {
        TcpListener::bind(addr).await.map_err(|source| ServeError::Listen { addr, source })
    };
    let grpc = listen(config.listen).await?;
    let join = listen(config.join_listen).await?;
    let http = HttpServer::bind(HttpOptions::listening(config.http_listen)).await?;
    let addr = |listener: &TcpListener, asked| {
        listener.local_addr().map_err(|source| ServeError::Listen { addr: asked, source })
    };
    let (grpc_addr, join_addr) = (addr(&grpc, config.listen)?, addr(&join, config.join_listen)?);
    Ok(Ports { grpc, join, http, grpc_addr, join_addr })
}

/// The database: given, or a private cluster that is watched.
enum Database {
    Given(PgConnectOptions),
    Private {
        options: postgres::Options,
        cluster: tokio::sync::Mutex<Option<Cluster>>,
        connect: PgConnectOptions,
    },
}

impl Database {
    async fn open(config: &Config) -> Result<Self, ServeError> {
        if let Some(url) = &config.database_url {
            let options: PgConnectOptions = url.expose().parse().map_err(ServeError::Url)?;
            return Ok(Self::Given(options));
        }
        let options =
            postgres::Options { data_dir: config.data_dir.clone(), bin_dir: config.pg_bin_dir.clone() };
        let cluster = postgres::start(options.clone()).await?;
        let connect = cluster.connect_options();
        Ok(Self::Private { options, cluster: tokio::sync::Mutex::new(Some(cluster)), connect })
    }

    fn connect(&self) -> PgConnectOptions {
        match self {
            Self::Given(options) | Self::Private { connect: options, .. } => options.clone(),
        }
    }

    /// Brings a private cluster that died back up, as often as the commit room misses it.
    async fn watch(&self, mut phases: watch::Receiver<Phase>) {
        let Self::Private { options, cluster, .. } = self else { return pending().await };
        loop {
            if phases.wait_for(|phase| *phase == Phase::Recovering).await.is_err() {
                return;
            }
            let mut cluster = cluster.lock().await;
            match postgres::start(options.clone()).await {
                Ok(started) => *cluster = Some(started),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot bring the private Postgres back");
                }
            }
            drop(cluster);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn close(self) {
        let Self::Private { cluster, .. } = self else { return };
        let cluster = cluster.into_inner();
        if let Some(cluster) = cluster
            && let Err(error) = cluster.stop().await
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "the private Postgres did not stop in good order"
            );
        }
    }
}

/// Everything that the services share.
struct Rooms {
    core: Core,
    store: Store,
    plans: Plans,
    sessions: Sessions,
    hub: Hub,
    output: OutputStore,
    blobs: BlobStore,
    metrics: Arc<Metrics>,
    identities: Arc<Identities>,
    ca: Arc<Ca>,
    mesh: MeshId,
    id: CoordinatorId,
    totals: watch::Receiver<Totals>,
    grpc_endpoints: Vec<String>,
    join_endpoints: Vec<String>,
}

async fn serve_on(
    config: &Config,
    data_dir: &DataDir,
    ports: Ports,
    database: &Database,
    stopping: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let store = Store::new(database.connect(), POOL);
    if config.database_url.is_some() {
        postgres::check_given(store.pool()).await?;
    }
    store.migrate().await?;
    let mesh = store.mesh_id().await?;
    let id = credentials::coordinator_id(data_dir.path())?;
    let ca = Arc::new(Ca::load_or_create(&credentials::pki_dir(data_dir.path())?, mesh)?);
    let metrics =
        Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")).map_err(|_| ServeError::Setup("the metrics"))?);
    let edge_stop = CancellationToken::new();
    let core_stop = CancellationToken::new();
    let (sessions, hub) = (Sessions::default(), Hub::default());
    let (totals_send, totals) = watch::channel(Totals::default());
    let voice = Voice {
        sessions: sessions.clone(),
        hub: hub.clone(),
        metrics: Arc::clone(&metrics),
        totals: totals_send,
    };
    let (commit_loop, core) =
        CommitLoop::new(store.clone(), commit_options(config, id), voice, Arc::clone(&metrics));
    let blobs = BlobStore::open(crate::blobs::Options {
        dir: data_dir.path().join("blobs"),
        max_bytes: config.limits.max_blob,
    })?;
    let output = OutputStore::open(crate::output::Options {
        dir: data_dir.path().join("output"),
        max_output: config.limits.max_output,
        open_files: 256,
        waiting_bytes: 64 * 1024 * 1024,
    })
    .map_err(ServeError::Output)?;
    let grpc_endpoints = endpoints(&config.advertise, ports.grpc_addr.port());
    // A port that is advertised is the members' port; who joins goes to the other one.
    let hosts_alone: Vec<Advertise> =
        config.advertise.iter().map(|one| Advertise { host: one.host.clone(), port: None }).collect();
    let join_endpoints = endpoints(&hosts_alone, ports.join_addr.port());
    let plans = Plans::new(store.clone(), blobs.clone());
    let rooms = Rooms {
        core: core.clone(),
        store: store.clone(),
        plans,
        sessions,
        hub,
        output,
        blobs,
        metrics: Arc::clone(&metrics),
        identities: Identities::new(edge_stop.clone()),
        ca: Arc::clone(&ca),
        mesh,
        id,
        totals,
        grpc_endpoints: grpc_endpoints.clone(),
        join_endpoints,
    };
    let hosts: Vec<String> = config.advertise.iter().map(|advertise| advertise.host.clone()).collect();
    let cert = ServerCert::new(&credentials::server_certificate(&ca, id, &hosts)?, &ca.cert_der())?;
    let credential = credentials::keep_admin_credential(&ca, data_dir.path(), &grpc_endpoints)?;

    let (readiness, ready) = watch::channel(Readiness::Starting);
    let http_addr = dialable(ports.http.addr());
    let watched = Watched { metrics, readiness: ready };
    let _http = spawn_owned("http", ports.http.serve(watched, core_stop.clone()));
    let _turn = spawn_owned("certificate", turn_certificate(Arc::clone(&cert), Arc::clone(&ca), id, hosts));
    let _sweep = spawn_owned("identities", Arc::clone(&rooms.identities).run());
    let _ready = spawn_owned("readiness", show_readiness(core.phases(), readiness, store));
    let hangups = signal(SignalKind::hangup()).map_err(ServeError::Signal)?;
    let _reload = spawn_owned("reload", reload::follow(hangups, config.file.clone(), core.clone()));
    let mut leading = spawn("commit loop", commit_loop.run(core_stop.clone()));
    let mut phases = core.phases();
    let first = tokio::select! {
        led = phases.wait_for(|phase| *phase == Phase::Leading) => led.is_ok(),
        ended = &mut leading => return Err(ended_early(ended)),
    };
    debug_assert!(first, "the commit loop holds the other end");
    let edges = start_edges(config, rooms, ports.grpc, ports.join, cert, &edge_stop)?;
    println!(
        "{}",
        json!({
            "ready": true,
            "role": "leader",
            "mesh": mesh.to_string(),
            "grpc": dialable(ports.grpc_addr).to_string(),
            "join": dialable(ports.join_addr).to_string(),
            "http": http_addr.to_string(),
            "credential": credential,
        })
    );

    let result = tokio::select! {
        () = stopping => Ok(()),
        () = database.watch(core.phases()) => Ok(()),
        ended = &mut leading => Err(ended_early(ended)),
    };
    info!("stopping");
    edge_stop.cancel();
    for edge in edges {
        if tokio::time::timeout(DRAIN, edge).await.is_err() {
            warn!("some calls did not end in time");
        }
    }
    core_stop.cancel();
    if result.is_ok()
        && let Ok(Err(error)) = leading.await
    {
        warn!(error = &error as &dyn std::error::Error, "the commit loop ended with an error");
    }
    result
}

fn ended_early(ended: Result<Result<(), StoreError>, tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(Err(StoreError::Fenced)) => ServeError::Led,
        Ok(Err(error)) => ServeError::Store(error),
        Ok(Ok(())) | Err(_) => ServeError::Setup("the commit loop"),
    }
}

fn commit_options(config: &Config, id: CoordinatorId) -> commit::Options {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    commit::Options {
        id,
        settings: Settings {
            suspect_after_ms: millis(config.timings.suspect_after),
            offline_after_ms: millis(config.timings.offline_after),
            feed_below_ms: millis(config.placement.feed_below),
            coefficients: config.placement.coefficients(),
            ..Settings::default()
        },
        takeover: config.timings.leader_takeover,
        beat: config.timings.leader_beat,
        adoption_grace: config.timings.adoption_grace(),
        patience: DATABASE_PATIENCE,
        queue: config.limits.max_queued_events as usize,
    }
}

/// host:port for each name that is advertised.
fn endpoints(advertise: &[Advertise], port: u16) -> Vec<String> {
    advertise
        .iter()
        .map(|one| Advertise { host: one.host.clone(), port: Some(one.port.unwrap_or(port)) }.to_string())
        .collect()
}

/// The address by which this machine reaches a listener.
fn dialable(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, addr.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, addr.port()).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => addr,
    }
}

/// Replaces the coordinator's own certificate daily.
async fn turn_certificate(cert: Arc<ServerCert>, ca: Arc<Ca>, id: CoordinatorId, hosts: Vec<String>) {
    loop {
        tokio::time::sleep(CERTIFICATE_TURN).await;
        let turned = credentials::server_certificate(&ca, id, &hosts)
            .and_then(|fresh| Ok(cert.replace(&fresh, &ca.cert_der())?));
        if let Err(error) = turned {
            error!(error = &error as &dyn std::error::Error, "cannot replace the coordinator's certificate");
        }
    }
}

/// Says on `/readyz` whether the mesh is served.
async fn show_readiness(
    mut phases: watch::Receiver<Phase>,
    readiness: watch::Sender<Readiness>,
    store: Store,
) {
    loop {
        let phase = *phases.borrow_and_update();
        readiness.send_replace(match phase {
            Phase::Leading => Readiness::Ready,
            Phase::Recovering if store.answers().await => Readiness::Starting,
            Phase::Recovering => Readiness::NoDatabase,
            Phase::Ended => Readiness::Stopping,
        });
        let changed = async {
            if phase == Phase::Recovering {
                let _ = tokio::time::timeout(Duration::from_secs(1), phases.changed()).await;
                Ok(())
            } else {
                phases.changed().await
            }
        };
        if changed.await.is_err() {
            return;
        }
    }
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

/// Serves both gRPC ports.
fn start_edges(
    config: &Config,
    rooms: Rooms,
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
            metrics: Arc::clone(&rooms.metrics),
            deadline: DEADLINE,
        })
    };
    let trust = Arc::new(Trust::of(&rooms.ca));
    let revoked = Arc::clone(&rooms.identities);
    trust.set_revoked(move |peer| revoked.is_revoked(&peer.identity));
    let seen = Arc::clone(&rooms.identities);
    let members = incoming(
        grpc,
        mtls_config_with(trust, Arc::clone(&cert)),
        rooms.mesh,
        accept_limits(limits),
        log_refusal,
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
        endpoints: rooms.grpc_endpoints.clone(),
        joins: RateLimiter::new(rate(limits.joins_per_second)),
    };
    let join_router = server(limits)
        .layer(edge_join)
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(64 * 1024));

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
        endpoints: rooms.grpc_endpoints.clone(),
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
        join_endpoints: rooms.join_endpoints.clone(),
        default_ttl: config.timings.token_ttl,
    };
    let reads = Arc::new(rooms.sessions.clone());
    let blobs = BlobsService::new(rooms.blobs.clone(), reads, UPLOAD_IDLE);
    let (_reporter, health) = standard::health();
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
    Ok(vec![mesh_edge, join_edge])
}

/// Makes a new admin credential from the data directory, without the coordinator.
pub async fn make_admin_credential(
    config: Config,
    user: &str,
    out: Option<PathBuf>,
) -> Result<PathBuf, ServeError> {
    let kept = config.data_dir.join("admin.credential");
    let known = mesh_certs::Credential::load(&kept)?;
    let mesh: MeshId = known.mesh.to_string().parse().map_err(|_| ServeError::Setup("the mesh's id"))?;
    let pki = credentials::pki_dir(&config.data_dir)?;
    let ca = tokio::task::spawn_blocking(move || Ca::load_or_create(&pki, mesh))
        .await
        .map_err(|_| ServeError::Setup("the CA"))??;
    let credential = credentials::admin_credential(&ca, user, &known.endpoints)?;
    let path = out.unwrap_or(kept);
    credential.save(&path)?;
    Ok(path)
}
