//! A slot is used for one task after another. Each of these leaves something, and the next task in the
//! same slot looks for it. `reuse.py` does both; a task that has just left something must see it.

use std::fs;

use agent::jail::{Bounds, ExitCause, Level, Limits, StartRequest, Wall};

use super::{
    strict::strict,
    support::{Ended, Node, as_everybody, as_everybody_in_groups, in_groups, root, ways},
};

fn python(node: &Node, what: &str, without: &[Wall]) -> StartRequest {
    let request = node.request(&["/usr/bin/python3", "reuse.py", what]);
    fs::write(request.work_dir.join("reuse.py"), include_str!("reuse.py")).unwrap();
    StartRequest { level: Level::Strict, without: without.to_vec(), ..request }
}

async fn go(node: &mut Node, what: &str, without: &[Wall]) -> Ended {
    let ended = node.run(python(node, what, without)).await;
    ended.expect(&ExitCause::Exited(0));
    ended
}

fn differences<'a>(one: &'a Ended, other: &'a Ended) -> Vec<(&'a str, &'a str)> {
    one.out().lines().zip(other.out().lines()).filter(|(one, other)| one != other).collect()
}

/// Leaves `what` and looks in the same slot.
async fn leave(node: &mut Node, what: &str, without: &[Wall]) {
    let fresh = go(node, "look", without).await;
    let left = go(node, what, without).await;
    assert!(!differences(&fresh, &left).is_empty(), "{what}: who left it does not see it");
    let found = go(node, "look", without).await;
    assert_eq!(differences(&fresh, &found), [], "{what} is found by the next task");
    assert_eq!(fresh.err(), found.err(), "{what}: the slot was not the same, so nothing was shown");
}

macro_rules! left {
    ($($test:ident: $($what:literal)*;)*) => {
        $(
            #[test]
            fn $test() {
                as_everybody(concat!("reuse::", stringify!($test)), async |mut node: Node| {
                    for without in ways() {
                        for what in [$($what),*] {
                            leave(&mut node, what, &without).await;
                        }
                    }
                });
            }
        )*
    };
}

left! {
    no_process_is_left_for_the_next_task: "processes";
    no_socket_is_left_for_the_next_task: "listener" "abstract";
    no_counter_of_the_network_is_left_for_the_next_task: "traffic" "label";
    no_file_is_left_for_the_next_task: "files" "lock";
    no_shared_memory_queue_or_semaphore_is_left_for_the_next_task: "queues" "segments" "semaphores";
    no_terminal_is_left_for_the_next_task: "terminal";
    no_habit_of_a_process_is_left_for_the_next_task:
        "mask" "limits" "environment" "signals" "timers" "scheduling" "score" "slack";
}

/// What cannot be changed need not be cleaned up.
#[test]
fn names_and_keys_cannot_be_changed_at_all() {
    as_everybody("reuse::names_and_keys_cannot_be_changed_at_all", async |mut node: Node| {
        let script = "
import ctypes, os
libc, key = ctypes.CDLL(None, use_errno=True), ctypes.c_long(248 if os.uname().machine == 'x86_64' else 217)
for name, result in [
    ('host', libc.sethostname(b'left', 4)),
    ('domain', libc.setdomainname(b'left', 4)),
    ('key', libc.syscall(key, b'user', b'left', b'x', 1, -4)),
    ('clock', libc.settimeofday(ctypes.create_string_buffer(16), None)),
]:
    print(name, result, ctypes.get_errno())";
        let ended = node.run(strict(node.request(&["/usr/bin/python3", "-c", script]))).await;
        assert_eq!(ended.out(), "host -1 1\ndomain -1 1\nkey -1 1\nclock -1 1\n", "{}", ended.err());
    });
}

/// Files of a work directory in memory stay counted where they were made, for as long as they are there.
#[test]
fn a_slot_that_files_in_memory_fill_is_not_used_for_a_task_that_would_not_fit() {
    if !root() {
        super::support::needs_root("only root can mount a file system in memory");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::new().await;
        assert_eq!(node.client.probe().await.unwrap().limits, Limits::Cgroup, "root has control groups");
        let attempts = node.dir.path().join("attempts");
        rustix::mount::mount(
            c"memory",
            &attempts,
            c"tmpfs",
            rustix::mount::MountFlags::empty(),
            c"mode=0711",
        )
        .unwrap();
        let bounded = |memory: u64, script: &str| StartRequest {
            bounds: Bounds { memory: Some(memory << 20), ..Bounds::default() },
            ..strict(node.shell(script))
        };
        let much = bounded(512, "head -c 100000000 /dev/zero > left");
        let fits = bounded(32, "head -c 8000000 /dev/zero | tail -c 8000000 | wc -c; exit 9");
        node.run(much).await.expect(&ExitCause::Exited(0));
        let ended = node.run(fits).await;
        rustix::mount::unmount(&attempts, rustix::mount::UnmountFlags::DETACH).unwrap();
        ended.expect(&ExitCause::Exited(9));
    });
}

#[test]
fn no_use_of_memory_is_left_for_the_next_task() {
    as_everybody_in_groups("reuse::no_use_of_memory_is_left_for_the_next_task", async |mut node: Node| {
        if !in_groups(&node).await {
            return;
        }
        let bounded = |memory: u64, request: StartRequest| StartRequest {
            bounds: Bounds { memory: Some(memory << 20), ..Bounds::default() },
            ..strict(request)
        };
        // Pages of files and of /tmp, and processes that the memory killer takes.
        let much = "head -c 150000000 /dev/zero > /tmp/a; head -c 150000000 /dev/zero > b; sync b";
        node.run(bounded(512, node.shell(much))).await.expect(&ExitCause::Exited(0));
        let fits = "head -c 8000000 /dev/zero | tail -c 8000000 | wc -c; exit 9";
        node.run(bounded(24, node.shell(fits))).await.expect(&ExitCause::Exited(9));
        node.run(bounded(24, node.shell("head -c 100000000 /dev/zero | tail -c 90000000 | wc -c; sleep 9")))
            .await
            .expect(&ExitCause::OutOfMemory);
        let next = node.run(bounded(24, node.shell(fits))).await;
        next.expect(&ExitCause::Exited(9));
        assert!(next.record.max_rss_bytes < 24 << 20, "{:?}", next.record);
        // One of its processes killed from inside is not taken for the memory killer's work.
        let next = node.run(bounded(24, node.shell("kill -KILL $$"))).await;
        next.expect(&ExitCause::Signalled(9));
    });
}
