//! Tasks of level strict that misbehave without attacking anybody: they will not end, write without end,
//! bring too much along, fill every place there is. Each hurts itself alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent::jail::{Bounds, ExitCause, StartRequest, Wall};

use super::{
    endings::stubborn,
    strict::strict,
    support::{Node, as_everybody, as_everybody_in_groups, in_groups, mark, processes, root, until, ways},
};

#[test]
fn a_child_that_ignores_its_end_and_holds_the_output_goes_with_its_task() {
    as_everybody(
        "abuse::a_child_that_ignores_its_end_and_holds_the_output_goes_with_its_task",
        async |mut node: Node| {
            let mark = mark();
            let mut request = strict(node.shell(&stubborn(&mark)));
            // On a busy machine it must have come up by then.
            request.timeout = Some(Duration::from_secs(4));
            request.grace = Duration::from_millis(300);
            node.start(&request).await;
            node.says(&request, "up").await;
            until("the child", || !processes(&mark).is_empty()).await;
            let ended = node.ended(&request).await;
            ended.expect(&ExitCause::TimedOut);
            assert!((4300..9000).contains(&ended.record.run_ms), "{:?}", ended.record);
            assert_eq!(processes(&mark), [0; 0], "something outlived the told end");
        },
    );
}

/// What the namespace is for: with the command alone killed, a bomb of its children goes on.
#[test]
fn without_a_namespace_such_a_bomb_outlives_its_command() {
    as_everybody("abuse::without_a_namespace_such_a_bomb_outlives_its_command", async |node: Node| {
        let bomb = node.dir.path().join(format!("bomb-{}", mark()));
        fs::write(&bomb, "trap '' TERM HUP; ulimit -u 100; b() { b & b & wait; }; b; sleep 99").unwrap();
        let bomb = bomb.to_str().unwrap();
        let mut command = Command::new("unshare");
        let who = if root() {
            let uid = super::support::task_uid();
            format!("setpriv --reuid {uid} --regid {uid} --clear-groups")
        } else {
            command.arg("--user");
            String::new()
        };
        // The outer namespace is what ends it here, when this test is through.
        let line = format!("{who} timeout --foreground -s KILL 0.7 /bin/bash {bomb}; sleep 99");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", &line]);
        let mut outer =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let of_bomb = || processes(bomb).len();
        until("the bomb to grow", || of_bomb() > 20).await;
        let began = Instant::now();
        // Its command is dead after 0.7 s; it is not.
        until("the command's end", || began.elapsed() > Duration::from_secs(2)).await;
        assert!(of_bomb() > 20, "the bomb went with its command: the attack shows nothing");
        outer.kill().unwrap();
        outer.wait().unwrap();
        until("the namespace's end", || of_bomb() == 0).await;
    });
}

#[test]
fn ten_gigabytes_of_output_are_cut_and_cost_neither_disk_nor_memory() {
    as_everybody(
        "abuse::ten_gigabytes_of_output_are_cut_and_cost_neither_disk_nor_memory",
        async |mut node: Node| {
            // As root all of it; the rest is the same for everybody.
            let (count, size) = if root() { ("10240", 10_u64 << 30) } else { ("512", 512 << 20) };
            let mut request =
                strict(node.shell(&format!(
                    "dd if=/dev/zero bs=1M count={count} 2>/dev/null; echo last >&2; exit 6"
                )));
            request.max_output = 1 << 20;
            let spool = request.attempt_dir.join(agent::jail::protocol::SPOOL);
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(6));
            assert!(ended.record.output_cut && ended.cuts == 1, "{:?}", ended.record);
            assert_eq!(ended.stdout.len() + ended.stderr.len(), 1 << 20);
            assert!(fs::metadata(spool).unwrap().len() < (1 << 20) + 100_000);
            if root() {
                let status = fs::read_to_string(format!("/proc/{}/status", node.client.jail_pid())).unwrap();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
                let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
                assert!(peak < 100_000, "the jail took {peak} kB for {size} bytes");
            }
        },
    );
}

#[test]
fn arguments_and_environments_that_are_too_long_are_refused_clearly() {
    as_everybody(
        "abuse::arguments_and_environments_that_are_too_long_are_refused_clearly",
        async |mut node: Node| {
            let long = "x".repeat(2 << 20);
            let argument = strict(node.request(&["/bin/echo", &long]));
            let mut variable = strict(node.request(&["/bin/echo"]));
            variable.env.push(("LONG".into(), long));
            let many = vec!["y".repeat(100_000); 40];
            let words: Vec<&str> = ["/bin/echo"].into_iter().chain(many.iter().map(String::as_str)).collect();
            for request in [argument, variable, strict(node.request(&words))] {
                let ended = node.run(request).await;
                ended.expect(&ExitCause::Exited(126));
                assert_eq!(
                    ended.err(),
                    "mesh: cannot run \"/bin/echo\": its arguments and environment are too long\n"
                );
            }
            let fits = node.run(strict(node.request(&words[..10]))).await;
            assert_eq!(fits.stdout.len(), 900_009);
        },
    );
}

