//! Every byte that a task writes, in order, capped, and at nobody else's cost.

use agent::jail::ExitCause;

use super::support::{Node, as_everybody, levels};

#[test]
fn ten_megabytes_arrive_exactly() {
    as_everybody("output::ten_megabytes_arrive_exactly", async |mut node: Node| {
        let script = "i=0; while [ $i -lt 10 ]; do head -c 1000000 /dev/zero | tr '\\0' $i; \
                      echo $i >&2; i=$((i+1)); done";
        let expected: Vec<u8> =
            (b'0'..=b'9').flat_map(|digit| std::iter::repeat_n(digit, 1_000_000)).collect();
        for level in levels(&node).await {
            let mut request = node.shell(script);
            request.level = level;
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(0));
            assert!(ended.stdout == expected, "{} bytes", ended.stdout.len());
            assert_eq!(ended.err(), "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
            assert!(!ended.record.output_cut);
        }
    });
}

#[test]
fn output_is_cut_at_its_limit_and_the_task_goes_on() {
    as_everybody("output::output_is_cut_at_its_limit_and_the_task_goes_on", async |mut node: Node| {
        for level in levels(&node).await {
            let mut request = node.shell("head -c 5000000 /dev/zero; echo on >&2; exit 3");
            (request.level, request.max_output) = (level, 100_000);
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(3));
            assert_eq!(ended.stdout.len() + ended.stderr.len(), 100_000);
            assert_eq!(ended.cuts, 1);
            assert!(ended.record.output_cut);
            assert!(ended.record.spool_len < 110_000);
        }
    });
}

#[test]
fn a_task_that_never_stops_writing_does_not_hold_up_the_others() {
    as_everybody(
        "output::a_task_that_never_stops_writing_does_not_hold_up_the_others",
        async |mut node: Node| {
            let mut chatty = node.request(&["yes"]);
            chatty.max_output = 1 << 20;
            node.start(&chatty).await;
            node.started(&chatty).await;
            for _ in 0..20 {
                node.run(node.shell("echo quick")).await.expect(&ExitCause::Exited(0));
            }
            node.client.kill(chatty.attempt, std::time::Duration::ZERO).await.unwrap();
            let ended = node.ended(&chatty).await;
            ended.expect(&ExitCause::Killed);
            assert_eq!(ended.stdout.len(), 1 << 20);
        },
    );
}

#[test]
fn what_was_written_before_a_sudden_end_is_kept() {
    as_everybody("output::what_was_written_before_a_sudden_end_is_kept", async |mut node: Node| {
        for level in levels(&node).await {
            let mut request = node.shell("head -c 60000 /dev/zero; echo last >&2; kill -KILL $$");
            request.level = level;
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Signalled(9));
            assert_eq!(ended.stdout.len(), 60_000);
            assert_eq!(ended.err(), "last\n");
        }
    });
}

#[test]
fn a_background_child_that_holds_stdout_does_not_delay_the_end() {
    as_everybody(
        "output::a_background_child_that_holds_stdout_does_not_delay_the_end",
        async |mut node: Node| {
            for level in levels(&node).await {
                let mut request = node.shell("setsid sleep 1000 & echo done");
                request.level = level;
                let ended = node.run(request).await;
                ended.expect(&ExitCause::Exited(0));
                assert_eq!(ended.out(), "done\n");
                assert!(ended.record.run_ms < 10_000);
            }
        },
    );
}

#[test]
fn a_full_disk_ends_the_task_and_is_told_as_the_machines_fault() {
    if !super::support::root() {
        super::support::needs_root("only root can make a small file system");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::new().await;
        let attempts = node.dir.path().join("attempts");
        rustix::mount::mount(c"small", &attempts, c"tmpfs", rustix::mount::MountFlags::empty(), c"size=1m")
            .unwrap();
        let _mounted = Mounted(&attempts);
        let request = node.shell("head -c 5000000 /dev/zero; sleep 1000");
        let ended = node.run(request).await;
        assert!(matches!(ended.record.cause, ExitCause::OutputLost(_)), "{:?}", ended.record);
    });
}

struct Mounted<'a>(&'a std::path::Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
