//! Standing keepers: tasks of a user that is not the jail's are started one after another by the same
//! process, without a sandbox and in a slot of level strict. An ordinary user's agent has none of them.
//! What a task could leave for the next one in a slot is in `reuse`.

use std::{fs, path::Path, time::Duration};

use agent::jail::{ExitCause, Level, Mount, StartRequest};

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

/// The number of the pid namespace of whoever says it: that of the keeper that stands there.
async fn namespace(node: &mut Node) -> String {
    let request = StartRequest { level: Level::Strict, ..node.shell("readlink /proc/self/ns/pid") };
    let ended = node.run(request).await;
    ended.expect(&ExitCause::Exited(0)).out().to_owned()
}

#[test]
fn a_keeper_that_does_not_answer_is_replaced() {
    as_root(async |mut node: Node| {
        for level in [Level::None, Level::Strict] {
            node.run(StartRequest { level, ..node.request(&["/bin/true"]) }).await;
        }
        for level in [Level::None, Level::Strict] {
            let keepers = children(node.client.jail_pid());
            for keeper in &keepers {
                rustix::process::kill_process(*keeper, rustix::process::Signal::STOP).unwrap();
            }
            let ended = node.run(StartRequest { level, ..node.request(&["/bin/true"]) }).await;
            let why = format!("{:?}", ended.record.cause);
            assert!(why.contains("SpawnFailed") && why.contains("does not answer"), "{why}");
            node.run(StartRequest { level, ..node.shell("exit 6") }).await.expect(&ExitCause::Exited(6));
            for keeper in children(node.client.jail_pid()) {
                rustix::process::kill_process(keeper, rustix::process::Signal::CONT).unwrap();
            }
        }
    });
}

fn children(pid: u32) -> Vec<rustix::process::Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let pids = children.split_ascii_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(|pid| rustix::process::Pid::from_raw(pid).unwrap()).collect()
}

#[test]
fn what_cannot_be_started_costs_no_keeper() {
    as_root(async |mut node: Node| {
        let (first, slot) = (keeper(&mut node).await, namespace(&mut node).await);
        for level in [Level::None, Level::Strict] {
            let missing = StartRequest { level, ..node.request(&["not-a-program"]) };
            node.run(missing).await.expect(&ExitCause::Exited(127));
            // A place that anybody may look at, and where no process is to start.
            let gone = StartRequest { level, ..node.request(&["/etc/passwd"]) };
            node.run(gone).await.expect(&ExitCause::Exited(126));
        }
        assert_eq!(keeper(&mut node).await, first);
        assert_eq!(namespace(&mut node).await, slot);
    });
}

/// A request to end a task that follows its start at once is not forgotten with those before it.
#[test]
fn an_early_end_reaches_its_task() {
    as_root(async |mut node: Node| {
        for level in [Level::None, Level::Strict] {
            for _ in 0..20 {
                let short = StartRequest { level, ..node.request(&["/bin/true"]) };
                node.run(short).await.expect(&ExitCause::Exited(0));
                let long = StartRequest { level, ..node.request(&["/bin/sleep", "600"]) };
                node.start(&long).await;
                node.client.kill(long.attempt, Duration::from_mins(10)).await.unwrap();
                // SIGTERM alone ends it: nothing harsher comes within the test's patience.
                node.ended(&long).await.expect(&ExitCause::Killed);
            }
        }
    });
}

/// A request to end a task that reaches its keeper when the task is over is not the next one's.
#[test]
fn a_late_end_does_not_reach_the_next_task() {
    as_root(async |mut node: Node| {
        for level in [Level::None, Level::Strict] {
            for _ in 0..40 {
                let short = StartRequest { level, ..node.request(&["/bin/true"]) };
                node.start(&short).await;
                node.client.kill(short.attempt, Duration::from_secs(9)).await.unwrap();
                node.client.kill(short.attempt, Duration::ZERO).await.unwrap();
                node.ended(&short).await;
                let next = StartRequest { level, ..node.shell("exit 7") };
                node.run(next).await.expect(&ExitCause::Exited(7));
            }
        }
    });
}

/// Tries everything that one process can do to another; and to one of its own, to show that it tries.
const REACH: &str = r"
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
IOPRIO = 251 if os.uname().machine == 'x86_64' else 30

def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def score():
    open(f'/proc/{pid}/oom_score_adj', 'w').write('999')

