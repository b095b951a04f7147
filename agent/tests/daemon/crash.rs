//! The daemon dies in the worst moments; its tasks and their output do not.

use mesh_proto::frame::{Decoder, Kind};
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1::attempt_event::Event;
use mesh_proto::v1::{Cause, InventoryItem, InventoryState};
use nix::sys::signal::Signal;

use crate::fake::Fake;
use crate::process::{Agent, key, levels, processes, script, until};

fn stdout(spool: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::default();
    decoder.push(spool);
    let mut bytes = vec![];
    while let Some(frame) = decoder.next_frame().unwrap() {
        assert_ne!(frame.kind, Kind::Cut);
        if frame.kind == Kind::Stdout {
            assert_eq!(frame.offset, bytes.len() as u64);
            bytes.extend_from_slice(&frame.data);
        }
    }
    bytes
}

/// A process goes on while its daemon is killed in the middle of its output, twice.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_daemon_loses_no_byte_and_no_end() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "2"]).await;
    let mut keys = vec![];
    for (index, level) in (0..).zip(levels(&fake)) {
        let mut task =
            script(index, "seq 1 200000; sleep 0.5; seq 200001 400000; echo done > out.txt; exit 0");
        task.outputs = vec!["out.txt".into()];
        task.set_sandbox(level);
        fake.assign(task).await;
        keys.push(key(index));
    }
    for key in &keys {
        fake.wait("some output", |state| {
            state.outputs.get(key).is_some_and(|have| have.len() > 100_000).then_some(())
        })
        .await;
    }
    agent.kill9().await;
    agent.start(None).await;
    let inventory = fake.state().registrations.last().unwrap().inventory.clone();
    assert_eq!(inventory.len(), keys.len(), "they are taken up again");
    agent.kill9().await;
    agent.start(None).await;
    let mut expected = String::new();
    for n in 1..=400_000 {
        expected.push_str(&n.to_string());
        expected.push('\n');
    }
    for key in keys {
        let ended = fake.ended(key).await;
        assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
        assert_eq!(ended.outputs[0].path, "out.txt");
        let spool = fake
            .wait("all of the output", |state| {
                let have = state.outputs.get(&key).filter(|have| have.len() as u64 == ended.output_length)?;
                Some(have.clone())
            })
            .await;
        assert!(stdout(&spool) == expected.as_bytes(), "{} bytes of output", spool.len());
        agent.removed(key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_the_daemon_was_down_is_told_truly() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "2"]).await;
    let mark = format!("0.{}", 600_000 + std::process::id());
    let levels = levels(&fake);
    let keys: Vec<AttemptKey> = (0..).map(key).take(levels.len()).collect();
    for (index, level) in (0..).zip(levels) {
        let mut task = script(index, &format!("echo before; sleep {mark}; echo after; exit 5"));
        task.set_sandbox(level);
        fake.assign(task).await;
        fake.started(key(index)).await;
    }
    agent.signal(Signal::SIGTERM);
    assert!(agent.gone().await.success(), "SIGTERM detaches and exits 0");
    until("the tasks' end", || processes(&mark).is_empty()).await;
    agent.start(None).await;
    for key in keys {
        let ended = fake.ended(key).await;
        assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 5), "{ended:?}");
        let spool = fake
            .wait("all of the output", |state| {
                let have = state.outputs.get(&key).filter(|have| have.len() as u64 == ended.output_length)?;
                Some(have.clone())
            })
            .await;
        assert_eq!(stdout(&spool), b"before\nafter\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_rejected_and_its_process_ended() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "2"]).await;
    let mark = format!("76{}", std::process::id());
    fake.assign(script(0, &format!("sleep {mark}"))).await;
    fake.assign(script(1, "sleep 300")).await;
    fake.started(key(0)).await;
    fake.started(key(1)).await;
    agent.kill9().await;
    let record = agent.data().join("attempts/12-0-0-1/record");
    let mut bytes = std::fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    agent.start(None).await;
    let inventory = fake.state().registrations.last().unwrap().inventory.clone();
    let state = |wanted: AttemptKey| {
        let of = |item: &&InventoryItem| AttemptKey::try_from(item.attempt).is_ok_and(|key| key == wanted);
        inventory.iter().find(of).map(InventoryItem::state)
    };
    assert_eq!(state(key(0)), Some(InventoryState::Ended), "without a trace it would begin once more");
    assert_eq!(state(key(1)), Some(InventoryState::Running), "the other one is kept");
    assert_eq!(fake.ended(key(0)).await.cause(), Cause::Infra);
    until("the end of what cannot be trusted", || processes(&mark).is_empty()).await;
    agent.removed(key(0)).await;
    assert!(agent.log_text().contains("record is rejected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_jail_takes_its_tasks_along_and_the_node_goes_on() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "1"]).await;
    let mark = format!("75{}", std::process::id());
    let level = levels(&fake)[0];
    let mut task = script(0, &format!("echo written; sleep {mark}"));
    task.set_sandbox(level);
    fake.assign(task).await;
    fake.started(key(0)).await;
    let (client, _events) = agent::jail::Client::connect(&agent.data().join("jail")).await.unwrap();
    let jail = nix::unistd::Pid::from_raw(client.jail_pid() as i32);
    nix::sys::signal::kill(jail, Signal::SIGKILL).unwrap();
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Infra, "{ended:?}");
    until("the end of its tasks", || processes(&mark).is_empty()).await;
    let mut next = script(1, "true");
    next.set_sandbox(level);
    fake.assign(next).await;
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit);
    let starts = fake.state().events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count();
    assert_eq!(starts, 2);
}
