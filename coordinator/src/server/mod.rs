//! Wiring: the only room that sees every other one.

mod database;
mod edges;
mod error;
mod follow;
mod schema;
mod shared;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mesh_certs::{Ca, ServerCert};
use mesh_proto::ids::CoordinatorId;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::error::ServeError;
use self::{
    database::Database,
    edges::{Rooms, start_edges},
};
use crate::{
    blobs::BlobStore,
    commit::{self, CommitLoop, Phase},
    config::{Advertise, Config, DataDir},
    credentials,
    directory::Directory,
    engine::{Totals, types::Settings},
    grpc::identities::Identities,
    http::{HttpServer, Options as HttpOptions, Readiness, Watched},
    metrics::Metrics,
    output::OutputStore,
    postgres,
    proof::Prover,
    refusals::Refusals,
    reload,
    seen::Seen,
    session::{Hub, Plans, Sessions, Voice},
    spawn::{spawn, spawn_owned},
    store::{Store, StoreError, coordinators::Addresses},
};

/// Connections of readers to the database.
const POOL: u32 = 12;
/// A commit that takes longer is given up, and callers are refused until the database answers.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);
/// How long open calls may take to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(5);

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
    let id = credentials::coordinator_id(data_dir.path())?;
    schema::prepare(&store, id, config.timings.leader_takeover).await?;
    let mesh = store.mesh_id().await?;
    let ca = Arc::new(shared::authority(config, &store, mesh, data_dir.path()).await?);
    let store_dir = shared::store_dir(config, &store, mesh, data_dir.path()).await?;
    let alone = config.mesh_secret_file.is_none();
    if !alone {
        shared::role(&store).await?;
    }
    let metrics =
        Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")).map_err(|_| ServeError::Setup("the metrics"))?);
    let edge_stop = CancellationToken::new();
    let core_stop = CancellationToken::new();
    let (sessions, hub) = (Sessions::default(), Hub::default());
    let (totals_send, totals) = watch::channel(Totals::default());
    let blobs = BlobStore::open(crate::blobs::Options {
        dir: store_dir.join("blobs"),
        uploads: if alone { "tmp".to_owned() } else { format!("tmp-{id}") },
        max_bytes: config.limits.max_blob,
    })?;
    let plans = Plans::new(store.clone(), blobs.clone());
    let output = OutputStore::open(crate::output::Options {
        dir: store_dir.join("output"),
        max_output: config.limits.max_output,
        open_files: 256,
        waiting_bytes: 64 * 1024 * 1024,
    })
    .map_err(ServeError::Output)?;
    let voice = Voice {
        sessions: sessions.clone(),
        hub: hub.clone(),
        metrics: Arc::clone(&metrics),
        totals: totals_send,
        plans: plans.clone(),
        output: output.clone(),
    };
    let grpc_endpoints = endpoints(&config.advertise, ports.grpc_addr.port());
    // A port that is advertised is the members' port; who joins goes to the other one.
    let hosts_alone: Vec<Advertise> =
        config.advertise.iter().map(|one| Advertise { host: one.host.clone(), port: None }).collect();
    let join_endpoints = endpoints(&hosts_alone, ports.join_addr.port());
    let addresses = Addresses { members: grpc_endpoints, joining: join_endpoints };
    let directory = Directory::new(addresses.clone());
    if !alone {
        directory.learn(store.addresses().await?, &addresses);
    }
    let options = commit_options(config, id, addresses.clone(), Prover::new(ca.key_pem().as_bytes()));
    let (commit_loop, core) = CommitLoop::new(store.clone(), options, voice, Arc::clone(&metrics));
    let seen = Arc::new(Seen::load(data_dir.path(), mesh));
    if let Some((incarnation, seq)) = seen.point() {
        core.standing().saw(incarnation, seq);
    }
    let (refusals, audit) = Refusals::new();
    let _audit = spawn_owned("audit of refusals", audit.run(store.clone(), edge_stop.clone()));
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
        directory: directory.clone(),
        refusals,
    };
    let hosts: Vec<String> = config.advertise.iter().map(|advertise| advertise.host.clone()).collect();
    let cert = ServerCert::new(&credentials::server_certificate(&ca, id, &hosts)?, &ca.cert_der())?;
    let (credential, admin) = credentials::keep_admin_credential(&ca, data_dir.path(), &directory.members())?;
    credentials::install_default(&admin);

    let (readiness, ready) = watch::channel(Readiness::Starting);
    let http_addr = dialable(ports.http.addr());
    let watched = Watched { metrics, readiness: ready };
    let _http = spawn_owned("http", ports.http.serve(watched, core_stop.clone()));
    let _turn =
        spawn_owned("certificate", follow::turn_certificate(Arc::clone(&cert), Arc::clone(&ca), id, hosts));
    let _sweep = spawn_owned("identities", Arc::clone(&rooms.identities).run());
    let _ready = spawn_owned(
        "readiness",
        follow::readiness(core.phases(), core.standing().halts_seen(), readiness, store.clone()),
    );
    let known = follow::Known {
        store,
        id,
        own: addresses,
        directory,
        ca: Arc::clone(&ca),
        data_dir: data_dir.path().to_owned(),
    };
    let _directory = (!alone).then(|| spawn_owned("directory", follow::directory(known, core.phases())));
    let hangups = signal(SignalKind::hangup()).map_err(ServeError::Signal)?;
    let _reload = spawn_owned("reload", reload::follow(hangups, config.file.clone(), core.clone()));
    let _seen = spawn_owned("seen commits", Arc::clone(&seen).follow(core.clone()));
    let mut leading = spawn("commit loop", commit_loop.run(core_stop.clone()));
    let mut phases = core.phases();
    let mut stopping = std::pin::pin!(stopping);
    tokio::select! {
        biased;
        ended = &mut leading => return Err(ended_early(ended)),
        _ = phases.wait_for(|phase| matches!(phase, Phase::Leading | Phase::Standby)) => {}
        // The lead or the database may be long in coming.
        () = &mut stopping => {
            core_stop.cancel();
            return leading.await.map_or_else(|error| Err(ended_early(Err(error))), |ended| Ok(ended?));
        }
    }
    let role = if *phases.borrow() == Phase::Standby { "standby" } else { "leader" };
    let edges = start_edges(config, &rooms, ports.grpc, ports.join, cert, &edge_stop)?;
    println!(
        "{}",
        json!({
            "ready": true,
            "role": role,
            "mesh": mesh.to_string(),
            "grpc": dialable(ports.grpc_addr).to_string(),
            "join": dialable(ports.join_addr).to_string(),
            "http": http_addr.to_string(),
            "credential": credential,
        })
    );

    let result = tokio::select! {
        ended = &mut leading => Err(ended_early(ended)),
        () = stopping => Ok(()),
        never = database.watch(&core) => match never {},
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
    seen.note(&core).await;
    result
}

