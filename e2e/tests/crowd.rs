//! Two hundred nodes that lose their coordinator together and come back together.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

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
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

const NODES: usize = 200;
/// Attempts that each of them holds.
const EACH: usize = 2;
/// How long the reconciliation of all may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Joins may be many, silence is borne for long, heartbeats are no load.
const CONFIG: &str = "[timings]\nheartbeat = \"2s\"\nsuspect_after = \"20s\"\noffline_after = \"60s\"\n\
                      [limits]\njoins_per_second = 100000\n";

/// What the test knows of all nodes.
#[derive(Default)]
struct Crowd {
    /// Attempts that were assigned.
    held: BTreeSet<AttemptKey>,
    /// Nodes whose whole inventory was answered with `keep` in the second session.
    kept: usize,
    wrong: Vec<String>,
}

/// A node that speaks the protocol, and runs no process.
struct Node {
    client: NodeClient<Channel>,
    name: String,
    boot: String,
    mine: Vec<AttemptKey>,
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
        let running = |key: &AttemptKey| InventoryItem {
            attempt: Some((*key).into()),
            state: InventoryState::Running.into(),
        };
        RegisterNodeRequest {
            protocol: mesh_proto::PROTOCOL_VERSION,
            boot_id: self.boot.clone(),
            facts: Some(NodeFacts {
                name: self.name.clone(),
                slots: EACH as u32,
                cpu_millis: EACH as u32 * 1000,
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
            inventory: self.mine.iter().map(running).collect(),
            ..RegisterNodeRequest::default()
        }
    }

    /// Sessions, one after the other, as an agent keeps them: with growing pauses, each of another length.
    async fn live(mut self) {
        let mut wait = 100;
        loop {
            if self.session(&mut wait).await.is_ok() {
                return;
            }
            let jitter = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * wait / 512;
            tokio::time::sleep(Duration::from_millis(wait / 2 + jitter)).await;
            wait = (wait * 2).min(2000);
        }
    }

    async fn session(&mut self, wait: &mut u64) -> Result<(), Status> {
        let registered = self.client.register_node(self.registration()).await?.into_inner();
        *wait = 100;
        if !self.mine.is_empty() {
            let kept =
                registered.verdicts.iter().filter(|verdict| verdict.verdict() == Verdict::Keep).count();
            let mut crowd = self.crowd.lock().unwrap();
            if kept == self.mine.len() {
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
        let mut ended = false;
        let mut open = EACH;
        loop {
            tokio::select! {
                message = given.message() => {
                    let Some(message) = message? else { return Err(Status::unavailable("over")) };
                    let mut events = Vec::new();
                    for assignment in message.assignments {
                        let key = AttemptKey::try_from(assignment.attempt).unwrap();
                        self.mine.push(key);
                        self.crowd.lock().unwrap().held.insert(key);
                        let started = Started { at_ms: 1, sandbox: SandboxLevel::Basic.into() };
                        events.push(AttemptEvent { attempt: assignment.attempt, event: Some(Event::Started(started)) });
                    }
                    tell.send(say(events)).await.map_err(gone)?;
                }
                message = acks.message() => {
                    let Some(message) = message? else { return Err(Status::unavailable("over")) };
                    open -= message.acks.iter().filter(|ack| ack.ended).count();
                    if open == 0 {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    let beat = HeartbeatRequest { session_id: id.clone(), ..HeartbeatRequest::default() };
                    self.client.heartbeat(beat).await?;
                }
                true = async { finish.wait_for(|finish| *finish).await.is_ok() }, if !ended => {
                    ended = true;
                    let end = Ended { cause: Cause::Exit.into(), started_at_ms: 1, ended_at_ms: 2, ..Ended::default() };
                    let end = |key: &AttemptKey| AttemptEvent {
                        attempt: Some((*key).into()),
                        event: Some(Event::Ended(end.clone())),
                    };
                    tell.send(say(self.mine.iter().map(end).collect())).await.map_err(gone)?;
                }
            }
        }
    }
}

/// The most memory that a process had resident so far, in MiB.
fn most_resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn two_hundred_nodes_that_come_back_at_once_are_reconciled_in_half_a_minute() {
    mesh_certs::install_provider();
    let mut mesh =
        Mesh::start_with(MeshOptions { extra: CONFIG.to_owned(), own_timings: true, ..Default::default() });
    let token = JoinToken::parse(&mesh.token(&["--uses", &NODES.to_string()])).unwrap();
    let endpoints = vec![mesh.address("grpc").to_owned()];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let crowd = Arc::<Mutex<Crowd>>::default();
    let (finish, finished) = watch::channel(false);
    let mut nodes = JoinSet::new();
    runtime.block_on(async {
        let join = pinned_channel(&token).await.unwrap();
        for number in 0..NODES {
            let name = format!("node-{number}");
            let client = Node::join(&token, join.clone(), endpoints.clone(), &name).await;
            let (crowd, finish) = (Arc::clone(&crowd), finished.clone());
            let boot = uuid::Uuid::new_v4().to_string();
            nodes.spawn(Node { client, name, boot, mine: Vec::new(), crowd, finish }.live());
        }
    });
    let text = format!("{{name: held, array: {{range: \"1-{}\"}}, command: ['true']}}", NODES * EACH);
    let number = mesh.submit(&text).number;
    let all = || (crowd.lock().unwrap().held.len() == NODES * EACH).then_some(());
    wait::until(secs(60), "every node runs its share", all);
    let running = r#"mesh_tasks{state="running"}"#;
    wait::until(secs(60), "all are said to run", || {
        (mesh.figure(running) == (NODES * EACH) as i64).then_some(())
    });
    let before = most_resident(mesh.coordinator_pid());

    mesh.kill_coordinator();
    mesh.start_coordinator();
    let up = Instant::now();
    wait::until(LIMIT, "every inventory is answered", || (crowd.lock().unwrap().kept == NODES).then_some(()));
    wait::until(LIMIT.saturating_sub(up.elapsed()), "every node is healthy", || {
        (mesh.figure(r#"mesh_nodes{state="healthy"}"#) == NODES as i64).then_some(())
    });
    let took = up.elapsed();
    let after = most_resident(mesh.coordinator_pid());
    println!("{NODES} nodes with {EACH} attempts each: reconciled in {took:?}, at most {after} MiB resident");
    println!("(before the crash at most {before} MiB)");
    assert!(after < before + 100, "{after} MiB for a crowd that took {before} MiB before");
    assert_eq!(crowd.lock().unwrap().wrong, [""; 0]);
    assert_eq!(crowd.lock().unwrap().held.len(), NODES * EACH, "an attempt was replaced");

    finish.send_replace(true);
    mesh.job(number).completes();
    assert!(mesh.job(number).tasks().iter().all(|task| task["attempt"] == 1));
    drop(nodes);
}
