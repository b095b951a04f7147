//! Ends on request and by the clock: nothing of a task outlives it.

use std::fs;
use std::time::{Duration, Instant};

use agent::jail::{ExitCause, Level, read_exit_record};

use super::support::{Node, as_everybody, levels, mark, processes, until};

/// A task whose double-forked child, in a session of its own, ignores SIGTERM and holds stdout.
pub fn stubborn(mark: &str) -> String {
    format!(
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM HUP; (while :; do sleep 1; done) & : {mark}; \
         while :; do sleep 1; done' &) ; echo up; while :; do sleep 1; done"
    )
}

/// Runs a stubborn task with this timeout; whether its child was there before that.
async fn timed_out(node: &mut Node, level: Level, timeout: Duration) -> bool {
    let mark = mark();
    let mut request = node.shell(&stubborn(&mark));
    request.level = level;
    request.timeout = Some(timeout);
    request.grace = Duration::from_millis(300);
    node.start(&request).await;
    let over = || read_exit_record(&request.attempt_dir).unwrap().is_some();
    until("the child or the end", || !processes(&mark).is_empty() || over()).await;
    let seen = !over();
    let ended = node.ended(&request).await;
    ended.expect(&ExitCause::TimedOut);
    let least = (timeout + request.grace).as_millis() as u64;
    assert!((least..least + 4000).contains(&ended.record.run_ms), "{:?}", ended.record);
    assert_eq!(processes(&mark), [0; 0], "something outlived the told end");
    seen
}

#[test]
fn a_timeout_ends_everything_double_forked_children_included() {
    as_everybody(
        "endings::a_timeout_ends_everything_double_forked_children_included",
        async |mut node: Node| {
            for level in levels(&node).await {
                let mut timeout = Duration::from_millis(700);
                // On a busy machine the child may come too late: then once more, with more time.
                while !timed_out(&mut node, level, timeout).await {
                    timeout *= 2;
                }
            }
        },
    );
}