#[test]
fn a_library_that_is_to_be_loaded_first_reaches_the_task_alone() {
    as_everybody(
        "abuse::a_library_that_is_to_be_loaded_first_reaches_the_task_alone",
        async |mut node: Node| {
            let source = "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) void f(void) { \
                          FILE *to = fopen(getenv(\"LOADED\"), \"a\"); if (to) { fprintf(to, \"%d %d\\n\", getpid(), getuid()); \
                          fclose(to); } }";
            let mut request = strict(node.shell("cat /dev/null; wc -c; cat loaded"));
            fs::write(request.work_dir.join("f.c"), source).unwrap();
            let built = Command::new("gcc")
                .args(["-shared", "-fPIC", "-o", "f.so", "f.c"])
                .current_dir(&request.work_dir)
                .status();
            if !built.is_ok_and(|status| status.success()) {
                mesh_skip::skip("this machine has no C compiler");
                return;
            }
            request.env.push(("LD_PRELOAD".into(), "/work/f.so".into()));
            request.env.push(("LOADED".into(), "/work/loaded".into()));
            let uid = request.uid.unwrap_or_else(super::support::uid);
            let work = request.work_dir.clone();
            let loaded = work.join("loaded");
            let ended = node.run(request).await;
            // The input is at its end.
            assert!(ended.out().starts_with("0\n"), "{} {}", ended.out(), ended.err());
            let loaded = fs::read_to_string(loaded).unwrap();
            let who: Vec<(i32, u32)> = loaded
                .lines()
                .map(|line| line.split_once(' ').unwrap())
                .map(|(pid, uid)| (pid.parse().unwrap(), uid.parse().unwrap()))
                .collect();
            assert_eq!(who.len(), 4, "the shell and three programs: {who:?}");
            assert!(who.iter().all(|(pid, of)| *pid > 1 && *of == uid), "{who:?}");
            // In its environment the agent would load it too, so that says something.
            let agent = Node::options(node.dir.path()).exe.unwrap();
            let (library, loaded) = (work.join("f.so"), work.join("agents"));
            let mut control = Command::new(agent);
            control.arg("--version").env("LD_PRELOAD", library).env("LOADED", &loaded);
            assert!(control.stdout(Stdio::null()).status().unwrap().success());
            assert_eq!(fs::read_to_string(loaded).unwrap().lines().count(), 1);
        },
    );
}

/// Says each place in which something can be made, by trying in every directory that can be seen.
const PLACES: &str = r#"
find / -path /proc -prune -o -type d -print 2>/dev/null | while read -r dir; do
    if (: > "$dir/.mesh-try") 2>/dev/null; then rm "$dir/.mesh-try"; echo "$dir"; fi
done
for dir in /proc /proc/self /proc/sys/kernel /dev/pts; do (: > $dir/.mesh-try) 2>/dev/null && echo $dir; done; :
"#;

#[test]
fn a_task_can_write_in_its_directory_and_in_tmp_and_nowhere_else() {
    as_everybody(
        "abuse::a_task_can_write_in_its_directory_and_in_tmp_and_nowhere_else",
        async |mut node: Node| {
            let ended = node.run(strict(node.shell(PLACES))).await;
            let mut places: Vec<&str> = ended.out().lines().collect();
            places.sort_unstable();
            assert_eq!(places, ["/tmp", "/tmp/.shm", "/work"], "{}", ended.err());
        },
    );
}

