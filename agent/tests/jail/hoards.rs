//! Memory that belongs to no process counts as the task's all the same, where control groups hold that:
//! shared memory of every kind, nameless files in memory, what waits in pipes and sockets.

use std::fs;

use agent::jail::{Bounds, ExitCause, Level, Limits, StartRequest};

use super::support::{Ended, Node, as_everybody, root};

async fn hoard(node: &mut Node, what: &str, times: &str, memory: Option<u64>) -> Ended {
    let request = node.request(&["/usr/bin/python3", "hoards.py", what, times]);
    fs::write(request.work_dir.join("hoards.py"), include_str!("hoards.py")).unwrap();
    let bounds = Bounds { memory, ..Bounds::default() };
    node.run(StartRequest { level: Level::Strict, bounds, ..request }).await
}

macro_rules! hoards {
    ($($test:ident: $what:literal $times:literal;)*) => {
        $(
            #[test]
            fn $test() {
                as_everybody(concat!("hoards::", stringify!($test)), async |mut node: Node| {
                    if node.client.probe().await.unwrap().limits != Limits::Cgroup {
                        assert!(!root(), "root has control groups on this machine");
                        mesh_skip::skip(&format!("no control groups here for uid {}", super::support::uid()));
                        return;
                    }
                    // So much is nothing unusual where there is room for it.
                    hoard(&mut node, $what, $times, None).await.expect(&ExitCause::Exited(0));
                    let ended = hoard(&mut node, $what, $times, Some(32 << 20)).await;
                    ended.expect(&ExitCause::OutOfMemory);
                    assert!(ended.out().lines().count() > 3, "it had no room at all: {}", ended.err());
                });
            }
        )*
    };
}

hoards! {
    files_without_a_name_in_memory_count: "memfd" "60";
    memory_shared_between_processes_counts: "shared" "60";
    segments_of_shared_memory_count: "segment" "60";
    what_waits_in_pipes_counts: "pipe" "60";
    // The kernel lets little wait in each, and counts its own part too.
    what_waits_in_sockets_counts: "local" "600";
}
