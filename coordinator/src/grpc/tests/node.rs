//! What agents may say and see: their own session, their own attempts.

use mesh_proto::{
    code::Code,
    v1::{
        AckKind, CommitPoint, HeartbeatRequest, InventoryState, JobState, ListInputsRequest,
        RegisterNodeRequest, RenewCertificateRequest, Verdict, attempt_event,
    },
};

use super::{
    Mesh,
    agent::{assigned, exit, held, key_of},
    code, key, session, soon, until,
};
use crate::{
    grpc::blobs::NodeReads as _,
    testing::{array, job, task},
};

#[tokio::test]
async fn a_task_runs_from_its_assignment_to_its_durable_end() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 2).await;
    let mut results = agent.results().await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let assignment = assigned(&mut assignments, 1).await.remove(0);
    assert_eq!((assignment.task_name.as_str(), &assignment.command[..]), ("one", &["true".to_owned()][..]));
    let attempt = key_of(&assignment);
    results.started(attempt).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, false));
    let progress = mesh_proto::v1::Progress { percent: 250, message: "half \u{1b}[2J way".to_owned() };
    results.say(attempt, attempt_event::Event::Progress(progress)).await;
    until(async || mesh.sessions.progress(attempt).is_some()).await;
    let (percent, message) = mesh.sessions.progress(attempt).unwrap();
    assert_eq!(percent, 100);
    assert!(!message.contains('\u{1b}'), "{message:?}");
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, true));
    assert_eq!(mesh.job(number).await.state(), JobState::Completed, "durable before it was acknowledged");
    assert_eq!(mesh.sessions.progress(attempt), None, "nothing is kept of an attempt that ended");
    // The acknowledgement was lost: the same end again is durable, not stale.
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, true));
}

#[tokio::test]
async fn a_node_cannot_speak_for_the_attempts_of_another() {
    let mesh = Mesh::new().await;
    let (_amber, mut assignments) = mesh.working_agent("amber", 1).await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    let (mut mallory, _idle) = mesh.working_agent("mallory", 1).await;
    let mut results = mallory.results().await;
    results.started(attempt).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Stale, false));
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Stale, true));
    assert!(!mesh.job(number).await.state().is_terminal(), "another node ended it");
    let mut output = mallory.output().await;
    output.put(attempt, 0, bytes::Bytes::from_static(b"forged")).await;
    assert!(output.ack().await.discard);
    assert_eq!(mesh.output.reader(attempt).await.unwrap().durable(), 0, "forged output was kept");
    let request = ListInputsRequest { session_id: mallory.session.clone(), attempt: Some(attempt.into()) };
    let status = mallory.client.list_inputs(request).await.unwrap_err();
    assert_eq!(code(&status), (Code::Stale, "this attempt is not the node's"));
    let progress = mesh_proto::v1::Progress { percent: 5, message: String::new() };
    results.say(attempt, attempt_event::Event::Progress(progress)).await;
    results.started(attempt).await;
    results.ack().await;
    assert_eq!(mesh.sessions.progress(attempt), None);
    // What it says it holds is not its either.
    let answer = mallory.register(1, vec![held(attempt, InventoryState::Running)]).await.unwrap();
    assert_eq!(answer.verdicts[0].verdict(), Verdict::Kill);
}

#[tokio::test]
async fn a_newer_session_ends_the_older_one_everywhere() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let (mut results, mut output) = (agent.results().await, agent.output().await);
    let old = agent.session.clone();
    agent.register(1, Vec::new()).await.unwrap();
    assert!(soon(assignments.message()).await.unwrap().is_none(), "the old assignments end");
    assert!(soon(results.answers.message()).await.unwrap().is_none());
    assert!(soon(output.answers.message()).await.unwrap().is_none());
    for stale in [old, session(), String::new(), "x".to_owned()] {
        let beat = HeartbeatRequest { session_id: stale.clone(), ..HeartbeatRequest::default() };
        let status = agent.client.heartbeat(beat).await.unwrap_err();
        assert_eq!(code(&status), (Code::Stale, "this session is over: register again"));
        let current = std::mem::replace(&mut agent.session, stale);
        assert_eq!(Code::of(&agent.assignments().await.unwrap_err()), Code::Stale);
        let mut results = agent.results().await;
        assert_eq!(Code::of(&soon(results.answers.message()).await.unwrap_err()), Code::Stale);
        let mut output = agent.output().await;
        assert_eq!(Code::of(&soon(output.answers.message()).await.unwrap_err()), Code::Stale);
        agent.session = current;
    }
    let _assignments = agent.assignments().await.unwrap();
    let second = agent.assignments().await.unwrap_err();
    assert_eq!(Code::of(&second), Code::Stale, "one stream of assignments for one session");
}

