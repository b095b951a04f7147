//! What a task finds when it runs, and that its end is told truly.

use std::fs;

use agent::jail::{ExitCause, Level, State};

use super::support::{Node, as_everybody, root, uid};

#[test]
fn exit_codes_and_signals_are_told_as_they_were() {
    as_everybody("running::exit_codes_and_signals_are_told_as_they_were", async |mut node: Node| {
        for level in [Level::Basic, Level::None] {
            for (script, cause) in [
                ("exit 0", ExitCause::Exited(0)),
                ("exit 7", ExitCause::Exited(7)),
                ("exit 255", ExitCause::Exited(255)),
                ("kill -TERM $$", ExitCause::Signalled(15)),
                ("kill -KILL $$", ExitCause::Signalled(9)),
                ("kill -SEGV $$", ExitCause::Signalled(11)),
            ] {
                let mut request = node.shell(script);
                request.level = level;
                let ended = node.run(request).await;
                ended.expect(&cause);
                assert!(ended.record.started_at_ms > 0);
                assert!(ended.record.ended_at_ms >= ended.record.started_at_ms);
            }
        }
    });
}

#[test]
fn a_command_that_cannot_run_is_told_as_a_shell_would() {
    as_everybody("running::a_command_that_cannot_run_is_told_as_a_shell_would", async |mut node: Node| {
        for level in [Level::Basic, Level::None] {
            let cases = [
                ("no-such-tool", 127, "mesh: cannot run \"no-such-tool\": not found in PATH\n"),
                ("./no-such-file", 127, "mesh: cannot run \"./no-such-file\": no such file"),
                ("/etc/passwd", 126, "mesh: cannot run \"/etc/passwd\": Permission denied"),
                ("./text", 126, "mesh: cannot run \"./text\": neither a program"),
            ];
            for (command, code, line) in cases {
                let mut request = node.request(&[command]);
                request.level = level;
                let text = request.work_dir.join("text");
                fs::write(&text, "no program").unwrap();
                fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
                let ended = node.run(request).await;
                ended.expect(&ExitCause::Exited(code));
                assert!(ended.err().starts_with(line), "{command}: {}", ended.err());
            }
        }
    });
}

#[test]
fn the_environment_is_the_given_one_and_nothing_else_is_inherited() {
    as_everybody(
        "running::the_environment_is_the_given_one_and_nothing_else_is_inherited",
        async |mut node: Node| {
            for level in [Level::Basic, Level::None] {
                let mut request = node.request(&["/usr/bin/env"]);
                request.level = level;
                request.env = vec![("ONE".into(), "1".into()), ("TWO".into(), "a b=c".into())];
                assert_eq!(node.run(request).await.out(), "ONE=1\nTWO=a b=c\n");

                // 3 is ls's own, for the directory.
                let mut request = node.request(&["ls", "/proc/self/fd"]);
                request.level = level;
                assert_eq!(node.run(request).await.out(), "0\n1\n2\n3\n");

                let script = "cat; umask; pwd; cut -d' ' -f6 /proc/self/stat; echo $$; ulimit -Hn; ulimit -c";
                let mut request = node.shell(script);
                request.level = level;
                let work_dir = fs::canonicalize(&request.work_dir).unwrap();
                let ended = node.run(request).await;
                let lines: Vec<&str> = ended.out().lines().collect();
                assert_eq!(lines[0], "0022", "stdin was not at its end, or the umask is another");
                assert_eq!(lines[1], work_dir.to_str().unwrap());
                assert_eq!(lines[2], lines[3], "the task leads no session of its own");
                assert!(lines[4].parse::<u64>().unwrap() <= 65536);
                assert_eq!(lines[5], "0");

                let mut request =
                    node.request(&["grep", "-E", "^(Sig(Ign|Blk)|Cap|NoNew|Groups)", "/proc/self/status"]);
                request.level = level;
                let ended = node.run(request).await;
                for line in ended.out().lines() {
                    let (name, value) = line.split_once(':').unwrap();
                    match name {
                        "NoNewPrivs" => assert_eq!(value.trim(), "1"),
                        "Groups" if root() => assert_eq!(value.trim(), ""),
                        // Without privileges the bounding set stays as it was; it can no longer be used.
                        "CapBnd" if !root() && level == Level::None => {}
                        "Groups" => {}
                        name => assert_eq!(value.trim().trim_start_matches('0'), "", "{level:?} {name}"),
                    }
                }
            }
        },
    );
}

