//! Standing keepers: tasks without a sandbox, of a user that is not the jail's, are started one after
//! another by the same process. An ordinary user's agent has none of them.

use std::{fs, path::Path, time::Duration};

use agent::jail::{ExitCause, Level, StartRequest};

use super::support::{Ended, Node, root, task_uid, until};

/// Runs `body` where there are standing keepers.
fn as_root<F: Future<Output = ()>>(body: impl FnOnce(Node) -> F) {
    if !root() {
        println!("skipped: standing keepers serve other users than the jail's, so this needs root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { body(Node::new().await).await });
}

fn open(request: StartRequest) -> StartRequest {
    StartRequest { level: Level::None, ..request }
}

fn python(node: &Node, what: &[&str]) -> StartRequest {
    let request = node.request(&[&["/usr/bin/python3", "standing.py"], what].concat());
    fs::write(request.work_dir.join("standing.py"), include_str!("standing.py")).unwrap();
    open(request)
}

/// The process number of the keeper of whoever says it.
const KEEPER: &str = "echo $PPID";

async fn keeper(node: &mut Node) -> i32 {
    let ended = node.run(open(node.shell(KEEPER))).await;
    ended.expect(&ExitCause::Exited(0)).out().trim().parse().unwrap()
}

#[test]
fn a_task_finds_nothing_of_the_one_before_it_with_the_same_keeper() {
    as_root(async |mut node: Node| {
        let fresh = node.run(python(&node, &[])).await;
        fresh.expect(&ExitCause::Exited(0));
        let request = python(&node, &["leave"]);
        let pid_file = request.work_dir.join("left-behind.pid");
        let left = node.run(request).await;
        left.expect(&ExitCause::Exited(0));
        let differs = |one: &Ended, other: &Ended| {
            one.out().lines().zip(other.out().lines()).filter(|(one, other)| one != other).count()
        };
        assert!(differs(&fresh, &left) >= 9, "who left it does not see it: {}", left.out());
        let pid = fs::read_to_string(pid_file).unwrap();
        assert!(!Path::new("/proc").join(&pid).exists(), "the process that was left lives: {pid}");
        let found = node.run(python(&node, &[])).await;
        assert_eq!(fresh.out(), found.out(), "the next task finds what was left");
        assert_eq!(fresh.err(), found.err(), "the keeper was not the same, so nothing was shown");
    });
}

#[test]
fn a_keeper_serves_one_user_and_one_task_at_a_time() {
    as_root(async |mut node: Node| {
        let first = keeper(&mut node).await;
        assert_eq!(keeper(&mut node).await, first);
        let other = open(node.shell(KEEPER));
        let uid = Some(task_uid() + 1);
        std::os::unix::fs::chown(&other.work_dir, uid, uid).unwrap();
        let other = node.run(StartRequest { uid, gid: uid, ..other }).await;
        assert_ne!(other.out().trim(), first.to_string(), "it serves another user");
        let held = open(node.shell("echo $PPID; read never < /dev/zero"));
        node.start(&held).await;
        node.says(&held, &first.to_string()).await;
        assert_ne!(keeper(&mut node).await, first, "it serves two tasks at a time");
        node.client.kill(held.attempt, Duration::ZERO).await.unwrap();
        node.ended(&held).await.expect(&ExitCause::Killed);
    });
}

#[test]
fn a_killed_keeper_takes_its_task_with_it_and_is_replaced() {
    as_root(async |mut node: Node| {
        let pid = keeper(&mut node).await;
        let process = rustix::process::Pid::from_raw(pid).unwrap();
        // Whatever it was doing, and while it does nothing.
        let held = open(node.shell("setsid sleep 600 & echo $PPID; wait"));
        node.start(&held).await;
        node.says(&held, &pid.to_string()).await;
        // Its keeper may say so after the task does.
        node.started(&held).await;
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        node.ended(&held).await.expect(&ExitCause::Signalled(9));
        let next = keeper(&mut node).await;
        assert_ne!(next, pid);
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(next).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        until("it to be gone", || !Path::new("/proc").join(next.to_string()).exists()).await;
        assert_ne!(keeper(&mut node).await, next);
    });
}

#[test]
fn what_cannot_be_started_costs_no_keeper() {
    as_root(async |mut node: Node| {
        let first = keeper(&mut node).await;
        let missing = node.run(open(node.request(&["not-a-program"]))).await;
        missing.expect(&ExitCause::Exited(127));
        let gone = open(node.request(&["/bin/true"]));
        // A place that root may enter, and where the task's process is not to start.
        let gone = StartRequest { argv: vec!["/etc/passwd".into()], ..gone };
        node.run(gone).await.expect(&ExitCause::Exited(126));
        assert_eq!(keeper(&mut node).await, first);
    });
}

/// A request to end a task that follows its start at once is not forgotten with those before it.
#[test]
fn an_early_end_reaches_its_task() {
    as_root(async |mut node: Node| {
        for _ in 0..20 {
            keeper(&mut node).await;
            let long = open(node.request(&["/bin/sleep", "600"]));
            node.start(&long).await;
            node.client.kill(long.attempt, Duration::from_mins(10)).await.unwrap();
            // SIGTERM alone ends it: nothing harsher comes within the test's patience.
            node.ended(&long).await.expect(&ExitCause::Killed);
        }
    });
}

/// A request to end a task that reaches its keeper when the task is over is not the next one's.
#[test]
fn a_late_end_does_not_reach_the_next_task() {
    as_root(async |mut node: Node| {
        for _ in 0..40 {
            let short = open(node.request(&["/bin/true"]));
            node.start(&short).await;
            node.client.kill(short.attempt, Duration::from_secs(9)).await.unwrap();
            node.client.kill(short.attempt, Duration::ZERO).await.unwrap();
            node.ended(&short).await;
            node.run(open(node.shell("exit 7"))).await.expect(&ExitCause::Exited(7));
        }
    });
}