#[test]
fn a_kill_asks_first_and_then_forces() {
    as_everybody("endings::a_kill_asks_first_and_then_forces", async |mut node: Node| {
        for level in levels(&node).await {
            // One that listens ends in its own way, long before the grace is over.
            let mut polite =
                node.shell("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
            polite.level = level;
            node.start(&polite).await;
            node.says(&polite, "up").await;
            let began = Instant::now();
            node.client.kill(polite.attempt, Duration::from_mins(10)).await.unwrap();
            let ended = node.ended(&polite).await;
            ended.expect(&ExitCause::Killed);
            assert_eq!(ended.out(), "up\nbye\n");
            assert!(began.elapsed() < Duration::from_secs(20));

            let mark = mark();
            let mut deaf = node.shell(&stubborn(&mark));
            deaf.level = level;
            node.start(&deaf).await;
            node.says(&deaf, "up").await;
            until("the child", || !processes(&mark).is_empty()).await;
            // A second, shorter request overtakes the first.
            node.client.kill(deaf.attempt, Duration::from_mins(10)).await.unwrap();
            node.client.kill(deaf.attempt, Duration::from_millis(100)).await.unwrap();
            node.ended(&deaf).await.expect(&ExitCause::Killed);
            assert_eq!(processes(&mark), [0; 0], "something outlived the told end");

            // To an ended one nothing happens; an unknown one is refused.
            node.client.kill(deaf.attempt, Duration::ZERO).await.unwrap();
            assert!(node.client.kill(node.shell("").attempt, Duration::ZERO).await.is_err());
        }
    });
}

#[test]
fn a_stopped_task_is_ended_too() {
    as_everybody("endings::a_stopped_task_is_ended_too", async |mut node: Node| {
        for level in levels(&node).await {
            let mut request = node.shell("echo up; kill -STOP $$");
            request.level = level;
            node.start(&request).await;
            node.says(&request, "up").await;
            node.client.kill(request.attempt, Duration::from_secs(30)).await.unwrap();
            let ended = node.ended(&request).await;
            ended.expect(&ExitCause::Killed);
            assert!(ended.record.run_ms < 20_000, "the grace was waited out");
        }
    });
}

#[test]
fn background_children_go_when_the_command_ends() {
    as_everybody("endings::background_children_go_when_the_command_ends", async |mut node: Node| {
        for level in levels(&node).await {
            let mark = mark();
            let script =
                format!("(setsid sh -c 'trap \"\" TERM; : {mark}; while :; do sleep 1; done' &); sleep 0.2");
            let mut request = node.shell(&script);
            request.level = level;
            node.run(request).await.expect(&ExitCause::Exited(0));
            assert_eq!(processes(&mark), [0; 0], "a background child outlived its task");
        }
    });
}

#[test]
fn a_task_that_kills_everything_it_can_hurts_itself_alone() {
    as_everybody(
        "endings::a_task_that_kills_everything_it_can_hurts_itself_alone",
        async |mut node: Node| {
            // At level none a task of the same user may hit its neighbour.
            for level in levels(&node).await.into_iter().filter(|level| *level > Level::None) {
                let mut neighbour = node.shell("echo up; until test -e go; do sleep 0.02; done");
                neighbour.level = level;
                node.start(&neighbour).await;
                node.says(&neighbour, "up").await;
                let mut killer = node.shell("kill -9 1; kill -9 -1; sleep 0.1; exit 4");
                killer.level = level;
                let ended = node.run(killer).await;
                assert!(
                    matches!(ended.record.cause, ExitCause::Exited(4) | ExitCause::Signalled(9)),
                    "{:?}",
                    ended.record.cause
                );
                fs::write(neighbour.work_dir.join("go"), "").unwrap();
                node.ended(&neighbour).await.expect(&ExitCause::Exited(0));
            }
        },
    );
}

#[test]
fn a_shutdown_with_tasks_must_be_meant() {
    as_everybody("endings::a_shutdown_with_tasks_must_be_meant", async |mut node: Node| {
        let mark = mark();
        let mut tasks = Vec::new();
        for level in levels(&node).await {
            let mut request = node.shell(&format!("echo up; : {mark}; while :; do sleep 1; done"));
            request.level = level;
            node.start(&request).await;
            node.says(&request, "up").await;
            tasks.push(request);
        }
        assert!(node.client.shutdown(false).await.is_err());
        node.client.shutdown(true).await.unwrap();
        for request in &tasks {
            node.ended(request).await.expect(&ExitCause::Killed);
            let record = read_exit_record(&request.attempt_dir).unwrap().unwrap();
            assert_eq!(record.cause, ExitCause::Killed);
        }
        assert_eq!(processes(&mark), [0; 0], "something outlived the shutdown");
    });
}

#[test]
fn a_bomb_of_processes_is_gone_when_its_time_is_over() {
    as_everybody("endings::a_bomb_of_processes_is_gone_when_its_time_is_over", async |mut node: Node| {
        for level in levels(&node).await {
            let mark = mark();
            let bomb =
                "trap '' TERM; echo >> grown; while :; do sh -c \"$1\" \"$0\" \"$1\" & done 2>/dev/null";
            // The command itself forks no more, so that it is not the bomb's first victim.
            let light = "sh -c \"$1\" \"$0\" \"$1\" & exec tail -f /dev/null";
            let mut request = node.request(&["sh", "-c", light, &mark, bomb]);
            request.level = level;
            // Capped for the machine's sake: what is shown is that the end misses none.
            request.limits.nproc = Some(400);
            request.timeout = Some(Duration::from_secs(5));
            request.grace = Duration::from_millis(100);
            node.start(&request).await;
            // At the cap shells that cannot fork end, so that few may be there at a glance.
            let grown = request.work_dir.join("grown");
            until("the bomb to grow", || fs::read(&grown).is_ok_and(|lines| lines.len() > 20)).await;
            let ended = node.ended(&request).await;
            ended.expect(&ExitCause::TimedOut);
            assert!(ended.record.run_ms < 20_000, "{:?}", ended.record);
            assert_eq!(processes(&mark), [0; 0], "something outlived the told end");
        }
    });
}

#[test]
fn a_kill_that_races_the_end_yields_one_true_end() {
    as_everybody("endings::a_kill_that_races_the_end_yields_one_true_end", async |mut node: Node| {
        let levels = levels(&node).await;
        for number in 0..100_u64 {
            let mut request = node.shell("exit 3");
            request.level = levels[(number / 6) as usize % levels.len()];
            node.start(&request).await;
            if number % 2 == 0 {
                node.started(&request).await;
            }
            node.client.kill(request.attempt, Duration::from_millis(number % 3)).await.unwrap();
            let ended = node.ended(&request).await;
            assert!(
                matches!(ended.record.cause, ExitCause::Killed | ExitCause::Exited(3)),
                "{:?}",
                ended.record.cause
            );
            let record = read_exit_record(&request.attempt_dir).unwrap();
            assert_eq!(record, Some(ended.record), "told and written ends differ");
        }
    });
}

#[test]
fn a_killed_keeper_takes_its_task_with_it() {
    as_everybody("endings::a_killed_keeper_takes_its_task_with_it", async |mut node: Node| {
        for level in levels(&node).await {
            let mark = mark();
            let mut request = node.shell(&stubborn(&mark));
            request.level = level;
            node.start(&request).await;
            let task = node.started(&request).await;
            until("the child", || !processes(&mark).is_empty()).await;
            let stat = fs::read_to_string(format!("/proc/{}/stat", task.pid)).unwrap();
            let keeper = stat.rsplit(')').next().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
            let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
            rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
            node.ended(&request).await.expect(&ExitCause::Signalled(9));
            assert_eq!(processes(&mark), [0; 0], "something outlived the told end");
        }
    });
}
