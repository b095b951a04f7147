//! What sessions notice of a coordinator that reads its memory anew.

use mesh_proto::{
    code::Code,
    frame::{Kind, header},
    v1::{self, AckKind, InventoryState, JobState, Verdict, attempt_event},
};

use super::{
    Mesh,
    agent::{Agent, assigned, exit, held, key_of},
    soon, until,
};
use crate::{
    commit::Phase,
    testing::{job, task},
};

impl Mesh {
    /// Kills the loop's connection, which it notices with its next commit.
    async fn kill_the_connection(&self) {
        let killed: i64 = sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'mesh-coordinator'
             AND pid <> pg_backend_pid() AND query LIKE '%UPDATE leader%'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert!(killed > 0, "no connection of the commit loop");
    }
}

#[tokio::test]
async fn streams_stay_open_through_a_recovery_and_nothing_that_was_said_is_lost() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let (mut results, mut output) = (agent.results().await, agent.output().await);
    let number = mesh.submit(job(vec![task("one")])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    // The next term cannot begin before this lets go.
    let mut stall = mesh.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE leader IN SHARE ROW EXCLUSIVE MODE").execute(&mut *stall).await.unwrap();
    mesh.kill_the_connection().await;
    soon(mesh.core.phases().wait_for(|phase| *phase == Phase::Recovering)).await.unwrap();
    // Calls are refused, and words wait.
    let refused = mesh.try_submit(job(vec![task("two")]), "").await.unwrap_err();
    assert_eq!(Code::of(&refused), Code::Unavailable);
    assert!(refused.metadata().get("mesh-retry-after-ms").is_some());
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    let mut line = header(Kind::Stdout, 0, 1, 3).to_vec();
    line.extend(b"hi\n");
    output.put(attempt, 0, line.into()).await;
    assert_eq!(output.ack().await.durable, 23, "output goes on meanwhile");
    stall.rollback().await.unwrap();
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, true));
    assert_eq!(mesh.over(number).await, JobState::Completed);
    let again = soon(assignments.message()).await.unwrap().expect("the stream goes on");
    assert!(again.register_again);
    agent.register(1, Vec::new()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_registers_again_goes_on_with_what_it_holds() {
    let mesh = Mesh::new().await;
    let (mut agent, mut assignments) = mesh.working_agent("amber", 1).await;
    let number = mesh.submit(job(vec![task("one")])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    let epoch = mesh.core.standing().epoch();
    mesh.kill_the_connection().await;
    until(async || mesh.core.standing().epoch() > epoch).await;
    mesh.leads().await;
    let answer = agent.register(1, vec![held(attempt, InventoryState::Running)]).await.unwrap();
    assert_eq!(answer.verdicts[0].verdict(), Verdict::Keep);
    let _assignments = agent.assignments().await.unwrap();
    let mut results = agent.results().await;
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, true));
    assert_eq!(mesh.over(number).await, JobState::Completed);
    let attempts: i64 =
        sqlx::query_scalar("SELECT count(*) FROM attempts").fetch_one(&mesh.pool).await.unwrap();
    assert_eq!(attempts, 1, "it ran once");
}

#[tokio::test]
async fn reads_after_a_restart_of_the_database_find_living_connections() {
    let mesh = Mesh::new().await;
    mesh.submit(job(vec![task("one")])).await;
    let reads = async || {
        let all = (0..8).map(|_| mesh.store.job(mesh_proto::ids::JobNumber(1)));
        futures_util::future::join_all(all).await
    };
    reads().await;
    // What a restart leaves: every connection of the pool is dead, and was idle for longer than one is
    // taken for fresh.
    until(async || {
        sqlx::query_scalar(
            "SELECT count(*) = 0 FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'mesh-coordinator'
                 AND query LIKE '%FROM jobs%' AND query NOT LIKE '%pg_stat_activity%'
                 AND clock_timestamp() - state_change < interval '600 ms'",
        )
        .fetch_one(&mesh.pool)
        .await
        .unwrap()
    })
    .await;
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'mesh-coordinator' AND pid <> pg_backend_pid()",
    )
    .execute(&mesh.pool)
    .await
    .unwrap();
    let read = reads().await;
    assert!(read.iter().all(Result::is_ok), "{read:?}");
}

#[tokio::test]
async fn a_registration_that_comes_behind_a_newer_one_ends_nothing() {
    let mesh = Mesh::new().await;
    let mut agent = mesh.joined_agent("amber").await;
    let taken_at =
        |agent: &Agent, us| v1::RegisterNodeRequest { taken_at_us: us, ..agent.registration(1, Vec::new()) };
    let late = taken_at(&agent, 1_000);
    let answer = agent.client.register_node(taken_at(&agent, 2_000)).await.unwrap().into_inner();
    agent.session = answer.session_id;
    let mut assignments = agent.assignments().await.unwrap();
    let number = mesh.submit(job(vec![task("one")])).await;
    let attempt = key_of(&assigned(&mut assignments, 1).await[0]);
    let mut results = agent.results().await;
    results.started(attempt).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, false));
    // Its inventory knows nothing of the attempt, which would count as lost.
    let refused = agent.client.clone().register_node(late).await.unwrap_err();
    assert_eq!(Code::of(&refused), Code::Stale);
    results.say(attempt, attempt_event::Event::Ended(exit(0))).await;
    assert_eq!(results.ack().await, (attempt, AckKind::Durable, true));
    assert_eq!(mesh.over(number).await, JobState::Completed);
    let attempts: i64 =
        sqlx::query_scalar("SELECT count(*) FROM attempts").fetch_one(&mesh.pool).await.unwrap();
    assert_eq!(attempts, 1, "it ran once");
}
