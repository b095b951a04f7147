//! The services over a real engine, commit loop and Postgres. Who calls stands in a header,
//! which only these tests believe.

mod access;
mod agent;
mod dead;
mod enrollment;
mod follow;
mod inputs;
mod jobs;
mod lists;
mod logs;
mod node;
mod nodes;
mod recovery;
mod submit;
mod tasks;
mod watch;

use std::{sync::Arc, time::Duration};

use mesh_certs::{Ca, Identity, NodeKey, Peer};
use mesh_proto::{
    code::Code,
    ids::{AttemptKey, BootId, CoordinatorId, JobNumber, MeshId, NodeId, SessionId, TaskKey},
    limits::MAX_MESSAGE,
    v1::{
        Job, JobSpec, JobState, SandboxLevel, SubmitJobRequest, access_client::AccessClient,
        access_server::AccessServer, jobs_client::JobsClient, jobs_server::JobsServer,
        node_client::NodeClient, node_server::NodeServer, nodes_client::NodesClient,
        nodes_server::NodesServer,
    },
};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch as channel};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Server},
};

use super::{
    access::AccessService,
    auth::{Caller, Role},
    identities::Identities,
    jobs::JobsService,
    node::NodeService,
    nodes::NodesService,
    rate::{Rate, RateLimiter},
    testing::expiry,
};
use crate::{
    blobs::BlobStore,
    commit::{CommitLoop, Core, Options, Phase},
    config::Timings,
    directory::Directory,
    engine::{
        Totals,
        event::{AttemptEnd, Event, NodeRecord},
        types::Settings,
    },
    metrics::Metrics,
    output::OutputStore,
    postgres::testing::{TestDatabase, database},
    session::{Hub, Plans, Sessions, Taken, Voice},
    spawn::{AbortOnDrop, spawn_owned},
    spec,
    store::{Store, coordinators::Addresses},
    testing::{joined, registration},
};

/// The longest that a test waits for anything.
const SOON: Duration = Duration::from_secs(20);
const HEADER: &str = "test-caller";

fn directory() -> Directory {
    Directory::new(Addresses {
        members: vec!["mesh.example:7443".to_owned()],
        joining: vec!["mesh.example:7444".to_owned()],
    })
}

type Client = InterceptedService<Channel, As>;

/// Says who calls.
#[derive(Clone)]
struct As(String);

impl Interceptor for As {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(HEADER, self.0.parse().unwrap());
        Ok(request)
    }
}

/// Believes who calls: `user NAME` or `node ID KEY-FINGERPRINT`.
#[expect(clippy::unnecessary_wraps, reason = "an interceptor may refuse")]
fn believe(mut request: Request<()>) -> Result<Request<()>, Status> {
    let said = request.metadata().get(HEADER).unwrap().to_str().unwrap().to_owned();
    let words: Vec<&str> = said.split(' ').collect();
    let (identity, role, key) = match words[..] {
        ["user", name] => (Identity::User(name.to_owned()), Role::Admin, [0; 32]),
        ["node", id, key] => {
            let key = hex::decode(key).unwrap().try_into().unwrap();
            (Identity::Node(id.parse().unwrap()), Role::Node, key)
        }
        _ => panic!("{said:?}"),
    };
    let peer = Peer { identity, not_after: expiry(), fingerprint: [0; 32], key_fingerprint: key };
    request.extensions_mut().insert(Caller { peer, role, addr: "127.0.0.1:1".parse().unwrap(), opened: 0 });
    Ok(request)
}

struct Mesh {
    channel: Channel,
    core: Core,
    store: Store,
    pool: PgPool,
    sessions: Sessions,
    hub: Hub,
    output: OutputStore,
    blobs: BlobStore,
    plans: Plans,
    metrics: Arc<Metrics>,
    ca: Arc<Ca>,
    _tasks: [AbortOnDrop<()>; 2],
    dir: TempDir,
    // Last: it is dropped after all that uses it.
    database: TestDatabase,
}

