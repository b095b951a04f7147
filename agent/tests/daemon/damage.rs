//! A disk that forgets or mistakes: whatever file of the data directory is damaged while no daemon
//! runs, the next one starts, tells an end of every attempt, leaves no process behind and works on.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_proto::v1::{Cause, attempt_event::Event};

use crate::fake::Fake;
use crate::process::{Agent, key, levels, processes, script, until};

/// Every file that holds state of attempts or of the session.
fn state_files(data: &Path) -> Vec<PathBuf> {
    let mut files = vec![data.join("seen.json")];
    for attempt in fs::read_dir(data.join("attempts")).unwrap().flatten() {
        let inside = fs::read_dir(attempt.path()).unwrap().flatten().map(|file| file.path());
        files.extend(inside.filter(|path| path.is_file()));
    }
    files.sort();
    files
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    if let Some(place) = (!bytes.is_empty()).then(|| at % bytes.len()) {
        bytes[place] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }
}

fn cut(path: &Path) {
    let length = fs::metadata(path).unwrap().len();
    fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_file_is_damaged_the_node_tells_its_ends_and_works_on() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "3"]).await;
    for round in 0..4_u32 {
        let (runs, ends, first) = (round * 3, round * 3 + 1, round * 3 + 2);
        let mark = format!("78{round}{}", std::process::id());
        fake.assign(script(runs, &format!("seq 1 200; sleep {mark}"))).await;
        fake.started(key(runs)).await;
        // Its end waits to be told: there is a record of it.
        fake.state().ack_ends = false;
        fake.assign(script(ends, "seq 1 200; exit 3")).await;
        fake.ended(key(ends)).await;
        agent.kill9().await;
        fake.state().ack_ends = true;
        for (number, path) in state_files(&agent.data()).iter().enumerate() {
            match round {
                0 => cut(path),
                round => flip(path, number * 31 + round as usize * 17),
            }
        }
        agent.start(None).await;
        for attempt in [runs, ends] {
            let ended = fake.ended(key(attempt)).await;
            assert!(matches!(ended.cause(), Cause::Infra | Cause::Exit), "{ended:?}");
        }
        until("the end of what cannot be trusted", || processes(&mark).is_empty()).await;
        fake.assign(script(first, "exit 4")).await;
        assert_eq!(fake.ended(key(first)).await.exit_code, 4, "it works on");
        for attempt in [runs, ends, first] {
            agent.removed(key(attempt)).await;
        }
        let state = fake.state();
        let starts = |index| {
            let of = |(at, event): &&(_, Event)| *at == key(index) && matches!(event, Event::Started(_));
            state.events.iter().filter(of).count()
        };
        assert!(starts(runs) <= 1 && starts(ends) <= 1, "an attempt began once more");
    }
    assert!(!agent.log_text().contains("panicked"), "{}", agent.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_boot_means_that_nothing_of_the_last_one_runs() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "1"]).await;
    let mark = format!("79{}", std::process::id());
    fake.assign(script(0, &format!("sleep {mark}"))).await;
    fake.started(key(0)).await;
    agent.kill9().await;
    // As a machine that was switched off leaves it: the jail is gone, and so is the boot.
    let (client, _events) = agent::jail::Client::connect(&agent.data().join("jail")).await.unwrap();
    let jail = nix::unistd::Pid::from_raw(client.jail_pid() as i32);
    nix::sys::signal::kill(jail, nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the end of its tasks", || processes(&mark).is_empty()).await;
    // A stranger with the same command line is nobody's task.
    let mut stranger = std::process::Command::new("sleep").arg(&mark).spawn().unwrap();
    let record = agent.data().join("attempts/12-0-0-1/record");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let found = agent::records::Records::new(agent.data().join("attempts"), boot.trim().to_owned());
    let entries = found.scan().unwrap();
    let [agent::records::Entry::Found(found)] = &entries[..] else { panic!("{entries:?}") };
    let older = agent::records::Records::new(agent.data().join("attempts"), "older-boot".to_owned());
    older.write(key(0), found.slot, &found.assignment).unwrap();
    assert!(record.exists());
    agent.start(None).await;
    assert_eq!(fake.state().registrations.last().unwrap().inventory, [], "nothing of it is claimed");
    agent.removed(key(0)).await;
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger's process was taken for a task");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    fake.assign(script(1, "exit 4")).await;
    assert_eq!(fake.ended(key(1)).await.exit_code, 4);
}

/// A process with this number, if the machine lets a test choose it.
fn numbered(pid: i32, mark: &str) -> Option<std::process::Child> {
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut child = std::process::Command::new("sleep").arg(mark).spawn().unwrap();
        if child.id() == pid.cast_unsigned() {
            return Some(child);
        }
        // Somebody else was faster.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_has_the_number_of_a_tasks_process_by_now_is_left_alone() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "1"]).await;
    for (index, level) in (0..).zip(levels(&fake)) {
        let mark = format!("77{index}{}", std::process::id());
        let mut task = script(index, &format!("sleep {mark}"));
        task.set_sandbox(level);
        fake.assign(task).await;
        fake.started(key(index)).await;
        agent.kill9().await;
        let (client, _events) = agent::jail::Client::connect(&agent.data().join("jail")).await.unwrap();
        let status = client.list().await.unwrap().into_iter().find(|status| status.attempt == key(index));
        let Some(agent::jail::State::Running(started)) = status.map(|status| status.state) else {
            panic!("it does not run")
        };
        let jail = nix::unistd::Pid::from_raw(client.jail_pid() as i32);
        nix::sys::signal::kill(jail, nix::sys::signal::Signal::SIGKILL).unwrap();
        let gone = || processes(&mark).is_empty() && !Path::new(&format!("/proc/{}", started.pid)).exists();
        until("the end of its tasks", gone).await;
        let Some(mut stranger) = numbered(started.pid, &mark) else {
            return mesh_skip::skip("this machine lets no test choose the number of a process");
        };
        // The same boot, the same number, even the same command.
        agent.start(None).await;
        assert_eq!(fake.ended(key(index)).await.cause(), Cause::Infra);
        agent.removed(key(index)).await;
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger's process was taken for a task");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
