//! Bombs hurt the task alone that throws them: a task beside it, of the same user, and the jail go on. And
//! what endless output, stubborn children and a full work directory do where the walls that cover them are
//! taken away.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent::jail::{Bounds, ExitCause, StartRequest, Wall};

use super::{
    endings::stubborn,
    strict::strict,
    support::{Node, as_everybody, as_everybody_in_groups, in_groups, mark, processes, root, until},
};

/// Takes memory in one place, and the rest of what is asked for in its own.
const BOMB: &str = r#"
import sys
place, there, own = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if there:
    with open(f"{place}/bomb", "wb", buffering=0) as file:
        for _ in range(there >> 16): file.write(bytes(1 << 16))
held = bytearray(own)
for at in range(0, own, 4096): held[at] = 1
print("reached", there + own, flush=True)
"#;

const MEMORY: u64 = 96 << 20;

#[test]
fn a_memory_bomb_of_any_kind_is_told_as_oom_and_hits_its_task_alone() {
    as_everybody_in_groups(
        "alone::a_memory_bomb_of_any_kind_is_told_as_oom_and_hits_its_task_alone",
        async |mut node: Node| {
            if !in_groups(&node).await {
                return;
            }
            let beside = strict(node.shell("echo up; until test -e go; do sleep 0.02; done; echo whole"));
            node.start(&beside).await;
            node.says(&beside, "up").await;
            let jail = node.client.jail_pid();
            // In memory of its own; in files in memory, which fit where they are, and with them.
            for (place, there, own) in [("/", 0, 200), ("/tmp", 40, 80), ("/dev/shm", 40, 80)] {
                let words = [place.to_owned(), (there << 20).to_string(), (own << 20).to_string()];
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let argv = [&["/usr/bin/python3", "-c", BOMB], &words[..]].concat();
                let bounds = Bounds { memory: Some(MEMORY), ..Bounds::default() };
                let ended = node.run(StartRequest { bounds, ..strict(node.request(&argv)) }).await;
                ended.expect(&ExitCause::OutOfMemory);
                assert_eq!(ended.out(), "", "{place}");
                let without = vec![Wall::Limits];
                let bare = StartRequest { bounds, without, ..strict(node.request(&argv)) };
                let ended = node.run(bare).await;
                assert!(ended.out().starts_with("reached"), "{place}: {:?}", ended.record.cause);
            }
            assert_eq!(node.client.jail_pid(), jail);
            fs::write(beside.work_dir.join("go"), "").unwrap();
            let ended = node.ended(&beside).await;
            assert_eq!((ended.out(), &ended.record.cause), ("up\nwhole\n", &ExitCause::Exited(0)));
        },
    );
}

/// Also where limits of a user's processes are what holds: each slot's user namespace is counted by itself.
#[test]
fn one_task_at_its_bound_of_processes_leaves_the_others_theirs() {
    as_everybody("alone::one_task_at_its_bound_of_processes_leaves_the_others_theirs", async |mut node| {
        let bounds = Bounds { processes: Some(40), ..Bounds::default() };
        let many = |node: &Node, count: u32| {
            let script = format!(
                "for i in $(seq {count}); do sleep 99 & done; echo up; until test -e go; do sleep 0.02; done"
            );
            StartRequest { bounds, ..strict(node.shell(&script)) }
        };
        let (first, second) = (many(&node, 30), many(&node, 30));
        for task in [&first, &second] {
            node.start(task).await;
            node.says(task, "up").await;
        }
        let mut more = many(&node, 60);
        more.timeout = Some(Duration::from_secs(20));
        let more = node.run(more).await;
        assert!(more.out().is_empty() && more.err().contains("fork"), "{:?} {}", more.record, more.err());
        for task in [&first, &second] {
            fs::write(task.work_dir.join("go"), "").unwrap();
            node.ended(task).await.expect(&ExitCause::Exited(0));
        }
    });
}

