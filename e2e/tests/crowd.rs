//! Many nodes that lose their coordinator together and come back together, and a full queue behind them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    fs,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use agent::backoff::{Backoff, RECONNECT_MS};
use mesh_certs::{ChannelOptions, ClientCert, ClientTls, JoinToken, NodeKey, pinned_channel};
use mesh_e2e::{
    Mesh, MeshOptions,
    wait::{self, secs},
};
use mesh_proto::{
    ids::AttemptKey,
    v1::{
        AssignTaskRequest, AttemptEvent, Cause, Ended, HeartbeatRequest, InventoryItem, InventoryState,
        JoinRequest, NodeFacts, RegisterNodeRequest, Sandbox, SandboxLevel, Started, TaskResultRequest,
        Verdict, attempt_event::Event, enrollment_client::EnrollmentClient, node_client::NodeClient,
    },
};
use rustls_pki_types::CertificateDer;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// How long the reconciliation of all may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Joins may be many, silence is borne for long, heartbeats are no load.
const CONFIG: &str = "[timings]\nheartbeat = \"2s\"\nsuspect_after = \"20s\"\noffline_after = \"60s\"\n\
                      [limits]\njoins_per_second = 100000\n";

/// What the test knows of all nodes.
#[derive(Default)]
struct Crowd {
    /// Attempts that were begun, and how often.
    begun: BTreeMap<AttemptKey, u32>,
    /// Attempts whose ends were acknowledged.
    ended: BTreeSet<AttemptKey>,
    /// Nodes whose whole inventory was answered with `keep` in the second session.
    kept: usize,
    wrong: Vec<String>,
}

/// A node that speaks the protocol, and runs no process.
struct Node {
    client: NodeClient<Channel>,
    name: String,
    boot: String,
    slots: usize,
    /// What it was given and has no slot for.
    waits: VecDeque<AttemptKey>,
    runs: Vec<AttemptKey>,
    crowd: Arc<Mutex<Crowd>>,
    /// True when what it holds may end.
    finish: watch::Receiver<bool>,
}

impl Node {
    async fn join(
        token: &JoinToken,
        join: Channel,
        endpoints: Vec<String>,
        name: &str,
    ) -> NodeClient<Channel> {
        let key = NodeKey::generate().unwrap();
        let request = JoinRequest {
            token_id: token.id.clone(),
            secret: token.secret.to_vec(),
            csr_der: key.csr_der().unwrap(),
            name: name.to_owned(),
            version: "test".to_owned(),
        };
        let joined = EnrollmentClient::new(join).join(request).await.expect("join").into_inner();
        let cert = ClientCert::of_node(CertificateDer::from(joined.certificate_der), &key).unwrap();
        let tls = ClientTls { ca: CertificateDer::from(joined.ca_der), mesh: token.mesh, cert };
        NodeClient::new(mesh_certs::channel(endpoints, tls, ChannelOptions::default()).0)
    }

    fn registration(&self) -> RegisterNodeRequest {
        let item = |key: &AttemptKey, state: InventoryState| InventoryItem {
            attempt: Some((*key).into()),
            state: state.into(),
        };
        let running = self.runs.iter().map(|key| item(key, InventoryState::Running));
        let waiting = self.waits.iter().map(|key| item(key, InventoryState::Accepted));
        RegisterNodeRequest {
            protocol: mesh_proto::PROTOCOL_VERSION,
            boot_id: self.boot.clone(),
            facts: Some(NodeFacts {
                name: self.name.clone(),
                slots: self.slots as u32,
                cpu_millis: self.slots as u32 * 1000,
                memory_bytes: 1 << 30,
                os: "linux".to_owned(),
                arch: std::env::consts::ARCH.to_owned(),
                sandbox: Some(Sandbox {
                    strongest: SandboxLevel::Basic.into(),
                    weakest: SandboxLevel::None.into(),
                    ..Sandbox::default()
                }),
                ..NodeFacts::default()
            }),
            inventory: running.chain(waiting).collect(),
            ..RegisterNodeRequest::default()
        }
    }

