//! Leases: what lives on one ends by the jail's own clock, whatever becomes of the daemon.

use std::time::Duration;

use agent::{
    clock::boot,
    jail::{Event, ExitCause, Killer, Level, StartRequest, read_exit_record},
};

use super::support::{Node, as_everybody, levels, mark, processes, until};

const LEASE: Duration = Duration::from_millis(1500);

fn stubborn(node: &Node, mark: &str, level: Level) -> StartRequest {
    let script =
        format!("trap '' TERM; (setsid sh -c ': {mark}; while :; do sleep 1; done' &); echo up; sleep 600");
    let mut request = node.shell(&script);
    request.level = level;
    request.grace = Duration::from_mins(10);
    request
}

/// Waits for the jail's own word on disk, as long as no daemon hears it.
async fn killed_for_its_lease(request: &StartRequest, mark: &str) {
    until("the record", || read_exit_record(&request.attempt_dir).unwrap().is_some()).await;
    let record = read_exit_record(&request.attempt_dir).unwrap().unwrap();
    assert_eq!((&record.cause, record.killer), (&ExitCause::Killed, Killer::Lease));
    assert_eq!(processes(mark), [0; 0], "something outlived the told end");
}

#[test]
fn a_lease_that_nobody_prolongs_ends_the_task_without_a_daemon() {
    as_everybody(
        "lease::a_lease_that_nobody_prolongs_ends_the_task_without_a_daemon",
        async |mut node: Node| {
            for level in levels(&node).await {
                let mark = mark();
                let end = boot() + LEASE;
                let request = StartRequest { lease: Some(end), ..stubborn(&node, &mark, level) };
                node.start(&request).await;
                node.says(&request, "up").await;
                node.disconnect();
                killed_for_its_lease(&request, &mark).await;
                assert!(boot() >= end, "it ended before its lease");
                node.reconnect().await;
            }
        },
    );
}

#[test]
fn a_prolonged_lease_runs_on_and_ends_later() {
    as_everybody("lease::a_prolonged_lease_runs_on_and_ends_later", async |mut node: Node| {
        for level in levels(&node).await {
            prolonged(&mut node, level).await;
        }
    });
}

async fn prolonged(node: &mut Node, level: Level) {
    let mark = mark();
    let free = node.shell("echo up; until test -e go; do sleep 0.02; done");
    node.start(&free).await;
    let end = boot() + LEASE;
    let request = StartRequest { lease: Some(end), ..stubborn(node, &mark, level) };
    node.start(&request).await;
    node.says(&request, "up").await;
    node.client.lease(end + LEASE).await.unwrap();
    // A word that comes late takes nothing back.
    node.client.lease(end).await.unwrap();
    killed_for_its_lease(&request, &mark).await;
    assert!(boot() >= end + LEASE, "it ended with its first lease");
    // What was said before holds for what starts later, too.
    let until = boot() + LEASE * 2;
    node.client.lease(until).await.unwrap();
    let late = StartRequest { level, lease: Some(boot() + LEASE / 2), ..node.shell("sleep 1.2; exit 4") };
    node.run(late).await.expect(&ExitCause::Exited(4));
    std::fs::write(free.work_dir.join("go"), "").unwrap();
    node.ended(&free).await.expect(&ExitCause::Exited(0));
}

#[test]
fn nothing_starts_on_a_lease_that_is_over() {
    as_everybody("lease::nothing_starts_on_a_lease_that_is_over", async |mut node: Node| {
        // Also when another word prolonged it meanwhile: this attempt may have been replaced.
        node.client.lease(boot() + Duration::from_mins(1)).await.unwrap();
        for over in [Duration::ZERO, boot()] {
            let request = StartRequest { lease: Some(over), ..node.shell("echo ran") };
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Killed);
            assert_eq!((ended.record.killer, ended.out()), (Killer::Lease, ""));
            assert_eq!(ended.record.started_at_ms, 0, "it never ran");
        }
    });
}

#[test]
fn no_grace_outlasts_the_lease() {
    as_everybody("lease::no_grace_outlasts_the_lease", async |mut node: Node| {
        for level in levels(&node).await {
            let mark = mark();
            let end = boot() + LEASE;
            let request = StartRequest { lease: Some(end), ..stubborn(&node, &mark, level) };
            node.start(&request).await;
            node.says(&request, "up").await;
            node.client.kill(request.attempt, Duration::from_mins(10)).await.unwrap();
            let ended = node.ended(&request).await;
            ended.expect(&ExitCause::Killed);
            assert_eq!(ended.record.killer, Killer::Request, "it was asked to end before its lease did");
            assert_eq!(processes(&mark), [0; 0]);
        }
    });
}

#[test]
fn a_daemon_of_the_version_before_understands_how_it_ended() {
    // It knows neither who killed it nor leases: what it reads must still be an end.
    #[derive(serde::Deserialize)]
    enum Older {
        #[serde(rename = "ended")]
        Ended(OlderRecord),
    }
    #[derive(serde::Deserialize)]
    struct OlderRecord {
        cause: ExitCause,
    }
    as_everybody("lease::a_daemon_of_the_version_before_understands_how_it_ended", async |mut node: Node| {
        let request = StartRequest { lease: Some(Duration::ZERO), ..node.shell("echo ran") };
        let record = node.run(request).await.record;
        let said = serde_json::to_string(&Event::Ended(record)).unwrap();
        let Older::Ended(heard) = serde_json::from_str(&said).unwrap();
        assert_eq!(heard.cause, ExitCause::Killed);
    });
}