#[test]
fn whoever_fills_a_place_finds_it_full_alone() {
    as_everybody("abuse::whoever_fills_a_place_finds_it_full_alone", async |mut node: Node| {
        let bounds =
            Bounds { memory: Some(64 << 20), disk: Some(16 << 20), files: Some(2000), ..Bounds::default() };
        // Another task beside, of the same user, in the same places.
        let beside = strict(node.shell(
            "echo up; until test -e go; do sleep 0.02; done; for d in /work /tmp /dev/shm; do echo x > $d/x && cat $d/x; done",
        ));
        node.start(&beside).await;
        node.says(&beside, "up").await;
        for place in ["/tmp", "/dev/shm", "/var/tmp"] {
            let bytes =
                format!("head -c 60000000 /dev/zero > {place}/full; echo $?; stat -L -c %s {place}/full");
            // Not stopped earlier by the bound on each file.
            let bounds = Bounds { disk: None, ..bounds };
            let request = StartRequest { bounds, ..strict(node.shell(&bytes)) };
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(0));
            let size: u64 = ended.out().lines().nth(1).unwrap().parse().unwrap();
            assert!(ended.err().contains("No space left"), "{}", ended.err());
            assert!((8 << 20..=32 << 20).contains(&size), "{place}: {size}");
            let inodes = format!(
                "i=0; while true > {place}/$i; do i=$((i+1)); done 2>/dev/null; test $i -gt 1000 && test $i -lt 20000 && echo full at $i"
            );
            let ended = node.run(StartRequest { bounds, ..strict(node.shell(&inodes)) }).await;
            assert!(ended.out().starts_with("full at"), "{place}: {:?} {}", ended.record.cause, ended.err());
        }
        for (script, what) in [
            ("for i in 1 2 3 4 5 6 7 8; do head -c 4000000 /dev/zero > $i; done; sleep 99", "bytes"),
            ("i=0; while : > f$i; do i=$((i+1)); done; sleep 99", "files"),
            // Directories in directories, deeper than anybody looks.
            ("i=0; while mkdir d && cd d; do i=$((i+1)); test $i -lt 1000 || break; done; sleep 99", "files"),
            // In a directory that nobody may read, in another one.
            (
                "mkdir d; for i in 1 2 3 4 5 6 7 8; do head -c 4000000 /dev/zero > d/$i; done; chmod 0 d .; sleep 99",
                "bytes",
            ),
            // Without a name, but open: by a process, by a second one, by a thread that shares nothing.
            (NAMELESS, "bytes"),
            // And mapped, but not open.
            (MAPPED, "bytes"),
        ] {
            for without in ways() {
                let mut request = StartRequest { bounds, without, ..strict(node.shell(script)) };
                if root() {
                    request.env.push(("LENGTH".into(), "4096".into()));
                }
                request.timeout = Some(Duration::from_secs(40));
                match node.run(request).await.record.cause {
                    ExitCause::DiskFull(why) => assert!(why.contains(what), "{why}"),
                    cause => panic!("{script}: {cause:?}"),
                }
            }
        }
        // An ordinary user's agent is told of a mapped file only how much of it is mapped; the documents say so.
        if !root() {
            let mut unseen = StartRequest { bounds, ..strict(node.shell(MAPPED)) };
            unseen.env.push(("LENGTH".into(), "4096".into()));
            unseen.timeout = Some(Duration::from_secs(4));
            unseen.grace = Duration::ZERO;
            node.run(unseen).await.expect(&ExitCause::TimedOut);
        }
        // Without the watch they stay until their time is over.
        for script in [NAMELESS, MAPPED] {
            let mut unwatched = StartRequest { bounds, ..strict(node.shell(script)) };
            unwatched.without = vec![Wall::Disk];
            unwatched.timeout = Some(Duration::from_secs(4));
            unwatched.grace = Duration::ZERO;
            node.run(unwatched).await.expect(&ExitCause::TimedOut);
        }
        fs::write(beside.work_dir.join("go"), "").unwrap();
        let ended = node.ended(&beside).await;
        assert_eq!((ended.out(), &ended.record.cause), ("up\nx\nx\nx\n", &ExitCause::Exited(0)));
    });
}

/// An ordinary user's keeper has the task's own uid. Should the filter let the task reach it all the same, a
/// keeper that can look no more takes that for too much.
#[test]
fn whoever_takes_the_keepers_sight_has_no_more_room() {
    as_everybody("abuse::whoever_takes_the_keepers_sight_has_no_more_room", async |mut node: Node| {
        let bounds = Bounds { disk: Some(16 << 20), ..Bounds::default() };
        let script = "exec /usr/bin/python3 -c '\
                      import resource, time\n\
                      try: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)); print(\"reached\", flush=True)\n\
                      except PermissionError: print(\"denied\", flush=True)\n\
                      for i in range(8): open(str(i), \"wb\").write(bytes(4_000_000))\n\
                      time.sleep(99)'";
        for (without, aims) in
            [(vec![], "denied"), (vec![Wall::Seccomp], if root() { "denied" } else { "reached" })]
        {
            let mut request = StartRequest { bounds, without, ..strict(node.shell(script)) };
            request.timeout = Some(Duration::from_secs(40));
            let ended = node.run(request).await;
            assert_eq!(ended.out().trim(), aims, "{}", ended.err());
            assert!(matches!(ended.record.cause, ExitCause::DiskFull(_)), "{:?}", ended.record.cause);
        }
    });
}

