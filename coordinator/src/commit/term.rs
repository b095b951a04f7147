//! A term begins: the lead is taken under a new epoch and memory is read anew.

use std::time::Duration;

use mesh_proto::ids::CoordinatorId;
use sqlx::PgConnection;
use tracing::{info, warn};

use super::core::Options;
use crate::{
    engine::{Engine, types::Time},
    store::{Clock, Store, StoreError, clock::boot_ms, leader, snapshot},
};

/// One epoch of this process.
pub(super) struct Term {
    pub connection: PgConnection,
    pub engine: Engine,
    pub clock: Clock,
    pub epoch: i64,
}

/// What taking the lead told.
pub(super) struct Begun {
    pub term: Term,
    pub row: leader::LeaderRow,
    /// Boot-time milliseconds before the lead was taken.
    pub sent_ms: u64,
}

/// Takes the lead and reads everything unfinished.
pub(super) async fn begin(store: &Store, options: &Options) -> Result<Begun, StoreError> {
    let mut connection = store.connection().await?;
    let seen = leader::read(&mut connection).await?;
    if let Some(holder) = seen.holder.filter(|holder| *holder != options.id) {
        wait_for_silence(&mut connection, &seen, holder, options.takeover).await?;
    }
    let sent_ms = boot_ms();
    let seen = leader::LeaderRow { ..leader::read(&mut connection).await? };
    let row = leader::take(&mut connection, &seen, options.id).await?;
    let clock = Clock::new(row.now);
    let snapshot = snapshot::load(&mut connection).await?;
    let now = clock.now();
    let (jobs, nodes) = (snapshot.jobs.len(), snapshot.nodes.len());
    let engine = Engine::restore(options.settings.clone(), snapshot, grace(now, options));
    info!(epoch = row.epoch, jobs, nodes, took_ms = boot_ms() - sent_ms, "leads");
    Ok(Begun { term: Term { connection, engine, clock, epoch: row.epoch }, row, sent_ms })
}

/// The moment from which silence is counted, so that nodes have the grace to come back.
fn grace(now: Time, options: &Options) -> Time {
    let grace = u64::try_from(options.adoption_grace.as_millis()).unwrap_or(u64::MAX);
    now.plus(grace.saturating_sub(options.settings.offline_after_ms))
}

/// Another coordinator held the lead: it must stand still for the takeover time.
async fn wait_for_silence(
    connection: &mut PgConnection,
    seen: &leader::LeaderRow,
    holder: CoordinatorId,
    takeover: Duration,
) -> Result<(), StoreError> {
    warn!(%holder, wait = ?takeover, "another coordinator held the lead; waiting whether it still moves");
    tokio::time::sleep(takeover).await;
    let after = leader::read(connection).await?;
    if after.epoch != seen.epoch || after.seq != seen.seq {
        return Err(StoreError::Fenced);
    }
    Ok(())
}
