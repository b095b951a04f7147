//! A term begins: the lead is taken under a new epoch and memory is read anew.

use std::{pin::pin, time::Duration};

use mesh_proto::ids::{CoordinatorId, Incarnation};
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::core::Options;
use crate::{
    engine::{Engine, types::Time},
    failpoint::{Point, reach},
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
    pub incarnation: Incarnation,
    pub seq: i64,
    /// Boot-time milliseconds before seq was raised.
    pub sent_ms: u64,
}

/// Takes the lead and reads everything unfinished.
pub(super) async fn begin(store: &Store, options: &Options) -> Result<Begun, StoreError> {
    let started = boot_ms();
    let mut connection = connect(store, options).await?;
    let (row, mut sent_ms) = lead(&mut connection, options).await?;
    reach(Point::AfterTake);
    let clock = Clock::new(row.now);
    let mut seq = row.seq;
    // What is read must not be older than the lead, and the lead must not look abandoned while
    // much is read: so a second connection reads, and this one goes on beating.
    let mut reading = connect(store, options).await?;
    let snapshot = {
        let mut load = pin!(snapshot::load(&mut reading));
        loop {
            tokio::select! {
                snapshot = &mut load => break snapshot?,
                () = sleep(options.beat) => {
                    sent_ms = boot_ms();
                    seq = leader::fence(&mut connection, row.epoch).await?;
                }
            }
        }
    };
    reach(Point::AfterLoad);
    let now = clock.now();
    let (jobs, nodes) = (snapshot.jobs.len(), snapshot.nodes.len());
    let engine = Engine::restore(options.settings.clone(), snapshot, grace(now, options));
    info!(epoch = row.epoch, jobs, nodes, took_ms = boot_ms() - started, "leads");
    let term = Term { connection, engine, clock, epoch: row.epoch };
    Ok(Begun { term, incarnation: row.incarnation, seq, sent_ms })
}

async fn connect(store: &Store, options: &Options) -> Result<PgConnection, StoreError> {
    timeout(options.patience, store.connection()).await.unwrap_or(Err(StoreError::Silent))
}

/// Takes the lead, and says when that was sent.
async fn lead(
    connection: &mut PgConnection,
    options: &Options,
) -> Result<(leader::LeaderRow, u64), StoreError> {
    let mut seen = leader::read(connection).await?;
    if let Some(holder) = seen.holder.filter(|holder| *holder != options.id) {
        warn!(%holder, wait = ?options.takeover, "another coordinator held the lead; waiting whether it still moves");
        sleep(options.takeover).await;
    }
    reach(Point::BeforeTake);
    loop {
        let sent_ms = boot_ms();
        match leader::take(connection, &seen, options.id).await {
            Ok(row) => return Ok((row, sent_ms)),
            Err(StoreError::Fenced) => {
                let now = leader::read(connection).await?;
                if !still_ours(&seen, &now, options.id) {
                    return Err(StoreError::Fenced);
                }
                // A commit of our last term, whose answer was lost, came through only now.
                seen = now;
            }
            Err(error) => return Err(error),
        }
    }
}

fn still_ours(before: &leader::LeaderRow, now: &leader::LeaderRow, id: CoordinatorId) -> bool {
    before.epoch == now.epoch && before.holder == Some(id) && now.holder == Some(id)
}

/// The moment from which silence is counted, so that nodes have the grace to come back.
fn grace(now: Time, options: &Options) -> Time {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    now.plus(millis(options.adoption_grace).saturating_sub(options.settings.offline_after_ms))
}