child = os.fork()
if child == 0:
    signal.pause()
for who, pid in ('keeper', 1), ('starter', 2), ('child', child):
    for what, go in {
        'limits': lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (50, 50)),
        'processors': lambda: os.sched_setaffinity(pid, [min(os.sched_getaffinity(0))]),
        'policy': lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)),
        'priority': lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        'disk': lambda: call(libc.syscall(IOPRIO, 1, pid, 3 << 13)),
        'entry': lambda: os.stat(f'/proc/{pid}'),
        'use': lambda: open(f'/proc/{pid}/stat').read(),
        'command': lambda: open(f'/proc/{pid}/cmdline').read(),
        'files': lambda: os.listdir(f'/proc/{pid}/fd'),
        'memory': lambda: open(f'/proc/{pid}/mem', 'rb'),
        'score': score,
        'stop': lambda: os.kill(pid, signal.SIGUSR1),
        'kill': lambda: os.kill(pid, signal.SIGKILL),
    }.items():
        try:
            go()
            print(who, what, 'reached')
        except OSError as error:
            print(who, what, 'denied')
";

#[test]
fn a_task_reaches_nothing_of_the_keeper_that_stands_in_its_slot() {
    as_root(async |mut node: Node| {
        let slot = namespace(&mut node).await;
        let request =
            StartRequest { level: Level::Strict, ..node.request(&["/usr/bin/python3", "-c", REACH]) };
        let ended = node.run(request).await;
        ended.expect(&ExitCause::Exited(0));
        for who in ["keeper", "starter"] {
            let tried: Vec<&str> = ended.out().lines().filter(|line| line.starts_with(who)).collect();
            assert_eq!(tried.len(), 13, "{} {}", ended.out(), ended.err());
            assert!(tried.iter().all(|line| line.ends_with("denied")), "{tried:?}");
        }
        let reached =
            ended.out().lines().filter(|line| line.starts_with("child") && line.ends_with("reached"));
        assert_eq!(reached.count(), 13, "{} {}", ended.out(), ended.err());
        assert_eq!(namespace(&mut node).await, slot, "the slot was not the same, so nothing was shown");
        let starter = starter(&node);
        let status = fs::read_to_string(format!("/proc/{}/status", starter.as_raw_nonzero())).unwrap();
        let inside = status.lines().find(|line| line.starts_with("NSpid")).unwrap();
        assert!(inside.ends_with("\t2"), "another process than the starter was tried: {inside}");
    });
}

/// The process of which the tasks of the one slot are born.
fn starter(node: &Node) -> rustix::process::Pid {
    let named = |pid: &rustix::process::Pid| {
        let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        name.is_ok_and(|name| name.trim() == "mesh-starter")
    };
    let keepers = children(node.client.jail_pid());
    let below = keepers.iter().flat_map(|keeper| children(keeper.as_raw_nonzero().get() as u32));
    let found: Vec<_> = below.filter(named).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

#[test]
fn a_killed_starter_costs_no_task() {
    as_root(async |mut node: Node| {
        let slot = namespace(&mut node).await;
        let kill = |pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        kill(starter(&node));
        assert_eq!(namespace(&mut node).await, slot, "the slot was lost with it");
        let held = StartRequest {
            level: Level::Strict,
            ..node.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done")
        };
        node.start(&held).await;
        node.says(&held, "up").await;
        kill(starter(&node));
        node.client.kill(held.attempt, Duration::from_mins(10)).await.unwrap();
        node.ended(&held).await.expect(&ExitCause::Killed);
        assert_eq!(namespace(&mut node).await, slot, "the slot was lost with it");
    });
}

/// Under a standing keeper and, with a mount, under one of its own. The jail's own score is far below
/// where root may say so.
#[test]
fn no_task_puts_itself_before_others_when_memory_runs_out() {
    as_root(async |mut node: Node| {
        let data = node.dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let mount = Mount { source: data, to: "/data".into(), read_only: true, owner: None };
        let lower = "for score in -900 -1; do echo $score > /proc/self/oom_score_adj || echo denied; done";
        for mounts in [vec![], vec![mount]] {
            let bash = node.request(&["/bin/bash", "-c", lower]);
            let ended = node.run(StartRequest { level: Level::Strict, mounts, ..bash }).await;
            assert_eq!(ended.out(), "denied\ndenied\n", "{}", ended.err());
        }
    });
}
