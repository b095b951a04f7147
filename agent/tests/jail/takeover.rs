//! Daemons come and go, jails die: what is kept, what is told again, what ends.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use agent::jail::{Client, ClientError, ExitCause, Level, State, read_exit_record};

use super::support::{Node, as_everybody, levels, mark, processes, until};

#[test]
fn a_new_daemon_hears_of_ends_that_nobody_heard() {
    as_everybody("takeover::a_new_daemon_hears_of_ends_that_nobody_heard", async |mut node: Node| {
        for level in levels(&node).await {
            hears_of_ends(&mut node, level).await;
        }
    });
}

async fn hears_of_ends(node: &mut Node, level: Level) {
    let mut quick = node.shell("until test -e go; do sleep 0.02; done; echo out; exit 9");
    let mut slow = node.shell("until test -e go; do sleep 0.02; done; exit 8");
    (quick.level, slow.level) = (level, level);
    node.start(&quick).await;
    node.start(&slow).await;
    let pid = node.started(&slow).await;
    let jail = node.client.jail_pid();
    node.disconnect();
    fs::write(quick.work_dir.join("go"), "").unwrap();
    until("the record", || read_exit_record(&quick.attempt_dir).unwrap().is_some()).await;

    node.reconnect().await;
    assert_eq!(node.client.jail_pid(), jail, "another jail was started beside the living one");
    let ended = node.ended(&quick).await;
    ended.expect(&ExitCause::Exited(9));
    assert_eq!(ended.out(), "out\n");
    assert_eq!(read_exit_record(&quick.attempt_dir).unwrap(), Some(ended.record));
    assert_eq!(node.started(&slow).await, pid, "the running task is another");

    // A forgotten end is not told again.
    node.client.forget(quick.attempt).await.unwrap();
    node.disconnect();
    node.reconnect().await;
    let list = node.client.list().await.unwrap();
    assert!(matches!(&list[..], [status] if status.attempt == slow.attempt), "{list:?}");
    assert!(node.client.forget(slow.attempt).await.is_err(), "a running attempt was forgotten");
    fs::write(slow.work_dir.join("go"), "").unwrap();
    node.ended(&slow).await.expect(&ExitCause::Exited(8));
    node.client.forget(slow.attempt).await.unwrap();
}

#[test]
fn the_newest_daemon_takes_over_from_a_hanging_one() {
    as_everybody("takeover::the_newest_daemon_takes_over_from_a_hanging_one", async |mut node: Node| {
        let old = node.client.clone();
        node.reconnect().await;
        node.run(node.shell("exit 3")).await.expect(&ExitCause::Exited(3));
        assert!(matches!(old.list().await, Err(ClientError::Closed | ClientError::Io(_))));
    });
}

#[test]
fn a_killed_jail_takes_its_tasks_with_it_and_its_records_stay() {
    as_everybody(
        "takeover::a_killed_jail_takes_its_tasks_with_it_and_its_records_stay",
        async |mut node: Node| {
            let done = node.shell("exit 6");
            node.start(&done).await;
            node.ended(&done).await;
            let mark = mark();
            let mut tasks = Vec::new();
            for level in levels(&node).await {
                let mut request = node.shell(&format!("(setsid sh -c ': {mark}; while :; do sleep 1; done' &); echo up; : {mark}; while :; do sleep 1; done"));
                request.level = level;
                node.start(&request).await;
                node.says(&request, "up").await;
                tasks.push(request);
            }
            let jail = rustix::process::Pid::from_raw(node.client.jail_pid() as i32).unwrap();
            rustix::process::kill_process(jail, rustix::process::Signal::KILL).unwrap();
            until("the tasks to die", || processes(&mark).is_empty()).await;

            node.disconnect();
            node.reconnect().await;
            assert_ne!(node.client.jail_pid(), jail.as_raw_nonzero().get() as u32);
            assert!(node.client.list().await.unwrap().is_empty());
            assert_eq!(read_exit_record(&done.attempt_dir).unwrap().unwrap().cause, ExitCause::Exited(6));
            // What ran under the dead jail is not run a second time.
            for request in &tasks {
                assert_eq!(read_exit_record(&request.attempt_dir).unwrap(), None);
                let error = node.client.start(request.clone()).await.unwrap_err().to_string();
                assert!(error.contains("started before"), "{error}");
            }
            node.run(node.shell("exit 0")).await.expect(&ExitCause::Exited(0));
        },
    );
}

#[test]
fn damaged_records_are_refused_and_hurt_nothing_else() {
    as_everybody("takeover::damaged_records_are_refused_and_hurt_nothing_else", async |mut node: Node| {
        for damage in [&b""[..], b"{", &[0xff; 5000]] {
            let request = node.shell("exit 0");
            fs::write(request.attempt_dir.join("exit"), damage).unwrap();
            assert!(read_exit_record(&request.attempt_dir).is_err());
            let error = node.client.start(request).await.unwrap_err().to_string();
            assert!(error.contains("damaged"), "{error}");
        }
        node.run(node.shell("exit 0")).await.expect(&ExitCause::Exited(0));
    });
}