    /// Sessions, one after the other, with an agent's own pauses between them.
    async fn live(mut self) {
        let (min, max) = RECONNECT_MS;
        let mut backoff = Backoff::new(Duration::from_millis(min), Duration::from_millis(max));
        while self.session(&mut backoff).await.is_err() {
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Begins what waits, as long as there are slots; ends it at once when it may end.
    fn begin(&mut self, finish: bool, events: &mut Vec<AttemptEvent>) {
        while self.runs.len() < self.slots
            && let Some(key) = self.waits.pop_front()
        {
            *self.crowd.lock().unwrap().begun.entry(key).or_default() += 1;
            let started = Started { at_ms: 1, sandbox: SandboxLevel::Basic.into(), ..Started::default() };
            events.push(AttemptEvent { attempt: Some(key.into()), event: Some(Event::Started(started)) });
            self.runs.push(key);
            if finish {
                events.push(end(key));
            }
        }
    }

    /// One session, until it breaks.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<Infallible, Status> {
        let registered = self.client.register_node(self.registration()).await?.into_inner();
        backoff.reset();
        let held = self.runs.len() + self.waits.len();
        if held > 0 {
            let kept =
                registered.verdicts.iter().filter(|verdict| verdict.verdict() == Verdict::Keep).count();
            let mut crowd = self.crowd.lock().unwrap();
            if kept == held {
                crowd.kept += 1;
            } else {
                crowd.wrong.push(format!("{}: {:?}", self.name, registered.verdicts));
            }
        }
        let id = registered.session_id;
        let (tell, told) = mpsc::channel(8);
        let say = |events| TaskResultRequest { session_id: id.clone(), events };
        let gone = |_| Status::unavailable("gone");
        tell.send(say(Vec::new())).await.map_err(gone)?;
        let mut acks = self.client.task_result(ReceiverStream::new(told)).await?.into_inner();
        let request = AssignTaskRequest { session_id: id.clone() };
        let mut given = self.client.assign_task(request).await?.into_inner();
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        let mut finish = self.finish.clone();
        let mut told_to_finish = false;
        loop {
            let mut events = Vec::new();
            tokio::select! {
                message = given.message() => {
                    let Some(message) = message? else { return Err(Status::unavailable("over")) };
                    for assignment in message.assignments {
                        let key = AttemptKey::try_from(assignment.attempt).unwrap();
                        // What is said twice is done once.
                        if !self.runs.contains(&key) && !self.waits.contains(&key) {
                            self.waits.push_back(key);
                        }
                    }
                }
                message = acks.message() => {
                    let Some(message) = message? else { return Err(Status::unavailable("over")) };
                    for ack in message.acks.into_iter().filter(|ack| ack.ended) {
                        let key = AttemptKey::try_from(ack.attempt).unwrap();
                        self.runs.retain(|runs| *runs != key);
                        self.crowd.lock().unwrap().ended.insert(key);
                    }
                }
                _ = tick.tick() => {
                    let beat = HeartbeatRequest { session_id: id.clone(), ..HeartbeatRequest::default() };
                    self.client.heartbeat(beat).await?;
                }
                true = async { finish.wait_for(|finish| *finish).await.is_ok() }, if !told_to_finish => {
                    told_to_finish = true;
                    events.extend(self.runs.iter().map(|key| end(*key)));
                }
            }
            self.begin(told_to_finish, &mut events);
            if !events.is_empty() {
                tell.send(say(events)).await.map_err(gone)?;
            }
        }
    }
}

fn end(key: AttemptKey) -> AttemptEvent {
    let end = Ended { cause: Cause::Exit.into(), started_at_ms: 1, ended_at_ms: 2, ..Ended::default() };
    AttemptEvent { attempt: Some(key.into()), event: Some(Event::Ended(end)) }
}

/// The most memory that a process had resident so far, in MiB.
fn most_resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A mesh of nodes that speak the protocol.
struct Nodes {
    mesh: Mesh,
    count: usize,
    crowd: Arc<Mutex<Crowd>>,
    finish: watch::Sender<bool>,
    // Behind the nodes, which live in it.
    all: JoinSet<()>,
    _runtime: Runtime,
}

impl Nodes {
    fn join(count: usize, slots: usize) -> Self {
        mesh_certs::install_provider();
        let options = MeshOptions { extra: CONFIG.to_owned(), own_timings: true, ..Default::default() };
        let mesh = Mesh::start_with(options);
        let token = JoinToken::parse(&mesh.token(&["--uses", &count.to_string()])).unwrap();
        let endpoints = vec![mesh.address("grpc").to_owned()];
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let crowd = Arc::<Mutex<Crowd>>::default();
        let (finish, finished) = watch::channel(false);
        let mut nodes = JoinSet::new();
        runtime.block_on(async {
            let join = pinned_channel(&token).await.unwrap();
            for number in 0..count {
                let name = format!("node-{number}");
                let client = Node::join(&token, join.clone(), endpoints.clone(), &name).await;
                let (crowd, finish) = (Arc::clone(&crowd), finished.clone());
                let boot = uuid::Uuid::new_v4().to_string();
                let (waits, runs) = (VecDeque::new(), Vec::new());
                nodes.spawn(Node { client, name, boot, slots, waits, runs, crowd, finish }.live());
            }
        });
        Self { mesh, count, crowd, finish, all: nodes, _runtime: runtime }
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap()
    }