#[test]
fn a_file_that_grows_past_the_bound_ends_its_program_with_the_cause_disk() {
    as_everybody(
        "abuse::a_file_that_grows_past_the_bound_ends_its_program_with_the_cause_disk",
        async |mut node: Node| {
            let bounds = Bounds { disk: Some(1 << 20), ..Bounds::default() };
            let request = strict(node.shell("exec head -c 2000000 /dev/zero > big"));
            let big = request.work_dir.join("big");
            let cause = node.run(StartRequest { bounds, ..request }).await.record.cause;
            assert_eq!(cause, ExitCause::DiskFull("it wrote a larger file than it may".to_owned()));
            assert_eq!(fs::metadata(big).unwrap().len(), 1 << 20);
        },
    );
}

/// Three files of 8 MB, each open in a way of its own, none with a name.
const NAMELESS: &str = r#"exec /usr/bin/python3 -c '
import ctypes, os, threading, time
def hold(name):
    fd = os.open(name, os.O_CREAT | os.O_RDWR); os.unlink(name); os.write(fd, bytes(8_000_000))
hold("one")
if os.fork() == 0:
    hold("two"); time.sleep(99)
def alone():
    ctypes.CDLL(None).unshare(0x400); hold("three"); time.sleep(99)
threading.Thread(target=alone).start(); time.sleep(99)
'"#;

/// Three files of 8 MB, mapped by two processes and closed. Root sees how much there is of a file also when
/// no more than a page of it is mapped.
const MAPPED: &str = r#"exec /usr/bin/python3 -c '
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
length = int(os.environ.get("LENGTH", 8_000_000))
def hold(name):
    fd = os.open(name, os.O_CREAT | os.O_RDWR); os.write(fd, bytes(8_000_000))
    assert libc.mmap(None, length, 3, 1, fd, 0) not in (None, 2 ** 64 - 1)
    os.unlink(name); os.close(fd)
hold("one"); hold("two")
if os.fork() == 0:
    hold("three")
time.sleep(99)
'"#;

#[test]
fn a_bound_on_processors_is_felt() {
    as_everybody_in_groups("abuse::a_bound_on_processors_is_felt", async |mut node: Node| {
        if !in_groups(&node).await {
            return;
        }
        // Two threads that spin, for as long as they are let.
        let spin = "import threading, time, hashlib\n\
                    def work():\n  end = time.monotonic() + 3\n  data = bytes(1 << 20)\n  \
                      while time.monotonic() < end: hashlib.sha256(data).digest()\n\
                    threads = [threading.Thread(target=work) for _ in range(2)]\n\
                    [t.start() for t in threads]; [t.join() for t in threads]";
        let mut share = async |cpu_millis: Option<u64>| {
            let bounds = Bounds { cpu_millis, ..Bounds::default() };
            let request = StartRequest { bounds, ..strict(node.request(&["/usr/bin/python3", "-c", spin])) };
            node.start(&request).await;
            let stat = throttling(node.started(&request).await.pid);
            let before = stat.as_deref().map_or(0, throttled);
            let ended = node.ended(&request).await;
            ended.expect(&ExitCause::Exited(0));
            let used = ended.record.cpu_ms;
            match (&stat, cpu_millis) {
                // However busy the machine is: what was held back in a period of 100 ms had used all that it
                // may in it.
                (Some(stat), Some(millis)) => {
                    let held = throttled(stat) - before;
                    println!("cpu: {millis}m was held back {held} times, having used {used} ms");
                    assert!(used * 10 >= held * millis / 10 * 9, "held back {held} times after {used} ms");
                    assert!(millis >= 1000 || held > 0, "0.05 of a core was not held back once in 3 s");
                }
                (None, Some(_)) => mesh_skip::skip("cpu.stat of a task's group is not found here"),
                (Some(_) | None, None) => {}
            }
            used as f64 / ended.record.run_ms as f64
        };
        let (whole, little, free) = (share(Some(1000)).await, share(Some(50)).await, share(None).await);
        println!("cores used with 1, with 0.05, without a bound: {whole:.2} {little:.2} {free:.2}");
        assert!(whole < 1.15, "cpu: 1 took {whole} cores");
        assert!(little < 0.08, "cpu: 0.05 took {little} cores");
        assert!(free > little * 1.5, "without a bound it took {free} cores: that of {little} shows nothing");
    });
}

/// The statistics of the group that bounds a process's processors.
fn throttling(pid: i32) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if !controllers.is_empty() && !controllers.split(',').any(|name| name == "cpu") {
            return None;
        }
        let file = format!("/sys/fs/cgroup/{controllers}{path}/cpu.stat");
        throttled_in(&fs::read_to_string(&file).ok()?).map(|_| file.into())
    })
}

fn throttled(stat: &Path) -> u64 {
    throttled_in(&fs::read_to_string(stat).unwrap()).unwrap()
}

fn throttled_in(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.trim().parse().ok()
}