#[tokio::test]
async fn a_registration_that_cannot_be_is_refused_and_leaves_the_session_as_it_is() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let good = agent.registration(1, Vec::new());
    let beat = HeartbeatRequest { session_id: agent.session.clone(), ..HeartbeatRequest::default() };
    let with = |change: fn(&mut RegisterNodeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for (request, expected) in [
        (with(|r| r.protocol = 0), Code::Version),
        (with(|r| r.protocol = 99), Code::Version),
        (with(|r| r.boot_id = "x".to_owned()), Code::Invalid),
        (with(|r| r.facts = None), Code::Invalid),
        (with(|r| r.facts.as_mut().unwrap().cpu_millis = 0), Code::Invalid),
        (with(|r| r.facts.as_mut().unwrap().capabilities = vec!["A B".to_owned()]), Code::Invalid),
        (with(|r| r.inventory = vec![mesh_proto::v1::InventoryItem::default()]), Code::Invalid),
    ] {
        let status = agent.client.register_node(request).await.unwrap_err();
        assert_eq!(Code::of(&status), expected, "{status}");
        agent.client.heartbeat(beat.clone()).await.expect("its session goes on");
    }
    let stranger = mesh_proto::ids::NodeId::generate();
    let status = mesh.agent(stranger, [0; 32]).register_node(good).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Unauthenticated, "{status}");
}

/// Each version that this one understands, as its agents said it.
#[tokio::test]
async fn agents_of_every_known_version_are_answered() {
    for recorded in [&include_bytes!("../../../../proto/tests/golden/v1/RegisterNodeRequest.bin")[..]] {
        let mesh = Mesh::new().await;
        let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
        let request = <RegisterNodeRequest as prost::Message>::decode(recorded).unwrap();
        let answer = agent.client.register_node(request.clone()).await.unwrap().into_inner();
        assert!(answer.oldest_protocol <= request.protocol && request.protocol <= answer.protocol);
        assert_eq!(answer.verdicts.len(), request.inventory.len());
    }
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let newer = RegisterNodeRequest { protocol: 2, oldest_protocol: 1, ..agent.registration(1, Vec::new()) };
    agent.client.register_node(newer).await.expect("it speaks the version before as well");
    let ahead = RegisterNodeRequest { protocol: 3, oldest_protocol: 2, ..agent.registration(1, Vec::new()) };
    let status = agent.client.register_node(ahead).await.unwrap_err();
    let text = "the agent speaks protocol 2 to 3, this coordinator 1: upgrade this coordinator";
    assert_eq!((Code::of(&status), status.message()), (Code::Version, text));
}

#[tokio::test]
async fn an_agent_that_has_seen_more_than_the_database_holds_is_refused() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let mut request = agent.registration(1, Vec::new());
    let now = mesh.core.standing().point();
    // Histories are told apart by their incarnation; a later one is greater.
    let given = |incarnation: &str, seq: u64| {
        let mut point = CommitPoint { incarnation: incarnation.to_owned(), seq, ..now.clone() };
        super::prover().prove(&mut point);
        Some(point)
    };
    request.seen = given("0", 1 << 40);
    let answer = agent.client.register_node(request.clone()).await;
    answer.expect("an earlier history says nothing of this one");
    request.seen = given(&now.incarnation, now.seq + 1_000_000);
    let status = agent.client.register_node(request).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Stale, "{status}");
    assert!(status.message().contains("the database went back in time"), "{status}");
}

#[tokio::test]
async fn a_node_that_invents_commits_halts_nothing() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let now = mesh.core.standing().point();
    let invented = [
        CommitPoint { seq: now.seq + 1_000_000, ..now.clone() },
        CommitPoint { epoch: now.epoch + 1, ..now.clone() },
        CommitPoint { incarnation: "f".repeat(36), ..now.clone() },
        // As an agent says it that knows of no proofs.
        CommitPoint { seq: now.seq + 1_000_000, proof: Vec::new(), ..now },
    ];
    for seen in invented {
        let request = RegisterNodeRequest { seen: Some(seen.clone()), ..agent.registration(1, Vec::new()) };
        agent.client.register_node(request).await.unwrap_or_else(|status| panic!("{seen:?}: {status}"));
        assert_eq!(mesh.core.standing().halted(), None, "{seen:?}");
    }
    mesh.submit(job(vec![array("a", 1)])).await;
}

#[tokio::test]
async fn what_an_agent_holds_is_kept_collected_or_killed() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 8).await;
    let mut results = agent.results().await;
    mesh.submit(job(vec![array("a", 4)])).await;
    let attempts: Vec<_> = assigned(&mut assignments, 4).await.iter().map(key_of).collect();
    results.started(attempts[0]).await;
    results.ack().await;
    results.say(attempts[1], attempt_event::Event::Ended(exit(0))).await;
    results.ack().await;
    let nobodys = mesh_proto::ids::AttemptKey { number: 9, ..attempts[3] };
    let inventory = vec![
        held(attempts[0], InventoryState::Running),
        // Its end was committed, and its acknowledgement was lost.
        held(attempts[1], InventoryState::Ended),
        // It ended while nobody could be told.
        held(attempts[2], InventoryState::Ended),
        held(nobodys, InventoryState::Running),
    ];
    let answer = agent.register(8, inventory).await.unwrap();
    let verdicts: Vec<Verdict> =
        answer.verdicts.iter().map(mesh_proto::v1::AttemptVerdict::verdict).collect();
    assert_eq!(verdicts, [Verdict::Keep, Verdict::Collect, Verdict::Collect, Verdict::Kill]);
    // The fourth was committed and never arrived: it is sent again.
    let mut assignments = agent.assignments().await.unwrap();
    assert_eq!(key_of(&assigned(&mut assignments, 1).await[0]), attempts[3]);
}

