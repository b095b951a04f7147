//! Attempts that stand in line behind another in its slot: each begins when that one is over, or is given
//! back and has not begun.

use std::{collections::HashSet, fs};

use agent::{
    clock::boot,
    jail::{ExitCause, Level, StartRequest, State},
};
use mesh_proto::ids::AttemptKey;

use crate::{
    rooms::roomy,
    support::{Node, as_everybody, levels},
};

/// Attempts of one line.
const LONG: usize = 12;
/// Of all lines of a test, so many are to have had their turn.
const TURNS: usize = 30;

fn behind(before: &StartRequest, request: StartRequest) -> StartRequest {
    StartRequest { after: Some(before.attempt), ..request }
}

/// One that runs until `go` is in its directory.
async fn long(node: &Node) -> StartRequest {
    let first = node.shell("echo up; until test -e go; do sleep 0.02; done");
    node.start(&first).await;
    node.says(&first, "up").await;
    first
}

async fn let_go(node: &mut Node, first: &StartRequest) {
    fs::write(first.work_dir.join("go"), "").unwrap();
    node.ended(first).await.expect(&ExitCause::Exited(0));
}

async fn known(node: &Node) -> HashSet<AttemptKey> {
    node.client.list().await.unwrap().into_iter().map(|status| status.attempt).collect()
}

#[test]
fn each_begins_once_and_after_the_one_before_it() {
    as_everybody("line::each_begins_once_and_after_the_one_before_it", async |mut node: Node| {
        for level in levels(&node).await {
            let mut turns = 0;
            while turns < TURNS {
                turns += one_line(&mut node, level).await;
            }
        }
    });
}

/// How many of a line had their turn. On a busy machine others are given back.
async fn one_line(node: &mut Node, level: Level) -> usize {
    let mut line: Vec<StartRequest> = Vec::new();
    for _ in 0..LONG {
        let request = StartRequest { level, ..roomy(node, "echo ran") };
        line.push(match line.last() {
            Some(before) => behind(before, request),
            None => request,
        });
    }
    let calls = line.iter().map(|request| node.client.start(request.clone()));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    let mut before: Option<u64> = None;
    let mut turns = 0;
    for request in &line {
        if !node.is_over(request).await {
            assert!(!request.attempt_dir.exists(), "{} was given back and has begun", request.attempt);
            before = None;
            continue;
        }
        let ended = node.ended(request).await;
        ended.expect(&ExitCause::Exited(0));
        assert_eq!(ended.out(), "ran\n", "it began once");
        assert!(before.is_none_or(|over| ended.record.started_at_ms >= over), "{line:?}");
        turns += usize::from(before.is_some());
        before = Some(ended.record.ended_at_ms);
    }
    let attempts = line.iter().map(|request| request.attempt).collect();
    node.client.clear(attempts).await.unwrap();
    turns
}

#[test]
fn who_stands_behind_a_long_one_is_given_back_and_may_begin_elsewhere() {
    as_everybody(
        "line::who_stands_behind_a_long_one_is_given_back_and_may_begin_elsewhere",
        async |mut node| {
            let first = long(&node).await;
            let second = behind(&first, roomy(&node, "echo ran"));
            let third = behind(&second, roomy(&node, "echo ran"));
            for request in [&second, &third] {
                node.start(request).await;
            }
            for request in [&second, &third] {
                node.returned(request).await;
                assert!(!request.attempt_dir.exists(), "it has begun");
            }
            assert_eq!(known(&node).await, [first.attempt].into());
            for request in [&second, &third] {
                let ended = node.run(StartRequest { after: None, ..request.clone() }).await;
                assert_eq!(ended.out(), "ran\n");
            }
            let_go(&mut node, &first).await;
        },
    );
}

#[test]
fn nobody_stands_behind_what_is_not_there_or_had_no_slot() {
    as_everybody("line::nobody_stands_behind_what_is_not_there_or_had_no_slot", async |mut node: Node| {
        let never = node.shell("echo ran");
        let request = behind(&never, roomy(&node, "echo ran"));
        node.start(&request).await;
        node.returned(&request).await;
        // Its place in the line was another's slot.
        let over = StartRequest { lease: Some(boot()), ..never };
        node.run(over.clone()).await.expect(&ExitCause::Killed);
        let request = behind(&over, roomy(&node, "echo ran"));
        node.start(&request).await;
        node.returned(&request).await;
        assert!(!request.attempt_dir.exists(), "it has begun");
    });
}

/// It was given back while the request was on its way, and given anew for another slot.
#[test]
fn nobody_stands_behind_one_that_runs_in_another_slot() {
    as_everybody("line::nobody_stands_behind_one_that_runs_in_another_slot", async |mut node: Node| {
        for _ in 0..5 {
            let first = StartRequest { slot: Some(1), ..node.shell("sleep 0.01") };
            let second = StartRequest { slot: Some(2), ..behind(&first, roomy(&node, "echo ran")) };
            node.start(&first).await;
            node.start(&second).await;
            node.returned(&second).await;
            node.ended(&first).await.expect(&ExitCause::Exited(0));
            assert!(!second.attempt_dir.exists(), "it has begun");
        }
    });
}

#[test]
fn what_is_ended_in_line_never_ran_and_holds_nobody_up() {
    as_everybody("line::what_is_ended_in_line_never_ran_and_holds_nobody_up", async |mut node: Node| {
        let first = long(&node).await;
        let second = behind(&first, roomy(&node, "echo ran"));
        let third = behind(&second, roomy(&node, "echo ran"));
        // Read by the jail one after the other, in one turn.
        let (one, two, three) = tokio::join!(
            node.client.start(second.clone()),
            node.client.start(third.clone()),
            node.client.kill(second.attempt, first.grace),
        );
        one.and(two).and(three).unwrap();
        let ended = node.ended(&second).await;
        ended.expect(&ExitCause::Killed);
        assert_eq!((ended.record.started_at_ms, second.attempt_dir.exists()), (0, false));
        node.returned(&third).await;
        let_go(&mut node, &first).await;
        assert!(!third.attempt_dir.exists(), "it has begun");
    });
}

#[test]
fn no_line_outlives_the_daemon_that_made_it() {
    as_everybody("line::no_line_outlives_the_daemon_that_made_it", async |mut node: Node| {
        let first = long(&node).await;
        let second = behind(&first, roomy(&node, "echo ran"));
        node.start(&second).await;
        node.disconnect();
        node.reconnect().await;
        assert_eq!(known(&node).await, [first.attempt].into());
        let_go(&mut node, &first).await;
        let states = node.client.list().await.unwrap();
        assert!(states.iter().all(|status| matches!(status.state, State::Ended(_))), "{states:?}");
        assert!(!second.attempt_dir.exists(), "it has begun");
    });
}