/// What commit points are proved with.
fn prover() -> crate::proof::Prover {
    crate::proof::Prover::new(b"of every test")
}

impl Mesh {
    async fn new() -> Self {
        let database = database().await;
        let pool = database.pool(4).await;
        let store = Store::new(database.options.clone(), 8);
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (sessions, hub) = (Sessions::default(), Hub::default());
        let (totals_send, totals) = channel::channel(Totals::default());
        let blobs = BlobStore::open(crate::blobs::Options {
            dir: dir.path().join("blobs"),
            uploads: "tmp".to_owned(),
            max_bytes: 1 << 30,
        })
        .unwrap();
        let plans = Plans::new(store.clone(), blobs.clone());
        let output = OutputStore::open(crate::output::Options {
            dir: dir.path().join("output"),
            max_output: 64 << 20,
            open_files: 32,
            waiting_bytes: 4 << 20,
        })
        .unwrap();
        let voice = Voice {
            plans: plans.clone(),
            sessions: sessions.clone(),
            hub: hub.clone(),
            metrics: Arc::clone(&metrics),
            totals: totals_send,
            output: output.clone(),
        };
        let options = Options {
            id: CoordinatorId::generate(),
            addresses: Addresses::default(),
            prover: prover(),
            alone: true,
            settings: Settings::default(),
            takeover: Duration::from_secs(30),
            beat: Duration::from_secs(1),
            adoption_grace: Duration::from_secs(30),
            patience: SOON,
            queue: 1000,
        };
        let (commit_loop, core) = CommitLoop::new(store.clone(), options, voice, Arc::clone(&metrics));
        let stop = CancellationToken::new();
        let leading = spawn_owned("commit loop", {
            let stop = stop.clone();
            async move { commit_loop.run(stop).await.unwrap() }
        });
        let ca = Arc::new(Ca::generate(MeshId::generate()).unwrap());
        let identities = Identities::new(stop.clone());
        let jobs_service = JobsService {
            core: core.clone(),
            store: store.clone(),
            plans: plans.clone(),
            hub: hub.clone(),
            sessions: sessions.clone(),
            output: output.clone(),
            limits: spec::Limits::default(),
            default_sandbox: SandboxLevel::Basic,
            submits: RateLimiter::new(Rate { per_second: 1000.0, burst: 1000.0, max_callers: 10 }),
        };
        let for_agents = NodeService {
            core: core.clone(),
            store: store.clone(),
            plans: plans.clone(),
            sessions: sessions.clone(),
            output: output.clone(),
            metrics: Arc::clone(&metrics),
            identities,
            ca: Arc::clone(&ca),
            timings: Timings::default(),
            output_window: 1 << 20,
            directory: directory(),
        };
        let nodes_service = NodesService {
            core: core.clone(),
            store: store.clone(),
            totals,
            mesh: ca.mesh(),
            coordinator: CoordinatorId::generate(),
            started_at_ms: 1,
            ca: Arc::clone(&ca),
        };
        let access_service = AccessService {
            core: core.clone(),
            store: store.clone(),
            mesh: ca.mesh(),
            pin: ca.pin(),
            directory: directory(),
            default_ttl: Duration::from_mins(10),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Server::builder()
            .add_service(JobsServer::with_interceptor(jobs_service, believe))
            .add_service(NodeServer::with_interceptor(for_agents, believe))
            .add_service(NodesServer::with_interceptor(nodes_service, believe))
            .add_service(AccessServer::with_interceptor(access_service, believe));
        let server = spawn_owned("test server", async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        let mesh = Self {
            channel,
            core,
            store,
            pool,
            sessions,
            hub,
            output,
            blobs,
            plans,
            metrics,
            ca,
            _tasks: [leading, server],
            dir,
            database,
        };
        mesh.leads().await;
        mesh
    }

    async fn leads(&self) {
        soon(self.core.phases().wait_for(|phase| *phase == Phase::Leading)).await.unwrap();
    }

    fn of(&self, user: &str) -> Client {
        InterceptedService::new(self.channel.clone(), As(format!("user {user}")))
    }

    fn jobs(&self) -> JobsClient<Client> {
        JobsClient::new(self.of("ada"))
    }

    fn nodes(&self) -> NodesClient<Client> {
        NodesClient::new(self.of("ada"))
    }

    fn access(&self) -> AccessClient<Client> {
        AccessClient::new(self.of("ada"))
    }

    /// A connection of a node with this key.
    fn agent(&self, node: NodeId, key: [u8; 32]) -> NodeClient<Client> {
        let caller = As(format!("node {node} {}", hex::encode(key)));
        NodeClient::new(InterceptedService::new(self.channel.clone(), caller))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    async fn try_submit(&self, spec: JobSpec, key: &str) -> Result<(JobNumber, bool), Status> {
        let request = SubmitJobRequest { spec: Some(spec), idempotency_key: key.to_owned() };
        let answer = self.jobs().submit_job(request).await?.into_inner();
        Ok((JobNumber(answer.number), answer.existed))
    }

    async fn submit(&self, spec: JobSpec) -> JobNumber {
        self.try_submit(spec, "").await.unwrap().0
    }

    /// A node that the engine knows, without an agent: its attempts are ended by the test.
    async fn silent_node(&self, name: &str, cores: u32) -> NodeRecord {
        let record = joined(&self.pool, name).await;
        let registration = Arc::new(registration(&record, BootId::generate(), cores));
        let session = registration.session;
        let taken = Taken { boot: registration.boot, at_us: 0, opened: 0 };
        self.sessions.begin(record.id, name, session, taken).unwrap();
        self.core.ask(|reply| Event::NodeRegistered { reply, registration }).await.unwrap();
        self.tell(Event::SessionOpened { node: record.id, session }).await;
        record
    }

    /// Has an event handled and committed.
    async fn tell(&self, event: Event) {
        self.core.tell(event).await.unwrap();
        // The answer waits for the commit before it.
        self.core.ask(|reply| Event::NodesAsked { reply }).await.unwrap();
    }

    /// The attempts that are open, with their nodes.
    async fn open(&self) -> Vec<(NodeId, AttemptKey)> {
        let rows: Vec<(uuid::Uuid, i64, i32, i32, i32)> = sqlx::query_as(
            "SELECT node, job, task, index, number FROM attempts WHERE state <> 'ended'
             ORDER BY job, task, index",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        rows.into_iter()
            .map(|(node, job, task, index, number)| {
                let task = TaskKey { job: JobNumber(job as u64), task: task as u32, index: index as u32 };
                (NodeId(node), AttemptKey { task, number: number as u32 })
            })
            .collect()
    }

    async fn end(&self, (node, attempt): (NodeId, AttemptKey), end: AttemptEnd) {
        self.tell(Event::AttemptEnded { node, attempt, end: Arc::new(end) }).await;
    }

    async fn job(&self, number: JobNumber) -> Job {
        let request = mesh_proto::v1::GetJobRequest { job: number.to_string() };
        self.jobs().get_job(request).await.unwrap().into_inner()
    }

    /// Waits until a job is over, and says how.
    async fn over(&self, number: JobNumber) -> JobState {
        soon(async {
            loop {
                let state = self.job(number).await.state();
                if state.is_terminal() {
                    return state;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn put(&self, data: &[u8]) -> mesh_proto::digest::Digest {
        let digest = mesh_proto::digest::Digest::of(data);
        let data = bytes::Bytes::copy_from_slice(data);
        let stream = futures_util::stream::iter([Ok::<_, Status>(data.clone())]);
        self.blobs.put_stream(digest, data.len() as u64, stream).await.unwrap();
        digest
    }

    async fn audited(&self, action: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM audit WHERE action = $1")
            .bind(action)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

/// Waits until something holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    soon(async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn code(status: &Status) -> (Code, &str) {
    (Code::of(status), status.message())
}

fn key() -> NodeKey {
    NodeKey::generate().unwrap()
}

fn session() -> String {
    SessionId::generate().to_string()
}
