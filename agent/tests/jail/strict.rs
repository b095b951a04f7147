//! Level strict as a task finds it: what it sees, what it may, how it is bounded.

use std::fs;

use agent::jail::{Bounds, ExitCause, Level, Limits, Mount, Network, StartRequest};

use super::support::{Node, as_everybody, root, uid};

/// A request at level strict.
pub fn strict(request: StartRequest) -> StartRequest {
    StartRequest { level: Level::Strict, ..request }
}

#[test]
fn a_task_sees_the_system_its_directory_and_nothing_else() {
    as_everybody("strict::a_task_sees_the_system_its_directory_and_nothing_else", async |mut node: Node| {
        let script = "pwd; echo in > file; ls -A / | tr '\\n' ' '; echo; ls -A /dev | tr '\\n' ' '; echo; \
                      ls -A /tmp /run /var | tr '\\n' ' '; echo; echo /proc/[0-9]*; id -u; id -G; \
                      ls -d /root /home /work/..; grep -c . /proc/net/dev; cat input";
        let request = strict(node.shell(script));
        fs::write(request.work_dir.join("input"), "given").unwrap();
        let work = request.work_dir.clone();
        let uid = request.uid.unwrap_or_else(uid);
        let ended = node.run(request).await;
        println!("{}{}", ended.out(), ended.err());
        let out: Vec<&str> = ended.out().lines().collect();
        assert_eq!(out[0], "/work");
        assert!(!out[1].contains("home") && !out[1].contains("root"), "{}", out[1]);
        assert_eq!(out[2], "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ");
        let fonts = if fs::exists("/var/cache/fontconfig").unwrap() { "cache " } else { "" };
        assert_eq!(out[3], format!("/run:  /tmp: .shm  /var: {fonts}run tmp "));
        assert!(out[4].split(' ').count() <= 3, "{}", out[4]);
        assert_eq!(out[5], uid.to_string());
        assert_eq!(out[7], "/work/..", "{out:?}");
        assert_eq!(out[8], "3", "a header of two lines and the loopback");
        assert_eq!(out[9], "given");
        assert_eq!(fs::read_to_string(work.join("file")).unwrap(), "in\n");
    });
}

#[test]
fn memory_runs_out_for_the_task_alone_and_is_called_oom() {
    as_everybody("strict::memory_runs_out_for_the_task_alone_and_is_called_oom", async |mut node: Node| {
        let cgroup = node.client.probe().await.unwrap().limits == Limits::Cgroup;
        assert!(cgroup || !root(), "root has control groups on this machine");
        let bounds = Bounds { memory: Some(64 << 20), ..Bounds::default() };
        let beside = strict(node.shell("until test -e go; do sleep 0.02; done; echo alive"));
        node.start(&beside).await;
        let heap = "head -c 200000000 /dev/zero | tail -c 150000000 | wc -c";
        let shm =
            "head -c 30000000 /dev/zero > /dev/shm/a; head -c 60000000 /dev/zero | tail -c 60000000 | wc -c";
        // Without groups each process is bounded, and /tmp by its size.
        for bomb in if cgroup { vec![heap, shm] } else { vec![heap] } {
            let mut request = strict(node.shell(&format!("set -e; {bomb}; sleep 100")));
            request.bounds = bounds;
            request.argv = ["/bin/bash", "-o", "pipefail", "-c", &request.argv[2]].map(str::to_owned).into();
            let ended = node.run(request).await;
            if cgroup {
                ended.expect(&ExitCause::OutOfMemory);
            } else {
                assert!(matches!(ended.record.cause, ExitCause::Exited(1..)), "{:?}", ended.record);
            }
        }
        fs::write(beside.work_dir.join("go"), "").unwrap();
        let ended = node.ended(&beside).await;
        assert_eq!((ended.out(), &ended.record.cause), ("alive\n", &ExitCause::Exited(0)));
        // The slot that was out of memory serves again.
        for _ in 0..3 {
            node.run(strict(node.shell("exit 4"))).await.expect(&ExitCause::Exited(4));
        }
    });
}