#[test]
fn nonsense_on_the_socket_costs_the_connection_alone() {
    as_everybody("takeover::nonsense_on_the_socket_costs_the_connection_alone", async |mut node: Node| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let socket = node.dir.path().join("jail/jail.sock");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        for nonsense in [&b"\xff\xff\xff\xff"[..], b"\x02\x00\x00\x00{]", b"\x02\x00\x00\x00{}"] {
            let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
            stream.write_all(nonsense).await.unwrap();
            let mut rest = Vec::new();
            let _reset = stream.read_to_end(&mut rest).await;
        }
        node.run(node.shell("exit 0")).await.expect(&ExitCause::Exited(0));
    });
}

#[test]
fn a_directory_with_a_long_name_serves_as_well() {
    as_everybody("takeover::a_directory_with_a_long_name_serves_as_well", async |node: Node| {
        let dir = node.dir.path().join("d".repeat(120)).join("e".repeat(120));
        let (client, _events) = Client::ensure(&Node::options(&dir)).await.unwrap();
        assert_eq!(client.list().await.unwrap(), []);
        client.shutdown(false).await.unwrap();
    });
}

#[test]
fn orphans_end_when_no_daemon_comes() {
    as_everybody("takeover::orphans_end_when_no_daemon_comes", async |mut node: Node| {
        node.client.shutdown(false).await.unwrap();
        let options =
            agent::jail::Options { orphan_timeout: Duration::from_secs(1), ..Node::options(node.dir.path()) };
        let (client, events) = Client::ensure(&options).await.unwrap();
        let mark = mark();
        let mut tasks = Vec::new();
        let strongest = client.probe().await.unwrap().strongest;
        for level in
            [Level::Strict, Level::Basic, Level::None].into_iter().filter(|level| *level <= strongest)
        {
            let mut request = node.shell(&format!(": {mark}; echo up; while :; do sleep 1; done"));
            request.level = level;
            client.start(request.clone()).await.unwrap();
            node.says(&request, "up").await;
            tasks.push(request);
        }
        let jail = client.jail_pid();
        drop((client, events));
        until("the jail to end", || !std::path::Path::new(&format!("/proc/{jail}")).exists()).await;
        assert_eq!(processes(&mark), [0; 0]);
        for request in &tasks {
            assert_eq!(read_exit_record(&request.attempt_dir).unwrap().unwrap().cause, ExitCause::Killed);
        }
        node.disconnect();
        node.reconnect().await;
    });
}

#[test]
fn a_list_tells_what_runs_and_what_ended() {
    as_everybody("takeover::a_list_tells_what_runs_and_what_ended", async |mut node: Node| {
        let done = node.shell("exit 1");
        node.start(&done).await;
        let ended = node.ended(&done).await;
        let runs = node.shell("until test -e go; do sleep 0.02; done");
        node.start(&runs).await;
        let started = node.started(&runs).await;
        let mut list = node.client.list().await.unwrap();
        list.sort_by_key(|status| status.attempt);
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].state, State::Ended(ended.record));
        assert_eq!(list[1].state, State::Running(started));
        node.client.kill(runs.attempt, Duration::ZERO).await.unwrap();
        node.ended(&runs).await;
    });
}

#[test]
fn a_jail_told_to_end_ends_its_tasks_in_order() {
    as_everybody("takeover::a_jail_told_to_end_ends_its_tasks_in_order", async |mut node: Node| {
        let mut tasks = Vec::new();
        for level in levels(&node).await {
            let mut request =
                node.shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
            (request.level, request.grace) = (level, Duration::from_mins(10));
            node.start(&request).await;
            node.says(&request, "up").await;
            tasks.push(request);
        }
        let jail = rustix::process::Pid::from_raw(node.client.jail_pid() as i32).unwrap();
        for harmless in [rustix::process::Signal::HUP, rustix::process::Signal::PIPE] {
            rustix::process::kill_process(jail, harmless).unwrap();
        }
        assert_eq!(node.client.list().await.unwrap().len(), tasks.len());
        rustix::process::kill_process(jail, rustix::process::Signal::TERM).unwrap();
        for request in &tasks {
            let ended = node.ended(request).await;
            ended.expect(&ExitCause::Killed);
            assert_eq!(ended.out(), "up\nbye\n");
        }
        until("the jail to end", || node_socket_is_gone(&node)).await;
    });
}

fn node_socket_is_gone(node: &Node) -> bool {
    !node.dir.path().join("jail/jail.sock").exists()
}