    /// Submits an array and waits until as many of its tasks are said to run as the nodes have slots.
    fn submit(&self, tasks: usize, running: usize) -> u64 {
        let number = self
            .mesh
            .submit(&format!("{{name: held, array: {{range: \"1-{tasks}\"}}, command: ['true']}}"))
            .number;
        wait::until(secs(60), "every node runs its share", || {
            (self.crowd().begun.len() == running).then_some(())
        });
        self.said_to_run(secs(60), running);
        number
    }

    fn said_to_run(&self, limit: Duration, running: usize) {
        wait::until(limit, "all are said to run", || {
            (self.mesh.figure(r#"mesh_tasks{state="running"}"#) == running as i64).then_some(())
        });
    }

    /// Waits until every node has been answered for all that it holds, and is healthy.
    fn reconciled(&self, since: Instant, limit: Duration) -> Duration {
        let left = || limit.saturating_sub(since.elapsed());
        wait::until(left(), "every inventory is answered", || {
            (self.crowd().kept == self.count).then_some(())
        });
        wait::until(left(), "every node is healthy", || {
            (self.mesh.figure(r#"mesh_nodes{state="healthy"}"#) == self.count as i64).then_some(())
        });
        assert_eq!(self.crowd().wrong, [""; 0]);
        since.elapsed()
    }

    /// Lets everything end; each task is begun once, by its first attempt, and ends once.
    fn finish(mut self, number: u64, tasks: usize) {
        self.finish.send_replace(true);
        self.mesh.job(number).completes();
        self.all.abort_all();
        let crowd = self.crowd();
        assert_eq!((crowd.begun.len(), crowd.ended.len()), (tasks, tasks));
        assert!(crowd.begun.iter().all(|(key, times)| key.number == 1 && *times == 1), "{:?}", crowd.begun);
        assert!(self.mesh.job(number).tasks().iter().all(|task| task["attempt"] == 1));
    }
}

#[test]
fn two_hundred_nodes_that_come_back_at_once_are_reconciled_in_half_a_minute() {
    const NODES: usize = 200;
    const EACH: usize = 2;
    let mut nodes = Nodes::join(NODES, EACH);
    let number = nodes.submit(NODES * EACH, NODES * EACH);
    let before = most_resident(nodes.mesh.coordinator_pid());

    nodes.mesh.kill_coordinator();
    let down = Instant::now();
    nodes.mesh.start_coordinator();
    let took = nodes.reconciled(down, LIMIT);
    let after = most_resident(nodes.mesh.coordinator_pid());
    println!(
        "{NODES} nodes with {EACH} attempts each: reconciled {took:?} after the kill, at most {after} MiB"
    );
    println!("(before the crash at most {before} MiB)");
    assert!(after < before + 100, "{after} MiB for a crowd that took {before} MiB before");
    assert_eq!(nodes.crowd().begun.len(), NODES * EACH, "an attempt was replaced");
    nodes.finish(number, NODES * EACH);
}

#[test]
fn a_killed_coordinator_with_a_thousand_queued_and_a_hundred_running_is_back_in_ten_seconds() {
    const RUNNING: usize = 100;
    const QUEUED: usize = 1000;
    let mut nodes = Nodes::join(50, 2);
    let number = nodes.submit(RUNNING + QUEUED, RUNNING);

    nodes.mesh.kill_coordinator();
    let down = Instant::now();
    nodes.mesh.start_coordinator();
    let up = down.elapsed();
    nodes.reconciled(down, secs(10));
    nodes.said_to_run(secs(10).saturating_sub(down.elapsed()), RUNNING);
    println!("serves {up:?} after the kill, and everybody is told {:?} after it", down.elapsed());
    assert_eq!(nodes.crowd().begun.len(), RUNNING, "something was begun beside what ran");
    nodes.finish(number, RUNNING + QUEUED);
}