#[test]
fn a_work_directory_that_grows_too_large_ends_its_task_with_disk() {
    as_everybody(
        "strict::a_work_directory_that_grows_too_large_ends_its_task_with_disk",
        async |mut node: Node| {
            let much = "for i in 1 2 3 4 5; do head -c 3000000 /dev/zero > $i; done; sleep 100";
            let many = "mkdir d; i=0; while test $i -lt 60; do : > d/$i; i=$((i+1)); done; sleep 100";
            for (script, what) in [(much, "bytes"), (many, "files")] {
                let mut request = strict(node.shell(script));
                request.bounds = Bounds { disk: Some(10_000_000), files: Some(50), ..Bounds::default() };
                match node.run(request).await.record.cause {
                    ExitCause::DiskFull(why) => assert!(why.contains(what), "{why}"),
                    cause => panic!("{cause:?}"),
                }
            }
            // One file of that size cannot even be written.
            let mut request = strict(node.shell("head -c 20000000 /dev/zero > one; stat -c %s one"));
            request.bounds = Bounds { disk: Some(10_000_000), ..Bounds::default() };
            assert_eq!(node.run(request).await.out(), "10000000\n");
        },
    );
}

#[test]
fn mounts_are_where_they_were_asked_for_and_as_writable_as_said() {
    as_everybody(
        "strict::mounts_are_where_they_were_asked_for_and_as_writable_as_said",
        async |mut node: Node| {
            let data = tempfile::tempdir().unwrap();
            let (read, write) = (data.path().join("read"), data.path().join("write"));
            for dir in [&read, &write] {
                fs::create_dir(dir).unwrap();
                fs::write(dir.join("there"), "data").unwrap();
            }
            let script = "cat /data/in/there /data/out/there; echo x > /data/in/new; echo y > /data/out/new; \
                          ls -A /data; touch /data/new; test -w /data/out/there && echo writable; exit 0";
            let mut request = strict(node.shell(script));
            let owner = root().then_some((0, 0));
            request.mounts = vec![
                Mount { source: read.clone(), to: "/data/in".into(), read_only: true, owner: None },
                Mount { source: write.clone(), to: "/data/out".into(), read_only: false, owner },
            ];
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(0));
            assert_eq!(ended.out(), "datadatain\nout\nwritable\n", "{}", ended.err());
            assert_eq!(ended.err().matches("Read-only file system").count(), 2, "{}", ended.err());
            assert!(!read.join("new").exists());
            let made = fs::metadata(write.join("new")).unwrap();
            assert_eq!(
                std::os::unix::fs::MetadataExt::uid(&made),
                uid(),
                "the owner is the operator's choice"
            );

            // The next task is not told of them.
            let ended = node.run(strict(node.shell("ls -d /data"))).await;
            assert_eq!(ended.out(), "");
        },
    );
}

#[test]
fn the_network_is_a_loopback_unless_the_hosts_is_asked_for() {
    as_everybody(
        "strict::the_network_is_a_loopback_unless_the_hosts_is_asked_for",
        async |mut node: Node| {
            let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = outside.local_addr().unwrap().port();
            let script = format!(
                "python3 -c 'import socket; s=socket.create_server((\"127.0.0.1\",0)); \
             socket.create_connection(s.getsockname()); print(\"loopback\"); \
             socket.create_connection((\"127.0.0.1\",{port}),2); print(\"host\")'  ; exit 0"
            );
            for (network, seen) in [(Network::None, "loopback\n"), (Network::Host, "loopback\nhost\n")] {
                for _ in 0..2 {
                    let mut request = strict(node.shell(&script));
                    request.network = network;
                    let ended = node.run(request).await;
                    assert_eq!(ended.out(), seen, "{}", ended.err());
                }
            }
        },
    );
}