#[test]
fn without_the_watch_a_work_directory_takes_as_many_files_as_come() {
    as_everybody(
        "alone::without_the_watch_a_work_directory_takes_as_many_files_as_come",
        async |mut node: Node| {
            let bounds = Bounds { files: Some(500), ..Bounds::default() };
            for make in [
                "i=0; while [ $i -lt 3000 ]; do : > $i; i=$((i+1)); done",
                "i=0; while [ $i -lt 1000 ]; do mkdir d && cd d; i=$((i+1)); done",
            ] {
                let script = format!("{make}; echo reached; until test -e /work/go; do sleep 0.02; done");
                let watched = StartRequest { bounds, ..strict(node.shell(&script)) };
                match node.run(watched).await.record.cause {
                    ExitCause::DiskFull(why) => assert!(why.contains("files"), "{why}"),
                    cause => panic!("{cause:?}"),
                }
                let bare = StartRequest { bounds, without: vec![Wall::Disk], ..strict(node.shell(&script)) };
                node.start(&bare).await;
                node.says(&bare, "reached").await;
                fs::write(bare.work_dir.join("go"), "").unwrap();
                node.ended(&bare).await.expect(&ExitCause::Exited(0));
            }
        },
    );
}

/// The child that the pid namespace takes along: without one it holds the output for as long as it likes.
#[test]
fn without_a_namespace_a_stubborn_child_outlives_its_task_and_holds_its_output() {
    as_everybody(
        "alone::without_a_namespace_a_stubborn_child_outlives_its_task_and_holds_its_output",
        async |node: Node| {
            let mark = mark();
            let script = node.dir.path().join("stubborn.sh");
            fs::write(&script, stubborn(&mark)).unwrap();
            // The outer namespace is what ends it here, when this test is through.
            let mut command = Command::new("unshare");
            if !root() {
                command.arg("--user");
            }
            let line = format!("timeout --foreground -s KILL 1 sh {}; exec sleep 99", script.display());
            command.args(["--pid", "--fork", "--kill-child", "sh", "-c", &line]);
            let mut outer = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            until("the child", || !processes(&mark).is_empty()).await;
            let began = Instant::now();
            until("the task's end", || began.elapsed() > Duration::from_secs(2)).await;
            let left = processes(&mark);
            assert!(!left.is_empty(), "it went with its task: the attack shows nothing");
            let of_child = fs::read_link(format!("/proc/{}/fd/1", left[0])).unwrap();
            let outer_out = fs::read_link(format!("/proc/{}/fd/1", outer.id())).unwrap();
            assert_eq!(of_child, outer_out, "it does not hold the output");
            outer.kill().unwrap();
            outer.wait().unwrap();
            until("the namespace's end", || processes(&mark).is_empty()).await;
        },
    );
}

#[test]
fn the_same_output_is_kept_whole_where_more_of_it_may_be() {
    as_everybody("alone::the_same_output_is_kept_whole_where_more_of_it_may_be", async |mut node: Node| {
        for (most, kept) in [(1_u64 << 20, 1 << 20), (64 << 20, 8 << 20)] {
            let mut request = strict(node.shell("head -c 8388608 /dev/zero"));
            request.max_output = most;
            let ended = node.run(request).await;
            assert_eq!((ended.stdout.len(), ended.record.output_cut), (kept, most < 8 << 20));
        }
    });
}

#[test]
fn input_that_would_never_come_is_not_waited_for() {
    as_everybody("alone::input_that_would_never_come_is_not_waited_for", async |mut node: Node| {
        let mut request = strict(node.shell("cat; echo over"));
        request.timeout = Some(Duration::from_secs(30));
        assert_eq!(node.run(request).await.out(), "over\n");
        // With an input that stays open, such as the agent's own may be, it waits.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        until("a while", || began.elapsed() > Duration::from_millis(500)).await;
        assert!(child.try_wait().unwrap().is_none(), "it came to an end by itself");
        child.kill().unwrap();
        child.wait().unwrap();
    });
}
