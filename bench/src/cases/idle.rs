//! P6 and P8: what a mesh costs that only waits, with its nodes' heartbeats; and what it holds
//! in memory.

use std::time::Duration;

use mesh_e2e::Agent;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::time::{Instant, sleep};

use crate::{
    bed::{Bed, jail_of},
    fleet::Fleet,
    processes::resident_mib,
    report::Figure,
};

/// By then Postgres has counted what was done before: a session that goes idle hands its
/// statistics in within 10 s.
const COUNTED: Duration = Duration::from_secs(12);

/// P6 with what of P8 is the coordinator's, in a mesh that did nothing before.
pub async fn coordinator(
    bed: &Bed,
    agents: u32,
    window: Duration,
    runs: usize,
) -> anyhow::Result<Vec<Figure>> {
    let alone = resident_mib(bed.coordinator());
    sleep(COUNTED).await;
    let quiet = transactions_per_second(bed, window).await?;
    let mut fleet = Fleet::connect(bed, "idle", agents, 4).await?;
    // Every agent has sent its first heartbeats by then, too.
    sleep(COUNTED).await;
    let (mut share, mut postgres, mut queries) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let (before, began) = (bed.coordinator_usage()?, Instant::now());
        queries.push(transactions_per_second(bed, window).await?);
        let (after, took) = (bed.coordinator_usage()?, began.elapsed().as_secs_f64());
        let percent = |at: usize| after[at].since(&before[at]).as_secs_f64() / took * 100.0;
        share.push(percent(0));
        postgres.push(percent(1));
    }
    fleet.check()?;
    let full = resident_mib(bed.coordinator());
    let with = format!("{agents} agents, heartbeat 5 s");
    Ok(vec![
        Figure::new("P6", format!("coordinator, {with}"), "% of a core", share).target("≤ 5 %"),
        Figure::new("P6", format!("its Postgres, {with}"), "% of a core", postgres),
        Figure::new("P6", format!("transactions, {with}"), "/s", queries)
            .floor("the same with no agent", vec![quiet; runs])
            .target("≤ 2 /s"),
        Figure::new("P8", "resident memory of the coordinator, idle", "MiB", vec![alone]).target("≤ 40 MiB"),
        Figure::new("P8", format!("resident memory of the coordinator, {agents} agents"), "MiB", vec![full])
            .target("≤ 120 MiB"),
    ])
}

/// What of P8 is the agent's, before it ran anything.
pub fn agent(agent: &Agent) -> anyhow::Result<Vec<Figure>> {
    let daemon = resident_mib(agent.pid());
    let jail = resident_mib(jail_of(agent)?);
    Ok(vec![
        Figure::new("P8", "resident memory of the agent, idle", "MiB", vec![daemon]).target("≤ 16 MiB"),
        Figure::new("P8", "resident memory of its jail, idle", "MiB", vec![jail]).target("≤ 4 MiB"),
    ])
}

/// Transactions in the mesh's database; a query outside a transaction is one.
async fn transactions_per_second(bed: &Bed, window: Duration) -> anyhow::Result<f64> {
    let options = bed.postgres();
    let before = transactions(&options).await?;
    let began = Instant::now();
    sleep(window).await;
    let after = transactions(&options).await?;
    Ok((after - before) as f64 / began.elapsed().as_secs_f64())
}

async fn transactions(postgres: &PgConnectOptions) -> anyhow::Result<i64> {
    let mut connection = PgConnection::connect_with(postgres).await?;
    let count =
        sqlx::query_scalar("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'mesh'")
            .fetch_one(&mut connection)
            .await?;
    connection.close().await?;
    Ok(count)
}
