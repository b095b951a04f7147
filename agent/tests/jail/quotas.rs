//! What a machine has little of for everybody, or for each of its users: a strict task gets a part of it. What
//! one gets in a slot of a root agent counts as root's too, and an ordinary user's as that user's.

use std::fs;

use agent::jail::{ExitCause, StartRequest};

use super::{
    strict::strict,
    support::{Node, as_everybody, levels, ways},
};

fn number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn no_task_takes_all_that_a_user_of_the_machine_may_have() {
    as_everybody("quotas::no_task_takes_all_that_a_user_of_the_machine_may_have", async |mut node: Node| {
        let signals = rustix::process::getrlimit(rustix::process::Resource::Sigpending).maximum;
        let a_sixteenth = |name: &str| number(&format!("/proc/sys/fs/inotify/max_user_{name}")) / 16;
        let most = [
            ("watches", a_sixteenth("watches")),
            // One of them is there before it counts.
            ("instances", a_sixteenth("instances") - 1),
            ("timers", 1024.min(signals.unwrap_or(u64::MAX))),
            ("terminals", 256),
        ];
        for without in ways() {
            // The second task has what the first one had.
            for _ in 0..2 {
                let request = strict(node.request(&["/usr/bin/python3", "quotas.py"]));
                fs::write(request.work_dir.join("quotas.py"), include_str!("quotas.py")).unwrap();
                let ended = node.run(StartRequest { without: without.clone(), ..request }).await;
                ended.expect(&ExitCause::Exited(0));
                for (line, (what, most)) in ended.out().lines().zip(most) {
                    let got: u64 = line.strip_prefix(&format!("{what} ")).unwrap().parse().unwrap();
                    // As many files as it could watch may not be there.
                    assert!(got == most || what == "watches" && (100..most).contains(&got), "{line}: {most}");
                }
                assert_eq!(ended.out().lines().count(), most.len(), "{}", ended.err());
            }
        }
    });
}

/// Of whatever level. The kernel starts what `core_pattern` names, as root and beside all control groups, for
/// every crash but those of a process whose bound is one byte.
#[test]
fn a_crash_starts_nothing_on_the_machine() {
    as_everybody("quotas::a_crash_starts_nothing_on_the_machine", async |mut node: Node| {
        for level in levels(&node).await {
            let request = node.shell("prlimit --core --noheadings --output SOFT,HARD --raw; kill -SEGV $$");
            let work = request.work_dir.clone();
            let ended = node.run(StartRequest { level, ..request }).await;
            ended.expect(&ExitCause::Signalled(11));
            assert_eq!(ended.out(), "1 1\n", "{level:?}");
            assert_eq!(fs::read_dir(work).unwrap().count(), 0, "{level:?}: it left its memory there");
        }
    });
}
