//! Tests on a real Postgres: one file per noun, and `walk.rs`, which plays a random history
//! and reads it back.

mod access;
mod commit;
mod jobs;
mod leader;
mod nodes;
mod snapshot;
mod tasks;
mod walk;

use std::sync::Arc;

use mesh_proto::ids::{AttemptKey, BootId, CoordinatorId, JobNumber, NodeId};
use sqlx::PgConnection;

use super::{Store, StoreError};
use crate::{
    engine::{
        Engine,
        effect::{Effects, Reply, Say, Write},
        event::{AttemptEnd, Event, NewJob, NodeRecord, ReplyId},
        types::{Settings, Time},
    },
    postgres::testing::{TestDatabase, database},
    testing::{joined, registration},
};

/// A moment in 2027, so that stamps look like stamps.
const START: Time = Time(1_800_000_000_000);

/// An engine whose every batch is committed, and the database under it.
struct Kit {
    engine: Engine,
    now: Time,
    store: Store,
    connection: PgConnection,
    epoch: i64,
    /// What the last step said.
    says: Vec<Say>,
    // Last: it is dropped after all that uses it.
    _database: TestDatabase,
}

impl Kit {
    async fn new() -> Self {
        let database = database().await;
        let store = Store::new(database.options.clone(), 4);
        let mut connection = store.writer().await.unwrap();
        let seen = crate::store::leader::read(&mut connection).await.unwrap();
        let row =
            crate::store::leader::take(&mut connection, &seen, CoordinatorId::generate()).await.unwrap();
        let engine = Engine::new(Settings::default(), 1);
        Self {
            engine,
            now: START,
            store,
            connection,
            epoch: row.epoch,
            says: Vec::new(),
            _database: database,
        }
    }

    /// Handles events as one batch and commits it.
    async fn batch(&mut self, events: &[Event]) -> &[Say] {
        let mut fx = Effects::default();
        for event in events {
            self.engine.handle(self.now, event, &mut fx);
        }
        self.engine.settle(self.now, &mut fx);
        self.engine.check().unwrap();
        self.write(fx.writes).await.unwrap();
        self.says = fx.says;
        &self.says
    }

    async fn step(&mut self, event: Event) -> &[Say] {
        self.batch(&[event]).await
    }

    async fn write(&mut self, writes: Vec<Write>) -> Result<i64, StoreError> {
        crate::store::commit::commit(&mut self.connection, self.epoch, crate::store::commit::Rows::of(writes))
            .await
    }

    async fn submit(&mut self, job: NewJob) -> JobNumber {
        let said = self.step(Event::JobSubmitted { reply: ReplyId(1), job: Arc::new(job) }).await;
        said.iter()
            .find_map(|say| match say {
                Say::Reply(_, Reply::Submitted { number, .. }) => Some(*number),
                _ => None,
            })
            .expect("an answer to the submit")
    }

    async fn cancel(&mut self, job: JobNumber) {
        self.step(Event::JobCancelled { reply: ReplyId(1), job, reason: "not needed".to_owned() }).await;
    }

    /// A node joins, registers and takes work.
    async fn node(&mut self, name: &str, cores: u32) -> NodeRecord {
        let record = joined(self.store.pool(), name).await;
        self.open(&record, BootId::generate(), cores).await;
        record
    }

    async fn open(&mut self, record: &NodeRecord, boot: BootId, cores: u32) {
        let registration = Arc::new(registration(record, boot, cores));
        let session = registration.session;
        self.step(Event::NodeRegistered { reply: ReplyId(1), registration }).await;
        self.step(Event::SessionOpened { node: record.id, session }).await;
    }

    /// The attempts that the last step sent out.
    fn dispatched(&self) -> Vec<(NodeId, AttemptKey)> {
        let dispatched = self.says.iter().filter_map(|say| match say {
            Say::Dispatch { node, attempt, .. } => Some((*node, *attempt)),
            _ => None,
        });
        dispatched.collect()
    }

    async fn end(&mut self, (node, attempt): (NodeId, AttemptKey), end: AttemptEnd) {
        self.step(Event::AttemptEnded { node, attempt, end: Arc::new(end) }).await;
    }

    /// The engine as another coordinator would have it now.
    async fn read_back(&mut self) -> Engine {
        let snapshot = crate::store::snapshot::load(&mut self.connection).await.unwrap();
        let engine = Engine::restore(Settings::default(), snapshot, self.now);
        engine.check().unwrap();
        engine
    }
}