fn ended_early(ended: Result<Result<(), StoreError>, tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(Err(StoreError::Fenced)) => ServeError::Led,
        Ok(Err(error)) => ServeError::Store(error),
        Ok(Ok(())) | Err(_) => ServeError::Broken,
    }
}

fn commit_options(
    config: &Config,
    id: CoordinatorId,
    addresses: Addresses,
    prover: Prover,
) -> commit::Options {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    commit::Options {
        id,
        addresses,
        prover,
        alone: config.mesh_secret_file.is_none(),
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

/// Makes a new admin credential from the data directory, without the coordinator.
pub fn make_admin_credential(
    config: &Config,
    user: &str,
    out: Option<PathBuf>,
) -> Result<PathBuf, ServeError> {
    // Never made here: a new CA would be a stranger to every node.
    let ca = Ca::load(&config.data_dir.join("pki"))?;
    let kept = credentials::admin_file(&config.data_dir);
    let endpoints = match mesh_certs::Credential::load(&kept) {
        Ok(known) if known.mesh == ca.mesh() => known.endpoints,
        Ok(_) | Err(_) => endpoints(&config.advertise, config.listen.port()),
    };
    let credential = credentials::admin_credential(&ca, user, &endpoints)?;
    let path = out.unwrap_or(kept);
    credential.save(&path)?;
    Ok(path)
}
