//! Cancels that meet ends, a thousand times: each job is over in exactly one way, and rows, outputs
//! and counters tell the same story as what callers and agents were told.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_proto::{
    ids::{AttemptKey, JobNumber, NodeId},
    v1::Cause,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::PgPool;

use super::{Room, fixture, options, soon};
use crate::{
    commit::CoreError,
    engine::{
        effect::{Refusal, Reply, Say},
        event::{AttemptEnd, Event, NewJob},
    },
    testing::{array, exited, job, needing, new_job, task},
};

const ROUNDS: u64 = 1_000;
const WIDTH: usize = 3;

/// What a process had written when it ended by itself.
fn whole() -> Arc<AttemptEnd> {
    let (outputs, output) = (Bytes::from_static(b"\x0a\x00"), Bytes::from_static(b"said"));
    Arc::new(AttemptEnd { outputs, output_length: output.len() as u64, output, ..exited(0) })
}

fn killed() -> Arc<AttemptEnd> {
    Arc::new(AttemptEnd { started: true, ..AttemptEnd::declared(Cause::Cancelled, "cancelled") })
}

/// A node that runs one job at a time, and says of each attempt how it ended, sometimes twice.
struct Worker<'a> {
    room: &'a Room,
    node: NodeId,
    /// How what it ran ended.
    ends: BTreeMap<AttemptKey, Arc<AttemptEnd>>,
}

