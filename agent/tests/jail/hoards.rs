//! Memory that belongs to no process counts as the task's all the same, where control groups hold that:
//! shared memory of every kind, nameless files in memory, what waits in pipes and sockets.

use std::fs;

use agent::jail::{Bounds, ExitCause, Level, StartRequest};

use super::support::{Ended, Node, as_everybody, as_everybody_in_groups, in_groups, ways};

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
                as_everybody_in_groups(concat!("hoards::", stringify!($test)), async |mut node: Node| {
                    if !in_groups(&node).await {
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

/// Nobody is killed for it: what does not fit is not sent, or lost on the way.
#[test]
fn what_waits_in_sockets_of_the_network_is_bounded() {
    as_everybody_in_groups(
        "hoards::what_waits_in_sockets_of_the_network_is_bounded",
        async |mut node: Node| {
            if !in_groups(&node).await {
                return;
            }
            for (what, times) in [("tcp", "200"), ("udp", "500")] {
                let mut held = async |memory: Option<u64>| {
                    let ended = hoard(&mut node, what, times, memory).await;
                    match &ended.record.cause {
                        ExitCause::Exited(0) => ended.out().lines().last().unwrap().parse::<i64>().unwrap(),
                        ExitCause::OutOfMemory => 0,
                        cause => panic!("{what}: {cause:?} {}", ended.err()),
                    }
                };
                // Others on this machine have sockets too, but not that much in them.
                let (bounded, free) = (held(Some(32 << 20)).await, held(None).await);
                println!("{what}: {bounded} bytes, {free} without a bound");
                assert!(free > 100 << 20, "{what}: {free} bytes are nothing to bound");
                assert!(bounded < 70 << 20, "{what}: {bounded} bytes wait in sockets");
            }
        },
    );
}

/// The kernel counts it as nobody's: the keeper looks, and its task is out of memory.
#[test]
fn what_waits_in_sockets_to_the_kernel_is_looked_at() {
    as_everybody("hoards::what_waits_in_sockets_to_the_kernel_is_looked_at", async |mut node: Node| {
        for without in ways() {
            let mut held = async |memory: Option<u64>| {
                let request = node.request(&["/usr/bin/python3", "hoards.py", "netlink", "250", "3"]);
                fs::write(request.work_dir.join("hoards.py"), include_str!("hoards.py")).unwrap();
                let bounds = Bounds { memory, ..Bounds::default() };
                let without = without.clone();
                node.run(StartRequest { level: Level::Strict, bounds, without, ..request }).await
            };
            held(None).await.expect(&ExitCause::Exited(0));
            // Python itself has to fit where no group counts a task's memory as a whole.
            held(Some(40 << 20)).await.expect(&ExitCause::OutOfMemory);
        }
    });
}
