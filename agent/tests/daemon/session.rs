//! The standing with the coordinator: registering, breaking, coming back.

use std::io::{Read as _, Write as _};

use mesh_proto::code::Code;
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::attempt_event::Event;
use mesh_proto::v1::{self, Cause, InventoryState, Verdict};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::process::{Agent, key, processes, script, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_it_is_and_beats() {
    let fake = Fake::start();
    let args = [
        "--slots",
        "3",
        "--memory",
        "2GiB",
        "--tag",
        "zone=lab",
        "--capability",
        "ffmpeg",
        "--resource",
        "licence=2",
    ];
    let agent = Agent::join(&fake, &args).await;
    let facts = fake.state().registrations[0].facts.clone().unwrap();
    assert_eq!((facts.name.as_str(), facts.slots, facts.cpu_millis), ("desk", 3, 3000));
    assert_eq!((facts.memory_bytes, facts.tags["zone"].as_str()), (2 << 30, "lab"));
    assert_eq!(facts.capabilities, ["ffmpeg", mesh_proto::names::LEASE]);
    assert_eq!(facts.resources["licence"], 2);
    assert_eq!(facts.os, "linux");
    let sandbox = facts.sandbox.unwrap();
    assert_eq!(sandbox.strongest(), v1::SandboxLevel::Strict, "{:?}", sandbox.layers);
    assert!(!sandbox.layers.is_empty());
    let beat = fake.wait("a third heartbeat", |state| state.heartbeats.get(2).cloned()).await;
    assert!(beat.free_memory_bytes > 0 && beat.free_disk_bytes > 0 && beat.load_permille <= 1000);
    assert!(beat.echo_token > 1000, "the token is echoed");
    assert!((50_000..5_000_000).contains(&beat.echo_held_us), "{} µs", beat.echo_held_us);
    assert_eq!(agent.ready["node"].as_str().unwrap().len(), 36);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_not_acknowledged_is_told_again() {
    let fake = Fake::start();
    fake.state().ack_ends = false;
    let agent = Agent::join(&fake, &[]).await;
    fake.assign(script(0, "exit 4")).await;
    assert_eq!(fake.ended(key(0)).await.exit_code, 4);
    fake.state().events.clear();
    fake.state().ack_ends = true;
    fake.hang_up();
    fake.registered(2).await;
    let inventory = fake.state().registrations[1].inventory.clone();
    assert_eq!(inventory[0].state(), InventoryState::Ended);
    assert_eq!(fake.ended(key(0)).await.exit_code, 4);
    agent.removed(key(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_survives_the_coordinators_crash_and_is_told_of_once() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    open(dir.path());
    fake.assign(script(0, &format!("echo on; while ! [ -e {} ]; do sleep 0.05; done", gate.display()))).await;
    fake.started(key(0)).await;
    // Acknowledgements come in order: when this end's has, so has that of the start.
    fake.assign(script(1, "true")).await;
    agent.removed_after_end(&fake, key(1)).await;
    fake.crash();
    fake.come_back().await;
    fake.registered(2).await;
    let again = fake.state().registrations.last().unwrap().inventory.clone();
    assert_eq!(again[0].state(), InventoryState::Running);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Exit);
    let is = |(of, event): &&(_, _)| *of == key(0) && matches!(event, Event::Started(_));
    let starts = fake.state().events.iter().filter(is).count();
    assert_eq!(starts, 1, "an acknowledged start is not told again");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_registers_again_when_asked_and_ends_what_is_not_current() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    let mark = format!("78{}", std::process::id());
    fake.assign(script(0, &format!("sleep {mark}"))).await;
    fake.assign(script(1, "sleep 300")).await;
    fake.started(key(0)).await;
    fake.started(key(1)).await;
    fake.state().kill = vec![key(0)];
    fake.say(v1::AssignTaskResponse { register_again: true, ..Default::default() }).await;
    fake.registered(2).await;
    until("the end of what is not current", || processes(&mark).is_empty()).await;
    agent.removed(key(0)).await;
    let told =
        fake.state().events.iter().any(|(of, event)| *of == key(0) && matches!(event, Event::Ended(_)));
    assert!(!told, "nobody wants to hear of it");
    let verdict = v1::AttemptVerdict { attempt: Some(key(1).into()), verdict: Verdict::Kill.into() };
    fake.say(v1::AssignTaskResponse { verdicts: vec![verdict], ..Default::default() }).await;
    agent.removed(key(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_of_an_older_epoch_is_not_obeyed() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "2"]).await;
    agent.kill9().await;
    fake.state().epoch = 3;
    fake.hang_up();
    let agent = &mut agent;
    let before = fake.state().registrations.len();
    let watch = fake.clone();
    let start = agent.start(None);
    let heal = async move {
        watch
            .wait("two refused registrations", |state| {
                (state.registrations.len() >= before + 2).then_some(())
            })
            .await;
        assert!(watch.state().heartbeats.iter().all(|beat| beat.session_id == "s1"), "it went on with it");
        watch.state().epoch = 6;
    };
    tokio::join!(start, heal);
    assert!(agent.log_text().contains("refusing this coordinator"), "{}", agent.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_mesh_does_not_know_says_what_to_do() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &[]).await;
    agent.signal(Signal::SIGTERM);
    assert!(agent.gone().await.success());
    fake.state().refuse = Some((Code::NotFound, "node is not known"));
    let output = agent.call("run", &[]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("node is not known") && text.contains("agent run --join TOKEN"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_speaks_no_version_of_ours_is_not_obeyed_and_the_tasks_go_on() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &[]).await;
    fake.registered(1).await;
    fake.assign(script(0, "sleep 1000")).await;
    fake.wait("the start", |state| {
        let started = |(_, event): &(AttemptKey, Event)| matches!(event, Event::Started(_));
        state.events.iter().any(started).then_some(())
    })
    .await;
    fake.state().protocol = (9, 8);
    fake.hang_up();
    let text = "the coordinator speaks protocol 8 to 9, this agent 1: upgrade this agent";
    until("it is told", || agent.log_text().contains(text)).await;
    let ended = |(_, event): &(AttemptKey, Event)| matches!(event, Event::Ended(_));
    assert!(!fake.state().events.iter().any(ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_recovers_keeps_its_streams() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &[]).await;
    fake.registered(1).await;
    fake.state().busy = true;
    let beats = fake.state().heartbeats.len();
    fake.wait("refused heartbeats", |state| (state.heartbeats.len() >= beats + 5).then_some(())).await;
    fake.state().busy = false;
    fake.assign(script(0, "true")).await;
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Exit);
    assert_eq!(fake.state().registrations.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_when_asked_for() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--http-listen", "127.0.0.1:0"]).await;
    fake.assign(script(0, "exit 2")).await;
    agent.removed_after_end(&fake, key(0)).await;
    let address = agent.ready["http"].as_str().unwrap().to_owned();
    let get = |path: &'static str| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    };
    assert!(get("/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
    let text = get("/metrics").await.unwrap();
    for line in [
        "mesh_agent_connected 1",
        "mesh_agent_attempts_ended_total{cause=\"exit\"} 1",
        "mesh_agent_assigned_total 1",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_drains_and_stop_kill_gives_the_tasks_back() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "1"]).await;
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let gate = dir.path().join("gate");
    fake.assign(script(0, &format!("while ! [ -e {} ]; do sleep 0.05; done", gate.display()))).await;
    fake.assign(script(1, "true")).await;
    fake.started(key(0)).await;
    let release = async {
        fake.wait("a registration without slots", |state| {
            (state.registrations.last()?.facts.as_ref()?.slots == 0).then_some(())
        })
        .await;
        std::fs::write(&gate, "").unwrap();
    };
    let (stopped, ()) = tokio::join!(agent.call("stop", &[]), release);
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(agent.gone().await.success());
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Exit, "what ran was finished");
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit, "and what had been given already");

    agent.start(None).await;
    let mark = format!("79{}", std::process::id());
    let before = fake.state().registrations.len();
    fake.registered(before).await;
    fake.assign(script(2, &format!("sleep {mark}"))).await;
    fake.started(key(2)).await;
    assert!(agent.call("stop", &["--kill"]).await.status.success());
    assert!(agent.gone().await.success());
    assert_eq!(fake.ended(key(2)).await.cause(), Cause::Infra, "it runs again elsewhere");
    assert_eq!(processes(&mark), Vec::<i32>::new());
    assert_eq!(processes(&agent.data().display().to_string()), Vec::<i32>::new(), "the jail ends as well");

    // The same for what a daemon that was killed left behind.
    agent.start(None).await;
    let before = fake.state().registrations.len();
    fake.registered(before).await;
    fake.assign(script(3, &format!("sleep {mark}"))).await;
    fake.started(key(3)).await;
    agent.kill9().await;
    let output = agent.call("stop", &[]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of its tasks run on"), "{output:?}");
    assert!(agent.call("stop", &["--kill"]).await.status.success());
    assert_eq!(processes(&mark), Vec::<i32>::new());
    agent.start(None).await;
    assert_eq!(fake.ended(key(3)).await.cause(), Cause::Infra);
}

fn open(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