#[test]
fn limits_are_set() {
    as_everybody("running::limits_are_set", async |mut node: Node| {
        let mut request = node.shell("ulimit -n; ulimit -f; head -c 3000 /dev/zero > big; echo $?");
        request.limits.nofile = 100;
        request.limits.fsize = Some(2048);
        let ended = node.run(request).await;
        let lines: Vec<&str> = ended.out().lines().collect();
        assert_eq!(lines[0], "100");
        assert_eq!(lines[1], "4", "in blocks of 512 bytes");
        assert_ne!(lines[2], "0", "a file grew past its limit");
    });
}

#[test]
fn a_start_is_done_once_however_often_it_is_asked_for() {
    as_everybody("running::a_start_is_done_once_however_often_it_is_asked_for", async |mut node: Node| {
        let request = node.shell("echo run >> ran; until test -e go; do sleep 0.02; done");
        for _ in 0..5 {
            node.start(&request).await;
        }
        let first = node.started(&request).await;
        assert!(first.start_time > 0);
        node.start(&request).await;
        fs::write(request.work_dir.join("go"), "").unwrap();
        node.ended(&request).await.expect(&ExitCause::Exited(0));
        node.start(&request).await;
        node.ended(&request).await.expect(&ExitCause::Exited(0));
        // Not even a jail that remembers nothing does it again: the record is on disk.
        node.client.forget(request.attempt).await.unwrap();
        assert!(node.client.list().await.unwrap().is_empty());
        node.start(&request).await;
        let list = node.client.list().await.unwrap();
        assert!(matches!(&list[..], [status] if matches!(status.state, State::Ended(_))), "{list:?}");
        assert_eq!(fs::read_to_string(request.work_dir.join("ran")).unwrap(), "run\n");
    });
}

#[test]
fn no_task_is_ever_root() {
    as_everybody("running::no_task_is_ever_root", async |mut node: Node| {
        for (uid, gid) in [(Some(0), Some(0)), (Some(0), Some(70_001)), (Some(70_001), Some(0)), (None, None)]
        {
            if !root() && uid != Some(0) {
                continue;
            }
            let mut request = node.request(&["id"]);
            (request.uid, request.gid) = (uid, gid);
            let error = node.client.start(request).await.unwrap_err().to_string();
            assert!(error.contains("root"), "{error}");
        }
        let request = node.shell("id -u; id -G");
        let uid = request.uid.unwrap_or_else(uid);
        let ended = node.run(request).await;
        assert_eq!(ended.out(), format!("{uid}\n{uid}\n"));
    });
}

#[test]
fn two_hundred_quick_tasks_at_once_all_end_well() {
    as_everybody("running::two_hundred_quick_tasks_at_once_all_end_well", async |mut node: Node| {
        let requests: Vec<_> = (0..200).map(|number| node.shell(&format!("echo {number}"))).collect();
        node.run(node.shell("true")).await;
        let before = descriptors(node.client.jail_pid());
        for request in &requests {
            node.start(request).await;
        }
        for (number, request) in requests.iter().enumerate() {
            let ended = node.ended(request).await;
            ended.expect(&ExitCause::Exited(0));
            assert_eq!(ended.out(), format!("{number}\n"));
        }
        assert_eq!(descriptors(node.client.jail_pid()), before, "descriptors leak");
    });
}

/// Open descriptors of a process; none where one may not look.
fn descriptors(pid: u32) -> Option<usize> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count)
}

#[test]
fn what_a_task_used_is_told() {
    as_everybody("running::what_a_task_used_is_told", async |mut node: Node| {
        // The memory and the time are a grandchild's, left behind to be reaped by the keeper.
        let work = "head -c 60000000 /dev/zero | tail -c 50000000 | wc -c; i=0; \
                    while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let ended = node.run(node.shell(work)).await;
        ended.expect(&ExitCause::Exited(0));
        assert!(ended.record.cpu_ms > 20, "{:?}", ended.record);
        assert!(ended.record.max_rss_bytes > 40_000_000, "{:?}", ended.record);
        assert!(ended.record.run_ms > 20, "{:?}", ended.record);
    });
}
