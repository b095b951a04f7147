//! Tests of the commit loop on a real Postgres, with a fake outside.

mod cancel;
mod crash;
mod gather;
mod leases;
mod order;
mod poison;
mod proxy;
mod recovery;
mod slow;
mod standby;
mod standing;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_proto::ids::{AttemptKey, BootId, CoordinatorId, JobNumber, NodeId};
use sqlx::{Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{CommitLoop, Core, CoreError, Options, Outside, Phase};
use crate::{
    engine::{
        Totals,
        effect::{Ack, Reply, Say},
        event::{Event, NewJob, NodeRecord},
        types::Settings,
    },
    metrics::Metrics,
    postgres::testing::{TestDatabase, database},
    proof::Prover,
    spawn::spawn,
    store::{Store, StoreError, coordinators::Addresses},
    testing::{job, joined, new_job, registration, task},
};

/// The longest that a test waits for anything.
const SOON: Duration = Duration::from_secs(20);

/// What the loop said.
#[derive(Clone, Default)]
struct Heard {
    says: Arc<Mutex<Vec<Say>>>,
    accepted: Arc<Mutex<Vec<JobNumber>>>,
    again: watch::Sender<u32>,
    deposed: watch::Sender<u32>,
    totals: watch::Sender<u32>,
}

impl Outside for Heard {
    fn say(&mut self, say: Say) {
        self.says.lock().unwrap().push(say);
    }

    fn accepted(&mut self, number: JobNumber, _job: &NewJob) {
        self.accepted.lock().unwrap().push(number);
    }

    fn register_again(&mut self) {
        self.again.send_modify(|times| *times += 1);
    }

    fn step_down(&mut self) {
        self.deposed.send_modify(|times| *times += 1);
    }

    fn totals(&mut self, _totals: Totals) {
        self.totals.send_modify(|times| *times += 1);
    }
}

impl Heard {
    fn dispatched(&self) -> usize {
        self.dispatches().len()
    }

    fn dispatches(&self) -> Vec<(NodeId, AttemptKey)> {
        let dispatch = |say: &Say| {
            if let Say::Dispatch { node, attempt, .. } = say { Some((*node, *attempt)) } else { None }
        };
        self.says.lock().unwrap().iter().filter_map(dispatch).collect()
    }

    /// The first assignment, once there is one.
    async fn dispatch(&self) -> AttemptKey {
        loop {
            if let Some((_, attempt)) = self.dispatches().first() {
                return *attempt;
            }
            tokio::task::yield_now().await;
        }
    }

    /// How often the end of an attempt was acknowledged as durable.
    fn acks(&self, of: AttemptKey) -> usize {
        let durable = |say: &&Say| matches!(say, Say::Ack { attempt, ack: Ack::Durable, ended: true, .. } if *attempt == of);
        self.says.lock().unwrap().iter().filter(durable).count()
    }
}

/// A commit loop and what it stands on.
struct Room {
    core: Core,
    heard: Heard,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), StoreError>>,
}

fn options() -> Options {
    Options {
        id: CoordinatorId::generate(),
        addresses: Addresses { members: vec!["mesh.example:7443".to_owned()], joining: Vec::new() },
        prover: Prover::new(b"of every test"),
        alone: true,
        settings: Settings::default(),
        takeover: Duration::from_secs(30),
        // So that no beat falls into a test that counts commits.
        beat: Duration::from_secs(10),
        adoption_grace: Duration::from_secs(30),
        patience: SOON,
        queue: 1000,
    }
}

impl Room {
    fn start(connect: &PgConnectOptions, options: Options) -> Self {
        let heard = Heard::default();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let store = Store::new(connect.clone(), 4);
        let (commit_loop, core) = CommitLoop::new(store, options, heard.clone(), Arc::clone(&metrics));
        let stop = CancellationToken::new();
        let running = spawn("commit loop", commit_loop.run(stop.clone()));
        Self { core, heard, metrics, stop, running }
    }

    async fn leading(database: &TestDatabase, options: Options) -> Self {
        let room = Self::start(&database.options, options);
        room.reaches(Phase::Leading).await;
        room
    }

    async fn reaches(&self, phase: Phase) {
        let mut phases = self.core.phases();
        let reached = soon(phases.wait_for(|now| *now == phase)).await.is_ok();
        assert!(reached, "never {phase:?}");
    }

    async fn submit(&self, job: NewJob) -> Result<Reply, CoreError> {
        self.core.ask(|reply| Event::JobSubmitted { reply, job: Arc::new(job) }).await
    }

    /// A node joins and takes work.
    async fn node(&self, pool: &PgPool, name: &str) -> NodeRecord {
        let record = joined(pool, name).await;
        let registration = Arc::new(registration(&record, BootId::generate(), 4));
        let session = registration.session;
        self.core.ask(|reply| Event::NodeRegistered { reply, registration }).await.unwrap();
        self.core.tell(Event::SessionOpened { node: record.id, session }).await.unwrap();
        record
    }

    async fn ended(self) -> Result<(), StoreError> {
        soon(self.running).await.unwrap()
    }
}

fn one() -> NewJob {
    new_job(job(vec![task("one")]))
}

/// A job whose rows Postgres refuses: text has no NUL there.
fn poison() -> NewJob {
    NewJob { name: "nul\0".to_owned(), ..one() }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

/// Holds what stands in the way of a commit until it is dropped.
struct Stall {
    connection: PgConnection,
    /// Looks on: inside a transaction the statistics stand still.
    onlooker: PgConnection,
}

impl Stall {
    async fn by(database: &TestDatabase, sql: &'static str) -> Self {
        let mut connection = PgConnection::connect_with(&database.options).await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut connection).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        let onlooker = PgConnection::connect_with(&database.options).await.unwrap();
        Self { connection, onlooker }
    }

    /// Jobs can be read, but not written.
    async fn of_jobs(database: &TestDatabase) -> Self {
        Self::by(database, "LOCK TABLE jobs IN SHARE MODE").await
    }

    /// The leader's row cannot be raised.
    async fn of_the_leader(database: &TestDatabase) -> Self {
        Self::by(database, "SELECT * FROM leader FOR UPDATE").await
    }

    /// Waits until the loop's statement waits, and says the pid of its backend.
    async fn felt(&mut self) -> i32 {
        soon(async {
            loop {
                let waits: Option<i32> = sqlx::query_scalar(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                     AND application_name = 'mesh-coordinator' AND wait_event_type = 'Lock'",
                )
                .fetch_optional(&mut self.onlooker)
                .await
                .unwrap();
                if let Some(pid) = waits {
                    return pid;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn over(mut self) {
        sqlx::raw_sql("COMMIT").execute(&mut self.connection).await.unwrap();
        self.connection.close().await.unwrap();
    }
}

async fn jobs(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(pool).await.unwrap()
}

async fn leader(pool: &PgPool) -> (i64, i64, Option<uuid::Uuid>) {
    sqlx::query_as("SELECT epoch, seq, holder FROM leader").fetch_one(pool).await.unwrap()
}

/// A database, and a pool beside the loop's own connections.
async fn fixture() -> (TestDatabase, PgPool) {
    let database = database().await;
    let pool = database.pool(4).await;
    (database, pool)
}