impl Worker<'_> {
    async fn ends(&mut self, attempt: AttemptKey, end: Arc<AttemptEnd>, times: usize) {
        // A process ends once, whatever is heard of it afterwards.
        let end = Arc::clone(self.ends.entry(attempt).or_insert(end));
        for _ in 0..times {
            let event = Event::AttemptEnded { node: self.node, attempt, end: Arc::clone(&end) };
            self.room.core.tell(event).await.unwrap();
        }
    }

    /// Does what it hears until the job is over; ends what it is sent as it should.
    async fn until_over(&mut self, number: JobNumber) {
        loop {
            let says = std::mem::take(&mut *self.room.heard.says.lock().unwrap());
            let mut over = false;
            for say in says {
                if let Say::Dispatch { attempt, .. } = say {
                    self.ends(attempt, whole(), 1).await;
                } else if let Say::Cancel { attempt, .. } = say {
                    self.ends(attempt, killed(), 1).await;
                } else if let Say::JobChanged(view) = say {
                    over |= view.row.number == number && view.row.finished_at.is_some();
                }
            }
            if over {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The attempts of a job's first tasks, once all were sent.
    async fn assigned(&self) -> Vec<AttemptKey> {
        loop {
            let sent: Vec<_> = self.room.heard.dispatches().into_iter().map(|(_, attempt)| attempt).collect();
            if sent.len() == WIDTH {
                self.room.heard.says.lock().unwrap().clear();
                return sent;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Tasks side by side, and sometimes one that needs them all.
fn wide(summed: bool) -> NewJob {
    let sum = summed.then(|| needing(task("sum"), &[("part", false)]));
    new_job(job([array("part", WIDTH as u32)].into_iter().chain(sum).collect()))
}

#[tokio::test]
async fn a_cancel_that_meets_ends_leaves_one_story() {
    let (database, pool) = fixture().await;
    let room = Room::leading(&database, options()).await;
    let node = room.node(&pool, "amber").await.id;
    let mut worker = Worker { room: &room, node, ends: BTreeMap::new() };
    let mut random = StdRng::seed_from_u64(7);
    let mut cancelled = BTreeMap::new();
    for _ in 0..ROUNDS {
        let Ok(Reply::Submitted { number, .. }) = soon(room.submit(wide(random.random_bool(0.5)))).await
        else {
            panic!()
        };
        let attempts = soon(worker.assigned()).await;
        // Each ends by itself before, beside or behind the cancel, or is killed by it.
        let (before, beside): (Vec<_>, Vec<_>) = attempts.into_iter().partition(|_| random.random_bool(0.3));
        for attempt in before {
            worker.ends(attempt, whole(), random.random_range(1..=2)).await;
        }
        for _ in 0..random.random_range(0..4) {
            tokio::task::yield_now().await;
        }
        let asked =
            room.core.ask(|reply| Event::JobCancelled { reply, job: number, reason: "enough".to_owned() });
        let (first, twice) = (random.random_bool(0.5), random.random_bool(0.2));
        let by_itself: Vec<bool> = beside.iter().map(|_| random.random_bool(0.5)).collect();
        let tells = async {
            for (attempt, _) in beside.into_iter().zip(by_itself).filter(|(_, itself)| *itself) {
                worker.ends(attempt, whole(), 1 + usize::from(twice)).await;
            }
        };
        let answer = if first { tokio::join!(asked, tells).0 } else { tokio::join!(tells, asked).1 };
        match answer {
            Ok(Reply::Cancelled { .. }) => drop(cancelled.insert(number, true)),
            Err(CoreError::Refused(Refusal::NoSuchJob)) => drop(cancelled.insert(number, false)),
            other => panic!("{other:?}"),
        }
        if cancelled[&number] {
            soon(worker.until_over(number)).await;
        }
    }
    let met = cancelled.values().filter(|cancelled| **cancelled).count();
    assert!(met > 500 && met < cancelled.len(), "{met} of {} cancels came in time", cancelled.len());
    check(&pool, &cancelled, &worker.ends).await;
    let Ok(Reply::Nodes(nodes)) = room.core.ask(|reply| Event::NodesAsked { reply }).await else { panic!() };
    assert_eq!(
        (nodes[0].slots_free, nodes[0].running, nodes[0].queued),
        (4, 0, 0),
        "a slot is not given back"
    );
}

/// One row of a job, of a task, or of an attempt, with what hangs on it.
type JobRow = (i64, String, Vec<i64>, Vec<i64>, i64, i64);
type AttemptRow = (i64, i32, i32, i32, String, String, bool, i64);

async fn check(
    pool: &PgPool,
    cancelled: &BTreeMap<JobNumber, bool>,
    ends: &BTreeMap<AttemptKey, Arc<AttemptEnd>>,
) {
    let jobs: Vec<JobRow> = sqlx::query_as(
        "SELECT j.number, j.state::text, j.counts,
             (SELECT array_agg(total ORDER BY place) FROM (
                  SELECT place, sum(count)::bigint AS total
                  FROM task_definitions d, unnest(d.counts) WITH ORDINALITY AS c (count, place)
                  WHERE d.job = j.number GROUP BY place) AS sums),
             (SELECT count(*) FROM tasks t WHERE t.job = j.number AND t.state = 'completed'),
             (SELECT count(*) FROM tasks t WHERE t.job = j.number AND t.state NOT IN ('completed', 'cancelled'))
         FROM jobs j WHERE finished_at IS NOT NULL ORDER BY number",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(jobs.len(), cancelled.len(), "a job is not over");
    for (number, state, counts, definitions, completed, open) in &jobs {
        let was_cancelled = cancelled[&JobNumber(number.cast_unsigned())];
        assert_eq!(state, if was_cancelled { "cancelled" } else { "completed" }, "job {number}");
        assert_eq!(counts, definitions, "job {number} counts other than its tasks");
        let all: i64 = counts.iter().sum();
        assert_eq!((counts[5], counts[7]), (*completed, all - completed), "job {number}: {counts:?}");
        assert_eq!((*open, counts[6]), (0, 0), "job {number}: {counts:?}");
        assert!(was_cancelled || *completed == all, "job {number} completed without all its tasks");
    }
    let attempts: Vec<AttemptRow> = sqlx::query_as(
        "SELECT a.job, a.task, a.index, a.number, t.state::text, a.cause::text,
             COALESCE(octet_length(a.outputs) > 0, false), COALESCE(a.output_length, 0)
         FROM attempts a JOIN tasks t USING (job, task, index)",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(attempts.len(), ends.len(), "an attempt for each process");
    for (job, task, index, number, state, cause, outputs, length) in attempts {
        let key = mesh_proto::ids::TaskKey {
            job: JobNumber(job.cast_unsigned()),
            task: task.cast_unsigned(),
            index: index.cast_unsigned(),
        };
        let end = &ends[&AttemptKey { task: key, number: number.cast_unsigned() }];
        let story = (state.as_str(), cause.as_str(), outputs, length);
        let by_itself = end.cause == Cause::Exit;
        let told =
            if by_itself { ("completed", "exit", true, 4) } else { ("cancelled", "cancelled", false, 0) };
        assert_eq!((story, number), (told, 1), "{key}");
    }
}