#[tokio::test]
async fn the_round_trip_is_measured_from_the_echo() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let mut beat = HeartbeatRequest { session_id: agent.session.clone(), ..HeartbeatRequest::default() };
    let first = agent.client.heartbeat(beat.clone()).await.unwrap().into_inner();
    assert_eq!(first.lease_ms, 22_500, "three quarters of offline_after");
    let name = agent.name.clone();
    let shown = async || {
        let request = mesh_proto::v1::GetNodeRequest { node: name.clone() };
        mesh.nodes().get_node(request).await.unwrap().into_inner().rtt_ms
    };
    assert_eq!(shown().await, None, "one heartbeat measures nothing");
    // An echo from the future, or held for longer than there was, measures nothing either.
    (beat.echo_token, beat.echo_held_us) = (first.token + 60_000_000, 0);
    agent.client.heartbeat(beat.clone()).await.unwrap();
    (beat.echo_token, beat.echo_held_us) = (first.token, 60_000_000);
    agent.client.heartbeat(beat.clone()).await.unwrap();
    assert_eq!(shown().await, None);
    (beat.echo_token, beat.echo_held_us, beat.load_permille) = (first.token, 0, 250);
    agent.client.heartbeat(beat).await.unwrap();
    let rtt = shown().await.unwrap();
    assert!(rtt > 0.0 && rtt < 20_000.0, "{rtt} ms");
    assert!(mesh.metrics.encode().unwrap().contains("mesh_node_rtt_seconds{node=\"amber\"}"));
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_key_only() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    let renew = |csr_der| RenewCertificateRequest { csr_der };
    let own = agent.key.csr_der().unwrap();
    let answer = agent.client.renew_certificate(renew(own)).await.unwrap().into_inner();
    let identity = mesh_certs::identity_of(&answer.certificate_der.into(), mesh.ca.mesh()).unwrap();
    assert_eq!(identity, mesh_certs::Identity::Node(agent.node));
    assert_eq!(answer.endpoints, ["mesh.example:7443"]);
    let status = agent.client.renew_certificate(renew(key().csr_der().unwrap())).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Denied, "{status}");
    let status = agent.client.renew_certificate(renew(b"no request".to_vec())).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Invalid, "{status}");
}

#[tokio::test]
async fn a_node_whose_place_was_given_away_is_neither_registered_nor_renewed() {
    let mesh = Mesh::new().await;
    let (mut agent, _assignments) = mesh.working_agent("amber", 1).await;
    mesh.own(agent.node, &key()).await;
    let status = agent.register(1, Vec::new()).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Unauthenticated, "{status}");
    let csr_der = agent.key.csr_der().unwrap();
    let status = agent.client.renew_certificate(RenewCertificateRequest { csr_der }).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Unauthenticated, "{status}");
    mesh.own(agent.node, &agent.key).await;
    agent.register(1, Vec::new()).await.unwrap();
}

#[tokio::test]
async fn what_a_node_may_read_follows_what_it_holds() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 2).await;
    let digest = mesh.put(b"an input").await;
    let mut one = task("one");
    one.inputs = vec![mesh_proto::v1::FileEntry {
        path: "in".to_owned(),
        digest: digest.to_vec(),
        size: 8,
        ..mesh_proto::v1::FileEntry::default()
    }];
    mesh.submit(job(vec![one])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    let reads = |node| mesh.sessions.may_read(node, &digest);
    assert!(reads(agent.node));
    let (other, _idle) = mesh.working_agent("birch", 1).await;
    assert!(!reads(other.node), "only who holds the task");
    agent.register(2, vec![held(attempt, InventoryState::Running)]).await.unwrap();
    assert!(reads(agent.node), "also after a new registration");
    let mut results = agent.results().await;
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    results.ack().await;
    assert!(!reads(agent.node), "no longer than it holds it");
}

#[tokio::test]
async fn what_a_node_has_forgotten_is_forgotten_of_it() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let mut results = agent.results().await;
    mesh.submit(job(vec![task("one")])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    results.started(attempt).await;
    results.ack().await;
    let progress = mesh_proto::v1::Progress { percent: 5, message: String::new() };
    results.say(attempt, attempt_event::Event::Progress(progress)).await;
    until(async || mesh.sessions.progress(attempt).is_some()).await;
    // It comes back with nothing: the attempt is lost, and no acknowledgement will ever tell.
    agent.register(1, Vec::new()).await.unwrap();
    assert_eq!(mesh.sessions.progress(attempt), None);
}
