//! What may gather for a moment before it is committed, and what may not.

use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, SessionId, TaskKey};
use tokio::time::Instant;

use crate::{
    commit::batch::{Batch, GATHER},
    engine::{
        effect::{Ack, JobRow, JobView, Reply, Say, Write},
        event::ReplyId,
        types::{Counts, JobState, Time},
    },
};

fn row(state: JobState, finished_at: Option<Time>) -> JobRow {
    JobRow {
        number: JobNumber(1),
        state,
        ending: None,
        reason: String::new(),
        counts: Counts::default(),
        started_at: None,
        finished_at,
    }
}

fn changed(state: JobState, finished_at: Option<Time>) -> Say {
    Say::JobChanged(std::sync::Arc::new(JobView {
        row: row(state, finished_at),
        created_at: Time(1),
        definitions: Vec::new(),
    }))
}

/// A batch with a row and these words, one after the other.
fn batch(says: Vec<Say>) -> Batch {
    let mut batch = Batch::default();
    batch.fx.writes.push(Write::Job(row(JobState::Running, None)));
    batch.note();
    for say in says {
        batch.fx.says.push(say);
        batch.note();
    }
    batch
}

#[test]
fn only_what_nobody_waits_for_gathers() {
    let (node, session) = (NodeId::generate(), SessionId::generate());
    let task = TaskKey { job: JobNumber(1), task: 0, index: 0 };
    let attempt = AttemptKey { task, number: 1 };
    let ack = |ack| Say::Ack { node, attempt, ack, ended: true };
    let quiet =
        || vec![ack(Ack::Durable), changed(JobState::Running, None), Say::Placed { node, waited_ms: 1 }];
    let pressing = [
        Say::Reply(ReplyId(1), Reply::Nodes(Vec::new())),
        Say::Dispatch { node, session, attempt },
        Say::Withdraw { node, session, attempt },
        Say::Cancel { node, session, attempt, reason: String::new() },
        Say::EndSession { node, session },
        ack(Ack::Stale),
        changed(JobState::Completed, Some(Time(1))),
    ];
    let gathers = batch(quiet()).due().unwrap();
    assert!(gathers > Instant::now() && gathers <= Instant::now() + GATHER, "for a moment, no longer");
    for say in pressing {
        let words = format!("{say:?}");
        let mut says = quiet();
        says.insert(1, say);
        assert!(batch(says).due().unwrap() <= Instant::now(), "somebody waits: {words}");
    }
    let mut refused = batch(quiet());
    refused.fresh = true;
    assert!(refused.due().unwrap() <= Instant::now(), "what was refused before is tried at once");
}

#[test]
fn what_has_no_rows_is_never_due() {
    let mut batch = Batch::default();
    batch.note();
    assert_eq!(batch.due(), None);
    batch.fx.says.push(Say::Reply(ReplyId(1), Reply::Nodes(Vec::new())));
    batch.note();
    assert_eq!(batch.due(), None, "it is said when the commit before it is through");
}
